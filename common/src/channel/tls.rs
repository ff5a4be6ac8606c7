//! TLS as a duplex: TCP below, TLS records on it, plaintext above.
//!
//! ```text
//!  Handshake ── step, step, step ──> Established ──> Duplex
//!
//!  source:  socket ─> buffer ─ open ─┐           ┌─> lent plaintext
//!                                    session (one lock, for the ciphers only)
//!  sink:    source.read ─> plain ────┘           └─ seal ─> out ─> one write ─> socket
//! ```
//!
//! The record layer is rustls' unbuffered one: it opens records where they lie, keeps no buffers of its own at
//! rest, and opening costs a fifth less than with its buffers. Sealing and opening need the same session; the halves share it under a
//! lock that is never held across a system call.
//!
//! What TLS itself has to say goes out in the order in which it was sealed, before the sink's next
//! record. When the sink has nothing under way, the source sends it, as far as the system takes it
//! at once: it never waits, so two peers that flood each other cannot wait for each other. The one thing
//! that rustls keeps for the next write is the answer to a key update; RFC 8446 (4.6.3) wants it in front of the
//! next application data and no earlier, and nobody waits for it.

mod handshake;
mod session;
mod sink;
mod source;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustls::{AlertDescription, Error};

use super::ledger::Ledger;
use crate::budget::{Grant, Want};
use crate::duplex::{Duplex, Socket, Wait};
use crate::pki::{self, Side};

pub use handshake::{Established, Handshake, HandshakeError, Progress};
use session::Session;
use sink::TlsSink;
use source::TlsSource;

/// What a session keeps at rest beyond what a pair is admitted for, in bytes. Measured with 2,000 of them: 3 KiB in all
/// with TLS 1.2, 8 KiB with TLS 1.3 (keys and hashes that are ready for use, the peer's certificate).
const SESSION: usize = 6 * 1024;

/// Makes an established connection a duplex, over the socket of its handshake. Bytes that came behind the
/// handshake are the start of the stream.
pub fn duplex(established: Established, socket: Arc<Socket>, ledger: &Ledger) -> Duplex {
    let (session, early) = established.into_parts();
    let mut memory = ledger.budget.half(0);
    let fits = memory.hold(SESSION, Want::Need);
    let shared = Arc::new(Shared {
        session: Mutex::new(session),
        sent: Condvar::new(),
        _memory: memory,
    });
    let failed = (!fits).then(Failure::memory);
    Duplex {
        source: Box::new(TlsSource::new(
            socket.clone(),
            shared.clone(),
            early,
            failed,
            ledger,
        )),
        sink: Box::new(TlsSink::new(socket.clone(), shared, ledger)),
        abort: socket,
    }
}

/// Whether a peer says with this alert that it does not like our certificate, or wants one.
pub fn refuses_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::CertificateRequired
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
    )
}

/// What both halves use.
struct Shared {
    session: Mutex<Session>,
    /// Told when the source has sent what TLS itself had to say, and when it has failed.
    sent: Condvar,
    _memory: Grant,
}

impl Shared {
    fn lock(&self) -> io::Result<MutexGuard<'_, Session>> {
        self.session.lock().map_err(|_| broken())
    }

    /// Sends what TLS itself has to say, unless the sink has something under way, in front of which it
    /// must not go; without waiting.
    fn flush(&self, socket: &Socket) -> io::Result<()> {
        let mut session = self.lock()?;
        if session.queue.is_empty() || session.sending {
            return Ok(());
        }
        session.sending = true;
        let mut bytes = std::mem::take(&mut session.queue);
        drop(session);
        let result = socket.send(&bytes, Wait::Never);
        let mut session = self.lock()?;
        session.sending = false;
        bytes.drain(..*result.as_ref().unwrap_or(&0));
        bytes.append(&mut session.queue);
        session.queue = bytes;
        drop(session);
        self.sent.notify_all();
        result.map(drop)
    }
}

/// Safety: how long a sink that was cut waits for the source to find out why.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Shared {
    /// What the sink has failed with, or better: why. A server that refuses a client closes behind its alert, and a
    /// write may meet that before the source has read the alert, which is there all the same. `WouldBlock`: to find
    /// out takes a thread that may wait.
    fn why_cut(&self, e: io::Error, wait: Wait) -> io::Error {
        use io::ErrorKind as K;
        if !matches!(e.kind(), K::BrokenPipe | K::ConnectionReset) {
            return e;
        }
        let Ok(session) = self.session.lock() else {
            return broken();
        };
        if !session.is_client() || session.heard {
            return e;
        }
        if wait == Wait::Never && session.last_word.is_none() {
            return K::WouldBlock.into();
        }
        let unheard = |session: &mut Session| session.last_word.is_none();
        match self.sent.wait_timeout_while(session, LAST_WORD, unheard) {
            Ok((session, _)) => session.last_word.as_ref().map_or(e, Failure::error),
            Err(_) => broken(),
        }
    }
}

/// A panic while a session was at work: nobody knows in which state it is.
fn broken() -> io::Error {
    io::Error::other("the TLS session was left in the middle")
}

/// Why a half has failed; the same is said whenever it is asked again.
#[derive(Clone, Debug)]
struct Failure(io::ErrorKind, String);

impl Failure {
    fn memory() -> Self {
        let what = "memory_budget is used up: no room for a TLS record";
        Self(io::ErrorKind::OutOfMemory, what.into())
    }

    fn of(e: &io::Error) -> Self {
        Self(e.kind(), e.to_string())
    }

    /// What is wrong with TLS: an alert that says why we are refused, or damage.
    fn of_tls(e: &Error, may_be_refused: bool) -> Self {
        let (kind, text) = match e {
            Error::AlertReceived(alert) if may_be_refused && refuses_certificate(*alert) => (
                io::ErrorKind::PermissionDenied,
                pki::explain(e, Side::Client).text,
            ),
            Error::AlertReceived(alert) => (
                io::ErrorKind::InvalidData,
                format!("the peer ended the TLS connection: alert {alert:?}"),
            ),
            e => (
                io::ErrorKind::InvalidData,
                format!("damage in the TLS connection: {e}"),
            ),
        };
        Self(kind, text)
    }

    fn error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

/// Makes a buffer longer, to the byte: what doubling would add is in no budget.
fn lengthen(buffer: &mut Vec<u8>, len: usize) {
    buffer.reserve_exact(len.saturating_sub(buffer.len()));
    buffer.resize(len.max(buffer.len()), 0);
}
