//! What the link between client and server can do on a bad day. Here belongs: everything that needs the wire
//! cutter or a program that dies; how soon it is noticed, what comes back by itself, what stays behind.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::identity::IdentityKey;
use rig::{
    Bytes, Client, ClientSetup, End, Mode, PATIENCE, Peer, Server, ServerSetup, Service, Usage,
    Way, WireCutter, World, alone, connect, eventually, figure, free_port, full, ping, read_end,
    seconds, send, steady,
};

/// A tunnel whose wire goes through a cutter.
struct Wired {
    // In this order they are dropped.
    client: Client,
    cutter: WireCutter,
    server: Server,
    service: Service,
    port: u16,
    world: World,
}

impl Wired {
    /// To an echo service, with heartbeats every half second.
    fn start(
        server: impl FnOnce(ServerSetup<'_>) -> ServerSetup<'_>,
        client: impl FnOnce(ClientSetup<'_>) -> ClientSetup<'_>,
    ) -> Self {
        let service = Service::echo();
        let world = World::new();
        let server = server(world.server()).start();
        let cutter = WireCutter::to(server.address());
        let port = free_port();
        let setup = world
            .client(cutter.port())
            .hasty()
            .tunnel("t", port, service.port());
        let client = client(setup).start();
        client.port_of("t");
        Self {
            client,
            cutter,
            server,
            service,
            port,
            world,
        }
    }

    fn plain() -> Self {
        Self::start(|server| server, |client| client)
    }

    fn visit(&self) -> TcpStream {
        connect((Ipv4Addr::LOCALHOST, self.port))
    }

    /// One visitor who says something and hears it.
    fn works(&self) {
        let mut visitor = self.visit();
        assert!(ping(&mut visitor).is_ok(), "an echo through the tunnel");
        visitor.shutdown(Shutdown::Write).expect("end");
        assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
    }

    /// From `mark` on: waits until the tunnel is open again.
    fn open_again(&self, mark: usize) {
        self.client.port_from(mark, "t");
    }
}

/// Lets time go by where the test is that nothing happens meanwhile.
fn pass(time: Duration) {
    let start = Instant::now();
    eventually(PATIENCE, "time to pass", || {
        (start.elapsed() >= time).then_some(())
    });
}

#[test]
fn a_black_hole_is_noticed_in_time_and_the_session_taken_over() {
    // Half a second to the next heartbeat, half a second without an answer.
    let (limit, slack) = (Duration::from_secs(1), Duration::from_millis(600));
    for way in [Way::Both, Way::ToServer, Way::ToClient] {
        let wired = Wired::plain();
        wired.works();
        let mark = wired.client.log.mark();
        wired.cutter.set(Mode::Drop(way));
        let hole = Instant::now();
        let (_, line) = wired
            .client
            .log
            .wait_from(mark, "Disconnected from ", PATIENCE);
        let noticed = hole.elapsed();
        assert!(
            noticed < limit + slack,
            "{way:?}: noticed after {noticed:?}: {line}"
        );
        assert!(line.contains("next try in"), "{line}");
        // The server knows nothing yet, unless it could still hear the client leave: its session lives,
        // silent, and its port is open.
        let told = usize::from(way == Way::ToClient);
        assert!(
            wired.server.log.count(0, "Session ended: ") <= told,
            "{way:?}"
        );
        // Some attempts meet the same silence; none of them may hold things up when the link is back.
        let mark = wired.client.log.mark();
        wired
            .client
            .log
            .wait_from(mark, "No session with ", PATIENCE);
        let mark = wired.client.log.mark();
        wired.cutter.set(Mode::Pass);
        let back = Instant::now();
        wired.open_again(mark);
        let taken = back.elapsed();
        assert!(
            taken < Duration::from_secs(1),
            "{way:?}: taken over after {taken:?}"
        );
        // Taken over, unless the news that the old link has gone came through first.
        let taken_over = wired.server.log.count(0, "takes over from session=1");
        let gone = wired.server.log.count(0, "Session ended: session=1 ");
        assert_eq!(
            (taken_over.max(gone), taken_over.min(told)),
            (1, 0),
            "{way:?}"
        );
        wired.works();
        figure(
            "black hole",
            format_args!(
                "{way:?}: noticed after {noticed:.2?}, taken over {taken:.2?} after the link was back"
            ),
        );
    }
}

#[test]
fn a_short_stall_is_no_loss() {
    let wired = Wired::start(
        |server| server,
        |client| client.set("timeouts.heartbeat_timeout", 10),
    );
    let mut visitor = wired.visit();
    ping(&mut visitor).expect("before");
    wired.cutter.set(Mode::Hold);
    visitor.write_all(b"ping").expect("into the stall");
    let mut stranger = wired.visit();
    stranger.write_all(b"ping").expect("into the stall");
    // Longer than a heartbeat takes, so that one is under way.
    pass(Duration::from_millis(1200));
    wired.cutter.set(Mode::Pass);
    for stream in [&mut visitor, &mut stranger] {
        let mut back = [0; 4];
        stream.read_exact(&mut back).expect("what was held arrives");
        assert_eq!(&back, b"ping");
    }
    assert_eq!(wired.client.log.count(0, "Disconnected"), 0);
    assert_eq!(wired.server.log.count(0, "Session ended"), 0);
}

#[test]
fn a_half_open_link_is_taken_over_at_once() {
    let wired = Wired::plain();
    wired.works();
    let mark = wired.client.log.mark();
    let start = Instant::now();
    wired.cutter.cut_near();
    wired.open_again(mark);
    let taken = start.elapsed();
    assert!(taken < Duration::from_secs(1), "{taken:?}");
    wired.server.log.wait("takes over from session=1", PATIENCE);
    wired.works();
    figure(
        "half-open link",
        format_args!("taken over after {taken:.2?}"),
    );
}

#[test]
fn visitors_who_wait_during_a_takeover_are_served_by_the_new_session() {
    // One who is assigned to a spare does not wait: his bytes are on their way.
    let wired = Wired::start(
        |server| server,
        |client| client.set("limits.spare_channels", 0),
    );
    wired.works();
    wired.cutter.set(Mode::Drop(Way::Both));
    // The server announces this one into the hole.
    let mut visitor = wired.visit();
    visitor.write_all(b"ping").expect("write");
    wired.server.log.wait("New public connection*", PATIENCE);
    // Its end has gone into the hole as well once the next attempt has failed.
    wired.client.log.wait("No session with ", PATIENCE);
    wired.cutter.set(Mode::Pass);
    let mut back = [0; 4];
    visitor.read_exact(&mut back).expect("announced again");
    assert_eq!(&back, b"ping");
    assert_eq!(wired.server.log.count(0, "Session ended"), 1);
}

#[test]
fn a_visitor_sent_into_a_hole_is_reset_by_the_takeover() {
    let wired = Wired::plain();
    // Until the spare channel that served is one again, and another is ready beside it.
    wired.works();
    wired
        .server
        .log
        .wait("a used data channel is a spare again", PATIENCE);
    let mut known = wired.visit();
    ping(&mut known).expect("before");
    wired.cutter.set(Mode::Drop(Way::Both));
    let mut visitor = wired.visit();
    visitor.write_all(b"ping").expect("write");
    wired.client.log.wait("No session with ", PATIENCE);
    wired.cutter.set(Mode::Pass);
    assert_eq!(read_end(&mut visitor), (vec![], End::Reset));
    wired.server.log.wait(
        "reset visitors that may never have reached the client=1",
        PATIENCE,
    );
    wired.works();
}

#[test]
fn pairs_outlive_their_session() {
    let wired = Wired::plain();
    let mut visitor = wired.visit();
    ping(&mut visitor).expect("before");
    let mark = wired.client.log.mark();
    let control = wired.cutter.links()[0];
    wired.cutter.cut_one(control);
    wired
        .client
        .log
        .wait_from(mark, "Disconnected from ", PATIENCE);
    ping(&mut visitor).expect("while there is no session");
    wired.open_again(mark);
    ping(&mut visitor).expect("under the next session");
    wired.works();
    visitor.shutdown(Shutdown::Write).expect("end");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
}

#[test]
fn another_identity_is_refused_with_a_reason_and_gets_in_later() {
    let service = Service::greeter(b"first");
    let other_service = Service::greeter(b"second");
    let world = World::new();
    let other_key = IdentityKey::generate().expect("random bytes");
    world.allow(&[&world.client_key, &other_key]);
    let server = world.server().start();
    let port = free_port();
    let mut first = world
        .client(server.port)
        .tunnel("t", port, service.port())
        .start();
    first.port_of("t");
    let second = world
        .client(server.port)
        .identity(&other_key)
        .tunnel("t", port, other_service.port())
        .start();
    server.log.wait(
        "Another control session is active. Connection ignored.",
        PATIENCE,
    );
    second.log.wait("another client*next try in", PATIENCE);
    assert_eq!(second.log.count(0, "Connected to"), 0);
    let hear = || read_end(&mut connect((Ipv4Addr::LOCALHOST, port)));
    assert_eq!(hear(), (b"first".to_vec(), End::Clean));
    // It keeps asking, and it does not fill the log with it.
    assert!(server.log.count(0, "Another control session") <= 3);
    first.program.signal("TERM");
    assert_eq!(first.program.wait_exit(PATIENCE).code(), Some(0));
    second.port_of("t");
    assert_eq!(hear(), (b"second".to_vec(), End::Clean));
}

#[test]
fn the_same_identity_takes_over_and_the_old_client_does_not_fight() {
    let services = [Service::greeter(b"first"), Service::greeter(b"second")];
    let world = World::new();
    let server = world.server().start();
    let port = free_port();
    let setup = |n: usize| {
        world
            .client(server.port)
            .tunnel("t", port, services[n].port())
    };
    let first = setup(0).start();
    first.port_of("t");
    let start = Instant::now();
    let second = setup(1).start();
    second.port_of("t");
    figure(
        "same identity",
        format_args!("took over after {:.2} s", seconds(start)),
    );
    first
        .log
        .wait("another machine use the same configuration", PATIENCE);
    // Time enough to come back for somebody who would.
    pass(Duration::from_millis(1200));
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    assert_eq!(read_end(&mut visitor), (b"second".to_vec(), End::Clean));
    assert_eq!(server.log.count(0, "takes over"), 1);
    assert_eq!(second.log.count(0, "Disconnected"), 0, "no tug of war");
}

#[test]
fn a_silent_session_is_dropped() {
    // A client that thinks it has all the time in the world, behind a link that carries nothing.
    let wired = Wired::start(
        |server| server.set("timeouts.session_silence", 1.2),
        |client| {
            client
                .set("timeouts.heartbeat_interval", 0.4)
                .set("timeouts.heartbeat_timeout", 30)
        },
    );
    // Heartbeats keep a session that does nothing else.
    pass(Duration::from_millis(2500));
    assert_eq!(wired.server.log.count(0, "Session ended"), 0);
    wired.cutter.set(Mode::Drop(Way::Both));
    let hole = Instant::now();
    let line = wired.server.log.wait("Session ended: ", PATIENCE);
    let after = hole.elapsed();
    assert!(line.contains("nothing was heard"), "{line}");
    assert!(
        after > Duration::from_millis(700) && after < Duration::from_millis(2000),
        "{after:?}"
    );
    eventually(PATIENCE, "its port to close", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, wired.port))
            .is_err()
            .then_some(())
    });
    // A peer that can still hear is told why.
    let mut peer = Peer::control(
        &wired.world,
        &wired.world.client_key,
        wired.server.address(),
    );
    let code = peer.expect("a reason", |message| match message {
        minitcptunnel_common::wire::message::Message::Error { reason, .. } => Some(reason.code()),
        _ => None,
    });
    assert_eq!(code, 7);
    assert!(peer.receive(PATIENCE).is_none(), "and then it is over");
}

#[test]
fn delay_and_dribble_change_nothing_but_time() {
    let wired = Wired::start(
        |server| server,
        |client| {
            client
                .set("timeouts.handshake", 10)
                .set("timeouts.heartbeat_timeout", 10)
        },
    );
    let by = Duration::from_millis(40);
    wired.cutter.set(Mode::Delay(by));
    let start = Instant::now();
    wired.works();
    // There and back for the call, the handshake, the bytes: at least three round trips of 80 ms.
    assert!(
        start.elapsed() >= 4 * by,
        "{:?}: was it delayed at all?",
        start.elapsed()
    );
    let mut visitor = wired.visit();
    let mut out = visitor.try_clone().expect("clone");
    let sender = thread::spawn(move || send(&mut out, 1, 3_000_000).expect("send"));
    Bytes::new(1)
        .expect(&mut visitor, 3_000_000)
        .expect("delayed");
    sender.join().expect("sender");
    // Byte by byte: hellos, frames and all.
    wired.cutter.set(Mode::Dribble);
    let mark = wired.client.log.mark();
    wired.cutter.cut();
    wired.open_again(mark);
    let mut visitor = wired.visit();
    let mut out = visitor.try_clone().expect("clone");
    let sender = thread::spawn(move || send(&mut out, 2, 100_000).expect("send"));
    Bytes::new(2)
        .expect(&mut visitor, 100_000)
        .expect("dribbled");
    sender.join().expect("sender");
    wired.works();
}

#[test]
fn one_flipped_bit_ends_a_data_channel_and_never_passes() {
    let n = 200_000;
    for way in [Way::ToServer, Way::ToClient] {
        // Where a length now promises more, only a deadline ends the wait.
        let wired = Wired::start(
            |server| {
                server
                    .set("timeouts.pairing", 1)
                    .set("timeouts.first_frame", 1)
            },
            // Tampering begins with a connection: each visitor needs one of his own.
            |client| client.set("limits.spare_channels", 0),
        );
        let mut cut = 0;
        // In the hello, in the first frames' lengths and bodies, deep in the stream.
        let places = [
            0, 5, 40, 100, 146, 147, 150, 151, 160, 200, 260, 300, 1000, 65_536, 100_000,
        ];
        for at in places {
            wired.cutter.tamper(way, at, 1 << (at % 8));
            let mut visitor = wired.visit();
            let mut out = visitor.try_clone().expect("clone");
            let sender = thread::spawn(move || {
                // It may be cut while sending.
                if send(&mut out, at, n).is_ok() {
                    let _ = out.shutdown(Shutdown::Write);
                }
            });
            let (got, end) = read_end(&mut visitor);
            sender.join().expect("sender");
            let right = Bytes::new(at).take(got.len());
            assert!(
                got == right,
                "{way:?} byte {at}: wrong bytes reached the visitor"
            );
            assert_eq!(
                end,
                End::Reset,
                "{way:?} byte {at}: {} bytes, then",
                got.len()
            );
            cut += 1;
        }
        assert_eq!(cut, places.len());
        // Far behind what is sent, nothing is touched: the test itself tells a cut from a pass.
        wired.cutter.tamper(way, 1 << 40, 1);
        wired.works();
        eventually(PATIENCE, "the service to be left alone", || {
            (wired.service.live() == 0).then_some(())
        });
    }
}

#[test]
fn a_tampered_control_channel_is_replaced() {
    for way in [Way::ToServer, Way::ToClient] {
        let wired = Wired::plain();
        // Somewhere in the third heartbeat or so, long after the handshake.
        wired.cutter.tamper(way, 700, 0x10);
        let mark = wired.client.log.mark();
        wired.cutter.cut();
        wired.open_again(mark);
        let mark = wired.client.log.mark();
        wired
            .client
            .log
            .wait_from(mark, "Disconnected from ", PATIENCE);
        wired.cutter.tamper(way, 1 << 40, 1);
        wired.open_again(mark);
        wired.works();
    }
}

#[test]
fn a_server_that_is_not_there_is_asked_again_and_again() {
    let wired = Wired::plain();
    wired.cutter.set(Mode::Refuse);
    wired.cutter.cut();
    wired.client.log.wait("No session with ", PATIENCE);
    // A dozen attempts say the same thing: it is said once.
    pass(Duration::from_secs(2));
    let told = wired.client.log.count(0, "No session with ");
    assert!(told <= 3, "told {told} times");
    let mark = wired.client.log.mark();
    wired.cutter.set(Mode::Pass);
    let back = Instant::now();
    wired.open_again(mark);
    assert!(
        back.elapsed() < Duration::from_secs(1),
        "{:?}",
        back.elapsed()
    );
    wired.works();
}

#[test]
fn a_killed_server_is_found_again_when_it_is_back() {
    let service = Service::echo();
    let world = World::new();
    let mut server = world.server().start();
    let (control, port) = (server.port, free_port());
    let client = world
        .client(control)
        .hasty()
        .tunnel("t", port, service.port())
        .start();
    client.port_of("t");
    for _ in 0..3 {
        let mark = client.log.mark();
        server.program.kill();
        client.log.wait_from(mark, "Disconnected from ", PATIENCE);
        // Its ports may hold connections that linger: it must be able to come back at once.
        let start = Instant::now();
        server = world.server().set("port", control).start();
        client.port_from(mark, "t");
        figure(
            "server restart",
            format_args!("tunnel open {:.2} s after the start", seconds(start)),
        );
        let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
        ping(&mut visitor).expect("echo");
    }
}

#[test]
fn a_killed_client_is_noticed_and_the_next_one_served() {
    let service = Service::echo();
    let world = World::new();
    let server = world.server().start();
    let port = free_port();
    for n in 1..=3 {
        let mut client = world
            .client(server.port)
            .tunnel("t", port, service.port())
            .start();
        client.port_of("t");
        let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
        ping(&mut visitor).expect("echo");
        client.program.kill();
        assert_eq!(read_end(&mut visitor), (vec![], End::Reset));
        eventually(PATIENCE, "the session to end", || {
            (server.log.count(0, "Session ended: ") == n).then_some(())
        });
    }
}

/// What both programs hold, once they have come to rest.
fn at_rest(wired: &Wired) -> (Usage, Usage) {
    // Longer than a worker waits for more work before it ends (5 s).
    let calm = Duration::from_millis(5500);
    let still = || {
        let (s, c) = (wired.server.usage(), wired.client.usage());
        (s.threads, s.fds, c.threads, c.fds)
    };
    steady(PATIENCE, calm, "threads and descriptors", still);
    (wired.server.usage(), wired.client.usage())
}

#[test]
fn a_hundred_reconnects_leave_nothing_behind() {
    let _alone = alone();
    let rounds = if full() { 1000 } else { 100 };
    let wired = Wired::start(
        |server| server.set("limits.handshakes_per_second_per_address", 1000),
        |client| client.arguments(&[]),
    );
    let reconnect = |n: usize| {
        let mark = wired.client.log.mark();
        // With a connection under way, every way a link can go in turn.
        let mut visitor = wired.visit();
        ping(&mut visitor).expect("echo");
        match n % 3 {
            0 => wired.cutter.cut(),
            1 => wired.cutter.cut_near(),
            _ => wired.cutter.cut_one(wired.cutter.links()[0]),
        }
        let (mark, _) = wired.client.port_from(mark, "t");
        wired.works();
        // A half-open link leaves the server a connection that nobody will ever end.
        if n % 3 == 1 {
            wired.cutter.cut();
            wired.open_again(mark);
        }
    };
    for n in 0..10 {
        reconnect(n);
    }
    let (server_before, client_before) = at_rest(&wired);
    let start = Instant::now();
    for n in 0..rounds {
        reconnect(n);
    }
    let took = seconds(start);
    let (server_after, client_after) = at_rest(&wired);
    figure(
        "reconnects",
        format_args!(
            "{rounds} in {took:.1} s; server {server_before:?} -> {server_after:?}, client {client_before:?} -> {client_after:?}"
        ),
    );
    for (who, before, after) in [
        ("server", server_before, server_after),
        ("client", client_before, client_after),
    ] {
        assert_eq!(after.threads, before.threads, "{who}: threads");
        // Spare channels come and go with the demand; what a way of cutting leaves behind would be there by the dozen.
        assert!(
            after.fds <= before.fds + 8,
            "{who}: descriptors: {before:?} -> {after:?}"
        );
        assert!(
            after.rss_kib < before.rss_kib + 2048,
            "{who}: {before:?} -> {after:?}"
        );
    }
    wired.works();
}
