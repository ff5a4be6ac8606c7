//! Who waits for the server, what is ready, and when to dial: pure, time and random bits are arguments.
//!
//! ```text
//!  local connection ─ came ─┬─ something is ready: served at once
//!                           └─ waits until its deadline ─┐
//!  dial ─┬─ connected ──────────> the longest waiting ───┴─> served; nobody waits: ready
//!        └─ failed ─> pause (growing, jittered) ─> dial again, while somebody waits or too little is ready
//! ```
//!
//! One pause for all: who waits for a server that is down makes no more dials than one would, and a thousand
//! of them hold no threads.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use minitcptunnel_common::backoff::{Backoff, Jitter};

/// Performance: how many are dialled at once; each is a TLS handshake, and on our side a worker.
pub(super) const DIALS_MAX: usize = 16;

/// How many of what there may be, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections to keep ready.
    pub(super) keep: usize,
    /// How long a local connection may wait; zero: until the first dial behind its arrival has failed.
    pub(super) patience: Duration,
    /// The least and the most between two rounds of dials that fail.
    pub(super) pauses: (Duration, Duration),
}

/// The decisions. `L` is a local connection that waits, `R` one to the server that is ready.
pub(super) struct Plan<L, R> {
    bounds: Bounds,
    waiting: VecDeque<(Instant, L)>,
    ready: Vec<(u64, R)>,
    next: u64,
    dialling: usize,
    backoff: Backoff,
    /// No dial before that.
    pause: Option<Instant>,
    /// When a dial has failed last.
    failed: Option<Instant>,
    /// As that, but for what is kept ready, and that the server closes unused.
    unwanted: Backoff,
    keep_pause: Option<Instant>,
}

/// What becomes of something new.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<L, R> {
    /// These two belong together.
    Serve(L, R),
    /// It is kept, under this number where it is a ready one.
    Kept(u64),
}

impl<L, R> Plan<L, R> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (min, max) = bounds.pauses;
        Self {
            bounds,
            waiting: VecDeque::new(),
            ready: Vec::new(),
            next: 0,
            dialling: 0,
            backoff: Backoff::new(min, max, Jitter::Equal),
            pause: None,
            failed: None,
            unwanted: Backoff::new(min, max, Jitter::Equal),
            keep_pause: None,
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is somebody, or something, to dial for.
    pub(super) fn is_wanting(&self) -> bool {
        self.wanted(true) > self.dialling
    }

    /// A local connection.
    pub(super) fn came(&mut self, local: L, now: Instant) -> Next<L, R> {
        // The newest: the others may be about to be closed for their silence.
        if let Some((_, ready)) = self.ready.pop() {
            self.unwanted.reset();
            self.keep_pause = None;
            return Next::Serve(local, ready);
        }
        self.waiting.push_back((now + self.bounds.patience, local));
        Next::Kept(0)
    }

    /// How many dials to begin now. They count as begun.
    pub(super) fn dial(&mut self, now: Instant) -> usize {
        for pause in [&mut self.pause, &mut self.keep_pause] {
            if pause.is_some_and(|until| until <= now) {
                *pause = None;
            }
        }
        let wanted = if self.pause.is_some() {
            0
        } else {
            self.wanted(self.keep_pause.is_none())
        };
        // After a failure one tries for all.
        let most = if self.backoff.attempts() > 0 {
            1
        } else {
            DIALS_MAX
        };
        let more = wanted
            .saturating_sub(self.dialling)
            .min(most.saturating_sub(self.dialling));
        self.dialling += more;
        more
    }

    fn is_patient(&self) -> bool {
        !self.bounds.patience.is_zero()
    }

    fn wanted(&self, keep: bool) -> usize {
        let keep = if keep { self.bounds.keep } else { 0 };
        self.waiting.len() + keep.saturating_sub(self.ready.len())
    }

    /// A dial has led to a connection.
    pub(super) fn connected(&mut self, connection: R) -> Next<L, R> {
        self.dialling -= 1;
        self.backoff.reset();
        self.pause = None;
        if let Some((_, local)) = self.waiting.pop_front() {
            return Next::Serve(local, connection);
        }
        self.next += 1;
        self.ready.push((self.next, connection));
        Next::Kept(self.next)
    }

    /// A dial has led to nothing. The pause, if this begins one.
    pub(super) fn failed(&mut self, now: Instant, random: u64) -> Option<Duration> {
        self.dialling -= 1;
        self.failed = Some(now);
        // Several may fail for one reason: that is one pause.
        if self.pause.is_some() {
            return None;
        }
        let pause = self.backoff.next(random);
        self.pause = Some(now + pause);
        Some(pause)
    }

    /// A ready connection is gone, unused. Replacing it at once could go on for ever.
    pub(super) fn lost(&mut self, number: u64, now: Instant, random: u64) -> Option<R> {
        let at = self.ready.iter().position(|(n, _)| *n == number)?;
        if self.keep_pause.is_none() {
            self.keep_pause = Some(now + self.unwanted.next(random));
        }
        Some(self.ready.remove(at).1)
    }

    /// The ready connection of this number.
    pub(super) fn ready(&mut self, number: u64) -> Option<&mut R> {
        let (_, ready) = self.ready.iter_mut().find(|(n, _)| *n == number)?;
        Some(ready)
    }

    /// The one that would be taken next.
    pub(super) fn newest(&mut self) -> Option<(u64, &mut R)> {
        let (number, ready) = self.ready.last_mut()?;
        Some((*number, ready))
    }

    /// Gives back all that are ready, to be replaced at once.
    pub(super) fn retire(&mut self) -> Vec<R> {
        self.ready.drain(..).map(|(_, ready)| ready).collect()
    }

    /// All who wait: dialling again would not help them.
    pub(super) fn give_up(&mut self) -> Vec<L> {
        self.waiting.drain(..).map(|(_, local)| local).collect()
    }

    /// Those whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<L> {
        let over = if self.is_patient() {
            Some(now)
        } else {
            self.failed
        };
        let count = (self.waiting).partition_point(|(deadline, _)| Some(*deadline) <= over);
        self.waiting
            .drain(..count)
            .map(|(_, local)| local)
            .collect()
    }

    /// When [`dial`](Self::dial) or [`expired`](Self::expired) is worth asking again, if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        let again = match (self.pause, self.keep_pause) {
            (Some(at), _) if self.wanted(true) > self.dialling => Some(at),
            (None, Some(at)) if self.wanted(true) > self.dialling => Some(at),
            _ => None,
        };
        let first = self.waiting.front().filter(|_| self.is_patient());
        let expires = first.map(|(deadline, _)| *deadline);
        [again, expires].into_iter().flatten().min()
    }

    /// Gives everything back: the job ends.
    pub(super) fn end(&mut self) -> (Vec<L>, Vec<R>) {
        (
            self.waiting.drain(..).map(|(_, local)| local).collect(),
            self.ready.drain(..).map(|(_, ready)| ready).collect(),
        )
    }
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
