//! MiniTCPTunnel client program.
fn main() {}
