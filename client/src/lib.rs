//! MiniTCPTunnel client: offers local services on the public ports of a server.
//!
//! ```text
//!  Config ── Client::start ──> Handle ── snapshot, command, stop
//! ```
//!
//! The program is a thin `main` over this library; tests and user interfaces use the same
//! [`Handle`].

pub mod cli;
pub mod config;
pub mod forward;
pub mod jobs;
pub mod local_proxy;
mod report;
pub mod reverse;
#[cfg(test)]
#[path = "../../common/src/scratch.rs"]
mod scratch;
pub mod state;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::id::TunnelId;
use minitcptunnel_common::metrics::TrafficSnapshot;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::service::notify::Probe;

use config::Config;
use local_proxy::LocalProxy;
use reverse::Input;
use reverse::control::ControlClient;
use reverse::server::Server;
use reverse::tunnels::NoSuchTunnel;
use state::{Connection, End, Snapshot, StateStore};

/// How long pairs that were cut may take to notice.
const AFTER_ABORT: Duration = Duration::from_millis(500);

/// Why the client could not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration has no identity key; `config::ensure_identity_key` makes one.
    NoIdentity,
    /// The system gave no poller or no thread.
    Resources(io::Error),
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::NoIdentity => Code::KEY_MISSING,
            Self::Resources(_) => Code::NO_RESOURCES,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentity => f.write_str(
                "this client has no identity key yet; `minitcptunnel-client keygen` makes one",
            ),
            Self::Resources(e) => write!(
                f,
                "the system refused a thread or an event queue: {e}; is a limit (ulimit -n, -u) too low?"
            ),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NoIdentity => None,
            Self::Resources(e) => Some(e),
        }
    }
}

/// The client.
pub struct Client;

impl Client {
    /// Starts the client. It connects in the background, and again whenever the connection is lost.
    ///
    /// # Errors
    /// Without an identity, or when the system gives no thread. A server that cannot be reached is
    /// no error: the [`Handle`] tells.
    pub fn start(config: &Config) -> Result<Handle, StartError> {
        let server = Arc::new(Server::new(config).ok_or(StartError::NoIdentity)?);
        let capacity = config.capacity();
        if capacity.falls_short_of(config.limits.pairs) {
            log::warn!(
                "Carries up to {capacity}, not limits.pairs = {} code={}",
                config.limits.pairs,
                Code::FEWER_CONNECTIONS
            );
        } else {
            log::info!("Carries up to {capacity}");
        }
        let pool = Pool::within(capacity.pairs, Budget::new(config.memory_budget))
            .map_err(StartError::Resources)?;
        let (control, inbox, store) = ControlClient::new(config, server, |store| {
            LocalProxy::new(
                pool.clone(),
                config.timeouts.local_connect,
                store.refusals.clone(),
            )
        })
        .map_err(StartError::Resources)?;
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(|| control.run())
            .map_err(StartError::Resources)?;
        Ok(Handle {
            inbox,
            store,
            pool,
            thread: Some(thread),
        })
    }
}

/// What a user may ask of a running client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Open a tunnel of the configuration, now and after every reconnect.
    OpenTunnel(TunnelId),
    /// Close it. Running connections finish.
    CloseTunnel(TunnelId),
}

/// A running client. Dropping it ends the session; [`stop`](Self::stop) does so in order.
pub struct Handle {
    inbox: Inbox<Input>,
    store: Arc<StateStore>,
    pool: Pool,
    thread: Option<JoinHandle<()>>,
}

/// Asks a client to stop, from any thread (a signal handler's, say).
#[derive(Clone)]
pub struct Stopper(Inbox<Input>);

impl Stopper {
    /// Ends the session. [`Handle::wait`] returns; running pairs go on until [`Handle::stop`].
    pub fn stop(&self) {
        // A loop that is gone has stopped already.
        self.0.send(Input::Stop);
    }
}

impl Handle {
    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        self.store.snapshot()
    }

    /// Waits until the state is as wanted; `None` if it is not within `timeout`.
    pub fn wait_for(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Option<Snapshot> {
        self.store.wait_for(Some(timeout), wanted)
    }

    /// Opens or closes a tunnel. What comes of it shows in the [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// If the configuration has no such tunnel.
    pub fn command(&self, command: Command) -> Result<(), NoSuchTunnel> {
        let (Command::OpenTunnel(id) | Command::CloseTunnel(id)) = &command;
        if self.snapshot().tunnel(id.as_str()).is_none() {
            return Err(NoSuchTunnel(id.clone()));
        }
        self.inbox.send(match command {
            Command::OpenTunnel(id) => Input::Open(id),
            Command::CloseTunnel(id) => Input::Close(id),
        });
        Ok(())
    }

    /// Where its pairs run.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Asks the loop whether it turns.
    pub fn probe(&self) -> Probe {
        let inbox = self.inbox.clone();
        Box::new(move |answer| inbox.send(Input::Alive(answer)))
    }

    /// Calls `say` with every new state of the connection, the last one included, on a thread of its own.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn follow(&self, say: impl Fn(&Snapshot) + Send + 'static) -> io::Result<()> {
        let store = self.store.clone();
        let follow = move || {
            let mut last = None;
            loop {
                let news = |now: &Snapshot| last.as_ref() != Some(&now.connection);
                let Some(snapshot) = store.wait_for(None, news) else {
                    return;
                };
                say(&snapshot);
                if matches!(snapshot.connection, Connection::Stopped(_)) {
                    return;
                }
                last = Some(snapshot.connection);
            }
        };
        let thread = std::thread::Builder::new().name("status".into());
        thread.stack_size(128 * 1024).spawn(follow).map(drop)
    }

    /// Something that can stop this client from elsewhere.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.inbox.clone())
    }

    /// Waits until the client has been stopped or has ended by itself; `None` if neither happens
    /// within `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let stopped = |snapshot: &Snapshot| matches!(snapshot.connection, Connection::Stopped(_));
        match self.store.wait_for(timeout, stopped)?.connection {
            Connection::Stopped(end) => Some(end),
            _ => None,
        }
    }

    /// Ends the session, gives running pairs `grace` to finish, cuts the rest, and logs the totals.
    pub fn stop(mut self, grace: Duration) -> TrafficSnapshot {
        self.end_session();
        let until = Instant::now()
            .checked_add(grace)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(365 * 24 * 3600));
        let live = self.snapshot().totals.live;
        if live > 0 {
            log::info!(
                "Waiting up to {:.1} s for {live} running connections",
                grace.as_secs_f64()
            );
        }
        if !self.pool.drain(until) {
            let cut = self.pool.abort_all();
            self.pool.drain(Instant::now() + AFTER_ABORT);
            if cut > 0 {
                log::info!("Cut {cut} connections that were still running");
            }
        }
        let end = self.snapshot();
        log::info!(
            "Stopped sessions={} {} refused={}",
            end.sessions,
            end.totals,
            end.refused
        );
        end.totals
    }

    fn end_session(&mut self) {
        self.stopper().stop();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been logged, and the store says that the client failed.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end_session();
            self.pool.abort_all();
        }
    }
}
