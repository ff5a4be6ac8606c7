//! Sockets of visitors and strangers.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{PATIENCE, eventually};

/// Connects, with deadlines on everything that follows.
pub fn connect(to: impl ToSocketAddrs) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    stream
}

/// As [`connect`], from another loopback address; the result of connecting is the caller's.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((IpAddr::V4(from), 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks an echo service once.
pub fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    let mut back = [0; 4];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"ping");
    Ok(())
}

/// Closes with a reset instead of an end.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("linger");
    drop(stream);
}

/// How a connection ended for the one who reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The other side said that it is done.
    Clean,
    /// It was cut.
    Reset,
    /// Nothing happened within the read timeout.
    StillOpen,
}

/// Reads to the end; what came and how it ended.
pub fn read_end(stream: &mut impl Read) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, End::Clean),
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_reset(&e) => return (all, End::Reset),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return (all, End::StillOpen),
            Err(e) => panic!("unexpected error after {} bytes: {e}", all.len()),
        }
    }
}

/// Whether an error means that the other side cut the connection.
pub fn is_reset(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

/// A port that nobody has and that this process gives out once. From below the range the system itself
/// gives out, so that no connection takes it meanwhile.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_with(HashSet::new);
    // Two runs at once start at different places.
    let start = std::process::id() % 9_000;
    (0..9_000)
        .map(|step| (20_000 + (start + step * 7) % 9_000) as u16)
        .find(|port| {
            // Asked by connecting, not by binding: a program being started by another thread would hold a
            // copy of the listener for a moment.
            !given.contains(port) && TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err() && {
                given.insert(*port);
                true
            }
        })
        .expect("a free port between 20000 and 29000")
}

/// Waits until somebody serves this port of 127.0.0.1, by connecting to it.
pub fn wait_for_port(port: u16) {
    eventually(PATIENCE, &format!("a service on port {port}"), || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
    });
}

/// The same without a connection, for whoever serves only one.
pub fn wait_for_listener(port: u16) {
    // proc(5): local address, remote address, state; 0A is LISTEN.
    let local = format!(":{port:04X} 00000000:0000 0A");
    eventually(PATIENCE, &format!("a listener on port {port}"), || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
        table.contains(&local).then_some(())
    });
}
