//! The small parts that every mio loop of this project needs, and no framework.
//!
//! ```text
//! Slots<T>    what a mio token stands for; tokens are not reused while an event may be pending
//! Deadlines   (when, what) in order of time; each can be cancelled by its key
//! Inbox<T>    how other threads reach a loop: a queue and a waker
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget;
use crossbeam_channel::{Receiver, Sender};
use mio::{Poll, Token, Waker};

/// What tokens stand for. Every insertion gets a fresh token, so that an event for something
/// that is gone can never be taken for its successor.
pub struct Slots<T> {
    first: usize,
    next: usize,
    map: HashMap<Token, T>,
}

impl<T> Slots<T> {
    /// An empty table whose first token is `first`; below it are the caller's fixed tokens.
    pub fn new(first: usize) -> Self {
        Self {
            first,
            next: first,
            map: HashMap::new(),
        }
    }

    /// The token that the next [`insert`](Self::insert) will use.
    pub fn next_token(&self) -> Token {
        Token(self.next)
    }

    /// Adds an entry.
    pub fn insert(&mut self, value: T) -> Token {
        let token = Token(self.next);
        self.map.insert(token, value);
        // 64 bits outlast the machine. On 32 bits the count comes round within months, and then passes
        // over the caller's fixed tokens and what is still there.
        loop {
            self.next = self.next.checked_add(1).unwrap_or(self.first);
            if !self.map.contains_key(&Token(self.next)) {
                return token;
            }
        }
    }

    /// The entry of a token, if it still exists.
    pub fn entry(&mut self, token: Token) -> Option<&mut T> {
        self.map.get_mut(&token)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let entry = self.map.remove(&token);
        budget::shrink(&mut self.map);
        entry
    }

    /// Puts an entry back under the token it had, as when it has become something else.
    pub fn put_back(&mut self, token: Token, value: T) {
        self.map.insert(token, value);
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.map.iter().map(|(token, value)| (*token, value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// Deadlines in order of time.
pub struct Deadlines<T> {
    queue: BTreeMap<(Instant, u64), T>,
    count: u64,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self {
            queue: BTreeMap::new(),
            count: 0,
        }
    }
}

/// Names one deadline, to cancel it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadlineKey(Instant, u64);

impl<T> Deadlines<T> {
    /// Adds a deadline.
    pub fn add(&mut self, when: Instant, what: T) -> DeadlineKey {
        self.count += 1;
        self.queue.insert((when, self.count), what);
        DeadlineKey(when, self.count)
    }

    /// Takes a deadline back. `None` when it has passed already.
    pub fn cancel(&mut self, key: DeadlineKey) -> Option<T> {
        self.queue.remove(&(key.0, key.1))
    }

    /// How long a poll may wait at `now`.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.queue
            .keys()
            .next()
            .map(|(when, _)| when.saturating_duration_since(now))
    }

    /// The next deadline that has passed at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        let entry = self.queue.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// How many are pending.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none are pending.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The sending side of a loop's queue. Cheap to clone.
pub struct Inbox<T> {
    sender: Sender<T>,
    waker: Arc<Waker>,
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl<T> Inbox<T> {
    /// A queue into the loop that polls `poll`; `token` is reported when something was put in.
    ///
    /// The queue itself is unbounded: what is put into it is bounded by its senders (workers,
    /// handshakes and commands are all counted elsewhere).
    pub fn new(poll: &Poll, token: Token) -> io::Result<(Self, Receiver<T>)> {
        let waker = Arc::new(Waker::new(poll.registry(), token)?);
        let (sender, receiver) = crossbeam_channel::unbounded();
        Ok((Self { sender, waker }, receiver))
    }

    /// Puts something in. `false` when the loop is gone.
    pub fn send(&self, item: T) -> bool {
        // The wake-up can only fail when the poller is gone, and then the queue is, too.
        self.sender.send(item).is_ok() && self.waker.wake().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_never_reused() {
        let mut slots = Slots::new(10);
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_ne!(first, second);
        assert_eq!(slots.entry(first), None);
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn deadlines_come_in_order_and_can_be_cancelled() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
        let late = deadlines.add(at(30), "late");
        deadlines.add(at(10), "early");
        deadlines.add(at(10), "early too");
        deadlines.add(at(20), "middle");
        assert_eq!(deadlines.wait(start), Some(Duration::from_millis(10)));
        assert_eq!(deadlines.pop(at(9)), None);
        assert_eq!(deadlines.pop(at(25)), Some("early"));
        assert_eq!(deadlines.pop(at(25)), Some("early too"));
        assert_eq!(deadlines.cancel(late), Some("late"));
        assert_eq!(deadlines.cancel(late), None);
        assert_eq!(deadlines.pop(at(25)), Some("middle"));
        assert_eq!(deadlines.pop(at(100)), None);
        assert_eq!(deadlines.wait(start), None);
    }
}
