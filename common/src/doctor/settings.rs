//! The configuration, as findings.

use std::path::Path;

use super::Finding;
use crate::codes::{Code, Coded};
use crate::config::ConfigError;

/// A configuration that cannot be used.
#[must_use]
pub fn broken(e: &ConfigError) -> Finding {
    Finding::error("config", e.code(), e.to_string())
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
        .chain(warnings.map(|it| Finding::warning("config", Code::CONFIG_ODD, it)))
        .collect()
}
