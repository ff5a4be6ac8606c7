//! What the MiniTCPTunnel programs share.

pub mod backoff;
pub mod exit;
