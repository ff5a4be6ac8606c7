//! What the table stands on: waiting, content, loopback links, and a wire that can be cut.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// How long anything may take that has no bound of its own; reaching it is a failure.
/// Wine needs more of it: every call that is not done at once is a conversation with its server.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(windows) { 60 } else { 20 });

/// Waits for a condition.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// Waits for a condition that has a bound.
pub(crate) fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Waits until a counter has stood still for 300 ms: whoever moves it is blocked.
pub(crate) fn stands_still(what: &str, mut counter: impl FnMut() -> u64) {
    let (mut seen, mut since) = (counter(), Instant::now());
    eventually(what, || {
        let now = counter();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(300)
    });
}

/// What a socket may hold, in bytes. Left to themselves the kernel's buffers grow to several MiB
/// each, and the rows that fill hundreds would put the whole machine short of TCP memory.
const SOCKET_BUFFER: usize = 128 * 1024;

/// Two ends of a TCP connection over loopback.
pub(crate) fn link() -> (TcpStream, TcpStream) {
    let made = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
        let one = TcpStream::connect(listener.local_addr()?)?;
        let (two, _) = listener.accept()?;
        for end in [&one, &two] {
            end.set_nodelay(true)?;
            SockRef::from(end).set_recv_buffer_size(SOCKET_BUFFER)?;
            SockRef::from(end).set_send_buffer_size(SOCKET_BUFFER)?;
        }
        Ok((one, two))
    });
    made.expect("a loopback connection; the table needs about 4,000 descriptors (ulimit -n)")
}

/// One read of a blocking socket that is told of a reset, and waits for no longer than this (`WouldBlock`).
///
/// On Unix that is what a read is. Wine tells a reset to whoever waits, and nothing to the read that comes after it, so
/// there the waiting is done apart, as our own sockets do it; Windows allows both.
pub(crate) fn receive(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    limit: Duration,
) -> io::Result<usize> {
    #[cfg(windows)]
    {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        if poll(&mut fds, Some(&limit.try_into().unwrap()))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let was_reset = fds[0].revents().contains(PollFlags::ERR);
        match stream.read(buffer) {
            Ok(0) if was_reset => Err(io::ErrorKind::ConnectionReset.into()),
            other => other,
        }
    }
    #[cfg(unix)]
    {
        if stream.read_timeout()? != Some(limit) {
            stream.set_read_timeout(Some(limit))?;
        }
        stream.read(buffer)
    }
}

/// A small generator (splitmix64): the same numbers for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const BLOCK: usize = 4096;

/// An endless byte stream that no piece of fits elsewhere in it; half of it compresses.
pub(crate) struct Content {
    random: Random,
    block: Vec<u8>,
    at: usize,
    /// Bytes made or checked so far.
    pub(crate) offset: u64,
}

impl Content {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            block: vec![0; BLOCK],
            at: BLOCK,
            offset: 0,
        }
    }

    /// The next bytes, at most `max`.
    fn next(&mut self, max: usize) -> &[u8] {
        if self.at == BLOCK {
            let (mixed, flat) = self.block.split_at_mut(BLOCK / 2);
            for word in mixed.chunks_exact_mut(8) {
                word.copy_from_slice(&self.random.next().to_le_bytes());
            }
            flat.fill(self.random.next() as u8);
            self.at = 0;
        }
        let n = max.min(BLOCK - self.at);
        self.at += n;
        self.offset += n as u64;
        &self.block[self.at - n..self.at]
    }

    pub(crate) fn fill(&mut self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let bytes = self.next(buffer.len());
            let (now, later) = buffer.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            buffer = later;
        }
    }

    pub(crate) fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.fill(&mut bytes);
        bytes
    }

    /// Holds received bytes against what must come next.
    pub(crate) fn check(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let before = self.offset;
            let expected = self.next(bytes.len());
            let (now, later) = bytes.split_at(expected.len());
            if now != expected {
                let wrong = now.iter().zip(expected).position(|(a, b)| a != b);
                panic!("wrong byte at {}", before + wrong.unwrap_or(0) as u64);
            }
            bytes = later;
        }
    }
}

/// How a wire is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// By a reset to both ends.
    Reset,
    /// By an orderly TCP end to both ends, which nobody has meant.
    Close,
}

/// What a lane does to one frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trick {
    Replay,
    Swap,
    Drop,
}

/// In which pieces bytes are delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Pieces {
    #[default]
    AsTheyCome,
    Single,
    /// 1 to this many bytes, by the seed.
    Random(u64, u64),
}

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) pieces: Pieces,
    /// Flip this bit of the byte at this offset.
    pub(crate) flip: Option<(u64, u8)>,
    /// Cut the wire after so many bytes.
    pub(crate) cut: Option<(u64, Cut)>,
    /// Meddle with the frame of this number.
    pub(crate) trick: Option<(usize, Trick)>,
}

#[derive(Default)]
struct Lane {
    plan: Mutex<Plan>,
    taken: AtomicU64,
    passed: AtomicU64,
}

type Ends = [Arc<TcpStream>; 2];

/// A TCP relay between two channel ends that passes everything on, halves included, until told
/// otherwise. Lane 0 goes from left to right.
pub(crate) struct Wire(Arc<Shared>);

struct Shared {
    lanes: [Lane; 2],
    ends: Mutex<Option<Ends>>,
    is_cut: AtomicBool,
    /// Ends that have got their FIN.
    finished: [AtomicBool; 2],
    /// Lanes that have ended.
    over: AtomicU64,
}

impl Wire {
    /// Joins the wire's own ends of two links.
    pub(crate) fn new(left: TcpStream, right: TcpStream, plans: [Plan; 2]) -> Self {
        // A blocked write has to look whether it is time to go.
        for end in [&left, &right] {
            end.set_write_timeout(Some(Duration::from_millis(20)))
                .unwrap();
        }
        let [there, back] = plans;
        let lane = |plan| Lane {
            plan: Mutex::new(plan),
            taken: AtomicU64::new(0),
            passed: AtomicU64::new(0),
        };
        let ends = [Arc::new(left), Arc::new(right)];
        let shared = Arc::new(Shared {
            lanes: [lane(there), lane(back)],
            ends: Mutex::new(Some(ends.clone())),
            is_cut: AtomicBool::new(false),
            finished: [AtomicBool::new(false), AtomicBool::new(false)],
            over: AtomicU64::new(0),
        });
        for lane in 0..2 {
            let (shared, ends) = (shared.clone(), ends.clone());
            thread::spawn(move || shared.run(lane, &ends));
        }
        Self(shared)
    }

    /// Bytes taken up from left to right (0) or back (1); a plan takes effect behind them.
    pub(crate) fn taken(&self, lane: usize) -> u64 {
        self.0.lanes[lane].taken.load(Ordering::Acquire)
    }

    /// Bytes passed on.
    pub(crate) fn passed(&self, lane: usize) -> u64 {
        self.0.lanes[lane].passed.load(Ordering::Acquire)
    }

    /// Changes what happens from here on.
    pub(crate) fn plan(&self, lane: usize, change: impl FnOnce(&mut Plan)) {
        change(&mut self.0.lanes[lane].plan.lock().unwrap());
    }

    pub(crate) fn cut(&self, how: Cut) {
        self.0.cut(how);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.cut(Cut::Reset);
    }
}

impl Shared {
    fn cut(&self, how: Cut) {
        let Some(ends) = self.ends.lock().unwrap().take() else {
            return;
        };
        self.is_cut.store(true, Ordering::Release);
        for end in &ends {
            match how {
                Cut::Reset => {
                    let _ = SockRef::from(&**end).set_linger(Some(Duration::ZERO));
                    // Wakes the lane that reads, without a FIN.
                    let _ = end.shutdown(Shutdown::Read);
                }
                Cut::Close => {
                    let _ = end.shutdown(Shutdown::Both);
                }
            }
        }
    }

    fn run(&self, lane: usize, ends: &Ends) {
        let (from, to) = (&ends[lane], &ends[1 - lane]);
        match self.pass(lane, from, to) {
            Ok(()) if self.is_cut.load(Ordering::Acquire) => {}
            // A half end is passed on as such.
            Ok(()) => {
                self.finished[1 - lane].store(true, Ordering::Release);
                let _ = to.shutdown(Shutdown::Write);
            }
            Err(_) => self.cut(Cut::Reset),
        }
        // Both lanes ended: the wire closes as its ends did.
        if self.over.fetch_add(1, Ordering::AcqRel) == 1 {
            self.ends.lock().unwrap().take();
        }
    }

    #[cfg(unix)]
    fn read(&self, mut from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        from.read(buffer)
    }

    /// On Windows a cut wakes no read, so it has to look.
    #[cfg(windows)]
    fn read(&self, from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match receive(from, buffer, Duration::from_millis(20)) {
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        && !self.is_cut.load(Ordering::Acquire) => {}
                other => return other,
            }
        }
    }

    fn pass(&self, lane: usize, from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let (mut pending, mut frames, mut held) = (Vec::new(), 0, None);
        loop {
            let n = self.read(from, &mut buffer)?;
            if n == 0 {
                // The other lane may have been told of a reset in our place.
                let gone = from.peer_addr().is_err();
                return if gone && !self.finished[lane].load(Ordering::Acquire) {
                    Err(io::ErrorKind::ConnectionReset.into())
                } else {
                    Ok(())
                };
            }
            let plan = *self.lanes[lane].plan.lock().unwrap();
            let Some((at, trick)) = plan.trick else {
                self.deliver(lane, &mut buffer[..n], to)?;
                continue;
            };
            pending.extend_from_slice(&buffer[..n]);
            while let Some(mut frame) = split_frame(&mut pending) {
                match (trick, frames == at) {
                    (Trick::Drop, true) => {}
                    (Trick::Swap, true) => held = Some(frame),
                    (Trick::Replay, true) => {
                        self.deliver(lane, &mut frame.clone(), to)?;
                        self.deliver(lane, &mut frame, to)?;
                    }
                    (_, _) => {
                        self.deliver(lane, &mut frame, to)?;
                        if let Some(mut held) = held.take() {
                            self.deliver(lane, &mut held, to)?;
                        }
                    }
                }
                frames += 1;
            }
        }
    }

    fn deliver(&self, lane: usize, bytes: &mut [u8], to: &TcpStream) -> io::Result<()> {
        let lane = &self.lanes[lane];
        let plan = *lane.plan.lock().unwrap();
        let start = lane.taken.load(Ordering::Relaxed);
        let end = start + bytes.len() as u64;
        lane.taken.store(end, Ordering::Release);
        if let Some((at, bit)) = plan.flip
            && (start..end).contains(&at)
        {
            bytes[(at - start) as usize] ^= 1 << bit;
        }
        let cut = plan.cut.filter(|(at, _)| *at <= end);
        let mut left = cut.map_or(&bytes[..], |(at, _)| {
            &bytes[..at.saturating_sub(start) as usize]
        });
        let mut random = match plan.pieces {
            Pieces::Random(seed, _) => Random(seed ^ start),
            _ => Random(0),
        };
        while !left.is_empty() {
            let n = match plan.pieces {
                Pieces::AsTheyCome => left.len(),
                Pieces::Single => 1,
                Pieces::Random(_, most) => left.len().min(1 + random.below(most) as usize),
            };
            left = &left[self.write(&left[..n], to)?..];
        }
        lane.passed.store(end, Ordering::Release);
        if let Some((_, how)) = cut {
            self.cut(how);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], mut to: &TcpStream) -> io::Result<usize> {
        loop {
            match to.write(bytes) {
                Err(e)
                    if matches!(
                        e.kind(),
                        // What Windows calls it.
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) && !self.is_cut.load(Ordering::Acquire) => {}
                other => return other,
            }
        }
    }
}

fn split_frame(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = u32::from_be_bytes(*pending.first_chunk::<4>()?) as usize;
    (pending.len() >= 4 + len).then(|| pending.drain(..4 + len).collect())
}
