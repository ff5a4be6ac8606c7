//! Says why there is no connection, but not the same thing every second.

use std::time::{Duration, Instant};

use minitcptunnel_common::log::{RateLimited, Say};

/// A failure that stays the same is told again, with a count, at most this often.
const REPEAT: Duration = Duration::from_secs(60);

/// Remembers the last failure.
#[derive(Default)]
pub(super) struct Reporter {
    last: Option<(String, RateLimited)>,
}

impl Reporter {
    /// An attempt failed for this reason: what to say about it.
    pub(super) fn failed(&mut self, reason: &str, now: Instant) -> Say {
        match &mut self.last {
            Some((last, limited)) if last == reason => limited.event(now),
            last => {
                let mut limited = RateLimited::new(REPEAT);
                let say = limited.event(now);
                *last = Some((reason.to_owned(), limited));
                say
            }
        }
    }

    /// An attempt succeeded: the next failure is news, whatever its reason.
    pub(super) fn succeeded(&mut self) {
        self.last = None;
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
}
