//! Rows with a peer that has the keys of a TLS connection and sends what it likes.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use minitcptunnel_common::channel::tls::{Handshake, Progress};
use minitcptunnel_common::duplex::{self, Duplex, Socket, Wait};
use minitcptunnel_common::pool::Pool;
use rustls::crypto::cipher::{AeadKey, Iv, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{
    CipherSuite, ClientConnection, Connection, ConnectionTrafficSecrets, ContentType,
    ProtocolVersion, ServerConnection, SupportedCipherSuite,
};

use crate::path::{Hand, Kind, Layer, Reader, Seen, Side, Writer, start};
use crate::rig::{Content, PATIENCE, eventually, link};
use crate::tls::{Terms, name, over};

/// An end of rustls' own, and the honest one, which is ours.
fn meet(layer: Layer, forger: Hand) -> (Connection, TcpStream, Duplex) {
    let suite = match layer {
        // The only cipher of 1.2 whose nonces are counted by both ends alike.
        Layer::Tls12 => CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        _ => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    };
    let terms = Terms {
        suite: Some(suite),
        ..Terms::of(layer)
    };
    let (mut stream, honest) = link();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = Socket::new(honest.try_clone().unwrap()).unwrap();
    let (mut forging, mut ours) = match forger {
        Hand::Left => {
            let mut config = terms.client(true);
            config.enable_secret_extraction = true;
            let forging = ClientConnection::new(Arc::new(config), name()).unwrap();
            let ours = Handshake::server(Arc::new(terms.server()), socket).unwrap();
            (Connection::from(forging), ours)
        }
        Hand::Right => {
            let mut config = terms.server();
            config.enable_secret_extraction = true;
            let forging = ServerConnection::new(Arc::new(config)).unwrap();
            let ours = Handshake::client(Arc::new(terms.client(true)), name(), socket).unwrap();
            (Connection::from(forging), ours)
        }
    };
    let shaking = std::thread::spawn(move || {
        while forging.is_handshaking() || forging.wants_write() {
            forging.complete_io(&mut stream).unwrap();
        }
        (forging, stream)
    });
    eventually("our end is done", || ours.step().unwrap() == Progress::Done);
    let (forging, stream) = shaking.join().unwrap();
    (forging, stream, over(ours.established(), honest))
}

/// What seals the records of an end in our own hands.
struct Keys {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Keys {
    fn of(connection: Connection) -> Self {
        let suite = connection.negotiated_cipher_suite().unwrap();
        let (sequence, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("another cipher was asked for");
        };
        Self {
            encrypter: encrypter(suite, key, iv),
            sequence,
        }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        let record = self.encrypter.encrypt(message, self.sequence).unwrap();
        self.sequence += 1;
        record.encode()
    }
}

/// An end in our own hands.
struct Forger {
    stream: TcpStream,
    keys: Keys,
    honest: Side,
}

impl Forger {
    fn new(layer: Layer, forger: Hand) -> Self {
        let (connection, stream, honest) = meet(layer, forger);
        Self {
            stream,
            keys: Keys::of(connection),
            honest: Side::ours(honest),
        }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        self.keys.record(typ, payload)
    }

    fn data(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.record(ContentType::ApplicationData, bytes)
    }

    fn close_notify(&mut self) -> Vec<u8> {
        self.record(ContentType::Alert, &[1, 0])
    }

    fn handshake(&mut self, message: &[u8]) -> Vec<u8> {
        self.record(ContentType::Handshake, message)
    }

    fn send(&mut self, records: &[Vec<u8>]) {
        self.stream.write_all(&records.concat()).unwrap();
    }

    /// Reads the honest end dry.
    fn hears(&mut self) -> (Vec<u8>, Seen) {
        let mut heard = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match self.honest.reader.read(&mut buffer) {
                Ok(0) => return (heard, Seen::End),
                Ok(n) => heard.extend_from_slice(&buffer[..n]),
                Err(e) => return (heard, Seen::of(&e, true)),
            }
        }
    }
}

fn encrypter(suite: SupportedCipherSuite, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
    match suite {
        SupportedCipherSuite::Tls12(suite) => suite.aead_alg.encrypter(key, iv.as_ref(), &[]),
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
    }
}

/// A session ticket of TLS 1.3.
fn ticket() -> Vec<u8> {
    let mut body = vec![0, 0, 1, 0, 1, 2, 3, 4, 1, 9];
    body.extend_from_slice(&1000u16.to_be_bytes());
    body.extend_from_slice(&[7; 1000]);
    body.extend_from_slice(&[0, 0]);
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[4], &len[1..], &body].concat()
}

/// Records of every length, with empty ones between, and in every kind of piece.
pub(crate) fn odd_but_legal(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Left);
    let mut content = Content::new(4);
    let mut wire = Vec::new();
    let mut all = 0;
    for len in [
        1,
        16 * 1024,
        2,
        5000,
        16 * 1024,
        16 * 1024,
        16 * 1024,
        16 * 1024,
        1,
    ] {
        for _ in 0..20 {
            wire.extend(forger.data(b""));
        }
        wire.extend(forger.data(&content.take(len)));
        all += len as u64;
    }
    wire.extend(forger.close_notify());
    let mut stream = forger.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for piece in wire.chunks(7001) {
            stream.write_all(piece).unwrap();
        }
    });
    let mut heard = Content::new(4);
    forger.honest.hear(&mut heard, all);
    assert_eq!(forger.honest.reader.drain(&mut heard), Seen::End);
    writer.join().unwrap();
}

/// What comes behind the end is to be ignored; our direction goes on.
pub(crate) fn data_after_close_notify(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Left);
    let records = [
        forger.data(b"ab"),
        forger.close_notify(),
        forger.data(b"cd"),
    ];
    forger.send(&records);
    assert_eq!(forger.hears(), (b"ab".to_vec(), Seen::End));
    forger.honest.writer.write(b"reply").unwrap();
    let mut head = [0; 5];
    forger.stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], u8::from(ContentType::ApplicationData));
    assert_eq!(forger.hears(), (Vec::new(), Seen::End));
}

/// What could be sent for ever without saying anything is damage, soon; what was said before is heard.
pub(crate) fn nothing_without_end(kind: Kind) {
    type Nothing = (&'static str, fn(&mut Forger) -> Vec<u8>);
    let nothings: [Nothing; 3] = [
        ("empty records", |forger| forger.data(b"")),
        ("warnings", |forger| {
            forger.record(ContentType::Alert, &[1, 90])
        }),
        ("changes of cipher", |_| vec![20, 3, 3, 0, 1, 1]),
    ];
    for (what, nothing) in nothings {
        let mut forger = Forger::new(kind.layer, Hand::Left);
        let mut records = vec![forger.data(b"ab")];
        records.extend((0..40).map(|_| nothing(&mut forger)));
        forger.send(&records);
        assert_eq!(forger.hears(), (b"ab".to_vec(), Seen::Damage), "{what}");
    }
}

/// A handshake message that comes in parts is put together, whatever is sent meanwhile.
pub(crate) fn ticket_in_parts(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Right);
    let ticket = ticket();
    for part in [&ticket[..1], &ticket[1..500]] {
        let part = forger.handshake(part);
        forger.send(&[part]);
        let Reader::Ours(source) = &mut forger.honest.reader else {
            panic!("only duplexes");
        };
        let silent = source.fill_buf().unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock);
        assert!(source.rest().is_some());
        forger.honest.writer.write(b"meanwhile").unwrap();
    }
    let records = [
        forger.handshake(&ticket[500..]),
        forger.data(b"ab"),
        forger.close_notify(),
    ];
    forger.send(&records);
    assert_eq!(forger.hears(), (b"ab".to_vec(), Seen::End));
}

/// Each record has the end of a message, and the start of the next.
pub(crate) fn tickets_that_never_fit(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Right);
    let endless = ticket().repeat(300);
    let records: Vec<_> = endless[..200 * 1000]
        .chunks(1000)
        .map(|part| forger.handshake(part))
        .collect();
    let mut stream = forger.stream.try_clone().unwrap();
    // The honest end goes before it has read all of this.
    let writer = std::thread::spawn(move || drop(stream.write_all(&records.concat())));
    assert_eq!(forger.hears(), (Vec::new(), Seen::Damage));
    drop(forger);
    writer.join().unwrap();
}

/// Tickets without end get a worker to themselves.
pub(crate) fn many_tickets_are_heavy(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Right);
    let ticket = ticket();
    let mut records: Vec<_> = (0..100).map(|_| forger.handshake(&ticket)).collect();
    records.push(forger.data(b"something"));
    forger.send(&records);
    let Reader::Ours(source) = &mut forger.honest.reader else {
        panic!("only duplexes");
    };
    let mut heavy = 0;
    loop {
        source.set_wait(Wait::Never);
        assert!(!source.is_heavy(), "who asks again starts anew");
        match source.fill_buf() {
            Ok(bytes) => {
                assert_eq!(bytes, b"something");
                break;
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                heavy += usize::from(source.is_heavy());
            }
        }
    }
    assert!(heavy >= 3, "{heavy} times for 100 tickets");
}

/// New keys as often as there is something to say are fine, and are answered; without a word they are not.
pub(crate) fn key_updates(kind: Kind) {
    let (mut peer, mut stream, honest) = meet(kind.layer, Hand::Left);
    let mut honest = Side::ours(honest);
    let refresh = |peer: &mut Connection| match peer {
        Connection::Client(client) => client.refresh_traffic_keys().unwrap(),
        Connection::Server(_) => unreachable!("a client was asked for"),
    };
    for round in 0..100 {
        refresh(&mut peer);
        peer.writer().write_all(b"x").unwrap();
        while peer.wants_write() {
            peer.write_tls(&mut stream).unwrap();
        }
        honest.hear_exactly(b"x");
        if round % 10 == 0 {
            honest.writer.write(b"reply").unwrap();
            let mut heard = Vec::new();
            while heard.len() < 5 {
                peer.read_tls(&mut stream).unwrap();
                peer.process_new_packets().unwrap();
                match peer.reader().read_to_end(&mut heard) {
                    Err(e) if e.kind() != ErrorKind::WouldBlock => panic!("{e}"),
                    _ => {}
                }
            }
            assert_eq!(heard, b"reply");
        }
    }
    for _ in 0..40 {
        refresh(&mut peer);
    }
    while peer.wants_write() {
        peer.write_tls(&mut stream).unwrap();
    }
    assert_eq!(honest.reader.drain(&mut Content::new(0)), Seen::Damage);
}

/// A wish to start over is refused at once, although our end has nothing else to say; the second ends it.
pub(crate) fn renegotiation(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Right);
    let hello_request = [0; 4];
    let records = [forger.handshake(&hello_request), forger.data(b"ab")];
    forger.send(&records);
    forger.honest.hear_exactly(b"ab");
    let mut head = [0; 5];
    forger.stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], u8::from(ContentType::Alert), "told at once");
    let again = forger.handshake(&hello_request);
    forger.send(&[again]);
    assert_eq!(forger.hears(), (Vec::new(), Seen::Damage));
}

/// What comes damaged after our own end is damage, as ever.
pub(crate) fn damage_after_our_end(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Left);
    forger.honest.writer.finish().unwrap();
    let whole = forger.data(b"ab");
    let mut broken = forger.data(b"cd");
    *broken.last_mut().unwrap() ^= 1;
    forger.send(&[whole, broken]);
    assert_eq!(forger.hears(), (b"ab".to_vec(), Seen::Damage));
}

/// An alert is damage with a name; behind it nothing goes any more.
pub(crate) fn fatal_alert(kind: Kind) {
    let mut forger = Forger::new(kind.layer, Hand::Left);
    let records = [
        forger.data(b"ab"),
        forger.record(ContentType::Alert, &[2, 80]),
    ];
    forger.send(&records);
    assert_eq!(forger.hears(), (b"ab".to_vec(), Seen::Damage));
    let told = forger.honest.reader.read(&mut [0]).unwrap_err();
    assert!(told.to_string().contains("InternalError"), "{told}");
    let Writer::Ours(sink) = &mut forger.honest.writer else {
        panic!("only duplexes");
    };
    let mut bytes: &[u8] = b"late";
    let refused = sink.take_from(&mut bytes).unwrap_err();
    assert_eq!(refused.error().kind(), ErrorKind::InvalidData);
}

/// Records that come in drops, and short conversations, hold no worker at any time; a peer that falls silent in the
/// middle of a large one holds none for long.
pub(crate) fn little_needs_no_worker(kind: Kind) {
    let pool = Pool::new(1).unwrap();
    let (left, external) = link();
    let (connection, mut wire, near) = meet(kind.layer, Hand::Left);
    let mut keys = Keys::of(connection);
    let external = duplex::tcp(external).unwrap();
    let ended = start(&pool, 1, external, near, &Arc::default());
    let mut left = Side::app(left);
    let mut data = |bytes: &[u8]| keys.record(ContentType::ApplicationData, bytes);
    let bytes = [data(b"one"), data(b"two"), data(b"three")].concat();
    for drop in bytes.chunks(bytes.len() / 7) {
        wire.write_all(drop).unwrap();
        // Whoever was woken has been asleep again since; without this the drops might come as one.
        eventually("both directions rest", || pool.resting() == 2);
    }
    left.hear_exactly(b"one");
    left.hear_exactly(b"two");
    left.hear_exactly(b"three");
    left.say(&mut Content::new(1), 1000);
    wire.read_exact(&mut [0]).unwrap();
    assert_eq!(pool.workers(), 0, "nobody was needed");
    let record = data(&Content::new(5).take(16 * 1024));
    wire.write_all(&record[..10_000]).unwrap();
    eventually("both directions rest", || pool.resting() == 2);
    wire.write_all(&record[10_000..]).unwrap();
    left.hear(&mut Content::new(5), 16 * 1024);
    drop((left, wire));
    ended.recv_timeout(PATIENCE).unwrap();
}
