//! Workers for pairs: blocking threads while bytes flow, a poller while they do not.
//!
//! ```text
//!  admit ─> Permit ─ start ─> pump, pump ─> Rester ─┬─> over
//!                                           │    ^  └─> nudged, silent again
//!                       more than a moment's│    │silent
//!                            work           v    │
//!                                     queue ─> worker ─> over
//! ```
//!
//! The unit of admission is the pair. A pair that is admitted may use two workers at any time, so a
//! full pool refuses; it never runs one half of a pair and starves the other. Workers are made when
//! a pump is ready and nobody is free, and leave after a while without work.

mod places;
mod rester;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::budget::{self, Budget, Grant};
use crate::duplex::{Duplex, Fault, Socket};
use crate::metrics::{Refusal, Traffic};
use crate::relay::{self, Ended, Nudged, Outcome, Pair, Pump};

pub use places::{Place, Places};
use rester::Rester;
pub use watch::Watch;

/// Performance: how long a worker without work waits for more before its thread ends.
const WORKER_IDLE: Duration = Duration::from_secs(5);
/// Performance: stack of a worker, in bytes of address space; what is not touched costs no memory.
/// LZ4 keeps 16 KiB of tables on it, the formatting of a log line a few.
const WORKER_STACK: usize = 256 * 1024;

/// Why a pair was not admitted or started.
#[derive(Debug)]
pub enum PoolError {
    /// As many pairs as allowed are alive.
    Full,
    /// `memory_budget` is used up.
    Memory,
    /// The pool shuts down.
    Closed,
    /// The system refused a thread.
    Thread(io::Error),
}

impl PoolError {
    /// As what a connection is counted that is refused for it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Memory => Refusal::Memory,
            Self::Thread(_) => Refusal::Resources,
            Self::Full | Self::Closed => Refusal::Pairs,
        }
    }
}

impl std::fmt::Display for PoolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the limit on pairs is reached"),
            Self::Memory => f.write_str("memory_budget is used up"),
            Self::Closed => f.write_str("shutting down"),
            Self::Thread(e) => write!(f, "the system refused a thread: {e}"),
        }
    }
}

impl std::error::Error for PoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Thread(e) => Some(e),
            _ => None,
        }
    }
}

enum Job {
    Pump(Pump),
    /// What a pair needs before it exists: dialling.
    Task(Box<dyn FnOnce() + Send>),
    /// As that, but of a moment: whoever has it runs it.
    Note(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Workers that wait for a job.
    idle: usize,
    workers: usize,
    /// Permits given out.
    pairs: usize,
    live: HashMap<u64, (u64, Weak<Pair>)>,
    next: u64,
    closed: bool,
}

struct Inner {
    state: Mutex<State>,
    work: Condvar,
    /// Told whenever a permit comes back.
    fewer: Condvar,
    max_pairs: usize,
    budget: Budget,
    rester: Rester,
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

/// The right to have one pair alive; gives it back when dropped.
pub struct Permit {
    inner: Arc<Inner>,
    _memory: Grant,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.lock().pairs -= 1;
        self.inner.fewer.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under this lock, so it cannot be left half-changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool that keeps at most `max_pairs` pairs alive.
    ///
    /// # Errors
    /// When the system gives no poller or no thread for it.
    pub fn new(max_pairs: usize) -> io::Result<Self> {
        Self::within(max_pairs, Budget::default())
    }

    /// The same within a budget of memory.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn within(max_pairs: usize, budget: Budget) -> io::Result<Self> {
        let (rester, run) = Rester::new()?;
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            work: Condvar::new(),
            fewer: Condvar::new(),
            max_pairs,
            budget,
            rester,
        });
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("rester".into())
            .stack_size(WORKER_STACK)
            .spawn(move || {
                run.run(|job| {
                    if let Some(inner) = weak.upgrade() {
                        Self(inner).wake(job);
                    }
                });
            })?;
        Ok(Self(inner))
    }

    /// The right to start one pair, or a refusal.
    pub fn admit(&self) -> Result<Permit, PoolError> {
        let mut state = self.0.lock();
        if state.closed {
            return Err(PoolError::Closed);
        }
        if state.pairs >= self.0.max_pairs {
            return Err(PoolError::Full);
        }
        let memory = self.0.budget.pair().ok_or(PoolError::Memory)?;
        state.pairs += 1;
        Ok(Permit {
            inner: self.0.clone(),
            _memory: memory,
        })
    }

    /// Pairs admitted and not yet over.
    pub fn live(&self) -> usize {
        self.0.lock().pairs
    }

    /// How many pairs may be alive.
    pub fn max_pairs(&self) -> usize {
        self.0.max_pairs
    }

    /// What pairs and their buffers may hold together.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Whether one more pair would be refused.
    pub fn is_full(&self) -> bool {
        self.live() >= self.0.max_pairs
    }

    /// Worker threads now, busy or waiting.
    pub fn workers(&self) -> usize {
        self.0.lock().workers
    }

    /// Directions at rest now.
    pub fn resting(&self) -> usize {
        self.0.rester.len()
    }

    /// Runs something that a pair needs before it exists, such as a dial, on a worker. The caller
    /// bounds how many of these there can be, mostly by a [`Permit`].
    pub fn task(&self, task: impl FnOnce() + Send + 'static) -> Result<(), PoolError> {
        self.submit(Job::Task(Box::new(task)))
            .map_err(|(e, _)| PoolError::Thread(e))
    }

    /// Runs `task` on a worker once `socket` is readable, has ended or was aborted; until then it costs
    /// no thread. The task is dropped unrun when the pool goes, when there is no thread for it, or when the system
    /// has no room to watch one more (which Windows says only after this has returned).
    pub fn when_readable(
        &self,
        socket: Arc<Socket>,
        task: impl FnOnce() + Send + 'static,
    ) -> Result<(), PoolError> {
        let refused = self.0.rester.rest(Job::Task(Box::new(task)), socket);
        refused.map_err(|_| PoolError::Closed)
    }

    /// As [`when_readable`](Self::when_readable), but `note` is run in the thread that everybody rests with: it
    /// must neither block nor take long. For telling somebody else. Dropped unrun as
    /// there.
    pub fn note_readable(
        &self,
        socket: Arc<Socket>,
        note: impl FnOnce() + Send + 'static,
    ) -> Result<(), PoolError> {
        let refused = self.0.rester.rest(Job::Note(Box::new(note)), socket);
        refused.map_err(|_| PoolError::Closed)
    }

    /// Starts a pair. `owner` names whom [`abort_owner`](Self::abort_owner) would cut; `on_end` is
    /// called when both directions are over, by whichever thread sees it: maybe already this one. On an error both duplexes are aborted and
    /// `on_end` still is called.
    pub fn start(
        &self,
        permit: Permit,
        owner: u64,
        external: Duplex,
        service: Duplex,
        traffic: Arc<Traffic>,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<(), PoolError> {
        let id = {
            let mut state = self.0.lock();
            state.next += 1;
            state.next
        };
        let inner = self.0.clone();
        let on_end = move |ended| {
            let mut state = inner.lock();
            state.live.remove(&id);
            budget::shrink(&mut state.live);
            drop(state);
            on_end(ended);
            // After everything else, so that who waits for the last pair finds its log line written.
            drop(permit);
        };
        let (pair, pumps) = relay::join(external, service, traffic, Box::new(on_end));
        self.0
            .lock()
            .live
            .insert(id, (owner, Arc::downgrade(&pair)));
        let mut failed = None;
        for pump in pumps {
            if let Err((e, job)) = self.begin(pump) {
                pair.abort();
                drop(job);
                failed = Some(PoolError::Thread(e));
            }
        }
        if self.0.lock().closed {
            pair.abort();
        }
        failed.map_or(Ok(()), Err)
    }

    /// Aborts every pair of this owner. Returns how many.
    pub fn abort_owner(&self, owner: u64) -> usize {
        self.abort_where(|of, _| of == owner)
    }

    /// Aborts the pairs of this owner that began after `since` and from whose service side nothing has
    /// come: nobody knows whether they ever reached it. Returns how many.
    pub fn abort_unheard(&self, owner: u64, since: Instant) -> usize {
        self.abort_where(|of, pair| of == owner && pair.is_unheard(since))
    }

    /// Aborts the pairs of this owner in which nothing has ever moved: for a job that ends and would wait for
    /// connections that somebody only keeps ready. Returns how many.
    pub fn abort_untouched(&self, owner: u64) -> usize {
        self.abort_where(|of, pair| of == owner && pair.moved() == 0)
    }

    /// Ends the pairs of this owner in which nothing has moved for `limit`. To be asked every
    /// [`idle_look`]: silence is counted from the first look that saw it. Returns how many.
    pub fn abort_idle(&self, owner: u64, limit: Duration, now: Instant) -> usize {
        let idle = self.pairs(|of, pair| of == owner && pair.is_idle(limit, now));
        idle.iter().for_each(|pair| pair.end_idle());
        idle.len()
    }

    /// Refuses what comes, and aborts what is alive. Returns how many pairs that cut.
    pub fn abort_all(&self) -> usize {
        self.0.lock().closed = true;
        self.abort_where(|_, _| true)
    }

    fn abort_where(&self, wanted: impl Fn(u64, &Pair) -> bool) -> usize {
        let pairs = self.pairs(wanted);
        pairs.iter().for_each(|pair| pair.abort());
        pairs.len()
    }

    /// Those that are alive and wanted. The lock is not held when the caller deals with them, nor when they
    /// are dropped.
    fn pairs(&self, wanted: impl Fn(u64, &Pair) -> bool) -> Vec<Arc<Pair>> {
        let all: Vec<_> = {
            let state = self.0.lock();
            let alive = |(owner, pair): &(u64, Weak<Pair>)| Some((*owner, pair.upgrade()?));
            state.live.values().filter_map(alive).collect()
        };
        let wanted = all.into_iter().filter(|(owner, pair)| wanted(*owner, pair));
        wanted.map(|(_, pair)| pair).collect()
    }

    /// Refuses what comes, and waits until nothing is alive or `until` has passed. `true`: nothing is.
    pub fn drain(&self, until: Instant) -> bool {
        let mut state = self.0.lock();
        state.closed = true;
        while state.pairs > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .0
                .fewer
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// A pump begins with what is there already, in this thread: mostly nothing or little. Then it rests.
    fn begin(&self, mut pump: Pump) -> Result<(), (io::Error, Job)> {
        match pump.nudge_caught() {
            Nudged::Over => return Ok(()),
            Nudged::Busy => return self.submit(Job::Pump(pump)),
            Nudged::Silent => {}
        }
        let job = match pump.rest() {
            None => Job::Pump(pump),
            Some(socket) => match self.0.rester.rest(Job::Pump(pump), socket) {
                Ok(()) => return Ok(()),
                Err(job) => job,
            },
        };
        self.submit(job)
    }

    /// What waited in the rester has work for a worker.
    fn wake(&self, job: Job) {
        // An admitted pair has a right to a worker; without one its bytes would wait for ever.
        if let Err((e, Job::Pump(pump))) = self.submit(job) {
            pump.fail(&Fault::Sink(e));
        }
    }

    /// Queues a job, with a new worker when nobody is free.
    fn submit(&self, job: Job) -> Result<(), (io::Error, Job)> {
        let mut state = self.0.lock();
        if state.idle > state.queue.len() {
            state.queue.push_back(job);
            self.0.work.notify_one();
            return Ok(());
        }
        state.workers += 1;
        drop(state);
        // The new worker gets this very job: through the queue another could take it, and the job that
        // other was meant for would wait. The slot keeps it from being lost with a failed thread.
        let slot = Arc::new(Mutex::new(Some(job)));
        let (pool, first) = (self.clone(), slot.clone());
        let run = move || {
            let job = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            pool.work(job);
        };
        match std::thread::Builder::new()
            .name("worker".into())
            .stack_size(WORKER_STACK)
            .spawn(run)
        {
            Ok(_) => Ok(()),
            Err(e) => {
                self.0.lock().workers -= 1;
                let job = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err((
                    e,
                    job.expect("no thread has started, so nobody has taken the job"),
                ))
            }
        }
    }

    /// A worker's life.
    fn work(&self, first: Option<Job>) {
        let _leave = Leave(&self.0);
        let mut next = first;
        while let Some(job) = next {
            match job {
                Job::Task(task) | Job::Note(task) => task(),
                Job::Pump(pump) => self.run(pump),
            }
            next = self.next_job();
        }
    }

    fn run(&self, mut pump: Pump) {
        loop {
            match pump.run() {
                Outcome::Over => return,
                Outcome::Rest(silent, socket) => match self.rest(silent, socket) {
                    None => return,
                    // It cannot rest; then it waits here, as it would without a rester.
                    Some(again) => pump = again,
                },
            }
        }
    }

    fn rest(&self, pump: Pump, socket: Arc<Socket>) -> Option<Pump> {
        match self.0.rester.rest(Job::Pump(pump), socket) {
            Err(Job::Pump(pump)) => Some(pump),
            _ => None,
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.0.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let (next, timeout) = self
                .0
                .work
                .wait_timeout(state, WORKER_IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                return None;
            }
        }
    }
}

/// The pool's name for the owner of pairs that has none but this, such as a number among its like.
pub fn owner_of(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// How often to look for silence that may last for `limit`: it may last so much longer than it should.
pub fn idle_look(limit: Duration) -> Duration {
    (limit / 4).clamp(Duration::from_millis(100), Duration::from_secs(30))
}

/// Counts a worker out, also when a job panics.
struct Leave<'a>(&'a Inner);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.lock();
            state.workers -= 1;
            state.workers
        };
        if left == 0 {
            // What a thread has at hand of freed memory keeps whole pages in use until it ends.
            self.0.budget.settle();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.rester.stop();
    }
}
