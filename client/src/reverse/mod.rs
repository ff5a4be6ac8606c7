//! The reverse tunnel, client side.
//!
//! ```text
//!  thread "control" (mio loop, owns everything, never blocks)
//!    ControlClient ── TunnelManager
//!      │   ^ Inbox: dialled channel, refusals, commands, stop
//!      │   └──────────────┬───────────────────────┬──────────────── Handle
//!      ├─ thread "dial" ──┘ (one per attempt)     │
//!      └─ LocalProxy ─ pool workers ──────────────┘
//!      │      dial local service ∥ dial data channel ─> pair
//!      └─ Spares ─ pool workers: channels opened ahead ─> dial local service ─> pair
//! ```

pub(crate) mod control;
pub(crate) mod data;
mod lost;
pub(crate) mod server;
mod session;
mod spare;
pub mod tunnels;

use crossbeam_channel::Sender;
use minitcptunnel_common::id::{ConnId, TunnelId};

use server::{Channel, ServerError};

/// What other threads put into the loop's inbox.
pub(crate) enum Input {
    /// An attempt to reach the server is over.
    Dialled {
        attempt: u64,
        result: Result<Channel, ServerError>,
    },
    /// A worker could not serve a connection.
    Refuse {
        session: u64,
        conn: ConnId,
        reason: String,
    },
    /// There are spare data channels to wait for: look at the deadlines again.
    Spares,
    /// Want a tunnel.
    Open(TunnelId),
    /// Want it no more.
    Close(TunnelId),
    /// Answer this, to show that the loop turns.
    Alive(Sender<()>),
    /// End the session and the loop.
    Stop,
}
