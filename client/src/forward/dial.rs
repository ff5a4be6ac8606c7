//! A connection to the server: its addresses in order, TLS, its certificate checked.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use minitcptunnel_common::addresses::Addresses;
use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::tls;
use minitcptunnel_common::channel::tls::{Established, Handshake, HandshakeError};
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial::{self, set_keepalive};
use minitcptunnel_common::duplex::{self, Duplex, Socket, Wait};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{self, ClientTls, Current, ServerName, ServerNameError, Side};
use minitcptunnel_common::pool::Pool;
use mio::Token;

use super::event_loop::Event;
use crate::config::forward::{Forward, ForwardTimeouts};

/// One address of the server.
struct Address {
    server: Endpoint,
    /// What its certificate must be for.
    name: ServerName<'static>,
}

/// What all connections of one forward share.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) timeouts: ForwardTimeouts,
    pub(super) pool: Pool,
    pub(super) metrics: Metrics,
    pub(super) tls: Current<ClientTls>,
    /// Its pairs' owner in the pool.
    pub(super) owner: u64,
    /// Its addresses, for log lines.
    servers: String,
    addresses: Mutex<Addresses<Arc<Address>>>,
}

/// Why there is no connection.
pub(super) struct Failure {
    /// What happened, what it means, what to do.
    pub(super) what: String,
    /// Whether it stays until somebody changes a file or a setting.
    pub(super) lasts: bool,
}

impl Server {
    pub(super) fn new(
        number: usize,
        forward: &Forward,
        tls: Current<ClientTls>,
        pool: Pool,
        metrics: Metrics,
    ) -> Result<Self, ServerNameError> {
        let address = |server: &Endpoint| {
            Ok(Arc::new(Address {
                server: server.clone(),
                name: pki::server_name(forward.name_of(server).as_str())?,
            }))
        };
        let addresses: Result<Vec<_>, _> = forward.servers.iter().map(address).collect();
        let mut hasher = DefaultHasher::new();
        ("forward", number).hash(&mut hasher);
        Ok(Self {
            name: forward.name.clone(),
            timeouts: forward.timeouts.clone(),
            pool,
            metrics,
            tls,
            owner: hasher.finish(),
            servers: in_words(&forward.servers),
            addresses: Mutex::new(Addresses::new(addresses?)),
        })
    }

    /// Nothing that blocks or panics runs under this lock.
    fn addresses(&self) -> MutexGuard<'_, Addresses<Arc<Address>>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks, at most for `timeouts.connect`, shared by all addresses, and at each that answers for
    /// `timeouts.handshake` besides.
    pub(super) fn dial(&self) -> Result<Established, Failure> {
        let order = self.addresses().in_order(Instant::now());
        let mut deadline = Instant::now() + self.timeouts.connect;
        let mut tried = Vec::new();
        let mut lasts = true;
        for (n, number) in order.iter().enumerate() {
            let address = self.addresses().of(*number).clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / u32::try_from(order.len() - n).unwrap_or(u32::MAX);
            let failure =
                match dial::connect(address.server.host.as_str(), address.server.port, part) {
                    Ok(stream) => {
                        let reached = Instant::now();
                        match self.shake_hands(stream, &address.name) {
                            Ok(established) => {
                                self.addresses().worked(*number);
                                return Ok(established);
                            }
                            Err(failure) => {
                                // The others are not to pay for one that answers and then says nothing.
                                deadline += reached.elapsed();
                                failure
                            }
                        }
                    }
                    Err(e) => Failure {
                        what: e.to_string(),
                        lasts: false,
                    },
                };
            self.addresses().failed(*number, Instant::now());
            lasts &= failure.lasts;
            tried.push(format!("{}: {}", address.server, failure.what));
        }
        Err(Failure {
            what: tried.join("; "),
            lasts,
        })
    }

    /// The other end, for a log line. A connection that was cut has forgotten its address.
    pub(super) fn peer_of(&self, established: &Established) -> String {
        match established.socket().stream().peer_addr() {
            Ok(address) => address.to_string(),
            Err(_) => self.servers.clone(),
        }
    }

    /// A local connection as a duplex, both ends of the pair with the bounds that are set.
    pub(super) fn set_up(&self, local: TcpStream, server: &Socket) -> io::Result<Duplex> {
        // Where the system cannot be told, it notices later.
        let _ = set_keepalive(&local);
        let local = Socket::new(local)?;
        if let Some(limit) = self.timeouts.write {
            local.limit_writes(limit)?;
            server.limit_writes(limit)?;
        }
        Ok(duplex::tcp_over(local))
    }

    fn shake_hands(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
    ) -> Result<Established, Failure> {
        let _ = set_keepalive(&stream);
        let deadline = Instant::now() + self.timeouts.handshake;
        let config = self.tls.get().config.clone();
        Socket::new(stream)
            .map_err(HandshakeError::from)
            .and_then(|socket| Handshake::client(config, name.clone(), socket))
            .and_then(|handshake| handshake.run(deadline))
            .map_err(|e| in_words_of(&e))
    }
}

/// What a failed handshake means, and what mends it.
pub(super) fn in_words_of(e: &HandshakeError) -> Failure {
    match e.tls_error() {
        Some(e) => {
            let problem = pki::explain(&e, Side::Client);
            Failure {
                what: problem.text,
                lasts: problem.lasts,
            }
        }
        None => Failure {
            what: passing(e),
            lasts: false,
        },
    }
}

/// What may be otherwise at the next try.
fn passing(e: &HandshakeError) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    let perhaps =
        "it is going away or has no room, or remote_server names a port that is no tunnel server's";
    match e {
        HandshakeError::Cut => {
            format!("the server cut the connection during the TLS handshake: {perhaps}")
        }
        HandshakeError::Io(e) if matches!(e.kind(), BrokenPipe | ConnectionReset) => {
            format!("the server cut the connection during the TLS handshake: {perhaps}")
        }
        HandshakeError::TimedOut => {
            format!("no complete TLS handshake in time (timeouts.handshake): {perhaps}")
        }
        other => other.to_string(),
    }
}

/// The servers as a log line names them.
pub(super) fn in_words(servers: &[Endpoint]) -> String {
    let all: Vec<_> = servers.iter().map(Endpoint::to_string).collect();
    all.join(", then ")
}

/// A dial that is under way. However it ends, the loop hears of it.
pub(super) struct Dial {
    mailbox: Inbox<Event>,
    token: Token,
    result: Option<Result<Established, Failure>>,
}

impl Dial {
    pub(super) fn new(mailbox: Inbox<Event>, token: Token) -> Self {
        Self {
            mailbox,
            token,
            result: None,
        }
    }

    /// On a worker.
    pub(super) fn run(mut self, server: &Server) {
        self.result = Some(server.dial());
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(Failure {
                what: "there was no thread to dial with".into(),
                lasts: false,
            })
        });
        // If the loop is gone nobody waits any more.
        self.mailbox
            .send(Event::Dialled(self.token, Box::new(result)));
    }
}

/// Ends a connection that nobody has used, so that the server sees no cut.
pub(super) fn bow_out(established: Established) {
    let socket = established.socket().clone();
    let mut duplex = tls::duplex(established, socket, &Ledger::default());
    duplex.sink.set_wait(Wait::Never);
    // Where that fails it is gone already, or will be seen as a cut after all.
    let _ = duplex.sink.finish();
}
