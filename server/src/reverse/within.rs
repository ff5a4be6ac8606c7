//! What the limits can be within the descriptors that the system allows.
//!
//! ```text
//!  all ─┬─ an eighth each, at most: strangers, waiting visitors, idle channels, our own
//!       └─ the rest, two by two: pairs
//! ```

use crate::config::Limits;

/// The most that our own listeners, pollers and files need.
const OWN: usize = 64;

/// The limits that hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Within {
    /// Strangers in the gate.
    pub(super) pending: usize,
    /// External connections that wait.
    pub(super) waiting: usize,
    /// Channels of an authenticated client that have no purpose yet.
    pub(super) idle_channels: usize,
    /// Running pairs.
    pub(super) pairs: usize,
}

impl Within {
    /// What was configured, as far as `descriptors` go; `None` is no bound. Warns when pairs suffer.
    pub(super) fn new(descriptors: Option<u64>, limits: &Limits, clients: usize) -> Self {
        let within = Self::of(descriptors, limits, clients);
        for (key, asked, got) in [
            ("pairs", limits.pairs, within.pairs),
            (
                "pending_handshakes",
                limits.pending_handshakes,
                within.pending,
            ),
            (
                "waiting_connections",
                limits.waiting_connections,
                within.waiting,
            ),
            (
                "idle_data_channels",
                limits.idle_data_channels,
                within.idle_channels,
            ),
        ] {
            if got < asked {
                log::warn!(
                    "the system allows {} open files, enough for limits.{key} of {got} instead of {asked}; raise it with `ulimit -n` or LimitNOFILE",
                    descriptors.unwrap_or(0),
                );
            }
        }
        within
    }

    /// `clients` may be connected at once; idle channels and tunnels are limited for each of them.
    fn of(descriptors: Option<u64>, limits: &Limits, clients: usize) -> Self {
        let configured = Self {
            pending: limits.pending_handshakes,
            waiting: limits.waiting_connections,
            idle_channels: limits.idle_data_channels,
            pairs: limits.pairs,
        };
        let Some(all) = descriptors else {
            return configured;
        };
        let all = usize::try_from(all).unwrap_or(usize::MAX);
        let share = |limit: usize| limit.min(all / 8).max(1);
        let (pending, waiting) = (share(configured.pending), share(configured.waiting));
        let clients = clients.max(1);
        let idle_channels = configured.idle_channels.min(all / 8 / clients).max(1);
        let listeners = clients.saturating_mul(limits.tunnels_per_client.saturating_add(1));
        let own = OWN.saturating_add(listeners).min(all / 8);
        let left = all.saturating_sub(pending + waiting + idle_channels * clients + own);
        Self {
            pending,
            waiting,
            idle_channels,
            pairs: configured.pairs.min(left / 2).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_into_the_descriptors() {
        let limits = Limits::default();
        assert_eq!(Within::of(None, &limits, 1).pairs, limits.pairs);
        assert_eq!(Within::of(Some(1 << 20), &limits, 1).pairs, limits.pairs);
        for all in [64, 128, 256, 1024, 4096, 20_000] {
            let w = Within::of(Some(all), &limits, 1);
            let used = w.pending + w.waiting + w.idle_channels + 2 * w.pairs;
            assert!(used as u64 <= all, "{all}: {w:?}");
            let many = Within::of(Some(all), &limits, 10);
            let used = many.pending + many.waiting + 10 * many.idle_channels + 2 * many.pairs;
            assert!(used as u64 <= all.max(80), "{all}: {many:?}");
            assert!(
                w.pairs as u64 >= all / 8 || w.pairs == limits.pairs,
                "{all}: {w:?}"
            );
        }
        assert_eq!(Within::of(Some(1024), &limits, 1).pairs, 256);
    }
}
