//! Growing, jittered delays between attempts. Pure: no clock, no randomness of its own.
//!
//! ```text
//! attempt      1         2         3         4      ...
//! ceiling   2 x min   4 x min   8 x min  16 x min   ...  never over max
//! full      |min .............. ceiling|    spreads a crowd best
//! equal     |ceiling / 2 ...... ceiling|    a longer wait is promised each time
//! ```
//!
//! The first ceiling is already twice the minimum, so that even the first wait is spread: a server that
//! restarts loses all its clients in the same instant, and they must not all come back in the same instant.
//!
//! The caller brings 64 random bits for every wait and does the waiting.

use std::time::Duration;

/// The smallest minimum there is. Doubling zero would never grow, and a loop without any wait is what
/// backoff exists to prevent.
const FLOOR: Duration = Duration::from_millis(1);

/// Over which part of the range up to the ceiling a wait is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// From the minimum to the ceiling: attempts of many clients spread best, single waits may be short.
    Full,
    /// From half the ceiling to the ceiling: waits grow for certain, and are still spread by half.
    Equal,
}

/// The waits between attempts at one thing.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: Jitter,
    /// The ceiling of the previous wait; `min` before the first.
    ceiling: Duration,
    attempts: u64,
}

impl Backoff {
    /// Waits from `min` to `max`. A minimum under one millisecond counts as one millisecond, and a maximum
    /// under the minimum as the minimum.
    #[must_use]
    pub fn new(min: Duration, max: Duration, jitter: Jitter) -> Self {
        let min = min.max(FLOOR);
        Self {
            min,
            max: max.max(min),
            jitter,
            ceiling: min,
            attempts: 0,
        }
    }

    /// How long to wait before the next attempt. `random` is 64 uniformly random bits; they need not be secret.
    pub fn next(&mut self, random: u64) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let low = match self.jitter {
            Jitter::Full => self.min,
            Jitter::Equal => (self.ceiling / 2).max(self.min),
        };
        between(low, self.ceiling, random)
    }

    /// To be called after a success that lasted: the next wait is a first wait again.
    ///
    /// An accepted connection alone is no such success. A peer that accepts and then hangs up would be dialled
    /// at full speed, so reset after the handshake, or later.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
        self.attempts = 0;
    }

    /// How many waits were handed out since the start or the last [`Backoff::reset`].
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts
    }
}

/// The point of `low..=high` that `random` picks; 0 picks `low`, `u64::MAX` picks `high`.
fn between(low: Duration, high: Duration, random: u64) -> Duration {
    // In nanoseconds a u64 holds 584 years; a longer span is cut to that, so the product below fits 128 bits.
    let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
    let offset = ((u128::from(span) + 1) * u128::from(random)) >> 64;
    // Never more than `span`, which is a u64.
    low + Duration::from_nanos(u64::try_from(offset).unwrap_or(span))
}

/// Bits to spread waits with. Without randomness the waits are merely not spread.
pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = orion::util::secure_rand_bytes(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What the client uses: the whole table of least and greatest waits.
    #[test]
    fn least_and_greatest_wait_of_each_attempt() {
        let table = [
            (
                Jitter::Full,
                [(1, 2), (1, 4), (1, 8), (1, 16), (1, 30), (1, 30)],
            ),
            (
                Jitter::Equal,
                [(1, 2), (2, 4), (4, 8), (8, 16), (15, 30), (15, 30)],
            ),
        ];
        for (jitter, rows) in table {
            let mut least = Backoff::new(s(1), s(30), jitter);
            let mut most = least.clone();
            for (attempt, (low, high)) in rows.into_iter().enumerate() {
                assert_eq!(least.next(0), s(low), "{jitter:?}, attempt {attempt}");
                assert_eq!(
                    most.next(u64::MAX),
                    s(high),
                    "{jitter:?}, attempt {attempt}"
                );
            }
            assert_eq!(least.attempts(), 6);
        }
    }

    #[test]
    fn the_middle_of_the_random_range_is_the_middle_of_the_wait() {
        let mut backoff = Backoff::new(s(1), s(30), Jitter::Full);
        assert_eq!(backoff.next(1 << 63), Duration::from_millis(1500));
        assert_eq!(backoff.next(1 << 63), Duration::from_millis(2500));
    }

    #[test]
    fn reset_makes_the_next_wait_a_first_wait() {
        let mut backoff = Backoff::new(s(1), s(30), Jitter::Equal);
        for _ in 0..10 {
            backoff.next(7);
        }
        backoff.reset();
        assert_eq!(backoff.attempts(), 0);
        assert_eq!(backoff.next(u64::MAX), s(2));
    }

    /// A weak but sufficient source of bits for tests: the multiplier and increment are Knuth's.
    fn step(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state
    }

    #[test]
    fn a_million_waits_stay_in_bounds() {
        let bounds = [
            (s(1), s(30)),
            (Duration::from_millis(1), Duration::from_millis(1)),
            (Duration::from_nanos(1_000_001), s(3600)),
            (s(1), Duration::MAX),
            (Duration::MAX, Duration::MAX),
        ];
        let mut random = 42;
        for jitter in [Jitter::Full, Jitter::Equal] {
            for (min, max) in bounds {
                let mut backoff = Backoff::new(min, max, jitter);
                for _ in 0..1_000_000 {
                    let wait = backoff.next(step(&mut random));
                    assert!(
                        wait >= min && wait <= max,
                        "{jitter:?} {min:?} {max:?}: {wait:?}"
                    );
                }
                assert_eq!(backoff.attempts(), 1_000_000);
                let wait = backoff.next(u64::MAX);
                assert!(wait >= min && wait <= max);
            }
        }
    }

    #[test]
    fn odd_settings_are_made_sensible() {
        // Zero grows nevertheless.
        let mut zero = Backoff::new(Duration::ZERO, s(1), Jitter::Full);
        assert_eq!(zero.next(0), FLOOR);
        for _ in 0..20 {
            zero.next(0);
        }
        assert_eq!(zero.next(u64::MAX), s(1));
        // A maximum below the minimum is the minimum.
        let mut crossed = Backoff::new(s(5), s(2), Jitter::Equal);
        for random in [0, 1, u64::MAX] {
            assert_eq!(crossed.next(random), s(5));
        }
    }
}
