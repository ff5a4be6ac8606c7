//! Rows about the pool: who is admitted, who gets a thread, who is told.

use std::io::{self, BufRead, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::duplex::{self, Duplex, Source};
use minitcptunnel_common::metrics::Traffic;
use minitcptunnel_common::pool::{Pool, PoolError};
use minitcptunnel_common::relay::{Ended, Why};

use crate::path::{Hand, Kind, Layer, Seen, Side, dress, dress_both, start};
use crate::rig::{Content, PATIENCE, eventually, link, stands_still, within};

const AT_ONCE: Duration = Duration::from_secs(1);
/// The same for rows that run beside many others. Under wine every wait is a conversation with one server that serves all.
const SOON: Duration = if cfg!(windows) { PATIENCE } else { AT_ONCE };

/// The real path in pools shared with others, its wire left alone.
struct Tunnelled {
    left: Side,
    right: Side,
    ended: [Receiver<Ended>; 2],
}

fn tunnel(layer: Layer, pools: [&Pool; 2], owner: u64) -> Tunnelled {
    let (left, external) = link();
    let (near, far) = link();
    let (service, right) = link();
    let traffic = Arc::<Traffic>::default();
    let [near, far] = dress_both(layer, near, far);
    let external = duplex::tcp(external).unwrap();
    let service = duplex::tcp(service).unwrap();
    Tunnelled {
        left: Side::app(left),
        right: Side::app(right),
        ended: [
            start(pools[0], owner, external, near, &traffic),
            start(pools[1], owner, far, service, &traffic),
        ],
    }
}

impl Tunnelled {
    fn echo(&mut self) {
        let mut content = [0, 0, 1, 1].map(Content::new);
        self.left.say(&mut content[0], 100);
        self.right.hear(&mut content[1], 100);
        self.right.say(&mut content[2], 100);
        self.left.hear(&mut content[3], 100);
    }

    fn close(self) -> [Ended; 2] {
        drop((self.left, self.right));
        self.ended
            .map(|ended| ended.recv_timeout(PATIENCE).unwrap())
    }
}

fn pools(max: usize) -> [Pool; 2] {
    [Pool::new(max).unwrap(), Pool::new(max).unwrap()]
}

pub(crate) fn admission(kind: Kind) {
    let pools = pools(2);
    let both = [&pools[0], &pools[1]];
    let mut first = tunnel(kind.layer, both, 1);
    let mut second = tunnel(kind.layer, both, 1);
    for _ in 0..3 {
        assert!(matches!(pools[0].admit(), Err(PoolError::Full)));
    }
    first.echo();
    second.echo();
    first.close();
    within(SOON, "room again", || pools[0].live() == 1);
    eventually("room on the other side", || pools[1].live() == 1);
    let mut third = tunnel(kind.layer, both, 1);
    assert!(matches!(pools[0].admit(), Err(PoolError::Full)));
    third.echo();
    second.echo();
    // A permit that is not used is no pair for ever.
    second.close();
    eventually("room again", || pools[0].live() == 1);
    drop(pools[0].admit().unwrap());
    drop(pools[0].admit().unwrap());
    assert_eq!(pools[0].live(), 1);
    third.close();
    eventually("nothing lives", || pools[0].live() == 0);
}

/// Writers whose peers never read hold workers, and nobody else's.
pub(crate) fn blocked_writers(kind: Kind) {
    const BLOCKED: usize = 12;
    let pools = pools(BLOCKED + 1);
    let both = [&pools[0], &pools[1]];
    let mut blocked: Vec<_> = (0..BLOCKED).map(|_| tunnel(kind.layer, both, 1)).collect();
    let moved = AtomicU64::new(0);
    thread::scope(|s| {
        for tunnelled in &mut blocked {
            let Tunnelled { left, right, .. } = tunnelled;
            for (side, seed) in [(left, 1), (right, 2)] {
                let (mut content, moved) = (Content::new(seed), &moved);
                s.spawn(move || {
                    let _ = side.writer.send(&mut content, u64::MAX, Some(moved));
                });
            }
        }
        stands_still("everything is full", || moved.load(Ordering::Relaxed));
        let mut other = tunnel(kind.layer, both, 2);
        for _ in 0..20 {
            let start = Instant::now();
            other.echo();
            assert!(start.elapsed() < AT_ONCE, "starved");
        }
        assert_eq!(pools[0].abort_owner(1), BLOCKED);
        // And those of others go on.
        other.echo();
        other.close();
    });
    for tunnelled in blocked {
        let [left, _] = tunnelled.close();
        assert_eq!(left.why, Why::Aborted);
    }
}

pub(crate) fn drain(kind: Kind) {
    let pools = pools(8);
    let both = [&pools[0], &pools[1]];
    let mut first = tunnel(kind.layer, both, 1);
    let mut second = tunnel(kind.layer, both, 1);
    let early = pools[0].admit().unwrap();
    assert!(!pools[0].drain(Instant::now()), "three are alive");
    assert!(matches!(pools[0].admit(), Err(PoolError::Closed)));
    first.echo();
    second.echo();
    let start = Instant::now();
    assert!(!pools[0].drain(start + Duration::from_millis(150)));
    assert!(start.elapsed() >= Duration::from_millis(150));
    // Draining wakes as soon as the last one goes.
    thread::scope(|s| {
        let drained = s.spawn(|| pools[0].drain(start + PATIENCE));
        drop(early);
        first.close();
        assert!(!drained.is_finished(), "one is alive");
        second.echo();
        second.close();
        within(SOON, "drained", || drained.is_finished());
        assert!(drained.join().unwrap());
    });
    assert_eq!(pools[0].live(), 0);
}

/// Some asleep, some in full flow, some blocked: all over at once, all seen as a cut.
pub(crate) fn abort_all(kind: Kind) {
    const EACH: usize = 4;
    let pools = pools(3 * EACH);
    let both = [&pools[0], &pools[1]];
    let mut tunnels: Vec<_> = (0..3 * EACH).map(|_| tunnel(kind.layer, both, 1)).collect();
    for tunnelled in &mut tunnels {
        tunnelled.echo();
    }
    let (asleep, busy) = tunnels.split_at_mut(EACH);
    let (flowing, blocked) = busy.split_at_mut(EACH);
    let moved = AtomicU64::new(0);
    thread::scope(|s| {
        for tunnelled in blocked {
            s.spawn(|| {
                let writer = &mut tunnelled.left.writer;
                let _ = writer.send(&mut Content::new(1), u64::MAX, Some(&moved));
            });
        }
        stands_still("four are full", || moved.load(Ordering::Relaxed));
        for tunnelled in flowing {
            let Tunnelled { left, right, .. } = tunnelled;
            s.spawn(|| {
                let _ = left.writer.send(&mut Content::new(3), u64::MAX, None);
            });
            s.spawn(|| assert_eq!(right.reader.drain(&mut Content::new(3)), Seen::Cut));
        }
        eventually("four sleep", || pools[0].resting() >= 2 * EACH);
        let start = Instant::now();
        assert_eq!(pools[0].abort_all(), 3 * EACH);
        eventually("all are over", || pools[0].live() == 0);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    });
    for tunnelled in asleep {
        assert_eq!(tunnelled.left.reader.drain(&mut Content::new(0)), Seen::Cut);
        assert_eq!(
            tunnelled.right.reader.drain(&mut Content::new(0)),
            Seen::Cut
        );
    }
    for tunnelled in tunnels {
        let [left, _] = tunnelled.close();
        assert_eq!(left.why, Why::Aborted);
    }
    assert_eq!(pools[0].abort_all(), 0);
    assert!(matches!(pools[0].admit(), Err(PoolError::Closed)));
}

/// A pair that was admitted in time and comes too late: both its peers are reset, and it is told.
pub(crate) fn start_when_closed(kind: Kind) {
    let pool = Pool::new(1).unwrap();
    let permit = pool.admit().unwrap();
    pool.abort_all();
    let (left, external) = link();
    let (near, right) = link();
    let (tell, ended) = channel();
    let external = duplex::tcp(external).unwrap();
    let near = dress(kind.layer, Hand::Left, near, Vec::new());
    let traffic = Arc::<Traffic>::default();
    pool.start(permit, 1, external, near, traffic, move |ended| {
        tell.send(ended).unwrap();
    })
    .unwrap();
    assert_eq!(ended.recv_timeout(SOON).unwrap().why, Why::Aborted);
    for peer in [left, right] {
        let mut peer = Side::app(peer);
        assert_eq!(peer.reader.drain(&mut Content::new(0)), Seen::Cut);
    }
    assert_eq!(pool.live(), 0);
}

/// A source that has a bug.
struct Buggy;

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

impl Source for Buggy {}

/// A panic costs its pair, which is reset and told, and nobody else.
pub(crate) fn panic_in_a_pump(kind: Kind) {
    let pools = pools(2);
    let mut other = tunnel(kind.layer, [&pools[0], &pools[1]], 1);
    let (left, external) = link();
    let (near, right) = link();
    let external = Duplex {
        source: Box::new(Buggy),
        ..duplex::tcp(external).unwrap()
    };
    let near = dress(kind.layer, Hand::Left, near, Vec::new());
    let ended = start(&pools[0], 2, external, near, &Arc::default());
    assert_eq!(ended.recv_timeout(SOON).unwrap().why, Why::Aborted);
    for peer in [left, right] {
        let mut peer = Side::app(peer);
        assert_eq!(peer.reader.drain(&mut Content::new(0)), Seen::Cut);
    }
    within(SOON, "the permit comes back", || pools[0].live() == 1);
    other.echo();
    let (tell, told) = channel();
    pools[0]
        .task(|| std::panic::resume_unwind(Box::new("another")))
        .unwrap();
    pools[0].task(move || tell.send(()).unwrap()).unwrap();
    told.recv_timeout(SOON).unwrap();
    other.close();
    eventually("workers are counted out", || pools[0].workers() == 0);
}

/// Hundreds of idle connections hold no threads, and lose nothing by it.
pub(crate) fn many_idle(kind: Kind) {
    // Wine asks the kernel about each of them for each that moves.
    const MANY: usize = if cfg!(windows) { 100 } else { 500 };
    const A_DOZEN: usize = 12;
    let pools = pools(MANY);
    let mut tunnels: Vec<_> = (0..MANY)
        .map(|i| {
            let mut tunnelled = tunnel(kind.layer, [&pools[0], &pools[1]], i as u64);
            tunnelled.echo();
            tunnelled
        })
        .collect();
    for pool in &pools {
        eventually("every direction rests", || pool.resting() == 2 * MANY);
        eventually("the workers have gone", || pool.workers() <= A_DOZEN);
        assert_eq!(pool.live(), MANY);
    }
    for tunnelled in &mut tunnels {
        tunnelled.echo();
    }
    // All at once, too: a burst of wake-ups.
    for tunnelled in &mut tunnels {
        tunnelled.left.say(&mut Content::new(5), 1);
    }
    for tunnelled in &mut tunnels {
        tunnelled.right.hear(&mut Content::new(5), 1);
    }
    for tunnelled in tunnels {
        let [left, right] = tunnelled.close();
        let moved = [left.to_service, left.from_service];
        assert_eq!(moved, [201, 200]);
        assert_eq!(moved, [right.to_service, right.from_service]);
    }
}

/// Short tasks from many threads: each runs, whatever workers are just doing.
pub(crate) fn no_job_is_lost(_: Kind) {
    let pool = Pool::new(1).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    const THREADS: u64 = 4;
    const EACH: u64 = 3000;
    thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                for i in 0..EACH {
                    let counter = done.clone();
                    pool.task(move || {
                        counter.fetch_add(1, Ordering::Relaxed);
                    })
                    .unwrap();
                    if i % 50 == 0 {
                        // Lets every worker fall idle now and then.
                        eventually("this batch", || done.load(Ordering::Relaxed) > i);
                    }
                }
            });
        }
    });
    eventually("every task has run", || {
        done.load(Ordering::Relaxed) == THREADS * EACH
    });
}

/// Prints what an idle pair costs, and for TLS both ends of a connection: `cargo test -p minitcptunnel-common
/// --release --test duplex_table -- --ignored --nocapture`.
pub(crate) fn memory_of_idle_pairs(layer: Layer) -> Vec<String> {
    const MANY: usize = 2000;
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find(|line| line.starts_with("RssAnon"));
        let kib: String = line.unwrap().chars().filter(char::is_ascii_digit).collect();
        kib.parse::<u64>().unwrap() * 1024
    }
    let pool = Pool::new(MANY).unwrap();
    let before = resident();
    let mut pairs: Vec<(TcpStream, Side, Receiver<Ended>)> = Vec::new();
    for _ in 0..MANY {
        let (left, external) = link();
        let (near, right) = link();
        let [near, right] = dress_both(layer, near, right);
        let external = duplex::tcp(external).unwrap();
        let ended = start(&pool, 1, external, near, &Arc::default());
        pairs.push((left, Side::ours(right), ended));
    }
    let mut lines = Vec::new();
    let mut report = |what: &str, workers: usize| {
        let each = (resident().saturating_sub(before)) / MANY as u64;
        lines.push(format!(
            "{layer:?}, {what}: {each} bytes of memory per pair, {workers} workers"
        ));
    };
    eventually("all rest", || pool.resting() == 2 * MANY);
    eventually("the workers have gone", || pool.workers() == 0);
    report("never used", pool.workers());
    for (left, right, _) in &mut pairs {
        let mut content = Content::new(1);
        let bytes = content.take(200_000);
        thread::scope(|s| {
            s.spawn(|| io::Write::write_all(left, &bytes).unwrap());
            right.hear(&mut Content::new(1), 200_000);
        });
        if let crate::path::Reader::Ours(source) = &mut right.reader {
            source.rest();
        }
    }
    eventually("all rest again", || pool.resting() == 2 * MANY);
    eventually("the workers have gone", || pool.workers() == 0);
    report("idle after 200 kB", pool.workers());
    lines
}
