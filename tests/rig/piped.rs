//! A program that is spoken with over its stdin and stdout.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::{Log, eventually};

/// Its stdout is read from this. Killed when dropped; in a failing test its stderr is shown.
pub struct Piped {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// What it printed on stderr.
    pub errors: Log,
}

impl Piped {
    /// Starts `command`. It is ended after a minute, as a pipe has no deadline for whoever reads it.
    pub fn start(command: &mut Command) -> Self {
        let mut bounded = Command::new("timeout");
        bounded
            // Else it passes a signal on twice, to its child and to its group, and a second one ends a program at once.
            .args(["--foreground", "60"])
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            bounded.current_dir(folder);
        }
        let mut child = bounded
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            errors: Log::follow(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Its stdin; it ends where this is dropped.
    pub fn take_stdin(&mut self) -> impl Write + Send + 'static {
        self.stdin.take().expect("taken once")
    }

    /// Reads no more of it: what it writes from here on fails.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // `timeout` passes this on, which it could not do with a SIGKILL.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually(within, "the program to end", || {
            child.try_wait().expect("wait")
        })
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stdout.as_mut().map_or(Ok(0), |it| it.read(buffer))
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
        let _ = self.child.wait();
        #[allow(
            clippy::print_stderr,
            reason = "a failing test shows what its programs said"
        )]
        if std::thread::panicking() {
            eprintln!(
                "--- stderr of a peer ---\n{}",
                self.errors.lines().join("\n")
            );
        }
    }
}
