//! Every secret holds one word, every path on which something can go wrong is gone, and the word is looked for in all that
//! is left: logs, output, the database, children, and what was sent to whom.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::rig::{Caller, Place, Reply, Request, SOON, Server, answer, binary, eventually, executable, run_with};

/// In every secret, and nowhere else.
const WORD: &str = "c4n4ry";
const HOOK_SECRET: &str = "whsec_c4n4ryhooksecretc4n4ryhooksecret";
const CALLBACK_SECRET: &str = "whsec_c4n4rycallsecretc4n4rycallsecret";
const TOKEN: &str = "c4n4ry-of-the-http-token";
const PROXY_PASSWORD: &str = "c4n4ry-of-the-proxy";
/// What the daemon finds in its environment.
const VARIABLES: [(&str, &str); 2] =
    [("ENV_ACCOUNT_KEY", "c4n4ry-key-of-env"), ("HEADER_VALUE", "Token c4n4ry-header-of-env")];

const HEADER: &str = "Bearer c4n4ry-header-of-file";

/// Lines in which a secret stands where it does not belong.
const MISPLACED: [&str; 4] = [
    "key = \"c4n4ry-key-0123456789\"",
    "grace = \"c4n4ry-key-0123456789\"",
    "c4n4ry-key-0123456789",
    "accounts.more.key_file = \"c4n4ry-key-0123456789\"",
];
/// What is asked over HTTP, besides the history of each asset.
const PATHS: [&str; 14] = [
    "/",
    "/metrics",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/v1/hooks",
    "/v1/accounts",
    "/v1/overview",
    "/v1/events",
    "/v1/watches",
    "/v1/watches?limit=x",
    "/v1/deliveries",
    "/v1/watches/none",
    "/none",
];
/// What is asked on the command line, besides that.
const COMMANDS: [&[&str]; 17] = [
    &["check", "-vv"],
    &["check", "--json"],
    &["config", "show"],
    &["config", "show", "--json"],
    &["hooks", "list"],
    &["hooks", "list", "--json"],
    &["deliveries", "list"],
    &["deliveries", "list", "--json"],
    &["events", "--json"],
    &["list", "--json", "-vv"],
    &["hooks", "test", "h500", "-vv"],
    &["hooks", "test", "h302", "--json"],
    &["hooks", "test", "proxied", "-vv"],
    &["hooks", "test", "dump"],
    &["hooks", "test", "nobody"],
    &["add", "bad", "--callback", "http://u:c4n4ry@h/?c4n4ry"],
    &["wait", "asset-default", "-vv", "--timeout", "2s"],
];
/// Assets of accounts at which all is well, and of one at which nobody answers.
const ASSETS: [&str; 3] = ["asset-default", "asset-env", "asset-nobody"];

/// What an API does that is not in order; each is an account of its own, with its own key, and repeats that.
const MISBEHAVIOURS: [&str; 12] =
    ["200", "302", "400", "401", "402", "403", "404", "429", "500", "garbage", "another", "reset"];

fn key_of(account: &str) -> String {
    format!("c4n4ry-key-of-{account}")
}

/// An API that says the key wherever it can say anything.
fn repeats_the_key(request: &Request) -> Reply {
    let key = request.header("x-api-key").unwrap_or_default();
    // The key is where what is said too long is cut.
    let said = format!("{key} {} {key}", "x".repeat(290 - key.len()));
    let err = json!({"err": {"code": key, "message": said}}).to_string();
    match request.asset() {
        "200" => Reply::json(json!({"data": {"id": "200", "type": [key, said]}, "err": said})),
        "garbage" => Reply::json(format!("{key} {said}")),
        "another" => Reply::json(json!({"data": {"id": said, "status": "active"}})),
        "reset" => Reply::Reset,
        status => match status.parse() {
            Ok(status) => Reply::Http { status, headers: String::new(), body: err.into_bytes() }
                .with_header("location", &format!("/{key}/{said}"))
                .with_header("retry-after", key),
            Err(_) => Reply::asset(request.asset(), "active"),
        },
    }
}

/// A receiver that says all it was told, and the parts of it.
fn repeats_the_request(request: &Request) -> Reply {
    let values: Vec<&str> = request.headers.iter().map(|(_, value)| value.as_str()).collect();
    let words: Vec<&str> = values.iter().flat_map(|value| value.split(' ')).collect();
    // The last one stands where what is kept is cut.
    let secret = request.header("authorization").unwrap_or_default();
    let fill = "x".repeat((16 * 1_024_usize).saturating_sub(4_000));
    let body = format!("{} {values:?} {words:?}", request.path);
    let rest = (16 * 1_024_usize).saturating_sub(body.len() + fill.len() + secret.len() / 2 + 1);
    let body = format!("{body}{fill}{} {secret}", "x".repeat(rest));
    let status = request.path.split('/').nth(1).and_then(|status| status.parse().ok()).unwrap_or(500);
    Reply::Http { status, headers: String::new(), body: body.into_bytes() }
        .with_header("location", &format!("{}?{}", request.path, words.join("&")))
        .with_header("server", &words.join(" "))
}

fn proxy_says_what_it_was_told(request: &Request) -> Reply {
    let shown = request.header("proxy-authorization").unwrap_or_default();
    let bytes = STANDARD.decode(shown.trim_start_matches("Basic ")).unwrap_or_default();
    let body = format!("{shown} is {}", String::from_utf8_lossy(&bytes));
    Reply::Http { status: 407, headers: String::new(), body: body.into_bytes() }.with_header("server", shown)
}

/// Says all that a child can know of itself and of us.
const DUMP: &str =
    "env; set; cat /proc/$$/environ /proc/$$/cmdline /proc/$PPID/cmdline /proc/$PPID/environ /proc/$PPID/maps
for pid in $(cat /proc/$PPID/task/*/children 2>/dev/null); do cat /proc/$pid/cmdline /proc/$pid/environ; done
env >&2; exit 1";

fn configuration(place: &Place, [api, receiver, proxy]: [&Server; 3]) -> String {
    let file = |name: &str, text: &str| std::fs::write(place.path(name), format!("{text}\n")).unwrap();
    let mut text = format!(
        "database = \"assetwatch.db\"\ngrace = \"2s\"\n[api]\nurl = \"{0}\"\nkey_file = \"key\"\ntimeout = \"2s\"\n\
         [backoff]\ninitial = \"100ms\"\nmax = \"400ms\"\n[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
         [callbacks]\nsecret_file = \"callback-secret\"\nallow_http = true\nallow_nets = [\"127.0.0.0/8\"]\n\
         [accounts.env]\nkey_env = \"ENV_ACCOUNT_KEY\"\n[accounts.nobody]\nkey_file = \"key\"\nurl = \"http://127.0.0.1:1\"\n\
         [accounts.tls]\nkey_file = \"key\"\nurl = \"{1}\"\n",
        api.url(),
        api.url().replace("http:", "https:")
    );
    file("key", &key_of("default"));
    file("token", TOKEN);
    file("hook-secret", HOOK_SECRET);
    file("callback-secret", CALLBACK_SECRET);
    file("header", HEADER);
    for account in MISBEHAVIOURS {
        file(&format!("key-{account}"), &key_of(account));
        text += &format!("[accounts.{account}]\nkey_file = \"key-{account}\"\n");
    }
    for status in ["204", "302", "410", "500"] {
        text += &format!(
            "[[hooks]]\nname = \"h{status}\"\nurl = \"{}/{status}/c4n4ry-path?key=c4n4ry-query\"\nsecret_file = \"hook-secret\"\n\
             headers = {{ Authorization = {{ file = \"header\" }}, X-Env = {{ env = \"HEADER_VALUE\" }}, X-Plain = \"c4n4ry-header\" }}\n",
            receiver.url()
        );
    }
    let proxy = proxy.url().replace("http://", &format!("http://user:{PROXY_PASSWORD}@"));
    text += &format!("[[hooks]]\nname = \"proxied\"\nurl = \"http://cms.example/c4n4ry-path\"\nproxy = \"{proxy}\"\n");
    text += "[[hooks]]\nname = \"nobody\"\nurl = \"http://127.0.0.1:1/c4n4ry-path\"\n";
    executable(&place.path("dump"), DUMP);
    let program = place.path("dump");
    text + &format!("[[hooks]]\nname = \"dump\"\ncommand = [{program:?}]\nenv = {{ GIVEN = \"given\" }}\n")
}

/// Not as root, who may look into every process.
fn daemon(place: &Place, format: &str) -> Option<Child> {
    let program = place.path("assetwatch");
    std::fs::copy(binary(), &program).unwrap();
    let mut command = Command::new(&program);
    if rustix::process::geteuid().is_root() {
        let own = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(place.path("")).status();
        assert!(own.unwrap().success());
        command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    }
    command.arg("--config").arg(place.config()).args(["run", "-vv", "--log-format", format]).env_clear();
    command.envs(VARIABLES).env("PATH", "/usr/bin:/bin").env("ASSETWATCH_LOG", "trace").kill_on_drop(true);
    let log = std::fs::File::create(place.path("log")).unwrap();
    match command.stdout(log.try_clone().unwrap()).stderr(log).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            println!("skipped, there is no setpriv(1): {error}");
            None
        }
    }
}

/// All that was found, each under the name of its place.
#[derive(Default)]
struct Found(Vec<(String, Vec<u8>)>);

impl Found {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    async fn run(&mut self, place: &Place, args: &[&str]) {
        let variables = [&VARIABLES[..], &[("ASSETWATCH_LOG", "trace")]].concat();
        let ran = run_with(place, args, "", &variables).await;
        self.add(args.join(" "), ran.out + &ran.err);
    }

    /// Where a secret is, with what stands around it.
    fn leaks(&self) -> Vec<String> {
        let encoded = STANDARD.encode(format!("user:{PROXY_PASSWORD}"));
        let mut leaks = Vec::new();
        for (place, bytes) in &self.0 {
            let text = String::from_utf8_lossy(bytes);
            for needle in [WORD, &encoded] {
                let around = |at: usize| {
                    &text[text.floor_char_boundary(at.saturating_sub(150))..text.ceil_char_boundary(at + 60)]
                };
                leaks.extend(text.find(needle).map(|at| format!("{place}: …{}…", around(at))));
            }
        }
        leaks
    }
}

/// A daemon for which everything goes wrong, and those that it speaks with.
struct Scene {
    place: Place,
    text: String,
    api: Server,
    receiver: Server,
    proxy: Server,
    daemon: Child,
    caller: Caller,
    found: Found,
}

impl Scene {
    /// None where a process cannot be another user's.
    async fn begin(format: &str) -> Option<Self> {
        let api = Server::start(repeats_the_key).await;
        let receiver = Server::start(repeats_the_request).await;
        let proxy = Server::start(proxy_says_what_it_was_told).await;
        let place = Place::new(&api, "");
        let text = configuration(&place, [&api, &receiver, &proxy]);
        std::fs::write(place.config(), &text).unwrap();
        let daemon = daemon(&place, format)?;
        let base = eventually(SOON, "it listens", async || {
            let log = log(&place);
            Some(log.split_once("listening on ")?.1.split(['"', ' ', '\n']).next()?.to_owned())
        });
        let caller = Caller::at(&base.await);
        Some(Self { place, text, api, receiver, proxy, daemon, caller, found: Found::default() })
    }

    fn request(&self, method: Method, path: &str, token: &str) -> reqwest::RequestBuilder {
        let request = self.caller.request(method, path).header("authorization", format!("Bearer {token}"));
        request.header("content-type", "application/json")
    }

    async fn add(&self, id: &str, account: &str) {
        let callback = format!("{}/500/back", self.receiver.url());
        let body = json!({ "asset_id": id, "account": account, "callback_url": callback }).to_string();
        let added = answer(self.request(Method::POST, "/v1/watches", TOKEN).body(body)).await;
        assert_eq!(added.status, 201, "{added:?}");
    }

    /// Until every account has asked, and every hook was told.
    async fn everything_goes_wrong(&mut self) {
        for account in MISBEHAVIOURS {
            self.add(account, account).await;
        }
        for account in ["default", "env", "nobody", "tls"] {
            self.add(&format!("asset-{account}"), account).await;
        }
        // Of two assets seven hooks and a callback are told.
        self.place.until("SELECT count(*) >= 16 FROM attempts WHERE outcome IS NOT NULL", 1).await;
        eventually(SOON, "every account has asked", async || {
            let asked: Vec<_> = self.api.requests().iter().map(|request| request.asset().to_owned()).collect();
            MISBEHAVIOURS.iter().all(|account| asked.iter().any(|asset| asset == account)).then_some(())
        })
        .await;
        let failed = "SELECT count(*) FROM watches WHERE account IN ('nobody', 'tls') AND last_error IS NOT NULL";
        self.place.until(failed, 2).await;
    }

    async fn ask_over_http(&mut self) {
        let mut paths: Vec<String> = PATHS.map(str::to_owned).to_vec();
        paths.extend(MISBEHAVIOURS.iter().chain(&ASSETS).map(|id| format!("/v1/watches/{id}/history")));
        for path in paths {
            let answered = answer(self.request(Method::GET, &path, TOKEN)).await;
            self.found.add(path, format!("{answered:?}"));
        }
        for (what, request) in [
            ("a wrong token", self.request(Method::GET, "/v1/watches", &TOKEN[1..])),
            ("a wrong body", self.request(Method::POST, "/v1/watches", TOKEN).body("{\"token\": 1}")),
        ] {
            let answered = answer(request).await;
            assert!(answered.status.is_client_error(), "{answered:?}");
            self.found.add(what, format!("{answered:?}"));
        }
        let stream = self.request(Method::GET, "/v1/events/stream?last_event_id=0", TOKEN).send();
        let mut stream = stream.await.unwrap();
        let mut events = Vec::new();
        while !String::from_utf8_lossy(&events).contains("data: ") {
            events.extend(stream.chunk().await.unwrap().expect("the stream goes on"));
        }
        self.found.add("a stream", events);
    }

    async fn ask_on_the_command_line(&mut self) {
        for args in COMMANDS {
            self.found.run(&self.place, args).await;
        }
        let backup = self.place.path("backup.db");
        self.found.run(&self.place, &["backup", backup.to_str().unwrap()]).await;
        assert!(backup.exists(), "a backup was made");
        for id in MISBEHAVIOURS.iter().chain(&ASSETS) {
            self.found.run(&self.place, &["show", id]).await;
        }
    }

    /// What a reload refuses is logged, and what a command refuses is printed.
    async fn put_secrets_into_wrong_places(&mut self) {
        for bad in MISPLACED {
            std::fs::write(self.place.config(), format!("{bad}\n{}", self.text)).unwrap();
            let refusals = || log(&self.place).matches("not reloaded").count();
            let before = refusals();
            kill_process(self.pid(), Signal::HUP).unwrap();
            eventually(SOON, bad, async || (refusals() > before).then_some(())).await;
            self.found.run(&self.place, &["check"]).await;
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.daemon.id().unwrap() as i32).unwrap()
    }

    fn files(&mut self) {
        for name in ["assetwatch.db", "assetwatch.db-wal", "assetwatch.db-shm", "backup.db", "log"] {
            self.found.add(name, std::fs::read(self.place.path(name)).unwrap_or_default());
        }
    }

    async fn end(&mut self) {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid().as_raw_pid())).unwrap();
        self.found.add("the command line", line);
        self.files();
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert!(tokio::time::timeout(SOON, self.daemon.wait()).await.unwrap().unwrap().success());
        self.files();
    }

    /// What was sent: a secret only to whom, and in the header, where it belongs.
    fn look_at_what_was_sent(&mut self) {
        let key = |request: &Request, name: &str, value: &str| {
            let account = request.asset().trim_start_matches("asset-");
            let key = match account {
                // `check` asks for each account.
                "assetwatch-check" => value.to_owned(),
                "env" => VARIABLES[0].1.to_owned(),
                account => key_of(account),
            };
            name == "x-api-key" && value == key
        };
        let header = |request: &Request, name: &str, value: &str| {
            let own = [("authorization", HEADER), ("x-env", VARIABLES[1].1), ("x-plain", "c4n4ry-header")];
            request.path.ends_with("/c4n4ry-path?key=c4n4ry-query") && own.contains(&(name, value))
        };
        let password = |_: &Request, name: &str, _: &str| name == "proxy-authorization";
        self.found.add("what the API was told", told(&self.api, key));
        self.found.add("what the receiver was told", told(&self.receiver, header));
        self.found.add("what the proxy was told", told(&self.proxy, password));
        assert!(self.receiver.requests().iter().any(|request| request.path == "/500/back"), "the callback was told");
        assert!(self.receiver.count() > 8 && self.proxy.count() > 0, "they were told");
    }
}

fn log(place: &Place) -> String {
    std::fs::read_to_string(place.path("log")).unwrap()
}

/// All that a server was told, but for the paths of hooks and the headers that are `meant` for it.
fn told(server: &Server, meant: impl Fn(&Request, &str, &str) -> bool) -> Vec<u8> {
    let mut rest = Vec::new();
    for request in server.requests() {
        let path = request.path.replace("/c4n4ry-path?key=c4n4ry-query", "").replace("/c4n4ry-path", "");
        rest.extend(format!("{} {path}\n", request.method).into_bytes());
        for (name, value) in request.headers.iter().filter(|(name, value)| !meant(&request, name, value)) {
            rest.extend(format!("{name}: {value}\n").into_bytes());
        }
        rest.extend(request.body);
    }
    rest
}

async fn visit(format: &str) {
    let Some(mut scene) = Scene::begin(format).await else { return };
    scene.everything_goes_wrong().await;
    scene.ask_over_http().await;
    if format == "text" {
        scene.ask_on_the_command_line().await;
    }
    scene.put_secrets_into_wrong_places().await;
    scene.end().await;
    scene.look_at_what_was_sent();
    let leaks = scene.found.leaks();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    let spoken = scene.place.ask::<i64>("SELECT count(*) FROM attempts WHERE output LIKE '%GIVEN=%'");
    assert!(spoken > Some(0), "a child has spoken");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_what_is_left_when_everything_goes_wrong() {
    visit("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_one_where_the_log_is_json() {
    visit("json").await;
}
