//! The jobs that a configuration asks for, in one process.
//!
//! ```text
//!  Config ─ start ─┬─> reverse ─┐
//!                  └─> forward ─┴─ one pool, one memory budget ─ stop: both, then what runs may finish
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{error, fmt};

use crossbeam_channel::Receiver;
use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::resources;
use minitcptunnel_common::service::notify::Probe;

use crate::config::Config;
use crate::reverse::within::Within;
use crate::{forward, reverse};

/// Longest that aborted pairs may take to leave after the grace period.
const ABORTED: Duration = Duration::from_secs(2);

/// Why the server did not start.
#[derive(Debug)]
pub enum StartError {
    /// The reverse tunnel.
    Reverse(reverse::StartError),
    /// A forward.
    Forward(forward::StartError),
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Reverse(e) => e.code(),
            Self::Forward(e) => e.code(),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reverse(e) => e.fmt(f),
            Self::Forward(e) => e.fmt(f),
        }
    }
}

impl error::Error for StartError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Reverse(e) => e.source(),
            Self::Forward(e) => e.source(),
        }
    }
}

/// A running server.
pub struct Handle {
    reverse: Option<reverse::Handle>,
    forward: Option<Forwards>,
}

struct Forwards {
    handle: forward::Handle,
    metrics: Metrics,
    pool: Pool,
    started: Instant,
}

/// Starts what the configuration asks for: everything, or nothing.
pub fn start(mut config: Config) -> Result<Handle, StartError> {
    let forwards = std::mem::take(&mut config.forwards);
    let resources = |e| StartError::Forward(forward::StartError::Resources(e));
    let within = Within::new(resources::raise_open_files(), &config);
    let pending = within.pending;
    let (reverse, pool) = if config.reverse {
        let handle = reverse::start(config).map_err(StartError::Reverse)?;
        let pool = handle.pool().clone();
        (Some(handle), pool)
    } else {
        log::info!("Carries up to {}", within.pairs);
        let budget = Budget::new(config.memory_budget);
        let pool = Pool::within(within.pairs.pairs, budget).map_err(resources)?;
        (None, pool)
    };
    let mut forward = None;
    if !forwards.is_empty() {
        let metrics = Metrics::default();
        match forward::start(forwards, pending, &pool, &metrics) {
            Ok(handle) => {
                forward = Some(Forwards {
                    handle,
                    metrics,
                    pool,
                    started: Instant::now(),
                });
            }
            Err(e) => {
                if let Some(reverse) = reverse {
                    // What it says of itself is no news now.
                    let _ = reverse.stop(Duration::ZERO);
                }
                return Err(StartError::Forward(e));
            }
        }
    }
    Ok(Handle { reverse, forward })
}

impl Handle {
    /// Where the forwards listen, in their order.
    pub fn forwards(&self) -> &[SocketAddr] {
        self.forward
            .as_ref()
            .map_or(&[], |forward| forward.handle.addresses())
    }

    /// The reverse tunnel, if it runs.
    pub fn reverse(&self) -> Option<&reverse::Handle> {
        self.reverse.as_ref()
    }

    /// One question for each loop, whether it turns.
    pub fn probes(&self) -> Vec<Probe> {
        let reverse = self.reverse.as_ref().map(reverse::Handle::probe);
        let forward = self.forward.as_ref().map(|it| it.handle.probe());
        reverse.into_iter().chain(forward).collect()
    }

    /// What it does, in a line for the service manager.
    pub fn status(&self) -> String {
        let mut parts = Vec::new();
        if let Some(reverse) = &self.reverse {
            parts.push(format!(
                "takes clients on port {}",
                reverse.address().port()
            ));
        }
        if !self.forwards().is_empty() {
            let addresses: Vec<_> = self.forwards().iter().map(ToString::to_string).collect();
            parts.push(format!("forwards from {}", addresses.join(", ")));
        }
        parts.join("; ")
    }

    /// Each becomes ready (with an error) when a loop has ended by itself, which means that it failed.
    pub fn failed(&self) -> [Receiver<()>; 2] {
        let never = crossbeam_channel::never;
        [
            (self.reverse.as_ref()).map_or_else(never, |job| job.failed().clone()),
            (self.forward.as_ref()).map_or_else(never, |job| job.handle.failed().clone()),
        ]
    }

    /// Stops accepting, gives running pairs `grace`, cuts the rest, logs the totals. `Err`: a loop had failed
    /// before.
    pub fn stop(self, grace: Duration) -> io::Result<()> {
        let until = Instant::now() + grace;
        let mut result = Ok(());
        let mut totals = None;
        if let Some(forward) = self.forward {
            result = forward.handle.stop();
            totals = Some((forward.metrics, forward.pool, forward.started));
        }
        if let Some(reverse) = self.reverse {
            result = reverse.stop(grace).and(result);
        }
        if let Some((metrics, pool, started)) = totals {
            if pool.live() > 0 {
                log::info!(
                    "waiting up to {:.0} s for {} running connections",
                    grace.as_secs_f64(),
                    pool.live()
                );
            }
            if !pool.drain(until) {
                let cut = pool.abort_all();
                log::warn!("cut {cut} connections that did not finish in time");
                pool.drain(Instant::now() + ABORTED);
            }
            log::info!(
                "Forwards stopped: uptime={:.0}s {metrics}",
                started.elapsed().as_secs_f64()
            );
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minitcptunnel_common::exit::ExitCode;
    use minitcptunnel_common::identity::{AllowListError, KeyFileError};
    use minitcptunnel_common::pki::LoadError;

    #[test]
    fn each_failure_has_its_exit_code() {
        use StartError::{Forward, Reverse};
        let address = || SocketAddr::from(([127, 0, 0, 1], 1));
        let broken = || io::Error::from(io::ErrorKind::AddrInUse);
        let list = AllowListError::BadLines {
            path: "a".into(),
            lines: Vec::new(),
        };
        for (e, code, exit) in [
            (
                Reverse(reverse::StartError::Key(KeyFileError::NotText("a".into()))),
                Code::KEY_DAMAGED,
                ExitCode::Identity,
            ),
            (
                Reverse(reverse::StartError::AllowList(list)),
                Code::ALLOW_LIST_LINE,
                ExitCode::Configuration,
            ),
            (
                Reverse(reverse::StartError::Bind(address(), broken())),
                Code::PORT_IN_USE,
                ExitCode::Bind,
            ),
            (
                Reverse(reverse::StartError::Resources(broken())),
                Code::NO_RESOURCES,
                ExitCode::Resources,
            ),
            (
                Forward(forward::StartError::Tls(
                    String::new(),
                    LoadError::AllowedWithoutCa,
                )),
                Code::TLS_SETTINGS,
                ExitCode::Identity,
            ),
            (
                Forward(forward::StartError::Bind(address(), broken())),
                Code::PORT_IN_USE,
                ExitCode::Bind,
            ),
            (
                Forward(forward::StartError::Resources(broken())),
                Code::NO_RESOURCES,
                ExitCode::Resources,
            ),
        ] {
            assert_eq!((e.code(), e.exit_code()), (code, exit));
        }
    }
}
