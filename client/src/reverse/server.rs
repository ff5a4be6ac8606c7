//! Dialling the server: connect, hello, keys. Both kinds of channels begin like this.
//!
//! ```text
//!  |-- timeouts.connect ---------|-- timeouts.handshake --|
//!   resolve, connect              C1 ──> hello, C2 C3       Channel
//! ```
//!
//! Blocking, for short-lived threads and pool workers; never called on the loop's thread.

use std::error::Error;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::dial::{self, DialError};
use minitcptunnel_common::identity::{IdentityKey, PublicKey};
use minitcptunnel_common::wire::frame::{Opener, Sealer};
use minitcptunnel_common::wire::handshake::v1::{HelloError, HelloReader, Initiator, Role, Seeds};

use crate::config::{Config, Timeouts};

/// The server, as the configuration describes it, and who we are to it.
pub(crate) struct Server {
    host: String,
    port: u16,
    pin: Option<PublicKey>,
    identity: IdentityKey,
    /// How long each stage may take.
    pub(crate) timeouts: Timeouts,
    /// How many channels to have ready.
    pub(crate) spares: SpareLimits,
}

/// How many data channels to have ready for visitors.
pub(crate) struct SpareLimits {
    /// Always; 0 for none at all.
    pub(crate) keep: u16,
    /// When many come.
    pub(crate) max: u16,
}

/// A connection after the hellos: nothing has been sent on it yet.
pub(crate) struct Channel {
    pub(crate) stream: TcpStream,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

/// Why there is no channel: the step that failed.
#[derive(Debug)]
pub(crate) enum ServerError {
    /// No connection.
    Dial(DialError),
    /// The connection broke in the middle of the hellos.
    Io(io::Error),
    /// The server closed without an answer. S2 demands this of a server that does not know us.
    Silent {
        /// This client's key, as the server's list should have it.
        own: PublicKey,
    },
    /// The hello did not come, or not whole, within this time.
    TimedOut {
        /// How long we waited.
        after: Duration,
        /// How much of it came, in bytes.
        have: usize,
    },
    /// Another identity than the pinned one.
    Pin {
        /// The pin.
        expected: PublicKey,
        /// What the server showed, as hex.
        found: String,
    },
    /// The hello is wrong.
    Hello(HelloError),
    /// The system gave no random bytes or no thread.
    System(io::Error),
}

impl Coded for ServerError {
    fn code(&self) -> Code {
        match self {
            Self::Dial(e) => e.code(),
            Self::Io(_) => Code::CONNECTION_BROKE,
            Self::Silent { .. } => Code::TURNED_AWAY,
            Self::TimedOut { .. } => Code::HELLO_TIMEOUT,
            Self::Pin { .. } => Code::PIN_MISMATCH,
            Self::Hello(HelloError::Signature) => Code::BAD_SIGNATURE,
            Self::Hello(_) => Code::NOT_A_SERVER,
            Self::System(_) => Code::NO_RESOURCES,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(e) => e.fmt(f),
            Self::Io(e) => write!(f, "the connection broke during the handshake: {e}"),
            Self::Silent { own } => write!(
                f,
                "the server closed the connection without an answer; most likely this client's public key is not in \
                 its allowed_clients.txt: add the line {own} there"
            ),
            Self::TimedOut { after, have: 0 } => write!(
                f,
                "no answer to the handshake within {} s; is it a MiniTCPTunnel server?",
                after.as_secs_f64()
            ),
            Self::TimedOut { after, have } => write!(
                f,
                "the handshake was not over within {} s ({have} bytes came)",
                after.as_secs_f64()
            ),
            Self::Pin { expected, found } => write!(
                f,
                "Server public key does NOT match expected key! Either the server has a new key, or somebody in \
                 between plays the server. Nothing was sent. Compare with the key that the server prints at its \
                 start, and change server_pub_key only if they are equal. expected={expected} found={found}"
            ),
            Self::Hello(HelloError::Signature) => f.write_str(
                "Bad signature from server: the answer was damaged on its way, or somebody in between plays the server",
            ),
            Self::Hello(e) => write!(f, "the server's hello is wrong: {e}"),
            Self::System(e) => write!(f, "the system refused what a connection needs: {e}"),
        }
    }
}

impl Error for ServerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The texts above say it all; a chain would say it twice.
        None
    }
}

impl Server {
    /// The server of the configuration; `None` if there is none, or no identity yet.
    pub(crate) fn new(config: &Config) -> Option<Self> {
        let reverse = config.reverse.as_ref()?;
        Some(Self {
            host: reverse.server_host.as_str().to_owned(),
            port: reverse.server_port,
            pin: reverse.server_pub_key,
            identity: reverse.identity.clone()?,
            timeouts: config.timeouts.clone(),
            spares: SpareLimits {
                keep: config.limits.spare_channels,
                max: config.limits.max_spare_channels,
            },
        })
    }

    /// `host:port`, for people.
    pub(crate) fn name(&self) -> String {
        dial::host_port(&self.host, self.port)
    }

    /// Resolves, connects and shakes hands.
    pub(crate) fn dial(&self) -> Result<Channel, ServerError> {
        let stream = dial::connect(&self.host, self.port, self.timeouts.connect)
            .map_err(ServerError::Dial)?;
        self.shake(stream)
    }

    /// Connects to exactly this address and shakes hands. A data channel must reach the very server
    /// that its session is with, and a name may lead to several.
    pub(crate) fn dial_address(&self, address: SocketAddr) -> Result<Channel, ServerError> {
        let stream =
            TcpStream::connect_timeout(&address, self.timeouts.connect).map_err(ServerError::Io)?;
        stream.set_nodelay(true).map_err(ServerError::Io)?;
        self.shake(stream)
    }

    /// Steps C1 to C3 on a fresh connection. Until something is sent on it the server knows who we are and nothing
    /// else: no session begins, and none ends.
    pub(crate) fn shake(&self, mut stream: TcpStream) -> Result<Channel, ServerError> {
        let after = self.timeouts.handshake;
        let deadline = Instant::now() + after;
        // The near end of a dead network: the handshake has its deadline, what comes later may not.
        let _ = dial::set_keepalive(&stream);
        let mut seeds = Seeds {
            ephemeral: [0; 32],
            nonce: [0; 12],
        };
        for bytes in [&mut seeds.ephemeral[..], &mut seeds.nonce[..]] {
            orion::util::secure_rand_bytes(bytes)
                .map_err(|_| ServerError::System(io::Error::other("no random bytes")))?;
        }
        let (initiator, hello) = Initiator::new(self.identity.signing_key(), &seeds);
        stream
            .set_write_timeout(Some(after))
            .map_err(ServerError::Io)?;
        // A hello fits every send buffer, so this does not wait.
        stream.write_all(&hello).map_err(|e| self.broken(e, 0))?;

        let mut reader = HelloReader::new(Role::Server);
        let answer = loop {
            let timed_out = ServerError::TimedOut {
                after,
                have: reader.have(),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timed_out);
            }
            stream
                .set_read_timeout(Some(left))
                .map_err(ServerError::Io)?;
            match stream.read(reader.room()) {
                Ok(0) => {
                    return Err(self.broken(io::ErrorKind::UnexpectedEof.into(), reader.have()));
                }
                Ok(n) => {
                    if let Some(hello) = reader.advance(n).map_err(ServerError::Hello)? {
                        break hello;
                    }
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(timed_out),
                    _ => return Err(self.broken(e, reader.have())),
                },
            }
        };
        let pin = self.pin.as_ref().map(PublicKey::as_bytes);
        let keys = initiator
            .finish(&answer, pin)
            .map_err(|e| match (e, self.pin) {
                (HelloError::Identity(found), Some(expected)) => ServerError::Pin {
                    expected,
                    found: hex(&found),
                },
                (e, _) => ServerError::Hello(e),
            })?;
        stream.set_read_timeout(None).map_err(ServerError::Io)?;
        Ok(Channel {
            stream,
            sealer: Sealer::new(&keys.c2s),
            opener: Opener::new(&keys.s2c),
        })
    }

    /// A close before the first byte of an answer is the server's way to turn a stranger away.
    fn broken(&self, e: io::Error, have: usize) -> ServerError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match e.kind() {
            UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe if have == 0 => {
                ServerError::Silent {
                    own: self.identity.public(),
                }
            }
            UnexpectedEof => ServerError::Io(io::Error::new(
                UnexpectedEof,
                "the server closed it in the middle of its hello",
            )),
            _ => ServerError::Io(e),
        }
    }
}

/// A key that need not be a valid one.
fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
