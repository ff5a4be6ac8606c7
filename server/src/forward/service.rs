//! What all connections of one forward share: certificates, targets, counters.

use std::net::TcpStream;
use std::time::Duration;

use minitcptunnel_common::addresses::Dialled;
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{Current, ServerTls};
use minitcptunnel_common::pool::{Places, Pool, owner_of};

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
    targets: Dialled<Endpoint>,
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
            owner: owner_of(("forward", number)),
            targets: Dialled::new(forward.targets),
        }
    }

    /// Reaches the target: its addresses in order, those that failed lately last, each with an equal part of
    /// what time is left. The error says what was tried.
    pub(super) fn dial(&self) -> Result<TcpStream, String> {
        let tried = self
            .targets
            .try_each(self.timeouts.connect, |target, part| {
                dial::connect(target.host.as_str(), target.port, part)
                    .map_err(|e| (format!("{target}: {e}"), Duration::ZERO))
            });
        let stream = tried.map_err(|tried| tried.join("; "))?;
        // Where the system cannot be told, it notices later that the target has vanished.
        let _ = dial::set_keepalive(&stream);
        Ok(stream)
    }
}
