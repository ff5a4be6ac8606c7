//! How many there may be of something at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of places. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    taken: AtomicUsize,
    limit: usize,
}

/// One of the places; gives it back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Counted>);

impl Places {
    /// So many of them, all free.
    pub fn new(limit: usize) -> Self {
        let taken = AtomicUsize::new(0);
        Self(Arc::new(Counted { taken, limit }))
    }

    /// A place, if one is free.
    pub fn take(&self) -> Option<Place> {
        let Counted { taken, limit } = &*self.0;
        // Nothing else is published with the number: it only has to be right.
        let more = |n| (n < *limit).then_some(n + 1);
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Place(self.0.clone()))
    }

    /// How many there are, taken or free.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let places = Places::new(2);
        let first = places.take();
        let clone = places.clone();
        let second = clone.take();
        assert!(first.is_some() && second.is_some() && places.take().is_none());
        drop(first);
        let third = places.take();
        assert!(third.is_some() && clone.take().is_none());
    }
}
