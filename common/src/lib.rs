//! What the MiniTCPTunnel programs share.

pub mod backoff;
pub mod dial;
pub mod exit;
pub mod log;
