//! LocalProxy: dials the local service and the far end of a connection at the same time, and joins
//! the two.
//!
//! ```text
//!  serve ─ admit ─┬─ worker: dial local service ──┐
//!                 │                               ├─ both: pair on the pool
//!                 └─ worker: far end dial ────────┘  one fails: refuse at once, drop the other
//!
//!  dial ─ admit ─── dial local service, here and now ─> pair         (the far end is there already)
//! ```
//!
//! The pool's permit is held until both dials are over, however they end, so that the number of
//! workers stays within what the pool admits.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::dial;
use minitcptunnel_common::duplex::{self, Duplex};
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::log::RateLimited;
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::{Refusal, Refusals};
use minitcptunnel_common::pool::{Permit, Pool, PoolError};

use crate::reverse::tunnels::Target;

/// Warnings about one tunnel's connections come at most this often.
pub(crate) const WARN_EVERY: Duration = Duration::from_secs(30);

/// The other end of a pair while it is being made.
pub trait FarEnd: Send + Sync + 'static {
    /// A channel that nobody has been promised yet.
    type Channel: Send + 'static;

    /// Opens a channel; blocking, on a worker, with a deadline of its own.
    fn dial(&self) -> Result<Self::Channel, String>;

    /// Makes the channel the far end of the connection.
    fn join(&self, channel: Self::Channel) -> io::Result<Duplex>;

    /// Tells the far end that nobody will come.
    fn refuse(&self, reason: &str);

    /// Throws away a channel that is not needed; [`refuse`](Self::refuse) has been called.
    fn discard(&self, channel: Self::Channel);
}

/// A connection to be served.
pub struct Call {
    /// Where it leads.
    pub target: Arc<Target>,
    /// Its name.
    pub conn: ConnId,
    /// Who it is, if the server said so. For logs only.
    pub visitor: Option<String>,
    /// The session that it came with.
    pub owner: u64,
}

/// Serves connections. Cheap to clone.
#[derive(Clone)]
pub struct LocalProxy {
    pool: Pool,
    timeout: Duration,
    refusals: Arc<Refusals>,
    /// One limiter per tunnel of the configuration.
    warnings: Arc<Mutex<HashMap<TunnelId, RateLimited>>>,
}

impl LocalProxy {
    /// A proxy that gives a local service `timeout` to accept a connection.
    pub fn new(pool: Pool, timeout: Duration, refusals: Arc<Refusals>) -> Self {
        Self {
            pool,
            timeout,
            refusals,
            warnings: Arc::default(),
        }
    }

    /// Where the data channels of this tunnel are counted.
    pub(crate) fn ledger(&self, target: &Target) -> Ledger {
        Ledger {
            budget: self.pool.budget().clone(),
            traffic: target.traffic.clone(),
        }
    }

    /// Serves one connection, or refuses it. Does not block.
    pub fn serve<F: FarEnd>(&self, call: Call, far: F) {
        let permit = match self.pool.admit() {
            Ok(permit) => permit,
            Err(e) => {
                self.refused(&call.target.id, refusal(&e), &e.to_string());
                far.refuse(&e.to_string());
                return;
            }
        };
        let meeting = Arc::new(Meeting {
            proxy: self.clone(),
            call,
            far,
            state: Mutex::new(State {
                permit: Some(permit),
                arrived: Arrived::Nobody,
            }),
        });
        let (service, channel) = (meeting.clone(), meeting.clone());
        let started = self
            .pool
            .task(move || service.dial_service())
            .and_then(|()| self.pool.task(move || channel.dial_far()));
        if let Err(e) = started {
            meeting.fail(refusal(&e), &e.to_string());
        }
    }

    /// The pool that pairs run on.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Dials a local service, for a far end that is there already; blocking, on a worker. `None`: it
    /// was refused, which has been counted and said.
    pub fn dial(&self, target: &Target) -> Option<(Permit, TcpStream)> {
        let permit = match self.pool.admit() {
            Ok(permit) => permit,
            Err(e) => {
                self.refused(&target.id, refusal(&e), &e.to_string());
                return None;
            }
        };
        match dial::connect(&target.host, target.port, self.timeout) {
            Ok(stream) => {
                let _ = dial::set_keepalive(&stream);
                Some((permit, stream))
            }
            Err(e) => {
                let reason = format!("local service: {e}");
                self.refused(&target.id, Refusal::ByClient, &reason);
                None
            }
        }
    }

    /// Starts a pair.
    pub fn pair(&self, permit: Permit, call: &Call, external: Duplex, stream: TcpStream) {
        let target = &call.target;
        let service = match duplex::tcp(stream) {
            Ok(service) => service,
            Err(e) => {
                external.abort.abort();
                let reason = format!("local service: {e}");
                return self.refused(&target.id, Refusal::ByClient, &reason);
            }
        };
        let head = format!(
            "tunnel={:?} conn={:?} visitor={:?}",
            target.id.as_str(),
            call.conn.as_str(),
            call.visitor.as_deref().unwrap_or("unknown"),
        );
        let started = self.pool.start(
            permit,
            call.owner,
            external,
            service,
            target.traffic.clone(),
            move |ended| log::debug!("pair {head} {ended}"),
        );
        if let Err(e) = started {
            // The pair has been aborted, which resets both of its ends.
            self.refused(&target.id, refusal(&e), &e.to_string());
        }
    }

    /// Counts a refusal that somebody else talks about.
    pub fn count(&self, why: Refusal) {
        self.refusals.add(why);
    }

    /// Counts a refusal and warns about it, but not too often.
    pub fn refused(&self, tunnel: &TunnelId, why: Refusal, reason: &str) {
        self.refusals.add(why);
        let say = self
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(tunnel.clone())
            .or_insert_with(|| RateLimited::new(WARN_EVERY))
            .event(Instant::now());
        log_limited!(
            log::Level::Warn,
            say,
            "Refused a connection of tunnel {:?}: {reason} code={}",
            tunnel.as_str(),
            code_of(why)
        );
    }
}

fn refusal(e: &PoolError) -> Refusal {
    match e {
        PoolError::Closed => Refusal::SessionEnded,
        e => e.refusal(),
    }
}

fn code_of(why: Refusal) -> Code {
    match why {
        Refusal::ByClient | Refusal::Unreachable => Code::LOCAL_SERVICE,
        Refusal::Unclaimed => Code::DATA_CHANNEL,
        Refusal::SessionEnded => Code::SESSION_CLOSED,
        Refusal::Waiting | Refusal::Pairs | Refusal::Resources | Refusal::Memory => Code::NO_ROOM,
    }
}

/// Two dials that wait for each other.
struct Meeting<F: FarEnd> {
    proxy: LocalProxy,
    call: Call,
    far: F,
    state: Mutex<State<F::Channel>>,
}

struct State<C> {
    /// Goes to the pair; otherwise it is held until both workers have let go of the meeting.
    permit: Option<Permit>,
    arrived: Arrived<C>,
}

enum Arrived<C> {
    Nobody,
    Service(TcpStream),
    Channel(C),
    /// Joined, or refused: whoever comes now comes in vain.
    Over,
}

impl<F: FarEnd> Meeting<F> {
    /// Nothing that can panic or block runs under this lock.
    fn lock(&self) -> MutexGuard<'_, State<F::Channel>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dial_service(&self) {
        let target = &self.call.target;
        let stream = match dial::connect(&target.host, target.port, self.proxy.timeout) {
            Ok(stream) => stream,
            Err(e) => return self.fail(Refusal::ByClient, &format!("local service: {e}")),
        };
        let _ = dial::set_keepalive(&stream);
        let mut state = self.lock();
        match std::mem::replace(&mut state.arrived, Arrived::Over) {
            Arrived::Channel(channel) => {
                let permit = state.permit.take();
                drop(state);
                self.join(permit, channel, stream);
            }
            Arrived::Nobody => state.arrived = Arrived::Service(stream),
            Arrived::Service(_) | Arrived::Over => duplex::reset(&stream),
        }
    }

    fn dial_far(&self) {
        let channel = match self.far.dial() {
            Ok(channel) => channel,
            Err(e) => return self.fail(Refusal::Unclaimed, &format!("data channel: {e}")),
        };
        let mut state = self.lock();
        match std::mem::replace(&mut state.arrived, Arrived::Over) {
            Arrived::Service(stream) => {
                let permit = state.permit.take();
                drop(state);
                self.join(permit, channel, stream);
            }
            Arrived::Nobody => state.arrived = Arrived::Channel(channel),
            Arrived::Channel(_) | Arrived::Over => {
                drop(state);
                self.far.discard(channel);
            }
        }
    }

    /// One of the two will not come.
    fn fail(&self, why: Refusal, reason: &str) {
        let arrived = std::mem::replace(&mut self.lock().arrived, Arrived::Over);
        if matches!(arrived, Arrived::Over) {
            return;
        }
        // The far end first: somebody is waiting there.
        self.far.refuse(reason);
        self.proxy.refused(&self.call.target.id, why, reason);
        match arrived {
            Arrived::Service(stream) => duplex::reset(&stream),
            Arrived::Channel(channel) => self.far.discard(channel),
            Arrived::Nobody | Arrived::Over => {}
        }
    }

    fn join(&self, permit: Option<Permit>, channel: F::Channel, stream: TcpStream) {
        let target = &self.call.target;
        // Whoever arrives second takes the permit, and only one can be second.
        let Some(permit) = permit else { return };
        let external = match self.far.join(channel) {
            Ok(external) => external,
            Err(e) => {
                // The service has accepted a connection that comes to nothing.
                duplex::reset(&stream);
                let reason = format!("data channel: {e}");
                self.far.refuse(&reason);
                return self.proxy.refused(&target.id, Refusal::Unclaimed, &reason);
            }
        };
        self.proxy.pair(permit, &self.call, external, stream);
    }
}

#[cfg(test)]
mod tests;
