//! What the MiniTCPTunnel programs share.

pub mod files;
#[cfg(test)]
mod scratch;
