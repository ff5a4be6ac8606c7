//! From what was typed to what a service manager is told: absolute paths, and warnings about what will not work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Manager, ServiceError};
use crate::codes::Code;

/// The "key" of the configuration file itself.
pub const CONFIG: &str = "--config";

/// Which of the programs.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Its name, which is that of its service as well.
    pub program: &'static str,
    /// What people are shown.
    pub title: &'static str,
}

/// What the program does with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Reads it.
    Reads,
    /// The same, and it is this program's own secret: it is given to the service's user.
    Owns,
    /// Reads it, or makes it if it is missing.
    Makes,
    /// Writes it, and beside it.
    Writes,
}

/// A file that the configuration names.
#[derive(Clone, Debug)]
pub struct Use {
    /// The key of the configuration.
    pub key: &'static str,
    /// The file, absolute.
    pub path: PathBuf,
    /// What is done with it.
    pub how: How,
}

/// What the command line and the configuration ask for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which program.
    pub role: Role,
    /// The options that the service gets besides `--config` and `--log-file`.
    pub arguments: Vec<String>,
    /// The configuration file, as typed.
    pub config: Option<PathBuf>,
    /// `--log-file`, as typed.
    pub log_file: Option<PathBuf>,
    /// The log file of the configuration.
    pub configured_log: Option<PathBuf>,
    /// The other files of the configuration.
    pub uses: Vec<Use>,
    /// It listens below port 1024.
    pub low_ports: bool,
    /// How long running connections are given at the end.
    pub grace: Duration,
    /// Files in this folder that the program would use if it were started here; as a service it looks for files of
    /// these names in its own folder.
    pub left_here: Vec<PathBuf>,
}

/// What a service manager is told. Every path is absolute, every text can be quoted.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) executable: String,
    pub(super) arguments: Vec<String>,
    pub(super) user: String,
    pub(super) state_dir: String,
    pub(super) log_file: Option<String>,
    pub(super) low_ports: bool,
    /// Folders besides `state_dir` that it writes to.
    pub(super) writable: Vec<String>,
    /// Files that have to belong to its user.
    pub(super) own: Vec<String>,
    /// Something of it lies in somebody's home.
    pub(super) in_home: bool,
    /// How long a stop may take.
    pub(super) stop_seconds: u64,
}

/// How the service shall be called, and the like. Its names have passed [`check_name`].
#[derive(Clone, Debug, Default)]
pub(super) struct Choices {
    pub(super) name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) low_ports: bool,
    pub(super) executable: PathBuf,
}

/// Makes it absolute, and says so if it was not.
pub(super) fn spec(
    manager: Manager,
    wanted: &Wanted,
    choices: &Choices,
) -> Result<(Spec, Vec<String>), ServiceError> {
    let mut warnings = Vec::new();
    let name = choices.name.as_deref().unwrap_or(wanted.role.program);
    let user = choices.user.as_deref().unwrap_or(manager.user());
    let state_dir = manager.state_dir(name);
    for file in &wanted.left_here {
        warnings.extend(left_here(manager, file, user, &state_dir)?);
    }
    let mut arguments = wanted.arguments.clone();
    let mut absolute = |option: &str, typed: &Path| -> Result<String, ServiceError> {
        let path = std::path::absolute(typed)
            .map_err(|e| ServiceError::Unusable(typed.display().to_string(), e.to_string()))?;
        let text = usable(&path)?;
        if typed.is_relative() {
            warnings.push(coded(
                Code::SERVICE_RELATIVE_PATH,
                &format!(
                    "{option} {} is relative; the service gets {text}",
                    typed.display()
                ),
            ));
        }
        Ok(text)
    };

    let mut paths = Vec::new();
    let config = match &wanted.config {
        Some(config) => {
            let config = absolute("--config", config)?;
            paths.push(config.clone());
            arguments.extend(["--config".to_owned(), config.clone()]);
            Some(config)
        }
        None => None,
    };
    let typed_log = match &wanted.log_file {
        Some(typed) => Some(absolute("--log-file", typed)?),
        None => None,
    };
    let configured_log = wanted.configured_log.as_deref().map(usable).transpose()?;
    // NSSM keeps what the program prints, unless that has a log file of its own: two would write and rotate it.
    let own_log = typed_log.is_some() || configured_log.is_some();
    let needs_option = typed_log.is_some() || (!own_log && manager != Manager::Nssm);
    let log_file = typed_log
        .or(configured_log)
        .or_else(|| manager.log_file(name));
    if let Some(file) = log_file.as_ref().filter(|_| needs_option) {
        arguments.extend(["--log-file".to_owned(), file.clone()]);
    }

    let mut writable = Vec::new();
    let mut own = Vec::new();
    let text = config.as_deref().map(std::fs::read_to_string);
    let text = text.and_then(Result::ok).unwrap_or_default();
    for it in &wanted.uses {
        let path = usable(&it.path)?;
        // What is not named there at all has its usual place beside it.
        let named = text.contains(it.key.rsplit('.').next().unwrap_or(it.key));
        if it.key != CONFIG && named && !is_typed(&path, &text) {
            warnings.push(coded(
                Code::SERVICE_RELATIVE_PATH,
                &format!(
                    "{} is not an absolute path; the service takes {path}",
                    it.key
                ),
            ));
        }
        match it.how {
            // What it would make itself if it were missing is its own as well.
            How::Makes if it.path.exists() => {
                if !may_read(&it.path, user) {
                    own.push(path.clone());
                }
            }
            How::Reads if it.path.exists() => {
                if !may_read(&it.path, user) {
                    warnings.push(coded(
                        Code::SERVICE_UNREADABLE,
                        &format!(
                            "{path} ({}) cannot be read by {user}; run: chown {user} {}",
                            it.key,
                            super::scripts::quoted(&path)
                        ),
                    ));
                }
            }
            How::Owns if it.path.exists() => own.push(path.clone()),
            How::Reads => {}
            How::Makes | How::Owns | How::Writes => writable.extend(folder(&path)),
        }
        paths.push(path);
    }
    if let Some(log_file) = &log_file {
        writable.extend(folder(log_file));
        paths.push(log_file.clone());
    }
    writable.retain(|folder| *folder != state_dir);
    writable.sort();
    writable.dedup();
    let executable = usable(&choices.executable)?;
    paths.push(executable.clone());
    let in_home = paths.iter().any(|path| is_in_home(path));
    if in_home && manager == Manager::Systemd {
        warnings.push(coded(
            Code::SERVICE_SEES_HOMES,
            "something of it lies in a home folder, so the unit lets the program see those (ProtectHome=read-only); \
             /usr/local/bin and /etc/minitcptunnel are better places",
        ));
    }
    let spec = Spec {
        role: wanted.role,
        name: name.to_owned(),
        executable,
        arguments,
        user: user.to_owned(),
        state_dir,
        log_file: log_file.filter(|_| !own_log || manager != Manager::Nssm),
        low_ports: wanted.low_ports || choices.low_ports,
        writable,
        own,
        in_home,
        // The program cuts what does not end in time by itself; the rest is for a slow disk.
        stop_seconds: wanted.grace.as_secs().saturating_add(15),
    };
    for argument in &spec.arguments {
        usable(Path::new(argument))?;
    }
    Ok((spec, warnings))
}

/// What to do for the service to find a file that is here, unless here is where it looks.
fn left_here(
    manager: Manager,
    file: &Path,
    user: &str,
    state_dir: &str,
) -> Result<Option<String>, ServiceError> {
    let name = file.file_name().unwrap_or_default().display();
    let from = usable(&std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf()))?;
    if Path::new(&from).parent() == Some(Path::new(state_dir)) {
        return Ok(None);
    }
    let copy = if manager.is_of_windows() {
        let to = super::windows::quoted(&format!(r"{state_dir}\"));
        format!("copy {} {to}", super::windows::quoted(&from))
    } else {
        let from = super::scripts::quoted(&from);
        let to = super::scripts::quoted(&format!("{state_dir}/{name}"));
        // OpenWrt and small Busyboxes have no `install`.
        format!("mkdir -p {state_dir} && cp {from} {to} && chown {user} {to} && chmod 600 {to}")
    };
    Ok(Some(coded(
        Code::SERVICE_OTHER_KEY,
        &format!(
            "{name} lies in this folder, where the service will not look for it; to keep it, run before the first \
             start: {copy}"
        ),
    )))
}

/// Whether a port needs a privilege; 0 is any that is free.
#[must_use]
pub fn is_low(port: u16) -> bool {
    port != 0 && port < 1024
}

/// A line with its code behind it.
pub(super) fn coded(code: Code, text: &str) -> String {
    format!("{text} ({code})")
}

/// As text that every manager can be given: they all read their files line by line.
fn usable(path: &Path) -> Result<String, ServiceError> {
    let no = |why: &str| {
        ServiceError::Unusable(format!("{:?}", path.display().to_string()), why.to_owned())
    };
    let text = path.to_str().ok_or_else(|| no("it is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(no("it contains control characters"));
    }
    Ok(text.to_owned())
}

/// Names of services and users go into file names and commands.
pub(super) fn check_name(what: &str, name: &str, manager: Manager) -> Result<(), ServiceError> {
    let fits = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && (name.chars()).all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        // Files of OpenRC that end so are taken for sources and copies.
        && !(manager == Manager::Openrc && (name.ends_with(".sh") || name.ends_with('.')));
    if fits {
        Ok(())
    } else {
        Err(ServiceError::Unusable(
            format!("{what} {name:?}"),
            "use letters, digits, and - _ . between them".to_owned(),
        ))
    }
}

/// Whether this very path stands in the configuration, also in quotes that double every backslash.
fn is_typed(path: &str, config: &str) -> bool {
    config.contains(path) || config.contains(&path.replace('\\', "\\\\"))
}

fn folder(path: &str) -> Option<String> {
    let folder = Path::new(path).parent()?.to_str()?;
    // On another system than its own a path is but a name.
    if !folder.is_empty() {
        return Some(folder.to_owned());
    }
    path.rsplit_once('\\').map(|(folder, _)| folder.to_owned())
}

fn is_in_home(path: &str) -> bool {
    ["/home/", "/root/", "/run/user/"]
        .iter()
        .any(|home| path.starts_with(home))
}

/// Whether its mode lets this user read it; a user that does not exist yet is nobody's owner.
#[cfg(unix)]
fn may_read(path: &Path, user: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    let owner = super::act::uid_of(user);
    meta.mode() & 0o004 != 0
        || (owner == Some(meta.uid()) && meta.mode() & 0o400 != 0)
        || owner == Some(0)
}

/// Windows decides by lists that are the administrator's to read.
#[cfg(not(unix))]
fn may_read(_: &Path, _: &str) -> bool {
    true
}
