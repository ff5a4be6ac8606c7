//! What the MiniTCPTunnel programs share. `common/README.md` draws the rooms and the arrows.

pub mod id;
pub mod wire;
