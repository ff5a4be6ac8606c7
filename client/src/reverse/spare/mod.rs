//! Spare data channels: a visitor who finds one costs no handshake (PROTOCOL.md E9).
//!
//! ```text
//!  Plan ─ open ─> worker: dial, hellos ─┬─ SpareReady ──> waits (poller) ─ Assign ─> dial service ─> pair ─┐
//!                                       │                   ^                both directions ended         │
//!                                       │                   └──────────────────────────────────────────────┘
//!                                       └─ server without `spare`: kept silent ─ IncomingConn ─> DataConnReady
//! ```
//!
//! A spare that waits holds a descriptor and no thread. The loop only hears of failures, which it
//! waits out, and of deadlines; all else happens on workers, under one short lock.

mod ahead;
mod plan;
mod waiting;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::reuse::{OnReuse, Recovered};
use minitcptunnel_common::duplex::{Abortable, Socket};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::log::RateLimited;
use minitcptunnel_common::wire::FIRST_FRAME_MAX;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;

use self::ahead::Ahead;
use self::plan::{OPENING_MAX, Plan};
use self::waiting::Spare;
use super::Input;
use super::server::{Channel, Server};
use super::tunnels::Enabled;
use crate::local_proxy::{LocalProxy, WARN_EVERY};
use minitcptunnel_common::backoff::random;

/// Safety: a server has closed those above `max` by then: it does so at once (E9), and what it sends takes
/// seconds at worst.
const EXCESS_MAX: Duration = Duration::from_secs(30);

/// What the spares of a session need.
pub(super) struct Parts {
    pub(super) server: Arc<Server>,
    pub(super) address: SocketAddr,
    pub(super) session: u64,
    pub(super) key: SessionKey,
    /// Whether the server knows about spares.
    pub(super) agreed: bool,
    pub(super) inbox: Inbox<Input>,
    pub(super) proxy: LocalProxy,
    pub(super) enabled: Enabled,
}

/// The spare data channels of one session.
pub(crate) struct Spares {
    parts: Parts,
    /// Connections for tunnels that are not enabled.
    disabled: Mutex<RateLimited>,
    state: Mutex<State>,
}

struct State {
    plan: Plan,
    /// Those that wait for an Assign, oldest first: to abort with, and since when.
    waiting: BTreeMap<u64, (Arc<Socket>, Instant)>,
    next: u64,
    /// Those that wait for a first frame of ours.
    ahead: Ahead<Channel>,
    /// It was said that the server closes what we want to keep.
    unwanted_told: bool,
    /// The session is over.
    over: bool,
}

impl State {
    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        let (plan, ahead) = (self.plan.due(), self.ahead.due());
        plan.into_iter().chain(ahead).min()
    }

    /// Those above `most` that the server should have closed: if it never does, they must not fill our
    /// descriptors. It may be about to: after a crowd, or on a long line, there are many for a moment, and
    /// maybe one of them is just being assigned. So only those count that have waited for long.
    fn excess(&self, most: usize, now: Instant) -> impl Iterator<Item = &(Arc<Socket>, Instant)> {
        let old = move |since: Instant| now.saturating_duration_since(since) >= EXCESS_MAX;
        let old = move || {
            self.waiting
                .values()
                .take_while(move |(_, since)| old(*since))
        };
        old().take(old().count().saturating_sub(most))
    }
}

/// One that was begun. Given up, it has come to nothing, however that came about: a task may be dropped
/// unrun, and may panic.
struct Opening {
    /// `None` when it has come to something.
    spares: Option<Arc<Spares>>,
}

impl Opening {
    fn done(mut self, plan: &mut Plan) {
        self.spares = None;
        plan.opened();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(spares) = self.spares.take() {
            spares.lock().plan.failed(Instant::now(), random());
            spares.wake();
        }
    }
}

/// A place among those that wait. Given up, it is closed, however that came about: a task that waits
/// for a socket is dropped unrun where there is no thread for it.
struct Place {
    spares: Arc<Spares>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let closed = |plan: &mut Plan| plan.closed(Instant::now(), random());
        self.spares.leave(self.id, closed);
        self.spares.tell_unwanted();
    }
}

impl Spares {
    /// The spares of a session that is up. [`fill`](Self::fill) begins.
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let server = &parts.server;
        let plan = Plan::new(
            server.spares.keep.into(),
            server.spares.max.into(),
            parts.agreed,
            (server.timeouts.backoff_min, server.timeouts.backoff_max),
        );
        Arc::new(Self {
            state: Mutex::new(State {
                plan,
                waiting: BTreeMap::new(),
                next: 0,
                ahead: Ahead::new(),
                unwanted_told: false,
                over: false,
            }),
            disabled: Mutex::new(RateLimited::new(WARN_EVERY)),
            parts,
        })
    }

    /// Nothing that can panic or block runs under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether channels of this session serve again.
    pub(super) fn are_agreed(&self) -> bool {
        self.parts.agreed
    }

    /// Begins to open what is missing, and closes what is too old. Does not block.
    pub(super) fn fill(self: &Arc<Self>) {
        self.fill_at(Instant::now());
    }

    fn fill_at(self: &Arc<Self>, now: Instant) {
        let count = {
            let mut state = self.lock();
            if state.over {
                return;
            }
            let old = state.ahead.drop_old(now);
            state.plan.retired(old);
            state.plan.open(now)
        };
        for _ in 0..count {
            let (this, spares) = (self.clone(), Some(self.clone()));
            let opening = Opening { spares };
            if let Err(e) = self.parts.proxy.pool().task(move || this.open(opening)) {
                none(&e);
            }
        }
    }

    /// There is something to wait for, which only the loop can do.
    fn wake(&self) {
        // If the loop is gone nobody needs spares.
        self.parts.inbox.send(Input::Spares);
    }

    /// On a worker.
    fn open(self: Arc<Self>, opening: Opening) {
        let mut channel = match self.parts.server.dial_address(self.parts.address) {
            Ok(channel) => channel,
            Err(e) => return none(&e),
        };
        if !self.parts.agreed {
            return self.put_aside(channel, opening);
        }
        let spares = &self.parts.server.spares;
        let ready = Message::SpareReady {
            token: self.parts.key.spare_token(),
            keep: spares.keep,
            max: spares.max,
        };
        let socket = channel
            .send_first(&ready)
            .and_then(|()| Socket::new(channel.stream));
        match socket {
            Ok(socket) => {
                let new = (socket, channel.sealer, channel.opener, Vec::new());
                self.enter(new, |plan| opening.done(plan));
                self.fill();
            }
            Err(e) => none(&e),
        }
    }

    /// A channel waits for an IncomingConn.
    fn put_aside(self: &Arc<Self>, channel: Channel, opening: Opening) {
        {
            let mut state = self.lock();
            if state.over {
                // It locks when it is dropped.
                drop(state);
                return;
            }
            opening.done(&mut state.plan);
            state.ahead.add(channel, Instant::now());
        }
        self.wake();
        self.fill();
    }

    /// What the halves of a data channel of this session call when both have ended.
    pub(super) fn on_reuse(self: &Arc<Self>) -> OnReuse {
        let this = self.clone();
        Box::new(move |recovered| {
            let Recovered {
                socket,
                sealer,
                opener,
                rest,
            } = recovered;
            let back = |plan: &mut Plan| plan.returned(Instant::now());
            this.enter((socket, sealer, opener, rest), back);
        })
    }

    /// A channel begins to wait.
    fn enter(
        self: &Arc<Self>,
        (socket, sealer, opener, rest): (Arc<Socket>, Sealer, Opener, Vec<u8>),
        count: impl FnOnce(&mut Plan),
    ) {
        let id = {
            let mut state = self.lock();
            if state.over {
                // What counts may lock when it is dropped.
                drop(state);
                return;
            }
            count(&mut state.plan);
            state.next += 1;
            let id = state.next;
            let entry = (socket.clone(), Instant::now());
            state.waiting.insert(id, entry);
            id
        };
        let mut frames = FrameReader::new(FIRST_FRAME_MAX);
        frames.push(&rest);
        let begun = !rest.is_empty();
        let spare = Spare {
            place: Place {
                spares: self.clone(),
                id,
            },
            socket,
            sealer,
            opener,
            frames,
            deadline: begun.then(|| Instant::now() + self.parts.server.timeouts.handshake),
        };
        if begun {
            // The next visitor was there already. This thread may be in the middle of something.
            let this = self.clone();
            // Dropped on an error, as everywhere here.
            let _ = self.parts.proxy.pool().task(move || this.look(spare));
        } else {
            self.wait(spare);
        }
    }

    fn wait(self: &Arc<Self>, spare: Spare) {
        let (this, socket) = (self.clone(), spare.socket.clone());
        let pool = self.parts.proxy.pool();
        let _ = pool.when_readable(socket, move || this.look(spare));
    }

    /// A spare waits no longer, if it still did.
    fn leave(&self, id: u64, count: impl FnOnce(&mut Plan)) {
        let mut state = self.lock();
        if state.waiting.remove(&id).is_none() {
            return;
        }
        let before = state.due();
        count(&mut state.plan);
        let after = state.due();
        drop(state);
        if after.is_some() && after != before {
            self.wake();
        }
    }

    /// Says once that there are fewer than configured, if it is so.
    fn tell_unwanted(&self) {
        let mut state = self.lock();
        if !state.plan.is_unwanted() || std::mem::replace(&mut state.unwanted_told, true) {
            return;
        }
        drop(state);
        log::info!(
            "Something closes idle data channels that limits.spare_channels = {} asks for: the server, if its \
             limits.idle_data_channels are fewer, or the network on the way; new ones are opened less and less often",
            self.parts.server.spares.keep
        );
    }

    /// A visitor was announced by IncomingConn, to a server that knows of spares: it had none.
    pub(super) fn missed(self: &Arc<Self>) {
        self.lock().plan.missed(Instant::now());
        self.fill();
    }

    /// A handshaken channel to a server that does not know of spares, the newest that still lives.
    pub(super) fn take_ahead(self: &Arc<Self>) -> Option<Channel> {
        let mut state = self.lock();
        let now = Instant::now();
        let old = state.ahead.drop_old(now);
        state.plan.retired(old);
        let taken = loop {
            let Some(channel) = state.ahead.take() else {
                state.plan.missed(now);
                break None;
            };
            if is_silent(&channel.stream) {
                state.plan.taken(now);
                break Some(channel);
            }
            state.plan.closed(now, random());
        };
        drop(state);
        self.tell_unwanted();
        self.fill();
        // The waits may be others now.
        self.wake();
        taken
    }

    /// With each heartbeat: forgets old demand, and closes what is too much.
    pub(super) fn beat(self: &Arc<Self>, now: Instant) {
        let mut state = self.lock();
        state.plan.beat();
        if self.parts.agreed {
            let most = usize::from(self.parts.server.spares.max) + OPENING_MAX;
            for (socket, _) in state.excess(most, now) {
                // A worker finds the mark, lets go, and counts it out.
                socket.abort();
            }
        } else {
            let dead = state.ahead.drop_dead(|channel| is_silent(&channel.stream));
            state.plan.retired(dead);
            let surplus = state.plan.surplus();
            state.ahead.drop_oldest(surplus);
            state.plan.retired(surplus);
        }
        drop(state);
        self.fill_at(now);
    }

    /// When [`fill`](Self::fill) is worth calling again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lock().due()
    }

    /// The session is over, and its spares with it. Pairs go on.
    pub(super) fn end(&self) {
        let (waiting, ahead) = {
            let mut state = self.lock();
            state.over = true;
            (
                std::mem::take(&mut state.waiting),
                std::mem::replace(&mut state.ahead, Ahead::new()),
            )
        };
        drop(ahead);
        // Wakes the poller, which wakes a worker, which finds the mark and lets go.
        for (socket, _) in waiting.values() {
            socket.abort();
        }
    }
}

/// Why there is none.
fn none(why: &dyn std::fmt::Display) {
    log::debug!("no spare data channel: {why}");
}

/// Whether the server has sent nothing, not even its end.
fn is_silent(stream: &TcpStream) -> bool {
    let look = || -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        peeked
    };
    matches!(look(), Err(e) if e.kind() == ErrorKind::WouldBlock)
}

impl Channel {
    /// Sends the message that says what this channel is for.
    pub(super) fn send_first(&mut self, message: &Message) -> io::Result<()> {
        let (mut plain, mut frame) = (Vec::new(), Vec::new());
        message.encode(true, &mut plain);
        self.sealer
            .seal_message(&plain, &mut frame)
            .map_err(io::Error::other)?;
        self.stream.write_all(&frame)?;
        self.stream.set_write_timeout(None)
    }
}

#[cfg(test)]
mod tests;
