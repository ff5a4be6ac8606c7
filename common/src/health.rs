//! Whether a program does its work, asked from outside: for the commands `health`, and what calls them in containers.
//!
//! ```text
//!  answers_tls   connect ─ ClientHello ─> the first record of the answer: loop, poller and handshakes work
//!  accepts       connect: somebody takes connections
//!  is_taken      the port is in use: somebody listens, and is not disturbed
//! ```
//!
//! None of them leaves a trace behind the program that is asked: a handshake that stops after the first answer reaches
//! no target service, and needs no certificate. The program counts it as somebody who left during the handshake.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{error, fmt};

use rustls::{ClientConfig, ClientConnection, ContentType, RootCertStore};

use crate::codes::{Code, Coded};
use crate::dial::{self, DialError};
use crate::pki::{self, ServerName};

/// What a record of TLS begins with: its type, two bytes of version, two of length.
const RECORD_HEAD: usize = 5;

/// How long each part may take, unless the command line says.
pub const WITHIN: Duration = Duration::from_secs(5);

/// What is said of a listener that only its log can tell.
pub const PORT_UNKNOWN: &str =
    "port 0 is another port at every start, which its log alone tells; configure a fixed one";

/// What was asked, part by part.
#[derive(Default, Debug)]
pub struct Findings {
    well: Vec<String>,
    sick: Vec<String>,
}

impl Findings {
    /// Of one part: a sentence if it is well, or what is wrong.
    pub fn add(&mut self, found: Result<String, String>) {
        match found {
            Ok(said) => self.well.push(said),
            Err(e) => self.sick.push(e),
        }
    }

    /// What is well, in lines.
    ///
    /// # Errors
    /// If anything is not.
    pub fn verdict(self) -> Result<String, Sick> {
        if self.sick.is_empty() {
            Ok(self.well.join("\n"))
        } else {
            Err(Sick(self.sick))
        }
    }
}

/// The parts that are not well.
#[derive(Debug)]
pub struct Sick(Vec<String>);

impl Coded for Sick {
    fn code(&self) -> Code {
        Code::NOT_WELL
    }
}

impl fmt::Display for Sick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl error::Error for Sick {}

/// Why somebody is not well.
#[derive(Debug)]
pub enum Unhealthy {
    /// Nobody takes connections there.
    Unreachable(DialError),
    /// The connection was closed instead of an answer.
    Closed,
    /// No answer in time.
    Silent(Duration),
    /// The answer is not one of TLS.
    NotTls,
    /// The port is free: nobody listens.
    Free(SocketAddr),
    /// The system does not tell.
    System(io::Error),
}

impl fmt::Display for Unhealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(e) => e.fmt(f),
            Self::Closed => {
                f.write_str("it closes the connection without an answer; its log may say why")
            }
            Self::Silent(within) => write!(
                f,
                "it takes the connection, but does not answer within {} s",
                within.as_secs_f64()
            ),
            Self::NotTls => f.write_str("what answers does not speak TLS; is it the right port?"),
            Self::Free(address) => write!(f, "nobody listens on {address}"),
            Self::System(e) => e.fmt(f),
        }
    }
}

impl error::Error for Unhealthy {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::System(e) => e.source(),
            _ => None,
        }
    }
}

impl From<io::Error> for Unhealthy {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::System(e),
        }
    }
}

/// Whether a TLS server answers there. Which certificate it has is not looked at: nothing is said to it.
///
/// # Errors
/// What is wrong with it.
pub fn answers_tls(
    host: &str,
    port: u16,
    name: ServerName<'static>,
    within: Duration,
) -> Result<(), Unhealthy> {
    let start = Instant::now();
    let mut stream = dial::connect(host, port, within).map_err(Unhealthy::Unreachable)?;
    stream.write_all(&client_hello(name)?)?;
    let mut head = [0; RECORD_HEAD];
    let mut have = 0;
    while have < head.len() {
        let left = within.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(Unhealthy::Silent(within));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut head[have..]) {
            Ok(0) => return Err(Unhealthy::Closed),
            Ok(n) => have += n,
            Err(e) if is_timeout(&e) || e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    // It may also tell us with an alert that it does not like our hello: it lives, and speaks TLS.
    let known = [ContentType::Handshake, ContentType::Alert];
    if head[1] != 3 || !known.contains(&ContentType::from(head[0])) {
        return Err(Unhealthy::NotTls);
    }
    take_leave(&mut stream);
    Ok(())
}

/// Ends the conversation in order: to close with an answer unread would be a reset, which is worth a line in a log.
fn take_leave(stream: &mut std::net::TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    // A flight of the handshake, and then the end.
    let _ = io::copy(&mut stream.take(256 * 1024), &mut io::sink());
}

/// The first thing that a client says.
fn client_hello(name: ServerName<'static>) -> Result<Vec<u8>, Unhealthy> {
    let bug = |e: rustls::Error| Unhealthy::System(io::Error::other(e));
    // Nobody is believed: the handshake never comes as far as the certificate.
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .map_err(bug)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(bug)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

fn is_timeout(e: &io::Error) -> bool {
    // Unix says the one, Windows the other.
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Whether somebody takes connections there.
///
/// # Errors
/// That nobody does.
pub fn accepts(host: &str, port: u16, within: Duration) -> Result<(), Unhealthy> {
    dial::connect(host, port, within)
        .map(drop)
        .map_err(Unhealthy::Unreachable)
}

/// Whether somebody listens on this address of this machine. It is found out by trying to listen there oneself, as a
/// connection would reach the target service.
///
/// # Errors
/// That nobody does, or that this user may not try.
pub fn is_taken(address: SocketAddr) -> Result<(), Unhealthy> {
    match TcpListener::bind(address) {
        Ok(_) => Err(Unhealthy::Free(address)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(()),
        Err(e) => Err(Unhealthy::System(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Somebody who takes one connection, reads the hello, says this, and waits for our end; what he heard.
    fn somebody(says: &'static [u8]) -> (u16, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; RECORD_HEAD];
            stream.read_exact(&mut heard).unwrap();
            let len = usize::from(u16::from_be_bytes([heard[3], heard[4]]));
            heard.resize(RECORD_HEAD + len, 0);
            stream.read_exact(&mut heard[RECORD_HEAD..]).unwrap();
            stream.write_all(says).unwrap();
            if says.is_empty() {
                return heard;
            }
            // Who is not understood is left without ceremony.
            let _ = stream.read_to_end(&mut heard);
            heard
        });
        (port, thread)
    }

    fn ask(port: u16, within: Duration) -> Result<(), Unhealthy> {
        let name = pki::server_name("tunnel.example.com").unwrap();
        answers_tls("127.0.0.1", port, name, within)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn whoever_answers_a_hello_in_tls_is_well() {
        // A ServerHello that never ends, and an alert.
        for says in [
            &b"\x16\x03\x03\x00\x7a\x02"[..],
            b"\x15\x03\x03\x00\x02\x02\x28",
        ] {
            let (port, thread) = somebody(says);
            ask(port, LONG).unwrap();
            let heard = thread.join().unwrap();
            assert_eq!(heard[0], 0x16, "a handshake record");
            assert_eq!(heard[5], 0x01, "a ClientHello");
            let name = b"tunnel.example.com";
            assert!(heard.windows(name.len()).any(|part| part == name));
        }
    }

    #[test]
    fn other_answers_and_none_are_told_apart() {
        let (port, thread) = somebody(b"SSH-2.0-x\r\n");
        assert!(matches!(ask(port, LONG), Err(Unhealthy::NotTls)));
        thread.join().unwrap();
        let (port, thread) = somebody(b"");
        assert!(matches!(ask(port, LONG), Err(Unhealthy::Closed)));
        thread.join().unwrap();
        // Less than the head of a record.
        let (port, thread) = somebody(b"\x16\x03");
        let e = ask(port, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(e, Unhealthy::Silent(_)), "{e}");
        thread.join().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        accepts("127.0.0.1", address.port(), LONG).unwrap();
        is_taken(address).unwrap();
        drop(free);
        let e = ask(address.port(), LONG).unwrap_err();
        assert!(matches!(e, Unhealthy::Unreachable(_)), "{e}");
        accepts("127.0.0.1", address.port(), LONG).unwrap_err();
        let e = is_taken(address).unwrap_err();
        assert_eq!(e.to_string(), format!("nobody listens on {address}"));
    }
}
