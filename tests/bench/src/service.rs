//! The local service that every tunnel leads to, in a process of its own.
//!
//! The first byte of a connection says what it wants:
//!
//! ```text
//!  E  echo everything, this byte first       S  swallow everything until the end
//!  H  echo this byte, then hold the          D  send random bytes until it breaks
//!     connection without a thread            Q  how many bytes were swallowed, how many
//!                                               connections are held: two u64
//!                                            R  let go of what is held; answers one byte
//! ```
//!
//! Threads block in `accept` on one listener and serve what they get themselves: no hand-over.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// More than the load generator ever has in work at once.
const THREADS: usize = 64;
const STACK: usize = 64 * 1024;
/// What is read and written at once, in bytes.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Random bytes to send over and over; far beyond the window of any compression.
const RANDOM: usize = 1024 * 1024;

#[derive(Default)]
struct Shared {
    swallowed: AtomicU64,
    held: Mutex<Vec<TcpStream>>,
    random: Vec<u8>,
}

/// Listens, says "port N" and serves until it is killed.
pub(crate) fn run() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // The backlog that std asks for is short for bursts.
    socket2::SockRef::from(&listener).listen(4096)?;
    let shared = Arc::new(Shared {
        random: random_bytes(RANDOM),
        ..Shared::default()
    });
    println!("port {}", listener.local_addr()?.port());
    let listener = Arc::new(listener);
    let mut threads = Vec::new();
    for _ in 0..THREADS {
        let (listener, shared) = (listener.clone(), shared.clone());
        threads.push(
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || accept(&listener, &shared))?,
        );
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn accept(listener: &TcpListener, shared: &Shared) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match listener.accept() {
            // What breaks here is the load generator's to notice.
            Ok((stream, _)) => drop(serve(stream, shared, &mut buffer)),
            // Out of descriptors: they come back when others are done.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared, buffer: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    match first[0] {
        b'E' => {
            stream.write_all(&first)?;
            loop {
                let n = stream.read(buffer)?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..n])?;
            }
        }
        b'H' => {
            stream.write_all(&first)?;
            held(shared).push(stream);
        }
        b'S' => loop {
            let n = stream.read(buffer)?;
            if n == 0 {
                return Ok(());
            }
            shared.swallowed.fetch_add(n as u64, Ordering::Relaxed);
        },
        b'D' => loop {
            for chunk in shared.random.chunks(CHUNK) {
                stream.write_all(chunk)?;
            }
        },
        b'Q' => {
            let swallowed = shared.swallowed.load(Ordering::Relaxed);
            let held = held(shared).len() as u64;
            stream.write_all(&swallowed.to_be_bytes())?;
            stream.write_all(&held.to_be_bytes())?;
        }
        b'R' => {
            held(shared).clear();
            stream.write_all(&first)?;
        }
        _ => {}
    }
    Ok(())
}

fn held(shared: &Shared) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    shared.held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that no compression shrinks (xorshift64*; nothing here needs to be secret).
pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
