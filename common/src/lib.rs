//! What the MiniTCPTunnel programs share.
