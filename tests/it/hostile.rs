//! What comes from outside is hostile: properties that hold for any of it. The fuzz targets in `fuzz/` try the same
//! functions, and what they began with is tried here as well.

mod answer;
mod callback;
mod config;
mod quota;
mod request;
mod secrets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The inputs that a fuzz target begins with.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(directory).unwrap();
    let inputs: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(inputs.len() > 3, "{target} begins with {} inputs", inputs.len());
    inputs
}

/// Any JSON, and now and then what the API's fields are called.
fn any_json() -> impl Strategy<Value = Value> {
    let text = "active|pending|censored|ast_[12]|\\PC{0,8}|.{0,3}".prop_map(Value::from);
    let number = prop_oneof![any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from)];
    let leaf = prop_oneof![text, number, Just(Value::Null), any::<bool>().prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let name = "data|err|id|status|type|url|size|width|height|duration|frames|code|message|.{0,3}";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// One of the inputs of a fuzz target with a few bytes replaced by others.
fn damaged(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let cut = (any::<prop::sample::Index>(), 0_usize..9, prop::collection::vec(any::<u8>(), 0..9));
    (prop::sample::select(corpus(target)), prop::collection::vec(cut, 0..4)).prop_map(|(mut input, cuts)| {
        for (at, length, bytes) in cuts {
            let at = at.index(input.len() + 1);
            input.splice(at..(at + length).min(input.len()), bytes);
        }
        input
    })
}

#[test]
fn what_the_fuzzers_begin_with_holds() {
    corpus("answer").iter().for_each(|body| answer::check(body));
    corpus("quota").iter().for_each(|headers| quota::check(headers));
    corpus("callback").iter().for_each(|data| callback::check_bytes(data));
    let directory = tempfile::tempdir().unwrap();
    for text in corpus("config") {
        config::check(directory.path(), &text);
    }
    let settles = corpus("config").iter().filter(|text| config::settle(directory.path(), text).is_ok()).count();
    assert_eq!(settles, 2, "of the configurations two are right");
    Runtime::new().unwrap().block_on(async {
        let served = request::Served::start().await;
        for request in corpus("request") {
            served.check(&request).await;
        }
    });
}

proptest! {
    #[test]
    fn an_answer_means_what_is_in_it(data in any_json(), whole in any_json(), damaged in damaged("answer")) {
        answer::check(json!({ "data": data, "err": whole.clone() }).to_string().as_bytes());
        answer::check(whole.to_string().as_bytes());
        answer::check(&damaged);
    }

    #[test]
    fn no_header_keeps_anybody_waiting_longer_than_its_cap(
        seconds in "[0-9]{1,25}|[ -~]{0,40}", days in -100_000_000_000_i64..100_000_000_000, damaged in damaged("quota"),
    ) {
        let date = |seconds: i64| {
            let instant = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.unsigned_abs());
            httpdate_of(instant)
        };
        quota::check(seconds.as_bytes());
        quota::check(format!("{}\ndate:{}", date(days % 200_000_000_000), date(1_790_000_000)).as_bytes());
        quota::check(format!("x-ratelimit-remaining:0\nx-ratelimit-reset:{seconds}").as_bytes());
        quota::check(&damaged);
    }

    #[test]
    fn a_callback_goes_to_public_addresses_only(
        url in "(https?|HTTPS|ftp)://([a-z]{1,3}@)?([0-9a-fx.]{1,15}|\\[[0-9a-f:.]{2,30}\\]|[a-z.%0-9]{1,12}|\\PC{1,6})(:[0-9]{1,5})?[/?#\\\\]?[ -~]{0,20}",
        bits in any::<u128>(), damaged in damaged("callback"),
    ) {
        let v4 = Ipv4Addr::from_bits(bits as u32);
        let prefixes = ["::ffff:0:0", "64:ff9b::", "2002::", "2606::5efe:0:0", "2001:db8::", "fd00::"];
        let inside = prefixes.map(|prefix| prefix.parse::<Ipv6Addr>().unwrap().to_bits() | u128::from(v4.to_bits()));
        let mut addresses = inside.map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))).to_vec();
        addresses.extend([IpAddr::from(v4), Ipv6Addr::from_bits(bits).into()]);
        callback::check(&url, &addresses);
        callback::check_bytes(&damaged);
        for address in addresses {
            let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            callback::check(&format!("https://{host}/"), &[]);
        }
    }

    #[test]
    fn what_settles_is_shown_and_settles_to_the_same(damaged in damaged("config")) {
        let directory = tempfile::tempdir().unwrap();
        config::check(directory.path(), &damaged);
    }
}

proptest! {
    #[test]
    fn a_secret_in_place_of_any_value_is_in_no_error(
        text in prop::sample::select(vec![&b"whole"[..], b"hooks"]), at in any::<prop::sample::Index>(),
        secret in "(rn_c4n4ry[a-z0-9]{12,30}|whsec_c4n4ry[A-Za-z0-9+/]{20}==|C4n4ry[a-f0-9]{4}-[a-f0-9]{12})",
    ) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config").join(std::str::from_utf8(text).unwrap());
        let text = std::fs::read_to_string(file).unwrap();
        let quotes: Vec<usize> = text.match_indices('"').map(|(at, _)| at).collect();
        let pairs: Vec<&[usize]> = quotes.chunks_exact(2).collect();
        let pair = at.get(&pairs);
        let wrong = format!("{}{secret}{}", &text[..=pair[0]], &text[pair[1]..]);
        // Nobody takes it for a name.
        prop_assume!(!text[..pair[0]].ends_with("name = "));
        let directory = tempfile::tempdir().unwrap();
        if let Err(error) = config::settle(directory.path(), wrong.as_bytes()) {
            prop_assert!(!error.to_string().to_lowercase().contains("c4n4ry"), "{}", error);
        }
    }
}

/// RFC 9110's preferred form.
fn httpdate_of(instant: std::time::SystemTime) -> String {
    // Beyond the year 9999 there is none.
    let last = std::time::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_799);
    httpdate::fmt_http_date(instant.min(last))
}

#[test]
fn whatever_is_posted_only_what_was_added_is_in_the_database() {
    let runtime = Runtime::new().unwrap();
    let served = runtime.block_on(request::Served::start());
    let id = || prop_oneof![Just(String::new()), "ast_[0-9]", "\\PC{0,9}", ".{0,3}"];
    let option = |value: &'static str| prop::option::of(prop_oneof![4 => value.prop_map(Value::from), 1 => any_json()]);
    let options = (
        option("default|[a-zA-Z_-]{0,4}"),
        option("[0-9]{1,3}[smhdx]|[0-9]{1,20}d"),
        option("https?://[a-z.:@0-9]{0,9}/[ -~]{0,9}"),
        option("tuesday|.{0,4}"),
        prop::option::of(any_json()),
        prop::option::of(any::<bool>()),
    );
    let which = prop_oneof![
        id().prop_map(|id| ("asset_id", Value::from(id))),
        prop::collection::vec(id(), 0..9).prop_map(|ids| ("asset_ids", Value::from(ids))),
        any_json().prop_map(|json| ("asset_ids", json)),
    ];
    proptest!(ProptestConfig::with_cases(200), |(which in which, options in options, damaged in damaged("request"))| {
        let (account, patience, callback, batch, metadata, again) = options;
        let mut body = json!({ which.0: which.1 });
        let given = [("account", account), ("patience", patience), ("callback_url", callback), ("batch", batch),
            ("metadata", metadata), ("again", again.map(Value::from)), ("close", again.map(Value::from))];
        for (name, value) in given {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        runtime.block_on(async {
            served.check(format!("\u{1}/v1/watches\n{body}").as_bytes()).await;
            served.check(&damaged).await;
        });
    });
}

#[test]
fn pages_of_any_size_have_each_watch_once() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let served = request::Served::start().await;
        let ids: Vec<String> = (0..50).map(|number| format!("ast_{number:02}")).collect();
        let added =
            served.ask("POST", "/v1/watches", json!({ "asset_ids": ids }).to_string().as_bytes()).await.unwrap();
        assert_eq!(added.status, 200);
        for size in [1, 2, 7, 25, 49, 50, 51, 1_000] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let target = format!("/v1/watches?limit={size}{cursor}");
                let page = served.ask("GET", &target, b"").await.unwrap().json();
                let watches = page["watches"].as_array().unwrap().clone();
                assert!(watches.len() <= size, "{target} has {}", watches.len());
                seen.extend(watches.iter().map(|watch| watch["asset_id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            seen.reverse();
            assert_eq!(seen, ids, "by pages of {size}");
        }
    });
    let served = runtime.block_on(request::Served::start());
    proptest!(ProptestConfig::with_cases(100), |(cursor in "[0-9a-f]{0,17}|[0-9a-zA-Z+.-]{0,20}")| {
        for list in ["watches", "events", "deliveries"] {
            let target = format!("/v1/{list}?cursor={}", cursor.replace('+', "%2b"));
            let answer = runtime.block_on(served.ask("GET", &target, b"")).unwrap();
            request::assert_good_or_problem("GET", &target, &answer);
            let at = i64::from_str_radix(&cursor, 16).ok().filter(|at| *at >= 0 && !cursor.starts_with(['+', '-']));
            let status = match at {
                // There is no event yet, so it is ahead of them all.
                Some(1..) if list == "events" => 409,
                Some(_) => 200,
                None => 400,
            };
            prop_assert_eq!(answer.status, status, "{} {}", list, cursor);
        }
    });
}
