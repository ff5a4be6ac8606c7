//! Certificates in files, as findings.

use std::time::SystemTime;

use super::Finding;
use crate::codes::{Code, Coded};
use crate::pki::{Certified, Expiry, LoadError, UnixTime, Validity, date};

const DAY: u64 = 24 * 60 * 60;
const CHECK: &str = "certificates";

/// The files of a forward, as they were taken up or not.
pub fn files<T: Certified>(forward: &str, loaded: &Result<T, LoadError>) -> Vec<Finding> {
    match loaded {
        Ok(tls) => held(forward, tls.validities(), tls.warnings(), now()),
        Err(e) => vec![Finding::error(
            CHECK,
            e.code(),
            format!("forward {forward}: {e}"),
        )],
    }
}

/// What certificates are held against. A clock before 1970 is one of 1970.
#[must_use]
pub fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or_default())
}

/// When they end, and what is to be said about them.
#[must_use]
pub fn held(forward: &str, dates: &[Validity], warnings: &[String], now: UnixTime) -> Vec<Finding> {
    let mut findings: Vec<_> = (dates.iter())
        .filter_map(|one| one.at(now))
        .map(|expiry| ends(&format!("forward {forward}: {expiry}"), &expiry))
        .collect();
    if let (true, Some(first)) = (findings.is_empty(), dates.iter().map(|it| it.until).min()) {
        let days = first.saturating_sub(now.as_secs()) / DAY;
        // What lasts beyond this is as good as endless, and JSON's numbers are exact up to there.
        let figure = u32::try_from(days).unwrap_or(u32::MAX);
        findings.push(
            Finding::ok(
                CHECK,
                format!(
                    "forward {forward}: good until {}, {days} days from now",
                    date(first)
                ),
            )
            .figure("days_left", figure.into()),
        );
    }
    findings.extend(
        (warnings.iter())
            .map(|it| Finding::warning(CHECK, Code::CERT_ODD, format!("forward {forward}: {it}"))),
    );
    findings
}

/// One that ends, or is not good now.
#[must_use]
pub fn ends(what: &str, expiry: &Expiry) -> Finding {
    match expiry {
        Expiry::Soon { .. } => Finding::warning(CHECK, Code::CERT_ENDS, what),
        Expiry::Ended { .. } => Finding::error(CHECK, Code::CERT_ENDS, what),
        Expiry::NotYet { .. } => Finding::error(CHECK, Code::CLOCK_WRONG, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use std::time::Duration;

    #[test]
    fn ends_are_told_and_a_clock_before_the_beginning_is_suspected() {
        let one = Validity {
            what: "server_cert a.crt".into(),
            from: 100 * DAY,
            until: 200 * DAY,
        };
        let at = |day: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(day * DAY));
            held("web", std::slice::from_ref(&one), &[], now).remove(0)
        };
        let seen: Vec<_> = [99, 110, 190, 201]
            .map(|day| (at(day).level, at(day).code))
            .into();
        assert_eq!(
            seen,
            [
                (Level::Error, Some(Code::CLOCK_WRONG)),
                (Level::Ok, None),
                (Level::Warning, Some(Code::CERT_ENDS)),
                (Level::Error, Some(Code::CERT_ENDS)),
            ]
        );
        assert_eq!(at(110).figures, [("days_left", 90.0)]);
    }
}
