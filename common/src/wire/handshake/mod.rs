//! Hellos and what follows from them, one file per protocol version.
//!
//! ```text
//! v1    the original's: 143 clear bytes each way (PROTOCOL.md section 2)
//! ```

pub mod v1;
