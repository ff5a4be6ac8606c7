//! The hello of version 1 (PROTOCOL.md section 2).
//!
//! ```text
//!  Initiator (client)                       respond (server)
//!  new ── C1 ─ hello ──> HelloReader ─ S1 ─> check, respond ─ S2 S3 S4
//!  finish <─ C2 C3 ──── HelloReader <───────── hello
//! ```
//!
//! Randomness is an argument ([`Seeds`]); the steps themselves neither wait nor fail for any
//! reason but the bytes they are given.

use std::error::Error;
use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use orion::hazardous::ecc::x25519;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::super::keys::{self, ChannelKeys, NONCE_LEN};
use super::super::{LEN_LEN, VERSION};

/// Bytes of a hello without its length.
pub const HELLO_LEN: usize = 143;
/// Bytes of a hello on the wire.
pub const HELLO_WIRE_LEN: usize = LEN_LEN + HELLO_LEN;

const ROLE_AT: usize = 2;
const IDENTITY_AT: usize = 3;
const EPHEMERAL_AT: usize = 35;
const NONCE_AT: usize = 67;
const SIGNATURE_AT: usize = 79;
const SIGNATURE_LEN: usize = 64;

/// A hello as it stands on the wire, length included.
pub type WireHello = [u8; HELLO_WIRE_LEN];

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// The public machine.
    Server = 0,
    /// The machine behind NAT.
    Client = 1,
}

/// Why a hello was turned away. Every variant means: drop the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HelloError {
    /// The length is not 143: not this protocol at all.
    Length(u32),
    /// A version we do not speak.
    Version(u16),
    /// A client where a server should be, or the reverse.
    Role(u8),
    /// The identity is not the pinned one, or not in the allow list.
    Identity([u8; 32]),
    /// The signature does not fit the hello.
    Signature,
    /// The ephemeral key leads to an all-zero shared secret (S4/C3).
    Ephemeral,
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(n) => write!(
                f,
                "hello of {n} bytes instead of {HELLO_LEN}: not a MiniTCPTunnel peer"
            ),
            Self::Version(v) => write!(f, "protocol version {v} instead of {VERSION}"),
            Self::Role(r) => write!(f, "unexpected role {r} in the hello"),
            Self::Identity(_) => f.write_str("the identity key is not the expected one"),
            Self::Signature => f.write_str("bad signature"),
            Self::Ephemeral => f.write_str("unusable ephemeral key"),
        }
    }
}

impl Error for HelloError {}

/// The random bytes of one hello; fresh for every connection. Wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Seeds {
    /// X25519 private key.
    pub ephemeral: [u8; 32],
    /// Nonce for the key schedule.
    pub nonce: [u8; NONCE_LEN],
}

/// A hello that has passed [`HelloReader`]: length, version and role are right, nothing else is known.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello([u8; HELLO_LEN]);

impl Hello {
    /// The sender's claimed identity.
    pub fn identity(&self) -> &[u8; 32] {
        self.field(IDENTITY_AT)
    }

    /// The sender's ephemeral public key.
    pub fn ephemeral(&self) -> &[u8; 32] {
        self.field(EPHEMERAL_AT)
    }

    fn nonce(&self) -> &[u8; NONCE_LEN] {
        self.field(NONCE_AT)
    }

    fn signature(&self) -> &[u8; SIGNATURE_LEN] {
        self.field(SIGNATURE_AT)
    }

    fn field<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.0[at..at + N]
            .try_into()
            .expect("every field lies within a hello")
    }

    /// Whether the signature over bytes 0..79, followed by `tail`, is the claimed identity's.
    fn is_signed(&self, tail: &[u8]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(self.identity()) else {
            return false;
        };
        let mut signed = [0u8; HELLO_LEN];
        signed[..SIGNATURE_AT].copy_from_slice(&self.0[..SIGNATURE_AT]);
        signed[SIGNATURE_AT..SIGNATURE_AT + tail.len()].copy_from_slice(tail);
        let signature = Signature::from_bytes(self.signature());
        key.verify_strict(&signed[..SIGNATURE_AT + tail.len()], &signature)
            .is_ok()
    }
}

/// Collects one hello as its bytes arrive, and turns a wrong one away at its first wrong byte.
///
/// It asks the socket for exactly the bytes that are missing, so nothing that follows the hello is
/// ever swallowed.
pub struct HelloReader {
    bytes: WireHello,
    have: usize,
    from: Role,
}

impl HelloReader {
    /// A reader for the hello of `from`.
    pub fn new(from: Role) -> Self {
        Self {
            bytes: [0; HELLO_WIRE_LEN],
            have: 0,
            from,
        }
    }

    /// Room for the bytes that are still missing; never empty before the hello is complete.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.have..]
    }

    /// Takes note of `n` bytes written to [`room`](Self::room). `Some` once the hello is complete.
    pub fn advance(&mut self, n: usize) -> Result<Option<Hello>, HelloError> {
        self.have += n;
        let b = &self.bytes;
        if self.have >= LEN_LEN {
            let length = u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
            if length as usize != HELLO_LEN {
                return Err(HelloError::Length(length));
            }
        }
        if self.have >= LEN_LEN + ROLE_AT {
            let version = u16::from_be_bytes([b[LEN_LEN], b[LEN_LEN + 1]]);
            if version != VERSION {
                return Err(HelloError::Version(version));
            }
        }
        if self.have > LEN_LEN + ROLE_AT {
            let role = b[LEN_LEN + ROLE_AT];
            if role != self.from as u8 {
                return Err(HelloError::Role(role));
            }
        }
        if self.have < HELLO_WIRE_LEN {
            return Ok(None);
        }
        Ok(Some(Hello(
            b[LEN_LEN..]
                .try_into()
                .expect("a wire hello is a length and a hello"),
        )))
    }

    /// How many bytes have come so far.
    pub fn have(&self) -> usize {
        self.have
    }
}

/// Writes a hello and signs it together with `tail`.
fn write_hello(
    identity: &SigningKey,
    role: Role,
    ephemeral: &x25519::PublicKey,
    nonce: &[u8; NONCE_LEN],
    tail: &[u8],
) -> WireHello {
    let mut wire = [0u8; HELLO_WIRE_LEN];
    wire[..LEN_LEN].copy_from_slice(&(HELLO_LEN as u32).to_be_bytes());
    let hello = &mut wire[LEN_LEN..];
    hello[..ROLE_AT].copy_from_slice(&VERSION.to_be_bytes());
    hello[ROLE_AT] = role as u8;
    hello[IDENTITY_AT..EPHEMERAL_AT].copy_from_slice(identity.verifying_key().as_bytes());
    hello[EPHEMERAL_AT..NONCE_AT].copy_from_slice(ephemeral.as_ref());
    hello[NONCE_AT..SIGNATURE_AT].copy_from_slice(nonce);
    let mut signed = [0u8; HELLO_LEN];
    signed[..SIGNATURE_AT].copy_from_slice(&hello[..SIGNATURE_AT]);
    signed[SIGNATURE_AT..SIGNATURE_AT + tail.len()].copy_from_slice(tail);
    let signature = identity.sign(&signed[..SIGNATURE_AT + tail.len()]);
    hello[SIGNATURE_AT..].copy_from_slice(&signature.to_bytes());
    wire
}

/// The ephemeral key pair of a hello.
fn ephemeral(seeds: &Seeds) -> (x25519::PrivateKey, x25519::PublicKey) {
    let private =
        x25519::PrivateKey::try_from(&seeds.ephemeral).expect("any 32 bytes are an X25519 key");
    let public = x25519::PublicKey::try_from(&private).expect("a clamped key has a public key");
    (private, public)
}

/// X25519 with the all-zero check (S4/C3).
fn agree(private: &x25519::PrivateKey, public: &[u8; 32]) -> Result<x25519::SharedKey, HelloError> {
    let public = x25519::PublicKey::try_from(public).map_err(|_| HelloError::Ephemeral)?;
    x25519::key_agreement(private, &public).map_err(|_| HelloError::Ephemeral)
}

/// A client between its hello and the server's.
pub struct Initiator {
    ephemeral: x25519::PrivateKey,
    nonce: [u8; NONCE_LEN],
    signature: [u8; SIGNATURE_LEN],
}

impl Initiator {
    /// Step C1: the client's hello and the state that waits for the answer.
    pub fn new(identity: &SigningKey, seeds: &Seeds) -> (Self, WireHello) {
        let (private, public) = ephemeral(seeds);
        let wire = write_hello(identity, Role::Client, &public, &seeds.nonce, &[]);
        let signature = wire[LEN_LEN + SIGNATURE_AT..]
            .try_into()
            .expect("a hello ends with its signature");
        (
            Self {
                ephemeral: private,
                nonce: seeds.nonce,
                signature,
            },
            wire,
        )
    }

    /// Steps C2 and C3: checks the server's answer against the pin and derives the keys.
    ///
    /// `pin` is the only identity that is taken; `None` takes any (`--insecure-no-pin`).
    pub fn finish(self, answer: &Hello, pin: Option<&[u8; 32]>) -> Result<ChannelKeys, HelloError> {
        if pin.is_some_and(|pin| pin != answer.identity()) {
            return Err(HelloError::Identity(*answer.identity()));
        }
        if !answer.is_signed(&self.signature) {
            return Err(HelloError::Signature);
        }
        let shared = agree(&self.ephemeral, answer.ephemeral())?;
        Ok(keys::derive(
            shared.unprotected_as_ref(),
            &self.nonce,
            answer.nonce(),
        ))
    }
}

/// Steps S2 (signature), S3 and S4: the server's answer and the keys. The caller has checked the
/// allow list, which is cheap, before it spends this, which is not.
pub fn respond(
    identity: &SigningKey,
    hello: &Hello,
    seeds: &Seeds,
) -> Result<(WireHello, ChannelKeys), HelloError> {
    if !hello.is_signed(&[]) {
        return Err(HelloError::Signature);
    }
    let (private, public) = ephemeral(seeds);
    let shared = agree(&private, hello.ephemeral())?;
    let wire = write_hello(
        identity,
        Role::Server,
        &public,
        &seeds.nonce,
        hello.signature(),
    );
    Ok((
        wire,
        keys::derive(shared.unprotected_as_ref(), hello.nonce(), &seeds.nonce),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(byte: u8) -> Seeds {
        Seeds {
            ephemeral: [byte; 32],
            nonce: [byte ^ 0xFF; NONCE_LEN],
        }
    }

    fn read(wire: &[u8], from: Role, step: usize) -> Result<Option<Hello>, HelloError> {
        let mut reader = HelloReader::new(from);
        for chunk in wire.chunks(step) {
            reader.room()[..chunk.len()].copy_from_slice(chunk);
            if let Some(hello) = reader.advance(chunk.len())? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    #[test]
    fn both_ends_derive_the_same_keys_however_the_bytes_arrive() {
        let client = SigningKey::from_bytes(&[1; 32]);
        let server = SigningKey::from_bytes(&[2; 32]);
        for step in [1, 2, 3, 7, 146, 147] {
            let (initiator, wire) = Initiator::new(&client, &seeds(3));
            let hello = read(&wire, Role::Client, step).unwrap().unwrap();
            assert_eq!(hello.identity(), client.verifying_key().as_bytes());
            let (answer, at_server) = respond(&server, &hello, &seeds(4)).unwrap();
            let answer = read(&answer, Role::Server, step).unwrap().unwrap();
            let pin = server.verifying_key().to_bytes();
            let at_client = initiator.finish(&answer, Some(&pin)).unwrap();
            assert_eq!(at_client.c2s.parts(), at_server.c2s.parts());
            assert_eq!(at_client.s2c.parts(), at_server.s2c.parts());
            assert_ne!(at_client.c2s.parts(), at_client.s2c.parts());
        }
    }

    #[test]
    fn every_flipped_bit_of_either_hello_is_noticed() {
        let client = SigningKey::from_bytes(&[1; 32]);
        let server = SigningKey::from_bytes(&[2; 32]);
        let mut cases = 0;
        for at in 0..HELLO_WIRE_LEN {
            let (_, mut wire) = Initiator::new(&client, &seeds(3));
            wire[at] ^= 1 << (at % 8);
            let outcome = read(&wire, Role::Client, HELLO_WIRE_LEN).and_then(|hello| {
                respond(&server, &hello.expect("complete"), &seeds(4)).map(|_| ())
            });
            assert!(outcome.is_err(), "client hello byte {at}");

            let (initiator, wire) = Initiator::new(&client, &seeds(3));
            let hello = read(&wire, Role::Client, HELLO_WIRE_LEN).unwrap().unwrap();
            let (mut answer, _) = respond(&server, &hello, &seeds(4)).unwrap();
            answer[at] ^= 1 << (at % 8);
            let pin = server.verifying_key().to_bytes();
            let outcome = read(&answer, Role::Server, HELLO_WIRE_LEN).and_then(|hello| {
                initiator
                    .finish(&hello.expect("complete"), Some(&pin))
                    .map(|_| ())
            });
            assert!(outcome.is_err(), "server hello byte {at}");
            cases += 2;
        }
        assert_eq!(cases, 2 * HELLO_WIRE_LEN);
    }

    #[test]
    fn wrong_beginnings_are_told_apart_at_once() {
        let at_once = |bytes: &[u8], from| read(bytes, from, 1).err();
        assert_eq!(
            at_once(b"GET ", Role::Client),
            Some(HelloError::Length(0x4745_5420))
        );
        assert_eq!(
            at_once(&[0, 0, 0, 143, 0, 2], Role::Client),
            Some(HelloError::Version(2))
        );
        assert_eq!(
            at_once(&[0, 0, 0, 143, 0, 1, 0], Role::Client),
            Some(HelloError::Role(0))
        );
        assert_eq!(
            at_once(&[0, 0, 0, 143, 0, 1, 1], Role::Server),
            Some(HelloError::Role(1))
        );
        assert_eq!(at_once(&[0, 0, 0, 143, 0, 1, 1], Role::Client), None);
    }

    #[test]
    fn an_answer_to_another_hello_and_a_wrong_pin_are_refused() {
        let client = SigningKey::from_bytes(&[1; 32]);
        let server = SigningKey::from_bytes(&[2; 32]);
        let (_, first) = Initiator::new(&client, &seeds(3));
        let (second, _) = Initiator::new(&client, &seeds(5));
        let hello = read(&first, Role::Client, 147).unwrap().unwrap();
        let (answer, _) = respond(&server, &hello, &seeds(4)).unwrap();
        let answer = read(&answer, Role::Server, 147).unwrap().unwrap();
        assert_eq!(
            second.finish(&answer, None).err(),
            Some(HelloError::Signature)
        );
        let (again, _) = Initiator::new(&client, &seeds(3));
        let identity = server.verifying_key().to_bytes();
        assert_eq!(
            again.finish(&answer, Some(&[9; 32])).err(),
            Some(HelloError::Identity(identity))
        );
    }

    #[test]
    fn an_all_zero_shared_secret_is_refused() {
        let client = SigningKey::from_bytes(&[1; 32]);
        let server = SigningKey::from_bytes(&[2; 32]);
        // A client that signs an ephemeral key of order 1.
        let zero = x25519::PublicKey::try_from(&[0u8; 32]).unwrap();
        let wire = write_hello(&client, Role::Client, &zero, &[0; NONCE_LEN], &[]);
        let hello = read(&wire, Role::Client, 147).unwrap().unwrap();
        assert_eq!(
            respond(&server, &hello, &seeds(4)).err(),
            Some(HelloError::Ephemeral)
        );
    }
}
