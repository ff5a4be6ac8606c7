//! ConnectionPairer: where external connections wait for their data channel.
//!
//! ```text
//!  external connection ─ park ─> waiting ─┬─ claim (proof) ─> pair
//!                                         ├─ deadline ──────> expire
//!                                         └─ refused, tunnel or session gone ─> take
//! ```
//!
//! It owns what waits (`T` is the socket, in tests anything) and knows no socket, clock or key.

use std::collections::HashMap;
use std::time::Instant;

use minitcptunnel_common::id::{ConnId, SessionId};

/// One external connection that waits.
#[derive(Debug)]
pub(super) struct Parked<T> {
    /// What waits.
    pub(super) external: T,
    /// The listener it came through.
    pub(super) tunnel: mio::Token,
    /// The session that was told, or will be.
    pub(super) session: SessionId,
    /// Until when it waits.
    pub(super) deadline: Instant,
}

/// The table of waiting external connections, bounded.
pub(super) struct ConnectionPairer<T> {
    waiting: HashMap<ConnId, Parked<T>>,
    max: usize,
}

impl<T> ConnectionPairer<T> {
    /// A table for at most `max` waiting connections.
    pub(super) fn new(max: usize) -> Self {
        Self {
            waiting: HashMap::new(),
            max,
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many wait for the channels of this session. Looks at all of them.
    pub(super) fn waiting_for(&self, session: SessionId) -> usize {
        let own = |parked: &&Parked<T>| parked.session == session;
        self.waiting.values().filter(own).count()
    }

    /// How many may wait.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Whether one more would be turned away.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.max
    }

    /// Leaves a connection here. Gives it back when the table is full or the id is taken.
    pub(super) fn park(&mut self, conn: ConnId, parked: Parked<T>) -> Result<(), Parked<T>> {
        if self.is_full() || self.waiting.contains_key(&conn) {
            return Err(parked);
        }
        self.waiting.insert(conn, parked);
        Ok(())
    }

    /// Takes the connection that a data channel of `session` proves to belong to. `prove` is asked
    /// once, and only for a connection that waits for this very session.
    pub(super) fn claim(
        &mut self,
        conn: &ConnId,
        session: SessionId,
        prove: impl FnOnce() -> bool,
    ) -> Option<Parked<T>> {
        let parked = self.waiting.get(conn)?;
        if parked.session != session || !prove() {
            return None;
        }
        self.waiting.remove(conn)
    }

    /// Takes a connection whose deadline has passed, if it still waits.
    pub(super) fn expire(&mut self, conn: &ConnId, now: Instant) -> Option<Parked<T>> {
        let due = self.waiting.get(conn)?.deadline <= now;
        if due { self.waiting.remove(conn) } else { None }
    }

    /// Takes a connection that its client refuses, if it waits for that client's session.
    pub(super) fn refuse(&mut self, conn: &ConnId, session: SessionId) -> Option<Parked<T>> {
        let own = self.waiting.get(conn)?.session == session;
        if own { self.waiting.remove(conn) } else { None }
    }

    /// Takes everything that waits on a tunnel which is gone.
    pub(super) fn take_tunnel(&mut self, tunnel: mio::Token) -> Vec<Parked<T>> {
        self.waiting
            .extract_if(|_, parked| parked.tunnel == tunnel)
            .map(|(_, parked)| parked)
            .collect()
    }

    /// Hands what waits on a tunnel over to the session that took the tunnel over; returns the ids,
    /// which that session has to be told (E8).
    pub(super) fn hand_over(&mut self, tunnel: mio::Token, to: SessionId) -> Vec<ConnId> {
        let mut ids = Vec::new();
        for (conn, parked) in &mut self.waiting {
            if parked.tunnel == tunnel {
                parked.session = to;
                ids.push(conn.clone());
            }
        }
        ids
    }

    /// The connection behind an id, for reading.
    pub(super) fn peek(&self, conn: &ConnId) -> Option<&Parked<T>> {
        self.waiting.get(conn)
    }

    /// Takes everything, at the end.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Parked<T>> {
        self.waiting.drain().map(|(_, parked)| parked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TUNNEL: mio::Token = mio::Token(7);
    const OURS: SessionId = SessionId(1);
    const OTHER: SessionId = SessionId(2);

    fn id(text: &str) -> ConnId {
        ConnId::new(text).unwrap()
    }

    fn parked(external: u32, deadline: Instant) -> Parked<u32> {
        Parked {
            external,
            tunnel: TUNNEL,
            session: OURS,
            deadline,
        }
    }

    #[test]
    fn a_claim_needs_the_session_and_the_proof_and_works_once() {
        let now = Instant::now();
        let mut pairer = ConnectionPairer::new(10);
        pairer.park(id("a"), parked(1, now)).unwrap();
        assert!(pairer.claim(&id("b"), OURS, || true).is_none(), "unknown");
        assert!(
            pairer
                .claim(&id("a"), OTHER, || panic!("asked for a stranger"))
                .is_none()
        );
        assert!(pairer.claim(&id("a"), OURS, || false).is_none(), "no proof");
        assert_eq!(pairer.claim(&id("a"), OURS, || true).unwrap().external, 1);
        assert!(pairer.claim(&id("a"), OURS, || true).is_none(), "twice");
    }

    #[test]
    fn it_is_bounded_and_never_overwrites() {
        let now = Instant::now();
        let mut pairer = ConnectionPairer::new(2);
        pairer.park(id("a"), parked(1, now)).unwrap();
        assert_eq!(
            pairer.park(id("a"), parked(2, now)).unwrap_err().external,
            2
        );
        pairer.park(id("b"), parked(3, now)).unwrap();
        assert!(pairer.is_full());
        assert_eq!(
            pairer.park(id("c"), parked(4, now)).unwrap_err().external,
            4
        );
        assert_eq!(pairer.claim(&id("a"), OURS, || true).unwrap().external, 1);
        assert!(!pairer.is_full());
    }

    #[test]
    fn deadlines_are_kept_by_a_hand_moved_clock() {
        let start = Instant::now();
        let due = start + Duration::from_secs(10);
        let mut pairer = ConnectionPairer::new(10);
        pairer.park(id("a"), parked(1, due)).unwrap();
        assert!(
            pairer
                .expire(&id("a"), due - Duration::from_millis(1))
                .is_none()
        );
        assert_eq!(pairer.expire(&id("a"), due).unwrap().external, 1);
        assert!(pairer.expire(&id("a"), due).is_none());
    }

    #[test]
    fn a_takeover_moves_what_waits_and_a_closed_tunnel_frees_it() {
        let now = Instant::now();
        let mut pairer = ConnectionPairer::new(10);
        pairer.park(id("a"), parked(1, now)).unwrap();
        let elsewhere = Parked {
            tunnel: mio::Token(8),
            ..parked(2, now)
        };
        pairer.park(id("b"), elsewhere).unwrap();
        assert_eq!(pairer.hand_over(TUNNEL, OTHER), [id("a")]);
        assert!(
            pairer.claim(&id("a"), OURS, || true).is_none(),
            "handed over"
        );
        assert!(pairer.refuse(&id("a"), OURS).is_none());
        assert_eq!(pairer.refuse(&id("a"), OTHER).unwrap().external, 1);
        assert!(pairer.take_tunnel(TUNNEL).is_empty());
        assert_eq!(pairer.take_tunnel(mio::Token(8))[0].external, 2);
        assert_eq!(pairer.len(), 0);
    }
}
