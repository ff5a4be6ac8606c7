//! A data channel: dial the server, prove that it belongs to our session, carry one connection.
//!
//! ```text
//!  dial (hellos) ──> Channel ── join: DataConnReady(token, conn id) ──> sealed Duplex
//!                       └────── discard: nobody will use it
//! ```

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::sealed::{self, Compression, End};
use minitcptunnel_common::duplex::{self, Duplex};
use minitcptunnel_common::evloop::Inbox;
use minitcptunnel_common::id::ConnId;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::Message;

use super::Input;
use super::server::{Channel, Server, ServerError};
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
        let message = Message::DataConnReady {
            token: self.link.key.token(self.conn.as_str()),
            conn: self.conn.clone(),
        };
        let (mut plain, mut frame) = (Vec::new(), Vec::new());
        message.encode(true, &mut plain);
        channel
            .sealer
            .seal_message(&plain, &mut frame)
            .map_err(io::Error::other)?;
        channel.stream.write_all(&frame)?;
        channel.stream.set_write_timeout(None)
    }
}

impl FarEnd for DataEnd {
    type Channel = Channel;

    fn dial(&self) -> Result<Channel, String> {
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

    fn join(&self, mut channel: Channel) -> io::Result<Duplex> {
        self.prove(&mut channel)?;
        let end = if self.link.capabilities.fin {
            End::Fin
        } else {
            End::Tcp
        };
        let Channel {
            stream,
            sealer,
            opener,
        } = channel;
        sealed::sealed(
            stream,
            sealer,
            opener,
            Vec::new(),
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

    fn discard(&self, mut channel: Channel) {
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
