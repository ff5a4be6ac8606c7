//! What the system asks of a running program.
//!
//! | signal | means |
//! | --- | --- |
//! | SIGINT (Ctrl+C), SIGTERM; on Windows Ctrl+C and Ctrl+Break | stop |
//! | on Windows: the console is closed, the system goes down | stop, within the 5 s or so that Windows gives |
//! | on Windows: a user logs off | go on: only services are told |
//! | SIGHUP, with a log file | go on; the log file is opened anew (logrotate has moved it) |
//! | SIGHUP, stdout is no terminal | go on: a service, or `nohup`; there is nothing to do |
//! | SIGHUP otherwise | stop: the terminal we run in was closed |
//! | [`stop`] | stop: the manager of a native service of Windows has other ways than signals |

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::exit::ExitCode;

/// What is called, or that it was asked for before there was anything to call.
enum Stop {
    NotAsked,
    Asked,
    Handler(Box<dyn FnMut() + Send>),
}

static STOP: Mutex<Stop> = Mutex::new(Stop::NotAsked);

/// As a signal that asks this program to stop, from a thread of its own. Before [`handle`] it waits for that.
pub fn stop() {
    let mut stop = STOP.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *stop {
        Stop::Handler(handler) => handler(),
        waiting => *waiting = Stop::Asked,
    }
}

/// Calls `stop` for the first signal that asks for it, on a thread of its own, and deals with the others; a second one
/// ends the process at once. What the log says about it is the program's own, so `target` is its `module_path!()`.
///
/// Signals that came before are lost or have ended the process, as the system does without this.
///
/// # Errors
/// If the system gives no thread or no pipe for it.
pub fn handle(target: &'static str, mut stop: impl FnMut() + Send + 'static) -> io::Result<()> {
    let mut again = false;
    let mut handler = move || {
        if std::mem::replace(&mut again, true) {
            log::logger().flush();
            std::process::exit(ExitCode::SecondSignal.number().into());
        }
        log::info!(target: target, "Stopping; a second signal stops at once");
        stop();
    };
    let mut it = STOP.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*it, Stop::Asked) {
        handler();
    }
    *it = Stop::Handler(Box::new(handler));
    drop(it);
    system::handle()
}

#[cfg(unix)]
mod system {
    use std::io::{self, IsTerminal};
    use std::thread;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    use crate::log as logging;

    pub(super) fn handle() -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        thread::Builder::new()
            .name("signals".to_owned())
            // A second stop writes the log out and ends the process from here.
            .stack_size(128 * 1024)
            .spawn(move || {
                for signal in signals.forever() {
                    if signal != SIGHUP || !goes_on_at_hangup() {
                        super::stop();
                    }
                }
            })?;
        Ok(())
    }

    /// Whether SIGHUP is for the log; if so, it is done.
    fn goes_on_at_hangup() -> bool {
        if logging::has_file() {
            logging::reopen();
            log::info!("SIGHUP: the log file was opened anew");
            true
        } else if io::stdout().is_terminal() {
            false
        } else {
            log::info!("SIGHUP: there is no log file to open anew; SIGTERM stops this program");
            true
        }
    }
}

#[cfg(windows)]
mod system {
    use std::io;
    use std::thread;

    use crate::winapi::{self, ConsoleEvent};

    pub(super) fn handle() -> io::Result<()> {
        ctrlc::set_handler(super::stop).map_err(io::Error::other)?;
        // Who comes last is asked first: of the rest ctrlc tells neither the kind, nor can it hold it up.
        winapi::on_console_event(answer)
    }

    /// What an event asks for.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) enum Meaning {
        Stop,
        /// Stop, and the process is ended as soon as the answer is given.
        StopAndHold,
        GoOn,
    }

    pub(super) fn meaning(event: ConsoleEvent) -> Meaning {
        match event {
            ConsoleEvent::CtrlC | ConsoleEvent::CtrlBreak => Meaning::Stop,
            ConsoleEvent::Close | ConsoleEvent::Shutdown => Meaning::StopAndHold,
            // Only services hear of it, and whoever it was that has logged off, it was not them.
            ConsoleEvent::Logoff => Meaning::GoOn,
        }
    }

    /// In a thread that Windows has made for it. Whether that was all; if not, ctrlc is asked.
    fn answer(event: ConsoleEvent) -> bool {
        match meaning(event) {
            Meaning::Stop => false,
            Meaning::GoOn => {
                log::info!("a user has logged off; this program goes on");
                true
            }
            Meaning::StopAndHold => {
                super::stop();
                loop {
                    // The end of main ends this thread, too; if that takes too long, Windows does.
                    thread::park();
                }
            }
        }
    }
}

#[cfg(all(test, windows))]
mod tests {
    use super::system::{Meaning, meaning};
    use crate::winapi::ConsoleEvent;

    #[test]
    fn a_closing_console_is_held_up_and_a_logoff_is_not_ours() {
        assert_eq!(meaning(ConsoleEvent::CtrlC), Meaning::Stop);
        assert_eq!(meaning(ConsoleEvent::CtrlBreak), Meaning::Stop);
        assert_eq!(meaning(ConsoleEvent::Close), Meaning::StopAndHold);
        assert_eq!(meaning(ConsoleEvent::Shutdown), Meaning::StopAndHold);
        assert_eq!(meaning(ConsoleEvent::Logoff), Meaning::GoOn);
    }
}
