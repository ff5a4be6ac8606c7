//! The sending half of a TLS connection.

use std::io;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use super::session::{Session, sealed_len};
use super::{Failure, Shared, broken, lengthen};
use crate::budget::{self, Grant, Want};
use crate::channel::ledger::Ledger;
use crate::duplex::{Fault, Sink, Socket, Source, Wait};

/// Performance: the plaintext rooms of a sink, in bytes; a read that fills one earns the next, so that
/// a terminal session does not hold what a download needs. The first, sealed, fits with its plaintext into a pair's share.
/// The last, sealed, fits into the longest segment that systems make (64 KiB less headers): a few bytes more and each
/// write would be two segments, which costs a third more CPU.
const ROOMS: [usize; 3] = [2 * 1024, 16 * 1024, 64 * 1024 - 256];
const _: () = assert!(2 * ROOMS[0] + 128 <= budget::SINK);
const _: () = assert!(sealed_len(ROOMS[2]) <= SEGMENT);
/// The most that one segment carries on a loopback of 64 KiB, in bytes.
const SEGMENT: usize = 64 * 1024 - 53;

/// The sending half.
pub(super) struct TlsSink {
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    wait: Wait,
    plain: Vec<u8>,
    /// How much of it is taken and not yet sealed, because the source was just sending.
    taken: usize,
    /// Sealed records, and what of them could not be sent without waiting.
    out: Vec<u8>,
    unsent: Range<usize>,
    /// For both buffers.
    memory: Grant,
    /// The close_notify has been sealed.
    finishing: bool,
}

impl TlsSink {
    pub(super) fn new(socket: Arc<Socket>, shared: Arc<Shared>, ledger: &Ledger) -> Self {
        Self {
            socket,
            shared,
            wait: Wait::default(),
            plain: Vec::new(),
            taken: 0,
            out: Vec::new(),
            unsent: 0..0,
            memory: ledger.budget.half(budget::SINK),
            finishing: false,
        }
    }

    /// The session, and with it the right to send, which nobody else has now.
    fn take_session<'s>(shared: &'s Shared, wait: Wait) -> io::Result<MutexGuard<'s, Session>> {
        let mut session = shared.lock()?;
        while session.sending {
            if wait == Wait::Never {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // The source is sending, and does not wait for anybody.
            session = shared.sent.wait(session).map_err(|_| broken())?;
        }
        Ok(session)
    }

    /// Seals what was taken, and sends it as far as that goes.
    fn seal(&mut self) -> io::Result<()> {
        let plain = &self.plain[..self.taken];
        let mut session = Self::take_session(&self.shared, self.wait)?;
        let mut end = 0;
        let sealed = session.seal(plain, &mut self.out, &mut end);
        sealed.map_err(|e| Failure::of_tls(&e, session.may_be_refused()).error())?;
        session.sending = true;
        drop(session);
        self.taken = 0;
        self.unsent = 0..end;
        self.transmit()
    }

    /// The same with the end of our direction.
    fn seal_end(&mut self) -> io::Result<()> {
        let mut session = Self::take_session(&self.shared, self.wait)?;
        let mut end = 0;
        let closed = session.close(&mut self.out, &mut end);
        closed.map_err(|e| Failure::of_tls(&e, session.may_be_refused()).error())?;
        session.sending = true;
        drop(session);
        self.finishing = true;
        self.unsent = 0..end;
        self.transmit()
    }

    /// Sends on, and remembers what would have to wait.
    fn transmit(&mut self) -> io::Result<()> {
        let bytes = &self.out[self.unsent.clone()];
        let sent = self.socket.send(bytes, self.wait);
        self.unsent.start += sent.map_err(|e| self.shared.why_cut(e, self.wait))?;
        if self.unsent.is_empty() {
            let mut session = self.shared.lock()?;
            session.sending = false;
            let has_word = !session.queue.is_empty();
            drop(session);
            if has_word {
                self.shared.flush(&self.socket)?;
            }
        }
        Ok(())
    }

    /// Sends what is left of what was taken, if anything is.
    fn catch_up(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.transmit()?;
        }
        if self.unsent.is_empty() && self.taken > 0 {
            self.seal()?;
        }
        if self.unsent.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

impl Sink for TlsSink {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    fn is_ready(&self) -> bool {
        self.unsent.is_empty() && self.taken == 0 && self.socket.is_writable()
    }

    fn take_from(&mut self, source: &mut dyn Source) -> Result<usize, Fault> {
        self.catch_up().map_err(Fault::Sink)?;
        if self.plain.is_empty() {
            lengthen(&mut self.plain, ROOMS[0]);
            lengthen(&mut self.out, sealed_len(ROOMS[0]));
        }
        let room = self.plain.len();
        let n = source.read(&mut self.plain).map_err(Fault::Source)?;
        if n == 0 {
            return Ok(0);
        }
        self.taken = n;
        match self.seal() {
            // It is ours now; the next call goes on with it.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(n),
            other => other.map_err(Fault::Sink)?,
        }
        if n == room
            && self.unsent.is_empty()
            && let Some(next) = ROOMS.iter().find(|next| **next > room)
            && (self.memory).hold(next + sealed_len(*next), Want::Comfort)
        {
            lengthen(&mut self.plain, *next);
            lengthen(&mut self.out, sealed_len(*next));
        }
        Ok(n)
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.socket.is_aborted() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.catch_up()?;
        if !self.finishing {
            self.seal_end()?;
            self.catch_up()?;
        }
        Ok(())
    }

    fn rest(&mut self) {
        // What is unsent stays; a pump that rests has sent all.
        if self.unsent.is_empty() && self.taken == 0 {
            self.plain = Vec::new();
            self.out = Vec::new();
            self.memory.free();
        }
    }
}
