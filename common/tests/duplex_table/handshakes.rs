//! Rows about the birth of a TLS connection.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::tls::{Established, Handshake, HandshakeError, Progress};
use minitcptunnel_common::duplex::Socket;
use rustls::{AlertDescription, ClientConnection};

use crate::path::{Kind, Layer, Seen, Side};
use crate::rig::{Content, eventually, link};
use crate::tls::{Terms, established, name, over, shake};

/// A peer that speaks TCP, and our listening end.
fn server(terms: Terms) -> (std::net::TcpStream, Handshake) {
    let (peer, near) = link();
    peer.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
    let socket = Socket::new(near).unwrap();
    (
        peer,
        Handshake::server(Arc::new(terms.server()), socket).unwrap(),
    )
}

/// Steps until it is over.
fn outcome(mut handshake: Handshake) -> Result<Established, HandshakeError> {
    let mut result = Ok(Progress::WantRead);
    eventually("the handshake is over", || {
        result = handshake.step();
        !matches!(result, Ok(Progress::WantRead | Progress::WantWrite))
    });
    result.map(|_| handshake.established())
}

/// The first bytes of a client.
fn hello(terms: Terms) -> Vec<u8> {
    let mut client = ClientConnection::new(Arc::new(terms.client(true)), name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// A step takes what is there, be it one byte, and does not wait for more.
pub(crate) fn in_single_bytes(kind: Kind) {
    let terms = Terms::of(kind.layer);
    let (mut wire, mut ours) = server(terms);
    let mut client = ClientConnection::new(Arc::new(terms.client(true)), name()).unwrap();
    while client.is_handshaking() || client.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        for byte in bytes {
            assert_ne!(ours.step().unwrap(), Progress::Done);
            wire.write_all(&[byte]).unwrap();
        }
        let _ = ours.step().unwrap();
        if client.is_handshaking() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let mut done = outcome(ours).unwrap();
    assert_eq!(done.peer_certificates().len(), 1);
    assert_eq!(done.state().protocol_version(), Some(terms.version.version));
    done.look().unwrap();
}

/// What comes in one piece with the end of the handshake is the start of the stream, looked at or not.
pub(crate) fn early_bytes(kind: Kind) {
    let terms = Terms::of(kind.layer);
    for looked_at in [false, true] {
        let (mut wire, mut ours) = server(terms);
        let mut client = ClientConnection::new(Arc::new(terms.client(true)), name()).unwrap();
        // Kept by rustls until it may go, right behind the handshake.
        let mut content = Content::new(6);
        client.writer().write_all(&content.take(40_000)).unwrap();
        while client.is_handshaking() || client.wants_write() {
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let _ = ours.step().unwrap();
            if client.is_handshaking() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        let socket = ours.socket().clone();
        let mut done = outcome(ours).unwrap();
        if looked_at {
            done.look().unwrap();
        }
        let ledger = Default::default();
        let duplex = minitcptunnel_common::channel::tls::duplex(done, socket, &ledger);
        Side::ours(duplex).hear(&mut Content::new(6), 40_000);
    }
}

/// A peer that sends a byte now and then is cut at the deadline of the whole.
pub(crate) fn dribble(kind: Kind) {
    const LIMIT: Duration = Duration::from_millis(300);
    let (mut wire, ours) = server(Terms::of(kind.layer));
    let bytes = hello(Terms::of(kind.layer));
    let socket = ours.socket().clone();
    thread::scope(|s| {
        s.spawn(move || {
            for byte in bytes {
                if wire.write_all(&[byte]).is_err() {
                    break;
                }
                thread::park_timeout(Duration::from_millis(10));
            }
        });
        let start = Instant::now();
        let result = ours.run(start + LIMIT).map(drop);
        let took = start.elapsed();
        assert!(
            matches!(result, Err(HandshakeError::TimedOut)),
            "{result:?}"
        );
        assert!(took >= LIMIT && took < 2 * LIMIT, "{took:?}");
        minitcptunnel_common::duplex::Abortable::abort(&*socket);
        drop(socket);
    });
}

/// Both ends with threads of their own.
pub(crate) fn run(kind: Kind) {
    let terms = Terms::of(kind.layer);
    let (near, ours) = server(terms);
    let socket = Socket::new(near).unwrap();
    let theirs = Handshake::client(Arc::new(terms.client(true)), name(), socket).unwrap();
    let deadline = Instant::now() + crate::rig::PATIENCE;
    thread::scope(|s| {
        let server = s.spawn(|| ours.run(deadline).unwrap());
        let client = theirs.run(deadline).unwrap();
        assert_eq!(client.peer_certificates().len(), 1);
        assert_eq!(server.join().unwrap().peer_certificates().len(), 1);
    });
}

/// A peer that goes, one that does not speak TLS, and one that never comes to the point.
pub(crate) fn nonsense(kind: Kind) {
    let terms = Terms::of(kind.layer);
    for n in [0, 1, 5, 100] {
        let (mut peer, ours) = server(terms);
        peer.write_all(&hello(terms)[..n]).unwrap();
        drop(peer);
        let result = outcome(ours).map(drop);
        assert!(matches!(result, Err(HandshakeError::Cut)), "{result:?}");
    }
    let (mut peer, ours) = server(terms);
    peer.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let result = outcome(ours).map(drop);
    assert!(
        matches!(result, Err(HandshakeError::Refuses(_))),
        "{result:?}"
    );
    let mut told = [0; 7];
    peer.read_exact(&mut told).unwrap();
    assert_eq!([told[0], told[5]], [21, 2], "a fatal alert");
    // The head of a message that is long, and then a byte a record.
    let (mut peer, ours) = server(terms);
    let mut bytes = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    for _ in 0..1000 {
        bytes.extend_from_slice(&[22, 3, 1, 0, 1, 0]);
    }
    peer.write_all(&bytes).unwrap();
    let result = outcome(ours).map(drop);
    assert!(matches!(result, Err(HandshakeError::TooMuch)), "{result:?}");
}

/// A message that is said to be long is received up to the bound, and no byte further.
pub(crate) fn hello_without_end(kind: Kind) {
    const BOUND: usize = 32 * 1024;
    let terms = Terms::of(kind.layer);
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.resize(5 + 0x4000, 0);
    let mut bytes = record.repeat(3);
    // A ClientHello of 64 KiB.
    bytes[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    let (mut peer, ours) = server(terms);
    peer.write_all(&bytes[..BOUND - 1]).unwrap();
    drop(peer);
    let result = outcome(ours).map(drop);
    assert!(matches!(result, Err(HandshakeError::Cut)), "{result:?}");
    // The peer stays and sends no more: it is not waited for.
    let (mut peer, ours) = server(terms);
    peer.write_all(&bytes[..BOUND]).unwrap();
    let result = outcome(ours).map(drop);
    assert!(matches!(result, Err(HandshakeError::TooMuch)), "{result:?}");
    let said = result.unwrap_err().to_string();
    assert!(said.contains("32 KiB"), "{said}");
}

/// A client with a chain of three certificates, larger than those with RSA keys of 4096 bits are.
pub(crate) fn long_chain(kind: Kind) {
    let (near, far) = link();
    let (client, server) = crate::tls::with_long_chain(Terms::of(kind.layer));
    let ends = [
        Handshake::client(Arc::new(client), name(), Socket::new(near).unwrap()).unwrap(),
        Handshake::server(Arc::new(server), Socket::new(far).unwrap()).unwrap(),
    ];
    let [_, server] = shake(ends);
    let shown = server.peer_certificates();
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|certificate| certificate.len() > 3000));
}

/// A client that shows no certificate: with TLS 1.2 its handshake fails, with TLS 1.3 its first read.
pub(crate) fn refused_certificate(kind: Kind) {
    let terms = Terms::of(kind.layer);
    for looked_at in [false, true] {
        let (peer, mut ours) = server(terms);
        let socket = Socket::new(peer).unwrap();
        let config = Arc::new(terms.client(false));
        let mut client = Handshake::client(config, name(), socket.clone()).unwrap();
        let (mut refusal, mut result) = (None, Ok(Progress::WantRead));
        eventually("the server refuses", || {
            if result.is_ok() {
                result = client.step();
            }
            match ours.step() {
                Ok(progress) => assert_ne!(progress, Progress::Done),
                Err(e) => refusal = Some(e),
            }
            refusal.is_some()
        });
        let refusal = refusal.unwrap();
        assert!(matches!(refusal, HandshakeError::Refuses(_)), "{refusal}");
        if kind.layer == Layer::Tls12 {
            let refused = outcome(client).map(drop).unwrap_err();
            assert!(refused.is_about_our_certificate(), "{refused}");
            continue;
        }
        let mut done = outcome(client).unwrap();
        if looked_at {
            let mut looked = Ok(true);
            eventually("it is told", || {
                looked = done.look();
                looked.is_err()
            });
            let refused = looked.unwrap_err();
            assert!(refused.is_about_our_certificate(), "{refused}");
            continue;
        }
        let ledger = Default::default();
        let duplex = minitcptunnel_common::channel::tls::duplex(done, socket, &ledger);
        let mut side = Side::ours(duplex);
        let seen = side.reader.drain(&mut Content::new(0));
        assert_eq!(seen, Seen::Other(ErrorKind::PermissionDenied));
    }
}

/// Ends that have no version in common, and a name that is not the server's.
pub(crate) fn nothing_in_common(kind: Kind) {
    let terms = Terms::of(kind.layer);
    let other = Terms::of(match kind.layer {
        Layer::Tls12 => Layer::Tls13,
        _ => Layer::Tls12,
    });
    let meet = |client: Terms, name: &'static str| {
        let (peer, mut ours) = server(terms);
        let socket = Socket::new(peer).unwrap();
        let config = Arc::new(client.client(true));
        let mut client = Handshake::client(config, name.try_into().unwrap(), socket).unwrap();
        let mut results = [const { None }; 2];
        eventually("both have failed", || {
            for (end, result) in [&mut client, &mut ours].into_iter().zip(&mut results) {
                if result.is_none() {
                    *result = end.step().err();
                }
            }
            results.iter().all(Option::is_some)
        });
        results.map(Option::unwrap)
    };
    let [client, server] = meet(other, "localhost");
    let version = AlertDescription::ProtocolVersion;
    assert!(
        matches!(client, HandshakeError::Refused(alert) if alert == version),
        "{client}"
    );
    assert!(matches!(server, HandshakeError::Refuses(_)), "{server}");
    let [client, server] = meet(terms, "elsewhere");
    assert!(matches!(client, HandshakeError::Refuses(_)), "{client}");
    assert!(matches!(server, HandshakeError::Refused(_)), "{server}");
}

/// A ready connection that its peer gives up is of no use.
pub(crate) fn ready_and_gone(kind: Kind) {
    let terms = Terms::of(kind.layer);
    let (peer, ours) = server(terms);
    let socket = Socket::new(peer).unwrap();
    let theirs = Handshake::client(Arc::new(terms.client(true)), name(), socket.clone()).unwrap();
    let [client, mut ours] = shake([theirs, ours]);
    ours.look().unwrap();
    let ledger = Default::default();
    let mut duplex = minitcptunnel_common::channel::tls::duplex(client, socket, &ledger);
    duplex.sink.finish().unwrap();
    let mut looked = Ok(true);
    eventually("it is told", || {
        looked = ours.look();
        looked.is_err()
    });
    assert!(matches!(looked, Err(HandshakeError::Cut)), "{looked:?}");
}

/// Where the budget is used up a connection says so, and does not begin.
pub(crate) fn no_memory(kind: Kind) {
    use minitcptunnel_common::budget::{Budget, LEAST, Want};
    use minitcptunnel_common::channel::ledger::Ledger;
    let budget = Budget::new(LEAST);
    let mut all = budget.half(0);
    assert!(all.hold(LEAST, Want::Need));
    let ledger = Ledger {
        budget,
        ..Ledger::default()
    };
    let (_far, near) = link();
    let [client, _] = established(Terms::of(kind.layer));
    let socket = Socket::new(near).unwrap();
    let duplex = minitcptunnel_common::channel::tls::duplex(client, socket, &ledger);
    let seen = Side::ours(duplex).reader.drain(&mut Content::new(0));
    assert_eq!(seen, Seen::Other(ErrorKind::OutOfMemory));
    drop(all);
    let (_far, near) = link();
    let [client, _] = established(Terms::of(kind.layer));
    let silent = over(client, near).source.fill_buf().map(<[u8]>::len);
    assert_eq!(silent.unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// What a connection takes while bytes flow it gives back when they do not.
pub(crate) fn memory_comes_back(kind: Kind) {
    use minitcptunnel_common::channel::ledger::Ledger;
    const MUCH: u64 = 1 << 20;
    let ledger = Ledger::default();
    let (near, far) = link();
    let [client, server] = established(Terms::of(kind.layer));
    let socket = Socket::new(near).unwrap();
    let near = minitcptunnel_common::channel::tls::duplex(client, socket, &ledger);
    let (mut near, mut far) = (Side::ours(near), Side::ours(over(server, far)));
    let at_rest = ledger.budget.used();
    assert!(at_rest > 0, "a session counts");
    let mut most = 0;
    for outwards in [true, false] {
        let (from, to) = if outwards {
            (&mut near.writer, &mut far.reader)
        } else {
            (&mut far.writer, &mut near.reader)
        };
        thread::scope(|s| {
            s.spawn(|| from.send(&mut Content::new(2), MUCH, None).unwrap());
            to.expect(&mut Content::new(2), MUCH);
        });
        most = most.max(ledger.budget.used());
        near.rest();
        assert_eq!(ledger.budget.used(), at_rest);
    }
    assert!(most > at_rest + 64 * 1024, "large buffers count: {most}");
}
