//! The MiniTCPTunnel server: `main` is a thin shell around this library.
//!
//! ```text
//!  cli ─> config ─> jobs::start ─> Handle ─ stop
//! ```

pub mod cli;
pub mod config;
pub mod forward;
mod gate;
pub mod jobs;
mod listen;
pub mod reverse;

#[cfg(test)]
#[path = "../../common/src/scratch.rs"]
mod scratch;
