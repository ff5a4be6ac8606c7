//! Asking the server of a forward as a connection would, for `doctor`.
//!
//! ```text
//!  connect ─ TLS, as a connection does it ─ listen a moment ─ end in order
//!                                             └─ closed at once: our certificate is refused, or the target is down
//! ```

use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::tls::{Handshake, HandshakeError};
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::dial::{self, DialError};
use minitcptunnel_common::duplex::Socket;
use minitcptunnel_common::pki::{self, ClientTls, Problem, Validity};

use super::dial::{bow_out, in_words_of};
use crate::config::forward::Forward;

/// How long a server whose target is down may take to find out and to close. Performance of whoever waits.
const LISTEN: Duration = Duration::from_millis(700);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A server that took us.
#[derive(Debug)]
pub struct Reached {
    /// For the name and the connection.
    pub connect: Duration,
    /// For TLS.
    pub handshake: Duration,
    /// When the server's certificate ends.
    pub certificate: Option<Validity>,
    /// What it did then: nothing, or an end.
    pub then: Result<(), Problem>,
}

/// Why none did.
#[derive(Debug)]
pub enum Missed {
    /// Nobody takes connections.
    Unreachable(DialError),
    /// TLS failed.
    Tls(Problem),
}

/// Asks one server of a forward.
///
/// # Errors
/// The step that failed.
pub fn probe(
    forward: &Forward,
    server: &Endpoint,
    tls: &ClientTls,
    within: Duration,
) -> Result<Reached, Missed> {
    let lasting = |text: String| {
        Missed::Tls(Problem {
            text,
            lasts: true,
            code: Code::SERVER_HOSTNAME,
        })
    };
    let name =
        pki::server_name(forward.name_of(server).as_str()).map_err(|e| lasting(e.to_string()))?;
    let start = Instant::now();
    let stream =
        dial::connect(server.host.as_str(), server.port, within).map_err(Missed::Unreachable)?;
    let connected = Instant::now();
    let mut established = Socket::new(stream)
        .map_err(HandshakeError::from)
        .and_then(|socket| Handshake::client(tls.config.clone(), name, socket))
        .and_then(|handshake| handshake.run(connected + within))
        .map_err(|e| Missed::Tls(in_words_of(&e)))?;
    let handshake = connected.elapsed();
    let leaf = established.peer_certificates().first();
    let certificate = leaf.and_then(|it| Validity::of(format!("the certificate of {server}"), it));
    let until = Instant::now() + LISTEN.min(within);
    let mut then = Ok(());
    while then.is_ok() && Instant::now() < until {
        then = established
            .look()
            .map(drop)
            .map_err(|e| in_words_of_end(&e));
        thread::sleep(LOOK);
    }
    if then.is_ok() {
        bow_out(established);
    }
    Ok(Reached {
        connect: connected - start,
        handshake,
        certificate,
        then,
    })
}

/// A refusal of our certificate lasts; any other end means that the target is not there.
fn in_words_of_end(e: &HandshakeError) -> Problem {
    if e.is_about_our_certificate() {
        return in_words_of(e);
    }
    Problem {
        text: "it took the connection and closed it at once".into(),
        lasts: false,
        code: Code::TARGET_SERVICE,
    }
}
