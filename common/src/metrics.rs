//! Counters: what passed, what lives, what was refused and why.
//!
//! ```text
//! relay ── add bytes ──> Traffic  ─┐
//! loop  ── refuse ─────> Refusals ─┴─ Metrics: tunnel ─> session ─> program
//! ```
//!
//! Counters are relaxed atomics: each is exact, a snapshot across several is not one instant.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which way bytes go, named from the middle of the path in every job, log line and counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// External connection to local service.
    ToService,
    /// Local service to external connection.
    FromService,
}

/// Bytes and connections of one tunnel, one session or everything; each counts into the next larger.
#[derive(Default, Debug)]
pub struct Traffic {
    parent: Option<Arc<Traffic>>,
    to_service: AtomicU64,
    from_service: AtomicU64,
    live: AtomicU64,
    total: AtomicU64,
}

impl Traffic {
    /// Counters that also count into `parent`.
    pub fn part_of(parent: Arc<Self>) -> Self {
        Self {
            parent: Some(parent),
            ..Self::default()
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |traffic| traffic.parent.as_deref())
    }

    /// Counts `n` bytes.
    pub fn add(&self, direction: Direction, n: usize) {
        for traffic in self.chain() {
            traffic
                .counter(direction)
                .fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToService => &self.to_service,
            Direction::FromService => &self.from_service,
        }
    }

    /// Counts a pair that begins.
    pub fn begin(&self) {
        for traffic in self.chain() {
            traffic.live.fetch_add(1, Ordering::Relaxed);
            traffic.total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a pair that has ended.
    pub fn end(&self) {
        for traffic in self.chain() {
            traffic.live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The counters now.
    pub fn snapshot(&self) -> TrafficSnapshot {
        TrafficSnapshot {
            to_service: self.to_service.load(Ordering::Relaxed),
            from_service: self.from_service.load(Ordering::Relaxed),
            live: self.live.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
        }
    }
}

/// [`Traffic`] at one moment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TrafficSnapshot {
    /// Bytes to the local service.
    pub to_service: u64,
    /// Bytes from the local service.
    pub from_service: u64,
    /// Pairs alive.
    pub live: u64,
    /// Pairs ever.
    pub total: u64,
}

impl fmt::Display for TrafficSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connections={} live={} to_service={} from_service={}",
            self.total, self.live, self.to_service, self.from_service
        )
    }
}

/// Why an external connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Too many external connections wait to be claimed.
    Waiting,
    /// Too many pairs run.
    Pairs,
    /// Nobody came for it within the pairing deadline.
    Unclaimed,
    /// The client refused it: local service dead, tunnel not enabled.
    ByClient,
    /// The system gave no thread or descriptor.
    Resources,
    /// Its session or tunnel ended first.
    SessionEnded,
}

impl Refusal {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Pairs,
        Self::Unclaimed,
        Self::ByClient,
        Self::Resources,
        Self::SessionEnded,
    ];

    /// The name in logs and snapshots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "too_many_waiting",
            Self::Pairs => "too_many_pairs",
            Self::Unclaimed => "unclaimed",
            Self::ByClient => "refused_by_client",
            Self::Resources => "no_resources",
            Self::SessionEnded => "session_ended",
        }
    }
}

/// Refused external connections by reason; like [`Traffic`], they count into the next larger.
#[derive(Default, Debug)]
pub struct Refusals {
    parent: Option<Arc<Refusals>>,
    counts: [AtomicU64; Refusal::ALL.len()],
}

impl Refusals {
    /// Counters that also count into `parent`.
    pub fn part_of(parent: Arc<Self>) -> Self {
        Self {
            parent: Some(parent),
            ..Self::default()
        }
    }

    /// Counts one.
    pub fn add(&self, reason: Refusal) {
        for refusals in std::iter::successors(Some(self), |refusals| refusals.parent.as_deref()) {
            refusals.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many for this reason.
    pub fn of(&self, reason: Refusal) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// The reasons that occurred, and how often.
    pub fn by_reason(&self) -> Vec<(Refusal, u64)> {
        let counted = Refusal::ALL.map(|reason| (reason, self.of(reason)));
        counted.into_iter().filter(|(_, n)| *n > 0).collect()
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        Refusal::ALL.iter().map(|&reason| self.of(reason)).sum()
    }
}

impl fmt::Display for Refusals {
    /// `refused=N`, and the reasons that occurred.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused={}", self.total())?;
        for (reason, n) in self.by_reason() {
            write!(f, " {}={n}", reason.name())?;
        }
        Ok(())
    }
}

/// What one tunnel, one session or a whole program counts. Cheap to clone: clones count together.
#[derive(Clone, Default, Debug)]
pub struct Metrics {
    /// Bytes and connections.
    pub traffic: Arc<Traffic>,
    /// Connections that were refused.
    pub refusals: Arc<Refusals>,
}

impl Metrics {
    /// Fresh counters that also count into these.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            traffic: Arc::new(Traffic::part_of(self.traffic.clone())),
            refusals: Arc::new(Refusals::part_of(self.refusals.clone())),
        }
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.traffic.snapshot(), self.refusals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let refusals = Refusals::default();
        for (i, reason) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            for _ in 0..=i {
                refusals.add(reason);
            }
        }
        assert_eq!(refusals.of(Refusal::ByClient), 4);
        assert_eq!(refusals.total(), 21);
        assert!(
            refusals
                .to_string()
                .starts_with("refused=21 too_many_waiting=1 too_many_pairs=2")
        );
    }

    #[test]
    fn traffic_counts_both_directions_and_lives() {
        let traffic = Traffic::default();
        traffic.begin();
        traffic.begin();
        traffic.end();
        traffic.add(Direction::ToService, 5);
        traffic.add(Direction::FromService, 7);
        let now = traffic.snapshot();
        assert_eq!(
            now,
            TrafficSnapshot {
                to_service: 5,
                from_service: 7,
                live: 1,
                total: 2
            }
        );
    }
}
