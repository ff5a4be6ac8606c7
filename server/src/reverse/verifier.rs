//! The arithmetic of hellos, away from the loop.
//!
//! ```text
//!  loop ─ Hello ─> bounded queue ─> thread: signature, X25519, HKDF ─ Verified ─> inbox ─> loop
//! ```
//!
//! A complete hello costs a few hundred microseconds. Here a flood of them can neither hold the
//! loop nor more threads than these.

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::handshake::v1::{self, Hello, HelloError, Seeds, WireHello};
use minitcptunnel_common::wire::keys::ChannelKeys;
use mio::Token;
use zeroize::Zeroize;

use super::event_loop::Event;

/// Stack of a verifier, in bytes: curve arithmetic needs little.
const STACK: usize = 256 * 1024;

/// What became of a hello.
pub(super) struct Verified {
    /// Whose.
    pub(super) token: Token,
    /// The hello itself.
    pub(super) hello: Hello,
    /// The answer and the keys, or why not.
    pub(super) result: Result<(WireHello, ChannelKeys), HelloError>,
}

/// The threads and their queue. They end when this is dropped.
pub(super) struct Verifier {
    queue: Sender<(Token, Hello)>,
}

impl Verifier {
    /// Starts `threads` threads that share a queue of `room` hellos.
    pub(super) fn new(
        identity: &Arc<IdentityKey>,
        threads: usize,
        room: usize,
        inbox: &Inbox<Event>,
    ) -> io::Result<Self> {
        let (queue, jobs) = bounded::<(Token, Hello)>(room);
        for _ in 0..threads {
            let (jobs, identity, inbox) = (jobs.clone(), identity.clone(), inbox.clone());
            std::thread::Builder::new()
                .name("verifier".into())
                .stack_size(STACK)
                .spawn(move || {
                    for (token, hello) in jobs {
                        let result = answer(&identity, &hello);
                        let verified = Verified {
                            token,
                            hello,
                            result,
                        };
                        if !inbox.send(Event::Verified(Box::new(verified))) {
                            break;
                        }
                    }
                })?;
        }
        Ok(Self { queue })
    }

    /// Hands a hello over. `false`: the queue is full.
    pub(super) fn submit(&self, token: Token, hello: Hello) -> bool {
        self.queue.try_send((token, hello)).is_ok()
    }
}

fn answer(identity: &IdentityKey, hello: &Hello) -> Result<(WireHello, ChannelKeys), HelloError> {
    let mut random = [0u8; 44];
    if orion::util::secure_rand_bytes(&mut random).is_err() {
        // A system without random bytes cannot serve anybody; the peer sees a closed connection.
        let code = Code::NO_RANDOMNESS;
        log::error!(
            "the system gave no random bytes: nobody can connect until it does code={code}"
        );
        return Err(HelloError::Ephemeral);
    }
    let seeds = Seeds {
        ephemeral: *random.first_chunk().expect("44 bytes begin with 32"),
        nonce: *random.last_chunk().expect("44 bytes end with 12"),
    };
    random.zeroize();
    v1::respond(identity.signing_key(), hello, &seeds)
}
