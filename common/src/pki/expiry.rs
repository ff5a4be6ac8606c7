//! When certificates end, and saying so in time. The clock is an argument.

use rustls::pki_types::{CertificateDer, UnixTime};
use std::fmt;
use std::time::Duration;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

const DAY: u64 = 24 * 60 * 60;
/// How long before the end the warnings begin.
const AHEAD_DAYS: u64 = 30;

/// From when to when a certificate is good, and what it is called in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The file, and its option: `server_cert certs/server.crt`.
    pub what: String,
    /// Seconds since 1970; a time before that is 0.
    pub from: u64,
    /// Seconds since 1970; the last good one.
    pub until: u64,
}

impl Validity {
    /// Reads the dates of a certificate; `None` if it cannot be read.
    #[must_use]
    pub fn of(what: String, certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let validity = certificate.validity();
        Some(Self {
            what,
            from: seconds(validity.not_before),
            until: seconds(validity.not_after),
        })
    }

    /// What there is to say about it at this time.
    #[must_use]
    pub fn at(&self, now: UnixTime) -> Option<Expiry> {
        let now = now.as_secs();
        let what = || self.what.clone();
        if now < self.from {
            Some(Expiry::NotYet {
                what: what(),
                from: date(self.from),
            })
        } else if now > self.until {
            Some(Expiry::Ended {
                what: what(),
                on: date(self.until),
            })
        } else if self.until - now < AHEAD_DAYS * DAY {
            Some(Expiry::Soon {
                what: what(),
                on: date(self.until),
                days: (self.until - now) / DAY,
            })
        } else {
            None
        }
    }
}

/// A certificate that is about to end, or is not good now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Its time has not begun.
    NotYet {
        /// Which one.
        what: String,
        /// From this day on.
        from: String,
    },
    /// It ends within 30 days.
    Soon {
        /// Which one.
        what: String,
        /// On this day.
        on: String,
        /// Whole days that are left.
        days: u64,
    },
    /// Its time is over.
    Ended {
        /// Which one.
        what: String,
        /// On this day.
        on: String,
    },
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet { what, from } => write!(
                f,
                "{what} is not valid before {from}: peers refuse it until then. Check the clock of this machine"
            ),
            Self::Soon { what, on, days } => write!(
                f,
                "{what} ends on {on}, in {days} days: replace it before (the new file is taken up while running)"
            ),
            Self::Ended { what, on } => write!(
                f,
                "{what} ended on {on}: peers refuse it. Replace it (the new file is taken up while running)"
            ),
        }
    }
}

/// Says the same warning once a day, not at every look.
#[derive(Debug, Default)]
pub struct ExpiryWatch {
    next: Option<Duration>,
}

impl ExpiryWatch {
    /// What is due to be said at this time: everything at the first call and a day after the last.
    pub fn due(&mut self, certificates: &[Validity], now: UnixTime) -> Vec<Expiry> {
        let since = Duration::from_secs(now.as_secs());
        if self.next.is_some_and(|next| since < next) {
            return Vec::new();
        }
        self.next = Some(since + Duration::from_secs(DAY));
        certificates.iter().filter_map(|one| one.at(now)).collect()
    }

    /// Forgets when it spoke last: the certificates are new.
    pub fn again(&mut self) {
        self.next = None;
    }
}

/// A time in seconds since 1970 as its day: `2026-11-21`.
#[must_use]
pub fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    match time.map(|time| time.to_datetime()) {
        Some(day) => format!(
            "{:04}-{:02}-{:02}",
            day.year(),
            u8::from(day.month()),
            day.day()
        ),
        None => "a day beyond the calendar".to_owned(),
    }
}
