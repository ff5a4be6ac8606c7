//! Harness of the end-to-end tests: whole programs over loopback, and the hands that pull at the wires between them.
//!
//! ```text
//!  visitor ──> public port [ server ] <── WireCutter <── [ client ] ──> Service
//!                              ^                             (echo, source, sink, ...)
//!                              └── Peer: speaks the wire by hand, honestly or not
//! ```
//!
//! * [`World`]: a temporary folder with keys and allow list; starts servers and clients in it.
//! * [`Program`]: a child process, its log, its memory, threads and descriptors; killed when dropped.
//! * [`WireCutter`]: a relay whose link can be held, dropped, delayed, cut, dribbled and tampered with.
//! * [`Service`]: a local service in this process.
//! * [`Peer`]: one channel of the wire, frame by frame.
//! * [`Bytes`]: endless bytes that both ends of a test know without sending them twice.
//!
//! Nothing here sleeps for a result: every wait has a condition and a deadline, and panics with what it waited for.

#[path = "rig/bytes.rs"]
mod bytes;
#[path = "rig/cutter.rs"]
mod cutter;
#[path = "rig/forwarded.rs"]
mod forwarded;
#[path = "rig/log.rs"]
mod log;
#[path = "rig/nginx.rs"]
mod nginx;
#[path = "rig/peer.rs"]
mod peer;
#[path = "rig/pems.rs"]
mod pems;
#[path = "rig/piped.rs"]
mod piped;
#[path = "rig/program.rs"]
mod program;
#[path = "rig/service.rs"]
mod service;
#[path = "rig/tcp.rs"]
mod tcp;
#[path = "rig/wait.rs"]
mod wait;
#[path = "rig/world.rs"]
mod world;

pub use bytes::{Bytes, sha256_hex};
pub use cutter::{Link, Mode, Way, WireCutter};
pub use forwarded::{ForwardWorld, Forwarded, listening, port_of, start_forwards};
pub use log::Log;
pub use nginx::nginx;
pub use peer::{Peer, offer, raw_hello};
pub use pems::{Ca, Pems, lasting, pems_by_openssl};
pub use piped::Piped;
pub use program::{Ended, Program, Usage, binary, ok, seconds, tool};
pub use service::{Service, send};
pub use tcp::{
    End, connect, connect_from, free_port, is_reset, ping, read_end, reset, wait_for_listener,
    wait_for_port,
};
pub use wait::{PATIENCE, alone, eventually, figure, full, steady};
pub use world::{Client, ClientSetup, Server, ServerSetup, TempDir, Tunnelled, World};
