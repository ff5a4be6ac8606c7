//! The socket under a duplex, on each system as that wants to be treated.
//!
//! | | Unix | Windows |
//! | --- | --- | --- |
//! | mode | blocking | not blocking |
//! | [`Wait::Patient`](super::Wait) | timeouts of the socket, in the call itself | `WSAPoll`, once a call has found nothing |
//! | [`Wait::Never`](super::Wait) | `MSG_DONTWAIT` | the call itself |
//! | abort | wakes a reader by `shutdown` | is looked for every [`REST_AFTER`]; a poller is rung |
//!
//! Windows has no `MSG_DONTWAIT`, calls a socket whose timeout has passed indeterminate (data may be lost), and
//! does not promise that `shutdown` wakes anybody.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(windows)]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use socket2::SockRef;

use super::{Abortable, REST_AFTER, Wait};

/// Performance: how often a blocked write looks at the abort mark. Nothing but closing wakes a
/// blocked write without also announcing an orderly end to the peer, so it has to look.
const WRITE_SLICE: Duration = Duration::from_millis(250);

/// Performance: how much a socket holds that its network cannot take yet, in bytes. Linux grows a send buffer to
/// 4 MiB, and all connections of a machine share one store for them: some hundred visitors that never read would
/// empty it and slow everybody else to a crawl.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 256 * 1024;

/// A TCP socket shared by the halves of a duplex, with the sticky abort mark.
///
/// One descriptor serves both halves: std reads and writes through a shared reference.
pub struct Socket {
    stream: TcpStream,
    aborted: AtomicBool,
    /// Somebody was told that the connection is gone: a half of ours by an error, or a poller.
    lost: AtomicBool,
    /// Our FIN has been sent or is about to be.
    finished: AtomicBool,
    /// How long a write may take nothing, in ms; zero: as long as the system allows.
    write_limit: AtomicU64,
    /// Whom we have to tell of an end that we make: the poller that this socket is with.
    #[cfg(windows)]
    bell: Mutex<Option<Bell>>,
    /// Nobody wants to hear the peer any more.
    #[cfg(windows)]
    hung_up: AtomicBool,
}

/// What tells a poller of an end that we make.
#[cfg(windows)]
pub(crate) type Bell = Box<dyn Fn() + Send>;

impl Socket {
    /// Takes a connected stream and gives it the mode of this system, without Nagle's delay. Patient reads give
    /// up (`WouldBlock`) after [`REST_AFTER`].
    pub fn new(stream: TcpStream) -> io::Result<Arc<Self>> {
        stream.set_nodelay(true)?;
        #[cfg(windows)]
        stream.set_nonblocking(true)?;
        #[cfg(unix)]
        {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(REST_AFTER))?;
            stream.set_write_timeout(Some(WRITE_SLICE))?;
        }
        // Where it is not to be had, the kernel's own bounds hold.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        Ok(Arc::new(Self {
            stream,
            aborted: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            write_limit: AtomicU64::new(0),
            #[cfg(windows)]
            bell: Mutex::default(),
            #[cfg(windows)]
            hung_up: AtomicBool::new(false),
        }))
    }

    /// From now on a write that waits for longer than this, while the peer takes nothing, fails. Looked at every
    /// quarter of a second.
    pub fn limit_writes(&self, limit: Duration) {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.write_limit.store(ms.max(1), Ordering::Relaxed);
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
            let result = self.read_once(buffer, wait);
            // The mark first: abort wakes a blocked read with what looks like an orderly end.
            self.check()?;
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                #[cfg(windows)]
                Ok(0) if self.hung_up.load(Ordering::Acquire) => return Ok(0),
                Ok(0) if self.is_gone() => return Err(io::ErrorKind::ConnectionReset.into()),
                other => return other,
            }
        }
    }

    /// Wakes the reading half with an end.
    pub(crate) fn hang_up(&self) {
        // An error means that it has one already.
        #[cfg(unix)]
        let _ = self.stream.shutdown(Shutdown::Read);
        // There a shutdown wakes nobody, and makes a reset of what comes afterwards.
        #[cfg(windows)]
        {
            self.hung_up.store(true, Ordering::Release);
            self.ring();
        }
    }

    #[cfg(unix)]
    fn read_once(&self, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        use rustix::net::{RecvFlags, recv};
        match wait {
            Wait::Patient => (&self.stream).read(buffer),
            Wait::Never => {
                let (_, n) = recv(&self.stream, buffer, RecvFlags::DONTWAIT)?;
                Ok(n)
            }
        }
    }

    #[cfg(windows)]
    fn read_once(&self, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        if self.hung_up.load(Ordering::Acquire) {
            return Ok(0);
        }
        match (&self.stream).read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && wait == Wait::Patient => {
                self.wait_for(PollFlags::IN, REST_AFTER)?;
                (&self.stream).read(buffer)
            }
            other => other,
        }
    }

    /// Whether a write of a few KiB would be taken at once, or fail at once.
    pub(crate) fn is_writable(&self) -> bool {
        use rustix::event::Timespec;
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }

    /// Waits until the socket is ready for this, has ended or is lost; at most for `limit`. Whether it is.
    #[cfg(windows)]
    fn wait_for(&self, what: PollFlags, limit: Duration) -> io::Result<bool> {
        let limit = limit.try_into().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.stream, what)];
        poll(&mut fds, Some(&limit))?;
        let now = fds[0].revents();
        if now.contains(PollFlags::ERR) {
            self.mark_lost();
        }
        Ok(now.intersects(what))
    }

    /// A poller was told that the connection was reset. It may be the only one who is.
    #[cfg(windows)]
    pub(crate) fn mark_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Calls this when the mark is set, or when nobody wants to hear the peer any more; at once when it is so already.
    /// One at a time; `None` takes it back.
    #[cfg(windows)]
    pub(crate) fn ring_at_end(&self, bell: Option<Bell>) {
        *self.bell() = bell;
        if self.is_aborted() || self.hung_up.load(Ordering::Acquire) {
            self.ring();
        }
    }

    #[cfg(windows)]
    fn ring(&self) {
        if let Some(bell) = &*self.bell() {
            bell();
        }
    }

    #[cfg(windows)]
    fn bell(&self) -> MutexGuard<'_, Option<Bell>> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the connection was reset, for a read that has met what looks like an end.
    ///
    /// The system reports a reset once, to whichever half asks first; after that a read gets 0. But
    /// a FIN alone leaves the connection in place until we have sent ours, so a connection that has
    /// no peer any more before that was reset. Once ours is sent no write can have taken the report:
    /// a sink that failed does not finish. Elsewhere than on Unix a connection without a peer may still have its
    /// address, so there whoever is told leaves a mark.
    fn is_gone(&self) -> bool {
        if cfg!(windows) && self.lost.load(Ordering::Acquire) {
            return true;
        }
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
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let since = *stuck.get_or_insert_with(Instant::now);
                    self.check_limit(since)?;
                    #[cfg(windows)]
                    self.wait_to_write()?;
                }
                Err(e) => return Err(self.note(e)),
            }
        }
        Ok(())
    }

    /// The slice that on Unix the call itself waits for.
    #[cfg(windows)]
    fn wait_to_write(&self) -> io::Result<()> {
        if !self.wait_for(PollFlags::OUT, WRITE_SLICE)? {
            // `WSAPoll` also returns, at once and every time, because the peer has announced its end.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What a write was told, in case nobody is told again.
    fn note(&self, e: io::Error) -> io::Error {
        use io::ErrorKind as K;
        if matches!(e.kind(), K::ConnectionReset | K::ConnectionAborted) {
            self.lost.store(true, Ordering::Release);
        }
        e
    }

    fn check_limit(&self, since: Instant) -> io::Result<()> {
        let limit = self.write_limit.load(Ordering::Relaxed);
        if limit == 0 || since.elapsed() < Duration::from_millis(limit) {
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
            other => other.map_err(|e| self.note(e)),
        }
    }

    #[cfg(unix)]
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::net::{SendFlags, send};
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(send(&self.stream, bytes, flags)?)
    }

    #[cfg(windows)]
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
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
        #[cfg(windows)]
        self.ring();
    }
}
