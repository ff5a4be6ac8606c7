//! What becomes of a session or an attempt that is over: what is said, and when the next one comes.
//!
//! ```text
//!  why                         said                  next attempt
//!  lost, cut, silent           INFO  Disconnected    backoff, from the beginning
//!  no connection, slot taken   WARN  No session     backoff, growing
//!  pin mismatch                ERROR No session     after backoff_max
//!  replaced by the same key    ERROR Disconnected    after 30 s at least
//!  not admitted                ERROR                 none
//! ```

use std::time::{Duration, Instant};

use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::TrafficSnapshot;
use minitcptunnel_common::wire::message::Reason;

use super::{ControlClient, Phase};
use crate::reverse::lost::Lost;
use crate::state::End;
use minitcptunnel_common::backoff::random;

/// Semantics: how long a client that was replaced stays away, at least. Two machines with the same
/// key would otherwise take the session from each other as fast as they can.
const REPLACED_WAIT: Duration = Duration::from_secs(30);

/// What becomes of the client after a failure.
pub(super) enum Next {
    /// The next attempt comes after the usual, growing wait.
    Backoff,
    /// After this wait.
    After(Duration),
    /// There is no next attempt.
    Never,
}

impl ControlClient {
    /// The session is over, against our will.
    pub(super) fn lost(&mut self, lost: &Lost) -> Result<(), End> {
        let now = Instant::now();
        let up = match std::mem::replace(&mut self.phase, idle(now)) {
            Phase::Session(session) if session.is_up() => Some(session.since),
            _ => None,
        };
        self.more = false;
        self.tunnels.lost();
        let (mut level, next) = match lost {
            Lost::Refused { reason, .. } => match reason {
                Reason::NotAdmitted => (log::Level::Error, Next::Never),
                Reason::Replaced => {
                    let wait = REPLACED_WAIT.max(self.server.timeouts.backoff_max);
                    (log::Level::Error, Next::After(wait))
                }
                _ => (log::Level::Warn, Next::Backoff),
            },
            _ => (log::Level::Warn, Next::Backoff),
        };
        let mut reason = lost.to_string();
        let Some(since) = up else {
            return self.failed(level, &reason, lost.code(), next, now);
        };
        // A server that accepts only to turn us away for what we do is no success.
        match lost {
            Lost::Refused { reason, .. } if *reason != Reason::Shutdown => {}
            Lost::Protocol(_) => {}
            _ => self.backoff.reset(),
        }
        if matches!(next, Next::After(_)) {
            reason.push_str(
                "; does another machine use the same configuration? Every machine needs a key of its own",
            );
        } else if !matches!(next, Next::Never) {
            level = log::Level::Info;
        }
        let totals = self.since_begin();
        let wait = self.wait(next);
        let outlook = match wait {
            Some(wait) => format!("next try in {:.1} s", wait.as_secs_f64()),
            None => "no further tries".to_owned(),
        };
        log::log!(
            level,
            "Disconnected from {}: {reason}; {outlook} uptime={:.1}s {totals} code={}",
            self.server.name(),
            now.saturating_duration_since(since).as_secs_f64(),
            lost.code(),
        );
        self.rest(wait, reason, now)
    }

    /// An attempt came to nothing.
    pub(super) fn failed(
        &mut self,
        level: log::Level,
        reason: &str,
        code: Code,
        next: Next,
        now: Instant,
    ) -> Result<(), End> {
        let say = self.report.failed(reason, now);
        let wait = self.wait(next);
        match wait {
            Some(wait) => log_limited!(
                level,
                say,
                "No session with {}: {reason}; next try in {:.1} s code={code}",
                self.server.name(),
                wait.as_secs_f64()
            ),
            None => log::error!("Refused by {}: {reason} code={code}", self.server.name()),
        }
        self.rest(wait, reason.to_owned(), now)
    }

    fn wait(&mut self, next: Next) -> Option<Duration> {
        match next {
            Next::Backoff => Some(self.backoff.next(random())),
            Next::After(wait) => Some(wait),
            Next::Never => None,
        }
    }

    /// Waits before the next attempt; without a wait there is none.
    fn rest(&mut self, wait: Option<Duration>, reason: String, now: Instant) -> Result<(), End> {
        self.changed = true;
        match wait {
            Some(wait) => {
                let until = now + wait;
                self.phase = Phase::Waiting { until, reason };
                Ok(())
            }
            None => Err(End::Refused(reason)),
        }
    }

    /// Ends a session in an orderly way, as far as that goes without waiting.
    pub(super) fn close_session(&mut self) {
        if let Phase::Session(session) = &mut self.phase {
            let _ = session.flush();
            if session.is_up() {
                log::info!(
                    "Disconnected from {}: stopping uptime={:.1}s {}",
                    self.server.name(),
                    session.since.elapsed().as_secs_f64(),
                    self.since_begin(),
                );
            }
        }
        self.phase = idle(Instant::now());
        self.tunnels.lost();
    }

    /// What has passed since the session began.
    fn since_begin(&self) -> TrafficSnapshot {
        let now = self.traffic();
        TrafficSnapshot {
            to_service: now.to_service - self.before.to_service,
            from_service: now.from_service - self.before.from_service,
            live: now.live,
            total: now.total - self.before.total,
            lz4: now.lz4 - self.before.lz4,
        }
    }
}

/// Between one phase and the next.
fn idle(now: Instant) -> Phase {
    Phase::Waiting {
        until: now,
        reason: String::new(),
    }
}
