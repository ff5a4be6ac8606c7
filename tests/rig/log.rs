//! The lines a program has printed, and waiting for one of them.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Collects lines as they come. Cheap to clone: all clones are the same log.
#[derive(Clone, Default)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    /// A log fed by a thread that reads `source` to its end.
    pub fn follow(source: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let feed = log.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while matches!(source.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                feed.lock().lines.push(text);
                feed.shared.grown.notify_all();
            }
            feed.lock().ended = true;
            feed.shared.grown.notify_all();
        });
        log
    }

    /// Waits for a line that holds `pattern` (`*` stands for anything); that line.
    pub fn wait(&self, pattern: &str, within: Duration) -> String {
        self.wait_from(0, pattern, within).1
    }

    /// As [`wait`](Self::wait), looking at line `from` and later; the line's number plus one as well.
    pub fn wait_from(&self, from: usize, pattern: &str, within: Duration) -> (usize, String) {
        let deadline = Instant::now() + within;
        let mut at = from;
        let mut lines = self.lock();
        loop {
            while let Some(line) = lines.lines.get(at) {
                at += 1;
                if holds(line, pattern) {
                    return (at, line.clone());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.ended {
                let why = if lines.ended {
                    "the program closed its output"
                } else {
                    "time is over"
                };
                let tail = lines.lines[lines.lines.len().saturating_sub(40)..].join("\n");
                drop(lines);
                panic!(
                    "no line '{pattern}' from line {from} on, {why} ({within:?}); the last lines:\n{tail}"
                );
            }
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How many lines there are by now: a mark for [`wait_from`](Self::wait_from).
    pub fn mark(&self) -> usize {
        self.lock().lines.len()
    }

    /// How many lines from `from` on hold `pattern` by now.
    pub fn count(&self, from: usize, pattern: &str) -> usize {
        self.lock().lines[from..]
            .iter()
            .filter(|line| holds(line, pattern))
            .count()
    }

    /// All lines by now.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Waits until the program has closed its output; all lines.
    pub fn to_end(&self, within: Duration) -> Vec<String> {
        let deadline = Instant::now() + within;
        let mut lines = self.lock();
        while !lines.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the output is still open after {within:?}");
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        lines.lines.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `line` holds the parts of `pattern` between its stars, in order.
fn holds(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    for part in pattern.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_keep_the_order() {
        assert!(holds(
            "Tunnel web is open on server port 80",
            "Tunnel * is open on * 80"
        ));
        assert!(!holds(
            "Tunnel web is open on server port 80",
            "is open*Tunnel"
        ));
        assert!(holds("anything", ""));
    }

    #[test]
    #[should_panic(expected = "no line 'never'")]
    fn a_line_that_never_comes_is_a_failure() {
        Log::follow(&b"one\ntwo\n"[..]).wait("never", Duration::from_secs(5));
    }
}
