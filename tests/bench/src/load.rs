//! The load: what visitors do. Everything has a bound in time and in number.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::process::Used;
use crate::service::{CHUNK, random_bytes};

/// Nothing on loopback takes this long unless it hangs.
const STUCK: Duration = Duration::from_secs(20);
/// Visitors come from this many addresses in turn, because one has but 28,232 ports for a destination.
const SOURCES: usize = 12;
/// How many open connections at once.
pub(crate) const AT_ONCE: usize = 32;

static SOURCE: AtomicUsize = AtomicUsize::new(0);

/// Which way bulk data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    ToService,
    FromService,
}

/// Result of a bulk transfer.
pub(crate) struct Bulk {
    /// Megabytes (10^6) a second.
    pub(crate) rate: f64,
    /// What the tunnel used per GiB.
    pub(crate) per_gib: Used,
}

/// A visitor of one tunnel.
#[derive(Clone, Copy)]
pub(crate) struct Visitor {
    /// The tunnel's public port.
    pub(crate) public: SocketAddr,
    /// The service itself, for questions about the measurement.
    pub(crate) service: SocketAddr,
}

fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let n = SOURCE.fetch_add(1, Ordering::Relaxed) % SOURCES;
    let source = Ipv4Addr::new(127, 0, 0, 2 + n as u8);
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(STUCK))?;
    socket.set_write_timeout(Some(STUCK))?;
    Ok(socket)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket()?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// One byte there and one back.
fn ping(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    let mut answer = [0];
    stream.write_all(&[byte])?;
    stream.read_exact(&mut answer)?;
    if answer[0] == byte {
        Ok(())
    } else {
        Err(io::Error::other("the echo is another byte"))
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

impl Visitor {
    /// Whether the whole path works; tried until it does.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let tried = connect(self.public).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                ping(&mut stream, b'E')
            });
            match tried {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// Bytes swallowed and connections held by the service.
    pub(crate) fn ask(&self) -> io::Result<(u64, u64)> {
        let mut stream = connect(self.service)?;
        stream.write_all(b"Q")?;
        let mut answer = [[0; 8]; 2];
        stream.read_exact(answer.as_flattened_mut())?;
        Ok((u64::from_be_bytes(answer[0]), u64::from_be_bytes(answer[1])))
    }

    /// Lets go of what the service holds.
    pub(crate) fn release(&self) -> io::Result<()> {
        ping(&mut connect(self.service)?, b'R')
    }

    /// Random data over `streams` connections for a time; only `window` counts.
    pub(crate) fn bulk(
        &self,
        way: Way,
        streams: usize,
        chunk: usize,
        warm_up: Duration,
        window: Duration,
        used: &dyn Fn() -> Used,
    ) -> io::Result<Bulk> {
        let flood = Flood::start(*self, way, streams, chunk)?;
        std::thread::sleep(warm_up);
        let (bytes, before, since) = (flood.bytes()?, used(), Instant::now());
        std::thread::sleep(window);
        let bytes = (flood.bytes()? - bytes) as f64;
        let (after, seconds) = (used(), since.elapsed().as_secs_f64());
        flood.stop()?;
        if bytes == 0.0 {
            return Err(io::Error::other("not one byte arrived"));
        }
        Ok(Bulk {
            rate: bytes / 1e6 / seconds,
            per_gib: Used {
                cpu: (after.cpu - before.cpu) / bytes * f64::from(1 << 30),
                sleeps: (after.sleeps - before.sleeps).max(0.0) / bytes * f64::from(1 << 30),
            },
        })
    }

    /// Round trips of one byte on one open connection, in microseconds.
    pub(crate) fn pings(&self, count: usize, limit: Duration) -> io::Result<Vec<f64>> {
        let mut stream = connect(self.public)?;
        for _ in 0..20 {
            ping(&mut stream, b'E')?;
        }
        let deadline = Instant::now() + limit;
        let mut times = Vec::with_capacity(count);
        while times.len() < count && Instant::now() < deadline {
            let start = Instant::now();
            ping(&mut stream, b'x')?;
            times.push(micros(start));
        }
        Ok(times)
    }

    /// The same while another connection is flooded from the service.
    pub(crate) fn pings_beside_bulk(&self, count: usize, limit: Duration) -> io::Result<Vec<f64>> {
        let flood = Flood::start(*self, Way::FromService, 1, CHUNK)?;
        std::thread::sleep(Duration::from_millis(150));
        let times = self.pings(count, limit);
        flood.stop()?;
        times
    }

    /// The first round trip on connections that have been silent for a while, in microseconds.
    pub(crate) fn pings_after_silence(&self, silence: Duration) -> io::Result<Vec<f64>> {
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = connect(self.public)?;
            ping(&mut stream, b'E')?;
            streams.push(stream);
        }
        std::thread::sleep(silence);
        let mut times = Vec::new();
        for stream in &mut streams {
            let start = Instant::now();
            ping(stream, b'x')?;
            times.push(micros(start));
        }
        Ok(times)
    }

    /// Connect and one echoed byte, one after the other with a pause between them, in microseconds.
    pub(crate) fn new_connections(
        &self,
        count: usize,
        limit: Duration,
        pause: Duration,
    ) -> io::Result<Vec<f64>> {
        let deadline = Instant::now() + limit;
        let mut times = Vec::with_capacity(count);
        while times.len() < count && Instant::now() < deadline {
            let socket = socket()?;
            let start = Instant::now();
            socket.connect(&self.public.into())?;
            let mut stream = TcpStream::from(socket);
            ping(&mut stream, b'E')?;
            times.push(micros(start));
            if !pause.is_zero() {
                drop(stream);
                std::thread::sleep(pause);
            }
        }
        Ok(times)
    }

    /// The same from [`AT_ONCE`] visitors at once: connections a second, and how many failed.
    pub(crate) fn connection_rate(&self, window: Duration) -> (f64, u64) {
        let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while start.elapsed() < window {
                        match connect(self.public).and_then(|mut s| ping(&mut s, b'E')) {
                            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                });
            }
        });
        (
            done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64(),
            failed.load(Ordering::Relaxed),
        )
    }

    /// Opens connections and keeps them. Fewer than `count` when some fail for good.
    pub(crate) fn hold(&self, count: usize, limit: Duration) -> Vec<TcpStream> {
        let (next, deadline) = (AtomicUsize::new(0), Instant::now() + limit);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    scope.spawn(|| {
                        let mut mine = Vec::new();
                        while next.fetch_add(1, Ordering::Relaxed) < count {
                            let mut tries = 0;
                            while Instant::now() < deadline && tries < 5 {
                                let opened = connect(self.public)
                                    .and_then(|mut s| ping(&mut s, b'H').map(|()| s));
                                if let Ok(stream) = opened {
                                    mine.push(stream);
                                    break;
                                }
                                tries += 1;
                                std::thread::sleep(Duration::from_millis(20));
                            }
                        }
                        mine
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_default())
                .collect()
        })
    }
}

/// Bulk data under way.
struct Flood {
    visitor: Visitor,
    way: Way,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<io::Result<()>>>,
}

impl Flood {
    fn start(visitor: Visitor, way: Way, streams: usize, chunk: usize) -> io::Result<Self> {
        let mut flood = Self {
            visitor,
            way,
            stop: Arc::default(),
            received: Arc::default(),
            threads: Vec::new(),
        };
        let random = Arc::new(match way {
            Way::ToService => random_bytes(1024 * 1024),
            Way::FromService => Vec::new(),
        });
        for _ in 0..streams {
            let mut stream = connect(visitor.public)?;
            stream.write_all(match way {
                Way::ToService => b"S",
                Way::FromService => b"D",
            })?;
            let (stop, received, random) =
                (flood.stop.clone(), flood.received.clone(), random.clone());
            flood.threads.push(std::thread::spawn(move || match way {
                Way::ToService => send(&mut stream, &random, chunk, &stop),
                Way::FromService => receive(&mut stream, chunk, &stop, &received),
            }));
        }
        Ok(flood)
    }

    /// How many bytes have arrived at the far end, whichever that is.
    fn bytes(&self) -> io::Result<u64> {
        match self.way {
            Way::ToService => Ok(self.visitor.ask()?.0),
            Way::FromService => Ok(self.received.load(Ordering::Relaxed)),
        }
    }

    fn stop(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a panic"))??;
        }
        Ok(())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(stream: &mut TcpStream, random: &[u8], chunk: usize, stop: &AtomicBool) -> io::Result<()> {
    'all: loop {
        for bytes in random.chunks(chunk) {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            stream.write_all(bytes)?;
        }
    }
    // An orderly end, waited for, so that nothing of this is under way when the next begins.
    stream.shutdown(Shutdown::Write)?;
    let _ = stream.read(&mut [0]);
    Ok(())
}

fn receive(
    stream: &mut TcpStream,
    chunk: usize,
    stop: &AtomicBool,
    received: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; chunk];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => received.fetch_add(n as u64, Ordering::Relaxed),
        };
    }
    Ok(())
}
