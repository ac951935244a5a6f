//! A headless Chromium, driven by WebDriver, where Debian's packages are.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::SOON;

/// Chromium without what calls home, and with what it needs as root and on a small machine.
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];
/// A browser takes long where everything takes long.
const LONG: Duration = SOON.saturating_mul(2);
/// How WebDriver's answers name an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that have no character.
pub const ENTER: &str = "\u{e007}";
pub const ESCAPE: &str = "\u{e00c}";
pub const DOWN: &str = "\u{e015}";
pub const TAB: &str = "\u{e004}";

/// One browser with one tab; it ends when it is dropped.
pub struct Browser {
    client: reqwest::Client,
    driver: Child,
    browser: Pid,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// A new browser, where there is one.
    pub async fn start() -> Option<Self> {
        if !["/usr/bin/chromium", "/usr/bin/chromedriver"].into_iter().all(|path| Path::new(path).exists()) {
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("/usr/bin/chromedriver")
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let port = port(&mut driver).await;
        let client = assetwatch::client::builder(LONG * 2).build().unwrap();
        let arguments = ARGUMENTS.iter().map(ToString::to_string);
        let arguments: Vec<String> =
            arguments.chain([format!("--user-data-dir={}", profile.path().join("profile").display())]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "timeouts": {"script": LONG.as_millis() as u64 + 10_000},
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let address = format!("http://127.0.0.1:{port}/session");
        let session = command(&client, reqwest::Method::POST, &address, wanted).await;
        let browser = session["capabilities"]["goog:processID"].as_i64().unwrap();
        let session = format!("{address}/{}", session["sessionId"].as_str().unwrap());
        let browser = Pid::from_raw(i32::try_from(browser).unwrap()).unwrap();
        Some(Self { client, driver, browser, session, _profile: profile })
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        command(&self.client, reqwest::Method::POST, &format!("{}/{path}", self.session), body).await
    }

    async fn get(&self, path: &str) -> Value {
        command(&self.client, reqwest::Method::GET, &format!("{}/{path}", self.session), Value::Null).await
    }

    /// Goes to a page and waits until it is there.
    pub async fn open(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    /// Runs the body of a function, and gives what it returns.
    pub async fn run(&self, body: &str) -> Value {
        self.post("execute/sync", json!({"script": body, "args": []})).await
    }

    /// The same for one whose result is a promise.
    pub async fn run_to_its_end(&self, body: &str) -> Value {
        let body =
            format!("const done = arguments[0]; (async () => {{ {body} }})().then(done, (e) => done(String(e)));");
        self.post("execute/async", json!({"script": body, "args": []})).await
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        let look = format!(
            "const end = performance.now() + {};
             const look = (ready) => {{
                 if ({expression}) ready(null);
                 else if (performance.now() > end) ready(document.body.innerText);
                 else setTimeout(look, 10, ready);
             }};
             return await new Promise(look);",
            LONG.as_millis()
        );
        let seen = self.run_to_its_end(&look).await;
        assert!(seen.is_null(), "it does not come about that {expression}; the page says: {}", seen.as_str().unwrap());
    }

    /// Has the reader look at another tab for as long as it takes.
    pub async fn elsewhere(&self, meanwhile: impl Future<Output = ()>) {
        let here = self.get("window").await;
        let there = self.post("window/new", json!({"type": "tab"})).await;
        self.post("window", json!({"handle": there["handle"]})).await;
        meanwhile.await;
        self.post("window", json!({"handle": here})).await;
    }

    /// Clicks on the first element that the selector finds, as a pointer does: it must be there to be clicked on.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    /// Writes into an element, as a keyboard does.
    pub async fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("element/{element}/value"), json!({"text": text})).await;
    }

    /// Presses keys where the focus is.
    pub async fn press(&self, keys: &str) {
        let press = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let keys: Vec<Value> = keys.chars().flat_map(press).collect();
        self.post("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})).await;
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("element", json!({"using": "css selector", "value": selector})).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// A window of this size in CSS pixels, in the dark or not.
    pub async fn look(&self, (width, height): (u32, u32), dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        let scheme = json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }});
        for (cmd, params) in [
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", json!({"features": [scheme]})),
        ] {
            self.post("goog/cdp/execute", json!({"cmd": cmd, "params": params})).await;
        }
    }

    /// What axe finds on the page that keeps people out, where node has it.
    pub async fn barriers(&self) -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node/node_modules/axe-core/axe.min.js");
        let Ok(axe) = std::fs::read_to_string(path) else {
            eprintln!("skipped: axe is not in target/node (`.ci/run` puts it there)");
            return Vec::new();
        };
        let found = self.run_to_its_end(&format!("{axe}; return (await axe.run(document)).violations")).await;
        let told = |rule: &Value| format!("{}: {}", rule["help"], rule["nodes"][0]["html"]);
        found.as_array().unwrap_or_else(|| panic!("axe: {found}")).iter().map(told).collect()
    }

    /// Writes what the window shows to a file below `target/`.
    pub async fn photograph(&self, name: &str) {
        use base64::Engine;
        let picture = self.get("screenshot").await;
        let picture = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(name), picture).unwrap();
    }

    /// What the browser has complained of since it was asked last: errors and warnings of scripts, of the network and of
    /// the page's policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.post("se/log", json!({"type": "browser"})).await;
        let bad = |line: &&Value| matches!(line["level"].as_str(), Some("SEVERE" | "WARNING"));
        log.as_array().unwrap().iter().filter(bad).map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver, killed, would leave it behind; the browser, killed, would leave processes that still write into the
        // directory which is removed next.
        let quit = async { drop(self.client.delete(&self.session).send().await) };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(quit));
        let _ = kill_process(self.browser, Signal::KILL);
        let _ = self.driver.start_kill();
    }
}

async fn port(driver: &mut Child) -> u16 {
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let started = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, port)) = line.split_once("successfully on port ") {
                return port.trim_end_matches('.').parse().unwrap();
            }
        }
        panic!("chromedriver ended without listening");
    };
    let port = tokio::time::timeout(SOON, started).await.expect("chromedriver listens");
    // It must not stop at a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    port
}

/// One command of WebDriver's, and its value; what it cannot do fails the test, an alert that has opened included.
async fn command(client: &reqwest::Client, method: reqwest::Method, url: &str, body: Value) -> Value {
    let request = client.request(method, url);
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    let answer = request.send().await.unwrap();
    let good = answer.status().is_success();
    let value: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert!(good, "{url} {body}: {}", value["value"]["message"]);
    value["value"].clone()
}
