//! The log: what is said, how loudly, and why saying it can never hurt.
//!
//! ```text
//!  any thread                       bounded queues                 threads "log", "log-file"
//!  log::info!(..) -> one safe line --try_send--> | | | | | | --> write whole lines --> stdout
//!                                  \-try_send--> | | | | | | --> write whole lines --> log file, if there is one
//!                                   \-- full: dropped and counted; a line says how many
//! ```
//!
//! # Level contract
//!
//! | level | means | who reads it |
//! | --- | --- | --- |
//! | ERROR | the program cannot do its job | whoever is on call |
//! | WARN | someone should look, soon | the operator |
//! | INFO | one line per session, tunnel, link, certificate; one at the end of a forward's connection | the operator |
//! | DEBUG | one line per pair of a reverse tunnel, per beginning of a forward's, per refusal | whoever hunts a fault |
//! | TRACE | frames by type and length | whoever works on the code |
//!
//! At no level: keys, tokens, payload. What strangers can cause at will goes through [`Quiet`], so that an
//! attack is one line per kind and interval, and not a full disk.
//!
//! How much is said: `--debug` or `-v`, else `RUST_LOG`, else `logging.level` of the configuration, else INFO.
//! A configured level asks for what the command line would: `debug` is `-v`, `trace` is `--debug`.
//!
//! # Format
//!
//! `2026-01-05T12:00:00.123Z LEVEL target: text key=value`, UTC, the level padded to five characters.
//! The target is the module path without what all of ours share: `minitcptunnel_server::control` is shown as
//! `server::control`, `minitcptunnel_client::proxy` as `client::proxy`, and rooms of the common crate stand alone
//! (`minitcptunnel_common::wire::frame` is `wire::frame`). `RUST_LOG` takes the unshortened paths. Colour (of the
//! level only) appears on a terminal, unless `NO_COLOR` is set.
//!
//! One record is one line. Line ends, control characters, and the invisible characters that turn or hide text are
//! escaped here, for all records: nothing that came over the network can forge a line or drive a terminal. Within
//! a line, write values that strangers choose with `{:?}`, which also keeps them from forging a `key=value`.
//!
//! With `logging.format: json` a record is one object on one line, with the keys `ts`, `level`, `target` and
//! `msg`, and `code` where the text ends with one (see [`crate::codes`]); the same characters are escaped, in JSON's way, so that a parser gets the text as it was.
//!
//! # Log file
//!
//! It stands beside stdout and gets the same lines, never coloured. Old ones are `FILE.1` (the youngest) to
//! `FILE.N`; a line is never split between two. A file that was moved or removed (logrotate) is opened anew: at
//! SIGHUP (see [`crate::signals`]), and without it with the first line a second later.
//!
//! # Never in the way
//!
//! The thread that logs formats its own line and hands it over without waiting. If nobody reads stdout, lines
//! beyond the queue's limits are dropped; if stdout is closed or a disk is full, lines are lost; traffic goes
//! on in every case, and neither output waits for the other. When writing works again, one line says how many are
//! missing. That one of the two fails, and that it works again, is said in the other, too. At exit the queues are written
//! out for as long as [`LogGuard::flush`] is told, and no longer.

pub(crate) mod file;
mod limit;
mod line;
mod queue;
mod settings;

use std::any::Any;
use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ::log::{Level, LevelFilter, Log, Metadata, Record};

use crate::codes::Code;
use file::LogFile;
pub use limit::{More, Quiet, RateLimited, Say};
use line::Style;
use queue::{Destination, Limits, Output, Queue};
pub use settings::{Colour, Format, FormatError, LogOptions, Logging, Rotation, Verbosity};

/// How long the end of the program waits for the log when nobody says otherwise.
pub const FLUSH_AT_EXIT: Duration = Duration::from_secs(1);

/// Keep it until the end of `main`: dropping it writes out what is still queued, for at most [`FLUSH_AT_EXIT`].
/// Code that ends the process elsewhere calls `log::logger().flush()`, which does the same.
#[derive(Debug)]
#[must_use = "dropping the guard at once would only flush an empty log; keep it until the end of main"]
pub struct LogGuard(());

impl LogGuard {
    /// Waits until everything logged so far is written (or lost, if that is not possible), but not longer than
    /// `timeout`. Says whether that was long enough.
    pub fn flush(&self, timeout: Duration) -> bool {
        QUEUES.get().is_none_or(|queues| queues.flush(timeout))
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.flush(FLUSH_AT_EXIT);
    }
}

/// The queues of the one logger of this process.
static QUEUES: OnceLock<Queues> = OnceLock::new();

/// One queue per output.
#[derive(Clone)]
struct Queues {
    stdout: Queue,
    file: Option<Queue>,
}

impl Queues {
    fn start(options: &LogOptions, style: Style) -> io::Result<Self> {
        let (stdout, outlet) = queue::queue(Limits::default());
        let mut to_stdout = Output {
            to: Destination::Stdout(standard_output()),
            style,
            elsewhere: None,
        };
        let mut file = None;
        if let Some(path) = options.file() {
            let (queue, outlet) = queue::queue(Limits::default());
            to_stdout.elsewhere = Some(queue.neighbour());
            let _thread = outlet.start(Output {
                to: Destination::File(LogFile::new(path.to_owned(), options.rotation())),
                style: style.plain(),
                elsewhere: Some(stdout.neighbour()),
            })?;
            file = Some(queue);
        }
        let _thread = outlet.start(to_stdout)?;
        Ok(Self { stdout, file })
    }

    fn flush(&self, timeout: Duration) -> bool {
        /// Longer than anybody waits, and no clock ends before.
        const LONG: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or_else(|| now + LONG);
        // All in any case: the one that hangs must not cost the other its last lines.
        let file = || self.file.as_ref().is_none_or(|file| file.flush(deadline));
        let before = file();
        let stdout = self.stdout.flush(deadline);
        // Once more, for what stdout has just had to say about itself.
        file() && stdout && before
    }
}

/// Starts the log of the process and makes panics of any thread one ERROR line in it.
///
/// Later calls change nothing and return a guard of the log that is there. If the system gives no thread for
/// the log, stderr says so once and the program runs without one: its own threads will fail next, and `main`
/// reports that better.
pub fn init(options: LogOptions) -> LogGuard {
    if QUEUES.get().is_some() {
        return LogGuard(());
    }
    let style = match options.format() {
        Format::Json => Style::Json,
        Format::Text => Style::Text {
            colour: wants_colour(
                options.colour,
                io::stdout().is_terminal(),
                env::var_os("NO_COLOR").as_deref(),
                env::var_os("TERM").as_deref(),
            ),
        },
    };
    let queues = match Queues::start(&options, style) {
        Ok(queues) => queues,
        Err(error) => {
            // Nowhere left to report a failure of this report.
            let _ = writeln!(
                io::stderr(),
                "there will be no log: no thread for it ({error}); is a limit on threads too low? code={}",
                Code::NO_RESOURCES
            );
            return LogGuard(());
        }
    };
    let filter = filter(
        options.verbosity,
        env::var("RUST_LOG").ok().as_deref(),
        options.configured.level,
    );
    let level = filter.filter();
    let front = Front {
        filter,
        queues: queues.clone(),
        style,
    };
    // Fails when another thread was faster, or when a test brought its own logger: then that one stays.
    if ::log::set_boxed_logger(Box::new(front)).is_ok() {
        ::log::set_max_level(level);
        // Nobody else sets it: only one caller gets here.
        let _ = QUEUES.set(queues);
        log_panics();
    }
    LogGuard(())
}

/// Whether there is a log file. It is there from [`init`] on, whether it can be written or not.
#[must_use]
pub fn has_file() -> bool {
    QUEUES.get().is_some_and(|queues| queues.file.is_some())
}

/// Has the log file opened anew: what has its name now takes the lines from here on. Without one nothing happens.
pub fn reopen() {
    if let Some(file) = QUEUES.get().and_then(|queues| queues.file.as_ref()) {
        file.reopen();
    }
}

/// What the `log` macros call.
struct Front {
    /// Used for its filter only: its writer would hold a lock while it writes.
    filter: env_logger::Logger,
    queues: Queues,
    style: Style,
}

impl Log for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let now = SystemTime::now();
        let line = |style| {
            let (level, target) = (record.level(), record.target());
            line::render(now, level, target, *record.args(), style)
        };
        let to_stdout = line(self.style);
        if let Some(file) = &self.queues.file {
            let plain = self.style.plain();
            file.offer(if plain == self.style {
                to_stdout.clone()
            } else {
                line(plain)
            });
        }
        self.queues.stdout.offer(to_stdout);
    }

    fn flush(&self) {
        self.queues.flush(FLUSH_AT_EXIT);
    }
}

/// The descriptor itself, not std's `Stdout`: that one has a lock and a buffer, and tries to write the buffer
/// out at exit, which would hang on a pipe that nobody reads.
#[cfg(unix)]
fn standard_output() -> Box<dyn Write + Send> {
    use std::fs::File;
    use std::os::fd::AsFd;

    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        Err(_) => Box::new(io::stdout()),
    }
}

/// std's `Stdout`: it knows how to write UTF-8 to a console.
#[cfg(not(unix))]
fn standard_output() -> Box<dyn Write + Send> {
    Box::new(io::stdout())
}

/// The whole rule for colour. Both variables count only when they are not empty.
fn wants_colour(
    choice: Colour,
    terminal: bool,
    no_color: Option<&OsStr>,
    term: Option<&OsStr>,
) -> bool {
    match choice {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => {
            let forbidden = no_color.is_some_and(|value| !value.is_empty());
            // A bare Windows console has no TERM and may print escape sequences as they are.
            let capable = match term {
                Some(term) => term != "dumb",
                None => !cfg!(windows),
            };
            terminal && !forbidden && capable
        }
    }
}

/// Which records are wanted: the command line, or `RUST_LOG`, or the configured level, or INFO.
fn filter(
    verbosity: Verbosity,
    rust_log: Option<&str>,
    configured: Option<Level>,
) -> env_logger::Logger {
    /// What the module paths (and the shortened targets) of our programs begin with.
    const OURS: [&str; 3] = ["minitcptunnel", "server", "client"];

    let mut builder = env_logger::Builder::new();
    let ours = match verbosity {
        Verbosity::Debug => Level::Trace,
        Verbosity::Verbose => Level::Debug,
        Verbosity::Normal => {
            if let Some(directives) = rust_log.filter(|directives| !directives.trim().is_empty()) {
                builder.parse_filters(directives);
                return builder.build();
            }
            configured.unwrap_or(Level::Info)
        }
    };
    // What libraries say at their two lowest levels is for whoever works on them.
    let others = match ours {
        Level::Trace => LevelFilter::Debug,
        Level::Debug => LevelFilter::Info,
        level => level.to_level_filter(),
    };
    let ours = ours.to_level_filter();
    builder.filter_level(others);
    for prefix in OURS {
        builder.filter_module(prefix, ours);
    }
    builder.build()
}

/// Replaces the panic hook: one ERROR line instead of a report on stderr, which may be a pipe that nobody reads.
/// Whoever sets `RUST_BACKTRACE` gets the usual report as well.
fn log_panics() {
    let wants_report = env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let thread = thread::current();
        let place = info
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        ::log::error!(
            target: "panic",
            "thread {:?} panicked at {place}: {}; this is a fault of the program, please report it code={}",
            thread.name().unwrap_or("without a name"),
            panic_text(info.payload()),
            Code::BUG,
        );
        if wants_report {
            usual(info);
        }
        // Where a panic ends the program, this is the last chance for its line. The writer's own panic cannot be
        // written by it, and must not wait for itself.
        let writes = thread.name().is_some_and(|name| name.starts_with("log"));
        if cfg!(panic = "abort") && !writes {
            ::log::logger().flush();
        }
    }));
}

/// What a panic says about itself, without the values in it: those may come from anywhere, also from a key file.
///
/// A literal is repeated whole. A formatted text is cut where values usually begin: at the first quote, bracket,
/// brace or line end.
fn panic_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(literal) = payload.downcast_ref::<&'static str>() {
        return literal;
    }
    let Some(text) = payload.downcast_ref::<String>() else {
        return "no message";
    };
    let of_value = text.find(" of `");
    let quoted = text.find(['"', '\'', '[', '{', '\n']);
    let end = [of_value, quoted].into_iter().flatten().min();
    text[..end.unwrap_or(text.len())].trim_end()
}

/// Logs at a level if a [`RateLimited`] or [`Quiet`] says so; the arguments are evaluated only then.
///
/// ```
/// # use std::time::{Duration, Instant};
/// use minitcptunnel_common::log::Quiet;
/// use minitcptunnel_common::log_limited;
///
/// let mut quiet = Quiet::new(Duration::from_secs(10));
/// let say = quiet.event("bad signature", Instant::now());
/// log_limited!(log::Level::Warn, say, "Bad signature from client address={}", "192.0.2.1:4711");
/// ```
#[macro_export]
macro_rules! log_limited {
    ($level:expr, $say:expr, $($text:tt)+) => {
        match $say {
            $crate::log::Say::Nothing => {}
            $crate::log::Say::Line => ::log::log!($level, $($text)+),
            $crate::log::Say::LineAfter(more) => {
                ::log::log!($level, "{} ({more})", ::std::format_args!($($text)+))
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::sync::mpsc;

    use ::log::Level;

    use super::*;

    fn allows(logger: &env_logger::Logger, target: &str, level: Level) -> bool {
        logger.enabled(&Metadata::builder().target(target).level(level).build())
    }

    /// The loudest level each kind of target gets.
    #[test]
    fn verbosity_decides_the_levels() {
        use Level::{Debug, Error, Info, Trace, Warn};
        let table = [
            (Verbosity::Normal, None, None, Some((Info, Info))),
            (Verbosity::Normal, Some(" "), None, Some((Info, Info))),
            (Verbosity::Normal, Some("off"), None, None),
            (
                Verbosity::Normal,
                Some("warn,minitcptunnel_server=trace"),
                None,
                Some((Trace, Warn)),
            ),
            (Verbosity::Verbose, None, None, Some((Debug, Info))),
            (Verbosity::Debug, None, None, Some((Trace, Debug))),
            // The configured level, when nobody else says anything.
            (Verbosity::Normal, None, Some(Error), Some((Error, Error))),
            (Verbosity::Normal, None, Some(Warn), Some((Warn, Warn))),
            (Verbosity::Normal, Some(""), Some(Info), Some((Info, Info))),
            (Verbosity::Normal, None, Some(Debug), Some((Debug, Info))),
            (Verbosity::Normal, None, Some(Trace), Some((Trace, Debug))),
            // RUST_LOG wins over it, the command line over both.
            (
                Verbosity::Normal,
                Some("info"),
                Some(Error),
                Some((Info, Info)),
            ),
            (
                Verbosity::Verbose,
                Some("off"),
                Some(Error),
                Some((Debug, Info)),
            ),
            (
                Verbosity::Debug,
                Some("off"),
                Some(Warn),
                Some((Trace, Debug)),
            ),
        ];
        for (verbosity, rust_log, configured, loudest) in table {
            let logger = filter(verbosity, rust_log, configured);
            let (ours, others) = loudest.unzip();
            for (target, loudest) in [
                ("minitcptunnel_server::control", ours),
                ("mio::poll", others),
            ] {
                for level in Level::iter() {
                    assert_eq!(
                        allows(&logger, target, level),
                        loudest.is_some_and(|loudest| level <= loudest),
                        "{verbosity:?} {rust_log:?} {configured:?} {target} {level}"
                    );
                }
            }
        }
    }

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let auto = |terminal, no_color: Option<&str>, term: Option<&str>| {
            wants_colour(
                Colour::Auto,
                terminal,
                no_color.map(OsStr::new),
                term.map(OsStr::new),
            )
        };
        assert!(auto(true, None, Some("xterm")));
        assert!(auto(true, Some(""), Some("xterm")));
        assert!(!auto(true, Some("1"), Some("xterm")));
        assert!(!auto(true, None, Some("dumb")));
        assert!(!auto(false, None, Some("xterm")));
        assert!(wants_colour(
            Colour::Always,
            false,
            Some(OsStr::new("1")),
            None
        ));
        assert!(!wants_colour(Colour::Never, true, None, None));
    }

    #[test]
    fn a_panic_shows_no_values() {
        let formatted = |text: &str| panic_text(&text.to_owned()).to_owned();
        assert_eq!(
            panic_text(&"a literal: \"as it stands\""),
            "a literal: \"as it stands\""
        );
        assert_eq!(panic_text(&7_u8), "no message");
        assert_eq!(
            formatted("index out of bounds: the len is 3 but the index is 7"),
            "index out of bounds: the len is 3 but the index is 7"
        );
        for text in [
            "called `Result::unwrap()` on an `Err` value: \"SECRET\"",
            "called `Result::unwrap()` on an `Err` value: Key { bytes: SECRET }",
            "called `Result::unwrap()` on an `Err` value: [SECRET]",
            "start byte index 99 is out of bounds of `SECRET`",
            "byte index 1 is not a char boundary; it is inside 'S' (bytes 0..2) of `SECRET`",
            "assertion `left == right` failed\n  left: SECRET\n right: 5",
        ] {
            let shown = formatted(text);
            assert!(!shown.contains("SECRET") && shown.len() > 10, "{shown}");
        }
    }

    // The real thing: this test binary, started again, with a stdout that the test controls.

    /// Says to the child which of the scenarios below it is to play.
    const ROLE: &str = "MINITCPTUNNEL_LOG_TEST_ROLE";
    /// The child's exit code when all was well; neither 0 nor 101, with which the test runner ends.
    const WELL: i32 = 40;
    /// More than any machine needs; a child that blocks is found out by it.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Not a test by itself: it does nothing unless one of the tests below started it.
    #[test]
    fn child_process() {
        let Ok(role) = env::var(ROLE) else { return };
        let guard = init(LogOptions::default());
        ::log::info!("ready");
        assert!(guard.flush(PATIENCE));
        // The parent closes our stdin when the stage is set.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        let well = match role.as_str() {
            "blocked" => {
                for number in 0..30_000 {
                    ::log::info!("line {number} {:100}", "");
                }
                // Nobody reads, so this cannot succeed; it must nevertheless end.
                !guard.flush(Duration::from_millis(50))
            }
            "closed" => {
                for number in 0..1000 {
                    ::log::info!("line {number}");
                }
                // Lost lines are done with.
                guard.flush(PATIENCE)
            }
            "limited" => {
                let more = More {
                    count: 3,
                    over: Duration::from_secs(10),
                };
                for say in [Say::Line, Say::Nothing, Say::LineAfter(more)] {
                    crate::log_limited!(Level::Warn, say, "bad hello from={:?}", "a b");
                }
                guard.flush(PATIENCE)
            }
            "panic" => {
                let thread = thread::Builder::new().name("relay 7".to_owned());
                let secret = "SECRET\nforged";
                let panicked = thread
                    .spawn(move || panic!("cannot use key {secret:?}"))
                    .unwrap()
                    .join();
                panicked.is_err() && guard.flush(PATIENCE)
            }
            other => panic!("no such role: {other}"),
        };
        drop(guard);
        std::process::exit(if well { WELL } else { 1 });
    }

    /// Starts a child and reads its stdout up to the first line of its log.
    fn start_child(role: &str) -> (Child, BufReader<ChildStdout>) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "log::tests::child_process", "--nocapture"])
            .env(ROLE, role)
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(
                output.read_line(&mut line).unwrap(),
                0,
                "the child ended early"
            );
        }
        assert!(line.contains("Z INFO  log::tests: ready\n"), "{line:?}");
        (child, output)
    }

    /// Lets the child go on, and insists that it ends by itself.
    fn ends_well(mut child: Child) {
        drop(child.stdin.take());
        let id = child.id();
        let (ended, wait) = mpsc::channel();
        thread::spawn(move || ended.send(child.wait()));
        let status = wait
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("child {id} hangs"))
            .unwrap();
        assert_eq!(status.code(), Some(WELL), "{status}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_stops_neither_work_nor_exit() {
        let (child, mut output) = start_child("blocked");
        ends_well(child);
        // What did get out is whole lines in their order, but for the one that was in the pipe's mouth.
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        let (whole, _torn) = rest.rsplit_once('\n').unwrap();
        let mut count = 0;
        for line in whole.lines() {
            assert!(
                line.contains(&format!("Z INFO  log::tests: line {count} ")),
                "{line}"
            );
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn a_closed_stdout_kills_nothing() {
        let (child, output) = start_child("closed");
        drop(output);
        ends_well(child);
    }

    #[test]
    fn limited_events_say_what_they_left_out() {
        let (child, mut output) = start_child("limited");
        ends_well(child);
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        let texts: Vec<&str> = rest
            .lines()
            .filter_map(|line| Some(line.split_once("Z WARN  log::tests: ")?.1))
            .collect();
        assert_eq!(
            texts,
            [
                "bad hello from=\"a b\"",
                "bad hello from=\"a b\" (3 more like this in the last 10 seconds)"
            ]
        );
    }

    #[test]
    fn a_panic_is_one_line_in_the_log() {
        let (child, mut output) = start_child("panic");
        ends_well(child);
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest.lines().count(), 1, "{rest}");
        assert!(
            rest.contains("Z ERROR panic: thread \"relay 7\" panicked at ")
                && rest.contains("log.rs:")
                && rest.contains(": cannot use key; this is a fault of the program"),
            "{rest}"
        );
        assert!(!rest.contains("SECRET"));
    }
}
