//! The sealed wire of the reverse tunnel, version 1, without sockets, threads, files, clock or
//! randomness: bytes in, bytes out. `common/PROTOCOL.md` is the norm; comments cite its steps.
//!
//! ```text
//!  hello (clear, 147 bytes each way)                      handshake
//!    X25519 + nonces -> HKDF -> 2 x (key, nonce base)     keys
//!  frame:  u32 N | ChaCha20-Poly1305 ( container ) | tag  frame
//!    container: LZ4 frame, stored or compressed           compress
//!      message: type | flags | stream | payload           message
//! ```
//!
//! Every error of this room means the same to its caller: drop the channel.

pub mod capabilities;
pub mod compress;
pub mod frame;
pub mod handshake;
pub mod keys;
pub mod message;

// Semantics: fixed by PROTOCOL.md, both ends must agree.

/// Protocol version in the hello (section 2).
pub const VERSION: u16 = 1;
/// Bytes of the authentication tag that ends each frame (section 4).
pub const TAG_LEN: usize = 16;
/// Bytes of the length in front of hellos and frames.
pub const LEN_LEN: usize = 4;
/// Largest ciphertext of one frame, tag included, in bytes (F3).
pub const CIPHERTEXT_MAX: usize = 4 * 1024 * 1024;
/// Largest message after expansion, in bytes (F4).
pub const MESSAGE_MAX: usize = 8 * 1024 * 1024;
/// Type, flags and stream id in front of each message's payload (section 6).
pub const MESSAGE_HEAD: usize = 6;

// Performance and safety: ours to choose within the above.

/// Largest ciphertext of the first frame of a channel, in bytes: until it opens, the peer may be
/// replaying somebody's hello, and gets no more room than the largest honest first message needs.
pub const FIRST_FRAME_MAX: usize = 4 * 1024;
/// Largest ciphertext of a control frame, in bytes.
pub const CONTROL_FRAME_MAX: usize = 64 * 1024;
/// Payload of the largest Data frame we send, in bytes. Payload and frame both stay below the 65,463
/// bytes that one TCP segment takes over loopback (MTU 65,536, IPv6): a write that is a little longer
/// sends a tiny segment behind each full one, which cost a fifth of all CPU time there. Two segments'
/// worth saved 4 % more CPU, but let a connection whose visitor does not read hold twice as much in
/// both programs and in the kernel, whose memory for all connections 500 of them then exhausted.
pub const DATA_PAYLOAD_MAX: usize = 65_408;
