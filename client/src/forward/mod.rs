//! The forward tunnel's client: local connections in, TLS to the server out.
//!
//! ```text
//!  Handle ─ start, stop            threads:  forward   listeners, who waits, what is ready, when to dial
//!                                            rester    silent directions
//!                                            worker    a dial with its handshake, busy directions
//!
//!  accept ─> plan ─┬─ something is ready ───────────────────> pair
//!                  └─ waits ··· dial ─ TLS, checked ─> plan ─> pair
//! ```
//!
//! No wire of ours is inside TLS: any TLS server will do.

mod dial;
mod event_loop;
mod listening;
mod news;
mod plan;
pub mod probe;
mod ready;

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
use minitcptunnel_common::pki::{
    ClientSettings, ClientTls, LoadError, ServerNameError, UnixTime, Watched,
};
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::service::notify::Probe;
use mio::Poll;
use mio::net::TcpListener;

use crate::Stopper;
use crate::config::forward::Forward;
use dial::Server;
use event_loop::{Event, EventLoop, INBOX};
use listening::Listening;

/// Why the forwards did not start.
#[derive(Debug)]
pub enum StartError {
    /// A certificate, key or list, of this forward.
    Tls(String, LoadError),
    /// The name that the server's certificate must bear, of this forward.
    Name(String, ServerNameError),
    /// A listener.
    Bind(SocketAddr, io::Error),
    /// Threads or pollers.
    Resources(io::Error),
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::Tls(_, e) => e.code(),
            Self::Name(..) => Code::SERVER_HOSTNAME,
            Self::Bind(_, e) => Code::of_bind(e),
            Self::Resources(_) => Code::NO_RESOURCES,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(name, e) => write!(f, "forward {name}: {e}"),
            Self::Name(name, e) => write!(f, "forward {name}: remote_server.server_hostname: {e}"),
            Self::Bind(address, e) => {
                let what = match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        "the port is in use. Perhaps the client runs already; stop it, or choose another local_listener.port"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "not permitted. Ports below 1024 need privileges; choose a higher local_listener.port"
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        "this is not an address of this machine. Use 127.0.0.1 as local_listener.host"
                    }
                    _ => return write!(f, "cannot listen on {address}: {e}"),
                };
                write!(f, "cannot listen on {address}: {what}")
            }
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
            Self::Name(_, e) => Some(e),
            Self::Bind(_, e) | Self::Resources(e) => Some(e),
        }
    }
}

/// Stops the other job when it is dropped with it.
struct Failed(Option<Stopper>);

impl Drop for Failed {
    fn drop(&mut self) {
        if let Some(other) = &self.0 {
            other.stop();
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

/// Reads the certificates, opens the listeners and starts the loop. Pairs run in `pool`. If the loop fails it stops
/// the other job, too: better no client than half of one that nobody misses.
pub fn start(
    forwards: Vec<Forward>,
    pool: &Pool,
    metrics: &Metrics,
    other: Option<Stopper>,
) -> Result<Handle, StartError> {
    let resources = StartError::Resources;
    let poll = Poll::new().map_err(resources)?;
    let (inbox, receiver) = Inbox::new(&poll, INBOX).map_err(resources)?;
    let mut listening = Vec::new();
    let mut addresses = Vec::new();
    for (n, forward) in forwards.into_iter().enumerate() {
        let name = forward.name.clone();
        let certificates = Watched::<ClientTls>::load(settings(&forward))
            .map_err(|e| StartError::Tls(name.clone(), e))?;
        let asked = forward.listen;
        let bind = |e| StartError::Bind(asked, e);
        let listener = TcpListener::bind(asked).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        addresses.push(address);
        for warning in certificates.warnings() {
            log::warn!("forward {name}: {warning} code={}", Code::CERT_ODD);
        }
        log::info!(
            "Forward {name} listening on {address} for {}",
            Endpoint::list(&forward.servers)
        );
        let server = Server::new(
            n,
            &forward,
            certificates.current(),
            pool.clone(),
            metrics.part(),
        )
        .map_err(|e| StartError::Name(name, e))?;
        listening.push(Listening::new(
            listener,
            Arc::new(server),
            certificates,
            &forward,
        ));
    }
    let event_loop = EventLoop::new(poll, receiver, inbox.clone(), listening).map_err(resources)?;
    let (alive, failed) = crossbeam_channel::bounded::<()>(0);
    let thread = std::thread::Builder::new()
        .name("forward".into())
        .spawn(move || {
            // Dropped with the thread, also by a panic: who waits on the other end hears of it, and then the other job.
            let mut failed = Failed(other);
            let _alive = alive;
            let result = event_loop.run();
            if result.is_ok() {
                failed.0 = None;
            }
            result
        })
        .map_err(resources)?;
    Ok(Handle {
        inbox,
        thread: Some(thread),
        failed,
        addresses,
    })
}

/// Whether this forward could start with its certificates and keys, without opening anything. What there is to
/// say about them.
pub fn check(forward: &Forward) -> Result<Vec<String>, StartError> {
    let mut certificates = Watched::<ClientTls>::load(settings(forward))
        .map_err(|e| StartError::Tls(forward.name.clone(), e))?;
    let ends = certificates.ends(UnixTime::now());
    Ok(certificates.warnings().into_iter().chain(ends).collect())
}

/// Where its certificates, keys and CAs are.
pub(crate) fn settings(forward: &Forward) -> ClientSettings {
    let own = forward.identity.as_ref();
    ClientSettings {
        server_ca: forward.server_ca.clone(),
        cert: own.map(|own| own.cert.clone()),
        key: own.map(|own| own.key.clone()),
        min_version: forward.min_version,
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

    /// Stops accepting; who still waits is cut. Pairs go on: the pool is its owner's to drain. `Err`: the loop
    /// had failed before.
    pub fn stop(mut self) -> io::Result<()> {
        self.inbox.send(Event::Stop);
        self.thread.take().map_or(Ok(()), |thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the forward loop panicked")))
        })
    }
}
