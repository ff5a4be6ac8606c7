//! The sending half of a sealed channel.
//!
//! ```text
//!  source.read ─> buffer[HEAD..] ─ seal in place ─────────────────────────> write ─> socket
//!                      └─ where the policy wants it: pack ─ seal in place ──┘
//! ```

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Compression, End, OURS, Other, damage, lengthen};
use crate::budget::{self, Grant, Want};
use crate::channel::ledger::Ledger;
use crate::channel::policy::Policy;
use crate::channel::reuse::Slot;
use crate::duplex::{Fault, Sink, Socket, Source, Wait};
use crate::metrics::Traffic;
use crate::wire::DATA_PAYLOAD_MAX;
use crate::wire::frame::{FIN, HEAD, Sealer, TAIL};
use crate::wire::message::Kind;

/// Performance: the payload rooms of a sink, in bytes; a read that fills one earns the next, so that
/// a terminal session does not hold what a download needs.
const ROOMS: [usize; 3] = [4 * 1024, 16 * 1024, DATA_PAYLOAD_MAX];
/// Semantics (PROTOCOL.md 9): how long the other direction must be silent before an original is
/// told that ours has ended.
const ORIGINAL_SILENCE: Duration = Duration::from_secs(5);
/// How often that silence is looked at.
const SILENCE_SLICE: Duration = Duration::from_millis(100);

/// The sending half.
pub(super) struct SealedSink {
    socket: Arc<Socket>,
    wait: Wait,
    /// Taken only when the sink is dropped.
    sealer: Option<Sealer>,
    buffer: Vec<u8>,
    packed: Vec<u8>,
    /// Of the frame in one of them.
    unsent: Unsent,
    /// For both buffers.
    memory: Grant,
    traffic: Arc<Traffic>,
    policy: Policy,
    rule: End,
    other: Arc<Other>,
    /// FIN has been sealed.
    finishing: bool,
    /// FIN has been sent.
    finished: bool,
    slot: Option<Slot>,
}

/// What could not be sent of a frame without waiting.
#[derive(Default)]
struct Unsent {
    is_packed: bool,
    range: Range<usize>,
}

impl Unsent {
    /// A whole frame in the buffer for compressed ones.
    fn packed(len: usize) -> Self {
        Self {
            is_packed: true,
            range: 0..len,
        }
    }

    /// A whole frame in the other buffer.
    fn stored(len: usize) -> Self {
        Self {
            is_packed: false,
            range: 0..len,
        }
    }
}

impl SealedSink {
    pub(super) fn new(
        socket: Arc<Socket>,
        sealer: Sealer,
        rule: End,
        other: Arc<Other>,
        compression: Compression,
        slot: Option<Slot>,
        ledger: &Ledger,
    ) -> Self {
        Self {
            socket,
            wait: Wait::default(),
            sealer: Some(sealer),
            buffer: Vec::new(),
            packed: Vec::new(),
            unsent: Unsent::default(),
            memory: ledger.budget.half(budget::SINK),
            traffic: ledger.traffic.clone(),
            policy: Policy::new(compression),
            rule,
            other,
            finishing: false,
            finished: false,
            slot,
        }
    }

    /// Payload room in the buffer.
    fn room(&self) -> usize {
        self.buffer.len().saturating_sub(HEAD + TAIL)
    }

    /// Whether there is room to compress so many bytes.
    fn can_pack(&mut self, len: usize) -> bool {
        let packed = HEAD + len + TAIL;
        if self.packed.capacity() < packed {
            if !(self.memory).hold(self.buffer.len() + packed, Want::Comfort) {
                return false;
            }
            self.packed = Vec::with_capacity(packed);
        }
        true
    }

    fn send(&mut self, len: usize) -> io::Result<()> {
        if self.policy.wants(len) && self.can_pack(len) {
            let start = Instant::now();
            let sealer = self.sealer.as_mut().expect(OURS);
            let packed = sealer
                .seal_packed(&mut self.buffer, Kind::Data, len, &mut self.packed)
                .map_err(damage)?;
            let sent = packed.map_or(len, <[u8]>::len);
            self.policy.tried(len, sent);
            self.traffic.tried(len, sent, start.elapsed());
            if packed.is_some() {
                return self.transmit(Unsent::packed(sent));
            }
        }
        let sealer = self.sealer.as_mut().expect(OURS);
        let n = sealer
            .seal_stored(&mut self.buffer, Kind::Data, 0, len)
            .map_err(damage)?;
        self.transmit(Unsent::stored(n))
    }

    /// Sends a frame, or the end of one, and remembers what would have to wait.
    fn transmit(&mut self, frame: Unsent) -> io::Result<()> {
        let Unsent { is_packed, range } = &frame;
        let bytes = if *is_packed {
            &self.packed[range.clone()]
        } else {
            &self.buffer[range.clone()]
        };
        let n = (self.policy).timed(bytes.len(), || self.socket.send(bytes, self.wait))?;
        self.unsent = Unsent {
            is_packed: *is_packed,
            range: range.start + n..range.end,
        };
        Ok(())
    }

    /// Sends what is left of the last frame, if anything is.
    fn catch_up(&mut self) -> io::Result<()> {
        if !self.unsent.range.is_empty() {
            let frame = std::mem::take(&mut self.unsent);
            self.transmit(frame)?;
        }
        if self.unsent.range.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

impl Sink for SealedSink {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    fn is_ready(&self) -> bool {
        self.socket.is_writable()
    }

    fn take_from(&mut self, source: &mut dyn Source) -> Result<usize, Fault> {
        self.catch_up().map_err(Fault::Sink)?;
        if self.buffer.is_empty() {
            lengthen(&mut self.buffer, HEAD + ROOMS[0] + TAIL);
        }
        let room = self.room();
        let n = source
            .read(&mut self.buffer[HEAD..HEAD + room])
            .map_err(Fault::Source)?;
        if n == 0 {
            return Ok(0);
        }
        self.send(n).map_err(Fault::Sink)?;
        if n == room
            && let Some(next) = ROOMS.iter().find(|next| **next > room)
            && (self.memory).hold(HEAD + next + TAIL + self.packed.capacity(), Want::Comfort)
        {
            lengthen(&mut self.buffer, HEAD + next + TAIL);
        }
        Ok(n)
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.rule {
            End::Fin => {
                if self.socket.is_aborted() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                self.catch_up()?;
                if !self.finishing {
                    lengthen(&mut self.buffer, HEAD + TAIL);
                    let sealer = self.sealer.as_mut().expect(OURS);
                    let n = sealer
                        .seal_stored(&mut self.buffer, Kind::Data, FIN, 0)
                        .map_err(damage)?;
                    self.finishing = true;
                    self.transmit(Unsent::stored(n))?;
                    self.catch_up()?;
                }
                self.finished = true;
                Ok(())
            }
            // Waits for the other direction first.
            End::Tcp if self.wait == Wait::Never => Err(io::ErrorKind::WouldBlock.into()),
            End::Tcp => {
                self.outwait_other_direction();
                self.socket.shutdown_write()
            }
        }
    }

    fn rest(&mut self) {
        self.buffer = Vec::new();
        self.packed = Vec::new();
        self.memory.free();
    }
}

impl Drop for SealedSink {
    fn drop(&mut self) {
        if let (Some(slot), true, Some(sealer)) =
            (self.slot.take(), self.finished, self.sealer.take())
        {
            slot.sink_left(&self.socket, sealer);
        }
    }
}

impl SealedSink {
    /// An original cuts the other direction 10 s after it sees ours end: so it is told only once
    /// the other direction has nothing more to lose (PROTOCOL.md 9). Holds a worker meanwhile.
    fn outwait_other_direction(&self) {
        let mut seen = self.other.frames.load(Ordering::Relaxed);
        let mut since = Instant::now();
        while since.elapsed() < ORIGINAL_SILENCE
            && !self.other.ended.load(Ordering::Acquire)
            && !self.socket.is_aborted()
        {
            std::thread::sleep(SILENCE_SLICE);
            let now = self.other.frames.load(Ordering::Relaxed);
            // A reader that is slow to take what came makes no silence.
            if now != seen || self.other.in_hand.load(Ordering::Relaxed) {
                (seen, since) = (now, Instant::now());
            }
        }
    }
}
