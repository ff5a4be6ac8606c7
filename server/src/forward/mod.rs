//! The forward tunnel's server: TLS connections in, one fixed service behind each listener.
//!
//! ```text
//!  main ─ start ─> Handle          threads:  forward   listeners, deadlines, files that change
//!       ─ stop  ─> drained pool              rester    handshakes that wait, silent directions
//!                                            handshake a step of a handshake, nothing that waits
//!                                            worker    a dial, busy directions
//!
//!  accept ─ gate ─> handshake ─ step, step ─> admitted? ─> dial the target ─> pair
//!                       └─ deadline, crowd: aborted by the loop
//! ```
//!
//! No wire of ours is inside TLS: any TLS client will do.

mod connection;
mod event_loop;
mod service;
mod shaker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{error, fmt};

use crossbeam_channel::Receiver;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{LoadError, ServerSettings, ServerTls, UnixTime, Watched};
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::service::notify::Probe;
use mio::Poll;

use crate::config::forward::{Forward, Tls};
use crate::listen::listen;
use event_loop::{Event, EventLoop, INBOX, Listening};
use service::Service;
use shaker::Shaker;

/// Why the forwards did not start.
#[derive(Debug)]
pub enum StartError {
    /// A certificate, key or list, of this forward.
    Tls(String, LoadError),
    /// A listener.
    Bind(SocketAddr, io::Error),
    /// Threads or pollers.
    Resources(io::Error),
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Tls(_, e) => e.code(),
            Self::Bind(_, e) => Code::of_bind(e),
            Self::Resources(_) => Code::NO_RESOURCES,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(name, e) => write!(f, "forward {name}: {e}"),
            Self::Bind(address, e) => crate::listen::explain(f, *address, e, "server_listener"),
            Self::Resources(e) => write!(
                f,
                "the system refused a thread or a poller ({e}). Raise the limits on threads and open files, or free memory"
            ),
        }
    }
}

impl error::Error for StartError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Tls(_, e) => e.source(),
            Self::Bind(_, e) | Self::Resources(e) => Some(e),
        }
    }
}

/// Running forwards.
pub struct Handle {
    inbox: Inbox<Event>,
    thread: Option<JoinHandle<io::Result<()>>>,
    failed: Receiver<()>,
    addresses: Vec<SocketAddr>,
}

/// Reads the certificates, opens the listeners and starts the loop. Pairs run in `pool`; unfinished handshakes are at
/// most `pending`, however many each forward would have.
pub fn start(
    forwards: Vec<Forward>,
    pending: usize,
    pool: &Pool,
    metrics: &Metrics,
) -> Result<Handle, StartError> {
    let resources = StartError::Resources;
    let poll = Poll::new().map_err(resources)?;
    let (inbox, receiver) = Inbox::new(&poll, INBOX).map_err(resources)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shaker = Shaker::new(cores.clamp(1, 8)).map_err(resources)?;
    let mut listening = Vec::new();
    let mut addresses = Vec::new();
    let each = (pending / forwards.len().max(1)).max(1);
    for (n, mut forward) in forwards.into_iter().enumerate() {
        let limits = &mut forward.limits;
        limits.pending_handshakes = limits.pending_handshakes.min(each);
        let name = forward.name.clone();
        let certificates = Watched::<ServerTls>::load(settings(&forward.tls))
            .map_err(|e| StartError::Tls(name.clone(), e))?;
        let asked = forward.listen;
        let bind = |e| StartError::Bind(asked, e);
        let listener = listen(asked.ip(), asked.port()).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        addresses.push(address);
        for warning in certificates.warnings() {
            log::warn!("forward {name}: {warning} code={}", Code::CERT_ODD);
        }
        let mutual = if certificates.current().get().is_mutual() {
            "clients must show a certificate"
        } else {
            "ANY client is served: tls.client_ca_cert is not set"
        };
        log::info!(
            "Forward {name} listening on {address} for {}; {mutual}",
            Endpoint::list(&forward.targets)
        );
        let service = Service::new(
            n,
            forward,
            certificates.current(),
            pool.clone(),
            shaker.clone(),
            metrics.part(),
        );
        listening.push(Listening::new(listener, Arc::new(service), certificates));
    }
    let event_loop = EventLoop::new(poll, receiver, inbox.clone(), listening).map_err(resources)?;
    let (alive, failed) = crossbeam_channel::bounded::<()>(0);
    let thread = std::thread::Builder::new()
        .name("forward".into())
        .spawn(move || {
            // Dropped with the thread, also by a panic: who waits on the other end hears of it.
            let _alive = alive;
            event_loop.run()
        })
        .map_err(resources)?;
    Ok(Handle {
        inbox,
        thread: Some(thread),
        failed,
        addresses,
    })
}

/// Whether this forward could start with its certificates, keys and lists, without opening anything. What there
/// is to say about them.
pub fn check(forward: &Forward) -> Result<Vec<String>, StartError> {
    let mut certificates = Watched::<ServerTls>::load(settings(&forward.tls))
        .map_err(|e| StartError::Tls(forward.name.clone(), e))?;
    let ends = certificates.ends(UnixTime::now());
    Ok(certificates.warnings().into_iter().chain(ends).collect())
}

/// Where its certificates, keys, CAs and lists are.
pub(crate) fn settings(tls: &Tls) -> ServerSettings {
    ServerSettings {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        client_ca: tls.client_ca.clone(),
        allowed: tls.allowed_clients.clone(),
        allowed_file: tls.allowed_clients_file.clone(),
        min_version: tls.min_version,
    }
}

impl Handle {
    /// Where the forwards listen, in their order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
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

    /// Stops accepting; handshakes that are not done are cut. Pairs go on: the pool is its owner's to drain.
    /// `Err`: the loop had failed before.
    pub fn stop(mut self) -> io::Result<()> {
        self.inbox.send(Event::Stop);
        self.thread.take().map_or(Ok(()), |thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the forward loop panicked")))
        })
    }
}
