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

mod socket;

use std::fmt;
use std::io::{self, BufRead, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use crate::wire::DATA_PAYLOAD_MAX;

#[cfg(windows)]
pub(crate) use socket::Bell;
pub use socket::Socket;

/// Performance: how long a direction must be silent before it gives its thread back. Long enough
/// that a lively conversation keeps its worker, short enough that a burst of a thousand new
/// connections that do not speak yet needs some dozens of threads and not hundreds.
pub const REST_AFTER: Duration = Duration::from_millis(20);

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
    /// Not at all.
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
    reset(socket.stream());
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
        no_reset(self.socket.stream());
        // An abort meanwhile has set the mark before it asked for a reset: one of us sees it.
        if self.socket.is_aborted() {
            reset(self.socket.stream());
        }
        Ok(())
    }

    fn hang_up(&mut self) {
        self.socket.hang_up();
    }
}
