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
    /// Only an administrator may change services.
    SERVICE_NOT_ROOT = 1501;
    /// There is no service manager, or not this one.
    SERVICE_NO_MANAGER = 1502;
    /// A file that we did not write is in the way.
    SERVICE_FOREIGN_FILE = 1503;
    /// A command of the service manager failed.
    SERVICE_COMMAND_FAILED = 1504;
    /// A name or path cannot be handed to a service manager.
    SERVICE_UNUSABLE_TEXT = 1505;
    /// There is no such service.
    SERVICE_NOT_INSTALLED = 1506;
    /// A file of the service could not be written.
    SERVICE_FILE_NOT_WRITTEN = 1507;
    /// A relative path in a service.
    SERVICE_RELATIVE_PATH = 1508;
    /// The service's user cannot read a file.
    SERVICE_UNREADABLE = 1509;
    /// The service would not find the key that is here.
    SERVICE_OTHER_KEY = 1510;
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
