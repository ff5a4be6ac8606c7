//! The log file: lines are appended whole, and a new file is begun between two of them.
//!
//! ```text
//!   line --> once a second: is FILE still the file that is open? --moved or gone--> open FILE again
//!        --> would it grow too large, or has a new day begun? --> FILE.1 -> FILE.2, FILE -> FILE.1, open FILE
//!        --> append
//! ```
//!
//! Written here and not taken from the crate file-rotate (0.8), for what this program promises about its log:
//! there a file that could not be opened swallows lines and reports success, so nobody could count them; a file
//! that logrotate has moved is not noticed; size and time exclude each other; and chrono and flate2 would come
//! into the tree for it. What is needed is one rename per old file, and the calendar is in `line` already.
//!
//! Nothing here retries or reports: an error goes to the writer of the queue, which counts the line and says so.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::settings::Rotation;
use crate::codes::Code;

/// How often it is asked whether the file was moved or cut short by others. Performance: one `stat` a second.
const LOOK: Duration = Duration::from_secs(1);
/// After a rotation that failed. Semantics: the file grows meanwhile, and one line a minute says so.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);

/// The time, as the tests and the system tell it.
type Clock = Box<dyn Fn() -> SystemTime + Send>;

/// A file that lines are appended to. Each `write` that begins a line must bring the whole of it.
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    clock: Clock,
    open: Option<Open>,
    /// When it was last compared with what has its name.
    looked: SystemTime,
    /// When rotation last failed.
    stuck: Option<SystemTime>,
}

/// The file as it is open now.
struct Open {
    file: File,
    id: FileId,
    /// Devices and the like are neither measured nor renamed.
    regular: bool,
    size: u64,
    /// When the last line was written to it.
    written: SystemTime,
    /// It ends in the middle of a line.
    torn: bool,
}

impl LogFile {
    /// Nothing is opened before the first line.
    pub(super) fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self::with_clock(path, rotation, Box::new(SystemTime::now))
    }

    fn with_clock(path: PathBuf, rotation: Rotation, clock: Clock) -> Self {
        Self {
            path,
            rotation,
            clock,
            open: None,
            looked: UNIX_EPOCH,
            stuck: None,
        }
    }

    /// Its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what has the name now; lines from here on go there.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        self.ready(0).map(drop)
    }

    /// The open file, in a state to take a line of so many bytes.
    fn ready(&mut self, line: u64) -> io::Result<&mut Open> {
        let now = (self.clock)();
        let open = match self.open.take() {
            // The rest of a line belongs to its beginning.
            Some(open) if open.torn => open,
            open => self.between_lines(open, now, line)?,
        };
        Ok(self.open.insert(open))
    }

    fn between_lines(
        &mut self,
        open: Option<Open>,
        now: SystemTime,
        line: u64,
    ) -> io::Result<Open> {
        let open = match open.and_then(|open| self.still_there(open, now)) {
            Some(open) => open,
            None => {
                self.looked = now;
                open_file(&self.path, now)?
            }
        };
        if !self.is_due(&open, now, line) {
            return Ok(open);
        }
        // Before the rename: some file systems do not rename what is open.
        drop(open);
        self.stuck = match shift(&self.path, self.rotation.keep) {
            Ok(()) => None,
            Err(error) => {
                // From the thread that writes the log, into its own queue: it never waits there.
                ::log::warn!(
                    target: "log",
                    "the log file {} could not be rotated: {error}; it goes on growing, next attempt in {} s code={}",
                    self.path.display(),
                    ROTATE_AGAIN.as_secs(),
                    Code::LOG_NOT_ROTATED
                );
                Some(now)
            }
        };
        open_file(&self.path, now)
    }

    /// The same file, if it still has its name. What others did to its length is taken over.
    fn still_there(&mut self, mut open: Open, now: SystemTime) -> Option<Open> {
        if !has_passed(LOOK, self.looked, now) {
            return Some(open);
        }
        self.looked = now;
        match FileId::of_path(&self.path) {
            Ok((id, length)) if id == open.id => {
                open.size = length;
                Some(open)
            }
            Ok(_) => None,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                None
            }
            // It may be there or not, we may not look; what is open can still be written.
            Err(_) => Some(open),
        }
    }

    fn is_due(&self, open: &Open, now: SystemTime, line: u64) -> bool {
        let Rotation {
            max_size, interval, ..
        } = self.rotation;
        // An empty file is never put away: a line longer than all there may be would do so for ever.
        open.regular
            && open.size > 0
            && (max_size.is_some_and(|most| open.size.saturating_add(line) > most)
                || interval.is_some_and(|each| stretch(now, each) > stretch(open.written, each)))
            && self
                .stuck
                .is_none_or(|since| has_passed(ROTATE_AGAIN, since, now))
    }
}

impl Write for LogFile {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let now = (self.clock)();
        let open = self.ready(text.len() as u64)?;
        let count = open.file.write(text)?;
        if let Some(last) = count.checked_sub(1) {
            open.torn = text[last] != b'\n';
            open.size = open.size.saturating_add(count as u64);
            open.written = now;
        }
        Ok(count)
    }

    /// Nothing is held back here.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a time has passed; a clock that was put back says yes.
fn has_passed(time: Duration, since: SystemTime, now: SystemTime) -> bool {
    now.duration_since(since)
        .map_or(true, |passed| passed >= time)
}

/// The number of the stretch of time that `when` is in; 1970 began on a Thursday, three days after a Monday.
fn stretch(when: SystemTime, length: Duration) -> u128 {
    const SINCE_MONDAY: Duration = Duration::from_secs(3 * 24 * 3600);
    let since = when.duration_since(UNIX_EPOCH).unwrap_or_default() + SINCE_MONDAY;
    since.as_millis() / length.as_millis().max(1)
}

/// Puts the file away as `FILE.1`, after the older ones have made room; the oldest goes.
fn shift(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    // A gap, as a crash between two renames leaves it, is filled before anything is lost.
    let room = (1..keep)
        .find(|&number| fs::symlink_metadata(numbered(path, number)).is_err())
        .unwrap_or(keep);
    for number in (1..room).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    fs::rename(path, numbered(path, 1))
}

/// `FILE.N`
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// Opens the file for appending; makes it, and its folder, where they are missing.
fn open_file(path: &Path, now: SystemTime) -> io::Result<Open> {
    if let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o750);
        builder.recursive(true).create(folder)?;
    }
    let file = append_to(path, true)?;
    let about = file.metadata()?;
    let mut open = Open {
        id: FileId::of(&file, &about)?,
        regular: about.is_file(),
        size: about.len(),
        written: about.modified().unwrap_or(now),
        torn: false,
        file,
    };
    if open.regular && ends_torn(path) {
        open.file.write_all(b"\n")?;
        open.size += 1;
    }
    Ok(open)
}

/// Opens what is to take lines; changes nothing in it.
pub(crate) fn append_to(path: &Path, create: bool) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|there| is_pipe(&there)) {
        // Opening it would wait for a reader.
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a pipe, and a log file is wanted",
        ));
    }
    let mut options = OpenOptions::new();
    options.append(true).create(create);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

/// Whether a file that somebody left ends in the middle of a line. One that cannot be read counts as whole.
fn ends_torn(path: &Path) -> bool {
    let last = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last).map(|()| last[0])
    };
    last().is_ok_and(|last: u8| last != b'\n')
}

#[cfg(unix)]
fn is_pipe(about: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;

    about.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

/// What tells two files of one name apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

#[cfg(unix)]
impl FileId {
    #[allow(clippy::unnecessary_wraps)]
    fn of(_: &File, about: &Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;

        Ok(Self(about.dev(), about.ino()))
    }

    /// Of what has this name now, and how long that is.
    fn of_path(path: &Path) -> io::Result<(Self, u64)> {
        use std::os::unix::fs::MetadataExt as _;

        let about = fs::metadata(path)?;
        Ok((Self(about.dev(), about.ino()), about.len()))
    }
}

/// Not the time it was made: NTFS gives that to the next file of the same name, too.
#[cfg(windows)]
impl FileId {
    fn of(file: &File, _: &Metadata) -> io::Result<Self> {
        Ok(Self(0, crate::winapi::file_id(file)?))
    }

    /// Of what has this name now, and how long that is.
    fn of_path(path: &Path) -> io::Result<(Self, u64)> {
        use std::os::windows::fs::OpenOptionsExt as _;

        // To ask about it, not to read it: nobody who has it open can object.
        let file = OpenOptions::new().access_mode(0).open(path)?;
        let about = file.metadata()?;
        Ok((Self::of(&file, &about)?, about.len()))
    }
}

#[cfg(test)]
mod tests;
