//! Rows about what happens at rest: what needs a worker, and what does not.

use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};

use minitcptunnel_common::duplex::{self, Abortable, Duplex, Socket, Source};
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::relay::Why;

use crate::hostile::{Forger, data};
use crate::path::{Hand, Kind, Layer, Seen, Side, dress, start};
use crate::rig::{Content, PATIENCE, eventually, link};

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
    // Towards an original, ending a direction can take a while.
    if kind.layer != Layer::Legacy {
        left.say(&mut Content::new(1), 1000);
        wire.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(pool.workers(), 0, "nobody was needed");
    drop((left, wire));
    ended.recv_timeout(PATIENCE).unwrap();
}

/// What waits for a socket is run once, when there is something to see, and not before.
pub(crate) fn when_readable(_: Kind) {
    type Trick = fn(&mut std::net::TcpStream, &Socket);
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

/// A source that can rest, and has a bug.
struct Buggy(Arc<Socket>);

impl Read for Buggy {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
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
        Some(self.0.clone())
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
                source: Box::new(Buggy(socket)),
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
