//! `wait`: blocks until watches have ended. Beside a daemon it only looks; alone it is the daemon in small.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::engine::{CALLBACK_TIMEOUT, Engine, EngineError};
use crate::config::Settings;
use crate::control::{Control, UnpolledAccount};
use crate::event::CALLBACK;
use crate::pace::Closure;
use crate::signal::Signals;
use crate::store::{Filter, Outstanding, StoreError};
use crate::watch::{State, Watch};

/// How often the database is looked at. Reading its version costs some microseconds.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is asked whether a daemon is alive.
const ASK: Duration = Duration::from_secs(1);

/// What is waited for.
#[derive(Clone, Debug, Default)]
pub struct WaitOptions {
    /// The watches, each as often as it was asked for; none when a batch is waited for.
    pub watches: Vec<i64>,
    /// All watches of this batch, those included that are added meanwhile.
    pub batch: Option<String>,
    /// The longest to wait.
    pub timeout: Option<Duration>,
    /// Whether one that has ended is enough.
    pub any: bool,
}

/// Why the waiting ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All that was waited for has ended.
    Ended,
    /// The timeout ran out.
    TimedOut,
    /// A signal: INT, TERM, or HUP, when its terminal was closed.
    Interrupted,
    /// The API refuses the key of an account for which watches wait; its words.
    Unauthorized(String),
    /// What has not ended is of an account that nobody polls for, so nothing more would happen.
    Unpolled(UnpolledAccount),
}

/// What the waiting brought.
#[derive(Clone, Debug)]
pub struct Waited {
    /// Why it ended.
    pub ending: Ending,
    /// The watches as they stand, each once, in the order in which they were asked for first.
    pub watches: Vec<Watch>,
    /// What was not delivered, when nobody else is there to do it.
    pub left: Vec<Outstanding>,
}

/// Waits for watches, and shows them to `view` whenever something has changed.
///
/// # Errors
/// When no daemon is alive and the line cannot be set up here, or the database fails.
pub async fn wait(
    control: &Control,
    settings: &Settings,
    options: &WaitOptions,
    mut view: impl FnMut(&[Watch]),
) -> anyhow::Result<Waited> {
    let mut signals = Signals::take_to_stop()?;
    let mut waiter =
        Waiter { control, settings, options, engine: None, polled: Vec::new(), asked: None, said: BTreeSet::new() };
    let ending = tokio::select! {
        biased;
        () = signals.stopped() => Ok(Ending::Interrupted),
        lost = control.store.lost() => Err(lost.into()),
        ending = waiter.ending(&mut view) => ending,
    };
    // Whatever it was, what we hold is handed back first.
    let (ending, left) = match (ending, waiter.engine.take()) {
        (Ok(ending), Some(engine)) => {
            let left = wind_up(control, settings, options, (&ending, engine), &mut signals).await?;
            (ending, left)
        }
        (Err(error), Some(engine)) => {
            engine.stop(Duration::ZERO, signals.stopped()).await?;
            return Err(error);
        }
        (ending, None) => (ending?, Vec::new()),
    };
    let watches = in_order(control, options).await?;
    view(&watches);
    Ok(Waited { ending, watches, left })
}

fn ids(watches: &[Watch]) -> Vec<i64> {
    watches.iter().map(|watch| watch.id).collect()
}

/// Makes the first attempts, if there is time, and hands everything back; what is left is somebody else's.
async fn wind_up(
    control: &Control,
    settings: &Settings,
    options: &WaitOptions,
    (ending, engine): (&Ending, Engine),
    signals: &mut Signals,
) -> anyhow::Result<Vec<Outstanding>> {
    let grace = if *ending == Ending::Interrupted { Duration::ZERO } else { settings.grace };
    if matches!(ending, Ending::Ended | Ending::Unpolled(_)) {
        tokio::select! {
            biased;
            () = signals.stopped() => {}
            tried = first_attempts(control, settings, options) => tried?,
        }
    }
    engine.stop(grace, signals.stopped()).await?;
    let mut left = control.store.outstanding(ids(&in_order(control, options).await?)).await?;
    if options.batch.is_some() {
        // The end of a batch is no watch's, so it is not ours to deliver.
        left.extend(control.store.outstanding_of_batches().await?);
    }
    Ok(left)
}

/// A locked or full database is waited out.
fn is_passing(error: &anyhow::Error) -> bool {
    let engine = error.downcast_ref::<EngineError>();
    let store = error.downcast_ref::<StoreError>();
    matches!(store, Some(StoreError::Unavailable(_)))
        || matches!(engine, Some(EngineError::Store(StoreError::Unavailable(_))))
}

/// Makes the first attempt of each delivery; the further ones are left to a daemon.
///
/// An attempt that cannot be made yet, because its hook asked to be left alone or something stands before it, is left too.
async fn first_attempts(control: &Control, settings: &Settings, options: &WaitOptions) -> Result<(), StoreError> {
    let timeouts = settings.hooks.iter().map(|hook| hook.timeout);
    let longest = timeouts.max().unwrap_or_default().max(CALLBACK_TIMEOUT);
    let deadline = Instant::now() + longest + settings.grace;
    let watches = ids(&in_order(control, options).await?);
    while Instant::now() < deadline {
        let outstanding = control.store.outstanding(watches.clone()).await?;
        let known = |hook: &str| settings.hooks.iter().any(|known| known.subscription.hook == hook);
        let ours = |hook: &str| hook.starts_with(CALLBACK) || known(hook);
        if !outstanding.iter().any(|hook| hook.untried > 0 && ours(&hook.hook)) {
            break;
        }
        sleep(LOOK).await;
    }
    Ok(())
}

async fn in_order(control: &Control, options: &WaitOptions) -> Result<Vec<Watch>, StoreError> {
    if options.batch.is_some() {
        let mut watches = control.list(Filter { batch: options.batch.clone(), ..Filter::default() }).await?;
        watches.reverse();
        return Ok(watches);
    }
    let filter = Filter { ids: Some(options.watches.clone()), ..Filter::default() };
    let mut watches = control.list(filter).await?;
    // From behind, so that the first place stands of one that was asked for twice.
    let places: HashMap<i64, usize> = options.watches.iter().enumerate().rev().map(|(at, id)| (*id, at)).collect();
    watches.sort_by_key(|watch| places.get(&watch.id));
    Ok(watches)
}

struct Waiter<'a> {
    control: &'a Control,
    settings: &'a Settings,
    options: &'a WaitOptions,
    /// What polls, while nobody else does.
    engine: Option<Engine>,
    /// The watches that it polls.
    polled: Vec<i64>,
    /// When it was asked last whether a daemon is alive.
    asked: Option<Instant>,
    /// The accounts of which it was said that the configuration does not name them.
    said: BTreeSet<String>,
}

impl Waiter<'_> {
    async fn ending(&mut self, view: &mut impl FnMut(&[Watch])) -> anyhow::Result<Ending> {
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        loop {
            match self.look(view, deadline).await {
                Ok(None) => {}
                Ok(Some(ending)) => return Ok(ending),
                Err(error) if is_passing(&error) => sleep(ASK).await,
                Err(error) => return Err(error),
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(Ending::TimedOut);
            }
        }
    }

    /// Looks once, and waits until it is worth another look.
    async fn look(
        &mut self,
        view: &mut impl FnMut(&[Watch]),
        deadline: Option<Instant>,
    ) -> anyhow::Result<Option<Ending>> {
        let version = self.control.store.version().await?;
        let watches = in_order(self.control, self.options).await?;
        view(&watches);
        if self.have_ended(&watches) {
            return Ok(Some(Ending::Ended));
        }
        self.see_to_polling(ids(&watches)).await?;
        if let Some(said) = self.unauthorized(&watches).await? {
            return Ok(Some(Ending::Unauthorized(said)));
        }
        if let Some(account) = self.unpolled(&watches) {
            return Ok(Some(Ending::Unpolled(account)));
        }
        let in_time = self.changed(version, deadline).await?;
        Ok((!in_time).then_some(Ending::TimedOut))
    }

    fn have_ended(&self, watches: &[Watch]) -> bool {
        let ended = watches.iter().filter(|watch| watch.state != State::Waiting).count();
        if self.options.any { ended > 0 } else { ended == watches.len() }
    }

    /// Waits for a change, or for the next time to ask for a daemon; false when the deadline comes first.
    async fn changed(&mut self, version: i64, deadline: Option<Instant>) -> Result<bool, StoreError> {
        let ask = self.asked.map_or_else(Instant::now, |asked| asked + ASK);
        while self.control.store.version().await? == version && Instant::now() < ask {
            let look = Instant::now() + LOOK;
            sleep_until(deadline.map_or(look, |deadline| deadline.min(look))).await;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// However many wait for an asset, it is polled once: by the daemon if one is alive, and else under leases.
    async fn see_to_polling(&mut self, watches: Vec<i64>) -> Result<(), EngineError> {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let daemon = self.control.daemon_is_alive().await?;
        if !daemon && (self.engine.is_none() || self.polled != watches) {
            // A batch has grown: what is known of the accounts goes over to an engine for all of it.
            let only = Some(watches.clone());
            let next = Engine::start(self.control, self.settings, only, self.engine.as_ref()).await?;
            self.polled = watches;
            if let Some(engine) = self.engine.replace(next) {
                engine.stop(self.settings.grace, std::future::pending()).await?;
            }
        } else if daemon && let Some(engine) = self.engine.take() {
            engine.stop(self.settings.grace, std::future::pending()).await?;
        }
        Ok(())
    }

    /// An account that the configuration does not name, where only such ones are left and nobody else is there to poll. Of
    /// each it is said before: a daemon may have another configuration, or other watches go on.
    fn unpolled(&mut self, watches: &[Watch]) -> Option<UnpolledAccount> {
        let waiting = || watches.iter().filter(|watch| watch.state == State::Waiting);
        let is_named = |watch: &&Watch| self.control.names_account(&watch.account);
        let unnamed: BTreeSet<&str> = waiting().filter(|watch| !is_named(watch)).map(|watch| &*watch.account).collect();
        let first = unnamed.first()?;
        if self.engine.is_some() && !waiting().any(|watch| is_named(&watch)) {
            return Some(UnpolledAccount { name: (*first).to_owned() });
        }
        for name in unnamed {
            if self.said.insert(name.to_owned()) {
                tracing::warn!(
                    account = name,
                    "the configuration names no account {name:?}; its watches end only if a daemon polls them"
                );
            }
        }
        None
    }

    /// Whether the API refuses the key of an account for which watches wait, and what it says.
    ///
    /// # Errors
    /// When whoever answers there cannot show a valid certificate.
    async fn unauthorized(&self, watches: &[Watch]) -> anyhow::Result<Option<String>> {
        let now = self.control.clock.now();
        let refused = |row: &crate::store::AccountRow| {
            // What an earlier process has found is tried again first: then the next probe is not in the future.
            row.next_probe_at.is_some_and(|probe| probe > now)
                && matches!(row.closure.as_deref(), Some("unauthorized" | "unpaid" | "untrusted"))
                && watches.iter().any(|watch| watch.state == State::Waiting && watch.account == row.name)
        };
        let Some(row) = self.control.store.accounts().await?.into_iter().find(refused) else { return Ok(None) };
        let said = format!("account `{}`: {}", row.name, row.last_error.unwrap_or_default());
        match row.closure.as_deref().and_then(Closure::parse) {
            Some(Closure::Untrusted) => anyhow::bail!("{said}: the API's address has no valid certificate"),
            _ => Ok(Some(said)),
        }
    }
}
