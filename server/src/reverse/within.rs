//! What the limits can be within the descriptors that the system allows.
//!
//! ```text
//!  all ─┬─ a small share each, at most: strangers, idle channels, our own
//!       └─ the rest, two by two: pairs, and visitors who wait to become one
//! ```
//!
//! A visitor who waits has the descriptors of the pair that he will be kept for him, so who waits and who
//! runs are bounded together.

use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::capacity::Capacity;
use minitcptunnel_common::codes::Code;

use crate::config::Config;

/// The most that our own pollers and files need; listeners are counted apart.
const OWN: usize = 32;

/// The limits that hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Within {
    /// Strangers in the gate.
    pub(crate) pending: usize,
    /// External connections that wait.
    pub(super) waiting: usize,
    /// Channels of an authenticated client that have no purpose yet.
    pub(super) idle_channels: usize,
    /// Running pairs, and who waits.
    pub(crate) pairs: Capacity,
}

/// What one use besides pairs may take of all descriptors: small systems give an eighth, large ones less.
fn share(all: usize, limit: usize) -> usize {
    limit.min((all / 32).max((all / 8).min(256))).max(1)
}

impl Within {
    /// What was configured, as far as `descriptors` go; `None` is no bound.
    pub(crate) fn new(descriptors: Option<u64>, config: &Config) -> Self {
        let limits = &config.limits;
        let all = descriptors.map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX));
        let clients = config.max_clients.max(1);
        let pending = share(all, limits.pending_handshakes);
        let idle_channels = limits
            .idle_data_channels
            .min(share(all, usize::MAX) / clients)
            .max(1);
        let listeners = clients.saturating_mul(limits.tunnels_per_client.saturating_add(1));
        let own = OWN.saturating_add(listeners).min(all / 8);
        let kept = pending + idle_channels * clients + own;
        let budget = Budget::new(config.memory_budget);
        let pairs = Capacity::new(limits.pairs, descriptors, kept, &budget);
        Self {
            pending,
            waiting: limits.waiting_connections.min(pairs.pairs),
            idle_channels,
            pairs,
        }
    }

    /// Says what bounds; a warning where that is less than somebody has asked for.
    pub(super) fn log(&self, limits: &crate::config::Limits) {
        if self.pairs.falls_short_of(limits.pairs) {
            log::warn!(
                "Carries up to {}, not limits.pairs = {} code={}",
                self.pairs,
                limits.pairs,
                Code::FEWER_CONNECTIONS
            );
        } else {
            log::info!("Carries up to {}", self.pairs);
        }
        for (key, asked, got) in [
            (
                "pending_handshakes",
                limits.pending_handshakes,
                self.pending,
            ),
            (
                "idle_data_channels",
                limits.idle_data_channels,
                self.idle_channels,
            ),
        ] {
            if got < asked {
                log::info!(
                    "limits.{key} is {got} instead of {asked}, in proportion to the open files that the system allows"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Overrides};
    use minitcptunnel_common::config::Places;

    fn config(clients: usize) -> Config {
        let checked = config::check(
            config::Raw::default(),
            Places::default(),
            &Overrides::default(),
        );
        Config {
            max_clients: clients,
            memory_budget: 256 * 1024 * 1024,
            ..checked.expect("defaults are fine").config
        }
    }

    #[test]
    fn everything_fits_into_the_descriptors() {
        for clients in [1, 10] {
            let config = config(clients);
            for all in [64, 128, 256, 1024, 4096, 20_000, 1 << 20] {
                let w = Within::new(Some(all), &config);
                let used = w.pending + clients * w.idle_channels + 2 * w.pairs.pairs;
                assert!(used as u64 <= all.max(80), "{all}: {w:?}");
                assert!(w.waiting <= w.pairs.pairs, "{all}: {w:?}");
                if clients == 1 {
                    let fair = (all / 4).min(13_000);
                    assert!(w.pairs.pairs as u64 >= fair, "{all}: {w:?}");
                }
            }
        }
    }

    #[test]
    fn the_limit_of_a_common_system_carries_what_it_can() {
        let config = config(1);
        assert!(Within::new(Some(20_000), &config).pairs.pairs >= 9500);
        let all = Within::new(None, &config);
        assert_eq!(all.pending, config.limits.pending_handshakes);
        assert_eq!(all.idle_channels, config.limits.idle_data_channels);
        assert!(all.pairs.to_string().contains("memory_budget"));
    }
}
