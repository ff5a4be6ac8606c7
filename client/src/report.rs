//! Says why there is no connection, but not the same thing every second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use minitcptunnel_common::log::{RateLimited, Say};

/// A failure that stays the same is told again, with a count, after this long,
const REPEAT: Duration = Duration::from_secs(60);
/// and then after twice as long each time, up to this: a board that waits a month for its network fills no disk.
const RARELY: Duration = Duration::from_secs(3600);

/// Reasons that are remembered. A server behind a bad link fails in a few ways in turn, and taking turns must not
/// make each of them news again.
const REASONS: usize = 8;

/// Remembers the latest failures.
#[derive(Default)]
pub(crate) struct Reporter {
    /// Oldest news first.
    reasons: VecDeque<Known>,
}

struct Known {
    reason: String,
    repeat: Duration,
    limited: RateLimited,
}

impl Reporter {
    /// An attempt failed for this reason: what to say about it.
    pub(crate) fn failed(&mut self, reason: &str, now: Instant) -> Say {
        if let Some(known) = self.reasons.iter_mut().find(|known| known.reason == reason) {
            let say = known.limited.event(now);
            if say != Say::Nothing {
                known.repeat = (known.repeat * 2).min(RARELY);
                known.limited = RateLimited::new(known.repeat);
                // Only begins the longer interval: the event itself is in `say`.
                let _ = known.limited.event(now);
            }
            return say;
        }
        if self.reasons.len() == REASONS {
            self.reasons.pop_front();
        }
        let mut limited = RateLimited::new(REPEAT);
        let say = limited.event(now);
        self.reasons.push_back(Known {
            reason: reason.to_owned(),
            repeat: REPEAT,
            limited,
        });
        say
    }

    /// An attempt succeeded: the next failure is news, whatever its reason.
    pub(crate) fn succeeded(&mut self) {
        self.reasons.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_said_once_and_then_counted() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut reporter = Reporter::default();
        assert_eq!(reporter.failed("busy", at(0)), Say::Line);
        for s in 1..60 {
            assert_eq!(reporter.failed("busy", at(s)), Say::Nothing);
        }
        assert!(matches!(
            reporter.failed("busy", at(60)),
            Say::LineAfter(more) if more.count == 59
        ));
        assert_eq!(reporter.failed("gone", at(61)), Say::Line);
        reporter.succeeded();
        assert_eq!(reporter.failed("gone", at(62)), Say::Line);
    }

    #[test]
    fn a_day_of_the_same_failure_is_some_thirty_lines_and_counts_every_try() {
        let start = Instant::now();
        let mut reporter = Reporter::default();
        let (mut lines, mut told, mut last) = (0, 0, 0);
        for s in (0..86_400).step_by(15) {
            let mut said = |count| {
                (lines, told, last) = (lines + 1, told + 1 + count, s);
            };
            match reporter.failed("no address", start + Duration::from_secs(s)) {
                Say::Nothing => {}
                Say::Line => said(0),
                Say::LineAfter(more) => said(more.count),
            }
        }
        assert!((24..=32).contains(&lines), "{lines}");
        // All tries up to the last line.
        assert_eq!(told, last / 15 + 1);
    }

    #[test]
    fn reasons_that_take_turns_are_not_news_each_time() {
        let start = Instant::now();
        let mut reporter = Reporter::default();
        let said = (0..40)
            .filter(|n| reporter.failed(["busy", "gone"][n % 2], start) == Say::Line)
            .count();
        assert_eq!(said, 2);
        // However many there are, only so many are kept.
        for n in 0..100 {
            let _ = reporter.failed(&n.to_string(), start);
        }
        assert_eq!(reporter.reasons.len(), REASONS);
    }
}
