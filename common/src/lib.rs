//! What the MiniTCPTunnel programs share.

pub mod config;
pub mod files;
pub mod identity;
#[cfg(test)]
mod scratch;
