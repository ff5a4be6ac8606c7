//! The command `service`, the same in both programs.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;
use std::{fs, thread};

use clap::{Args, Subcommand, ValueEnum};

use super::act::{self, Way};
use super::spec::{self, Choices, coded};
use super::{Manager, Role, ServiceError, Wanted};
use super::{scripts, steps};
use crate::cli;
use crate::codes::Code;

/// What is to be done with the service. The options in front of it (`--config` and the like) are those that the
/// service is started with.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Install this program as a service that starts with the system
    Install {
        /// Which service, and where
        #[command(flatten)]
        target: Target,
        /// Whom it runs as; made if missing [default: minitcptunnel, on Windows LocalService]
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// Let it open ports below 1024
        #[arg(long)]
        low_ports: bool,
        /// Replace a file of the same name that somebody else wrote
        #[arg(long)]
        force: bool,
    },
    /// Stop the service and take it away; keys, configuration and logs stay
    Uninstall {
        /// Which service, and where
        #[command(flatten)]
        target: Target,
        /// Remove a file of the same name that somebody else wrote
        #[arg(long)]
        force: bool,
    },
    /// Start the service
    Start(Target),
    /// Stop the service
    Stop(Target),
    /// Say whether the service runs: exit code 0 if so, 3 if it is stopped, 4 if there is none
    Status(Target),
    /// Show the service's log
    Logs {
        /// Which service, and where
        #[command(flatten)]
        target: Target,
        /// How many lines
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
        lines: u32,
        /// Go on with what is logged from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// What the service managers of Windows and OpenWrt call
    #[command(hide = true)]
    Run {
        /// The working folder
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

/// Which service, and where.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// Its name [default: that of the program]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its manager [default: the one that is found]
    #[arg(long, value_name = "MANAGER")]
    manager: Option<Manager>,
    /// Show what would be written and run, and do nothing
    #[arg(long)]
    print: bool,
    /// The root of another system, an image say: files go there, no command is run
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Where nssm.exe is, if it is not in the PATH
    #[arg(long, value_name = "FILE")]
    nssm: Option<PathBuf>,
}

impl Target {
    /// Another command about the same service, as a person would type it.
    fn typed(&self, role: Role, command: &str) -> String {
        let mut text = format!("{} service {command}", role.program);
        if let Some(name) = &self.name {
            text.push_str(&format!(" --name {name}"));
        }
        if let Some(manager) = self.manager.and_then(|it| it.to_possible_value()) {
            text.push_str(&format!(" --manager {}", manager.get_name()));
        }
        text
    }

    /// What brings a new installation to life.
    fn what_next(&self, role: Role, runs: bool) -> String {
        let start = self.typed(role, "start");
        if runs {
            // A start of what runs does nothing.
            let stop = self.typed(role, "stop");
            format!("it still runs as it did before; `{stop} && {start}` makes it anew")
        } else {
            format!("`{start}` starts it now, and every start of the system does")
        }
    }
}

/// How a command that succeeded ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// As asked; of `status`: it runs.
    Fine,
    /// Of `status`: it does not run.
    Stopped,
    /// Of `status`: there is no such service.
    NotInstalled,
}

impl Status {
    /// The exit code: those of init scripts, in the Linux Standard Base.
    fn number(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Stopped => 3,
            Self::NotInstalled => 4,
        }
    }
}

/// Does it, and prints what there is to say; the exit code. `wanted` says what an installed service is to do, `prepare`
/// makes what has to be there before.
#[must_use]
pub fn answer(
    command: &Command,
    role: Role,
    wanted: impl FnOnce() -> Result<Wanted, ServiceError>,
    prepare: impl FnOnce() -> Result<(), ServiceError>,
) -> u8 {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    match perform(command, role, wanted, prepare, &mut out, &mut err) {
        Ok(status) => status.number(),
        Err(e) => cli::complain(role.program, &e).number(),
    }
}

/// What there is to say goes to `out`, warnings to `err`. If it cannot be done, what had been done before stays.
pub(super) fn perform(
    command: &Command,
    role: Role,
    wanted: impl FnOnce() -> Result<Wanted, ServiceError>,
    prepare: impl FnOnce() -> Result<(), ServiceError>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<Status, ServiceError> {
    let (target, force) = match command {
        Command::Install { target, force, .. } | Command::Uninstall { target, force } => {
            (target, *force)
        }
        Command::Start(target) | Command::Stop(target) | Command::Status(target) => (target, false),
        Command::Logs { target, .. } => (target, false),
        Command::Run { .. } => return Ok(Status::Fine),
    };
    let found = target.manager.or_else(Manager::detect);
    let manager = found.ok_or(ServiceError::NoManager)?;
    let way = Way {
        manager,
        print: target.print,
        force,
        root: target.root.clone(),
    };
    let name = target.name.clone();
    let name = name.unwrap_or_else(|| role.program.to_owned());
    // It becomes part of paths and command lines.
    spec::check_name("the service name", &name, manager)?;
    let nssm = target.nssm.clone().unwrap_or_else(|| "nssm".into());
    let nssm = nssm.display().to_string();
    let touches = !target.print && target.root.is_none();
    if touches && !manager.is_of_this_system() {
        return Err(ServiceError::WrongSystem(manager));
    }
    let mut warnings = Vec::new();
    let result = match command {
        Command::Install {
            user, low_ports, ..
        } => {
            if touches {
                only_root()?;
            }
            if let Some(user) = user.as_deref().filter(|_| !manager.is_of_windows()) {
                spec::check_name("the user", user, manager)?;
            }
            let choices = Choices {
                name: target.name.clone(),
                user: user.clone(),
                low_ports: *low_ports,
                executable: std::env::current_exe()
                    .map_err(|e| ServiceError::File("this program".into(), e))?,
            };
            if touches {
                prepare()?;
            }
            let (spec, said) = spec::spec(manager, &wanted()?, &choices)?;
            warnings = said;
            if manager == Manager::Procd && spec.low_ports {
                warnings.push(coded(
                    Code::SERVICE_AS_ROOT,
                    "procd can lend no low ports to another user: it runs as root",
                ));
            }
            let runs_already = touches
                && is_installed(&way, &name)
                && runs(&way, &name).is_ok_and(|(runs, _)| runs);
            let steps = steps::install(manager, &spec, &nssm);
            way.take(&steps, out, &mut warnings).map(|()| {
                if touches {
                    let _ = writeln!(
                        out,
                        "installed {name}; {}",
                        target.what_next(role, runs_already)
                    );
                }
                Status::Fine
            })
        }
        Command::Uninstall { .. } => {
            if touches {
                only_root()?;
                installed(&way, &name)?;
            }
            let steps = steps::uninstall(manager, &name, &nssm);
            way.take(&steps, out, &mut warnings).map(|()| {
                if touches {
                    let _ = writeln!(
                        out,
                        "uninstalled {name}; left as they are: {}, the configuration, logs, the user{}",
                        manager.state_dir(&name),
                        lent_for_good(manager).unwrap_or_default()
                    );
                }
                Status::Fine
            })
        }
        Command::Start(_) | Command::Stop(_) => {
            if touches {
                only_root()?;
                installed(&way, &name)?;
            }
            let step = match command {
                Command::Start(_) => steps::start(manager, &name),
                _ => steps::stop(manager, &name),
            };
            // Where the manager would call it a mistake to ask for what is so already.
            let wanted = matches!(command, Command::Start(_));
            if touches && manager.is_of_windows() && runs(&way, &name)?.0 == wanted {
                let _ = writeln!(out, "{name}: nothing to do");
                return Ok(Status::Fine);
            }
            let taken = way.take(&[step], out, &mut warnings);
            if touches {
                taken.and_then(|()| outcome(&way, &name, wanted, &target.typed(role, "logs"), out))
            } else {
                taken.map(|()| Status::Fine)
            }
        }
        Command::Status(_) => status(&way, &name, out),
        Command::Logs { lines, follow, .. } => {
            logs(&way, &name, role.program, *lines, *follow, out)
        }
        Command::Run { .. } => Ok(Status::Fine),
    };
    for warning in warnings {
        let _ = writeln!(err, "warning: {warning}");
    }
    result
}

/// `service run`: does `work` in that folder, as a native service of Windows where there are such.
#[must_use]
pub fn run(
    program: &'static str,
    dir: Option<PathBuf>,
    work: impl FnOnce() -> u8 + Send + 'static,
) -> u8 {
    let work = move || match dir.as_deref().map_or(Ok(()), enter) {
        Ok(()) => work(),
        Err(e) => cli::complain(program, &e).number(),
    };
    // First: what goes wrong later, the manager of Windows is told as this number.
    #[cfg(windows)]
    match super::scm::dispatch(work) {
        Ok(()) => 0,
        Err(e) => cli::complain(program, &ServiceError::NotCalled(e.to_string())).number(),
    }
    #[cfg(not(windows))]
    work()
}

fn enter(dir: &Path) -> Result<(), ServiceError> {
    std::env::set_current_dir(dir).map_err(|e| ServiceError::Folder(dir.to_owned(), e))
}

fn only_root() -> Result<(), ServiceError> {
    #[cfg(unix)]
    if !rustix::process::geteuid().is_root() {
        return Err(ServiceError::NotRoot);
    }
    // On Windows the manager itself tells who may.
    Ok(())
}

/// What Windows says of services that it does not know.
const UNKNOWN_TO_WINDOWS: &str = "1060";

fn is_installed(way: &Way, name: &str) -> bool {
    if let Some(file) = steps::file(way.manager, name)
        && way.place(&file).symlink_metadata().is_ok()
    {
        return true;
    }
    match way.manager {
        // A packager's unit lies elsewhere.
        Manager::Systemd if way.root.is_none() => {
            let cat = ["systemctl", "cat", &format!("{name}.service")].map(str::to_owned);
            act::ask(&cat).is_ok_and(|(code, _)| code == Some(0))
        }
        Manager::Windows | Manager::Nssm => {
            act::ask(&steps::status(way.manager, name)).is_ok_and(|(code, said)| {
                code == Some(0) || !said.contains(UNKNOWN_TO_WINDOWS) && !said.trim().is_empty()
            })
        }
        _ => false,
    }
}

/// Of `doctor`: how the service stands with the manager of Windows, which has no files to look for.
#[cfg(windows)]
pub(crate) fn status_on_windows(name: &str) -> Result<Status, ServiceError> {
    let way = Way {
        manager: Manager::Windows,
        print: false,
        force: false,
        root: None,
    };
    if !is_installed(&way, name) {
        return Ok(Status::NotInstalled);
    }
    let (runs, _) = runs(&way, name)?;
    Ok(if runs { Status::Fine } else { Status::Stopped })
}

fn installed(way: &Way, name: &str) -> Result<(), ServiceError> {
    if is_installed(way, name) {
        Ok(())
    } else {
        Err(ServiceError::NotInstalled(name.to_owned()))
    }
}

/// Whether it runs, and what its manager says about it.
fn runs(way: &Way, name: &str) -> Result<(bool, String), ServiceError> {
    let command = steps::status(way.manager, name);
    let failed = |why: String| ServiceError::Failed(way.typed(&command), why);
    let (code, said) = act::ask(&command).map_err(|e| failed(format!("could not be run: {e}")))?;
    match is_up(way.manager, code, &said) {
        Some(runs) => Ok((runs, said)),
        None => Err(failed(format!("does not tell: {}", said.trim()))),
    }
}

/// Whether an answer means that the service runs; `None` if it is none.
fn is_up(manager: Manager, code: Option<i32>, said: &str) -> Option<bool> {
    let fine = code == Some(0);
    match manager {
        // It has 3 for what does not run; so it ends if it could not ask.
        Manager::Systemd if code == Some(1) => None,
        // `sc query` succeeds for every service that there is. NSSM's are about to start for a while after they did.
        Manager::Windows | Manager::Nssm => {
            let up = ["RUNNING", "START_PENDING"];
            let known = fine || said.contains(UNKNOWN_TO_WINDOWS);
            known.then(|| fine && up.iter().any(|it| said.contains(it)))
        }
        _ => Some(fine),
    }
}

/// What a start or stop that the manager takes for done has come to.
fn outcome(
    way: &Way,
    name: &str,
    wanted: bool,
    logs: &str,
    out: &mut impl Write,
) -> Result<Status, ServiceError> {
    let (runs, _) = runs(way, name)?;
    if wanted && !runs {
        let start = [steps::start(way.manager, name)];
        let [steps::Step::Run(command)] = &start else {
            return Ok(Status::Stopped);
        };
        return Err(ServiceError::Failed(
            way.typed(command),
            format!("succeeded, but {name} does not run; `{logs}` may tell why"),
        ));
    }
    let _ = writeln!(out, "{name}: {}", state(runs));
    Ok(Status::Fine)
}

fn state(runs: bool) -> &'static str {
    if runs { "running" } else { "stopped" }
}

/// What `install` has lent to this program itself, where no script of the manager could: other services may use the
/// same program, so it is only told.
fn lent_for_good(manager: Manager) -> Option<String> {
    if manager != Manager::Sysv {
        return None;
    }
    let program = std::env::current_exe().ok()?.display().to_string();
    let (_, said) = act::ask(&["getcap".to_owned(), program.clone()]).ok()?;
    said.contains("cap_net_bind_service").then(|| {
        format!(
            ", and the low ports of the program itself (`setcap -r {}` takes them back)",
            scripts::quoted(&program)
        )
    })
}

fn status(way: &Way, name: &str, out: &mut impl Write) -> Result<Status, ServiceError> {
    let command = steps::status(way.manager, name);
    if way.print {
        let _ = writeln!(out, "{}", way.typed(&command));
        return Ok(Status::Fine);
    }
    if !is_installed(way, name) {
        let _ = writeln!(out, "{name}: not installed as a service of {}", way.manager);
        return Ok(Status::NotInstalled);
    }
    if way.root.is_some() {
        let _ = writeln!(out, "{name}: installed there");
        return Ok(Status::Stopped);
    }
    let (runs, said) = runs(way, name)?;
    let _ = writeln!(out, "{}", said.trim_end());
    let _ = writeln!(out, "{name}: {}", state(runs));
    Ok(if runs { Status::Fine } else { Status::Stopped })
}

fn logs(
    way: &Way,
    name: &str,
    program: &str,
    lines: u32,
    follow: bool,
    out: &mut impl Write,
) -> Result<Status, ServiceError> {
    if let Some(command) = steps::logs(way.manager, name, program, lines, follow) {
        if way.print {
            let _ = writeln!(out, "{}", way.typed(&command));
            return Ok(Status::Fine);
        }
        let failed = |why: String| ServiceError::Failed(way.typed(&command), why);
        let status = process::Command::new(&command[0])
            .args(&command[1..])
            .status()
            .map_err(|e| failed(format!("could not be run: {e}")))?;
        return if status.success() {
            Ok(Status::Fine)
        } else {
            Err(failed(format!("failed ({status})")))
        };
    }
    let file = log_file(way, name);
    if way.print {
        let _ = writeln!(out, "# the last {lines} lines of {}", file.display());
        return Ok(Status::Fine);
    }
    if !is_installed(way, name) && !file.exists() {
        return Err(ServiceError::NotInstalled(name.to_owned()));
    }
    tail(&file, lines, follow, out)
        .map(|()| Status::Fine)
        .map_err(|e| ServiceError::Log(file, e))
}

/// The file that the installed service logs to: what its script says, else the usual one.
fn log_file(way: &Way, name: &str) -> PathBuf {
    let usual = way.manager.log_file(name).unwrap_or_default();
    let script = steps::file(way.manager, name).map(|file| fs::read_to_string(way.place(&file)));
    let named = script.and_then(Result::ok).and_then(|script| {
        let mut lines = script.lines();
        lines.find_map(|line| line.strip_prefix(scripts::LOG_LINE).map(str::to_owned))
    });
    way.place(&named.unwrap_or(usual))
}

/// How often a file that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The last lines of a file, and with `follow` what comes after, also when it is moved and begun anew.
fn tail(path: &Path, lines: u32, follow: bool, out: &mut impl Write) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    let start = start_of_last(&mut file, lines)?;
    file.seek(SeekFrom::Start(start))?;
    let mut at = start;
    loop {
        let copied = io::copy(&mut file, out).and_then(|n| out.flush().map(|()| n));
        match copied {
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(e),
        }
        if !follow {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
        // A shorter file of that name is another one; in between there may be none.
        if fs::metadata(path).is_ok_and(|now| now.len() < at) {
            io::copy(&mut file, out)?;
            file = fs::File::open(path)?;
            at = 0;
        }
    }
}

/// Where the last lines begin.
fn start_of_last(file: &mut fs::File, lines: u32) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut left = u64::from(lines);
    let mut from = end;
    let mut block = Vec::new();
    while from > 0 {
        let begin = from.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        block.clear();
        Read::take(&mut *file, from - begin).read_to_end(&mut block)?;
        for (n, byte) in block.iter().enumerate().rev() {
            let position = begin + n as u64;
            // The very last byte ends the last line, and begins none.
            if *byte == b'\n' && position + 1 != end {
                left = left.saturating_sub(1);
                if left == 0 {
                    return Ok(position + 1);
                }
            }
        }
        from = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_last_lines_are_the_last_lines() {
        let dir = Scratch::new();
        let path = dir.path().join("log");
        let shown = |text: &str, lines| {
            fs::write(&path, text).unwrap();
            let mut out = Vec::new();
            tail(&path, lines, false, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(shown("a\nb\nc", 2), "b\nc");
        assert_eq!(shown("a\nb\nc\n", 3), "a\nb\nc\n");
        assert_eq!(shown("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(shown("a\nb\n", 0), "");
        assert_eq!(shown("", 5), "");
        let long: String = (0..30_000).map(|n| format!("line {n}\n")).collect();
        let all = shown(&long, 20_000);
        assert!(all.starts_with("line 10000\n") && all.ends_with("line 29999\n"));
        assert_eq!(all.lines().count(), 20_000);
    }

    const ROLE: Role = Role {
        program: "minitcptunnel-server",
        title: "MiniTCPTunnel server",
    };

    #[test]
    fn what_to_type_next_is_about_the_same_service() {
        let mut target = Target::default();
        let usual = target.what_next(ROLE, false);
        assert!(
            usual.starts_with("`minitcptunnel-server service start` starts it now"),
            "{usual}"
        );
        target.name = Some("web".to_owned());
        target.manager = Some(Manager::Sysv);
        let again = target.what_next(ROLE, true);
        assert!(
            again.contains(
                "`minitcptunnel-server service stop --name web --manager sysv && \
                 minitcptunnel-server service start --name web --manager sysv`"
            ),
            "{again}"
        );
    }

    #[test]
    fn no_answer_does_not_mean_stopped() {
        for (manager, code, said, up) in [
            (Manager::Systemd, Some(0), "", Some(true)),
            (Manager::Systemd, Some(3), "", Some(false)),
            (Manager::Systemd, Some(1), "Failed to connect to bus", None),
            // OpenRC has a number for each way of not running.
            (Manager::Openrc, Some(32), "", Some(false)),
            (Manager::Sysv, Some(1), "", Some(false)),
            (Manager::Windows, Some(0), "STATE : 4 RUNNING", Some(true)),
            (Manager::Windows, Some(0), "STATE : 1 STOPPED", Some(false)),
            (Manager::Windows, Some(36), "FAILED 1060:", Some(false)),
            (Manager::Windows, Some(5), "OpenSCManager FAILED 5:", None),
        ] {
            assert_eq!(is_up(manager, code, said), up, "{manager} {code:?} {said}");
        }
    }

    #[test]
    fn a_log_that_is_not_there_has_a_reason() {
        let dir = Scratch::new();
        let logs = || {
            let command = Command::Logs {
                target: Target {
                    manager: Some(Manager::Sysv),
                    root: Some(dir.path().to_path_buf()),
                    ..Target::default()
                },
                lines: 5,
                follow: false,
            };
            let wanted = || unreachable!("only an installation is asked for");
            let (mut out, mut err) = (Vec::new(), Vec::new());
            perform(&command, ROLE, wanted, || Ok(()), &mut out, &mut err)
                .map(|_| String::from_utf8(out).unwrap())
        };
        let e = logs().unwrap_err();
        assert!(matches!(e, ServiceError::NotInstalled(_)), "{e}");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/init.d/minitcptunnel-server", "#!/bin/sh\n");
        let e = logs().unwrap_err();
        assert!(matches!(e, ServiceError::Log(..)), "{e}");
        assert!(
            e.to_string()
                .ends_with("yet: the service writes it when it starts"),
            "{e}"
        );
        write(
            "var/log/minitcptunnel-server/minitcptunnel-server.log",
            "a\n",
        );
        assert_eq!(logs().unwrap(), "a\n");
        // The script knows where the configuration has put it.
        write(
            "etc/init.d/minitcptunnel-server",
            "#!/bin/sh\n# Log: /srv/my logs/x\nx --log-file /y\n",
        );
        write("srv/my logs/x", "b\n");
        assert_eq!(logs().unwrap(), "b\n");
    }
}
