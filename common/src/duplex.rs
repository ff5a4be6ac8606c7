//! One end of a conversation as plaintext: source, sink, abort.
//!
//! ```text
//!            ┌ source: BufRead ──> bytes the peer sends us
//!   Duplex ──┤ sink:   Sink    <── bytes we send the peer
//!            └ abort:  Abort       end everything now
//! ```
//!
//! The contract of every kind of duplex, held by the table in `tests/duplex_table.rs`:
//!
//! 1. `read` returns `Ok(0)` only for an end the peer *meant* (FIN frame, TCP FIN on a local
//!    socket). A cut is `UnexpectedEof`, `ConnectionReset` or what else the system calls it, such as
//!    `TimedOut`; tampering is `InvalidData`.
//! 2. [`Sink::finish`] sends that end in our direction; the other direction stays open.
//! 3. [`Abortable::abort`] may be called from any thread, any number of times, and it is *sticky*: the
//!    mark is set before any socket is touched. A source that wakes under the mark says
//!    `ConnectionAborted`, never `Ok(0)`; a sink under the mark refuses `finish`.
//! 4. The halves may live on different threads. No lock is held across a system call.
//! 5. Any error is final for the whole duplex, with one exception: `WouldBlock` from a source says
//!    that nothing has come for [`REST_AFTER`], or with [`Wait::Never`] that nothing is there now or that it
//!    is too much for now ([`Source::is_heavy`]); from a sink, only with `Wait::Never`, that it takes
//!    nothing now. Asking again is right.
//!
//! Buffers are lent so that no byte is copied inside the process: a source that holds plaintext
//! lends it (`fill_buf`), a sink that needs the bytes in a buffer of its own lets the source read
//! straight into it ([`Sink::take_from`] chooses).

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::wire::DATA_PAYLOAD_MAX;

/// Performance: how long a direction must be silent before it gives its thread back. Long enough
/// that a lively conversation keeps its worker, short enough that a burst of a thousand new
/// connections that do not speak yet needs some dozens of threads and not hundreds.
pub const REST_AFTER: Duration = Duration::from_millis(20);

/// Performance: how often a blocked write looks at the abort mark. Nothing but closing wakes a
/// blocked write without also announcing an orderly end to the peer, so it has to look.
const WRITE_SLICE: Duration = Duration::from_millis(250);

/// Performance: how much a socket holds that its network cannot take yet, in bytes. Linux grows a send buffer to
/// 4 MiB, and all connections of a machine share one store for them: some hundred visitors that never read would
/// empty it and slow everybody else to a crawl.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 256 * 1024;

/// Where plaintext comes from. Reading follows clauses 1, 3 and 5.
pub trait Source: BufRead + Send {
    /// Whether reads wait for [`REST_AFTER`], as they do at first, or only take what is there.
    fn set_wait(&mut self, _wait: Wait) {}

    /// Whether what comes next is too much to be worked on in passing.
    fn is_heavy(&self) -> bool {
        false
    }

    /// Gives buffers back and names the socket whose readiness is worth waiting for; `None` while
    /// plaintext is in hand, or when there is no such socket. Part of a frame is kept. To be asked only
    /// after `WouldBlock`, and when that was not for [heaviness](Self::is_heavy).
    fn rest(&mut self) -> Option<Arc<Socket>> {
        None
    }

    /// Whether the end of this source is the end of the whole conversation, because its peer knows
    /// no half-close (an original on a data channel, PROTOCOL.md 9).
    fn ends_both(&self) -> bool {
        false
    }
}

/// How long a read or a write may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wait {
    /// A read: until something comes, or [`REST_AFTER`] has passed. A write: until all is taken.
    #[default]
    Patient,
    /// Not at all. Where the system cannot do that for one call, as `Patient`.
    Never,
}

impl Source for &[u8] {}
impl<T: AsRef<[u8]> + Send> Source for io::Cursor<T> {}

/// Which half of a pump failed.
#[derive(Debug)]
pub enum Fault {
    /// Reading failed.
    Source(io::Error),
    /// Writing failed.
    Sink(io::Error),
}

impl Fault {
    /// The error, whichever half it struck.
    pub fn error(&self) -> &io::Error {
        match self {
            Self::Source(e) | Self::Sink(e) => e,
        }
    }
}

/// Where plaintext goes.
pub trait Sink: Send {
    /// Whether [`take_from`](Self::take_from) waits for the peer, as it does at first. With `Never` it
    /// may move less than a read gives, or keep the end of what it took for its next call, and says
    /// `WouldBlock` for the sink when it can take nothing.
    fn set_wait(&mut self, _wait: Wait) {}

    /// Whether a few KiB would be taken now without waiting. `false` where nobody can tell.
    fn is_ready(&self) -> bool {
        false
    }

    /// Moves the next bytes of `source` to the peer, all that one read gives. `Ok(0)`: the source is
    /// at its end and nothing was sent.
    fn take_from(&mut self, source: &mut dyn Source) -> Result<usize, Fault>;

    /// Announces the end of our direction (clause 2). With [`Wait::Never`] it may say `WouldBlock`, and
    /// has not announced it then.
    fn finish(&mut self) -> io::Result<()>;

    /// Stops listening to the peer after [`finish`](Self::finish): nobody is left to hear it. The
    /// other direction then sees an orderly end.
    fn hang_up(&mut self) {}

    /// Gives buffers back; nothing has been taken for a while.
    fn rest(&mut self) {}
}

/// Ends a conversation at once, from any thread (clause 3).
pub trait Abortable: Send + Sync {
    /// Sets the mark, then wakes whoever waits.
    fn abort(&self);
}

/// A handle to abort with. Cheap to clone; but it holds the socket, and the peer sees the reset when
/// the last holder is gone: do not keep one behind the end of its pair.
pub type Abort = Arc<dyn Abortable>;

/// One end of a conversation as plaintext.
pub struct Duplex {
    /// What the peer sends us.
    pub source: Box<dyn Source>,
    /// What we send the peer.
    pub sink: Box<dyn Sink>,
    /// Ends it now.
    pub abort: Abort,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}

/// A blocking TCP socket shared by the halves of a duplex, with the sticky abort mark.
///
/// One descriptor serves both halves: std reads and writes through a shared reference.
pub struct Socket {
    stream: TcpStream,
    aborted: AtomicBool,
    /// Our FIN has been sent or is about to be.
    finished: AtomicBool,
    /// How long a write may take nothing, in ms; zero: as long as the system allows.
    write_limit: AtomicU64,
}

impl Socket {
    /// Takes a connected stream and makes it blocking, without Nagle's delay, with reads that give
    /// up (`WouldBlock`) after [`REST_AFTER`].
    pub fn new(stream: TcpStream) -> io::Result<Arc<Self>> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REST_AFTER))?;
        // Windows calls a socket whose send timed out indeterminate, so there only abort wakes it.
        #[cfg(unix)]
        stream.set_write_timeout(Some(WRITE_SLICE))?;
        // Where it is not to be had, the kernel's own bounds hold.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        #[cfg(not(unix))]
        let _ = WRITE_SLICE;
        Ok(Arc::new(Self {
            stream,
            aborted: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            write_limit: AtomicU64::new(0),
        }))
    }

    /// From now on a write that waits for longer than this, while the peer takes nothing, fails. Looked at every
    /// quarter of a second.
    ///
    /// # Errors
    /// What the system says; never on Unix.
    pub fn limit_writes(&self, limit: Duration) -> io::Result<()> {
        // Where writes do not wait in slices, the system itself has to end them.
        #[cfg(not(unix))]
        self.stream.set_write_timeout(Some(limit))?;
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.write_limit.store(ms.max(1), Ordering::Relaxed);
        Ok(())
    }

    /// The stream, for registering it with a poller.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the abort mark is set.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn check(&self) -> io::Result<()> {
        if self.is_aborted() {
            Err(aborted())
        } else {
            Ok(())
        }
    }

    /// One read. `Ok(0)` is the peer's FIN.
    pub fn read(&self, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        loop {
            let result = match wait {
                Wait::Patient => (&self.stream).read(buffer),
                Wait::Never => self.read_now(buffer),
            };
            // The mark first: abort wakes a blocked read with what looks like an orderly end.
            self.check()?;
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_pause(&e) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(0) if self.is_gone() => return Err(io::ErrorKind::ConnectionReset.into()),
                other => return other,
            }
        }
    }

    #[cfg(unix)]
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::net::{RecvFlags, recv};
        let (_, n) = recv(&self.stream, buffer, RecvFlags::DONTWAIT)?;
        Ok(n)
    }

    #[cfg(not(unix))]
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }

    /// Whether a write of a few KiB would be taken at once, or fail at once.
    #[cfg(unix)]
    pub(crate) fn is_writable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }

    #[cfg(not(unix))]
    pub(crate) fn is_writable(&self) -> bool {
        false
    }

    /// Whether the connection was reset, for a read that has met what looks like an end.
    ///
    /// The system reports a reset once, to whichever half asks first; after that a read gets 0. But
    /// a FIN alone leaves the connection in place until we have sent ours, so a connection that has
    /// no peer any more before that was reset. Once ours is sent no write can have taken the report:
    /// a sink that failed does not finish.
    fn is_gone(&self) -> bool {
        // In this order: with `finished` read first, our FIN could go out in between.
        self.stream.peer_addr().is_err() && !self.finished.load(Ordering::Acquire)
    }

    /// Writes everything, however long the peer takes, unless [`limit_writes`](Self::limit_writes) bounds that.
    pub fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        // Since when nothing is taken. The clock is read only then.
        let mut stuck = None;
        while !bytes.is_empty() {
            self.check()?;
            match (&self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => (bytes, stuck) = (&bytes[n..], None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_pause(&e) => {
                    let since = *stuck.get_or_insert_with(Instant::now);
                    self.check_limit(since)?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn check_limit(&self, since: Instant) -> io::Result<()> {
        let limit = self.write_limit.load(Ordering::Relaxed);
        if limit == 0 || cfg!(unix) && since.elapsed() < Duration::from_millis(limit) {
            return Ok(());
        }
        let what = format!(
            "it takes nothing for {} s (timeouts.write)",
            limit as f64 / 1e3
        );
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }

    /// Writes everything, or with [`Wait::Never`] what the system takes at once, if only nothing.
    pub(crate) fn send(&self, bytes: &[u8], wait: Wait) -> io::Result<usize> {
        if wait == Wait::Patient {
            return self.write_all(bytes).map(|()| bytes.len());
        }
        self.check()?;
        match self.write_now(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    #[cfg(unix)]
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::net::{SendFlags, send};
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(send(&self.stream, bytes, flags)?)
    }

    /// Nobody asks here: no sink is ever ready.
    #[cfg(not(unix))]
    #[allow(clippy::unused_self)]
    fn write_now(&self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends a FIN; the other direction stays open. Refused under the mark.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.check()?;
        self.finished.store(true, Ordering::Release);
        match self.stream.shutdown(Shutdown::Write) {
            // The peer has closed everything already: it knows all that we could tell.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        }
    }
}

/// Whether a call merely gave up waiting. Windows calls that `TimedOut`; on Unix this is the name of
/// a connection that has died of silence.
fn is_pause(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock || cfg!(windows) && e.kind() == io::ErrorKind::TimedOut
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "aborted")
}

impl Abortable for Socket {
    fn abort(&self) {
        if self.aborted.swap(true, Ordering::AcqRel) {
            return;
        }
        // A reset instead of a FIN when the last holder closes it: the far application must be able
        // to tell a cut from an end. Errors mean that the connection is gone already.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        // Wakes a blocked read. Only the reading side: shutting the writing side would send a FIN.
        let _ = self.stream.shutdown(Shutdown::Read);
        // Where a write has no timeout nothing else wakes it. The far application may see an end before
        // the reset there.
        #[cfg(not(unix))]
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Makes a connection that never became part of a pair end with a reset when it is dropped.
pub fn reset<'s, S>(stream: &'s S)
where
    SockRef<'s>: From<&'s S>,
{
    // An error means that the connection is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Takes [`reset`] back: the connection will end in the ordinary way.
fn no_reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

/// A plain TCP connection as a duplex: the external connection, or the local service.
///
/// Until its end is announced it ends with a reset, whatever happens: when this process is killed in the
/// middle, the far application must not take what it got for the whole.
pub fn tcp(stream: TcpStream) -> io::Result<Duplex> {
    Ok(tcp_over(Socket::new(stream)?))
}

/// As [`tcp`], over a socket that is set up already.
pub fn tcp_over(socket: Arc<Socket>) -> Duplex {
    reset(&socket.stream);
    Duplex {
        source: Box::new(TcpSource {
            socket: socket.clone(),
            wait: Wait::default(),
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }),
        sink: Box::new(TcpSink {
            socket: socket.clone(),
            wait: Wait::default(),
        }),
        abort: socket,
    }
}

struct TcpSource {
    socket: Arc<Socket>,
    wait: Wait,
    /// Only for sinks that want to be lent bytes; a sealing sink reads past it.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Read for TcpSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            return self.socket.read(buffer, self.wait);
        }
        let n = (&self.buffer[self.start..self.end]).read(buffer)?;
        self.start += n;
        Ok(n)
    }
}

impl BufRead for TcpSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.buffer.resize(DATA_PAYLOAD_MAX, 0);
            (self.start, self.end) = (0, 0);
            self.end = self.socket.read(&mut self.buffer, self.wait)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
}

impl Source for TcpSource {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    fn rest(&mut self) -> Option<Arc<Socket>> {
        if self.start < self.end {
            return None;
        }
        self.buffer = Vec::new();
        (self.start, self.end) = (0, 0);
        Some(self.socket.clone())
    }
}

struct TcpSink {
    socket: Arc<Socket>,
    wait: Wait,
}

impl Sink for TcpSink {
    fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    fn is_ready(&self) -> bool {
        self.socket.is_writable()
    }

    fn take_from(&mut self, source: &mut dyn Source) -> Result<usize, Fault> {
        let bytes = source.fill_buf().map_err(Fault::Source)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let n = self.socket.send(bytes, self.wait).map_err(Fault::Sink)?;
        if n == 0 {
            return Err(Fault::Sink(io::ErrorKind::WouldBlock.into()));
        }
        source.consume(n);
        Ok(n)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.socket.shutdown_write()?;
        no_reset(&self.socket.stream);
        // An abort meanwhile has set the mark before it asked for a reset: one of us sees it.
        if self.socket.is_aborted() {
            reset(&self.socket.stream);
        }
        Ok(())
    }

    fn hang_up(&mut self) {
        // Wakes the reading half with an end; an error means that it has one already.
        let _ = self.socket.stream.shutdown(Shutdown::Read);
    }
}
