//! The loop of the forward job: listeners, who has not finished a handshake, and files that change.
//!
//! ```text
//!  listener ─ accept ─ gate ─> Pending (to the pool) ··· Shaken, Left ··> the gate has room again
//!  deadlines: a handshake's whole time, a look at the files, at silent pairs, a listener that cools down
//! ```
//!
//! Nothing here blocks, and no byte of a peer is looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use minitcptunnel_common::channel::tls::Handshake;
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::dial::set_keepalive;
use minitcptunnel_common::duplex::{Abortable, Socket};
use minitcptunnel_common::evloop::{DeadlineKey, Deadlines, Inbox, Slots};
use minitcptunnel_common::log::Quiet;
use minitcptunnel_common::log_limited;
use minitcptunnel_common::pki::{ServerTls, UnixTime, Watched};
use minitcptunnel_common::pool::idle_look;
use minitcptunnel_common::resources;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::connection::{Failure, Guest, Kind, Pending};
use super::service::Service;
use crate::gate::{Gate, Knock};

pub(super) const INBOX: Token = Token(0);
/// First token of everything that comes and goes.
const FIRST_FREE: usize = 1;
const EVENTS: usize = 256;
/// Performance: connections accepted in one go before other work gets its turn.
const ACCEPT_BATCH: usize = 128;
/// Between two log lines of the same kind that strangers can cause.
const QUIET: Duration = Duration::from_secs(10);
/// Longest an accept error keeps a listener from accepting.
const COOL_DOWN: Duration = Duration::from_millis(500);
/// How many unfinished handshakes are ended at a time where descriptors are wanting, and how long it takes until these
/// are there again.
const MAKE_ROOM: usize = 16;
const ROOM_SOON: Duration = Duration::from_millis(20);
/// How often certificates, keys and lists are looked at; what is new must look the same twice.
const LOOK: Duration = Duration::from_secs(2);

/// What other threads say to the loop.
pub(super) enum Event {
    /// This handshake is done; its connection has other bounds now.
    Shaken(Token),
    /// This connection's birth is over, one way or the other.
    Left(Token, Option<Failure>),
    /// Answer this, to show that the loop turns.
    Alive(Sender<()>),
    /// Stop accepting and leave.
    Stop,
}

/// Every wait has a name.
enum Timer {
    /// A handshake has taken too long.
    Handshake(Token),
    /// The files of this listener are worth a look.
    Files(Token),
    /// Its pairs may have been silent for too long.
    Idle(Token),
    /// It may accept again.
    CoolDown(Token),
}

/// A forward and its listener.
pub(super) struct Listening {
    listener: TcpListener,
    service: Arc<Service>,
    certificates: Watched<ServerTls>,
    gate: Gate,
    quiet: Quiet<Kind>,
    cooling: bool,
}

impl Listening {
    pub(super) fn new(
        listener: TcpListener,
        service: Arc<Service>,
        certificates: Watched<ServerTls>,
    ) -> Self {
        let limits = &service.limits;
        let gate = Gate::new(
            limits.pending_handshakes,
            limits.pending_handshakes_per_address,
            // Each connection of an honest client is an attempt.
            None,
        );
        Self {
            listener,
            service,
            certificates,
            gate,
            quiet: Quiet::new(QUIET),
            cooling: false,
        }
    }
}

/// Whose handshake is not done.
struct Shaking {
    socket: Arc<Socket>,
    deadline: DeadlineKey,
    address: SocketAddr,
    listener: Token,
    /// Why we have ended it, if we have.
    ended: Option<Ended>,
}

/// Why a handshake was ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It took too long.
    Late,
    /// Somebody else needed the room, and that has been said.
    Crowd,
}

enum Entry {
    Listening(Box<Listening>),
    Shaking(Shaking),
}

/// The loop's state.
pub(super) struct EventLoop {
    poll: Poll,
    inbox: Receiver<Event>,
    mailbox: Inbox<Event>,
    slots: Slots<Entry>,
    /// Those of the listeners.
    listeners: Vec<Token>,
    deadlines: Deadlines<Timer>,
    /// Listeners that still had visitors when their share of a turn was used up.
    more: BTreeSet<Token>,
    now: Instant,
    stopping: bool,
}

impl EventLoop {
    pub(super) fn new(
        poll: Poll,
        inbox: Receiver<Event>,
        mailbox: Inbox<Event>,
        listening: Vec<Listening>,
    ) -> io::Result<Self> {
        let mut this = Self {
            poll,
            inbox,
            mailbox,
            slots: Slots::new(FIRST_FREE),
            listeners: Vec::new(),
            deadlines: Deadlines::default(),
            more: BTreeSet::new(),
            now: Instant::now(),
            stopping: false,
        };
        for mut one in listening {
            let token = this.slots.next_token();
            let registry = this.poll.registry();
            registry.register(&mut one.listener, token, Interest::READABLE)?;
            if let Some(idle) = one.service.timeouts.idle {
                this.deadlines
                    .add(this.now + idle_look(idle), Timer::Idle(token));
            }
            for end in one.certificates.ends(UnixTime::now()) {
                let (name, code) = (&one.service.name, Code::CERT_ENDS);
                log::warn!("forward {name}: {end} code={code}");
            }
            this.deadlines.add(this.now + LOOK, Timer::Files(token));
            this.slots.insert(Entry::Listening(Box::new(one)));
            this.listeners.push(token);
        }
        Ok(this)
    }

    /// Runs until told to stop. An error means that the poller itself is broken.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopping {
            self.now = Instant::now();
            let wait = if self.more.is_empty() {
                self.wait()
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, wait) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            self.now = Instant::now();
            let mut ready = std::mem::take(&mut self.more);
            ready.extend(events.iter().map(|event| event.token()));
            for token in ready {
                self.accept(token);
            }
            while let Ok(event) = self.inbox.try_recv() {
                match event {
                    Event::Shaken(token) => self.shaken(token),
                    Event::Left(token, failure) => self.left(token, failure),
                    // Who does not wait for the answer any more does not need it.
                    Event::Alive(answer) => drop(answer.try_send(())),
                    Event::Stop => self.stopping = true,
                }
            }
            while let Some(timer) = self.deadlines.pop(self.now) {
                self.due(&timer);
            }
            self.say_what_was_kept();
        }
        for (_, entry) in self.slots.iter() {
            match entry {
                Entry::Shaking(shaking) => shaking.socket.abort(),
                // Clients keep some ready for whoever may come: nobody is to wait for these.
                Entry::Listening(one) => {
                    one.service.pool.abort_untouched(one.service.owner);
                }
            }
        }
        Ok(())
    }

    fn listening(&mut self, token: Token) -> Option<&mut Listening> {
        match self.slots.entry(token) {
            Some(Entry::Listening(listening)) => Some(listening),
            _ => None,
        }
    }

    fn wait(&mut self) -> Option<Duration> {
        let slots = &mut self.slots;
        let quiet = (self.listeners.iter()).filter_map(|token| match slots.entry(*token) {
            Some(Entry::Listening(listening)) => listening.quiet.deadline(),
            _ => None,
        });
        let quiet = quiet.min().map(|at| at.saturating_duration_since(self.now));
        [self.deadlines.wait(self.now), quiet]
            .into_iter()
            .flatten()
            .min()
    }

    fn accept(&mut self, token: Token) {
        for _ in 0..ACCEPT_BATCH {
            let Some(listening) = self.listening(token).filter(|one| !one.cooling) else {
                return;
            };
            match listening.listener.accept() {
                Ok((stream, address)) => self.knock(token, stream, address),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => return self.accept_failed(token, &e),
            }
        }
        self.more.insert(token);
    }

    /// Without descriptors whoever has not finished a handshake for longest makes room. Where that does not help,
    /// as without memory, accepting goes on failing: the listener rests for a moment.
    fn accept_failed(&mut self, token: Token, e: &io::Error) {
        let now = self.now;
        let out_of_descriptors = resources::is_out_of_descriptors(e);
        let Some(listening) = self.listening(token) else {
            return;
        };
        listening.cooling = true;
        let name = &listening.service.name;
        if out_of_descriptors {
            log_limited!(
                Kind::Descriptors.level(),
                listening.quiet.event(Kind::Descriptors, now),
                "forward {name}: out of file descriptors: unfinished handshakes are closed, new connections wait. Raise the limit (ulimit -n, LimitNOFILE) code={}",
                Code::NO_DESCRIPTORS
            );
        } else {
            log_limited!(
                Kind::Accept.level(),
                listening.quiet.event(Kind::Accept, now),
                "forward {name}: cannot accept a connection: {e} code={}",
                Code::CANNOT_ACCEPT
            );
        }
        let mut due = self.now + COOL_DOWN;
        for _ in 0..if out_of_descriptors { MAKE_ROOM } else { 0 } {
            let Some(oldest) = self.listening(token).and_then(|one| one.gate.oldest()) else {
                break;
            };
            self.abort(oldest);
            due = self.now + ROOM_SOON;
        }
        self.deadlines.add(due, Timer::CoolDown(token));
    }

    fn knock(&mut self, listener: Token, stream: TcpStream, address: SocketAddr) {
        let now = self.now;
        let token = self.slots.next_token();
        let mailbox = self.mailbox.clone();
        let Some(listening) = self.listening(listener) else {
            return;
        };
        // Whoever is inside already is no better here: anybody may be behind the same address.
        let knock = listening.gate.knock(address.ip(), false, now);
        let service = listening.service.clone();
        if let Knock::EnterFor(oldest) = knock {
            let say = listening.quiet.event(Kind::Crowd, now);
            log_limited!(
                log::Level::Warn,
                say,
                "forward {}: too many handshakes that are not done; the oldest makes room. Latest from {address} code={}",
                service.name,
                Code::FORWARD_FULL
            );
            self.abort(oldest);
        }
        let tls = service.tls.get();
        let stream: std::net::TcpStream = stream.into();
        // Where the system cannot be told, it notices later that somebody has vanished.
        let _ = set_keepalive(&stream);
        // What fails here is a connection that is already gone.
        let Ok(socket) = Socket::new(stream) else {
            return;
        };
        let handshake = match Handshake::server(tls.config.clone(), socket.clone()) {
            Ok(handshake) => handshake,
            Err(e) => {
                let code = Code::BUG;
                return log::error!("forward {}: {e} code={code}", service.name);
            }
        };
        let deadline = now + service.handshake;
        let deadline = self.deadlines.add(deadline, Timer::Handshake(token));
        self.slots.insert(Entry::Shaking(Shaking {
            socket,
            deadline,
            address,
            listener,
            ended: None,
        }));
        if let Some(listening) = self.listening(listener) {
            listening.gate.enter(token, address.ip(), false);
        }
        let guest = Guest::new(mailbox, token);
        let pending = Pending {
            service,
            handshake,
            address,
            guest,
        };
        pending.wait();
    }

    /// The poller wakes whoever holds it, and he leaves.
    fn abort(&mut self, token: Token) {
        if let Some(Entry::Shaking(shaking)) = self.slots.entry(token) {
            shaking.ended = Some(Ended::Crowd);
            shaking.socket.abort();
            let listener = shaking.listener;
            if let Some(listening) = self.listening(listener) {
                listening.gate.leave(token);
            }
        }
    }

    /// The handshake is done; the connection is known until it is a pair, or gone.
    fn shaken(&mut self, token: Token) {
        let Some(Entry::Shaking(shaking)) = self.slots.entry(token) else {
            return;
        };
        let (deadline, listener) = (shaking.deadline, shaking.listener);
        self.deadlines.cancel(deadline);
        if let Some(listening) = self.listening(listener) {
            listening.gate.leave(token);
        }
    }

    fn left(&mut self, token: Token, failure: Option<Failure>) {
        self.shaken(token);
        let Some(Entry::Shaking(shaking)) = self.slots.remove(token) else {
            return;
        };
        let now = self.now;
        let (ended, Some(mut failure)) = (shaking.ended, failure) else {
            return;
        };
        if ended == Some(Ended::Crowd) {
            return;
        }
        let Some(listening) = self.listening(shaking.listener) else {
            return;
        };
        if ended == Some(Ended::Late) {
            let seconds = listening.service.handshake.as_secs_f64();
            failure.kind = Kind::Late;
            failure.code = Code::TLS_CUT;
            failure.what = format!(
                "no complete TLS handshake within {seconds} s (tls.handshake_timeout); closed"
            );
        }
        let say = listening.quiet.event(failure.kind, now);
        log_limited!(
            failure.kind.level(),
            say,
            "forward {}: connection from {}: {} code={}",
            listening.service.name,
            failure.address,
            failure.what,
            failure.code
        );
    }

    fn due(&mut self, timer: &Timer) {
        match *timer {
            Timer::Handshake(token) => {
                if let Some(Entry::Shaking(shaking)) = self.slots.entry(token) {
                    shaking.ended = Some(Ended::Late);
                    log::debug!("{}: handshake deadline", shaking.address);
                    shaking.socket.abort();
                }
            }
            Timer::CoolDown(token) => {
                if let Some(listening) = self.listening(token) {
                    listening.cooling = false;
                }
                self.accept(token);
            }
            Timer::Files(token) => self.files_due(token),
            Timer::Idle(token) => self.idle_due(token),
        }
    }

    /// Follows the files, and warns before certificates end.
    fn files_due(&mut self, token: Token) {
        let due = self.now + LOOK;
        let Some(listening) = self.listening(token) else {
            return;
        };
        for (level, line) in listening.certificates.look(UnixTime::now()).lines {
            log::log!(level, "forward {}: {line}", listening.service.name);
        }
        self.deadlines.add(due, Timer::Files(token));
    }

    fn idle_due(&mut self, token: Token) {
        let now = self.now;
        let Some(listening) = self.listening(token) else {
            return;
        };
        let service = listening.service.clone();
        let Some(idle) = service.timeouts.idle else {
            return;
        };
        let cut = service.pool.abort_idle(service.owner, idle, now);
        if cut > 0 {
            log::info!(
                "forward {}: cut connections={cut} after {} s of silence (timeouts.idle)",
                service.name,
                idle.as_secs_f64()
            );
        }
        self.deadlines
            .add(now + idle_look(idle), Timer::Idle(token));
    }

    fn say_what_was_kept(&mut self) {
        let now = self.now;
        for n in 0..self.listeners.len() {
            let Some(listening) = self.listening(self.listeners[n]) else {
                continue;
            };
            for (kind, more) in listening.quiet.tick(now) {
                let code = (kind.counted()).map_or(String::new(), |code| format!(" code={code}"));
                log::log!(
                    kind.level(),
                    "forward {}: {}: {more}{code}",
                    listening.service.name,
                    kind.what()
                );
            }
        }
    }
}
