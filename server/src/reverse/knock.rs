//! Before a connection to the control port is anybody: hello, answer, first frame.
//!
//! ```text
//!  accept ─ gate ─> Knocking ─ hello complete, key admitted ─> Verifying ─ signature ─> Fresh
//!     Fresh ─ first frame: DataConnReady ─> claim     SpareReady ─> a spare     anything else ─> a session
//! ```
//!
//! Each stage has a deadline, costs a descriptor and some hundred bytes, and holds no thread.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::identity::PublicKey;
use minitcptunnel_common::wire::FIRST_FRAME_MAX;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::handshake::v1::{Hello, HelloError, HelloReader, Role};
use minitcptunnel_common::wire::keys::ChannelKeys;
use minitcptunnel_common::wire::message::{Malformed, Message};
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::event_loop::{ACCEPT_BATCH, Entry, EventLoop, Timer};
use super::strange::Strange;
use super::verifier::Verified;
use crate::gate::Knock;

/// What a first frame may expand to, in bytes.
const FIRST_MESSAGE_MAX: usize = 2 * FIRST_FRAME_MAX;
/// Longest that a handshaken connection may wait with its first frame unless it comes from where its
/// identity's session comes from: only such a client has a reason to open channels in advance.
const FIRST_FRAME_OF_STRANGER: Duration = Duration::from_secs(10);

/// A connection whose hello is not complete.
pub(super) struct Knocking {
    pub(super) stream: TcpStream,
    reader: HelloReader,
    address: SocketAddr,
    pub(super) deadline: DeadlineKey,
}

/// A connection that has done its handshake and not said what it is for.
pub(super) struct Fresh {
    pub(super) stream: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) frames: FrameReader,
    pub(super) identity: [u8; 32],
    pub(super) address: SocketAddr,
    pub(super) deadline: DeadlineKey,
}

/// An address as people write it: IPv4 in IPv6 clothing is IPv4.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl EventLoop {
    pub(super) fn accept_control(&mut self, token: Token) {
        for _ in 0..ACCEPT_BATCH {
            let Some(Entry::Control(listener)) = self.slots.entry(token) else {
                return;
            };
            match listener.accept() {
                Ok((stream, address)) => self.knock(stream, plain(address)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    if !self.accept_failed(token, &e) {
                        return;
                    }
                }
            }
        }
        self.more.insert(token);
    }

    fn knock(&mut self, mut stream: TcpStream, address: SocketAddr) {
        let known = self.sessions.knows(address.ip());
        let expected = known || self.sessions.expects(address.ip(), self.now);
        match self.gate.knock(address.ip(), expected, self.now) {
            Knock::Enter => {}
            Knock::EnterFor(oldest) => {
                self.strange(
                Strange::Crowd,
                    format_args!("too many connections that have not said who they are; the oldest makes room. Latest from {address}"),
                );
                self.drop_entry(oldest);
            }
            Knock::Refuse => {
                self.strange(
                    Strange::Rate,
                    format_args!("too many connection attempts per second from {address}; refused"),
                );
                return;
            }
        }
        // What fails here is a connection that is already gone.
        let _ = stream.set_nodelay(true);
        let token = self.slots.next_token();
        let registered = self
            .poll
            .registry()
            .register(&mut stream, token, Interest::READABLE);
        if let Err(e) = registered {
            self.strange(
                Strange::AcceptError,
                format_args!("cannot watch a new connection: {e}"),
            );
            return;
        }
        let deadline = self
            .deadlines
            .add(self.now + self.config.timeouts.hello, Timer::Hello(token));
        self.slots.insert(Entry::Knocking(Knocking {
            stream,
            reader: HelloReader::new(Role::Client),
            address,
            deadline,
        }));
        self.gate.enter(token, address.ip(), known);
    }

    pub(super) fn hello_readable(&mut self, token: Token) {
        loop {
            let Some(Entry::Knocking(knocking)) = self.slots.entry(token) else {
                return;
            };
            let read = knocking.stream.read(knocking.reader.room());
            let address = knocking.address;
            let progress = match read {
                Ok(0) => return self.drop_entry(token),
                Ok(n) => knocking.reader.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.drop_entry(token),
            };
            match progress {
                Ok(None) => {}
                Ok(Some(hello)) => {
                    if self.check_identity(hello.identity(), address)
                        && self.check_replay(hello.ephemeral(), address)
                    {
                        self.verify(token, hello);
                    } else {
                        self.drop_entry(token);
                    }
                    return;
                }
                Err(e) => {
                    self.strange(
                        Strange::NotOurProtocol,
                        format_args!("SECURITY: not a MiniTCPTunnel client at {address}: {e}"),
                    );
                    return self.drop_entry(token);
                }
            }
        }
    }

    /// The allow list, before any arithmetic (S2).
    fn check_identity(&mut self, identity: &[u8; 32], address: SocketAddr) -> bool {
        // Perhaps it was added or taken out a moment ago.
        self.look_at_allow_list();
        if self.is_admitted(identity) {
            return true;
        }
        let shown = PublicKey::from_bytes(identity)
            .map_or_else(|_| "not a valid key".to_owned(), |key| key.to_string());
        let file = self.allow.path().display().to_string();
        self.strange(
                Strange::UnknownKey,
            format_args!(
                "SECURITY: Client identity not in whitelist: key={shown} address={address}. To admit it, add the key to {file}"
            ),
        );
        false
    }

    fn is_admitted(&self, identity: &[u8; 32]) -> bool {
        self.allow.list().find_bytes(identity).is_some()
    }

    fn check_replay(&mut self, ephemeral: &[u8; 32], address: SocketAddr) -> bool {
        if !self.replays.knows(ephemeral) {
            return true;
        }
        self.strange(
            Strange::Replay,
            format_args!("SECURITY: a recorded hello was sent again by {address}; ignored"),
        );
        false
    }

    fn verify(&mut self, token: Token, hello: Hello) {
        let Some(Entry::Knocking(knocking)) = self.slots.entry(token) else {
            return;
        };
        let address = knocking.address;
        if !self.verifier.submit(token, hello) {
            self.strange(
                Strange::Overload,
                format_args!("too many hellos at once; refused one from {address}"),
            );
            return self.drop_entry(token);
        }
        let Some(Entry::Knocking(knocking)) = self.slots.remove(token) else {
            unreachable!("found a few lines above")
        };
        let Knocking {
            stream,
            address,
            deadline,
            ..
        } = knocking;
        let verifying = Entry::Verifying {
            stream,
            address,
            deadline,
        };
        self.slots.put_back(token, verifying);
    }

    pub(super) fn verified(&mut self, verified: Verified) {
        let token = verified.token;
        // Its deadline may have passed, or it was the oldest in a crowd.
        let Some(Entry::Verifying {
            stream, address, ..
        }) = self.slots.entry(token)
        else {
            return;
        };
        let address = *address;
        let (answer, keys) = match verified.result {
            Ok(done) => done,
            Err(e) => {
                let what = match e {
                    HelloError::Signature => "Bad signature from client".to_owned(),
                    other => other.to_string(),
                };
                self.strange(
                    Strange::BadSignature,
                    format_args!("SECURITY: {what} at {address}"),
                );
                return self.drop_entry(token);
            }
        };
        // While it was worked on, its key may have been taken out of the list, or a copy come first.
        let listed = self
            .allow
            .list()
            .find_bytes(verified.hello.identity())
            .is_some();
        if !listed || !self.replays.remember(verified.hello.ephemeral()) {
            return self.drop_entry(token);
        }
        // 147 bytes into an empty socket buffer: if they do not fit, something is very wrong there.
        if !stream.write(&answer).is_ok_and(|n| n == answer.len()) {
            return self.drop_entry(token);
        }
        self.refresh(token, *verified.hello.identity(), &keys);
        // The first frame may have come together with the hello; its event is long past.
        self.fresh_readable(token);
    }

    /// The handshake is done: the connection waits for its first frame.
    fn refresh(&mut self, token: Token, identity: [u8; 32], keys: &ChannelKeys) {
        let Some(Entry::Verifying {
            stream,
            address,
            deadline,
        }) = self.slots.remove(token)
        else {
            return;
        };
        self.deadlines.cancel(deadline);
        // Until a frame opens this may be a recorded hello. From where the identity's session comes from
        // it may wait long, ahead of need; from elsewhere it remains a stranger, with a stranger's limits.
        let home = self.sessions.is_home(&identity, address.ip());
        let wait = if home {
            self.gate.leave(token);
            self.config.timeouts.first_frame
        } else {
            self.config
                .timeouts
                .first_frame
                .min(FIRST_FRAME_OF_STRANGER)
        };
        let fresh = Fresh {
            stream,
            sealer: Sealer::new(&keys.s2c),
            opener: Opener::new(&keys.c2s),
            frames: FrameReader::new(FIRST_FRAME_MAX),
            identity,
            address,
            deadline: self
                .deadlines
                .add(self.now + wait, Timer::FirstFrame(token)),
        };
        self.slots.put_back(token, Entry::Fresh(Box::new(fresh)));
        // What waits for visitors counts, too: both are idle channels of this client.
        let own = self.sessions.of_identity(&identity);
        let spares = own.and_then(|id| self.sessions.of(id));
        let spares = spares.map_or(0, |session| session.spares.len());
        let mut max = self.max_idle_channels.saturating_sub(spares).max(1);
        if let Some(own) = own
            && self.sessions.fresh_at_home(&identity) >= max
        {
            // What waiting visitors have been promised is not idle, and has a place of its own: theirs.
            max += self.pairer.waiting_for(own);
        }
        // Strangers are bounded by the gate; here they must not push out the client's own.
        let crowded = self.sessions.fresh_came(&identity, token, home, max);
        if let Some(oldest) = crowded {
            // A spare that waits is worth less than a channel that somebody has been dialled for.
            let own = own.and_then(|id| self.sessions.of(id));
            let spare = own.and_then(|session| {
                session
                    .spares
                    .excess(spares.saturating_sub(1))
                    .first()
                    .copied()
            });
            if let Some(spare) = spare {
                return self.drop_entry(spare);
            }
            self.strange(
                Strange::Crowd,
                format_args!(
                    "a client keeps more than {max} unused channels open; the oldest is closed"
                ),
            );
            self.drop_entry(oldest);
        }
    }

    pub(super) fn hello_due(&mut self, token: Token) {
        match self.slots.entry(token) {
            Some(Entry::Knocking(knocking)) => {
                let (address, have) = (knocking.address, knocking.reader.have());
                self.strange(
                    Strange::HelloDeadline,
                    format_args!(
                        "{address} sent {have} bytes and no complete hello within the deadline; closed"
                    ),
                );
            }
            Some(Entry::Verifying { address, .. }) => {
                let address = *address;
                self.strange(
                    Strange::Overload,
                    format_args!(
                        "the hello of {address} was not worked on within the deadline; closed"
                    ),
                );
            }
            _ => return,
        }
        self.drop_entry(token);
    }

    pub(super) fn first_frame_due(&mut self, token: Token) {
        let Some(Entry::Fresh(fresh)) = self.slots.entry(token) else {
            return;
        };
        let address = fresh.address;
        self.strange(
            Strange::FirstFrameDeadline,
            format_args!("{address} did not say what its channel is for; closed"),
        );
        self.drop_entry(token);
    }

    pub(super) fn fresh_readable(&mut self, token: Token) {
        let mut buffer = [0u8; 1024];
        loop {
            let Some(Entry::Fresh(fresh)) = self.slots.entry(token) else {
                return;
            };
            let wanted = fresh.frames.wanted().min(buffer.len());
            match fresh.stream.read(&mut buffer[..wanted]) {
                Ok(0) => return self.drop_entry(token),
                Ok(n) => fresh.frames.push(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.drop_entry(token),
            }
            let address = fresh.address;
            let first = match fresh.frames.next(&mut fresh.opener, FIRST_MESSAGE_MAX) {
                Ok(None) => continue,
                Ok(Some(bytes)) => Message::decode(bytes),
                Err(e) => {
                    self.strange(
                        Strange::FirstFrame,
                        format_args!("SECURITY: wrong first frame from {address}: {e}"),
                    );
                    return self.drop_entry(token);
                }
            };
            match first {
                Ok(Message::DataConnReady { token: proof, conn }) => {
                    self.claim(token, &proof, &conn);
                }
                Ok(Message::SpareReady {
                    token: proof,
                    keep,
                    max,
                }) => self.spare_ready(token, &proof, keep, max),
                Ok(Message::Empty | Message::Short) => self.drop_entry(token),
                Err(Malformed(21 | 23)) => self.drop_entry(token),
                first => self.become_session(token, first),
            }
            return;
        }
    }
}
