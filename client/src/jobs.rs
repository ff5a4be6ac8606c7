//! The jobs that a configuration asks for, in one process.
//!
//! ```text
//!  Config ─ start ─┬─> reverse (Client) ─┐
//!                  └─> forward ──────────┴─ one pool, one memory budget ─ stop: both, then what runs may finish
//! ```

use std::time::{Duration, Instant};
use std::{error, fmt, io};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::service::notify;

use crate::config::Config;
use crate::state::{Connection, End};
use crate::{Client, Stopper, forward};

/// How long pairs that were cut may take to notice.
const AFTER_ABORT: Duration = Duration::from_millis(500);

/// Why the client did not start.
#[derive(Debug)]
pub enum StartError {
    /// The reverse tunnel.
    Reverse(crate::StartError),
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

/// A running client.
pub struct Jobs {
    reverse: Option<crate::Handle>,
    forward: Option<Forwards>,
    stop: Sender<()>,
    stopped: Receiver<()>,
}

struct Forwards {
    handle: forward::Handle,
    metrics: Metrics,
    pool: Pool,
    started: Instant,
}

/// Asks running jobs to stop, from any thread (a signal handler's, say).
pub struct StopJobs(Option<Stopper>, Sender<()>);

impl StopJobs {
    /// [`Jobs::wait`] returns; running pairs go on until [`Jobs::stop`].
    pub fn stop(&self) {
        // Once is enough.
        let _ = self.1.try_send(());
        if let Some(reverse) = &self.0 {
            reverse.stop();
        }
    }
}

/// Starts what the configuration asks for: everything, or nothing.
pub fn start(config: &Config) -> Result<Jobs, StartError> {
    let resources = |e: io::Error| StartError::Forward(forward::StartError::Resources(e));
    let (reverse, pool) = if config.reverse.is_some() {
        let handle = Client::start(config).map_err(StartError::Reverse)?;
        let pool = handle.pool().clone();
        (Some(handle), pool)
    } else {
        let capacity = config.capacity();
        log::info!("Carries up to {capacity}");
        let budget = Budget::new(config.memory_budget);
        let pool = Pool::within(capacity.pairs, budget).map_err(resources)?;
        (None, pool)
    };
    let mut forward = None;
    if !config.forwards.is_empty() {
        let metrics = Metrics::default();
        // The reverse tunnel is stopped by being dropped, if this fails.
        let stopper = reverse.as_ref().map(crate::Handle::stopper);
        let handle = forward::start(config.forwards.clone(), &pool, &metrics, stopper)
            .map_err(StartError::Forward)?;
        forward = Some(Forwards {
            handle,
            metrics,
            pool,
            started: Instant::now(),
        });
    }
    let (stop, stopped) = bounded(1);
    Ok(Jobs {
        reverse,
        forward,
        stop,
        stopped,
    })
}

impl Jobs {
    /// Something that can stop these jobs from elsewhere.
    pub fn stopper(&self) -> StopJobs {
        let reverse = self.reverse.as_ref().map(crate::Handle::stopper);
        StopJobs(reverse, self.stop.clone())
    }

    /// Tells the service manager, if there is one that listens, that the work has begun, and keeps telling it how
    /// things are. Ready does not mean connected: at boot there may be no network yet.
    pub fn tell_manager(&self) {
        if !notify::is_heard() {
            return;
        }
        let reverse = self.reverse.as_ref().map(crate::Handle::probe);
        let forward = self.forward.as_ref().map(|it| it.handle.probe());
        let probes = reverse.into_iter().chain(forward).collect();
        let forwards = self.forward.as_ref().map(|it| {
            let addresses = it.handle.addresses().iter().map(ToString::to_string);
            format!("forwards from {}", addresses.collect::<Vec<_>>().join(", "))
        });
        let Some(reverse) = &self.reverse else {
            notify::ready(&forwards.unwrap_or_default(), probes);
            return;
        };
        notify::ready("connecting", probes);
        let followed = reverse.follow(move |snapshot| {
            let server = &snapshot.server;
            let mut line = match &snapshot.connection {
                Connection::Connecting => format!("connecting to {server}"),
                Connection::Up { .. } => format!("connected to {server}"),
                Connection::Waiting { reason, .. } => {
                    format!("not connected to {server}, trying again: {reason}")
                }
                Connection::Stopped(_) => format!("{}", snapshot.connection),
            };
            if let Some(forwards) = &forwards {
                line.push_str("; ");
                line.push_str(forwards);
            }
            notify::status(&line);
        });
        if let Err(e) = followed {
            log::warn!(
                "The service manager will not be told about the connection: no thread for it ({e}) code={}",
                Code::NO_RESOURCES
            );
        }
    }

    /// Waits until the jobs have been stopped, or have ended by themselves; `None` if neither happens within
    /// `timeout`. Where the reverse tunnel ends by itself, forwards go on.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Outcome> {
        let since = Instant::now();
        let end = match &self.reverse {
            Some(reverse) => Some(reverse.wait(timeout)?),
            None => None,
        };
        let Some(forward) = &self.forward else {
            return Some(Outcome { end, failed: false });
        };
        let left = timeout.map(|timeout| timeout.saturating_sub(since.elapsed()));
        let after = left.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
        if forward.handle.failed().try_recv() == Err(TryRecvError::Disconnected) {
            return Some(Outcome { end, failed: true });
        }
        if end.is_some() && self.stopped.is_empty() {
            log::error!(
                "The reverse tunnel has ended for good; the forwards go on code={}",
                end.as_ref().and_then(End::code).unwrap_or(Code::BUG)
            );
        }
        crossbeam_channel::select! {
            recv(self.stopped) -> _ => Some(Outcome { end, failed: false }),
            recv(forward.handle.failed()) -> _ => Some(Outcome { end, failed: true }),
            recv(after) -> _ => None,
        }
    }

    /// Stops accepting, gives running pairs `grace`, cuts the rest, and logs the totals.
    pub fn stop(self, grace: Duration) {
        let until = (Instant::now().checked_add(grace))
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(365 * 24 * 3600));
        let mut totals = None;
        if let Some(forward) = self.forward {
            if let Err(e) = forward.handle.stop() {
                log::error!(
                    "the forwards' loop failed: {e}. This is a bug or a broken system; please report it code={}",
                    Code::BUG
                );
            }
            totals = Some((forward.metrics, forward.pool, forward.started));
        }
        if let Some(reverse) = self.reverse {
            reverse.stop(grace);
        }
        let Some((metrics, pool, started)) = totals else {
            return;
        };
        if pool.live() > 0 {
            log::info!(
                "Waiting up to {:.1} s for {} running connections",
                grace.as_secs_f64(),
                pool.live()
            );
        }
        if !pool.drain(until) {
            let cut = pool.abort_all();
            pool.drain(Instant::now() + AFTER_ABORT);
            if cut > 0 {
                log::info!("Cut {cut} connections that were still running");
            }
        }
        log::info!(
            "Forwards stopped uptime={:.0}s {metrics}",
            started.elapsed().as_secs_f64()
        );
    }
}

/// How the jobs came to their end.
#[derive(Debug)]
pub struct Outcome {
    /// Of the reverse tunnel, if it ran.
    pub end: Option<End>,
    /// The forwards' loop has failed.
    pub failed: bool,
}

impl Outcome {
    /// The exit code that fits.
    pub fn exit_code(&self) -> ExitCode {
        let code = if self.failed {
            Some(Code::BUG)
        } else {
            self.end.as_ref().and_then(End::code)
        };
        code.and_then(Code::exit_code).unwrap_or(ExitCode::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyError;
    use minitcptunnel_common::config::edit::EditError;
    use minitcptunnel_common::config::{ConfigError, Problem};
    use minitcptunnel_common::identity::{HexError, NoRandomness};
    use minitcptunnel_common::pki::{LoadError, server_name};

    #[test]
    fn each_failure_has_its_exit_code() {
        let path = || "a".into();
        let invalid = |keys: &[&str]| {
            let problem = |key: &&str| Problem {
                key: (*key).to_owned(),
                place: None,
                message: String::new(),
            };
            let problems = keys.iter().map(problem).collect();
            KeyError::Config(ConfigError::Invalid {
                path: None,
                problems,
            })
        };
        let no_file = KeyError::NoFile {
            path: path(),
            example: "",
        };
        let malformed = KeyError::Malformed {
            path: path(),
            source: HexError::Empty,
        };
        let edit = KeyError::Edit {
            path: path(),
            source: EditError::NoWay,
        };
        let no_name = server_name("a b").expect_err("a space");
        let forward = |e| StartError::Forward(e);
        let broken = || io::Error::from(io::ErrorKind::Other);
        let table: Vec<(Box<dyn Coded>, Code, ExitCode)> = vec![
            (
                Box::new(invalid(&["server_pub_key"])),
                Code::PIN_MISSING,
                ExitCode::Identity,
            ),
            (
                Box::new(invalid(&["server_pub_key", "port"])),
                Code::CONFIG_INVALID,
                ExitCode::Configuration,
            ),
            (
                Box::new(KeyError::Config(ConfigError::Extension(path()))),
                Code::CONFIG_EXTENSION,
                ExitCode::Configuration,
            ),
            (
                Box::new(no_file),
                Code::CONFIG_UNREADABLE,
                ExitCode::Configuration,
            ),
            (Box::new(malformed), Code::KEY_DAMAGED, ExitCode::Identity),
            (
                Box::new(KeyError::Missing(path())),
                Code::KEY_MISSING,
                ExitCode::Identity,
            ),
            (
                Box::new(KeyError::Present(path())),
                Code::KEY_PRESENT,
                ExitCode::Identity,
            ),
            (
                Box::new(KeyError::Randomness(NoRandomness)),
                Code::NO_RANDOMNESS,
                ExitCode::Identity,
            ),
            (Box::new(edit), Code::KEY_NOT_SAVED, ExitCode::Identity),
            (
                Box::new(KeyError::Changed(path())),
                Code::KEY_NOT_SAVED,
                ExitCode::Identity,
            ),
            (
                Box::new(StartError::Reverse(crate::StartError::NoIdentity)),
                Code::KEY_MISSING,
                ExitCode::Identity,
            ),
            (
                Box::new(StartError::Reverse(crate::StartError::Resources(broken()))),
                Code::NO_RESOURCES,
                ExitCode::Resources,
            ),
            (
                Box::new(forward(forward::StartError::Tls(
                    String::new(),
                    LoadError::AllowedWithoutCa,
                ))),
                Code::TLS_SETTINGS,
                ExitCode::Identity,
            ),
            (
                Box::new(forward(forward::StartError::Name(String::new(), no_name))),
                Code::SERVER_HOSTNAME,
                ExitCode::Configuration,
            ),
            (
                Box::new(forward(forward::StartError::Bind(
                    "[::]:1".parse().unwrap(),
                    broken(),
                ))),
                Code::CANNOT_LISTEN,
                ExitCode::Bind,
            ),
            (
                Box::new(forward(forward::StartError::Resources(broken()))),
                Code::NO_RESOURCES,
                ExitCode::Resources,
            ),
        ];
        for (e, code, exit) in table {
            assert_eq!((e.code(), e.exit_code()), (code, exit));
        }
        let ended = |end, failed| Outcome { end, failed }.exit_code();
        assert_eq!(ended(None, false), ExitCode::Ok);
        assert_eq!(ended(Some(End::Asked), false), ExitCode::Ok);
        assert_eq!(
            ended(Some(End::Refused(String::new())), false),
            ExitCode::Refused
        );
        assert_eq!(
            ended(Some(End::Failed(String::new())), false),
            ExitCode::Failure
        );
        assert_eq!(ended(Some(End::Asked), true), ExitCode::Failure);
    }
}
