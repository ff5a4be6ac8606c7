//! How many spare data channels to have: pure, time and random bits are arguments.
//!
//! ```text
//!  open ─> opening ─ opened ─> idle ─ taken ─> (in use) ─ returned ─> idle
//!             └ failed: wait            └ closed by the server: it knows that fewer are enough
//!
//!  target:  keep ── a visitor found none: double ──> max      heartbeat without that: halfway back
//! ```
//!
//! There are two waits, each growing. A failure is forgiven by a visitor who was served: what we do works.
//! A server that closes what we want to keep is not: it would have to close again what each visitor makes
//! us open, and only time tells that it no longer does.
//!
//! Most visitors do not stay, and their channels serve again: one that was taken a moment ago counts
//! as if it were back, so that a crowd of short visits opens no channels but those that it needs at once.

use std::time::{Duration, Instant};

use minitcptunnel_common::backoff::{Backoff, Jitter};

/// Performance: how many are being opened at once; each is a handshake on a worker.
pub(super) const OPENING_MAX: usize = 4;
/// Performance: visitors who find no spare within this count as one crowd. What was opened for the
/// first of them is on its way, and what was dialled for the others will be spare when they have gone.
const CROWD: Duration = Duration::from_millis(50);

/// Performance: how long a channel in use counts as one that is about to be idle, at least.
const SOON: Duration = Duration::from_millis(100);

/// A wait that grows from one time to the next.
struct Wait {
    backoff: Backoff,
    until: Option<Instant>,
}

impl Wait {
    fn new((min, max): (Duration, Duration)) -> Self {
        Self {
            backoff: Backoff::new(min, max, Jitter::Equal),
            until: None,
        }
    }

    /// Several things may go wrong for one reason: that is one wait.
    fn begin(&mut self, now: Instant, random: u64) {
        if self.until.is_none() {
            self.until = Some(now + self.backoff.next(random));
        }
    }

    fn end_if_over(&mut self, now: Instant) {
        if self.until.is_some_and(|at| at <= now) {
            self.until = None;
        }
    }

    fn forgive(&mut self) {
        self.backoff.reset();
        self.until = None;
    }
}

/// The decisions.
pub(super) struct Plan {
    keep: usize,
    max: usize,
    /// Whether channels serve again.
    reuse: bool,
    /// As many are to be idle, or on the way to it.
    target: usize,
    idle: usize,
    opening: usize,
    /// The last time that the target was raised.
    raised: Option<Instant>,
    /// Whether it was since the last heartbeat.
    wanting: bool,
    /// After one that came to nothing.
    failed: Wait,
    /// After one that the server closed although we want to keep it.
    unwanted: Wait,
    /// That is forgotten when the server has closed none for this long behind the last wait...
    forget_after: Duration,
    /// ...which ended, or ends, then.
    unwanted_until: Option<Instant>,
    /// How many visitors came in this [`SOON`] and in the one before, but for those who have gone.
    recent: [usize; 2],
    /// When this one began.
    since: Option<Instant>,
    /// When to see who has stayed.
    check_at: Option<Instant>,
}

impl Plan {
    /// Keeps `keep` ready and at most `max`; waits between the two of `waits` after a failure.
    /// `reuse`: a channel serves again when its visitor has gone.
    pub(super) fn new(keep: usize, max: usize, reuse: bool, waits: (Duration, Duration)) -> Self {
        Self {
            keep,
            max: max.max(keep),
            reuse,
            target: keep,
            idle: 0,
            opening: 0,
            raised: None,
            wanting: false,
            failed: Wait::new(waits),
            unwanted: Wait::new(waits),
            forget_after: waits.1,
            unwanted_until: None,
            recent: [0; 2],
            since: None,
            check_at: None,
        }
    }

    /// Without those who may be back in a moment.
    fn short(&self) -> usize {
        self.target.saturating_sub(self.idle + self.opening)
    }

    fn missing(&self) -> usize {
        let missing = self.short().saturating_sub(self.recent.iter().sum());
        missing.min(OPENING_MAX.saturating_sub(self.opening))
    }

    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= SOON {
            let last = if passed < 2 * SOON { self.recent[0] } else { 0 };
            self.recent = [0, last];
            self.since = Some(now);
        }
    }

    fn came(&mut self, now: Instant) {
        self.turn(now);
        if self.reuse {
            self.recent[0] += 1;
            self.check_at.get_or_insert(now + 2 * SOON);
        }
    }

    /// Until when nothing is opened.
    fn waits_until(&self) -> Option<Instant> {
        self.failed.until.max(self.unwanted.until)
    }

    /// How many to begin to open now. They count as begun. Afterwards [`due`](Self::due) lies ahead.
    pub(super) fn open(&mut self, now: Instant) -> usize {
        self.turn(now);
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
        }
        self.failed.end_if_over(now);
        self.unwanted.end_if_over(now);
        if self.waits_until().is_some() {
            return 0;
        }
        let missing = self.missing();
        self.opening += missing;
        if self.short() > 0 && self.recent != [0; 2] {
            self.check_at.get_or_insert(now + 2 * SOON);
        }
        missing
    }

    /// When [`open`](Self::open) is worth asking again, if waiting is all there is to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waits_until()
            .filter(|_| self.short() > 0)
            .or(self.check_at)
    }

    /// One of those that were begun is idle.
    pub(super) fn opened(&mut self) {
        self.opening -= 1;
        self.idle += 1;
    }

    /// One of those that were begun came to nothing.
    pub(super) fn failed(&mut self, now: Instant, random: u64) {
        self.opening -= 1;
        self.failed.begin(now, random);
    }

    /// An idle one serves a visitor: opening works. Whether the server wants more of them is another matter.
    pub(super) fn taken(&mut self, now: Instant) {
        self.came(now);
        self.idle -= 1;
        self.failed.forgive();
    }

    /// One that served, or was dialled for a visitor, is idle.
    pub(super) fn returned(&mut self, now: Instant) {
        self.turn(now);
        if let Some(recent) = self.recent.iter_mut().rev().find(|recent| **recent > 0) {
            *recent -= 1;
        }
        self.idle += 1;
    }

    /// The server, or somebody on the way, has closed an idle one. Above `keep` that is how the server
    /// says that fewer are enough. Below, replacing it at once could go on for ever.
    pub(super) fn closed(&mut self, now: Instant, random: u64) {
        self.idle -= 1;
        let left = self.idle + self.opening;
        self.target = self.target.min(left.max(self.keep));
        if left < self.keep {
            let forgotten = |until| now.saturating_duration_since(until) >= self.forget_after;
            if self.unwanted_until.is_some_and(forgotten) {
                self.unwanted.forgive();
            }
            self.unwanted.begin(now, random);
            self.unwanted_until = self.unwanted.until;
        }
    }

    /// Whether the server goes on closing what we want to keep.
    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.backoff.attempts() > 1
    }

    /// We have closed this many idle ones ourselves: they had grown old.
    pub(super) fn retired(&mut self, count: usize) {
        self.idle -= count;
    }

    /// A visitor found none.
    pub(super) fn missed(&mut self, now: Instant) {
        self.came(now);
        self.wanting = true;
        if self
            .raised
            .is_some_and(|at| now.saturating_duration_since(at) < CROWD)
        {
            return;
        }
        self.raised = Some(now);
        self.target = (self.target * 2).clamp(1, self.max);
    }

    /// A heartbeat: what was not wanted since the last one is forgotten by half.
    pub(super) fn beat(&mut self) {
        if !std::mem::take(&mut self.wanting) {
            self.target = self.keep + (self.target - self.keep) / 2;
        }
    }

    /// How many more are idle than should be.
    pub(super) fn surplus(&self) -> usize {
        self.idle.saturating_sub(self.target)
    }
}

#[cfg(test)]
mod tests;
