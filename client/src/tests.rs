//! The whole client against a server that does what a test says.
//!
//! connecting     hello, pin, deadlines, a server that closes
//! session        first messages, reasons, heartbeats, reconnects, tunnels
//! connections    pairs, refusals, an original server, hanging dials, stopping
//! spares         data channels opened ahead, used again, refused, damaged

mod connecting;
mod connections;
mod fake;
mod session;
mod spares;

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use minitcptunnel_common::config::CompressionSetting;
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::log::Logging;
use minitcptunnel_common::wire::message::{Message, Status};

use crate::config::{Config, Limits, Reverse, Timeouts, Tunnel};
use crate::reverse::tunnels::TunnelState;
use crate::state::Connection;
use crate::{Client, Handle, Snapshot};
use fake::{FakeServer, Peer, SOON};

/// So long that it does not happen in a test.
const NEVER: Duration = Duration::from_secs(3600);

/// A client that waits for ever where a test does not say otherwise: what it waits for can then be
/// looked at at leisure.
fn config(server: &FakeServer) -> Config {
    Config {
        file: "client_config.json".into(),
        reverse: Some(Reverse {
            server_host: "127.0.0.1".parse().unwrap(),
            server_port: server.port,
            server_pub_key: Some(server.identity.public()),
            identity: Some(own_key()),
            tunnels: vec![tunnel("web", 8080, 1), tunnel("ssh", 2222, 1)],
            compression: CompressionSetting::Auto,
        }),
        forwards: Vec::new(),
        limits: Limits {
            pairs: 64,
            // Tests that count connections count them all.
            spare_channels: 0,
            max_spare_channels: 64,
        },
        memory_budget: 64 << 20,
        timeouts: Timeouts {
            connect: SOON,
            handshake: NEVER,
            local_connect: SOON,
            heartbeat_interval: NEVER,
            heartbeat_timeout: NEVER,
            backoff_min: NEVER,
            backoff_max: NEVER,
        },
        grace: Duration::ZERO,
        logging: Logging::default(),
    }
}

/// The part of it that these tests change.
fn reverse(config: &mut Config) -> &mut Reverse {
    config.reverse.as_mut().unwrap()
}

/// As [`config`], but attempts follow each other at once.
fn eager(server: &FakeServer) -> Config {
    let mut config = config(server);
    config.timeouts.backoff_min = Duration::from_millis(1);
    config.timeouts.backoff_max = Duration::from_millis(5);
    config
}

fn own_key() -> IdentityKey {
    IdentityKey::from_seed(&[7; 32])
}

fn tunnel(id: &str, remote_port: u16, local_port: u16) -> Tunnel {
    Tunnel {
        id: id.into(),
        remote_port,
        local_host: "127.0.0.1".parse().unwrap(),
        local_port,
        auto_start: true,
        compression: CompressionSetting::Off,
    }
}

fn start(config: &Config) -> Handle {
    Client::start(config).unwrap()
}

fn id(text: &str) -> TunnelId {
    TunnelId::new(text).unwrap()
}

fn is_up(snapshot: &Snapshot) -> bool {
    matches!(snapshot.connection, Connection::Up { .. })
}

/// Waits until the client waits, and says what for and until when.
fn waiting(client: &Handle) -> (String, Instant) {
    let wanted = |s: &Snapshot| matches!(s.connection, Connection::Waiting { .. });
    let snapshot = client.wait_for(SOON, wanted).expect("a failed attempt");
    match snapshot.connection {
        Connection::Waiting { until, reason } => (reason, until),
        other => panic!("{other:?}"),
    }
}

fn status(tunnel: &str, status: Status, reason: &str, port: u32) -> Message {
    Message::TunnelStatus {
        status,
        tunnel: id(tunnel),
        reason: reason.into(),
        port,
    }
}

fn incoming(tunnel: &str, conn: &str) -> Message {
    Message::IncomingConn {
        tunnel: id(tunnel),
        conn: ConnId::new(conn).unwrap(),
        visitor: Some("192.0.2.1:4711".into()),
    }
}

fn state_of(snapshot: &Snapshot, tunnel: &str) -> TunnelState {
    snapshot.tunnel(tunnel).unwrap().state.clone()
}

/// A local service, and its port.
fn service() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port that refuses: bound, so that nobody else gets it, but not listening.
fn dead_port() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// A client with one tunnel to `port`, in a session, and the server's end of it.
fn in_session(config: &Config, server: &FakeServer) -> (Handle, Peer) {
    let client = start(config);
    let wanted = config
        .reverse
        .as_ref()
        .unwrap()
        .tunnels
        .iter()
        .filter(|t| t.auto_start)
        .count();
    let (peer, _) = server.session(wanted);
    assert!(client.wait_for(SOON, is_up).is_some());
    (client, peer)
}
