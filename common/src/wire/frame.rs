//! Frames: seal and open (PROTOCOL.md section 4).
//!
//! ```text
//!  one buffer, as it leaves for the socket:
//!  | u32 N | LZ4 head 7 | block len 4 | type flags stream 6 | payload ... | end mark 4 | tag 16 |
//!  <------------------- HEAD: 21 bytes ------------------->             <--- TAIL: 20 bytes --->
//!          <------------------------- sealed in place ---------------------------->
//! ```
//!
//! A stored message is sealed and opened where it lies: nothing is copied or allocated per frame.

use std::error::Error;
use std::fmt;
use std::ops::Range;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Tag};

use super::compress::{self, ContainerError, Unpacked};
use super::keys::DirectionKey;
use super::message::Kind;
use super::{CIPHERTEXT_MAX, LEN_LEN, MESSAGE_HEAD, TAG_LEN};

/// Bytes in front of the payload of a stored frame.
pub const HEAD: usize = LEN_LEN + compress::HEAD + compress::BLOCK_LEN + MESSAGE_HEAD;
/// Bytes behind the payload of a stored frame.
pub const TAIL: usize = compress::END + TAG_LEN;

const MESSAGE_AT: usize = HEAD - MESSAGE_HEAD;

/// Flags bit of a Data message: the authenticated end of this direction (E2).
pub const FIN: u8 = 0x01;

/// Why a frame was turned away. Every variant means: drop the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The length is below a tag's or above what is expected here (F3).
    Length(u32),
    /// The tag does not fit: damaged, forged, replayed or out of order (F5).
    Forged,
    /// The container inside is wrong (L3).
    Container(ContainerError),
    /// The message has fewer than 6 bytes, and more than none.
    Short,
    /// The counter is used up (F1).
    Exhausted,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(n) => write!(f, "frame length {n} is out of bounds"),
            Self::Forged => f.write_str("a frame does not authenticate"),
            Self::Container(e) => e.fmt(f),
            Self::Short => f.write_str("a message is too short"),
            Self::Exhausted => f.write_str("the frame counter is used up"),
        }
    }
}

impl Error for FrameError {}

impl From<ContainerError> for FrameError {
    fn from(e: ContainerError) -> Self {
        Self::Container(e)
    }
}

/// Nonces of one direction: 4 bytes of base, 8 bytes of counter, never the same twice (F1).
struct Nonces {
    base: [u8; 4],
    /// `None` after the last one.
    next: Option<u64>,
}

impl Nonces {
    fn take(&mut self) -> Result<[u8; 12], FrameError> {
        let counter = self.next.ok_or(FrameError::Exhausted)?;
        self.next = counter.checked_add(1);
        let mut nonce = [0u8; 12];
        nonce[..4].copy_from_slice(&self.base);
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        Ok(nonce)
    }
}

fn cipher(key: &DirectionKey) -> (ChaCha20Poly1305, Nonces) {
    (
        ChaCha20Poly1305::new((&key.key).into()),
        Nonces {
            base: key.nonce_base,
            next: Some(0),
        },
    )
}

/// Encrypts and authenticates the frames of one direction.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    nonces: Nonces,
}

impl Sealer {
    /// A sealer at counter 0.
    pub fn new(key: &DirectionKey) -> Self {
        let (cipher, nonces) = cipher(key);
        Self { cipher, nonces }
    }

    /// Seals a message whose payload already lies at `buffer[HEAD..HEAD + len]`, stored, in place.
    /// The buffer must have [`TAIL`] bytes of room behind the payload. The frame is
    /// `buffer[..n]` for the returned `n`.
    pub fn seal_stored(
        &mut self,
        buffer: &mut [u8],
        kind: Kind,
        flags: u8,
        len: usize,
    ) -> Result<usize, FrameError> {
        let message = MESSAGE_HEAD + len;
        let end = HEAD + len;
        buffer[LEN_LEN..LEN_LEN + compress::HEAD].copy_from_slice(&compress::head(message));
        buffer[LEN_LEN + compress::HEAD..MESSAGE_AT]
            .copy_from_slice(&compress::stored_len(message));
        buffer[MESSAGE_AT..HEAD].copy_from_slice(&[kind as u8, flags, 0, 0, 0, 0]);
        buffer[end..end + compress::END].fill(0);
        self.seal(&mut buffer[..end + TAIL])?;
        Ok(end + TAIL)
    }

    /// As [`seal_stored`](Self::seal_stored), but compressed into `out`, which is cleared first.
    /// `None` when the message does not shrink: then nothing has been used up, seal it stored.
    pub fn seal_packed<'a>(
        &mut self,
        buffer: &mut [u8],
        kind: Kind,
        len: usize,
        out: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, FrameError> {
        buffer[MESSAGE_AT..HEAD].copy_from_slice(&[kind as u8, 0, 0, 0, 0, 0]);
        out.clear();
        out.resize(LEN_LEN, 0);
        if !compress::pack(&buffer[MESSAGE_AT..HEAD + len], out) {
            return Ok(None);
        }
        out.resize(out.len() + TAG_LEN, 0);
        self.seal(out)?;
        Ok(Some(out))
    }

    /// Appends the frame of a whole message (head and payload) to `out`, for control channels.
    pub fn seal_message(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        out.resize(start + LEN_LEN, 0);
        if message.is_empty() || !compress::pack(message, out) {
            out.extend_from_slice(&compress::head(message.len()));
            if !message.is_empty() {
                out.extend_from_slice(&compress::stored_len(message.len()));
                out.extend_from_slice(message);
            }
            out.extend_from_slice(&[0; compress::END]);
        }
        out.resize(out.len() + TAG_LEN, 0);
        self.seal(&mut out[start..])
    }

    /// Fills in the length and the tag of `frame` and encrypts what is between them.
    fn seal(&mut self, frame: &mut [u8]) -> Result<(), FrameError> {
        let nonce = self.nonces.take()?;
        let length = (frame.len() - LEN_LEN) as u32;
        let (len_field, body) = frame.split_at_mut(LEN_LEN);
        len_field.copy_from_slice(&length.to_be_bytes());
        let (plain, tag_field) = body.split_at_mut(body.len() - TAG_LEN);
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), &[], plain.into())
            .map_err(|_| FrameError::Length(length))?;
        tag_field.copy_from_slice(&tag);
        Ok(())
    }
}

/// Where the message of an opened frame lies.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// In the frame's own body.
    InPlace(Range<usize>),
    /// In the spare buffer, that many bytes.
    Spare(usize),
}

/// Authenticates and decrypts the frames of one direction.
pub struct Opener {
    cipher: ChaCha20Poly1305,
    nonces: Nonces,
}

impl Opener {
    /// An opener at counter 0.
    pub fn new(key: &DirectionKey) -> Self {
        let (cipher, nonces) = cipher(key);
        Self { cipher, nonces }
    }

    /// An opener in the middle of a channel. For test vectors.
    pub fn at(key: &DirectionKey, counter: u64) -> Self {
        let mut opener = Self::new(key);
        opener.nonces.next = Some(counter);
        opener
    }

    /// Opens the `N` bytes of a frame's body in place. The message (head and payload, or nothing)
    /// lies where [`Opened`] says; it is at most `limit` bytes long.
    pub fn open(
        &mut self,
        body: &mut [u8],
        spare: &mut Vec<u8>,
        limit: usize,
    ) -> Result<Opened, FrameError> {
        self.open_within(body, spare, limit, |wanted| wanted)
    }

    /// As [`open`](Self::open), but `may` is asked before the spare buffer grows
    /// ([`compress::unpack_within`]).
    pub fn open_within(
        &mut self,
        body: &mut [u8],
        spare: &mut Vec<u8>,
        limit: usize,
        may: impl FnMut(usize) -> usize,
    ) -> Result<Opened, FrameError> {
        let length = body.len();
        let at = length
            .checked_sub(TAG_LEN)
            .ok_or(FrameError::Length(length as u32))?;
        let nonce = self.nonces.take()?;
        let (sealed, tag) = body.split_at_mut(at);
        let tag = Tag::try_from(&tag[..]).expect("split off at a tag's length");
        self.cipher
            .decrypt_inout_detached(&nonce.into(), &[], (&mut *sealed).into(), &tag)
            .map_err(|_| FrameError::Forged)?;
        Ok(match compress::unpack_within(sealed, spare, limit, may)? {
            Unpacked::InPlace(range) => Opened::InPlace(range),
            Unpacked::Spare(len) => Opened::Spare(len),
        })
    }
}

/// Reads the length in front of a frame and holds it against `max` (F3). `None`: not 4 bytes yet.
pub fn frame_len(bytes: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some(length) = bytes.first_chunk::<LEN_LEN>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    if (length as usize) < TAG_LEN || length as usize > max.min(CIPHERTEXT_MAX) {
        return Err(FrameError::Length(length));
    }
    Ok(Some(length as usize))
}

/// Collects the frames of a channel that is read without blocking, one at a time.
///
/// ```text
/// socket ─ room()/advance() ─> bytes ─ next(opener) ─> message, message, ...
/// ```
pub struct FrameReader {
    bytes: Vec<u8>,
    start: usize,
    spare: Vec<u8>,
    max: usize,
}

impl FrameReader {
    /// A reader that takes frames of at most `max` bytes of ciphertext.
    pub fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            spare: Vec::new(),
            max,
        }
    }

    /// Changes the bound, as when a first frame has proved the peer.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Adds received bytes. The caller reads at most [`wanted`](Self::wanted) at a time, which keeps
    /// the memory of a channel within one frame and a read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// How many more bytes may be read before [`next`](Self::next) has to be called.
    pub fn wanted(&self) -> usize {
        (LEN_LEN + self.max).saturating_sub(self.bytes.len() - self.start)
    }

    /// The next whole message, or `None` until more bytes come. `limit` bounds its expansion.
    pub fn next(&mut self, opener: &mut Opener, limit: usize) -> Result<Option<&[u8]>, FrameError> {
        let pending = &self.bytes[self.start..];
        let Some(len) = frame_len(pending, self.max)? else {
            return Ok(None);
        };
        if pending.len() < LEN_LEN + len {
            return Ok(None);
        }
        let at = self.start + LEN_LEN;
        self.start = at + len;
        let body = &mut self.bytes[at..at + len];
        match opener.open(body, &mut self.spare, limit)? {
            Opened::InPlace(range) => Ok(Some(&body[range])),
            Opened::Spare(len) => Ok(Some(&self.spare[..len])),
        }
    }

    /// The bytes not yet consumed, for whoever reads the channel from here on.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }

    /// Gives memory back that a burst has claimed.
    pub fn trim(&mut self) {
        if self.start == self.bytes.len() {
            self.bytes = Vec::new();
            self.start = 0;
            self.spare = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CONTROL_FRAME_MAX, MESSAGE_MAX};

    fn pair() -> (Sealer, Opener) {
        let key = || DirectionKey::from_parts([5; 32], [1, 2, 3, 4]);
        (Sealer::new(&key()), Opener::new(&key()))
    }

    fn stored(sealer: &mut Sealer, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0xEE; HEAD + payload.len() + TAIL + 7];
        buffer[HEAD..HEAD + payload.len()].copy_from_slice(payload);
        let n = sealer
            .seal_stored(&mut buffer, Kind::Data, flags, payload.len())
            .unwrap();
        buffer.truncate(n);
        buffer
    }

    fn open(opener: &mut Opener, frame: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut spare = Vec::new();
        let len = frame_len(frame, CIPHERTEXT_MAX)?.unwrap();
        let mut body = frame[LEN_LEN..].to_vec();
        assert_eq!(body.len(), len);
        Ok(match opener.open(&mut body, &mut spare, MESSAGE_MAX)? {
            Opened::InPlace(range) => body[range].to_vec(),
            Opened::Spare(len) => spare[..len].to_vec(),
        })
    }

    #[test]
    fn frames_open_in_order_and_only_in_order() {
        let (mut sealer, mut opener) = pair();
        let first = stored(&mut sealer, 0, b"one");
        let second = stored(&mut sealer, FIN, b"");
        assert_eq!(open(&mut opener, &first).unwrap(), b"\x1e\0\0\0\0\0one");
        assert_eq!(open(&mut opener, &second).unwrap(), b"\x1e\x01\0\0\0\0");
        let (_, mut opener) = pair();
        assert_eq!(
            open(&mut opener, &second),
            Err(FrameError::Forged),
            "skipped one"
        );
        let (_, mut opener) = pair();
        open(&mut opener, &first).unwrap();
        assert_eq!(
            open(&mut opener, &first),
            Err(FrameError::Forged),
            "replayed"
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (mut sealer, _) = pair();
        let frame = stored(&mut sealer, 0, b"payload");
        for bit in 8 * LEN_LEN..8 * frame.len() {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open(&mut pair().1, &bad),
                Err(FrameError::Forged),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn packed_frames_open_and_refusal_uses_nothing_up() {
        let (mut sealer, mut opener) = pair();
        let mut out = Vec::new();
        let mut buffer = vec![b'a'; HEAD + 5000 + TAIL];
        let frame = sealer
            .seal_packed(&mut buffer, Kind::Data, 5000, &mut out)
            .unwrap()
            .unwrap()
            .to_vec();
        assert!(frame.len() < 200);
        assert_eq!(open(&mut opener, &frame).unwrap()[6..], [b'a'; 5000]);
        let mut short = vec![0; HEAD + 3 + TAIL];
        assert!(
            sealer
                .seal_packed(&mut short, Kind::Data, 3, &mut out)
                .unwrap()
                .is_none()
        );
        let n = sealer.seal_stored(&mut short, Kind::Data, 0, 3).unwrap();
        assert_eq!(
            open(&mut opener, &short[..n]).unwrap(),
            [30, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_body() {
        for bad in [0u32, 15, 4 * 1024 * 1024 + 1, u32::MAX] {
            assert_eq!(
                frame_len(&bad.to_be_bytes(), CIPHERTEXT_MAX),
                Err(FrameError::Length(bad))
            );
        }
        assert_eq!(frame_len(&[0, 0, 1], CIPHERTEXT_MAX), Ok(None));
        assert_eq!(
            frame_len(&16u32.to_be_bytes(), CIPHERTEXT_MAX),
            Ok(Some(16))
        );
        assert_eq!(
            frame_len(&4097u32.to_be_bytes(), 4096),
            Err(FrameError::Length(4097))
        );
    }

    #[test]
    fn a_reader_gives_messages_however_the_bytes_arrive() {
        let (mut sealer, _) = pair();
        let mut wire = Vec::new();
        let messages: [&[u8]; 4] = [
            b"\x5a\0\0\0\0\0",
            b"",
            b"\x0a\0\0\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            b"\x5a",
        ];
        for message in messages {
            sealer.seal_message(message, &mut wire).unwrap();
        }
        wire.extend_from_slice(b"\0\0");
        for step in [1, 3, 17, wire.len()] {
            let (_, mut opener) = pair();
            let mut reader = FrameReader::new(CONTROL_FRAME_MAX);
            let mut seen = Vec::new();
            for chunk in wire.chunks(step) {
                reader.push(chunk);
                while let Some(message) = reader.next(&mut opener, 1 << 17).unwrap() {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, messages);
            assert_eq!(reader.into_rest(), b"\0\0");
        }
    }

    #[test]
    fn the_counter_never_wraps() {
        let mut nonces = Nonces {
            base: [0; 4],
            next: Some(u64::MAX - 1),
        };
        assert!(nonces.take().is_ok());
        assert!(nonces.take().is_ok(), "the last one is as good as any");
        assert_eq!(nonces.take(), Err(FrameError::Exhausted));
        assert_eq!(nonces.take(), Err(FrameError::Exhausted));
    }
}
