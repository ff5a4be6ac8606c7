//! The receiving half of a TLS connection.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use super::session::{RECORD_MAX, next_record, record_len};
use super::{Failure, Shared, lengthen};
use crate::budget::{self, Grant, Want};
use crate::channel::ledger::Ledger;
use crate::duplex::{Socket, Source, Wait};

/// Performance: the receive buffers of a source, in bytes; a read that fills one earns the next. The last takes four
/// full records.
const ROOMS: [usize; 3] = [4 * 1024, RECORD_MAX, 4 * (RECORD_MAX - 1024)];
/// Safety: how many records and reads without a byte of plaintext are worked on in passing.
const STEPS_MAX: usize = 32;

/// The receiving half.
pub(super) struct TlsSource {
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    wait: Wait,
    /// What comes is too much to be worked on in passing.
    heavy: bool,
    /// Received bytes; `start..end` are records not yet opened.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The size of the next receive buffer.
    room: usize,
    /// Plaintext; what is in front of `at` has been consumed.
    plain: Vec<u8>,
    at: usize,
    /// For both buffers, and for parts of handshake messages.
    memory: Grant,
    held: usize,
    ended: bool,
    /// Errors are final.
    failed: Option<Failure>,
}

impl TlsSource {
    pub(super) fn new(
        socket: Arc<Socket>,
        shared: Arc<Shared>,
        [plain, buffer]: [Vec<u8>; 2],
        failed: Option<Failure>,
        ledger: &Ledger,
    ) -> Self {
        let mut memory = ledger.budget.half(budget::SOURCE);
        let fits = memory.hold(plain.capacity() + buffer.len(), Want::Need);
        Self {
            socket,
            shared,
            wait: Wait::default(),
            heavy: false,
            start: 0,
            end: buffer.len(),
            buffer,
            room: ROOMS[0],
            plain,
            at: 0,
            memory,
            held: 0,
            ended: false,
            failed: failed.or_else(|| (!fits).then(Failure::memory)),
        }
    }

    fn in_hand(&self) -> &[u8] {
        &self.plain[self.at..]
    }

    fn next_record(&self) -> Option<usize> {
        next_record(&self.buffer[self.start..self.end])
    }

    /// Says what both buffers take, with so many bytes for plaintext.
    fn hold(&mut self, plain: usize, want: Want) -> bool {
        let sum = self.buffer.len() + self.held + plain;
        self.memory.hold(sum, want)
    }

    /// Makes room for the plaintext of the next record, `len` bytes long, and of those behind it that are
    /// there.
    fn make_plain_room(&mut self, len: usize) -> Result<(), Failure> {
        let all = match self.wait {
            Wait::Patient => self.end - self.start,
            Wait::Never => len,
        };
        if self.plain.capacity() >= all {
            return Ok(());
        }
        let wanted = if self.hold(all, Want::Comfort) {
            all
        } else if self.plain.capacity() >= len {
            return Ok(());
        } else if self.hold(len, Want::Need) {
            len
        } else {
            return Err(Failure::memory());
        };
        self.plain = Vec::with_capacity(wanted);
        Ok(())
    }

    /// Opens the next records in the buffer, as many as there is room for. `false`: more bytes are needed.
    fn open_next(&mut self) -> Result<bool, Failure> {
        let Some(mut len) = self.next_record() else {
            return Ok(false);
        };
        self.plain.clear();
        self.at = 0;
        self.make_plain_room(len)?;
        let shared = self.shared.clone();
        let mut session = shared.lock().map_err(|e| Failure::of(&e))?;
        let opened = loop {
            let record = self.start..self.start + len;
            self.start = record.end;
            let opened = session.open(&mut self.buffer[record], &mut self.plain);
            if opened.is_err() || session.closed || self.wait == Wait::Never {
                break opened;
            }
            match self.next_record() {
                Some(next) if self.plain.len() + next <= self.plain.capacity() => len = next,
                _ => break opened,
            }
        };
        session.heard |= !self.plain.is_empty();
        let (closed, held) = (session.closed, session.held());
        let (has_word, may_be_refused) = (!session.queue.is_empty(), session.may_be_refused());
        drop(session);
        if has_word {
            // If it fails, so will the next read or write, and say why.
            let _ = self.shared.flush(&self.socket);
        }
        if let Err(e) = opened {
            let failure = Failure::of_tls(&e, may_be_refused);
            if self.plain.is_empty() {
                return Err(failure);
            }
            // What was whole before it comes first.
            self.failed = Some(failure);
        }
        self.ended = closed;
        if closed {
            // What is behind it is to be ignored (RFC 8446, 6.1).
            (self.start, self.end) = (0, 0);
        }
        if held != self.held {
            self.held = held;
            if !self.hold(self.plain.capacity(), Want::Need) {
                return Err(Failure::memory());
            }
        }
        Ok(true)
    }

    /// Makes the receive buffer as long as it should be, or as there is memory for.
    fn make_room(&mut self, record: usize) -> io::Result<()> {
        let wanted = self.room.max(record);
        let old = self.buffer.len();
        if old >= wanted {
            return Ok(());
        }
        let sum = |len| len + self.held + self.plain.capacity();
        let len = if self.memory.hold(sum(wanted), Want::Comfort) {
            wanted
        } else if old >= record.max(ROOMS[0]) {
            return Ok(());
        } else if self.memory.hold(sum(record.max(ROOMS[0])), Want::Need) {
            record.max(ROOMS[0])
        } else {
            return Err(Failure::memory().error());
        };
        lengthen(&mut self.buffer, len);
        Ok(())
    }

    /// Reads more bytes behind `end`, with room for the record that is under way.
    fn receive(&mut self) -> io::Result<()> {
        let pending = self.end - self.start;
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, pending);
        }
        // A longer one has gone to rustls, which has refused it.
        let record = record_len(&self.buffer[..pending]).unwrap_or(0);
        self.make_room(record)?;
        let most = match self.wait {
            Wait::Patient => self.buffer.len(),
            // A moment's work.
            Wait::Never => self.buffer.len().min(RECORD_MAX),
        };
        let n = self
            .socket
            .read(&mut self.buffer[pending..most], self.wait)?;
        if n == 0 {
            let what = "the TLS connection was cut: it ended without a close_notify";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.end += n;
        if self.end == self.buffer.len() {
            let next = ROOMS.iter().find(|next| **next > self.end);
            self.room = self.room.max(*next.unwrap_or(&0));
        }
        Ok(())
    }

    /// One step towards the next plaintext: records are opened, or bytes are received.
    fn advance(&mut self) -> io::Result<()> {
        let opened = self.open_next().map_err(|failure| self.fail(failure))?;
        if opened {
            return Ok(());
        }
        self.receive().map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => e,
            _ => self.fail(Failure::of(&e)),
        })
    }

    fn fail(&mut self, failure: Failure) -> io::Error {
        let e = failure.error();
        if let Ok(mut session) = self.shared.lock() {
            session.last_word = Some(failure.clone());
        }
        self.shared.sent.notify_all();
        self.failed = Some(failure);
        e
    }
}

impl Read for TlsSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for TlsSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let mut steps = 0;
        while self.in_hand().is_empty() && !self.ended {
            if let Some(failure) = &self.failed {
                return Err(failure.error());
            }
            // Records without a word could keep us here for as long as somebody sends them.
            if self.wait == Wait::Never && (self.heavy || steps == STEPS_MAX) {
                self.heavy = true;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            steps += 1;
            self.advance()?;
        }
        if self.ended && self.in_hand().is_empty() && self.socket.is_aborted() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "aborted"));
        }
        Ok(self.in_hand())
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.plain.len());
    }
}

impl Source for TlsSource {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
        self.heavy = false;
    }

    fn is_heavy(&self) -> bool {
        self.heavy
    }

    fn rest(&mut self) -> Option<Arc<Socket>> {
        if !self.in_hand().is_empty() {
            return None;
        }
        self.plain = Vec::new();
        self.at = 0;
        self.room = ROOMS[0];
        if self.start == self.end {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
        // Part of a record stays in hand, where it is, and in the budget.
        let _ = self.hold(0, Want::Comfort);
        Some(self.socket.clone())
    }
}
