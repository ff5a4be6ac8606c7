//! Spare data channels: handshaken and proved ahead of need, and used again after an orderly end (E9).
//!
//! ```text
//!  Fresh ─ SpareReady ─┐                     ┌─ visitor: Assign ─> pair ─┐
//!                      ├─> SpareList, idle ──┼─ cut, damage ─> dropped   │ both directions ended
//!  inbox: Recycled ────┘        ^            └─ not needed ──> closed    │
//!                               └────────────────────────────────────────┘
//! ```
//!
//! Only this side closes idle spares: an Assign can then never meet a close of the client.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::reuse::Recovered;
use minitcptunnel_common::dial::set_keepalive;
use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::id::SessionId;
use minitcptunnel_common::wire::frame::{Opener, Sealer};
use minitcptunnel_common::wire::keys::TOKEN_LEN;
use minitcptunnel_common::wire::message::Message;
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::event_loop::{Entry, EventLoop, Timer};
use super::knock::Fresh;
use super::strange::Strange;

/// Performance: how long a spare above what the client keeps has to be of no use before it is closed.
const WINDOW: Duration = Duration::from_secs(30);

/// A data channel that waits for a visitor.
pub(super) struct Spare {
    pub(super) stream: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) session: SessionId,
}

/// The idle spares of a session, and how many of them are worth having. Knows no socket and no clock.
#[derive(Default)]
pub(super) struct SpareList {
    /// Oldest first: visitors get the newest, whose path and memory are warm.
    idle: Vec<Token>,
    /// What the client wants to have ready, and what it is willing to hold.
    keep: usize,
    max: usize,
    /// The fewest that were idle since the window began.
    least: usize,
    /// When the window ends. Runs only while there are more than `keep`.
    window: Option<DeadlineKey>,
}

impl SpareList {
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    /// The client says what it wants.
    fn wants(&mut self, keep: u16, max: u16) {
        self.keep = usize::from(keep.min(max));
        self.max = usize::from(max);
    }

    fn add(&mut self, token: Token) {
        self.idle.push(token);
    }

    /// The newest, for a visitor.
    fn take(&mut self) -> Option<Token> {
        let token = self.idle.pop();
        self.least = self.least.min(self.idle.len());
        token
    }

    /// One is gone.
    pub(super) fn remove(&mut self, token: Token) {
        self.idle.retain(|idle| *idle != token);
        self.least = self.least.min(self.idle.len());
    }

    /// The oldest of those that are more than the client, and `limit`, allow.
    pub(super) fn excess(&self, limit: usize) -> Vec<Token> {
        let over = self.idle.len().saturating_sub(self.max.min(limit));
        self.idle[..over].to_vec()
    }

    /// Whether a window has to begin, which the caller then does.
    fn is_over_keep(&self) -> bool {
        self.idle.len() > self.keep && self.window.is_none()
    }

    fn begin(&mut self, window: DeadlineKey) {
        self.window = Some(window);
        self.least = self.idle.len();
    }

    /// The window is over: the oldest of those that nobody needed all along, but for `keep`.
    fn unneeded(&mut self) -> Vec<Token> {
        self.window = None;
        let over = self.least.saturating_sub(self.keep);
        self.idle[..over].to_vec()
    }

    /// The session is over.
    pub(super) fn end(&mut self) -> (Vec<Token>, Option<DeadlineKey>) {
        (std::mem::take(&mut self.idle), self.window.take())
    }
}

impl EventLoop {
    /// A data channel says that it waits for whoever comes. Needs the identity and the session's token.
    pub(super) fn spare_ready(
        &mut self,
        token: Token,
        proof: &[u8; TOKEN_LEN],
        keep: u16,
        max: u16,
    ) {
        let Some(Entry::Fresh(fresh)) = self.slots.entry(token) else {
            return;
        };
        let (identity, address) = (fresh.identity, fresh.address);
        let session = self.sessions.of_identity(&identity);
        let own = session
            .and_then(|id| self.sessions.of(id))
            .filter(|own| own.capabilities().spare && own.key.verify_spare(proof));
        let Some(own) = own else {
            // Honest clients get here, too: when their session has ended meanwhile.
            self.strange(
                Strange::Token,
                format_args!("SECURITY: spare data channel from {address} fits no session; closed"),
            );
            return self.drop_entry(token);
        };
        own.heard = Instant::now();
        own.spares.wants(keep, max);
        own.spares.add(token);
        let session = own.id;
        let Some(Entry::Fresh(fresh)) = self.slots.remove(token) else {
            unreachable!("found a few lines above")
        };
        self.gate.leave(token);
        self.deadlines.cancel(fresh.deadline);
        self.sessions.fresh_left(&identity, token);
        let Fresh {
            stream,
            sealer,
            opener,
            frames,
            ..
        } = *fresh;
        let early = !frames.into_rest().is_empty();
        let _ = set_keepalive(&stream);
        let spare = Spare {
            stream,
            sealer,
            opener,
            session,
        };
        self.slots.put_back(token, Entry::Spare(Box::new(spare)));
        log::debug!("spare data channel of session={session} from {address}");
        if early {
            return self.spare_spoke(token);
        }
        self.settle_spares(session);
        // What came behind the first frame has had its event.
        self.spare_readable(token);
    }

    /// A pair has ended as both sides meant: its channel serves again.
    pub(super) fn recycled(&mut self, session: SessionId, recovered: Recovered) {
        let Recovered {
            socket,
            sealer,
            opener,
            rest,
        } = recovered;
        let Some(own) = self.sessions.of(session) else {
            return;
        };
        own.heard = Instant::now();
        let token = self.slots.next_token();
        // The pair may hold the socket for a moment more, to abort with: so it is shared, not taken.
        let registered = socket.stream().try_clone().and_then(|stream| {
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            // If something has come already, this is where its event comes from.
            let registry = self.poll.registry();
            registry.register(&mut stream, token, Interest::READABLE)?;
            Ok(stream)
        });
        let Ok(stream) = registered else {
            return log::debug!("a used data channel of session={session} cannot serve again");
        };
        own.spares.add(token);
        self.slots.insert(Entry::Spare(Box::new(Spare {
            stream,
            sealer,
            opener,
            session,
        })));
        if !rest.is_empty() {
            return self.spare_spoke(token);
        }
        log::debug!("session={session}: a used data channel is a spare again");
        self.settle_spares(session);
    }

    /// Closes what is too much, and arranges to look again while there is more than needed.
    fn settle_spares(&mut self, id: SessionId) {
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let identity = session.identity;
        let limit = self.max_idle_channels;
        let limit = limit.saturating_sub(self.sessions.fresh_at_home(&identity));
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        for token in session.spares.excess(limit) {
            self.drop_entry(token);
        }
        if let Some(session) = self.sessions.of(id)
            && session.spares.is_over_keep()
        {
            let window = self.deadlines.add(self.now + WINDOW, Timer::Spares(id));
            session.spares.begin(window);
        }
    }

    /// A window is over.
    pub(super) fn spares_due(&mut self, id: SessionId) {
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let unneeded = session.spares.unneeded();
        if !unneeded.is_empty() {
            log::debug!(
                "session={id}: closing spare data channels={}",
                unneeded.len()
            );
        }
        for token in unneeded {
            self.drop_entry(token);
        }
        self.settle_spares(id);
    }

    /// The end of an idle spare, which is nobody's loss, or bytes, which nobody has asked for.
    pub(super) fn spare_readable(&mut self, token: Token) {
        let Some(Entry::Spare(spare)) = self.slots.entry(token) else {
            return;
        };
        match spare.stream.read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => self.drop_entry(token),
            Ok(_) => self.spare_spoke(token),
        }
    }

    fn spare_spoke(&mut self, token: Token) {
        if let Some(Entry::Spare(spare)) = self.slots.entry(token) {
            let session = spare.session;
            self.strange(
                Strange::FirstFrame,
                format_args!(
                    "SECURITY: a data channel of session={session} sent something before it was assigned; closed"
                ),
            );
            self.drop_entry(token);
        }
    }

    /// Sends a visitor down a spare channel of this session, if there is one that takes him.
    pub(super) fn assign(&mut self, id: SessionId, assign: &Message) -> Option<Spare> {
        let mut plain = Vec::new();
        assign.encode(true, &mut plain);
        loop {
            let token = self.sessions.of(id)?.spares.take()?;
            let Some(Entry::Spare(mut spare)) = self.slots.remove(token) else {
                continue;
            };
            // Deregistering can only fail for what was never registered.
            let _ = self.poll.registry().deregister(&mut spare.stream);
            if is_silent(&spare.stream) && tell(&mut spare, &plain) {
                return Some(*spare);
            }
            log::debug!("session={id}: a spare data channel was gone");
        }
    }
}

/// Whether nothing has come, not even the end; its event may still be on its way to us.
fn is_silent(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// A small frame into an empty socket buffer: if it does not fit, something is very wrong there.
fn tell(spare: &mut Spare, plain: &[u8]) -> bool {
    let mut frame = Vec::new();
    spare.sealer.seal_message(plain, &mut frame).is_ok()
        && matches!(spare.stream.write(&frame), Ok(n) if n == frame.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use minitcptunnel_common::evloop::Deadlines;

    fn list(keep: u16, max: u16, idle: usize) -> SpareList {
        let mut list = SpareList::default();
        list.wants(keep, max);
        (0..idle).for_each(|n| list.add(Token(n)));
        list
    }

    fn window() -> DeadlineKey {
        Deadlines::default().add(Instant::now(), ())
    }

    fn tokens(range: std::ops::Range<usize>) -> Vec<Token> {
        range.map(Token).collect()
    }

    #[test]
    fn visitors_get_the_newest_and_the_oldest_go_first() {
        let mut list = list(2, 5, 8);
        assert_eq!(list.excess(100), tokens(0..3), "the client's bound");
        assert_eq!(list.excess(4), tokens(0..4), "our own");
        assert_eq!(list.take(), Some(Token(7)));
        list.remove(Token(3));
        list.remove(Token(99));
        assert_eq!(list.len(), 6);
        assert_eq!(list.end().0, [0, 1, 2, 4, 5, 6].map(Token));
        assert_eq!(list.take(), None);
    }

    #[test]
    fn what_nobody_needed_for_a_window_is_too_much() {
        let mut list = list(2, 64, 10);
        assert!(list.is_over_keep());
        list.begin(window());
        assert!(!list.is_over_keep(), "one window at a time");
        // Three in use at once at the worst, and all back at the end: seven were idle all along.
        for _ in 0..3 {
            list.take();
        }
        tokens(20..23).into_iter().for_each(|token| list.add(token));
        assert_eq!(list.unneeded(), tokens(0..5), "seven, but for two");
        tokens(0..5)
            .into_iter()
            .for_each(|token| list.remove(token));
        assert!(list.is_over_keep(), "and the next window begins");
        list.begin(window());
        assert_eq!(
            list.unneeded(),
            tokens(5..7)
                .into_iter()
                .chain([Token(20)])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_busy_list_and_a_small_one_lose_nothing() {
        let mut busy = list(2, 64, 10);
        busy.begin(window());
        while busy.take().is_some() {}
        (0..10).for_each(|n| busy.add(Token(n)));
        assert!(busy.unneeded().is_empty());
        let small = list(2, 64, 2);
        assert!(!small.is_over_keep(), "no timer, no wake-ups");
        let mut cut = list(1, 64, 3);
        cut.begin(window());
        cut.remove(Token(0));
        cut.remove(Token(1));
        assert!(cut.unneeded().is_empty());
        assert!(list(5, 1, 2).excess(9).len() == 1, "max bounds keep");
    }
}
