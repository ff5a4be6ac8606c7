//! What all connections of one forward share: certificates, targets, counters.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::addresses::Addresses;
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{Current, ServerTls};
use minitcptunnel_common::pool::{Places, Pool};

use super::shaker::Shaker;
use crate::config::forward::{Forward, ForwardLimits, ForwardTimeouts};

/// See the module head.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) tls: Current<ServerTls>,
    pub(super) timeouts: ForwardTimeouts,
    /// The whole handshake, however slowly it comes.
    pub(super) handshake: Duration,
    pub(super) limits: ForwardLimits,
    /// For its connections.
    pub(super) places: Places,
    pub(super) pool: Pool,
    pub(super) shaker: Shaker,
    pub(super) metrics: Metrics,
    /// Its pairs' owner in the pool.
    pub(super) owner: u64,
    targets: Mutex<Addresses<Endpoint>>,
}

impl Service {
    pub(super) fn new(
        number: usize,
        forward: Forward,
        tls: Current<ServerTls>,
        pool: Pool,
        shaker: Shaker,
        metrics: Metrics,
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        ("forward", number).hash(&mut hasher);
        Self {
            name: forward.name,
            tls,
            timeouts: forward.timeouts,
            handshake: forward.tls.handshake_timeout,
            places: Places::new(forward.limits.connections),
            limits: forward.limits,
            pool,
            shaker,
            metrics,
            owner: hasher.finish(),
            targets: Mutex::new(Addresses::new(forward.targets)),
        }
    }

    /// Nothing that blocks or panics runs under this lock.
    fn targets(&self) -> MutexGuard<'_, Addresses<Endpoint>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaches the target: its addresses in order, those that failed lately last, each with an equal part of
    /// what time is left. The error says what was tried.
    pub(super) fn dial(&self) -> Result<TcpStream, String> {
        let order = self.targets().in_order(Instant::now());
        let deadline = Instant::now() + self.timeouts.connect;
        let mut tried = Vec::new();
        for (n, number) in order.iter().enumerate() {
            let target = self.targets().of(*number).clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / u32::try_from(order.len() - n).unwrap_or(u32::MAX);
            match dial::connect(target.host.as_str(), target.port, part) {
                Ok(stream) => {
                    // Where the system cannot be told, it notices later that the target has vanished.
                    let _ = dial::set_keepalive(&stream);
                    self.targets().worked(*number);
                    return Ok(stream);
                }
                Err(e) => {
                    self.targets().failed(*number, Instant::now());
                    tried.push(format!("{target}: {e}"));
                }
            }
        }
        Err(tried.join("; "))
    }
}

/// The targets as a log line names them.
pub(super) fn in_words(targets: &[Endpoint]) -> String {
    let all: Vec<_> = targets.iter().map(Endpoint::to_string).collect();
    all.join(", then ")
}
