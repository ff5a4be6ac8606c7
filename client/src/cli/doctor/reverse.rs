//! The way to the server, what is behind the tunnels, and their public ports.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::dial::{self, DialError};
use minitcptunnel_common::doctor::system::{milliseconds, short};
use minitcptunnel_common::doctor::{Finding, Level, Report, net};

use super::{Options, echo};
use crate::config::{Config, Reverse, Tunnel};
use crate::reverse::server::{Server, ServerError};

pub(super) fn check<W: Write>(
    report: &mut Report<W>,
    config: &Config,
    reverse: &Reverse,
    options: Options,
    within: Duration,
) {
    let (host, port) = (reverse.server_host.as_str(), reverse.server_port);
    let (addresses, found) = net::resolve(host, port, within);
    report.add(found);
    let streams = connects(report, &addresses, within);
    let mut admitted = false;
    let mut asking = config.clone();
    asking.timeouts.handshake = within;
    // Without an identity there is nothing to say: a hello of anybody else would be a stranger's in the server's log.
    if let Some(server) = Server::new(&asking) {
        for stream in streams {
            admitted |= shake(report, &server, stream);
        }
    }
    if !reverse.tunnels.iter().any(|tunnel| tunnel.auto_start) {
        let said = match reverse.tunnels.len() {
            0 => "the configuration has none".to_owned(),
            n => format!("none of the {n} has auto_start"),
        };
        report.add(Finding::warning("tunnels", Code::NO_TUNNELS, said));
    }
    for tunnel in &reverse.tunnels {
        report.add(service(tunnel, within));
    }
    for tunnel in reverse.tunnels.iter().filter(|tunnel| tunnel.auto_start) {
        report.add(public_port(host, tunnel, within));
    }
    if !options.echo {
        let said = "not asked for: whether bytes come through, and how fast, shows with --echo";
        let cure =
            "`doctor --echo`; a client that runs with this key loses its session for half a minute";
        report.add(Finding::note("echo", None, said).cure(cure));
    } else if admitted {
        report.add(echo::echo(config, options.echo_port.unwrap_or(0), within));
    } else {
        let said =
            "the server does not take this client, so there is no way to send anything through";
        report.add(Finding::error("echo", Code::ECHO_NO_SESSION, said));
    }
}

/// Connects to every address for itself: a broken IPv6 would otherwise hide behind an IPv4 that works.
pub(super) fn connects<W: Write>(
    report: &mut Report<W>,
    addresses: &[SocketAddr],
    within: Duration,
) -> Vec<TcpStream> {
    const CHECK: &str = "server";
    let tried: Vec<_> = (addresses.iter())
        .map(|&address| {
            let start = Instant::now();
            let stream = TcpStream::connect_timeout(&address, within);
            (address, stream, start.elapsed())
        })
        .collect();
    let works = tried.iter().any(|(_, stream, _)| stream.is_ok());
    let mut streams = Vec::new();
    for (address, stream, took) in tried {
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        match stream {
            Ok(stream) => {
                let said = format!("{address} ({family}) takes connections, in {}", short(took));
                let found = Finding::ok(CHECK, said);
                report.add(found.figure("milliseconds", milliseconds(took)));
                streams.push(stream);
            }
            Err(e) if works && net::no_route(&e) => {
                let said = format!("{address}: no way to {family} from this machine ({e})");
                report.add(Finding::note(CHECK, Code::NO_ROUTE, said));
            }
            Err(e) if works => {
                let said = format!("{address} ({family}): {e}");
                report.add(Finding::warning(CHECK, Code::ADDRESS_UNREACHABLE, said));
            }
            Err(e) => {
                let said = format!("{address} ({family}): {e}");
                report.add(Finding::error(CHECK, dial::code_of(&e), said));
            }
        }
    }
    streams
}

/// A server that reads its list anew does so a second after somebody has knocked in vain.
const LIST_IS_READ: Duration = Duration::from_secs(2);

/// The handshake, and no further. Whether the server took us.
fn shake<W: Write>(report: &mut Report<W>, server: &Server, stream: TcpStream) -> bool {
    const CHECK: &str = "handshake";
    let address = match stream.peer_addr() {
        Ok(address) => address.to_string(),
        Err(_) => server.name(),
    };
    let mut start = Instant::now();
    let mut asked = server.shake(stream);
    if let (Err(ServerError::Silent { .. }), Ok(address)) = (&asked, address.parse()) {
        // Our key may have been added to the list a moment ago.
        thread::sleep(LIST_IS_READ);
        start = Instant::now();
        asked = server.dial_address(address);
    }
    let finding = match asked {
        Ok(_) => {
            let took = start.elapsed();
            let said = format!(
                "{address} has the pinned key and admits this client, in {}",
                short(took)
            );
            Finding::ok(CHECK, said).figure("milliseconds", milliseconds(took))
        }
        Err(ServerError::Pin { expected, found }) => {
            let said = format!("{address} has the key {found}; server_pub_key is {expected}");
            Finding::error(CHECK, Code::PIN_MISMATCH, said)
        }
        Err(ServerError::Silent { own }) => {
            let said = format!("{address} closed the connection instead of an answer");
            Finding::error(CHECK, Code::TURNED_AWAY, said).cure(format!(
                "add this line to allowed_clients.txt on the server: {own}"
            ))
        }
        Err(e) => Finding::error(CHECK, e.code(), format!("{address}: {e}")),
    };
    let taken = finding.level == Level::Ok;
    report.add(finding);
    taken
}

/// Whether somebody is behind the tunnel. The service sees one connection that says nothing.
fn service(tunnel: &Tunnel, within: Duration) -> Finding {
    const CHECK: &str = "local-service";
    let (host, port) = (tunnel.local_host.as_str(), tunnel.local_port);
    let start = Instant::now();
    match dial::connect(host, port, within) {
        Ok(_) => {
            let took = start.elapsed();
            let said = format!(
                "tunnel {:?}: {} takes connections, in {}",
                tunnel.id,
                dial::host_port(host, port),
                short(took)
            );
            Finding::ok(CHECK, said).figure("milliseconds", milliseconds(took))
        }
        Err(e) => {
            let found = Finding::error(
                CHECK,
                Code::LOCAL_SERVICE,
                format!("tunnel {:?}: {e}", tunnel.id),
            );
            if tunnel.auto_start {
                found
            } else {
                found.at_most(Level::Note)
            }
        }
    }
}

/// Whether a visitor who is where we are would reach the tunnel.
fn public_port(host: &str, tunnel: &Tunnel, within: Duration) -> Finding {
    const CHECK: &str = "public-port";
    let port = tunnel.remote_port;
    let name = format!("tunnel {:?}", tunnel.id);
    if port == 0 {
        let said = format!("{name}: the server chooses the port, which the client's log tells");
        return Finding::note(CHECK, None, said);
    }
    let at = dial::host_port(host, port);
    let start = Instant::now();
    match dial::connect(host, port, within) {
        Ok(_) => {
            let took = start.elapsed();
            let said = format!("{name}: {at} takes connections, in {}", short(took));
            Finding::ok(CHECK, said).figure("milliseconds", milliseconds(took))
        }
        // A port that nobody listens on says so at once; behind a firewall there is silence.
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
            let said = format!("{name}: no answer from {at} within {}", short(within));
            Finding::warning(CHECK, Code::PUBLIC_PORT_CLOSED, said)
        }
        Err(e) => {
            let why = match &e {
                DialError::Connect { attempts, .. } => attempts
                    .last()
                    .map_or_else(String::new, |attempt| attempt.error.to_string()),
                e => e.to_string(),
            };
            let said = format!("{name}: {at} is closed ({why}), as it is while no client runs");
            Finding::note(CHECK, Code::PUBLIC_PORT_CLOSED, said)
        }
    }
}
