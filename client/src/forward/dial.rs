//! A connection to the server: its addresses in order, TLS, its certificate checked.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use minitcptunnel_common::addresses::Addresses;
use minitcptunnel_common::channel::tls::{Established, Handshake, HandshakeError};
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial::{self, set_keepalive};
use minitcptunnel_common::duplex::Socket;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{self, ClientTls, Current, ServerName, ServerNameError, Side};
use minitcptunnel_common::pool::Pool;

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
            addresses: Mutex::new(Addresses::new(addresses?)),
        })
    }

    /// Nothing that blocks or panics runs under this lock.
    fn addresses(&self) -> MutexGuard<'_, Addresses<Arc<Address>>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks, at most for `timeouts.connect` and, at each address that answers, `timeouts.handshake`.
    pub(super) fn dial(&self) -> Result<Established, Failure> {
        let order = self.addresses().in_order(Instant::now());
        let deadline = Instant::now() + self.timeouts.connect;
        let mut tried = Vec::new();
        let mut lasts = true;
        for (n, number) in order.iter().enumerate() {
            let address = self.addresses().of(*number).clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / u32::try_from(order.len() - n).unwrap_or(u32::MAX);
            let failure =
                match dial::connect(address.server.host.as_str(), address.server.port, part) {
                    Ok(stream) => match self.shake_hands(stream, &address.name) {
                        Ok(established) => {
                            self.addresses().worked(*number);
                            return Ok(established);
                        }
                        Err(failure) => failure,
                    },
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

    fn shake_hands(
        &self,
        stream: std::net::TcpStream,
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
            what: e.to_string(),
            lasts: false,
        },
    }
}

/// The servers as a log line names them.
pub(super) fn in_words(servers: &[Endpoint]) -> String {
    let all: Vec<_> = servers.iter().map(Endpoint::to_string).collect();
    all.join(", then ")
}
