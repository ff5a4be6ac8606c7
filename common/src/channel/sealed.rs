//! A data channel as a duplex: TCP below, sealed frames on it, plaintext above.
//!
//! ```text
//!  source:  socket ─> buffer ─ open in place ─> lent plaintext
//!  sink:    source.read ─> buffer[HEAD..] ─ seal in place ─> one write ─> socket
//! ```
//!
//! The halves have keys of their own and share nothing but the socket: no lock. How the end of a
//! direction is told depends on the peer ([`End`]). A channel that may serve again is given back when
//! both halves have ended as meant ([`reusable`]).

use std::io::{self, BufRead, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::ledger::Ledger;
use super::reuse::{OnReuse, Recovered, Slot};
use crate::budget::{self, Grant, Want};
use crate::duplex::{Duplex, Socket, Source, Wait};
use crate::wire::compress::ContainerError;
use crate::wire::frame::{self, FIN, FrameError, HEAD, Opened, Opener, Sealer, TAIL};
use crate::wire::message::Kind;
use crate::wire::{CIPHERTEXT_MAX, DATA_PAYLOAD_MAX, LEN_LEN, MESSAGE_HEAD, MESSAGE_MAX};

/// Performance: the least a source asks the socket for, in bytes, so that small frames come many to
/// a read.
const READ_MIN: usize = 16 * 1024;
/// Safety: the most that a source makes room for before the bytes are there; frames of ours fit.
const READ_MAX: usize = LEN_LEN + HEAD + DATA_PAYLOAD_MAX + TAIL;
/// Safety: how many frames and reads without a byte of plaintext are worked on in passing.
const STEPS_MAX: usize = 32;
/// Performance: the spare buffer that is kept for the next frame, in bytes; frames of ours fit.
const SPARE_KEPT: usize = 256 * 1024;

mod sink;

pub use super::policy::Compression;
use sink::SealedSink;

/// How the end of a direction is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By a FIN frame (E2): a TCP end without it is a cut.
    Fin,
    /// By the TCP end, as the original does (PROTOCOL.md 9): all there is.
    Tcp,
}

/// Makes a data channel a duplex. `rest` is what was already received behind the last opened frame.
pub fn sealed(
    stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    rest: Vec<u8>,
    end: End,
    compression: Compression,
    ledger: &Ledger,
) -> io::Result<Duplex> {
    let channel = Recovered {
        socket: Socket::new(stream)?,
        sealer,
        opener,
        rest,
    };
    Ok(make(channel, end, compression, None, ledger))
}

/// As [`sealed`] with [`End::Fin`], on a channel that serves again (E9): when FIN has been sent and
/// received, what is left of the channel goes to `on_reuse`. Bytes behind the peer's FIN belong to
/// the next use.
pub fn reusable(
    channel: Recovered,
    compression: Compression,
    on_reuse: OnReuse,
    ledger: &Ledger,
) -> Duplex {
    let slot = Some(Slot::new(on_reuse));
    make(channel, End::Fin, compression, slot, ledger)
}

fn make(
    channel: Recovered,
    end: End,
    compression: Compression,
    slot: Option<Slot>,
    ledger: &Ledger,
) -> Duplex {
    let Recovered {
        socket,
        sealer,
        opener,
        rest,
    } = channel;
    let other = Arc::new(Other::default());
    let received = rest.len();
    let mut memory = ledger.budget.half(budget::SOURCE);
    let fits = memory.hold(received, Want::Need);
    Duplex {
        source: Box::new(SealedSource {
            socket: socket.clone(),
            wait: Wait::default(),
            heavy: false,
            opener: Some(opener),
            buffer: rest,
            start: 0,
            end: received,
            usual: 0,
            plain: Plain::None,
            spare: Vec::new(),
            memory,
            rule: end,
            ended: false,
            failed: (!fits).then_some(io::ErrorKind::OutOfMemory),
            other: other.clone(),
            slot: slot.clone(),
        }),
        sink: Box::new(SealedSink::new(
            socket.clone(),
            sealer,
            end,
            other,
            compression,
            slot,
            ledger,
        )),
        abort: socket,
    }
}

/// What the sink has to know of the source, for [`End::Tcp`] only.
#[derive(Default)]
struct Other {
    frames: AtomicU64,
    /// Plaintext waits for whoever reads slowly.
    in_hand: AtomicBool,
    ended: AtomicBool,
}

/// Plaintext in hand, and where.
enum Plain {
    None,
    /// In the receive buffer.
    Buffer(Range<usize>),
    /// In the spare buffer.
    Spare(Range<usize>),
}

struct SealedSource {
    socket: Arc<Socket>,
    wait: Wait,
    /// What comes is too much to be worked on in passing.
    heavy: bool,
    /// Taken only when the source is dropped.
    opener: Option<Opener>,
    /// Received bytes; `start..end` are frames not yet opened.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How long the last frame was: the next is likely to be as long.
    usual: usize,
    plain: Plain,
    spare: Vec<u8>,
    /// For both buffers.
    memory: Grant,
    rule: End,
    ended: bool,
    /// Errors are final: behind a frame that does not open, the next one still would.
    failed: Option<io::ErrorKind>,
    other: Arc<Other>,
    slot: Option<Slot>,
}

/// Why a half has its key.
const OURS: &str = "a half gives its key away only when it is dropped";

fn damage(what: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// What is wrong with a frame: usually the frame.
fn not_opened(e: FrameError) -> io::Error {
    match e {
        FrameError::Container(ContainerError::NoRoom) => {
            io::Error::new(io::ErrorKind::OutOfMemory, e)
        }
        e => damage(e),
    }
}

/// Makes a buffer longer, to the byte: what doubling would add is in no budget.
fn lengthen(buffer: &mut Vec<u8>, len: usize) {
    buffer.reserve_exact(len.saturating_sub(buffer.len()));
    buffer.resize(len, 0);
}

impl SealedSource {
    /// Makes the receive buffer `wanted` bytes long, or what else is to be had; `frame` is what has to
    /// fit in the end. How long it is.
    fn make_room(&mut self, wanted: usize, frame: usize) -> io::Result<usize> {
        if self.buffer.len() >= wanted {
            return Ok(wanted);
        }
        // Nothing is in the spare buffer while more is received.
        let least = wanted.min(frame.max(budget::SMALL));
        let len = if self.memory.hold(wanted + self.spare.len(), Want::Comfort) {
            wanted
        } else if self.buffer.len() >= least {
            return Ok(self.buffer.len());
        } else if least <= budget::SMALL || self.memory.hold(least + self.spare.len(), Want::Need) {
            least
        } else {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("memory_budget is used up: no room for a frame of {frame} bytes"),
            ));
        };
        lengthen(&mut self.buffer, len);
        Ok(len)
    }

    /// Gives a spare buffer back that only an unusual peer needs: it must not stay with the pair.
    fn trim_spare(&mut self) {
        if self.spare.len() > SPARE_KEPT {
            self.plain = Plain::None;
            self.spare = Vec::new();
            let _ = self.memory.hold(self.buffer.len(), Want::Comfort);
        }
    }

    /// Opens the next whole frame in the buffer. `false`: more bytes are needed.
    fn open_next(&mut self) -> io::Result<bool> {
        let pending = &self.buffer[self.start..self.end];
        let Some(len) = frame::frame_len(pending, CIPHERTEXT_MAX).map_err(damage)? else {
            return Ok(false);
        };
        if pending.len() < LEN_LEN + len {
            return Ok(false);
        }
        let at = self.start + LEN_LEN;
        self.start = at + len;
        self.usual = len;
        let received = self.buffer.len();
        let memory = &mut self.memory;
        let may = |wanted| {
            if memory.hold(received + wanted, Want::Need) {
                wanted
            } else {
                budget::SMALL
            }
        };
        let body = &mut self.buffer[at..at + len];
        let (message, plain) = match self
            .opener
            .as_mut()
            .expect(OURS)
            .open_within(body, &mut self.spare, MESSAGE_MAX, may)
            .map_err(not_opened)?
        {
            Opened::InPlace(r) => (
                &body[r.clone()],
                Plain::Buffer(at + r.start + MESSAGE_HEAD..at + r.end),
            ),
            Opened::Spare(len) => (&self.spare[..len], Plain::Spare(MESSAGE_HEAD..len)),
        };
        // Clearing room for so much takes as long as many frames do.
        self.heavy |= self.spare.len() > SPARE_KEPT;
        self.other.frames.fetch_add(1, Ordering::Relaxed);
        let original = self.rule == End::Tcp;
        let Some((head, payload)) = message.split_first_chunk::<MESSAGE_HEAD>() else {
            if message.is_empty() && original {
                self.ended = true;
                return Ok(true);
            }
            return Err(damage(FrameError::Short));
        };
        let fin = head[1] & FIN != 0 && !original;
        match (head[0], payload.is_empty()) {
            (kind, true) if kind == Kind::Data as u8 => self.ended = fin,
            (kind, false) if kind == Kind::Data as u8 && !fin => self.plain = plain,
            (kind, _) if kind == Kind::CloseTunnel as u8 && original => self.ended = true,
            (kind, _) => {
                return Err(damage(format_args!(
                    "unexpected frame of type {kind} on a data channel"
                )));
            }
        }
        if self.ended && !original && self.slot.is_none() && self.start < self.end {
            return Err(damage("bytes after the end of the direction"));
        }
        Ok(true)
    }

    /// Reads more bytes behind `end`, making room for the frame that is under way.
    fn receive(&mut self) -> io::Result<()> {
        let pending = self.end - self.start;
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, pending);
        }
        // Exactly up to behind the next frame's length field, guessed while the frame's own is not there,
        // or a batch of small frames: either way little is left over to be moved to the front.
        let frame = frame::frame_len(&self.buffer[..pending], CIPHERTEXT_MAX).map_err(damage)?;
        if self.wait == Wait::Never && frame.is_some_and(|len| len > READ_MAX) {
            self.heavy = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let wanted = (frame.unwrap_or(self.usual) + 2 * LEN_LEN).max(READ_MIN);
        // A length alone claims no more than our own largest frame; room for more has to be earned by
        // bytes that have come.
        let wanted = wanted.min((2 * pending).max(READ_MAX));
        let wanted = self.make_room(wanted, frame.map_or(0, |len| LEN_LEN + len))?;
        match self
            .socket
            .read(&mut self.buffer[pending..wanted], self.wait)?
        {
            0 if self.rule == End::Tcp && pending == 0 => self.ended = true,
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the data channel was cut",
                ));
            }
            n => self.end += n,
        }
        Ok(())
    }

    /// One step towards the next plaintext: a frame is opened, or bytes are received.
    fn advance(&mut self) -> io::Result<()> {
        if !self.open_next()? {
            self.receive()?;
        }
        Ok(())
    }

    fn plain(&self) -> &[u8] {
        match &self.plain {
            Plain::None => &[],
            Plain::Buffer(range) => &self.buffer[range.clone()],
            Plain::Spare(range) => &self.spare[range.clone()],
        }
    }
}

impl Read for SealedSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for SealedSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let mut steps = 0;
        while self.plain().is_empty() && !self.ended {
            if let Some(kind) = self.failed {
                return Err(kind.into());
            }
            // Empty frames could keep us here for as long as somebody sends them.
            if self.wait == Wait::Never && (self.heavy || steps == STEPS_MAX) {
                self.heavy = true;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            steps += 1;
            self.plain = Plain::None;
            if let Err(e) = self.advance() {
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.failed = Some(e.kind());
                }
                return Err(e);
            }
        }
        if self.ended {
            if self.socket.is_aborted() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "aborted"));
            }
            self.other.ended.store(true, Ordering::Release);
        }
        self.other.in_hand.store(!self.ended, Ordering::Relaxed);
        Ok(self.plain())
    }

    fn consume(&mut self, n: usize) {
        if let Plain::Buffer(range) | Plain::Spare(range) = &mut self.plain {
            range.start = (range.start + n).min(range.end);
        }
        if self.plain().is_empty() {
            self.other.in_hand.store(false, Ordering::Relaxed);
            self.trim_spare();
        }
    }
}

impl Source for SealedSource {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
        self.heavy = false;
    }

    fn is_heavy(&self) -> bool {
        self.heavy
    }

    fn rest(&mut self) -> Option<Arc<Socket>> {
        if !self.plain().is_empty() {
            return None;
        }
        self.plain = Plain::None;
        if self.start < self.end {
            // Part of a frame stays in hand, where it is, and in the budget.
            return Some(self.socket.clone());
        }
        self.buffer = Vec::new();
        self.spare = Vec::new();
        self.memory.free();
        (self.start, self.end, self.usual) = (0, 0, 0);
        Some(self.socket.clone())
    }

    fn ends_both(&self) -> bool {
        self.rule == End::Tcp
    }
}

impl Drop for SealedSource {
    fn drop(&mut self) {
        if let (Some(slot), true, Some(opener)) = (self.slot.take(), self.ended, self.opener.take())
        {
            let rest = self.buffer[self.start..self.end].to_vec();
            slot.source_left(&self.socket, opener, rest);
        }
    }
}
