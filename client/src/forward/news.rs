//! What is said about the way to the server, and how often: pure, time is an argument.
//!
//! ```text
//!  failed ─────── once per reason; the same after 1, 2, 4 .. 60 minutes, with the number of attempts
//!  turned_away ── the first since it worked; then after 1, 2, 4 .. 60 minutes, with their number
//!  connected ──── nothing has failed for STEADY ─> tick: once, with totals; what fails next is news
//! ```

use std::time::{Duration, Instant};

use minitcptunnel_common::log::Say;

use crate::report::Reporter;

/// Semantics: a server that has taken connections for this long, and nothing failed meanwhile, works. At once would be
/// too soon: with TLS 1.3 a client hears only after its handshake that it is refused, and a server that comes and
/// goes must not make each attempt news.
const STEADY: Duration = Duration::from_secs(10);

/// The one "reason" of visitors: what they are told apart by is said with each.
const VISITOR: &str = "visitor";

/// Remembers what was said.
#[derive(Default)]
pub(super) struct News {
    failures: Reporter,
    visitors: Reporter,
    outage: Option<Outage>,
}

/// Since something has failed, until the server works.
struct Outage {
    /// When the first attempt failed; before that, when the first visitor was turned away.
    since: Instant,
    /// When an attempt failed last.
    until: Instant,
    failures: u64,
    turned_away: u64,
    /// The latest failure, in words.
    why: String,
    /// When it took a connection after that.
    works: Option<Instant>,
}

/// An outage that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// From the first failed attempt to the last. Where nobody had a use for the server nobody tried.
    pub(super) within: Duration,
    pub(super) failures: u64,
    pub(super) turned_away: u64,
}

impl News {
    fn outage(&mut self, now: Instant) -> &mut Outage {
        self.outage.get_or_insert_with(|| Outage {
            since: now,
            until: now,
            failures: 0,
            turned_away: 0,
            why: String::new(),
            works: None,
        })
    }

    /// An attempt failed for this reason: what to say about it.
    pub(super) fn failed(&mut self, reason: &str, now: Instant) -> Say {
        let outage = self.outage(now);
        if outage.failures == 0 {
            // A visitor may have been turned away before, while the first attempt hung.
            outage.since = now;
        }
        outage.failures += 1;
        outage.until = now;
        outage.works = None;
        reason.clone_into(&mut outage.why);
        self.failures.failed(reason, now)
    }

    /// A local connection is closed for want of the server: what to say about it.
    pub(super) fn turned_away(&mut self, now: Instant) -> Say {
        self.outage(now).turned_away += 1;
        self.visitors.failed(VISITOR, now)
    }

    /// The server has taken a connection.
    pub(super) fn connected(&mut self, now: Instant) {
        if let Some(outage) = &mut self.outage {
            outage.works.get_or_insert(now);
        }
    }

    /// What failed last, while it does.
    pub(super) fn why(&self) -> Option<&str> {
        let outage = self.outage.as_ref()?;
        (outage.works.is_none() && !outage.why.is_empty()).then_some(outage.why.as_str())
    }

    /// When [`tick`](Self::tick) will have something to tell.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.outage.as_ref()?.works? + STEADY)
    }

    /// The outage that is over now, once. The next failure is news, whatever its reason.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Over> {
        if self.deadline()? > now {
            return None;
        }
        let outage = self.outage.take()?;
        self.failures.succeeded();
        self.visitors.succeeded();
        Some(Over {
            within: outage.until.saturating_duration_since(outage.since),
            failures: outage.failures,
            turned_away: outage.turned_away,
        })
    }
}

#[cfg(test)]
#[path = "news/tests.rs"]
mod tests;
