//! The reverse tunnel with services of this process. Here belongs: every shape of traffic, every way a
//! connection can end, addresses and ports. Not here: links that fail (`cuts.rs`), crowds (`readers.rs`).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rig::{
    Bytes, End, PATIENCE, Service, Tunnelled, World, alone, connect, eventually, free_port, full,
    read_end, reset, send,
};

const MIB: u64 = 1024 * 1024;

#[test]
fn floods_both_ways_at_once_arrive_whole() {
    let _alone = alone();
    let n = if full() { 1024 } else { 128 } * MIB;
    let service = Service::start(move |mut stream| {
        let mut out = stream.try_clone()?;
        let sender = thread::spawn(move || {
            send(&mut out, 1, n)?;
            out.shutdown(Shutdown::Write)
        });
        Bytes::new(2).expect(&mut stream, n)?;
        assert_eq!(stream.read(&mut [0])?, 0, "an end behind the last byte");
        sender.join().expect("sender")
    });
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    let mut out = visitor.try_clone().expect("clone");
    let start = Instant::now();
    let sender = thread::spawn(move || {
        send(&mut out, 2, n).expect("upload");
        out.shutdown(Shutdown::Write).expect("end");
    });
    Bytes::new(1).expect(&mut visitor, n).expect("download");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
    sender.join().expect("sender");
    rig::figure(
        "flood both ways",
        format_args!(
            "{} MiB each way in {:.1} s, server {:?}, client {:?}",
            n / MIB,
            rig::seconds(start),
            tunnel.server.usage(),
            tunnel.client.usage()
        ),
    );
    eventually(PATIENCE, "the service to be done", || {
        (service.live() == 0).then_some(())
    });
}

/// So many visitors at the same time, each with bytes of its own, both ways at once.
fn crowd(visitors: u64, bytes: u64) {
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    let start = Instant::now();
    thread::scope(|scope| {
        for seed in 0..visitors {
            let tunnel = &tunnel;
            scope.spawn(move || {
                let mut visitor = tunnel.visit();
                let mut out = visitor.try_clone().expect("clone");
                let sender = thread::spawn(move || {
                    send(&mut out, seed, bytes).expect("send");
                    out.shutdown(Shutdown::Write).expect("end");
                });
                Bytes::new(seed)
                    .expect(&mut visitor, bytes)
                    .unwrap_or_else(|e| panic!("stream {seed}: {e}"));
                assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
                sender.join().expect("sender");
            });
        }
    });
    assert_eq!(service.accepted(), visitors);
    rig::figure(
        &format!("{visitors} at once"),
        format_args!(
            "{:.2} s, server {:?}",
            rig::seconds(start),
            tunnel.server.usage()
        ),
    );
}

#[test]
fn two_hundred_at_once_keep_their_streams_apart() {
    let _alone = alone();
    crowd(200, 256 * 1024);
}

/// The crowd for emulated processors: 50 MiB, there and back, take them longer than a visitor may wait for its pair.
#[test]
fn forty_at_once_keep_their_streams_apart() {
    crowd(40, 32 * 1024);
}

/// The one in the middle: a machine that is busy for a moment does not move it, a delay in every round does.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn single_bytes_come_back_one_by_one() {
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    let mut rounds = Vec::new();
    for n in 0..500u32 {
        let byte = [n as u8];
        let start = Instant::now();
        visitor.write_all(&byte).expect("write");
        let mut back = [!n as u8];
        visitor.read_exact(&mut back).expect("read");
        assert_eq!(back, byte);
        rounds.push(start.elapsed());
    }
    // Without TCP_NODELAY on every leg a round trip costs 40 ms and more.
    let round = median(rounds);
    assert!(round < Duration::from_millis(20), "a round trip: {round:?}");
    rig::figure("round trip", format_args!("{round:?}"));
    // Two halves of a question, each sent by itself: where one waits for the other to be acknowledged, the
    // receiver's delayed acknowledgement (40 ms) is part of every round.
    let halves = Service::start(|mut stream| {
        loop {
            stream.read_exact(&mut [0; 2])?;
            stream.write_all(b"a")?;
            stream.write_all(b"b")?;
        }
    });
    let other = Tunnelled::to(halves.port());
    let mut asker = other.visit();
    let mut rounds = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        asker.write_all(b"a").expect("write");
        asker.write_all(b"b").expect("write");
        asker.read_exact(&mut [0; 2]).expect("read");
        rounds.push(start.elapsed());
    }
    let round = median(rounds);
    assert!(round < Duration::from_millis(20), "a question: {round:?}");
    rig::figure("question in halves", format_args!("{round:?}"));
    // And a flood of single bytes that nobody waits for.
    let mut out = visitor.try_clone().expect("clone");
    let sender = thread::spawn(move || {
        let mut bytes = Bytes::new(3);
        for _ in 0..20_000 {
            out.write_all(&bytes.take(1)).expect("write");
        }
        out.shutdown(Shutdown::Write).expect("end");
    });
    Bytes::new(3).expect(&mut visitor, 20_000).expect("all");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
    sender.join().expect("sender");
}

#[test]
fn cut_sizes_do_not_matter() {
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    for seed in 10..13 {
        let mut visitor = tunnel.visit();
        let mut out = visitor.try_clone().expect("clone");
        let total = 4 * MIB;
        let sender = thread::spawn(move || {
            let (mut bytes, mut cuts) = (Bytes::new(seed), Bytes::new(!seed));
            let mut left = total as usize;
            while left > 0 {
                // Around frame and buffer sizes most of all.
                let most = [1, 7, 100, 4096, 65_530, 65_536, 200_000][cuts.below(7)];
                let n = (1 + cuts.below(most)).min(left);
                out.write_all(&bytes.take(n)).expect("write");
                left -= n;
            }
            out.shutdown(Shutdown::Write).expect("end");
        });
        let (mut bytes, mut cuts) = (Bytes::new(seed), Bytes::new(seed + 100));
        let mut left = total as usize;
        while left > 0 {
            let n = (1 + cuts.below(150_000)).min(left);
            let mut piece = vec![0; n];
            visitor.read_exact(&mut piece).expect("read");
            assert!(piece == bytes.take(n), "wrong bytes, {left} before the end");
            left -= n;
        }
        assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
        sender.join().expect("sender");
    }
}

#[test]
fn an_answer_after_the_visitors_end_arrives() {
    // Longer than an original would wait (10 s) only in the long version.
    let pause = if full() { 12 } else { 2 };
    let service = Service::start(move |mut stream| {
        let (all, end) = read_end(&mut stream);
        assert_eq!(end, End::Clean);
        // A service that thinks for a while.
        thread::sleep(Duration::from_secs(pause));
        stream.write_all(format!("{} bytes", all.len()).as_bytes())
    });
    let tunnel = Tunnelled::to(service.port());
    for n in [0, 1, 70_000, 3_000_000] {
        let mut visitor = tunnel.visit();
        send(&mut visitor, 4, n).expect("send");
        visitor.shutdown(Shutdown::Write).expect("end");
        let (answer, end) = read_end(&mut visitor);
        assert_eq!(String::from_utf8_lossy(&answer), format!("{n} bytes"));
        assert_eq!(end, End::Clean);
    }
}

#[test]
fn an_upload_after_the_services_end_arrives() {
    let (done, got) = channel();
    let service = Service::start(move |mut stream| {
        send(&mut stream, 5, 100_000)?;
        stream.shutdown(Shutdown::Write)?;
        let (all, end) = read_end(&mut stream);
        done.send((all, end)).expect("the test waits");
        Ok(())
    });
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    Bytes::new(5)
        .expect(&mut visitor, 100_000)
        .expect("download");
    assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
    send(&mut visitor, 6, 2_000_000).expect("upload after the service's end");
    visitor.shutdown(Shutdown::Write).expect("end");
    let (all, end) = got.recv_timeout(PATIENCE).expect("the service saw the end");
    assert!(
        all == Bytes::new(6).take(2_000_000),
        "{} bytes came",
        all.len()
    );
    assert_eq!(end, End::Clean);
}

#[test]
fn what_was_sent_before_closing_arrives() {
    let (done, got) = channel();
    let service = Service::start(move |mut stream| {
        done.send(read_end(&mut stream)).expect("the test waits");
        Ok(())
    });
    let tunnel = Tunnelled::to(service.port());
    for n in [1, 100, 65_537, 300_000] {
        let mut visitor = tunnel.visit();
        send(&mut visitor, n, n).expect("send");
        drop(visitor);
        let (all, end) = got.recv_timeout(PATIENCE).expect("the service saw the end");
        assert!(
            all == Bytes::new(n).take(n as usize),
            "{} of {n}",
            all.len()
        );
        assert_eq!(end, End::Clean);
    }
}

#[test]
fn a_cut_is_never_shown_as_an_end() {
    // Of the visitor, towards the service.
    let (done, got) = channel();
    let service = Service::start(move |mut stream| {
        stream.write_all(b"hello")?;
        done.send(read_end(&mut stream)).expect("the test waits");
        Ok(())
    });
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    visitor.write_all(b"some").expect("write");
    visitor.read_exact(&mut [0; 5]).expect("hello");
    reset(visitor);
    let (_, end) = got.recv_timeout(PATIENCE).expect("the service saw it");
    assert_eq!(end, End::Reset, "a visitor's reset at the service");

    // Of the service, towards the visitor.
    let service = Service::start(|mut stream| {
        stream.write_all(b"some")?;
        stream.read_exact(&mut [0; 2])?;
        reset(stream);
        Ok(())
    });
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    visitor.read_exact(&mut [0; 4]).expect("some");
    visitor.write_all(b"go").expect("write");
    assert_eq!(read_end(&mut visitor), (vec![], End::Reset));

    // Of the tunnel itself, in the middle: on no side may it look whole.
    for side in ["client", "server"] {
        let (done, got) = channel();
        let service = Service::start(move |mut stream| {
            stream.read_exact(&mut [0; 4])?;
            stream.write_all(b"a part")?;
            // Nothing is written any more: the news of a reset goes to whoever asks first.
            done.send(read_end(&mut stream)).expect("the test waits");
            Ok(())
        });
        let mut tunnel = Tunnelled::to(service.port());
        let mut visitor = tunnel.visit();
        visitor.write_all(b"some").expect("write");
        visitor.read_exact(&mut [0; 6]).expect("a part");
        match side {
            "client" => tunnel.client.program.kill(),
            _ => tunnel.server.program.kill(),
        }
        let cut = (vec![], End::Reset);
        assert_eq!(read_end(&mut visitor), cut, "{side} killed, at the visitor");
        let at_service = got.recv_timeout(PATIENCE).expect("noticed");
        assert_eq!(at_service, cut, "{side} killed, at the service");
    }
}

#[test]
fn a_dead_service_closes_the_visitor_at_once() {
    let nobody = free_port();
    let tunnel = Tunnelled::to(nobody);
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let start = Instant::now();
        let mut visitor = tunnel.visit();
        let (bytes, end) = read_end(&mut visitor);
        slowest = slowest.max(start.elapsed());
        assert_eq!(bytes, b"");
        assert_eq!(end, End::Reset, "nobody was there: not a clean end");
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    rig::figure(
        "dead service",
        format_args!("visitor closed within {slowest:?}"),
    );
    // And the tunnel is none the worse for it.
    let _service = Service::start_on(nobody, |mut stream| stream.write_all(b"alive"));
    assert_eq!(
        read_end(&mut tunnel.visit()),
        (b"alive".to_vec(), End::Clean)
    );
}

#[test]
fn visitors_of_both_families_come_in() {
    let service = Service::greeter(b"hello");
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("bind", "::"),
        |client| client,
    );
    for mut visitor in [
        connect((Ipv4Addr::LOCALHOST, tunnel.port)),
        connect((Ipv6Addr::LOCALHOST, tunnel.port)),
    ] {
        assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
    }
    // The client may come over IPv6 as well.
    let world = World::new();
    let server = world.server().set("bind", "::1").start();
    let port = free_port();
    let client = world
        .client(server.port)
        .set("server_host", "::1")
        .tunnel("six", port, service.port())
        .start();
    let mut visitor = connect((Ipv6Addr::LOCALHOST, client.port_of("six")));
    assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
    assert!(
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(),
        "bound to ::1 only"
    );
}

#[test]
fn public_ports_listen_where_they_are_told() {
    let service = Service::greeter(b"hello");
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("tunnel_bind", "127.0.0.5"),
        |client| client,
    );
    let mut visitor = connect((Ipv4Addr::new(127, 0, 0, 5), tunnel.port));
    assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
    let line = tunnel.server.log.wait("Tunnel t listening on ", PATIENCE);
    assert!(
        line.contains(&format!("127.0.0.5:{}", tunnel.port)),
        "{line}"
    );
}

#[test]
fn several_tunnels_lead_to_their_own_services() {
    let services = [
        Service::greeter(b"first"),
        Service::greeter(b"second"),
        Service::greeter(b"third"),
    ];
    let world = World::new();
    let server = world.server().start();
    let wanted = free_port();
    let client = world
        .client(server.port)
        .tunnel("one", 0, services[0].port())
        .tunnel("two", wanted, services[1].port())
        .tunnel("drei mit Ümlaut", 0, services[2].port())
        .start();
    let names = ["one", "two", "drei mit Ümlaut"];
    let texts: [&[u8]; 3] = [b"first", b"second", b"third"];
    assert_eq!(client.port_of("two"), wanted, "the port that was asked for");
    for (name, text) in names.iter().zip(texts) {
        let mut visitor = connect((Ipv4Addr::LOCALHOST, client.port_of(name)));
        assert_eq!(
            read_end(&mut visitor),
            (text.to_vec(), End::Clean),
            "{name}"
        );
    }
}

#[test]
fn a_taken_port_is_told_and_tried_again() {
    let service = Service::greeter(b"hello");
    let world = World::new();
    let server = world.server().start();
    let port = free_port();
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("bind");
    let client = world
        .client(server.port)
        .tunnel("contested", port, service.port())
        .tunnel("free", 0, service.port())
        .start();
    let line = server.log.wait("Failed to open tunnel: ", PATIENCE);
    assert!(line.contains(" ERROR "), "{line}");
    client.log.wait(" WARN *contested*in use", PATIENCE);
    // The other tunnel does not suffer.
    let mut visitor = connect((Ipv4Addr::LOCALHOST, client.port_of("free")));
    assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
    assert_eq!(client.log.count(0, "Tunnel contested is open"), 0);
    drop(holder);
    assert_eq!(client.port_of("contested"), port);
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
}

#[test]
fn ports_outside_the_allowed_ones_are_refused() {
    let service = Service::greeter(b"hello");
    let allowed = free_port();
    let forbidden = free_port();
    let world = World::new();
    let server = world
        .server()
        .set("allowed_ports", vec![allowed.to_string()])
        .start();
    let client = world
        .client(server.port)
        .tunnel("yes", allowed, service.port())
        .tunnel("no", forbidden, service.port())
        .start();
    assert_eq!(client.port_of("yes"), allowed);
    client.log.wait("no*allowed", PATIENCE);
    assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, forbidden)).is_err());
}

#[test]
fn compression_in_every_combination_carries_the_same_bytes() {
    let text = "Some text that is said over and over and shrinks well. ".repeat(40_000);
    let expected = text.clone();
    let (done, got_back) = channel();
    let service = Service::start(move |mut stream| {
        stream.write_all(text.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        done.send(read_end(&mut stream)).expect("the test waits");
        Ok(())
    });
    for (server, client, tunnel) in [
        ("on", "on", "on"),
        ("off", "on", "auto"),
        ("on", "off", "off"),
        ("auto", "auto", "on"),
    ] {
        let world = World::new();
        let server = world.server().set("compression", server).start();
        let mut setup =
            world
                .client(server.port)
                .set("compression", client)
                .tunnel("t", 0, service.port());
        setup = setup.set_tunnel(0, "compression", tunnel);
        let client = setup.start();
        let mut visitor = connect((Ipv4Addr::LOCALHOST, client.port_of("t")));
        let mut got = vec![0; expected.len()];
        visitor.read_exact(&mut got).expect("all of it");
        assert!(got == expected.as_bytes());
        visitor.write_all(&got).expect("back");
        visitor.shutdown(Shutdown::Write).expect("end");
        let (rest, end) = read_end(&mut visitor);
        assert_eq!((rest.len(), end), (0, End::Clean));
        let (back, end) = got_back
            .recv_timeout(PATIENCE)
            .expect("all of it came back");
        assert_eq!((back.len(), end), (got.len(), End::Clean), "{tunnel}");
        assert!(back == got, "the way back");
    }
}

#[test]
fn the_port_of_a_killed_client_closes() {
    let service = Service::echo();
    let mut tunnel = Tunnelled::to(service.port());
    tunnel.client.program.kill();
    eventually(PATIENCE, "the public port to close", || {
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, tunnel.port))
            .is_err()
            .then_some(())
    });
}
