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
use std::time::Duration;

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
    lz4: Lz4,
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

    /// Counts a frame that was given to LZ4: its length before, the length it was sent with, the time taken.
    pub fn tried(&self, len: usize, sent: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        for Lz4 {
            tried,
            stored,
            before,
            after,
            nanos: all,
        } in self.chain().map(|traffic| &traffic.lz4)
        {
            tried.fetch_add(1, Ordering::Relaxed);
            stored.fetch_add(u64::from(sent >= len), Ordering::Relaxed);
            before.fetch_add(len as u64, Ordering::Relaxed);
            after.fetch_add(sent as u64, Ordering::Relaxed);
            all.fetch_add(nanos, Ordering::Relaxed);
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
            lz4: self.lz4.snapshot(),
        }
    }
}

/// What LZ4 was tried on, and what came of it.
#[derive(Default, Debug)]
struct Lz4 {
    tried: AtomicU64,
    stored: AtomicU64,
    before: AtomicU64,
    after: AtomicU64,
    nanos: AtomicU64,
}

impl Lz4 {
    fn snapshot(&self) -> Lz4Snapshot {
        Lz4Snapshot {
            tried: self.tried.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
            before: self.before.load(Ordering::Relaxed),
            after: self.after.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

/// What compressing took and gave, at one moment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Lz4Snapshot {
    /// Frames given to LZ4.
    pub tried: u64,
    /// Those of them that did not shrink and were sent as they were.
    pub stored: u64,
    /// Bytes in the frames that were tried.
    pub before: u64,
    /// Bytes that were sent for them.
    pub after: u64,
    /// Time spent in LZ4, on all threads together.
    pub time: Duration,
}

impl std::ops::Add for Lz4Snapshot {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tried: self.tried + other.tried,
            stored: self.stored + other.stored,
            before: self.before + other.before,
            after: self.after + other.after,
            time: self.time + other.time,
        }
    }
}

impl std::ops::Sub for Lz4Snapshot {
    type Output = Self;

    /// What was added since `other`.
    fn sub(self, other: Self) -> Self {
        Self {
            tried: self.tried - other.tried,
            stored: self.stored - other.stored,
            before: self.before - other.before,
            after: self.after - other.after,
            time: self.time.saturating_sub(other.time),
        }
    }
}

impl fmt::Display for Lz4Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lz4_tried={} lz4_stored={} lz4_before={} lz4_after={} lz4_seconds={:.3}",
            self.tried,
            self.stored,
            self.before,
            self.after,
            self.time.as_secs_f64()
        )
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
    /// What compressing took and gave.
    pub lz4: Lz4Snapshot,
}

impl fmt::Display for TrafficSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connections={} live={} to_service={} from_service={}",
            self.total, self.live, self.to_service, self.from_service
        )?;
        if self.lz4.tried > 0 {
            write!(f, " {}", self.lz4)?;
        }
        Ok(())
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
    /// `memory_budget` is used up.
    Memory,
    /// The other side could not be reached.
    Unreachable,
}

impl Refusal {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Pairs,
        Self::Unclaimed,
        Self::ByClient,
        Self::Resources,
        Self::SessionEnded,
        Self::Memory,
        Self::Unreachable,
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
            Self::Memory => "no_memory",
            Self::Unreachable => "unreachable",
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
        assert_eq!(refusals.total(), 36);
        assert!(
            refusals
                .to_string()
                .starts_with("refused=36 too_many_waiting=1 too_many_pairs=2")
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
        let part = Traffic::part_of(Arc::new(Traffic::default()));
        assert!(!part.snapshot().to_string().contains("lz4"));
        part.tried(1000, 400, Duration::from_micros(3));
        part.tried(1000, 1000, Duration::from_micros(1));
        for counted in [&part, part.parent.as_deref().expect("given above")] {
            assert_eq!(
                counted.snapshot().to_string(),
                "connections=0 live=0 to_service=0 from_service=0 \
                 lz4_tried=2 lz4_stored=1 lz4_before=2000 lz4_after=1400 lz4_seconds=0.000"
            );
        }
        let now = traffic.snapshot();
        assert_eq!(
            now,
            TrafficSnapshot {
                to_service: 5,
                from_service: 7,
                live: 1,
                total: 2,
                lz4: Lz4Snapshot::default(),
            }
        );
    }
}
