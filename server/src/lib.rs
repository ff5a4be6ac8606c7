//! MiniTCPTunnel server.
