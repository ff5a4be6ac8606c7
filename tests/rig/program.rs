//! Child processes: found, started, watched, killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::Log;

/// A running program with its output. Killed when dropped; in a failing test its last lines are shown.
pub struct Program {
    name: String,
    child: Child,
    /// What it printed on stdout.
    pub log: Log,
    /// What it printed on stderr.
    pub errors: Log,
    status: Option<ExitStatus>,
}

/// What a program holds at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub fds: usize,
}

/// How a program that ran to its end ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All of stdout.
    pub out: String,
    /// All of stderr.
    pub err: String,
}

impl Ended {
    /// Both outputs, for a search that does not care which.
    pub fn all(&self) -> String {
        format!("{}\n{}", self.out, self.err)
    }
}

impl Program {
    /// Starts `command` with both outputs followed.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        let log = Log::follow(child.stdout.take().expect("piped"));
        let errors = Log::follow(child.stderr.take().expect("piped"));
        Self {
            name: name.to_owned(),
            child,
            log,
            errors,
            status: None,
        }
    }

    /// Runs `command` to its end; a program that does not end in time is killed and the test fails.
    pub fn run(command: &mut Command, within: Duration) -> Ended {
        let mut program = Self::start("command", command);
        let status = program.wait_exit(within);
        let text = |log: &Log| log.to_end(within).join("\n");
        Ended {
            code: status.code(),
            out: text(&program.log),
            err: text(&program.errors),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, as `TERM`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{signal} {}", self.pid()))
            .status()
            .expect("sh");
        assert!(status.success(), "kill -{signal} {}", self.name);
    }

    /// Ends it without a chance to say anything (SIGKILL).
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // Fails only when it is dead already.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Whether it has ended, and how.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait");
        }
        self.status
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        crate::eventually(within, &format!("{name} to end"), || self.exited())
    }

    /// A number of `/proc/PID/status`.
    fn status(&self, name: &str) -> u64 {
        fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .unwrap_or_else(|e| panic!("{} is gone: {e}", self.name))
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("no {name} in the status of {}", self.name))
    }

    /// The most memory it ever had resident, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Memory, threads and descriptors by now.
    pub fn usage(&self) -> Usage {
        Usage {
            rss_kib: self.status("VmRSS:"),
            threads: self.status("Threads:") as usize,
            fds: fs::read_dir(format!("/proc/{}/fd", self.pid()))
                .unwrap_or_else(|e| panic!("{} is gone: {e}", self.name))
                .count(),
        }
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("alive");
        // Fields 14 and 15 of proc(5), counted after the name, which may hold spaces.
        let after = stat.rsplit(')').next().expect("a name in parentheses");
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|f| f.parse::<u64>().expect("ticks"))
            .sum();
        // USER_HZ is 100 on every Linux that matters here.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            show(&self.name, "stdout", &self.log);
            show(&self.name, "stderr", &self.errors);
        }
    }
}

#[allow(
    clippy::print_stderr,
    reason = "a failing test shows its programs' logs"
)]
fn show(name: &str, what: &str, log: &Log) {
    let lines = log.lines();
    if !lines.is_empty() {
        let from = lines.len().saturating_sub(60);
        eprintln!("--- {name}, {what}, lines {from}..{} ---", lines.len());
        eprintln!("{}", lines[from..].join("\n"));
    }
}

/// The path of one of our programs: `MTT_BIN_DIR`, or freshly built beside this test.
pub fn binary(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("MTT_BIN_DIR") {
            // The programs are started in folders of their own.
            return fs::canonicalize(dir).expect("MTT_BIN_DIR is a folder");
        }
        // target/PROFILE/deps/all-HASH -> target/PROFILE
        let test = std::env::current_exe().expect("own path");
        let dir = test
            .ancestors()
            .nth(2)
            .expect("target/PROFILE/deps")
            .to_owned();
        build(&dir);
        dir
    });
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Builds both programs; a moment when they are up to date. A stale program would make every test a lie.
fn build(dir: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked"]).args([
        "-p",
        "minitcptunnel-server",
        "-p",
        "minitcptunnel-client",
    ]);
    if dir.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo");
    assert!(status.success(), "the programs do not build");
}

/// Runs a command that must succeed.
pub fn ok(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("start");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A program of the system; where it is missing the test fails and says what to install.
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is needed: install {package}"))
}

/// Since when, for figures a test prints.
pub fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
