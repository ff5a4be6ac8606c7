//! Ways to be a [`Duplex`](crate::duplex::Duplex) after authentication.
//!
//! ```text
//! sealed   TCP + wire frames: the data channels of the reverse tunnel
//! ```

pub mod sealed;
