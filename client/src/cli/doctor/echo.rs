//! `--echo`: bytes through everything that a visitor's bytes go through.
//!
//! ```text
//!  visitor (here) ──> public port [ server ] <──> [ a client, in this process ] ──> echo (here)
//! ```
//!
//! The client is the library that the program runs, with the configured identity and one tunnel of its own. A client
//! that runs elsewhere with that identity is taken over, and comes back by itself after half a minute; this one does not fight it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::dial;
use minitcptunnel_common::doctor::Finding;
use minitcptunnel_common::doctor::system::{milliseconds, short};

use crate::config::{Config, Tunnel};
use crate::reverse::tunnels::TunnelState;
use crate::state::{Connection, End, Snapshot};
use crate::{Client, Handle};

const CHECK: &str = "echo";
const TUNNEL: &str = "doctor-echo";
/// Round trips that are timed. Performance: a second of them on a slow link.
const ROUND_TRIPS: usize = 20;
/// What is sent for the throughput, at most.
const BYTES: usize = 32 * 1024 * 1024;
/// For so long, at most.
const SENDING: Duration = Duration::from_secs(2);
/// One that is lost must not come back and take the session from the client that has it now.
const NEVER: Duration = Duration::from_secs(3600);

/// What was measured.
struct Figures {
    connect: Duration,
    /// Sorted.
    round_trips: Vec<Duration>,
    bytes: usize,
    took: Duration,
}

pub(super) fn echo(config: &Config, port: u16, within: Duration) -> Finding {
    let no_session = |said: String| Finding::error(CHECK, Code::ECHO_NO_SESSION, said);
    let Some(reverse) = &config.reverse else {
        return no_session("there is no reverse tunnel in the configuration".into());
    };
    let local = match serve() {
        Ok(port) => port,
        Err(e) => return no_session(format!("this machine gives no listener for it: {e}")),
    };
    let host = match "127.0.0.1".parse() {
        Ok(host) => host,
        Err(e) => return no_session(format!("127.0.0.1: {e}")),
    };
    let mut asking = config.clone();
    let mut own = reverse.clone();
    own.tunnels = vec![Tunnel {
        id: TUNNEL.into(),
        remote_port: port,
        local_host: host,
        local_port: local,
        auto_start: true,
        compression: reverse.compression,
    }];
    asking.reverse = Some(own);
    asking.forwards = Vec::new();
    asking.timeouts.backoff_min = NEVER;
    asking.timeouts.backoff_max = NEVER;
    let client = match Client::start(&asking) {
        Ok(client) => client,
        Err(e) => return no_session(e.to_string()),
    };
    let found = match opened(&client, within) {
        Ok(port) => through(reverse.server_host.as_str(), port, within),
        Err(why) => no_session(why),
    };
    client.stop(Duration::ZERO);
    found
}

/// The public port, once the server listens on it.
fn opened(client: &Handle, within: Duration) -> Result<u16, String> {
    let state = |snapshot: &Snapshot| snapshot.tunnel(TUNNEL).map(|it| it.state.clone());
    let decided = |snapshot: &Snapshot| {
        matches!(
            state(snapshot),
            Some(TunnelState::Open { .. } | TunnelState::Refused { .. })
        ) || matches!(
            snapshot.connection,
            Connection::Stopped(_) | Connection::Waiting { .. }
        )
    };
    let Some(snapshot) = client.wait_for(within, decided) else {
        return Err(format!("no tunnel within {}", short(within)));
    };
    match (state(&snapshot), snapshot.connection) {
        (Some(TunnelState::Open { port }), _) => Ok(port),
        (Some(TunnelState::Refused { reason, .. }), _) => Err(reason),
        (_, Connection::Stopped(End::Refused(why) | End::Failed(why))) => Err(why),
        (_, Connection::Waiting { reason, .. }) => Err(reason),
        (_, connection) => Err(connection.to_string()),
    }
}

fn through(host: &str, port: u16, within: Duration) -> Finding {
    let at = dial::host_port(host, port);
    match measure(host, port, within) {
        Ok(figures) => said(&at, &figures),
        Err(e) => Finding::error(CHECK, Code::ECHO_PORT_HIDDEN, format!("{at}: {e}")),
    }
}

fn said(at: &str, figures: &Figures) -> Finding {
    let median = figures.round_trips[figures.round_trips.len() / 2];
    let slowest = figures.round_trips[figures.round_trips.len() - 1];
    let mib = figures.bytes as f64 / f64::from(1024 * 1024);
    let speed = mib / figures.took.as_secs_f64().max(f64::EPSILON);
    let text = format!(
        "through {at} and back: connected in {}, {} round trips of {} (median; slowest {}), {mib:.1} MiB there and \
         back in {}: {speed:.1} MiB/s each way",
        short(figures.connect),
        figures.round_trips.len(),
        short(median),
        short(slowest),
        short(figures.took)
    );
    Finding::ok(CHECK, text)
        .figure("connect_milliseconds", milliseconds(figures.connect))
        .figure("median_milliseconds", milliseconds(median))
        .figure("slowest_milliseconds", milliseconds(slowest))
        .figure("mebibytes", mib)
        .figure("mebibytes_per_second", speed)
}

fn measure(host: &str, port: u16, within: Duration) -> io::Result<Figures> {
    let start = Instant::now();
    let mut stream = dial::connect(host, port, within)?;
    let connect = start.elapsed();
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let mut round_trips = Vec::with_capacity(ROUND_TRIPS);
    // The first brings the way up (a data channel, the local connection), which is not what later ones pay.
    for n in 0..=ROUND_TRIPS {
        let sent = noise.next().to_le_bytes();
        let start = Instant::now();
        stream.write_all(&sent)?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        if back != sent {
            return Err(changed());
        }
        if n > 0 {
            round_trips.push(start.elapsed());
        }
    }
    round_trips.sort_unstable();
    let start = Instant::now();
    let bytes = flood(&stream, noise)?;
    Ok(Figures {
        connect,
        round_trips,
        bytes,
        took: start.elapsed(),
    })
}

fn changed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "other bytes came back than were sent: what answers there is not this tunnel",
    )
}

/// Sends for a while and ends; everything must come back. How much that was.
fn flood(stream: &TcpStream, noise: Noise) -> io::Result<usize> {
    let mut reader = stream;
    thread::scope(|scope| {
        let sender = scope.spawn(move || send(stream, noise));
        let mut expected = Chunks(noise);
        let mut back = vec![0; Chunks::LEN];
        let mut bytes = 0;
        let result = loop {
            match fill(&mut reader, &mut back) {
                Ok(0) => break Ok(()),
                Ok(n) if back[..n] == expected.next()[..n] => bytes += n,
                Ok(_) => break Err(changed()),
                Err(e) => break Err(e),
            }
        };
        if result.is_err() {
            // The sender may wait for us to read.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let sent = sender
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender failed")));
        result?;
        match sent? {
            sent if sent == bytes => Ok(bytes),
            sent => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{bytes} of {sent} bytes came back"),
            )),
        }
    })
}

fn send(mut stream: &TcpStream, noise: Noise) -> io::Result<usize> {
    let until = Instant::now() + SENDING;
    let (mut chunks, mut sent) = (Chunks(noise), 0);
    while sent < BYTES && Instant::now() < until {
        let chunk = chunks.next();
        stream.write_all(&chunk)?;
        sent += chunk.len();
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

/// Reads until the buffer is full or the stream at its end.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// Numbers that no compression shortens (xorshift64*), so that the figures are those of the link.
#[derive(Clone, Copy)]
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// The same in pieces.
struct Chunks(Noise);

impl Chunks {
    const LEN: usize = 64 * 1024;

    fn next(&mut self) -> Vec<u8> {
        let words = (0..Self::LEN / 8).flat_map(|_| self.0.next().to_le_bytes());
        words.collect()
    }
}

/// An echo on a port of its own, for as long as the process lives.
fn serve() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::Builder::new().name("echo".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // Without a thread the visitor sees an end, and says so.
            let _ = thread::Builder::new()
                .name("echo".into())
                .spawn(move || answer(&stream));
        }
    })?;
    Ok(port)
}

fn answer(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    // Until the visitor ends, or the way breaks, which he notices himself.
    let _ = io::copy(&mut &*stream, &mut &*stream);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use minitcptunnel_common::doctor::Level;

    const WITHIN: Duration = Duration::from_secs(20);

    #[test]
    fn an_echo_is_measured() {
        let found = through("127.0.0.1", serve().expect("a port"), WITHIN);
        assert_eq!(found.level, Level::Ok, "{found:?}");
        let figure = |name| {
            let mut all = found.figures.iter();
            all.find(|(it, _)| *it == name).expect(name).1
        };
        assert!(figure("median_milliseconds") > 0.0);
        assert!(figure("median_milliseconds") <= figure("slowest_milliseconds"));
        assert!(figure("mebibytes") >= 0.0625 && figure("mebibytes_per_second") > 0.0);
    }

    /// A service that answers with something else, or less, is no echo.
    #[test]
    fn what_does_not_come_back_is_told() {
        for changes in [0, 1] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
            let port = listener.local_addr().expect("bound").port();
            let thread = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut word = [0; 8];
                for _ in 0..=ROUND_TRIPS {
                    stream.read_exact(&mut word).expect("read");
                    stream.write_all(&word).expect("write");
                }
                let mut rest = vec![0; 1024];
                stream.read_exact(&mut rest).expect("read");
                rest[7] ^= changes;
                stream.write_all(&rest).expect("write");
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = io::copy(&mut stream, &mut io::sink());
            });
            let found = through("127.0.0.1", port, WITHIN);
            assert_eq!(found.code, Some(Code::ECHO_PORT_HIDDEN), "{found:?}");
            let why = ["1024 of", "other bytes"][usize::from(changes)];
            assert!(found.what.contains(why), "{found:?}");
            thread.join().expect("served");
        }
    }
}
