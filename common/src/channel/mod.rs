//! Ways to be a [`Duplex`](crate::duplex::Duplex) after authentication.
//!
//! ```text
//! ledger   where memory and compression are counted
//! policy   when to compress
//! sealed   TCP + wire frames: the data channels of the reverse tunnel
//! tls      TCP + TLS records: the connections of the forward tunnel
//! reuse    what a sealed channel is after an orderly end: a channel again
//! ```

pub mod ledger;
mod policy;
pub mod reuse;
pub mod sealed;
pub mod tls;
