//! What happened, line by line, as a hash: two runs of a seed that differ anywhere have different ones.

use std::fmt::Write as _;
use std::time::Duration;

#[derive(Default)]
pub struct Trace {
    hash: u64,
    pub lines: usize,
    /// The text of the lines, when somebody wants to read it.
    kept: Option<String>,
    line: String,
}

impl Trace {
    pub fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, kept: keep.then(String::new), ..Self::default() }
    }

    pub fn note(&mut self, at: Duration, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        // Writing into a string cannot fail.
        let _ = writeln!(self.line, "{:>12} {what}", at.as_millis());
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if let Some(kept) = &mut self.kept {
            kept.push_str(&self.line);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn text(&self) -> &str {
        self.kept.as_deref().unwrap_or_default()
    }
}
