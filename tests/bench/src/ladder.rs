//! Our own layers, one upon the other, so that a slowdown names its layer.
//!
//! ```text
//!  AEAD          seal and open in place, nothing else
//!  + frame       the same through wire::frame
//!  + socket      one thread seals and writes, one reads and opens, loopback between them
//!  + relay       visitor ─> pump seals ─> loopback ─> pump opens ─> service, in this process
//!  whole tunnel  visitor ─> server program ─> client program ─> service
//!
//!  plain relay   visitor ─> pump ─> loopback ─> pump ─> service: the wall, without any cipher
//! ```
//!
//! CPU seconds are those of the layer alone: of the calling thread, of both threads, of the pumps, of
//! the two programs. Filling and emptying the ends is not counted.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::sealed::{Compression, End, sealed};
use minitcptunnel_common::duplex::{Duplex, tcp};
use minitcptunnel_common::metrics::Traffic;
use minitcptunnel_common::pool::Pool;
use minitcptunnel_common::wire::CIPHERTEXT_MAX;
use minitcptunnel_common::wire::MESSAGE_MAX;
use minitcptunnel_common::wire::frame::{HEAD, TAIL, frame_len};
use minitcptunnel_common::wire::message::Kind;

use crate::load::Way;
use crate::options::Options;
use crate::process::{self, Folder};
use crate::report::grid;
use crate::run::give_up_after;
use crate::service::random_bytes;
use crate::stats::{median, spread};
use crate::steps::{Hellos, keys};
use crate::targets;

const SIZES: [usize; 4] = [1024, 16 * 1024, 64 * 1024, 256 * 1024];
const GIB: f64 = (1 << 30) as f64;

/// One figure: bytes a second and CPU seconds per GiB.
struct Figure {
    rate: f64,
    cpu: f64,
}

type Layer<'a> = (
    &'static str,
    Box<dyn Fn(usize, Duration) -> io::Result<Figure> + 'a>,
);

fn layer<'a>(
    name: &'static str,
    measure: impl Fn(usize, Duration) -> io::Result<Figure> + 'a,
) -> Layer<'a> {
    (name, Box::new(measure))
}

pub(crate) fn run(options: &Options) -> io::Result<()> {
    give_up_after(options.limit);
    let folder = Folder::new()?;
    let tunnel;
    let mut layers = vec![
        layer("AEAD: seal", |size, time| Ok(aead(size, time, false))),
        layer("AEAD: seal + open", |size, time| Ok(aead(size, time, true))),
        layer("+ frame", frame),
    ];
    if options.ciphers {
        layers.push(layer("orion: seal + open", orion));
    } else {
        tunnel = targets::ours(&folder, options)?;
        let whole = |size, time: Duration| {
            let pids = tunnel.pids();
            let used = || process::used(&pids);
            let bulk = (tunnel.visitor).bulk(Way::ToService, 1, size, time / 4, time, &used)?;
            Ok(Figure {
                rate: bulk.rate * 1e6,
                cpu: bulk.per_gib.cpu,
            })
        };
        layers.extend([
            layer("+ socket", |size, time| socket(size, time, true)),
            layer("+ relay", |size, time| relay(size, time, true)),
            layer("whole tunnel", whole),
            layer("plain socket", |size, time| socket(size, time, false)),
            layer("plain relay", |size, time| relay(size, time, false)),
        ]);
    }
    // Interleaved, so that what else the machine does strikes all alike.
    let mut samples = vec![vec![(Vec::new(), Vec::new()); SIZES.len()]; layers.len()];
    for round in 1..=options.rounds {
        eprintln!("bench: ladder, round {round} of {}", options.rounds);
        for (i, (name, layer)) in layers.iter().enumerate() {
            for (j, size) in SIZES.iter().enumerate() {
                match layer(*size, options.window.min(Duration::from_secs(1))) {
                    Ok(figure) => {
                        samples[i][j].0.push(figure.rate / 1e9);
                        samples[i][j].1.push(figure.cpu);
                    }
                    Err(e) => eprintln!("bench: {name} at {size}: {e}"),
                }
            }
        }
    }
    let mut heading = vec![String::new()];
    for size in SIZES {
        heading.push(format!("{} KiB GB/s", size / 1024));
        heading.push("s/GiB".to_owned());
    }
    let mut lines = vec![heading];
    for ((name, _), sizes) in layers.iter().zip(&samples) {
        let mut line = vec![(*name).to_owned()];
        for (rate, cpu) in sizes {
            line.push(format!("{:.2} ±{:.0}%", median(rate), spread(rate) * 100.0));
            line.push(format!("{:.2} ±{:.0}%", median(cpu), spread(cpu) * 100.0));
        }
        lines.push(line);
    }
    if options.ciphers {
        println!("\nThe size is that of a frame.\n");
        grid(&lines);
        return Ok(());
    }
    println!(
        "\nThe size is that of a frame for AEAD, frame and socket, that of the visitor's writes above.\n"
    );
    grid(&lines);
    handshake(options.rounds);
    Ok(())
}

/// The arithmetic of one data channel's hellos, in microseconds.
fn handshake(rounds: usize) {
    let hellos = Hellos::new();
    let mut parts = [const { Vec::new() }; 3];
    for _ in 0..rounds * 200 {
        let start = Instant::now();
        let (initiator, hello) = hellos.begin();
        let begun = Instant::now();
        let answer = hellos.answer(&hello);
        let answered = Instant::now();
        Hellos::finish(initiator, &answer);
        let ends = [begun - start, answered - begun, answered.elapsed()];
        for (part, time) in parts.iter_mut().zip(ends) {
            part.push(time.as_secs_f64() * 1e6);
        }
    }
    let [begin, answer, end] = parts.map(|times| median(&times));
    println!(
        "\nHandshake arithmetic: client {begin:.0} + {end:.0} us, server {answer:.0} us, together {:.0} us",
        begin + answer + end
    );
}

/// CPU seconds of the calling thread.
fn own_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e9
}

/// Repeats `step`, which moves `size` bytes, for a while.
fn repeat(size: usize, time: Duration, mut step: impl FnMut()) -> Figure {
    for _ in 0..16 {
        step();
    }
    let (start, used, mut bytes) = (Instant::now(), own_cpu(), 0usize);
    while start.elapsed() < time {
        for _ in 0..(1 << 20) / size {
            step();
        }
        bytes += (1 << 20) / size * size;
    }
    Figure {
        rate: bytes as f64 / start.elapsed().as_secs_f64(),
        cpu: (own_cpu() - used) / bytes as f64 * GIB,
    }
}

/// Nonces that never come twice.
fn nonces() -> impl FnMut() -> [u8; 12] {
    let mut counter = 0u64;
    move || {
        counter += 1;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

fn aead(size: usize, time: Duration, open: bool) -> Figure {
    let cipher = ChaCha20Poly1305::new(&[7; 32].into());
    let (mut buffer, mut nonces) = (random_bytes(size), nonces());
    // Half the time is plenty: nothing here waits.
    repeat(size, time / 2, || {
        let nonce = nonces().into();
        let tag = cipher
            .encrypt_inout_detached(&nonce, &[], buffer.as_mut_slice().into())
            .expect("short enough");
        if open {
            cipher
                .decrypt_inout_detached(&nonce, &[], buffer.as_mut_slice().into(), &tag)
                .expect("what was sealed opens");
        }
    })
}

/// The other implementation among our dependencies, which has no code for any instruction set.
fn orion(size: usize, time: Duration) -> io::Result<Figure> {
    use orion::hazardous::aead::chacha20poly1305::{ChaCha20Poly1305, Nonce, SecretKey};
    let key = SecretKey::from([7; 32]);
    let (mut buffer, mut nonces) = (random_bytes(size), nonces());
    Ok(repeat(size, time / 2, || {
        let nonce = Nonce::from(nonces());
        let tag = ChaCha20Poly1305::seal_inplace(&key, &nonce, None, &mut buffer);
        let tag = tag.expect("short enough");
        ChaCha20Poly1305::open_inplace(&key, &nonce, &tag, None, &mut buffer)
            .expect("what was sealed opens");
    }))
}

fn frame(size: usize, time: Duration) -> io::Result<Figure> {
    let (mut sealer, mut opener) = keys();
    let mut buffer = random_bytes(HEAD + size + TAIL);
    let mut spare = Vec::new();
    Ok(repeat(size, time / 2, || {
        let n = sealer
            .seal_stored(&mut buffer, Kind::Data, 0, size)
            .expect("it fits");
        opener
            .open(&mut buffer[4..n], &mut spare, MESSAGE_MAX)
            .expect("what was sealed opens");
    }))
}

pub(crate) fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// Counts what arrives, and the CPU of the threads that say so, during a window.
#[derive(Default)]
struct Window {
    stop: AtomicBool,
    bytes: AtomicU64,
}

impl Window {
    fn measure(&self, time: Duration, cpu: impl Fn() -> f64) -> Figure {
        std::thread::sleep(time / 4);
        let (start, used, bytes) = (Instant::now(), cpu(), self.bytes.load(Ordering::Relaxed));
        std::thread::sleep(time);
        let bytes = (self.bytes.load(Ordering::Relaxed) - bytes) as f64;
        let figure = Figure {
            rate: bytes / start.elapsed().as_secs_f64(),
            cpu: (cpu() - used) / bytes * GIB,
        };
        self.stop.store(true, Ordering::Relaxed);
        figure
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, n: usize) {
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// One frame after the other from thread to thread over loopback, sealed or plain.
fn socket(size: usize, time: Duration, seal: bool) -> io::Result<Figure> {
    let (mut near, mut far) = connected()?;
    let window = Window::default();
    std::thread::scope(|scope| {
        named(scope, "near", || {
            let (mut sealer, _) = keys();
            let mut buffer = random_bytes(HEAD + size + TAIL);
            while !window.stopped() {
                let n = if seal {
                    sealer
                        .seal_stored(&mut buffer, Kind::Data, 0, size)
                        .expect("it fits")
                } else {
                    size
                };
                near.write_all(&buffer[..n])?;
            }
            near.shutdown(std::net::Shutdown::Both)
        })?;
        named(scope, "far", || {
            let (_, mut opener) = keys();
            let (mut buffer, mut spare) = (vec![0; HEAD + size + TAIL], Vec::new());
            loop {
                if !seal {
                    match far.read(&mut buffer[..size])? {
                        0 => return Ok(()),
                        n => window.add(n),
                    }
                    continue;
                }
                // All frames are of one length, so a frame is read with one call as a rule.
                far.read_exact(&mut buffer)?;
                let len = frame_len(&buffer, CIPHERTEXT_MAX).map_err(io::Error::other)?;
                let len = len.expect("the length is there");
                opener
                    .open(&mut buffer[4..4 + len], &mut spare, MESSAGE_MAX)
                    .map_err(io::Error::other)?;
                window.add(size);
            }
        })?;
        Ok(window.measure(time, || {
            process::own_threads_cpu("near") + process::own_threads_cpu("far")
        }))
    })
}

fn named<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> io::Result<()> + Send + 'scope,
) -> io::Result<()> {
    // What it returns says no more than that the other end has stopped.
    let run = move || drop(work());
    std::thread::Builder::new()
        .name(name.into())
        .spawn_scoped(scope, run)
        .map(drop)
}

/// Two relays in series with a loopback connection between them, sealed or plain.
fn relay(size: usize, time: Duration, seal: bool) -> io::Result<Figure> {
    let (mut visitor, external) = connected()?;
    let (left, right) = connected()?;
    let (local, mut service) = connected()?;
    let channel = |stream: TcpStream| -> io::Result<Duplex> {
        let (sealer, opener) = keys();
        if seal {
            sealed(
                stream,
                sealer,
                opener,
                Vec::new(),
                End::Fin,
                Compression::Auto,
                &Ledger::default(),
            )
        } else {
            tcp(stream)
        }
    };
    let pool = Pool::new(2)?;
    for (a, b) in [
        (tcp(external)?, channel(left)?),
        (channel(right)?, tcp(local)?),
    ] {
        let permit = pool.admit().map_err(io::Error::other)?;
        pool.start(permit, 0, a, b, Arc::new(Traffic::default()), |_| {})
            .map_err(io::Error::other)?;
    }
    let window = Window::default();
    let random = random_bytes(1 << 20);
    let figure = std::thread::scope(|scope| {
        named(scope, "near", || {
            'all: loop {
                for bytes in random.chunks(size) {
                    if window.stopped() {
                        break 'all;
                    }
                    visitor.write_all(bytes)?;
                }
            }
            visitor.shutdown(std::net::Shutdown::Write)
        })?;
        named(scope, "far", || {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match service.read(&mut buffer)? {
                    0 => return service.shutdown(std::net::Shutdown::Both),
                    n => window.add(n),
                }
            }
        })?;
        io::Result::Ok(window.measure(time, || process::own_threads_cpu("worker")))
    })?;
    pool.drain(Instant::now() + Duration::from_secs(5));
    Ok(figure)
}
