//! Rows in which we end it (clause 3): from any thread, in any state, at once, and seen as a cut.

use std::io::ErrorKind;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::duplex::Abort;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::relay::Why;

use crate::path::{Hand, Kind, Path, Reader, Seen, Side, Writer};
use crate::rig::{Content, PATIENCE, stands_still};

/// How soon every pump is over.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is going on when the abort comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Resting,
    /// The peer never reads.
    Writing,
}

/// Sends until nothing moves; `left` then is blocked in a write.
fn abort_in(kind: Kind, state: State, abort: fn(Victim<'_>)) {
    let mut path = Path::new(kind);
    path.greet();
    if state == State::Resting {
        path.rest();
    }
    let Path {
        mut left,
        mut right,
        wire,
        chain,
        ..
    } = path;
    let moved = AtomicU64::new(0);
    let handle = left.abort.clone();
    let start = thread::scope(|s| {
        let Side { reader, writer, .. } = &mut left;
        let flood = (state == State::Writing).then(|| {
            let flood = s.spawn(|| writer.send(&mut Content::new(3), u64::MAX, Some(&moved)));
            stands_still("everything is full", || moved.load(Ordering::Relaxed));
            flood
        });
        let waiting = (state == State::Reading || kind.chain)
            .then(|| s.spawn(|| reader.drain(&mut Content::new(0))));
        let start = Instant::now();
        abort(match (&handle, &chain) {
            (Some(handle), _) => Victim::Duplex(handle),
            (_, Some(chain)) => Victim::Pair(&chain.pools[0]),
            _ => unreachable!("a path has handles or pools"),
        });
        if let Some(waiting) = waiting {
            let expected = if kind.chain { Seen::Cut } else { Seen::Aborted };
            assert_eq!(waiting.join().unwrap(), expected);
        }
        if let Some(flood) = flood {
            let e = flood.join().unwrap().unwrap_err();
            if kind.chain {
                // What the application was just writing met the reset.
                let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(reset.contains(&e.kind()), "{e}");
            } else {
                assert_eq!(e.kind(), ErrorKind::ConnectionAborted, "{e}");
            }
        }
        start
    });
    if let Some(chain) = &chain {
        let ended = chain.ended(Hand::Left);
        assert_eq!(ended.why, Why::Aborted);
    } else {
        refuses_everything(&mut left);
    }
    let took = start.elapsed();
    assert!(took < AT_ONCE, "over after {took:?}");
    // Whoever holds a handle to abort with holds the socket open.
    drop((left, handle));
    // The far end has what was under way, and then a cut.
    let mut content = Content::new(if state == State::Writing { 3 } else { 0 });
    assert_eq!(right.reader.drain(&mut content), Seen::Cut);
    drop(right);
    if let Some(chain) = &chain {
        chain.ended(Hand::Right);
    }
    drop(wire);
}

/// Under the mark nothing goes any more, and above all no end.
fn refuses_everything(side: &mut Side) {
    let Writer::Ours(sink) = &mut side.writer else {
        panic!("only duplexes");
    };
    let refused = sink.finish().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionAborted, "finish");
    let refused = side.writer.write(b"late").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionAborted, "write");
    let refused = side.reader.read(&mut [0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionAborted, "read");
}

enum Victim<'a> {
    Duplex(&'a Abort),
    Pair(&'a Pool),
}

fn once(victim: Victim<'_>) {
    match victim {
        Victim::Duplex(abort) => abort.abort(),
        Victim::Pair(pool) => assert_eq!(pool.abort_all(), 1),
    }
}

fn by_many(victim: Victim<'_>) {
    let gate = Barrier::new(8);
    thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                gate.wait();
                for _ in 0..3 {
                    match &victim {
                        Victim::Duplex(abort) => abort.abort(),
                        Victim::Pair(pool) => {
                            assert!(pool.abort_owner(1) <= 1);
                            assert_eq!(pool.abort_owner(2), 0);
                        }
                    }
                }
            });
        }
    });
}

pub(crate) fn while_reading(kind: Kind) {
    abort_in(kind, State::Reading, once);
}

pub(crate) fn while_writing(kind: Kind) {
    abort_in(kind, State::Writing, once);
}

pub(crate) fn while_resting(kind: Kind) {
    abort_in(kind, State::Resting, once);
}

pub(crate) fn by_many_while_reading(kind: Kind) {
    abort_in(kind, State::Reading, by_many);
}

pub(crate) fn by_many_while_writing(kind: Kind) {
    abort_in(kind, State::Writing, by_many);
}

/// The mark comes between the end of a source and its being passed on.
pub(crate) fn finish_under_the_mark(kind: Kind) {
    let Path {
        mut left,
        mut right,
        wire,
        ..
    } = Path::new(kind);
    left.say(&mut Content::new(1), 10);
    right.hear(&mut Content::new(1), 10);
    left.abort.as_ref().expect("only duplexes").abort();
    refuses_everything(&mut left);
    assert_eq!(wire.passed(1), 0);
    let silent = Instant::now();
    // Aborted, but not dropped: the peer must not have been told anything like an end.
    let Reader::Ours(source) = &mut right.reader else {
        panic!("only duplexes");
    };
    while silent.elapsed() < Duration::from_millis(250) {
        let told = std::io::Read::read(source, &mut [0]).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::WouldBlock);
    }
    drop(left);
    assert_eq!(right.reader.drain(&mut Content::new(0)), Seen::Cut);
    assert!(silent.elapsed() < PATIENCE);
}

/// An end that was received before the abort is no end any more once the mark is set.
pub(crate) fn end_under_the_mark(kind: Kind) {
    let Path {
        mut left,
        mut right,
        wire,
        ..
    } = Path::new(kind);
    right.say(&mut Content::new(1), 10);
    let finish = thread::spawn(move || {
        right.writer.finish().unwrap();
        right
    });
    let mut seen = Content::new(1);
    assert_eq!(left.reader.drain(&mut seen), Seen::End);
    assert_eq!(left.reader.drain(&mut seen), Seen::End, "an end stays one");
    left.abort.as_ref().expect("only duplexes").abort();
    assert_eq!(left.reader.drain(&mut seen), Seen::Aborted);
    drop((finish.join().unwrap(), wire));
}
