//! What is refused, and in which words.

use super::*;

/// Each text is refused with these words, in which `:1` stands for the file and the line.
fn refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let problems = Machine::with(text).problems().join("\n").replace("~/system.toml:", ":");
        assert_eq!(problems, *expected, "in {text}");
    }
}

#[test]
fn what_is_not_toml() {
    refused(&[
        ("grace = ", ":1: not TOML: string values must be quoted, expected literal string"),
        ("grace = '1s'\n[api", ":2: not TOML: unclosed table, expected `]`"),
        ("[api]\nkey_file = rn_canary", ":2: not TOML: string values must be quoted, expected literal string"),
        ("grace = '1s'\ngrace = '2s'", ":2: grace: duplicate key"),
        ("[api]\n[api]", ":2: api: duplicate key"),
        (
            "a b c\n\nx = ]\n",
            ":1: not TOML: key with no value, expected `=`\n:3: not TOML: missing array opening, expected `[`",
        ),
    ]);
}

#[test]
fn unknown_keys() {
    refused(&[
        ("[backoff]\ninital = '2s'", ":2: backoff.inital: unknown key; did you mean `initial`?"),
        (
            "[backoff]\nspeed = 1",
            ":2: backoff.speed: unknown key; backoff takes initial, multiplier, max, jitter, patience, missing_grace",
        ),
        (
            "[web]\nurl = 'x'",
            ":1: web: unknown key; the top level takes database, retention, grace, api, backoff, http, callbacks, accounts, hooks",
        ),
        (
            "[api]\nkey = 'rn_canary'",
            ":2: api.key: unknown key; a secret does not stand in this file: `key_file` names the file that holds it",
        ),
        (
            "[api]\napi_key = 'rn_canary'",
            ":2: api.api_key: unknown key; a secret does not stand in this file: `key_file` names the file that holds it",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\nsecret = 'whsec_canary'",
            ":4: hooks.h.secret: unknown key; a secret does not stand in this file: `secret_file` names the file that holds it",
        ),
        (
            "[http]\ntoken = 'rn_canary'",
            ":2: http.token: unknown key; a secret does not stand in this file: `token_file` names the file that holds it",
        ),
        (
            "[api]\n\"a\\u001bb\" = 1",
            ":2: api.a\\u{1b}b: unknown key; api takes key_file, key_credential, key_env, url, timeout, max_in_flight, rate, waiting_statuses",
        ),
    ]);
}

#[test]
fn values_out_of_range() {
    refused(&[
        ("retention = '59m'", ":1: retention = '59m': must be a duration from 1h to 3650d, such as \"1m 30s\""),
        ("grace = 20", ":1: grace = 20: must be a duration from 0s to 1h, such as \"1m 30s\""),
        ("grace = '20'", ":1: grace = '20': must be a duration from 0s to 1h, such as \"1m 30s\""),
        (
            "[backoff]\ninitial = '99ms'",
            ":2: backoff.initial = '99ms': must be a duration from 100ms to 1h, such as \"1m 30s\"",
        ),
        ("[backoff]\nmultiplier = 0.5", ":2: backoff.multiplier = 0.5: must be a number from 1 to 10"),
        ("[backoff]\nmultiplier = nan", ":2: backoff.multiplier = nan: must be a number from 1 to 10"),
        ("[backoff]\nmultiplier = inf", ":2: backoff.multiplier = inf: must be a number from 1 to 10"),
        ("[backoff]\nmultiplier = '2'", ":2: backoff.multiplier = '2': must be a number from 1 to 10"),
        ("[backoff]\nmax = '25h'", ":2: backoff.max = '25h': must be a duration from 100ms to 1d, such as \"1m 30s\""),
        ("[backoff]\njitter = 1.1", ":2: backoff.jitter = 1.1: must be a number from 0 to 1"),
        (
            "[backoff]\npatience = '366d'",
            ":2: backoff.patience = '366d': must be a duration from 1s to 365d, such as \"1m 30s\"",
        ),
        (
            "[backoff]\nmissing_grace = '2d'",
            ":2: backoff.missing_grace = '2d': must be a duration from 0s to 1d, such as \"1m 30s\"",
        ),
        ("[api]\ntimeout = '11m'", ":2: api.timeout = '11m': must be a duration from 100ms to 10m, such as \"1m 30s\""),
        ("[api]\nmax_in_flight = 0", ":2: api.max_in_flight = 0: must be a whole number from 1 to 1024"),
        ("[api]\nmax_in_flight = 1.5", ":2: api.max_in_flight = 1.5: must be a whole number from 1 to 1024"),
        (
            "[api]\nmax_in_flight = 99999999999999999999",
            ":2: api.max_in_flight = 99999999999999999999: must be a whole number from 1 to 1024",
        ),
        ("[api]\nrate = 0", ":2: api.rate = 0: must be a number from 0.01 to 100000"),
        ("[api]\nrate = -1", ":2: api.rate = -1: must be a number from 0.01 to 100000"),
        ("[api]\nwaiting_statuses = []", ":2: api.waiting_statuses = []: must be a list of 1 to 50 elements, in [ ]"),
        (
            "[api]\nwaiting_statuses = 'pending'",
            ":2: api.waiting_statuses = 'pending': must be a list of 1 to 50 elements, in [ ]",
        ),
        (
            "[api]\nwaiting_statuses = ['']",
            ":2: api.waiting_statuses = ['']: '' must be a status, such as \"pending\": 1 to 64 bytes, no white space",
        ),
        ("database = ''", ":1: database = '': must be a path"),
        ("[callbacks]\nallow_http = 1", ":2: callbacks.allow_http = 1: must be true or false"),
        (
            "[callbacks]\nallow_nets = ['10.1.2.3/24']",
            ":2: callbacks.allow_nets = ['10.1.2.3/24']: '10.1.2.3/24' must end in zeros after the prefix: \"10.1.2.0/24\"",
        ),
        (
            "[callbacks]\nallow_nets = ['10.1.2.3']",
            ":2: callbacks.allow_nets = ['10.1.2.3']: '10.1.2.3' must be a net, such as \"10.1.2.0/24\"",
        ),
        (
            "[http]\nlisten = 'localhost:80'",
            ":2: http.listen = 'localhost:80': must be an IP address and a port, such as \"127.0.0.1:8787\", or \"unix:\" and an absolute path",
        ),
        (
            "[http]\nlisten = 'unix:here.sock'",
            ":2: http.listen = 'unix:here.sock': must be an IP address and a port, such as \"127.0.0.1:8787\", or \"unix:\" and an absolute path",
        ),
    ]);
}

#[test]
fn values_are_cut_and_harmless() {
    let long = format!("grace = '{}'", "x".repeat(10_000));
    let expected = format!(":1: grace = '{}…: must be a duration from 0s to 1h, such as \"1m 30s\"", "x".repeat(79));
    refused(&[
        (&long, &expected),
        ("grace = '''a\nb'''", ":1: grace = '''a\\nb''': must be a duration from 0s to 1h, such as \"1m 30s\""),
        // A sum on which humantime itself panics.
        (
            "grace = '18446744073709551615s 1000ms'",
            ":1: grace = '18446744073709551615s 1000ms': must be a duration from 0s to 1h, such as \"1m 30s\"",
        ),
    ]);
}

#[test]
fn urls() {
    const RIGHT: &str = "must be an http or https URL with a host, such as \"https://example.com\"";
    for (url, expected) in [
        ("'ftp://example.com'", format!("api.url = 'ftp://example.com': {RIGHT}")),
        ("'api.example.com'", format!("api.url = 'api.example.com': {RIGHT}")),
        ("'https://'", format!("api.url = 'https://': {RIGHT}")),
        ("3", format!("api.url = 3: {RIGHT}")),
        ("'https://me:rn_canary@example.com'", "api.url: must not have a user or a password in it".into()),
        ("'ftp://me:rn_canary@example.com'", format!("api.url: {RIGHT}")),
        ("'https://example.com/?key=rn_canary'", "api.url: must not have a query (`?…`)".into()),
        ("'https://example.com/#x'", "api.url = 'https://example.com/#x': must not have a fragment (`#…`)".into()),
    ] {
        refused(&[(&format!("[api]\nurl = {url}"), &format!(":2: {expected}"))]);
    }
    // The whole URL of a chat service is a secret.
    refused(&[(
        "[[hooks]]\nname = 'h'\nurl = 'htps://chat.example/services/rn_canary'",
        &format!(":3: hooks.h.url: {RIGHT}"),
    )]);
}

#[test]
fn accounts() {
    refused(&[
        (
            "[accounts.studio]\nrate = 1",
            ":1: accounts.studio: must have `key_file`, `key_credential` or `key_env`: an account is a key of its own",
        ),
        (
            "[accounts.default]\nkey_file = 'x'",
            ":1: accounts.default: must have another name: the account `default` is [api]",
        ),
        (
            "[accounts.Studio]\nkey_file = 'x'",
            ":1: accounts.Studio: must be named by 1 to 64 of the characters a-z, 0-9, _ and -",
        ),
        (
            "[accounts.a_b]\nkey_file = 'x'\n[accounts.a-b]\nkey_file = 'x'",
            ":1: accounts.a_b: must differ from accounts.a-b by more than - and _: the variables of both would be the same",
        ),
        (
            "[accounts]\nstudio = 'x'",
            ":2: accounts.studio: must be a table: [accounts.NAME] on its own line, its keys below it",
        ),
        ("accounts = 1", ":1: accounts: must be a table: [accounts] on its own line, its keys below it"),
        (
            "[api]\nkey_file = 'x'\nkey_env = 'Y'",
            ":3: api.key_env = \"Y\": must not be beside `key_file`: a secret has one place",
        ),
        (
            "[api]\nkey_env = 'rn-canary'",
            ":2: api.key_env: must be the name of a variable that holds the secret: letters, digits and _",
        ),
        ("[accounts.s]\nkey_file = 3", ":2: accounts.s.key_file = 3: must be a path"),
    ]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn hooks() {
    refused(&[
        ("[hooks]\nname = 'h'", ":1: hooks: must be tables: [[hooks]] on its own line before each one's keys"),
        ("hooks = [1]", ":1: hooks: must be tables: [[hooks]] on its own line before each one's keys"),
        ("\n[[hooks]]\nurl = 'http://h'", ":2: hooks[0]: must have a name"),
        (
            "[[hooks]]\nname = 'a b'\nurl = 'http://h'",
            ":2: hooks[0].name = 'a b': must be 1 to 64 of the characters a-z, 0-9, _ and -",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\n[[hooks]]\nname = 'h'\nurl = 'http://h'",
            ":4: hooks.h: must have a name of its own; there is another of this name",
        ),
        (
            "[[hooks]]\nname = 'h'\nsecret_file = 'x'",
            ":1: hooks.h: must have either `url` or `command`, but has neither",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\ncommand = ['/bin/true']",
            ":1: hooks.h: must have either `url` or `command`, but has both",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\nenv = { A = 'rn_canary' }",
            ":4: hooks.h.env: must not be beside `url`: it belongs to a hook with `command`",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nsecret_file = 'x'",
            ":4: hooks.h.secret_file: must not be beside `command`: it belongs to a hook with `url`",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['publish']",
            ":3: hooks.h.command = ['publish']: must begin with the absolute path of a program, such as [\"/usr/local/bin/publish\", \"--video\"]",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = []",
            ":3: hooks.h.command = []: must be a list of 1 to 1000 elements, in [ ]",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true', 1]",
            ":3: hooks.h.command = ['/bin/true', 1]: 1 must be a string without a NUL",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nkill_after = '6m'",
            ":4: hooks.h.kill_after = '6m': must be a duration from 0s to 5m, such as \"1m 30s\"",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv = { HOOK_URL = 'rn_canary' }",
            ":4: hooks.h.env: must have names of letters, digits and _ that do not begin with HOOK_; \"HOOK_URL\" will not do",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv = { A = 1, B = 'rn_canary' }",
            ":4: hooks.h.env: must have strings for values; that of A is none",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv = 'A=rn_canary'",
            ":4: hooks.h.env: must be a table of strings, such as { STAGE = \"live\" }",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv_pass = ['AFFOGATO_API_KEY']",
            ":4: hooks.h.env_pass = ['AFFOGATO_API_KEY']: 'AFFOGATO_API_KEY' must not be passed on: it is a secret, or is set by assetwatch",
        ),
        (
            "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv_pass = ['A=B']",
            ":4: hooks.h.env_pass = ['A=B']: 'A=B' must be the name of a variable: letters, digits and _",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\non = []",
            ":4: hooks.h.on = []: must be a list of 1 to 100 elements, in [ ]",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\non = ['not ready']",
            ":4: hooks.h.on = ['not ready']: 'not ready' must be a status, `settled`, `abandoned`, `cancelled`, or an event type with a dot",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\non = ['watch.settled']",
            ":4: hooks.h.on = ['watch.settled']: 'watch.settled' must be an event type: asset.<status>, watch.abandoned, watch.cancelled, batch.settled, hook.disabled, account.paused, account.resumed",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\nschedule = ['5s', '8d']",
            ":4: hooks.h.schedule = ['5s', '8d']: '8d' must be a duration from 1s to 7d, such as \"1m 30s\"",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\nconcurrency = 257",
            ":4: hooks.h.concurrency = 257: must be a whole number from 1 to 256",
        ),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\ntimout = '1s'",
            ":4: hooks.h.timout: unknown key; did you mean `timeout`?",
        ),
    ]);
}

#[test]
fn values_that_do_not_fit_together() {
    refused(&[
        ("[backoff]\ninitial = '2m'", ":2: backoff.initial = \"2m\": must not be longer than backoff.max, which is 1m"),
        ("[backoff]\nmax = '1s'", ":2: backoff.max = \"1s\": must not be shorter than backoff.initial, which is 2s"),
        (
            "[[hooks]]\nname = 'h'\nurl = 'http://h'\naccounts = ['default', 'studi']\n[accounts.studio]\nkey_file = 'x'",
            ":4: hooks.h.accounts = [\"default\", \"studi\"]: must name configured accounts (default, studio); there is no `studi`",
        ),
        (
            "[http]\nlisten = '0.0.0.0:80'",
            ":2: http.listen = \"0.0.0.0:80\": must have http.token_file or http.token_credential beside it, since other machines can reach it",
        ),
        (
            "[api]\nkey_env = 'OUR_KEY'\n[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\nenv_pass = ['TZ', 'OUR_KEY']",
            ":6: hooks.h.env_pass = [\"TZ\", \"OUR_KEY\"]: must not pass OUR_KEY on: it holds a secret",
        ),
    ]);
}

#[test]
fn all_problems_at_once_in_the_order_of_the_file() {
    let machine =
        Machine::with("[[hooks]]\nname = 'h'\nurl = 'x'\n[backoff]\njitter = 2\ninital = '1s'\n[api]\nrate = 'fast'")
            .set("ASSETWATCH_GRACE", "soon");
    assert_eq!(
        machine.problems(),
        [
            "~/system.toml:3: hooks.h.url: must be an http or https URL with a host, such as \"https://example.com\"",
            "~/system.toml:5: backoff.jitter = 2: must be a number from 0 to 1",
            "~/system.toml:6: backoff.inital: unknown key; did you mean `initial`?",
            "~/system.toml:8: api.rate = 'fast': must be a number from 0.01 to 100000",
            "$ASSETWATCH_GRACE = \"soon\": must be a duration from 0s to 1h, such as \"1m 30s\"",
        ]
    );
}

#[test]
fn variables_and_flags() {
    let mut machine = Machine::with(SAMPLE)
        .set("ASSETWATCH_API_RATE", "fast\u{1b}")
        .set("ASSETWATCH_ACCOUNTS_STUDIO_TIMEOUT", "1y")
        .set("ASSETWATCH_API_KEY_ENV", "rn-canary")
        .set("ASSETWATCH_HOOKS_PUBLISH_URL", "https://x");
    machine.overrides.api_url = Some("ftp://x".into());
    assert_eq!(
        machine.problems(),
        [
            "~/system.toml:40: hooks.publish: must have either `url` or `command`, but has both",
            "$ASSETWATCH_API_KEY_ENV: must be the name of a variable that holds the secret: letters, digits and _",
            "--api-url = \"ftp://x\": must be an http or https URL with a host, such as \"https://example.com\"",
            "$ASSETWATCH_API_RATE = \"fast\\u001B\": must be a number from 0.01 to 100000",
            "$ASSETWATCH_ACCOUNTS_STUDIO_TIMEOUT = \"1y\": must be a duration from 100ms to 10m, such as \"1m 30s\"",
        ]
    );
}

#[test]
fn files() {
    let mut machine = Machine::new();
    machine.overrides.config = Some(machine.path("none.toml"));
    assert_eq!(
        machine.problems(),
        ["--config = \"~/none.toml\": cannot be read: No such file or directory (os error 2)"]
    );
    let mut machine = Machine::with("").set("ASSETWATCH_CONFIG", "/nonexistent/x.toml");
    assert_eq!(
        machine.problems(),
        ["$ASSETWATCH_CONFIG = \"/nonexistent/x.toml\": cannot be read: No such file or directory (os error 2)"]
    );
    machine.overrides.config = Some("/dev/zero".into());
    assert_eq!(machine.problems(), ["--config = \"/dev/zero\": is longer than 256 KiB: not a configuration"]);
    let machine = Machine::new();
    fs::create_dir(machine.path("system.toml")).unwrap();
    assert_eq!(machine.problems(), ["~/system.toml: cannot be read: Is a directory (os error 21)"]);
    let machine = Machine::new();
    fs::write(machine.path("system.toml"), b"grace = '1s'\nretention = '\xff'").unwrap();
    assert_eq!(machine.problems(), ["~/system.toml: is not UTF-8 (line 2)"]);
}

#[test]
fn a_file_that_others_may_write_names_no_commands() {
    let machine = Machine::with("[[hooks]]\nname = 'h'\ncommand = ['/bin/true']");
    fs::set_permissions(machine.path("system.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(
        machine.problems(),
        ["~/system.toml:1: hooks.h: names a command, but others may write this file: chmod o-w ~/system.toml"]
    );
    fs::set_permissions(machine.path("system.toml"), fs::Permissions::from_mode(0o664)).unwrap();
    assert_eq!(machine.settings().hooks.len(), 1);
}

#[test]
fn a_database_that_could_be_nowhere() {
    let mut machine = Machine::new();
    machine.variables.clear();
    assert_eq!(
        machine.problems(),
        ["database: must be set in the file, by $ASSETWATCH_DATABASE or by --database, since there is no $HOME"]
    );
    machine.overrides.database = Some("x.db".into());
    assert_eq!(machine.settings().database, PathBuf::from("x.db"));
    machine.overrides.database = Some("".into());
    assert_eq!(machine.problems(), ["--database = \"\": must be a path"]);
}

#[test]
fn what_a_webhook_sends() {
    let hook = "[[hooks]]\nname = 'h'\nurl = 'http://h'\n";
    let text = "must have a string of at most 4 KiB of printable ASCII, { file = \"…\" }, { credential = \"…\" } or { env = \"…\" } for A";
    for (more, says) in [
        ("headers = 'rn_canary'", "headers: must be a table, such as { Authorization = { file = \"token\" } }"),
        ("headers = { 'a b' = 'rn_canary' }", "headers: must have names of headers; \"a b\" is none"),
        ("headers = { Webhook-Id = 'rn_canary' }", "headers: must not have \"Webhook-Id\": it is set for each request"),
        ("headers = { Host = 'rn_canary' }", "headers: must not have \"Host\": it is set for each request"),
        (
            "headers = { Content-Type = 'text/plain' }",
            "headers: must not have \"Content-Type\" without `body`: an event is application/json",
        ),
        ("headers = { A = 'rn_canary', a = 'rn_canary' }", "headers: must name each header once; a is there again"),
        ("headers = { A = \"rn_canary\\n\" }", &format!("headers: {text}")),
        ("headers = { A = { file = 'x', env = 'Y' } }", &format!("headers: {text}")),
        (
            "proxy = 'socks5://rn_canary'",
            "proxy: must be the http or https URL of a proxy, such as \"http://proxy.example:3128\"",
        ),
        ("rate = 0", "rate = 0: must be a number from 0.01 to 100000"),
    ] {
        refused(&[(&format!("{hook}{more}"), &format!(":4: hooks.h.{says}"))]);
    }
    let problem = Machine::with(&format!("{hook}body = '{{{{ data.url | nosuch }}}}'")).problems().join("\n");
    let says = "~/system.toml:4: hooks.h.body: must be a Jinja template that can be rendered, but: ";
    assert!(problem.starts_with(says) && problem.contains("nosuch"), "{problem}");
    let command = "[[hooks]]\nname = 'h'\ncommand = ['/bin/true']\n";
    for (key, value) in [("headers", "{ A = 'x' }"), ("body", "'x'"), ("proxy", "'http://p'")] {
        let says = format!(":4: hooks.h.{key}: must not be beside `command`: it belongs to a hook with `url`");
        refused(&[(&format!("{command}{key} = {value}"), &says)]);
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    refused(&[
        ("grace = 'rn_0123456789abcdefgh'", ":1: grace = ***: must be a duration from 0s to 1h, such as \"1m 30s\""),
        (
            "[api]\nkey_file = 'rn_0123456789abcdefgh'",
            ":2: api.key_file = ***: must name what holds the secret, and there is nothing of this name; is it the secret itself?",
        ),
        (
            "[api]\nkey_env = 'rn_0123456789abcdefgh'",
            ":2: api.key_env = ***: must name what holds the secret, and there is nothing of this name; is it the secret itself?",
        ),
    ]);
    // What is there is meant, whatever it is called.
    let machine = Machine::with("[api]\nkey_file = 'rn_0123456789abcdefgh'");
    machine.write("rn_0123456789abcdefgh", "key");
    machine.load().unwrap();
}
