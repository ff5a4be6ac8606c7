//! Configuration files: JSON or YAML by extension, one schema, errors that point at the place.
//!
//! ```text
//!   bytes ──UTF-8──► text ──json.rs / yaml.rs──► Node (tree with places) ──de.rs──► T (raw tier)
//!                                                       │
//!                                                       └──► Places ──► the checked tier's errors
//! ```
//!
//! The tree between text and `T` is what makes both formats equal: the same messages, the same key
//! paths (`tunnels[2].local_port`), duplicate keys refused in both, the nearest known key named.
//! The raw tier is what was typed; each program checks it into what was meant.

mod de;
pub mod edit;
mod forward;
mod json;
mod logging;
mod node;
mod types;
mod yaml;

pub use forward::{
    Endpoint, ForwardNames, RawFallback, RawListener, Section, TOP_FORWARD, check_endpoints,
    check_listener, check_ports, named_file, or_never, required_file,
};
pub use logging::{RawLogging, RawRotation, check_logging};
pub use node::Place;
pub use types::{
    AnyPort, CompressionSetting, Count, CountOrNone, Grace, Host, HostError, Port, PortRange,
    PortRangeError, PortSet, Seconds, SecondsError, Secret, Size, SizeError,
};

use crate::codes::{Code, Coded};
use crate::files::{self, ReadError};
use node::Node;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{error, fmt};
use zeroize::Zeroizing;

/// The most a configuration file may have: thousands of tunnels fit.
pub const MAX_CONFIG_FILE: u64 = 1 << 20;

/// How a configuration file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.json`
    Json,
    /// `.yaml` or `.yml`
    Yaml,
}

impl Format {
    /// The format that a file's extension names.
    pub fn of(path: &Path) -> Result<Self, ConfigError> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_ascii_lowercase();
        match extension.as_str() {
            "json" => Ok(Self::Json),
            "yaml" | "yml" => Ok(Self::Yaml),
            _ => Err(ConfigError::Extension(path.to_path_buf())),
        }
    }

    fn parse(self, text: &str) -> Result<Node, SyntaxError> {
        match self {
            Self::Json => json::parse(text),
            Self::Yaml => yaml::parse(text),
        }
    }
}

/// A file that is not what its extension says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SyntaxError {
    key: String,
    place: Option<Place>,
    message: String,
}

/// One thing to correct (or to know, when it is a warning).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the key, such as `tunnels[2].local_port`; empty for the file as a whole.
    pub key: String,
    /// Where it stands, if it stands anywhere.
    pub place: Option<Place>,
    /// What happened, what it means, what to do.
    pub message: String,
}

/// A configuration that cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The extension is none of ours.
    Extension(PathBuf),
    /// Missing, too big, a folder, unreadable.
    Read(ReadError),
    /// Not UTF-8; the line is counted from 1.
    NotText {
        /// The file.
        path: PathBuf,
        /// The line with the first bad byte.
        line: usize,
    },
    /// Not valid JSON or YAML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        problem: Problem,
    },
    /// Well-formed, but it does not say what it should. At least one problem.
    Invalid {
        /// The file; `None` when the problem is in the command line or a default.
        path: Option<PathBuf>,
        /// All that were found.
        problems: Vec<Problem>,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        match self {
            Self::Extension(_) => Code::CONFIG_EXTENSION,
            Self::Read(_) => Code::CONFIG_UNREADABLE,
            Self::NotText { .. } | Self::Syntax { .. } => Code::CONFIG_SYNTAX,
            Self::Invalid { .. } => Code::CONFIG_INVALID,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extension(path) => write!(
                f,
                "{}: the format of a configuration file is told by its name; let it end in .json, .yaml or .yml",
                path.display()
            ),
            Self::Read(e) => write!(f, "the configuration file cannot be used: {e}"),
            Self::NotText { path, line } => {
                write!(
                    f,
                    "{}:{line}: the file is not UTF-8 text; save it as UTF-8",
                    path.display()
                )
            }
            Self::Syntax { path, problem } => f.write_str(&problem.located(Some(path))),
            Self::Invalid { path, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    if index > 0 {
                        f.write_str("\n")?;
                    }
                    f.write_str(&problem.located(path.as_deref()))?;
                }
                Ok(())
            }
        }
    }
}

impl error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Read(e) => Some(e),
            _ => None,
        }
    }
}

impl Problem {
    /// `FILE:LINE:COLUMN: KEY: message`, as far as each is known.
    pub fn located(&self, file: Option<&Path>) -> String {
        let mut text = String::new();
        if let Some(file) = file {
            text.push_str(&file.display().to_string());
            if let Some(place) = self.place {
                text.push_str(&format!(":{}:{}", place.line, place.column));
            }
            text.push_str(": ");
        }
        if !self.key.is_empty() {
            text.push_str(&self.key);
            text.push_str(": ");
        }
        text.push_str(&self.message);
        text
    }
}

/// A configuration as it was typed, and where each key stands.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The raw tier.
    pub raw: T,
    /// For the messages of the checked tier.
    pub places: Places,
}

/// Where each key of a file stands.
#[derive(Clone, Debug, Default)]
pub struct Places {
    file: Option<PathBuf>,
    by_key: HashMap<String, Place>,
}

impl Places {
    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The place of a key, or of the nearest thing around it.
    pub fn of(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            if let Some(place) = self.by_key.get(key) {
                return Some(*place);
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return None,
            }
        }
    }
}

/// Collects what is wrong while a raw configuration is checked, so that all of it is said at once.
#[derive(Debug)]
pub struct Checker {
    places: Places,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Checker {
    /// A checker for one file.
    pub fn new(places: Places) -> Self {
        Self {
            places,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Notes something that must be corrected; once, however often it is found.
    pub fn error(&mut self, key: impl Into<String>, message: impl fmt::Display) {
        let problem = self.problem(key.into(), &message);
        if !self.errors.contains(&problem) {
            self.errors.push(problem);
        }
    }

    /// Notes something that someone should look at; once, too.
    pub fn warn(&mut self, key: impl Into<String>, message: impl fmt::Display) {
        let problem = self.problem(key.into(), &message);
        if !self.warnings.contains(&problem) {
            self.warnings.push(problem);
        }
    }

    /// Gives the warnings as lines to log, or every error at once.
    pub fn finish(self) -> Result<Vec<String>, ConfigError> {
        let Self {
            places,
            errors,
            warnings,
        } = self;
        if errors.is_empty() {
            Ok(warnings.iter().map(|w| w.located(places.file())).collect())
        } else {
            Err(ConfigError::Invalid {
                path: places.file,
                problems: errors,
            })
        }
    }

    fn problem(&self, key: String, message: &dyn fmt::Display) -> Problem {
        Problem {
            place: self.places.of(&key),
            key,
            message: message.to_string(),
        }
    }
}

/// Reads a configuration file into its raw tier.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Loaded<T>, ConfigError> {
    let text = read_text(path)?;
    parse(path, &text)
}

/// The same from a text at hand; `path` names the format and appears in messages.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Loaded<T>, ConfigError> {
    let format = Format::of(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = format.parse(text).map_err(|e| ConfigError::Syntax {
        path: path.to_path_buf(),
        problem: Problem {
            key: e.key,
            place: e.place,
            message: e.message,
        },
    })?;
    let mut by_key = HashMap::new();
    root.collect_places(&mut String::new(), &mut by_key);
    let raw = de::from_node(&root).map_err(|problem| ConfigError::Invalid {
        path: Some(path.to_path_buf()),
        problems: vec![problem],
    })?;
    Ok(Loaded {
        raw,
        places: Places {
            file: Some(path.to_path_buf()),
            by_key,
        },
    })
}

/// The text of a configuration file, byte order mark and all. Wiped when dropped: it may hold a key.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    // The name is judged first: a wrong one is the more useful message.
    Format::of(path)?;
    let bytes =
        Zeroizing::new(files::read_small(path, MAX_CONFIG_FILE).map_err(ConfigError::Read)?);
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()]
                .iter()
                .filter(|&&b| b == b'\n')
                .count();
            Err(ConfigError::NotText {
                path: path.to_path_buf(),
                line,
            })
        }
    }
}

#[cfg(test)]
mod tests;
