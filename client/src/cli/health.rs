//! `health`: does the client that runs with this configuration listen, and does a server of each forward answer? For
//! containers, where a check must be a program.

use std::time::Duration;

use minitcptunnel_common::config::Endpoint;
use minitcptunnel_common::health::{self, Findings, Sick};
use minitcptunnel_common::pki;

use crate::config::forward::Forward;
use crate::config::{Config, Reverse};

/// Looks whether every local listener is there, and asks a server of each forward for the beginning of a handshake.
/// No target service notices. What certificates are worth shows only when connections are made: see the log.
///
/// # Errors
/// If one of them is not there.
pub fn health(config: &Config, within: Option<Duration>) -> Result<String, Sick> {
    let within = within.unwrap_or(health::WITHIN);
    let mut findings = Findings::default();
    if let Some(reverse) = &config.reverse {
        findings.add(ask_control(reverse, within));
    }
    for forward in &config.forwards {
        findings.add(match ask(forward, within) {
            Ok(said) => Ok(format!("Forward {:?}: {said}", forward.name)),
            Err(e) => Err(format!("forward {:?}: {e}", forward.name)),
        });
    }
    findings.verdict()
}

/// Whether the server admits this client is between the two, and in the log.
fn ask_control(reverse: &Reverse, within: Duration) -> Result<String, String> {
    let (host, port) = (reverse.server_host.as_str(), reverse.server_port);
    match health::accepts(host, port, within) {
        Ok(()) => Ok(format!(
            "The server {} can be reached.",
            minitcptunnel_common::dial::host_port(host, port)
        )),
        Err(e) => Err(format!("the server of the reverse tunnel: {e}")),
    }
}

fn ask(forward: &Forward, within: Duration) -> Result<String, String> {
    if forward.listen.port() == 0 {
        return Err(health::PORT_UNKNOWN.into());
    }
    health::is_taken(forward.listen).map_err(|e| e.to_string())?;
    let mut tried = Vec::new();
    for server in &forward.servers {
        match ask_server(forward, server, within) {
            Ok(()) => {
                return Ok(format!(
                    "the local listener {} is there, and {server} answers.",
                    forward.listen
                ));
            }
            Err(e) => tried.push(format!("{server}: {e}")),
        }
    }
    Err(tried.join("; "))
}

fn ask_server(forward: &Forward, server: &Endpoint, within: Duration) -> Result<(), String> {
    let name = pki::server_name(forward.name_of(server).as_str()).map_err(|e| e.to_string())?;
    health::answers_tls(server.host.as_str(), server.port, name, within).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Pinning};
    use crate::scratch::Scratch;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn a_client_is_well_when_it_listens_and_its_server_answers() {
        let scratch = Scratch::new();
        let server = TcpListener::bind("127.0.0.1:0").expect("a server");
        let local = TcpListener::bind("127.0.0.1:0").expect("a listener");
        local.set_nonblocking(true).expect("set");
        let address = local.local_addr().expect("bound");
        let file = scratch.path().join("client_config.yaml");
        let text = format!(
            "local_listener: {{port: {}}}\n\
             remote_server: {{host: 127.0.0.1, port: {}, server_ca_cert: ca.crt}}\n",
            address.port(),
            server.local_addr().expect("bound").port(),
        );
        fs::write(&file, text).expect("write");
        let config = config::load(&file, Pinning::Required).expect("good").config;
        let ask = |within| health(&config, Some(within)).map_err(|e| e.to_string());

        let e = ask(Duration::from_millis(200)).expect_err("the server says nothing");
        assert!(e.contains("does not answer within 0.2 s"), "{e}");
        let answering = thread::spawn(move || {
            // The one of before is first in the queue, and gone.
            for answer in [&b""[..], b"\x16\x03\x03\x00\x7a"] {
                let (mut stream, _) = server.accept().expect("accept");
                let _ = stream.write_all(answer);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let said = ask(Duration::from_secs(20)).expect("it is well");
        assert!(said.contains("and 127.0.0.1:"), "{said}");
        answering.join().expect("answered");
        let e = ask(Duration::from_secs(20)).expect_err("the server is gone");
        assert!(e.contains("cannot connect to 127.0.0.1"), "{e}");
        assert!(local.accept().is_err(), "the local listener was disturbed");
        drop(local);
        let e = ask(Duration::from_secs(20)).expect_err("nobody listens");
        assert_eq!(
            e,
            format!("forward \"default\": nobody listens on {address}")
        );
    }
}
