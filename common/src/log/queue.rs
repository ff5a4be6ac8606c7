//! From any thread to the one that writes: bounded, and never a wait.
//!
//! What is lost is counted in two places. `Shared::dropped` are lines that found no room; the next line that
//! does carries their number, so the gap is reported where it is. `Writer::owed` are lines that could not be
//! written, and all numbers that could not yet be reported.
//!
//! stdout and the log file have a queue and a thread each: neither waits for the other, nor loses lines by its
//! fault. What goes wrong with one is also said in the other, by [`News`]:
//!
//! ```text
//!  line of a thread --> Writer --fails for the first time, or works again--> News of the other --> its Writer
//!                                                                            (at most two)        |
//!                                            fails: kept, and nothing else happens  <-------------/
//! ```
//!
//! News cause no news: writing them changes nothing that is told, whether it works or not. So two outputs that fail
//! cannot tell each other for ever. Nobody waits for them either; they are no lines of the queue, so that a full one
//! does not cost them, and of many only the newest are kept.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use ::log::Level;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::file::LogFile;
use super::line::{self, Style};
use crate::codes::Code;

/// Between attempts on a stdout that is non-blocking and full (some supervisors set it so). Performance.
const PAUSE: Duration = Duration::from_millis(10);
/// The news that are kept: that the other output fails, and that it works again, in whichever order.
const NEWS: usize = 2;

/// What may be waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Lines in the queue.
    pub(super) lines: usize,
    /// Bytes in the queue and in the hand of the writer.
    pub(super) bytes: usize,
    /// How often to try to report losses when nothing else is being logged.
    pub(super) retry: Duration,
}

impl Default for Limits {
    /// Performance: some seconds of a busy program at DEBUG, at a price of two megabytes if nobody reads.
    fn default() -> Self {
        Self {
            lines: 8192,
            bytes: 2 * 1024 * 1024,
            retry: Duration::from_secs(5),
        }
    }
}

enum Item {
    Line {
        text: Box<str>,
        /// Lines dropped between the one before and this one.
        lost_before: u64,
    },
    /// Answer when all before is done.
    Flush(Sender<()>),
    /// Look at the counter of dropped lines, and for news.
    Nudge,
    /// Open the log file anew.
    Reopen,
}

/// Where lines go.
pub(super) enum Destination {
    /// To whoever reads our stdout.
    Stdout(Box<dyn Write + Send>),
    /// To the log file.
    File(LogFile),
}

impl Destination {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Stdout(out) => out,
            Self::File(file) => file,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout(_) => f.write_str("stdout"),
            Self::File(file) => write!(f, "{}", file.path().display()),
        }
    }
}

/// What a queue ends in.
pub(super) struct Output {
    /// Where lines go.
    pub(super) to: Destination,
    /// What our own reports look like.
    pub(super) style: Style,
    /// Where it is said as well that this output fails, and that it works again.
    pub(super) elsewhere: Option<Neighbour>,
}

struct Shared {
    limits: Limits,
    lines: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicU64,
    news: News,
}

/// What the other output has to say, the oldest first. Locked to put in or take out, never while anything is written.
#[derive(Default)]
struct News(Mutex<VecDeque<String>>);

impl News {
    /// Puts one in, in place of the oldest if there are too many. Says whether there was none before.
    fn put(&self, text: String) -> bool {
        // A panic elsewhere leaves a list that is as good as before.
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = news.is_empty();
        news.push_back(text);
        if news.len() > NEWS {
            news.pop_front();
        }
        first
    }

    fn take(&self) -> Option<String> {
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        news.pop_front()
    }

    /// Puts back what was taken, unless newer ones have its place.
    fn put_back(&self, text: String) {
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if news.len() < NEWS {
            news.push_front(text);
        }
    }

    fn is_empty(&self) -> bool {
        let news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        news.is_empty()
    }
}

impl Shared {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            news: News::default(),
        }
    }

    /// Takes room for a line of `size` bytes, if there is any.
    fn reserve(&self, size: usize) -> bool {
        let take = |taken: &AtomicUsize, more: usize, limit: usize| {
            taken
                .fetch_update(SeqCst, SeqCst, |taken| {
                    taken.checked_add(more).filter(|&sum| sum <= limit)
                })
                .is_ok()
        };
        if !take(&self.lines, 1, self.limits.lines) {
            return false;
        }
        let fits = take(&self.bytes, size, self.limits.bytes);
        if !fits {
            self.lines.fetch_sub(1, SeqCst);
        }
        fits
    }

    /// The line has left the queue: its place is free, its bytes are still in hand.
    fn taken(&self) {
        self.lines.fetch_sub(1, SeqCst);
    }

    fn release(&self, size: usize) {
        self.bytes.fetch_sub(size, SeqCst);
    }
}

/// The end that takes lines.
#[derive(Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    items: Arc<Sender<Item>>,
}

/// The other end of a [`Queue`].
pub(super) struct Outlet {
    shared: Arc<Shared>,
    items: Receiver<Item>,
}

/// A queue that nobody writes out yet. Two that are to hear of each other must be there before either of their outputs.
pub(super) fn queue(limits: Limits) -> (Queue, Outlet) {
    // Bounded by what `Shared` counts. A bounded channel would take the room for all lines at once, a third of a
    // megabyte that an idle program holds for nothing.
    let (sender, items) = unbounded();
    let shared = Arc::new(Shared::new(limits));
    let queue = Queue {
        shared: Arc::clone(&shared),
        items: Arc::new(sender),
    };
    (queue, Outlet { shared, items })
}

impl Outlet {
    fn writer(self, output: Output) -> (Writer, Receiver<Item>) {
        let writer = Writer {
            output,
            retry: self.shared.limits.retry,
            shared: self.shared,
            owed: Owed::default(),
            torn: false,
            failing: false,
        };
        (writer, self.items)
    }

    /// Starts the thread that writes. It ends when the last `Queue` is dropped and everything is written.
    pub(super) fn start(self, output: Output) -> io::Result<JoinHandle<()>> {
        let name = match output.to {
            Destination::Stdout(_) => "log",
            Destination::File(_) => "log-file",
        };
        let (writer, items) = self.writer(output);
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 * 1024)
            .spawn(move || writer.run(&items))
    }
}

/// A queue as the other output knows it: good for news alone, and no reason for its thread to go on.
#[derive(Clone)]
pub(super) struct Neighbour {
    shared: Arc<Shared>,
    items: Weak<Sender<Item>>,
}

impl Neighbour {
    /// Returns at once.
    fn tell(&self, news: String) {
        // One nudge is enough for all that it finds, so that they cannot pile up before a writer that hangs.
        if self.shared.news.put(news)
            && let Some(items) = self.items.upgrade()
        {
            // If the writer is gone, nobody is left to hear them.
            let _ = items.send(Item::Nudge);
        }
    }
}

impl Queue {
    /// For the output that shall tell this one how it fares.
    pub(super) fn neighbour(&self) -> Neighbour {
        Neighbour {
            shared: Arc::clone(&self.shared),
            items: Arc::downgrade(&self.items),
        }
    }

    /// Queues a line (with its line end), or drops and counts it. Returns at once in either case.
    pub(super) fn offer(&self, text: String) {
        let size = text.len();
        let mut lost = 1;
        if self.shared.reserve(size) {
            let lost_before = self.shared.dropped.swap(0, SeqCst);
            let item = Item::Line {
                text: text.into_boxed_str(),
                lost_before,
            };
            if self.items.send(item).is_ok() {
                return;
            }
            // The writer is gone.
            self.shared.taken();
            self.shared.release(size);
            lost += lost_before;
        }
        self.shared.dropped.fetch_add(lost, SeqCst);
        // The writer reports when it has emptied the queue. If it was faster and already waits for the next
        // line, which may be long in coming, it must be told.
        if self.items.is_empty() {
            // If the writer is gone, nobody is left to report.
            let _ = self.items.send(Item::Nudge);
        }
    }

    /// Has the log file opened anew, after the lines that are queued.
    pub(super) fn reopen(&self) {
        // If this fails, the file is still found moved by the next look at its name.
        let _ = self.items.send(Item::Reopen);
    }

    /// Waits until all that was offered before is done with; `false` if it was not before `deadline`.
    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let (ack, done) = bounded(1);
        self.items.send(Item::Flush(ack)).is_ok() && done.recv_deadline(deadline).is_ok()
    }
}

/// Losses that are not reported yet.
#[derive(Default)]
struct Owed {
    /// Lines that found no room in the queue.
    dropped: u64,
    /// Lines that could not be written.
    failed: u64,
    /// Why the last attempt to write failed; there whenever `failed` is not zero.
    error: Option<io::Error>,
}

/// What the thread works with.
struct Writer {
    output: Output,
    retry: Duration,
    shared: Arc<Shared>,
    owed: Owed,
    /// The output ends in the middle of a line.
    torn: bool,
    /// The last attempt to write failed.
    failing: bool,
}

impl Writer {
    fn run(mut self, items: &Receiver<Item>) {
        loop {
            let item = if self.owes() || !self.shared.news.is_empty() {
                match items.recv_timeout(self.retry) {
                    Ok(item) => item,
                    Err(RecvTimeoutError::Timeout) => {
                        self.collect();
                        self.pass_on();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match items.recv() {
                    Ok(item) => item,
                    Err(_) => break,
                }
            };
            match item {
                Item::Line { text, lost_before } => {
                    self.shared.taken();
                    self.owed.dropped += lost_before;
                    self.line(text.as_bytes());
                    self.shared.release(text.len());
                }
                Item::Flush(ack) => {
                    self.collect();
                    self.pass_on();
                    // Whoever asked may have given up.
                    let _ = ack.send(());
                }
                Item::Nudge => {}
                Item::Reopen => self.reopen(),
            }
            if items.is_empty() {
                self.collect();
            }
            self.pass_on();
        }
        self.collect();
        self.pass_on();
    }

    /// Reports lines dropped since the last that was queued.
    fn collect(&mut self) {
        self.owed.dropped += self.shared.dropped.swap(0, SeqCst);
        if let Err(error) = self.settle() {
            self.failed(error);
        }
    }

    fn owes(&self) -> bool {
        self.owed.dropped > 0 || self.owed.failed > 0
    }

    /// Writes a line, after what there is to report; a line that cannot be written is one more to report.
    fn line(&mut self, text: &[u8]) {
        let written = self.settle().and_then(|()| self.begin_line());
        match written.and_then(|()| self.put(text)) {
            Ok(()) => self.works_again(0),
            Err(error) => {
                self.failed(error);
                self.owed.failed += 1;
            }
        }
    }

    fn reopen(&mut self) {
        // If it fails, the next line will, too, and is counted then.
        if let Destination::File(file) = &mut self.output.to
            && let Err(error) = file.reopen()
        {
            self.failed(error);
        }
    }

    /// Notes an error; the first of a row is said elsewhere.
    fn failed(&mut self, error: io::Error) {
        if !self.failing {
            self.failing = true;
            match &self.output.to {
                Destination::Stdout(_) => self.say_elsewhere(format_args!(
                    "stdout cannot be written: {error}; traffic goes on, and until it can be, lines are here alone; \
                     if what read it has gone, start it anew and this program with it code={}",
                    Code::STDOUT_LOST
                )),
                to @ Destination::File(_) => self.say_elsewhere(format_args!(
                    "the log file {to} cannot be written: {error}; until it can be, lines are here alone code={}",
                    Code::of_log_file(&error)
                )),
            }
        }
        self.owed.error = Some(error);
    }

    /// Says elsewhere that a row of errors is over.
    fn works_again(&mut self, missing: u64) {
        if mem::take(&mut self.failing) {
            let what = match self.output.to {
                Destination::Stdout(_) => "",
                Destination::File(_) => "the log file ",
            };
            self.say_elsewhere(format_args!(
                "{what}{} is written again; lines missing in it: {missing}",
                self.output.to
            ));
        }
    }

    fn say_elsewhere(&self, text: fmt::Arguments<'_>) {
        if let Some(elsewhere) = &self.output.elsewhere {
            // A file has no colours.
            elsewhere.tell(self.report(text, self.output.style.plain()));
        }
    }

    /// Writes what the other output has to say; where that fails, it is tried again later. This must not become known
    /// to the other one: see the head of this file.
    fn pass_on(&mut self) {
        // While lines of our own are owed, the attempt to report those will tell.
        while !(self.failing && self.owes())
            && let Some(news) = self.shared.news.take()
        {
            let written = self.begin_line().and_then(|()| self.put(news.as_bytes()));
            if written.is_err() {
                self.shared.news.put_back(news);
                return;
            }
        }
    }

    /// A line of our own.
    fn report(&self, text: fmt::Arguments<'_>, style: Style) -> String {
        let now = SystemTime::now();
        line::render(now, Level::Warn, "log", text, style)
    }

    /// Reports all losses; an error means that the output may not be used.
    fn settle(&mut self) -> io::Result<()> {
        if !self.owes() {
            return Ok(());
        }
        let mut report = String::new();
        let mut say = |text: fmt::Arguments<'_>| report += &self.report(text, self.output.style);
        if self.owed.dropped > 0 {
            say(format_args!(
                "log lines dropped here: {} ({} was not {} fast enough) code={}",
                self.owed.dropped,
                self.output.to,
                match self.output.to {
                    Destination::Stdout(_) => "read",
                    Destination::File(_) => "written",
                },
                Code::LOG_LINES_LOST
            ));
        }
        if let Some(error) = &self.owed.error
            && self.owed.failed > 0
        {
            say(format_args!(
                "log lines lost here: {} ({} could not be written: {error}) code={}",
                self.owed.failed,
                self.output.to,
                Code::LOG_LINES_LOST
            ));
        }
        self.begin_line()?;
        self.put(report.as_bytes())?;
        let owed = mem::take(&mut self.owed);
        self.works_again(owed.failed);
        Ok(())
    }

    /// Ends what a failure left in the middle of a line.
    fn begin_line(&mut self) -> io::Result<()> {
        if self.torn { self.put(b"\n") } else { Ok(()) }
    }

    /// Writes all, waiting as long as it takes; an error means that the rest is not written.
    fn put(&mut self, mut text: &[u8]) -> io::Result<()> {
        while let Some(last) = text.len().checked_sub(1) {
            match self.output.to.writer().write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let count = count.min(last + 1);
                    self.torn = text[count - 1] != b'\n';
                    text = &text[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
        }
        self.output.to.writer().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;
    use crate::log::Rotation;
    use crate::scratch::Scratch;

    /// Far more than any step takes; only a fault waits so long.
    const AMPLE: Duration = Duration::from_secs(60);

    fn limits(lines: usize, bytes: usize) -> Limits {
        Limits {
            lines,
            bytes,
            retry: AMPLE,
        }
    }

    fn deadline() -> Instant {
        Instant::now() + AMPLE
    }

    fn to_stdout(out: impl Write + Send + 'static) -> Output {
        Output {
            to: Destination::Stdout(Box::new(out)),
            style: Style::Text { colour: false },
            elsewhere: None,
        }
    }

    fn start(output: Output, limits: Limits) -> io::Result<(Queue, JoinHandle<()>)> {
        let (queue, outlet) = queue(limits);
        Ok((queue, outlet.start(output)?))
    }

    type Written = Arc<Mutex<Vec<u8>>>;

    fn text_of(written: &Written) -> String {
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    /// What was written, with the writer's own reports cut down to `# ` and their text.
    fn lines_of(written: &Written) -> Vec<String> {
        text_of(written)
            .lines()
            .map(|line| match line.split_once("Z WARN  log: ") {
                Some((_, report)) => format!("# {report}"),
                None => line.to_owned(),
            })
            .collect()
    }

    /// Says when a write begins, and lets it pass only when told to: a pipe in the hands of the test.
    struct Gate {
        begun: mpsc::Sender<()>,
        pass: mpsc::Receiver<()>,
        written: Written,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            // A test that is over neither listens nor answers: then everything passes.
            let _ = self.begun.send(());
            let _ = self.pass.recv();
            self.written.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gated {
        queue: Queue,
        thread: JoinHandle<()>,
        begun: mpsc::Receiver<()>,
        pass: mpsc::Sender<()>,
        written: Written,
    }

    fn gated(limits: Limits) -> Gated {
        let (begun, begins) = mpsc::channel();
        let (pass, passes) = mpsc::channel();
        let written = Written::default();
        let gate = Gate {
            begun,
            pass: passes,
            written: Arc::clone(&written),
        };
        let (queue, thread) = start(to_stdout(gate), limits).unwrap();
        Gated {
            queue,
            thread,
            begun: begins,
            pass,
            written,
        }
    }

    impl Gated {
        /// Opens the gate for good, waits for the end of the thread, returns what was written.
        fn finish(self) -> Vec<String> {
            drop((self.queue, self.pass));
            self.thread.join().unwrap();
            lines_of(&self.written)
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let gated = gated(limits(100, 10_000));
        for number in 0..50 {
            gated.queue.offer(format!("line {number}\n"));
        }
        let expected: Vec<String> = (0..50).map(|number| format!("line {number}")).collect();
        assert_eq!(gated.finish(), expected);
    }

    #[test]
    fn lines_beyond_the_queue_are_dropped_and_the_gap_is_reported_where_it_is() {
        let gated = gated(limits(3, 10_000));
        gated.queue.offer("in the writer's hand\n".to_owned());
        gated.begun.recv_timeout(AMPLE).unwrap();
        // Nobody reads: three fit, seven do not, and none of these calls waits.
        for number in 0..10 {
            gated.queue.offer(format!("line {number}\n"));
        }
        // One line passes: as soon as the writer is at the next, there is room for one.
        gated.pass.send(()).unwrap();
        gated.begun.recv_timeout(AMPLE).unwrap();
        gated.queue.offer("after the gap\n".to_owned());
        assert_eq!(
            gated.finish(),
            [
                "in the writer's hand",
                "line 0",
                "line 1",
                "line 2",
                "# log lines dropped here: 7 (stdout was not read fast enough) code=E1304",
                "after the gap"
            ]
        );
    }

    #[test]
    fn drops_are_reported_even_if_no_line_follows() {
        let gated = gated(limits(1, 10_000));
        gated.queue.offer("a\n".to_owned());
        gated.begun.recv_timeout(AMPLE).unwrap();
        for _ in 0..5 {
            gated.queue.offer("b\n".to_owned());
        }
        // b, and then the report, without another word from us.
        for _ in 0..2 {
            gated.pass.send(()).unwrap();
            gated.begun.recv_timeout(AMPLE).unwrap();
        }
        assert_eq!(
            gated.finish(),
            [
                "a",
                "b",
                "# log lines dropped here: 4 (stdout was not read fast enough) code=E1304"
            ]
        );
    }

    #[test]
    fn a_drop_that_a_resting_writer_could_not_see_is_reported() {
        let gated = gated(limits(10, 10));
        // Never fits, so there is no line that could wake the writer.
        gated
            .queue
            .offer("longer than all the room there is\n".to_owned());
        gated.begun.recv_timeout(AMPLE).unwrap();
        assert_eq!(
            gated.finish(),
            ["# log lines dropped here: 1 (stdout was not read fast enough) code=E1304"]
        );
    }

    #[test]
    fn bytes_are_bounded_too() {
        let gated = gated(limits(1000, 100));
        gated.queue.offer(format!("{:59}\n", "first"));
        gated.begun.recv_timeout(AMPLE).unwrap();
        // 60 bytes are with the writer, 40 are left.
        gated.queue.offer(format!("{:40}\n", "one byte too long"));
        gated.queue.offer(format!("{:39}\n", "fits"));
        gated.queue.offer("\n".to_owned());
        assert_eq!(gated.queue.shared.bytes.load(SeqCst), 100);
        let shared = Arc::clone(&gated.queue.shared);
        let lines = gated.finish();
        let starts: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        assert_eq!(
            starts,
            [
                "first",
                "# log lines dropped here: 1 (stdout was not read fast enough) code=E1304",
                "fits",
                "# log lines dropped here: 1 (stdout was not read fast enough) code=E1304",
            ]
        );
        // Every reservation came back.
        assert_eq!(shared.bytes.load(SeqCst), 0);
    }

    #[test]
    fn many_threads_lose_nothing_uncounted() {
        let gated = gated(limits(16, 100_000));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        gated.queue.offer("x\n".to_owned());
                    }
                });
            }
            // Some pass while the others come.
            for _ in 0..100 {
                gated.pass.send(()).unwrap();
            }
        });
        let mut seen = 0;
        for line in gated.finish() {
            seen += match line.strip_prefix("# ") {
                Some(report) => report.split(' ').nth(4).unwrap().parse().unwrap(),
                None => 1,
            };
        }
        assert_eq!(seen, 8000);
    }

    #[test]
    fn flush_gives_up_at_its_deadline_and_no_earlier() {
        let gated = gated(limits(2, 10_000));
        gated.queue.offer("a\n".to_owned());
        gated.begun.recv_timeout(AMPLE).unwrap();
        // Room for the request, no answer.
        let begin = Instant::now();
        assert!(
            !gated
                .queue
                .flush(Instant::now() + Duration::from_millis(20))
        );
        assert!(begin.elapsed() >= Duration::from_millis(20));
        // Not even room for the request.
        gated.queue.offer("b\n".to_owned());
        assert!(
            !gated
                .queue
                .flush(Instant::now() + Duration::from_millis(20))
        );
        gated.pass.send(()).unwrap();
        gated.pass.send(()).unwrap();
        assert!(gated.queue.flush(deadline()));
        assert_eq!(lines_of(&gated.written), ["a", "b"]);
    }

    /// Plays a list of outcomes, then takes everything.
    struct Scripted {
        outcomes: VecDeque<io::Result<usize>>,
        written: Written,
    }

    impl Write for Scripted {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let count = match self.outcomes.pop_front() {
                Some(outcome) => outcome?.min(text.len()),
                None => text.len(),
            };
            self.written
                .lock()
                .unwrap()
                .extend_from_slice(&text[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(outcomes: Vec<io::Result<usize>>) -> (Queue, JoinHandle<()>, Written) {
        let written = Written::default();
        let out = Scripted {
            outcomes: outcomes.into(),
            written: Arc::clone(&written),
        };
        let (queue, thread) = start(to_stdout(out), limits(10, 1000)).unwrap();
        (queue, thread, written)
    }

    /// A disk with so many bytes left.
    #[derive(Clone)]
    struct Disk {
        room: Arc<Mutex<usize>>,
        written: Written,
    }

    impl Disk {
        fn with(room: usize) -> Self {
            Self {
                room: Arc::new(Mutex::new(room)),
                written: Written::default(),
            }
        }

        fn make_room(&self, room: usize) {
            *self.room.lock().unwrap() = room;
        }
    }

    impl Write for Disk {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            if *room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = text.len().min(*room);
            *room -= count;
            self.written
                .lock()
                .unwrap()
                .extend_from_slice(&text[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_full_disk_lines_come_again_and_one_says_how_many_are_missing() {
        let disk = Disk::with("a\n".len());
        let (queue, _thread) = start(to_stdout(disk.clone()), limits(10, 1000)).unwrap();
        for line in ["a\n", "b\n", "c\n"] {
            queue.offer(line.to_owned());
        }
        assert!(queue.flush(deadline()));
        disk.make_room(usize::MAX);
        queue.offer("d\n".to_owned());
        assert!(queue.flush(deadline()));
        assert_eq!(
            lines_of(&disk.written),
            [
                "a",
                "# log lines lost here: 2 (stdout could not be written: no storage space) code=E1304",
                "d"
            ]
        );
    }

    #[test]
    fn a_torn_line_is_ended_before_the_report_and_a_torn_report_is_repeated() {
        let disk = Disk::with("torn in".len());
        let (queue, _thread) = start(to_stdout(disk.clone()), limits(10, 1000)).unwrap();
        queue.offer("torn in the middle\n".to_owned());
        assert!(queue.flush(deadline()));
        disk.make_room("\n2026".len());
        assert!(queue.flush(deadline()));
        disk.make_room(usize::MAX);
        queue.offer("after\n".to_owned());
        assert!(queue.flush(deadline()));
        let lines = lines_of(&disk.written);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], "torn in");
        assert_eq!(lines[1].len(), 4, "{lines:?}");
        assert_eq!(
            lines[2],
            "# log lines lost here: 1 (stdout could not be written: no storage space) code=E1304"
        );
        assert_eq!(lines[3], "after");
    }

    #[test]
    fn pauses_and_interruptions_lose_nothing() {
        let outcomes = vec![
            Err(io::ErrorKind::Interrupted.into()),
            Ok(1),
            Err(io::ErrorKind::WouldBlock.into()),
            Ok(2),
            Err(io::ErrorKind::WouldBlock.into()),
        ];
        let (queue, thread, written) = scripted(outcomes);
        queue.offer("whole\n".to_owned());
        queue.offer("too\n".to_owned());
        drop(queue);
        thread.join().unwrap();
        assert_eq!(text_of(&written), "whole\ntoo\n");
    }

    #[test]
    fn losses_are_reported_by_themselves_when_the_disk_has_room_again() {
        let (tell, told) = mpsc::channel();
        /// Fails twice, then passes on what it gets.
        struct Recovers(u32, mpsc::Sender<String>);
        impl Write for Recovers {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                if self.0 > 0 {
                    self.0 -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let _ = self.1.send(String::from_utf8(text.to_vec()).unwrap());
                Ok(text.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let limits = Limits {
            retry: Duration::from_millis(1),
            ..Limits::default()
        };
        let (queue, _thread) = start(to_stdout(Recovers(2, tell)), limits).unwrap();
        queue.offer("lost\n".to_owned());
        let report = told.recv_timeout(AMPLE).unwrap();
        assert!(
            report.contains("WARN  log: log lines lost here: 1 ("),
            "{report}"
        );
        drop(queue);
    }

    /// Two outputs that tell each other, in the hands of the test: each fails at its next four writes as one of sixteen
    /// patterns says, and works from then on.
    #[test]
    fn news_cause_no_news_however_two_outputs_fail() {
        let failing = |pattern: u32| {
            let outcome = |bit: u32| match (pattern >> bit) & 1 {
                0 => Ok(usize::MAX),
                // Nothing of it, or a part.
                _ if bit.is_multiple_of(2) => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(5),
            };
            let written = Written::default();
            let out = Scripted {
                outcomes: (0..4).map(outcome).collect(),
                written: Arc::clone(&written),
            };
            (out, written)
        };
        for patterns in 0..256 {
            let (one, two) = (queue(limits(10, 1000)), queue(limits(10, 1000)));
            let (to_one, to_two) = (one.0.neighbour(), two.0.neighbour());
            let (out, first) = failing(patterns % 16);
            let output = |out, elsewhere| Output {
                elsewhere: Some(elsewhere),
                ..to_stdout(out)
            };
            let (mut a, _items) = one.1.writer(output(out, to_two));
            let (out, second) = failing(patterns / 16);
            let (mut b, _items) = two.1.writer(output(out, to_one));
            let news = |it: &Writer| it.shared.news.0.lock().unwrap().len();
            for number in 0..2 {
                let text = format!("line {number}\n");
                a.line(text.as_bytes());
                b.line(text.as_bytes());
                let mut there = news(&a) + news(&b);
                for _ in 0..10 {
                    a.pass_on();
                    b.pass_on();
                    let now = news(&a) + news(&b);
                    assert!(now <= there, "{patterns:08b}: {there}, then {now}");
                    there = now;
                }
            }
            // What was still owed is written in the end, and not one of the two waits for the other.
            for _ in 0..5 {
                for it in [&mut a, &mut b] {
                    it.collect();
                    it.pass_on();
                }
            }
            assert_eq!((news(&a), news(&b)), (0, 0), "{patterns:08b}");
            for (mine, other) in [(&first, &second), (&second, &first)] {
                let failed = text_of(mine).contains("lines lost here");
                let told = lines_of(other);
                let last = told.iter().rfind(|it| it.starts_with("# stdout "));
                assert_eq!(
                    last.is_some_and(|it| it.starts_with("# stdout is written again; ")),
                    failed,
                    "{patterns:08b}: {told:?}"
                );
            }
        }
    }

    /// A file that could not be opened anew while nothing was logged owes no line, and takes news as soon as it can.
    #[test]
    fn news_get_through_where_an_idle_file_failed() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.log");
        fs::create_dir(&path).unwrap();
        let (queue, outlet) = queue(limits(10, 1000));
        let (mut writer, _items) = outlet.writer(Output {
            to: Destination::File(LogFile::new(path.clone(), Rotation::USUAL)),
            ..to_stdout(io::sink())
        });
        writer.reopen();
        assert!(writer.failing && !writer.owes());
        queue.neighbour().tell("news\n".to_owned());
        writer.pass_on();
        assert!(
            !writer.shared.news.is_empty(),
            "kept while there is a folder"
        );
        fs::remove_dir(&path).unwrap();
        writer.pass_on();
        assert_eq!(fs::read_to_string(&path).unwrap(), "news\n");
    }

    /// A full queue costs no news, and a writer that hangs is no reason to keep more than two.
    #[test]
    fn the_newest_news_are_kept_while_nobody_reads() {
        let gated = gated(limits(1, 10_000));
        gated.queue.offer("in the writer's hand\n".to_owned());
        gated.begun.recv_timeout(AMPLE).unwrap();
        gated.queue.offer("in the queue\n".to_owned());
        let neighbour = gated.queue.neighbour();
        for number in 0..1000 {
            neighbour.tell(format!("news {number}\n"));
        }
        assert_eq!(gated.queue.items.len(), 2, "one line, one nudge");
        let mut lines = gated.finish();
        lines.sort();
        assert_eq!(
            lines,
            [
                "in the queue",
                "in the writer's hand",
                "news 998",
                "news 999"
            ]
        );
    }

    #[test]
    fn an_output_that_is_gone_for_good_keeps_nobody() {
        /// A pipe whose reader has gone.
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let (queue, thread) = start(to_stdout(Gone), Limits::default()).unwrap();
        for _ in 0..10_000 {
            queue.offer("x\n".to_owned());
        }
        assert!(queue.flush(deadline()));
        assert_eq!(queue.shared.bytes.load(SeqCst), 0);
        drop(queue);
        thread.join().unwrap();
    }
}
