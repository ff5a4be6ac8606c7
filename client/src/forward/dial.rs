//! A connection to the server: its addresses in order, TLS, its certificate checked.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minitcptunnel_common::addresses::Dialled;
use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::tls;
use minitcptunnel_common::channel::tls::{Established, Handshake, HandshakeError};
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial::{self, set_keepalive};
use minitcptunnel_common::duplex::{self, Duplex, Socket, Wait};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::pki::{
    self, ClientTls, Current, Problem, ServerName, ServerNameError, Side,
};
use minitcptunnel_common::pool::{Pool, owner_of};
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
    addresses: Dialled<Arc<Address>>,
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
        Ok(Self {
            name: forward.name.clone(),
            timeouts: forward.timeouts.clone(),
            pool,
            metrics,
            tls,
            owner: owner_of(("forward", number)),
            servers: Endpoint::list(&forward.servers),
            addresses: Dialled::new(addresses?),
        })
    }

    /// Blocks, at most for `timeouts.connect`, shared by all addresses, and at each that answers for
    /// `timeouts.handshake` besides.
    pub(super) fn dial(&self) -> Result<Established, Problem> {
        let tried = self
            .addresses
            .try_each(self.timeouts.connect, |address, part| {
                self.dial_one(address, part)
                    .map_err(|(problem, free)| ((address.server.clone(), problem), free))
            });
        tried.map_err(|tried| {
            let texts: Vec<_> = (tried.iter())
                .map(|(server, problem)| format!("{server}: {}", problem.text))
                .collect();
            Problem {
                text: texts.join("; "),
                lasts: tried.iter().all(|(_, problem)| problem.lasts),
                // Many may have failed in as many ways; what was tried last is what the text ends with.
                code: tried
                    .last()
                    .map_or(Code::SERVER_UNREACHABLE, |(_, it)| it.code),
            }
        })
    }

    /// One of them. The others are not to pay for one that answers and then says nothing.
    fn dial_one(
        &self,
        address: &Address,
        part: Duration,
    ) -> Result<Established, (Problem, Duration)> {
        let (host, port) = (address.server.host.as_str(), address.server.port);
        let stream = dial::connect(host, port, part).map_err(|e| {
            let problem = Problem {
                text: e.to_string(),
                lasts: false,
                code: e.code(),
            };
            (problem, Duration::ZERO)
        })?;
        let reached = Instant::now();
        self.shake_hands(stream, &address.name)
            .map_err(|problem| (problem, reached.elapsed()))
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
            local.limit_writes(limit);
            server.limit_writes(limit);
        }
        Ok(duplex::tcp_over(local))
    }

    fn shake_hands(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
    ) -> Result<Established, Problem> {
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
pub(super) fn in_words_of(e: &HandshakeError) -> Problem {
    e.explain(Side::Client).unwrap_or_else(|| Problem {
        text: passing(e),
        lasts: false,
        code: Code::TLS_CUT,
    })
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

/// A dial that is under way. However it ends, the loop hears of it.
pub(super) struct Dial {
    mailbox: Inbox<Event>,
    token: Token,
    result: Option<Result<Established, Problem>>,
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
            Err(Problem {
                text: "there was no thread to dial with".into(),
                lasts: false,
                code: Code::NO_RESOURCES,
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
