//! The handshake, step by step: no step waits, so a peer that takes its time costs no thread.
//!
//! ```text
//!  step ─┬─> Done                 become established
//!        ├─> WantRead             step again when the socket is readable (Pool::when_readable)
//!        └─> WantWrite            the peer does not take what we say; step again later, or give up
//! ```
//!
//! Whoever steps keeps the deadline, and aborts the socket at it. Where a thread of one's own waits anyway, as
//! for a dial, [`Handshake::run`] does both.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, ClientConfig, CommonState, Error, ServerConfig};

use super::session::{Connection, RECORD_MAX, Session, next_record, record_len};
use super::{lengthen, refuses_certificate};
use crate::duplex::{Socket, Wait};
use crate::pki::{self, Problem, Side};

/// Safety: what a server may send before the handshake is done, in bytes. Its certificates take some KiB; rustls
/// allows a message of 64 KiB.
const RECEIVED_MAX: usize = 128 * 1024;
/// Safety: what a client may send before the handshake is done, in bytes. Strangers can have it kept, in thousands of
/// connections that no budget counts; messages that are not whole yet, which the session holds, are part of it. A hello
/// takes 2 KiB, and with a ticket of ours, which the client's certificates are in, as much more as those; a chain of
/// three with RSA keys of 4096 bits takes 6 KiB.
const RECEIVED_FROM_CLIENT_MAX: usize = 32 * 1024;
/// Safety: in how many records.
const RECORDS_MAX: usize = 256;
/// Performance: what is read at once at first, in bytes: a usual flight.
const READ: usize = 4 * 1024;

/// How far a handshake has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It is done, and all of it has been sent.
    Done,
    /// The peer has to say something.
    WantRead,
    /// The system takes nothing more: the peer has to read something.
    WantWrite,
}

/// Why a handshake has failed. Each is final: drop the handshake.
#[derive(Debug)]
pub enum HandshakeError {
    /// The peer said so.
    Refused(AlertDescription),
    /// We refuse the peer, which has been told.
    Refuses(Error),
    /// The connection ended in the middle.
    Cut,
    /// The peer sends more than any handshake takes.
    TooMuch,
    /// It took too long ([`Handshake::run`]).
    TimedOut,
    /// The system says no, or the socket was aborted.
    Io(io::Error),
}

impl HandshakeError {
    /// Whether the peer does not like our certificate, or wants one: trying again will not help.
    pub fn is_about_our_certificate(&self) -> bool {
        matches!(self, Self::Refused(alert) if refuses_certificate(*alert))
    }

    /// Whether the peer has just left, with or without a word.
    pub fn is_departure(&self) -> bool {
        use AlertDescription::{CloseNotify, UserCanceled};
        matches!(self, Self::Cut | Self::Refused(CloseNotify | UserCanceled))
    }

    /// What it means for the end that saw it, and what mends it; `None` if it is no matter of TLS itself.
    pub fn explain(&self, side: Side) -> Option<Problem> {
        match self {
            Self::Refused(alert) => Some(pki::explain(&Error::AlertReceived(*alert), side)),
            Self::Refuses(e) => Some(pki::explain(e, side)),
            _ => None,
        }
    }

    fn of(e: Error) -> Self {
        match e {
            Error::AlertReceived(alert) => Self::Refused(alert),
            e => Self::Refuses(e),
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(alert) if refuses_certificate(*alert) => {
                write!(f, "the peer refuses our certificate: TLS alert {alert:?}")
            }
            Self::Refused(alert) => {
                write!(f, "the peer refuses the connection: TLS alert {alert:?}")
            }
            Self::Refuses(e) => write!(f, "the peer is refused: {e}"),
            Self::Cut => f.write_str("the connection ended during the TLS handshake"),
            Self::TooMuch => write!(
                f,
                "the peer sends more than a TLS handshake takes: at most {} KiB from a client and {} KiB from a server, \
                 the chain of certificates included; if it is a friend, its chain is too long",
                RECEIVED_FROM_CLIENT_MAX / 1024,
                RECEIVED_MAX / 1024
            ),
            Self::TimedOut => f.write_str("the TLS handshake took too long"),
            Self::Io(e) => write!(f, "the TLS handshake failed: {e}"),
        }
    }
}

impl std::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refuses(e) => Some(e),
            Self::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// A handshake that is under way.
pub struct Handshake {
    socket: Arc<Socket>,
    session: Session,
    /// Received bytes; `start..end` are records not yet opened.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// What came behind the handshake and is open already.
    early: Vec<u8>,
    received: usize,
    records: usize,
}

impl Handshake {
    /// The dialling end; `name` is what the peer's certificate must be for.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        socket: Arc<Socket>,
    ) -> Result<Self, HandshakeError> {
        let client = UnbufferedClientConnection::new(config, name);
        Self::new(client.map(Connection::Client), socket)
    }

    /// The listening end.
    pub fn server(config: Arc<ServerConfig>, socket: Arc<Socket>) -> Result<Self, HandshakeError> {
        let server = UnbufferedServerConnection::new(config);
        Self::new(server.map(Connection::Server), socket)
    }

    fn new(
        connection: Result<Connection, Error>,
        socket: Arc<Socket>,
    ) -> Result<Self, HandshakeError> {
        let mut session = Session::new(connection.map_err(HandshakeError::of)?);
        session.start().map_err(HandshakeError::of)?;
        Ok(Self {
            socket,
            session,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            early: Vec::new(),
            received: 0,
            records: 0,
        })
    }

    /// The socket, for waiting and for aborting.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Goes on as far as it goes without waiting.
    ///
    /// # Errors
    /// All are final. When we refuse the peer it has been sent an alert, if the system took it.
    pub fn step(&mut self) -> Result<Progress, HandshakeError> {
        self.advance(Wait::Never)
    }

    /// Goes through with it, however slowly the peer sends what it sends, until `deadline`.
    ///
    /// # Errors
    /// As [`step`](Self::step), and [`HandshakeError::TimedOut`].
    pub fn run(mut self, deadline: Instant) -> Result<Established, HandshakeError> {
        while self.advance(Wait::Patient)? != Progress::Done {
            if Instant::now() >= deadline {
                return Err(HandshakeError::TimedOut);
            }
        }
        Ok(Established(self))
    }

    /// What is a connection now.
    ///
    /// # Panics
    /// Before [`Progress::Done`].
    pub fn established(self) -> Established {
        assert!(
            !self.session.state().is_handshaking(),
            "the handshake is not done"
        );
        Established(self)
    }

    /// With [`Wait::Patient`] it waits a moment, once, and returns.
    fn advance(&mut self, wait: Wait) -> Result<Progress, HandshakeError> {
        loop {
            let sent = self.send()?;
            if !self.session.state().is_handshaking() {
                return Ok(if sent {
                    Progress::Done
                } else {
                    Progress::WantWrite
                });
            }
            if self.open_next()? {
                continue;
            }
            if !sent && wait == Wait::Never {
                return Ok(Progress::WantWrite);
            }
            if !self.receive(wait)? {
                self.rest();
                return Ok(if sent {
                    Progress::WantRead
                } else {
                    Progress::WantWrite
                });
            }
            if wait == Wait::Patient {
                // So that the clock is looked at: a peer that dribbles must not keep us here.
                self.open_all()?;
                let sent = self.send()?;
                let done = sent && !self.session.state().is_handshaking();
                return Ok(if done {
                    Progress::Done
                } else {
                    Progress::WantRead
                });
            }
        }
    }

    /// Sends what the session has to say; whether that was all.
    fn send(&mut self) -> Result<bool, HandshakeError> {
        let queue = &mut self.session.queue;
        if !queue.is_empty() {
            // Where the system cannot do it otherwise, a write waits; a flight fits into any send buffer.
            let wait = if cfg!(unix) {
                Wait::Never
            } else {
                Wait::Patient
            };
            let n = self.socket.send(queue, wait)?;
            queue.drain(..n);
            if queue.is_empty() {
                *queue = Vec::new();
            }
        }
        Ok(queue.is_empty())
    }

    /// Opens the next record if it is there, unless the handshake is done: the rest is the stream's.
    fn open_next(&mut self) -> Result<bool, HandshakeError> {
        let Some(len) = next_record(&self.buffer[self.start..self.end]) else {
            return Ok(false);
        };
        self.records += 1;
        if self.records > RECORDS_MAX {
            return Err(HandshakeError::TooMuch);
        }
        let record = self.start..self.start + len;
        self.start = record.end;
        let opened = self.session.open(&mut self.buffer[record], &mut self.early);
        opened.map_err(|e| {
            // Our last word; who does not take it at once does not get it.
            let _ = self.send();
            HandshakeError::of(e)
        })?;
        Ok(true)
    }

    fn open_all(&mut self) -> Result<(), HandshakeError> {
        while self.session.state().is_handshaking() && self.open_next()? {}
        Ok(())
    }

    /// How many bytes the peer may still send. What comes behind a client's handshake does not count against it.
    fn room(&self) -> usize {
        let from_client = !self.session.is_client() && self.session.state().is_handshaking();
        let most = if from_client {
            RECEIVED_FROM_CLIENT_MAX
        } else {
            RECEIVED_MAX
        };
        most.saturating_sub(self.received)
    }

    /// Reads what is there. `false`: nothing.
    fn receive(&mut self, wait: Wait) -> Result<bool, HandshakeError> {
        let room = self.room();
        if room == 0 {
            return Err(HandshakeError::TooMuch);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let record = record_len(&self.buffer[..self.end]).unwrap_or(0);
        lengthen(&mut self.buffer, record.clamp(READ, RECORD_MAX));
        let to = self.buffer.len().min(self.end + room);
        match self.socket.read(&mut self.buffer[self.end..to], wait) {
            Ok(0) => Err(HandshakeError::Cut),
            Ok(n) => {
                self.end += n;
                self.received += n;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Nothing is kept while nothing comes.
    fn rest(&mut self) {
        if self.start == self.end {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
    }
}

/// Safety: how much of a stream that nobody wants yet is kept, in bytes, but for the end of a record. As long as it is
/// less, an end that comes behind it is seen.
const EARLY_MAX: usize = 16 * 1024;

/// A connection whose handshake is done.
pub struct Established(Handshake);

impl Established {
    /// What rustls knows of it: the peer's certificates, version, cipher suite, protocol.
    pub fn state(&self) -> &CommonState {
        self.0.session.state()
    }

    /// The peer's certificates, its own first; empty when it has shown none.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.state().peer_certificates().unwrap_or_default()
    }

    /// The socket, for waiting and for aborting.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.0.socket
    }

    /// Looks at what has come on a connection that nobody uses yet, without waiting. With TLS 1.3 a client
    /// learns here at the earliest that its certificate is refused. Plaintext is kept for the duplex. Whether looking
    /// again makes sense, when more has come: not once there is much plaintext.
    ///
    /// # Errors
    /// The connection is of no use any more; [`HandshakeError::Cut`] also where the peer has ended it as it
    /// should.
    pub fn look(&mut self) -> Result<bool, HandshakeError> {
        let handshake = &mut self.0;
        loop {
            while handshake.open_next()? {}
            handshake.send()?;
            if handshake.session.closed {
                return Err(HandshakeError::Cut);
            }
            // What is more than a greeting is left to the duplex, and to the system until then.
            let enough = handshake.early.len() >= EARLY_MAX;
            if enough || !handshake.receive(Wait::Never)? {
                handshake.rest();
                return Ok(!enough);
            }
        }
    }

    /// The session, and what came early: plaintext in hand, and bytes not yet opened.
    pub(super) fn into_parts(self) -> (Session, [Vec<u8>; 2]) {
        let Handshake {
            session,
            mut buffer,
            start,
            end,
            early,
            ..
        } = self.0;
        buffer.truncate(end);
        buffer.drain(..start);
        buffer.shrink_to_fit();
        (session, [early, buffer])
    }
}
