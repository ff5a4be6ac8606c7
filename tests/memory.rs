//! What the programs hold under load. Here belongs: `memory_budget`, who is refused when it is used up, and what
//! is left when the load has gone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use rig::{
    Bytes, PATIENCE, Peer, Service, Tunnelled, World, alone, connect, eventually, figure, is_reset,
    steady,
};

/// Long enough for a busy machine; what is asserted are numbers, not times.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1024;
/// What a program holds besides its budget, in KiB: threads of busy directions with their stacks, what the
/// allocator has between its pieces, tables. Sanitizers and debug builds need more than releases.
const BESIDES: u64 = 12 * MIB;

/// Whether a visitor is answered.
fn served(tunnel: &Tunnelled) -> Option<()> {
    let mut visitor = tunnel.visit();
    visitor.write_all(b"e").ok()?;
    visitor.read_exact(&mut [0]).ok()
}

/// A service that answers `e` with one byte and anything else with all that the visitor takes.
fn greedy_service() -> Service {
    Service::start(|mut stream| {
        let mut want = [0];
        stream.read_exact(&mut want)?;
        if want[0] == b'e' {
            return stream.write_all(b"e");
        }
        let piece = Bytes::new(1).take(64 * 1024);
        loop {
            stream.write_all(&piece)?;
        }
    })
}

#[test]
fn visitors_who_never_read_hold_the_budget_and_no_more() {
    let _alone = alone();
    const BUDGET: u64 = 4 * MIB;
    let service = greedy_service();
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("memory_budget", "4 MiB"),
        |client| client.set("memory_budget", "64 MiB"),
    );
    served(&tunnel).expect("an empty server serves");
    let before = tunnel.server.usage();
    let visitors: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut visitor = tunnel.visit();
            // Who is refused may hear of it here already.
            let _ = visitor.write_all(b"g");
            visitor
        })
        .collect();
    tunnel.server.log.wait("memory_budget is used up", PATIENCE);
    let live = steady(LONG, Duration::from_secs(1), "the crowd to settle", || {
        service.live()
    });
    let crowded = tunnel.server.usage();
    figure(
        "a crowd within 4 MiB",
        format_args!("{live} of 300 served: {before:?} -> {crowded:?}"),
    );
    assert!((10..300).contains(&live), "{live}");
    assert!(
        crowded.rss_kib < before.rss_kib + BUDGET + BESIDES,
        "{before:?} -> {crowded:?}"
    );
    // Who rests has given back what he did not need; as more come, somebody is told that there is no room.
    let mut more: Vec<TcpStream> = Vec::new();
    eventually(LONG, "somebody to be refused", || {
        if more.len() < 400 {
            let mut visitor = tunnel.visit();
            let _ = visitor.write_all(b"g");
            visitor.set_nonblocking(true).expect("a socket");
            more.push(visitor);
        }
        let refused =
            |visitor: &TcpStream| matches!(visitor.peek(&mut [0]), Err(e) if is_reset(&e));
        more.iter().any(refused).then_some(())
    });

    drop((visitors, more));
    eventually(LONG, "new visitors to be served", || served(&tunnel));
    let Tunnelled { mut server, .. } = tunnel;
    server.program.signal("TERM");
    server.program.wait_exit(PATIENCE);
    let report = server.log.wait("Server stopped: ", PATIENCE);
    assert!(report.contains(" no_memory="), "{report}");
}

/// An LZ4 frame of blocks that expand 250 times: a Data message of `blocks` times 4 MiB.
fn bomb(blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x04, 0x22, 0x4D, 0x18, 0x60, 0x70, 0x73];
    for _ in 0..blocks {
        let mut body = vec![0x1F, 30, 1, 0];
        body.resize(16_000 - 7, 0xFF);
        body.extend([0x27, 0x50, 30, 30, 30, 30, 30]);
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(body);
    }
    frame.extend([0; 4]);
    frame
}

#[test]
fn bombs_that_nobody_reads_hold_the_budget_and_no_more() {
    let _alone = alone();
    const BUDGET: u64 = 16 * MIB;
    let world = World::new();
    let server = world
        .server()
        .set("memory_budget", BUDGET * 1024)
        .set("limits.handshakes_per_second_per_address", 1000)
        .start();
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let before = server.usage();
    let mut held = Vec::new();
    for _ in 0..40 {
        let visitor = connect((Ipv4Addr::LOCALHOST, port));
        let conn = control.incoming();
        let mut data = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        data.send(&control.ready(&conn)).expect("send");
        // What does not fit is closed under our hands.
        let _ = data.send_container(&bomb(1));
        held.push((visitor, data));
    }
    let rss = steady(LONG, Duration::from_secs(1), "the bombs to go off", || {
        server.usage().rss_kib / 64
    }) * 64;
    figure(
        "40 bombs of 4 MiB within 16",
        format_args!("{before:?} -> {rss} KiB"),
    );
    assert!(
        rss < before.rss_kib + BUDGET + BESIDES,
        "{before:?} -> {rss}"
    );
    assert!(rss > before.rss_kib + 4 * MIB, "some have gone off: {rss}");

    // Small frames always pass, also compressed ones.
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    let conn = control.incoming();
    let mut data = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
    data.send(&control.ready(&conn)).expect("send");
    data.send_data(0, b"small").expect("send");
    visitor.read_exact(&mut [0; 5]).expect("served beside them");

    drop(held);
    eventually(LONG, "the memory to come back", || {
        (server.usage().rss_kib < before.rss_kib + 6 * MIB).then_some(())
    });
}

#[test]
fn what_a_thousand_connections_held_is_given_back() {
    let _alone = alone();
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    let calm = Duration::from_millis(5500);
    let threads = || (tunnel.server.usage().threads, tunnel.client.usage().threads);
    let ping = |visitor: &mut TcpStream| {
        visitor.write_all(b"ping").expect("write");
        visitor.read_exact(&mut [0; 4]).expect("echo");
    };
    ping(&mut tunnel.visit());
    steady(LONG, calm, "threads to leave", threads);
    let before = (tunnel.server.usage(), tunnel.client.usage());
    let mut visitors: Vec<TcpStream> = Vec::new();
    for _ in 0..1000 {
        let mut visitor = tunnel.visit();
        ping(&mut visitor);
        visitors.push(visitor);
    }
    steady(LONG, calm, "threads to leave", threads);
    let held = (tunnel.server.usage(), tunnel.client.usage());
    drop(visitors);
    eventually(LONG, "the service to be left alone", || {
        (service.live() == 0).then_some(())
    });
    steady(LONG, calm, "threads to leave", threads);
    let after = (tunnel.server.usage(), tunnel.client.usage());
    figure(
        "a thousand came and went",
        format_args!("{before:?} -> {held:?} -> {after:?}"),
    );
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        // Without giving back it is 6 MiB and more.
        assert!(
            after.rss_kib < before.rss_kib + 3 * MIB,
            "{before:?} -> {after:?}"
        );
    }
}
