//! Rows in which the wire, or an application, lets us down: never an end that nobody has meant,
//! never a wrong byte.

use std::io::{self, ErrorKind};
use std::thread;
#[cfg(target_os = "linux")]
use std::time::Duration;

use minitcptunnel_common::relay::{Side as PairSide, Why};

use crate::path::{Kind, Layer, Path, Seen, cut_looks, failed};
use crate::rig::{Content, Cut, Plan, Random, Trick, eventually};

/// The kinds of error a cut may have.
const CUT: [ErrorKind; 4] = [
    ErrorKind::ConnectionReset,
    ErrorKind::UnexpectedEof,
    // What a write says of the same.
    ErrorKind::BrokenPipe,
    ErrorKind::ConnectionAborted,
];

fn cut(kind: Kind, how: Cut, at_rest: bool) {
    let mut path = Path::new(kind);
    let [_, mut right_seen, _, mut left_seen] = path.greet();
    if at_rest {
        path.rest();
    }
    path.wire.cut(how);
    let expected = cut_looks(kind.layer, how);
    let heard = [left_seen.offset, right_seen.offset];
    assert_eq!(path.left.reader.drain(&mut left_seen), expected, "left");
    assert_eq!(path.right.reader.drain(&mut right_seen), expected, "right");
    assert_eq!([left_seen.offset, right_seen.offset], heard);
    if let Some(ended) = path.over() {
        if expected == Seen::Cut {
            assert!(
                failed(&ended[0], &CUT[..2]) && failed(&ended[1], &CUT[..2]),
                "{ended:?}"
            );
        }
        for ended in ended {
            assert_eq!([ended.to_service, ended.from_service], [1000, 700]);
        }
    }
}

pub(crate) fn reset(kind: Kind) {
    cut(kind, Cut::Reset, false);
}

pub(crate) fn close(kind: Kind) {
    cut(kind, Cut::Close, false);
}

pub(crate) fn reset_at_rest(kind: Kind) {
    cut(kind, Cut::Reset, true);
}

pub(crate) fn close_at_rest(kind: Kind) {
    cut(kind, Cut::Close, true);
}

/// The wire ends in an orderly way within a frame.
pub(crate) fn truncated_frame(kind: Kind) {
    // The first frame of 4 KiB of payload: within its length, its head, its body, and in front of
    // its last byte.
    let last = match kind.layer {
        Layer::Packed => 2000,
        // A sink of TLS begins with records of 2 KiB.
        Layer::Tls12 | Layer::Tls13 => 2048 + 21,
        _ => 4096 + 40,
    };
    for at in [1, 3, 4, 5, 30, 1000, last] {
        let plan = Plan {
            cut: Some((at, Cut::Close)),
            ..Plan::default()
        };
        let mut path = Path::with(kind, [plan, Plan::default()]);
        path.left.say(&mut Content::new(1), 4096);
        let mut seen = Content::new(1);
        assert_eq!(path.right.reader.drain(&mut seen), Seen::Cut, "after {at}");
        assert_eq!(seen.offset, 0, "nothing has authenticated");
        // Towards the left it is the orderly end that it is.
        let left = cut_looks(kind.layer, Cut::Close);
        assert_eq!(path.left.reader.drain(&mut Content::new(0)), left);
        if let Some([_, right]) = path.over() {
            assert!(failed(&right, &[ErrorKind::UnexpectedEof]), "{right}");
        }
    }
}

/// Floods both ways, and a cut after a random number of bytes.
pub(crate) fn cut_in_flight(kind: Kind) {
    for seed in 0..24 {
        let mut random = Random(seed);
        let how = if seed % 3 == 0 && kind.tells_ends() {
            Cut::Close
        } else {
            Cut::Reset
        };
        let plan = Plan {
            cut: Some((random.below(3_000_000), how)),
            ..Plan::default()
        };
        let plans = if seed % 2 == 0 {
            [plan, Plan::default()]
        } else {
            [Plan::default(), plan]
        };
        let seen = flood_to_ruin(Path::with(kind, plans));
        assert_eq!(seen, [Seen::Cut; 2], "seed {seed}: {how:?}");
    }
}

/// Writes and reads both ways until nothing goes any more. What the readers saw, left first.
fn flood_to_ruin(path: Path) -> [Seen; 2] {
    let Path {
        mut left,
        mut right,
        wire,
        chain,
        ..
    } = path;
    let seen = thread::scope(|s| {
        let mut aborts = [left.abort.clone(), right.abort.clone()].into_iter();
        let lanes = [
            (&mut right.writer, &mut left.reader, 5),
            (&mut left.writer, &mut right.reader, 6),
        ];
        let readers = lanes.map(|(from, to, seed)| {
            s.spawn(move || {
                let result = from.send(&mut Content::new(seed), u64::MAX, None);
                assert!(CUT.contains(&result.unwrap_err().kind()));
            });
            let abort = aborts.next().flatten();
            s.spawn(move || {
                let seen = to.drain(&mut Content::new(seed));
                // As a pump does, which wakes our own writer.
                if let Some(abort) = abort {
                    abort.abort();
                }
                seen
            })
        });
        readers.map(|reader| match reader.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    drop((left, right));
    if let Some(chain) = chain {
        for ended in chain.over() {
            assert!(failed(&ended, &CUT), "{ended}");
        }
    }
    drop(wire);
    seen
}

/// An application that resets its connection, everything in motion: the other one must not take
/// what it has got for all.
pub(crate) fn application_resets(kind: Kind) {
    for round in 0..30 {
        let path = Path::new(kind);
        let Path {
            left,
            mut right,
            chain,
            wire,
            ..
        } = path;
        let chain = chain.expect("only chains come here");
        let mut writer = left.socket().try_clone().unwrap();
        thread::scope(|s| {
            let flood = s.spawn(|| {
                let result = right.writer.send(&mut Content::new(2), u64::MAX, None);
                assert!(CUT.contains(&result.unwrap_err().kind()));
            });
            let reader = s.spawn(|| right.reader.drain(&mut Content::new(1)));
            let bytes = Content::new(1).take(100_000);
            io::Write::write_all(&mut writer, &bytes).unwrap();
            let enough = 5000 * (round + 1);
            eventually("both directions run", || {
                let counted = chain.traffic[0].snapshot();
                counted.to_service > 0 && counted.from_service > enough
            });
            left.reset();
            drop(writer);
            assert_eq!(reader.join().unwrap(), Seen::Cut, "round {round}");
            flood.join().unwrap();
        });
        drop(right);
        let [ended, _] = chain.over();
        assert!(
            matches!(ended.why, Why::Failed(PairSide::External, _, _)),
            "{ended}"
        );
        drop(wire);
    }
}

/// One bit on the wire. `at_rest`: it arrives when everything sleeps.
fn flipped(kind: Kind, at_rest: bool) {
    let mut random = Random(7);
    for round in 0..12 {
        let mut path = Path::new(kind);
        let [mut there, mut there_seen, _, mut back_seen] = path.greet();
        if at_rest {
            path.rest();
        }
        let start = path.wire.taken(0);
        // The head with its length is left alone here: a longer frame is one that is still under way.
        let head = if kind.is_tls() { 5 } else { 4 };
        let at = start + head + random.below(1000);
        path.wire
            .plan(0, |plan| plan.flip = Some((at, random.below(8) as u8)));
        path.left.say(&mut there, 1000);
        let seen = path.right.reader.drain(&mut there_seen);
        assert_eq!(seen, Seen::Damage.through(kind.chain), "round {round}");
        assert_eq!(there_seen.offset, 1000, "no byte of it may get through");
        // The left end is cut in turn; TLS tells it why, if the reset does not overtake that.
        let told = |seen| seen == Seen::Cut || kind.is_tls() && seen == Seen::Damage;
        if !kind.chain {
            path.right.abort.as_ref().unwrap().abort();
            let Path {
                mut left, right, ..
            } = path;
            drop(right);
            assert!(told(left.reader.drain(&mut back_seen)));
            continue;
        }
        assert_eq!(path.left.reader.drain(&mut back_seen), Seen::Cut);
        let [left, right] = path.over().unwrap();
        assert!(failed(&right, &[ErrorKind::InvalidData]), "{right}");
        let told = kind.is_tls() && failed(&left, &[ErrorKind::InvalidData]);
        assert!(told || failed(&left, &CUT), "{left}");
    }
}

pub(crate) fn flipped_bit(kind: Kind) {
    flipped(kind, false);
}

pub(crate) fn flipped_bit_at_rest(kind: Kind) {
    flipped(kind, true);
}

/// A changed length: too long is refused at once, too short is damage, a little longer waits for
/// bytes that do not come, and the cut tells. Never a byte.
pub(crate) fn flipped_length(kind: Kind) {
    for bit in 0..32u8 {
        let mut path = Path::new(kind);
        let [mut there, mut there_seen, _, _] = path.greet();
        let start = path.wire.taken(0);
        let at = start + u64::from(bit / 8);
        path.wire.plan(0, |plan| plan.flip = Some((at, bit % 8)));
        path.left.say(&mut there, 1000);
        eventually("the frame has passed", || {
            path.wire.passed(0) > start + 1000
        });
        path.wire.cut(Cut::Close);
        let seen = path.right.reader.drain(&mut there_seen);
        assert!(
            matches!(seen, Seen::Damage | Seen::Cut),
            "bit {bit}: {seen:?}"
        );
        assert_eq!(there_seen.offset, 1000);
        path.over();
    }
}

fn meddled(kind: Kind, trick: Trick) {
    for at in [0, 1, 2] {
        let plan = Plan {
            trick: Some((at, trick)),
            ..Plan::default()
        };
        let mut path = Path::with(kind, [plan, Plan::default()]);
        // A sink's frames grow.
        // The cut may come before the last of it is written.
        let _ = path.left.writer.send(&mut Content::new(1), 300_000, None);
        let mut seen = Content::new(1);
        assert_eq!(
            path.right.reader.drain(&mut seen),
            Seen::Damage.through(kind.chain)
        );
        let whole = [0, 4096, 4096 + 16_384, 4096 + 16_384 + 65_408];
        let before = at + usize::from(matches!(trick, Trick::Replay));
        assert!(seen.offset <= whole[before], "{} bytes", seen.offset);
        if let Some([_, right]) = path.over() {
            assert!(failed(&right, &[ErrorKind::InvalidData]), "{right}");
        }
    }
}

pub(crate) fn replayed_frame(kind: Kind) {
    meddled(kind, Trick::Replay);
}

pub(crate) fn swapped_frames(kind: Kind) {
    meddled(kind, Trick::Swap);
}

pub(crate) fn dropped_frame(kind: Kind) {
    meddled(kind, Trick::Drop);
}

/// The system tells a reset once, to whoever asks first. When that is the sink, the source must
/// not take what is left for an end.
pub(crate) fn reset_told_to_the_sink(kind: Kind) {
    for _ in 0..20 {
        let Path {
            mut left,
            right,
            wire,
            ..
        } = Path::new(kind);
        wire.cut(Cut::Reset);
        let mut content = Content::new(1);
        eventually("the sink hears of the reset", || {
            left.writer.send(&mut content, 1, None).is_err()
        });
        assert_eq!(left.reader.drain(&mut Content::new(0)), Seen::Cut);
        drop(right);
    }
}

/// A connection that dies of silence is cut, although its error is called a timeout.
#[cfg(target_os = "linux")]
pub(crate) fn timed_out(kind: Kind) {
    use crate::path::{Hand, Side, dress};
    use crate::rig::link;
    use std::io::Write;

    let (mut near, far) = link();
    socket2::SockRef::from(&near)
        .set_tcp_user_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    near.set_nonblocking(true).unwrap();
    while near.write(&[0; 64 * 1024]).is_ok() {}
    let mut side = Side::ours(dress(kind.layer, Hand::Left, near, Vec::new()));
    let seen = side.reader.drain(&mut Content::new(0));
    assert_eq!(seen, Seen::Other(ErrorKind::TimedOut));
    drop(far);
}
