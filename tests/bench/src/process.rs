//! Programs that are measured: starting and ending them, and what `/proc` says about them.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks per second in `/proc/PID/stat`: Linux promises this to programs everywhere.
const TICKS: f64 = 100.0;

/// The folder of one run: keys, configurations, logs, and the list of processes to end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> io::Result<Self> {
        // scripts/bench names the folder, so that it can end what is listed there however we end.
        let path = match std::env::var_os("MTT_BENCH_DIR") {
            Some(path) => PathBuf::from(path),
            None => {
                std::env::temp_dir().join(format!("minitcptunnel-bench-{}", std::process::id()))
            }
        };
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn pids(&self) -> PathBuf {
        self.0.join("pids")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("MTT_BENCH_DIR").is_none() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A program under measurement, ended when dropped, with everything it started.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it with its output in `NAME.log` of the folder.
    pub(crate) fn start(folder: &Folder, name: &str, command: &mut Command) -> io::Result<Self> {
        let log = folder.path().join(format!("{name}.log"));
        let out = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {name}: {e}")))?;
        let program = Self { child, log };
        let mut pids = OpenOptions::new()
            .append(true)
            .create(true)
            .open(folder.pids())?;
        // With the start time, so that nobody else's process is taken for it later.
        writeln!(
            pids,
            "{} {}",
            program.child.id(),
            stat(program.child.id()).map_or(0, |s| s.started)
        )?;
        Ok(program)
    }

    /// Waits for a line that contains `text` in its output, and returns it.
    pub(crate) fn line(&mut self, text: &str, timeout: Duration) -> io::Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait()?;
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if ended.is_some() || Instant::now() >= deadline {
                let said: Vec<_> = log.lines().rev().take(5).collect();
                return Err(io::Error::other(format!(
                    "{} did not say {text:?}; last lines: {said:?}",
                    self.log.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until something has become true that it does.
    pub(crate) fn until(&mut self, timeout: Duration, is_so: impl Fn() -> bool) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        while !is_so() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let said: Vec<_> = log.lines().rev().take(5).collect();
                return Err(io::Error::other(format!(
                    "{} is not there; last lines: {said:?}",
                    self.log.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its id and those of everything it has started.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok())
                && let Some(stat) = stat(pid)
            {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        let mut tree = vec![self.child.id()];
        let mut at = 0;
        while at < tree.len() {
            tree.extend(children.remove(&tree[at]).unwrap_or_default());
            at += 1;
        }
        tree
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        for pid in self.tree().into_iter().skip(1) {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stat {
    parent: u32,
    /// CPU seconds of all threads, also of those that are gone.
    cpu: f64,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so count from behind it; what follows begins with field 3.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        cpu: ticks as f64 / TICKS,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// CPU seconds that these processes have used so far.
pub(crate) fn cpu(pids: &[u32]) -> f64 {
    pids.iter()
        .filter_map(|pid| stat(*pid))
        .map(|s| s.cpu)
        .sum()
}

/// What processes have used so far.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    /// CPU seconds.
    pub(crate) cpu: f64,
    /// How often a thread has gone to sleep.
    pub(crate) sleeps: f64,
}

pub(crate) fn used(pids: &[u32]) -> Used {
    Used {
        cpu: cpu(pids),
        sleeps: sleeps(pids),
    }
}

/// Proportional set size of these processes together, in KiB.
pub(crate) fn pss(pids: &[u32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .filter_map(|text| field(&text, "Pss:"))
        .sum()
}

/// The most threads that one of these processes has.
pub(crate) fn threads(pids: &[u32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|text| field(&text, "Threads:"))
        .fold(0.0, f64::max)
}

/// How often the threads of these processes went to sleep, which is how often they were woken.
pub(crate) fn sleeps(pids: &[u32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok())
        .flat_map(|tasks| tasks.flatten())
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
        .filter_map(|text| field(&text, "voluntary_ctxt_switches:"))
        .sum()
}

/// CPU seconds that threads of this process with this name have used, to the nanosecond.
pub(crate) fn own_threads_cpu(name: &str) -> f64 {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        })
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1e9
}

/// Whether the sockets of the whole system hold so much that TCP throttles all of them: then somebody
/// else's test is measured, not ours.
pub(crate) fn tcp_is_short_of_memory() -> bool {
    let used = fs::read_to_string("/proc/net/sockstat")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("TCP:"))?
                .to_owned();
            line.rsplit(' ').next()?.parse::<u64>().ok()
        });
    let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok();
    let pressure = limits.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    matches!((used, pressure), (Some(used), Some(pressure)) if used > pressure)
}

/// The first number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Where a program is: in $MTT_PEERS_BIN, PATH, or where daemons are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let peers = std::env::var_os("MTT_PEERS_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    peers
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// How many descriptors this process may have.
pub(crate) fn descriptors() -> usize {
    fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|text| field(&text, "Max open files"))
        .map_or(1024, |n| n as usize)
}
