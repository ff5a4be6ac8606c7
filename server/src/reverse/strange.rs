//! What strangers do that is worth a line now and then, and how much it matters.

use log::Level;
use minitcptunnel_common::codes::{Code, Coded};

/// What strangers do, for counting and for quiet log lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Strange {
    NotOurProtocol,
    UnknownKey,
    BadSignature,
    Replay,
    HelloDeadline,
    FirstFrameDeadline,
    FirstFrame,
    Token,
    Rate,
    Crowd,
    Overload,
    NoDescriptors,
    AcceptError,
    Unclaimed,
    SlotTaken,
    Refused,
}

impl Coded for Strange {
    fn code(&self) -> Code {
        match self {
            Self::NotOurProtocol | Self::Replay => Code::NOT_A_CLIENT,
            Self::HelloDeadline | Self::FirstFrameDeadline => Code::NOT_A_CLIENT,
            Self::UnknownKey => Code::UNKNOWN_CLIENT,
            Self::BadSignature => Code::BAD_SIGNATURE,
            Self::FirstFrame | Self::Token => Code::PROTOCOL,
            Self::Rate | Self::Crowd | Self::Overload => Code::CROWD,
            Self::NoDescriptors => Code::NO_DESCRIPTORS,
            Self::AcceptError => Code::CANNOT_ACCEPT,
            Self::Unclaimed => Code::NOT_SERVED,
            Self::SlotTaken => Code::SLOT_TAKEN,
            Self::Refused => Code::NO_ROOM,
        }
    }
}

impl Strange {
    /// How much it matters.
    pub(super) fn level(self) -> Level {
        match self {
            Self::FirstFrameDeadline => Level::Debug,
            Self::HelloDeadline => Level::Info,
            Self::AcceptError => Level::Error,
            _ => Level::Warn,
        }
    }

    /// In words, for the line that counts.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::NotOurProtocol => "not a MiniTCPTunnel client",
            Self::UnknownKey => "Client identity not in whitelist",
            Self::BadSignature => "Bad signature from client",
            Self::Replay => "recorded hello sent again",
            Self::HelloDeadline => "no complete hello in time",
            Self::FirstFrameDeadline => "no first frame in time",
            Self::FirstFrame => "wrong first frame",
            Self::Token => "data channel without a waiting connection",
            Self::Rate => "too many attempts per second",
            Self::Crowd => "too many unfinished connections",
            Self::Overload => "too many hellos at once",
            Self::NoDescriptors => "out of file descriptors",
            Self::AcceptError => "cannot accept a connection",
            Self::Unclaimed => "external connection not served in time",
            Self::SlotTaken => "Another control session is active",
            Self::Refused => "external connection refused",
        }
    }
}
