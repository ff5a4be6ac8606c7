//! A program that is spoken with over its stdin and stdout.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::{Log, eventually};

/// Its stdout is read from this. Killed when dropped; in a failing test its stderr is shown.
pub struct Piped {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// What it printed on stderr.
    pub errors: Log,
}

impl Piped {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().expect("piped"),
            errors: Log::follow(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Its stdin; it ends where this is dropped.
    pub fn take_stdin(&mut self) -> impl Write + Send + 'static {
        self.stdin.take().expect("taken once")
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
        self.stdout.read(buffer)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // Fails only when it is dead already.
        let _ = self.child.kill();
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
