//! Where a channel's memory and its compression are counted.

use std::sync::Arc;

use crate::budget::Budget;
use crate::metrics::Traffic;

/// What a channel counts into. The default counts into nothing that anybody reads, without a bound.
#[derive(Clone, Default, Debug)]
pub struct Ledger {
    /// What its buffers are taken from.
    pub budget: Budget,
    /// Where frames are counted that were compressed, or tried.
    pub traffic: Arc<Traffic>,
}
