//! TunnelManager: the tunnels that are wanted against those that the server has granted.
//!
//! ```text
//!            open                 session begins            Open
//!  Closed ─────────> Wanted ────────────────────> Opening ────────> Open
//!     ^                ^  session lost               │ ^              │
//!     │ close          └───────────── from any       │ │ retry_at     │ Stopped, Error
//!     └─ from any                       Error, no answer ──> Refused <┘
//! ```
//!
//! Pure: it says what to send, the caller sends it; time and random bits are arguments.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minitcptunnel_common::backoff::{Backoff, Jitter};
use minitcptunnel_common::channel::sealed::Compression;
use minitcptunnel_common::config::CompressionSetting;
use minitcptunnel_common::id::TunnelId;
use minitcptunnel_common::metrics::Traffic;
use minitcptunnel_common::wire::message::{CompressionWish, Message, Status};

use crate::config::Tunnel;

/// What a tunnel leads to, and what has passed through it.
#[derive(Debug)]
pub struct Target {
    /// The tunnel.
    pub id: TunnelId,
    /// Where the local service is.
    pub host: String,
    /// The local service's port.
    pub port: u16,
    /// How to compress what is sent to the server.
    pub compression: Compression,
    /// Its counters.
    pub traffic: Arc<Traffic>,
}

/// Where a tunnel stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TunnelState {
    /// Nobody wants it.
    Closed,
    /// It will be asked for when there is a session.
    Wanted,
    /// The server was asked.
    Opening,
    /// The server listens on this port.
    Open {
        /// The public port.
        port: u16,
    },
    /// The server said no, or nothing.
    Refused {
        /// Why, as far as it is known.
        reason: String,
        /// When it is asked again.
        retry_at: Instant,
    },
}

impl fmt::Display for TunnelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Wanted => f.write_str("wanted"),
            Self::Opening => f.write_str("opening"),
            Self::Open { port } => write!(f, "open port={port}"),
            Self::Refused { reason, .. } => write!(f, "refused reason={reason:?}"),
        }
    }
}

/// How long the manager waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the answer to OpenTunnel.
    pub answer: Duration,
    /// Before a refused tunnel is asked for again, at least.
    pub retry_min: Duration,
    /// And at most.
    pub retry_max: Duration,
}

/// Something about a tunnel that people want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The server listens.
    Opened {
        /// The tunnel.
        tunnel: TunnelId,
        /// The public port.
        port: u16,
    },
    /// The server does not.
    Refused {
        /// The tunnel.
        tunnel: TunnelId,
        /// Why.
        reason: String,
        /// How long until it is asked again.
        retry_in: Duration,
        /// Whether the last refusal had the same reason.
        repeated: bool,
    },
}

/// There is no tunnel of this name in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoSuchTunnel(pub TunnelId);

impl fmt::Display for NoSuchTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no tunnel {:?} in the configuration",
            self.0.as_str()
        )
    }
}

impl Error for NoSuchTunnel {}

/// What the enabled tunnels lead to, for workers. Cheap to clone: all clones are the same.
#[derive(Clone, Default)]
pub struct Enabled(Arc<Mutex<HashMap<TunnelId, Arc<Target>>>>);

impl Enabled {
    fn lock(&self) -> MutexGuard<'_, HashMap<TunnelId, Arc<Target>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a tunnel leads to, if it is enabled. The server cannot make us dial anything else.
    pub fn target(&self, id: &TunnelId) -> Option<Arc<Target>> {
        self.lock().get(id).cloned()
    }

    fn set(&self, target: &Arc<Target>, enabled: bool) {
        if enabled {
            self.lock().insert(target.id.clone(), target.clone());
        } else {
            self.lock().remove(&target.id);
        }
    }
}

struct Entry {
    target: Arc<Target>,
    remote_port: u16,
    wish: CompressionWish,
    wanted: bool,
    state: TunnelState,
    /// While opening.
    answer_by: Option<Instant>,
    /// CloseTunnels that the server has yet to answer: those answers are not about the next opening.
    stops_due: u32,
    backoff: Backoff,
    /// The reason of the last refusal that was told.
    told: Option<String>,
}

impl Entry {
    fn ask(&mut self, now: Instant, timing: &Timing) -> Message {
        self.state = TunnelState::Opening;
        self.answer_by = Some(now + timing.answer);
        Message::OpenTunnel {
            port: self.remote_port.into(),
            tunnel: self.target.id.clone(),
            compression: self.wish,
        }
    }

    fn refused(&mut self, reason: String, now: Instant, random: u64) -> Change {
        let retry_in = self.backoff.next(random);
        self.answer_by = None;
        self.state = TunnelState::Refused {
            reason: reason.clone(),
            retry_at: now + retry_in,
        };
        let repeated = self.told.as_ref() == Some(&reason);
        self.told = Some(reason.clone());
        Change::Refused {
            tunnel: self.target.id.clone(),
            reason,
            retry_in,
            repeated,
        }
    }

    /// When something has to be done about it.
    fn due(&self) -> Option<Instant> {
        match self.state {
            TunnelState::Opening => self.answer_by,
            TunnelState::Refused { retry_at, .. } => Some(retry_at),
            _ => None,
        }
    }
}

/// The tunnels of this client.
pub struct TunnelManager {
    /// In the order of the configuration.
    entries: Vec<Entry>,
    timing: Timing,
    /// Whether there is a session to ask in.
    session: bool,
    /// Those that are wanted.
    enabled: Enabled,
}

impl TunnelManager {
    /// The tunnels of the configuration; those with `auto_start` are wanted.
    pub fn new(tunnels: &[Tunnel], timing: Timing) -> Self {
        let entries = tunnels.iter().filter_map(|tunnel| {
            // The configuration has checked the length already.
            let id = TunnelId::new(&tunnel.id)?;
            Some(Entry {
                target: Arc::new(Target {
                    id,
                    host: tunnel.local_host.as_str().to_owned(),
                    port: tunnel.local_port,
                    compression: compression(tunnel.compression),
                    traffic: Arc::default(),
                }),
                remote_port: tunnel.remote_port,
                wish: wish(tunnel.compression),
                wanted: tunnel.auto_start,
                state: if tunnel.auto_start {
                    TunnelState::Wanted
                } else {
                    TunnelState::Closed
                },
                answer_by: None,
                stops_due: 0,
                backoff: Backoff::new(timing.retry_min, timing.retry_max, Jitter::Equal),
                told: None,
            })
        });
        let entries: Vec<Entry> = entries.collect();
        let enabled = Enabled::default();
        for entry in &entries {
            enabled.set(&entry.target, entry.wanted);
        }
        Self {
            entries,
            timing,
            session: false,
            enabled,
        }
    }

    fn entry(&mut self, id: &TunnelId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.target.id == *id)
    }

    /// A session begins: what to ask for.
    pub fn begin(&mut self, now: Instant) -> Vec<Message> {
        self.session = true;
        let timing = self.timing;
        let wanted = self.entries.iter_mut().filter(|entry| entry.wanted);
        wanted.map(|entry| entry.ask(now, &timing)).collect()
    }

    /// The session is over, and with it all that it had opened.
    pub fn lost(&mut self) {
        self.session = false;
        for entry in &mut self.entries {
            entry.state = if entry.wanted {
                TunnelState::Wanted
            } else {
                TunnelState::Closed
            };
            entry.answer_by = None;
            entry.stops_due = 0;
            entry.backoff.reset();
        }
    }

    /// Wants a tunnel from now on. Says what to send, if there is something to send.
    pub fn open(&mut self, id: &TunnelId, now: Instant) -> Result<Option<Message>, NoSuchTunnel> {
        let (session, timing) = (self.session, self.timing);
        let enabled = self.enabled.clone();
        let entry = self.entry(id).ok_or_else(|| NoSuchTunnel(id.clone()))?;
        entry.wanted = true;
        enabled.set(&entry.target, true);
        Ok(match entry.state {
            // Asking again at once is what somebody who opens a refused tunnel by hand wants.
            TunnelState::Closed | TunnelState::Wanted | TunnelState::Refused { .. } if session => {
                Some(entry.ask(now, &timing))
            }
            TunnelState::Closed => {
                entry.state = TunnelState::Wanted;
                None
            }
            _ => None,
        })
    }

    /// Wants a tunnel no more. Says what to send, if there is something to send.
    pub fn close(&mut self, id: &TunnelId) -> Result<Option<Message>, NoSuchTunnel> {
        let enabled = self.enabled.clone();
        let entry = self.entry(id).ok_or_else(|| NoSuchTunnel(id.clone()))?;
        entry.wanted = false;
        enabled.set(&entry.target, false);
        entry.answer_by = None;
        entry.told = None;
        let asked = matches!(entry.state, TunnelState::Opening | TunnelState::Open { .. });
        entry.state = TunnelState::Closed;
        Ok(asked.then(|| {
            entry.stops_due += 1;
            Message::CloseTunnel {
                tunnel: entry.target.id.clone(),
            }
        }))
    }

    /// The server says where a tunnel stands. Tunnels that are not ours, and news that change
    /// nothing, are passed over.
    pub fn status(
        &mut self,
        id: &TunnelId,
        status: &Status,
        reason: &str,
        port: u32,
        now: Instant,
        random: u64,
    ) -> Option<Change> {
        let entry = self.entry(id)?;
        let refusal = match status {
            Status::Open => {
                // A late Open for what was closed meanwhile: the answer to the close will follow.
                if !entry.wanted {
                    return None;
                }
                // An original does not say the port.
                let port = u16::try_from(port)
                    .ok()
                    .filter(|&port| port > 0)
                    .unwrap_or(entry.remote_port);
                let open = TunnelState::Open { port };
                entry.answer_by = None;
                entry.backoff.reset();
                entry.told = None;
                return (std::mem::replace(&mut entry.state, open.clone()) != open).then(|| {
                    Change::Opened {
                        tunnel: id.clone(),
                        port,
                    }
                });
            }
            Status::Other(_) => return None,
            Status::Stopped => "the server stopped it",
            Status::Error => "the server gives no reason; is the port in use, or not allowed?",
        };
        if entry.stops_due > 0 {
            entry.stops_due -= 1;
            return None;
        }
        if !matches!(entry.state, TunnelState::Opening | TunnelState::Open { .. }) {
            return None;
        }
        let reason = if reason.is_empty() { refusal } else { reason };
        Some(entry.refused(reason.to_owned(), now, random))
    }

    /// Does what is due at `now`: adds what to send to `out`, and says what has changed.
    pub fn tick(
        &mut self,
        now: Instant,
        mut random: impl FnMut() -> u64,
        out: &mut Vec<Message>,
    ) -> Vec<Change> {
        let timing = self.timing;
        let mut changes = Vec::new();
        for entry in &mut self.entries {
            if entry.due().is_none_or(|due| due > now) {
                continue;
            }
            if entry.state == TunnelState::Opening {
                let reason = format!("no answer within {} s", timing.answer.as_secs_f64());
                changes.push(entry.refused(reason, now, random()));
            } else {
                out.push(entry.ask(now, &timing));
            }
        }
        changes
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.entries.iter().filter_map(Entry::due).min()
    }

    /// The tunnels that are wanted, for whoever dials.
    pub fn enabled(&self) -> &Enabled {
        &self.enabled
    }

    /// All tunnels and where they stand, in the order of the configuration.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<Target>, &TunnelState)> {
        self.entries
            .iter()
            .map(|entry| (&entry.target, &entry.state))
    }
}

fn compression(setting: CompressionSetting) -> Compression {
    match setting {
        CompressionSetting::Auto => Compression::Auto,
        CompressionSetting::Off => Compression::Off,
        CompressionSetting::On => Compression::On,
    }
}

/// `auto` on this side leaves the server its own setting, which is `auto` unless its operator chose.
fn wish(setting: CompressionSetting) -> CompressionWish {
    match setting {
        CompressionSetting::Auto => CompressionWish::ServerChoice,
        CompressionSetting::Off => CompressionWish::Off,
        CompressionSetting::On => CompressionWish::On,
    }
}

#[cfg(test)]
mod tests;
