//! Says why there is no connection, but not the same thing every second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use minitcptunnel_common::log::{RateLimited, Say};

/// A failure that stays the same is told again, with a count, at most this often.
const REPEAT: Duration = Duration::from_secs(60);

/// Reasons that are remembered. A server behind a bad link fails in a few ways in turn, and taking turns must not
/// make each of them news again.
const REASONS: usize = 8;

/// Remembers the latest failures.
#[derive(Default)]
pub(super) struct Reporter {
    /// Oldest news first.
    reasons: VecDeque<(String, RateLimited)>,
}

impl Reporter {
    /// An attempt failed for this reason: what to say about it.
    pub(super) fn failed(&mut self, reason: &str, now: Instant) -> Say {
        if let Some((_, limited)) = self.reasons.iter_mut().find(|(known, _)| known == reason) {
            return limited.event(now);
        }
        if self.reasons.len() == REASONS {
            self.reasons.pop_front();
        }
        let mut limited = RateLimited::new(REPEAT);
        let say = limited.event(now);
        self.reasons.push_back((reason.to_owned(), limited));
        say
    }

    /// An attempt succeeded: the next failure is news, whatever its reason.
    pub(super) fn succeeded(&mut self) {
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
