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

/// What to do with a channel that can be used again. Called at most once, on a worker, while a half
/// is dropped: it must neither block nor take long.
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
