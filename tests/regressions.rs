//! Faults that a review or a user has found, each with the experiment that showed it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minitcptunnel_common::id::TunnelId;
use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::message::{CompressionWish, Message, Status};
use rig::*;

fn open(id: &str, port: u16) -> Message {
    Message::OpenTunnel {
        port: port.into(),
        tunnel: TunnelId::new(id).expect("short"),
        compression: CompressionWish::ServerChoice,
    }
}

/// Asks for a tunnel and waits for what became of it.
fn ask(peer: &mut Peer, id: &str, port: u16) -> (Status, String) {
    peer.send(&open(id, port)).expect("send");
    peer.expect("a status", |message| match message {
        Message::TunnelStatus {
            status,
            tunnel,
            reason,
            ..
        } if tunnel.as_str() == id => Some((status, reason)),
        _ => None,
    })
}

/// A client that was gone before the server could answer left its listener open until the server
/// was restarted.
#[test]
fn a_client_that_dies_while_it_connects_leaves_no_listener() {
    let world = World::new();
    let server = world.server().start();
    let ports: Vec<u16> = (0..30).map(|_| free_port()).collect();
    for (i, port) in ports.iter().enumerate() {
        let mut peer = Peer::shake(&world, &world.client_key, server.address()).expect("handshake");
        peer.send(&open(&format!("t{i}"), *port)).expect("send");
        reset(peer.stream);
    }
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    for (i, port) in ports.iter().enumerate() {
        let id = format!("again{i}");
        // One that was opened and is not yet known to be dead may take a moment to close.
        eventually(PATIENCE, "the port is free again", || {
            let (status, reason) = ask(&mut peer, &id, *port);
            assert!(
                status == Status::Open || reason.contains("in use"),
                "{reason}"
            );
            (status == Status::Open).then_some(())
        });
    }
}

/// Only Heartbeats made the server look at its allow list, and a client need not send any.
#[test]
fn a_revoked_client_is_cut_although_it_sends_no_heartbeats() {
    let world = World::new();
    let server = world.server().start();
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    assert_eq!(ask(&mut peer, "t", 0).0, Status::Open);
    world.allow(&[]);
    let revoked = Instant::now();
    eventually(Duration::from_secs(30), "the session is cut", || {
        // Another message each time: only silence would end the session otherwise.
        peer.send(&Message::Unknown { kind: 77 }).err()
    });
    figure(
        "revoked key cut after",
        format_args!("{:.1} s", revoked.elapsed().as_secs_f64()),
    );
    let fresh = Peer::shake(&world, &world.client_key, server.address());
    assert!(fresh.is_err(), "a removed key is not admitted again");
}

/// Two strangers who knocked while somebody saved the file made an empty allow list count.
#[test]
fn a_half_written_allow_list_revokes_nobody() {
    let world = World::new();
    let server = world.server().start();
    let stranger = IdentityKey::generate().expect("random bytes");
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    for _ in 0..10 {
        let start = Instant::now();
        world.allow(&[]);
        for _ in 0..3 {
            assert!(Peer::shake(&world, &stranger, server.address()).is_err());
        }
        world.allow(&[&world.client_key]);
        if start.elapsed() >= Duration::from_millis(900) {
            // The machine stood still meanwhile, so the file really was empty for a while.
            return;
        }
    }
    assert_eq!(ask(&mut peer, "still", 0).0, Status::Open);
}

/// A client that flooded its control channel got a larger share of the loop with every turn.
#[test]
fn a_flooding_client_does_not_starve_another() {
    let _alone = alone();
    let world = World::new();
    let other = IdentityKey::generate().expect("random bytes");
    world.allow(&[&world.client_key, &other]);
    let server = world.server().set("max_clients", 2).start();
    let mut flooder = Peer::control(&world, &world.client_key, server.address());
    let mut echoes = flooder.stream.try_clone().expect("clone");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while echoes.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    let writer = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let mut out = Vec::new();
            for _ in 0..1000 {
                out.extend_from_slice(&flooder.seal(&[90, 0, 0, 0, 0, 0]));
            }
            if flooder.stream.write_all(&out).is_err() {
                break;
            }
        }
        reset(flooder.stream);
    });
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(6) {
        let start = Instant::now();
        Peer::shake(&world, &other, server.address()).expect("the other is served");
        slowest = slowest.max(start.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("writer");
    reader.join().expect("reader");
    figure(
        "slowest handshake beside a flood",
        format_args!("{} ms", slowest.as_millis()),
    );
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
}

/// Visitors that nobody served took the descriptors that the client needed to come back.
#[test]
fn waiting_visitors_do_not_lock_the_client_out() {
    let world = World::new();
    let server = world.server().descriptors(128).start();
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    let port = peer.open_tunnel("crowded");
    // Nobody comes for them: this client ignores what it is told.
    let visitors: Vec<TcpStream> = (0..400)
        .filter_map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
        .collect();
    assert!(visitors.len() > 100, "{}", visitors.len());
    for _ in 0..20 {
        Peer::shake(&world, &world.client_key, server.address()).expect("there is room for it");
    }
}
