//! Public ports, and the external connections that come through them.
//!
//! ```text
//!  OpenTunnel ─> listener ─ accept ─┬> spare channel, Assign ───────────────────────> pair
//!                                   └> park, IncomingConn ─┬─ DataConnReady ─ claim ─> pair
//!                                                         ├─ RefuseConn ────────────> reset
//!                                                         └─ deadline ──────────────> reset
//! ```
//!
//! Nobody reads an external connection before it is claimed: its bytes wait in the kernel.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::reuse::Recovered;
use minitcptunnel_common::channel::sealed::{self, Compression, End};
use minitcptunnel_common::config::CompressionSetting;
use minitcptunnel_common::dial::set_keepalive;
use minitcptunnel_common::duplex;
use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::id::{ConnId, SessionId};
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::pool::{Permit, PoolError};
use minitcptunnel_common::wire::frame::{Opener, Sealer};
use minitcptunnel_common::wire::keys::TOKEN_LEN;
use minitcptunnel_common::wire::message::{CompressionWish, Message};
use mio::Token;
use mio::net::TcpStream;

use super::event_loop::{ACCEPT_BATCH, Entry, Event, EventLoop, Timer, owner_of};
use super::knock::{Fresh, plain};
use super::pairer::Parked;
use super::strange::Strange;

/// An external connection that waits. Not registered with the poller: nothing it does matters yet.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    timer: DeadlineKey,
}

/// A data channel that has found its visitor.
struct Channel {
    stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    rest: Vec<u8>,
    identity: [u8; 32],
    session: SessionId,
}

fn broken(e: io::Error) -> (Refusal, String) {
    (Refusal::Resources, format!("a socket cannot be used: {e}"))
}

impl EventLoop {
    pub(super) fn accept_visitors(&mut self, token: Token) {
        for _ in 0..ACCEPT_BATCH {
            let Some(tunnel) = self.registry.of(token) else {
                return;
            };
            match tunnel.listener.accept() {
                Ok((stream, address)) => self.visit(token, stream, plain(address)),
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

    /// Step T5.
    fn visit(&mut self, token: Token, stream: TcpStream, address: SocketAddr) {
        let Some(tunnel) = self.registry.of(token) else {
            return;
        };
        let (session, name, refusals) = (
            tunnel.session,
            tunnel.id.clone(),
            tunnel.metrics.refusals.clone(),
        );
        let inherited = tunnel.inherited;
        let mut random = [0u8; 16];
        if orion::util::secure_rand_bytes(&mut random).is_err() {
            refusals.add(Refusal::Resources);
            return duplex::reset(&stream);
        }
        let conn = ConnId::from_random(random);
        // Who waits has a place among those who run, or the descriptors could run out between the two.
        if self.pool.live() + self.pairer.len() >= self.pool.max_pairs() {
            refusals.add(Refusal::Pairs);
            let capacity = self.capacity;
            self.strange(
                Strange::Refused,
                format_args!("refused {address} on tunnel {name}: {capacity}"),
            );
            return duplex::reset(&stream);
        }
        if self.pool.budget().is_used_up() {
            refusals.add(Refusal::Memory);
            let budget = self.pool.budget().clone();
            self.strange(
                Strange::Refused,
                format_args!(
                    "refused {address} on tunnel {name}: memory_budget is used up ({budget})"
                ),
            );
            return duplex::reset(&stream);
        }
        log::debug!("New public connection from {address}, conn_id={conn} tunnel={name}");
        // What a session inherited is not its own before it has asked for it.
        let stream = if inherited {
            stream
        } else {
            match self.visit_by_spare(token, session, &conn, stream, address) {
                Some(stream) => stream,
                None => return,
            }
        };
        if self.pairer.is_full() {
            refusals.add(Refusal::Waiting);
            let max = self.pairer.max();
            self.strange(
                Strange::Refused,
                format_args!(
                    "refused {address} on tunnel {name}: {max} connections wait already (limits.waiting_connections)"
                ),
            );
            return duplex::reset(&stream);
        }
        let deadline = self.now + self.config.timeouts.pairing;
        let timer = self.deadlines.add(deadline, Timer::Pairing(conn.clone()));
        let parked = Parked {
            external: Visitor {
                stream,
                address,
                timer,
            },
            tunnel: token,
            session,
            deadline,
        };
        if let Err(parked) = self.pairer.park(conn.clone(), parked) {
            // There was room above, so this is an id twice: once in 2^64 connections.
            refusals.add(Refusal::Resources);
            return self.turn_away(parked);
        }
        if !inherited {
            self.send(
                session,
                &Message::IncomingConn {
                    tunnel: name,
                    conn,
                    visitor: Some(address.to_string()),
                },
            );
        }
    }

    /// Step E9: sends a visitor down a spare data channel at once. Gives him back when there is none.
    fn visit_by_spare(
        &mut self,
        token: Token,
        session: SessionId,
        conn: &ConnId,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Option<TcpStream> {
        let (Some(own), Some(tunnel)) = (self.sessions.of(session), self.registry.of(token)) else {
            return Some(stream);
        };
        if own.spares.len() == 0 {
            return Some(stream);
        }
        let identity = own.identity;
        let tunnel = tunnel.id.clone();
        // Before anything is sent: what is assigned must be served. Room was seen a moment ago.
        let Ok(permit) = self.pool.admit() else {
            return Some(stream);
        };
        let assign = Message::Assign {
            tunnel,
            conn: conn.clone(),
            visitor: address.to_string(),
        };
        let Some(spare) = self.assign(session, &assign) else {
            return Some(stream);
        };
        let channel = Channel {
            stream: spare.stream,
            sealer: spare.sealer,
            opener: spare.opener,
            rest: Vec::new(),
            identity,
            session,
        };
        // Whatever goes wrong from here on drops the visitor, and must show as a reset.
        duplex::reset(&stream);
        let joined = self.join(permit, channel, stream, address, token, conn);
        self.count_unless(joined, token, address);
        None
    }

    /// Counts a refusal and says why.
    fn count_unless(
        &mut self,
        joined: Result<(), (Refusal, String)>,
        tunnel: Token,
        visitor: SocketAddr,
    ) {
        let Err((refusal, why)) = joined else { return };
        if let Some(tunnel) = self.registry.of(tunnel) {
            tunnel.metrics.refusals.add(refusal);
        }
        self.strange(Strange::Refused, format_args!("refused {visitor}: {why}"));
    }

    /// Resets an external connection that found nobody.
    pub(super) fn turn_away(&mut self, parked: Parked<Visitor>) {
        self.deadlines.cancel(parked.external.timer);
        duplex::reset(&parked.external.stream);
    }

    pub(super) fn pairing_due(&mut self, conn: &ConnId) {
        let Some(parked) = self.pairer.expire(conn, self.now) else {
            return;
        };
        let address = parked.external.address;
        if let Some(tunnel) = self.registry.of(parked.tunnel) {
            tunnel.metrics.refusals.add(Refusal::Unclaimed);
            let name = tunnel.id.clone();
            let seconds = self.config.timeouts.pairing.as_secs_f64();
            self.strange(
                Strange::Unclaimed,
                format_args!(
                    "the client did not come for {address} on tunnel {name} within {seconds} s; closed"
                ),
            );
        }
        self.turn_away(parked);
    }

    /// Step E7.
    pub(super) fn refused_by_client(&mut self, id: SessionId, conn: &ConnId, reason: &str) {
        let Some(parked) = self.pairer.refuse(conn, id) else {
            return;
        };
        log::debug!("conn_id={conn} refused by the client: {reason:?}");
        if let Some(tunnel) = self.registry.of(parked.tunnel) {
            tunnel.metrics.refusals.add(Refusal::ByClient);
        }
        self.turn_away(parked);
    }

    /// Step T6: a data channel says whom it is for.
    pub(super) fn claim(&mut self, token: Token, proof: &[u8; TOKEN_LEN], conn: &ConnId) {
        let Some(Entry::Fresh(fresh)) = self.slots.entry(token) else {
            return;
        };
        let (identity, address) = (fresh.identity, fresh.address);
        let session = self.sessions.of_identity(&identity);
        let claimed = session.and_then(|id| {
            let key = self.sessions.of(id)?.key.clone();
            self.pairer
                .claim(conn, id, || key.verify(conn.as_str(), proof))
        });
        let Some(parked) = claimed else {
            // Honest clients get here, too: when the visitor's deadline has passed meanwhile.
            self.strange(
                Strange::Token,
                format_args!(
                    "SECURITY: data channel from {address} fits no waiting connection; closed"
                ),
            );
            return self.drop_entry(token);
        };
        self.deadlines.cancel(parked.external.timer);
        let Some(Entry::Fresh(fresh)) = self.slots.remove(token) else {
            unreachable!("found a few lines above")
        };
        self.gate.leave(token);
        self.deadlines.cancel(fresh.deadline);
        self.sessions.fresh_left(&identity, token);
        let visitor = parked.external.address;
        let Parked {
            external,
            tunnel,
            session,
            ..
        } = parked;
        // Whatever goes wrong from here on drops the visitor, and must show as a reset.
        duplex::reset(&external.stream);
        let joined = self.admit().and_then(|permit| {
            let channel = self.take_over(*fresh, session)?;
            let Visitor {
                stream, address, ..
            } = external;
            self.join(permit, channel, stream, address, tunnel, conn)
        });
        // After the pair has begun: it is in no doubt.
        if let Some(own) = self.sessions.of(session) {
            own.heard = Instant::now();
        }
        self.count_unless(joined, tunnel, visitor);
    }

    fn admit(&self) -> Result<Permit, (Refusal, String)> {
        self.pool.admit().map_err(|e| {
            let what = match e {
                PoolError::Thread(_) => e.to_string(),
                PoolError::Memory => format!("{e} ({})", self.pool.budget()),
                _ => format!("{e}: {}", self.capacity),
            };
            (e.refusal(), what)
        })
    }

    /// Takes a channel that has found its visitor out of the poller.
    fn take_over(
        &mut self,
        fresh: Fresh,
        session: SessionId,
    ) -> Result<Channel, (Refusal, String)> {
        let Fresh {
            mut stream,
            sealer,
            opener,
            frames,
            identity,
            ..
        } = fresh;
        let registry = self.poll.registry();
        registry.deregister(&mut stream).map_err(broken)?;
        let _ = set_keepalive(&stream);
        Ok(Channel {
            stream,
            sealer,
            opener,
            rest: frames.into_rest(),
            identity,
            session,
        })
    }

    /// Hands both connections over to the pool.
    fn join(
        &mut self,
        permit: Permit,
        channel: Channel,
        visitor: TcpStream,
        address: SocketAddr,
        tunnel: Token,
        conn: &ConnId,
    ) -> Result<(), (Refusal, String)> {
        let tunnel = self
            .registry
            .of(tunnel)
            .ok_or((Refusal::SessionEnded, "its tunnel was closed".to_owned()))?;
        let session = channel.session;
        let agreed = self.sessions.of(session).map(|own| own.capabilities());
        let agreed = agreed.unwrap_or_default();
        let compression = match (tunnel.compression, self.config.compression) {
            (CompressionWish::Off, _)
            | (CompressionWish::ServerChoice, CompressionSetting::Off) => Compression::Off,
            (CompressionWish::On, _) | (CompressionWish::ServerChoice, CompressionSetting::On) => {
                Compression::On
            }
            (CompressionWish::Auto, _)
            | (CompressionWish::ServerChoice, CompressionSetting::Auto) => Compression::Auto,
        };
        let (traffic, name) = (tunnel.metrics.traffic.clone(), tunnel.id.clone());
        let ledger = Ledger {
            budget: self.pool.budget().clone(),
            traffic: traffic.clone(),
        };
        let Channel {
            stream,
            sealer,
            opener,
            rest,
            identity,
            ..
        } = channel;
        let stream: std::net::TcpStream = stream.into();
        let service = if agreed.spare {
            let socket = duplex::Socket::new(stream).map_err(broken)?;
            let mailbox = self.mailbox.clone();
            let on_reuse = move |recovered| {
                // If the loop is gone, so is everything that the channel could be used for.
                mailbox.send(Event::Recycled(session, Box::new(recovered)));
            };
            sealed::reusable(
                Recovered {
                    socket,
                    sealer,
                    opener,
                    rest,
                },
                compression,
                Box::new(on_reuse),
                &ledger,
            )
        } else {
            let end = if agreed.fin { End::Fin } else { End::Tcp };
            sealed::sealed(stream, sealer, opener, rest, end, compression, &ledger)
                .map_err(broken)?
        };
        let visitor: std::net::TcpStream = visitor.into();
        let _ = set_keepalive(&visitor);
        let external = duplex::tcp(visitor).map_err(broken)?;
        log::debug!("Data Connection Ready for {conn}");
        let conn = conn.clone();
        let on_end = move |ended| {
            log::debug!("pair tunnel={name} conn_id={conn} visitor={address} {ended}");
        };
        self.pool
            .start(
                permit,
                owner_of(&identity),
                external,
                service,
                traffic,
                on_end,
            )
            .map_err(|e| (Refusal::Resources, e.to_string()))
    }
}
