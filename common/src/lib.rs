//! What the MiniTCPTunnel programs share. `common/README.md` draws the rooms and the arrows.

pub mod channel;
pub mod duplex;
pub mod evloop;
pub mod id;
pub mod metrics;
pub mod pool;
pub mod relay;
pub mod wire;
