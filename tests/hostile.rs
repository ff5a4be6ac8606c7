//! What strangers can try before they are anybody, and with what a session does not answer for. Here belongs:
//! everything that costs the server something and gives nobody anything. Each test holds the
//! server to numbers: descriptors, memory, log lines, deadlines.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::message::Message;
use rig::{
    Bytes, End, PATIENCE, Peer, Server, Service, Usage, World, alone, connect, connect_from,
    eventually, figure, free_port, full, offer, raw_hello, read_end, send,
};

/// A server that answers to this test alone: short deadlines, no limit on how often one address may try.
fn server(world: &World) -> Server {
    world
        .server()
        .set("timeouts.hello", 1)
        .set("timeouts.first_frame", 1)
        .set("limits.handshakes_per_second_per_address", 100_000)
        .set("limits.pending_handshakes_per_address", 1000)
        .start()
}

/// Waits for the end of a connection on which the server must say nothing; how long it took.
fn closed_without_a_byte(what: &str, stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    let (bytes, end) = read_end(stream);
    assert_ne!(end, End::StillOpen, "{what}: left open");
    assert_eq!(bytes, b"", "{what}: answered");
    start.elapsed()
}

fn hello(key: &IdentityKey) -> Vec<u8> {
    raw_hello(key.signing_key()).1.to_vec()
}

/// The server is as it was: same descriptors, and it still lets the right client in.
fn none_the_worse(world: &World, server: &Server, before: Usage) {
    eventually(PATIENCE, "the descriptors to be given back", || {
        (server.usage().fds <= before.fds).then_some(())
    });
    let mut peer = Peer::control(world, &world.client_key, server.address());
    peer.open_tunnel("after");
}

#[test]
fn wrong_hellos_are_closed_without_an_answer() {
    let world = World::new();
    let server = server(&world);
    let before = server.usage();
    let stranger = IdentityKey::generate().expect("random bytes");
    let good = hello(&world.client_key);
    let with = |at: usize, bytes: &[u8]| {
        let mut hello = hello(&world.client_key);
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    let cases = [
        ("length 0", with(0, &[0, 0, 0, 0])),
        ("length 142", with(0, &[0, 0, 0, 142])),
        ("length 144", with(0, &[0, 0, 0, 144])),
        ("length of 4 GiB", with(0, &[255; 4])),
        ("length of 4 GiB alone", vec![255; 4]),
        ("version 0", with(4, &[0, 0])),
        ("version 2", with(4, &[0, 2])),
        ("role server", with(6, &[0])),
        ("role 2", with(6, &[2])),
        ("an unknown key", hello(&stranger)),
        ("another's key, no signature", with(83, &[0; 64])),
        ("an all-zero identity", with(7, &[0; 32])),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        (
            "a TLS hello",
            vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 9, 9, 9],
        ),
        ("an SSH banner", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
    ];
    for (what, bytes) in &cases {
        let mut stream = connect(server.address());
        // A server that closes early may reset what is still being sent.
        let _ = stream.write_all(bytes);
        let took = closed_without_a_byte(what, &mut stream);
        assert!(
            took < Duration::from_millis(700),
            "{what}: only after {took:?}"
        );
    }
    assert_eq!(cases.len(), 15);
    // The same hello untouched is answered: the test could tell.
    let mut stream = connect(server.address());
    stream.write_all(&good).expect("send");
    stream.read_exact(&mut [0; 147]).expect("an answer");
    drop(stream);
    none_the_worse(&world, &server, before);
}

#[test]
fn a_flipped_bit_anywhere_in_a_hello_is_the_end_of_it() {
    let world = World::new();
    let server = server(&world);
    let before = server.usage();
    let mut tried = 0;
    for at in 0..147 {
        for bit in [at % 8, (at + 5) % 8] {
            let mut bytes = hello(&world.client_key);
            bytes[at] ^= 1 << bit;
            let mut stream = connect(server.address());
            let _ = stream.write_all(&bytes);
            closed_without_a_byte(&format!("byte {at}, bit {bit}"), &mut stream);
            tried += 1;
        }
    }
    assert_eq!(tried, 294);
    none_the_worse(&world, &server, before);
    server.log.wait("Client connected: session=1 ", PATIENCE);
}

#[test]
fn a_flipped_bit_anywhere_in_a_first_frame_is_the_end_of_it() {
    let world = World::new();
    let server = server(&world);
    let before = server.usage();
    let mut message = Vec::new();
    offer().encode(true, &mut message);
    let len = {
        let mut peer = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        peer.seal(&message).len()
    };
    let mut waiting = Vec::new();
    for at in 0..len {
        let mut peer = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        let mut frame = peer.seal(&message);
        frame[at] ^= 1 << (at % 8);
        let _ = peer.stream.write_all(&frame);
        waiting.push((at, peer));
    }
    for (at, mut peer) in waiting {
        let took = closed_without_a_byte(&format!("byte {at}"), &mut peer.stream);
        // Where the length now promises more, the deadline closes it.
        assert!(took < Duration::from_millis(2500), "byte {at}: {took:?}");
    }
    assert_eq!(server.log.count(0, "Client connected"), 0);
    none_the_worse(&world, &server, before);
}

#[test]
fn a_replayed_hello_is_not_answered_twice() {
    let world = World::new();
    let server = server(&world);
    let before = server.usage();
    let recorded = hello(&world.client_key);
    let mut first = connect(server.address());
    first.write_all(&recorded).expect("send");
    first.read_exact(&mut [0; 147]).expect("an answer");
    for n in 0..5 {
        let mut again = connect(server.address());
        let _ = again.write_all(&recorded);
        closed_without_a_byte(&format!("replay {n}"), &mut again);
    }
    // The first one gets nowhere either: whoever replays cannot seal a first frame.
    first.write_all(&[0, 0, 0, 40]).expect("send");
    first.write_all(&[7; 40]).expect("send");
    closed_without_a_byte("a forged first frame", &mut first);
    none_the_worse(&world, &server, before);
}

#[test]
fn every_stage_has_a_deadline_that_cannot_be_stretched() {
    let world = World::new();
    let server = server(&world);
    let before = server.usage();
    let deadline = Duration::from_secs(1);
    let late = deadline + Duration::from_millis(900);
    let check = |what: &str, took: Duration| {
        assert!(
            took > deadline - Duration::from_millis(200) && took < late,
            "{what}: closed after {took:?}"
        );
    };

    let start = Instant::now();
    let mut silent = connect(server.address());
    let mut half = connect(server.address());
    half.write_all(&hello(&world.client_key)[..100])
        .expect("send");
    closed_without_a_byte("a silent one", &mut silent);
    check("a silent one", start.elapsed());
    closed_without_a_byte("half a hello", &mut half);
    check("half a hello", start.elapsed());

    // One byte at a time: each is progress, and none buys more time.
    let start = Instant::now();
    let mut dribble = connect(server.address());
    let whole = hello(&world.client_key);
    let mut out = dribble.try_clone().expect("clone");
    let sender = thread::spawn(move || {
        for byte in whole {
            if out.write_all(&[byte]).is_err() {
                return;
            }
            // A slow sender is what this is about.
            thread::sleep(Duration::from_millis(20));
        }
    });
    closed_without_a_byte("a dribbled hello", &mut dribble);
    check("a dribbled hello", start.elapsed());
    sender.join().expect("sender");

    // After the handshake: nothing, or a frame that never ends.
    let start = Instant::now();
    let mut mute = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
    let mut slow = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
    slow.stream.write_all(&[0, 0, 1, 0, 9, 9]).expect("send");
    closed_without_a_byte("handshake, then silence", &mut mute.stream);
    check("handshake, then silence", start.elapsed());
    closed_without_a_byte("a first frame that never ends", &mut slow.stream);
    check("a first frame that never ends", start.elapsed());
    none_the_worse(&world, &server, before);
}

/// Holds silent connections from many addresses, and opens new ones as they are closed, until dropped.
struct Siege {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    opened: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Siege {
    /// `each` connections from each of `addresses`, a new one `every` so often.
    fn start(
        to: SocketAddr,
        addresses: Vec<Ipv4Addr>,
        each: usize,
        every: Duration,
        say: &'static [u8],
    ) -> Self {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicUsize::new(0));
        let threads = addresses
            .into_iter()
            .map(|from| {
                let (stop, opened) = (stop.clone(), opened.clone());
                thread::spawn(move || {
                    let mut held: Vec<TcpStream> = Vec::new();
                    while !stop.load(Ordering::SeqCst) {
                        if let Ok(mut stream) = connect_from(from, to) {
                            let _ = stream.write_all(say);
                            let _ = stream.set_nonblocking(true);
                            held.push(stream);
                            opened.fetch_add(1, Ordering::SeqCst);
                        }
                        if held.len() >= each {
                            // The server's answer to the oldest is what counts, not ours: those it has closed go.
                            let count = held.len();
                            held.retain(|mut s| {
                                matches!(s.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
                            });
                            if held.len() == count {
                                held.remove(0);
                            }
                        }
                        thread::sleep(every);
                    }
                })
            })
            .collect();
        Self {
            stop,
            opened,
            threads,
        }
    }

    fn opened(&self) -> usize {
        self.opened.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn thousands_of_silent_strangers_do_not_keep_a_client_out() {
    let _alone = alone();
    // From addresses of their own, thousands per second. And from the client's own address, where nothing tells
    // the server who is who before they have spoken: there the pace is one that leaves time to speak.
    let others: Vec<Ipv4Addr> = (2..10).map(|n| Ipv4Addr::new(127, 0, 0, n)).collect();
    let own = vec![Ipv4Addr::LOCALHOST; 2];
    let fast = Duration::from_millis(if full() { 0 } else { 1 });
    let paced = Duration::from_millis(2);
    for (whence, addresses, every, say) in [
        ("elsewhere", others.clone(), fast, &b""[..]),
        ("the same address", own, paced, &b""[..]),
        (
            "elsewhere, with half a hello",
            others,
            fast,
            &[0, 0, 0, 143, 0, 1, 1][..],
        ),
    ] {
        let service = Service::echo();
        let world = World::new();
        let server = world
            .server()
            .descriptors(256)
            .arguments(&[])
            .set("timeouts.hello", 5)
            .start();
        let port = free_port();
        let client = || world.client(server.port).tunnel("t", port, service.port());
        let mut first = client().start();
        first.port_of("t");
        let before = server.usage();
        let siege = Siege::start(server.address(), addresses, 400, every, say);
        eventually(PATIENCE, "the siege to stand", || {
            (siege.opened() > 1000).then_some(())
        });
        let mut slowest = Duration::ZERO;
        for n in 0..20 {
            let start = Instant::now();
            let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
            send(&mut visitor, n, 10_000).expect("send");
            visitor.shutdown(Shutdown::Write).expect("end");
            Bytes::new(n)
                .expect(&mut visitor, 10_000)
                .unwrap_or_else(|e| panic!("visitor {n} during the siege from {whence}: {e}"));
            slowest = slowest.max(start.elapsed());
        }
        let during = server.usage();
        assert!(during.fds <= 256, "{during:?}");
        assert!(
            during.threads <= before.threads + 4,
            "{before:?} -> {during:?}"
        );
        // The client comes back through it as well.
        first.program.kill();
        let second = client().start();
        let start = Instant::now();
        second.port_of("t");
        let again = start.elapsed();
        let opened = siege.opened();
        drop(siege);
        let after = server.usage();
        assert!(
            after.rss_kib < before.rss_kib + 8 * 1024,
            "{before:?} -> {after:?}"
        );
        let lines = server.log.mark();
        assert!(
            lines < 60,
            "{opened} strangers from {whence} made {lines} lines"
        );
        figure(
            "siege",
            format_args!(
                "{opened} silent connections from {whence} against 256 descriptors: slowest echo {slowest:.2?}, \
                 client back after {again:.2?}, {during:?}, {lines} log lines"
            ),
        );
        eventually(
            PATIENCE,
            "the strangers' descriptors to be given back",
            || (server.usage().fds <= before.fds + 4).then_some(()),
        );
    }
}

#[test]
fn a_client_that_lost_its_session_is_no_stranger() {
    let service = Service::echo();
    let world = World::new();
    // Three at first, then one a second: a client that is started again and again would soon be refused.
    let server = world
        .server()
        .arguments(&[])
        .set("limits.handshakes_per_second_per_address", 1)
        .start();
    let port = free_port();
    // As often as a stranger may not.
    let (start, mut times, mut often) = (Instant::now(), 0, false);
    while times < 40 && !often {
        let mut client = world
            .client(server.port)
            .tunnel("t", port, service.port())
            .start();
        client.port_of("t");
        client.program.kill();
        times += 1;
        often = f64::from(times) >= 5.0 + start.elapsed().as_secs_f64();
        eventually(PATIENCE, "the session to end", || {
            (server.log.count(0, "Session ended: ") == times as usize).then_some(())
        });
    }
    assert_eq!(server.log.count(0, "too many connection attempts"), 0);
    assert_eq!(server.log.count(0, "Client connected: "), times as usize);
    if !often {
        figure(
            "a client started again and again",
            format_args!(
                "not tried: each start took about a second, as often as a stranger may come"
            ),
        );
    }
}

#[test]
fn a_flood_of_garbage_costs_little() {
    let _alone = alone();
    let world = World::new();
    // Every connection is let in and read, none is turned away for coming too often.
    let server = world
        .server()
        .arguments(&[])
        .set("limits.handshakes_per_second_per_address", 100_000)
        .start();
    let before = server.usage();
    let cpu = server.cpu();
    let mut sent = 0u64;
    let start = Instant::now();
    thread::scope(|scope| {
        let floods: Vec<_> = (2..10)
            .map(|n| {
                let to = server.address();
                scope.spawn(move || {
                    let mut count = 0;
                    for seed in 0..250 {
                        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 0, 1, n), to) else {
                            continue;
                        };
                        let _ = send(&mut stream, seed, 64 * 1024);
                        count += 1;
                        let (bytes, _) = read_end(&mut stream);
                        assert_eq!(bytes, b"");
                    }
                    count
                })
            })
            .collect();
        for flood in floods {
            sent += flood.join().expect("a flood");
        }
    });
    assert!(sent > 1900, "only {sent} came in");
    let after = server.usage();
    let lines = server.log.mark();
    figure(
        "garbage",
        format_args!(
            "{sent} connections in {:.1} s: {:?} of processor time, {before:?} -> {after:?}, {lines} log lines",
            start.elapsed().as_secs_f64(),
            server.cpu() - cpu
        ),
    );
    assert!(
        after.rss_kib < before.rss_kib + 4 * 1024,
        "{before:?} -> {after:?}"
    );
    assert!(
        lines < 40,
        "{lines} lines:\n{}",
        server.log.lines().join("\n")
    );
    none_the_worse(&world, &server, before);
}

/// A session by hand with one tunnel; its public port.
fn session(world: &World, server: &Server) -> (Peer, u16) {
    let mut control = Peer::control(world, &world.client_key, server.address());
    let port = control.open_tunnel("t");
    (control, port)
}

#[test]
fn only_the_right_token_claims_a_connection_and_only_once() {
    let world = World::new();
    let other = IdentityKey::generate().expect("random bytes");
    world.allow(&[&world.client_key, &other]);
    let server = world
        .server()
        .set("max_clients", 2)
        .set("limits.handshakes_per_second_per_address", 1000)
        .start();
    let (old, _) = session(&world, &server);
    let (mut control, port) = session(&world, &server);
    let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
    let conn = control.incoming();
    let right = control.ready(&conn);
    let Message::DataConnReady { token, .. } = &right else {
        unreachable!()
    };
    let claim = |who: &IdentityKey, message: &Message| {
        let mut data = Peer::shake(&world, who, server.address()).expect("shake");
        data.send(message).expect("send");
        data
    };
    let mut bent = *token;
    bent[31] ^= 1;
    let unknown = minitcptunnel_common::id::ConnId::new("00000000000000000000000000000000");
    for (what, who, message) in [
        (
            "a wrong token",
            &world.client_key,
            Message::DataConnReady {
                token: bent,
                conn: conn.clone(),
            },
        ),
        (
            "no token",
            &world.client_key,
            Message::DataConnReady {
                token: [0; 32],
                conn: conn.clone(),
            },
        ),
        (
            "a token of the session before",
            &world.client_key,
            old.ready(&conn),
        ),
        ("a stolen token", &other, right.clone()),
        (
            "a token for another connection",
            &world.client_key,
            Message::DataConnReady {
                token: *token,
                conn: unknown.expect("short"),
            },
        ),
    ] {
        let mut data = claim(who, &message);
        closed_without_a_byte(what, &mut data.stream);
    }
    // With a session of its own the thief is no better off.
    let _theirs = Peer::control(&world, &other, server.address());
    closed_without_a_byte(
        "a stolen token, with a session",
        &mut claim(&other, &right).stream,
    );
    // All that has not harmed the one who waits.
    let mut data = claim(&world.client_key, &right);
    data.send_data(0, b"to the visitor").expect("send");
    let mut got = [0; 14];
    visitor.read_exact(&mut got).expect("claimed");
    assert_eq!(&got, b"to the visitor");
    closed_without_a_byte(
        "the same token again",
        &mut claim(&world.client_key, &right).stream,
    );
    visitor.write_all(b"still there").expect("write");
    let message = data.receive_raw(PATIENCE).expect("opens").expect("a frame");
    assert_eq!(&message[6..], b"still there");
}

/// An LZ4 frame of `blocks` blocks, each of which makes 255 bytes of every byte: all of them 30, which reads as
/// the head of a Data message and its payload.
fn bomb(blocks: usize, block: usize) -> Vec<u8> {
    let mut frame = vec![0x04, 0x22, 0x4D, 0x18, 0x60, 0x70, 0x73];
    for _ in 0..blocks {
        let mut body = vec![0x1F, 30, 1, 0];
        body.resize(block - 7, 0xFF);
        body.extend([0x27, 0x50, 30, 30, 30, 30, 30]);
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(body);
    }
    frame.extend([0; 4]);
    frame
}

#[test]
fn a_bomb_expands_to_its_limit_and_no_further() {
    let _alone = alone();
    let world = World::new();
    let server = server(&world);
    // The most it ever held, not what is left afterwards.
    let before = server.peak_kib();
    // As first frames: 4 KiB that would be a megabyte each.
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut peer = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        peer.send_container(&bomb(1, 4000)).expect("send");
        held.push(peer);
    }
    for mut peer in held {
        closed_without_a_byte("a bomb as first frame", &mut peer.stream);
    }
    let after_first = server.peak_kib();
    assert!(after_first < before + 2048, "{before} -> {after_first}");

    // On a control channel: 60 KiB that would be 15 MiB.
    let mut control = Peer::control(&world, &world.client_key, server.address());
    control.send_container(&bomb(1, 60_000)).expect("send");
    while control.receive(PATIENCE).is_some() {}
    let after_control = server.peak_kib();
    assert!(after_control < before + 2048, "{before} -> {after_control}");

    // On data channels: 400 KiB that would be 100 MiB; a message may have 8.
    let (mut control, port) = session(&world, &server);
    for blocks in [1, 3, 25, 25, 25] {
        let mut visitor = connect((Ipv4Addr::LOCALHOST, port));
        let conn = control.incoming();
        let mut data = Peer::shake(&world, &world.client_key, server.address()).expect("shake");
        data.send(&control.ready(&conn)).expect("send");
        data.send_data(0, b"before").expect("send");
        visitor.read_exact(&mut [0; 6]).expect("before");
        data.send_container(&bomb(blocks, 16_459)).expect("send");
        if blocks == 1 {
            // Within the limit it is a message like any other.
            let mut got = vec![0; (4 << 20) - 6];
            visitor.read_exact(&mut got).expect("4 MiB");
            assert!(got.iter().all(|b| *b == 30));
            continue;
        }
        assert_eq!(
            read_end(&mut visitor),
            (vec![], End::Reset),
            "nothing of it comes out"
        );
    }
    let after_data = server.peak_kib();
    figure(
        "bombs",
        format_args!(
            "peak {before} KiB before, {after_first} first frames, {after_control} control, {after_data} data"
        ),
    );
    assert!(after_data < before + 20 * 1024, "{before} -> {after_data}");
}
