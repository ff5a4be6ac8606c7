//! Several addresses for one service, tried in order, with a memory of those that failed.
//!
//! ```text
//!  [first, second, third]   first fails      ─> second, third, first    for a while
//!                           the while is over ─> first, second, third
//! ```
//!
//! Pure: time is an argument. Nothing is ever left out: where all have failed, all are tried.

use std::time::{Duration, Instant};

/// Performance: how long an address that failed comes after those that did not.
pub const SHUN: Duration = Duration::from_secs(30);

/// The order to try addresses in. The first is the preferred one.
#[derive(Clone, Debug)]
pub struct Addresses<T> {
    all: Vec<(T, Option<Instant>)>,
}

impl<T> Addresses<T> {
    /// All of them, the preferred first.
    pub fn new(all: impl IntoIterator<Item = T>) -> Self {
        Self {
            all: all.into_iter().map(|one| (one, None)).collect(),
        }
    }

    /// In the order in which they are worth a try: those that have not failed lately as they are given,
    /// then the others, the longest ago first.
    pub fn in_order(&self, now: Instant) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.all.len()).collect();
        order.sort_by_key(|n| self.shunned(*n, now));
        order
    }

    /// The address of this number, from [`in_order`](Self::in_order).
    pub fn of(&self, number: usize) -> &T {
        &self.all[number].0
    }

    /// It could not be reached.
    pub fn failed(&mut self, number: usize, now: Instant) {
        self.all[number].1 = Some(now);
    }

    /// It could.
    pub fn worked(&mut self, number: usize) {
        self.all[number].1 = None;
    }

    fn shunned(&self, number: usize, now: Instant) -> Option<Instant> {
        (self.all[number].1).filter(|at| now.saturating_duration_since(*at) < SHUN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_comes_last_for_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut three = Addresses::new(["a", "b", "c"]);
        assert_eq!(three.in_order(start), [0, 1, 2]);
        three.failed(0, at(1));
        assert_eq!(three.in_order(at(2)), [1, 2, 0]);
        three.failed(1, at(3));
        assert_eq!(three.in_order(at(4)), [2, 0, 1], "the longest ago first");
        three.failed(2, at(5));
        assert_eq!(three.in_order(at(6)), [0, 1, 2], "nobody is left out");
        three.worked(1);
        assert_eq!(three.in_order(at(6)), [1, 0, 2]);
        assert_eq!(three.in_order(at(31)), [0, 1, 2], "the first is forgiven");
        assert_eq!(*three.of(2), "c");
        assert!(Addresses::<u8>::new([]).in_order(start).is_empty());
    }
}
