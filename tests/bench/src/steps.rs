//! The per-frame path, one frame a call, in one thread and without waiting: what `--count` counts.
//!
//! ```text
//!  seal       a stored frame               seal + open  the same, and opened again
//!  turn out   visitor ─> [plain source, sealing sink] ─> loopback ─> read away
//!  turn both  visitor ─> [plain source, sealing sink] ─> loopback ─> [opening source, plain sink] ─> read away
//!  pack       text through LZ4             hello        one exchange: begin, answer, finish
//! ```

use std::io::{self, Read, Write};
use std::net::TcpStream;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::sealed::{Compression, End, sealed};
use minitcptunnel_common::duplex::{Duplex, tcp};
use minitcptunnel_common::identity::IdentityKey;
use minitcptunnel_common::wire::MESSAGE_MAX;
use minitcptunnel_common::wire::compress;
use minitcptunnel_common::wire::frame::{HEAD, Opener, Sealer, TAIL};
use minitcptunnel_common::wire::handshake::v1::{
    Hello, HelloReader, Initiator, Role, Seeds, WireHello, respond,
};
use minitcptunnel_common::wire::keys::DirectionKey;
use minitcptunnel_common::wire::message::Kind;
use socket2::SockRef;

use crate::service::random_bytes;

/// Room for what is under way on a connection, in bytes: a step writes it all before it reads.
const IN_FLIGHT: usize = 1 << 20;

/// Runs a step so many times and does nothing else: `bench loop NAME SIZE TIMES`.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> io::Result<()> {
    let mut next = || arguments.next().unwrap_or_default();
    let (name, size, times) = (next(), next(), next());
    let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
    let mut step = step(&name, number(&size)?)?;
    for _ in 0..number(&times)? {
        step()?;
    }
    Ok(())
}

type Step = Box<dyn FnMut() -> io::Result<()>>;

fn step(name: &str, size: usize) -> io::Result<Step> {
    Ok(match name {
        "seal" => cipher(size, false),
        "seal + open" => cipher(size, true),
        "turn out" => turn(size, false)?,
        "turn both" => turn(size, true)?,
        "pack" => {
            let (text, mut out) = (words(size), Vec::new());
            Box::new(move || {
                out.clear();
                assert!(compress::pack(&text, &mut out), "text shrinks");
                Ok(())
            })
        }
        "hello" => {
            let hellos = Hellos::new();
            Box::new(move || {
                let (initiator, hello) = hellos.begin();
                let answer = hellos.answer(&hello);
                Hellos::finish(initiator, &answer);
                Ok(())
            })
        }
        other => return Err(io::Error::other(format!("no step is called '{other}'"))),
    })
}

/// The two ends of a direction.
pub(crate) fn keys() -> (Sealer, Opener) {
    let key = || DirectionKey::from_parts([7; 32], [1, 2, 3, 4]);
    (Sealer::new(&key()), Opener::new(&key()))
}

fn cipher(size: usize, open: bool) -> Step {
    let (mut sealer, mut opener) = keys();
    let (mut buffer, mut spare) = (random_bytes(HEAD + size + TAIL), Vec::new());
    Box::new(move || {
        let n = sealer
            .seal_stored(&mut buffer, Kind::Data, 0, size)
            .map_err(io::Error::other)?;
        if open {
            opener
                .open(&mut buffer[4..n], &mut spare, MESSAGE_MAX)
                .map_err(io::Error::other)?;
        }
        Ok(())
    })
}

/// A relay's turn: what `Pump` does for every frame, without its counters.
fn turn(size: usize, both: bool) -> io::Result<Step> {
    let (mut visitor, external) = roomy()?;
    let (left, mut right) = roomy()?;
    let (local, mut service) = roomy()?;
    // Compression by measured time would not be repeatable.
    let channel = |stream| {
        let (sealer, opener) = keys();
        sealed(
            stream,
            sealer,
            opener,
            Vec::new(),
            End::Fin,
            Compression::Off,
            &Ledger::default(),
        )
    };
    let (mut outer, mut inner) = (tcp(external)?, channel(left)?);
    let arrived = right.try_clone()?;
    let mut far = if both {
        Some((channel(right.try_clone()?)?, tcp(local)?))
    } else {
        None
    };
    let (bytes, mut away) = (random_bytes(size), vec![0; IN_FLIGHT]);
    Ok(Box::new(move || {
        visitor.write_all(&bytes)?;
        let frames = pump(&mut outer, &mut inner, size)?;
        let sent = size + frames * (HEAD + TAIL);
        // However the kernel cuts and delays it: the far end shall find all of it.
        while arrived.peek(&mut away)? < sent {}
        match &mut far {
            None => right.read_exact(&mut away[..sent]),
            Some((from, to)) => {
                pump(from, to, size)?;
                service.read_exact(&mut away[..size])
            }
        }
    }))
}

/// Moves `size` bytes; says how many turns that took, which is one once the buffers have grown.
fn pump(from: &mut Duplex, to: &mut Duplex, size: usize) -> io::Result<usize> {
    let (mut moved, mut turns) = (0, 0);
    while moved < size {
        match to.sink.take_from(&mut *from.source) {
            Ok(n) => {
                moved += n;
                turns += 1;
            }
            Err(fault) if fault.error().kind() == io::ErrorKind::WouldBlock => {}
            Err(fault) => return Err(io::Error::other(fault.error().to_string())),
        }
    }
    Ok(turns)
}

fn roomy() -> io::Result<(TcpStream, TcpStream)> {
    let (near, far) = crate::ladder::connected()?;
    for end in [&near, &far] {
        SockRef::from(end).set_recv_buffer_size(IN_FLIGHT)?;
    }
    Ok((near, far))
}

/// English of a kind, which LZ4 halves: always the same.
fn words(len: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "the",
        "tunnel",
        "of",
        "a",
        "connection",
        "and",
        "to",
        "server",
        "in",
        "is",
        "that",
        "bytes",
        "for",
        "wire",
        "channel",
        "between",
    ];
    let mut text = Vec::new();
    for (i, byte) in random_bytes(len).into_iter().enumerate() {
        if text.len() >= len {
            break;
        }
        text.extend_from_slice(WORDS[usize::from(byte % 16)].as_bytes());
        // A number now and then, so that it is not all repetition.
        if byte > 160 {
            text.extend_from_slice(format!(" {}", i * usize::from(byte)).as_bytes());
        }
        text.push(b" \n"[usize::from(byte > 240)]);
    }
    text.truncate(len);
    text
}

/// The arithmetic of one data channel's hellos, with the reading of them.
pub(crate) struct Hellos {
    client: IdentityKey,
    server: IdentityKey,
}

impl Hellos {
    pub(crate) fn new() -> Self {
        Self {
            client: IdentityKey::from_seed(&[1; 32]),
            server: IdentityKey::from_seed(&[2; 32]),
        }
    }

    pub(crate) fn begin(&self) -> (Initiator, WireHello) {
        Initiator::new(self.client.signing_key(), &seeds(3))
    }

    pub(crate) fn answer(&self, hello: &WireHello) -> WireHello {
        let hello = read(Role::Client, hello);
        let (answer, _) =
            respond(self.server.signing_key(), &hello, &seeds(4)).expect("a good hello");
        answer
    }

    pub(crate) fn finish(initiator: Initiator, answer: &WireHello) {
        let answer = read(Role::Server, answer);
        initiator.finish(&answer, None).expect("a good answer");
    }
}

fn seeds(n: u8) -> Seeds {
    Seeds {
        ephemeral: [n; 32],
        nonce: [n; 12],
    }
}

fn read(from: Role, mut wire: &[u8]) -> Hello {
    let mut reader = HelloReader::new(from);
    loop {
        let n = wire.read(reader.room()).expect("a slice can be read");
        if let Some(hello) = reader.advance(n).expect("our own hello") {
            return hello;
        }
    }
}
