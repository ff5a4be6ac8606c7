//! One listener of the forward job, and all that belongs to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::tls::Established;
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::log::Quiet;
use minitcptunnel_common::log_limited;
use minitcptunnel_common::pki::{ClientTls, Watched};
use minitcptunnel_common::pool::{Permit, Place, Places, Watch};
use mio::Token;
use mio::net::TcpListener;

use super::dial::Server;
use super::plan::{Bounds, Plan};
use crate::config::forward::Forward;

/// Between two log lines of the same kind.
const QUIET: Duration = Duration::from_secs(10);

/// A local connection that waits.
pub(super) struct Local {
    pub(super) stream: mio::net::TcpStream,
    pub(super) address: SocketAddr,
    pub(super) permit: Permit,
    pub(super) place: Place,
}

/// A connection to the server that is ready, and under which token it is watched.
pub(super) struct Ready {
    pub(super) established: Established,
    pub(super) token: Token,
    pub(super) watch: Watch,
}

/// What is worth a line now and then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// The server cannot be reached, or is not who it should be.
    Server,
    /// A local connection waited in vain.
    Waited,
    /// There is no room for one more.
    Room,
    /// The system gives no connection.
    Accept,
}

impl Kind {
    pub(super) fn level(self) -> log::Level {
        match self {
            Self::Server | Self::Accept => log::Level::Error,
            Self::Waited | Self::Room => log::Level::Warn,
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Server => "no connection to the server",
            Self::Waited => "local connections waited in vain",
            Self::Room => "no room for another connection",
            Self::Accept => "cannot accept a connection",
        }
    }
}

/// A forward and its listener.
pub(super) struct Listening {
    pub(super) listener: TcpListener,
    pub(super) server: Arc<Server>,
    pub(super) certificates: Watched<ClientTls>,
    /// For those who wait and those who are carried.
    pub(super) places: Places,
    pub(super) plan: Plan<Local, Ready>,
    /// When the plan's timer is due.
    pub(super) due: Option<(Instant, DeadlineKey)>,
    pub(super) quiet: Quiet<Kind>,
    pub(super) cooling: bool,
}

impl Listening {
    pub(super) fn new(
        listener: TcpListener,
        server: Arc<Server>,
        certificates: Watched<ClientTls>,
        forward: &Forward,
    ) -> Self {
        Self {
            listener,
            server,
            certificates,
            places: Places::new(forward.connections),
            plan: Plan::new(Bounds {
                keep: forward.preconnected.into(),
                patience: forward.timeouts.retry_within,
                pauses: (forward.timeouts.backoff_min, forward.timeouts.backoff_max),
            }),
            due: None,
            quiet: Quiet::new(QUIET),
            cooling: false,
        }
    }

    /// Says something unless it was said a moment ago.
    pub(super) fn say(
        &mut self,
        kind: Kind,
        code: Code,
        now: Instant,
        what: std::fmt::Arguments<'_>,
    ) {
        let say = self.quiet.event(kind, now);
        let name = &self.server.name;
        log_limited!(kind.level(), say, "forward {name}: {what} code={code}");
    }

    /// Says how many lines were kept back.
    pub(super) fn say_what_was_kept(&mut self, now: Instant) {
        for (kind, more) in self.quiet.tick(now) {
            log::log!(
                kind.level(),
                "forward {}: {}: {more}",
                self.server.name,
                kind.what()
            );
        }
    }
}
