//! What is measured: a service and, but for the direct path, a tunnel in front of it.

mod forward;
mod ours;
mod peers;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::load::Visitor;
use crate::options::Options;
use crate::process::{self, Folder, Program};

/// How long a program may take to start.
const START: Duration = Duration::from_secs(15);

/// One row of the table.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) visitor: Visitor,
    pub(crate) version: String,
    /// The tunnel's programs; none for the direct path.
    programs: Vec<Program>,
    _service: Program,
}

impl Target {
    /// The processes of the tunnel.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.programs.iter().flat_map(Program::tree).collect()
    }

    /// Whether there is a tunnel at all.
    pub(crate) fn is_tunnel(&self) -> bool {
        !self.programs.is_empty()
    }

    /// Waits until the programs have nothing to do any more.
    pub(crate) fn quiesce(&self) {
        let pids = self.pids();
        for _ in 0..30 {
            let before = process::cpu(&pids);
            std::thread::sleep(Duration::from_millis(50));
            if process::cpu(&pids) <= before {
                return;
            }
        }
    }
}

/// What a starter has at hand.
pub(crate) struct Setup<'a> {
    folder: &'a Folder,
    options: &'a Options,
    name: &'static str,
    /// Where the service listens.
    service: SocketAddr,
    /// Where the tunnel shall listen.
    public: SocketAddr,
}

impl Setup<'_> {
    /// Starts a program of this target.
    fn program(&self, role: &str, command: &mut Command) -> io::Result<Program> {
        Program::start(self.folder, &format!("{}-{role}", self.name), command)
    }

    /// Writes a file of this target, for its owner's eyes only, and says where.
    fn file(&self, name: &str, text: &str) -> io::Result<String> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?
            .write_all(text.as_bytes())?;
        Ok(path)
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(format!("{}-{name}", self.name));
        path.display().to_string()
    }
}

/// Programs and a word on what they are. `None`: not installed.
type Started = io::Result<Option<(Vec<Program>, String)>>;
type Starter = fn(&Setup<'_>) -> Started;

const REVERSE: &[(&str, Starter)] = &[
    ("direct", |_| Ok(Some((Vec::new(), String::new())))),
    ("ours", |setup| ours::start(setup).map(Some)),
    ("rathole", peers::rathole),
    ("rathole-noise", peers::rathole_noise),
    ("rathole-tls", peers::rathole_tls),
    ("bore", peers::bore),
    ("ssh", peers::ssh),
    ("wstunnel", peers::wstunnel),
];

const FORWARD: &[(&str, Starter)] = &[
    ("direct", |_| Ok(Some((Vec::new(), String::new())))),
    ("ours", |setup| forward::ours(setup, None).map(Some)),
    ("ours-ready", |setup| {
        forward::ours(setup, Some(2)).map(Some)
    }),
    ("stunnel", forward::stunnel),
    ("haproxy", forward::haproxy),
    ("nginx", forward::nginx),
    ("ghostunnel", forward::ghostunnel),
    ("ssh", forward::ssh),
    ("wstunnel", forward::wstunnel),
];

/// Starts all that is installed and wanted, and says what was left out. What does not start is told and left
/// out, except ours.
pub(crate) fn start_all(
    folder: &Folder,
    options: &Options,
) -> io::Result<(Vec<Target>, Vec<String>)> {
    let all = if options.forward { FORWARD } else { REVERSE };
    for name in &options.only {
        if !all.iter().any(|(known, _)| known == name) {
            let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            return Err(io::Error::other(format!(
                "--only {name}: there are {}",
                names.join(", ")
            )));
        }
    }
    let (mut targets, mut left_out) = (Vec::new(), Vec::new());
    for (name, starter) in all {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let why = match start(folder, options, name, *starter) {
            Ok(Some(target)) => {
                targets.push(target);
                continue;
            }
            Ok(None) => format!("{name} is not installed"),
            Err(e) if *name == "direct" || name.starts_with("ours") => return Err(e),
            Err(e) => format!("{name} did not start: {e}"),
        };
        eprintln!("bench: left out: {why}");
        left_out.push(why);
    }
    Ok((targets, left_out))
}

/// Our own tunnel alone.
pub(crate) fn ours(folder: &Folder, options: &Options) -> io::Result<Target> {
    let started = start(folder, options, "ours", |setup| {
        ours::start(setup).map(Some)
    })?;
    Ok(started.expect("it is never missing"))
}

/// Starts one target and waits until a byte has gone through it and back.
fn start(
    folder: &Folder,
    options: &Options,
    name: &'static str,
    starter: Starter,
) -> io::Result<Option<Target>> {
    let mut service = Program::start(
        folder,
        &format!("{name}-service"),
        Command::new(std::env::current_exe()?).arg("service"),
    )?;
    let line = service.line("port ", START)?;
    let port = line
        .trim_start_matches("port ")
        .parse()
        .map_err(io::Error::other)?;
    let service_address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut setup = Setup {
        folder,
        options,
        name,
        service: service_address,
        public: free_port()?,
    };
    if name == "direct" {
        setup.public = service_address;
    }
    let Some((programs, version)) = starter(&setup)? else {
        return Ok(None);
    };
    let visitor = Visitor {
        public: setup.public,
        service: service_address,
    };
    visitor
        .wait(START)
        .map_err(|e| io::Error::other(format!("{name}: nothing comes through: {e}")))?;
    Ok(Some(Target {
        name,
        visitor,
        version,
        programs,
        _service: service,
    }))
}

/// A port that nobody listens on, below those that the system gives to outgoing connections: one of
/// those could be taken again before the tunnel listens on it.
fn free_port() -> io::Result<SocketAddr> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 5000) as u16;
    for _ in 0..5000 {
        let n = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 5000;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 21000 + n));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::Error::other("no free port from 21000 to 25999"))
}

/// The first line that a program says about its version.
fn version(program: &std::path::Path, argument: &str) -> String {
    let said = Command::new(program).arg(argument).output();
    let text = said.map_or_else(|_| Vec::new(), |o| [o.stdout, o.stderr].concat());
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    // rathole prints a table, stunnel says something about inetd first.
    let marks = ["Build Version", "stunnel "];
    let line = (lines.iter()).find(|line| marks.iter().any(|mark| line.starts_with(mark)));
    line.or(lines.first())
        .copied()
        .unwrap_or_default()
        .to_owned()
}
