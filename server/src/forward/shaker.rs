//! The steps of handshakes, on a few threads of their own.
//!
//! ```text
//!  poller ─ something has come ─> queue ─> thread: a step ─┬─> poller
//!                                                          └─ done ─> worker: dial, pair
//! ```
//!
//! A step is up to a millisecond of arithmetic. However many strangers send something at once, they share these
//! threads; what waits in the queue is bounded by the gate.

use std::io;

use crossbeam_channel::{Sender, unbounded};

use super::connection::Pending;

/// Stack of a thread, in bytes: certificates are parsed here.
const STACK: usize = 512 * 1024;

/// The way to these threads. They end when the last of these is dropped.
#[derive(Clone)]
pub(super) struct Shaker(Sender<Pending>);

impl Shaker {
    /// Starts so many.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let (queue, steps) = unbounded::<Pending>();
        for _ in 0..threads {
            let steps = steps.clone();
            std::thread::Builder::new()
                .name("handshake".into())
                .stack_size(STACK)
                .spawn(move || steps.into_iter().for_each(Pending::step))?;
        }
        Ok(Self(queue))
    }

    /// Hands one over. Without a thread it is dropped, which closes it.
    pub(super) fn step(&self, pending: Pending) {
        let _ = self.0.send(pending);
    }
}
