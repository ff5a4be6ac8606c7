//! Data channels that are there before their visitor: to a server that knows of them, and to one that does not.

use std::io::{Read, Write};
use std::net::TcpStream;

use minitcptunnel_common::wire::frame::FIN;
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Kind;

use super::fake::SESSION_KEY;
use super::*;

fn data(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![Kind::Data as u8, flags, 0, 0, 0, 0];
    message.extend_from_slice(payload);
    message
}

fn assign(tunnel: &str, conn: &str) -> Message {
    Message::Assign {
        tunnel: id(tunnel),
        conn: ConnId::new(conn).unwrap(),
        visitor: "192.0.2.1:4711".into(),
    }
}

/// A client that keeps one spare, with one tunnel to `port`.
fn world(port: u16) -> (FakeServer, Config) {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).tunnels = vec![tunnel("web", 8080, port)];
    config.limits.spare_channels = 1;
    config.limits.max_spare_channels = 1;
    (server, config)
}

/// The next connection, which has to say that it is a spare.
fn spare(server: &FakeServer) -> Peer {
    let mut channel = server.channel();
    match channel.recv() {
        Message::SpareReady { token, keep, max } => {
            assert!(SessionKey::new(SESSION_KEY).verify_spare(&token));
            assert_eq!((keep, max), (1, 1));
        }
        other => panic!("{other:?} instead of SpareReady"),
    }
    channel
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// One visitor whose Assign has been sent: says `word`, hears it, both end.
fn converse(channel: &mut Peer, listener: &TcpListener, word: &[u8]) {
    let mut local = accept(listener);
    channel.send_plain(&data(0, word)).unwrap();
    let mut heard = vec![0; word.len()];
    local.read_exact(&mut heard).unwrap();
    assert_eq!(heard, word);
    local.write_all(word).unwrap();
    drop(local);
    assert_eq!(channel.recv_plain().unwrap(), data(0, word));
    assert_eq!(channel.recv_plain().unwrap(), data(FIN, b""));
}

#[test]
fn a_spare_serves_visitor_after_visitor() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (_client, _peer) = in_session(&config, &server);
    let mut channel = spare(&server);
    channel.send(&assign("web", "c0"));
    // While it is in use there is another.
    let mut other = spare(&server);
    for n in 0..20u8 {
        converse(&mut channel, &listener, &[n; 300]);
        // The next visitor comes with the end of this one: what is behind FIN is his.
        let fin = data(FIN, b"");
        let mut next = Vec::new();
        assign("web", &format!("c{n}")).encode(true, &mut next);
        channel.send_together(&[&fin, &next]).unwrap();
    }
    converse(&mut channel, &listener, b"last");
    assert!(server.accept_within(Duration::from_millis(50)).is_none());
    other.send(&assign("web", "d"));
    converse(&mut other, &listener, b"other");
}

#[test]
fn an_assign_that_cannot_be_served_resets_the_channel() {
    let (_bound, port) = dead_port();
    let (server, mut config) = world(port);
    reverse(&mut config).tunnels[0].auto_start = true;
    let mut off = tunnel("off", 1234, port);
    off.auto_start = false;
    reverse(&mut config).tunnels.push(off);
    let (client, _peer) = in_session(&config, &server);
    // A dead service, a tunnel that is not enabled, one that does not exist.
    for (n, name) in ["web", "off", "nobody"].into_iter().enumerate() {
        let mut channel = spare(&server);
        channel.send(&assign(name, "c1"));
        let e = channel.stream.read(&mut [0]).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{name}");
        let refused = client.snapshot().refused;
        assert_eq!(refused, n as u64 + 1, "{name}");
    }
}

#[test]
fn damage_and_half_an_assign_close_a_spare_and_cost_nothing_else() {
    let (listener, port) = service();
    let (server, mut config) = world(port);
    config.timeouts.handshake = SOON;
    config.timeouts.backoff_min = Duration::from_millis(1);
    config.timeouts.backoff_max = Duration::from_millis(5);
    let (client, _peer) = in_session(&config, &server);
    for message in [
        data(0, b"bytes"),
        vec![],
        vec![0; 3],
        vec![Kind::Assign as u8, 0, 0, 0, 0, 0],
    ] {
        let mut channel = spare(&server);
        channel.send_plain(&message).unwrap();
        assert_eq!(channel.recv_plain(), None, "{message:?}");
    }
    let mut channel = spare(&server);
    channel.stream.write_all(&[0, 0, 255, 255]).unwrap();
    assert_eq!(channel.recv_plain(), None, "a frame that is too long");
    // A server that closes them gets new ones, and one is good.
    drop(spare(&server));
    let mut channel = spare(&server);
    channel.send(&assign("web", "c1"));
    converse(&mut channel, &listener, b"good");
    assert!(is_up(&client.snapshot()));
}

#[test]
fn an_assign_has_to_arrive_whole_in_time() {
    let (_listener, port) = service();
    let (server, config) = world(port);
    let (client, _peer) = in_session(&config, &server);
    let mut channel = spare(&server);
    // Nothing is due while nothing comes; a frame that has begun is.
    drop(client);
    assert_eq!(channel.recv_plain(), None, "spares go with their client");
    let (server, mut config) = world(port);
    config.timeouts.handshake = Duration::from_millis(200);
    let (_client, _peer) = in_session(&config, &server);
    let mut channel = spare(&server);
    channel.stream.write_all(&[0, 0]).unwrap();
    assert_eq!(channel.recv_plain(), None);
}

/// A session with a server that sends every heartbeat back as it was.
fn original(server: &FakeServer) -> Peer {
    let mut peer = server.channel();
    let payload = peer.expect_offer();
    peer.send(&Message::AuthOk {
        session_key: SESSION_KEY,
    });
    peer.send(&Message::Heartbeat { payload });
    peer
}

#[test]
fn an_original_server_finds_a_channel_opened_ahead() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let _client = start(&config);
    let mut peer = original(&server);
    let mut ahead = server.channel();
    peer.send(&incoming("web", "c1"));
    let mut local = accept(&listener);
    if !spoken_to(&ahead) {
        // The visitor came before the client had put it aside, and found a channel of his own. But now:
        peer.send(&incoming("web", "c1"));
        local = accept(&listener);
    }
    assert_eq!(ahead.expect_ready(), "c1");
    local.write_all(b"pong").unwrap();
    assert_eq!(ahead.recv_plain().unwrap(), data(0, b"pong"));
    // One that has gone meanwhile is not used, and its visitor is served by a new one.
    let gone = server.channel();
    gone.stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(gone);
    peer.send(&incoming("web", "c2"));
    let served = eventually_ready(&server);
    assert_eq!(served, "c2");
}

/// Whether the client says what this channel is for.
fn spoken_to(channel: &Peer) -> bool {
    let brief = Some(Duration::from_millis(300));
    channel.stream.set_read_timeout(brief).unwrap();
    let spoken = channel.stream.peek(&mut [0]).is_ok();
    channel.stream.set_read_timeout(Some(SOON)).unwrap();
    spoken
}

/// The first of the next connections that says whom it is for.
fn eventually_ready(server: &FakeServer) -> String {
    loop {
        let mut channel = server.channel();
        if spoken_to(&channel) {
            return channel.expect_ready();
        }
    }
}

#[test]
fn a_channel_that_died_before_its_visitor_is_replaced() {
    let (_listener, port) = service();
    let (server, mut config) = world(port);
    // With heartbeats they are looked at.
    config.timeouts.heartbeat_interval = Duration::from_millis(50);
    let _client = start(&config);
    let mut peer = original(&server);
    let ahead = server.channel();
    for _ in 0..3 {
        let Message::Heartbeat { payload } = peer.recv_beat() else {
            panic!("no heartbeat")
        };
        peer.send(&Message::Heartbeat { payload });
    }
    // Alive, so still there, and no other.
    assert!(server.accept_within(Duration::from_millis(20)).is_none());
    drop(ahead);
    // Found dead by a heartbeat and replaced.
    drop(server.channel());
}
