//! The subcommands that print and end: `pubkey`, `check`, `health`, `doctor`, `certs`, `service`.

pub mod certs;
pub mod doctor;
pub mod health;
pub mod service;

use std::fmt::Write;

use minitcptunnel_common::config::PortSet;
use minitcptunnel_common::identity::{self, AllowListFile, IdentityKey};
use minitcptunnel_common::resources;

use crate::config::{Checked, Config};
use crate::forward;
use crate::jobs;
use crate::reverse::StartError;
use crate::reverse::within::Within;

/// `pubkey`: the server's public key, from its key file. Makes nothing.
///
/// # Errors
/// If there is no key file, or no usable one.
pub fn pubkey(config: &Config) -> Result<String, StartError> {
    let loaded = identity::load(&config.identity_key_file).map_err(StartError::Key)?;
    Ok(format!(
        "Server Identity Public Key (Pin in client config): {}",
        loaded.key.public()
    ))
}

/// `check`: what this configuration would do, in plain words. Writes nothing.
///
/// # Errors
/// If the server would not start with it.
pub fn check(checked: &Checked) -> Result<String, jobs::StartError> {
    let config = &checked.config;
    let mut text = String::from("The configuration is fine.\n");
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{args}");
    };
    if config.reverse {
        check_reverse(config, &mut line).map_err(jobs::StartError::Reverse)?;
    }
    for forward in &config.forwards {
        line(format_args!("{forward}"));
        let said = forward::check(forward).map_err(jobs::StartError::Forward)?;
        for warning in said {
            line(format_args!("warning: {warning}"));
        }
    }
    if let Some(file) = &config.logging.file {
        line(format_args!(
            "Logs to stdout and to {}: {}.",
            file.display(),
            config.logging.rotation
        ));
    }
    line(format_args!(
        "Carries up to {}, in {} MiB of buffers; gives them {} s when it is stopped.",
        Within::new(resources::open_files_at_most(), config).pairs,
        config.memory_budget / (1024 * 1024),
        config.grace.as_secs_f64()
    ));
    for warning in &checked.warnings {
        line(format_args!("warning: {warning}"));
    }
    Ok(text.trim_end().to_owned())
}

/// The part of the reverse tunnel.
fn check_reverse(
    config: &Config,
    line: &mut impl FnMut(std::fmt::Arguments<'_>),
) -> Result<(), StartError> {
    line(format_args!(
        "Takes clients on port {} of {}, {} at a time.",
        config.port, config.bind, config.max_clients
    ));
    match key_of(config)? {
        Some(key) => line(format_args!("Is known to clients as {}.", key.public())),
        None => line(format_args!(
            "Makes an identity key at its first start, in {}.",
            config.identity_key_file.display()
        )),
    }
    if config.allowed_clients_file.exists() {
        let allow =
            AllowListFile::load(&config.allowed_clients_file).map_err(StartError::AllowList)?;
        line(format_args!(
            "Admits {} clients, listed in {}.",
            allow.list().len(),
            allow.path().display()
        ));
        for entry in allow.list().entries() {
            let name = entry.name.as_deref().unwrap_or("no name");
            line(format_args!("  {} ({name:?})", entry.key));
        }
        for warning in &allow.list().warnings {
            line(format_args!("warning: {warning}"));
        }
    } else {
        line(format_args!(
            "Admits nobody yet: {} is missing and will be made, for you to fill.",
            config.allowed_clients_file.display()
        ));
    }
    let ports = match &config.allowed_ports {
        PortSet::Any => "any port".to_owned(),
        ranges => format!("the ports {ranges}"),
    };
    line(format_args!(
        "Clients may open {ports} on {}, {} tunnels each.",
        config.tunnel_bind, config.limits.tunnels_per_client
    ));
    Ok(())
}

fn key_of(config: &Config) -> Result<Option<IdentityKey>, StartError> {
    if !config.identity_key_file.exists() {
        return Ok(None);
    }
    let loaded = identity::load(&config.identity_key_file).map_err(StartError::Key)?;
    Ok(Some(loaded.key))
}
