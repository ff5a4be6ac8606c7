//! What the MiniTCPTunnel programs share. `common/README.md` draws the rooms and the arrows.

pub mod addresses;
pub mod backoff;
pub mod budget;
pub mod capacity;
pub mod channel;
pub mod cli;
pub mod codes;
pub mod config;
pub mod dial;
pub mod doctor;
pub mod duplex;
pub mod evloop;
pub mod exit;
pub mod files;
pub mod health;
pub mod id;
pub mod identity;
pub mod log;
pub mod metrics;
pub mod pki;
pub mod pool;
pub mod relay;
pub mod resources;
pub mod service;
pub mod signals;
#[cfg(windows)]
mod winapi;
pub mod wire;

#[cfg(test)]
mod scratch;
