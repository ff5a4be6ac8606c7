//! The codes of errors and findings: `E0301` and its like, each with a cause and a cure in three languages.
//!
//! ```text
//!  an error of some room ── Coded ──> Code ──> exit code        (the first two digits)
//!                                       │
//!                                       └──> codes/{en,ko,fr}.txt ──> `explain E0301`, `doctor`
//! ```
//!
//! | first two digits | what |
//! | --- | --- |
//! | 01-07 | ends the program, with the [`ExitCode`] of that number |
//! | 10 | the way to the server (reverse tunnel) |
//! | 11 | a tunnel or the service behind it |
//! | 12 | the forward tunnel and its TLS |
//! | 13 | the log, files and the disk |
//! | 14 | the system: limits, clock, names |
//! | 15 | running as a service |
//!
//! A code is a promise, as exit codes are: it never changes its meaning, and is never used again.

use std::fmt;
use std::str::FromStr;

use crate::exit::ExitCode;

mod text;

pub use text::{Explanation, Lang};

/// The number of an error or a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Code(u16);

/// Something that a user may meet, and look up.
pub trait Coded {
    /// Under which number.
    fn code(&self) -> Code;
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $name: Self = Self($number);)*

            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    /// Something that should not happen.
    BUG = 101;
    /// The command line is wrong.
    USAGE = 201;
    /// The configuration file is missing or cannot be read.
    CONFIG_UNREADABLE = 301;
    /// The configuration is not JSON or YAML.
    CONFIG_SYNTAX = 302;
    /// A key or value of the configuration is wrong.
    CONFIG_INVALID = 303;
    /// The list of allowed clients cannot be read or has a bad line.
    ALLOW_LIST_UNUSABLE = 350;
    /// The secret identity key is missing, unreadable or damaged.
    KEY_UNUSABLE = 450;
    /// The server's public key is missing from the client's configuration, or is none.
    PIN_UNUSABLE = 451;
    /// A certificate, its key or a CA cannot be used.
    CERTIFICATE_UNUSABLE = 452;
    /// A port to listen on is taken, not permitted, or not of this machine.
    PORT_UNUSABLE = 550;
    /// Nobody takes connections at the server's control port.
    SERVER_UNREACHABLE = 1050;
    /// What answers at the server's address does not speak our protocol.
    SERVER_STRANGE = 1051;
    /// The server shows another key than the pinned one.
    PIN_MISMATCH = 1052;
    /// The server turns this client away without a word.
    NOT_ADMITTED = 1053;
    /// One of several addresses of the server does not work.
    ADDRESS_UNREACHABLE = 1054;
    /// The echo could not begin.
    ECHO_NO_SESSION = 1055;
    /// The list of allowed clients is empty.
    NOBODY_ADMITTED = 1056;
    /// The local service behind a tunnel does not answer.
    SERVICE_DOWN = 1150;
    /// Nobody answers at a tunnel's public port.
    PUBLIC_PORT_CLOSED = 1151;
    /// The server opened a port for the echo, but it cannot be reached or does not echo.
    ECHO_PORT_HIDDEN = 1152;
    /// No tunnel is opened by itself.
    NO_TUNNELS = 1153;
    /// Another program on the server holds an allowed public port.
    PUBLIC_PORT_TAKEN = 1154;
    /// Allowed public ports are below 1024, which this user may not open.
    PORTS_PRIVILEGED = 1155;
    /// Allowed public ports lie among those that the system gives to outgoing connections.
    PORTS_EPHEMERAL = 1156;
    /// Nobody takes connections at a forward's server.
    FORWARD_UNREACHABLE = 1250;
    /// A TLS handshake with a forward's server fails.
    FORWARD_REFUSED = 1251;
    /// A certificate has ended or ends soon.
    CERTIFICATE_ENDS = 1252;
    /// The target service behind a forward does not answer.
    TARGET_DOWN = 1253;
    /// There is something to say about a certificate that works.
    CERTIFICATE_DOUBTFUL = 1254;
    /// The log file cannot be written or rotated.
    LOG_UNWRITABLE = 1350;
    /// The disk of the log file has little room.
    DISK_NEARLY_FULL = 1351;
    /// Others on this machine may read a secret key.
    KEY_EXPOSED = 1352;
    /// The configuration says something that is probably not meant.
    CONFIG_DOUBTFUL = 1353;
    /// There is no identity key yet.
    KEY_NOT_MADE = 1354;
    /// The clock of this machine cannot be right.
    CLOCK_WRONG = 1450;
    /// A host name leads to no address.
    NAME_UNRESOLVED = 1451;
    /// The name service is slow.
    NAME_SLOW = 1452;
    /// The limit on open files is low.
    FEW_DESCRIPTORS = 1453;
    /// Few threads can be started.
    FEW_THREADS = 1454;
    /// memory_budget is more than there is.
    LITTLE_MEMORY = 1455;
    /// This machine has no way to addresses of this kind.
    NO_ROUTE = 1456;
    /// The program is not installed as a service.
    NOT_A_SERVICE = 1550;
}

impl Code {
    /// The number with which the program ends over this, if it does.
    #[must_use]
    pub fn exit_code(self) -> Option<ExitCode> {
        let number = self.0 / 100;
        ExitCode::ALL
            .into_iter()
            .find(|code| u16::from(code.number()) == number)
    }

    /// What is known about it.
    #[must_use]
    pub fn explain(self, lang: Lang) -> Explanation {
        text::of(self, lang)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:04}", self.0)
    }
}

/// A text that is no code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownCode(String);

impl fmt::Display for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no code {:?}; `explain` without a code lists all",
            self.0
        )
    }
}

impl std::error::Error for UnknownCode {}

/// As printed, or with the letter in lower case or missing, or without leading zeros.
impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let digits = text.strip_prefix(['E', 'e']).unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: Option<u16> = plain.then(|| digits.parse().ok()).flatten();
        let known = number.and_then(|number| Self::ALL.iter().find(|code| code.0 == number));
        known.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_read_as_they_are_shown() {
        assert!(Code::ALL.is_sorted_by(|a, b| a < b), "in order, none twice");
        for code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
        assert_eq!("e301".parse(), Ok(Code::CONFIG_UNREADABLE));
        assert_eq!("0301".parse(), Ok(Code::CONFIG_UNREADABLE));
        for wrong in ["", "E", "E+301", "E9999", "99999999", "éé"] {
            assert!(wrong.parse::<Code>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_two_digits_are_the_exit_code() {
        assert_eq!(
            Code::CONFIG_SYNTAX.exit_code(),
            Some(ExitCode::Configuration)
        );
        for code in Code::ALL {
            assert_eq!(code.exit_code().is_some(), code.0 < 1000, "{code}");
            assert_ne!(code.exit_code(), Some(ExitCode::Ok), "{code}");
        }
    }
}
