//! What the server has to say: news about tunnels, and connections to serve.

use std::time::Instant;

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::Refusal;

use super::{ControlClient, Phase};
use crate::local_proxy::Call;
use crate::reverse::Input;
use crate::reverse::data::DataEnd;
use crate::reverse::session::Notice;
use crate::reverse::tunnels::Change;
use minitcptunnel_common::backoff::random;

impl ControlClient {
    /// The session reports something.
    pub(super) fn notice(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Up => {
                self.sessions += 1;
                self.before = self.traffic();
                self.report.succeeded();
                self.changed = true;
                log::info!("Connected to {}", self.server.name());
                self.begin_spares();
            }
            Notice::Capabilities(capabilities) => {
                log::debug!("The server and this client both know {capabilities:?}");
                self.begin_spares();
            }
            Notice::Status {
                tunnel,
                status,
                reason,
                port,
            } => {
                log::debug!(
                    "status tunnel={:?} {status:?} port={port} reason={reason:?}",
                    tunnel.as_str()
                );
                let change = self
                    .tunnels
                    .status(&tunnel, &status, &reason, port, now, random());
                if let Some(change) = change {
                    self.tell(&change);
                }
            }
            Notice::Call {
                tunnel,
                conn,
                visitor,
            } => self.call(&tunnel, conn, visitor, now),
        }
    }

    fn begin_spares(&mut self) {
        if let Phase::Session(session) = &mut self.phase {
            session.begin_spares(&self.inbox, &self.proxy, self.tunnels.enabled());
        }
    }

    /// An external connection waits at the server.
    fn call(&mut self, tunnel: &TunnelId, conn: ConnId, visitor: Option<String>, now: Instant) {
        let Phase::Session(session) = &mut self.phase else {
            return;
        };
        let Some(link) = session.link(&self.inbox) else {
            return;
        };
        session.missed_spare();
        let Some(target) = self.tunnels.enabled().target(tunnel) else {
            self.store.refusals.add(Refusal::ByClient);
            log_limited!(
                log::Level::Warn,
                self.disabled.event(now),
                "The server announced a connection for tunnel {:?}, which is not enabled here; it is refused code={}",
                tunnel.as_str(),
                Code::TUNNEL_DISABLED
            );
            self.inbox.send(Input::Refuse {
                session: session.number,
                conn,
                reason: "the tunnel is not enabled in the client".to_owned(),
            });
            return;
        };
        let far = DataEnd {
            link,
            conn: conn.clone(),
            compression: target.compression,
            ledger: self.proxy.ledger(&target),
        };
        let owner = session.number;
        self.proxy.serve(
            Call {
                target,
                conn,
                visitor,
                owner,
            },
            far,
        );
    }

    /// One line for what has changed about a tunnel.
    pub(super) fn tell(&mut self, change: &Change) {
        self.changed = true;
        match change {
            Change::Opened { tunnel, port } => {
                log::info!("Tunnel {tunnel} is open on server port {port}");
            }
            Change::Refused {
                tunnel,
                reason,
                retry_in,
                repeated,
            } => {
                let level = if *repeated {
                    log::Level::Debug
                } else {
                    log::Level::Warn
                };
                log::log!(
                    level,
                    "Tunnel {tunnel} is not open: {reason:?}; next try in {:.1} s code={}",
                    retry_in.as_secs_f64(),
                    Code::TUNNEL_NOT_OPEN
                );
            }
        }
    }
}
