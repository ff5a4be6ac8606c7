//! Clients with a key who want more than their share, and visitors who come in crowds. Here belongs: every limit
//! that holds after authentication, each tried one step beyond.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use minitcptunnel_common::id::TunnelId;
use minitcptunnel_common::wire::message::{CompressionWish, Message, Status};
use rig::{
    Bytes, End, PATIENCE, Peer, Service, Tunnelled, World, alone, connect, eventually, figure,
    read_end,
};

fn open(port: u32, id: &str) -> Message {
    Message::OpenTunnel {
        port,
        tunnel: TunnelId::new(id).expect("short"),
        compression: CompressionWish::ServerChoice,
    }
}

/// The answer to an OpenTunnel: status, reason, port.
fn status(peer: &mut Peer) -> (Status, String, u32) {
    peer.expect("a status", |message| match message {
        Message::TunnelStatus {
            status,
            reason,
            port,
            ..
        } => Some((status, reason, port)),
        _ => None,
    })
}

#[test]
fn tunnels_are_limited_and_the_refusal_has_a_reason() {
    let world = World::new();
    let server = world.server().set("limits.tunnels_per_client", 3).start();
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    for n in 0..3 {
        peer.open_tunnel(&format!("t{n}"));
    }
    for (what, request) in [
        ("one too many", open(0, "t3")),
        ("a port there is not", open(70_000, "t0")),
        ("the control port", open(server.port.into(), "t1")),
    ] {
        peer.send(&request).expect("send");
        let (status, reason, port) = status(&mut peer);
        assert_eq!((status, port), (Status::Error, 0), "{what}");
        assert!(reason.len() > 10, "{what}: '{reason}'");
    }
    // One that cannot be read at all is answered too, and the session goes on.
    peer.send_raw(&[10, 0, 0, 0, 0, 0, 0, 0]).expect("send");
    assert_eq!(status(&mut peer).0, Status::Error);
    peer.send(&Message::CloseTunnel {
        tunnel: TunnelId::new("nobody's").expect("short"),
    })
    .expect("send");
    assert_eq!(status(&mut peer).0, Status::Error);
    peer.send(&Message::CloseTunnel {
        tunnel: TunnelId::new("t2").expect("short"),
    })
    .expect("send");
    assert_eq!(status(&mut peer).0, Status::Stopped);
    peer.open_tunnel("t3");
}

#[test]
fn channels_opened_in_advance_are_limited() {
    let world = World::new();
    let server = world
        .server()
        .set("limits.idle_data_channels", 8)
        .set("timeouts.first_frame", 2)
        .start();
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let before = server.usage();
    let mut idle: Vec<Peer> = (0..20)
        .filter_map(|_| Peer::shake(&world, &world.client_key, server.address()).ok())
        .collect();
    eventually(PATIENCE, "the surplus to be closed", || {
        (server.usage().fds <= before.fds + 8).then_some(())
    });
    // Of those that are left, one is as good as a fresh one.
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    let conn = control.incoming();
    let ready = control.ready(&conn);
    let mut claimed = false;
    for peer in &mut idle {
        let _ = peer
            .stream
            .set_read_timeout(Some(Duration::from_millis(20)));
        let open =
            matches!(peer.stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        if open && !claimed {
            peer.send(&ready).expect("send");
            peer.send_data(0, b"hello").expect("send");
            claimed = true;
        }
    }
    assert!(claimed, "some are still open");
    visitor.read_exact(&mut [0; 5]).expect("claimed");
    // And the rest do not outlive their deadline.
    eventually(PATIENCE, "the idle ones to be closed", || {
        (server.usage().fds <= before.fds + 2).then_some(())
    });
}

#[test]
fn channels_that_visitors_wait_for_are_not_counted_as_idle() {
    const VISITORS: usize = 12;
    let world = World::new();
    let server = world.server().set("limits.idle_data_channels", 2).start();
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let visitors: Vec<_> = (0..VISITORS)
        .map(|_| connect((Ipv4Addr::LOCALHOST, port)))
        .collect();
    // A slow client: all channels are there before the first says whom it is for.
    let channels: Vec<(Peer, Message)> = (0..VISITORS)
        .map(|_| {
            let conn = control.incoming();
            let ready = control.ready(&conn);
            let channel = Peer::shake(&world, &world.client_key, server.address());
            (channel.expect("shake"), ready)
        })
        .collect();
    let held: Vec<Peer> = channels
        .into_iter()
        .map(|(mut channel, ready)| {
            channel.send(&ready).expect("send");
            channel.send_data(0, b"hello").expect("send");
            channel
        })
        .collect();
    for mut visitor in visitors {
        visitor
            .read_exact(&mut [0; 5])
            .expect("every visitor is served");
    }
    drop(held);
}

#[test]
fn a_client_that_never_reads_is_not_remembered_for() {
    let _alone = alone();
    let world = World::new();
    let server = world.server().start();
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    let before = server.usage();
    // Every heartbeat asks for an answer of its own size. None is ever read.
    let heartbeat = Message::Heartbeat {
        payload: Bytes::new(1).take(4096),
    };
    let _ = peer
        .stream
        .set_write_timeout(Some(Duration::from_millis(500)));
    let mut sent = 0u64;
    // Until the server reads no further, or has had enough.
    while sent < 200 << 20 && peer.send(&heartbeat).is_ok() {
        sent += 4096;
    }
    let after = server.usage();
    figure(
        "unread heartbeats",
        format_args!("{} KiB sent, {before:?} -> {after:?}", sent / 1024),
    );
    assert!(
        after.rss_kib < before.rss_kib + 2048,
        "{before:?} -> {after:?}"
    );
    server.log.wait("Session ended: session=1 ", PATIENCE);
    // The next session of this identity takes the place at once.
    drop(peer);
    Peer::control(&world, &world.client_key, server.address()).open_tunnel("t");
}

#[test]
fn visitors_nobody_fetches_wait_their_time_and_no_longer() {
    let world = World::new();
    let server = world
        .server()
        .set("timeouts.pairing", 1)
        .set("limits.waiting_connections", 20)
        .start();
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let before = server.usage();
    let start = Instant::now();
    let mut visitors: Vec<TcpStream> = (0..50)
        .map(|_| connect((Ipv4Addr::LOCALHOST, port)))
        .collect();
    let mut at_once = 0;
    let mut in_time = 0;
    for visitor in &mut visitors {
        let (bytes, end) = read_end(visitor);
        assert_eq!((&bytes[..], end), (&b""[..], End::Reset));
        if start.elapsed() < Duration::from_millis(600) {
            at_once += 1;
        } else if start.elapsed() < Duration::from_millis(2200) {
            in_time += 1;
        }
    }
    // Read in order of arrival: the first twenty wait, and hide those refused behind them.
    assert_eq!(
        at_once + in_time,
        50,
        "at once {at_once}, in time {in_time}"
    );
    assert!(in_time >= 20, "{in_time}");
    let mut announced = 0;
    control
        .send(&Message::Heartbeat {
            payload: b"end".to_vec(),
        })
        .expect("send");
    control.expect("the end of the announcements", |message| {
        match message {
            Message::IncomingConn { .. } => announced += 1,
            Message::Heartbeat { .. } => return Some(()),
            _ => {}
        }
        None
    });
    assert_eq!(announced, 20, "only who may wait is announced");
    drop(visitors);
    eventually(PATIENCE, "the descriptors to be given back", || {
        (server.usage().fds <= before.fds).then_some(())
    });
    // A client that refuses by name has its visitor closed at once.
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    let conn = control.incoming();
    let start = Instant::now();
    control
        .send(&Message::RefuseConn {
            conn,
            reason: "not today".to_owned(),
        })
        .expect("send");
    assert_eq!(read_end(&mut visitor), (vec![], End::Reset));
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn pairs_are_limited_on_either_side_and_come_free_again() {
    for side in ["server", "client"] {
        let service = Service::echo();
        let tunnel = Tunnelled::with(
            service.port(),
            |server| {
                if side == "server" {
                    server.set("limits.pairs", 5)
                } else {
                    server
                }
            },
            |client| {
                if side == "client" {
                    client.set("limits.pairs", 5)
                } else {
                    client
                }
            },
        );
        let ping = |visitor: &mut TcpStream| {
            visitor.write_all(b"ping")?;
            visitor.read_exact(&mut [0; 4])
        };
        let mut held: Vec<TcpStream> = (0..5).map(|_| tunnel.visit()).collect();
        for visitor in &mut held {
            ping(visitor).expect("within the limit");
        }
        let start = Instant::now();
        let mut surplus = tunnel.visit();
        let (bytes, end) = read_end(&mut surplus);
        assert_eq!((&bytes[..], end), (&b""[..], End::Reset), "{side}");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{side}: refused at once, not left waiting"
        );
        for visitor in &mut held {
            ping(visitor).expect("the others do not suffer");
        }
        drop(held);
        eventually(PATIENCE, "room", || ping(&mut tunnel.visit()).ok());
    }
}

#[test]
fn frames_that_break_the_rules_end_their_channel() {
    let world = World::new();
    let server = world
        .server()
        .set("limits.handshakes_per_second_per_address", 1000)
        .start();
    // On a control channel: too long a frame, a forged one, an empty message. What is merely unknown is not.
    for (what, bytes) in [
        ("too long", vec![0, 1, 0, 1]),
        ("too short", vec![0, 0, 0, 15]),
        ("forged", [&[0, 0, 0, 40][..], &[9; 40]].concat()),
    ] {
        let mut peer = Peer::control(&world, &world.client_key, server.address());
        peer.send_raw(&[77, 0, 0, 0, 0, 0, 1, 2])
            .expect("an unknown type");
        peer.send_raw(&[5]).expect("a stump");
        peer.open_tunnel("t");
        peer.stream.write_all(&bytes).expect("send");
        let code = peer.expect("a reason", |message| match message {
            Message::Error { reason, .. } => Some(reason.code()),
            _ => None,
        });
        assert_eq!(code, 6, "{what}");
        assert!(peer.receive(PATIENCE).is_none(), "{what}");
    }
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    peer.send_raw(&[])
        .expect("an empty message ends the session");
    while peer.receive(PATIENCE).is_some() {}

    // On a data channel: what follows an end, an end with a payload, a stump, an unknown type.
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let data = |control: &mut Peer| {
        let visitor = connect((Ipv4Addr::LOCALHOST, port));
        let conn = control.incoming();
        let mut data = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        data.send(&control.ready(&conn)).expect("ready");
        data.send_data(0, b"fine").expect("send");
        (visitor, data)
    };
    for (what, message) in [
        ("an end with a payload", vec![30, 1, 0, 0, 0, 0, 1]),
        ("a stump", vec![30, 0, 0]),
        ("an unknown type", vec![77, 0, 0, 0, 0, 0]),
        ("nothing at all", vec![]),
    ] {
        let (mut visitor, mut data) = data(&mut control);
        data.send_raw(&message).expect("send");
        assert_eq!(
            read_end(&mut visitor),
            (b"fine".to_vec(), End::Reset),
            "{what}"
        );
    }
    let (mut visitor, mut channel) = data(&mut control);
    channel
        .send_data(0, b"")
        .expect("an empty piece says nothing");
    channel.send_data(1, b"").expect("the end");
    assert_eq!(read_end(&mut visitor), (b"fine".to_vec(), End::Clean));
    // The other direction is still open, until the rule is broken.
    visitor.write_all(b"more").expect("write");
    let message = channel
        .receive_raw(PATIENCE)
        .expect("opens")
        .expect("a frame");
    assert_eq!(&message[6..], b"more");
    // What comes after the end reaches nobody.
    channel.send_data(0, b"after the end").expect("send");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
}
