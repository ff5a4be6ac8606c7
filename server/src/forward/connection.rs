//! One TLS connection, from accept to pair.
//!
//! ```text
//!  Pending ─ step ─┬─ the peer has to say something ─> poller ─> step
//!                  ├─ done ─> admit ─> permit ─> dial ─> pair          the guest leaves the gate
//!                  └─ failed, dropped ───────────────────────────────> the guest leaves the gate
//! ```
//!
//! No thread waits: the poller holds the socket between two steps, and the loop holds the deadline.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::tls;
use minitcptunnel_common::channel::tls::{Established, Handshake, Progress};
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::duplex::{self, Socket};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::pki::{Peer, Side, UnixTime};
use mio::Token;

use super::event_loop::Event;
use super::service::Service;

/// Why a connection came to nothing, for the log.
pub(super) struct Failure {
    pub(super) address: SocketAddr,
    pub(super) kind: Kind,
    pub(super) code: Code,
    pub(super) what: String,
}

/// The same before it is known whose it is.
type Why = (Kind, Code, String);

/// For what has no code of its own.
fn why(kind: Kind, what: impl fmt::Display) -> Why {
    (kind, kind.code(), what.to_string())
}

/// What kind of failure, for quiet log lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// It left in the middle of the handshake.
    Left,
    /// The handshake took too long.
    Late,
    /// TLS, or a certificate, is not as it must be.
    Handshake,
    /// Too many handshakes that are not done.
    Crowd,
    /// There is no room for one more pair.
    Room,
    /// The target cannot be reached.
    Target,
    /// The system has no descriptors left.
    Descriptors,
    /// The system gives no connection.
    Accept,
}

impl Coded for Kind {
    fn code(&self) -> Code {
        match self {
            Self::Left | Self::Late | Self::Handshake => Code::TLS_CUT,
            Self::Crowd | Self::Room => Code::FORWARD_FULL,
            Self::Target => Code::TARGET_SERVICE,
            Self::Descriptors => Code::NO_DESCRIPTORS,
            Self::Accept => Code::CANNOT_ACCEPT,
        }
    }
}

impl Kind {
    /// How much it matters.
    pub(super) fn level(self) -> log::Level {
        match self {
            Self::Left => log::Level::Debug,
            Self::Late => log::Level::Info,
            Self::Handshake | Self::Crowd | Self::Room => log::Level::Warn,
            Self::Target | Self::Descriptors | Self::Accept => log::Level::Error,
        }
    }

    /// In words, for the line that counts.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Left => "left during the handshake",
            Self::Late => "no complete handshake in time",
            Self::Handshake => "handshake failed",
            Self::Crowd => "too many unfinished handshakes",
            Self::Room => "no room for another connection",
            Self::Target => "the target cannot be reached",
            Self::Descriptors => "out of file descriptors",
            Self::Accept => "cannot accept a connection",
        }
    }

    /// The code of the line that counts; none where those it counts have several.
    pub(super) fn counted(self) -> Option<Code> {
        (!matches!(self, Self::Handshake)).then(|| self.code())
    }
}

/// Holds a place in the gate until the handshake is over, one way or the other.
pub(super) struct Guest {
    inbox: Inbox<Event>,
    token: Token,
    failure: Option<Failure>,
}

impl Guest {
    pub(super) fn new(inbox: Inbox<Event>, token: Token) -> Self {
        Self {
            inbox,
            token,
            failure: None,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // If the loop is gone nobody counts any more.
        self.inbox
            .send(Event::Left(self.token, self.failure.take()));
    }
}

/// A connection whose handshake is not done.
pub(super) struct Pending {
    pub(super) service: Arc<Service>,
    pub(super) handshake: Handshake,
    pub(super) address: SocketAddr,
    pub(super) guest: Guest,
}

impl Pending {
    /// Waits in the poller until there is something to do. Dropped, which closes it and says so, where that fails.
    pub(super) fn wait(mut self) {
        self.blame(why(Kind::Room, "the system gives no room to wait in"));
        let (pool, shaker) = (self.service.pool.clone(), self.service.shaker.clone());
        let socket = self.handshake.socket().clone();
        let _ = pool.note_readable(socket, move || shaker.step(self));
    }

    /// Goes on as far as it goes without waiting.
    pub(super) fn step(mut self) {
        self.guest.failure = None;
        match self.handshake.step() {
            Ok(Progress::WantRead) => self.wait(),
            Ok(Progress::Done) => {
                let pool = self.service.pool.clone();
                // Dropped, which closes it and says so, where there is no thread.
                self.blame(why(
                    Kind::Room,
                    "the system gives no thread to reach the target with",
                ));
                let _ = pool.task(move || self.established());
            }
            // A flight of ours fits into an empty socket: whoever does not take that takes nothing.
            Ok(Progress::WantWrite) => {
                self.blame(why(Kind::Late, "it does not read what it asked for"));
            }
            Err(e) => {
                let kind = if e.is_departure() {
                    Kind::Left
                } else {
                    Kind::Handshake
                };
                self.blame(match e.explain(Side::Server) {
                    Some(problem) => (kind, problem.code, problem.text),
                    None => why(kind, &e),
                });
            }
        }
    }

    /// What it was, if it goes now.
    fn blame(&mut self, (kind, code, what): Why) {
        self.guest.failure = Some(Failure {
            address: self.address,
            kind,
            code,
            what,
        });
    }

    /// On a worker: the target may take its time.
    fn established(self) {
        let Self {
            service,
            handshake,
            address,
            mut guest,
        } = self;
        guest.failure = None;
        let established = handshake.established();
        let result = serve(&service, established, address, &guest);
        if let Err((kind, code, what)) = result {
            guest.failure = Some(Failure {
                address,
                kind,
                code,
                what,
            });
        }
    }
}

/// Admits the peer, reaches the target, and joins the two.
fn serve(
    service: &Arc<Service>,
    established: Established,
    address: SocketAddr,
    guest: &Guest,
) -> Result<(), Why> {
    let tls = service.tls.get();
    let certificates = established.peer_certificates();
    let peer = tls
        .admit(
            Some(certificates).filter(|all| !all.is_empty()),
            UnixTime::now(),
        )
        .map_err(|refusal| (Kind::Handshake, refusal.code(), refusal.to_string()))?;
    let socket = established.socket().clone();
    let result = join(service, established, address, Who(peer), guest);
    if result.is_err() {
        // To the peer this is a cut, and no end.
        duplex::reset(socket.stream());
    }
    result
}

/// Finds a place, reaches the target, and begins the pair.
fn join(
    service: &Arc<Service>,
    established: Established,
    address: SocketAddr,
    who: Who,
    guest: &Guest,
) -> Result<(), Why> {
    let place = service.places.take().ok_or_else(|| {
        service.metrics.refusals.add(Refusal::Pairs);
        let limit = service.places.limit();
        let what = format!("refused: {limit} connections are carried already (limits.connections)");
        why(Kind::Room, what)
    })?;
    let permit = service.pool.admit().map_err(|e| {
        service.metrics.refusals.add(e.refusal());
        why(Kind::Room, e)
    })?;
    // The handshake is over: what follows has deadlines of its own, and room in the pool.
    guest.inbox.send(Event::Shaken(guest.token));
    let target = service.dial().map_err(|what| {
        service.metrics.refusals.add(Refusal::Unreachable);
        why(Kind::Target, what)
    })?;
    let target = Socket::new(target).map_err(|e| why(Kind::Target, e))?;
    let socket = established.socket().clone();
    if let Some(limit) = service.timeouts.write {
        for socket in [&target, &socket] {
            socket.limit_writes(limit);
        }
    }
    let ledger = Ledger {
        budget: service.pool.budget().clone(),
        traffic: service.metrics.traffic.clone(),
    };
    let name = service.name.clone();
    log::debug!("forward={name} connection from {address} client={who}");
    let metrics = service.metrics.clone();
    let on_end = move |ended| {
        drop(place);
        let active = metrics.traffic.snapshot().live;
        log::info!(
            "connection ended forward={name} peer={address} client={who} {ended} active={active}"
        );
    };
    service
        .pool
        .start(
            permit,
            service.owner,
            tls::duplex(established, socket, &ledger),
            duplex::tcp_over(target),
            service.metrics.traffic.clone(),
            on_end,
        )
        .map_err(|e| why(Kind::Room, e))
}

/// A client as log lines name it.
struct Who(Option<Peer>);

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(peer) => write!(f, "{:?}", peer.names.short()),
            None => f.write_str("-"),
        }
    }
}
