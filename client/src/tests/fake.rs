//! A server that does what a test says, over loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::frame::{FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::handshake::v1::{self, HelloReader, Role, Seeds, WireHello};
use minitcptunnel_common::wire::keys::{ChannelKeys, SessionKey};
use minitcptunnel_common::wire::message::Message;
use minitcptunnel_common::wire::{CIPHERTEXT_MAX, MESSAGE_MAX};

/// Longer than anything here takes; a test that waits so long has failed.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// The session key of every fake session.
pub(super) const SESSION_KEY: [u8; 32] = [42; 32];

pub(super) struct FakeServer {
    pub(super) port: u16,
    pub(super) identity: IdentityKey,
    connections: Receiver<TcpStream>,
}

impl FakeServer {
    pub(super) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Before anybody connects. Otherwise the system holds what is not read, up to 32 MiB where it may, and to fill
        // that takes minutes under wine.
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(64 * 1024)
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, connections) = channel();
        // Ends with the first connection after the test is over, or with the test program.
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self {
            port,
            identity: IdentityKey::from_seed(&[9; 32]),
            connections,
        }
    }

    /// The next connection, nothing read from it.
    pub(super) fn accept(&self) -> TcpStream {
        let stream = self.connections.recv_timeout(SOON).expect("a connection");
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Whether a connection has come that nobody has accepted.
    pub(super) fn accept_within(&self, time: Duration) -> Option<TcpStream> {
        self.connections.recv_timeout(time).ok()
    }

    /// The next connection, with the answer to its hello, not yet sent.
    pub(super) fn answer(&self) -> (TcpStream, WireHello, ChannelKeys) {
        let mut stream = self.accept();
        let mut reader = HelloReader::new(Role::Client);
        let hello = loop {
            let n = stream.read(reader.room()).expect("a hello");
            assert!(n > 0, "the client closed in its hello");
            if let Some(hello) = reader.advance(n).unwrap() {
                break hello;
            }
        };
        let seeds = Seeds {
            ephemeral: [3; 32],
            nonce: [4; 12],
        };
        let (wire, keys) = v1::respond(self.identity.signing_key(), &hello, &seeds).unwrap();
        (stream, wire, keys)
    }

    /// The next connection after the hellos.
    pub(super) fn channel(&self) -> Peer {
        let (mut stream, wire, keys) = self.answer();
        stream.write_all(&wire).unwrap();
        Peer {
            stream,
            sealer: Sealer::new(&keys.s2c),
            opener: Opener::new(&keys.c2s),
            reader: FrameReader::new(CIPHERTEXT_MAX),
        }
    }

    /// A session that is up with every capability, and what the client has asked for.
    pub(super) fn session(&self, tunnels: usize) -> (Peer, Vec<Message>) {
        let mut peer = self.channel();
        peer.expect_offer();
        peer.send(&Message::AuthOk {
            session_key: SESSION_KEY,
        });
        peer.send(&Message::Heartbeat {
            payload: Capabilities::ALL.answer(),
        });
        let asked = (0..tunnels).map(|_| peer.recv()).collect();
        (peer, asked)
    }
}

/// The fake server's end of a channel.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    reader: FrameReader,
}

impl Peer {
    pub(super) fn send(&mut self, message: &Message) {
        let mut plain = Vec::new();
        message.encode(true, &mut plain);
        self.send_plain(&plain).unwrap();
    }

    /// Seals whatever bytes as a message.
    pub(super) fn send_plain(&mut self, plain: &[u8]) -> std::io::Result<()> {
        let mut frame = Vec::new();
        self.sealer.seal_message(plain, &mut frame).unwrap();
        self.stream.write_all(&frame)
    }

    /// Seals several messages and sends them in one piece.
    pub(super) fn send_together(&mut self, messages: &[&[u8]]) -> std::io::Result<()> {
        let mut frames = Vec::new();
        for plain in messages {
            self.sealer.seal_message(plain, &mut frames).unwrap();
        }
        self.stream.write_all(&frames)
    }

    /// The bytes of the next message, or `None` when the client has closed or reset the channel.
    pub(super) fn recv_plain(&mut self) -> Option<Vec<u8>> {
        loop {
            let next = self.reader.next(&mut self.opener, MESSAGE_MAX);
            if let Some(bytes) = next.expect("a frame of the client") {
                return Some(bytes.to_vec());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                result => {
                    let n = result.expect("something from the client");
                    self.reader.push(&buffer[..n]);
                }
            }
        }
    }

    pub(super) fn recv(&mut self) -> Message {
        let bytes = self.recv_plain().expect("a message, not the end");
        Message::decode(&bytes).unwrap()
    }

    /// The next message that is no heartbeat.
    pub(super) fn recv_news(&mut self) -> Message {
        loop {
            match self.recv() {
                Message::Heartbeat { .. } => {}
                other => return other,
            }
        }
    }

    /// The next heartbeat.
    pub(super) fn recv_beat(&mut self) -> Message {
        loop {
            let message = self.recv();
            if matches!(message, Message::Heartbeat { .. }) {
                return message;
            }
        }
    }

    /// Reads until the client has closed the channel.
    pub(super) fn expect_end(&mut self) {
        while self.recv_plain().is_some() {}
    }

    pub(super) fn expect_offer(&mut self) -> Vec<u8> {
        let Message::Heartbeat { payload } = self.recv() else {
            panic!("the first message is no heartbeat")
        };
        let offer = Capabilities::read_offer(&payload).expect("an offer");
        let all = Capabilities {
            // Offered by those that are to keep any.
            spare: offer.spare,
            ..Capabilities::ALL
        };
        assert_eq!(offer, all);
        payload
    }

    /// The first frame of a data channel: for which connection, and whether the token is right.
    pub(super) fn expect_ready(&mut self) -> String {
        let Message::DataConnReady { token, conn } = self.recv() else {
            panic!("the first message of a data channel is no DataConnReady")
        };
        assert!(SessionKey::new(SESSION_KEY).verify(conn.as_str(), &token));
        conn.as_str().to_owned()
    }
}
