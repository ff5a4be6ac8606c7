//! The socket of a duplex in a poller.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};

#[cfg(windows)]
use crate::duplex::Bell;
use crate::duplex::Socket;

/// A duplex's socket in a poller, which tells when there is something to read.
#[cfg(unix)]
pub struct Watch(Arc<Socket>);

#[cfg(unix)]
impl Watch {
    // The same signature as elsewhere, where it can fail.
    #[allow(clippy::unnecessary_wraps)]
    /// Of this socket. Only elsewhere than on Unix can that fail.
    pub fn new(socket: Arc<Socket>) -> io::Result<Self> {
        Ok(Self(socket))
    }

    /// Tells `token` when there is something to read; also if there is already.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        registry.register(
            &mut mio::unix::SourceFd(&self.0.stream().as_raw_fd()),
            token,
            Interest::READABLE,
        )
    }

    /// To be called after everything was read that was there: tells again when there is more. Here the poller
    /// does that by itself.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    pub fn again(&mut self, _: &Registry, _: Token) -> io::Result<()> {
        Ok(())
    }

    /// Takes it out again.
    pub fn deregister(&mut self, registry: &Registry) {
        use std::os::fd::AsRawFd;
        // It can only fail for a socket that the poller does not know.
        let _ = registry.deregister(&mut mio::unix::SourceFd(&self.0.stream().as_raw_fd()));
    }
}

/// With a second handle on the socket: the poller of this system takes no other.
#[cfg(windows)]
pub struct Watch {
    handle: mio::net::TcpStream,
    socket: Arc<Socket>,
}

#[cfg(windows)]
impl Watch {
    /// Of this socket. Only elsewhere than on Unix can that fail.
    pub fn new(socket: Arc<Socket>) -> io::Result<Self> {
        Ok(Self {
            handle: mio::net::TcpStream::from_std(socket.stream().try_clone()?),
            socket,
        })
    }

    /// Tells `token` when there is something to read; also if there is already.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.handle, token, Interest::READABLE)
    }

    /// Calls `bell` when the socket is ended from our side, which the poller is not told; `None` takes it back.
    pub(super) fn ring_at_end(&self, bell: Option<Bell>) {
        self.socket.ring_at_end(bell);
    }

    /// Passes on that the poller was told of a reset.
    pub(super) fn mark_lost(&self) {
        self.socket.mark_lost();
    }

    /// To be called after everything was read that was there: tells again when there is more. The poller tells
    /// once, and would know by itself only of what is read through its own handle.
    pub fn again(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(&mut self.handle, token, Interest::READABLE)
    }

    /// Takes it out again.
    pub fn deregister(&mut self, registry: &Registry) {
        self.socket.ring_at_end(None);
        let _ = registry.deregister(&mut self.handle);
    }
}
