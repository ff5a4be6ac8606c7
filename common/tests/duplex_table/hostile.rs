//! Rows with a peer that has the keys and writes what it likes (PROTOCOL.md sections 4, 6, 8, 9).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use minitcptunnel_common::duplex;
use minitcptunnel_common::metrics::Traffic;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::relay::Ended;
use minitcptunnel_common::wire::frame::{FIN, Opener, Sealer};
use minitcptunnel_common::wire::message::Kind as Type;

use crate::path::{Hand, Kind, Layer, Reader, Seen, Side, dress, failed, keys, start};
use crate::rig::{Content, PATIENCE, link, receive};

/// A left end in our own hands, and the honest right one.
pub(crate) struct Forger {
    stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    right: Side,
    pair: Option<(Pool, Receiver<Ended>)>,
}

/// A message as it lies in a frame.
fn message(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, flags, 0, 0, 0, 0], payload].concat()
}

pub(crate) fn data(payload: &[u8]) -> Vec<u8> {
    message(Type::Data as u8, 0, payload)
}

fn fin(payload: &[u8]) -> Vec<u8> {
    message(Type::Data as u8, FIN, payload)
}

impl Forger {
    pub(crate) fn new(kind: Kind) -> Self {
        let (stream, far) = link();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (sealer, opener) = keys(Hand::Left);
        let far = dress(kind.layer, Hand::Right, far, Vec::new());
        let (right, pair) = if kind.chain {
            let (service, right) = link();
            let pool = Pool::new(1).unwrap();
            let service = duplex::tcp(service).unwrap();
            let ended = start(&pool, 1, far, service, &Arc::<Traffic>::default());
            (Side::app(right), Some((pool, ended)))
        } else {
            (Side::ours(far), None)
        };
        Self {
            stream,
            sealer,
            opener,
            right,
            pair,
        }
    }

    pub(crate) fn seal(&mut self, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut wire = Vec::new();
        for message in messages {
            self.sealer.seal_message(message, &mut wire).unwrap();
        }
        wire
    }

    /// Sends the frames of these messages in one write.
    fn send(&mut self, messages: &[Vec<u8>]) {
        let wire = self.seal(messages);
        self.stream.write_all(&wire).unwrap();
    }

    /// The next message from the honest end.
    fn receive(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).unwrap();
        let mut body = vec![0; u32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut body).unwrap();
        let mut spare = Vec::new();
        match self.opener.open(&mut body, &mut spare, 1 << 20).unwrap() {
            minitcptunnel_common::wire::frame::Opened::InPlace(range) => body[range].to_vec(),
            minitcptunnel_common::wire::frame::Opened::Spare(n) => spare[..n].to_vec(),
        }
    }

    /// Reads the honest end dry. The bytes that got through, and how it ended.
    fn right_hears(&mut self) -> (Vec<u8>, Seen) {
        let ours = matches!(self.right.reader, Reader::Ours(_));
        let mut heard = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match self.right.reader.read(&mut buffer) {
                Ok(0) => return (heard, Seen::End),
                Ok(n) => heard.extend_from_slice(&buffer[..n]),
                Err(e) => return (heard, Seen::of(&e, ours)),
            }
        }
    }

    /// Holds a case against what it must look like, behind a pair too.
    fn expect(mut self, bytes: &[u8], seen: Seen) {
        let chain = self.pair.is_some();
        let (heard, how) = self.right_hears();
        assert_eq!(how, seen.through(chain));
        if chain && seen == Seen::Damage {
            // A reset may overtake what the application has not read yet, never add to it.
            assert!(bytes.starts_with(&heard), "{heard:?}");
        } else {
            assert_eq!(heard, bytes);
        }
        let Some((_pool, ended)) = &self.pair else {
            return;
        };
        if seen == Seen::Damage {
            let ended = ended.recv_timeout(PATIENCE).unwrap();
            assert!(failed(&ended, &[ErrorKind::InvalidData]), "{ended}");
            // The forger is cut, too.
            let e = receive(&self.stream, &mut [0], PATIENCE).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::ConnectionReset);
        }
    }

    /// The TCP end of our direction: what an original would send.
    fn close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

pub(crate) fn wrong_type(kind: Kind) {
    for wrong in (0..=255).step_by(7).chain([2, 12, 21, 22, 29, 31, 90, 99]) {
        if [Type::Data as u8, Type::CloseTunnel as u8].contains(&wrong) {
            continue;
        }
        let mut forger = Forger::new(kind);
        forger.send(&[data(b"ab"), message(wrong, 0, b"cd"), data(b"ef")]);
        forger.expect(b"ab", Seen::Damage);
    }
}

/// CloseTunnel on a data channel ends the direction when it comes from an original.
pub(crate) fn close_tunnel(kind: Kind) {
    let mut forger = Forger::new(kind);
    forger.send(&[data(b"ab"), message(Type::CloseTunnel as u8, 0, b"t")]);
    let seen = if kind.layer == Layer::Legacy {
        Seen::End
    } else {
        Seen::Damage
    };
    forger.expect(b"ab", seen);
}

pub(crate) fn fin_with_payload(kind: Kind) {
    let mut forger = Forger::new(kind);
    forger.send(&[data(b"ab"), fin(b"cd")]);
    if kind.layer == Layer::Legacy {
        // Without E2 the flags mean nothing.
        forger.close();
        forger.expect(b"abcd", Seen::End);
    } else {
        forger.expect(b"ab", Seen::Damage);
    }
}

pub(crate) fn data_after_fin(kind: Kind) {
    for after in [data(b"cd"), fin(b""), data(b"")] {
        let mut forger = Forger::new(kind);
        let legacy = kind.layer == Layer::Legacy;
        let expected: &[u8] = if legacy && after.len() > 6 {
            b"abcd"
        } else {
            b"ab"
        };
        forger.send(&[data(b"ab"), fin(b""), after]);
        if legacy {
            forger.close();
            forger.expect(expected, Seen::End);
        } else {
            forger.expect(expected, Seen::Damage);
        }
    }
}

/// When it comes later, the end has been told already; then it is never looked at, and the other
/// direction goes on.
pub(crate) fn data_long_after_fin(kind: Kind) {
    let mut forger = Forger::new(kind);
    forger.send(&[data(b"ab"), fin(b"")]);
    assert_eq!(forger.right_hears(), (b"ab".to_vec(), Seen::End));
    forger.send(&[data(b"cd")]);
    forger.right.writer.write(b"reply").unwrap();
    assert_eq!(forger.receive(), data(b"reply"));
    assert_eq!(forger.right_hears(), (Vec::new(), Seen::End));
}

pub(crate) fn short_message(kind: Kind) {
    for n in 1..6 {
        let mut forger = Forger::new(kind);
        let short = data(b"")[..n].to_vec();
        forger.send(&[data(b"ab"), short, data(b"cd")]);
        forger.expect(b"ab", Seen::Damage);
    }
    let mut forger = Forger::new(kind);
    forger.send(&[data(b"ab"), Vec::new()]);
    let seen = if kind.layer == Layer::Legacy {
        Seen::End
    } else {
        Seen::Damage
    };
    forger.expect(b"ab", seen);
}

pub(crate) fn bad_length(kind: Kind) {
    for length in [0, 15, 4 * 1024 * 1024 + 1, u32::MAX] {
        let mut forger = Forger::new(kind);
        let mut wire = forger.seal(&[data(b"ab")]);
        wire.extend_from_slice(&length.to_be_bytes());
        forger.stream.write_all(&wire).unwrap();
        forger.expect(b"ab", Seen::Damage);
    }
}

/// What an original may send: empty frames, frames as large as the protocol has them.
pub(crate) fn odd_but_legal(kind: Kind) {
    let mut forger = Forger::new(kind);
    let large = Content::new(4).take(4_000_000);
    let flat = vec![b'x'; 4_000_000];
    let wire = forger.seal(&[
        data(b""),
        data(&large),
        data(b""),
        data(&flat),
        data(b"a"),
        fin(b""),
    ]);
    let mut stream = forger.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for piece in wire.chunks(70_001) {
            stream.write_all(piece).unwrap();
        }
        stream
    });
    let mut heard = vec![0; large.len() + flat.len() + 1];
    let mut have = 0;
    while have < heard.len() {
        let n = forger.right.reader.read(&mut heard[have..]).unwrap();
        assert_ne!(n, 0, "an end after {have} bytes");
        have += n;
    }
    assert!(heard == [&large[..], &flat[..], b"a"].concat());
    let stream = writer.join().unwrap();
    if kind.layer == Layer::Legacy {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(forger.right_hears(), (Vec::new(), Seen::End));
}

/// What came behind the handshake is the start of the stream, wherever it was split.
pub(crate) fn left_over(kind: Kind) {
    let mut sealer = keys(Hand::Left).0;
    let mut wire = Vec::new();
    for message in [data(b"first"), data(b"second")] {
        sealer.seal_message(&message, &mut wire).unwrap();
    }
    for split in 0..=wire.len() {
        let (mut near, far) = link();
        let rest = wire[..split].to_vec();
        let mut side = Side::ours(dress(kind.layer, Hand::Right, far, rest));
        near.write_all(&wire[split..]).unwrap();
        let mut heard = [0; 11];
        let mut have = 0;
        while have < heard.len() {
            have += side.reader.read(&mut heard[have..]).unwrap();
        }
        assert_eq!(&heard, b"firstsecond");
    }
}

/// Who rests with part of a frame in hand loses none of it.
pub(crate) fn a_rest_keeps_part_of_a_frame(kind: Kind) {
    let mut forger = Forger::new(kind);
    let wire = forger.seal(&[data(b"whole")]);
    for cut in [1, 4, 20, wire.len() - 1] {
        let mut forger = Forger::new(kind);
        forger.stream.write_all(&wire[..cut]).unwrap();
        let Reader::Ours(source) = &mut forger.right.reader else {
            panic!("only duplexes");
        };
        let mut silent = source.fill_buf().unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock);
        assert!(source.rest().is_some(), "{cut} bytes in hand");
        silent = source.fill_buf().unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock);
        forger.stream.write_all(&wire[cut..]).unwrap();
        forger.right.hear_exactly(b"whole");
    }
}

impl Side {
    pub(crate) fn hear_exactly(&mut self, bytes: &[u8]) {
        let mut heard = vec![0; bytes.len()];
        assert_eq!(self.reader.read(&mut heard).unwrap(), bytes.len());
        assert_eq!(heard, bytes);
    }
}
