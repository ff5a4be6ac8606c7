//! Public ports, and the external connections that come through them.
//!
//! ```text
//!  OpenTunnel ─> listener ─ accept ─> park, IncomingConn ─┬─ DataConnReady ─ claim ─> pair
//!                                                         ├─ RefuseConn ────────────> reset
//!                                                         └─ deadline ──────────────> reset
//! ```
//!
//! Nobody reads an external connection before it is claimed: its bytes wait in the kernel.

use std::io;
use std::net::SocketAddr;

use log::Level;
use minitcptunnel_common::channel::sealed::{self, Compression, End};
use minitcptunnel_common::config::CompressionSetting;
use minitcptunnel_common::dial::set_keepalive;
use minitcptunnel_common::duplex;
use minitcptunnel_common::evloop::DeadlineKey;
use minitcptunnel_common::id::{ConnId, SessionId, TunnelId};
use minitcptunnel_common::metrics::{Refusal, Refusals, Traffic};
use minitcptunnel_common::pool::PoolError;
use minitcptunnel_common::wire::keys::TOKEN_LEN;
use minitcptunnel_common::wire::message::{CompressionWish, Message, Status};
use mio::net::TcpStream;
use mio::{Interest, Token};
use std::sync::Arc;

use super::event_loop::{ACCEPT_BATCH, Entry, EventLoop, Strange, Timer, owner_of};
use super::knock::{Fresh, plain};
use super::pairer::Parked;
use super::registry::{self, Tunnel};

/// An external connection that waits. Not registered with the poller: nothing it does matters yet.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) stream: TcpStream,
    address: SocketAddr,
    timer: DeadlineKey,
}

impl EventLoop {
    pub(super) fn open_tunnel(
        &mut self,
        id: SessionId,
        port: u32,
        tunnel: TunnelId,
        compression: CompressionWish,
    ) {
        let (status, reason, port) = match self.try_open(id, port, &tunnel, compression) {
            Ok(open) => {
                log::info!("Tunnel opened: {tunnel} on port {open}");
                (Status::Open, String::new(), open)
            }
            Err(reason) => {
                log::error!("Failed to open tunnel: {tunnel} on port {port}: {reason}");
                (Status::Error, reason, 0)
            }
        };
        let port = u32::from(port);
        self.send(
            id,
            &Message::TunnelStatus {
                status,
                tunnel,
                reason,
                port,
            },
        );
    }

    /// The open port, or why not, in words for the client's user.
    fn try_open(
        &mut self,
        id: SessionId,
        port: u32,
        tunnel: &TunnelId,
        compression: CompressionWish,
    ) -> Result<u16, String> {
        let asked = u16::try_from(port)
            .map_err(|_| format!("{port} is not a port; ports go from 1 to 65535"))?;
        if asked != 0 && !self.config.allowed_ports.contains(asked) {
            return Err(format!(
                "the server does not allow port {asked}; ask its administrator for allowed_ports"
            ));
        }
        if let Some(token) = self.registry.find(id, tunnel) {
            if let Some(open) = self.reopen(id, token, asked, compression) {
                return Ok(open);
            }
            self.close_tunnel(token);
        } else if self.registry.count(id) >= self.config.limits.tunnels_per_client {
            return Err(format!(
                "this client has {} tunnels, the most that the server allows",
                self.config.limits.tunnels_per_client
            ));
        }
        // A port that a replaced session of this client held under another name is free for it.
        if let Some(token) = self.registry.inherited_on(id, asked) {
            self.close_tunnel(token);
        }
        let address = self.config.tunnel_bind;
        let mut listener = registry::listen(address, asked).map_err(|e| explain_bind(asked, &e))?;
        let local = listener.local_addr().map_err(|e| explain_bind(asked, &e))?;
        if asked == 0 && !self.config.allowed_ports.contains(local.port()) {
            return Err("the server allows certain ports only; ask for one of them".to_owned());
        }
        let token = self.slots.next_token();
        self.poll
            .registry()
            .register(&mut listener, token, Interest::READABLE)
            .map_err(|e| explain_bind(asked, &e))?;
        self.slots.insert(Entry::Public);
        let (traffic, refusals) = self.sessions.of(id).map_or_else(Default::default, |s| {
            (s.traffic.clone(), s.refusals.clone())
        });
        self.registry.add(
            token,
            Tunnel {
                id: tunnel.clone(),
                session: id,
                asked,
                port: local.port(),
                compression,
                traffic: Arc::new(Traffic::part_of(traffic)),
                refusals: Arc::new(Refusals::part_of(refusals)),
                listener,
                inherited: false,
            },
        );
        log::info!("Tunnel {tunnel} listening on {local}");
        Ok(local.port())
    }

    /// The same tunnel again: the listener stays, and who waits on it is announced to the session
    /// that asks now (E8). `None`: it has to move to another port.
    fn reopen(
        &mut self,
        id: SessionId,
        token: Token,
        asked: u16,
        compression: CompressionWish,
    ) -> Option<u16> {
        let session = self.sessions.of(id)?;
        let (traffic, refusals) = (session.traffic.clone(), session.refusals.clone());
        let tunnel = self
            .registry
            .of_mut(token)
            .filter(|tunnel| tunnel.asked == asked)?;
        tunnel.compression = compression;
        let open = tunnel.port;
        if !std::mem::take(&mut tunnel.inherited) {
            return Some(open);
        }
        tunnel.traffic = Arc::new(Traffic::part_of(traffic));
        tunnel.refusals = Arc::new(Refusals::part_of(refusals));
        let name = tunnel.id.clone();
        for conn in self.pairer.hand_over(token, id) {
            let visitor = self
                .pairer
                .peek(&conn)
                .map(|parked| parked.external.address.to_string());
            let tunnel = name.clone();
            self.send(
                id,
                &Message::IncomingConn {
                    tunnel,
                    conn,
                    visitor,
                },
            );
        }
        Some(open)
    }

    pub(super) fn close_tunnel_of(&mut self, id: SessionId, tunnel: TunnelId) {
        let status = match self.registry.find(id, &tunnel) {
            Some(token) => {
                self.close_tunnel(token);
                Status::Stopped
            }
            None => Status::Error,
        };
        let reason = match status {
            Status::Stopped => String::new(),
            _ => "no such tunnel is open".to_owned(),
        };
        self.send(
            id,
            &Message::TunnelStatus {
                status,
                tunnel,
                reason,
                port: 0,
            },
        );
    }

    /// Closes a listener and refuses who waits there. Running pairs go on.
    pub(super) fn close_tunnel(&mut self, token: Token) {
        self.slots.remove(token);
        let Some(mut tunnel) = self.registry.remove(token) else {
            return;
        };
        // It was registered when it was opened.
        let _ = self.poll.registry().deregister(&mut tunnel.listener);
        for parked in self.pairer.take_tunnel(token) {
            tunnel.refusals.add(Refusal::SessionEnded);
            self.turn_away(parked);
        }
        log::info!(
            "Tunnel closed: {} port={} {} {}",
            tunnel.id,
            tunnel.port,
            tunnel.traffic.snapshot(),
            tunnel.refusals
        );
    }

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
        self.more.push(token);
    }

    /// Step T5.
    fn visit(&mut self, token: Token, stream: TcpStream, address: SocketAddr) {
        let Some(tunnel) = self.registry.of(token) else {
            return;
        };
        let (session, name, refusals) =
            (tunnel.session, tunnel.id.clone(), tunnel.refusals.clone());
        let inherited = tunnel.inherited;
        let mut random = [0u8; 16];
        if orion::util::secure_rand_bytes(&mut random).is_err() {
            refusals.add(Refusal::Resources);
            return duplex::reset(&stream);
        }
        let conn = ConnId::from_random(random);
        if self.pairer.is_full() {
            refusals.add(Refusal::Waiting);
            let max = self.config.limits.waiting_connections;
            self.strange(
                Level::Warn,
                Strange::Refused,
                format_args!(
                    "refused {address} on tunnel {name}: {max} connections wait already (limits.waiting_connections)"
                ),
            );
            return duplex::reset(&stream);
        }
        log::debug!("New public connection from {address}, conn_id={conn} tunnel={name}");
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

    /// Resets an external connection that found nobody.
    fn turn_away(&mut self, parked: Parked<Visitor>) {
        self.deadlines.cancel(parked.external.timer);
        duplex::reset(&parked.external.stream);
    }

    pub(super) fn pairing_due(&mut self, conn: &ConnId) {
        let Some(parked) = self.pairer.expire(conn, self.now) else {
            return;
        };
        let address = parked.external.address;
        if let Some(tunnel) = self.registry.of(parked.tunnel) {
            tunnel.refusals.add(Refusal::Unclaimed);
            let name = tunnel.id.clone();
            let seconds = self.config.timeouts.pairing.as_secs_f64();
            self.strange(
                Level::Warn,
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
            tunnel.refusals.add(Refusal::ByClient);
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
                Level::Warn,
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
        self.deadlines.cancel(fresh.deadline);
        self.sessions.fresh_left(&identity, token);
        let (visitor, tunnel) = (parked.external.address, parked.tunnel);
        // Whatever goes wrong from here on drops the visitor, and must show as a reset.
        duplex::reset(&parked.external.stream);
        if let Err((refusal, why)) = self.join(*fresh, parked, conn) {
            if let Some(tunnel) = self.registry.of(tunnel) {
                tunnel.refusals.add(refusal);
            }
            self.strange(
                Level::Warn,
                Strange::Refused,
                format_args!("refused {visitor}: {why}"),
            );
        }
    }

    /// Hands both connections over to the pool.
    fn join(
        &mut self,
        fresh: Fresh,
        parked: Parked<Visitor>,
        conn: &ConnId,
    ) -> Result<(), (Refusal, String)> {
        let permit = self.pool.admit().map_err(|e| match e {
            PoolError::Thread(_) => (Refusal::Resources, e.to_string()),
            _ => (
                Refusal::Pairs,
                format!("{e} (limits.pairs is {})", self.config.limits.pairs),
            ),
        })?;
        let tunnel = self
            .registry
            .of(parked.tunnel)
            .ok_or((Refusal::SessionEnded, "its tunnel was closed".to_owned()))?;
        let fin = self
            .sessions
            .of(parked.session)
            .is_some_and(|session| session.capabilities().fin);
        let compression = match (tunnel.compression, self.config.compression) {
            (CompressionWish::Off, _)
            | (CompressionWish::ServerChoice, CompressionSetting::Off) => Compression::Off,
            (CompressionWish::On, _) | (CompressionWish::ServerChoice, CompressionSetting::On) => {
                Compression::On
            }
            (CompressionWish::Auto, _)
            | (CompressionWish::ServerChoice, CompressionSetting::Auto) => Compression::Auto,
        };
        let (traffic, name) = (tunnel.traffic.clone(), tunnel.id.clone());
        let Fresh {
            mut stream,
            sealer,
            opener,
            frames,
            identity,
            ..
        } = fresh;
        let broken = |e: io::Error| (Refusal::Resources, format!("a socket cannot be used: {e}"));
        self.poll
            .registry()
            .deregister(&mut stream)
            .map_err(broken)?;
        let channel: std::net::TcpStream = stream.into();
        let _ = set_keepalive(&channel);
        let end = if fin { End::Fin } else { End::Tcp };
        let service = sealed::sealed(
            channel,
            sealer,
            opener,
            frames.into_rest(),
            end,
            compression,
        )
        .map_err(broken)?;
        let Visitor {
            stream, address, ..
        } = parked.external;
        let visitor: std::net::TcpStream = stream.into();
        let _ = set_keepalive(&visitor);
        duplex::no_reset(&visitor);
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

/// What a bind error means to the client's user.
fn explain_bind(port: u16, e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {port} is in use on the server; choose another or stop what uses it")
        }
        io::ErrorKind::PermissionDenied => {
            format!("the server may not open port {port} (ports below 1024 need privileges)")
        }
        io::ErrorKind::AddrNotAvailable => {
            "the server's tunnel_bind is not an address of its machine".to_owned()
        }
        _ => format!("the server cannot open port {port}: {e}"),
    }
}
