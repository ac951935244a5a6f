//! Against a fuzzer that knows nothing but the description of the API: schemathesis, where Python has it.

use std::path::Path;

use tokio::process::Command;

use crate::rig::{Server, served};

const RUN: &str = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())";

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_what_its_description_says() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python");
    if !packages.join("schemathesis").exists() {
        return eprintln!("skipped: schemathesis is not in target/python (`.ci/run` puts it there)");
    }
    let api = Server::api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let test = async |more: &[&str]| {
        let tested = Command::new("python3")
            .env("PYTHONPATH", &packages)
            .current_dir(place.path("."))
            .args(["-c", RUN, "--config-file"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/schemathesis.toml"))
            .args(["run", &format!("{}/openapi.json", caller.base), "--no-color", "--continue-on-failure"])
            .args(["--generation-database", "none"])
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
