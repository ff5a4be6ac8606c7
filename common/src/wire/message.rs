//! Messages: what a frame says (PROTOCOL.md sections 6 and 8).
//!
//! ```text
//! u8 type | u8 flags | u32 stream id | payload      integers big-endian, strings u32 length + UTF-8
//! ```
//!
//! Control messages are decoded to owned values; Data never passes through here, the halves of a
//! data channel look at its head only.

use std::error::Error;
use std::fmt;

use super::MESSAGE_HEAD;
use super::keys::TOKEN_LEN;
use crate::id::{ConnId, TunnelId};

/// Types of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// s2c: the session key.
    AuthOk = 2,
    /// s2c: the session never got its slot, and why.
    AuthFail = 3,
    /// c2s: open a public port.
    OpenTunnel = 10,
    /// c2s: close it.
    CloseTunnel = 11,
    /// s2c: what became of it.
    TunnelStatus = 12,
    /// s2c: an external connection waits.
    IncomingConn = 20,
    /// c2s: this data channel is for that external connection.
    DataConnReady = 21,
    /// c2s: nobody will come for that external connection (E7).
    RefuseConn = 22,
    /// c2s: this data channel waits for whoever comes (E9).
    SpareReady = 23,
    /// s2c: somebody has come for this spare data channel (E9).
    Assign = 24,
    /// Both: bytes of the connection.
    Data = 30,
    /// Both: still there.
    Heartbeat = 90,
    /// s2c: the session ends, and why.
    Error = 99,
}

/// How the server shall compress on a tunnel's data channels (E6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum CompressionWish {
    /// As the server is configured.
    #[default]
    ServerChoice = 0,
    /// Never.
    Off = 1,
    /// Whenever it shrinks.
    On = 2,
    /// Where it pays.
    Auto = 3,
}

impl CompressionWish {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Off,
            2 => Self::On,
            3 => Self::Auto,
            _ => Self::ServerChoice,
        }
    }
}

/// Why a session ends (E3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Another client holds the slot; try later.
    SlotTaken,
    /// The identity is not, or no longer, admitted: final.
    NotAdmitted,
    /// The same identity opened a newer session.
    Replaced,
    /// The server shuts down.
    Shutdown,
    /// A limit was reached.
    Limit,
    /// The client broke the protocol.
    Protocol,
    /// Nothing came for too long.
    Silent,
    /// A code this version does not know.
    Other(u8),
}

impl Reason {
    /// The code on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::SlotTaken => 1,
            Self::NotAdmitted => 2,
            Self::Replaced => 3,
            Self::Shutdown => 4,
            Self::Limit => 5,
            Self::Protocol => 6,
            Self::Silent => 7,
            Self::Other(code) => code,
        }
    }

    /// The reason with this code.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::SlotTaken,
            2 => Self::NotAdmitted,
            3 => Self::Replaced,
            4 => Self::Shutdown,
            5 => Self::Limit,
            6 => Self::Protocol,
            7 => Self::Silent,
            other => Self::Other(other),
        }
    }
}

/// What TunnelStatus says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// The public port is open.
    Open,
    /// It was closed.
    Stopped,
    /// It could not be opened, or is unknown.
    Error,
    /// A text of some other program, for display only.
    Other(String),
}

impl Status {
    fn as_str(&self) -> &str {
        match self {
            Self::Open => "Open",
            Self::Stopped => "Stopped",
            Self::Error => "Error",
            Self::Other(text) => text,
        }
    }

    fn from_text(text: &str) -> Self {
        let is = |word: &str| text.eq_ignore_ascii_case(word);
        if is("open") || is("active") {
            Self::Open
        } else if is("stopped") || is("closed") {
            Self::Stopped
        } else if is("error") {
            Self::Error
        } else {
            Self::Other(text.to_owned())
        }
    }
}

/// A message of a control channel, or the first of a data channel.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(
    missing_docs,
    reason = "the fields are the table of PROTOCOL.md section 6"
)]
pub enum Message {
    AuthOk {
        session_key: [u8; 32],
    },
    AuthFail {
        reason: Reason,
        text: String,
    },
    OpenTunnel {
        port: u32,
        tunnel: TunnelId,
        compression: CompressionWish,
    },
    CloseTunnel {
        tunnel: TunnelId,
    },
    TunnelStatus {
        status: Status,
        tunnel: TunnelId,
        reason: String,
        port: u32,
    },
    IncomingConn {
        tunnel: TunnelId,
        conn: ConnId,
        visitor: Option<String>,
    },
    DataConnReady {
        token: [u8; TOKEN_LEN],
        conn: ConnId,
    },
    RefuseConn {
        conn: ConnId,
        reason: String,
    },
    SpareReady {
        token: [u8; TOKEN_LEN],
        keep: u16,
        max: u16,
    },
    Assign {
        tunnel: TunnelId,
        conn: ConnId,
        visitor: String,
    },
    Heartbeat {
        payload: Vec<u8>,
    },
    Error {
        reason: Reason,
        text: String,
    },
    /// A type that means nothing here, Data included.
    Unknown {
        kind: u8,
    },
    /// Fewer than 6 bytes, but some.
    Short,
    /// No bytes at all: an original ends a session like this.
    Empty,
}

/// A payload that its type does not allow. The number is the message's type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub u8);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed message of type {}", self.0)
    }
}

impl Error for Malformed {}

impl Message {
    /// Appends head and payload to `out`. Optional fields are written only when `extended`: towards
    /// a peer that agreed on them, or that is known to ignore them.
    pub fn encode(&self, extended: bool, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        match self {
            Self::AuthOk { session_key } => {
                w.head(Kind::AuthOk);
                w.0.extend_from_slice(session_key);
            }
            Self::AuthFail { reason, text } => {
                w.head(Kind::AuthFail);
                w.0.push(reason.code());
                w.string(text);
            }
            Self::OpenTunnel {
                port,
                tunnel,
                compression,
            } => {
                w.head(Kind::OpenTunnel);
                w.u32(*port);
                w.string(tunnel.as_str());
                if extended {
                    w.0.push(*compression as u8);
                }
            }
            Self::CloseTunnel { tunnel } => {
                w.head(Kind::CloseTunnel);
                w.string(tunnel.as_str());
            }
            Self::TunnelStatus {
                status,
                tunnel,
                reason,
                port,
            } => {
                w.head(Kind::TunnelStatus);
                w.string(status.as_str());
                w.string(tunnel.as_str());
                if extended {
                    w.string(reason);
                    w.u32(*port);
                }
            }
            Self::IncomingConn {
                tunnel,
                conn,
                visitor,
            } => {
                w.head(Kind::IncomingConn);
                w.string(tunnel.as_str());
                w.string(conn.as_str());
                if let Some(visitor) = visitor.as_ref().filter(|_| extended) {
                    w.string(visitor);
                }
            }
            Self::DataConnReady { token, conn } => {
                w.head(Kind::DataConnReady);
                w.u32(TOKEN_LEN as u32);
                w.0.extend_from_slice(token);
                w.string(conn.as_str());
            }
            Self::RefuseConn { conn, reason } => {
                w.head(Kind::RefuseConn);
                w.string(conn.as_str());
                w.string(reason);
            }
            Self::SpareReady { token, keep, max } => {
                w.head(Kind::SpareReady);
                w.u32(TOKEN_LEN as u32);
                w.0.extend_from_slice(token);
                w.u16(*keep);
                w.u16(*max);
            }
            Self::Assign {
                tunnel,
                conn,
                visitor,
            } => {
                w.head(Kind::Assign);
                w.string(tunnel.as_str());
                w.string(conn.as_str());
                w.string(visitor);
            }
            Self::Heartbeat { payload } => {
                w.head(Kind::Heartbeat);
                w.0.extend_from_slice(payload);
            }
            Self::Error { reason, text } => {
                w.head(Kind::Error);
                w.0.push(reason.code());
                w.string(text);
            }
            Self::Unknown { kind } => w.0.extend_from_slice(&[*kind, 0, 0, 0, 0, 0]),
            Self::Short => w.0.push(0),
            Self::Empty => {}
        }
    }

    /// Reads head and payload. Bytes after the last field are ignored (section 6).
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Ok(Self::Empty);
        }
        let Some((head, payload)) = bytes.split_at_checked(MESSAGE_HEAD) else {
            return Ok(Self::Short);
        };
        let kind = head[0];
        let mut r = Reader(payload);
        let message = match kind {
            2 => payload
                .first_chunk()
                .map(|&session_key| Self::AuthOk { session_key }),
            3 => r
                .reason()
                .map(|(reason, text)| Self::AuthFail { reason, text }),
            10 => r.open_tunnel(),
            11 => r.tunnel().map(|tunnel| Self::CloseTunnel { tunnel }),
            12 => r.tunnel_status(),
            20 => r.incoming_conn(),
            21 => r.data_conn_ready(),
            22 => r.refuse_conn(),
            23 => r.spare_ready(),
            24 => r.assign(),
            90 => Some(Self::Heartbeat {
                payload: payload.to_vec(),
            }),
            99 => r
                .reason()
                .map(|(reason, text)| Self::Error { reason, text }),
            _ => Some(Self::Unknown { kind }),
        };
        message.ok_or(Malformed(kind))
    }
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn head(&mut self, kind: Kind) {
        self.0.extend_from_slice(&[kind as u8, 0, 0, 0, 0, 0]);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    fn tunnel(&mut self) -> Option<TunnelId> {
        self.string().and_then(TunnelId::new)
    }

    fn conn(&mut self) -> Option<ConnId> {
        self.string().and_then(ConnId::new)
    }

    fn reason(&mut self) -> Option<(Reason, String)> {
        Some((Reason::from_code(self.u8()?), self.string()?.to_owned()))
    }

    fn open_tunnel(&mut self) -> Option<Message> {
        let port = self.u32()?;
        let tunnel = self.tunnel()?;
        let compression = self
            .u8()
            .map(CompressionWish::from_byte)
            .unwrap_or_default();
        Some(Message::OpenTunnel {
            port,
            tunnel,
            compression,
        })
    }

    fn tunnel_status(&mut self) -> Option<Message> {
        let status = Status::from_text(self.string()?);
        let tunnel = self.tunnel()?;
        let reason = self.string().unwrap_or_default().to_owned();
        let port = self.u32().unwrap_or(0);
        Some(Message::TunnelStatus {
            status,
            tunnel,
            reason,
            port,
        })
    }

    fn incoming_conn(&mut self) -> Option<Message> {
        let tunnel = self.tunnel()?;
        let conn = self.conn()?;
        let visitor = self.string().map(str::to_owned);
        Some(Message::IncomingConn {
            tunnel,
            conn,
            visitor,
        })
    }

    fn token(&mut self) -> Option<[u8; TOKEN_LEN]> {
        if self.u32()? as usize != TOKEN_LEN {
            return None;
        }
        self.take(TOKEN_LEN)?.try_into().ok()
    }

    fn data_conn_ready(&mut self) -> Option<Message> {
        let token = self.token()?;
        let conn = self.conn()?;
        Some(Message::DataConnReady { token, conn })
    }

    fn refuse_conn(&mut self) -> Option<Message> {
        let conn = self.conn()?;
        let reason = self.string()?.to_owned();
        Some(Message::RefuseConn { conn, reason })
    }

    fn spare_ready(&mut self) -> Option<Message> {
        let token = self.token()?;
        let (keep, max) = (self.u16()?, self.u16()?);
        Some(Message::SpareReady { token, keep, max })
    }

    fn assign(&mut self) -> Option<Message> {
        let tunnel = self.tunnel()?;
        let conn = self.conn()?;
        let visitor = self.string()?.to_owned();
        Some(Message::Assign {
            tunnel,
            conn,
            visitor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(text: &str) -> TunnelId {
        TunnelId::new(text).unwrap()
    }

    fn every_message() -> Vec<Message> {
        let conn = ConnId::new("1a2b3c4d").unwrap();
        vec![
            Message::AuthOk {
                session_key: [7; 32],
            },
            Message::AuthFail {
                reason: Reason::SlotTaken,
                text: "busy".into(),
            },
            Message::OpenTunnel {
                port: 8080,
                tunnel: tunnel("web"),
                compression: CompressionWish::On,
            },
            Message::CloseTunnel { tunnel: tunnel("") },
            Message::TunnelStatus {
                status: Status::Open,
                tunnel: tunnel("web"),
                reason: "r".into(),
                port: 9,
            },
            Message::TunnelStatus {
                status: Status::Other("Odd".into()),
                tunnel: tunnel("é"),
                reason: String::new(),
                port: 0,
            },
            Message::IncomingConn {
                tunnel: tunnel("web"),
                conn: conn.clone(),
                visitor: Some("[::1]:5".into()),
            },
            Message::DataConnReady {
                token: [3; 32],
                conn: conn.clone(),
            },
            Message::RefuseConn {
                conn: conn.clone(),
                reason: "dead".into(),
            },
            Message::SpareReady {
                token: [5; 32],
                keep: 2,
                max: 0x102,
            },
            Message::Assign {
                tunnel: tunnel("web"),
                conn,
                visitor: "192.0.2.1:4711".into(),
            },
            Message::Heartbeat {
                payload: vec![1, 2, 3],
            },
            Message::Error {
                reason: Reason::Other(200),
                text: "new".into(),
            },
            Message::Unknown { kind: 77 },
            Message::Short,
            Message::Empty,
        ]
    }

    #[test]
    fn messages_come_back() {
        for message in every_message() {
            let mut bytes = Vec::new();
            message.encode(true, &mut bytes);
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            // Bytes behind the last field are ignored, except where the payload is all there is.
            let open_ended = matches!(
                message,
                Message::AuthOk { .. }
                    | Message::Heartbeat { .. }
                    | Message::Empty
                    | Message::Short
            );
            if !open_ended {
                bytes.extend_from_slice(b"zz");
                assert_eq!(Message::decode(&bytes), Ok(message));
            }
        }
    }

    #[test]
    fn no_truncation_panics_or_becomes_another_type() {
        for message in every_message() {
            let mut bytes = Vec::new();
            message.encode(true, &mut bytes);
            for len in MESSAGE_HEAD..bytes.len() {
                if let Ok(other) = Message::decode(&bytes[..len]) {
                    assert_eq!(
                        std::mem::discriminant(&other),
                        std::mem::discriminant(&message)
                    );
                }
            }
        }
    }

    #[test]
    fn the_original_form_has_no_extra_fields() {
        let mut bytes = Vec::new();
        let open = Message::OpenTunnel {
            port: 8080,
            tunnel: tunnel("web-server"),
            compression: CompressionWish::Off,
        };
        open.encode(false, &mut bytes);
        assert_eq!(bytes, b"\x0a\0\0\0\0\0\0\0\x1f\x90\0\0\0\x0aweb-server");
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let cases: [&[u8]; 9] = [
            b"\x02\0\0\0\0\0short",
            b"\x0a\0\0\0\0\0\0\0\x1f",
            b"\x0a\0\0\0\0\0\0\0\x1f\x90\0\0\0\x0bweb-server",
            b"\x0a\0\0\0\0\0\0\0\x1f\x90\0\0\0\x01\xff",
            b"\x0a\0\0\0\0\0\0\0\x1f\x90\xff\xff\xff\xffweb",
            b"\x15\0\0\0\0\0\0\0\0\x1ftoken",
            b"\x14\0\0\0\0\0\0\0\0\x01a\0\0\0\0",
            b"\x16\0\0\0\0\0",
            b"\x63\0\0\0\0\0",
        ];
        for bytes in cases {
            assert_eq!(
                Message::decode(bytes),
                Err(Malformed(bytes[0])),
                "{bytes:?}"
            );
        }
        let mut long = b"\x0a\0\0\0\0\0\0\0\x1f\x90\0\0\x01\0".to_vec();
        long.extend_from_slice(&[b'x'; 256]);
        assert_eq!(Message::decode(&long), Err(Malformed(10)));
    }
}
