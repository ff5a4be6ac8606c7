//! The wire cutter: a relay between client and server whose link does what links do on bad days.
//!
//! ```text
//!  client ──> [ near | to_server ──> | far ] ──> server
//!             [      | <── to_client |     ]
//! ```
//!
//! One thread owns every socket. All of them are non-blocking and edge-triggered, so after each event and each
//! command a link is moved until nothing moves any more. The mode is the cutter's, for all its links; cuts are
//! for one link or for all.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

/// What the link does to bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Carries them.
    Pass,
    /// Carries nothing and loses nothing, as a link that stalls: what was sent arrives when it is back.
    Hold,
    /// A black hole: bytes, ends and resets of this way vanish, and nobody is told. New connections come up
    /// and meet the same silence.
    Drop(Way),
    /// Carries them so much later.
    Delay(Duration),
    /// Carries them one by one.
    Dribble,
    /// Turns new connections away with a reset; old ones go on.
    Refuse,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From client to server.
    ToServer,
    /// From server to client.
    ToClient,
    /// Both.
    Both,
}

/// One connection through the cutter, in order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link(pub usize);

enum Command {
    Mode(Mode),
    /// Reset on both sides; `None` is every link.
    Cut(Option<Link>),
    /// Reset towards the client only; the server is never told.
    CutNear,
    Tamper(Way, u64, u8),
    Links(Sender<Vec<Link>>),
    Stop,
}

/// A command, and where to say that it is done: a test may rely on it from then on.
type Order = (Command, Sender<()>);

/// The relay; it ends, with everything it carries, when dropped.
pub struct WireCutter {
    port: u16,
    // A queue that ends with the loop, and what wakes the loop to look at it.
    commands: Mutex<Sender<Order>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

const WAKE: Token = Token(0);
const LISTENER: Token = Token(1);
/// Link `n` has tokens `2n` (near) and `2n + 1` (far), from here on.
const FIRST_LINK: usize = 2;
/// Most bytes in flight per way.
const ROOM: usize = 256 * 1024;

impl WireCutter {
    /// A relay to `server`, passing.
    pub fn to(server: SocketAddr) -> Self {
        let poll = Poll::new().expect("poll");
        let mut listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("bind the cutter");
        let port = listener.local_addr().expect("bound").port();
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .expect("register");
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).expect("waker"));
        let (commands, inbox) = channel();
        let thread = std::thread::spawn(move || {
            Relay {
                poll,
                listener,
                server,
                inbox,
                mode: Mode::Pass,
                tamper: None,
                links: BTreeMap::new(),
                next: FIRST_LINK,
            }
            .run();
        });
        Self {
            port,
            commands: Mutex::new(commands),
            waker,
            thread: Some(thread),
        }
    }

    /// Where the client connects.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what the link does from now on.
    pub fn set(&self, mode: Mode) {
        self.command(Command::Mode(mode));
    }

    /// Resets every link on both sides.
    pub fn cut(&self) {
        self.command(Command::Cut(None));
    }

    /// Resets one link on both sides.
    pub fn cut_one(&self, link: Link) {
        self.command(Command::Cut(Some(link)));
    }

    /// Half open: resets every link towards the client and never tells the server.
    pub fn cut_near(&self) {
        self.command(Command::CutNear);
    }

    /// In every link that is opened from now on, turns the bits of `mask` in byte `at` of one way.
    pub fn tamper(&self, way: Way, at: u64, mask: u8) {
        self.command(Command::Tamper(way, at, mask));
    }

    /// The links that are up, oldest first: of a client's, the first is its control channel.
    pub fn links(&self) -> Vec<Link> {
        let (answer, links) = channel();
        self.command(Command::Links(answer));
        links.recv().expect("the loop answers")
    }

    fn command(&self, command: Command) {
        let (done, wait) = channel();
        self.commands
            .lock()
            .expect("never held over a panic")
            .send((command, done))
            .expect("the loop lives as long as this");
        self.waker.wake().expect("wake");
        wait.recv().expect("the loop answers");
    }
}

impl Drop for WireCutter {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    server: SocketAddr,
    inbox: Receiver<Order>,
    mode: Mode,
    tamper: Option<(Way, u64, u8)>,
    links: BTreeMap<usize, Pair>,
    next: usize,
}

/// One connection: its two sockets and what is on the way between them. A side that is `None` was cut off.
struct Pair {
    near: Option<TcpStream>,
    far: Option<TcpStream>,
    to_server: Pipe,
    to_client: Pipe,
}

/// One way.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// Delay: until when the first so many bytes have to wait.
    due: VecDeque<(Instant, usize)>,
    /// Bytes read so far, for tampering at an exact place.
    seen: u64,
    tamper: Option<(u64, u8)>,
    ended: bool,
    end_passed: bool,
}

/// What came of moving a pipe.
enum Moved {
    /// All that could.
    Still,
    /// A side broke: the pair is over.
    Broken,
}

impl Relay {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let wait = self.next_due();
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("poll: {e}"),
            }
            let mut touched: Vec<usize> = Vec::new();
            let mut all = wait.is_some();
            while let Ok((command, done)) = self.inbox.try_recv() {
                let stop = matches!(command, Command::Stop);
                self.obey(command);
                let _ = done.send(());
                if stop {
                    return;
                }
            }
            for event in &events {
                match event.token() {
                    WAKE => all = true,
                    LISTENER => self.accept(),
                    Token(n) => touched.push(n & !1),
                }
            }
            if all {
                touched = self.links.keys().copied().collect();
            }
            for link in touched {
                self.service(link);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Mode(mode) => self.mode = mode,
            Command::Cut(which) => {
                let which: Vec<usize> = match which {
                    Some(Link(link)) => vec![link],
                    None => self.links.keys().copied().collect(),
                };
                for link in which {
                    if let Some(pair) = self.links.remove(&link) {
                        pair.near.into_iter().chain(pair.far).for_each(cut);
                    }
                }
            }
            Command::CutNear => {
                for pair in self.links.values_mut() {
                    pair.near.take().into_iter().for_each(cut);
                }
            }
            Command::Tamper(way, at, mask) => self.tamper = Some((way, at, mask)),
            Command::Links(answer) => {
                let up = self.links.iter().filter(|(_, pair)| pair.near.is_some());
                let _ = answer.send(up.map(|(&link, _)| Link(link)).collect());
            }
            Command::Stop => {}
        }
    }

    /// How long until delayed bytes may go on.
    fn next_due(&self) -> Option<Duration> {
        self.links
            .values()
            .flat_map(|pair| [&pair.to_server, &pair.to_client])
            .filter_map(|pipe| pipe.due.front().map(|(at, _)| *at))
            .min()
            // A millisecond late rather than a loop that spins until then.
            .map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn accept(&mut self) {
        loop {
            let near = match self.listener.accept() {
                Ok((near, _)) => near,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => panic!("accept in the cutter: {e}"),
            };
            if self.mode == Mode::Refuse {
                cut(near);
                continue;
            }
            let Ok(far) = TcpStream::connect(self.server) else {
                cut(near);
                continue;
            };
            let (mut near, mut far) = (near, far);
            let link = self.next;
            self.next += 2;
            let both = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            registry
                .register(&mut near, Token(link), both)
                .expect("register");
            registry
                .register(&mut far, Token(link + 1), both)
                .expect("register");
            for socket in [&near, &far] {
                let _ = socket.set_nodelay(true);
            }
            let tamper = |way: Way| {
                self.tamper
                    .filter(|(of, ..)| *of == way || *of == Way::Both)
                    .map(|(_, at, mask)| (at, mask))
            };
            self.links.insert(
                link,
                Pair {
                    to_server: Pipe {
                        tamper: tamper(Way::ToServer),
                        ..Pipe::default()
                    },
                    to_client: Pipe {
                        tamper: tamper(Way::ToClient),
                        ..Pipe::default()
                    },
                    near: Some(near),
                    far: Some(far),
                },
            );
        }
    }

    /// Moves a link until nothing moves any more.
    fn service(&mut self, link: usize) {
        let Some(pair) = self.links.get_mut(&link) else {
            return;
        };
        let mode = self.mode;
        let (near, far) = (&mut pair.near, &mut pair.far);
        let up = pair.to_server.carry(near, far, mode, Way::ToServer);
        let down = pair.to_client.carry(far, near, mode, Way::ToClient);
        let over = pair.to_server.end_passed && pair.to_client.end_passed;
        if matches!(up, Moved::Broken) || matches!(down, Moved::Broken) {
            let pair = self.links.remove(&link).expect("just there");
            pair.near.into_iter().chain(pair.far).for_each(cut);
        } else if over {
            self.links.remove(&link);
        }
    }
}

impl Pipe {
    fn carry(
        &mut self,
        from: &mut Option<TcpStream>,
        to: &mut Option<TcpStream>,
        mode: Mode,
        way: Way,
    ) -> Moved {
        let lost = matches!(mode, Mode::Drop(of) if of == way || of == Way::Both);
        if mode == Mode::Hold {
            return Moved::Still;
        }
        loop {
            let mut moved = false;
            if let Some(source) = from
                .as_mut()
                .filter(|_| !self.ended && self.bytes.len() < ROOM)
            {
                let mut buffer = [0; 64 * 1024];
                match source.read(&mut buffer) {
                    Ok(0) if lost => {
                        // The end vanishes as well: this side is over, the other will never hear of it.
                        *from = None;
                        return Moved::Still;
                    }
                    Ok(0) => self.ended = true,
                    Ok(n) => {
                        moved = true;
                        self.take(&mut buffer[..n], lost, mode);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) if e.kind() == io::ErrorKind::NotConnected => return Moved::Still,
                    Err(_) if lost => {
                        *from = None;
                        return Moved::Still;
                    }
                    Err(_) => return Moved::Broken,
                }
            }
            let Some(sink) = to.as_mut() else {
                // Nobody is there to take it; what comes is lost.
                self.bytes.clear();
                self.due.clear();
                if moved {
                    continue;
                }
                return Moved::Still;
            };
            match self.give(sink, mode) {
                Ok(progress) => moved |= progress,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Moved::Still,
                Err(_) => return Moved::Broken,
            }
            if !moved {
                return Moved::Still;
            }
        }
    }

    fn take(&mut self, bytes: &mut [u8], lost: bool, mode: Mode) {
        if let Some((at, mask)) = self.tamper {
            let end = self.seen + bytes.len() as u64;
            if (self.seen..end).contains(&at) {
                bytes[(at - self.seen) as usize] ^= mask;
            }
        }
        self.seen += bytes.len() as u64;
        if lost {
            return;
        }
        self.bytes.extend(&*bytes);
        if let Mode::Delay(by) = mode {
            self.due.push_back((Instant::now() + by, bytes.len()));
        }
    }

    /// Writes what may go; whether anything went.
    fn give(&mut self, sink: &mut TcpStream, mode: Mode) -> io::Result<bool> {
        let mut progress = false;
        loop {
            // How much of the front is free to go: all of it, or what is due when something is not.
            let mut free = self.bytes.len();
            if !self.due.is_empty() {
                free = 0;
                let now = Instant::now();
                for (at, n) in &self.due {
                    if *at > now {
                        break;
                    }
                    free += n;
                }
            }
            if mode == Mode::Dribble {
                free = free.min(1);
            }
            if free == 0 {
                break;
            }
            let (front, _) = self.bytes.as_slices();
            let front = &front[..front.len().min(free)];
            match sink.write(front) {
                Ok(n) => {
                    self.bytes.drain(..n);
                    self.settle(n);
                    progress = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(progress),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.ended && self.bytes.is_empty() && !self.end_passed {
            self.end_passed = true;
            sink.shutdown(Shutdown::Write)?;
        }
        Ok(progress)
    }

    /// Takes `n` written bytes off the delays.
    fn settle(&mut self, mut n: usize) {
        while let Some((_, first)) = self.due.front_mut() {
            if n < *first {
                *first -= n;
                return;
            }
            n -= *first;
            self.due.pop_front();
        }
    }
}

/// Closes with a reset.
fn cut(socket: TcpStream) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{End, PATIENCE, Service, connect, eventually, read_end};

    fn through(cutter: &WireCutter) -> std::net::TcpStream {
        connect((Ipv4Addr::LOCALHOST, cutter.port()))
    }

    fn echo(stream: &mut std::net::TcpStream, text: &[u8]) -> io::Result<bool> {
        stream.write_all(text)?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        Ok(back == text)
    }

    fn start() -> (Service, WireCutter) {
        let service = Service::echo();
        let cutter = WireCutter::to((Ipv4Addr::LOCALHOST, service.port()).into());
        (service, cutter)
    }

    #[test]
    fn passes_both_ways_and_ends() {
        let (_service, cutter) = start();
        let mut stream = through(&cutter);
        let bytes = crate::Bytes::new(1).take(3_000_000);
        let mut out = stream.try_clone().expect("clone");
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || {
            out.write_all(&sent).expect("write");
            out.shutdown(Shutdown::Write).expect("shutdown");
        });
        let (back, end) = read_end(&mut stream);
        writer.join().expect("writer");
        assert!(back == bytes, "3 MB changed on the way");
        assert_eq!(end, End::Clean);
        eventually(PATIENCE, "the link to go", || {
            cutter.links().is_empty().then_some(())
        });
    }

    #[test]
    fn a_cut_is_a_reset_on_both_sides() {
        let (service, cutter) = start();
        let mut stream = through(&cutter);
        assert!(echo(&mut stream, b"up").expect("echo"));
        cutter.cut();
        assert_eq!(read_end(&mut stream).1, End::Reset);
        eventually(PATIENCE, "the service to see it", || {
            (service.live() == 0).then_some(())
        });
    }

    #[test]
    fn a_half_open_link_is_news_to_the_client_only() {
        let (service, cutter) = start();
        let mut stream = through(&cutter);
        assert!(echo(&mut stream, b"up").expect("echo"));
        cutter.cut_near();
        assert_eq!(read_end(&mut stream).1, End::Reset);
        assert!(echo(&mut through(&cutter), b"next").expect("echo"));
        assert_eq!(service.accepted(), 2);
        assert!(service.live() >= 1, "the first connection stays");
    }

    #[test]
    fn held_bytes_arrive_later_and_dropped_bytes_never() {
        let (_service, cutter) = start();
        for (mode, arrives) in [(Mode::Hold, true), (Mode::Drop(Way::ToServer), false)] {
            cutter.set(Mode::Pass);
            let mut stream = through(&cutter);
            assert!(echo(&mut stream, b"up").expect("echo"));
            cutter.set(mode);
            let short = Some(Duration::from_millis(200));
            stream.set_read_timeout(short).expect("timeout");
            assert!(echo(&mut stream, b"lost?").is_err(), "{mode:?} is silent");
            cutter.set(Mode::Pass);
            let mut back = [0; 5];
            stream
                .set_read_timeout(Some(Duration::from_millis(500)))
                .expect("timeout");
            assert_eq!(stream.read_exact(&mut back).is_ok(), arrives, "{mode:?}");
        }
    }

    #[test]
    fn delay_dribble_tamper_and_refuse() {
        let (_service, cutter) = start();
        let mut stream = through(&cutter);
        cutter.set(Mode::Delay(Duration::from_millis(60)));
        let start = Instant::now();
        assert!(echo(&mut stream, b"slow").expect("echo"));
        assert!(start.elapsed() >= Duration::from_millis(120));
        cutter.set(Mode::Dribble);
        assert!(echo(&mut stream, &[7; 5000]).expect("echo"));
        cutter.set(Mode::Pass);
        cutter.tamper(Way::ToServer, 2, 0x80);
        let mut stream = through(&cutter);
        stream.write_all(&[0; 4]).expect("write");
        let mut back = [9; 4];
        stream.read_exact(&mut back).expect("read");
        assert_eq!(back, [0, 0, 0x80, 0]);
        cutter.set(Mode::Refuse);
        assert_eq!(read_end(&mut through(&cutter)).1, End::Reset);
    }
}
