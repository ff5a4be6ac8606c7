//! Endless bytes from a seed: whoever knows the seed knows the bytes, so nothing has to be kept to compare with.

use std::io::{self, Read};

use orion::hazardous::hash::sha2::sha256::Sha256;

/// A stream of bytes that no compression shrinks (xorshift64*).
#[derive(Clone)]
pub struct Bytes {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Bytes {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            // Never zero, where xorshift would stay, and far apart for neighbouring seeds.
            state: seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            word: [0; 8],
            used: 8,
        }
    }

    fn word(&mut self) -> u64 {
        let mut x = self.state;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state = x;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut out = out;
        while self.used < 8 && !out.is_empty() {
            out[0] = self.word[self.used];
            self.used += 1;
            out = &mut out[1..];
        }
        let mut words = out.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.word().to_le_bytes());
        }
        let rest = words.into_remainder();
        if !rest.is_empty() {
            self.word = self.word().to_le_bytes();
            rest.copy_from_slice(&self.word[..rest.len()]);
            self.used = rest.len();
        }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(&mut out);
        out
    }

    /// A number below `bound`, for random cuts.
    pub fn below(&mut self, bound: usize) -> usize {
        let mut b = [0; 8];
        self.fill(&mut b);
        (u64::from_le_bytes(b) % bound as u64) as usize
    }

    /// Reads `n` bytes and panics at the first piece that is not what this stream has next.
    pub fn expect(&mut self, source: &mut impl Read, n: u64) -> io::Result<()> {
        let mut got = vec![0; 64 * 1024];
        let mut want = vec![0; 64 * 1024];
        let mut have = 0;
        while have < n {
            let room = usize::try_from(n - have).map_or(got.len(), |left| left.min(got.len()));
            let len = source.read(&mut got[..room])?;
            if len == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("ended after {have} of {n} bytes"),
                ));
            }
            self.fill(&mut want[..len]);
            assert!(
                got[..len] == want[..len],
                "wrong bytes between {have} and {}",
                have + len as u64
            );
            have += len as u64;
        }
        Ok(())
    }
}

/// SHA-256 of all that `source` gives, and how much that was.
pub fn sha256_hex(mut source: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]).expect("a hash takes any length");
                total += n as u64;
            }
        }
    }
    let digest = hash.finalize().expect("finalised once");
    let hex = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    Ok((hex, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_same_stream() {
        let mut whole = vec![0; 1000];
        Bytes::new(7).fill(&mut whole);
        let mut pieces = Bytes::new(7);
        let mut cuts = Bytes::new(8);
        let mut made = Vec::new();
        while made.len() < 1000 {
            let n = (1 + cuts.below(13)).min(1000 - made.len());
            made.extend(pieces.take(n));
        }
        assert_eq!(made, whole);
        assert_ne!(Bytes::new(9).take(1000), whole);
    }

    #[test]
    #[should_panic(expected = "wrong bytes")]
    fn one_wrong_bit_is_seen() {
        let mut wrong = Bytes::new(7).take(1000);
        wrong[999] ^= 1;
        let _ = Bytes::new(7).expect(&mut &wrong[..], 1000);
    }
}
