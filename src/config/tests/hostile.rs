//! Whatever a file says, it is an answer or an error, and no secret is in either.

use proptest::prelude::*;

use super::*;

const CANARY: &str = "rn_canary";

fn read(text: &str) -> Result<Settings, ConfigError> {
    let file = find::File { path: "/etc/assetwatch/config.toml".into(), text: text.into(), writable_by_others: false };
    let environment = [("HOME", "/home/x"), ("AFFOGATO_API_KEY", CANARY)].into_iter().collect();
    settle(Some(&file), &Overrides::default(), &environment)
}

/// Lines that are nearly right, so that every reader is reached.
#[expect(clippy::too_many_lines, reason = "a table")]
fn line() -> impl Strategy<Value = String> {
    let table = prop::sample::select(
        &["[api]", "[accounts.a]", "[backoff]", "[http]", "[callbacks]", "[[hooks]]", "[hooks]"][..],
    );
    let key = prop::sample::select(
        &[
            "database",
            "retention",
            "grace",
            "url",
            "key_file",
            "key_env",
            "timeout",
            "max_in_flight",
            "rate",
            "waiting_statuses",
            "initial",
            "multiplier",
            "max",
            "jitter",
            "patience",
            "missing_grace",
            "listen",
            "token_file",
            "name",
            "on",
            "accounts",
            "batches",
            "secret_file",
            "secret_env",
            "command",
            "kill_after",
            "env",
            "env_pass",
            "concurrency",
            "schedule",
            "allow_nets",
            "allow_http",
            "api",
            "hooks",
            "x.y",
            "\"\"",
            "accounts.b",
        ][..],
    );
    let value = prop_oneof![
        prop::sample::select(
            &[
                "1",
                "-1",
                "0x7fffffffffffffff",
                "1e999",
                "nan",
                "true",
                "1979-05-27",
                "''",
                "'a'",
                "'1s'",
                "'99999999999y'",
                "'http://h'",
                "'https://[::1]:1/p'",
                "'0.0.0.0:0'",
                "'unix:/x'",
                "[]",
                "['settled']",
                "['/bin/true']",
                "['10.0.0.0/8']",
                "[1, 'x', []]",
                "{}",
                "{ A = 'b' }",
                "[{ name = 'h' }]",
                "'''\n\n'''",
            ][..]
        )
        .prop_map(str::to_owned),
        "'[ -&(-~µé]{0,30}'",
        "\"([ -!#-\\[\\]-~]|\\\\u202e|\\\\n|\\\\u0000){0,20}\"",
    ];
    prop_oneof![1 => table.prop_map(str::to_owned), 3 => (key, value).prop_map(|(key, value)| format!("{key} = {value}"))]
}

proptest! {
    #[test]
    fn any_text_is_an_answer_or_an_error(text in any::<String>()) {
        if let Err(error) = read(&text) {
            prop_assert!(!error.problems().is_empty());
        }
    }

    #[test]
    fn nearly_right_text_is_an_answer_or_an_error(lines in prop::collection::vec(line(), 0..12)) {
        let text = lines.join("\n");
        match read(&text) {
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                for problem in error.problems() {
                    prop_assert!(problem.starts_with("/etc/assetwatch/config.toml:"), "{}", problem);
                    prop_assert!(!problem.contains(char::is_control) && problem.len() < 2_000, "{}", problem);
                }
            }
            Ok(settings) => {
                prop_assert!(settings.accounts[0].rules.backoff.initial <= settings.accounts[0].rules.backoff.max);
                prop_assert!(!settings.accounts[0].rules.waiting_statuses.is_empty());
            }
        }
    }

    #[test]
    fn durations_are_judged_and_never_panic(text in "([0-9]{1,20}(\\.[0-9]{1,9})? ?(ns|us|ms|s|m|h|d|w|month|y) ?){1,4}") {
        let _ = read(&format!("grace = '{text}'"));
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for text in [
        "[api]\nkey = 'rn_canary'",
        "[api]\nkey = rn_canary",
        "[api]\nkey_env = 'rn-canary rn_canary'",
        "[api]\nurl = 'https://rn_canary@example.com'",
        "[api]\nurl = 'https://example.com?key=rn_canary'",
        "api = 'rn_canary'",
        "accounts = { a = 'rn_canary' }",
        "[accounts.a]\nsecret = 'rn_canary'",
        "[http]\ntoken = 'rn_canary'",
        "[[hooks]]\nname = 'h'\nurl = 'nttp://chat.example/rn_canary'",
        "[[hooks]]\nname = 'h'\nurl = 'http://chat.example/rn_canary'\nsecret = 'rn_canary'",
        "[[hooks]]\nname = 'h'\nurl = 'http://chat.example/rn_canary'\nsecret_env = 'rn_canary-'",
        "[[hooks]]\nname = 'h'\ncommand = ['/x']\nenv = { A = 'rn_canary', B = 3 }",
        "[[hooks]]\nname = 'h'\ncommand = ['/x']\nenv.'A B' = 'rn_canary'",
        "[[hooks]]\nname = 'h'\nurl = 'http://h'\ncommand = ['/x']\nenv = { A = 'rn_canary' }",
        "token = 'rn_canary",
        "token = \"rn_canary\\q\"",
    ] {
        let error = read(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
}

#[test]
fn settings_that_hold_secrets_do_not_show_them() {
    let settings = read(
        "[[hooks]]\nname = 'chat'\nurl = 'https://chat.example/rn_canary?k=rn_canary'\n\
         [[hooks]]\nname = 'run'\ncommand = ['/x']\nenv = { A = 'rn_canary' }",
    )
    .unwrap();
    assert!(!format!("{settings:?}").contains(CANARY), "{settings:?}");
    let environment: Environment = [("AFFOGATO_API_KEY", CANARY)].into_iter().collect();
    assert_eq!(format!("{environment:?}"), "{\"AFFOGATO_API_KEY\"}");
}
