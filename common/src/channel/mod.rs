//! Ways to be a [`Duplex`](crate::duplex::Duplex) after authentication.
//!
//! ```text
//! sealed   TCP + wire frames: the data channels of the reverse tunnel
//! reuse    what a sealed channel is after an orderly end: a channel again
//! ```

pub mod reuse;
pub mod sealed;
