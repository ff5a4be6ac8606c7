//! Ways to be a [`Duplex`](crate::duplex::Duplex) after authentication.
//!
//! ```text
//! ledger   where memory and compression are counted
//! policy   when to compress
//! sealed   TCP + wire frames: the data channels of the reverse tunnel
//! ```

pub mod ledger;
mod policy;
pub mod sealed;
