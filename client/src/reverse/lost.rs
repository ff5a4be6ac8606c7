//! Why a session is over, in words.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::wire::message::Reason;

/// Why a session is over.
#[derive(Debug)]
pub(super) enum Lost {
    /// The server closed the channel and did not say why.
    Closed {
        /// Whether it had accepted the session.
        up: bool,
    },
    /// The connection broke.
    Io(io::Error),
    /// A heartbeat was not answered, nor did anything else come, within this time.
    Silent(Duration),
    /// AuthOk did not come within this time.
    NotAccepted(Duration),
    /// The server does not keep to PROTOCOL.md.
    Protocol(String),
    /// The server does not read.
    Outbox,
    /// The server said why (E3).
    Refused {
        /// The code.
        reason: Reason,
        /// Its own words.
        text: String,
    },
}

impl Coded for Lost {
    fn code(&self) -> Code {
        match self {
            Self::Closed { .. } => Code::SESSION_CLOSED,
            Self::Io(_) => Code::CONNECTION_BROKE,
            Self::Silent(_) | Self::NotAccepted(_) | Self::Outbox => Code::SERVER_SILENT,
            Self::Protocol(_) => Code::PROTOCOL,
            Self::Refused { reason, .. } => match reason {
                Reason::SlotTaken => Code::SLOT_TAKEN,
                Reason::NotAdmitted => Code::REFUSED,
                Reason::Replaced => Code::REPLACED,
                Reason::Shutdown | Reason::Other(_) => Code::SESSION_CLOSED,
                Reason::Limit | Reason::Silent => Code::SERVER_LIMIT,
                Reason::Protocol => Code::PROTOCOL,
            },
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { up: true } => f.write_str("the server closed the connection"),
            Self::Closed { up: false } => f.write_str(
                "the server closed the connection before it accepted the session; perhaps another client holds its slot",
            ),
            Self::Io(e) => write!(f, "the connection broke: {e}"),
            Self::Silent(after) => write!(
                f,
                "the server is silent: no answer to a heartbeat within {} s",
                after.as_secs_f64()
            ),
            Self::NotAccepted(after) => write!(
                f,
                "the server did not accept the session within {} s",
                after.as_secs_f64()
            ),
            Self::Protocol(what) => write!(f, "the server broke the protocol: {what}"),
            Self::Outbox => f.write_str("the server does not read what it is sent"),
            Self::Refused { reason, text } => {
                let words = words(*reason);
                f.write_str(&words)?;
                // Many servers only say again what the code says.
                if text.is_empty() || words.contains(text.as_str()) {
                    return Ok(());
                }
                write!(f, " (it says: {text:?})")
            }
        }
    }
}

/// What a code means, in words.
fn words(reason: Reason) -> Cow<'static, str> {
    Cow::Borrowed(match reason {
        Reason::SlotTaken => "another client holds the server's slot",
        Reason::NotAdmitted => {
            "this client's key is not, or no longer, in the server's allowed_clients.txt"
        }
        Reason::Replaced => "a newer session with the same key replaced this one",
        Reason::Shutdown => "the server shuts down",
        Reason::Limit => "a limit of the server is reached",
        Reason::Protocol => "the server says that we broke the protocol",
        Reason::Silent => "the server heard nothing from us for too long",
        Reason::Other(code) => {
            return Cow::Owned(format!("the server ended the session with code {code}"));
        }
    })
}
