//! Files: the log, and who may read a key.

use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::codes::Code;
use crate::identity::exposed;
use crate::log::Logging;

const MIB: u64 = 1024 * 1024;
/// Room that a disk should have left before anybody worries.
const ROOM: u64 = 64 * MIB;

/// Whether the log file can be written, and has room. A file that is there is opened and left as it is.
#[must_use]
pub fn log(logging: &Logging) -> Vec<Finding> {
    const CHECK: &str = "log";
    let Some(file) = &logging.file else {
        let what = "goes to stdout alone, which whoever starts the program keeps";
        return vec![Finding::ok(CHECK, what)];
    };
    let unwritable = |why: String| {
        let what = format!("{} cannot be written: {why}", file.display());
        vec![Finding::error(CHECK, Code::LOG_UNWRITABLE, what)]
    };
    let folder = file.parent().unwrap_or(Path::new("."));
    if file.exists()
        && let Err(e) = fs::OpenOptions::new().append(true).open(file)
    {
        return unwritable(e.to_string());
    }
    // The program makes folders that are missing. For rotation it writes to the folder, too.
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else {
        return unwritable(format!("there is no folder {}", folder.display()));
    };
    if !there.is_dir() {
        return unwritable(format!("{} is no folder", there.display()));
    }
    if let Err(e) = may_write(there) {
        if file.exists() {
            let what = format!(
                "{} can be written, but not rotated: its folder cannot be ({e})",
                file.display()
            );
            return vec![Finding::warning(CHECK, Code::LOG_UNWRITABLE, what)];
        }
        return unwritable(format!("{}: {e}", there.display()));
    }
    let wants = logging.rotation.max_size.unwrap_or(0);
    let wants = wants.saturating_mul(u64::from(logging.rotation.keep) + 1);
    match room(there) {
        Some(room) if room < ROOM || room < wants => {
            let what = format!(
                "{} can be written, but {} MiB are left on its disk, and with rotation it may take {} MiB",
                file.display(),
                room / MIB,
                wants / MIB
            );
            vec![Finding::warning(CHECK, Code::DISK_NEARLY_FULL, what)]
        }
        room => {
            let room = room.map_or_else(String::new, |room| {
                format!(", {} MiB are left on its disk", room / MIB)
            });
            vec![Finding::ok(
                CHECK,
                format!("{} can be written{room}", file.display()),
            )]
        }
    }
}

/// Whether this user may make files in a folder, without making one.
fn may_write(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(Into::into)
    }
    // Its access lists tell only whoever tries.
    #[cfg(not(unix))]
    fs::metadata(folder).map(drop)
}

/// Bytes that are left for this user. `None` where the system does not tell.
fn room(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Files with secret keys that others on this machine may read.
#[must_use]
pub fn secrets(files: &[PathBuf]) -> Vec<Finding> {
    let open = files.iter().filter_map(|file| exposed(file));
    open.map(|it| Finding::warning("key", Code::KEY_READABLE, it.what).cure(it.cure))
        .collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::log::Rotation;
    use crate::scratch::Scratch;
    use std::os::unix::fs::PermissionsExt;

    fn logging(file: PathBuf) -> Logging {
        Logging {
            file: Some(file),
            ..Logging::default()
        }
    }

    #[test]
    fn a_log_is_looked_at_and_left_alone() {
        let scratch = Scratch::new();
        let found = log(&logging(scratch.path().join("logs/deep/a.log")));
        assert_eq!(found[0].level, Level::Ok, "{found:?}");
        assert!(scratch.names().is_empty(), "nothing was made");
        fs::write(scratch.path().join("a.log"), "x").unwrap();
        let found = log(&logging(scratch.path().join("a.log/b.log")));
        assert_eq!(found[0].code, Some(Code::LOG_UNWRITABLE), "{found:?}");
        assert_eq!(found[0].level, Level::Error);
        let found = log(&logging(scratch.path().to_owned()));
        assert_eq!(found[0].level, Level::Error, "a folder: {found:?}");
        assert_eq!(log(&Logging::default())[0].level, Level::Ok);
    }

    #[test]
    fn a_disk_that_rotation_would_fill_is_told() {
        let scratch = Scratch::new();
        let logging = Logging {
            rotation: Rotation {
                max_size: Some(1 << 40),
                keep: 1000,
                ..Rotation::default()
            },
            ..logging(scratch.path().join("a.log"))
        };
        let found = log(&logging);
        assert_eq!(found[0].code, Some(Code::DISK_NEARLY_FULL), "{found:?}");
    }

    #[test]
    fn a_key_that_others_may_read_is_told_with_the_command_that_mends_it() {
        let scratch = Scratch::new();
        let file = scratch.path().join("key.hex");
        assert!(secrets(std::slice::from_ref(&file)).is_empty(), "not there");
        fs::write(&file, "x").unwrap();
        for (mode, told) in [(0o600, 0), (0o644, 1)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(secrets(std::slice::from_ref(&file)).len(), told, "{mode:o}");
        }
        let found = secrets(std::slice::from_ref(&file)).remove(0);
        assert_eq!(found.cure, Some(format!("chmod 600 {}", file.display())));
    }
}
