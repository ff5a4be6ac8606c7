//! Several addresses for one service, tried in order, with a memory of those that failed.
//!
//! ```text
//!  [first, second, third]   first fails      ─> second, third, first    for a while
//!                           the while is over ─> first, second, third
//! ```
//!
//! The order is pure: time is an argument. Nothing is ever left out: where all have failed, all are tried.

use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Addresses that several threads dial.
#[derive(Debug)]
pub struct Dialled<T>(Mutex<Addresses<T>>);

impl<T: Clone> Dialled<T> {
    /// All of them, the preferred first.
    pub fn new(all: impl IntoIterator<Item = T>) -> Self {
        Self(Mutex::new(Addresses::new(all)))
    }

    /// Nothing that blocks or panics runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Addresses<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries one after the other until one works, each with an equal part of what is left of `within`. An attempt
    /// that fails says how much time the others are not to pay for.
    ///
    /// # Errors
    /// What each attempt said, if none worked.
    pub fn try_each<R, E>(
        &self,
        within: Duration,
        mut attempt: impl FnMut(&T, Duration) -> Result<R, (E, Duration)>,
    ) -> Result<R, Vec<E>> {
        let order = self.lock().in_order(Instant::now());
        let mut deadline = Instant::now() + within;
        let mut errors = Vec::new();
        for (n, number) in order.iter().enumerate() {
            let address = self.lock().of(*number).clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / u32::try_from(order.len() - n).unwrap_or(u32::MAX);
            match attempt(&address, part) {
                Ok(reached) => {
                    self.lock().worked(*number);
                    return Ok(reached);
                }
                Err((e, free)) => {
                    deadline += free;
                    self.lock().failed(*number, Instant::now());
                    errors.push(e);
                }
            }
        }
        Err(errors)
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

    #[test]
    fn each_gets_its_part_and_who_worked_comes_first() {
        let second = Duration::from_secs(1);
        let three = Dialled::new(["a", "b", "c"]);
        let mut asked = Vec::new();
        let none = three.try_each(second, |who, part| -> Result<(), _> {
            asked.push((*who, part));
            // The last has cost much, and nobody pays for it.
            Err((format!("{who} is down"), second * 9))
        });
        assert_eq!(
            none,
            Err(vec![
                "a is down".into(),
                "b is down".into(),
                "c is down".into()
            ])
        );
        let (names, parts): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(parts[0] <= second / 3 && parts[0] > second / 4, "{parts:?}");
        assert!(parts[1] > second * 4 && parts[2] > second * 18, "{parts:?}");

        let mut asked = Vec::new();
        let reached = three.try_each(second, |who, _| {
            asked.push(*who);
            if *who == "b" {
                Ok(*who)
            } else {
                Err(((), Duration::ZERO))
            }
        });
        assert_eq!((reached, asked), (Ok("b"), vec!["a", "b"]));
        let first = three.try_each(second, |who, _| Ok::<_, ((), Duration)>(*who));
        assert_eq!(first, Ok("b"), "the others have failed lately");
    }
}
