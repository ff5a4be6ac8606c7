//! Where silent directions wait: one thread, one poller, no buffers.
//!
//! ```text
//! worker ─ rest(pump, socket) ─> table + poller ─ readable or ended ─> wake(pump)
//!          or a task
//! ```
//!
//! A socket here stays blocking: only its readiness is asked for, nothing is read. It is registered
//! by whichever worker brings it and taken out by the poller's thread.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::duplex::{Fault, Socket};
use crate::relay::Pump;

const WAKER: Token = Token(0);
const EVENTS: usize = 256;

/// What waits for a socket.
pub(super) enum Waiting {
    Pump(Pump),
    Task(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Table {
    resting: Mutex<HashMap<usize, Resting>>,
    next: AtomicUsize,
    stopped: AtomicBool,
}

struct Resting {
    what: Waiting,
    watch: Watch,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Resting>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The workers' side.
pub(super) struct Rester {
    table: Arc<Table>,
    registry: Registry,
    waker: Waker,
}

/// The poller thread's side.
pub(super) struct Run {
    table: Arc<Table>,
    poll: Poll,
}

impl Rester {
    pub(super) fn new() -> io::Result<(Self, Run)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let table = Arc::new(Table {
            next: AtomicUsize::new(1),
            ..Table::default()
        });
        Ok((
            Self {
                table: table.clone(),
                registry,
                waker,
            },
            Run { table, poll },
        ))
    }

    pub(super) fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Keeps `pump` until `socket` is readable. Gives it back when the poller does not take it.
    pub(super) fn rest(&self, what: Waiting, socket: Arc<Socket>) -> Result<(), Waiting> {
        let watch = match Watch::new(socket) {
            Ok(watch) => watch,
            Err(_) => return Err(what),
        };
        // Both under the lock: the event may come before register returns, and must find the pump.
        let mut table = self.table.lock();
        if self.table.stopped.load(Ordering::Acquire) {
            return Err(what);
        }
        // On 32 bits the count comes round within months: an id that is taken, or the waker's, is passed over.
        let id = loop {
            let id = self.table.next.fetch_add(1, Ordering::Relaxed);
            if id != WAKER.0 && !table.contains_key(&id) {
                break id;
            }
        };
        let resting = table
            .entry(id)
            .insert_entry(Resting { what, watch })
            .into_mut();
        if resting.watch.register(&self.registry, Token(id)).is_ok() {
            return Ok(());
        }
        Err(table
            .remove(&id)
            .expect("inserted above, under the same lock")
            .what)
    }

    pub(super) fn stop(&self) {
        self.table.stopped.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }
}

impl Run {
    /// Runs until [`Rester::stop`]; what rests then is cut.
    pub(super) fn run(mut self, mut wake: impl FnMut(Waiting)) {
        let mut events = Events::with_capacity(EVENTS);
        let mut ready = Vec::new();
        while !self.table.stopped.load(Ordering::Acquire) {
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Without a poller nothing can rest any more; what rests now must not hang.
                    log::error!("the poller for idle connections failed, which cuts them: {e}");
                    break;
                }
            }
            {
                let mut table = self.table.lock();
                ready.extend(
                    events
                        .iter()
                        .filter_map(|event| table.remove(&event.token().0)),
                );
            }
            for Resting { what, mut watch } in ready.drain(..) {
                watch.deregister(self.poll.registry());
                wake(what);
            }
        }
        // Marked under the lock, so that nothing comes to rest behind our back.
        let left: Vec<_> = {
            let mut table = self.table.lock();
            self.table.stopped.store(true, Ordering::Release);
            table.drain().collect()
        };
        for (_, Resting { what, .. }) in left {
            match what {
                Waiting::Pump(pump) => {
                    pump.fail(&Fault::Source(io::ErrorKind::ConnectionAborted.into()));
                }
                Waiting::Task(task) => task(),
            }
        }
    }
}

/// A socket in the poller.
#[cfg(unix)]
struct Watch(Arc<Socket>);

#[cfg(unix)]
impl Watch {
    // The same signature as elsewhere, where it can fail.
    #[allow(clippy::unnecessary_wraps)]
    fn new(socket: Arc<Socket>) -> io::Result<Self> {
        Ok(Self(socket))
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        registry.register(
            &mut mio::unix::SourceFd(&self.0.stream().as_raw_fd()),
            token,
            Interest::READABLE,
        )
    }

    fn deregister(&mut self, registry: &Registry) {
        use std::os::fd::AsRawFd;
        // It can only fail for a socket that the poller does not know.
        let _ = registry.deregister(&mut mio::unix::SourceFd(&self.0.stream().as_raw_fd()));
    }
}

/// A second handle on the socket: the poller of this system takes no other.
#[cfg(not(unix))]
struct Watch(mio::net::TcpStream);

#[cfg(not(unix))]
impl Watch {
    fn new(socket: Arc<Socket>) -> io::Result<Self> {
        Ok(Self(mio::net::TcpStream::from_std(
            socket.stream().try_clone()?,
        )))
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.0, token, Interest::READABLE)
    }

    fn deregister(&mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.0);
    }
}
