//! What a session's messages do, and how sessions begin and end.
//!
//! ```text
//!  first frame ─ become_session ─┬─ slot free ──────────> AuthOk ─> session
//!                                ├─ same identity ──────> takeover (E8)
//!                                └─ another identity ───> AuthFail, Parting
//!  session: frames in ─> message ─> handler      message ─> outbox ─> written when writable
//! ```

use std::io::{self, Read};
use std::time::{Duration, Instant};

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::dial::set_keepalive;
use minitcptunnel_common::id::{SessionId, TunnelId};
use minitcptunnel_common::wire::CONTROL_FRAME_MAX;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::{Malformed, Message, Reason, Status};
use mio::net::TcpStream;
use mio::{Interest, Token};
use zeroize::Zeroize;

use super::event_loop::{Entry, EventLoop, Timer, owner_of};
use super::knock::Fresh;
use super::sessions::{Parting, Session};
use super::spares::SpareList;
use super::strange::Strange;

/// Safety: what may wait to be written to a client, in bytes. A client that reads nothing while this
/// fills is as good as gone.
const OUTBOX_MAX: usize = 256 * 1024;
/// Performance: what one session may read in one turn of the loop, in bytes.
const READ_SHARE: usize = 128 * 1024;
/// What a control message may expand to, in bytes (L3).
const MESSAGE_MAX: usize = 2 * CONTROL_FRAME_MAX;
/// Semantics: longest payload of a Heartbeat, in bytes (T4); an echo must fit into a frame.
const HEARTBEAT_MAX: usize = 4096;
/// Longest that a peer may take to close after it was told to go.
const PARTING: Duration = Duration::from_secs(2);
/// How long inherited tunnels stay open for the new session to claim them (E8).
const INHERITED: Duration = Duration::from_secs(10);

/// Whether a session that ends for this reason leaves a client who will be back at the same address.
/// One whose key was removed, who broke the protocol or who is elsewhere now gets no favour there.
fn comes_back(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::NotAdmitted | Reason::Protocol | Reason::Replaced
    )
}

impl EventLoop {
    /// A first frame that is not DataConnReady makes a control channel (T1, T2).
    pub(super) fn become_session(&mut self, token: Token, first: Result<Message, Malformed>) {
        let Some(Entry::Fresh(fresh)) = self.slots.remove(token) else {
            return;
        };
        self.gate.leave(token);
        self.deadlines.cancel(fresh.deadline);
        self.sessions.fresh_left(&fresh.identity, token);
        let old = self.sessions.of_identity(&fresh.identity);
        if old.is_none() && self.sessions.is_full() {
            return self.refuse_session(token, *fresh);
        }
        let mut random = [0u8; 32];
        if orion::util::secure_rand_bytes(&mut random).is_err() {
            let code = Code::NO_RANDOMNESS;
            log::error!(
                "the system gave no random bytes: nobody can connect until it does code={code}"
            );
            return;
        }
        let key = SessionKey::new(random);
        random.zeroize();
        let auth_ok = Message::AuthOk {
            session_key: *key.as_bytes(),
        };
        let Some(mut session) = self.new_session(token, *fresh, key) else {
            return;
        };
        let (id, name, address) = (session.id, session.name.clone(), session.address);
        if let Some(old) = old {
            self.abort_doubtful(old);
            let inherited = self.registry.inherit(old, id);
            self.end_session(
                old,
                Some((Reason::Replaced, "the same identity opened a newer session")),
                "replaced by a newer session of the same client",
            );
            log::info!("session={id} takes over from session={old}: tunnels={inherited}");
            let due = self.now + INHERITED;
            session.inherited = Some(self.deadlines.add(due, Timer::Inherited(id)));
        }
        log::info!("Client connected: session={id} client={name} address={address}");
        self.sessions.add(session);
        self.slots.put_back(token, Entry::Session(id));
        self.watch_allow_list();
        self.send(id, &auth_ok);
        // Each step may have ended the session: a peer that is gone must leave nothing behind.
        if self.sessions.of(id).is_some() {
            self.handle(id, first);
        }
        // More frames may have come with the first; their event is long past.
        self.session_readable(id);
    }

    fn new_session(&mut self, token: Token, fresh: Fresh, key: SessionKey) -> Option<Session> {
        let Fresh {
            mut stream,
            sealer,
            opener,
            mut frames,
            identity,
            address,
            ..
        } = fresh;
        // Keepalive finds peers that vanished without a word; the silence deadline does so, too.
        let _ = set_keepalive(&stream);
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(e) = self.poll.registry().reregister(&mut stream, token, both) {
            let code = Code::CANNOT_ACCEPT;
            log::error!("cannot watch the control channel of {address}: {e} code={code}");
            return None;
        }
        frames.set_max(CONTROL_FRAME_MAX);
        let id = self.sessions.next_id();
        let silence = self.deadlines.add(
            self.now + self.config.timeouts.session_silence,
            Timer::Silence(id),
        );
        Some(Session {
            id,
            token,
            stream,
            sealer,
            opener,
            frames,
            outbox: Vec::new(),
            capabilities: None,
            identity,
            name: self.client_name(&identity),
            address,
            key,
            started: self.now,
            last_seen: self.now,
            heard: self.now,
            metrics: self.metrics.part(),
            silence,
            inherited: None,
            spares: SpareList::default(),
        })
    }

    fn client_name(&self, identity: &[u8; 32]) -> String {
        match self.allow.list().find_bytes(identity) {
            Some(entry) => match &entry.name {
                Some(name) => format!("{name:?}"),
                None => entry.key.short(),
            },
            None => "unlisted".to_owned(),
        }
    }

    /// Another client holds the slot.
    fn refuse_session(&mut self, token: Token, fresh: Fresh) {
        let (name, address) = (self.client_name(&fresh.identity), fresh.address);
        let max = self.config.max_clients;
        self.strange(
                Strange::SlotTaken,
            format_args!(
                "Another control session is active. Connection ignored. client={name} address={address} (max_clients is {max})"
            ),
        );
        let text = "another client holds the server's only slot; try again later, or raise max_clients on the server";
        let goodbye = Message::AuthFail {
            reason: Reason::SlotTaken,
            text: text.to_owned(),
        };
        let Fresh {
            stream, mut sealer, ..
        } = fresh;
        let (mut bytes, mut outbox) = (Vec::new(), Vec::new());
        goodbye.encode(false, &mut bytes);
        if sealer.seal_message(&bytes, &mut outbox).is_ok() {
            self.part(token, stream, outbox);
        }
    }

    /// Lets a connection go after its last bytes.
    fn part(&mut self, token: Token, stream: TcpStream, outbox: Vec<u8>) {
        let mut parting = Parting {
            stream,
            outbox,
            shut: false,
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        let watched = self
            .poll
            .registry()
            .reregister(&mut parting.stream, token, both)
            .is_ok();
        if !parting.advance() && watched {
            self.slots.put_back(token, Entry::Parting(parting));
            self.deadlines
                .add(self.now + PARTING, Timer::Parting(token));
        }
    }

    /// Ends a session: its tunnels close, who waits is refused, running pairs go on. `goodbye` is
    /// told to the client.
    pub(super) fn end_session(
        &mut self,
        id: SessionId,
        goodbye: Option<(Reason, &str)>,
        why: &str,
    ) {
        for tunnel in self.registry.tokens(id, |_| true) {
            self.close_tunnel(tunnel);
        }
        let expected = goodbye
            .is_none_or(|(reason, _)| comes_back(reason))
            .then_some(self.now);
        let Some(mut session) = self.sessions.remove(id, expected) else {
            return;
        };
        self.slots.remove(session.token);
        self.deadlines.cancel(session.silence);
        if let Some(inherited) = session.inherited {
            self.deadlines.cancel(inherited);
        }
        let (spares, window) = session.spares.end();
        if let Some(window) = window {
            self.deadlines.cancel(window);
        }
        for spare in spares {
            self.drop_entry(spare);
        }
        log::info!(
            "Session ended: session={id} client={} uptime={:.0}s {} reason={why:?}",
            session.name,
            self.now
                .saturating_duration_since(session.started)
                .as_secs_f64(),
            session.metrics,
        );
        if let Some((reason, text)) = goodbye.filter(|_| session.capabilities().reason) {
            session.queue(&Message::Error {
                reason,
                text: text.to_owned(),
            });
            self.part(session.token, session.stream, session.outbox);
        }
    }

    /// Sends a message to a client, or ends the session of one that does not read.
    pub(super) fn send(&mut self, id: SessionId, message: &Message) {
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let sealed = session.queue(message);
        let written = session.flush();
        let stuck = session.outbox.len() > OUTBOX_MAX;
        if let Err(e) = written {
            self.end_session(id, None, &format!("connection lost: {e}"));
        } else if !sealed {
            self.end_session(id, None, "the frame counter is used up");
        } else if stuck {
            self.end_session(id, None, "the client does not read its control channel");
        }
    }

    /// The socket takes bytes again.
    pub(super) fn flush(&mut self, id: SessionId) {
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        if let Err(e) = session.flush() {
            self.end_session(id, None, &format!("connection lost: {e}"));
        }
    }

    pub(super) fn session_readable(&mut self, id: SessionId) {
        let now = self.now;
        let mut buffer = [0u8; 8192];
        let mut share = READ_SHARE;
        loop {
            let Some(session) = self.sessions.of(id) else {
                return;
            };
            match session.frames.next(&mut session.opener, MESSAGE_MAX) {
                Ok(Some(bytes)) => {
                    session.last_seen = now;
                    session.heard = Instant::now();
                    log::trace!(
                        "session={id} frame in type={} length={}",
                        bytes.first().unwrap_or(&0),
                        bytes.len()
                    );
                    let message = Message::decode(bytes);
                    self.handle(id, message);
                    continue;
                }
                Ok(None) => {}
                Err(e) => {
                    let code = Code::PROTOCOL;
                    log::warn!(
                        "SECURITY: wrong frame on the control channel of session={id}: {e} code={code}"
                    );
                    let goodbye = (Reason::Protocol, "a frame was damaged or out of place");
                    return self.end_session(id, Some(goodbye), &e.to_string());
                }
            }
            if share == 0 {
                let token = session.token;
                self.more.insert(token);
                return;
            }
            let wanted = session.frames.wanted().min(buffer.len()).min(share);
            match session.stream.read(&mut buffer[..wanted]) {
                Ok(0) => return self.end_session(id, None, "the client closed the connection"),
                Ok(n) => {
                    session.frames.push(&buffer[..n]);
                    share -= n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return session.frames.trim(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.end_session(id, None, &format!("connection lost: {e}")),
            }
        }
    }

    fn handle(&mut self, id: SessionId, message: Result<Message, Malformed>) {
        match message {
            Ok(Message::OpenTunnel {
                port,
                tunnel,
                compression,
            }) => self.open_tunnel(id, port, tunnel, compression),
            Ok(Message::CloseTunnel { tunnel }) => self.close_tunnel_of(id, tunnel),
            Ok(Message::RefuseConn { conn, reason }) => self.refused_by_client(id, &conn, &reason),
            Ok(Message::Heartbeat { payload }) => self.heartbeat(id, payload),
            Ok(Message::Empty) => self.end_session(id, None, "the client ended it"),
            Ok(_) => log::debug!("session={id}: ignored a message that means nothing here"),
            Err(Malformed(10)) => {
                let answer = self
                    .sessions
                    .of(id)
                    .is_some_and(|s| s.capabilities().status);
                log::error!(
                    "Failed to open tunnel: session={id} sent a request that cannot be read code={}",
                    Code::PROTOCOL
                );
                if answer && let Some(nameless) = TunnelId::new("") {
                    let reason = "the request cannot be read; tunnel ids have at most 255 bytes";
                    self.send(
                        id,
                        &Message::TunnelStatus {
                            status: Status::Error,
                            tunnel: nameless,
                            reason: reason.to_owned(),
                            port: 0,
                        },
                    );
                }
            }
            Err(e) => log::debug!("session={id}: ignored a {e}"),
        }
    }

    /// The first Heartbeat may be an offer (E1); all others are echoed (T4).
    fn heartbeat(&mut self, id: SessionId, payload: Vec<u8>) {
        if payload.len() > HEARTBEAT_MAX {
            let goodbye = (Reason::Protocol, "a heartbeat was too long");
            return self.end_session(id, Some(goodbye), "its heartbeat was too long");
        }
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let offer = if session.capabilities.is_none() {
            Capabilities::read_offer(&payload)
        } else {
            None
        };
        let payload = match offer {
            Some(offer) => {
                let agreed = offer.and(Capabilities::ALL);
                session.capabilities = Some(agreed);
                agreed.answer()
            }
            None => {
                session.capabilities.get_or_insert_default();
                payload
            }
        };
        self.send(id, &Message::Heartbeat { payload });
    }

    pub(super) fn silence_due(&mut self, id: SessionId) {
        let limit = self.config.timeouts.session_silence;
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let due = session.last_seen + limit;
        if due > self.now {
            session.silence = self.deadlines.add(due, Timer::Silence(id));
            return;
        }
        let goodbye = (Reason::Silent, "nothing was heard for too long");
        let why = format!("nothing was heard for {:.0} s", limit.as_secs_f64());
        self.abort_doubtful(id);
        self.end_session(id, Some(goodbye), &why);
    }

    /// The path to this client has failed, at a time that nobody knows. Visitors who were sent down it
    /// by Assign since the client was last heard of may have gone into the void: better a reset now.
    fn abort_doubtful(&mut self, id: SessionId) {
        let Some(session) = self.sessions.of(id) else {
            return;
        };
        let (owner, heard) = (owner_of(&session.identity), session.heard);
        let count = self.pool.abort_unheard(owner, heard);
        if count > 0 {
            log::info!(
                "session={id}: reset visitors that may never have reached the client={count}"
            );
        }
    }

    pub(super) fn inherited_due(&mut self, id: SessionId) {
        for token in self.registry.tokens(id, |tunnel| tunnel.inherited) {
            self.close_tunnel(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_the_session_comes_back_and_who_lost_the_right_does_not() {
        for (reason, back) in [
            (Reason::Silent, true),
            (Reason::Limit, true),
            (Reason::NotAdmitted, false),
            (Reason::Protocol, false),
            (Reason::Replaced, false),
        ] {
            assert_eq!(comes_back(reason), back, "{reason:?}");
        }
    }
}
