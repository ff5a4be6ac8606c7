//! Every kind of duplex as the same thing: two ends and what is between them.
//!
//! ```text
//!  direct   duplex ── wire ── duplex
//!  chain    application ── pool(tcp | duplex) ── wire ── pool(duplex | tcp) ── application
//! ```
//!
//! The chain is the real path: server on the left, client on the right.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::sealed::{Compression, End, sealed};
use minitcptunnel_common::duplex::{self, Abort, Duplex, Fault, Sink, Source};
use minitcptunnel_common::metrics::Traffic;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::relay::{Ended, Why};
use minitcptunnel_common::wire::frame::{Opener, Sealer};
use minitcptunnel_common::wire::keys::DirectionKey;
use socket2::SockRef;

use crate::rig::{Content, Cut, PATIENCE, Plan, Wire, eventually, link, receive};
use crate::tls;

/// What the channel in the middle is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layer {
    Tcp,
    Sealed,
    /// As spoken with an original: the end of a direction is the TCP end.
    Legacy,
    Packed,
    Tls12,
    Tls13,
}

/// A kind of duplex, alone or within the real path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    pub(crate) layer: Layer,
    pub(crate) chain: bool,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = {
        const fn kind(layer: Layer, chain: bool) -> Kind {
            Kind { layer, chain }
        }
        [
            kind(Layer::Tcp, false),
            kind(Layer::Sealed, false),
            kind(Layer::Legacy, false),
            kind(Layer::Packed, false),
            kind(Layer::Tls12, false),
            kind(Layer::Tls13, false),
            kind(Layer::Tcp, true),
            kind(Layer::Sealed, true),
            kind(Layer::Legacy, true),
            kind(Layer::Packed, true),
            // Within the path the version of TLS makes no difference.
            kind(Layer::Tls13, true),
        ]
    };

    /// Whether what passes is authenticated.
    pub(crate) fn is_protected(self) -> bool {
        self.layer != Layer::Tcp
    }

    /// Whether that is done by frames of ours.
    pub(crate) fn is_sealed(self) -> bool {
        self.is_protected() && !self.is_tls()
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self.layer, Layer::Tls12 | Layer::Tls13)
    }

    /// Whether an end can be told from a cut (E2).
    pub(crate) fn tells_ends(self) -> bool {
        matches!(self.layer, Layer::Sealed | Layer::Packed) || self.is_tls()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let where_ = if self.chain { "chain" } else { "direct" };
        write!(f, "{where_} {:?}", self.layer)
    }
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hand {
    Left,
    Right,
}

/// The keys of a channel, the same in every case: what the left seals with, and the right.
pub(crate) fn keys(hand: Hand) -> (Sealer, Opener) {
    let left = DirectionKey::from_parts([1; 32], [1, 2, 3, 4]);
    let right = DirectionKey::from_parts([2; 32], [5, 6, 7, 8]);
    match hand {
        Hand::Left => (Sealer::new(&left), Opener::new(&right)),
        Hand::Right => (Sealer::new(&right), Opener::new(&left)),
    }
}

/// Both ends of a path as duplexes of this layer.
pub(crate) fn dress_both(layer: Layer, near: TcpStream, far: TcpStream) -> [Duplex; 2] {
    if let Layer::Tls12 | Layer::Tls13 = layer {
        return tls::dress_both(layer, near, far);
    }
    [(Hand::Left, near), (Hand::Right, far)]
        .map(|(hand, stream)| dress(layer, hand, stream, Vec::new()))
}

/// A connected stream as a duplex of this layer; `rest` came behind the handshake. Of TLS, the other end is
/// nowhere.
pub(crate) fn dress(layer: Layer, hand: Hand, stream: TcpStream, rest: Vec<u8>) -> Duplex {
    let (sealer, opener) = keys(hand);
    let (end, compression) = match layer {
        Layer::Tcp => return duplex::tcp(stream).unwrap(),
        Layer::Sealed => (End::Fin, Compression::Off),
        Layer::Legacy => (End::Tcp, Compression::Off),
        Layer::Packed => (End::Fin, Compression::On),
        Layer::Tls12 | Layer::Tls13 => return tls::dress(layer, hand, stream),
    };
    sealed(
        stream,
        sealer,
        opener,
        rest,
        end,
        compression,
        &Ledger::default(),
    )
    .unwrap()
}

/// How reading ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// The peer meant it.
    End,
    /// A cut; on an application's socket always a reset.
    Cut,
    /// Tampering or nonsense; only a duplex can tell.
    Damage,
    Aborted,
    Other(io::ErrorKind),
}

impl Seen {
    pub(crate) fn of(e: &io::Error, ours: bool) -> Self {
        match e.kind() {
            io::ErrorKind::ConnectionReset => Self::Cut,
            io::ErrorKind::UnexpectedEof if ours => Self::Cut,
            io::ErrorKind::InvalidData if ours => Self::Damage,
            io::ErrorKind::ConnectionAborted if ours => Self::Aborted,
            other => Self::Other(other),
        }
    }

    /// What an application behind a pair sees of it: anything but an end is a reset.
    pub(crate) fn through(self, chain: bool) -> Self {
        if chain && self != Self::End {
            Self::Cut
        } else {
            self
        }
    }
}

/// An application's socket. The system tells a reset once, to whoever asks first: what its writer
/// heard, its reader has to learn.
pub(crate) struct App {
    stream: TcpStream,
    writing: AtomicBool,
    was_reset: AtomicBool,
}

impl App {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match receive(&self.stream, buffer, PATIENCE) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                panic!("nothing came for {PATIENCE:?}")
            }
            // Wine leaves the connection its address.
            Ok(0) if cfg!(windows) && self.was_reset.load(Ordering::Acquire) => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            // Neither an end nor alive. (A reset behind an end is called a broken pipe.)
            Ok(0) if self.stream.peer_addr().is_err() => {
                eventually("the writer hears of it, too", || {
                    !self.writing.load(Ordering::Acquire)
                });
                if self.was_reset.load(Ordering::Acquire) {
                    Err(io::ErrorKind::ConnectionReset.into())
                } else {
                    Ok(0)
                }
            }
            other => other,
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.writing.store(true, Ordering::Release);
        let result = write_all(&self.stream, bytes);
        // Windows also calls it an abort.
        let reset = [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
        ];
        if matches!(&result, Err(e) if reset.contains(&e.kind())) {
            self.was_reset.store(true, Ordering::Release);
        }
        self.writing.store(false, Ordering::Release);
        result
    }
}

/// Wine's blocking send now and then comes back without having taken anything, which std calls an error.
fn write_all(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes)? {
            0 if !cfg!(windows) => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// Receiving half of an end.
pub(crate) enum Reader {
    App(Arc<App>),
    Ours(Box<dyn Source>),
}

impl Reader {
    /// One read that waits as long as it takes.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let source = match self {
            Self::App(app) => return app.read(buffer),
            Self::Ours(source) => source,
        };
        let start = Instant::now();
        loop {
            match source.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < PATIENCE, "nothing came for {PATIENCE:?}");
                }
                other => return other,
            }
        }
    }

    /// Reads and checks exactly `n` bytes.
    pub(crate) fn expect(&mut self, content: &mut Content, n: u64) {
        let mut buffer = vec![0; 32 * 1024];
        let mut left = n;
        while left > 0 {
            let most = buffer.len().min(left as usize);
            let n = self.read(&mut buffer[..most]).expect("expected bytes");
            assert_ne!(n, 0, "the end came {left} bytes early");
            content.check(&buffer[..n]);
            left -= n as u64;
        }
    }

    /// Reads and checks to the end, of whatever kind. An error must stay one.
    pub(crate) fn drain(&mut self, content: &mut Content) -> Seen {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return Seen::End,
                Ok(n) => content.check(&buffer[..n]),
                Err(e) => {
                    let Self::Ours(source) = self else {
                        return Seen::of(&e, false);
                    };
                    let again = source.read(&mut buffer);
                    assert!(
                        matches!(&again, Err(e) if e.kind() != io::ErrorKind::WouldBlock),
                        "after {e:?} came {again:?}"
                    );
                    return Seen::of(&e, true);
                }
            }
        }
    }

    /// Reads until silence, and gives buffers back as a pump does.
    fn rest(&mut self) {
        let Self::Ours(source) = self else {
            panic!("applications do not rest");
        };
        match source.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("expected silence, not {other:?}"),
        }
        assert!(source.rest().is_some(), "silence, and nothing in hand");
    }
}

/// Sending half of an end.
pub(crate) enum Writer {
    App(Arc<App>),
    Ours(Box<dyn Sink>),
}

impl Writer {
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::App(app) => app.write(bytes),
            Self::Ours(sink) => {
                while !bytes.is_empty() {
                    sink.take_from(&mut bytes).map_err(|fault| match fault {
                        Fault::Sink(e) => e,
                        Fault::Source(e) => panic!("a slice cannot fail: {e}"),
                    })?;
                }
                Ok(())
            }
        }
    }

    /// Sends `n` bytes of content. `moved` grows by what was handed over.
    pub(crate) fn send(
        &mut self,
        content: &mut Content,
        n: u64,
        moved: Option<&AtomicU64>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut left = n;
        while left > 0 {
            let piece = buffer.len().min(left as usize);
            content.fill(&mut buffer[..piece]);
            self.write(&buffer[..piece])?;
            left -= piece as u64;
            if let Some(moved) = moved {
                moved.fetch_add(piece as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::App(app) => app.stream.shutdown(Shutdown::Write),
            Self::Ours(sink) => sink.finish(),
        }
    }
}

/// One end of a path.
pub(crate) struct Side {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// Only of a duplex.
    pub(crate) abort: Option<Abort>,
}

impl Side {
    pub(crate) fn app(stream: TcpStream) -> Self {
        let app = Arc::new(App {
            stream,
            writing: AtomicBool::new(false),
            was_reset: AtomicBool::new(false),
        });
        Self {
            reader: Reader::App(app.clone()),
            writer: Writer::App(app),
            abort: None,
        }
    }

    pub(crate) fn ours(duplex: Duplex) -> Self {
        Self {
            reader: Reader::Ours(duplex.source),
            writer: Writer::Ours(duplex.sink),
            abort: Some(duplex.abort),
        }
    }

    /// The application's socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match &self.reader {
            Reader::App(app) => &app.stream,
            Reader::Ours(_) => panic!("a duplex lends no socket"),
        }
    }

    /// Goes at once, with a reset.
    pub(crate) fn reset(self) {
        match &self.abort {
            Some(abort) => abort.abort(),
            None => SockRef::from(self.socket())
                .set_linger(Some(Duration::ZERO))
                .unwrap(),
        }
    }

    /// Reads until silence, and gives the buffers of both halves back as a pump does.
    pub(crate) fn rest(&mut self) {
        self.reader.rest();
        if let Writer::Ours(sink) = &mut self.writer {
            sink.rest();
        }
    }

    pub(crate) fn say(&mut self, content: &mut Content, n: u64) {
        self.writer.send(content, n, None).expect("sending");
    }

    pub(crate) fn hear(&mut self, content: &mut Content, n: u64) {
        self.reader.expect(content, n);
    }
}

/// The pairs of a chain.
pub(crate) struct Chain {
    pub(crate) pools: [Pool; 2],
    ended: [Receiver<Ended>; 2],
    pub(crate) traffic: [Arc<Traffic>; 2],
}

impl Chain {
    /// Waits for the end of both pairs, and that each was told exactly once.
    pub(crate) fn over(&self) -> [Ended; 2] {
        [self.ended(Hand::Left), self.ended(Hand::Right)]
    }

    pub(crate) fn ended(&self, hand: Hand) -> Ended {
        let i = hand as usize;
        let ended = self.ended[i]
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|e| panic!("the {hand:?} pair has not ended: {e}"));
        eventually("the permit comes back", || self.pools[i].live() == 0);
        assert_eq!(self.pools[i].resting(), 0, "nothing is left behind");
        assert_eq!(
            self.ended[i].try_recv().unwrap_err(),
            TryRecvError::Disconnected,
            "told twice"
        );
        let counted = self.traffic[i].snapshot();
        assert_eq!(
            (counted.to_service, counted.from_service, counted.live),
            (ended.to_service, ended.from_service, 0)
        );
        ended
    }
}

/// Starts one pair in a pool of its own or a given one.
pub(crate) fn start(
    pool: &Pool,
    owner: u64,
    external: Duplex,
    service: Duplex,
    traffic: &Arc<Traffic>,
) -> Receiver<Ended> {
    let (tell, ended) = channel();
    let permit = pool.admit().expect("room for a pair");
    pool.start(
        permit,
        owner,
        external,
        service,
        traffic.clone(),
        move |ended| {
            // Nobody listens any more when a case has seen enough.
            let _ = tell.send(ended);
        },
    )
    .expect("a pair");
    ended
}

/// Two ends and the wire between them.
pub(crate) struct Path {
    pub(crate) left: Side,
    pub(crate) right: Side,
    pub(crate) wire: Wire,
    pub(crate) chain: Option<Chain>,
}

impl Path {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with(kind, [Plan::default(); 2])
    }

    pub(crate) fn with(kind: Kind, plans: [Plan; 2]) -> Self {
        let (near, wire_left) = link();
        let (wire_right, far) = link();
        let wire = Wire::new(wire_left, wire_right, plans);
        let [near, far] = dress_both(kind.layer, near, far);
        if !kind.chain {
            return Self {
                left: Side::ours(near),
                right: Side::ours(far),
                wire,
                chain: None,
            };
        }
        let (left, external) = link();
        let (service, right) = link();
        let pools = [Pool::new(1).unwrap(), Pool::new(1).unwrap()];
        let traffic = [Arc::<Traffic>::default(), Arc::<Traffic>::default()];
        let external = duplex::tcp(external).unwrap();
        let service = duplex::tcp(service).unwrap();
        let ended = [
            start(&pools[0], 1, external, near, &traffic[0]),
            start(&pools[1], 1, far, service, &traffic[1]),
        ];
        Self {
            left: Side::app(left),
            right: Side::app(right),
            wire,
            chain: Some(Chain {
                pools,
                ended,
                traffic,
            }),
        }
    }

    /// Exchanges a little, so that everything is under way. Returns the contents, left's first.
    pub(crate) fn greet(&mut self) -> [Content; 4] {
        let mut contents = [1, 1, 2, 2].map(Content::new);
        let [there, there_seen, back, back_seen] = &mut contents;
        self.left.say(there, 1000);
        self.right.hear(there_seen, 1000);
        self.right.say(back, 700);
        self.left.hear(back_seen, 700);
        contents
    }

    /// Waits until every direction is at rest.
    pub(crate) fn rest(&mut self) {
        match &self.chain {
            Some(chain) => eventually("both directions of both pairs rest", || {
                chain.pools.iter().all(|pool| pool.resting() == 2)
            }),
            None => {
                self.left.rest();
                self.right.rest();
            }
        }
    }

    /// Lets both applications go and holds the verdicts against `expected`.
    pub(crate) fn over(self) -> Option<[Ended; 2]> {
        drop((self.left, self.right));
        self.chain.as_ref().map(Chain::over)
    }
}

/// Whether a pair ended as failed for this reason.
pub(crate) fn failed(ended: &Ended, kinds: &[io::ErrorKind]) -> bool {
    matches!(&ended.why, Why::Failed(_, kind, _) if kinds.contains(kind))
}

/// What a cut of the wire looks like at its ends, silence around it.
pub(crate) fn cut_looks(layer: Layer, how: Cut) -> Seen {
    match (how, layer) {
        // Without FIN frames an orderly TCP end is all there is: the original's weakness.
        (Cut::Close, Layer::Tcp | Layer::Legacy) => Seen::End,
        (Cut::Close, _) | (Cut::Reset, _) => Seen::Cut,
    }
}
