//! The client's key inside its configuration file: read it, make it, never replace it.

use super::Raw;
use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::config::edit::{self, EditError};
use minitcptunnel_common::config::{self, ConfigError, Format};
use minitcptunnel_common::files::{self, Access, ReadError, WriteError};
use minitcptunnel_common::identity::{
    HexError, IdentityKey, KeyOrigin, NoRandomness, readable_by_others,
};
use std::path::{Path, PathBuf};
use std::{error, fmt};

const KEY: &str = "identity_private_key_hex";
/// A new key goes behind this one.
const NEIGHBOUR: &str = "server_pub_key";

/// The example of a missing file, and what `keygen` puts there. It does not pass `check` until the
/// server's key is filled in.
const SKELETON_JSON: &str = r#"{
  "server_host": "server.example.org",
  "server_port": 9000,
  "server_pub_key": "<SERVER_PUBLIC_KEY_HEX>",
  "tunnels": [
    {
      "id": "web-server",
      "remote_port": 8080,
      "local_host": "127.0.0.1",
      "local_port": 80,
      "auto_start": true
    }
  ]
}
"#;

const SKELETON_YAML: &str = r#"server_host: server.example.org
server_port: 9000
server_pub_key: "<SERVER_PUBLIC_KEY_HEX>"
tunnels:
  - id: web-server
    remote_port: 8080
    local_host: 127.0.0.1
    local_port: 80
    auto_start: true
"#;

fn skeleton(format: Format) -> &'static str {
    match format {
        Format::Json => SKELETON_JSON,
        Format::Yaml => SKELETON_YAML,
    }
}

/// A configuration without a usable key, or a configuration that cannot be used at all.
#[derive(Debug)]
pub enum KeyError {
    /// The configuration itself. Not a matter of keys.
    Config(ConfigError),
    /// There is no such file.
    NoFile {
        /// The file.
        path: PathBuf,
        /// What could stand in it.
        example: &'static str,
    },
    /// A key is there, but broken. It is never replaced.
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        source: HexError,
    },
    /// A key was asked for and there is none.
    Missing(PathBuf),
    /// A new key was asked for and there is one.
    Present(PathBuf),
    /// No new key could be made.
    Randomness(NoRandomness),
    /// The new key could not be put into the text.
    Edit {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EditError,
    },
    /// The file was changed by somebody else in the meantime.
    Changed(PathBuf),
    /// The new text could not be saved.
    Write(WriteError),
}

impl Coded for KeyError {
    fn code(&self) -> Code {
        match self {
            // Nothing is wrong but the pin.
            Self::Config(ConfigError::Invalid { problems, .. })
                if problems.iter().all(|it| it.key == "server_pub_key") =>
            {
                Code::PIN_MISSING
            }
            Self::Config(e) => e.code(),
            Self::NoFile { .. } => Code::CONFIG_UNREADABLE,
            Self::Malformed { .. } => Code::KEY_DAMAGED,
            Self::Missing(_) => Code::KEY_MISSING,
            Self::Present(_) => Code::KEY_PRESENT,
            Self::Randomness(_) => Code::NO_RANDOMNESS,
            Self::Edit { .. } | Self::Changed(_) | Self::Write(_) => Code::KEY_NOT_SAVED,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::NoFile { path, example } => write!(
                f,
                "the configuration file {} does not exist; `minitcptunnel-client keygen` creates one with a new key, \
                 or write one like this:\n{example}",
                path.display()
            ),
            Self::Malformed { path, source } => write!(
                f,
                "{}: {KEY}: the key is damaged: {source}. It is left as it is: restore it, or remove the key to get \
                 a new identity (the server must then be given the new public key)",
                path.display()
            ),
            Self::Missing(path) => write!(
                f,
                "{}: {KEY}: there is no key yet; `minitcptunnel-client keygen` makes one",
                path.display()
            ),
            Self::Present(path) => write!(
                f,
                "{}: {KEY}: there is a key already and it is not replaced; `minitcptunnel-client pubkey` prints its \
                 public half",
                path.display()
            ),
            Self::Randomness(e) => e.fmt(f),
            Self::Edit { path, source } => write!(
                f,
                "{}: {KEY}: the new key could not be added: {source}",
                path.display()
            ),
            Self::Changed(path) => write!(
                f,
                "{} was changed while a key was being added to it, so nothing was saved; try again",
                path.display()
            ),
            Self::Write(e) => write!(
                f,
                "the new identity key could not be saved: {e}. The key lives in the configuration file, so that file \
                 and its folder must be writable once; or run `minitcptunnel-client keygen` on a copy elsewhere"
            ),
        }
    }
}

impl error::Error for KeyError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Config(e) => Some(e),
            Self::Malformed { source, .. } => Some(source),
            Self::Randomness(e) => Some(e),
            Self::Edit { source, .. } => Some(source),
            Self::Write(e) => Some(e),
            Self::NoFile { .. } | Self::Missing(_) | Self::Present(_) | Self::Changed(_) => None,
        }
    }
}

impl From<ConfigError> for KeyError {
    fn from(e: ConfigError) -> Self {
        Self::Config(e)
    }
}

/// A missing file is shown with an example.
pub(super) fn with_example(path: &Path, e: ConfigError) -> KeyError {
    match (e, Format::of(path)) {
        (ConfigError::Read(ReadError::NotFound(path)), Ok(format)) => KeyError::NoFile {
            path,
            example: skeleton(format),
        },
        (e, _) => KeyError::Config(e),
    }
}

/// A key and how it came to be.
#[derive(Debug)]
pub struct EnsuredKey {
    /// The identity.
    pub key: IdentityKey,
    /// Whether it was there or has just been made.
    pub origin: KeyOrigin,
    /// Something to warn about: others on this machine may read the file.
    pub warning: Option<String>,
}

/// The key of the file. Nothing is written; a missing key is an error.
pub fn identity_key(path: &Path) -> Result<EnsuredKey, KeyError> {
    let text = config::read_text(path).map_err(|e| with_example(path, e))?;
    match key_in(path, &text)? {
        Some(key) => Ok(EnsuredKey {
            key,
            origin: KeyOrigin::Existing,
            warning: readable_by_others(path),
        }),
        None => Err(KeyError::Missing(path.to_path_buf())),
    }
}

/// The key of the file, which is made and saved if it is not there. The rest of the file stays as
/// it is, byte for byte; the pin need not be filled in yet.
pub fn ensure_identity_key(path: &Path) -> Result<EnsuredKey, KeyError> {
    let text = config::read_text(path).map_err(|e| with_example(path, e))?;
    match key_in(path, &text)? {
        Some(key) => Ok(EnsuredKey {
            key,
            origin: KeyOrigin::Existing,
            warning: readable_by_others(path),
        }),
        None => add_key(path, &text),
    }
}

/// Makes a key where there is none. A missing file is created with placeholders that `check` will
/// ask to be filled in.
pub fn keygen(path: &Path) -> Result<IdentityKey, KeyError> {
    let text = match config::read_text(path) {
        Ok(text) => text,
        Err(ConfigError::Read(ReadError::NotFound(_))) => return create(path),
        Err(e) => return Err(e.into()),
    };
    match key_in(path, &text)? {
        Some(_) => Err(KeyError::Present(path.to_path_buf())),
        None => add_key(path, &text).map(|made| made.key),
    }
}

fn key_in(path: &Path, text: &str) -> Result<Option<IdentityKey>, KeyError> {
    let raw = config::parse::<Raw>(path, text)?.raw;
    raw.identity_private_key_hex
        .as_ref()
        .map_or(Ok(None), |secret| super::identity_of(path, secret))
}

fn create(path: &Path) -> Result<IdentityKey, KeyError> {
    let format = Format::of(path)?;
    let key = IdentityKey::generate().map_err(KeyError::Randomness)?;
    let text = edit::insert_text(format, skeleton(format), KEY, &key.seed_hex(), NEIGHBOUR)
        .map_err(|source| KeyError::Edit {
            path: path.to_path_buf(),
            source,
        })?;
    files::create_exclusive(path, text.as_bytes(), Access::Private).map_err(|e| {
        if e.already_exists() {
            KeyError::Changed(path.to_path_buf())
        } else {
            KeyError::Write(e)
        }
    })?;
    Ok(key)
}

fn add_key(path: &Path, text: &str) -> Result<EnsuredKey, KeyError> {
    let key = IdentityKey::generate().map_err(KeyError::Randomness)?;
    let edit_error = |source| KeyError::Edit {
        path: path.to_path_buf(),
        source,
    };
    let new = edit::insert_text(Format::of(path)?, text, KEY, &key.seed_hex(), NEIGHBOUR)
        .map_err(edit_error)?;
    // The text is not saved unless the program itself reads this very key out of it.
    match key_in(path, &new)? {
        Some(read) if read.public() == key.public() => {}
        _ => return Err(edit_error(EditError::NoWay)),
    }
    // An editor, or a second client, may have been at work. What is left of the race is the moment
    // between this look and the rename.
    if *config::read_text(path)? != text {
        return Err(KeyError::Changed(path.to_path_buf()));
    }
    files::replace(path, new.as_bytes(), Access::Private).map_err(KeyError::Write)?;
    Ok(EnsuredKey {
        key,
        origin: KeyOrigin::Created,
        warning: None,
    })
}
