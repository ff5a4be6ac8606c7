//! The log: what is said, how loudly, and why saying it can never hurt.
//!
//! ```text
//!  any thread                       bounded queue                  thread "log"
//!  log::info!(..) -> one safe line --try_send--> | | | | | | --> write whole lines --> stdout
//!                                   \-- full: dropped and counted; a line says how many
//! ```
//!
//! # Level contract
//!
//! | level | means | who reads it |
//! | --- | --- | --- |
//! | ERROR | the program cannot do its job | whoever is on call |
//! | WARN | someone should look, soon | the operator |
//! | INFO | one line per session, tunnel, link, certificate | the operator |
//! | DEBUG | one line per pair and per refusal | whoever hunts a fault |
//! | TRACE | frames by type and length | whoever works on the code |
//!
//! At no level: keys, tokens, payload. What strangers can cause at will goes through [`Quiet`], so that an
//! attack is one line per kind and interval, and not a full disk.
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
//! # Never in the way
//!
//! The thread that logs formats its own line and hands it over without waiting. If nobody reads stdout, lines
//! beyond the queue's limits are dropped; if stdout is closed or its disk is full, lines are lost; traffic goes
//! on in every case. When writing works again, one line says how many are missing. At exit the queue is written
//! out for as long as [`LogGuard::flush`] is told, and no longer.

mod limit;
mod line;
mod queue;

use std::any::Any;
use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use ::log::{LevelFilter, Log, Metadata, Record};

pub use limit::{More, Quiet, RateLimited, Say};
use queue::{Limits, Queue};

/// How long the end of the program waits for the log when nobody says otherwise.
pub const FLUSH_AT_EXIT: Duration = Duration::from_secs(1);

/// What `-v`, `--debug` or neither asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// `RUST_LOG` if it is set, otherwise INFO.
    #[default]
    Normal,
    /// `-v`: DEBUG for our crates, INFO for libraries.
    Verbose,
    /// `--debug`: TRACE for our crates, DEBUG for libraries. A library's TRACE is not bound by our contract and
    /// may show what ours never does.
    Debug,
}

/// Whether levels are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// If stdout is a terminal that understands colour, and `NO_COLOR` is not set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// How much.
    pub verbosity: Verbosity,
    /// In colour or not.
    pub colour: Colour,
}

/// Keep it until the end of `main`: dropping it writes out what is still queued, for at most [`FLUSH_AT_EXIT`].
/// Code that ends the process elsewhere calls `log::logger().flush()`, which does the same.
#[derive(Debug)]
#[must_use = "dropping the guard at once would only flush an empty log; keep it until the end of main"]
pub struct LogGuard(());

impl LogGuard {
    /// Waits until everything logged so far is written (or lost, if stdout is gone), but not longer than
    /// `timeout`. Says whether that was long enough.
    pub fn flush(&self, timeout: Duration) -> bool {
        QUEUE.get().is_none_or(|queue| queue.flush(timeout))
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.flush(FLUSH_AT_EXIT);
    }
}

/// The queue of the one logger of this process.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Starts the log of the process and makes panics of any thread one ERROR line in it.
///
/// Later calls change nothing and return a guard of the log that is there. If the system gives no thread for
/// the log, stderr says so once and the program runs without one: its own threads will fail next, and `main`
/// reports that better.
pub fn init(options: LogOptions) -> LogGuard {
    if QUEUE.get().is_some() {
        return LogGuard(());
    }
    let colour = wants_colour(
        options.colour,
        io::stdout().is_terminal(),
        env::var_os("NO_COLOR").as_deref(),
        env::var_os("TERM").as_deref(),
    );
    let started = queue::start(standard_output(), Limits::default(), colour);
    let queue = match started {
        Ok((queue, _thread)) => queue,
        Err(error) => {
            // Nowhere left to report a failure of this report.
            let _ = writeln!(
                io::stderr(),
                "there will be no log: no thread for it ({error}); is a limit on threads too low?"
            );
            return LogGuard(());
        }
    };
    let filter = filter(options.verbosity, env::var("RUST_LOG").ok().as_deref());
    let level = filter.filter();
    let front = Front {
        filter,
        queue: queue.clone(),
        colour,
    };
    // Fails when another thread was faster, or when a test brought its own logger: then that one stays.
    if ::log::set_boxed_logger(Box::new(front)).is_ok() {
        ::log::set_max_level(level);
        // Nobody else sets it: only one caller gets here.
        let _ = QUEUE.set(queue);
        log_panics();
    }
    LogGuard(())
}

/// What the `log` macros call.
struct Front {
    /// Used for its filter only: its writer would hold a lock while it writes.
    filter: env_logger::Logger,
    queue: Queue,
    colour: bool,
}

impl Log for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            self.queue.offer(line::render(
                SystemTime::now(),
                record.level(),
                record.target(),
                *record.args(),
                self.colour,
            ));
        }
    }

    fn flush(&self) {
        self.queue.flush(FLUSH_AT_EXIT);
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

/// Which records are wanted.
fn filter(verbosity: Verbosity, rust_log: Option<&str>) -> env_logger::Logger {
    /// What the module paths (and the shortened targets) of our programs begin with.
    const OURS: [&str; 3] = ["minitcptunnel", "server", "client"];

    let mut builder = env_logger::Builder::new();
    let (ours, others) = match verbosity {
        Verbosity::Debug => (LevelFilter::Trace, LevelFilter::Debug),
        Verbosity::Verbose => (LevelFilter::Debug, LevelFilter::Info),
        Verbosity::Normal => {
            match rust_log.filter(|directives| !directives.trim().is_empty()) {
                Some(directives) => builder.parse_filters(directives),
                None => builder.filter_level(LevelFilter::Info),
            };
            return builder.build();
        }
    };
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
            "thread {:?} panicked at {place}: {}; this is a fault of the program, please report it",
            thread.name().unwrap_or("without a name"),
            panic_text(info.payload()),
        );
        if wants_report {
            usual(info);
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
        let table = [
            (
                Verbosity::Normal,
                None,
                Some(Level::Info),
                Some(Level::Info),
            ),
            (
                Verbosity::Normal,
                Some(" "),
                Some(Level::Info),
                Some(Level::Info),
            ),
            (Verbosity::Normal, Some("off"), None, None),
            (
                Verbosity::Normal,
                Some("warn,minitcptunnel_server=trace"),
                Some(Level::Trace),
                Some(Level::Warn),
            ),
            (
                Verbosity::Verbose,
                None,
                Some(Level::Debug),
                Some(Level::Info),
            ),
            // The command line wins.
            (
                Verbosity::Verbose,
                Some("off"),
                Some(Level::Debug),
                Some(Level::Info),
            ),
            (
                Verbosity::Debug,
                None,
                Some(Level::Trace),
                Some(Level::Debug),
            ),
        ];
        for (verbosity, rust_log, ours, others) in table {
            let logger = filter(verbosity, rust_log);
            for (target, loudest) in [
                ("minitcptunnel_server::control", ours),
                ("mio::poll", others),
            ] {
                for level in Level::iter() {
                    assert_eq!(
                        allows(&logger, target, level),
                        loudest.is_some_and(|loudest| level <= loudest),
                        "{verbosity:?} {rust_log:?} {target} {level}"
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
