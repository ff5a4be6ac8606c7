//! Steps, shown or done.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::steps::{MARK, Step};
use super::{Manager, ServiceError, scripts, windows};
use crate::files::{self, Access};

/// How much of what a command says is shown if it fails, in characters.
const MOST_SAID: usize = 1000;

/// How steps are to be taken.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) manager: Manager,
    /// Show them, and touch nothing.
    pub(super) print: bool,
    /// Put files of others aside.
    pub(super) force: bool,
    /// Where the system lies that the service is for, if it is not this one: then no command is run.
    pub(super) root: Option<PathBuf>,
}

impl Way {
    /// Where a path of the system lies.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => PathBuf::from(path),
        }
    }

    /// A command as a person would type it.
    pub(super) fn typed(&self, command: &[String]) -> String {
        let quoted = if self.manager.is_of_windows() {
            windows::quoted
        } else {
            scripts::quoted
        };
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }

    /// Takes the steps. What could not be done but is not needed goes into `warnings`.
    pub(super) fn take(
        &self,
        steps: &[Step],
        out: &mut impl Write,
        warnings: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        if !self.print {
            // Before anything is touched.
            for step in steps {
                self.refuse_foreign(step)?;
            }
        }
        for step in steps {
            if self.print {
                // A reader who has seen enough is nobody's problem.
                let _ = self.show(step, out);
            } else {
                self.do_one(step, out, warnings)?;
            }
        }
        Ok(())
    }

    fn refuse_foreign(&self, step: &Step) -> Result<(), ServiceError> {
        let (Step::File { path, .. } | Step::Remove(path)) = step else {
            return Ok(());
        };
        let path = self.place(path);
        let foreign = match fs::read(&path) {
            Ok(text) => !String::from_utf8_lossy(&text).contains(MARK),
            // Also one that cannot be read, or a link to nowhere, is somebody's.
            Err(_) => path.symlink_metadata().is_ok(),
        };
        if foreign && !self.force {
            return Err(ServiceError::Foreign(path));
        }
        Ok(())
    }

    fn show(&self, step: &Step, out: &mut impl Write) -> io::Result<()> {
        match step {
            Step::Folder(path, user) if user.is_empty() => writeln!(out, "# folder {path}"),
            Step::Folder(path, user) => {
                writeln!(out, "# folder {path}, of {user}, unless it is there")
            }
            Step::File {
                path,
                text,
                executable,
            } => {
                let mode = if *executable { "755" } else { "644" };
                writeln!(out, "# file {path}, mode {mode}:\n{text}# end of {path}")
            }
            Step::Give(path, user) => {
                let path = scripts::quoted(path);
                writeln!(out, "chown {user} {path} && chmod 600 {path}")
            }
            Step::Remove(path) => writeln!(out, "rm {}", scripts::quoted(path)),
            Step::User(user, ways) => {
                writeln!(out, "# unless there is a user {user}:")?;
                self.show_ways(ways, out)
            }
            Step::Run(command) => writeln!(out, "{}", self.typed(command)),
            Step::Try(command) => {
                writeln!(out, "{}    # may fail", self.typed(command))
            }
            Step::First(ways) => self.show_ways(ways, out),
        }
    }

    fn show_ways(&self, ways: &[Vec<String>], out: &mut impl Write) -> io::Result<()> {
        for (n, way) in ways.iter().enumerate() {
            let or = if n > 0 { "# or, without that: " } else { "" };
            writeln!(out, "{or}{}", self.typed(way))?;
        }
        Ok(())
    }

    fn do_one(
        &self,
        step: &Step,
        out: &mut impl Write,
        warnings: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        let mut say = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        match step {
            Step::Folder(path, user) => {
                let place = self.place(path);
                if place.is_dir() {
                    return Ok(());
                }
                let file = |e| ServiceError::File(place.clone(), e);
                fs::create_dir_all(&place).map_err(file)?;
                if !user.is_empty() && self.root.is_none() {
                    own(&place, user).map_err(file)?;
                }
                say(format!("made {}", place.display()));
            }
            Step::File {
                path,
                text,
                executable,
            } => {
                let place = self.place(path);
                if let Some(folder) = place.parent().filter(|_| self.root.is_some()) {
                    fs::create_dir_all(folder)
                        .map_err(|e| ServiceError::File(folder.to_path_buf(), e))?;
                }
                // A masked unit leads to /dev/null, which is not what is to be replaced.
                if (place.symlink_metadata()).is_ok_and(|meta| meta.file_type().is_symlink()) {
                    fs::remove_file(&place).map_err(|e| ServiceError::File(place.clone(), e))?;
                }
                files::replace(&place, text.as_bytes(), Access::Shared)
                    .map_err(ServiceError::Write)?;
                set_mode(&place, if *executable { 0o755 } else { 0o644 })
                    .map_err(|e| ServiceError::File(place.clone(), e))?;
                say(format!("wrote {}", place.display()));
            }
            Step::Give(path, user) => {
                if self.root.is_some() {
                    say(format!("not done for another root: chown {user} {path}"));
                    return Ok(());
                }
                let place = PathBuf::from(path);
                give(&place, user).map_err(|e| ServiceError::File(place.clone(), e))?;
                say(format!(
                    "{path} belongs to {user} now, who alone may read it"
                ));
            }
            Step::Remove(path) => {
                let place = self.place(path);
                match fs::remove_file(&place) {
                    Ok(()) => say(format!("removed {}", place.display())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(ServiceError::File(place, e)),
                }
            }
            Step::User(user, _) if self.root.is_none() && uid_of(user).is_some() => {}
            Step::User(_, ways) | Step::First(ways) => {
                let here = ways.iter().find(|way| is_here(&way[0])).unwrap_or(&ways[0]);
                self.run(here, out)?;
            }
            Step::Run(command) => self.run(command, out)?,
            Step::Try(command) => {
                if let Err(e) = self.run(command, out) {
                    warnings.push(e.to_string());
                }
            }
        }
        Ok(())
    }

    /// Runs a command of the manager. What it prints is shown if it fails.
    fn run(&self, command: &[String], out: &mut impl Write) -> Result<(), ServiceError> {
        let typed = self.typed(command);
        if self.root.is_some() {
            let _ = writeln!(out, "not run for another root: {typed}");
            return Ok(());
        }
        let failed = |why: String| ServiceError::Failed(typed.clone(), why);
        // Into a file and not a pipe: what a start leaves running would keep a pipe open for ever.
        let said = Said::new().map_err(|e| failed(format!("was not run: {e}")))?;
        let status = said
            .catch(Command::new(&command[0]).args(&command[1..]))
            .and_then(|command| command.stdin(Stdio::null()).status())
            .map_err(|e| failed(format!("could not be run: {e}")))?;
        if status.success() {
            return Ok(());
        }
        // Some have much to say about their last moments.
        let said: String = said.text().trim().chars().take(MOST_SAID).collect();
        Err(failed(match said.trim() {
            "" => format!("failed ({status})"),
            said => format!("failed ({status}): {said}"),
        }))
    }
}

/// What a command has said.
struct Said(PathBuf);

impl Said {
    fn new() -> io::Result<Self> {
        let mut random = [0u8; 8];
        orion::util::secure_rand_bytes(&mut random)
            .map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let name = format!("minitcptunnel-{:016x}.out", u64::from_le_bytes(random));
        let path = std::env::temp_dir().join(name);
        files::create_exclusive(&path, b"", Access::Private).map_err(io::Error::other)?;
        Ok(Self(path))
    }

    fn catch<'a>(&self, command: &'a mut Command) -> io::Result<&'a mut Command> {
        let open = || fs::OpenOptions::new().append(true).open(&self.0);
        Ok(command.stdout(open()?).stderr(open()?))
    }

    fn text(&self) -> String {
        let bytes = fs::read(&self.0).unwrap_or_default();
        // NSSM speaks UTF-16.
        let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs a command whose output is the answer; its exit code, if it was not killed, and what it said.
pub(super) fn ask(command: &[String]) -> io::Result<(Option<i32>, String)> {
    let said = Said::new()?;
    let status = said
        .catch(Command::new(&command[0]).args(&command[1..]))?
        .stdin(Stdio::null())
        .status()?;
    Ok((status.code(), said.text()))
}

/// Whether this system has a command.
pub(super) fn is_here(command: &str) -> bool {
    let path = Path::new(command);
    if path.is_absolute() {
        return path.exists();
    }
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let listed = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&listed).chain(usual);
    let names = [command.to_owned(), format!("{command}.exe")];
    folders.any(|folder| names.iter().any(|name| folder.join(name).is_file()))
}

/// The number of a user, if the machine has him in its own list.
pub(super) fn uid_of(user: &str) -> Option<u32> {
    if user == "root" {
        return Some(0);
    }
    id_of("/etc/passwd", user, 2)
}

/// The number in the third field, of the line that begins with this name.
fn id_of(file: &str, name: &str, field: usize) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|line| line.first() == Some(&name))?;
    line.get(field)?.parse().ok()
}

/// The number of a user to whom something is to be given, and that of his group.
#[cfg(unix)]
fn ids_of(user: &str) -> io::Result<(u32, Option<u32>)> {
    let uid = uid_of(user).ok_or_else(|| {
        io::Error::other(format!("there is no user {user} to whom it could be given"))
    })?;
    Ok((uid, id_of("/etc/passwd", user, 3)))
}

/// Gives a file to a user, who alone may read it. The file itself, whatever its folder's owner may put in its place
/// meanwhile: no link is followed, and none may lead here from elsewhere.
#[cfg(unix)]
pub(super) fn give(path: &Path, user: &str) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use rustix::fs::{Mode, OFlags};
    let (uid, gid) = ids_of(user)?;
    // A pipe must not make this wait either.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(io::Error::other(
            "it is no plain file, or has a second name elsewhere; put a file of its own there",
        ));
    }
    std::os::unix::fs::fchown(&file, Some(uid), gid)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
pub(super) fn give(_: &Path, _: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn own(path: &Path, user: &str) -> io::Result<()> {
    let (uid, gid) = ids_of(user)?;
    std::os::unix::fs::chown(path, Some(uid), gid)
}

#[cfg(not(unix))]
fn own(_: &Path, _: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}
