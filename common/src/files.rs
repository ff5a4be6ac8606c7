//! Files that must survive a power cut: whole or not there, never half.
//!
//! ```text
//!   create temp (owner only, new name, same folder)
//!        │ write all
//!        │ fsync file            a crash up to here leaves the old file untouched
//!        ▼
//!   publish: rename over the old one (replace)  |  hard link, fails if taken (create_exclusive)
//!        │ fsync folder          from here on the new name survives a power cut
//!        ▼
//!   done
//! ```
//!
//! Every failing step takes the temporary file away again. Only a crash between "create" and
//! "publish" can leave one behind (`.NAME.RANDOM.tmp`, readable by its owner alone).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::{error, fmt};

/// Who may read a file that we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner alone (mode 0600; on Windows its owner, the system and the administrators): keys, and configuration
    /// that holds a key.
    Private,
    /// Whoever the umask allows (mode 0666 before the umask), or what the folder hands down.
    Shared,
}

/// The step at which a write failed, in the order of the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creating the temporary file.
    Create,
    /// Writing the bytes.
    Write,
    /// Flushing the bytes to the disk.
    Sync,
    /// Giving the finished file its name.
    Publish,
    /// Flushing the folder entry to the disk.
    SyncFolder,
}

/// A write that did not happen (or, at [`Step::SyncFolder`], may not survive a power cut).
#[derive(Debug)]
pub struct WriteError {
    /// The file that was to be written.
    pub path: PathBuf,
    /// What failed.
    pub step: Step,
    source: io::Error,
}

impl WriteError {
    /// The kind of the underlying error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Whether `create_exclusive` found the name taken.
    pub fn already_exists(&self) -> bool {
        self.step == Step::Publish && self.kind() == io::ErrorKind::AlreadyExists
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.already_exists() {
            return write!(f, "{path} exists already and is left as it is");
        }
        match self.step {
            Step::Create => write!(
                f,
                "cannot write {path}: no file can be created in its folder"
            )?,
            Step::Write | Step::Sync => {
                write!(f, "cannot write {path}: the disk did not take the data")?;
            }
            Step::Publish => write!(
                f,
                "cannot write {path}: the finished file could not be given its name"
            )?,
            Step::SyncFolder => {
                return write!(
                    f,
                    "{path} was written, but may not survive a power cut: its folder could not be flushed"
                );
            }
        }
        match self.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                f.write_str(" (the file system is read-only; use a place that can be written)")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str(" (permission denied; use a folder that this user may write to)")
            }
            io::ErrorKind::NotFound => f.write_str(" (the folder does not exist; create it first)"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                f.write_str(" (no space left)")
            }
            _ => Ok(()),
        }
    }
}

impl error::Error for WriteError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes `bytes` to `path`, replacing what was there, in one step that a crash cannot split.
///
/// A symbolic link is followed, so that the link stays and its target is replaced. On Unix the
/// owner of an existing file is kept where the system allows it.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<(), WriteError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    write_with(&RealDisk, &target, bytes, access, Publish::Replace)
}

/// Writes `bytes` to a file that must not exist yet. It appears whole or not at all, and an
/// existing one is never replaced ([`WriteError::already_exists`]).
///
/// On a file system without hard links (FAT, some network shares) the name is checked and then
/// taken by a rename: still never half-written, but two programs that create the same file in the
/// same instant are not told apart there.
pub fn create_exclusive(path: &Path, bytes: &[u8], access: Access) -> Result<(), WriteError> {
    write_with(&RealDisk, path, bytes, access, Publish::Exclusive)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    Replace,
    Exclusive,
}

/// The steps as the system does them. The tests let one of them fail, or stop the world there.
trait Disk {
    fn create(&self, temp: &Path, access: Access) -> io::Result<File> {
        #[cfg(windows)]
        if access == Access::Private {
            return crate::winapi::create_private(temp);
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(match access {
                Access::Private => 0o600,
                Access::Shared => 0o666,
            });
        }
        options.open(temp)
    }
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }
    fn rename(&self, temp: &Path, path: &Path) -> io::Result<()> {
        fs::rename(temp, path)
    }
    fn link(&self, temp: &Path, path: &Path) -> io::Result<()> {
        fs::hard_link(temp, path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        sync_folder(folder)
    }
    fn remove(&self, temp: &Path) {
        let _ = fs::remove_file(temp);
    }
}

struct RealDisk;
impl Disk for RealDisk {}

fn write_with(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    access: Access,
    publish: Publish,
) -> Result<(), WriteError> {
    let failed = |step| {
        move |source| WriteError {
            path: path.to_path_buf(),
            step,
            source,
        }
    };
    let folder = folder_of(path);
    let (temp, mut file) = create_temp(disk, path, folder, access).map_err(failed(Step::Create))?;

    let written = (|| {
        disk.write(&mut file, bytes).map_err(failed(Step::Write))?;
        if publish == Publish::Replace {
            keep_owner(path, &file);
        }
        disk.sync(&file).map_err(failed(Step::Sync))
    })();
    // Windows renames no open file.
    drop(file);
    let published = written.and_then(|()| {
        match publish {
            Publish::Replace => disk.rename(&temp, path),
            Publish::Exclusive => take_name(disk, &temp, path),
        }
        .map_err(failed(Step::Publish))
    });
    // After a rename the temporary name is gone; after a link, or a failure, it is litter.
    if published.is_err() || publish == Publish::Exclusive {
        disk.remove(&temp);
    }
    published?;
    disk.sync_folder(folder).map_err(failed(Step::SyncFolder))
}

/// Gives the finished file its name unless the name is taken.
fn take_name(disk: &dyn Disk, temp: &Path, path: &Path) -> io::Result<()> {
    match disk.link(temp, path) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            // No hard links here. `symlink_metadata` also sees a dangling link as "taken".
            match path.symlink_metadata() {
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => disk.rename(temp, path),
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(other) => Err(other),
            }
        }
        other => other,
    }
}

fn create_temp(
    disk: &dyn Disk,
    path: &Path,
    folder: &Path,
    access: Access,
) -> io::Result<(PathBuf, File)> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    };
    // A name that exists belongs to someone else; with 64 random bits the second try is theory.
    for _ in 0..8 {
        let mut random = [0u8; 8];
        orion::util::secure_rand_bytes(&mut random)
            .map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let mut temp_name = std::ffi::OsString::from(".");
        temp_name.push(name);
        temp_name.push(format!(".{:016x}.tmp", u64::from_le_bytes(random)));
        let temp = folder.join(temp_name);
        match disk.create(&temp, access) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (temp, file)),
        }
    }
    Err(io::Error::other("no free temporary name"))
}

/// The folder of a file; a bare name lives in the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A file that root rewrites for somebody stays theirs. Best effort: without the right to give
/// files away the new one is ours, as with any editor.
fn keep_owner(old: &Path, new: &File) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        if let (Ok(old), Ok(meta)) = (fs::metadata(old), new.metadata())
            && (old.uid(), old.gid()) != (meta.uid(), meta.gid())
        {
            let _ = fchown(new, Some(old.uid()), Some(old.gid()));
        }
    }
    #[cfg(not(unix))]
    let _ = (old, new);
}

/// Makes a rename durable. Some file systems cannot flush a folder, and Windows has no such call
/// (there the rename is journalled); that is not an error.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use io::ErrorKind as K;
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            Err(e)
                if matches!(
                    e.kind(),
                    K::InvalidInput | K::Unsupported | K::PermissionDenied
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(())
    }
}

/// A file that could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// There is no such file.
    NotFound(PathBuf),
    /// A folder, device, pipe or socket: reading it might never end.
    NotAFile(PathBuf),
    /// More bytes than such a file can sensibly have.
    TooBig {
        /// The file.
        path: PathBuf,
        /// The most that would have been read.
        max: u64,
    },
    /// The system refused.
    Io(PathBuf, io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(path) => write!(f, "{} does not exist", path.display()),
            Self::NotAFile(path) => write!(f, "{} is not an ordinary file", path.display()),
            Self::TooBig { path, max } => {
                write!(
                    f,
                    "{} is larger than {max} bytes, so it cannot be the right file",
                    path.display()
                )
            }
            Self::Io(path, e) if e.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "{} cannot be read: permission denied; let the user that runs this program read it",
                    path.display()
                )
            }
            Self::Io(path, e) => write!(f, "{} cannot be read: {e}", path.display()),
        }
    }
}

impl error::Error for ReadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io(_, e) => Some(e),
            _ => None,
        }
    }
}

/// Reads a file of at most `max` bytes. Refuses anything that is not an ordinary file, so that a
/// device or pipe given by mistake can neither block nor fill the memory.
pub fn read_small(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    let io = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => ReadError::NotFound(path.to_path_buf()),
        _ => ReadError::Io(path.to_path_buf(), e),
    };
    // Looked at before it is opened, because opening a pipe without a writer blocks.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(ReadError::NotAFile(path.to_path_buf()));
    }
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(ReadError::NotAFile(path.to_path_buf()));
    }
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > max {
        return Err(ReadError::TooBig {
            path: path.to_path_buf(),
            max,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
