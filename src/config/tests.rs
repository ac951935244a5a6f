//! The whole way from files, variables and flags to settings.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::backoff::Policy;
use crate::decide::SCHEDULE;
use crate::event::Topic;

mod errors;
mod hostile;
mod shown;

/// The sample of the documentation.
const SAMPLE: &str = r#"
database = "/var/lib/assetwatch/assetwatch.db"
retention = "30d"
grace = "20s"

[api]
url = "https://api.rendernet.ai"
key_file = "/etc/assetwatch/api-key"
timeout = "10s"
max_in_flight = 32
rate = 10
waiting_statuses = ["pending", "processing"]
[accounts.studio]
key_file = "/etc/assetwatch/studio-key"

[backoff]
initial = "2s"
multiplier = 1.5
max = "60s"
jitter = 0.1
patience = "24h"
missing_grace = "5m"

[http]
listen = "127.0.0.1:8787"
token_file = "/etc/assetwatch/http-token"

[[hooks]]
name = "cms"
on = ["active", "censored", "abandoned"]
accounts = ["default"]
url = "https://cms.example/hooks/assets"
secret_file = "/etc/assetwatch/cms-secret"

[callbacks]
secret_file = "/etc/assetwatch/callback-secret"
allow_nets = []
allow_http = false

[[hooks]]
name = "publish"
on = ["active"]
command = ["/usr/local/bin/publish", "--video"]
timeout = "60s"
"#;

/// A machine of its own: a directory with a home, and an environment.
struct Machine {
    directory: TempDir,
    variables: BTreeMap<String, String>,
    overrides: Overrides,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap().to_owned();
        Self { directory, variables: BTreeMap::from([("HOME".into(), home)]), overrides: Overrides::default() }
    }

    /// A machine whose system-wide configuration is `text`.
    fn with(text: &str) -> Self {
        let machine = Self::new();
        machine.write("system.toml", text);
        machine
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn load(&self) -> Result<Settings, ConfigError> {
        load_or(&self.overrides, &self.variables.clone().into_iter().collect(), &self.path("system.toml"))
    }

    fn settings(&self) -> Settings {
        self.load().unwrap()
    }

    /// Each problem, with `~` for the directory of the test.
    fn problems(&self) -> Vec<String> {
        let home = self.directory.path().to_str().unwrap();
        self.load().unwrap_err().problems().iter().map(|line| line.replace(home, "~")).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let home = self.directory.path().to_str().unwrap();
        self.settings().warnings.iter().map(|line| line.replace(home, "~")).collect()
    }

    /// `KEY = VALUE  ORIGIN` of each of these keys.
    fn shown(&self, keys: &[&str]) -> Vec<String> {
        let home = self.directory.path().to_str().unwrap();
        let entries = self.settings().entries;
        let wanted = entries.iter().filter(|entry| keys.contains(&entry.key.as_str()));
        wanted.map(|entry| format!("{} = {}  {}", entry.key, entry.value, entry.origin).replace(home, "~")).collect()
    }
}

#[test]
fn the_sample_is_understood() {
    let settings = Machine::with(SAMPLE).settings();
    assert_eq!(settings.database, PathBuf::from("/var/lib/assetwatch/assetwatch.db"));
    assert_eq!(settings.retention, Duration::from_secs(30 * 24 * 3_600));
    assert_eq!(settings.grace, Duration::from_secs(20));

    let [default, studio] = &settings.accounts[..] else { panic!("{:?}", settings.accounts) };
    assert_eq!(default.name, "default");
    assert_eq!(default.url.as_str(), "https://api.rendernet.ai/");
    assert_eq!(default.key, KeySource::File("/etc/assetwatch/api-key".into()));
    assert_eq!(default.timeout, Duration::from_secs(10));
    assert_eq!(default.limits, Limits { rate: 10.0, max_in_flight: 32 });
    assert_eq!(default.rules, Rules::default());
    let key = KeySource::File("/etc/assetwatch/studio-key".into());
    assert_eq!(*studio, Account { name: "studio".into(), key, ..default.clone() });

    let [cms, publish] = &settings.hooks[..] else { panic!("{:?}", settings.hooks) };
    assert_eq!(
        cms.subscription,
        Subscription {
            body: None,
            hook: "cms".into(),
            on: vec![Topic::Status("active".into()), Topic::Status("censored".into()), Topic::Abandoned],
            accounts: vec!["default".into()],
            batches: Vec::new(),
        }
    );
    let url = Url::parse("https://cms.example/hooks/assets").unwrap();
    let secrets = Some(KeySource::File("/etc/assetwatch/cms-secret".into()));
    assert_eq!(cms.target, Target::Webhook(Webhook { url, secrets, headers: Vec::new(), proxy: None }));
    assert_eq!((cms.timeout, cms.concurrency), (Duration::from_secs(20), 4));
    assert_eq!(cms.schedule, SCHEDULE);
    let command = Command {
        argv: vec!["/usr/local/bin/publish".into(), "--video".into()],
        kill_after: Duration::from_secs(5),
        env: BTreeMap::new(),
        env_pass: Vec::new(),
    };
    assert_eq!(publish.target, Target::Command(command));
    assert_eq!((publish.timeout, publish.concurrency), (Duration::from_secs(60), 1));

    let listen = Listen::Tcp("127.0.0.1:8787".parse().unwrap());
    let token = Some(KeySource::File("/etc/assetwatch/http-token".into()));
    assert_eq!(settings.http, Some(Http { listen, token, hosts: Vec::new() }));
    let secrets = Some(KeySource::File("/etc/assetwatch/callback-secret".into()));
    assert_eq!(settings.callbacks, Some(Callbacks { secrets, allow_nets: Vec::new(), allow_http: false }));
}

#[test]
fn no_configuration_is_fine() {
    let machine = Machine::new();
    let settings = machine.settings();
    assert_eq!(settings.file, None);
    assert_eq!(settings.warnings, [""; 0]);
    assert_eq!(settings.database, machine.path(".local/state/assetwatch/assetwatch.db"));
    assert_eq!((settings.retention, settings.grace), (Duration::from_secs(30 * 86_400), Duration::from_secs(20)));
    let [account] = &settings.accounts[..] else { panic!("{:?}", settings.accounts) };
    assert_eq!((account.url.as_str(), &account.key), ("https://api.rendernet.ai/", &KeySource::Absent));
    assert_eq!((account.limits, &account.rules), (Limits::default(), &Rules::default()));
    assert_eq!((settings.hooks, settings.http, settings.callbacks), (Vec::new(), None, None));
}

#[test]
fn every_key_is_understood() {
    let settings = Machine::with(
        r#"
        grace = "0s"
        [api]
        key_env = "OUR_KEY"
        [accounts.studio-2]
        key_env = "STUDIO_KEY"
        url = "http://127.0.0.1:9/prefix"
        timeout = "1m 30s"
        rate = 0.5
        max_in_flight = 0x10
        waiting_statuses = ["queued"]
        [backoff]
        multiplier = 1
        [http]
        listen = "unix:/run/assetwatch.sock"
        [callbacks]
        secret_env = "SIGNING"
        allow_nets = ["10.1.2.0/24", "fd00::/8"]
        allow_http = true
        [[hooks]]
        name = "a"
        url = "http://localhost:3000/x?y=z"
        secret_env = "HOOK_SECRET"
        batches = ["spring"]
        accounts = ["studio-2"]
        on = ["asset.active", "watch.cancelled", "settled"]
        schedule = []
        concurrency = 256
        [[hooks]]
        name = "b"
        command = ["/bin/sh", "-c", "echo \"$HOOK_URL\""]
        kill_after = "0s"
        env = { STAGE = "live" }
        env_pass = ["TZ"]
        schedule = ["1s", "7d"]
        "#,
    )
    .settings();
    let studio = &settings.accounts[1];
    assert_eq!((studio.url.as_str(), studio.timeout), ("http://127.0.0.1:9/prefix", Duration::from_secs(90)));
    assert_eq!(studio.limits, Limits { rate: 0.5, max_in_flight: 16 });
    assert_eq!(studio.rules.waiting_statuses, ["queued"]);
    assert_eq!(studio.rules.backoff, Policy { multiplier: 1.0, ..Policy::default() });
    assert_eq!(studio.key, KeySource::Env("STUDIO_KEY".into()));
    assert_eq!(settings.http.unwrap().listen, Listen::Unix("/run/assetwatch.sock".into()));
    let callbacks = settings.callbacks.unwrap();
    assert_eq!(callbacks.allow_nets, ["10.1.2.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert!(callbacks.allow_http);
    let [a, b] = &settings.hooks[..] else { panic!("{:?}", settings.hooks) };
    assert_eq!((a.schedule.len(), a.concurrency, &a.subscription.batches[..]), (0, 256, &["spring".to_owned()][..]));
    assert_eq!(b.schedule, [Duration::from_secs(1), Duration::from_secs(7 * 86_400)]);
    let Target::Command(command) = &b.target else { panic!("{b:?}") };
    assert_eq!(
        (command.kill_after, &command.env["STAGE"][..], &command.env_pass[..]),
        (Duration::ZERO, "live", &["TZ".to_owned()][..])
    );
}

#[test]
fn the_first_file_that_exists_is_read() {
    let mut machine = Machine::with("grace = '4s'");
    let grace = |machine: &Machine| machine.settings().grace.as_secs();
    assert_eq!(grace(&machine), 4);
    machine.write(".config/assetwatch/config.toml", "grace = '3s'");
    assert_eq!(grace(&machine), 3);
    machine.write("xdg/assetwatch/config.toml", "grace = '2s'");
    machine = machine.set("XDG_CONFIG_HOME", "relative counts as unset");
    assert_eq!(grace(&machine), 3);
    let xdg = machine.path("xdg").to_str().unwrap().to_owned();
    machine = machine.set("XDG_CONFIG_HOME", &xdg);
    assert_eq!(grace(&machine), 2);
    machine.write("variable.toml", "grace = '1s'");
    let variable = machine.path("variable.toml").to_str().unwrap().to_owned();
    machine = machine.set("ASSETWATCH_CONFIG", &variable);
    assert_eq!(grace(&machine), 1);
    machine.write("flag.toml", "grace = '0s'");
    machine.overrides.config = Some(machine.path("flag.toml"));
    assert_eq!(grace(&machine), 0);
    assert_eq!(machine.settings().file, Some(machine.path("flag.toml")));
}

#[test]
fn a_place_that_cannot_be_looked_at_is_passed_over_and_named() {
    let machine = Machine::with("grace = '4s'").set("XDG_CONFIG_HOME", &format!("/{}", "x".repeat(300)));
    let settings = machine.settings();
    assert_eq!(settings.grace.as_secs(), 4);
    let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
    assert!(warning.ends_with("/assetwatch/config.toml: not looked at: File name too long (os error 36)"), "{warning}");
}

#[test]
fn a_home_that_is_no_directory_is_passed_over() {
    let machine = Machine::with("grace = '4s'");
    machine.write(".config", "a file");
    assert_eq!(machine.settings().grace.as_secs(), 4);
}

#[test]
fn variables_override_the_file_and_flags_override_both() {
    let mut machine = Machine::with(SAMPLE)
        .set("ASSETWATCH_DATABASE", "elsewhere.db")
        .set("ASSETWATCH_RETENTION", "1d")
        .set("ASSETWATCH_API_URL", "https://variable.example")
        .set("ASSETWATCH_API_RATE", "2.5")
        .set("ASSETWATCH_API_MAX_IN_FLIGHT", "7")
        .set("ASSETWATCH_API_TIMEOUT", "") // counts as unset
        .set("ASSETWATCH_BACKOFF_INITIAL", "3s")
        .set("ASSETWATCH_ACCOUNTS_STUDIO_KEY_FILE", "/run/studio")
        .set("ASSETWATCH_ACCOUNTS_STUDIO_RATE", "1")
        .set("ASSETWATCH_HTTP_LISTEN", "[::1]:80")
        .set("ASSETWATCH_HOOKS_CMS_TIMEOUT", "1s")
        .set("ASSETWATCH_CALLBACKS_ALLOW_HTTP", "true");
    let settings = machine.settings();
    assert_eq!(settings.database, PathBuf::from("elsewhere.db"));
    assert_eq!(settings.retention, Duration::from_secs(86_400));
    let [default, studio] = &settings.accounts[..] else { panic!("{:?}", settings.accounts) };
    assert_eq!(default.url.as_str(), "https://variable.example/");
    assert_eq!(default.limits, Limits { rate: 2.5, max_in_flight: 7 });
    assert_eq!(default.timeout, Duration::from_secs(10));
    assert_eq!(default.rules.backoff.initial, Duration::from_secs(3));
    assert_eq!(studio.key, KeySource::File("/run/studio".into()));
    assert_eq!(studio.limits, Limits { rate: 1.0, max_in_flight: 7 });
    assert_eq!(settings.http.unwrap().listen.to_string(), "[::1]:80");
    assert_eq!(settings.hooks[0].timeout, Duration::from_secs(1));
    assert!(settings.callbacks.unwrap().allow_http);

    machine.overrides.database = Some("/flag.db".into());
    machine.overrides.api_url = Some("https://flag.example".into());
    assert_eq!(
        machine.shown(&["database", "api.url", "accounts.studio.url"]),
        [
            "database = \"/flag.db\"  --database",
            "api.url = \"https://flag.example/\"  --api-url",
            "accounts.studio.url = \"https://flag.example/\"  --api-url",
        ]
    );
}

#[test]
fn a_secret_in_a_variable_replaces_the_other_kind_in_the_file() {
    let machine = Machine::with("[api]\nkey_file = '/file'").set("ASSETWATCH_API_KEY_ENV", "OTHER");
    assert_eq!(machine.settings().accounts[0].key, KeySource::Env("OTHER".into()));
    let machine = Machine::with("[api]\nkey_env = 'OTHER'").set("ASSETWATCH_API_KEY_FILE", "/file");
    assert_eq!(machine.settings().accounts[0].key, KeySource::File("/file".into()));
    assert_eq!(machine.shown(&["api.key_env"]), [""; 0]);
}

#[test]
fn the_key_is_looked_for_where_it_usually_is() {
    let machine = Machine::new();
    assert_eq!(machine.settings().accounts[0].key, KeySource::Absent);
    let machine = machine.set("AFFOGATO_API_KEY", "rn_canary");
    assert_eq!(machine.settings().accounts[0].key, KeySource::Env("AFFOGATO_API_KEY".into()));
    let credentials = machine.path("credentials").to_str().unwrap().to_owned();
    let machine = machine.set("CREDENTIALS_DIRECTORY", &credentials);
    assert_eq!(machine.settings().accounts[0].key, KeySource::Env("AFFOGATO_API_KEY".into()));
    machine.write("credentials/api-key", "rn_canary");
    assert_eq!(machine.settings().accounts[0].key, KeySource::Credential("api-key".into()));
    assert_eq!(machine.shown(&["api.key_credential"]), ["api.key_credential = \"api-key\"  $CREDENTIALS_DIRECTORY"]);
    machine.write("system.toml", "[api]\nkey_file = 'own'");
    assert_eq!(machine.settings().accounts[0].key, KeySource::File(machine.path("own")));
}

#[test]
fn every_secret_may_be_a_credential() {
    let machine = Machine::with(
        "[api]\nkey_credential = 'k'\n[accounts.x]\nkey_credential = 'x'\n[callbacks]\nsecret_credential = 'c'\n\
         [http]\nlisten = '127.0.0.1:1'\ntoken_credential = 't'\n\
         [[hooks]]\nname = 'h'\nurl = 'http://h'\nsecret_credential = 's'\nheaders = { A = { credential = 'a' } }",
    );
    let credential = |name: &str| KeySource::Credential(name.into());
    let settings = machine.settings();
    assert_eq!([&settings.accounts[0].key, &settings.accounts[1].key], [&credential("k"), &credential("x")]);
    assert_eq!(settings.http.unwrap().token, Some(credential("t")));
    assert_eq!(settings.callbacks.unwrap().secrets, Some(credential("c")));
    let Target::Webhook(Webhook { secrets, headers, .. }) = &settings.hooks[0].target else { panic!() };
    assert_eq!(*secrets, Some(credential("s")));
    assert_eq!(headers[0].value, HeaderText::From(credential("a")));
    assert_eq!(
        machine.shown(&["hooks.h.headers"]),
        ["hooks.h.headers = { a = { credential = \"a\" } }  ~/system.toml:14"]
    );

    let machine = machine.set("ASSETWATCH_API_KEY_FILE", "/file");
    assert_eq!(machine.settings().accounts[0].key, KeySource::File("/file".into()));
    machine.write("system.toml", "[http]\nlisten = '127.0.0.1:1'\ntoken_file = 'a'\ntoken_credential = '/rn_canary'");
    let name = "must be the name of a systemd credential that holds the secret: letters, digits, _, - and .";
    assert_eq!(machine.problems(), [format!("~/system.toml:4: http.token_credential: {name}")]);
    machine.write("system.toml", "[http]\nlisten = '127.0.0.1:1'\ntoken_file = 'a'\ntoken_credential = 't'");
    let beside = "must not be beside `token_file`: a secret has one place";
    assert_eq!(machine.problems(), [format!("~/system.toml:4: http.token_credential = \"t\": {beside}")]);
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let machine = Machine::with(
        "database = 'a.db'\n[api]\nkey_file = 'b'\n[accounts.x]\nkey_file = '../c'\n[http]\nlisten = '127.0.0.1:1'\ntoken_file = 'd'\n\
         [[hooks]]\nname = 'h'\nurl = 'http://h'\nsecret_file = 'e'",
    );
    let settings = machine.settings();
    assert_eq!(settings.database, machine.path("a.db"));
    assert_eq!(settings.accounts[0].key, KeySource::File(machine.path("b")));
    assert_eq!(settings.accounts[1].key, KeySource::File(machine.path("../c")));
    assert_eq!(settings.http.unwrap().token, Some(KeySource::File(machine.path("d"))));
    let Target::Webhook(Webhook { secrets, .. }) = &settings.hooks[0].target else { panic!() };
    assert_eq!(*secrets, Some(KeySource::File(machine.path("e"))));
}

#[test]
fn the_database_is_where_the_service_keeps_its_state() {
    let shown = |machine: Machine| machine.shown(&["database"]);
    assert_eq!(shown(Machine::new()), ["database = \"~/.local/state/assetwatch/assetwatch.db\"  $HOME"]);
    let machine = Machine::new().set("XDG_STATE_HOME", "/xdg");
    assert_eq!(shown(machine), ["database = \"/xdg/assetwatch/assetwatch.db\"  $XDG_STATE_HOME"]);
    let machine = Machine::new().set("XDG_STATE_HOME", "/xdg").set("STATE_DIRECTORY", "/var/lib/one:/var/lib/two");
    assert_eq!(shown(machine), ["database = \"/var/lib/one/assetwatch.db\"  $STATE_DIRECTORY"]);
}
