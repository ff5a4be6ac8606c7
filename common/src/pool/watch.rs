//! The socket of a duplex in a poller.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};

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

    /// Takes it out again.
    pub fn deregister(&mut self, registry: &Registry) {
        use std::os::fd::AsRawFd;
        // It can only fail for a socket that the poller does not know.
        let _ = registry.deregister(&mut mio::unix::SourceFd(&self.0.stream().as_raw_fd()));
    }
}

/// A second handle on the socket: the poller of this system takes no other.
#[cfg(not(unix))]
pub struct Watch(mio::net::TcpStream);

#[cfg(not(unix))]
impl Watch {
    /// Of this socket. Only elsewhere than on Unix can that fail.
    pub fn new(socket: Arc<Socket>) -> io::Result<Self> {
        Ok(Self(mio::net::TcpStream::from_std(
            socket.stream().try_clone()?,
        )))
    }

    /// Tells `token` when there is something to read; also if there is already.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.0, token, Interest::READABLE)
    }

    /// Takes it out again.
    pub fn deregister(&mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.0);
    }
}
