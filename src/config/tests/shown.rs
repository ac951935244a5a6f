//! What a person is shown: `config show` and warnings.

use super::*;

#[test]
fn what_is_right_is_not_warned_of() {
    assert_eq!(Machine::with(SAMPLE).warnings(), [""; 0]);
}

#[test]
fn every_value_is_shown_with_its_origin() {
    let machine = Machine::with(
        "[accounts.studio]\nkey_env = 'STUDIO'\nrate = 3\n\n[backoff]\nmax = '90s'\n\n[[hooks]]\nname = 'chat'\n\
         url = 'https://chat.example/services/rn_canary?x=rn_canary'\n\n[[hooks]]\nname = 'run'\ncommand = ['/bin/true']\n\
         env = { TOKEN = 'rn_canary', A = 'rn_canary' }",
    )
    .set("ASSETWATCH_API_RATE", "2");
    let shown = machine.shown(&machine.settings().entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>());
    let schedule = r#"["5s", "30s", "2m", "10m", "30m", "2h", "5h", "10h", "14h", "20h", "1d"]"#;
    let expected = format!(
        r#"database = "~/.local/state/assetwatch/assetwatch.db"  $HOME
retention = "30d"  default
grace = "20s"  default
backoff.initial = "2s"  default
backoff.multiplier = 1.5  default
backoff.max = "1m 30s"  ~/system.toml:6
backoff.jitter = 0.1  default
backoff.patience = "1d"  default
backoff.missing_grace = "5m"  default
api.url = "https://api.rendernet.ai/"  default
api.timeout = "10s"  default
api.max_in_flight = 32  default
api.rate = 2  $ASSETWATCH_API_RATE
api.waiting_statuses = ["pending", "processing"]  default
accounts.studio.key_env = "STUDIO"  ~/system.toml:2
accounts.studio.url = "https://api.rendernet.ai/"  default
accounts.studio.timeout = "10s"  default
accounts.studio.max_in_flight = 32  default
accounts.studio.rate = 3  ~/system.toml:3
accounts.studio.waiting_statuses = ["pending", "processing"]  default
http.hosts = []  default
hooks.chat.name = "chat"  ~/system.toml:9
hooks.chat.on = ["settled", "abandoned"]  default
hooks.chat.url = "https://chat.example/***"  ~/system.toml:10
hooks.chat.timeout = "20s"  default
hooks.chat.concurrency = 4  default
hooks.chat.schedule = {schedule}  default
hooks.run.name = "run"  ~/system.toml:13
hooks.run.on = ["settled", "abandoned"]  default
hooks.run.command = ["/bin/true"]  ~/system.toml:14
hooks.run.kill_after = "5s"  default
hooks.run.env = {{ A = "***", TOKEN = "***" }}  ~/system.toml:15
hooks.run.env_pass = []  default
hooks.run.timeout = "1m"  default
hooks.run.concurrency = 1  default
hooks.run.schedule = {schedule}  default
callbacks.allow_nets = []  default
callbacks.allow_http = false  default"#
    );
    assert_eq!(shown.join("\n"), expected);
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let machine = Machine::with(
        "[api]\nkey_env = 'ASSETWATCH_OWN_KEY'\nurl = 'http://api.example'\n[[hooks]]\nname = 'h'\non = ['pending']\nurl = 'http://h'",
    )
    .set("ASSETWATCH_LOG", "debug")
    .set("ASSETWATCH_OWN_KEY", "rn_canary")
    .set("ASSETWATCH_API_KEY", "rn_canary")
    .set("ASSETWATCH_BACKOF_INITIAL", "rn_canary")
    .set("ASSETWATCH_SPEED", "rn_canary")
    .set("ASSETWATCH_EMPTY", "");
    assert_eq!(
        machine.warnings(),
        [
            "$ASSETWATCH_API_KEY: unknown variable, ignored; the key itself is read from $AFFOGATO_API_KEY",
            "$ASSETWATCH_BACKOF_INITIAL: unknown variable, ignored; did you mean $ASSETWATCH_BACKOFF_INITIAL?",
            "$ASSETWATCH_SPEED: unknown variable, ignored",
            "~/system.toml:3: api.url = \"http://api.example/\": the key is sent without encryption; https:// keeps it secret",
            "~/system.toml:6: hooks.h.on = [\"pending\"]: `pending` is never told: it is one of waiting_statuses",
        ]
    );
}

#[test]
fn what_a_webhook_sends_is_read_and_its_secrets_are_masked() {
    let machine = Machine::with(
        "[[hooks]]\nname = 'chat'\nurl = 'https://chat.example'\nbody = '[{{ data.url | tojson }}]'\n\
         proxy = 'http://user:rn_canary@proxy:3128'\n[hooks.headers]\nX-Plain = 'rn_canary'\n\
         Authorization = { file = 'token' }\nX-Env = { env = 'TOKEN' }\nContent-Type = 'text/plain'",
    )
    .set("ASSETWATCH_HOOKS_CHAT_RATE", "0.5");
    let settings = machine.settings();
    let shown = machine.shown(&["hooks.chat.headers", "hooks.chat.body", "hooks.chat.proxy", "hooks.chat.rate"]);
    let headers = [
        "authorization = { file = \"~/token\" }",
        "content-type = \"***\"",
        "x-env = { env = \"TOKEN\" }",
        "x-plain = \"***\"",
    ];
    assert!(headers.iter().all(|header| shown[0].contains(header)), "{}", shown[0]);
    assert_eq!(
        shown[1..],
        [
            "hooks.chat.body = \"***\"  ~/system.toml:4",
            "hooks.chat.proxy = \"http://***@proxy:3128/\"  ~/system.toml:5",
            "hooks.chat.rate = 0.5  $ASSETWATCH_HOOKS_CHAT_RATE",
        ]
    );
    let hook = &settings.hooks[0];
    assert_eq!(hook.rate, Some(0.5));
    assert_eq!(hook.subscription.body.as_ref().map(|body| body.source()), Some("[{{ data.url | tojson }}]"));
    assert!(!format!("{hook:?}").contains("rn_canary"), "{hook:?}");
}
