//! What `add` does.

use assetwatch::watch::{Reason, check_asset_id};

use super::*;

/// What was done with one asset, in a word or two.
async fn add(base: &Base, new: NewWatch, again: bool) -> (&'static str, Option<i64>) {
    match base.store.add(vec![new], again, NOW + MINUTE).await.unwrap().remove(0) {
        Added::New(watch) => ("new", Some(watch.id)),
        Added::Known(watch) => ("known", Some(watch.id)),
        Added::Conflict { watch, column } => (column, Some(watch.id)),
        Added::BatchClosed => ("closed", None),
        Added::Refused(_) => ("refused", None),
    }
}

#[tokio::test]
async fn a_new_watch_waits_and_is_due() {
    let base = Base::new().await;
    let given = NewWatch {
        patience: Some(90 * SECOND),
        metadata: Some("{\"a\":  1}".into()),
        batch: Some("b".into()),
        callback_url: Some("https://cms.example/x".into()),
        ..new("../é?")
    };
    let added = base.store.add(vec![given], false, NOW).await.unwrap().remove(0);
    let Added::New(watch) = added else { panic!("{added:?}") };
    assert_eq!((watch.asset_id.as_str(), watch.account.as_str(), watch.state), ("../é?", "default", State::Waiting));
    assert_eq!((watch.due_at, watch.created_at, watch.generation, watch.polls), (Some(NOW), NOW, 0, 0));
    assert_eq!((watch.patience, watch.batch.as_deref()), (Some(90 * SECOND), Some("b")));
    assert_eq!(watch.metadata.as_deref(), Some("{\"a\":  1}"), "byte for byte");
    assert_eq!(watch.callback_url.as_deref(), Some("https://cms.example/x"));
    assert_eq!(*watch, base.watch(watch.id).await, "and so it stands in the database");
}

#[tokio::test]
async fn adding_is_idempotent() {
    let base = Base::new().await;
    let id = base.add(&["a"]).await[0].id;
    for again in [false, true] {
        assert_eq!(add(&base, new("a"), again).await, ("known", Some(id)), "it is being watched; again: {again}");
    }
    assert_eq!(base.watch(id).await.created_at, NOW, "and is as it was");
    let elsewhere = NewWatch { account: "studio".into(), ..new("a") };
    assert_eq!(add(&base, elsewhere, false).await.0, "new", "of another account it is another asset");
    let twice = base.store.add(vec![new("b"), new("b")], false, NOW).await.unwrap();
    assert!(matches!(twice[..], [Added::New(_), Added::Known(_)]), "within one call too: {twice:?}");
}

#[tokio::test]
async fn what_has_ended_before() {
    let base = Base::new().await;
    let settled = base.settled("settled", &[]).await;
    let again = Watch { polls: 0, ..base.leased("abandoned").await };
    let abandoned = Watch { state: State::Abandoned, reason: Some(Reason::Missing), ..settled_without_status(&again) };
    base.store.record(abandoned, Vec::new(), nobody()).await.unwrap();
    let cancelled = base.add(&["cancelled"]).await.remove(0);
    base.store.end(cancelled.id, |watch| (cancelled_now(watch), Vec::new()), nobody()).await.unwrap();
    assert_eq!(add(&base, new("settled"), false).await, ("known", Some(settled.id)));
    for (asset, again) in [("settled", true), ("abandoned", false), ("cancelled", false)] {
        let (done, id) = add(&base, new(asset), again).await;
        assert_eq!(done, "new", "{asset}");
        assert!(id > Some(cancelled.id), "an id is never used again");
    }
}

fn settled_without_status(watch: &Watch) -> Watch {
    Watch { asset: Asset::default(), ..super::settled(watch) }
}

fn cancelled_now(watch: &Watch) -> Watch {
    Watch { state: State::Cancelled, due_at: None, settled_at: Some(NOW), ..watch.clone() }
}

#[tokio::test]
async fn an_option_that_would_change_is_a_conflict_that_names_its_column() {
    let base = Base::new().await;
    let given = NewWatch {
        patience: Some(MINUTE),
        metadata: Some(r#"{"post": 7, "site": "en"}"#.into()),
        batch: Some("one".into()),
        callback_url: Some("https://one.example".into()),
        ..new("a")
    };
    let (_, id) = add(&base, given.clone(), false).await;
    for (changed, expected) in [
        (given.clone(), "known"),
        (new("a"), "known"),
        (NewWatch { patience: Some(HOUR), ..new("a") }, "patience"),
        (NewWatch { metadata: Some("2".into()), ..new("a") }, "metadata"),
        (NewWatch { metadata: Some(r#"{"site":"en","post":7}"#.into()), ..new("a") }, "known"),
        (NewWatch { batch: Some("two".into()), ..given.clone() }, "batch"),
        (NewWatch { callback_url: Some("https://two.example".into()), ..given.clone() }, "callback_url"),
    ] {
        assert_eq!(add(&base, changed.clone(), false).await, (expected, id), "{changed:?}");
        assert_eq!(add(&base, changed.clone(), true).await, (expected, id), "again: {changed:?}");
    }
    let (_, plain) = add(&base, new("b"), false).await;
    let given = NewWatch { asset_id: "b".into(), ..given };
    assert_eq!(add(&base, given, false).await, ("callback_url", plain), "an option where there was none is a change");
}

#[tokio::test]
async fn the_table_refuses_the_ids_that_the_rule_refuses() {
    let base = Base::new().await;
    let (longest, too_long, too_many_bytes) = ("x".repeat(512), "x".repeat(513), "é".repeat(257));
    let ids = [
        "",
        ".",
        "..",
        "...",
        " ",
        "a b",
        "é",
        "%",
        "[a-z]",
        "*",
        "'",
        "\"",
        "a/b?c#d",
        "<b>",
        "\u{a0}",
        "\u{2028}",
        "\u{feff}",
        "\u{1f600}",
        "\u{fffe}",
        "\u{10ffff}",
        "\0",
        "a\0",
        "\u{1}",
        "\t",
        "a\nb",
        "\r",
        "\u{1b}[31m",
        "\u{1f}",
        "\u{7f}",
        "\u{80}",
        "\u{9f}",
        "a\u{9b}31m",
        "\u{fffd}",
        "a\u{fffd}b",
        &longest,
        &too_long,
        &too_many_bytes,
    ];
    let added = base.store.add(ids.iter().map(|id| new(id)).collect(), false, NOW).await.unwrap();
    for (id, added) in ids.iter().zip(added) {
        match (check_asset_id(id), added) {
            (Ok(()), Added::New(watch)) => assert_eq!(watch.asset_id, *id),
            (Err(why), Added::Refused(text)) => {
                let (why, text) = (why.to_string(), text.split(": ").last().unwrap_or_default().to_owned());
                assert!(why.starts_with(&text[..20]), "{id:?}: the rule says {why:?}, the table {text:?}");
            }
            (rule, table) => panic!("{id:?}: the rule says {rule:?}, the table {table:?}"),
        }
    }
}

#[tokio::test]
async fn other_values_that_the_table_refuses() {
    let base = Base::new().await;
    let metadata = |text: String| NewWatch { metadata: Some(text), ..new("a") };
    for refused in [
        NewWatch { account: String::new(), ..new("a") },
        NewWatch { account: "x".repeat(65), ..new("a") },
        NewWatch { patience: Some(Duration::ZERO), ..new("a") },
        NewWatch { batch: Some(String::new()), ..new("a") },
        NewWatch { batch: Some("x".repeat(129)), ..new("a") },
        NewWatch { callback_url: Some("x".repeat(2_049)), ..new("a") },
        metadata("{".into()),
        metadata(String::new()),
        metadata(format!("\"{}\"", "x".repeat(16 * 1_024 - 1))),
    ] {
        assert_eq!(add(&base, refused.clone(), false).await, ("refused", None), "{refused:?}");
    }
    let longest = metadata(format!("\"{}\"", "x".repeat(16 * 1_024 - 2)));
    assert_eq!(add(&base, longest, false).await.0, "new");
}
