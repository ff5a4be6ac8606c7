//! Few words about many events. Pure: the clock is handed in.
//!
//! ```text
//! event    x x x x x         x                    x
//! said     x         "4 more like this ..., "     x
//!          |<-interval->|
//! ```
//!
//! The first event of a kind is said. Those of the interval after it are counted. The count is told with the next
//! event, or by [`RateLimited::tick`] if none comes. A flood is therefore at most two lines per interval and kind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What to do about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Say {
    /// It was counted; say nothing.
    Nothing,
    /// Say it.
    Line,
    /// Say it, and how many before it were only counted.
    LineAfter(More),
}

/// Events that were counted but not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More {
    /// How many.
    pub count: u64,
    /// Since the one that was said.
    pub over: Duration,
}

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: "in the last 0 seconds" would be odd.
        let seconds = self.over.as_secs() + u64::from(self.over.subsec_nanos() > 0);
        let s = if seconds == 1 { "" } else { "s" };
        write!(
            f,
            "{} more like this in the last {seconds} second{s}",
            self.count
        )
    }
}

/// The limiter of one kind of event.
#[derive(Clone, Debug)]
pub struct RateLimited {
    interval: Duration,
    /// When an event was last said, if the interval after it is not yet accounted for.
    said: Option<Instant>,
    held: u64,
}

impl RateLimited {
    /// Says at most one event per `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            said: None,
            held: 0,
        }
    }

    /// An event happened at `now`.
    pub fn event(&mut self, now: Instant) -> Say {
        if self
            .said
            .is_some_and(|said| now.saturating_duration_since(said) < self.interval)
        {
            self.held = self.held.saturating_add(1);
            return Say::Nothing;
        }
        let more = self.tick(now);
        self.said = Some(now);
        more.map_or(Say::Line, Say::LineAfter)
    }

    /// How many were counted, once the interval is over; `None` if there is nothing to tell (yet). Every event is
    /// told once: by this or by [`RateLimited::event`].
    pub fn tick(&mut self, now: Instant) -> Option<More> {
        let over = now.saturating_duration_since(self.said?);
        if over < self.interval {
            return None;
        }
        self.said = None;
        let count = std::mem::take(&mut self.held);
        (count > 0).then_some(More { count, over })
    }

    /// When [`RateLimited::tick`] will have something to tell.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.held == 0 {
            return None;
        }
        self.said?.checked_add(self.interval)
    }
}

/// One [`RateLimited`] per kind of event.
///
/// A kind is remembered for ever, so `K` must be a small enum of the program's own, never something that a
/// stranger chooses (an address, say).
#[derive(Clone, Debug)]
pub struct Quiet<K> {
    interval: Duration,
    kinds: BTreeMap<K, RateLimited>,
}

impl<K: Ord + Copy> Quiet<K> {
    /// Says at most one event of each kind per `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            kinds: BTreeMap::new(),
        }
    }

    /// An event of a kind happened at `now`.
    pub fn event(&mut self, kind: K, now: Instant) -> Say {
        let interval = self.interval;
        self.kinds
            .entry(kind)
            .or_insert_with(|| RateLimited::new(interval))
            .event(now)
    }

    /// What was counted and is due to be told; see [`RateLimited::tick`].
    pub fn tick(&mut self, now: Instant) -> Vec<(K, More)> {
        self.kinds
            .iter_mut()
            .filter_map(|(&kind, limited)| Some((kind, limited.tick(now)?)))
            .collect()
    }

    /// When [`Quiet::tick`] will next have something to tell.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.kinds.values().filter_map(RateLimited::deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn first_is_said_the_rest_is_counted_and_told_with_the_next() {
        let start = Instant::now();
        let mut limited = RateLimited::new(INTERVAL);
        assert_eq!(limited.event(start), Say::Line);
        for _ in 0..4 {
            assert_eq!(limited.event(start + s(9)), Say::Nothing);
        }
        let more = More {
            count: 4,
            over: s(12),
        };
        assert_eq!(limited.event(start + s(12)), Say::LineAfter(more));
        // A new interval began with that one.
        assert_eq!(limited.event(start + s(21)), Say::Nothing);
        assert_eq!(
            limited.event(start + s(22)),
            Say::LineAfter(More {
                count: 1,
                over: s(10)
            })
        );
        // Nothing was counted in between: nothing is told.
        assert_eq!(limited.event(start + s(40)), Say::Line);
    }

    #[test]
    fn a_flood_that_ends_is_told_by_tick_once() {
        let start = Instant::now();
        let mut limited = RateLimited::new(INTERVAL);
        assert_eq!(limited.tick(start), None);
        assert_eq!(limited.event(start), Say::Line);
        assert_eq!(limited.deadline(), None);
        assert_eq!(limited.event(start), Say::Nothing);
        assert_eq!(limited.deadline(), Some(start + INTERVAL));
        assert_eq!(limited.tick(start + s(9)), None);
        assert_eq!(
            limited.tick(start + s(10)),
            Some(More {
                count: 1,
                over: s(10)
            })
        );
        assert_eq!(limited.deadline(), None);
        assert_eq!(limited.tick(start + s(11)), None);
        assert_eq!(limited.event(start + s(12)), Say::Line);
    }

    #[test]
    fn no_event_is_lost_or_told_twice() {
        let start = Instant::now();
        let mut limited = RateLimited::new(INTERVAL);
        let (mut told, mut lines) = (0, 0);
        for step in 0..100_000_u64 {
            let now = start + Duration::from_millis(step);
            if step % 7_777 == 0
                && let Some(more) = limited.tick(now)
            {
                told += more.count;
                lines += 1;
            }
            match limited.event(now) {
                Say::Nothing => {}
                Say::Line => (told, lines) = (told + 1, lines + 1),
                Say::LineAfter(more) => (told, lines) = (told + 1 + more.count, lines + 1),
            }
        }
        told += limited.tick(start + s(1000)).map_or(0, |more| more.count);
        assert_eq!(told, 100_000);
        assert!(lines <= 2 * 10, "{lines}");
    }

    #[test]
    fn a_clock_that_steps_back_is_no_panic() {
        let start = Instant::now();
        let mut limited = RateLimited::new(INTERVAL);
        assert_eq!(limited.event(start + s(5)), Say::Line);
        assert_eq!(limited.event(start), Say::Nothing);
        assert_eq!(limited.tick(start), None);
    }

    #[test]
    fn kinds_do_not_silence_each_other() {
        let start = Instant::now();
        let mut quiet = Quiet::new(INTERVAL);
        assert_eq!(quiet.event("late", start), Say::Line);
        assert_eq!(quiet.event("forged", start + s(1)), Say::Line);
        assert_eq!(quiet.deadline(), None);
        assert_eq!(quiet.event("forged", start + s(1)), Say::Nothing);
        assert_eq!(quiet.event("late", start + s(2)), Say::Nothing);
        assert_eq!(quiet.deadline(), Some(start + INTERVAL));
        assert_eq!(
            quiet.tick(start + s(10)),
            [(
                "late",
                More {
                    count: 1,
                    over: s(10)
                }
            )]
        );
        assert_eq!(quiet.deadline(), Some(start + s(11)));
    }

    #[test]
    fn the_count_in_words() {
        let more = |count, over| More { count, over }.to_string();
        assert_eq!(
            more(120, s(10)),
            "120 more like this in the last 10 seconds"
        );
        assert_eq!(
            more(1, Duration::from_millis(1)),
            "1 more like this in the last 1 second"
        );
    }

    #[test]
    fn the_macro_evaluates_only_what_it_says() {
        let mut evaluated = 0;
        let mut value = || {
            evaluated += 1;
            evaluated
        };
        // Without a logger at this level, only the match itself can be seen here.
        crate::log_limited!(::log::Level::Trace, Say::Nothing, "{}", value());
        assert_eq!(evaluated, 0);
    }
}
