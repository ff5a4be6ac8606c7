//! Why a service command failed.

use std::io;
use std::path::PathBuf;
use std::{error, fmt};

use super::Manager;
use crate::codes::{Code, Coded};
use crate::exit::ExitCode;
use crate::files::WriteError;

/// Why a service command failed.
#[derive(Debug)]
pub enum ServiceError {
    /// This user may not.
    NotRoot,
    /// None of the known service managers is here.
    NoManager,
    /// This one cannot be here.
    WrongSystem(Manager),
    /// A file of that name is there, and we did not write it.
    Foreign(PathBuf),
    /// The manager's command failed or is not there.
    Failed(String, String),
    /// A name or path that cannot be handed to a service manager.
    Unusable(String, String),
    /// There is no such service.
    NotInstalled(String),
    /// A file could not be written.
    Write(WriteError),
    /// A file or folder could not be changed otherwise.
    File(PathBuf, io::Error),
    /// The log cannot be read.
    Log(PathBuf, io::Error),
    /// The service's folder cannot be entered.
    Folder(PathBuf, io::Error),
    /// Somebody else than the manager of Windows calls `service run`.
    NotCalled(String),
    /// The configuration cannot be used.
    Config(String, Code),
}

impl Coded for ServiceError {
    fn code(&self) -> Code {
        match self {
            Self::NotRoot => Code::SERVICE_NOT_ROOT,
            Self::NoManager | Self::WrongSystem(_) => Code::SERVICE_NO_MANAGER,
            Self::Foreign(_) => Code::SERVICE_FOREIGN_FILE,
            Self::Failed(..) => Code::SERVICE_COMMAND_FAILED,
            Self::Unusable(..) => Code::SERVICE_UNUSABLE_TEXT,
            Self::NotInstalled(_) => Code::SERVICE_NOT_INSTALLED,
            Self::Write(_) | Self::File(..) => Code::SERVICE_FILE_NOT_WRITTEN,
            Self::Log(..) => Code::SERVICE_LOG_UNREADABLE,
            Self::Folder(..) => Code::SERVICE_FOLDER,
            Self::NotCalled(_) => Code::SERVICE_NOT_CALLED,
            Self::Config(_, code) => *code,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_, code) => code.exit_code().unwrap_or(ExitCode::Failure),
            Self::Unusable(..) | Self::NotCalled(_) => ExitCode::Usage,
            _ => ExitCode::Failure,
        }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot => f.write_str(
                "only root may change services; run it again with sudo, or with --print to see what it would do",
            ),
            Self::NoManager => f.write_str(
                "no service manager was found here (systemd, OpenRC, procd, SysV init); name it with --manager",
            ),
            Self::WrongSystem(manager) => write!(
                f,
                "{manager} does not exist on this system; --print shows what would be done on one where it does"
            ),
            Self::Foreign(path) => write!(
                f,
                "{} is there already, and was not written by `service install`; it is left as it is. \
                 Move it away, choose another --name, or insist with --force",
                path.display()
            ),
            Self::Failed(command, why) => write!(f, "`{command}` {why}"),
            Self::Unusable(what, why) => write!(f, "{what} cannot be used for a service: {why}"),
            Self::NotInstalled(name) => write!(
                f,
                "there is no service {name} here; `service install` makes one"
            ),
            Self::Write(e) => e.fmt(f),
            Self::File(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Log(path, e) => {
                let path = path.display();
                match e.kind() {
                    io::ErrorKind::NotFound => write!(
                        f,
                        "there is no log {path} yet: the service writes it when it starts"
                    ),
                    io::ErrorKind::PermissionDenied => write!(
                        f,
                        "only root and the service's user may read {path}; run it again with sudo"
                    ),
                    _ => write!(f, "{path} cannot be read: {e}"),
                }
            }
            Self::Folder(path, e) => write!(
                f,
                "the service cannot run in the folder {}: {e}; make it, or install the service anew",
                path.display()
            ),
            Self::NotCalled(why) => write!(
                f,
                "only the service manager of Windows calls `service run` ({why}); `run` runs in a terminal"
            ),
            Self::Config(text, ..) => f.write_str(text),
        }
    }
}

impl error::Error for ServiceError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Write(e) => e.source(),
            Self::File(_, e) | Self::Log(_, e) | Self::Folder(_, e) => Some(e),
            _ => None,
        }
    }
}
