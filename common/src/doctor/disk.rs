//! Files: the log, and who may read a key.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Finding;
use crate::codes::Code;
use crate::files::folder_of;
use crate::identity::exposed;
use crate::log::{LogOptions, Rotation, file as log_file};

const MIB: u64 = 1024 * 1024;
/// Room that a disk should have left before anybody worries.
const ROOM: u64 = 64 * MIB;
/// What the findings here are called.
const LOG: &str = "log";

/// Whether the log file can be written, and has room. It is tried, as rights alone do not tell (a file system that is
/// read-only, access lists); a file that is there stays as it is, and nothing that was made for the trial is left.
///
/// `configured`: whether the configuration is in `options`. Where it is broken nobody knows what it says of the log, but
/// a start would tell of that in the file that the command line names.
#[must_use]
pub fn log_of(options: &LogOptions, configured: bool) -> Vec<Finding> {
    if configured || options.file().is_some() {
        log(options)
    } else {
        Vec::new()
    }
}

fn log(options: &LogOptions) -> Vec<Finding> {
    let Some(file) = options.file() else {
        let what = "goes to stdout alone, which whoever starts the program keeps";
        return vec![Finding::ok(LOG, what)];
    };
    let rotation = options.rotation();
    let folder = match writable(file, rotation) {
        Ok(folder) => folder,
        Err(found) => return vec![found],
    };
    let wants = rotation.max_size.unwrap_or(0);
    let wants = wants.saturating_mul(u64::from(rotation.keep) + 1);
    match room(&folder) {
        Some(room) if room < ROOM || room < wants => {
            let what = format!(
                "{} can be written, but {} MiB are left on its disk, and with rotation it may take {} MiB",
                file.display(),
                room / MIB,
                wants / MIB
            );
            vec![Finding::warning(LOG, Code::DISK_NEARLY_FULL, what)]
        }
        room => {
            let room = room.map_or_else(String::new, |room| {
                format!(", {} MiB are left on its disk", room / MIB)
            });
            vec![Finding::ok(
                LOG,
                format!("{} can be written{room}", file.display()),
            )]
        }
    }
}

/// The folder that has the log or, where folders are missing, will have them.
fn writable(file: &Path, rotation: Rotation) -> Result<PathBuf, Finding> {
    let name = file.display();
    let unwritable = |e: &io::Error| {
        let what = format!("{name} cannot be written: {e}");
        Finding::error(LOG, Code::of_log_file(e), what)
    };
    let about = match fs::metadata(file) {
        Ok(about) => about,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Behind a link that leads nowhere, the file is made where it leads, but no folder is.
            let target = target_of(file);
            if target != file && !folder_of(&target).is_dir() {
                let what = format!("it leads to {}, where no folder is", target.display());
                return Err(unwritable(&io::Error::new(e.kind(), what)));
            }
            return takes_log(&target).map_err(|e| unwritable(&e));
        }
        Err(e) => return Err(unwritable(&e)),
    };
    // As a run does: a system may refuse to open what is there in a way that could make it.
    log_file::append_to(file, about.is_file()).map_err(|e| unwritable(&e))?;
    // Of devices and the like nothing is renamed.
    let rotates = rotation.max_size.is_some() || rotation.interval.is_some();
    if about.is_file() && rotates {
        let tried = may_rename(file).and_then(|()| takes_log(file).map(drop));
        tried.map_err(|e| {
            let what = format!("{name} can be written, but not rotated: {e}");
            Finding::warning(LOG, Code::LOG_NOT_ROTATED, what)
        })?;
    }
    Ok(folder_of(file).to_owned())
}

/// Where a rename needs a right to the file itself: in a folder for everybody (`/tmp`), and on Windows, where others who
/// have it open can forbid it, too.
fn may_rename(file: &Path) -> io::Result<()> {
    #[cfg(unix)]
    may_rename_as(file, rustix::process::geteuid().as_raw())?;
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt as _;
        /// `DELETE` of winnt.h, which is what a rename asks for.
        const DELETE: u32 = 0x0001_0000;
        OpenOptions::new()
            .access_mode(DELETE)
            .open(file)
            .map(drop)?;
    }
    Ok(())
}

/// In a sticky folder only the owner of the file or of the folder may, and root.
#[cfg(unix)]
fn may_rename_as(file: &Path, user: u32) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    const STICKY: u32 = 0o1000;
    let folder = fs::metadata(folder_of(file))?;
    let owners = [fs::symlink_metadata(file)?.uid(), folder.uid(), 0];
    if folder.mode() & STICKY != 0 && !owners.contains(&user) {
        let what =
            "the file is somebody else's, in a folder where everybody may rename only his own";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// Makes a file beside where `file` is or will be, with all folders that are missing, and takes everything away again.
/// The name is not that of the log: a program that starts in this moment must not lose its own.
fn takes_log(file: &Path) -> io::Result<PathBuf> {
    let folder = folder_of(file);
    let missing =
        |folder: &&Path| !folder.as_os_str().is_empty() && fs::symlink_metadata(folder).is_err();
    // Only the first that is missing: what is in a folder of our own we may do.
    let first = folder.ancestors().take_while(missing).last();
    let there = first.map_or(folder, folder_of);
    if !there.is_dir() {
        let e = format!("{} is no folder", there.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, e));
    }
    match first {
        None => tried(&file_for_trial(file), make_and_remove)?,
        Some(first) => tried(&file_for_trial(first), |it| {
            fs::create_dir(it)?;
            let name = file.file_name().unwrap_or_default();
            let made = make_and_remove(&file_for_trial(&it.join(name)));
            fs::remove_dir(it).and(made)
        })?,
    }
    Ok(there.to_owned())
}

fn make_and_remove(file: &Path) -> io::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    made.map(drop).and_then(|()| fs::remove_file(file))
}

/// Does it, and tells where.
fn tried(path: &Path, with: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    with(path).map_err(|e| {
        let why = if fs::symlink_metadata(path).is_ok() {
            format!(
                "{e} ({} could be made, but not be taken away)",
                path.display()
            )
        } else {
            format!("{e} (tried in {})", folder_of(path).display())
        };
        io::Error::new(e.kind(), why)
    })
}

/// A name beside `path` that nobody has.
fn file_for_trial(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut name = OsString::from(path);
    name.push(format!(
        ".doctor-{}-{}",
        process::id(),
        now.map_or(0, |now| now.subsec_nanos())
    ));
    name.into()
}

/// What is at the end of links. The system itself has followed them before, so they do not lead in a circle.
fn target_of(file: &Path) -> PathBuf {
    let mut at = file.to_owned();
    // Unless somebody bends them meanwhile: no more than the system follows.
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&at) else { break };
        at = folder_of(&at).join(next);
    }
    at
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::log::Logging;
    use crate::scratch::Scratch;

    const NEVER: Rotation = Rotation {
        max_size: None,
        interval: None,
        keep: 3,
    };

    /// As the command line asks for it.
    pub(super) fn typed(file: impl Into<PathBuf>, rotation: Rotation) -> LogOptions {
        LogOptions {
            file: Some(file.into()),
            configured: Logging {
                rotation,
                ..Logging::default()
            },
            ..LogOptions::default()
        }
    }

    /// The one finding.
    fn found(file: impl Into<PathBuf>, rotation: Rotation) -> (Level, Option<Code>, String) {
        let mut found = log(&typed(file, rotation));
        assert_eq!(found.len(), 1, "{found:?}");
        let found = found.remove(0);
        (found.level, found.code, found.what)
    }

    const UNWRITABLE: (Level, Option<Code>) = (Level::Error, Some(Code::LOG_UNWRITABLE));

    #[test]
    fn a_log_is_tried_and_everything_left_as_it_was() {
        let scratch = Scratch::new();
        let file = scratch.path().join("a.log");
        fs::write(&file, "x").unwrap();
        for (place, wanted) in [
            ("new.log", (Level::Ok, None)),
            ("logs/deep/new.log", (Level::Ok, None)),
            ("a.log", (Level::Ok, None)),
            // A file where a folder should be, near and far; a folder where the file should be.
            ("a.log/b.log", UNWRITABLE),
            ("a.log/deep/b.log", UNWRITABLE),
            (".", UNWRITABLE),
        ] {
            for rotation in [NEVER, Rotation::USUAL] {
                let (level, code, what) = found(scratch.path().join(place), rotation);
                assert_eq!((level, code), wanted, "{place}: {what}");
            }
        }
        assert_eq!(scratch.names(), ["a.log"], "nothing was left behind");
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
    }

    #[test]
    fn what_the_configuration_names_counts_where_the_command_line_is_silent() {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("a.log"), "x").unwrap();
        let mut options = LogOptions::default();
        assert_eq!(log(&options)[0].level, Level::Ok);
        assert!(log(&options)[0].what.contains("stdout alone"));
        options.configured.file = Some(scratch.path().join("a.log/b.log"));
        assert_eq!(log(&options)[0].code, Some(Code::LOG_UNWRITABLE));
        options.file = Some(scratch.path().join("a.log"));
        assert_eq!(log(&options)[0].level, Level::Ok);
    }

    /// A bare name, as it is typed, is one in the folder we are in.
    #[test]
    fn a_bare_name_has_a_folder() {
        for (path, folder) in [("a.log", "."), ("logs/a.log", "logs"), ("./a.log", ".")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
        }
        // Nothing is made by a name that no file can bear.
        let (level, code, what) = found("a\0.log", NEVER);
        assert_eq!((level, code), UNWRITABLE, "{what}");
        // What is looked for from here must not be taken for missing.
        assert!(takes_log(Path::new("no such folder/a.log")).is_ok());
        assert!(!Path::new("no such folder").exists());
    }

    #[test]
    fn a_disk_that_rotation_would_fill_is_told() {
        let scratch = Scratch::new();
        let rotation = Rotation {
            max_size: Some(1 << 40),
            keep: 1000,
            ..Rotation::default()
        };
        let (_, code, what) = found(scratch.path().join("a.log"), rotation);
        // Windows does not tell how much there is.
        let wanted = cfg!(unix).then_some(Code::DISK_NEARLY_FULL);
        assert_eq!(code, wanted, "{what}");
    }
}

#[cfg(all(test, unix))]
mod unix {
    use super::tests::typed;
    use super::*;
    use crate::doctor::Level;
    use crate::scratch::Scratch;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn found(file: PathBuf, rotation: Rotation) -> Finding {
        log(&typed(file, rotation)).remove(0)
    }

    /// `/proc` has the right modes and takes no file, from root neither.
    #[cfg(target_os = "linux")]
    #[test]
    fn rights_are_not_believed() {
        for place in ["/proc/x.log", "/proc/logs/deep/x.log"] {
            let found = found(place.into(), Rotation::USUAL);
            assert_eq!(found.level, Level::Error, "{found:?}");
            assert_eq!(found.code, Some(Code::LOG_UNWRITABLE));
            assert!(found.what.ends_with("(tried in /proc)"), "{found:?}");
        }
    }

    /// A file that can be written, in a folder that takes no other.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_matters_to_rotation_alone() {
        let file = PathBuf::from(format!("/proc/{}/comm", process::id()));
        let before = fs::read(&file).unwrap();
        let never = Rotation {
            max_size: None,
            ..Rotation::USUAL
        };
        let daily = Rotation {
            interval: Some(std::time::Duration::from_secs(86400)),
            ..never
        };
        for rotation in [Rotation::USUAL, daily] {
            let found = found(file.clone(), rotation);
            assert_eq!(found.level, Level::Warning, "{found:?}");
            assert_eq!(found.code, Some(Code::LOG_NOT_ROTATED));
        }
        let one = found(file.clone(), never);
        // Of its disk nothing is said here: that has no room at all.
        assert_ne!(one.code, Some(Code::LOG_NOT_ROTATED), "{one:?}");
        assert_eq!(fs::read(&file).unwrap(), before);
        // A device is never renamed.
        let one = found("/dev/null".into(), Rotation::USUAL);
        assert_ne!(one.code, Some(Code::LOG_NOT_ROTATED), "{one:?}");
    }

    #[test]
    fn links_are_followed_to_where_the_file_will_be() {
        let scratch = Scratch::new();
        let at = |name: &str| scratch.path().join(name);
        fs::write(at("file"), "x").unwrap();
        for (name, target, level) in [
            ("to-nothing", "later.log", Level::Ok),
            ("to-no-folder", "nowhere/deep/later.log", Level::Error),
            ("into-a-file", "file/later.log", Level::Error),
            ("to-a-link", "into-a-file", Level::Error),
            ("round", "round", Level::Error),
        ] {
            symlink(target, at(name)).unwrap();
            let found = found(at(name), Rotation::USUAL);
            assert_eq!(found.level, level, "{name}: {found:?}");
        }
        symlink("nowhere", at("folder")).unwrap();
        let one = found(at("folder/a.log"), Rotation::USUAL);
        assert_eq!(one.level, Level::Error, "{one:?}");
        let left = [
            "file",
            "folder",
            "into-a-file",
            "round",
            "to-a-link",
            "to-no-folder",
            "to-nothing",
        ];
        assert_eq!(scratch.names(), left);
    }

    #[test]
    fn in_a_folder_for_everybody_each_renames_his_own() {
        let scratch = Scratch::new();
        let (folder, file) = (scratch.path().join("tmp"), scratch.path().join("tmp/a.log"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "x").unwrap();
        let own = rustix::process::geteuid().as_raw();
        let other = own + 1;
        for (mode, user, may) in [
            (0o777, other, true),
            (0o1777, other, false),
            (0o1777, own, true),
            (0o1777, 0, true),
        ] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(may_rename_as(&file, user).is_ok(), may, "{mode:o} {user}");
        }
    }

    #[test]
    fn a_pipe_is_refused_instead_of_waited_for() {
        let scratch = Scratch::new();
        let pipe = scratch.path().join("pipe");
        let made = process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let found = found(pipe, Rotation::USUAL);
        assert_eq!(found.code, Some(Code::LOG_UNWRITABLE), "{found:?}");
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
