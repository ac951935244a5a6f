//! What `add` does.

use assetwatch::watch::{Reason, check_asset_id};

use super::*;

/// What was done with one asset, in a word or two.
async fn add(base: &Base, asset_id: &str, options: AddOptions) -> (&'static str, Option<i64>) {
    match base.store.add(owned(&[asset_id]), options, NOW + MINUTE).await.unwrap().remove(0) {
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
    let given = AddOptions {
        patience: Some(90 * SECOND),
        metadata: Some("{\"a\":  1}".into()),
        batch: Some("b".into()),
        callback_url: Some("https://cms.example/x".into()),
        ..plain()
    };
    let added = base.store.add(owned(&["../é?"]), given, NOW).await.unwrap().remove(0);
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
        assert_eq!(
            add(&base, "a", AddOptions { again, ..plain() }).await,
            ("known", Some(id)),
            "it is being watched; again: {again}"
        );
    }
    assert_eq!(base.watch(id).await.created_at, NOW, "and is as it was");
    let elsewhere = AddOptions { account: "studio".into(), ..plain() };
    assert_eq!(add(&base, "a", elsewhere).await.0, "new", "of another account it is another asset");
    let given = owned(&["c", "b", "", "a", "b", "b", ""]);
    let added = base.store.add(given, AddOptions { again: true, ..plain() }, NOW).await.unwrap();
    use Added::{Known, New, Refused};
    let [New(c), New(b), Refused(_), Known(a), Known(b2), Known(_), Refused(_)] = &added[..] else {
        panic!("{added:?}")
    };
    assert_eq!((a.id, b2), (id, b), "within one call too, and as it was given");
    assert_eq!(b.id, c.id + 1, "numbered as they were given");
}

#[tokio::test]
async fn what_has_ended_before() {
    let base = Base::new().await;
    let settled = base.settled("settled", &[]).await;
    let again = Watch { polls: 0, ..base.leased("abandoned").await };
    let abandoned = Watch { state: State::Abandoned, reason: Some(Reason::Missing), ..settled_without_status(&again) };
    base.store.record(abandoned, Vec::new(), nobody()).await.unwrap();
    let cancelled = base.add(&["cancelled"]).await.remove(0);
    base.store.end(vec![cancelled.id], |watch| (cancelled_now(watch), Vec::new()), nobody()).await.unwrap();
    assert_eq!(add(&base, "settled", plain()).await, ("known", Some(settled.id)));
    for (asset, again) in [("settled", true), ("abandoned", false), ("cancelled", false)] {
        let (done, id) = add(&base, asset, AddOptions { again, ..plain() }).await;
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
    let given = AddOptions {
        patience: Some(MINUTE),
        metadata: Some(r#"{"post": 7, "site": "en"}"#.into()),
        batch: Some("one".into()),
        callback_url: Some("https://one.example".into()),
        ..plain()
    };
    let (_, id) = add(&base, "a", given.clone()).await;
    for (changed, expected) in [
        (given.clone(), "known"),
        (plain(), "known"),
        (AddOptions { patience: Some(HOUR), ..plain() }, "patience"),
        (AddOptions { metadata: Some("2".into()), ..plain() }, "metadata"),
        (AddOptions { metadata: Some(r#"{"site":"en","post":7}"#.into()), ..plain() }, "known"),
        (AddOptions { batch: Some("two".into()), ..given.clone() }, "batch"),
        (AddOptions { callback_url: Some("https://two.example".into()), ..given.clone() }, "callback_url"),
    ] {
        assert_eq!(add(&base, "a", changed.clone()).await, (expected, id), "{changed:?}");
        assert_eq!(add(&base, "a", AddOptions { again: true, ..changed.clone() }).await, (expected, id), "{changed:?}");
    }
    let (_, bare) = add(&base, "b", plain()).await;
    assert_eq!(add(&base, "b", given).await, ("callback_url", bare), "an option where there was none is a change");
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
    let foreign = base.foreign();
    let insert = |id: &str| foreign.execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]);
    let added = base.store.add(owned(&ids), AddOptions { account: "ours".into(), ..plain() }, NOW).await.unwrap();
    for (id, added) in ids.iter().zip(added) {
        match (check_asset_id(id), insert(id), added) {
            (Ok(()), Ok(1), Added::New(watch)) => assert_eq!(watch.asset_id, *id),
            (Err(why), Err(table), Added::Refused(text)) => {
                let (why, table) = (why.to_string(), table.to_string());
                let table = table.split(": ").last().unwrap_or_default();
                assert!(
                    why.starts_with(&table[..20]) && text == why,
                    "{id:?}: the rule says {why:?}, the table {table:?}"
                );
            }
            (rule, table, added) => panic!("{id:?}: the rule says {rule:?}, the table {table:?}, the store {added:?}"),
        }
    }
}

#[tokio::test]
async fn other_values_that_the_table_refuses() {
    let base = Base::new().await;
    let metadata = |text: String| AddOptions { metadata: Some(text), ..plain() };
    for refused in [
        AddOptions { account: String::new(), ..plain() },
        AddOptions { account: "x".repeat(65), ..plain() },
        AddOptions { patience: Some(Duration::ZERO), ..plain() },
        AddOptions { batch: Some(String::new()), ..plain() },
        AddOptions { batch: Some("x".repeat(129)), ..plain() },
        AddOptions { callback_url: Some("x".repeat(2_049)), ..plain() },
        metadata("{".into()),
        metadata(String::new()),
        metadata(format!("\"{}\"", "x".repeat(16 * 1_024 - 1))),
    ] {
        assert_eq!(add(&base, "a", refused.clone()).await, ("refused", None), "{refused:?}");
    }
    let longest = metadata(format!("\"{}\"", "x".repeat(16 * 1_024 - 2)));
    assert_eq!(add(&base, "a", longest).await.0, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_waits_is_known_behind_a_newer_row_of_another_program() {
    let base = Base::new().await;
    assert_eq!(add(&base, "a", plain()).await, ("new", Some(1)));
    base.execute("INSERT INTO watches (asset_id, account, state, due_at, settled_at) VALUES ('a', 'default', 'cancelled', NULL, 1)");
    let added = base.store.add(owned(&["new", "a"]), plain(), NOW).await.unwrap();
    assert!(matches!(&added[..], [Added::New(_), Added::Known(watch)] if watch.id == 1), "{added:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_patience_is_the_same_however_finely_it_is_given() {
    let base = Base::new().await;
    let fine = AddOptions { patience: Some(std::time::Duration::from_micros(1_500)), ..plain() };
    assert_eq!(add(&base, "a", fine.clone()).await, ("new", Some(1)));
    assert_eq!(add(&base, "a", fine).await, ("known", Some(1)));
}
