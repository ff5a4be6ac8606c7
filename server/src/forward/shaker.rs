//! The steps of handshakes, on a few threads of their own.
//!
//! ```text
//!  poller ─ something has come ─> queue ─> thread: a step ─┬─> poller
//!                                                          └─ done ─> worker: dial, pair
//! ```
//!
//! A step is up to a millisecond of arithmetic. However many strangers send something at once, they share these
//! threads; what waits in the queue is bounded by the gate.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::connection::Pending;

/// Stack of a thread, in bytes: certificates are parsed here.
const STACK: usize = 512 * 1024;

/// What waits for a thread. Not a channel: those that we have spin before they sleep, which is a tenth of all that a
/// new connection costs.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    steps: VecDeque<Pending>,
    /// Nobody hands anything over any more.
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No step runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next, as soon as there is one.
    fn next(&self) -> Option<Pending> {
        let mut state = self.lock();
        loop {
            if let Some(pending) = state.steps.pop_front() {
                return Some(pending);
            }
            if state.ended {
                return None;
            }
            state = self
                .more
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the threads when the last shaker is dropped.
struct End(Arc<Queue>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.more.notify_all();
    }
}

/// The way to these threads. They end when the last of these is dropped.
#[derive(Clone)]
pub(super) struct Shaker(Arc<End>);

impl Shaker {
    /// Starts so many.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let shaker = Self(Arc::new(End(queue.clone())));
        for _ in 0..threads {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name("handshake".into())
                .stack_size(STACK)
                .spawn(move || {
                    while let Some(pending) = queue.next() {
                        // A panic is the end of this connection, and not of all that are to come.
                        let _ = catch_unwind(AssertUnwindSafe(|| pending.step()));
                    }
                })?;
        }
        Ok(shaker)
    }

    /// Hands one over.
    pub(super) fn step(&self, pending: Pending) {
        self.0.0.lock().steps.push_back(pending);
        self.0.0.more.notify_one();
    }
}
