//! MiniTCPTunnel server program.
fn main() {}
