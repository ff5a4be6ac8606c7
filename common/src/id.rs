//! Names of things: one newtype per id, so that no bare number or string travels between rooms.
//!
//! ```text
//! SessionId   one authenticated control channel         (this server's count)
//! TunnelId    a configured mapping, chosen by the client (up to 255 bytes of UTF-8)
//! ConnId      one external connection                    (1..=64 bytes; ours: 32 hex digits)
//! ```

use std::fmt;
use std::sync::Arc;

/// Longest tunnel id that is accepted, in bytes.
pub const TUNNEL_ID_MAX: usize = 255;
/// Longest conn id that is accepted, in bytes (PROTOCOL.md T5).
pub const CONN_ID_MAX: usize = 64;

/// The name of a tunnel, as the client's configuration gives it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(Arc<str>);

impl TunnelId {
    /// A tunnel id, or `None` when `text` is longer than [`TUNNEL_ID_MAX`] bytes.
    pub fn new(text: &str) -> Option<Self> {
        (text.len() <= TUNNEL_ID_MAX).then(|| Self(Arc::from(text)))
    }

    /// The id as text. It came from the other side: the logger escapes it, nobody else may trust it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TunnelId {
    /// As it is when it is a plain word, quoted otherwise: in a log line it must not pass for more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(&self.0)
        } else {
            write!(f, "{:?}", &self.0)
        }
    }
}

impl fmt::Debug for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelId({:?})", &self.0)
    }
}

/// The name of one external connection, made by the server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ConnId(Arc<str>);

impl ConnId {
    /// A conn id as received; `None` unless it has 1 to [`CONN_ID_MAX`] bytes.
    pub fn new(text: &str) -> Option<Self> {
        (1..=CONN_ID_MAX)
            .contains(&text.len())
            .then(|| Self(Arc::from(text)))
    }

    /// The id of a new external connection: 128 random bits as 32 lower-case hex digits, so that
    /// ids can be neither guessed nor collide with one that still waits.
    pub fn from_random(random: [u8; 16]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(32);
        for byte in random {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(Arc::from(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({:?})", &self.0)
    }
}

/// One session of this server, counted from 1. Only for logs and tables; never on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_bounded() {
        assert!(TunnelId::new("").is_some());
        assert!(TunnelId::new(&"x".repeat(255)).is_some());
        assert!(TunnelId::new(&"x".repeat(256)).is_none());
        assert!(ConnId::new("").is_none());
        assert!(ConnId::new(&"x".repeat(64)).is_some());
        assert!(ConnId::new(&"x".repeat(65)).is_none());
    }

    #[test]
    fn odd_tunnel_ids_are_quoted() {
        let shown = |text| TunnelId::new(text).unwrap().to_string();
        assert_eq!(shown("web-server_2.a"), "web-server_2.a");
        assert_eq!(shown("웹"), "웹");
        assert_eq!(shown(""), "\"\"");
        assert_eq!(shown("a port=1"), "\"a port=1\"");
        assert_eq!(shown("a\n"), "\"a\\n\"");
    }

    #[test]
    fn random_conn_ids_are_lower_case_hex() {
        let id = ConnId::from_random([0xAB; 16]);
        assert_eq!(id.as_str(), "ab".repeat(16));
    }
}
