//! One listener of the forward job, and all that belongs to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::tls::Established;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::log::{Quiet, Say};
use minitcptunnel_common::log_limited;
use minitcptunnel_common::pki::{ClientTls, Problem, Watched};
use minitcptunnel_common::pool::{Permit, Place, Places, Watch};
use mio::Token;
use mio::net::TcpListener;

use super::dial::Server;
use super::news::News;
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

/// What is worth a line now and then. What is about the server is [`News`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// There is no room for one more.
    Room,
    /// The system has no descriptors left.
    Descriptors,
    /// The system gives no connection.
    Accept,
}

impl Coded for Kind {
    fn code(&self) -> Code {
        match self {
            Self::Room => Code::FORWARD_FULL,
            Self::Descriptors => Code::NO_DESCRIPTORS,
            Self::Accept => Code::CANNOT_ACCEPT,
        }
    }
}

impl Kind {
    pub(super) fn level(self) -> log::Level {
        match self {
            Self::Descriptors | Self::Accept => log::Level::Error,
            Self::Room => log::Level::Warn,
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Room => "no room for another connection",
            Self::Descriptors => "out of file descriptors",
            Self::Accept => "cannot accept a connection",
        }
    }
}

/// Why a local connection is closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Away {
    /// It waited as long as it may.
    Waited,
    /// What is wrong with the server does not pass by itself.
    AtOnce(Code),
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
    news: News,
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
            news: News::default(),
            cooling: false,
        }
    }

    /// Says something unless it was said a moment ago.
    pub(super) fn say(&mut self, kind: Kind, now: Instant, what: std::fmt::Arguments<'_>) {
        let say = self.quiet.event(kind, now);
        let name = &self.server.name;
        log_limited!(
            kind.level(),
            say,
            "forward {name}: {what} code={}",
            kind.code()
        );
    }

    /// The server cannot be reached, or is not who it should be; and what becomes of that.
    pub(super) fn failed(&mut self, problem: &Problem, outlook: &str, now: Instant) {
        // What has worked until now is told before what does not.
        self.say_what_works(now);
        let (name, what, code) = (&self.server.name, &problem.text, problem.code);
        let say = self.news.failed(what, now);
        if say == Say::Nothing {
            log::debug!("forward {name}: {what}{outlook}");
        }
        log_limited!(
            log::Level::Error,
            say,
            "forward {name}: {what}{outlook} code={code}"
        );
    }

    /// The server has taken a connection.
    pub(super) fn connected(&mut self, now: Instant) {
        self.news.connected(now);
    }

    /// A local connection is closed, as there is no way to the server.
    pub(super) fn turned_away(&mut self, address: SocketAddr, away: Away, now: Instant) {
        let say = self.news.turned_away(now);
        let name = &self.server.name;
        if say == Say::Nothing {
            log::debug!("forward {name}: the connection from {address} is closed");
        }
        let why = self.news.why();
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        match away {
            Away::Waited => {
                let seconds = self.server.timeouts.retry_within.as_secs_f64();
                log_limited!(
                    log::Level::Warn,
                    say,
                    "forward {name}: the connection from {address} waited {seconds} s for the server in vain \
                     (timeouts.retry_within); closed{why} code={}",
                    Code::WAITED_IN_VAIN
                );
            }
            Away::AtOnce(code) => log_limited!(
                log::Level::Warn,
                say,
                "forward {name}: the connection from {address} is closed at once, as waiting would not help{why} \
                 code={code}"
            ),
        }
    }

    /// When there may be something to say without anything happening.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.quiet.deadline(), self.news.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Says how many lines were kept back, and that the server is there again.
    pub(super) fn say_what_was_kept(&mut self, now: Instant) {
        self.say_what_works(now);
        for (kind, more) in self.quiet.tick(now) {
            log::log!(
                kind.level(),
                "forward {}: {}: {more} code={}",
                self.server.name,
                kind.what(),
                kind.code()
            );
        }
    }

    fn say_what_works(&mut self, now: Instant) {
        if let Some(over) = self.news.tick(now) {
            log::info!(
                "forward {}: the server takes connections; failed attempts={} within {:.1} s, connections closed={}",
                self.server.name,
                over.failures,
                over.within.as_secs_f64(),
                over.turned_away
            );
        }
    }
}
