//! Where silent directions wait: one thread, one poller, no buffers.
//!
//! ```text
//!                                     ┌─ little, and it can go on at once: moved here, waits on
//!  rest(job, socket) ─> poller ─ ready┤
//!                                     └─ more, or a task: wake(job), on a worker
//! ```
//!
//! A socket here stays blocking; this thread asks it only for what is there, and writes only where
//! that does not wait, so that one connection never holds up the others. The poller reports edges:
//! a socket stays registered while its pump is nudged here, and a lively terminal costs three system
//! calls a keystroke (on Windows one more, to be told of the next).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(unix)]
use mio::Registry;
use mio::{Events, Poll, Token, Waker};

use super::Job;
use super::watch::Watch;
use crate::budget;
use crate::codes::Code;
use crate::duplex::{Fault, Socket};
use crate::relay::Nudged;

const WAKER: Token = Token(0);
const EVENTS: usize = 256;

#[derive(Default)]
struct Shared {
    /// Not yet in the table of the poller's thread. On Unix the poller knows them already.
    arrivals: Mutex<Vec<(Token, Resting)>>,
    next: AtomicUsize,
    resting: AtomicUsize,
    stopped: AtomicBool,
    /// Whose sockets were ended from our side: only on Windows does the poller not know.
    #[cfg(windows)]
    rung: Mutex<Vec<Token>>,
}

struct Resting {
    job: Job,
    watch: Watch,
}

impl Shared {
    fn arrivals(&self) -> MutexGuard<'_, Vec<(Token, Resting)>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(windows)]
    fn rung(&self) -> MutexGuard<'_, Vec<Token>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of everybody else.
pub(super) struct Rester {
    shared: Arc<Shared>,
    #[cfg(unix)]
    registry: Registry,
    waker: Arc<Waker>,
}

/// The poller thread's side.
pub(super) struct Run {
    shared: Arc<Shared>,
    poll: Poll,
    table: HashMap<Token, Resting>,
}

impl Rester {
    pub(super) fn new() -> io::Result<(Self, Run)> {
        let poll = Poll::new()?;
        #[cfg(unix)]
        let registry = poll.registry().try_clone()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let shared = Arc::new(Shared {
            next: AtomicUsize::new(WAKER.0 + 1),
            ..Shared::default()
        });
        Ok((
            Self {
                shared: shared.clone(),
                #[cfg(unix)]
                registry,
                waker,
            },
            Run {
                shared,
                poll,
                table: HashMap::new(),
            },
        ))
    }

    pub(super) fn len(&self) -> usize {
        self.shared.resting.load(Ordering::Relaxed)
    }

    /// Keeps `job` until `socket` is readable. Gives it back when the poller does not take it.
    ///
    /// On Windows the poller's thread registers it, in [`Run::settle`]: there a question to the system belongs to the
    /// thread that asks, and is lost with it, and workers come and go.
    pub(super) fn rest(&self, job: Job, socket: Arc<Socket>) -> Result<(), Job> {
        let Ok(watch) = Watch::new(socket) else {
            return Err(job);
        };
        // All under the lock: whatever wakes the poller, it must find the job.
        let mut arrivals = self.shared.arrivals();
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(job);
        }
        let token = self.token();
        arrivals.push((token, Resting { job, watch }));
        let (_, resting) = arrivals.last_mut().expect("pushed in the line above");
        if self.announce(token, &mut resting.watch).is_ok() {
            self.shared.resting.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let (_, resting) = arrivals.pop().expect("pushed above, under the same lock");
        Err(resting.job)
    }

    #[cfg(unix)]
    fn announce(&self, token: Token, watch: &mut Watch) -> io::Result<()> {
        watch.register(&self.registry, token)
    }

    #[cfg(windows)]
    fn announce(&self, token: Token, watch: &mut Watch) -> io::Result<()> {
        watch.ring_at_end(Some(Box::new(self.bell(token))));
        self.waker.wake().inspect_err(|_| watch.ring_at_end(None))
    }

    #[cfg(windows)]
    fn bell(&self, token: Token) -> impl Fn() + Send + 'static {
        let (shared, waker) = (Arc::downgrade(&self.shared), self.waker.clone());
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.rung().push(token);
                let _ = waker.wake();
            }
        }
    }

    /// A token that nothing has, but for the wrap after 4 billion rests on 32 bits; see
    /// [`Run::settle`].
    fn token(&self) -> Token {
        loop {
            let token = Token(self.shared.next.fetch_add(1, Ordering::Relaxed));
            if token != WAKER {
                return token;
            }
        }
    }

    pub(super) fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }
}

impl Run {
    /// Runs until [`Rester::stop`].
    pub(super) fn run(mut self, mut wake: impl FnMut(Job)) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.shared.stopped.load(Ordering::Acquire) {
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Without a poller nothing can rest any more; what rests now must not hang.
                    let code = Code::BUG;
                    log::error!(
                        "the poller for idle connections failed, which cuts them: {e} code={code}"
                    );
                    break;
                }
            }
            for event in &events {
                #[cfg(windows)]
                self.note_loss(event);
                self.ready(event.token(), &mut wake);
            }
            #[cfg(windows)]
            self.answer_bells(&mut wake);
        }
    }

    /// A reset may be told to the poller alone; then a read would find what looks like an end.
    #[cfg(windows)]
    fn note_loss(&mut self, event: &mio::event::Event) {
        if !event.is_write_closed() {
            return;
        }
        if let Some(resting) = self.table.get(&event.token()) {
            resting.watch.mark_lost();
        }
    }

    #[cfg(windows)]
    fn answer_bells(&mut self, wake: &mut impl FnMut(Job)) {
        let rung = std::mem::take(&mut *self.shared.rung());
        for token in rung {
            self.ready(token, wake);
        }
    }

    fn ready(&mut self, token: Token, wake: &mut impl FnMut(Job)) {
        if !self.table.contains_key(&token) {
            self.settle(wake);
        }
        let Some(resting) = self.table.get_mut(&token) else {
            return;
        };
        let nudged = match &mut resting.job {
            Job::Pump(pump) => pump.nudge_caught(),
            Job::Task(_) | Job::Note(_) => Nudged::Busy,
        };
        if nudged == Nudged::Silent && resting.watch.again(self.poll.registry(), token).is_ok() {
            return;
        }
        let Some(Resting { job, watch }) = self.table.remove(&token) else {
            return;
        };
        self.forget(watch);
        match job {
            Job::Note(note) => {
                // A panic is its owner's loss, not that of everybody who rests.
                let _ = catch_unwind(AssertUnwindSafe(note));
            }
            job if nudged != Nudged::Over => wake(job),
            _ => {}
        }
    }

    /// Takes the arrivals into the table. Who comes with the token of one that has rested since before
    /// the tokens came round goes to a worker, and gets another the next time.
    fn settle(&mut self, wake: &mut impl FnMut(Job)) {
        let arrivals = std::mem::take(&mut *self.shared.arrivals());
        for (token, resting) in arrivals {
            #[cfg(windows)]
            let Some(resting) = self.register(token, resting, wake) else {
                continue;
            };
            match self.table.entry(token) {
                Entry::Vacant(place) => {
                    place.insert(resting);
                }
                Entry::Occupied(_) => {
                    self.forget(resting.watch);
                    wake(resting.job);
                }
            }
        }
    }

    /// `None` where the system has no room for it: a pump goes on in a worker, which waits itself and then asks here
    /// again; for anybody else the connection is over. What the system refuses later, in the poll, ends everybody's
    /// rest, as any error of the poller does.
    #[cfg(windows)]
    fn register(
        &mut self,
        token: Token,
        mut resting: Resting,
        wake: &mut impl FnMut(Job),
    ) -> Option<Resting> {
        if resting.watch.register(self.poll.registry(), token).is_ok() {
            return Some(resting);
        }
        self.forget(resting.watch);
        if let job @ Job::Pump(_) = resting.job {
            wake(job);
        }
        None
    }

    /// The watch goes here and now: where it has a handle of its own, that must not be what keeps a connection open
    /// once its pump is over.
    fn forget(&mut self, mut watch: Watch) {
        watch.deregister(self.poll.registry());
        drop(watch);
        self.shared.resting.fetch_sub(1, Ordering::Relaxed);
        budget::shrink(&mut self.table);
    }
}

impl Drop for Run {
    /// However this thread ends, what rests is cut, and nothing comes to rest any more.
    fn drop(&mut self) {
        // Marked under the lock, so that nothing comes to rest behind our back.
        let mut arrivals = self.shared.arrivals();
        self.shared.stopped.store(true, Ordering::Release);
        let late = std::mem::take(&mut *arrivals);
        drop(arrivals);
        let left = self.table.drain().map(|(_, resting)| resting);
        for resting in left.chain(late.into_iter().map(|(_, resting)| resting)) {
            if let Job::Pump(pump) = resting.job {
                pump.fail(&Fault::Source(io::ErrorKind::ConnectionAborted.into()));
            }
        }
    }
}
