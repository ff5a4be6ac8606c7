//! The key file: 64 hex digits, made once, never replaced.

use super::{HexError, IdentityKey, NoRandomness};
use crate::codes::{Code, Coded};
use crate::files::{self, Access, ReadError, WriteError};
use std::path::{Path, PathBuf};
use std::{error, fmt};
use zeroize::Zeroizing;

/// 64 digits and some white space. Anything larger is the wrong file.
const MAX_KEY_FILE: u64 = 4096;

/// Whether the key was there or has just been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// Read from an existing file.
    Existing,
    /// Made and saved by this call.
    Created,
}

/// A key and what should be said about it.
#[derive(Debug)]
pub struct LoadedKey {
    /// The identity.
    pub key: IdentityKey,
    /// Where it came from.
    pub origin: KeyOrigin,
    /// Something to warn about: others on this machine may read the file.
    pub warning: Option<String>,
}

/// A key file that cannot be used. The program must not start with another key instead.
#[derive(Debug)]
pub enum KeyFileError {
    /// There but unreadable.
    Read(ReadError),
    /// Read, but not a key.
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        source: HexError,
    },
    /// Not text at all.
    NotText(PathBuf),
    /// No new key could be made.
    Randomness(NoRandomness),
    /// A new key could not be saved.
    Write(WriteError),
}

impl Coded for KeyFileError {
    fn code(&self) -> Code {
        match self {
            Self::Read(ReadError::NotFound(_)) => Code::KEY_MISSING,
            Self::Read(_) => Code::KEY_FILE_UNREADABLE,
            Self::Malformed { .. } | Self::NotText(_) => Code::KEY_DAMAGED,
            Self::Randomness(_) => Code::NO_RANDOMNESS,
            Self::Write(_) => Code::KEY_NOT_SAVED,
        }
    }
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A missing file is only an error where it was not to be made: then the name is taken by
        // a dangling link.
        const KEPT: &str = "The file is left as it is: restore it from a backup, or move it away to get a new identity \
                            (every peer must then be given the new public key)";
        match self {
            Self::Read(e) => write!(f, "the identity key file cannot be used: {e}"),
            Self::Malformed { path, source } => {
                write!(
                    f,
                    "the identity key file {} is damaged: {source}. {KEPT}",
                    path.display()
                )
            }
            Self::NotText(path) => {
                write!(
                    f,
                    "the identity key file {} is damaged: it is not text. {KEPT}",
                    path.display()
                )
            }
            Self::Randomness(e) => e.fmt(f),
            Self::Write(e) => write!(f, "the new identity key could not be saved: {e}"),
        }
    }
}

impl error::Error for KeyFileError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Read(e) => Some(e),
            Self::Malformed { source, .. } => Some(source),
            Self::NotText(_) => None,
            Self::Randomness(e) => Some(e),
            Self::Write(e) => Some(e),
        }
    }
}

/// Reads the key, or makes and saves one if there is no such file. A file that exists is never
/// replaced, whatever is in it.
pub fn load_or_create(path: &Path) -> Result<LoadedKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Read(ReadError::NotFound(_))) => {}
        other => return other,
    }
    let key = IdentityKey::generate().map_err(KeyFileError::Randomness)?;
    let mut text = key.seed_hex();
    text.push('\n');
    match files::create_exclusive(path, text.as_bytes(), Access::Private) {
        Ok(()) => Ok(LoadedKey {
            key,
            origin: KeyOrigin::Created,
            warning: None,
        }),
        // Somebody was faster: their key is the one.
        Err(e) if e.already_exists() => load(path),
        Err(e) => Err(KeyFileError::Write(e)),
    }
}

/// Reads the key; a missing file is an error.
pub fn load(path: &Path) -> Result<LoadedKey, KeyFileError> {
    let bytes = Zeroizing::new(files::read_small(path, MAX_KEY_FILE).map_err(KeyFileError::Read)?);
    let text =
        std::str::from_utf8(&bytes).map_err(|_| KeyFileError::NotText(path.to_path_buf()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let key = IdentityKey::from_hex(text).map_err(|source| KeyFileError::Malformed {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(LoadedKey {
        key,
        origin: KeyOrigin::Existing,
        warning: readable_by_others(path),
    })
}

/// A file with a secret that others on this machine may open. Shown as a warning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exposed {
    /// Which file it is, and who may.
    pub what: String,
    /// The command that mends it.
    pub cure: String,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; run: {}", self.what, self.cure)
    }
}

/// Whether the file's mode, or its access list on Windows, lets others read a secret.
pub fn exposed(path: &Path) -> Option<Exposed> {
    let shown = path.display();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then(|| Exposed {
            what: format!(
                "{shown} holds a secret key but other users may open it (mode {mode:03o})"
            ),
            cure: format!("chmod 600 {shown}"),
        })
    }
    #[cfg(windows)]
    {
        // Who may not even ask will not be able to read it either, and that is told in another place.
        let open = crate::winapi::is_open_to_all(path).unwrap_or(false);
        open.then(|| Exposed {
            what: format!("{shown} holds a secret key but every user of this machine may open it"),
            // By their numbers: the groups have other names in other languages.
            cure: format!(
                "icacls \"{shown}\" /inheritance:r /grant:r *S-1-3-4:F *S-1-5-18:F *S-1-5-32-544:F /remove:g *S-1-1-0 *S-1-5-11 *S-1-5-32-545 (and /grant ACCOUNT:R for a service's account)"
            ),
        })
    }
}

/// The warning alone.
pub fn readable_by_others(path: &Path) -> Option<String> {
    exposed(path).map(|it| it.to_string())
}
