//! Opening and closing public ports for a session.
//!
//! ```text
//!  OpenTunnel ─┬─ same id and port: stays; after a takeover, who waits is announced again (E8)
//!              └─ listener ─> registry ─> TunnelStatus with the real port, or why not
//!  CloseTunnel, end of session ─> listener closed, who waits is reset, running pairs go on
//! ```

use std::io;

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::id::{SessionId, TunnelId};
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::wire::message::{CompressionWish, Message, Status};
use mio::{Interest, Token};

use super::event_loop::{Entry, EventLoop};
use super::registry::Tunnel;

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
            Err((code, reason)) => {
                log::error!("Failed to open tunnel: {tunnel} on port {port}: {reason} code={code}");
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
    ) -> Result<u16, (Code, String)> {
        // The session may have ended while the messages it sent before are still being handled.
        let metrics = match self.sessions.of(id) {
            Some(session) => session.metrics.part(),
            None => return Err((Code::SESSION_CLOSED, "the session has ended".to_owned())),
        };
        let unusable = |reason| (Code::TUNNEL_PORT_UNUSABLE, reason);
        let forbidden = |reason| (Code::TUNNEL_PORT_FORBIDDEN, reason);
        let asked = u16::try_from(port)
            .map_err(|_| unusable(format!("{port} is not a port; ports go from 1 to 65535")))?;
        if asked == self.control_port {
            let reason = format!("port {asked} is the server's control port");
            return Err(unusable(reason));
        }
        if asked != 0 && !self.config.allowed_ports.contains(asked) {
            return Err(forbidden(format!(
                "the server does not allow port {asked}; ask its administrator for allowed_ports"
            )));
        }
        let found = self.registry.find(id, tunnel);
        // What was inherited counts once it is asked for, so that takeovers do not add up.
        let counted = found.is_some_and(|token| !self.registry.is_inherited(token));
        if !counted && self.registry.count(id) >= self.config.limits.tunnels_per_client {
            let reason = format!(
                "this client has {} tunnels, the most that the server allows",
                self.config.limits.tunnels_per_client
            );
            return Err((Code::TUNNEL_LIMIT, reason));
        }
        if let Some(token) = found {
            if let Some(open) = self.reopen(id, token, asked, compression) {
                return Ok(open);
            }
            self.close_tunnel(token);
        }
        // A port that a replaced session of this client held under another name is free for it.
        if let Some(token) = self.registry.inherited_on(id, asked) {
            self.close_tunnel(token);
        }
        let address = self.config.tunnel_bind;
        let mut listener =
            crate::listen::listen(address, asked).map_err(|e| explain_bind(asked, &e))?;
        let local = listener.local_addr().map_err(|e| explain_bind(asked, &e))?;
        if asked == 0 && !self.config.allowed_ports.contains(local.port()) {
            let reason = "the server allows certain ports only; ask for one of them";
            return Err(forbidden(reason.to_owned()));
        }
        let token = self.slots.next_token();
        self.poll
            .registry()
            .register(&mut listener, token, Interest::READABLE)
            .map_err(|e| explain_bind(asked, &e))?;
        self.slots.insert(Entry::Public);
        self.registry.add(
            token,
            Tunnel {
                id: tunnel.clone(),
                session: id,
                asked,
                port: local.port(),
                compression,
                metrics,
                since: self.now,
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
        let metrics = self.sessions.of(id)?.metrics.part();
        let since = self.now;
        let tunnel = self
            .registry
            .of_mut(token)
            .filter(|tunnel| tunnel.asked == asked)?;
        tunnel.compression = compression;
        let open = tunnel.port;
        if !std::mem::take(&mut tunnel.inherited) {
            return Some(open);
        }
        (tunnel.metrics, tunnel.since) = (metrics, since);
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
            tunnel.metrics.refusals.add(Refusal::SessionEnded);
            self.turn_away(parked);
        }
        log::info!(
            "Tunnel closed: {} port={} uptime={:.0}s {}",
            tunnel.id,
            tunnel.port,
            self.now
                .saturating_duration_since(tunnel.since)
                .as_secs_f64(),
            tunnel.metrics
        );
    }
}

/// What a bind error means to the client's user.
fn explain_bind(port: u16, e: &io::Error) -> (Code, String) {
    match e.kind() {
        io::ErrorKind::AddrInUse => (
            Code::TUNNEL_PORT_TAKEN,
            format!("port {port} is in use on the server; choose another or stop what uses it"),
        ),
        io::ErrorKind::PermissionDenied => (
            Code::TUNNEL_PORT_FORBIDDEN,
            format!("the server may not open port {port} (ports below 1024 need privileges)"),
        ),
        io::ErrorKind::AddrNotAvailable => (
            Code::TUNNEL_PORT_UNUSABLE,
            "the server's tunnel_bind is not an address of its machine".to_owned(),
        ),
        _ => (
            Code::TUNNEL_PORT_UNUSABLE,
            format!("the server cannot open port {port}: {e}"),
        ),
    }
}
