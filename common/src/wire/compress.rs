//! The LZ4 container around each message (PROTOCOL.md section 5).
//!
//! ```text
//!  magic 04 22 4D 18 | FLG | BD | [content size] | HC | block length | block | 00 00 00 00
//!  <------------ HEAD: 7 bytes as we send it ------> <--- 4 ------->          <- END ->
//! ```
//!
//! What both this project and the original send (one block, no checksums) is taken apart here,
//! stored blocks without a copy. Any other legal container goes through the reference decoder.
//! Either way expansion stops at the caller's limit; it is not checked afterwards (L3).

use std::error::Error;
use std::fmt;
use std::io::Read;
use std::ops::Range;

/// Bytes of magic, FLG, BD and header checksum, as we send them.
pub const HEAD: usize = 7;
/// Bytes of a block's length.
pub const BLOCK_LEN: usize = 4;
/// Bytes of the end mark.
pub const END: usize = 4;
/// Bytes that a container adds to a stored message.
pub const OVERHEAD: usize = HEAD + BLOCK_LEN + END;

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];
const END_MARK: [u8; END] = [0; END];
/// Version 1, independent blocks, nothing optional.
const FLG: u8 = 0x60;
/// FLG bit: a dictionary id follows (L3: refused).
const DICTIONARY: u8 = 0x01;
/// Top bit of a block length: the block is stored.
const STORED: u32 = 0x8000_0000;

/// LZ4 acceleration: 1 is the library's default, the original's choice.
const ACCELERATION: i32 = 1;

/// Why a container was turned away. Every variant means: drop the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContainerError {
    /// Not an LZ4 frame, or one whose header lies.
    Header,
    /// It ends before its end mark.
    Truncated,
    /// A block does not expand, or a checksum or the content size is wrong.
    Damaged,
    /// It would expand above the limit.
    TooLarge,
    /// The caller has no room for what it expands to.
    NoRoom,
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "not an LZ4 frame",
            Self::Truncated => "LZ4 frame without its end",
            Self::Damaged => "damaged LZ4 frame",
            Self::TooLarge => "LZ4 frame expands above the limit",
            Self::NoRoom => "memory_budget is used up: no room for what an LZ4 frame expands to",
        })
    }
}

impl Error for ContainerError {}

/// The 7 bytes in front of a container whose one block expands to at most `message_len` bytes (L1).
pub fn head(message_len: usize) -> [u8; HEAD] {
    // The header checksum is the second byte of XXH32 over FLG and BD: constant per class. A test
    // holds the table against the function.
    let (bd, checksum) = match message_len {
        0..=0x1_0000 => (0x40, 0x82),
        0x1_0001..=0x4_0000 => (0x50, 0xFB),
        0x4_0001..=0x10_0000 => (0x60, 0x51),
        _ => (0x70, 0x73),
    };
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], FLG, bd, checksum]
}

/// The length field of a stored block.
pub fn stored_len(len: usize) -> [u8; BLOCK_LEN] {
    (len as u32 | STORED).to_le_bytes()
}

/// Appends the container of `message` to `out`, compressed. `false`, with `out` as it was, when it
/// would not come out smaller than stored.
pub fn pack(message: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let block = start + HEAD + BLOCK_LEN;
    // Room for strictly less than the stored size: LZ4 then stops by itself when it does not pay.
    out.resize(block + message.len().saturating_sub(1), 0);
    let mode = Some(lz4::block::CompressionMode::FAST(ACCELERATION));
    match lz4::block::compress_to_buffer(message, mode, false, &mut out[block..]) {
        Ok(len) => {
            out[start..start + HEAD].copy_from_slice(&head(message.len()));
            out[start + HEAD..block].copy_from_slice(&(len as u32).to_le_bytes());
            out.truncate(block + len);
            out.extend_from_slice(&END_MARK);
            true
        }
        Err(_) => {
            out.truncate(start);
            false
        }
    }
}

/// Where the message of a container is.
#[derive(PartialEq, Eq, Debug)]
pub enum Unpacked {
    /// Stored: this range of the container itself.
    InPlace(Range<usize>),
    /// Expanded: the first so many bytes of the spare buffer.
    Spare(usize),
}

/// Takes a container apart. A compressed message goes to `spare`, which grows to at most `limit`
/// bytes and is never shrunk here; a stored one stays where it is.
pub fn unpack(
    container: &[u8],
    spare: &mut Vec<u8>,
    limit: usize,
) -> Result<Unpacked, ContainerError> {
    unpack_within(container, spare, limit, |wanted| wanted)
}

/// As [`unpack`], but `may` is asked before the spare buffer grows: it is told how long it would be, and
/// answers how long it may be. Growth is exact, so that who counts bytes counts right.
pub fn unpack_within(
    container: &[u8],
    spare: &mut Vec<u8>,
    limit: usize,
    mut may: impl FnMut(usize) -> usize,
) -> Result<Unpacked, ContainerError> {
    match single_block(container, limit)? {
        Shape::Empty => Ok(Unpacked::InPlace(0..0)),
        Shape::Stored(range) => Ok(Unpacked::InPlace(range)),
        Shape::Packed {
            block,
            room: wanted,
            exact,
        } => {
            let room = grow(spare, wanted, &mut may);
            let len = lz4::block::decompress_to_buffer(
                &container[block],
                Some(room as i32),
                &mut spare[..room],
            )
            .map_err(|_| {
                if room < wanted {
                    ContainerError::NoRoom
                } else if room == limit {
                    ContainerError::TooLarge
                } else {
                    ContainerError::Damaged
                }
            })?;
            if exact && len != wanted {
                return Err(ContainerError::Damaged);
            }
            Ok(Unpacked::Spare(len))
        }
        Shape::Other => unpack_any(container, spare, limit, may).map(Unpacked::Spare),
    }
}

/// Makes the buffer `wanted` bytes long, or as long as it may be; how much of `wanted` there is.
fn grow(spare: &mut Vec<u8>, wanted: usize, may: &mut impl FnMut(usize) -> usize) -> usize {
    if spare.len() < wanted {
        let granted = may(wanted).min(wanted);
        if spare.len() < granted {
            spare.reserve_exact(granted - spare.len());
            spare.resize(granted, 0);
        }
    }
    spare.len().min(wanted)
}

/// What [`single_block`] found.
enum Shape {
    Empty,
    Stored(Range<usize>),
    Packed {
        block: Range<usize>,
        room: usize,
        exact: bool,
    },
    /// Legal perhaps, but not of the common shape: for the reference decoder.
    Other,
}

fn single_block(container: &[u8], limit: usize) -> Result<Shape, ContainerError> {
    let (magic, rest) = container
        .split_first_chunk::<4>()
        .ok_or(ContainerError::Truncated)?;
    if *magic != MAGIC {
        return Ok(Shape::Other);
    }
    let [flg, bd] = *rest.first_chunk::<2>().ok_or(ContainerError::Truncated)?;
    // The reference decoder passes over a dictionary id and would expand without the dictionary.
    if flg & DICTIONARY != 0 {
        return Err(ContainerError::Header);
    }
    // Version 1; linked or independent does not matter to a single block; no block checksum, no
    // content checksum, no dictionary.
    if flg & 0b1101_0111 != 0b0100_0000 || bd & 0x8F != 0 || bd < 0x40 {
        return Ok(Shape::Other);
    }
    let has_size = flg & 0b0000_1000 != 0;
    let descriptor = 2 + if has_size { 8 } else { 0 };
    let (descriptor, rest) = rest
        .split_at_checked(descriptor)
        .ok_or(ContainerError::Truncated)?;
    let (&checksum, rest) = rest.split_first().ok_or(ContainerError::Truncated)?;
    if checksum != header_checksum(descriptor) {
        return Err(ContainerError::Header);
    }
    let size = if has_size {
        let size = u64::from_le_bytes(
            descriptor[2..]
                .try_into()
                .expect("eight bytes of content size"),
        );
        Some(
            usize::try_from(size)
                .ok()
                .filter(|&s| s <= limit)
                .ok_or(ContainerError::TooLarge)?,
        )
    } else {
        None
    };
    let (block_len, rest) = rest
        .split_first_chunk::<4>()
        .ok_or(ContainerError::Truncated)?;
    let block_len = u32::from_le_bytes(*block_len);
    if block_len == 0 {
        return if size.unwrap_or(0) == 0 {
            Ok(Shape::Empty)
        } else {
            Err(ContainerError::Damaged)
        };
    }
    let len = (block_len & !STORED) as usize;
    let class = 1usize << (8 + 2 * (bd >> 4));
    if len > class {
        return Err(ContainerError::Damaged);
    }
    let (_, after) = rest
        .split_at_checked(len)
        .ok_or(ContainerError::Truncated)?;
    let end = after
        .first_chunk::<END>()
        .ok_or(ContainerError::Truncated)?;
    if *end != END_MARK {
        return Ok(Shape::Other);
    }
    let at = container.len() - rest.len();
    if block_len & STORED != 0 {
        if size.is_some_and(|size| size != len) {
            return Err(ContainerError::Damaged);
        }
        if len > limit {
            return Err(ContainerError::TooLarge);
        }
        return Ok(Shape::Stored(at..at + len));
    }
    let room = size.unwrap_or(limit).min(class);
    Ok(Shape::Packed {
        block: at..at + len,
        room,
        exact: size.is_some(),
    })
}

/// What the reference decoder allocates for this container while it works, in bytes: a block before and
/// one after, and what linked blocks look back at.
fn workspace(container: &[u8]) -> usize {
    let class = container.get(5).map_or(4, |bd| (bd >> 4 & 7).max(4));
    2 * (1 << (8 + 2 * class)) + 128 * 1024
}

/// Any legal container, by the reference decoder: linked blocks, several blocks, checksums.
fn unpack_any(
    container: &[u8],
    spare: &mut Vec<u8>,
    limit: usize,
    mut may: impl FnMut(usize) -> usize,
) -> Result<usize, ContainerError> {
    // The decoder reports damage, and the caller's loop the limit; a missing end shows in finish().
    let mut decoder = lz4::Decoder::new(container).map_err(|_| ContainerError::Damaged)?;
    let work = workspace(container);
    let mut may = |wanted| may(wanted + work).saturating_sub(work);
    let mut have = 0;
    // Also where no room is wanted: the decoder takes its own at its first read.
    if may(spare.len().max(4096)) == 0 {
        return Err(ContainerError::NoRoom);
    }
    loop {
        if spare.len() == have {
            let room = (2 * have).clamp(4096, limit.max(4096) + 1);
            if grow(spare, room, &mut may) == have {
                return Err(ContainerError::NoRoom);
            }
        }
        match decoder.read(&mut spare[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(_) if have == 0 => return Err(ContainerError::Header),
            Err(_) => return Err(ContainerError::Damaged),
        }
        if have > limit {
            return Err(ContainerError::TooLarge);
        }
    }
    match decoder.finish().1 {
        Ok(()) => Ok(have),
        Err(_) => Err(ContainerError::Truncated),
    }
}

/// The header checksum of the LZ4 frame format: the second byte of XXH32 (seed 0) of the
/// descriptor, which is 2 or 10 bytes here, so that only XXH32's short path is needed.
fn header_checksum(descriptor: &[u8]) -> u8 {
    const P1: u32 = 0x9E37_79B1;
    const P2: u32 = 0x85EB_CA77;
    const P3: u32 = 0xC2B2_AE3D;
    const P4: u32 = 0x27D4_EB2F;
    const P5: u32 = 0x1656_67B1;
    debug_assert!(descriptor.len() < 16);
    let mut hash = P5.wrapping_add(descriptor.len() as u32);
    let (words, bytes) = descriptor.as_chunks::<4>();
    for word in words {
        hash = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P3));
        hash = hash.rotate_left(17).wrapping_mul(P4);
    }
    for &byte in bytes {
        hash = hash.wrapping_add(u32::from(byte).wrapping_mul(P5));
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(P2);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(P3);
    hash ^= hash >> 16;
    (hash >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: usize = 8 * 1024 * 1024;

    fn message(container: &[u8], limit: usize) -> Result<Vec<u8>, ContainerError> {
        let mut spare = Vec::new();
        Ok(match unpack(container, &mut spare, limit)? {
            Unpacked::InPlace(range) => container[range].to_vec(),
            Unpacked::Spare(len) => spare[..len].to_vec(),
        })
    }

    fn stored(message: &[u8]) -> Vec<u8> {
        let mut out = head(message.len()).to_vec();
        out.extend_from_slice(&stored_len(message.len()));
        out.extend_from_slice(message);
        out.extend_from_slice(&END_MARK);
        out
    }

    /// A container by the reference encoder.
    fn reference(message: &[u8], linked: bool, block: lz4::BlockSize, checksum: bool) -> Vec<u8> {
        let mode = if linked {
            lz4::BlockMode::Linked
        } else {
            lz4::BlockMode::Independent
        };
        let sum = if checksum {
            lz4::ContentChecksum::ChecksumEnabled
        } else {
            lz4::ContentChecksum::NoChecksum
        };
        let mut encoder = lz4::EncoderBuilder::new()
            .block_mode(mode)
            .block_size(block)
            .checksum(sum)
            .build(Vec::new())
            .unwrap();
        encoder.write_all(message).unwrap();
        let (out, end) = encoder.finish();
        end.unwrap();
        out
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| b"the quick brown fox, line "[i % 26] ^ ((i / 4096) as u8 & 3))
            .collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 1u32;
        std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn the_head_table_holds_the_checksums() {
        for len in [
            0, 1, 65_536, 65_537, 262_144, 262_145, 1_048_576, 1_048_577, 4_194_304,
        ] {
            let head = head(len);
            assert_eq!(head[6], header_checksum(&head[4..6]), "{len}");
        }
        // The published vectors: FLG 68, BD 40, content size 0x18 -> 4f; 0x26 -> 85; 0x132 -> f7.
        assert_eq!(
            header_checksum(&[0x68, 0x40, 0x18, 0, 0, 0, 0, 0, 0, 0]),
            0x4F
        );
        assert_eq!(
            header_checksum(&[0x68, 0x40, 0x26, 0, 0, 0, 0, 0, 0, 0]),
            0x85
        );
        assert_eq!(
            header_checksum(&[0x68, 0x40, 0x32, 1, 0, 0, 0, 0, 0, 0]),
            0xF7
        );
    }

    #[test]
    fn packed_and_stored_come_back() {
        for len in [0, 1, 5, 6, 100, 65_535, 65_536, 65_537, 300_000, 2_000_000] {
            for body in [text(len), noise(len)] {
                assert_eq!(
                    message(&stored(&body), LIMIT).unwrap(),
                    body,
                    "stored {len}"
                );
                let mut out = vec![9, 9];
                if pack(&body, &mut out) {
                    assert!(out.len() < 2 + stored(&body).len());
                    assert_eq!(message(&out[2..], LIMIT).unwrap(), body, "packed {len}");
                    assert!(
                        lz4::Decoder::new(&out[2..])
                            .unwrap()
                            .read(&mut [0; 16])
                            .is_ok()
                    );
                } else {
                    assert_eq!(out, [9, 9]);
                }
            }
        }
        assert!(pack(&text(1000), &mut Vec::new()));
        assert!(!pack(&noise(1000), &mut Vec::new()));
    }

    #[test]
    fn the_reference_encoder_is_understood_in_every_shape() {
        let mut cases = 0;
        for len in [0, 1, 100, 65_536, 65_537, 1_000_000] {
            for body in [text(len), noise(len)] {
                for linked in [false, true] {
                    for checksum in [false, true] {
                        for block in [lz4::BlockSize::Max64KB, lz4::BlockSize::Max4MB] {
                            let container = reference(&body, linked, block, checksum);
                            assert_eq!(
                                message(&container, LIMIT).unwrap(),
                                body,
                                "{len} {linked} {checksum}"
                            );
                            let mut trailing = container.clone();
                            trailing.extend_from_slice(b"ignored");
                            assert_eq!(message(&trailing, LIMIT).unwrap(), body);
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(cases, 96);
    }

    #[test]
    fn every_truncation_is_refused() {
        for container in [
            stored(&text(40)),
            reference(&text(400), false, lz4::BlockSize::Max64KB, true),
            reference(&text(70_000), true, lz4::BlockSize::Max64KB, false),
        ] {
            for len in 0..container.len() {
                assert!(
                    message(&container[..len], LIMIT).is_err(),
                    "{len} of {}",
                    container.len()
                );
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0u8; 100 * 1024 * 1024];
        for linked in [false, true] {
            let bomb = reference(&zeros, linked, lz4::BlockSize::Max4MB, false);
            let mut spare = Vec::new();
            assert_eq!(
                unpack(&bomb, &mut spare, LIMIT),
                Err(ContainerError::TooLarge)
            );
            assert!(spare.len() <= LIMIT + 1, "{}", spare.len());
        }
        // The same in the one-block shape: 4 MiB of zeros against a limit of 64 KiB.
        let mut bomb = Vec::new();
        assert!(pack(&zeros[..4 * 1024 * 1024], &mut bomb));
        let mut spare = Vec::new();
        assert_eq!(
            unpack(&bomb, &mut spare, 65_536),
            Err(ContainerError::TooLarge)
        );
        assert!(spare.len() <= 65_536);
        assert_eq!(
            unpack(&stored(&noise(70_000)), &mut spare, 65_536),
            Err(ContainerError::TooLarge)
        );
    }

    #[test]
    fn the_decoder_s_own_memory_is_asked_for_every_time() {
        let linked = |block| reference(&text(9000), true, block, true);
        let mut spare = Vec::new();
        let small = linked(lz4::BlockSize::Max64KB);
        unpack(&small, &mut spare, 1 << 20).unwrap();
        assert!(spare.len() >= 9000, "there is room for the next");
        let large = linked(lz4::BlockSize::Max4MB);
        let mut asked = 0;
        let result = unpack_within(&large, &mut spare, 1 << 20, |wanted| {
            asked = wanted;
            0
        });
        assert_eq!(result.err(), Some(ContainerError::NoRoom));
        assert!(asked > 8 << 20, "{asked}: two blocks and more");
    }

    #[test]
    fn lies_are_noticed() {
        let good = stored(&text(40));
        assert!(message(&good, LIMIT).is_ok());
        for at in 4..7 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(message(&bad, LIMIT).is_err(), "header byte {at}");
        }
        // Content size 41 over a block of 40.
        let mut sized = MAGIC.to_vec();
        let descriptor = [0x68, 0x40, 41, 0, 0, 0, 0, 0, 0, 0];
        sized.extend_from_slice(&descriptor);
        sized.push(header_checksum(&descriptor));
        sized.extend_from_slice(&good[HEAD..]);
        assert_eq!(message(&sized, LIMIT), Err(ContainerError::Damaged));
        // Legacy magic, skippable frame, nothing at all.
        assert!(message(&[0x02, 0x21, 0x4C, 0x18, 0, 0, 0, 0], LIMIT).is_err());
        assert_eq!(
            message(&[0x50, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 1, 2], LIMIT).unwrap(),
            b""
        );
        assert_eq!(message(&[], LIMIT), Err(ContainerError::Truncated));
        // A dictionary id, under a right checksum.
        let mut named = MAGIC.to_vec();
        let descriptor = [0x61, 0x40, 1, 0, 0, 0];
        named.extend_from_slice(&descriptor);
        named.push(header_checksum(&descriptor));
        named.extend_from_slice(&good[HEAD..]);
        assert_eq!(message(&named, LIMIT), Err(ContainerError::Header));
        // A wrong content checksum.
        let mut summed = reference(&text(400), false, lz4::BlockSize::Max64KB, true);
        let last = summed.len() - 1;
        summed[last] ^= 1;
        assert!(message(&summed, LIMIT).is_err());
    }
}
