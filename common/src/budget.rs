//! What pairs and their buffers may hold together: `memory_budget`.
//!
//! ```text
//!  limit ├──────────────── admission, comfort ────────────────┤── need ──┤
//!        └ a pair takes PAIR when it is admitted              └ RESERVE: a frame that has to be whole
//!  Grant of a half: its share of PAIR is free; what goes beyond is taken, kept and given back
//! ```
//!
//! What keeps progress when everything is used up: a pair has paid for one small frame each way when it
//! was admitted, so it can always move bytes as small frames. Growth that is only comfort is refused, and
//! whoever asked goes on with what there is. Only a peer's frame that fits into nothing that is left fails
//! its pair. Nobody ever waits for memory, so nobody can wait for each other.
//!
//! The counters are touched when a pair comes or goes and when a buffer changes its size, never per frame.

mod give_back;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Room for a frame with 4 KiB of payload, in bytes.
pub const SMALL: usize = 4 * 1024 + 256;
/// What the sealing direction of a pair holds without asking: such a frame.
pub const SINK: usize = SMALL;
/// What the opening direction holds without asking: such a frame, and what it expands to.
pub const SOURCE: usize = 2 * SMALL;
/// What a pair is admitted for: these, and 4 KiB for all that it keeps at rest. Measured with 9,000 of them:
/// 1.5 KiB in the server, 1.9 KiB in the client.
pub const PAIR: usize = 4 * 1024 + SINK + SOURCE;
/// The part of a budget that admission and comfort leave alone.
const RESERVE: usize = 8;
/// How much must have been given up since memory was last handed back to the system, at least.
const HAND_BACK: usize = 1024 * 1024;
/// The least that makes sense: some dozens of pairs, and a frame in the reserve.
pub const LEAST: usize = 1024 * 1024;
/// The budget where there is memory enough.
const USUAL: usize = 256 * 1024 * 1024;

/// How badly more is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// It would be faster with it.
    Comfort,
    /// Without it the pair is lost.
    Need,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
    /// The most that was used since memory was last handed back.
    peak: AtomicUsize,
    /// Memory was handed back by a thread that goes on.
    unsettled: AtomicBool,
}

/// A bound on memory. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

impl Default for Budget {
    /// No bound.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Budget {
    /// A budget of `limit` bytes, at least [`LEAST`].
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit: limit.max(LEAST),
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            unsettled: AtomicBool::new(false),
        }))
    }

    /// What a program takes that was not told: 256 MiB, or a quarter of a smaller system's memory.
    pub fn usual() -> usize {
        match crate::resources::memory() {
            Some(all) => usize::try_from(all / 4)
                .unwrap_or(USUAL)
                .clamp(LEAST, USUAL),
            None => USUAL,
        }
    }

    /// The bound, in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// What is taken now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether one more pair would be refused.
    pub fn is_used_up(&self) -> bool {
        self.used().saturating_add(PAIR) > self.bound(Want::Comfort)
    }

    /// How many pairs at rest fit.
    pub fn pairs(&self) -> usize {
        self.bound(Want::Comfort) / PAIR
    }

    /// What a pair needs, or a refusal.
    pub fn pair(&self) -> Option<Grant> {
        let mut grant = self.half(0);
        grant.hold(PAIR, Want::Comfort).then_some(grant)
    }

    /// An account for a part of a pair that has `included` bytes paid for already.
    pub fn half(&self, included: usize) -> Grant {
        Grant {
            budget: self.clone(),
            included,
            extra: 0,
        }
    }

    fn bound(&self, want: Want) -> usize {
        match want {
            Want::Comfort => self.0.limit - self.0.limit / RESERVE,
            Want::Need => self.0.limit,
        }
    }

    fn take(&self, bytes: usize, want: Want) -> bool {
        let bound = self.bound(want);
        let taken = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= bound)
            });
        if let Ok(before) = taken {
            let sum = before + bytes;
            if self.0.peak.fetch_max(sum, Ordering::Relaxed) < sum && sum >= HAND_BACK {
                self.0.unsettled.store(true, Ordering::Relaxed);
            }
        }
        taken.is_ok()
    }

    fn give(&self, bytes: usize) {
        let used = self.0.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        let peak = self.0.peak.load(Ordering::Relaxed);
        // Whenever the load has halved, so that a steady one costs nothing and a fading one a few times.
        if peak.saturating_sub(used) >= HAND_BACK.max(peak / 2)
            && (self.0.peak)
                .compare_exchange(peak, used, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.0.unsettled.store(true, Ordering::Relaxed);
            give_back::give_back();
        }
    }

    /// The threads that used it have ended: what they had kept for themselves goes back to the system,
    /// too, if there was anything to speak of since the last time.
    pub fn settle(&self) {
        if self.0.unsettled.swap(false, Ordering::Relaxed) {
            give_back::give_back();
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1024.0 * 1024.0);
        write!(f, "{:.1} of {:.1} MiB", mib(self.used()), mib(self.limit()))
    }
}

/// What somebody holds of a budget; gives it back when dropped. Declare it behind the buffers that it
/// stands for: they are dropped first.
#[derive(Debug)]
pub struct Grant {
    budget: Budget,
    included: usize,
    extra: usize,
}

impl Grant {
    /// Says that `bytes` are to be held in all. `false`: not to be had, and nothing has changed. Less
    /// is always granted. Asking for what is held already costs nothing.
    #[must_use]
    pub fn hold(&mut self, bytes: usize, want: Want) -> bool {
        let extra = bytes.saturating_sub(self.included);
        if extra > self.extra {
            if !self.budget.take(extra - self.extra, want) {
                return false;
            }
        } else if extra < self.extra {
            self.budget.give(self.extra - extra);
        }
        self.extra = extra;
        true
    }

    /// Says that everything but the share of the pair has been freed.
    pub fn free(&mut self) {
        let _ = self.hold(0, Want::Comfort);
    }

    /// The budget that this is a part of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.free();
    }
}

/// Lets a table that has emptied go back to a size that fits: a burst must not be remembered for ever.
/// To be called behind a removal; costs nothing until the table is all but empty.
pub fn shrink<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    const SMALL: usize = 256;
    if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests;
