//! One channel of the wire, spoken by hand: what a program would never send can be sent too.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use ed25519_dalek::SigningKey;
use minitcptunnel_common::id::{ConnId, TunnelId};
use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::handshake::v1::{HelloReader, Initiator, Role, Seeds, WireHello};
use minitcptunnel_common::wire::keys::SessionKey;
use minitcptunnel_common::wire::message::{CompressionWish, Message};
use minitcptunnel_common::wire::{CIPHERTEXT_MAX, MESSAGE_MAX};

use crate::{PATIENCE, World, connect};

/// A channel to a server after the hellos, or a control channel after AuthOk.
pub struct Peer {
    /// The connection.
    pub stream: TcpStream,
    /// Seals what goes to the server.
    pub sealer: Sealer,
    /// The same by hand: key, nonce base, frames sealed so far.
    by_hand: ([u8; 32], [u8; 4], u64),
    opener: Opener,
    reader: FrameReader,
    /// From AuthOk, once it came.
    pub session_key: Option<[u8; 32]>,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The rig's own key maker is the nearest source of random bytes: a fresh seed holds 32.
    let seed = IdentityKey::generate().expect("random bytes");
    let secret: [u8; 32] = seed.signing_key().to_bytes();
    bytes.copy_from_slice(&secret[..N]);
    bytes
}

fn seeds() -> Seeds {
    Seeds {
        ephemeral: random(),
        nonce: random(),
    }
}

/// A valid client hello of `identity`, and what finishes the handshake.
pub fn raw_hello(identity: &SigningKey) -> (Initiator, WireHello) {
    Initiator::new(identity, &seeds())
}

/// The offer of everything a client of this project knows, as a message.
pub fn offer() -> Message {
    Message::Heartbeat {
        payload: Capabilities::ALL.offer(),
    }
}

impl Peer {
    /// Connects and does the hellos.
    pub fn shake(world: &World, identity: &IdentityKey, to: SocketAddr) -> io::Result<Self> {
        Self::shake_over(world, identity, connect(to))
    }

    /// Does the hellos over a connection that is there already.
    pub fn shake_over(
        world: &World,
        identity: &IdentityKey,
        mut stream: TcpStream,
    ) -> io::Result<Self> {
        let (initiator, hello) = raw_hello(identity.signing_key());
        stream.write_all(&hello)?;
        let mut reader = HelloReader::new(Role::Server);
        let answer = loop {
            let n = stream.read(reader.room())?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(hello) = reader.advance(n).map_err(io::Error::other)? {
                break hello;
            }
        };
        let keys = initiator
            .finish(&answer, Some(world.server_key.public().as_bytes()))
            .map_err(io::Error::other)?;
        Ok(Self {
            stream,
            sealer: Sealer::new(&keys.c2s),
            by_hand: (*keys.c2s.parts().0, *keys.c2s.parts().1, 0),
            opener: Opener::new(&keys.s2c),
            reader: FrameReader::new(CIPHERTEXT_MAX),
            session_key: None,
        })
    }

    /// A control channel with a session: hellos, offer, AuthOk, answer to the offer.
    pub fn control(world: &World, identity: &IdentityKey, to: SocketAddr) -> Self {
        let mut peer = Self::shake(world, identity, to).expect("handshake");
        peer.send(&offer()).expect("offer");
        peer.expect("AuthOk", |message| match message {
            Message::AuthOk { session_key } => Some(session_key),
            _ => None,
        });
        peer.expect("the answer to the offer", |message| match message {
            Message::Heartbeat { payload } => Capabilities::read_answer(&payload),
            _ => None,
        });
        peer
    }

    /// Opens a tunnel on any free port; that port.
    pub fn open_tunnel(&mut self, id: &str) -> u16 {
        self.send(&Message::OpenTunnel {
            port: 0,
            tunnel: TunnelId::new(id).expect("short"),
            compression: CompressionWish::ServerChoice,
        })
        .expect("OpenTunnel");
        self.expect("an open tunnel", |message| match message {
            Message::TunnelStatus { port, .. } if port > 0 => Some(port as u16),
            _ => None,
        })
    }

    /// Waits for the next external connection; its name.
    pub fn incoming(&mut self) -> ConnId {
        self.expect("IncomingConn", |message| match message {
            Message::IncomingConn { conn, .. } => Some(conn),
            _ => None,
        })
    }

    /// The first message of a data channel for `conn` in this session.
    pub fn ready(&self, conn: &ConnId) -> Message {
        let key = SessionKey::new(self.session_key.expect("a control channel"));
        Message::DataConnReady {
            token: key.token(conn.as_str()),
            conn: conn.clone(),
        }
    }

    /// Seals and sends a message.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(true, &mut bytes);
        self.send_raw(&bytes)
    }

    /// Seals and sends the bytes of a message.
    pub fn send_raw(&mut self, message: &[u8]) -> io::Result<()> {
        let frame = self.seal(message);
        self.stream.write_all(&frame)
    }

    /// Seals the bytes of a message; the frame is not sent.
    pub fn seal(&mut self, message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.sealer.seal_message(message, &mut frame).expect("seal");
        self.by_hand.2 += 1;
        frame
    }

    /// Seals and sends what no sealer would: any container. Nothing can follow it.
    pub fn send_container(&mut self, container: &[u8]) -> io::Result<()> {
        let (key, base, counter) = self.by_hand;
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&base);
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        let mut sealed = container.to_vec();
        let tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(&nonce.into(), &[], (&mut sealed[..]).into())
            .expect("short");
        sealed.extend_from_slice(&tag);
        let mut frame = (sealed.len() as u32).to_be_bytes().to_vec();
        frame.extend(sealed);
        self.stream.write_all(&frame)
    }

    /// Seals and sends a Data message.
    pub fn send_data(&mut self, flags: u8, payload: &[u8]) -> io::Result<()> {
        let mut message = vec![30, flags, 0, 0, 0, 0];
        message.extend_from_slice(payload);
        self.send_raw(&message)
    }

    /// The bytes of the next message; `None` at the end of the connection.
    pub fn receive_raw(&mut self, within: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + within;
        let mut buffer = [0; 16 * 1024];
        loop {
            let next = self
                .reader
                .next(&mut self.opener, MESSAGE_MAX)
                .map_err(io::Error::other)?;
            if let Some(message) = next {
                return Ok(Some(message.to_vec()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer)? {
                0 => return Ok(None),
                n => self.reader.push(&buffer[..n]),
            }
        }
    }

    /// The next message; `None` at the end of the connection, however it came.
    pub fn receive(&mut self, within: Duration) -> Option<Message> {
        match self.receive_raw(within) {
            Ok(Some(bytes)) => Some(Message::decode(&bytes).expect("a message of the server")),
            Ok(None) => None,
            Err(e) if crate::is_reset(&e) => None,
            Err(e) => panic!("no message: {e}"),
        }
    }

    /// Reads messages until `wanted` takes one; keeps the session key on the way.
    pub fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(Message) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(message) = self.receive(left) else {
                panic!("the server closed instead of sending {what}");
            };
            if let Message::AuthOk { session_key } = &message {
                self.session_key = Some(*session_key);
            }
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    }
}
