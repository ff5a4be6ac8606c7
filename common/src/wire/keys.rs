//! The key schedule (PROTOCOL.md section 3) and the token that binds data channels (T6).
//!
//! ```text
//! X25519 result ─┐
//! client nonce  ─┼─ HKDF-SHA256 ─> key c2s | key s2c | nonce base c2s | nonce base s2c
//! server nonce  ─┘
//! session key (AuthOk) + conn id ─ HMAC-SHA256 ─> token of one data channel
//! session key (AuthOk) + label ─── HMAC-SHA256 ─> token of a session's spare channels (E9)
//! ```

use orion::hazardous::kdf::hkdf;
use orion::hazardous::mac::hmac::sha256 as hmac;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of the nonce in a hello.
pub const NONCE_LEN: usize = 12;
/// Bytes of a data channel's token.
pub const TOKEN_LEN: usize = 32;

/// What the token of a spare channel is made of (E9).
const SPARE_LABEL: &str =
    "MINI_TCP_TUNNEL_V1 spare data channel: longer than the 64 bytes of any conn id";
const _: () = assert!(
    SPARE_LABEL.len() > 64,
    "a token for a conn id must never be one for a spare"
);

const INFO: &[u8; 18] = b"MINI_TCP_TUNNEL_V1";

/// What one direction of one channel seals with. Wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DirectionKey {
    pub(super) key: [u8; 32],
    pub(super) nonce_base: [u8; 4],
}

impl DirectionKey {
    /// A direction's key from its parts, as test vectors give them.
    pub fn from_parts(key: [u8; 32], nonce_base: [u8; 4]) -> Self {
        Self { key, nonce_base }
    }

    /// The parts: 32 bytes of key, 4 bytes of nonce base. For test vectors.
    pub fn parts(&self) -> (&[u8; 32], &[u8; 4]) {
        (&self.key, &self.nonce_base)
    }
}

/// The keys of both directions of one channel.
pub struct ChannelKeys {
    /// Client to server.
    pub c2s: DirectionKey,
    /// Server to client.
    pub s2c: DirectionKey,
}

/// Steps K1 and K2: the keys of a channel from the X25519 result and the nonces of both hellos.
pub fn derive(
    shared: &[u8],
    client_nonce: &[u8; NONCE_LEN],
    server_nonce: &[u8; NONCE_LEN],
) -> ChannelKeys {
    let mut salt = [0u8; 2 * NONCE_LEN];
    salt[..NONCE_LEN].copy_from_slice(client_nonce);
    salt[NONCE_LEN..].copy_from_slice(server_nonce);
    let mut okm = [0u8; 72];
    hkdf::Hkdf::<hkdf::SHA256>::derive_key(&salt, shared, Some(INFO), &mut okm)
        .expect("72 bytes are within what HKDF-SHA256 can give");
    let keys = ChannelKeys {
        c2s: DirectionKey {
            key: array(&okm[0..32]),
            nonce_base: array(&okm[64..68]),
        },
        s2c: DirectionKey {
            key: array(&okm[32..64]),
            nonce_base: array(&okm[68..72]),
        },
    };
    okm.zeroize();
    keys
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller slices exactly N bytes")
}

/// The random key that AuthOk carries; it proves that a data channel belongs to a session.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// A session key from 32 random bytes (server) or from AuthOk (client).
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for AuthOk.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The token of the data channel for this conn id (T6).
    pub fn token(&self, conn_id: &str) -> [u8; TOKEN_LEN] {
        let tag = hmac::HmacSha256::hmac(&self.hmac_key(), conn_id.as_bytes())
            .expect("HMAC of a short message cannot fail");
        tag.unprotected_as_ref()
            .try_into()
            .expect("an HMAC-SHA256 tag has 32 bytes")
    }

    /// Whether `token` belongs to this conn id; the comparison takes the same time either way.
    pub fn verify(&self, conn_id: &str, token: &[u8; TOKEN_LEN]) -> bool {
        let Ok(expected) = hmac::Tag::try_from(&token[..]) else {
            return false;
        };
        hmac::HmacSha256::verify(&expected, &self.hmac_key(), conn_id.as_bytes()).is_ok()
    }

    /// The token of this session's spare data channels (E9).
    pub fn spare_token(&self) -> [u8; TOKEN_LEN] {
        self.token(SPARE_LABEL)
    }

    /// Whether `token` is that of this session's spare data channels, in constant time.
    pub fn verify_spare(&self, token: &[u8; TOKEN_LEN]) -> bool {
        self.verify(SPARE_LABEL, token)
    }

    fn hmac_key(&self) -> hmac::SecretKey {
        hmac::SecretKey::try_from(&self.0[..]).expect("32 bytes are a valid HMAC key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_one_conn_id_and_one_session() {
        let key = SessionKey::new([7; 32]);
        let token = key.token("1a2b3c4d");
        assert!(key.verify("1a2b3c4d", &token));
        assert!(!key.verify("1a2b3c4e", &token));
        assert!(!SessionKey::new([8; 32]).verify("1a2b3c4d", &token));
        for bit in 0..256 {
            let mut wrong = token;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify("1a2b3c4d", &wrong), "bit {bit}");
        }
    }

    #[test]
    fn a_spares_token_is_nobody_elses() {
        let key = SessionKey::new([7; 32]);
        let token = key.spare_token();
        assert!(key.verify_spare(&token));
        assert!(!SessionKey::new([8; 32]).verify_spare(&token));
        assert!(!key.verify_spare(&key.token("1a2b3c4d")));
        assert!(!key.verify("1a2b3c4d", &token));
        assert!(crate::id::ConnId::new(SPARE_LABEL).is_none());
    }
}
