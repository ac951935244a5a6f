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
    let tested = Command::new("python3")
        .env("PYTHONPATH", &packages)
        .current_dir(place.path("."))
        .args(["-c", RUN, "--config-file"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", caller.base), "--no-color", "--continue-on-failure"])
        .args(["--max-examples", "12", "--generation-database", "none"])
        .args(["--request-timeout", "60"])
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{said}\n{}", String::from_utf8_lossy(&tested.stderr));
    assert!(said.contains("Selected: 16/16"), "{said}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    assert!(daemon.stop().await.success());
}
