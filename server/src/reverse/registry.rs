//! TunnelRegistry: which public port belongs to which tunnel of which session.
//!
//! ```text
//!  (session, tunnel id) <─> token of the listener <─> public port
//!  session replaced: its tunnels are *inherited* until claimed by the same id and port, or dropped
//! ```

use std::collections::HashMap;
use std::time::Instant;

use minitcptunnel_common::id::{SessionId, TunnelId};
use minitcptunnel_common::metrics::Metrics;
use minitcptunnel_common::wire::message::CompressionWish;
use mio::Token;
use mio::net::TcpListener;

/// An open tunnel.
pub(super) struct Tunnel {
    /// Its name, by its client.
    pub(super) id: TunnelId,
    /// The session it serves. After a takeover and until it is claimed: the new one.
    pub(super) session: SessionId,
    /// The port that was asked for; 0 for any.
    pub(super) asked: u16,
    /// The port that is open.
    pub(super) port: u16,
    /// How the client wants its data compressed.
    pub(super) compression: CompressionWish,
    /// Counts into the session's.
    pub(super) metrics: Metrics,
    /// When it was opened, or taken over.
    pub(super) since: Instant,
    /// The listener, registered under the tunnel's token.
    pub(super) listener: TcpListener,
    /// Taken over with its session, and not yet asked for by the new one.
    pub(super) inherited: bool,
}

/// All open tunnels, by the token of their listener.
#[derive(Default)]
pub(super) struct TunnelRegistry {
    tunnels: HashMap<Token, Tunnel>,
}

impl TunnelRegistry {
    /// Adds a tunnel under its listener's token.
    pub(super) fn add(&mut self, token: Token, tunnel: Tunnel) {
        self.tunnels.insert(token, tunnel);
    }

    /// The tunnel of a token.
    pub(super) fn of(&self, token: Token) -> Option<&Tunnel> {
        self.tunnels.get(&token)
    }

    /// The same, to change it.
    pub(super) fn of_mut(&mut self, token: Token) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(&token)
    }

    /// Takes a tunnel out.
    pub(super) fn remove(&mut self, token: Token) -> Option<Tunnel> {
        self.tunnels.remove(&token)
    }

    /// The tunnel with this id in this session, inherited ones included.
    pub(super) fn find(&self, session: SessionId, id: &TunnelId) -> Option<Token> {
        self.tunnels
            .iter()
            .find(|(_, t)| t.session == session && t.id == *id)
            .map(|(token, _)| *token)
    }

    /// An inherited tunnel of this session that stands on this port.
    pub(super) fn inherited_on(&self, session: SessionId, port: u16) -> Option<Token> {
        self.tunnels
            .iter()
            .find(|(_, t)| t.session == session && t.inherited && t.port == port)
            .map(|(token, _)| *token)
    }

    /// Whether it was taken over and not yet asked for.
    pub(super) fn is_inherited(&self, token: Token) -> bool {
        self.of(token).is_some_and(|tunnel| tunnel.inherited)
    }

    /// How many tunnels this session has asked for and got.
    pub(super) fn count(&self, session: SessionId) -> usize {
        self.of_session(session)
            .filter(|(_, tunnel)| !tunnel.inherited)
            .count()
    }

    /// The tunnels of a session.
    pub(super) fn of_session(&self, session: SessionId) -> impl Iterator<Item = (Token, &Tunnel)> {
        self.tunnels
            .iter()
            .filter(move |(_, tunnel)| tunnel.session == session)
            .map(|(token, tunnel)| (*token, tunnel))
    }

    /// The tokens of a session's tunnels that `wanted` picks.
    pub(super) fn tokens(
        &self,
        session: SessionId,
        wanted: impl Fn(&Tunnel) -> bool,
    ) -> Vec<Token> {
        self.of_session(session)
            .filter(|(_, tunnel)| wanted(tunnel))
            .map(|(token, _)| token)
            .collect()
    }

    /// Takeover: everything of `from` is inherited by `to`.
    pub(super) fn inherit(&mut self, from: SessionId, to: SessionId) -> usize {
        let mut count = 0;
        for tunnel in self.tunnels.values_mut().filter(|t| t.session == from) {
            tunnel.session = to;
            tunnel.inherited = true;
            count += 1;
        }
        count
    }
}
