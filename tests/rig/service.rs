//! Local services: each connection gets a thread and a closure.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crate::Bytes;

/// A listening service; it stops taking connections when dropped.
pub struct Service {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    live: Arc<AtomicUsize>,
    accepted: Arc<AtomicU64>,
    acceptor: Option<JoinHandle<()>>,
}

impl Service {
    /// A service on a free loopback port. What `serve` returns as an error ends its connection.
    pub fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_on(0, serve)
    }

    /// As [`start`](Self::start) on this port.
    pub fn start_on(
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("bind a service");
        let address = listener.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let live = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::new(AtomicU64::new(0));
        let serve = Arc::new(serve);
        let acceptor = thread::spawn({
            let (stop, live, accepted) = (stop.clone(), live.clone(), accepted.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let _ = stream.set_nodelay(true);
                    accepted.fetch_add(1, Ordering::SeqCst);
                    live.fetch_add(1, Ordering::SeqCst);
                    let (serve, live) = (serve.clone(), live.clone());
                    thread::Builder::new()
                        .stack_size(256 * 1024)
                        .spawn(move || {
                            // What went wrong here shows at the visitor, where the test looks.
                            let _ = serve(stream);
                            live.fetch_sub(1, Ordering::SeqCst);
                        })
                        .expect("a thread for a service");
                }
            }
        });
        Self {
            address,
            stop,
            live,
            accepted,
            acceptor: Some(acceptor),
        }
    }

    /// Sends back what it gets, and its end.
    pub fn echo() -> Self {
        Self::start(|mut stream| {
            let mut buffer = [0; 16 * 1024];
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return stream.shutdown(Shutdown::Write);
                }
                stream.write_all(&buffer[..n])?;
            }
        })
    }

    /// Sends `text` and closes.
    pub fn greeter(text: &'static [u8]) -> Self {
        Self::start(move |mut stream| stream.write_all(text))
    }

    /// Sends `n` bytes of the stream of `seed`, then its end, then waits for the visitor's.
    pub fn source(seed: u64, n: u64) -> Self {
        Self::start(move |mut stream| {
            send(&mut stream, seed, n)?;
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut stream, &mut io::sink()).map(|_| ())
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections being served.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    /// Connections served since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then looks at the mark. If it is not listening it has ended.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Sends `n` bytes of the stream of `seed`.
pub fn send(stream: &mut impl Write, seed: u64, n: u64) -> io::Result<()> {
    let mut bytes = Bytes::new(seed);
    let mut buffer = vec![0; 64 * 1024];
    let mut left = n;
    while left > 0 {
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        bytes.fill(&mut buffer[..len]);
        stream.write_all(&buffer[..len])?;
        left -= len as u64;
    }
    Ok(())
}
