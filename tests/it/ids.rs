//! Ids as people and pipelines give them: from files of other systems, many at once, and the same one twice.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use crate::rig::{Place, SOON, Server, binary, run, run_with};

/// A file as an editor on Windows writes it, indented and with blanks at the ends of its lines.
const FROM_WINDOWS: &str = "\u{feff}active_1\r\n  active_2 \t\r\n \t \r\nactive_3";

#[tokio::test(flavor = "multi_thread")]
async fn what_surrounds_an_id_on_stdin_is_no_part_of_it() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let added = run_with(&place, &["add", "-"], FROM_WINDOWS, &[]).await;
    assert_eq!((added.code, added.out.as_str()), (0, "added active_1\nadded active_2\nadded active_3\n"), "{added:?}");
    let waited = run_with(&place, &["wait", "-", "--output", "status"], FROM_WINDOWS, &[]).await;
    assert_eq!((waited.code, waited.out.as_str()), (0, "active\nactive\nactive\n"), "{waited:?}");
    run(&place, &["add", "ast_1", "ast_2"]).await;
    let cancelled = run_with(&place, &["cancel", "-"], "\u{feff} ast_1\r\n\tast_2 \n", &[]).await;
    assert_eq!((cancelled.code, cancelled.out.as_str()), (0, "cancelled ast_1\ncancelled ast_2\n"), "{cancelled:?}");
    // Several such files; a blank within may be meant.
    let odd = run_with(&place, &["add", "-", "--json"], "a b\n\u{feff}c\n", &[]).await.json();
    assert_eq!((&odd[0]["asset_id"], &odd[1]["asset_id"]), (&"a b".into(), &"c".into()));
    let given = run(&place, &["add", " ast_1", "--json"]).await.json();
    assert_eq!(given[0]["asset_id"], " ast_1", "an argument stays as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_cancelled_with_one_commit_and_answered_in_order() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let ids: Vec<String> = (0..500).map(|number| format!("ast_{number}")).collect();
    let text = ids.join("\n");
    assert_eq!(run_with(&place, &["add", "--batch", "b", "--close", "-"], &text, &[]).await.code, 0);
    let input = format!("nobody\n{text}\nast_7\n");
    let cancelled = run_with(&place, &["cancel", "-"], &input, &[]).await;
    let expected: String = ids.iter().map(|id| format!("cancelled {id}\n")).collect();
    assert_eq!((cancelled.code, &cancelled.out), (1, &expected));
    let said: Vec<&str> = cancelled.err.lines().collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].contains("ast_7: not cancelled, it had ended: cancelled"), "given twice: {said:?}");
    let instants = "SELECT count(DISTINCT settled_at) FROM watches WHERE state = 'cancelled'";
    assert_eq!(place.ask::<i64>(instants), Some(1), "each commit has its instant");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM events WHERE type = 'watch.cancelled'"), Some(500));
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM events WHERE type = 'batch.settled'"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_worked_as_they_come() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for (verb, done) in [("add", "added"), ("cancel", "cancelled")] {
        let mut program = tokio::process::Command::new(binary());
        program.arg("--config").arg(place.config()).args([verb, "-"]).env_clear().kill_on_drop(true);
        let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = program.stdin.take().unwrap();
        let mut answers = BufReader::new(program.stdout.take().unwrap()).lines();
        for id in ["ast_1", "ast_2"] {
            stdin.write_all(format!("{id}\n").as_bytes()).await.unwrap();
            let answer = timeout(SOON, answers.next_line()).await.expect("while its producer is at work").unwrap();
            assert_eq!(answer, Some(format!("{done} {id}")));
        }
        drop(stdin);
        assert!(program.wait().await.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_id_is_refused_however_long_it_is_and_the_next_one_is_added() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let input = format!("{}\n{}ast_1\nast_2\n", "x".repeat(3_000_000), " ".repeat(5_000));
    let added = run_with(&place, &["add", "-"], &input, &[]).await;
    assert_eq!((added.code, added.out.as_str()), (1, "added ast_2\n"));
    assert_eq!(added.err.matches("an asset id has at most 512 bytes").count(), 2, "{}", added.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_does_not_wait_longer_than_it_is_to_for_its_ids() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let mut program = tokio::process::Command::new(binary());
    program.arg("--config").arg(place.config()).args(["wait", "-", "--timeout", "300ms"]).env_clear();
    let mut program = program.stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stdin = program.stdin.take().unwrap();
    stdin.write_all(b"active_1\n").await.unwrap();
    let output = timeout(SOON, program.wait_with_output()).await.expect("its producer hangs").unwrap();
    assert_eq!(output.status.code(), Some(124));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--timeout ran out before the ids"));
    drop(stdin);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_named() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for verb in ["add", "cancel", "wait"] {
        let mut program = tokio::process::Command::new(binary());
        program.arg("--config").arg(place.config()).args([verb, "-"]).env_clear();
        let output = program.stdin(std::fs::File::open("/").unwrap()).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.starts_with("assetwatch: stdin cannot be read: "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_each_id_that_is_to_be_cancelled_has_its_object() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    run(&place, &["wait", "active_1"]).await;
    run(&place, &["add", "ast_1"]).await;
    let cancelled = run(&place, &["cancel", "--json", "nobody", "ast_1", "active_1"]).await;
    assert_eq!((cancelled.code, cancelled.err.as_str()), (1, ""));
    let objects = cancelled.json();
    let words = |name: &str| objects.iter().map(|object| object[name].clone()).collect::<Vec<_>>();
    assert_eq!(words("asset_id"), ["nobody", "ast_1", "active_1"], "{objects:?}");
    assert_eq!(words("result"), ["unknown", "cancelled", "ended"]);
    assert_eq!(objects[1]["watch"]["state"], "cancelled");
    assert_eq!((&objects[0]["watch"], &objects[1]["error"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(objects[0]["error"], "no watch of \"nobody\" is known");
    assert_eq!(objects[2]["error"], "not cancelled, it had ended: active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_prints_a_line_for_each_argument_however_often_it_is_given() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let args = ["wait", "active_1", "censored_1", "active_1", "--output", "status"];
    let waited = run(&place, &args).await;
    assert_eq!((waited.code, waited.out.as_str()), (3, "active\ncensored\nactive\n"), "{waited:?}");
    let json = run(&place, &["wait", "active_1", "active_1", "--json"]).await.json();
    assert_eq!((json.len(), &json[0]), (2, &json[1]));
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(2));
}

/// It may have been watched, and been removed since.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_not_said_to_have_never_been() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    run(&place, &["add", "ast_1"]).await;
    for (args, said) in [
        (&["show", "nobody"][..], "no watch of \"nobody\" is known; `assetwatch add` starts one"),
        (&["show", "ast_1", "--account", "b"], "no watch of \"ast_1\" for the account \"b\" is known"),
        (&["cancel", "nobody"], "no watch of \"nobody\" is known"),
        (&["cancel", "ast_1", "--account", "b"], "no watch of \"ast_1\" for the account \"b\" is known"),
    ] {
        let unknown = run(&place, args).await;
        assert_eq!((unknown.code, unknown.out.as_str()), (1, ""), "{args:?}");
        assert!(unknown.err.contains(said), "{args:?}: {}", unknown.err);
    }
}
