//! Listeners, and what it means when there is none.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the system may keep for us before we accept them.
const BACKLOG: i32 = 1024;

/// Opens a listener. `::` takes IPv6 and IPv4 alike, or IPv4 alone where there is no IPv6.
pub(crate) fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let any_v6 = address == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match listen_on(address, port) {
        Err(e) if any_v6 && no_ipv6(&e) => listen_on(Ipv4Addr::UNSPECIFIED.into(), port),
        other => other,
    }
}

/// Whether this error says that the system has no IPv6, and not that the port is taken or forbidden.
fn no_ipv6(e: &io::Error) -> bool {
    !matches!(
        e.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

fn listen_on(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(address, port)),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // On Unix a port whose last connections still linger may be reopened at once, as after a
    // restart; on Windows the same option would let two programs share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Says why a listener could not be opened and what to do; `option` names where its port is chosen.
pub(crate) fn explain(
    f: &mut fmt::Formatter<'_>,
    address: SocketAddr,
    e: &io::Error,
    option: &str,
) -> fmt::Result {
    write!(f, "cannot listen on {address}: ")?;
    match e.kind() {
        io::ErrorKind::AddrInUse => write!(
            f,
            "the port is in use. Perhaps the server runs already; stop it, or choose another port with {option}"
        ),
        io::ErrorKind::PermissionDenied => write!(
            f,
            "not permitted. Ports below 1024 need privileges; choose a higher one with {option}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            f.write_str("this is not an address of this machine. Use :: for all addresses")
        }
        _ => write!(f, "{e}"),
    }
}
