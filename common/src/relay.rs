//! Two duplexes that belong together, and the two pumps that join them.
//!
//! ```text
//!  external  source ─ pump to_service ──> sink    data channel
//!            sink  <── pump from_service ─ source  (or, in the client, local service)
//! ```
//!
//! A pump runs on a worker while bytes flow. It returns when its direction has ended, has failed,
//! or has been silent long enough to *rest*: then the pool keeps it, without thread or buffers,
//! until its socket is readable again. What comes then is often short, a keystroke or a request:
//! `Pump::nudge` moves that without waiting and without a worker.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::duplex::{Abort, Duplex, Fault, Sink, Socket, Source, Wait};
use crate::metrics::{Direction, Traffic};

/// Which end of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The end towards the external connection: on the server the external connection itself, on the
    /// client the data channel.
    External,
    /// The end towards the local service: on the server the data channel, on the client the service.
    Service,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::External => "external",
            Self::Service => "service",
        })
    }
}

/// How a pair ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Both directions ended as their peers meant; this side ended first.
    Finished(Side),
    /// This side was cut, reset or damaged.
    Failed(Side, io::ErrorKind, String),
    /// We ended it: shutdown, or its key was revoked.
    Aborted,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(side) => write!(f, "finished by={side}"),
            Self::Failed(side, _, what) => write!(f, "failed by={side} error={what:?}"),
            Self::Aborted => f.write_str("aborted by=us"),
        }
    }
}

/// What a pair was, once it is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Bytes that reached the service side.
    pub to_service: u64,
    /// Bytes that reached the external side.
    pub from_service: u64,
    /// From the joining to the end of both directions.
    pub duration: Duration,
    /// How it ended.
    pub why: Why,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "duration={:.3}s to_service={} from_service={} {}",
            self.duration.as_secs_f64(),
            self.to_service,
            self.from_service,
            self.why
        )
    }
}

type OnEnd = Box<dyn FnOnce(Ended) + Send>;

/// What both pumps of a pair share.
pub(crate) struct Pair {
    aborts: [Abort; 2],
    traffic: Arc<Traffic>,
    moved: [AtomicU64; 2],
    running: AtomicUsize,
    started: Instant,
    /// What had been moved at the last look that saw something new, and when that was.
    seen: Mutex<Option<(u64, Instant)>>,
    verdict: Mutex<Verdict>,
    on_end: Mutex<Option<OnEnd>>,
}

#[derive(Default)]
struct Verdict {
    /// Which side's direction ended first, in an orderly way.
    first: Option<Side>,
    /// The first thing that went wrong; it wins.
    failure: Option<Why>,
}

impl Pair {
    fn verdict(&self) -> std::sync::MutexGuard<'_, Verdict> {
        // Nothing that can panic runs under this lock.
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends both directions now.
    pub(crate) fn abort(&self) {
        self.verdict().failure.get_or_insert(Why::Aborted);
        self.abort_duplexes();
    }

    /// Bytes in both directions.
    pub(crate) fn moved(&self) -> u64 {
        (self.moved.iter())
            .map(|one| one.load(Ordering::Relaxed))
            .sum()
    }

    /// Whether nothing has moved for `limit`, as far as those know who ask this again and again.
    pub(crate) fn is_idle(&self, limit: Duration, now: Instant) -> bool {
        let moved = self.moved();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, since) = *seen.get_or_insert((0, self.started));
        if then == moved {
            return now.saturating_duration_since(since) >= limit;
        }
        *seen = Some((moved, now));
        false
    }

    /// Ends both directions: nothing has moved for too long.
    pub(crate) fn end_idle(&self) {
        let what = "nothing has moved for the time that is allowed";
        self.verdict().failure.get_or_insert_with(|| {
            Why::Failed(Side::External, io::ErrorKind::TimedOut, what.into())
        });
        self.abort_duplexes();
    }

    /// Whether this began after `since`, and nothing has come from the service side yet.
    pub(crate) fn is_unheard(&self, since: Instant) -> bool {
        let moved = &self.moved[Direction::FromService as usize];
        self.started > since && moved.load(Ordering::Relaxed) == 0
    }

    fn abort_duplexes(&self) {
        for abort in &self.aborts {
            abort.abort();
        }
    }

    /// One direction is over. The last one tells.
    fn leave(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        self.traffic.end();
        let why = {
            let mut verdict = self.verdict();
            let first = verdict.first.unwrap_or(Side::External);
            verdict.failure.take().unwrap_or(Why::Finished(first))
        };
        let on_end = self
            .on_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(on_end) = on_end {
            on_end(Ended {
                to_service: self.moved[0].load(Ordering::Relaxed),
                from_service: self.moved[1].load(Ordering::Relaxed),
                duration: self.started.elapsed(),
                why,
            });
        }
    }
}

/// What a pump came back with from a worker.
pub(crate) enum Outcome {
    /// The direction is over, one way or the other; the pair knows.
    Over,
    /// Silent: run the pump again when this socket is readable.
    Rest(Pump, Arc<Socket>),
}

/// What a pump did with what was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nudged {
    /// The direction is over; the pair knows.
    Over,
    /// All that was there is moved. Nudge it again when its socket is readable.
    Silent,
    /// There is more, or the sink is full: this is for a worker.
    Busy,
}

/// What one turn of a pump was.
enum Turn {
    /// So many bytes.
    Moved(usize),
    Silent,
    /// The sink takes nothing now.
    Full,
    Over,
}

/// Performance: how much a nudge moves, in bytes and in turns, before the rest is work for a worker:
/// some 30 us of ciphers and system calls.
const NUDGE_BYTES: usize = 16 * 1024;
const NUDGE_TURNS: usize = 16;

/// One direction of a pair.
pub(crate) struct Pump {
    source: Box<dyn Source>,
    sink: Box<dyn Sink>,
    direction: Direction,
    /// The source has ended, and the sink may not have announced it yet.
    ended: bool,
    /// Dropped last: buffers and sockets are gone when the pair is told.
    pair: Member,
}

/// Joins two duplexes. The pair's two pumps have to be run, each on a worker, until they are over;
/// `on_end` is called by the one that is over last.
pub(crate) fn join(
    external: Duplex,
    service: Duplex,
    traffic: Arc<Traffic>,
    on_end: OnEnd,
) -> (Arc<Pair>, [Pump; 2]) {
    traffic.begin();
    let pair = Arc::new(Pair {
        aborts: [external.abort, service.abort],
        traffic,
        moved: [AtomicU64::new(0), AtomicU64::new(0)],
        running: AtomicUsize::new(2),
        started: Instant::now(),
        seen: Mutex::default(),
        verdict: Mutex::default(),
        on_end: Mutex::new(Some(on_end)),
    });
    let to_service = Pump {
        source: external.source,
        sink: service.sink,
        direction: Direction::ToService,
        ended: false,
        pair: Member(pair.clone()),
    };
    let from_service = Pump {
        source: service.source,
        sink: external.sink,
        direction: Direction::FromService,
        ended: false,
        pair: Member(pair.clone()),
    };
    (pair, [to_service, from_service])
}

impl Pump {
    /// Moves bytes until the direction ends, fails or falls silent.
    pub(crate) fn run(mut self) -> Outcome {
        self.set_wait(Wait::Patient);
        loop {
            match self.turn() {
                Turn::Moved(_) | Turn::Full => {}
                Turn::Over => return Outcome::Over,
                Turn::Silent => {
                    if let Some(socket) = self.rest() {
                        return Outcome::Rest(self, socket);
                    }
                }
            }
        }
    }

    /// Moves what is there, if that is little, without waiting for either end.
    fn nudge(&mut self) -> Nudged {
        self.set_wait(Wait::Never);
        let mut moved = 0;
        for _ in 0..NUDGE_TURNS {
            if moved > NUDGE_BYTES || !self.sink.is_ready() {
                return Nudged::Busy;
            }
            match self.turn() {
                Turn::Moved(n) => moved += n,
                Turn::Over => return Nudged::Over,
                Turn::Full => return Nudged::Busy,
                Turn::Silent if self.source.is_heavy() => return Nudged::Busy,
                Turn::Silent => {
                    let _ = self.rest();
                    return Nudged::Silent;
                }
            }
        }
        Nudged::Busy
    }

    /// As [`nudge`](Self::nudge), for a thread that serves others too: a panic is this pair's end, not
    /// theirs.
    pub(crate) fn nudge_caught(&mut self) -> Nudged {
        catch_unwind(AssertUnwindSafe(|| self.nudge())).unwrap_or_else(|_| {
            self.abort();
            Nudged::Over
        })
    }

    fn set_wait(&mut self, wait: Wait) {
        self.source.set_wait(wait);
        self.sink.set_wait(wait);
    }

    /// Gives the buffers back and names the socket to wait for, unless something is in hand.
    pub(crate) fn rest(&mut self) -> Option<Arc<Socket>> {
        let socket = self.source.rest()?;
        self.sink.rest();
        Some(socket)
    }

    fn turn(&mut self) -> Turn {
        if self.ended {
            return self.end();
        }
        match self.sink.take_from(&mut *self.source) {
            Ok(0) => {
                self.ended = true;
                self.pair.0.verdict().first.get_or_insert(self.from());
                self.end()
            }
            Ok(n) => {
                self.pair.0.moved[self.direction as usize].fetch_add(n as u64, Ordering::Relaxed);
                self.pair.0.traffic.add(self.direction, n);
                Turn::Moved(n)
            }
            Err(Fault::Source(e)) if e.kind() == io::ErrorKind::WouldBlock => Turn::Silent,
            Err(Fault::Sink(e)) if e.kind() == io::ErrorKind::WouldBlock => Turn::Full,
            Err(fault) => {
                self.fail(&fault);
                Turn::Over
            }
        }
    }

    /// The source has ended as its peer meant.
    fn end(&mut self) -> Turn {
        match self.sink.finish() {
            Ok(()) if self.source.ends_both() => self.sink.hang_up(),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Turn::Full,
            Err(e) => self.fail(&Fault::Sink(e)),
        }
        Turn::Over
    }

    /// The side that this direction comes from.
    fn from(&self) -> Side {
        match self.direction {
            Direction::ToService => Side::External,
            Direction::FromService => Side::Service,
        }
    }

    /// Ends both directions now.
    pub(crate) fn abort(&self) {
        self.pair.0.abort();
    }

    /// Something broke: the whole pair goes, so that neither side takes half for all.
    pub(crate) fn fail(&self, fault: &Fault) {
        let side = match (fault, self.from()) {
            (Fault::Source(_), side) => side,
            (Fault::Sink(_), Side::External) => Side::Service,
            (Fault::Sink(_), Side::Service) => Side::External,
        };
        let error = fault.error();
        (self.pair.0)
            .verdict()
            .failure
            .get_or_insert_with(|| Why::Failed(side, error.kind(), error.to_string()));
        self.pair.0.abort_duplexes();
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort();
        }
    }
}

/// One direction's part in the pair. However a pump goes, by its end, a panic in a worker or a pool that is
/// gone, the pair hears of it.
struct Member(Arc<Pair>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.leave();
    }
}
