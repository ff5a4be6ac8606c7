//! How many spare data channels to have: pure, time and random bits are arguments.
//!
//! ```text
//!  open ─> opening ─ opened ─> idle ─ taken ─> (in use) ─ returned ─> idle
//!             └ failed: wait            └ closed by the server: it knows that fewer are enough
//!
//!  target:  keep ── a visitor found none: double ──> max      heartbeat without that: halfway back
//! ```
//!
//! Most visitors do not stay, and their channels serve again: one that was taken a moment ago counts
//! as if it were back, so that a crowd of short visits opens no channels but those that it needs at once.

use std::time::{Duration, Instant};

use minitcptunnel_common::backoff::{Backoff, Jitter};

/// Performance: how many are being opened at once; each is a handshake on a worker.
const OPENING_MAX: usize = 4;
/// Performance: visitors who find no spare within this count as one crowd. What was opened for the
/// first of them is on its way, and what was dialled for the others will be spare when they have gone.
const CROWD: Duration = Duration::from_millis(50);

/// Performance: how long a channel in use counts as one that is about to be idle, at least.
const SOON: Duration = Duration::from_millis(100);

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
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// How many visitors came in this [`SOON`] and in the one before, but for those who have gone.
    recent: [usize; 2],
    /// When this one began.
    since: Option<Instant>,
    /// When to see who has stayed.
    check_at: Option<Instant>,
}

impl Plan {
    /// Keeps `keep` ready and at most `max`; waits between `wait_min` and `wait_max` after a failure.
    /// `reuse`: a channel serves again when its visitor has gone.
    pub(super) fn new(
        keep: usize,
        max: usize,
        reuse: bool,
        (wait_min, wait_max): (Duration, Duration),
    ) -> Self {
        Self {
            keep,
            max: max.max(keep),
            reuse,
            target: keep,
            idle: 0,
            opening: 0,
            raised: None,
            wanting: false,
            backoff: Backoff::new(wait_min, wait_max, Jitter::Equal),
            retry_at: None,
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

    /// How many to begin to open now. They count as begun.
    pub(super) fn open(&mut self, now: Instant) -> usize {
        if self.retry_at.is_some_and(|at| at > now) {
            return 0;
        }
        self.retry_at = None;
        self.turn(now);
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
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
        self.retry_at.filter(|_| self.short() > 0).or(self.check_at)
    }

    /// One of those that were begun is idle.
    pub(super) fn opened(&mut self) {
        self.opening -= 1;
        self.idle += 1;
    }

    /// One of those that were begun came to nothing.
    pub(super) fn failed(&mut self, now: Instant, random: u64) {
        self.opening -= 1;
        self.wait(now, random);
    }

    fn wait(&mut self, now: Instant, random: u64) {
        // Several may fail for one reason: that is one wait.
        if self.retry_at.is_none() {
            self.retry_at = Some(now + self.backoff.next(random));
        }
    }

    /// An idle one serves a visitor: what we do works.
    pub(super) fn taken(&mut self, now: Instant) {
        self.came(now);
        self.idle -= 1;
        self.backoff.reset();
        self.retry_at = None;
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
            self.wait(now, random);
        }
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
mod tests {
    use super::*;

    /// What happens to a plan, one step of a table.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        At(u64),
        Opened,
        Failed,
        Taken,
        Returned,
        Closed,
        Missed,
        Beat,
        /// `open` says this.
        Opens(usize),
        /// `due` says this, in ms from the start.
        Due(Option<u64>),
        Surplus(usize),
    }
    use Step::*;

    fn run(name: &str, keep: usize, max: usize, steps: &[Step]) {
        run_with(false, name, keep, max, steps);
    }

    fn run_with(reuse: bool, name: &str, keep: usize, max: usize, steps: &[Step]) {
        let start = Instant::now();
        let (min, most) = (Duration::from_millis(1000), Duration::from_millis(8000));
        let mut plan = Plan::new(keep, max, reuse, (min, most));
        let mut now = start;
        // With these bits the wait is the ceiling itself: 2, 4, 8, 8 s.
        let random = u64::MAX;
        for (n, step) in steps.iter().enumerate() {
            let at = format!("{name}: step {n} {step:?}");
            match *step {
                At(ms) => now = start + Duration::from_millis(ms),
                Opened => plan.opened(),
                Failed => plan.failed(now, random),
                Taken => plan.taken(now),
                Returned => plan.returned(now),
                Closed => plan.closed(now, random),
                Missed => plan.missed(now),
                Beat => plan.beat(),
                Opens(wanted) => assert_eq!(plan.open(now), wanted, "{at}"),
                Surplus(wanted) => assert_eq!(plan.surplus(), wanted, "{at}"),
                Due(ms) => {
                    let due = plan.due().map(|due| {
                        let ms = due.saturating_duration_since(start).as_secs_f64() * 1e3;
                        ms.round() as u64
                    });
                    assert_eq!(due, ms, "{at}");
                }
            }
        }
    }

    #[test]
    fn it_keeps_what_it_should() {
        run(
            "begin",
            2,
            64,
            &[Opens(2), Opens(0), Opened, Opened, Opens(0), Due(None)],
        );
        run(
            "four at once",
            9,
            64,
            &[Opens(4), Opened, Opens(1), Opened, Opened, Opens(2)],
        );
        run("none", 0, 64, &[Opens(0), Beat, Opens(0)]);
        run(
            "what comes back is not opened again",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Opened,
                Taken,
                Opens(1),
                Returned,
                Opened,
                Taken,
                Opens(0),
                Returned,
                Surplus(1),
            ],
        );
    }

    #[test]
    fn short_visits_open_no_channels() {
        run_with(
            true,
            "one after the other",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Opened,
                Due(None),
                Taken,
                Opens(0),
                Due(Some(200)),
                At(10),
                Returned,
                Opens(0),
                At(20),
                Taken,
                Returned,
                At(200),
                Opens(0),
                Due(None),
            ],
        );
        run_with(
            true,
            "two who stay are replaced",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Opened,
                Taken,
                At(30),
                Taken,
                At(99),
                Opens(0),
                At(150),
                Opens(0),
                Due(Some(200)),
                At(250),
                Opens(2),
                Due(None),
            ],
        );
        run_with(
            true,
            "a crowd beyond the spares: what was dialled for it will do",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Opened,
                Taken,
                Taken,
                Missed,
                Missed,
                Missed,
                Opens(0),
                At(50),
                Returned,
                Returned,
                Returned,
                Returned,
                Returned,
                Opens(0),
                Surplus(1),
            ],
        );
    }

    #[test]
    fn it_grows_with_the_demand_and_shrinks_without() {
        run(
            "a crowd raises the target once",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Opened,
                Taken,
                Taken,
                Opens(2),
                Missed,
                Missed,
                Missed,
                Opens(2),
                Opened,
                Opened,
                Opened,
                Opened,
                Opens(0),
            ],
        );
        run(
            "crowd after crowd",
            1,
            5,
            &[
                Opens(1),
                Opened,
                Missed,
                At(49),
                Missed,
                Opens(1),
                At(50),
                Missed,
                Opens(2),
                At(100),
                Missed,
                At(150),
                Missed,
                Opens(1),
                Opens(0),
            ],
        );
        run(
            "and back",
            2,
            64,
            &[
                Missed,
                At(50),
                Missed,
                At(100),
                Missed, // 16
                Opens(4),
                Opened,
                Opened,
                Opened,
                Opened,
                Opens(4),
                Opened,
                Opened,
                Opened,
                Opened,
                Opens(4),
                Opened,
                Opened,
                Opened,
                Opened,
                Opens(4),
                Opened,
                Opened,
                Opened,
                Opened,
                Opens(0),
                Beat,
                Surplus(0),
                Beat,
                Surplus(7),
                Beat,
                Surplus(11),
                Beat,
                Surplus(13),
                Beat,
                Surplus(14),
                Beat,
                Surplus(14),
            ],
        );
    }

    #[test]
    fn it_does_not_run_against_a_server_that_will_not() {
        run(
            "failures wait longer and longer",
            2,
            64,
            &[
                Opens(2),
                Failed,
                Due(Some(2000)),
                Failed,
                Due(Some(2000)),
                Opens(0),
                At(1999),
                Opens(0),
                At(2000),
                Opens(2),
                Failed,
                Failed,
                Due(Some(6000)),
                Missed,
                Opens(0),
                At(6000),
                Opens(4),
                Failed,
                Due(Some(14_000)),
            ],
        );
        run(
            "a server that closes them as soon as they are there",
            1,
            64,
            &[
                Opens(1),
                Opened,
                Closed,
                Opens(0),
                Due(Some(2000)),
                At(2000),
                Opens(1),
                Opened,
                Closed,
                Due(Some(6000)),
            ],
        );
        run(
            "success forgives",
            2,
            64,
            &[
                Opens(2),
                Opened,
                Failed,
                Due(Some(2000)),
                Taken,
                Due(None),
                Opens(2),
                Failed,
                Due(Some(2000)),
            ],
        );
    }

    #[test]
    fn the_servers_word_counts_above_keep() {
        run(
            "closed above keep is not opened again",
            1,
            64,
            &[
                Opens(1),
                Opened,
                Missed,
                At(60),
                Missed,
                Opens(3),
                Opened,
                Opened,
                Opened,
                Closed,
                Closed,
                At(9000),
                Opens(0),
                Due(None),
                Closed,
                Closed,
                At(20_000),
                Opens(1),
            ],
        );
    }
}
