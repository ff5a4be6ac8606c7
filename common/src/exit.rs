//! The numbers the programs end with. They are a promise to scripts and service managers: a number never
//! changes its meaning, and new meanings get new numbers.
//!
//! | number | meaning |
//! | --- | --- |
//! | 0 | ended as asked |
//! | 1 | unexpected failure |
//! | 2 | the command line is wrong |
//! | 3 | the configuration is wrong |
//! | 4 | the key file, identity, or a certificate is unusable |
//! | 5 | cannot bind or listen |
//! | 6 | the server refused the client for good |
//! | 7 | the system has no threads or descriptors left |
//! | 8 | doctor found something to look at |
//! | 9 | doctor found what keeps the tunnel from working |
//! | 130 | a second signal ended the program at once |
//!
//! Codes 2, 3, 4 and 6 do not go away by starting the program again: a service manager should not restart on
//! them (systemd: `RestartPreventExitStatus=2 3 4 6`).
//!
//! `service status` speaks to those who ask init scripts instead: 0 it runs, 3 it is stopped, 4 there is none.

use std::fmt;

/// Why a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// 0: the program did what it was asked to do, or was told to stop and stopped in order.
    Ok = 0,
    /// 1: something that should not happen; the log says what.
    Failure = 1,
    /// 2: the command line is wrong.
    Usage = 2,
    /// 3: the configuration file, or the list of allowed clients, is missing, unreadable or wrong.
    Configuration = 3,
    /// 4: the key file cannot be read, written or understood, or the pinned key of the server is missing.
    /// The same for certificates, their keys and CAs.
    Identity = 4,
    /// 5: an address or port cannot be bound or listened on.
    Bind = 5,
    /// 6: the server refused this client, and asking again will not help.
    Refused = 6,
    /// 7: the system gave no more threads or descriptors.
    Resources = 7,
    /// 8: `doctor` has warnings, and nothing worse.
    Warned = 8,
    /// 9: `doctor` has found an error over which the program would not end by itself.
    Unwell = 9,
    /// 130: a second signal came while running connections were given time to finish.
    SecondSignal = 130,
}

impl ExitCode {
    /// Every code, in the order of the numbers.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::Configuration,
        Self::Identity,
        Self::Bind,
        Self::Refused,
        Self::Resources,
        Self::Warned,
        Self::Unwell,
        Self::SecondSignal,
    ];

    /// The number the system sees.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// One line for help texts and logs.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Ok => "ended as asked",
            Self::Failure => "unexpected failure",
            Self::Usage => "the command line is wrong",
            Self::Configuration => "the configuration is wrong",
            Self::Identity => "the key file, identity, or a certificate is unusable",
            Self::Bind => "cannot bind or listen",
            Self::Refused => "the server refused the client for good",
            Self::Resources => "the system has no threads or descriptors left",
            Self::Warned => "doctor found something to look at",
            Self::Unwell => "doctor found what keeps the tunnel from working",
            Self::SecondSignal => "a second signal ended the program at once",
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.describe())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of this file is the published table; the code must say the same.
    #[test]
    fn the_published_table_is_what_the_code_says() {
        let published: Vec<(u8, &str)> = include_str!("exit.rs")
            .lines()
            .filter_map(|line| {
                let mut cells = line
                    .strip_prefix("//! | ")?
                    .strip_suffix(" |")?
                    .split(" | ");
                Some((cells.next()?.parse().ok()?, cells.next()?))
            })
            .collect();
        let coded: Vec<(u8, &str)> = ExitCode::ALL
            .iter()
            .map(|code| (code.number(), code.describe()))
            .collect();
        assert_eq!(published.len(), 11);
        assert_eq!(published, coded);
    }

    #[test]
    fn shows_number_and_meaning() {
        assert_eq!(ExitCode::Bind.to_string(), "5 (cannot bind or listen)");
    }
}
