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
//! waits out; all else happens on workers, under one short lock.

mod plan;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::reuse::{OnReuse, Recovered};
use minitcptunnel_common::channel::sealed;
use minitcptunnel_common::duplex::{self, Abortable, Socket, Wait};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::log::RateLimited;
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::wire::FIRST_FRAME_MAX;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;

use self::plan::Plan;
use super::Input;
use super::control::random;
use super::server::{Channel, Server};
use super::tunnels::Enabled;
use crate::local_proxy::{Call, LocalProxy, WARN_EVERY};

/// What an Assign may expand to, in bytes (L3).
const ASSIGN_MAX: usize = 2 * FIRST_FRAME_MAX;
/// Semantics: a server without `spare` is not made to wait longer than this for a first frame. An
/// original waits for ever, servers of this project 120 s.
const AHEAD_MAX: Duration = Duration::from_secs(105);

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
    /// Those that wait for an Assign, to abort with.
    waiting: HashMap<u64, Arc<Socket>>,
    next: u64,
    /// Those that wait for a first frame of ours, oldest first, and since when.
    ahead: Vec<(Channel, Instant)>,
    /// The session is over.
    over: bool,
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
    }
}

/// A spare that waits for its Assign.
struct Spare {
    place: Place,
    socket: Arc<Socket>,
    sealer: Sealer,
    opener: Opener,
    frames: FrameReader,
    /// The Assign has begun to arrive: all of it must be here by then.
    deadline: Option<Instant>,
}

/// What a look at a spare has found.
enum Found {
    Nothing,
    Assign {
        tunnel: TunnelId,
        conn: ConnId,
        visitor: String,
    },
    /// The server has closed it, or the session is over.
    End,
    Damage(String),
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
                waiting: HashMap::new(),
                next: 0,
                ahead: Vec::new(),
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

    /// Begins to open what is missing. Does not block.
    pub(super) fn fill(self: &Arc<Self>) {
        let count = {
            let mut state = self.lock();
            if state.over {
                return;
            }
            state.plan.open(Instant::now())
        };
        for _ in 0..count {
            let this = self.clone();
            if let Err(e) = self.parts.proxy.pool().task(move || this.open()) {
                self.failed(&e.to_string());
            }
        }
    }

    fn failed(&self, why: &str) {
        log::debug!("no spare data channel: {why}");
        self.lock().plan.failed(Instant::now(), random());
        self.wake();
    }

    /// There is something to wait for, which only the loop can do.
    fn wake(&self) {
        // If the loop is gone nobody needs spares.
        self.parts.inbox.send(Input::Spares);
    }

    /// On a worker.
    fn open(self: Arc<Self>) {
        let mut channel = match self.parts.server.dial_address(self.parts.address) {
            Ok(channel) => channel,
            Err(e) => return self.failed(&e.to_string()),
        };
        if !self.parts.agreed {
            let mut state = self.lock();
            if !state.over {
                state.plan.opened();
                state.ahead.push((channel, Instant::now()));
            }
            drop(state);
            return self.fill();
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
                self.enter(new, Plan::opened);
                self.fill();
            }
            Err(e) => self.failed(&e.to_string()),
        }
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
                return;
            }
            count(&mut state.plan);
            state.next += 1;
            let id = state.next;
            state.waiting.insert(id, socket.clone());
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
        let before = state.plan.due();
        count(&mut state.plan);
        let after = state.plan.due();
        drop(state);
        if after.is_some() && after != before {
            self.wake();
        }
    }

    /// On a worker: something has happened to a spare.
    fn look(self: Arc<Self>, mut spare: Spare) {
        match self.receive(&mut spare) {
            Found::Nothing => self.wait(spare),
            Found::Assign {
                tunnel,
                conn,
                visitor,
            } => {
                self.leave(spare.place.id, |plan| plan.taken(Instant::now()));
                self.fill();
                self.serve(spare, &tunnel, conn, visitor);
            }
            Found::End => {}
            Found::Damage(what) => {
                log::warn!("A spare data channel was damaged, which closes it: {what}");
                duplex::reset(spare.socket.stream());
            }
        }
    }

    fn receive(&self, spare: &mut Spare) -> Found {
        let mut buffer = [0u8; 1024];
        loop {
            match spare.frames.next(&mut spare.opener, ASSIGN_MAX) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    return match Message::decode(bytes) {
                        Ok(Message::Assign {
                            tunnel,
                            conn,
                            visitor,
                        }) => Found::Assign {
                            tunnel,
                            conn,
                            visitor,
                        },
                        _ => Found::Damage("a message that is no Assign".into()),
                    };
                }
                Err(e) => return Found::Damage(e.to_string()),
            }
            // Only an Assign that has begun is worth a worker's time.
            let wait = match spare.deadline {
                None => Wait::Never,
                Some(_) => Wait::Patient,
            };
            let room = spare.frames.wanted().min(buffer.len());
            match spare.socket.read(&mut buffer[..room], wait) {
                Ok(0) => return Found::End,
                Ok(n) => {
                    spare.frames.push(&buffer[..n]);
                    let limit = self.parts.server.timeouts.handshake;
                    spare.deadline.get_or_insert_with(|| Instant::now() + limit);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => match spare.deadline {
                    None => return Found::Nothing,
                    Some(deadline) if deadline <= Instant::now() => {
                        return Found::Damage("an Assign did not arrive whole in time".into());
                    }
                    Some(_) => {}
                },
                Err(_) => return Found::End,
            }
        }
    }

    /// Somebody has come: this very worker dials the local service.
    fn serve(self: &Arc<Self>, spare: Spare, tunnel: &TunnelId, conn: ConnId, visitor: String) {
        let proxy = &self.parts.proxy;
        let refuse = || duplex::reset(spare.socket.stream());
        let Some(target) = self.parts.enabled.target(tunnel) else {
            refuse();
            proxy.count(Refusal::ByClient);
            let say = self
                .disabled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .event(Instant::now());
            return log_limited!(
                log::Level::Warn,
                say,
                "The server assigned a connection for tunnel {:?}, which is not enabled here; it is refused",
                tunnel.as_str()
            );
        };
        let Some((permit, service)) = proxy.dial(&target) else {
            return refuse();
        };
        let Spare {
            socket,
            sealer,
            opener,
            frames,
            ..
        } = spare;
        let external = sealed::reusable(
            Recovered {
                socket,
                sealer,
                opener,
                rest: frames.into_rest(),
            },
            target.compression,
            self.on_reuse(),
            &proxy.ledger(&target),
        );
        let call = Call {
            target,
            conn,
            visitor: Some(visitor),
            owner: self.parts.session,
        };
        proxy.pair(permit, &call, external, service);
    }

    /// A visitor was announced by IncomingConn, to a server that knows of spares: it had none.
    pub(super) fn missed(self: &Arc<Self>) {
        self.lock().plan.missed(Instant::now());
        self.fill();
    }

    /// A handshaken channel to a server that does not know of spares, the newest that still lives.
    pub(super) fn take_ahead(self: &Arc<Self>) -> Option<Channel> {
        let taken = loop {
            let mut state = self.lock();
            let now = Instant::now();
            let Some((channel, _)) = state.ahead.pop() else {
                state.plan.missed(now);
                break None;
            };
            if is_silent(&channel.stream) {
                state.plan.taken(now);
                break Some(channel);
            }
            state.plan.closed(now, random());
        };
        self.fill();
        taken
    }

    /// With each heartbeat: forgets old demand, and channels that the server must not wait for longer.
    pub(super) fn beat(self: &Arc<Self>, now: Instant) {
        let interval = self.parts.server.timeouts.heartbeat_interval;
        let mut state = self.lock();
        state.plan.beat();
        if !self.parts.agreed {
            let before = state.ahead.len();
            // Whoever is too old before the next heartbeat goes with this one.
            let most = AHEAD_MAX.saturating_sub(interval);
            state.ahead.retain(|(channel, since)| {
                now.saturating_duration_since(*since) <= most && is_silent(&channel.stream)
            });
            let gone = before - state.ahead.len();
            state.plan.retired(gone);
            let surplus = state.plan.surplus();
            state.ahead.drain(..surplus);
            state.plan.retired(surplus);
        }
        drop(state);
        self.fill();
    }

    /// When [`fill`](Self::fill) is worth calling again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lock().plan.due()
    }

    /// The session is over, and its spares with it. Pairs go on.
    pub(super) fn end(&self) {
        let (waiting, ahead) = {
            let mut state = self.lock();
            state.over = true;
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.ahead),
            )
        };
        drop(ahead);
        // Wakes the poller, which wakes a worker, which finds the mark and lets go.
        for socket in waiting.values() {
            socket.abort();
        }
    }
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
