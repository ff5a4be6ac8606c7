//! ControlSessionManager: who holds a session; and how a connection is let go.
//!
//! ```text
//!  identity <─> session: keys, frames in, outbox, capabilities, counters
//!  Parting: last bytes out, then FIN, then whatever still comes is read away
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Instant;

use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::id::SessionId;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;
use mio::Token;
use mio::net::TcpStream;

use super::spares::SpareList;
use crate::gate::{Expected, party};

/// One authenticated control channel.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) token: Token,
    pub(super) stream: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) frames: FrameReader,
    pub(super) outbox: Vec<u8>,
    /// `None` until the first Heartbeat has come.
    pub(super) capabilities: Option<Capabilities>,
    pub(super) identity: [u8; 32],
    /// The allow list's name for it, or the short form of its key.
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) key: SessionKey,
    pub(super) started: Instant,
    pub(super) last_seen: Instant,
    /// When anything of this client was last seen, on whichever channel.
    pub(super) heard: Instant,
    pub(super) metrics: Metrics,
    /// When its silence is looked at.
    pub(super) silence: DeadlineKey,
    /// When what it inherited and did not claim is closed.
    pub(super) inherited: Option<DeadlineKey>,
    /// Its data channels that wait for visitors.
    pub(super) spares: SpareList,
}

impl Session {
    /// What was agreed; nothing before the first Heartbeat, nothing with an original.
    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities.unwrap_or_default()
    }

    /// Seals a message into the outbox.
    pub(super) fn queue(&mut self, message: &Message) -> bool {
        let capabilities = self.capabilities();
        let extended = match message {
            Message::TunnelStatus { .. } => capabilities.status,
            Message::IncomingConn { .. } => capabilities.visitor,
            _ => false,
        };
        let mut bytes = Vec::new();
        message.encode(extended, &mut bytes);
        log::trace!(
            "session={} frame out type={} length={}",
            self.id,
            bytes.first().unwrap_or(&0),
            bytes.len()
        );
        self.sealer.seal_message(&bytes, &mut self.outbox).is_ok()
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        write_out(&mut self.stream, &mut self.outbox)
    }
}

/// Writes as much of `outbox` as the socket takes without waiting.
fn write_out(stream: &mut TcpStream, outbox: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    let result = loop {
        if sent == outbox.len() {
            break Ok(());
        }
        match stream.write(&outbox[sent..]) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Err(e),
        }
    };
    outbox.drain(..sent);
    if outbox.is_empty() {
        // A burst's memory is not kept through months of heartbeats.
        *outbox = Vec::new();
    }
    result
}

/// A connection that has been told to go: its last bytes are written, then it may close. Closing at
/// once with unread bytes would be a reset, which can destroy the reason before it is read.
pub(super) struct Parting {
    pub(super) stream: TcpStream,
    pub(super) outbox: Vec<u8>,
    pub(super) shut: bool,
}

impl Parting {
    /// Goes on as far as possible; `true` when it is over.
    pub(super) fn advance(&mut self) -> bool {
        if write_out(&mut self.stream, &mut self.outbox).is_err() {
            return true;
        }
        if self.outbox.is_empty() && !self.shut {
            self.shut = true;
            if self.stream.shutdown(Shutdown::Write).is_err() {
                return true;
            }
        }
        let mut discarded = [0u8; 4096];
        for _ in 0..64 {
            match self.stream.read(&mut discarded) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        // It talks on although it was told to go.
        true
    }
}

/// The sessions, and the channels of each identity that have no purpose yet.
pub(super) struct ControlSessionManager {
    max: usize,
    next: u64,
    sessions: HashMap<SessionId, Session>,
    by_identity: HashMap<[u8; 32], SessionId>,
    parties: HashMap<IpAddr, usize>,
    expected: Expected,
    /// With each: whether it came from where its identity's session comes from.
    fresh: HashMap<[u8; 32], BTreeMap<Token, bool>>,
}

impl ControlSessionManager {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: 0,
            sessions: HashMap::new(),
            by_identity: HashMap::new(),
            parties: HashMap::new(),
            expected: Expected::default(),
            fresh: HashMap::new(),
        }
    }

    pub(super) fn of(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&id)
    }

    pub(super) fn of_identity(&self, identity: &[u8; 32]) -> Option<SessionId> {
        self.by_identity.get(identity).copied()
    }

    /// Whether all slots are taken.
    pub(super) fn is_full(&self) -> bool {
        self.sessions.len() >= self.max
    }

    /// A new session's id.
    pub(super) fn next_id(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next)
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Whether this identity has a session, and from this address's party.
    pub(super) fn is_home(&self, identity: &[u8; 32], address: IpAddr) -> bool {
        self.of_identity(identity)
            .and_then(|id| self.sessions.get(&id))
            .is_some_and(|session| party(session.address.ip()) == party(address))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.fresh.is_empty()
    }

    /// Whether a session of this address's party is live.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.parties.contains_key(&party(address))
    }

    /// Whether this address's party lost its last session a moment ago.
    pub(super) fn expects(&self, address: IpAddr, now: Instant) -> bool {
        self.expected.knows(address, now)
    }

    /// A channel of this identity has done its handshake. Returns the oldest of those from `home` when
    /// there are more than `max` of them.
    pub(super) fn fresh_came(
        &mut self,
        identity: &[u8; 32],
        token: Token,
        home: bool,
        max: usize,
    ) -> Option<Token> {
        let fresh = self.fresh.entry(*identity).or_default();
        fresh.insert(token, home);
        let mut at_home = fresh.iter().filter(|(_, home)| **home);
        let oldest = at_home.next().map(|(token, _)| *token);
        oldest.filter(|_| home && at_home.count() >= max)
    }

    /// It has found its purpose, or is gone.
    pub(super) fn fresh_left(&mut self, identity: &[u8; 32], token: Token) {
        if let Some(fresh) = self.fresh.get_mut(identity) {
            fresh.remove(&token);
            if fresh.is_empty() {
                self.fresh.remove(identity);
            }
        }
    }

    /// How many of its channels without a purpose come from where its session comes from.
    pub(super) fn fresh_at_home(&self, identity: &[u8; 32]) -> usize {
        let fresh = self.fresh.get(identity);
        fresh.map_or(0, |fresh| fresh.values().filter(|home| **home).count())
    }

    pub(super) fn fresh_of(&self, identity: &[u8; 32]) -> Vec<Token> {
        self.fresh
            .get(identity)
            .map(|fresh| fresh.keys().copied().collect())
            .unwrap_or_default()
    }

    pub(super) fn add(&mut self, session: Session) {
        *self.parties.entry(party(session.address.ip())).or_default() += 1;
        self.by_identity.insert(session.identity, session.id);
        self.sessions.insert(session.id, session);
    }

    /// `expected`: when the client is expected to come back, the present time.
    pub(super) fn remove(&mut self, id: SessionId, expected: Option<Instant>) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        let address = session.address.ip();
        let party = party(address);
        if let Some(count) = self.parties.get_mut(&party) {
            *count -= 1;
            if *count == 0 {
                self.parties.remove(&party);
                if let Some(now) = expected {
                    self.expected.lost(address, now);
                }
            }
        }
        if self.by_identity.get(&session.identity) == Some(&id) {
            self.by_identity.remove(&session.identity);
        }
        Some(session)
    }
}
