//! When to compress: frame by frame, by what became of the frames before.
//!
//! [`Compression::Auto`] compresses while two things hold. Sending is slow: the link is the
//! bottleneck, so the processor has time. And what was tried lately shrank. Both are looked at again
//! and again, because links and what goes over them change in the middle of a connection.

use std::io;
use std::time::{Duration, Instant};

/// When to compress what a sink sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Never.
    Off,
    /// Whenever it shrinks.
    On,
    /// When it shrinks and the link, not the processor, is the bottleneck.
    #[default]
    Auto,
}

/// The decisions of one sink.
pub(super) struct Policy {
    mode: Compression,
    /// Nanoseconds that sending a KiB has taken lately.
    slowness: u64,
    /// Frames to let pass before trying again after one that did not shrink.
    skip: u32,
    /// How many to skip the next time.
    patience: u32,
}

impl Policy {
    /// Frames below this are not worth the trouble, in bytes of payload.
    const WORTH: usize = 256;
    /// Sending slower than this counts as slow: 10 us per KiB is about 100 MB/s, where LZ4 on text
    /// (0.6 GB/s for half the bytes) begins to win.
    const SLOW: u64 = 10_000;
    /// Most frames to skip between two tries. A try costs a tenth of what sealing the frame does, and
    /// the processor waits for the link anyway; but 16 full frames are a second at 17 Mbit/s.
    const PATIENCE_MAX: u32 = 16;

    pub(super) fn new(mode: Compression) -> Self {
        Self {
            mode,
            slowness: 0,
            skip: 0,
            patience: 1,
        }
    }

    /// Whether to try the next frame, of `len` bytes. Then [`tried`](Self::tried) wants to know.
    pub(super) fn wants(&mut self, len: usize) -> bool {
        if len < Self::WORTH || self.mode == Compression::Off {
            return false;
        }
        if self.mode == Compression::On {
            return true;
        }
        if self.slowness < Self::SLOW {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// Learns what became of a frame that was tried: `sent` bytes, or no fewer than `len`.
    pub(super) fn tried(&mut self, len: usize, sent: usize) {
        if sent > len - len / 8 {
            self.skip = self.patience;
            self.patience = (self.patience * 2).min(Self::PATIENCE_MAX);
        } else {
            self.patience = 1;
        }
    }

    /// Learns how long the link took for so many bytes.
    fn sent(&mut self, bytes: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX >> 12);
        let per_kib = nanos / (bytes as u64).div_ceil(1024).max(1);
        self.slowness = (7 * self.slowness + per_kib) / 8;
    }

    /// Sends so many bytes and learns from it, unless the system took only some of them: then it
    /// did not wait, and the time says nothing.
    pub(super) fn timed(
        &mut self,
        bytes: usize,
        send: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.mode != Compression::Auto {
            return send();
        }
        let start = Instant::now();
        let n = send()?;
        if n == bytes {
            self.sent(bytes, start.elapsed());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;
    /// What 20 Mbit/s takes for a KiB, and what loopback takes.
    const NARROW: Duration = Duration::from_micros(410);
    const LOOPBACK: Duration = Duration::from_micros(1);

    /// A sink without a socket, and data that shrinks to `ratio` of its length.
    struct Sink {
        policy: Policy,
        per_kib: Duration,
        tried: usize,
    }

    impl Sink {
        fn new(mode: Compression, per_kib: Duration) -> Self {
            Self {
                policy: Policy::new(mode),
                per_kib,
                tried: 0,
            }
        }

        /// Sends frames as `SealedSink` does; how many of them were tried.
        fn send(&mut self, frames: usize, len: usize, ratio: f64) -> usize {
            let before = self.tried;
            for _ in 0..frames {
                let mut sent = len;
                if self.policy.wants(len) {
                    self.tried += 1;
                    sent = (len as f64 * ratio) as usize;
                    self.policy.tried(len, sent);
                }
                let took = self.per_kib * u32::try_from(sent.div_ceil(KIB)).unwrap();
                self.policy.sent(sent, took);
            }
            self.tried - before
        }
    }

    #[test]
    fn the_table_of_decisions() {
        use Compression::{Auto, Off, On};
        // Mode, what a KiB takes, frame length, ratio; least and most of 1,000 frames that are tried.
        let table = [
            (Off, NARROW, 64 * KIB, 0.3, 0..=0),
            (On, LOOPBACK, 64 * KIB, 1.0, 1000..=1000),
            (On, NARROW, 255, 0.3, 0..=0),
            // Text over a narrow link: all but the frame that showed that it is narrow.
            (Auto, NARROW, 64 * KIB, 0.3, 999..=999),
            (Auto, NARROW, 256, 0.3, 999..=999),
            (Auto, NARROW, 255, 0.3, 0..=0),
            // What hardly shrinks is not worth a buffer and the peer's time; it is tried now and then.
            (Auto, NARROW, 64 * KIB, 0.9, 20..=70),
            (Auto, NARROW, 64 * KIB, 1.0, 20..=70),
            // Where the link is no bottleneck nothing is tried, whatever it is.
            (Auto, LOOPBACK, 64 * KIB, 0.3, 0..=0),
            (Auto, LOOPBACK, 64 * KIB, 1.0, 0..=0),
        ];
        for (mode, per_kib, len, ratio, expected) in table {
            let tried = Sink::new(mode, per_kib).send(1000, len, ratio);
            let case = format!("{mode:?}, {per_kib:?} a KiB, {len} bytes, ratio {ratio}");
            assert!(expected.contains(&tried), "{case}: {tried} tried");
        }
    }

    #[test]
    fn text_behind_noise_is_found_soon() {
        let mut sink = Sink::new(Compression::Auto, NARROW);
        sink.send(1000, 64 * KIB, 1.0);
        let most = Policy::PATIENCE_MAX as usize;
        assert!(sink.send(100 + most, 64 * KIB, 0.3) >= 100);
        // And noise behind text ends the trying as at first.
        assert!(sink.send(100, 64 * KIB, 1.0) < 15);
    }

    #[test]
    fn small_frames_say_nothing_about_large_ones() {
        let mut sink = Sink::new(Compression::Auto, NARROW);
        sink.send(1, 64 * KIB, 0.3);
        for _ in 0..100 {
            assert_eq!(sink.send(1, 100, 1.0), 0);
            assert_eq!(sink.send(1, 64 * KIB, 0.3), 1);
        }
    }

    #[test]
    fn a_link_that_widens_or_narrows_is_noticed() {
        let mut sink = Sink::new(Compression::Auto, NARROW);
        assert_eq!(sink.send(100, 64 * KIB, 0.3), 99);
        sink.per_kib = LOOPBACK;
        assert!(sink.send(1000, 64 * KIB, 0.3) < 40);
        assert_eq!(sink.send(100, 64 * KIB, 0.3), 0);
        sink.per_kib = NARROW;
        assert_eq!(sink.send(100, 64 * KIB, 0.3), 99);
    }

    #[test]
    fn one_hiccup_is_no_narrow_link() {
        let mut sink = Sink::new(Compression::Auto, LOOPBACK);
        sink.send(10, 64 * KIB, 0.3);
        sink.policy.sent(64 * KIB, Duration::from_millis(4));
        assert!(sink.send(100, 64 * KIB, 0.3) <= 1);
    }
}
