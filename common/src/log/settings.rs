//! What can be chosen about the log.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ::log::Level;

/// What `-v`, `--debug` or neither asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// `RUST_LOG` if it is set, otherwise the configured level, otherwise INFO.
    #[default]
    Normal,
    /// `-v`: DEBUG for our crates, INFO for libraries.
    Verbose,
    /// `--debug`: TRACE for our crates, DEBUG for libraries. A library's TRACE is not bound by our contract and
    /// may show what ours never does.
    Debug,
}

impl Verbosity {
    /// As the command line has it.
    #[must_use]
    pub fn of_flags(verbose: bool, debug: bool) -> Self {
        match (debug, verbose) {
            (true, _) => Self::Debug,
            (false, true) => Self::Verbose,
            (false, false) => Self::Normal,
        }
    }
}

/// Whether levels are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// If stdout is a terminal that understands colour, and `NO_COLOR` is not set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, with the keys `ts`, `level`, `target` and `msg`.
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Text that names no format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError;

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"text\" or \"json\"")
    }
}

impl std::error::Error for FormatError {}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(FormatError),
        }
    }
}

/// When a new log file is begun, and what becomes of the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Before it would hold more than this, in bytes.
    pub max_size: Option<u64>,
    /// With the first line of every such stretch of time. They are counted in UTC from a Monday at midnight, so
    /// that an hour, a day and a week begin when everybody expects it.
    pub interval: Option<Duration>,
    /// How many old files are kept, as `FILE.1` (the youngest) to `FILE.N`.
    pub keep: u32,
}

impl Rotation {
    /// No more than 60 MiB in all.
    pub const USUAL: Self = Self {
        max_size: Some(10 * 1024 * 1024),
        interval: None,
        keep: 5,
    };
}

impl Default for Rotation {
    fn default() -> Self {
        Self::USUAL
    }
}

/// In plain words, for `check`.
impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.max_size, self.interval) {
            (None, None) => return f.write_str("which is never rotated"),
            (Some(size), None) => write!(f, "a new file before {size} bytes are exceeded")?,
            (None, Some(each)) => write!(f, "a new file every {} s", each.as_secs())?,
            (Some(size), Some(each)) => write!(
                f,
                "a new file every {} s, and before {size} bytes are exceeded",
                each.as_secs()
            )?,
        }
        write!(f, ", old ones kept: {}", self.keep)
    }
}

/// What a configuration file says about the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// A file beside stdout.
    pub file: Option<PathBuf>,
    /// How much, unless the command line or `RUST_LOG` says otherwise.
    pub level: Option<Level>,
    /// What a line looks like, unless the command line says otherwise.
    pub format: Format,
    /// When a new file is begun.
    pub rotation: Rotation,
}

/// How to log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// How much.
    pub verbosity: Verbosity,
    /// In colour or not.
    pub colour: Colour,
    /// What a line looks like (`--log-format`).
    pub format: Option<Format>,
    /// A file beside stdout (`--log-file`).
    pub file: Option<PathBuf>,
    /// What holds where the command line says nothing.
    pub configured: Logging,
}

/// What holds: the command line, else the configuration. Nobody else joins the two, so that what `check` and `doctor`
/// look at is what a run does.
impl LogOptions {
    /// What a line looks like.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format.unwrap_or(self.configured.format)
    }

    /// The file beside stdout.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref().or(self.configured.file.as_deref())
    }

    /// When a new file is begun, which the configuration alone can say.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        self.configured.rotation
    }

    /// In plain words, for `check`. Of what is so without being asked for, nothing is said.
    #[must_use]
    pub fn described(&self) -> Option<String> {
        let how = match self.format() {
            Format::Text => "",
            Format::Json => ", one JSON object per line",
        };
        match self.file() {
            Some(file) => Some(format!(
                "Logs to stdout and to {}: {}{how}.",
                file.display(),
                self.rotation()
            )),
            None if how.is_empty() => None,
            None => Some(format!("Logs to stdout{how}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_and_the_configuration_holds_where_it_is_silent() {
        let typed = |file: Option<&str>, format| LogOptions {
            file: file.map(PathBuf::from),
            format,
            configured: Logging {
                rotation: Rotation {
                    max_size: None,
                    interval: None,
                    keep: 1,
                },
                ..Logging::default()
            },
            ..LogOptions::default()
        };
        let configured = |mut options: LogOptions| {
            options.configured.file = Some("configured.log".into());
            options.configured.format = Format::Json;
            options.described()
        };
        let json = Some(Format::Json);
        let text = Some(Format::Text);
        for (said, wanted) in [
            (typed(None, None).described(), None),
            (typed(None, text).described(), None),
            (
                typed(None, json).described(),
                Some("Logs to stdout, one JSON object per line."),
            ),
            (
                typed(Some("typed.log"), None).described(),
                Some("Logs to stdout and to typed.log: which is never rotated."),
            ),
            (
                configured(typed(None, None)),
                Some(
                    "Logs to stdout and to configured.log: which is never rotated, one JSON object per line.",
                ),
            ),
            (
                configured(typed(Some("typed.log"), text)),
                Some("Logs to stdout and to typed.log: which is never rotated."),
            ),
        ] {
            assert_eq!(said.as_deref(), wanted);
        }
    }
}
