//! Channels to a server that does not know of spares: they wait for a first frame of ours.

use std::time::{Duration, Instant};

/// Semantics: the server is not made to wait longer than this. An original waits for ever, servers of
/// this project 120 s.
pub(super) const AHEAD_MAX: Duration = Duration::from_secs(105);

/// Those that wait, oldest first. Knows no socket and no clock.
pub(super) struct Ahead<C>(Vec<(C, Instant)>);

impl<C> Ahead<C> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(&mut self, channel: C, now: Instant) {
        self.0.push((channel, now));
    }

    /// The newest, which has the best chance to be alive still.
    pub(super) fn take(&mut self) -> Option<C> {
        self.0.pop().map(|(channel, _)| channel)
    }

    /// Drops those that are too old. How many?
    pub(super) fn drop_old(&mut self, now: Instant) -> usize {
        self.drop_all_but(|_, since| now.saturating_duration_since(since) < AHEAD_MAX)
    }

    /// Drops those that the server has closed. How many?
    pub(super) fn drop_dead(&mut self, lives: impl Fn(&C) -> bool) -> usize {
        self.drop_all_but(|channel, _| lives(channel))
    }

    fn drop_all_but(&mut self, stays: impl Fn(&C, Instant) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|(channel, since)| stays(channel, *since));
        before - self.0.len()
    }

    /// Drops so many, which are there, beginning with the oldest.
    pub(super) fn drop_oldest(&mut self, count: usize) {
        self.0.drain(..count);
    }

    /// When the oldest will be too old.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.first().map(|(_, since)| *since + AHEAD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_waits_longer_than_the_server_may_have_to() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ahead = Ahead::new();
        assert_eq!(ahead.due(), None);
        ahead.add('a', at(0));
        ahead.add('b', at(0));
        ahead.add('c', at(50));
        assert_eq!(ahead.due(), Some(at(105)));
        assert_eq!(ahead.drop_old(at(104)), 0);
        assert_eq!(ahead.drop_old(at(105)), 2);
        assert_eq!(ahead.due(), Some(at(155)), "ahead again");
        assert_eq!(ahead.drop_old(at(200)), 1);
        assert_eq!((ahead.take(), ahead.due()), (None, None));
    }

    #[test]
    fn the_newest_serves_and_the_oldest_goes() {
        let now = Instant::now();
        let mut ahead = Ahead::new();
        ('a'..='e').for_each(|channel| ahead.add(channel, now));
        assert_eq!(ahead.take(), Some('e'));
        assert_eq!(ahead.drop_dead(|channel| *channel != 'b'), 1);
        ahead.drop_oldest(1);
        assert_eq!(ahead.take(), Some('d'));
        assert_eq!(ahead.take(), Some('c'));
        assert_eq!(ahead.take(), None);
    }
}
