//! A forward tunnel: certificates as the `certs` commands make them, a server, a client, a target.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use serde_json::{Value, json};

use crate::{PATIENCE, Program, TempDir, binary, connect};

/// A folder with certificates, and the two configurations in it.
pub struct ForwardWorld {
    /// Everything is in here; `certs` is the folder of the certificates.
    pub dir: TempDir,
    /// The server's configuration.
    pub server: Value,
    /// The client's. Its `remote_server.port` is set when it is started.
    pub client: Value,
}

/// Sets `path` (keys joined by dots) in `config`.
fn set(config: &mut Value, path: &str, value: Value) {
    let mut at = config;
    for key in path.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
}

impl ForwardWorld {
    /// Towards a target service on this port of 127.0.0.1, mutual TLS, everything else by default.
    pub fn to(target: u16) -> Self {
        let dir = TempDir::new();
        let certs = |arguments: &[&str]| {
            let mut command = Command::new(binary("minitcptunnel-server"));
            let command = command.current_dir(dir.path()).arg("certs").args(arguments);
            let ended = Program::run(command, PATIENCE);
            assert_eq!(ended.code, Some(0), "{}", ended.all());
        };
        certs(&["init", "--host", "localhost", "--ip", "127.0.0.1"]);
        certs(&["client", "laptop"]);
        Self {
            server: json!({
                "server_listener": { "host": "127.0.0.1", "port": 0 },
                "target_service": { "host": "127.0.0.1", "port": target },
                "tls": {
                    "server_cert": "certs/server.crt",
                    "server_key": "certs/server.key",
                    "client_ca_cert": "certs/ca.crt",
                },
            }),
            client: json!({
                "local_listener": { "host": "127.0.0.1", "port": 0 },
                "remote_server": {
                    "host": "127.0.0.1",
                    "server_ca_cert": "certs/ca.crt",
                    "server_hostname": "localhost",
                },
                "tls": { "client_cert": "certs/laptop.crt", "client_key": "certs/laptop.key" },
            }),
            dir,
        }
    }

    /// Sets a key of the server's configuration.
    pub fn server(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.server, path, value.into());
        self
    }

    /// Sets a key of the client's configuration.
    pub fn client(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.client, path, value.into());
        self
    }

    /// Starts the server, on its port of before where it had one.
    pub fn start_server(&mut self) -> (Program, u16) {
        let program = start_forwards("server", &self.dir, &self.server);
        let port = listening(&program);
        set(&mut self.server, "server_listener.port", port.into());
        (program, port)
    }

    /// Starts the client towards this port.
    pub fn start_client(&self, server: u16) -> (Program, u16) {
        let mut config = self.client.clone();
        set(&mut config, "remote_server.port", server.into());
        let program = start_forwards("client", &self.dir, &config);
        let port = listening(&program);
        (program, port)
    }

    /// Starts both.
    pub fn run(mut self) -> Forwarded {
        let (server, server_port) = self.start_server();
        let (client, port) = self.start_client(server_port);
        Forwarded {
            world: self,
            server,
            server_port,
            client,
            port,
        }
    }
}

/// Starts one of our programs (`server`, `client`) in this folder with any configuration.
pub fn start_forwards(name: &str, dir: &TempDir, config: &Value) -> Program {
    let file = dir.join(&format!("{name}_config.json"));
    fs::write(&file, config.to_string()).expect("write");
    let mut command = Command::new(binary(&format!("minitcptunnel-{name}")));
    let command = command.current_dir(dir.path());
    Program::start(name, command.arg("--verbose").arg("--config").arg(file))
}

/// The port of the forward of this name that a program has opened.
pub fn port_of(program: &Program, forward: &str) -> u16 {
    let line = program
        .log
        .wait(&format!("Forward {forward} listening on "), PATIENCE);
    port_in(&line)
}

/// The port of the forward that a program has opened.
pub fn listening(program: &Program) -> u16 {
    port_in(&program.log.wait("Forward * listening on ", PATIENCE))
}

fn port_in(line: &str) -> u16 {
    let address = line.split("listening on ").nth(1).expect("found by it");
    let address = address.split(' ').next().unwrap_or_default();
    let address: SocketAddr = (address.parse()).unwrap_or_else(|e| panic!("{e}: {line}"));
    address.port()
}

/// A running forward tunnel.
pub struct Forwarded {
    /// Its folder and configurations.
    pub world: ForwardWorld,
    /// The server.
    pub server: Program,
    /// Where it listens.
    pub server_port: u16,
    /// The client.
    pub client: Program,
    /// Where local applications connect to.
    pub port: u16,
}

impl Forwarded {
    /// A local application's connection.
    pub fn visit(&self) -> TcpStream {
        connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The `server` or the `client`.
    pub fn program(&mut self, who: &str) -> &mut Program {
        match who {
            "server" => &mut self.server,
            "client" => &mut self.client,
            _ => panic!("a tunnel has no program {who}"),
        }
    }
}
