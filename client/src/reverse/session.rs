//! One control channel from its hellos to its end (PROTOCOL.md section 7), without blocking.
//!
//! ```text
//!  new ── Heartbeat with the offer (E1), OpenTunnel... ──>
//!      <── AuthOk: up   Heartbeat answer: capabilities   TunnelStatus, IncomingConn: notices ──
//!      <──> Heartbeat every interval; silence after one: lost
//! ```
//!
//! It knows bytes and messages; what they mean for tunnels and connections is for the loop.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::wire::CONTROL_FRAME_MAX;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::{Message, Status};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::Input;
use super::data::Link;
use super::lost::Lost;
use super::server::{Channel, Server};
use super::spare::{self, Spares};
use super::tunnels::Enabled;
use crate::local_proxy::LocalProxy;

/// Safety: what the server may leave unread, in bytes. Thousands of our messages; a server that is
/// behind by so many does not read at all.
const OUTBOX_MAX: usize = 1024 * 1024;
/// Semantics: the largest message of a control channel after expansion (L3).
const MESSAGE_LIMIT: usize = 2 * CONTROL_FRAME_MAX;
/// Performance: bytes per read, and reads before other work gets its turn.
const READ: usize = 16 * 1024;
const READS: usize = 16;
/// The longest reason that is sent, or taken from the server, in bytes.
const REASON_MAX: usize = 200;

/// What came in that is not the session's own business.
#[derive(Debug)]
pub(super) enum Notice {
    /// The server has accepted the session.
    Up,
    /// The first heartbeat was answered: what both ends know.
    Capabilities(Capabilities),
    /// News about a tunnel.
    Status {
        tunnel: TunnelId,
        status: Status,
        reason: String,
        port: u32,
    },
    /// An external connection waits.
    Call {
        tunnel: TunnelId,
        conn: ConnId,
        visitor: Option<String>,
    },
}

/// A control channel.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) since: Instant,
    stream: TcpStream,
    address: SocketAddr,
    server: Arc<Server>,
    sealer: Sealer,
    opener: Opener,
    reader: FrameReader,
    /// Sealed and not yet written; `sent` bytes of it are.
    out: Vec<u8>,
    sent: usize,
    key: Option<SessionKey>,
    /// AuthOk must have come by then.
    accepted_by: Instant,
    capabilities: Option<Capabilities>,
    next_beat: Instant,
    /// While a heartbeat is unanswered: when the session is lost.
    silent_at: Option<Instant>,
    /// Whether it was said that something is ignored.
    unknown_told: bool,
    link: Option<Arc<Link>>,
    /// What was offered, and so may be agreed.
    offered: Capabilities,
    spares: Option<Arc<Spares>>,
}

impl Session {
    /// Takes a channel over from the thread that dialled, registers it and queues the offer.
    pub(super) fn new(
        channel: Channel,
        server: Arc<Server>,
        number: u64,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> Result<Self, Lost> {
        let address = channel.stream.peer_addr().map_err(Lost::Io)?;
        channel.stream.set_nonblocking(true).map_err(Lost::Io)?;
        let mut stream = TcpStream::from_std(channel.stream);
        registry
            .register(
                &mut stream,
                token,
                Interest::READABLE.add(Interest::WRITABLE),
            )
            .map_err(Lost::Io)?;
        let offered = Capabilities {
            spare: server.spares.keep > 0,
            ..Capabilities::ALL
        };
        let mut session = Self {
            number,
            since: now,
            stream,
            address,
            sealer: channel.sealer,
            opener: channel.opener,
            reader: FrameReader::new(CONTROL_FRAME_MAX),
            out: Vec::new(),
            sent: 0,
            key: None,
            accepted_by: now + server.timeouts.handshake,
            capabilities: None,
            next_beat: now,
            silent_at: None,
            unknown_told: false,
            link: None,
            offered,
            spares: None,
            server,
        };
        session.beat(offered.offer(), now)?;
        Ok(session)
    }

    /// Whether the server has accepted the session.
    pub(super) fn is_up(&self) -> bool {
        self.key.is_some()
    }

    /// The server's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its data channels have in common; `None` before it is up.
    pub(super) fn link(&mut self, inbox: &Inbox<Input>) -> Option<Arc<Link>> {
        if self.link.is_none() {
            self.link = Some(Arc::new(Link {
                server: self.server.clone(),
                address: self.address,
                session: self.number,
                key: self.key.clone()?,
                capabilities: self.capabilities.unwrap_or_default(),
                inbox: inbox.clone(),
                spares: self.spares.clone(),
            }));
        }
        self.link.clone()
    }

    /// Begins to keep spare data channels, once it is known whether the server knows of them.
    pub(super) fn begin_spares(
        &mut self,
        inbox: &Inbox<Input>,
        proxy: &LocalProxy,
        enabled: &Enabled,
    ) {
        if self.server.spares.keep == 0 || self.spares.is_some() {
            return;
        }
        let (Some(key), Some(capabilities)) = (&self.key, self.capabilities) else {
            return;
        };
        let spares = Spares::new(spare::Parts {
            server: self.server.clone(),
            address: self.address,
            session: self.number,
            key: key.clone(),
            agreed: capabilities.spare,
            inbox: inbox.clone(),
            proxy: proxy.clone(),
            enabled: enabled.clone(),
        });
        spares.fill();
        self.spares = Some(spares);
        self.link = None;
    }

    /// The spares, if they are agreed: a visitor who is announced found none.
    pub(super) fn missed_spare(&self) {
        if let Some(spares) = self.spares.as_ref().filter(|spares| spares.are_agreed()) {
            spares.missed();
        }
    }

    /// Seals a message into the outbox. [`flush`](Self::flush) has to follow.
    pub(super) fn send(&mut self, message: &Message) -> Result<(), Lost> {
        if self.out.len() - self.sent > OUTBOX_MAX {
            return Err(Lost::Outbox);
        }
        let mut plain = Vec::new();
        // Optional fields go to everybody: an original ignores them (E6).
        message.encode(true, &mut plain);
        log::trace!(
            "frame out type={} length={}",
            plain.first().unwrap_or(&0),
            plain.len()
        );
        self.sealer
            .seal_message(&plain, &mut self.out)
            .map_err(|e| Lost::Protocol(e.to_string()))
    }

    /// Refuses a connection, if the server knows how to hear that (E7).
    pub(super) fn refuse(&mut self, conn: ConnId, reason: &str) -> Result<(), Lost> {
        if !self.capabilities.is_some_and(|c| c.refuse) {
            return Ok(());
        }
        let reason = shortened(reason.to_owned());
        self.send(&Message::RefuseConn { conn, reason })
    }

    fn beat(&mut self, payload: Vec<u8>, now: Instant) -> Result<(), Lost> {
        self.send(&Message::Heartbeat { payload })?;
        self.next_beat = now + self.server.timeouts.heartbeat_interval;
        self.silent_at
            .get_or_insert(now + self.server.timeouts.heartbeat_timeout);
        Ok(())
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(Lost::Io(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.out.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(e) => return Err(Lost::Io(e)),
            }
        }
        self.out = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Something happened to the socket. `true`: there is more to read, call again soon.
    pub(super) fn ready(
        &mut self,
        event: &Event,
        now: Instant,
        notices: &mut Vec<Notice>,
    ) -> Result<bool, Lost> {
        // Reading first: the reason for a broken write may already be here.
        let more = if event.is_readable() || event.is_error() || event.is_read_closed() {
            self.read(now, notices)?
        } else {
            false
        };
        self.flush()?;
        Ok(more)
    }

    /// Reads and opens what is there, within a budget. `true`: the budget was not enough.
    pub(super) fn read(&mut self, now: Instant, notices: &mut Vec<Notice>) -> Result<bool, Lost> {
        let mut buffer = [0u8; READ];
        for _ in 0..READS {
            let room = self.reader.wanted().min(READ);
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => return Err(Lost::Closed { up: self.is_up() }),
                Ok(n) => self.reader.push(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.reader.trim();
                    return Ok(false);
                }
                // A server that refuses may close before it has read all that we sent.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !self.is_up() => {
                    return Err(Lost::Closed { up: false });
                }
                Err(e) => return Err(Lost::Io(e)),
            }
            while let Some(bytes) = self
                .reader
                .next(&mut self.opener, MESSAGE_LIMIT)
                .map_err(|e| Lost::Protocol(e.to_string()))?
            {
                log::trace!(
                    "frame in type={} length={}",
                    bytes.first().unwrap_or(&0),
                    bytes.len()
                );
                // It authenticated, so the server lives.
                self.silent_at = None;
                match Message::decode(bytes) {
                    Ok(message) => notices.extend(self.take(message, now)?),
                    Err(e) => self.pass_over(&e),
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, message: Message, now: Instant) -> Result<Option<Notice>, Lost> {
        let up = self.is_up();
        let early = |what| Lost::Protocol(format!("{what} before AuthOk"));
        Ok(match message {
            Message::AuthOk { session_key } => {
                if up {
                    return Err(Lost::Protocol("a second AuthOk".into()));
                }
                self.key = Some(SessionKey::new(session_key));
                self.since = now;
                Some(Notice::Up)
            }
            Message::AuthFail { reason, text } | Message::Error { reason, text } => {
                let text = shortened(text);
                return Err(Lost::Refused { reason, text });
            }
            Message::Heartbeat { payload } => {
                if self.capabilities.is_some() {
                    return Ok(None);
                }
                // An original sends the offer back as it was: it knows none of this.
                let known = Capabilities::read_answer(&payload)
                    .unwrap_or_default()
                    .and(self.offered);
                self.capabilities = Some(known);
                self.link = None;
                Some(Notice::Capabilities(known))
            }
            Message::TunnelStatus {
                status,
                tunnel,
                reason,
                port,
            } => {
                if !up {
                    return Err(early("TunnelStatus"));
                }
                Some(Notice::Status {
                    tunnel,
                    status,
                    reason: shortened(reason),
                    port,
                })
            }
            Message::IncomingConn {
                tunnel,
                conn,
                visitor,
            } => {
                if !up {
                    return Err(early("IncomingConn"));
                }
                Some(Notice::Call {
                    tunnel,
                    conn,
                    visitor,
                })
            }
            // An original ends a session like this.
            Message::Empty => return Err(Lost::Closed { up }),
            Message::Short => None,
            Message::OpenTunnel { .. }
            | Message::CloseTunnel { .. }
            | Message::DataConnReady { .. }
            | Message::RefuseConn { .. }
            | Message::SpareReady { .. }
            | Message::Assign { .. }
            | Message::Unknown { .. } => {
                self.pass_over(&"message that means nothing here");
                None
            }
        })
    }

    /// Says once per session that something is ignored: a server could send it without end.
    fn pass_over(&mut self, what: &dyn Display) {
        if !std::mem::replace(&mut self.unknown_told, true) {
            log::warn!(
                "The server sent a {what}; it and others like it are ignored (is the server newer than this client?) code={}",
                Code::PROTOCOL
            );
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn due(&self) -> Instant {
        let mut due = self.next_beat;
        if let Some(silent_at) = self.silent_at {
            due = due.min(silent_at);
        }
        if !self.is_up() {
            due = due.min(self.accepted_by);
        }
        if let Some(spares) = self.spares.as_ref().and_then(|spares| spares.due()) {
            due = due.min(spares);
        }
        due
    }

    /// Sends a heartbeat when it is time, and notices silence.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Lost> {
        if self.silent_at.is_some_and(|at| at <= now) {
            return Err(Lost::Silent(self.server.timeouts.heartbeat_timeout));
        }
        if !self.is_up() && self.accepted_by <= now {
            return Err(Lost::NotAccepted(self.server.timeouts.handshake));
        }
        if self.next_beat <= now {
            self.beat(Vec::new(), now)?;
            self.flush()?;
            if let Some(spares) = &self.spares {
                spares.beat(now);
            }
        }
        if let Some(spares) = &self.spares
            && spares.due().is_some_and(|at| at <= now)
        {
            spares.fill();
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(spares) = &self.spares {
            spares.end();
        }
    }
}

/// Cuts a text to [`REASON_MAX`] bytes, at the end of a character.
fn shortened(mut text: String) -> String {
    let mut end = text.len().min(REASON_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
