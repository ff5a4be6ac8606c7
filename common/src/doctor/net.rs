//! Names, addresses and ports.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::Finding;
use super::system::{milliseconds, short};
use crate::codes::Code;
use crate::dial::{self, DialError};

/// A name service that takes longer makes every reconnect feel slow.
const SLOW: Duration = Duration::from_secs(1);

/// The addresses behind a host, and what there is to say about the way to them.
pub fn resolve(host: &str, port: u16, within: Duration) -> (Vec<SocketAddr>, Finding) {
    const CHECK: &str = "dns";
    let start = Instant::now();
    match dial::resolve_until(host, port, start + within) {
        Ok(mut found) => {
            let took = start.elapsed();
            found.dedup();
            found.truncate(dial::MAX_ADDRESSES);
            if host.parse::<IpAddr>().is_ok() {
                let what = format!("{host} is an address: no name service is needed");
                return (found, Finding::ok(CHECK, what));
            }
            let v6 = found.iter().filter(|address| address.is_ipv6()).count();
            let what = format!(
                "{host} has {} of IPv4 and {v6} of IPv6, found in {}",
                found.len() - v6,
                short(took)
            );
            let finding = if took > SLOW {
                Finding::warning(CHECK, Code::NAME_SLOW, what)
            } else {
                Finding::ok(CHECK, what)
            };
            (found, finding.figure("milliseconds", milliseconds(took)))
        }
        Err(e) => {
            let why = match &e {
                DialError::Resolve { source, .. } => source.to_string(),
                _ => format!("no answer within {}", short(within)),
            };
            let what = format!("{host:?} leads nowhere: {why}");
            (Vec::new(), Finding::error(CHECK, Code::NAME_UNKNOWN, what))
        }
    }
}

/// Whether this says that the machine has no way to addresses of this kind, rather than that nobody is there.
#[must_use]
pub fn no_route(e: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, NetworkUnreachable, Unsupported};
    matches!(e.kind(), AddrNotAvailable | NetworkUnreachable | Unsupported)
        // EAFNOSUPPORT of Linux and Windows: no IPv6 in the system at all.
        || matches!(e.raw_os_error(), Some(97 | 10047))
}

/// Who holds a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Nobody.
    Free,
    /// A program of this name, as far as the system tells.
    Program(String),
    /// Somebody of whom this user may not know.
    Unknown,
}

/// Whether one could listen there, and who does. Nothing is listened on, so that nobody connects by accident.
///
/// # Errors
/// What the system says against it, but that it is taken.
pub fn holder(address: SocketAddr) -> io::Result<Holder> {
    let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port());
    let bound = match bind(address) {
        // Where there is no IPv6 the server listens on IPv4 alone.
        Err(e) if address.ip() == Ipv6Addr::UNSPECIFIED && no_route(&e) => bind(any),
        other => other,
    };
    match bound {
        Ok(()) => Ok(Holder::Free),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            Ok(listener_on(address.port()).map_or(Holder::Unknown, Holder::Program))
        }
        Err(e) => Err(e),
    }
}

fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    // As the programs do it: what still lingers from before is no obstacle.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// The program that listens on a port: Linux tells root of all, and everybody of his own.
fn listener_on(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| inodes_of(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let folder = process.path();
        let mut open = std::fs::read_dir(folder.join("fd")).ok()?.flatten();
        let holds = open.any(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|to| inodes.iter().any(|inode| to == Path::new(inode)))
        });
        holds.then(|| name_of(&folder)).flatten()
    })
}

/// proc(5): number, local address:port, remote address:port, state (0A: LISTEN), ... the tenth is the inode.
fn inodes_of(table: &str, port: u16) -> Vec<String> {
    let end = format!(":{port:04X}");
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, "0A", ..] = fields[..] else {
                return None;
            };
            local
                .ends_with(&end)
                .then(|| fields.get(9).map(|&inode| inode.to_owned()))?
        })
        .collect()
}

fn name_of(process: &Path) -> Option<String> {
    // A program that was replaced while it runs is still what it is called.
    let exe = std::fs::read_link(process.join("exe")).ok()?;
    let name = exe.file_name()?.to_string_lossy().into_owned();
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// A port to listen on: free, held by our own program that runs, or lost to somebody else.
pub fn listener(what: &str, address: SocketAddr, own: &str) -> (Finding, bool) {
    const CHECK: &str = "port";
    let lost =
        |code: Code, why: String| Finding::error(CHECK, code, format!("{what} {address}: {why}"));
    match holder(address) {
        _ if address.port() == 0 => {
            let said = format!("{what} is another port at every start, which the log tells");
            (Finding::note(CHECK, None, said), false)
        }
        Ok(Holder::Free) => {
            let said = format!("{what} {address} is free: no {own} runs with it");
            (Finding::ok(CHECK, said), false)
        }
        Ok(Holder::Program(name)) if is_named(&name, own) => {
            let said = format!("{what} {address} is held by {name}, which runs");
            (Finding::ok(CHECK, said), true)
        }
        Ok(Holder::Program(name)) => (
            lost(Code::PORT_IN_USE, format!("it is taken by {name}")),
            false,
        ),
        Ok(Holder::Unknown) => {
            let said = format!(
                "{what} {address} is taken, by whom this user may not know: fine if {own} runs"
            );
            (Finding::note(CHECK, Code::PORT_IN_USE, said), true)
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let cure = "take a port from 1024 on, or give the program the right to lower ones (in a unit: \
                        AmbientCapabilities=CAP_NET_BIND_SERVICE)";
            (
                lost(
                    Code::PORT_FORBIDDEN,
                    "this user may not listen there".into(),
                )
                .cure(cure),
                false,
            )
        }
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            let cure = "use an address of this machine, or :: for all of them";
            (
                lost(
                    Code::ADDRESS_ELSEWHERE,
                    "this is no address of this machine".into(),
                )
                .cure(cure),
                false,
            )
        }
        Err(e) => (lost(Code::CANNOT_LISTEN, e.to_string()), false),
    }
}

fn is_named(name: &str, own: &str) -> bool {
    name.strip_suffix(".exe").unwrap_or(name) == own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    #[cfg(target_os = "linux")]
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn names_are_resolved_or_told() {
        let within = Duration::from_secs(20);
        let (found, said) = resolve("192.0.2.1", 9, within);
        assert_eq!((found.len(), said.level), (1, Level::Ok));
        // RFC 6761: no such name exists anywhere.
        let (found, said) = resolve("tunnel.invalid", 9, within);
        assert!(found.is_empty());
        assert_eq!(said.code, Some(Code::NAME_UNKNOWN), "{said:?}");
        assert_eq!(said.level, Level::Error);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_holds_a_port_is_told() {
        let listener_here = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener_here.local_addr().unwrap();
        let own = std::env::current_exe().unwrap();
        let own = own.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(holder(address).unwrap(), Holder::Program(own.clone()));
        let (said, runs) = listener("the control port", address, &own);
        assert!(runs && said.level == Level::Ok, "{said:?}");
        let (said, runs) = listener("the control port", address, "another");
        assert!(!runs && said.what.contains(&own), "{said:?}");
        assert_eq!(
            said.code.and_then(Code::exit_code),
            Some(crate::exit::ExitCode::Bind)
        );
        drop(listener_here);
        assert_eq!(holder(address).unwrap(), Holder::Free);
        let (said, runs) = listener("the control port", address, "another");
        assert!(!runs && said.level == Level::Ok, "{said:?}");
        let elsewhere = "192.0.2.1:9".parse().unwrap();
        let (said, _) = listener("the control port", elsewhere, "another");
        assert_eq!(said.level, Level::Error, "{said:?}");
    }

    #[test]
    fn a_table_of_sockets_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n\
                     1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n\
                     2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4244 1\n\
                     3: broken\n";
        assert_eq!(inodes_of(table, 8080), ["4242"]);
        assert!(inodes_of(table, 80).is_empty());
    }
}
