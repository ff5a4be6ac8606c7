//! The reverse tunnel's server: one loop, a pool, and the threads between them.
//!
//! ```text
//!  main ─ start ─> Handle          threads:  loop      sessions, tunnels, who waits
//!       ─ stop  ─> drained pool              verifier  the arithmetic of hellos
//!                                            rester    silent directions of pairs
//!                                            worker    busy directions of pairs
//! ```

mod admission;
mod control;
mod event_loop;
mod knock;
mod pairer;
mod registry;
mod sessions;
mod spares;
mod strange;
mod tunnels;
mod verifier;
mod visitors;
pub(crate) mod within;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::identity::{
    AllowListError, AllowListFile, KeyFileError, KeyOrigin, PublicKey, load_or_create,
};
use minitcptunnel_common::metrics::{Metrics, TrafficSnapshot};
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::resources;
use minitcptunnel_common::service::notify::Probe;
use mio::Poll;

use crate::config::Config;
use crate::listen;
use event_loop::{Event, EventLoop, INBOX, Parts};
use verifier::Verifier;
use within::Within;

/// Longest that aborted pairs may take to leave after the grace period.
const ABORTED: Duration = Duration::from_secs(2);

/// Why the server did not start.
#[derive(Debug)]
pub enum StartError {
    /// The identity key file.
    Key(KeyFileError),
    /// The allow list.
    AllowList(AllowListError),
    /// The control port.
    Bind(SocketAddr, io::Error),
    /// Threads or pollers.
    Resources(io::Error),
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Key(e) => e.code(),
            Self::AllowList(e) => e.code(),
            Self::Bind(_, e) => Code::of_bind(e),
            Self::Resources(_) => Code::NO_RESOURCES,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(e) => e.fmt(f),
            Self::AllowList(e) => e.fmt(f),
            Self::Bind(address, e) => listen::explain(f, *address, e, "--port"),
            Self::Resources(e) => write!(
                f,
                "the system refused a thread or a poller ({e}). Raise the limits on threads and open files, or free memory"
            ),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Key(e) => e.source(),
            Self::AllowList(e) => e.source(),
            Self::Bind(_, e) | Self::Resources(e) => Some(e),
        }
    }
}

/// A running server.
pub struct Handle {
    inbox: Inbox<Event>,
    thread: Option<JoinHandle<io::Result<()>>>,
    failed: Receiver<()>,
    pool: Pool,
    metrics: Metrics,
    address: SocketAddr,
    identity: PublicKey,
    started: Instant,
}

/// Reads the files, opens the control port and starts the loop.
pub fn start(config: Config) -> Result<Handle, StartError> {
    let key = load_or_create(&config.identity_key_file).map_err(StartError::Key)?;
    if let Some(warning) = &key.warning {
        log::warn!("{warning} code={}", Code::KEY_READABLE);
    }
    if matches!(key.origin, KeyOrigin::Created) {
        log::info!(
            "made a new identity key in {}; keep this file, clients are pinned to it",
            config.identity_key_file.display()
        );
    }
    let identity = key.key.public();
    log::info!("Server Identity Public Key (Pin in client config): {identity}");
    let allow = AllowListFile::load(&config.allowed_clients_file).map_err(StartError::AllowList)?;
    log_allow_list(&allow);

    let descriptors = resources::raise_open_files();
    let limits = Within::new(descriptors, &config);
    limits.log(&config.limits);
    let asked = SocketAddr::new(config.bind, config.port);
    let bind = |e| StartError::Bind(asked, e);
    let control = listen::listen(config.bind, config.port).map_err(bind)?;
    let address = control.local_addr().map_err(bind)?;

    let resources = StartError::Resources;
    let poll = Poll::new().map_err(resources)?;
    let (inbox, receiver) = Inbox::new(&poll, INBOX).map_err(resources)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let key = Arc::new(key.key);
    let verifier =
        Verifier::new(&key, cores.clamp(1, 4), limits.pending, &inbox).map_err(resources)?;
    let pool =
        Pool::within(limits.pairs.pairs, Budget::new(config.memory_budget)).map_err(resources)?;
    let metrics = Metrics::default();
    let parts = Parts {
        poll,
        config: Arc::new(config),
        allow,
        inbox: receiver,
        mailbox: inbox.clone(),
        verifier,
        pool: pool.clone(),
        metrics: metrics.clone(),
        control,
        control_port: address.port(),
        limits,
    };
    let event_loop = EventLoop::new(parts).map_err(resources)?;
    let (alive, failed) = crossbeam_channel::bounded::<()>(0);
    let thread = std::thread::Builder::new()
        .name("loop".into())
        .spawn(move || {
            // Dropped with the thread, also by a panic: who waits on the other end hears of it.
            let _alive = alive;
            event_loop.run()
        })
        .map_err(resources)?;
    log::info!("Control Server listening on {}", address.port());
    Ok(Handle {
        inbox,
        thread: Some(thread),
        failed,
        pool,
        metrics,
        address,
        identity,
        started: Instant::now(),
    })
}

fn log_allow_list(allow: &AllowListFile) {
    log::info!("Loaded allowed keys from {}", allow.path().display());
    for warning in &allow.list().warnings {
        log::warn!("{warning} code={}", Code::CONFIG_ODD);
    }
    for entry in allow.list().entries() {
        match &entry.name {
            Some(name) => log::info!("-> Whitelisted Key: {} name={name:?}", entry.key.short()),
            None => log::info!("-> Whitelisted Key: {}", entry.key.short()),
        }
    }
    if allow.list().is_empty() {
        log::warn!(
            "no client is admitted yet: add the key that `minitcptunnel-client keygen` prints to {} code={}",
            allow.path().display(),
            Code::NOBODY_ADMITTED
        );
    }
}

impl Handle {
    /// The address of the control port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its pairs run.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The server's identity.
    pub fn identity(&self) -> PublicKey {
        self.identity
    }

    /// What has passed so far.
    pub fn traffic(&self) -> TrafficSnapshot {
        self.metrics.traffic.snapshot()
    }

    /// Asks the loop whether it turns.
    pub fn probe(&self) -> Probe {
        let inbox = self.inbox.clone();
        Box::new(move |answer| inbox.send(Event::Alive(answer)))
    }

    /// Becomes ready (with an error) when the loop has ended by itself, which means that it failed.
    pub fn failed(&self) -> &Receiver<()> {
        &self.failed
    }

    /// Stops accepting, gives running pairs `grace`, cuts the rest, logs the totals. `Err`: the loop
    /// had failed before.
    pub fn stop(mut self, grace: Duration) -> io::Result<()> {
        let until = Instant::now() + grace;
        self.inbox.send(Event::Stop);
        let result = self.thread.take().map_or(Ok(()), |thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the loop panicked")))
        });
        let live = self.pool.live();
        if live > 0 {
            log::info!(
                "waiting up to {:.0} s for {live} running connections",
                grace.as_secs_f64()
            );
        }
        if !self.pool.drain(until) {
            let cut = self.pool.abort_all();
            log::warn!("cut {cut} connections that did not finish in time");
            self.pool.drain(Instant::now() + ABORTED);
        }
        log::info!(
            "Server stopped: uptime={:.0}s {}",
            self.started.elapsed().as_secs_f64(),
            self.metrics
        );
        result
    }
}
