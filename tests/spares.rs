//! Spare data channels (E9): opened before anybody comes, used again and again. Here belongs: who is served without a
//! handshake, what becomes of channels between two visitors, and what spares must not outlive.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;
use rig::*;

const NEW: &str = "spare data channel of session=";
const AGAIN: &str = "a used data channel is a spare again";

/// A tunnel through a cutter.
struct Through {
    client: Client,
    server: Server,
    cutter: WireCutter,
    port: u16,
    world: World,
}

impl Through {
    /// With its first spares idle at the server.
    fn new(local: u16, keep: u16) -> Self {
        let this = Self::with(local, |client| client.set("limits.spare_channels", keep));
        this.wait_new(0, keep.into());
        this
    }

    fn with(local: u16, client: impl FnOnce(ClientSetup<'_>) -> ClientSetup<'_>) -> Self {
        let world = World::new();
        let server = world.server().start();
        let cutter = WireCutter::to(server.address());
        let client = client(world.client(cutter.port()).tunnel("t", 0, local)).start();
        let port = client.port_of("t");
        Self {
            client,
            server,
            cutter,
            port,
            world,
        }
    }

    fn visit(&self) -> TcpStream {
        connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Waits for so many channels that say they are spare, in the server's log from line `from` on.
    fn wait_new(&self, from: usize, count: usize) {
        wait_lines(&self.server, from, NEW, count);
    }
}

fn wait_lines(program: &Program, from: usize, text: &str, count: usize) {
    eventually(PATIENCE, &format!("{count} lines '{text}'"), || {
        (program.log.count(from, text) >= count).then_some(())
    });
}

/// Sends `n` bytes of `seed`, then the end, and expects the same back.
fn echoed(mut visitor: TcpStream, seed: u64, n: u64) {
    let mut out = visitor.try_clone().expect("clone");
    let sender = thread::spawn(move || {
        send(&mut out, seed, n).expect("send");
        out.shutdown(Shutdown::Write).expect("end");
    });
    Bytes::new(seed).expect(&mut visitor, n).expect("the echo");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
    sender.join().expect("sender");
}

#[test]
fn visitors_are_served_while_no_new_channel_can_be_opened() {
    let service = Service::echo();
    let tunnel = Through::new(service.port(), 2);
    tunnel.cutter.set(Mode::Refuse);
    let channels = tunnel.cutter.links();
    // Each with bytes of his own, half-closing first, from nothing to several MiB; over the same two channels.
    for seed in 0..100 {
        let n = [0, 1, 1000, 4096, 70_000, 300_000][seed as usize % 6];
        let n = if seed % 25 == 3 { 4 << 20 } else { n };
        let from = tunnel.server.log.mark();
        echoed(tunnel.visit(), seed, n);
        wait_lines(&tunnel.server, from, AGAIN, 1);
    }
    assert_eq!(tunnel.cutter.links(), channels);
    assert_eq!(service.accepted(), 100);
    assert_eq!(tunnel.server.log.count(0, "SECURITY"), 0);
}

#[test]
fn a_visitor_behind_a_long_line_waits_for_one_round_trip() {
    let service = Service::greeter(b"hello");
    let tunnel = Through::new(service.port(), 2);
    let line = Duration::from_millis(300);
    tunnel.cutter.set(Mode::Delay(line));
    let start = Instant::now();
    let mut visitor = tunnel.visit();
    let mut all = Vec::new();
    visitor.read_to_end(&mut all).expect("the greeting");
    assert_eq!(all, b"hello");
    // One way for the visitor, one for the greeting. With a handshake it cannot be less than four: the call, two
    // hellos, the greeting (the cutter answers the connection itself).
    let took = start.elapsed();
    assert!(took >= 2 * line, "{took:?}: is there a line at all?");
    assert!(took < 4 * line, "{took:?}: that may be a handshake");
    figure("greeting over 300 ms each way", format_args!("{took:?}"));
}

#[test]
fn services_that_end_first_and_services_that_wait() {
    // The service says its word and closes while the visitor still talks.
    let service = Service::start(|mut stream| {
        stream.write_all(b"word")?;
        stream.shutdown(Shutdown::Write)?;
        let (all, end) = read_end(&mut stream);
        assert_eq!((all.len(), end), (100_000, End::Clean));
        Ok(())
    });
    let tunnel = Through::new(service.port(), 1);
    tunnel.cutter.set(Mode::Refuse);
    for seed in 0..10 {
        let from = tunnel.server.log.mark();
        let mut visitor = tunnel.visit();
        assert_eq!(read_end(&mut visitor), (b"word".to_vec(), End::Clean));
        send(&mut visitor, seed, 100_000).expect("upload");
        drop(visitor);
        wait_lines(&tunnel.server, from, AGAIN, 1);
    }
    eventually(PATIENCE, "the service to be done", || {
        (service.live() == 0).then_some(())
    });
    assert_eq!(service.accepted(), 10);
}

#[test]
fn a_dead_service_resets_its_visitor_at_once() {
    let port = free_port();
    let tunnel = Through::new(port, 2);
    let start = Instant::now();
    let (all, end) = read_end(&mut tunnel.visit());
    assert_eq!((all, end), (vec![], End::Reset));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "before the pairing deadline of 10 s"
    );
    tunnel
        .client
        .log
        .wait("Refused a connection of tunnel*local service", PATIENCE);
    // That channel is gone, and what comes next is served by another.
    let service = Service::start_on(port, |mut stream| stream.write_all(b"back"));
    assert_eq!(
        read_end(&mut tunnel.visit()),
        (b"back".to_vec(), End::Clean)
    );
    drop(service);
}

#[test]
fn visitors_that_reset_and_services_that_reset_spoil_nothing() {
    let service = Service::start(|mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first)?;
        if first == *b"r" {
            reset(stream);
            return Ok(());
        }
        stream.write_all(&first)?;
        std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ())
    });
    let tunnel = Through::new(service.port(), 2);
    for _ in 0..5 {
        let mut visitor = tunnel.visit();
        visitor.write_all(b"r").expect("write");
        assert_eq!(read_end(&mut visitor), (vec![], End::Reset));
        let mut visitor = tunnel.visit();
        visitor.write_all(b"x").expect("write");
        let mut back = [0];
        visitor.read_exact(&mut back).expect("the echo");
        assert_eq!(&back, b"x");
        reset(visitor);
    }
    eventually(PATIENCE, "the service to be done", || {
        (service.live() == 0).then_some(())
    });
    assert_eq!(service.accepted(), 10);
}

#[test]
fn spares_that_are_cut_while_idle_are_nobodys_loss() {
    let service = Service::echo();
    let tunnel = Through::new(service.port(), 2);
    for round in 0..3 {
        let links = tunnel.cutter.links();
        for spare in &links[1..] {
            tunnel.cutter.cut_one(*spare);
        }
        echoed(tunnel.visit(), round, 10_000);
    }
    // And they are replaced.
    let links = tunnel.cutter.links();
    eventually(PATIENCE, "new spares", || {
        let now = tunnel.cutter.links();
        (now.len() >= 3 && now.last() >= links.last()).then_some(())
    });
    assert_eq!(tunnel.client.log.count(0, "Disconnected"), 0);
}

#[test]
fn a_new_session_has_spares_of_its_own() {
    let service = Service::echo();
    let tunnel = Through::new(service.port(), 2);
    let mark = tunnel.server.log.mark();
    tunnel.cutter.cut();
    tunnel
        .server
        .log
        .wait_from(mark, "Client connected", PATIENCE);
    tunnel.wait_new(mark, 2);
    let port = tunnel.client.port_from(0, "t").0;
    let (_, port) = tunnel.client.port_from(port, "t");
    tunnel.cutter.set(Mode::Refuse);
    echoed(connect((Ipv4Addr::LOCALHOST, port)), 1, 10_000);
}

#[test]
fn a_server_that_comes_back_is_served_again() {
    let service = Service::echo();
    let world = World::new();
    let (control, public) = (free_port(), free_port());
    let start = || world.server().set("port", control).start();
    let mut server = start();
    let client = world
        .client(control)
        .tunnel("t", public, service.port())
        .start();
    client.port_of("t");
    wait_lines(&server, 0, NEW, 2);
    echoed(connect((Ipv4Addr::LOCALHOST, public)), 1, 1000);
    let mark = client.log.mark();
    server.program.kill();
    drop(server);
    let server = start();
    client.port_from(mark, "t");
    wait_lines(&server, 0, NEW, 2);
    echoed(connect((Ipv4Addr::LOCALHOST, public)), 2, 1000);
}

#[test]
fn a_takeover_leaves_no_spare_of_the_old_session() {
    let service = Service::echo();
    let tunnel = Through::new(service.port(), 2);
    let links = tunnel.cutter.links();
    assert_eq!(links.len(), 3);
    let server = tunnel.server.address();
    let mut heir = Peer::control(&tunnel.world, &tunnel.world.client_key, server);
    // All that the old session had is closed, its spares included.
    eventually(PATIENCE, "the old channels to be closed", || {
        let left = tunnel.cutter.links();
        links.iter().all(|link| !left.contains(link)).then_some(())
    });
    // The heir has no spares, so its visitors are announced.
    let port = heir.open_tunnel("mine");
    let _visitor = connect((Ipv4Addr::LOCALHOST, port));
    heir.incoming();
}

#[test]
fn a_revoked_key_loses_its_spares() {
    let service = Service::echo();
    let tunnel = Through::new(service.port(), 2);
    assert_eq!(tunnel.cutter.links().len(), 3);
    tunnel.world.allow(&[]);
    tunnel
        .server
        .log
        .wait("Session ended*its key was revoked", PATIENCE);
    eventually(PATIENCE, "all channels to be closed", || {
        tunnel.cutter.links().is_empty().then_some(())
    });
}

#[test]
fn a_client_that_stops_takes_its_spares_along() {
    let service = Service::echo();
    let mut tunnel = Through::new(service.port(), 3);
    echoed(tunnel.visit(), 1, 1000);
    tunnel.client.program.signal("TERM");
    let status = tunnel.client.program.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0));
    tunnel.server.log.wait("Session ended", PATIENCE);
    let idle = tunnel.server.usage().fds;
    eventually(PATIENCE, "the server to have closed them", || {
        (tunnel.cutter.links().is_empty() && tunnel.server.usage().fds <= idle).then_some(())
    });
    assert_eq!(tunnel.server.log.count(0, "SECURITY"), 0);
}

#[test]
fn without_spares_everything_is_as_it_was() {
    let service = Service::echo();
    let tunnel = Through::with(service.port(), |client| {
        client.set("limits.spare_channels", 0)
    });
    for seed in 0..5 {
        assert_eq!(tunnel.cutter.links().len(), 1, "the control channel alone");
        echoed(tunnel.visit(), seed, 10_000);
        eventually(PATIENCE, "the channel to be closed", || {
            (tunnel.cutter.links().len() == 1).then_some(())
        });
    }
    assert_eq!(tunnel.server.log.count(0, NEW), 0);
    assert_eq!(tunnel.server.log.count(0, AGAIN), 0);
}

#[test]
fn a_crowd_is_served_and_its_channels_are_bounded() {
    let alone = alone();
    let service = Service::echo();
    let tunnel = Through::with(service.port(), |client| {
        client
            .set("limits.spare_channels", 2)
            .set("limits.max_spare_channels", 10)
    });
    tunnel.wait_new(0, 2);
    // With one visit behind them, for what the programs only make when they need it.
    let from = tunnel.server.log.mark();
    echoed(tunnel.visit(), 0, 1000);
    wait_lines(&tunnel.server, from, AGAIN, 1);
    let files = || (tunnel.server.usage().fds, tunnel.client.usage().fds);
    let calm = Duration::from_secs(1);
    let before = steady(PATIENCE, calm, "the open files", files);
    thread::scope(|scope| {
        for seed in 0..100 {
            let tunnel = &tunnel;
            scope.spawn(move || echoed(tunnel.visit(), seed, 20_000));
        }
    });
    assert_eq!(service.accepted(), 101);
    // The control channel, the spares, and what the client opens again before it has seen that it need not.
    steady(PATIENCE, Duration::from_secs(1), "the channels", || {
        tunnel.cutter.links().len()
    });
    let left = tunnel.cutter.links().len();
    assert!((3..=11).contains(&left), "{left} channels");
    drop(alone);
    // Nobody needs ten: after a window of 30 s, and the client's own forgetting, two are left.
    eventually(Duration::from_secs(75), "the surplus to be closed", || {
        (tunnel.cutter.links().len() == 3).then_some(())
    });
    let after = steady(PATIENCE, calm, "the open files", files);
    assert!(
        after.0 <= before.0 && after.1 <= before.1,
        "{before:?} -> {after:?}"
    );
    tunnel.cutter.set(Mode::Refuse);
    echoed(tunnel.visit(), 1, 1000);
}

#[test]
fn the_server_holds_no_more_than_its_limit() {
    let service = Service::echo();
    let world = World::new();
    let server = world.server().set("limits.idle_data_channels", 3).start();
    let cutter = WireCutter::to(server.address());
    let client = world
        .client(cutter.port())
        .tunnel("t", 0, service.port())
        .set("limits.spare_channels", 8)
        .start();
    let port = client.port_of("t");
    wait_lines(&server, 0, NEW, 8);
    // The client goes on asking for what it wants, less and less often.
    eventually(PATIENCE, "the excess to be closed", || {
        (cutter.links().len() <= 4).then_some(())
    });
    for seed in 0..10 {
        echoed(connect((Ipv4Addr::LOCALHOST, port)), seed, 1000);
    }
}

#[test]
fn only_the_session_itself_can_bring_spares() {
    let world = World::new();
    let other = IdentityKey::generate().expect("random bytes");
    world.allow(&[&world.client_key, &other]);
    let server = world.server().set("max_clients", 2).start();
    let owner = Peer::control(&world, &world.client_key, server.address());
    let _other = Peer::control(&world, &other, server.address());
    let key = SessionKey::new(owner.session_key.expect("AuthOk"));
    let ready = |token| Message::SpareReady {
        token,
        keep: 2,
        max: 4,
    };
    // Another identity with the right token, the right one with a wrong token, and with one for a conn id.
    let mut wrong = key.spare_token();
    wrong[31] ^= 1;
    for (identity, token) in [
        (&other, key.spare_token()),
        (&world.client_key, wrong),
        (
            &world.client_key,
            key.token("0123456789abcdef0123456789abcdef"),
        ),
    ] {
        let mut channel = Peer::shake(&world, identity, server.address()).expect("hellos");
        channel.send(&ready(token)).expect("send");
        assert_eq!(channel.receive(PATIENCE), None, "closed");
    }
    assert_eq!(server.log.count(0, NEW), 0);
    let mut channel = Peer::shake(&world, &world.client_key, server.address()).expect("hellos");
    channel.send(&ready(key.spare_token())).expect("send");
    server.log.wait(NEW, PATIENCE);
    // And what is spare says nothing before it is asked.
    channel.send_data(0, b"early").expect("send");
    assert_eq!(channel.receive(PATIENCE), None, "closed");
    server.log.wait("SECURITY*before it was assigned", PATIENCE);
}

#[test]
fn a_spare_is_assigned_used_and_used_again_frame_by_frame() {
    let world = World::new();
    let server = world.server().start();
    let mut control = Peer::control(&world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    let key = SessionKey::new(control.session_key.expect("AuthOk"));
    let mut channel = Peer::shake(&world, &world.client_key, server.address()).expect("hellos");
    channel
        .send(&Message::SpareReady {
            token: key.spare_token(),
            keep: 1,
            max: 1,
        })
        .expect("send");
    server.log.wait(NEW, PATIENCE);
    for round in 0..3u8 {
        let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
        let from = visitor.local_addr().expect("connected").to_string();
        channel.expect("Assign", |message| match message {
            Message::Assign {
                tunnel, visitor, ..
            } => {
                assert_eq!((tunnel.as_str(), visitor), ("t", from.clone()));
                Some(())
            }
            other => panic!("{other:?}"),
        });
        visitor.write_all(&[round]).expect("write");
        visitor.shutdown(Shutdown::Write).expect("end");
        let data = channel.receive_raw(PATIENCE).expect("open").expect("data");
        assert_eq!(data, [30, 0, 0, 0, 0, 0, round]);
        let fin = channel.receive_raw(PATIENCE).expect("open").expect("FIN");
        assert_eq!(fin, [30, 1, 0, 0, 0, 0]);
        let mark = server.log.mark();
        channel.send_data(0, b"answer").expect("send");
        channel.send_data(1, b"").expect("send");
        assert_eq!(read_end(&mut visitor), (b"answer".to_vec(), End::Clean));
        server.log.wait_from(mark, AGAIN, PATIENCE);
    }
    assert_eq!(server.log.count(0, "connected"), 1, "one session all along");
}

#[test]
fn spares_end_with_their_session_whatever_the_client_does() {
    let world = World::new();
    let server = world.server().start();
    // A client that holds on to its channels.
    let session = || {
        let control = Peer::control(&world, &world.client_key, server.address());
        let key = SessionKey::new(control.session_key.expect("AuthOk"));
        let mut channel = Peer::shake(&world, &world.client_key, server.address()).expect("hellos");
        let mark = server.log.mark();
        channel
            .send(&Message::SpareReady {
                token: key.spare_token(),
                keep: 1,
                max: 1,
            })
            .expect("send");
        server.log.wait_from(mark, NEW, PATIENCE);
        (control, channel)
    };
    let (mut first, mut its_spare) = session();
    let (second, mut other_spare) = session();
    assert_eq!(its_spare.receive(PATIENCE), None, "closed by the takeover");
    first.expect("why", |message| {
        matches!(message, Message::Error { .. }).then_some(())
    });
    drop(second);
    assert_eq!(other_spare.receive(PATIENCE), None, "closed by the loss");
    let (_third, mut last_spare) = session();
    world.allow(&[]);
    assert_eq!(last_spare.receive(PATIENCE), None, "closed by revocation");
}
