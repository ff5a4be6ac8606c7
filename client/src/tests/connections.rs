use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use minitcptunnel_common::wire::frame::FIN;
use minitcptunnel_common::wire::message::Kind;

use super::fake::SESSION_KEY;
use super::*;

/// A data message.
fn data(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![Kind::Data as u8, flags, 0, 0, 0, 0];
    message.extend_from_slice(payload);
    message
}

fn accept(service: &TcpListener) -> TcpStream {
    let (stream, _) = service.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn four(stream: &mut TcpStream) -> [u8; 4] {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether what comes is a reset, and not an end. Wine tells a reset to nobody but a read that waits for it, and any
/// other read of an end; but after an end the connection still has its peer.
fn is_reset(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(0) if cfg!(windows) => stream.peer_addr().is_err(),
        Err(e) => e.kind() != ErrorKind::WouldBlock && e.kind() != ErrorKind::TimedOut,
        Ok(_) => false,
    }
}

/// A client with one tunnel to `port`, in a session.
fn world(port: u16) -> (FakeServer, Config) {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).tunnels = vec![tunnel("web", 8080, port)];
    (server, config)
}

fn refusal(peer: &mut Peer) -> (String, String) {
    match peer.recv_news() {
        Message::RefuseConn { conn, reason } => (conn.as_str().into(), reason),
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn a_connection_is_carried_with_both_ends_of_stream() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let mut data_channel = server.channel();
    let mut local = accept(&listener);
    assert_eq!(data_channel.expect_ready(), "c1");
    data_channel.send_plain(&data(0, b"ping")).unwrap();
    assert_eq!(&four(&mut local), b"ping");
    // The visitor has finished; the answer still gets through, and then the service's own end.
    data_channel.send_plain(&data(FIN, b"")).unwrap();
    assert_eq!(local.read(&mut [0]).unwrap(), 0);
    local.write_all(b"pong").unwrap();
    drop(local);
    assert_eq!(data_channel.recv_plain().unwrap(), data(0, b"pong"));
    assert_eq!(data_channel.recv_plain().unwrap(), data(FIN, b""));
    data_channel.expect_end();
    let totals = client.stop(SOON);
    assert_eq!((totals.to_service, totals.from_service), (4, 4));
    assert_eq!((totals.live, totals.total), (0, 1));
}

#[test]
fn a_running_connection_outlives_its_session() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let mut data_channel = server.channel();
    let mut local = accept(&listener);
    data_channel.expect_ready();
    drop(peer);
    waiting(&client);
    data_channel.send_plain(&data(0, b"ping")).unwrap();
    assert_eq!(&four(&mut local), b"ping");
}

#[test]
fn a_dead_service_is_told_at_once() {
    let (_bound, port) = dead_port();
    let (server, config) = world(port);
    let (client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let (conn, reason) = refusal(&mut peer);
    assert_eq!(conn, "c1");
    assert!(
        reason.starts_with("local service: cannot connect"),
        "{reason}"
    );
    // The data channel that was on its way is not used for anything.
    assert_eq!(server.channel().recv_plain(), None);
    assert_eq!(client.snapshot().refused, 1);
}

#[test]
fn tunnels_that_are_not_enabled_are_refused() {
    let (listener, port) = service();
    let (server, mut config) = world(port);
    reverse(&mut config).tunnels[0].auto_start = false;
    let (_client, mut peer) = in_session(&config, &server);
    for (n, tunnel) in ["web", "nobody", ""].into_iter().enumerate() {
        peer.send(&incoming(tunnel, &format!("c{n}")));
        let (conn, reason) = refusal(&mut peer);
        assert_eq!(conn, format!("c{n}"));
        assert_eq!(reason, "the tunnel is not enabled in the client");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the service was dialled");
    assert!(server.accept_within(Duration::ZERO).is_none());
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let (_listener, port) = service();
    let (server, mut config) = world(port);
    config.limits.pairs = 2;
    let (_client, mut peer) = in_session(&config, &server);
    for n in 0..3 {
        peer.send(&incoming("web", &format!("c{n}")));
    }
    let (conn, reason) = refusal(&mut peer);
    assert_eq!(conn, "c2");
    assert!(reason.contains("limit"), "{reason}");
}

#[test]
fn a_data_channel_that_cannot_be_opened_is_told() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (_client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let mut local = accept(&listener);
    // A server in a crowd: it is asked three times.
    for _ in 0..3 {
        drop(server.accept());
    }
    let (conn, reason) = refusal(&mut peer);
    assert_eq!(conn, "c1");
    assert!(reason.starts_with("data channel: "), "{reason}");
    assert!(is_reset(&mut local), "the service is not reset");
}

#[test]
fn an_original_server_gets_nothing_that_it_does_not_know() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let client = start(&config);
    let mut peer = server.channel();
    let payload = peer.expect_offer();
    peer.send(&Message::AuthOk {
        session_key: SESSION_KEY,
    });
    // It sends heartbeats back as they were.
    peer.send(&Message::Heartbeat { payload });
    let mut plain = Vec::new();
    status("web", Status::Open, "", 0).encode(false, &mut plain);
    peer.send_plain(&plain).unwrap();
    let open = |s: &Snapshot| state_of(s, "web") == TunnelState::Open { port: 8080 };
    assert!(client.wait_for(SOON, open).is_some());

    plain.clear();
    incoming("web", "1a2b3c4d").encode(false, &mut plain);
    peer.send_plain(&plain).unwrap();
    let mut data_channel = server.channel();
    let mut local = accept(&listener);
    assert_eq!(data_channel.expect_ready(), "1a2b3c4d");
    local.write_all(b"pong").unwrap();
    assert_eq!(data_channel.recv_plain().unwrap(), data(0, b"pong"));
    // Its side ends with TCP's end; ours is told in the same way, without a FIN frame.
    data_channel
        .stream
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    assert_eq!(local.read(&mut [0]).unwrap(), 0);
    drop(local);
    assert_eq!(data_channel.recv_plain(), None);
}

#[test]
fn an_original_server_learns_of_a_dead_service_by_a_channel_that_ends() {
    let (_bound, port) = dead_port();
    let (server, config) = world(port);
    let _client = start(&config);
    let mut peer = server.channel();
    let payload = peer.expect_offer();
    peer.send(&Message::AuthOk {
        session_key: SESSION_KEY,
    });
    peer.send(&Message::Heartbeat { payload });
    peer.send(&incoming("web", "c1"));
    let mut data_channel = server.channel();
    assert_eq!(data_channel.expect_ready(), "c1");
    assert_eq!(data_channel.recv_plain(), None);
}

#[test]
fn dials_that_hang_do_not_hold_up_heartbeats() {
    let (_listener, port) = service();
    let (server, mut config) = world(port);
    config.timeouts.heartbeat_interval = Duration::from_millis(5);
    config.timeouts.heartbeat_timeout = SOON;
    let (client, mut peer) = in_session(&config, &server);
    let mut silent = Vec::new();
    for n in 0..10 {
        peer.send(&incoming("web", &format!("c{n}")));
        // Their hellos will never be answered.
        silent.push(server.accept());
    }
    let since = Instant::now();
    for _ in 0..50 {
        assert!(matches!(peer.recv(), Message::Heartbeat { .. }));
    }
    assert!(since.elapsed() < SOON / 2);
    assert!(is_up(&client.snapshot()));
    // Nor do they hold up the end.
    let since = Instant::now();
    client.stop(Duration::ZERO);
    assert!(since.elapsed() < SOON / 2);
}

#[test]
fn stopping_gives_running_connections_their_grace() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let mut data_channel = server.channel();
    let mut local = accept(&listener);
    data_channel.expect_ready();
    // It runs for certain once a byte has passed.
    data_channel.send_plain(&data(0, b"ping")).unwrap();
    assert_eq!(&four(&mut local), b"ping");
    let stopping = std::thread::spawn(move || client.stop(SOON));
    // The session ends first, the connection goes on.
    peer.expect_end();
    local.write_all(b"pong").unwrap();
    assert_eq!(data_channel.recv_plain().unwrap(), data(0, b"pong"));
    assert!(!stopping.is_finished());
    data_channel.send_plain(&data(FIN, b"")).unwrap();
    drop(local);
    let totals = stopping.join().unwrap();
    assert_eq!((totals.live, totals.from_service), (0, 4));
}

#[test]
fn what_still_runs_after_the_grace_is_reset() {
    let (listener, port) = service();
    let (server, config) = world(port);
    let (client, mut peer) = in_session(&config, &server);
    peer.send(&incoming("web", "c1"));
    let mut data_channel = server.channel();
    let mut local = accept(&listener);
    data_channel.expect_ready();
    data_channel.send_plain(&data(0, b"ping")).unwrap();
    assert_eq!(&four(&mut local), b"ping");
    client.stop(Duration::ZERO);
    assert!(is_reset(&mut local), "a cut looks like an end");
    assert_eq!(data_channel.recv_plain(), None);
}
