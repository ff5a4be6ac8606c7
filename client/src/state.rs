//! StateStore: what there is to know about a running client, for logs, status and a GUI.
//!
//! ```text
//!  control loop ── publish whole view ──> [ one short lock ] ──> snapshot(), wait_for()
//!  workers ── count bytes ──> Traffic (atomics, read when a snapshot is taken)
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::dial;
use minitcptunnel_common::id::TunnelId;
use minitcptunnel_common::metrics::{Refusal, Refusals, TrafficSnapshot};

use crate::reverse::tunnels::{Target, TunnelState};

/// How the client stopped being connected for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Somebody asked it to stop.
    Asked,
    /// The server refused it, and asking again will not help.
    Refused(String),
    /// Something that should not happen.
    Failed(String),
}

impl End {
    /// Under which code to look it up; nothing is wrong with an end that was asked for.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Asked => None,
            Self::Refused(_) => Some(Code::REFUSED),
            Self::Failed(_) => Some(Code::BUG),
        }
    }
}

/// Where the client stands with its server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Connection {
    /// Dialling, or waiting to be accepted.
    Connecting,
    /// In a session.
    Up {
        /// When the server accepted it.
        since: Instant,
        /// The server's address.
        address: SocketAddr,
    },
    /// Between two attempts.
    Waiting {
        /// The next attempt.
        until: Instant,
        /// What ended the last one.
        reason: String,
    },
    /// Over.
    Stopped(End),
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Up { since, .. } => write!(f, "up for={:.0}s", since.elapsed().as_secs_f64()),
            Self::Waiting { until, reason } => write!(
                f,
                "waiting for={:.1}s reason={reason:?}",
                until
                    .saturating_duration_since(Instant::now())
                    .as_secs_f64()
            ),
            Self::Stopped(End::Asked) => f.write_str("stopped"),
            Self::Stopped(End::Refused(why) | End::Failed(why)) => {
                write!(f, "stopped reason={why:?}")
            }
        }
    }
}

/// One tunnel at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSnapshot {
    /// Its name.
    pub id: TunnelId,
    /// `host:port` of the local service.
    pub service: String,
    /// Where it stands.
    pub state: TunnelState,
    /// What has passed through it.
    pub traffic: TrafficSnapshot,
}

/// Everything at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// `host:port` of the server.
    pub server: String,
    /// Where the client stands with it.
    pub connection: Connection,
    /// How many sessions there have been.
    pub sessions: u64,
    /// The tunnels in the order of the configuration.
    pub tunnels: Vec<TunnelSnapshot>,
    /// All tunnels together.
    pub totals: TrafficSnapshot,
    /// Connections refused.
    pub refused: u64,
    /// The same by reason, those that occurred.
    pub refusals: Vec<(Refusal, u64)>,
}

impl Snapshot {
    /// The tunnel of this name.
    pub fn tunnel(&self, id: &str) -> Option<&TunnelSnapshot> {
        self.tunnels.iter().find(|tunnel| tunnel.id.as_str() == id)
    }
}

impl fmt::Display for Snapshot {
    /// One line for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self
            .tunnels
            .iter()
            .filter(|tunnel| matches!(tunnel.state, TunnelState::Open { .. }))
            .count();
        write!(
            f,
            "server={} {} sessions={} tunnels={} open={open} {} refused={}",
            self.server,
            self.connection,
            self.sessions,
            self.tunnels.len(),
            self.totals,
            self.refused
        )
    }
}

/// Several counters as one.
pub(crate) fn sum(parts: impl Iterator<Item = TrafficSnapshot>) -> TrafficSnapshot {
    parts.fold(TrafficSnapshot::default(), |a, b| TrafficSnapshot {
        to_service: a.to_service + b.to_service,
        from_service: a.from_service + b.from_service,
        live: a.live + b.live,
        total: a.total + b.total,
        lz4: a.lz4 + b.lz4,
    })
}

/// What the loop publishes.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) connection: Connection,
    pub(crate) sessions: u64,
    pub(crate) tunnels: Vec<(Arc<Target>, TunnelState)>,
}

/// The latest view, for whoever asks.
pub struct StateStore {
    server: String,
    view: Mutex<Arc<View>>,
    changed: Condvar,
    pub(crate) refusals: Arc<Refusals>,
}

impl StateStore {
    pub(crate) fn new(server: String, view: View) -> Self {
        Self {
            server,
            view: Mutex::new(Arc::new(view)),
            changed: Condvar::new(),
            refusals: Arc::default(),
        }
    }

    /// Nothing but copying of pointers runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Arc<View>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, view: View) {
        let view = Arc::new(view);
        *self.lock() = view;
        self.changed.notify_all();
    }

    /// Says that the loop is gone without having published its end.
    pub(crate) fn fail(&self, why: &str) {
        let mut view = View::clone(&self.lock());
        view.connection = Connection::Stopped(End::Failed(why.to_owned()));
        self.publish(view);
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        let view = self.lock().clone();
        self.describe(&view)
    }

    /// Waits until the published state is as wanted; `None` if it is not within `timeout`. Counters
    /// change without being published: do not wait for them here.
    pub fn wait_for(
        &self,
        timeout: Option<Duration>,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Option<Snapshot> {
        // A time beyond what the clock can express means "however long it takes".
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut view = self.lock();
        loop {
            let current = view.clone();
            drop(view);
            let snapshot = self.describe(&current);
            if wanted(&snapshot) {
                return Some(snapshot);
            }
            view = self.lock();
            if !Arc::ptr_eq(&view, &current) {
                continue;
            }
            view = match deadline {
                None => self
                    .changed
                    .wait(view)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed
                        .wait_timeout(view, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn describe(&self, view: &View) -> Snapshot {
        let tunnels: Vec<TunnelSnapshot> = view
            .tunnels
            .iter()
            .map(|(target, state)| TunnelSnapshot {
                id: target.id.clone(),
                service: dial::host_port(&target.host, target.port),
                state: state.clone(),
                traffic: target.traffic.snapshot(),
            })
            .collect();
        Snapshot {
            server: self.server.clone(),
            connection: view.connection.clone(),
            sessions: view.sessions,
            totals: sum(tunnels.iter().map(|tunnel| tunnel.traffic)),
            tunnels,
            refused: self.refusals.total(),
            refusals: self.refusals.by_reason(),
        }
    }
}
