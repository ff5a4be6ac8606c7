//! A spare that waits for its Assign, and what comes of it.

use std::io::ErrorKind;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use minitcptunnel_common::channel::reuse::Recovered;
use minitcptunnel_common::channel::sealed;
use minitcptunnel_common::codes::Code;
use minitcptunnel_common::duplex::{self, Socket, Wait};
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::log_limited;
use minitcptunnel_common::metrics::Refusal;
use minitcptunnel_common::wire::FIRST_FRAME_MAX;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::message::Message;

use super::{Place, Spares};
use crate::local_proxy::Call;

/// What an Assign may expand to, in bytes (L3).
const ASSIGN_MAX: usize = 2 * FIRST_FRAME_MAX;

/// A spare that waits for its Assign.
pub(super) struct Spare {
    pub(super) place: Place,
    pub(super) socket: Arc<Socket>,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) frames: FrameReader,
    /// The Assign has begun to arrive: all of it must be here by then.
    pub(super) deadline: Option<Instant>,
}

/// What a look at a spare has found.
enum Found {
    Nothing,
    Assign {
        tunnel: TunnelId,
        conn: ConnId,
        visitor: String,
    },
    /// The server has closed it, or the session is over.
    End,
    Damage(String),
}

impl Spares {
    /// On a worker: something has happened to a spare.
    pub(super) fn look(self: Arc<Self>, mut spare: Spare) {
        match self.receive(&mut spare) {
            Found::Nothing => self.wait(spare),
            Found::Assign {
                tunnel,
                conn,
                visitor,
            } => {
                self.leave(spare.place.id, |plan| plan.taken(Instant::now()));
                self.fill();
                self.serve(spare, &tunnel, conn, visitor);
            }
            Found::End => {}
            Found::Damage(what) => {
                let code = Code::PROTOCOL;
                log::warn!("A spare data channel was damaged, which closes it: {what} code={code}");
                duplex::reset(spare.socket.stream());
            }
        }
    }

    fn receive(&self, spare: &mut Spare) -> Found {
        let mut buffer = [0u8; 1024];
        loop {
            match spare.frames.next(&mut spare.opener, ASSIGN_MAX) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    return match Message::decode(bytes) {
                        Ok(Message::Assign {
                            tunnel,
                            conn,
                            visitor,
                        }) => Found::Assign {
                            tunnel,
                            conn,
                            visitor,
                        },
                        _ => Found::Damage("a message that is no Assign".into()),
                    };
                }
                Err(e) => return Found::Damage(e.to_string()),
            }
            // Only an Assign that has begun is worth a worker's time.
            let wait = match spare.deadline {
                None => Wait::Never,
                Some(_) => Wait::Patient,
            };
            let room = spare.frames.wanted().min(buffer.len());
            match spare.socket.read(&mut buffer[..room], wait) {
                Ok(0) => return Found::End,
                Ok(n) => {
                    spare.frames.push(&buffer[..n]);
                    let limit = self.parts.server.timeouts.handshake;
                    spare.deadline.get_or_insert_with(|| Instant::now() + limit);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => match spare.deadline {
                    None => return Found::Nothing,
                    Some(deadline) if deadline <= Instant::now() => {
                        return Found::Damage("an Assign did not arrive whole in time".into());
                    }
                    Some(_) => {}
                },
                Err(_) => return Found::End,
            }
        }
    }

    /// Somebody has come: this very worker dials the local service.
    fn serve(self: &Arc<Self>, spare: Spare, tunnel: &TunnelId, conn: ConnId, visitor: String) {
        let proxy = &self.parts.proxy;
        let refuse = || duplex::reset(spare.socket.stream());
        let Some(target) = self.parts.enabled.target(tunnel) else {
            refuse();
            proxy.count(Refusal::ByClient);
            let say = self
                .disabled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .event(Instant::now());
            return log_limited!(
                log::Level::Warn,
                say,
                "The server assigned a connection for tunnel {:?}, which is not enabled here; it is refused code={}",
                tunnel.as_str(),
                Code::TUNNEL_DISABLED
            );
        };
        let Some((permit, service)) = proxy.dial(&target) else {
            return refuse();
        };
        let Spare {
            socket,
            sealer,
            opener,
            frames,
            ..
        } = spare;
        let external = sealed::reusable(
            Recovered {
                socket,
                sealer,
                opener,
                rest: frames.into_rest(),
            },
            target.compression,
            self.on_reuse(),
            &proxy.ledger(&target),
        );
        let call = Call {
            target,
            conn,
            visitor: Some(visitor),
            owner: self.parts.session,
        };
        proxy.pair(permit, &call, external, service);
    }
}
