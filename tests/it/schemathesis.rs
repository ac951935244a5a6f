//! Against a fuzzer that knows nothing but the description of the API: schemathesis, where Python has it.

use std::path::Path;

use tokio::process::Command;

use crate::rig::{Server, served};

/// What is tried follows from it, so that a run can be repeated; another one may be named.
const SEED: &str = "ASSETWATCH_TEST_SEED";

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_what_its_description_says() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python");
    if !packages.join("schemathesis").exists() {
        return eprintln!("skipped: schemathesis is not in target/python (`.ci/run` puts it there)");
    }
    let api = Server::api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let ours = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name);
    let seed = std::env::var(SEED).unwrap_or_else(|_| "1".to_owned());
    let test = async |more: &[&str]| {
        let tested = Command::new("python3")
            .env("PYTHONPATH", &packages)
            .current_dir(place.path("."))
            .arg(ours("schemathesis_run.py"))
            .arg("--config-file")
            .arg(ours("schemathesis.toml"))
            .args(["run", &format!("{}/openapi.json", caller.base), "--no-color", "--continue-on-failure"])
            .args(["--generation-database", "none", "--seed", &seed])
            .args(more)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&tested.stdout).into_owned();
        assert!(tested.status.success(), "{said}\n{}", String::from_utf8_lossy(&tested.stderr));
        said
    };
    let said = test(&["--exclude-path-regex", "stream$", "--max-examples", "12", "--request-timeout", "60"]).await;
    assert!(said.contains("Tested: 15"), "all operations but the streams: {said}");
    // A stream has no end, so each of its cases lasts as long as is allowed.
    let said = test(&["--include-path-regex", "stream$", "--phases", "coverage", "--request-timeout", "2"]).await;
    assert!(said.contains("Tested: 2"), "the streams: {said}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    assert!(daemon.stop().await.success());
}
