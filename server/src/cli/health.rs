//! `health`: does the server that runs with this configuration answer? For containers, where a check must be a program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use minitcptunnel_common::health::{self, Findings, Sick, Unhealthy};
use minitcptunnel_common::pki::ServerName;

use crate::config::Config;

/// Asks every listener: that of a forward for the beginning of a handshake, the control port for a connection.
/// No target service and no client notices.
///
/// # Errors
/// If one of them does not answer, or is on a port that only the running server knows.
pub fn health(config: &Config, within: Option<Duration>) -> Result<String, Sick> {
    let within = within.unwrap_or(health::WITHIN);
    let mut findings = Findings::default();
    if config.reverse {
        let address = SocketAddr::new(config.bind, config.port);
        let asked = ask(address, |ip, port| {
            health::accepts(&ip.to_string(), port, within)
        });
        findings.add(match asked {
            Ok(at) => Ok(format!("The control port takes connections on {at}.")),
            Err(e) => Err(format!("the control port: {e}")),
        });
    }
    for forward in &config.forwards {
        let asked = ask(forward.listen, |ip, port| {
            health::answers_tls(&ip.to_string(), port, ServerName::from(ip), within)
        });
        findings.add(match asked {
            Ok(at) => Ok(format!("Forward {:?} answers on {at}.", forward.name)),
            Err(e) => Err(format!("forward {:?}: {e}", forward.name)),
        });
    }
    findings.verdict()
}

/// Asks at this address of this machine; who listens on all of them is asked on loopback.
fn ask(
    listen: SocketAddr,
    question: impl Fn(IpAddr, u16) -> Result<(), Unhealthy>,
) -> Result<SocketAddr, String> {
    if listen.port() == 0 {
        return Err(health::PORT_UNKNOWN.into());
    }
    let all = [
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    ];
    let own = [listen.ip()];
    let addresses = match listen.ip() {
        // Where there is no IPv6 the server listens on IPv4 alone.
        IpAddr::V6(ip) if ip.is_unspecified() => &all[..],
        IpAddr::V4(ip) if ip.is_unspecified() => &all[1..],
        _ => &own[..],
    };
    let mut tried = Vec::new();
    for &ip in addresses {
        let at = SocketAddr::new(ip, listen.port());
        match question(ip, listen.port()) {
            Ok(()) => return Ok(at),
            Err(e @ Unhealthy::Unreachable(_)) => tried.push(e.to_string()),
            Err(e) => return Err(format!("{at}: {e}")),
        }
    }
    Err(tried.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Overrides};
    use crate::jobs;
    use crate::scratch::Scratch;
    use minitcptunnel_common::pki::{UnixTime, make};
    use std::fs;
    use std::net::TcpListener;

    /// Free a moment ago; the chance that somebody takes it is small.
    fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("bound").port()
    }

    #[test]
    fn a_server_is_well_while_it_runs_and_no_target_notices() {
        let scratch = Scratch::new();
        make::init(
            &scratch.path().join("certs"),
            &["localhost".into()],
            &[],
            UnixTime::now(),
        )
        .expect("certificates");
        let target = TcpListener::bind("127.0.0.1:0").expect("a target");
        target.set_nonblocking(true).expect("set");
        let file = scratch.path().join("server_config.yaml");
        let text = format!(
            "port: {}\nbind: 127.0.0.1\nserver_listener: {{port: {}}}\n\
             target_service: {{host: 127.0.0.1, port: {}}}\n\
             tls: {{server_cert: certs/server.crt, server_key: certs/server.key, client_ca_cert: certs/ca.crt}}\n",
            free_port(),
            free_port(),
            target.local_addr().expect("bound").port(),
        );
        fs::write(&file, text).expect("write");
        let config = config::load(Some(&file), &Overrides::default())
            .expect("good")
            .config;
        fs::write(&config.allowed_clients_file, "").expect("write");

        let e = health(&config, None)
            .expect_err("nobody is there")
            .to_string();
        assert!(e.contains("the control port: cannot connect"), "{e}");
        assert!(e.contains("forward \"default\": cannot connect"), "{e}");
        let running = jobs::start(config.clone()).expect("starts");
        let said = health(&config, None).expect("it is well");
        assert!(
            said.contains("The control port takes connections on 127.0.0.1:"),
            "{said}"
        );
        assert!(said.contains("Forward \"default\" answers on "), "{said}");
        running.stop(Duration::ZERO).expect("stops");
        assert!(target.accept().is_err(), "the target was called");
        health(&config, None).expect_err("nobody is there any more");
    }

    #[test]
    fn a_port_that_nobody_knows_is_not_guessed() {
        let e = ask("0.0.0.0:0".parse().expect("an address"), |_, _| Ok(())).expect_err("port 0");
        assert!(e.contains("configure a fixed one"), "{e}");
    }
}
