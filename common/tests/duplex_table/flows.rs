//! Rows in which all goes well: every byte arrives, and ends arrive as ends.

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::duplex::REST_AFTER;
use minitcptunnel_common::relay::Why;

use crate::path::{Hand, Kind, Layer, Path, Seen};
use crate::rig::{Content, Pieces, Plan, eventually, receive, stands_still};

/// How long an original's peer holds an end back while the other direction is silent.
const HELD_BACK: Duration = Duration::from_secs(5);

/// Both ways at once, then the end of both.
fn flow(kind: Kind, plans: [Plan; 2], bytes: [u64; 2], piece: u64) {
    let Path {
        mut left,
        mut right,
        wire,
        chain,
        ..
    } = Path::with(kind, plans);
    thread::scope(|s| {
        for (from, to, n) in [
            (&mut left.writer, &mut right.reader, bytes[0]),
            (&mut right.writer, &mut left.reader, bytes[1]),
        ] {
            s.spawn(move || {
                let mut content = Content::new(n);
                let mut to_go = n;
                while to_go > 0 {
                    let now = piece.min(to_go);
                    from.send(&mut content, now, None).unwrap();
                    to_go -= now;
                }
                from.finish().unwrap();
            });
            s.spawn(move || {
                let mut content = Content::new(n);
                assert_eq!(to.drain(&mut content), Seen::End);
                assert_eq!(content.offset, n);
            });
        }
    });
    drop((left, right));
    if let Some(chain) = chain {
        for ended in chain.over() {
            assert!(matches!(ended.why, Why::Finished(_)), "{ended}");
            assert_eq!([ended.to_service, ended.from_service], bytes);
        }
    }
    drop(wire);
}

pub(crate) fn flood(kind: Kind) {
    const N: u64 = if cfg!(windows) { 8 } else { 64 } * 1024 * 1024;
    flow(kind, [Plan::default(); 2], [N, N + 1], u64::MAX);
}

pub(crate) fn dribble(kind: Kind) {
    let plan = Plan {
        pieces: Pieces::Single,
        ..Plan::default()
    };
    // Tens of wire bytes each, and for wine a wire byte is a conversation with its server.
    let bytes = if cfg!(windows) {
        [300, 250]
    } else {
        [3000, 2500]
    };
    flow(kind, [plan; 2], bytes, 1);
}

pub(crate) fn odd_pieces(kind: Kind) {
    thread::scope(|s| {
        for (seed, piece) in (0..).zip([1, 7, 1000, 4096, 4097, 100_000]) {
            let plan = |seed| Plan {
                pieces: Pieces::Random(seed, 3000),
                ..Plan::default()
            };
            let frames = if cfg!(windows) { 200 } else { 2000 };
            let bytes = [120_001, 77_777].map(|n: u64| n.min(piece * frames));
            s.spawn(move || flow(kind, [plan(seed), plan(!seed)], bytes, piece));
        }
    });
}

/// A request and its end; the reply comes long after.
fn half_close(kind: Kind, first: Hand, at_rest: bool) {
    let mut path = Path::new(kind);
    path.greet();
    let [mut there, mut there_seen, mut back, mut back_seen] = [3, 3, 9, 9].map(Content::new);
    if at_rest {
        path.rest();
    }
    let Path {
        mut left,
        mut right,
        chain,
        wire,
        ..
    } = path;
    if first == Hand::Right {
        (left, right) = (right, left);
    }
    let start = Instant::now();
    thread::scope(|s| {
        s.spawn(|| {
            left.writer.send(&mut there, 5000, None).unwrap();
            left.writer.finish().unwrap();
        });
        assert_eq!(right.reader.drain(&mut there_seen), Seen::End);
        assert_eq!(there_seen.offset, 5000);
    });
    // An original would cut the reply 10 s after it saw the end, so it is told late.
    let took = start.elapsed();
    if kind.layer == Layer::Legacy {
        assert!(took >= HELD_BACK, "told after {took:?}");
        assert!(took < HELD_BACK + Duration::from_secs(3), "{took:?}");
    } else {
        assert!(took < Duration::from_secs(2), "told after {took:?}");
    }
    if let (Layer::Legacy, Some(chain)) = (kind.layer, &chain) {
        // To a peer that knows no half-close the end of its data channel is the end of everything
        // (PROTOCOL.md 9); nothing was on its way back, so nothing is lost.
        assert_eq!(left.reader.drain(&mut back_seen), Seen::End);
        assert_eq!(back_seen.offset, 0);
        let moved = match first {
            Hand::Left => [1000 + 5000, 700],
            Hand::Right => [1000, 700 + 5000],
        };
        for ended in chain.over() {
            assert!(ended.to_string().contains("finished by="), "{ended}");
            assert_eq!([ended.to_service, ended.from_service], moved);
        }
        drop((left, right, wire));
        return;
    }
    for _ in 0..3 {
        // Silence, so long that the open direction rests.
        let silent = Instant::now();
        eventually("silence in the open direction", || match &chain {
            Some(chain) => chain.pools.iter().all(|pool| pool.resting() == 1),
            None => silent.elapsed() > 2 * REST_AFTER,
        });
        right.say(&mut back, 3000);
        left.hear(&mut back_seen, 3000);
    }
    right.writer.finish().unwrap();
    assert_eq!(left.reader.drain(&mut back_seen), Seen::End);
    assert_eq!(back_seen.offset, 9000);
    if let Some(chain) = &chain {
        let side = match first {
            Hand::Left => "external",
            Hand::Right => "service",
        };
        for ended in chain.over() {
            assert!(
                ended.to_string().ends_with(&format!("finished by={side}")),
                "{ended}"
            );
            let (request, reply) = (5000, 9000);
            let moved = [ended.to_service, ended.from_service];
            match first {
                Hand::Left => assert_eq!(moved, [1000 + request, 700 + reply]),
                Hand::Right => assert_eq!(moved, [1000 + reply, 700 + request]),
            }
        }
    }
    drop((left, right, wire));
}

pub(crate) fn half_close_left(kind: Kind) {
    half_close(kind, Hand::Left, false);
}

pub(crate) fn half_close_right(kind: Kind) {
    half_close(kind, Hand::Right, false);
}

pub(crate) fn half_close_at_rest(kind: Kind) {
    half_close(kind, Hand::Left, true);
}

/// Rest, data, rest, data; then an end from rest.
pub(crate) fn data_at_rest(kind: Kind) {
    let mut path = Path::new(kind);
    let [mut there, mut there_seen, mut back, mut back_seen] = path.greet();
    for n in [1, 100, 100_000] {
        path.rest();
        thread::scope(|s| {
            s.spawn(|| path.right.say(&mut back, n));
            path.left.hear(&mut back_seen, n);
        });
        path.rest();
        thread::scope(|s| {
            s.spawn(|| path.left.say(&mut there, n));
            path.right.hear(&mut there_seen, n);
        });
    }
    path.rest();
    let moved = [there.offset, back.offset];
    if let Some(ended) = path.over() {
        for ended in ended {
            assert_eq!([ended.to_service, ended.from_service], moved);
        }
    }
}

/// The end of a request must not overtake a reply that a slow reader has yet to take: an original
/// would cut it.
pub(crate) fn slow_reader_of_an_original(kind: Kind) {
    const N: u64 = 24 * 1024 * 1024;
    let path = Path::new(kind);
    let Path {
        mut left,
        mut right,
        chain,
        wire,
        ..
    } = path;
    let moved = AtomicU64::new(0);
    left.writer.finish().unwrap();
    let socket = right.socket().try_clone().unwrap();
    let writer = &mut right.writer;
    thread::scope(|s| {
        s.spawn(|| {
            writer.send(&mut Content::new(4), N, Some(&moved)).unwrap();
        });
        stands_still("the reply fills everything", || {
            moved.load(Ordering::Relaxed)
        });
        assert!(moved.load(Ordering::Relaxed) < N, "the flood must block");
        // Nobody is silent here: the reader is slow.
        let told = Instant::now();
        assert!(
            is_silent(&socket, HELD_BACK + Duration::from_millis(1500)),
            "the end of the request was told after {:?}, in front of the reply",
            told.elapsed()
        );
        left.hear(&mut Content::new(4), N);
    });
    assert_eq!(right.reader.drain(&mut Content::new(0)), Seen::End);
    drop((left, right, socket));
    for ended in chain.unwrap().over() {
        assert_eq!([ended.to_service, ended.from_service], [0, N]);
    }
    drop(wire);
}

/// Whether nothing, not even an end, comes for that long.
fn is_silent(socket: &TcpStream, limit: Duration) -> bool {
    let result = receive(socket, &mut [0], limit);
    matches!(result, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// Applications that go away whole, without a word or a byte unread.
pub(crate) fn both_go(kind: Kind) {
    // To an original each end is told after 5 s.
    let rounds = if kind.layer == Layer::Legacy { 1 } else { 20 };
    for _ in 0..rounds {
        let mut path = Path::new(kind);
        path.greet();
        let Path {
            left,
            right,
            chain,
            wire,
            ..
        } = path;
        drop((left, right));
        for ended in chain.expect("only chains come here").over() {
            assert_eq!([ended.to_service, ended.from_service], [1000, 700]);
            // Two closes cross; one of them may find its peer gone.
            assert_ne!(ended.why, Why::Aborted);
        }
        drop(wire);
    }
}
