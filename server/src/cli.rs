//! The command line: arguments, and the subcommands that print and end: `pubkey`, `check`, `health`, `doctor`, `certs`, `service`.

pub mod certs;
pub mod doctor;
pub mod health;
pub mod service;

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use minitcptunnel_common::codes::{Code, Lang};

use minitcptunnel_common::config::{ConfigError, Grace, PortSet, Seconds};
use minitcptunnel_common::identity::{self, AllowListFile, IdentityKey};
use minitcptunnel_common::log::{Format, LogOptions, Logging, Verbosity};
use minitcptunnel_common::{resources, service as common_service};

use crate::config::{self, Checked, Config, Overrides};
use crate::forward;
use crate::jobs;
use crate::reverse::StartError;
use crate::reverse::within::Within;

/// Opens public ports for the local services of MiniTCPTunnel clients, and takes TLS in for target services of its own.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Subcommands>,
    /// Port that clients connect to [default: 9000, or as configured]
    #[arg(long, global = true, value_name = "PORT")]
    pub port: Option<u16>,
    /// Address to listen on [default: "::", all of IPv6 and IPv4, or as configured]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,
    /// Configuration file, JSON or YAML; without it the defaults hold
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Stop after this many seconds; of health and doctor: give up a question after them [default: 5]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub timeout: Option<Seconds>,
    /// How long running connections may go on after a signal [default: 5, or as configured]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub grace: Option<Grace>,
    /// Log one line per connection
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Log everything, also what libraries have to say
    #[arg(long, global = true)]
    pub debug: bool,
    /// Log to this file as well as to stdout [default: as configured]
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// What log lines look like: text or json [default: text, or as configured]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<Format>,
}

/// What the program can do.
#[derive(Subcommand, Debug)]
pub enum Subcommands {
    /// Serve (what happens without a command)
    Run,
    /// Print the server's public key, for the clients' server_pub_key
    Pubkey,
    /// Check the configuration and say what it would do
    Check,
    /// Ask the server that runs with this configuration whether it answers; exit code 1 if not
    Health,
    /// Look for what is wrong: configuration, key, list, ports, targets, limits; the exit code is that of the worst
    Doctor {
        /// Print one JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Run as a service that starts with the system; options in front of it are the service's
    Service {
        /// What to do
        #[command(subcommand)]
        command: common_service::Command,
    },
    /// Make certificates for TLS: a CA, and what it signs
    Certs {
        /// What to do
        #[command(subcommand)]
        command: certs::Command,
    },
    /// Say what an error code means and what to do about it; without a code, list all
    Explain {
        /// As in messages and in the log: E0301
        #[arg(value_name = "CODE")]
        codes: Vec<Code>,
        /// en, ko or fr [default: that of the locale]
        #[arg(long, value_name = "LANGUAGE")]
        lang: Option<Lang>,
    },
}

impl Arguments {
    /// The configuration, with what the command line says instead.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn load(&self) -> Result<Checked, ConfigError> {
        let overrides = Overrides {
            port: self.port,
            bind: self.bind,
            grace: self.grace.map(Grace::duration),
        };
        config::load(self.config.as_deref(), &overrides)
    }

    /// How the log is written, by a run as by what `check` and `doctor` say of it. `config` holds where the command line
    /// says nothing; where it is broken, nobody knows what it says.
    #[must_use]
    pub fn log_options(&self, config: Option<&Config>) -> LogOptions {
        LogOptions {
            verbosity: Verbosity::of_flags(self.verbose, self.debug),
            format: self.log_format,
            file: self.log_file.clone(),
            configured: config.map_or_else(Logging::default, |it| it.logging.clone()),
            ..LogOptions::default()
        }
    }
}

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

/// `check`: what this configuration would do with the options of `typed`, in plain words. Writes nothing.
///
/// # Errors
/// If the server would not start with it.
pub fn check(typed: &Arguments, checked: &Checked) -> Result<String, jobs::StartError> {
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
    if let Some(said) = typed.log_options(Some(config)).described() {
        line(format_args!("{said}"));
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
