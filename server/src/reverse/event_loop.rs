//! The server's one loop: it owns sessions, tunnels and whoever waits, without locks.
//!
//! ```text
//!  control listener ─> Hello ─> Verifying ─> Fresh ─┬─> Session           (knock, control)
//!                                                   └─> claim ─> pair     (knock, visitors)
//!  public listeners ─┬> park ────────────────────────────^               (visitors)
//!                    └> spare channel ─> pair ─ ended ─> spare again     (spares)
//!  inbox: verified hellos, used channels, stop     deadlines: one named variant per wait ([`Timer`])
//! ```
//!
//! Nothing here blocks: arithmetic goes to the verifier, bytes of pairs to the pool.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use minitcptunnel_common::capacity::Capacity;
use minitcptunnel_common::channel::reuse::Recovered;
use minitcptunnel_common::codes::Coded;
use minitcptunnel_common::evloop::{DeadlineKey, Deadlines, Inbox, Slots};
use minitcptunnel_common::id::{ConnId, SessionId};
use minitcptunnel_common::identity::AllowListFile;
use minitcptunnel_common::log::Quiet;
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::resources;
use minitcptunnel_common::wire::message::Reason;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Poll, Token};

use super::knock::{Fresh, Knocking};
use super::pairer::ConnectionPairer;
use super::registry::TunnelRegistry;
use super::sessions::{ControlSessionManager, Parting};
use super::spares::Spare;
use super::strange::Strange;
use super::verifier::{Verified, Verifier};
use super::within::Within;
use crate::config::Config;
use crate::gate::{Gate, ReplayMemory};

pub(super) const INBOX: Token = Token(0);
/// First token of everything that comes and goes.
pub(super) const FIRST_FREE: usize = 1;
const EVENTS: usize = 1024;
/// Performance: connections accepted in one go before other work gets its turn.
pub(super) const ACCEPT_BATCH: usize = 128;
/// Between two log lines of the same kind that strangers can cause.
const QUIET: Duration = Duration::from_secs(10);
/// Longest an accept error keeps a listener from accepting.
pub(super) const COOL_DOWN: Duration = Duration::from_millis(500);

/// What other threads say to the loop.
pub(super) enum Event {
    /// A hello has been worked on.
    Verified(Box<Verified>),
    /// A data channel of this session has done its work and can serve again.
    Recycled(SessionId, Box<Recovered>),
    /// Answer this, to show that the loop turns.
    Alive(Sender<()>),
    /// Stop accepting and leave.
    Stop,
}

/// Every wait has a name.
pub(super) enum Timer {
    /// A hello is not complete.
    Hello(Token),
    /// No first frame has come.
    FirstFrame(Token),
    /// Nobody has claimed an external connection.
    Pairing(ConnId),
    /// A session may have fallen silent.
    Silence(SessionId),
    /// Some of a session's spare channels may be too many.
    Spares(SessionId),
    /// Inherited tunnels have not been claimed.
    Inherited(SessionId),
    /// A peer that was told to go still has its connection open.
    Parting(Token),
    /// A listener may accept again.
    CoolDown(Token),
    /// The allow list has to be looked at once more.
    AllowList,
}

/// What a token stands for.
pub(super) enum Entry {
    Control(TcpListener),
    /// Its listener is in the registry.
    Public,
    Knocking(Knocking),
    Verifying {
        stream: TcpStream,
        address: SocketAddr,
        deadline: DeadlineKey,
    },
    Fresh(Box<Fresh>),
    Session(SessionId),
    Spare(Box<Spare>),
    Parting(Parting),
}

/// The loop's state. Handlers live in the files named at the head.
pub(super) struct EventLoop {
    pub(super) poll: Poll,
    pub(super) config: Arc<Config>,
    pub(super) allow: AllowListFile,
    pub(super) slots: Slots<Entry>,
    pub(super) deadlines: Deadlines<Timer>,
    pub(super) inbox: Receiver<Event>,
    /// The way into it, for what pairs leave behind.
    pub(super) mailbox: Inbox<Event>,
    pub(super) verifier: Verifier,
    pub(super) gate: Gate,
    pub(super) replays: ReplayMemory,
    pub(super) sessions: ControlSessionManager,
    pub(super) registry: TunnelRegistry,
    pub(super) pairer: ConnectionPairer<super::visitors::Visitor>,
    pub(super) pool: Pool,
    pub(super) metrics: Metrics,
    pub(super) quiet: Quiet<Strange>,
    /// What still had work when its share of this turn was used up.
    pub(super) more: BTreeSet<Token>,
    /// Listeners that may not accept until their timer.
    cooling: BTreeSet<Token>,
    pub(super) control_port: u16,
    pub(super) max_idle_channels: usize,
    pub(super) capacity: Capacity,
    pub(super) now: Instant,
    /// The next look at the allow list that is arranged.
    pub(super) allow_list_due: Option<DeadlineKey>,
    /// No look before this, whoever asks.
    pub(super) allow_list_rest: Instant,
    stopping: bool,
}

/// What a loop is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) config: Arc<Config>,
    pub(super) allow: AllowListFile,
    pub(super) inbox: Receiver<Event>,
    pub(super) mailbox: Inbox<Event>,
    pub(super) verifier: Verifier,
    pub(super) pool: Pool,
    pub(super) metrics: Metrics,
    pub(super) control: TcpListener,
    pub(super) control_port: u16,
    pub(super) limits: Within,
}

impl EventLoop {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let limits = &parts.config.limits;
        let gate = Gate::new(
            parts.limits.pending,
            limits.pending_handshakes_per_address,
            Some(limits.handshakes_per_second_per_address),
        );
        let mut this = Self {
            poll: parts.poll,
            allow: parts.allow,
            slots: Slots::new(FIRST_FREE),
            deadlines: Deadlines::default(),
            inbox: parts.inbox,
            mailbox: parts.mailbox,
            verifier: parts.verifier,
            gate,
            replays: ReplayMemory::default(),
            sessions: ControlSessionManager::new(parts.config.max_clients),
            registry: TunnelRegistry::default(),
            pairer: ConnectionPairer::new(parts.limits.waiting),
            pool: parts.pool,
            metrics: parts.metrics,
            quiet: Quiet::new(QUIET),
            more: BTreeSet::new(),
            cooling: BTreeSet::new(),
            control_port: parts.control_port,
            max_idle_channels: parts.limits.idle_channels,
            capacity: parts.limits.pairs,
            now: Instant::now(),
            allow_list_due: None,
            allow_list_rest: Instant::now(),
            stopping: false,
            config: parts.config,
        };
        let token = this.slots.insert(Entry::Control(parts.control));
        let Some(Entry::Control(listener)) = this.slots.entry(token) else {
            unreachable!("inserted in the line above")
        };
        this.poll
            .registry()
            .register(listener, token, mio::Interest::READABLE)?;
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
            // One share for each per turn, whether an event or the last turn asks for it.
            let mut again = std::mem::take(&mut self.more);
            for event in &events {
                again.remove(&event.token());
                self.ready(event.token(), event.is_writable());
            }
            for token in again {
                self.ready(token, false);
            }
            while let Ok(event) = self.inbox.try_recv() {
                match event {
                    Event::Verified(verified) => self.verified(*verified),
                    Event::Recycled(session, recovered) => self.recycled(session, *recovered),
                    // Who does not wait for the answer any more does not need it.
                    Event::Alive(answer) => drop(answer.try_send(())),
                    Event::Stop => self.stopping = true,
                }
            }
            while let Some(timer) = self.deadlines.pop(self.now) {
                self.due(timer);
            }
            for (kind, more) in self.quiet.tick(self.now) {
                log::log!(kind.level(), "{}: {more} code={}", kind.what(), kind.code());
            }
        }
        self.leave();
        Ok(())
    }

    fn wait(&self) -> Option<Duration> {
        let quiet = self
            .quiet
            .deadline()
            .map(|at| at.saturating_duration_since(self.now));
        [self.deadlines.wait(self.now), quiet]
            .into_iter()
            .flatten()
            .min()
    }

    fn ready(&mut self, token: Token, writable: bool) {
        match self.slots.entry(token) {
            Some(Entry::Control(_) | Entry::Public) => self.accept(token),
            Some(Entry::Knocking(_)) => self.hello_readable(token),
            Some(Entry::Fresh(_)) => self.fresh_readable(token),
            Some(Entry::Spare(_)) => self.spare_readable(token),
            Some(Entry::Session(id)) => {
                let id = *id;
                if writable {
                    self.flush(id);
                }
                self.session_readable(id);
            }
            Some(Entry::Parting(parting)) => {
                if parting.advance() {
                    self.drop_entry(token);
                }
            }
            // What a peer sends while its hello is worked on waits in the kernel; what is gone is gone.
            Some(Entry::Verifying { .. }) | None => {}
        }
    }

    fn accept(&mut self, token: Token) {
        if self.cooling.contains(&token) {
            return;
        }
        match self.slots.entry(token) {
            Some(Entry::Control(_)) => self.accept_control(token),
            Some(Entry::Public) => self.accept_visitors(token),
            _ => {}
        }
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Hello(token) => self.hello_due(token),
            Timer::FirstFrame(token) => self.first_frame_due(token),
            Timer::Pairing(conn) => self.pairing_due(&conn),
            Timer::Silence(session) => self.silence_due(session),
            Timer::Spares(session) => self.spares_due(session),
            Timer::Inherited(session) => self.inherited_due(session),
            Timer::Parting(token) => {
                if matches!(self.slots.entry(token), Some(Entry::Parting(_))) {
                    self.drop_entry(token);
                }
            }
            Timer::CoolDown(token) => {
                self.cooling.remove(&token);
                self.accept(token);
            }
            Timer::AllowList => {
                self.allow_list_due = None;
                self.allow_list_rest = self.now;
                self.look_at_allow_list();
                self.watch_allow_list();
            }
        }
    }

    /// Takes an entry out of the table and its socket out of the poller, and drops both.
    pub(super) fn drop_entry(&mut self, token: Token) {
        self.gate.leave(token);
        let registry = self.poll.registry();
        // Deregistering can only fail for what was never registered.
        let _ = match self.slots.remove(token) {
            Some(Entry::Knocking(mut knocking)) => {
                self.deadlines.cancel(knocking.deadline);
                registry.deregister(&mut knocking.stream)
            }
            Some(Entry::Verifying {
                mut stream,
                deadline,
                ..
            }) => {
                self.deadlines.cancel(deadline);
                registry.deregister(&mut stream)
            }
            Some(Entry::Fresh(mut fresh)) => {
                self.deadlines.cancel(fresh.deadline);
                self.sessions.fresh_left(&fresh.identity, token);
                registry.deregister(&mut fresh.stream)
            }
            Some(Entry::Spare(mut spare)) => {
                if let Some(session) = self.sessions.of(spare.session) {
                    session.spares.remove(token);
                }
                registry.deregister(&mut spare.stream)
            }
            Some(Entry::Parting(mut parting)) => registry.deregister(&mut parting.stream),
            Some(Entry::Control(mut listener)) => registry.deregister(&mut listener),
            Some(Entry::Public | Entry::Session(_)) | None => Ok(()),
        };
    }

    /// Counts something that a stranger did and says so, at most once in a while.
    pub(super) fn strange(&mut self, kind: Strange, text: std::fmt::Arguments<'_>) {
        let say = self.quiet.event(kind, self.now);
        log_limited!(kind.level(), say, "{text} code={}", kind.code());
    }

    /// An accept error: room is made, or the listener rests for a moment. `true`: try again now.
    pub(super) fn accept_failed(&mut self, token: Token, error: &io::Error) -> bool {
        match error.kind() {
            // The connection was gone before we came; the next one may be fine.
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted => {
                return true;
            }
            _ => {}
        }
        // A visitor's descriptor is not worth that of a client in the middle of its handshake, who may
        // be about to serve him.
        let control = matches!(self.slots.entry(token), Some(Entry::Control(_)));
        if control
            && resources::is_out_of_descriptors(error)
            && let Some(oldest) = self.gate.oldest()
        {
            self.strange(
                Strange::NoDescriptors,
                format_args!(
                    "out of file descriptors: closing strangers that have not said who they are"
                ),
            );
            self.drop_entry(oldest);
            return true;
        }
        self.strange(
                Strange::AcceptError,
            format_args!(
                "cannot accept a connection ({error}); trying again in {} ms. If this stays, raise the limit on open files",
                COOL_DOWN.as_millis()
            ),
        );
        if self.cooling.insert(token) {
            self.deadlines
                .add(self.now + COOL_DOWN, Timer::CoolDown(token));
        }
        false
    }

    /// Says goodbye to everybody. Running pairs go on.
    fn leave(&mut self) {
        for session in self.sessions.ids() {
            self.end_session(
                session,
                Some((Reason::Shutdown, "the server shuts down")),
                "shutdown",
            );
        }
        for parked in self.pairer.drain() {
            minitcptunnel_common::duplex::reset(&parked.external.stream);
        }
        // One last chance for the goodbyes; a client that does not read has no use for them.
        let partings: Vec<Token> = self
            .slots
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::Parting(_)))
            .map(|(token, _)| token)
            .collect();
        for token in partings {
            if let Some(Entry::Parting(parting)) = self.slots.entry(token) {
                parting.advance();
            }
        }
    }
}

/// The pool's name for whose pair it is: the beginning of the identity key.
pub(super) fn owner_of(identity: &[u8; 32]) -> u64 {
    u64::from_be_bytes(*identity.first_chunk().expect("32 bytes begin with 8"))
}
