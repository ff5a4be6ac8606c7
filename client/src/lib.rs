//! MiniTCPTunnel client.
