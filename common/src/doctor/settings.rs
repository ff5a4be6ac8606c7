//! The configuration, as findings.

use std::path::Path;

use super::Finding;
use crate::codes::Code;
use crate::config::ConfigError;

/// A configuration that cannot be used.
#[must_use]
pub fn broken(e: &ConfigError) -> Finding {
    let code = match e {
        ConfigError::Read(_) | ConfigError::Extension(_) => Code::CONFIG_UNREADABLE,
        ConfigError::NotText { .. } | ConfigError::Syntax { .. } => Code::CONFIG_SYNTAX,
        // Nothing is wrong but the pin: the program ends with another number over it.
        ConfigError::Invalid { problems, .. }
            if problems.iter().all(|it| it.key == "server_pub_key") =>
        {
            Code::PIN_UNUSABLE
        }
        ConfigError::Invalid { .. } => Code::CONFIG_INVALID,
    };
    Finding::error("config", code, e.to_string())
}

/// A configuration that can, and what there is to say about it.
#[must_use]
pub fn fine(file: Option<&Path>, warnings: &[String]) -> Vec<Finding> {
    let what = match file {
        Some(file) => format!("{} says what it should", file.display()),
        None => "no file is named (--config): the defaults hold".to_owned(),
    };
    let warnings = warnings.iter();
    std::iter::once(Finding::ok("config", what))
        .chain(warnings.map(|it| Finding::warning("config", Code::CONFIG_DOUBTFUL, it)))
        .collect()
}
