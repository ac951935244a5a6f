//! `demo`: the real poller, relay and hooks on a temporary database, against a simulated API on loopback. It needs no key
//! and no network, and ends by itself.

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::cli::{Output, Progress, Screen, exit};
use crate::config::{self, Environment, Overrides, Settings};
use crate::control::{AddOptions, Control};
use crate::daemon::{self, Engine};
use crate::signal::Signals;
use crate::store::Filter;
use crate::watch::{State, Watch};
use world::{CAST, World};

/// Between two looks at the database.
const LOOK: Duration = Duration::from_millis(100);
/// It takes about 15 seconds; whatever keeps it longer than this is a fault.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs the demonstration; with `keep` it stays until it is interrupted.
///
/// # Errors
/// When there is no place for its files or no port for its servers.
pub async fn run(keep: bool, output: Output, screen: &Screen) -> anyhow::Result<u8> {
    let mut signals = Signals::take_to_stop()?;
    let stage = Stage::set().await?;
    output.say(&format!(
        "A simulated API and a webhook receiver listen on loopback; {} assets are watched.\n",
        CAST.len()
    ));
    let engine = Engine::start(&stage.control, &stage.settings, None, None).await?;
    let started = Instant::now();
    let code = tokio::select! {
        biased;
        () = signals.stopped() => exit::INTERRUPTED,
        code = stage.show(output, screen) => code?,
    };
    if code != exit::INTERRUPTED {
        stage.summarize(started.elapsed(), output).await?;
        if keep {
            stage.say_where(output);
            signals.stopped().await;
        }
    }
    engine.stop(stage.settings.grace, signals.stopped()).await?;
    Ok(code)
}

/// Everything that the demonstration is made of. The directory goes with it.
struct Stage {
    directory: tempfile::TempDir,
    world: World,
    settings: Settings,
    control: Control,
    watches: Vec<i64>,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("assetwatch-demo-").tempdir()?;
        let world = World::start().await.context("no port on loopback")?;
        let file = write_configuration(directory.path(), &world)?;
        let overrides = Overrides { config: Some(file), ..Overrides::default() };
        let settings = config::load(&overrides, &Environment::default())?;
        let control = daemon::open(&settings).await?;
        let options = AddOptions {
            account: "default".into(),
            metadata: Some(r#"{"demo":true}"#.into()),
            ..AddOptions::default()
        };
        let ids = CAST.iter().map(|role| role.asset_id.to_owned()).collect();
        let added = control.add(ids, &options).await?;
        let watches = added.into_iter().filter_map(|added| Some(added.watch?.id)).collect();
        Ok(Self { directory, world, settings, control, watches })
    }

    /// Shows what happens until everything has ended and everybody was told.
    async fn show(&self, output: Output, screen: &Screen) -> anyhow::Result<u8> {
        let mut progress = Progress::new(&output, screen, self.control.clock.clone());
        let deadline = Instant::now() + LONGEST;
        let mut received = 0;
        let code = loop {
            let watches = self.standing().await?;
            progress.show(&watches);
            for line in self.world.received(received) {
                progress.note(&line);
                received += 1;
            }
            let left = self.control.store.outstanding(self.watches.clone()).await?;
            if left.is_empty() && watches.iter().all(|watch| watch.state != State::Waiting) {
                let good = watches.iter().all(|watch| watch.state == State::Settled) && self.world.forged() == 0;
                break if good { exit::OK } else { exit::FAILURE };
            }
            if Instant::now() > deadline {
                anyhow::bail!("the demonstration did not end within {} s", LONGEST.as_secs());
            }
            sleep(LOOK).await;
        };
        progress.end();
        Ok(code)
    }

    async fn standing(&self) -> anyhow::Result<Vec<Watch>> {
        let filter = Filter { ids: Some(self.watches.clone()), ..Filter::default() };
        let mut watches = self.control.list(filter).await?;
        watches.reverse();
        Ok(watches)
    }

    async fn summarize(&self, took: Duration, output: Output) -> anyhow::Result<()> {
        let watches = self.standing().await?;
        let polls: i64 = watches.iter().map(|watch| watch.polls).sum();
        let settled = watches.iter().filter(|watch| watch.state == State::Settled).count();
        let commands = std::fs::read_to_string(self.published()).unwrap_or_default().lines().count();
        let world = self.world.counts();
        if output.json {
            output.object(&serde_json::json!({
                "seconds": took.as_secs_f64(), "watches": watches, "polls": polls, "answered_500": world.broken,
                "answered_429": world.throttled, "webhooks_verified": world.verified,
                "webhooks_forged": world.forged, "commands_run": commands,
            }))?;
            return Ok(());
        }
        output.line(&format!(
            "\n{settled} of {} assets settled in {:.0} s, with {polls} polls.",
            watches.len(),
            took.as_secs_f64()
        ))?;
        output.line(&format!(
            "The API also answered with 500 ({}×) and 429 ({}×); nobody noticed.",
            world.broken, world.throttled
        ))?;
        output.line(&format!("{} webhooks came with a valid signature, {} without.", world.verified, world.forged))?;
        output.line(&format!("The command hook ran for {commands} assets that became active."))?;
        Ok(())
    }

    fn published(&self) -> PathBuf {
        self.directory.path().join("published")
    }

    fn say_where(&self, output: Output) {
        let config = self.directory.path().join("assetwatch.toml");
        output.say(&format!(
            "\nIt goes on until Ctrl-C. In another terminal:\n  assetwatch --config {0} list\n  \
             assetwatch --config {0} show {1}\n  assetwatch --config {0} add ast_another",
            config.display(),
            CAST[0].asset_id,
        ));
    }
}

/// A configuration as an operator would write it, so that the demonstration runs through all of it.
fn write_configuration(directory: &Path, world: &World) -> anyhow::Result<PathBuf> {
    let file = directory.join("assetwatch.toml");
    std::fs::write(directory.join("api-key"), world::KEY)?;
    std::fs::write(directory.join("webhook-secret"), world::SECRET)?;
    let quoted = |path: PathBuf| toml::Value::String(path.display().to_string()).to_string();
    let text = format!(
        r#"database = {database}
grace = "5s"

[api]
url = "http://{api}"
key_file = {key}

[backoff]
initial = "700ms"
max = "3s"

[[hooks]]
name = "receiver"
on = ["settled", "abandoned"]
url = "http://{receiver}/assets"
secret_file = {secret}

[[hooks]]
name = "publish"
on = ["active"]
command = ["/bin/sh", "-c", 'echo "$HOOK_ASSET_ID $HOOK_URL" >> "$PUBLISHED"']
env = {{ PUBLISHED = {published} }}
"#,
        database = quoted(directory.join("assetwatch.db")),
        api = world.api,
        key = quoted(directory.join("api-key")),
        receiver = world.receiver,
        secret = quoted(directory.join("webhook-secret")),
        published = quoted(directory.join("published")),
    );
    std::fs::write(&file, text)?;
    Ok(file)
}
