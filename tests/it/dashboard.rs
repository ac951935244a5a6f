//! The dashboard, in a real browser against a real daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rig::{Browser, Caller, DOWN, Daemon, ENTER, ESCAPE, Place, Reply, Server, TAB, executable, run};

const SKIPPED: &str = "skipped: there is no Chromium (Debian: apt install chromium chromium-driver)";
const HOSTILE: &str = "<img src=x onerror=alert(1)>";
/// With spaces in it, which belong to it, and around it, which do not.
const TOKEN: &str = " a token  for the dashboard~ ";
/// An asset with numbers that JavaScript cannot hold.
const VAST: &str = r#"{"data":{"id":"active_vast","status":"active","type":"video",
    "size":{"width":9007199254740993,"height":9223372036854775807},"duration":9007199254740995,"frames":9007199254740997}}"#;
/// A second poll comes by itself only after an hour.
const PATIENT: [(&str, &str); 2] = [("ASSETWATCH_BACKOFF_INITIAL", "1h"), ("ASSETWATCH_BACKOFF_MAX", "1h")];

/// An API in which `active_1` is active at once, and `held_1` is processing until it is released; `active_vast` is vast,
/// and who asks for `busy` is asked for patience.
async fn api() -> (Server, Arc<AtomicBool>) {
    let released = Arc::new(AtomicBool::new(false));
    let known = Arc::clone(&released);
    let api = Server::start(move |request| {
        let id = percent_encoding::percent_decode_str(request.asset()).decode_utf8().unwrap();
        match id.as_ref() {
            "active_vast" => return Reply::json(VAST),
            "busy" => return Reply::status(429).with_header("retry-after", "3600"),
            _ => {}
        }
        let waits = !id.starts_with("active") && !known.load(Ordering::Relaxed);
        Reply::asset(&id, if waits { "processing" } else { "active" })
    });
    (api.await, released)
}

/// Writes the command of a hook that gives up until there is a file, and says so in markup.
fn publish(place: &Place) -> String {
    let file = place.path("room");
    let script = format!(
        "cat >/dev/null\necho '<b onclick=alert(2)>stdout</b>'\necho no room >&2\ntest -e {} || exit 100",
        file.display()
    );
    executable(&place.path("publish"), &script);
    format!("[[hooks]]\nname = \"publish\"\non = [\"active\"]\ncommand = [\"{}\"]\n", place.path("publish").display())
}

/// A daemon with its page, and a browser that looks at it.
struct Scene {
    place: Place,
    daemon: Daemon,
    browser: Browser,
    url: String,
    api: Server,
    released: Arc<AtomicBool>,
}

impl Scene {
    /// None where there is no browser.
    async fn set(http: &str) -> Option<Self> {
        let Some(browser) = Browser::start().await else {
            eprintln!("{SKIPPED}");
            return None;
        };
        let (api, released) = api().await;
        let place = Place::new(&api, "");
        std::fs::write(place.path("token"), TOKEN).unwrap();
        let (daemon, url) = serve(&place, &api, "127.0.0.1:0", http).await;
        Some(Self { place, daemon, browser, url, api, released })
    }

    async fn add(&self, ids: &[&str]) {
        let added =
            run(&self.place, &[&["add", "--metadata", "{\"n\": 12345678901234567890}", "--"], ids].concat()).await;
        assert_eq!(added.code, 0, "{added:?}");
    }

    /// Goes somewhere within the page, as its links do.
    async fn go(&self, fragment: &str) {
        self.browser.run(&format!("location.hash = '{fragment}'")).await;
    }

    /// Nobody may have reloaded the page, no script may have failed, and the policy may have refused nothing.
    async fn assert_quiet(&self) {
        assert_eq!(self.browser.complaints().await, Vec::<String>::new());
        let made = "return document.querySelectorAll('img, iframe, [onclick], [onerror], main script').length";
        assert_eq!(self.browser.run(made).await, 0, "foreign text became an element");
    }

    /// In this light, nobody is kept out by what the page shows now.
    async fn assert_open_to_all(&self) {
        assert_eq!(self.browser.barriers().await, Vec::<String>::new());
    }
}

/// A daemon that serves at this address, and where that is.
async fn serve(place: &Place, api: &Server, address: &str, http: &str) -> (Daemon, String) {
    place.configure(&api.url(), &format!("{}[http]\nlisten = \"{address}\"\n{http}", publish(place)));
    let daemon = Daemon::spawn_with(place, &PATIENT);
    daemon.until_logged("started").await;
    let url = format!("{}/", Caller::of(&daemon).await.base);
    (daemon, url)
}

/// An expression: whether the list has a row that begins with `id` and has `word` in it.
fn row(id: &str, word: &str) -> String {
    format!(
        "[...document.querySelectorAll('#watches tbody tr')].some((row) =>
         row.querySelector('th a').innerText === {id:?} && row.innerText.includes({word:?}))"
    )
}

const IDS: &str = "return [...document.querySelectorAll('#watches tbody th a')].map((a) => a.innerText)";

#[tokio::test(flavor = "multi_thread")]
async fn watches_appear_and_settle_without_a_reload() {
    let Some(scene) = Scene::set("").await else { return };
    let browser = &scene.browser;
    browser.look((1360, 900), false).await;
    browser.open(&scene.url).await;
    browser.until("document.querySelector('#watches .empty')").await;
    browser.run("window.never = 'reloaded'").await;
    scene.add(&["held_1", HOSTILE]).await;
    browser.until(&row("held_1", "processing")).await;
    browser.until(&row(HOSTILE, "processing")).await;

    // What the reader does while it changes: the focus, a selection, something opened.
    browser
        .run(
            "document.querySelector('#pulse details').open = true;
             document.querySelector('#watches tbody a').focus();
             getSelection().selectAllChildren(document.querySelector('#watches-title'));",
        )
        .await;
    let focused = browser.run("return document.activeElement.innerText").await;
    scene.add(&["active_1"]).await;
    browser.until(&row("active_1", "active")).await;
    browser.until("document.querySelector('#figures a[href*=settled] b').innerText === '1'").await;
    browser.until("document.querySelector('#pulse figcaption').innerText.startsWith('1 settled')").await;
    browser.until("document.querySelector('#waits tbody th').innerText === 'image'").await;
    let kept = "return [document.activeElement.innerText, String(getSelection()), window.never,
                        document.querySelector('#pulse details').open]";
    assert_eq!(browser.run(kept).await, serde_json::json!([focused, "Watches", "reloaded", true]));

    filters(&scene).await;
    scene.go("#/watches").await;
    browser.until("document.querySelectorAll('#watches tbody tr').length === 3").await;
    browser.photograph("dashboard.png").await;
    scene.assert_open_to_all().await;
    browser.look((1360, 900), true).await;
    browser.photograph("dashboard-dark.png").await;
    scene.assert_open_to_all().await;
    browser.look((360, 900), false).await;
    browser.until("document.documentElement.scrollWidth <= innerWidth").await;
    browser.photograph("dashboard-phone.png").await;
    scene.assert_open_to_all().await;
    scene.assert_quiet().await;
}

async fn filters(scene: &Scene) {
    let browser = &scene.browser;
    browser.write("#watches [name=search]", "eld_").await;
    browser.until("document.querySelectorAll('#watches tbody tr').length === 1").await;
    assert_eq!(browser.run(IDS).await, serde_json::json!(["held_1"]));
    assert_eq!(browser.run("return location.hash").await, "#/watches?search=eld_");
    browser.press(ESCAPE).await;
    browser.until("document.querySelectorAll('#watches tbody tr').length === 3").await;
    browser.click("#figures a[href*=settled]").await;
    browser.until("document.querySelectorAll('#watches tbody tr').length === 1").await;
    assert_eq!(browser.run(IDS).await, serde_json::json!(["active_1"]));
    assert_eq!(browser.run("return document.querySelector('#watches [name=state]').value").await, "settled");
    scene.go("#/watches?status=none-such").await;
    browser.until("document.querySelector('#watches .empty')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_polled_cancelled_and_its_delivery_retried_by_hand() {
    let Some(scene) = Scene::set("").await else { return };
    let browser = &scene.browser;
    browser.look((1360, 1300), false).await;
    browser.open(&scene.url).await;
    scene.add(&["held_1", HOSTILE]).await;
    browser.until(&row("held_1", "processing")).await;

    poll_now(&scene).await;
    retry(&scene).await;
    cancel(&scene).await;
    scene.assert_quiet().await;
}

async fn poll_now(scene: &Scene) {
    let browser = &scene.browser;
    scene.go("#/watch/held_1").await;
    browser.until("document.querySelector('#watch .heading')?.innerText.includes('processing')").await;
    let metadata = browser.run("return document.querySelector('#watch pre').innerText").await;
    assert!(metadata.as_str().unwrap().contains("12345678901234567890"), "{metadata}");
    scene.released.store(true, Ordering::Relaxed);
    browser.click("#watch [data-action=poll]").await;
    browser.until("document.querySelector('#watch .heading').innerText.includes('active')").await;
    browser.until("document.querySelector('#said').innerText === 'held_1 is now active.'").await;
}

async fn retry(scene: &Scene) {
    let browser = &scene.browser;
    let attempt = |number: u32, how: &str| {
        format!(
            "[...document.querySelectorAll('.timeline .what')].some(({{ innerText: text }}) =>
             text.startsWith('Attempt {number} ') && text.includes('to publish: {how}'))"
        )
    };
    browser.until(&attempt(1, "refused (100)")).await;
    let told = browser.run("return document.querySelector('#watch .told').innerText").await;
    assert!(told.as_str().unwrap().contains("given up on after 1 attempt"), "{told}");
    browser.run("document.querySelectorAll('#watch details').forEach((details) => { details.open = true })").await;
    let output = browser.run("return [...document.querySelectorAll('.timeline pre')].at(-2).innerText").await;
    assert_eq!(output.as_str().unwrap().trim(), "<b onclick=alert(2)>stdout</b>");
    let stations = browser.run("return document.querySelector('.timeline').innerText").await;
    for station in [
        "Added",
        "First poll",
        "processing seen first",
        "Settled: active, after 2 polls",
        "Event asset.active",
        "no room",
    ] {
        assert!(stations.as_str().unwrap().contains(station), "{station}: {stations}");
    }
    browser.photograph("dashboard-watch.png").await;
    scene.assert_open_to_all().await;

    std::fs::write(scene.place.path("room"), "").unwrap();
    browser.click("#watch .told [data-action=retry]").await;
    browser.until(&attempt(2, "delivered (0)")).await;
    browser.until("document.querySelector('#watch .delivery').innerText.includes('delivered')").await;
    let open = browser.run("return document.querySelector('.timeline details').open").await;
    assert_eq!(open, true, "what was opened stays open");
    scene.go("#/deliveries?state=delivered").await;
    browser.until("document.querySelector('#deliveries tbody tr')?.innerText.includes('held_1')").await;
}

/// By the keyboard alone.
async fn cancel(scene: &Scene) {
    let browser = &scene.browser;
    scene.released.store(false, Ordering::Relaxed);
    browser.press("/").await;
    browser.until("document.activeElement === document.querySelector('#watches [name=search]')").await;
    browser.press("<img").await;
    browser.until("document.querySelectorAll('#watches tbody tr').length === 1").await;
    browser.press(&[DOWN, ENTER].concat()).await;
    browser.until("document.activeElement === document.querySelector('#watch-title')").await;
    assert_eq!(browser.run("return document.querySelector('#watch-title').innerText").await, HOSTILE);
    browser.press(&[TAB, TAB, ENTER].concat()).await;
    browser.until("document.querySelector('#ask').open").await;
    // The harmless choice has the focus, and Escape is harmless too.
    browser.press(ESCAPE).await;
    browser.until("!document.querySelector('#ask').open && document.activeElement.dataset.action === 'cancel'").await;
    assert_eq!(scene.place.state(HOSTILE).as_deref(), Some("waiting"));
    browser.press(ENTER).await;
    browser.until("document.activeElement === document.querySelector('#ask-no')").await;
    browser.press(&[TAB, ENTER].concat()).await;
    browser.until("document.querySelector('#watch .heading').innerText.includes('cancelled')").await;
    assert_eq!(scene.place.state(HOSTILE).as_deref(), Some("cancelled"));
    browser.until("document.activeElement === document.querySelector('#watch-title')").await;
    browser.press(ESCAPE).await;
    browser.until("location.hash.startsWith('#/watches') && !document.querySelector('#watches').hidden").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_javascript_cannot_hold_are_shown_as_they_are() {
    let Some(scene) = Scene::set("").await else { return };
    let browser = &scene.browser;
    scene.add(&["active_vast"]).await;
    scene.place.until_state("active_vast", "settled").await;
    browser.open(&format!("{}#/watch/active_vast", scene.url)).await;
    browser.until("document.querySelector('#watch .timeline') ?? document.querySelector('#watch .problem')").await;
    let told = browser.run("return document.querySelector('#watch .rows').textContent").await;
    for exact in [
        "9007199254740993 × 9223372036854775807",
        "9,007,199,254,740,995 s",
        "9,007,199,254,740,997",
        "\"n\": 12345678901234567890",
        "\"frames\": 9007199254740997",
    ] {
        assert!(told.as_str().unwrap().contains(exact), "{exact}: {told}");
    }
    scene.assert_quiet().await;
}

/// Whoever dictates, or cannot see, works with it as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_again_is_heard_again_and_the_key_that_searches_can_be_turned_off() {
    let Some(scene) = Scene::set("").await else { return };
    let browser = &scene.browser;
    browser.look((1360, 900), false).await;
    browser.open(&scene.url).await;
    scene.add(&["held_1"]).await;
    browser.until(&row("held_1", "processing")).await;
    let finding = "document.activeElement === document.querySelector('#watches [name=search]')";
    browser.press("/").await;
    browser.until(finding).await;
    browser.click("#slash").await;
    browser.open(&scene.url).await;
    browser.until(&row("held_1", "processing")).await;
    browser.press("/").await;
    assert_eq!(browser.run(&format!("return {finding}")).await, false, "it stays off");
    browser.click("#slash").await;
    browser.run("document.activeElement.blur()").await;
    browser.press("/").await;
    browser.until(finding).await;

    scene.go("#/watch/held_1").await;
    browser.until("document.querySelector('#watch [data-action=poll]')").await;
    browser
        .run(
            "window.heard = [];
             const said = document.querySelector('#said');
             new MutationObserver(() => { if (said.innerText !== '') heard.push(said.innerText); })
                 .observe(said, { childList: true, subtree: true, characterData: true });",
        )
        .await;
    browser.click("#watch [data-action=poll]").await;
    browser.until("heard.length === 1").await;
    browser.click("#watch [data-action=poll]").await;
    browser.until("heard.length === 2 && heard[0].startsWith('It is due now') && heard[0] === heard[1]").await;
    scene.assert_quiet().await;
}

/// An account that nobody polls is late for ever, and one that the API has asked for patience until that is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_called_too_low_only_where_it_is_the_rate() {
    let accounts = "[accounts.slow]\nkey_file = \"key\"\nrate = 0.01\n";
    let Some(scene) = Scene::set(accounts).await else { return };
    let browser = &scene.browser;
    scene.add(&["busy"]).await;
    scene.place.until("SELECT count(*) FROM accounts WHERE name = 'default' AND held_until IS NOT NULL", 1).await;
    let late = |account: &str, asset: &str| {
        let due = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - 7200000";
        let insert = format!(
            "INSERT INTO watches (asset_id, account, due_at)
             SELECT '{asset}_' || value, '{account}', {due} FROM json_each('[1,2,3,4,5]')"
        );
        scene.place.database().execute_batch(&insert).unwrap();
    };
    late("default", "held");
    late("nobody", "unnamed");
    browser.open(&scene.url).await;
    browser.until("document.querySelector('#figures b.late')?.innerText.startsWith('2 h')").await;
    let alarms = "[...document.querySelectorAll('#alarms li')].map((item) => item.innerText)";
    let told = browser.run(&format!("return {alarms}")).await;
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    assert!(told[0].as_str().unwrap().starts_with("Account nobody: the configuration does not name it"), "{told}");

    late("slow", "held_slowly");
    browser.until(&format!("{alarms}.length === 2")).await;
    let told = browser.run(&format!("return {alarms}")).await;
    assert!(told.to_string().contains("Account slow: the watch that has waited longest was due 2 h"), "{told}");
    browser.photograph("dashboard-late.png").await;
    scene.assert_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_asks_for_the_token_and_keeps_it_in_the_tab() {
    let Some(scene) = Scene::set("token_file = \"token\"\n").await else { return };
    let browser = &scene.browser;
    scene.add(&["active_1"]).await;
    browser.open(&scene.url).await;
    browser.until("document.querySelector('#token').open").await;
    browser.press(&["wrong", ENTER].concat()).await;
    browser.until("document.querySelector('#token').open && document.querySelector('#token-text').innerText.includes('does not accept')").await;
    browser.press(&[TOKEN, ENTER].concat()).await;
    browser.until(&row("active_1", "active")).await;
    let places = "return [location.href, document.cookie, localStorage.length, sessionStorage.length, document.querySelector('#token-value').value]";
    assert_eq!(browser.run(places).await, serde_json::json!([format!("{}", scene.url), "", 0, 1, ""]));
    let refused = |line: &String| line.contains("401 (Unauthorized)");
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(refused), "{complaints:?}");

    browser.click("#forget").await;
    browser.open(&scene.url).await;
    browser.until("document.querySelector('#token').open && !document.querySelector('#watches tbody')").await;
    assert_eq!(browser.run("return sessionStorage.length").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_gone_is_said_and_found_again() {
    let Some(mut scene) = Scene::set("").await else { return };
    scene.add(&["active_1"]).await;
    scene.browser.open(&scene.url).await;
    scene.browser.until(&row("active_1", "active")).await;
    scene.browser.run("window.never = 'reloaded'").await;
    scene.daemon.kill().await;
    let lost = "document.body.classList.contains('stale') && document.querySelector('#lost').innerText.includes('as it was at')";
    scene.browser.until(lost).await;
    assert_eq!(
        scene.browser.run("return document.querySelectorAll('#watches tbody tr').length").await,
        1,
        "still readable"
    );
    let address = scene.url.trim_start_matches("http://").trim_end_matches('/');
    (scene.daemon, _) = serve(&scene.place, &scene.api, address, "").await;
    // As a click, but for that it may have been found by itself meanwhile, and then there is nothing to click on.
    scene.browser.run("document.querySelector('[data-action=reconnect]').click()").await;
    scene.add(&["active_2"]).await;
    scene.browser.until(&row("active_2", "active")).await;
    scene.browser.until("!document.body.classList.contains('stale') && document.querySelector('#lost').hidden").await;
    assert_eq!(scene.browser.run("return window.never").await, "reloaded");
}

/// The browser notes a request when it ends: a stream that was left open has no entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_nobody_looks_at_asks_nothing() {
    let Some(scene) = Scene::set("").await else { return };
    scene.browser.open(&scene.url).await;
    scene.browser.until("document.body.classList.contains('live')").await;
    scene
        .browser
        .run(
            "window.times = [];
             addEventListener('visibilitychange', () => times.push(performance.now()), { capture: true });",
        )
        .await;
    let meanwhile = async {
        scene.add(&["active_1"]).await;
        scene.place.until_state("active_1", "settled").await;
    };
    scene.browser.elsewhere(meanwhile).await;
    scene.browser.until(&row("active_1", "active")).await;
    let requests = "const [left, back] = times;
        const all = performance.getEntriesByType('resource');
        return [times.length, all.filter(({ startTime: at }) => at > left && at < back).map(({ name }) => name),
                all.some(({ name, responseEnd: end }) => name.endsWith('/stream') && end < back)]";
    assert_eq!(scene.browser.run(requests).await, serde_json::json!([2, [], true]));
    scene.assert_quiet().await;
}
