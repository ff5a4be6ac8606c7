//! Who is who: identity keys, pins and the allow list.
//!
//! An identity is an Ed25519 key pair. Its secret half is a 32-byte seed, kept as 64 hex digits in
//! a key file (server) or in the configuration (client). Its public half, 64 hex digits as well, is
//! what a client pins and what the server's allow list holds.

mod allow_list;
mod key_file;

pub use allow_list::{
    AllowList, AllowListError, AllowListFile, BadLine, BadLineReason, Entry, Reload,
};
pub use key_file::{
    Exposed, KeyFileError, KeyOrigin, LoadedKey, exposed, load, load_or_create, readable_by_others,
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::str::FromStr;
use std::{error, fmt};
use zeroize::{Zeroize, Zeroizing};

/// The secret half of an identity. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct IdentityKey {
    signing: SigningKey,
}

impl IdentityKey {
    /// The identity of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self {
            signing: SigningKey::from_bytes(seed),
        }
    }

    /// A fresh identity from the system's random numbers.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut seed = Zeroizing::new([0u8; 32]);
        orion::util::secure_rand_bytes(seed.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Self::from_seed(&seed))
    }

    /// Reads 64 hex digits; white space around and between the bytes is fine. No error ever
    /// repeats what was read.
    pub fn from_hex(text: &str) -> Result<Self, HexError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        decode_hex(text, &mut seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The seed as 64 lower-case hex digits: a secret, to be written to a private file only.
    pub fn seed_hex(&self) -> Zeroizing<String> {
        let mut seed = self.signing.to_bytes();
        let mut hex = Zeroizing::new(String::with_capacity(64));
        push_hex(&seed, &mut hex);
        seed.zeroize();
        hex
    }

    /// The key itself, for the hellos of the wire.
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey(public {})", self.public())
    }
}

/// The system gave no random bytes.
#[derive(Debug)]
pub struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system gave no random bytes, so no key can be made; try again")
    }
}

impl error::Error for NoRandomness {}

/// The public half of an identity. Displayed as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes that a peer sent, if they are a key that can verify anything.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, PublicKeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| PublicKeyError::NotAKey)?;
        // Under a key of small order a signature can fit many messages: it identifies nobody.
        if key.is_weak() {
            return Err(PublicKeyError::Weak);
        }
        Ok(Self(*bytes))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `first8...last8`, for logs.
    pub fn short(&self) -> String {
        let hex = self.to_string();
        format!("{}...{}", &hex[..8], &hex[56..])
    }

    /// Whether `signature` is this identity's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &Signature::from_bytes(signature))
                .is_ok()
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hex = String::with_capacity(64);
        push_hex(&self.0, &mut hex);
        f.pad(&hex)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let mut bytes = [0u8; 32];
        decode_hex(text, &mut bytes).map_err(PublicKeyError::Hex)?;
        Self::from_bytes(&bytes)
    }
}

/// Text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicKeyError {
    /// Not 64 hex digits.
    Hex(HexError),
    /// 32 bytes, but not a point of the curve.
    NotAKey,
    /// A point of small order, under which signatures prove nothing.
    Weak,
}

impl fmt::Display for PublicKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hex(e) => e.fmt(f),
            Self::NotAKey => {
                f.write_str("these 64 hex digits are not an Ed25519 public key; copy it again")
            }
            Self::Weak => f.write_str(
                "this public key is weak (small order) and proves nothing; use a real one",
            ),
        }
    }
}

impl error::Error for PublicKeyError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Hex(e) => Some(e),
            _ => None,
        }
    }
}

/// Text that is not 64 hex digits. Says where, never what, because the text may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HexError {
    /// Nothing but white space.
    Empty,
    /// A character that is neither a hex digit nor white space; counted from 1.
    NotHex {
        /// The character's place in the text, counted from 1.
        position: usize,
    },
    /// White space between the two digits of one byte.
    SplitByte {
        /// The white space's place in the text, counted from 1.
        position: usize,
    },
    /// Too few or too many digits.
    WrongLength {
        /// How many there are.
        digits: usize,
    },
}

impl fmt::Display for HexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty; a key is 64 hex digits"),
            Self::NotHex { position } => write!(
                f,
                "character {position} is not a hex digit; a key is 64 hex digits"
            ),
            Self::SplitByte { position } => {
                write!(
                    f,
                    "white space at character {position} splits a byte; a key is 64 hex digits"
                )
            }
            Self::WrongLength { digits } => {
                write!(f, "it has {digits} hex digits; a key is 64 hex digits")
            }
        }
    }
}

impl error::Error for HexError {}

/// Decodes as Python's `bytes.fromhex` does, because that is how the original reads its keys:
/// either case, ASCII white space anywhere but inside a byte.
fn decode_hex(text: &str, out: &mut [u8; 32]) -> Result<(), HexError> {
    let mut digits = 0usize;
    for (index, c) in text.chars().enumerate() {
        let position = index + 1;
        // The white space of Python's `str.isspace` within ASCII; 0x0B is not in Rust's own list.
        if c.is_ascii_whitespace() || c == '\x0b' {
            if digits % 2 == 1 {
                // A lone trailing digit is a length mistake, not a split byte.
                if text.chars().skip(position).all(char::is_whitespace) {
                    break;
                }
                return Err(HexError::SplitByte { position });
            }
            continue;
        }
        let Some(value) = c.to_digit(16) else {
            return Err(HexError::NotHex { position });
        };
        if let Some(byte) = out.get_mut(digits / 2) {
            // At most 0xff: two digits shifted into one byte.
            *byte = (*byte << 4) | value as u8;
        }
        digits += 1;
    }
    match digits {
        0 => Err(HexError::Empty),
        64 => Ok(()),
        digits => Err(HexError::WrongLength { digits }),
    }
}

fn push_hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests;
