//! ControlClient: keeps one session with the server, for ever.
//!
//! ```text
//!          ┌────────── backoff is over ───────────┐
//!          v                                      │
//!  Dialling (thread "dial") ── failed ─────> Waiting
//!          │ hellos done                          ^
//!          v                                      │
//!  Session: offered ── AuthOk ──> up ── lost ─────┘     NotAdmitted or stop ──> over
//! ```
//!
//! One thread, one poll, no waiting anywhere else: a name service or a server that hangs holds a
//! dial thread or a worker, never the heartbeats.

mod ending;
mod notices;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use minitcptunnel_common::backoff::{Backoff, Jitter, random};
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::log::RateLimited;
use minitcptunnel_common::metrics::TrafficSnapshot;
use minitcptunnel_common::wire::message::Message;
use mio::{Events, Poll, Token};

use self::ending::Next;
use super::Input;
use super::lost::Lost;
use super::server::{Channel, Server, ServerError};
use super::session::Session;
use super::tunnels::{NoSuchTunnel, Timing, TunnelManager};
use crate::config::Config;
use crate::local_proxy::{LocalProxy, WARN_EVERY};
use crate::report::Reporter;
use crate::state::{self, Connection, End, StateStore, View};

/// The inbox's token; sessions have their own number, which begins at 1.
pub(crate) const INBOX: Token = Token(0);
/// The stack of a dial thread, as that of a pool worker: both do the same.
const DIAL_STACK: usize = 256 * 1024;
/// How long after its last deadline a dial thread is given up.
const DIAL_MARGIN: Duration = Duration::from_secs(10);

enum Phase {
    /// A dial thread is at work. Its own deadlines end it; this one is for a thread that died.
    Dialling { until: Instant },
    /// Nothing happens until then.
    Waiting { until: Instant, reason: String },
    /// There is a control channel.
    Session(Box<Session>),
}

/// The client's loop.
pub(crate) struct ControlClient {
    poll: Poll,
    inbox: Inbox<Input>,
    receiver: Receiver<Input>,
    server: Arc<Server>,
    tunnels: TunnelManager,
    proxy: LocalProxy,
    store: Arc<StateStore>,
    phase: Phase,
    /// Numbers attempts, and the sessions that come of them. Never 0, which is [`INBOX`].
    attempt: u64,
    sessions: u64,
    backoff: Backoff,
    report: Reporter,
    /// Connections for tunnels that are not enabled.
    disabled: RateLimited,
    /// The counters when the session began.
    before: TrafficSnapshot,
    /// Whether the store has to be told.
    changed: bool,
    /// Whether the socket had more than one turn's worth of bytes.
    more: bool,
}

impl ControlClient {
    /// A client that has not begun yet, and the inbox that reaches it.
    pub(crate) fn new(
        config: &Config,
        server: Arc<Server>,
        proxy: impl FnOnce(Arc<StateStore>) -> LocalProxy,
    ) -> io::Result<(Self, Inbox<Input>, Arc<StateStore>)> {
        let poll = Poll::new()?;
        let (inbox, receiver) = Inbox::new(&poll, INBOX)?;
        let times = &config.timeouts;
        let tunnels = TunnelManager::new(
            config.reverse.as_ref().map_or(&[], |it| &it.tunnels),
            Timing {
                // The server that answers heartbeats within this answers questions within it, too.
                answer: times.heartbeat_timeout,
                retry_min: times.backoff_min,
                retry_max: times.backoff_max,
            },
        );
        let store = Arc::new(StateStore::new(
            server.name(),
            View {
                connection: Connection::Connecting,
                sessions: 0,
                tunnels: view(&tunnels),
            },
        ));
        let client = Self {
            poll,
            inbox: inbox.clone(),
            receiver,
            server,
            tunnels,
            proxy: proxy(store.clone()),
            store: store.clone(),
            phase: Phase::Waiting {
                until: Instant::now(),
                reason: String::new(),
            },
            attempt: 0,
            sessions: 0,
            backoff: Backoff::new(times.backoff_min, times.backoff_max, Jitter::Full),
            report: Reporter::default(),
            disabled: RateLimited::new(WARN_EVERY),
            before: TrafficSnapshot::default(),
            changed: false,
            more: false,
        };
        Ok((client, inbox, store))
    }

    /// Runs until it is stopped, or refused for good.
    pub(crate) fn run(mut self) {
        // However this thread ends, those who wait for it must hear of it.
        let guard = Guard(self.store.clone());
        let end = match self.turn_until_end() {
            Ok(end) => end,
            Err(e) => {
                let code = Code::BUG;
                log::error!("The event loop failed: {e}; the client cannot go on code={code}");
                End::Failed(e.to_string())
            }
        };
        self.close_session();
        self.publish(Connection::Stopped(end));
        drop(guard);
    }

    fn turn_until_end(&mut self) -> io::Result<End> {
        let mut events = Events::with_capacity(64);
        self.dial();
        loop {
            self.publish_changes();
            let wait = if self.more {
                Duration::ZERO
            } else {
                self.due().saturating_duration_since(Instant::now())
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            // What has arrived counts before the deadlines: a machine that was asleep must not take
            // its own silence for the server's.
            let turn = self
                .socket_events(&events)
                .and_then(|()| self.inbox())
                .and_then(|()| self.deadlines());
            if let Err(end) = turn {
                return Ok(end);
            }
        }
    }

    /// Everything that the control channel has to say. `Err` ends the loop, here and below.
    fn socket_events(&mut self, events: &Events) -> Result<(), End> {
        let now = Instant::now();
        let mut notices = Vec::new();
        let mut result = Ok(());
        if let Phase::Session(session) = &mut self.phase {
            let token = token(session.number);
            let mut more = self.more;
            self.more = false;
            for event in events.iter().filter(|event| event.token() == token) {
                more = false;
                result = session.ready(event, now, &mut notices).map(|again| {
                    self.more |= again;
                });
                if result.is_err() {
                    break;
                }
            }
            if more && result.is_ok() {
                result = session
                    .read(now, &mut notices)
                    .map(|again| self.more = again);
            }
        }
        // What came before the end still counts.
        for notice in notices {
            self.notice(notice, now);
        }
        result
            .and_then(|()| self.flush())
            .or_else(|lost| self.lost(&lost))
    }

    fn inbox(&mut self) -> Result<(), End> {
        while let Ok(input) = self.receiver.try_recv() {
            let now = Instant::now();
            match input {
                Input::Stop => return Err(End::Asked),
                Input::Dialled { attempt, result } => {
                    if attempt == self.attempt && matches!(self.phase, Phase::Dialling { .. }) {
                        self.dialled(result)?;
                    }
                }
                Input::Refuse {
                    session: number,
                    conn,
                    reason,
                } => {
                    if let Phase::Session(session) = &mut self.phase
                        && session.number == number
                    {
                        let sent = session.refuse(conn, &reason).and_then(|()| session.flush());
                        sent.or_else(|lost| self.lost(&lost))?;
                    }
                }
                // Deadlines are looked at in every turn.
                Input::Spares => {}
                // Who does not wait for the answer any more does not need it.
                Input::Alive(answer) => drop(answer.try_send(())),
                Input::Open(id) => {
                    let asked = self.tunnels.open(&id, now);
                    self.command(asked)?;
                }
                Input::Close(id) => {
                    let asked = self.tunnels.close(&id);
                    self.command(asked)?;
                }
            }
        }
        Ok(())
    }

    /// A command wants this sent, if there is a session to send it in.
    fn command(&mut self, asked: Result<Option<Message>, NoSuchTunnel>) -> Result<(), End> {
        self.changed = true;
        match asked {
            Ok(message) => self
                .send(message.as_slice())
                .and_then(|()| self.flush())
                .or_else(|lost| self.lost(&lost)),
            Err(e) => {
                log::warn!("{e}");
                Ok(())
            }
        }
    }

    fn send(&mut self, messages: &[Message]) -> Result<(), Lost> {
        if let Phase::Session(session) = &mut self.phase {
            messages
                .iter()
                .try_for_each(|message| session.send(message))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Lost> {
        match &mut self.phase {
            Phase::Session(session) => session.flush(),
            _ => Ok(()),
        }
    }

    /// The next moment at which there is something to do.
    fn due(&self) -> Instant {
        match &self.phase {
            Phase::Dialling { until } | Phase::Waiting { until, .. } => *until,
            Phase::Session(session) => {
                let due = session.due();
                self.tunnels.due().map_or(due, |other| other.min(due))
            }
        }
    }

    fn deadlines(&mut self) -> Result<(), End> {
        let now = Instant::now();
        match &mut self.phase {
            Phase::Waiting { until, .. } if *until <= now => self.dial(),
            Phase::Dialling { until } if *until <= now => {
                let died = io::Error::other("the dial thread gave no answer");
                return self.dialled(Err(ServerError::System(died)));
            }
            Phase::Session(session) => {
                if let Err(lost) = session.tick(now) {
                    return self.lost(&lost);
                }
                let mut out = Vec::new();
                for change in self.tunnels.tick(now, random, &mut out) {
                    self.tell(&change);
                }
                self.changed |= !out.is_empty();
                return self
                    .send(&out)
                    .and_then(|()| self.flush())
                    .or_else(|lost| self.lost(&lost));
            }
            _ => {}
        }
        Ok(())
    }

    /// Begins an attempt on a thread of its own.
    fn dial(&mut self) {
        self.attempt += 1;
        let times = &self.server.timeouts;
        self.phase = Phase::Dialling {
            until: Instant::now() + times.connect + times.handshake + DIAL_MARGIN,
        };
        self.changed = true;
        log::trace!(
            "Connecting to {} attempt={}",
            self.server.name(),
            self.attempt
        );
        let (attempt, server, inbox) = (self.attempt, self.server.clone(), self.inbox.clone());
        let run = move || {
            let result = server.dial();
            // If the loop is gone nobody wants to know.
            inbox.send(Input::Dialled { attempt, result });
        };
        let started = std::thread::Builder::new()
            .name("dial".into())
            .stack_size(DIAL_STACK)
            .spawn(run);
        if let Err(e) = started {
            let result = Err(ServerError::System(e));
            self.inbox.send(Input::Dialled { attempt, result });
        }
    }

    /// An attempt is over.
    fn dialled(&mut self, result: Result<Channel, ServerError>) -> Result<(), End> {
        let now = Instant::now();
        let channel = match result {
            Ok(channel) => channel,
            Err(e) => {
                let (level, next) = match &e {
                    // Somebody has to act; until then a server that is not ours is left in peace.
                    ServerError::Pin { .. } => {
                        let wait = self.server.timeouts.backoff_max;
                        (log::Level::Error, Next::After(wait))
                    }
                    _ => (log::Level::Warn, Next::Backoff),
                };
                return self.failed(level, &e.to_string(), e.code(), next, now);
            }
        };
        let (server, number) = (self.server.clone(), self.attempt);
        let registry = self.poll.registry();
        let session = Session::new(channel, server, number, registry, token(number), now);
        let begun = session.and_then(|session| {
            self.phase = Phase::Session(Box::new(session));
            let wanted = self.tunnels.begin(now);
            self.changed = true;
            self.send(&wanted)?;
            self.flush()
        });
        begun.or_else(|lost| self.lost(&lost))
    }

    fn traffic(&self) -> TrafficSnapshot {
        state::sum(self.tunnels.states().map(|(t, _)| t.traffic.snapshot()))
    }

    fn publish_changes(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let connection = match &self.phase {
            Phase::Waiting { until, reason } => Connection::Waiting {
                until: *until,
                reason: reason.clone(),
            },
            Phase::Session(session) if session.is_up() => Connection::Up {
                since: session.since,
                address: session.address(),
            },
            _ => Connection::Connecting,
        };
        self.publish(connection);
    }

    fn publish(&self, connection: Connection) {
        self.store.publish(View {
            connection,
            sessions: self.sessions,
            tunnels: view(&self.tunnels),
        });
    }
}

fn view(
    tunnels: &TunnelManager,
) -> Vec<(Arc<super::tunnels::Target>, super::tunnels::TunnelState)> {
    tunnels
        .states()
        .map(|(target, state)| (target.clone(), state.clone()))
        .collect()
}

/// The poll token of a session's socket.
fn token(number: u64) -> Token {
    // Attempts are counted from 1 and are at least a millisecond apart.
    Token(number as usize)
}

/// Tells the store when the loop's thread dies of a panic.
struct Guard(Arc<StateStore>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the control thread failed");
        }
    }
}
