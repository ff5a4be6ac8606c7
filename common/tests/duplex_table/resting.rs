//! Rows about what happens at rest: what needs a worker, and what does not.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread::{spawn, yield_now};

use minitcptunnel_common::budget::{Budget, LEAST};
use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::sealed::{Compression, End, sealed};
use minitcptunnel_common::duplex::{self, Abortable, Duplex, Fault, Socket, Source, Wait};
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::relay::Why;
use socket2::SockRef;

use crate::hostile::{Forger, data};
use crate::path::{Hand, Kind, Layer, Seen, Side, dress, dress_both, keys, start};
use crate::rig::{Content, PATIENCE, Random, eventually, link};

/// A frame that comes in drops, and short conversations, hold no worker at any time.
pub(crate) fn little_needs_no_worker(kind: Kind) {
    let pool = Pool::new(1).unwrap();
    let (left, external) = link();
    let (near, mut wire) = link();
    let external = duplex::tcp(external).unwrap();
    let near = dress(kind.layer, Hand::Right, near, Vec::new());
    let ended = start(&pool, 1, external, near, &Arc::default());
    let mut left = Side::app(left);
    let bytes = Forger::new(kind).seal(&[data(b"one"), data(b"two"), data(b"three")]);
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
    drop((left, wire));
    ended.recv_timeout(PATIENCE).unwrap();
}

/// More than the buffers of [`link`] hold, in bytes.
const LITTLE: usize = 1 << 20;

/// Who does not read, and who sends what takes long to work on, hold up nobody: not those who rest
/// in the same thread, and not the thread that begins the pair.
pub(crate) fn nobody_is_held_up(kind: Kind) {
    let pool = Pool::new(8).unwrap();
    let tcp = |stream| duplex::tcp(stream).unwrap();
    let pair = |external: TcpStream, near: TcpStream| {
        let near = dress(kind.layer, Hand::Right, near, Vec::new());
        start(&pool, 1, tcp(external), near, &Arc::default())
    };
    let (mut left, external) = link();
    let (near, wire) = link();
    let _ended = pair(external, near);
    let mut right = Side::ours(dress(kind.layer, Hand::Left, wire, Vec::new()));
    let mut talk = |what: &str| {
        left.write_all(what.as_bytes()).unwrap();
        right.hear_exactly(what.as_bytes());
    };
    // One frame of nothing but zeros, which is small once it is packed, and one that is not.
    let zeros = vec![0; 2 << 20];
    let random = Content::new(7).take(2 << 20);
    for plain in [&zeros, &random] {
        for there_before in [true, false] {
            let (left, external) = link();
            let (near, wire) = link();
            // The smallest there is: some frames do not fit in one go. Receive buffers are left alone: one
            // that shrinks below its window drops what comes, and the system waits ever longer.
            SockRef::from(&near).set_send_buffer_size(1).unwrap();
            let frame = Forger::new(kind).seal(&[data(plain)]);
            let mut out = wire.try_clone().unwrap();
            let mut app = left.try_clone().unwrap();
            let write = || {
                // Never the zeros: packed they fit, and then this direction only passes through a worker.
                let little = random[..LITTLE].to_vec();
                let frame = frame.clone();
                [
                    spawn(move || out.write_all(&frame).unwrap()),
                    spawn(move || app.write_all(&little).unwrap()),
                ]
            };
            let (writers, ended) = if there_before {
                let writers = write();
                for end in [&external, &near] {
                    assert_eq!(end.peek(&mut [0]).unwrap(), 1, "there before the pair is");
                }
                (writers, pair(external, near))
            } else {
                let ended = pair(external, near);
                eventually("both directions rest", || pool.resting() == 4);
                (write(), ended)
            };
            talk("while they begin");
            eventually("both directions are a worker's", || pool.resting() == 2);
            talk("while they are full");
            let mut left = Side::app(left);
            let mut right = Side::ours(dress(kind.layer, Hand::Left, wire, Vec::new()));
            for (reader, sent) in [
                (&mut left.reader, &plain[..]),
                (&mut right.reader, &random[..LITTLE]),
            ] {
                let mut heard = vec![0; sent.len()];
                let mut n = 0;
                while n < heard.len() {
                    n += reader.read(&mut heard[n..]).unwrap();
                }
                assert!(heard == sent, "what could not be sent at once is not lost");
            }
            for writer in writers {
                writer.join().unwrap();
            }
            drop((left, right));
            ended.recv_timeout(PATIENCE).unwrap();
            eventually("nothing is left of it", || pool.live() == 1);
        }
    }
}

/// A sink that does not wait loses nothing, wherever in a frame the system takes no more.
pub(crate) fn nothing_is_lost_unwaited(kind: Kind) {
    const LEN: u64 = 1 << 20;
    let (mut left, external) = link();
    let (near, wire) = link();
    let mut external = duplex::tcp(external).unwrap();
    SockRef::from(&near).set_send_buffer_size(1).unwrap();
    let (mut near, right) = if kind.layer == Layer::Tcp {
        (duplex::tcp(near).unwrap(), Side::app(wire))
    } else {
        let [right, near] = dress_both(kind.layer, wire, near);
        (near, Side::ours(right))
    };
    let mut content = Content::new(3);
    let writer = spawn(move || left.write_all(&content.take(LEN as usize)).unwrap());
    external.source.set_wait(Wait::Never);
    near.sink.set_wait(Wait::Never);
    let (mut moved, mut full) = (0, 0);
    let (mut right, mut reader) = (Some(right), None);
    while moved < LEN {
        match near.sink.take_from(&mut *external.source) {
            Ok(n) => moved += n as u64,
            Err(Fault::Sink(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                full += 1;
                // Nobody reads before it is full for the first time.
                if let Some(mut right) = right.take() {
                    reader = Some(spawn(move || right.hear(&mut Content::new(3), LEN)));
                }
                yield_now();
            }
            Err(Fault::Source(e)) if e.kind() == io::ErrorKind::WouldBlock => yield_now(),
            Err(fault) => panic!("{}", fault.error()),
        }
    }
    assert!(full > 0);
    writer.join().unwrap();
    // What is left of the last frame goes before the end does.
    near.sink.set_wait(Wait::Patient);
    assert_eq!(near.sink.take_from(&mut *external.source).unwrap(), 0);
    near.sink.finish().unwrap();
    reader.unwrap().join().unwrap();
}

/// A peer that falls silent in the middle of a frame, however large, holds no worker.
pub(crate) fn silence_within_a_frame(kind: Kind) {
    let pool = Pool::new(1).unwrap();
    let (left, external) = link();
    let (near, mut wire) = link();
    let external = duplex::tcp(external).unwrap();
    let near = dress(kind.layer, Hand::Right, near, Vec::new());
    let _ended = start(&pool, 1, external, near, &Arc::default());
    let plain = Content::new(5).take(300_000);
    let frame = Forger::new(kind).seal(&[data(&plain)]);
    wire.write_all(&frame[..80_000]).unwrap();
    // Larger than ours, so that a worker takes it up.
    eventually("a worker takes it up", || pool.workers() == 1);
    eventually("it rests again", || pool.resting() == 2);
    wire.write_all(&frame[80_000..]).unwrap();
    Side::app(left).hear(&mut Content::new(5), plain.len() as u64);
}

/// What came behind the last use of a channel counts, before anything else is read.
pub(crate) fn left_over_is_in_the_budget(kind: Kind) {
    let (_wire, near) = link();
    let (sealer, opener) = keys(Hand::Right);
    let ledger = Ledger {
        budget: Budget::new(LEAST),
        ..Ledger::default()
    };
    // Random, so that it is stored and opened where it lies.
    let mut random = Random(1);
    let noise: Vec<u8> = (0..LEAST / 4)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    let rest = Forger::new(kind).seal(&[data(&noise)]);
    let end = End::Fin;
    let mut near = sealed(near, sealer, opener, rest, end, Compression::Off, &ledger).unwrap();
    let e = near.source.fill_buf().map(<[u8]>::len).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::OutOfMemory);
}

/// A peer that sends frames without end, and nothing in them, gets a worker to itself; so does one that
/// sends a frame larger than ours.
pub(crate) fn much_is_heavy(kind: Kind) {
    let (mut wire, near) = link();
    let mut near = dress(kind.layer, Hand::Right, near, Vec::new());
    near.source.set_wait(Wait::Never);
    let large = Forger::new(kind).seal(&[data(&Content::new(1).take(1 << 20))]);
    wire.write_all(&large[..100]).unwrap();
    eventually("it is heavy", || {
        let e = near.source.fill_buf().map(<[u8]>::len).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        near.source.is_heavy()
    });

    let (mut wire, near) = link();
    let mut near = dress(kind.layer, Hand::Right, near, Vec::new());
    let source = &mut near.source;
    let empty = vec![data(b""); 100];
    let messages = [&empty[..], &[data(b"something")]].concat();
    wire.write_all(&Forger::new(kind).seal(&messages)).unwrap();
    source.set_wait(Wait::Never);
    let mut asked = 0;
    while let Err(e) = source.fill_buf() {
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        assert!(source.is_heavy(), "not because nothing was there");
        source.set_wait(Wait::Never);
        assert!(!source.is_heavy(), "who asks again starts anew");
        asked += 1;
    }
    assert!(asked >= 3, "{asked} times for 100 frames");
    assert_eq!(source.fill_buf().unwrap(), b"something");
}

/// What waits for a socket is run once, when there is something to see, and not before.
pub(crate) fn when_readable(_: Kind) {
    type Trick = fn(&mut TcpStream, &Socket);
    let tricks: [(&str, Trick); 3] = [
        ("data", |peer, _| peer.write_all(b"x").unwrap()),
        ("the end", |peer, _| peer.shutdown(Shutdown::Write).unwrap()),
        ("an abort", |_, socket| socket.abort()),
    ];
    let pool = Pool::new(1).unwrap();
    for (what, trick) in tricks {
        let (mut peer, stream) = link();
        let socket = Socket::new(stream).unwrap();
        let (tell, told) = channel();
        pool.when_readable(socket.clone(), move || tell.send(()).unwrap())
            .unwrap();
        assert_eq!(pool.resting(), 1);
        assert_eq!(told.try_recv(), Err(TryRecvError::Empty), "{what}");
        trick(&mut peer, &socket);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(()), "{what}");
        assert_eq!(pool.resting(), 0);
    }
    let (_peer, stream) = link();
    let (tell, told) = channel::<()>();
    pool.when_readable(Socket::new(stream).unwrap(), move || drop(tell))
        .unwrap();
    drop(pool);
    assert!(
        told.recv_timeout(PATIENCE).is_err(),
        "dropped with its pool"
    );
}

/// A source that rests at first, and has a bug.
struct Buggy {
    socket: Arc<Socket>,
    rested: bool,
}

impl Read for Buggy {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.rested, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Without the panic hook and its noise.
        std::panic::resume_unwind(Box::new("a bug"))
    }
}

impl BufRead for Buggy {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.read(&mut []).map(|_| &[][..])
    }

    fn consume(&mut self, _: usize) {}
}

impl Source for Buggy {
    fn rest(&mut self) -> Option<Arc<Socket>> {
        Some(self.socket.clone())
    }
}

/// A panic in the thread that everybody rests with costs one pair, too.
pub(crate) fn panic_at_rest(kind: Kind) {
    let pool = Pool::new(2).unwrap();
    let pair = |buggy: bool| {
        let (left, external) = link();
        let (near, right) = link();
        let socket = Socket::new(external.try_clone().unwrap()).unwrap();
        let mut external = duplex::tcp(external).unwrap();
        if buggy {
            external = Duplex {
                source: Box::new(Buggy {
                    socket,
                    rested: false,
                }),
                ..external
            };
        }
        let near = dress(kind.layer, Hand::Left, near, Vec::new());
        let ended = start(&pool, 1, external, near, &Arc::default());
        (left, right, ended)
    };
    let (mut left, right, ended) = pair(true);
    let (mut other, mut far, _other_ended) = pair(false);
    left.write_all(b"x").unwrap();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().why, Why::Aborted);
    for peer in [left, right] {
        assert_eq!(
            Side::app(peer).reader.drain(&mut Content::new(0)),
            Seen::Cut
        );
    }
    other.write_all(b"y").unwrap();
    far.read_exact(&mut [0]).unwrap();
}
