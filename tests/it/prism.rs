//! Against a mock server that a third party makes from the vendor's own page: Prism, where node has it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::rig::{Place, SOON, run};

const READY: &str = "Prism is listening on ";

/// Where `.ci/run` puts it.
fn prism() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules/.bin/prism");
    path.exists().then_some(path)
}

/// A mock of the vendor's endpoint, and its address.
async fn mock(prism: &Path, more: &[&str]) -> (Child, String) {
    let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/get-asset-v2.yaml");
    let mut child = Command::new(prism)
        .args(["mock", "--host", "127.0.0.1", "--port", "0"])
        .args(more)
        .arg(description)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once(READY) {
                return address.trim().to_owned();
            }
        }
        panic!("Prism ended without listening");
    };
    let address = tokio::time::timeout(SOON, address).await.expect("Prism listens");
    // It must not stop at a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_example_settles() {
    let Some(prism) = prism() else {
        return eprintln!("skipped: Prism is not in target/node (`.ci/run` puts it there)");
    };
    let (_mock, address) = mock(&prism, &[]).await;
    let place = Place::at(&address, "");
    let waited = run(&place, &["wait", "asset_id", "--output", "json"]).await;
    assert_eq!(waited.code, 0, "{waited:?}");
    let watch = &waited.json()[0];
    for (column, value) in [
        ("asset_id", "\"asset_id\""),
        ("state", "\"settled\""),
        ("status", "\"active\""),
        ("type", "\"image\""),
        ("url", "\"object-url\""),
        ("width", "512"),
        ("height", "512"),
        ("duration", "30"),
        ("frames", "200"),
        ("last_error", "null"),
    ] {
        assert_eq!(watch[column].to_string(), value, "{column}");
    }
    let plain = run(&place, &["wait", "asset_id"]).await;
    assert_eq!((plain.code, plain.out.as_str()), (0, "asset_id active object-url\n"));
}

/// Prism makes the id up as well, so every answer is about another asset than asked: a failure, and the watch waits.
/// The fifth in a row is held against the account instead, which is then tried with single polls.
#[tokio::test(flavor = "multi_thread")]
async fn random_answers_follow_the_table() {
    let Some(prism) = prism() else {
        return eprintln!("skipped: Prism is not in target/node (`.ci/run` puts it there)");
    };
    let (_mock, address) = mock(&prism, &["--dynamic"]).await;
    let place = Place::at(&address, "");
    let waited = run(&place, &["wait", "asset_id", "--timeout", "5s", "-v"]).await;
    assert_eq!(waited.code, 124, "{waited:?}");
    assert!(!waited.err.contains("panicked"), "{}", waited.err);
    let watch = &run(&place, &["show", "asset_id", "--json"]).await.json()[0]["watch"];
    assert_eq!(watch["state"], "waiting");
    assert!(watch["polls"].as_i64() > Some(4), "{watch}");
    assert_eq!(watch["failures"], 4, "{watch}");
    assert!(waited.err.contains("the API cannot be used"), "{}", waited.err);
}
