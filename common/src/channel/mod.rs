//! Ways to be a [`Duplex`](crate::duplex::Duplex) after authentication.
//!
//! ```text
//! policy   when to compress
//! sealed   TCP + wire frames: the data channels of the reverse tunnel
//! ```

mod policy;
pub mod sealed;
