//! A data channel: dial the server, prove that it belongs to our session, carry one connection.
//!
//! ```text
//!  dial (hellos) ─┬─> Channel ── join: DataConnReady(token, conn id) ──> sealed Duplex
//!  opened ahead ──┘      └────── discard: nobody will use it
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::reuse::Recovered;
use minitcptunnel_common::channel::sealed::{self, Compression, End};
use minitcptunnel_common::duplex::{self, Duplex, Socket};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::id::ConnId;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;

use super::Input;
use super::server::{Channel, Server, ServerError};
use super::spare::Spares;
use crate::local_proxy::FarEnd;

/// Performance: how often a data channel is dialled that the server closes unheard. While our session lives it
/// does so only because somebody crowds its door from our own address; the next attempt may get through.
const ATTEMPTS: usize = 3;

/// What the data channels of a session have in common.
pub(crate) struct Link {
    pub(crate) server: Arc<Server>,
    /// Where the control channel ended up.
    pub(crate) address: SocketAddr,
    pub(crate) session: u64,
    pub(crate) key: SessionKey,
    pub(crate) capabilities: Capabilities,
    pub(crate) inbox: Inbox<Input>,
    /// `None` where there are none.
    pub(crate) spares: Option<Arc<Spares>>,
}

/// A channel for one connection.
pub(crate) struct Dialled {
    channel: Channel,
    /// It was opened before it was needed, and may be gone without our knowing.
    ahead: bool,
}

/// The far end of one connection: the visitor, seen through the server.
pub(crate) struct DataEnd {
    pub(crate) link: Arc<Link>,
    pub(crate) conn: ConnId,
    pub(crate) compression: Compression,
    pub(crate) ledger: Ledger,
}

impl DataEnd {
    /// Sends the first frame (T6). The server answers with the visitor's bytes, or by closing.
    fn prove(&self, channel: &mut Channel) -> io::Result<()> {
        channel.send_first(&Message::DataConnReady {
            token: self.link.key.token(self.conn.as_str()),
            conn: self.conn.clone(),
        })
    }

    fn dial_now(&self) -> Result<Channel, String> {
        let dial = || self.link.server.dial_address(self.link.address);
        for _ in 1..ATTEMPTS {
            match dial() {
                Err(ServerError::Silent { .. }) => {}
                other => return other.map_err(|e| e.to_string()),
            }
        }
        dial().map_err(|e| match e {
            ServerError::Silent { .. } => format!(
                "the server closed {ATTEMPTS} data channels without an answer; it may be flooded with connections"
            ),
            e => e.to_string(),
        })
    }
}

impl FarEnd for DataEnd {
    type Channel = Dialled;

    fn dial(&self) -> Result<Dialled, String> {
        let ahead = match &self.link.spares {
            Some(spares) if !spares.are_agreed() => spares.take_ahead(),
            _ => None,
        };
        if let Some(channel) = ahead {
            let ahead = true;
            return Ok(Dialled { channel, ahead });
        }
        let channel = self.dial_now()?;
        let ahead = false;
        Ok(Dialled { channel, ahead })
    }

    fn join(&self, dialled: Dialled) -> io::Result<Duplex> {
        let Dialled { mut channel, ahead } = dialled;
        let mut proved = self.prove(&mut channel);
        if proved.is_err() && ahead {
            channel = self.dial_now().map_err(io::Error::other)?;
            proved = self.prove(&mut channel);
        }
        proved?;
        let Channel {
            stream,
            sealer,
            opener,
        } = channel;
        let rest = Vec::new();
        if let Some(spares) = self.link.spares.as_ref().filter(|s| s.are_agreed()) {
            let (socket, again) = (Socket::new(stream)?, spares.on_reuse());
            let compression = self.compression;
            return Ok(sealed::reusable(
                Recovered {
                    socket,
                    sealer,
                    opener,
                    rest,
                },
                compression,
                again,
                &self.ledger,
            ));
        }
        let end = if self.link.capabilities.fin {
            End::Fin
        } else {
            End::Tcp
        };
        sealed::sealed(
            stream,
            sealer,
            opener,
            rest,
            end,
            self.compression,
            &self.ledger,
        )
    }

    fn refuse(&self, reason: &str) {
        // If the loop is gone, so is the session, and the server refuses by itself.
        self.link.inbox.send(Input::Refuse {
            session: self.link.session,
            conn: self.conn.clone(),
            reason: reason.to_owned(),
        });
    }

    fn discard(&self, dialled: Dialled) {
        let mut channel = dialled.channel;
        if self.link.capabilities.refuse {
            // The server knows already.
            duplex::reset(&channel.stream);
        } else {
            // To an original only a data channel that ends at once says "nobody there"; without it
            // the visitor would wait until the pairing deadline.
            let _ = self.prove(&mut channel);
        }
    }
}
