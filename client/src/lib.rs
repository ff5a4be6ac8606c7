//! MiniTCPTunnel client.

pub mod config;
#[cfg(test)]
#[path = "../../common/src/scratch.rs"]
mod scratch;
