//! What is shown on stderr while assets are waited for: a live line an asset on a terminal, else a line a change.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Output, note, plain, span, word};
use crate::clock::{Clock, Timestamp};
use crate::watch::{State, Watch};

/// More lines than this do not fit a terminal; the rest is counted in one.
const MOST_LINES: usize = 20;

/// The live lines at the foot of a terminal, and what is written above them. A clone is the same screen.
#[derive(Clone)]
pub struct Screen(MultiProgress);

impl Default for Screen {
    fn default() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }
}

/// To stderr; the live lines are taken away while it is written, so that they tear nothing and nothing tears them.
impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// Shows how watches stand.
pub struct Progress {
    shown: Shown,
    clock: Clock,
}

enum Shown {
    Nothing,
    /// The word that was printed last for each watch.
    Lines(HashMap<i64, String>),
    Live {
        lines: HashMap<i64, ProgressBar>,
        rest: ProgressBar,
        all: MultiProgress,
    },
}

impl Progress {
    /// Progress on `screen`, or none when it is to be quiet.
    pub fn new(output: &Output, screen: &Screen, clock: Clock) -> Self {
        let shown = match (output.quiet, stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines(HashMap::new()),
            (false, true) => {
                let all = screen.0.clone();
                let rest = all.add(ProgressBar::new_spinner().with_style(style("{msg}")));
                Shown::Live { lines: HashMap::new(), rest, all }
            }
        };
        Self { shown, clock }
    }

    /// Shows the watches as they stand now.
    pub fn show(&mut self, watches: &[Watch]) {
        let now = self.clock.now();
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Lines(printed) => {
                for watch in watches {
                    let word = word(watch);
                    if printed.get(&watch.id) != Some(&word) {
                        note(&format!("{} {word}", plain(&watch.asset_id)));
                        printed.insert(watch.id, word);
                    }
                }
            }
            Shown::Live { lines, rest, all } => {
                let mut left = watches.len();
                for watch in shown_first(watches) {
                    if lines.len() >= MOST_LINES && !lines.contains_key(&watch.id) {
                        continue;
                    }
                    left -= 1;
                    let line = lines.entry(watch.id).or_insert_with(|| new_line(all, rest));
                    draw(line, watch, now);
                }
                let waiting = watches.iter().filter(|watch| watch.state == State::Waiting).count();
                if left > 0 {
                    rest.set_message(format!("  … and {left} more; {waiting} of {} wait", watches.len()));
                }
            }
        }
    }

    /// Prints a line above what is shown.
    pub fn note(&self, text: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines(_) => note(text),
            // A line that cannot be drawn is only missed by whoever closed the terminal.
            Shown::Live { all, .. } => drop(all.println(text)),
        }
    }

    /// Leaves the lines as they are.
    pub fn end(self) {
        if let Shown::Live { lines, rest, .. } = self.shown {
            lines.into_values().for_each(|line| line.abandon());
            rest.finish_and_clear();
            // The cursor stands behind the last line.
            note("");
        }
    }
}

/// One piece of work that takes a while: a line on a terminal that goes away again, elsewhere nothing.
pub struct Meter(ProgressBar);

impl Meter {
    /// Shows `what`, and how long it takes, until it is dropped.
    pub fn new(what: &'static str, output: Output, screen: &Screen) -> Self {
        if output.quiet || !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = screen.0.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed}")));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(bar)
    }

    /// What is shown from now on; with a length, so much of which is reached.
    pub fn show(&self, what: &'static str, bytes: Option<(u64, u64)>) {
        self.0.set_message(what);
        if let Some((done, of)) = bytes {
            self.0.set_length(of);
            self.0.set_position(done);
            self.0.set_style(style("{spinner} {msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}"));
        } else {
            self.0.set_style(style("{spinner} {msg} {elapsed}"));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Those that wait are worth the lines.
fn shown_first(watches: &[Watch]) -> impl Iterator<Item = &Watch> {
    let (waiting, ended): (Vec<_>, Vec<_>) = watches.iter().partition(|watch| watch.state == State::Waiting);
    waiting.into_iter().chain(ended)
}

fn new_line(all: &MultiProgress, rest: &ProgressBar) -> ProgressBar {
    let line = all.insert_before(rest, ProgressBar::new_spinner().with_style(style("{spinner} {msg}")));
    line.enable_steady_tick(Duration::from_millis(250));
    line
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; a wrong one shows as the default style.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

fn draw(line: &ProgressBar, watch: &Watch, now: Timestamp) {
    let age = span(watch.created_at, watch.settled_at.unwrap_or(now));
    let (id, word, polls) = (plain(&watch.asset_id), word(watch), watch.polls);
    let polls = if polls == 1 { "1 poll".to_owned() } else { format!("{polls} polls") };
    if watch.state != State::Waiting {
        if !line.is_finished() {
            line.finish_with_message(format!("{id:<28} {word:<12} {age:>8}  {polls}"));
        }
        return;
    }
    let next = match (&watch.lease_owner, watch.due_at) {
        (Some(_), _) => "asking".into(),
        (None, Some(due)) if due > now => format!("next in {}", span(now, due)),
        (None, _) => "due".into(),
    };
    let trouble = watch.last_error.as_deref().map(|error| format!("  {}", plain(error))).unwrap_or_default();
    line.set_message(format!("{id:<28} {word:<12} {age:>8}  {polls}, {next}{trouble}"));
}
