//! What is left of a data channel when both of its directions have ended as meant: a channel again
//! (PROTOCOL.md E9).
//!
//! ```text
//!  source dropped behind FIN ── opener, bytes behind FIN ──┐
//!                                                          ├─ whoever comes second ─> on_reuse(Recovered)
//!  sink dropped behind FIN ──── sealer ────────────────────┘
//! ```
//!
//! A half that fails, or is dropped before its end, leaves nothing, and the channel closes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::duplex::Socket;
use crate::wire::frame::{Opener, Sealer};

/// A data channel between two uses. Keys and counters go on.
pub struct Recovered {
    /// The connection. The pair that has ended may hold it for a moment more, to abort with.
    pub socket: Arc<Socket>,
    /// Our direction.
    pub sealer: Sealer,
    /// The peer's.
    pub opener: Opener,
    /// What was already received behind FIN: the beginning of the next use.
    pub rest: Vec<u8>,
}

/// What to do with a channel that can be used again. Called at most once, while a half is dropped, by
/// whichever thread does that, maybe one that serves many: it must neither block nor take long.
pub type OnReuse = Box<dyn FnOnce(Recovered) + Send>;

/// Where the halves of one channel leave what they have. Cheap to clone: all clones are one slot.
#[derive(Clone)]
pub(super) struct Slot(Arc<Mutex<Left>>);

struct Left {
    on_reuse: Option<OnReuse>,
    sealer: Option<Sealer>,
    opener: Option<(Opener, Vec<u8>)>,
}

impl Slot {
    pub(super) fn new(on_reuse: OnReuse) -> Self {
        Self(Arc::new(Mutex::new(Left {
            on_reuse: Some(on_reuse),
            sealer: None,
            opener: None,
        })))
    }

    /// The source has seen FIN and goes.
    pub(super) fn source_left(&self, socket: &Arc<Socket>, opener: Opener, rest: Vec<u8>) {
        self.left(socket, |left| left.opener = Some((opener, rest)));
    }

    /// The sink has sent FIN and goes.
    pub(super) fn sink_left(&self, socket: &Arc<Socket>, sealer: Sealer) {
        self.left(socket, |left| left.sealer = Some(sealer));
    }

    fn left(&self, socket: &Arc<Socket>, leave: impl FnOnce(&mut Left)) {
        if socket.is_aborted() {
            return;
        }
        let all = {
            // Nothing that can panic runs under this lock.
            let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            leave(&mut left);
            if left.sealer.is_none() || left.opener.is_none() {
                return;
            }
            (left.sealer.take(), left.opener.take(), left.on_reuse.take())
        };
        let (Some(sealer), Some((opener, rest)), Some(on_reuse)) = all else {
            return;
        };
        on_reuse(Recovered {
            socket: socket.clone(),
            sealer,
            opener,
            rest,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, TryRecvError, channel};

    use super::*;
    use crate::channel::ledger::Ledger;
    use crate::channel::sealed::{Compression, reusable};
    use crate::duplex::{Duplex, Source};
    use crate::wire::frame::{HEAD, TAIL};
    use crate::wire::keys::DirectionKey;

    struct End {
        socket: Arc<Socket>,
        duplex: Duplex,
        reuse: Receiver<Recovered>,
    }

    fn end((socket, sealer, opener, rest): (Arc<Socket>, Sealer, Opener, Vec<u8>)) -> End {
        let (sender, reuse) = channel();
        let on_reuse = move |recovered| {
            sender
                .send(recovered)
                .expect("the test holds the other end");
        };
        let compression = Compression::Off;
        End {
            socket: socket.clone(),
            duplex: reusable(
                Recovered {
                    socket,
                    sealer,
                    opener,
                    rest,
                },
                compression,
                Box::new(on_reuse),
                &Ledger::default(),
            ),
            reuse,
        }
    }

    fn again(r: Recovered) -> End {
        end((r.socket, r.sealer, r.opener, r.rest))
    }

    /// Two ends of one channel.
    fn ends() -> [End; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let key = |n| DirectionKey::from_parts([n; 32], [n; 4]);
        let make = |stream, ours, theirs| {
            let socket = Socket::new(stream).unwrap();
            end((
                socket,
                Sealer::new(&key(ours)),
                Opener::new(&key(theirs)),
                Vec::new(),
            ))
        };
        [make(near, 1, 2), make(far, 2, 1)]
    }

    fn say(end: &mut End, bytes: &[u8]) {
        let mut source = bytes;
        end.duplex.sink.take_from(&mut source).unwrap();
    }

    /// What comes until the source's end.
    fn hear(source: &mut dyn Source) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = match source.fill_buf() {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                other => other.unwrap(),
            };
            if bytes.is_empty() {
                return all;
            }
            all.extend_from_slice(bytes);
            let n = bytes.len();
            source.consume(n);
        }
    }

    #[test]
    fn a_channel_serves_again_when_both_directions_have_ended() {
        let [mut near, mut far] = ends();
        for round in 0..5u8 {
            say(&mut near, &[round; 9]);
            near.duplex.sink.finish().unwrap();
            assert_eq!(hear(&mut *far.duplex.source), [round; 9]);
            say(&mut far, b"back");
            far.duplex.sink.finish().unwrap();
            assert_eq!(hear(&mut *near.duplex.source), b"back");
            // Whichever half goes last brings it.
            let Duplex { source, sink, .. } = near.duplex;
            drop(source);
            assert_eq!(near.reuse.try_recv().err(), Some(TryRecvError::Empty));
            drop(sink);
            drop(far.duplex);
            let recovered = near.reuse.try_recv().expect("both halves are gone");
            near = again(recovered);
            far = again(far.reuse.try_recv().expect("both halves are gone"));
        }
    }

    #[test]
    fn what_comes_behind_the_end_is_for_the_next_use() {
        // Two ends of a direction and twenty bytes, each in a frame of its own.
        const ALL: usize = 3 * (HEAD + TAIL) + 20;
        let [mut near, mut far] = ends();
        far.duplex.sink.finish().unwrap();
        assert_eq!(hear(&mut *near.duplex.source), b"");
        near.duplex.sink.finish().unwrap();
        drop(near.duplex);
        let mut next = again(near.reuse.try_recv().unwrap());
        say(&mut next, b"already the next one");
        next.duplex.sink.finish().unwrap();
        // All of it is there before the first end is read: they come in one piece.
        let stream = far.socket.stream();
        while stream.peek(&mut [0; 1000]).is_ok_and(|n| n < ALL) {}
        assert_eq!(hear(&mut *far.duplex.source), b"");
        drop(far.duplex);
        let recovered = far.reuse.try_recv().unwrap();
        assert!(!recovered.rest.is_empty());
        assert_eq!(
            hear(&mut *again(recovered).duplex.source),
            b"already the next one"
        );
    }

    #[test]
    fn nothing_is_left_of_a_channel_that_did_not_end_as_meant() {
        // Only one direction has ended; both have, but it was aborted; the peer has cut it.
        let [mut near, far] = ends();
        near.duplex.sink.finish().unwrap();
        drop(near.duplex);
        assert!(near.reuse.try_recv().is_err());
        drop(far);

        let [mut near, mut far] = ends();
        near.duplex.sink.finish().unwrap();
        far.duplex.sink.finish().unwrap();
        hear(&mut *near.duplex.source);
        near.duplex.abort.abort();
        drop(near.duplex);
        assert!(near.reuse.try_recv().is_err());

        let [mut near, far] = ends();
        near.duplex.sink.finish().unwrap();
        drop(far);
        while near
            .duplex
            .source
            .fill_buf()
            .is_ok_and(|bytes| !bytes.is_empty())
        {}
        drop(near.duplex);
        assert!(near.reuse.try_recv().is_err());
    }
}
