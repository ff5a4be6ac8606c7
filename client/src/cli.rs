//! The command line: arguments, and the subcommands that print and end (`keygen`, `pubkey`, `check`, `health`,
//! `doctor`, `explain`, `service`).

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use minitcptunnel_common::codes::{Code, Coded, Lang};
use minitcptunnel_common::config::{Grace, Seconds};
use minitcptunnel_common::dial;
use minitcptunnel_common::identity::KeyOrigin;
use minitcptunnel_common::log::{Format, LogOptions, Logging, Verbosity};

pub mod doctor;
pub mod health;
pub mod service;

use crate::config::{self, Checked, Config, KeyError, Limits, Pinning, Reverse};
use crate::forward;

/// Offers local services on the public ports of a MiniTCPTunnel server, and carries local connections to one over TLS.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Subcommands>,
    /// Configuration file, JSON or YAML
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "client_config.json"
    )]
    pub config: PathBuf,
    /// Stop after this many seconds; of health and doctor: give up a question after them [default: 5]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub timeout: Option<Seconds>,
    /// How long running connections may go on after a signal [default: 5, or as configured]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub grace: Option<Grace>,
    /// Connect without a pinned server key: anybody on the way can read and change everything
    #[arg(long, global = true)]
    pub insecure_no_pin: bool,
    /// Log one line per connection
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Log every frame's type and length
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
#[derive(Subcommand, Clone, Debug)]
pub enum Subcommands {
    /// Connect and serve (what happens without a command)
    Run,
    /// Make an identity key and save it in the configuration
    Keygen,
    /// Print the public identity key, for the server's list
    Pubkey,
    /// Check the configuration and say what it would do
    Check,
    /// Ask whether the client that runs with this configuration listens, and its servers answer; exit code 1 if not
    Health,
    /// Look for what is wrong: configuration, key, names, server, services, limits; the exit code is that of the worst
    Doctor(doctor::Options),
    /// Say what an error code means and what to do about it; without a code, list all
    Explain {
        /// As in messages and in the log: E0301
        #[arg(value_name = "CODE")]
        codes: Vec<Code>,
        /// en, ko or fr [default: that of the locale]
        #[arg(long, value_name = "LANGUAGE")]
        lang: Option<Lang>,
    },
    /// Run as a service that starts with the system; options in front of it are the service's
    Service {
        /// What to do
        #[command(subcommand)]
        command: minitcptunnel_common::service::Command,
    },
}

impl Arguments {
    /// Whether a missing pin stops the client.
    #[must_use]
    pub fn pinning(&self) -> Pinning {
        if self.insecure_no_pin {
            Pinning::InsecureOptional
        } else {
            Pinning::Required
        }
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

/// A configuration that was read, and what is to be said about that as soon as there is a log.
#[derive(Debug)]
pub struct Loaded {
    /// What the client does, or why it cannot.
    pub checked: Result<Checked, KeyError>,
    news: Vec<String>,
}

impl Loaded {
    /// Logs which key the client has, whether the rest can be used or not.
    pub fn log_news(&self) {
        self.news.iter().for_each(|line| log::info!("{line}"));
    }
}

/// The key first: whoever starts without a pin has something to give to the server's operator.
#[must_use]
pub fn load(file: &Path, pinning: Pinning) -> Loaded {
    let mut news = Vec::new();
    let mut of_the_key = None;
    let checked = config::runs_reverse(file).and_then(|reverse| {
        // A certificate is all that a forward shows.
        if !reverse {
            return config::load(file, pinning);
        }
        let ensured = config::ensure_identity_key(file)?;
        if ensured.origin == KeyOrigin::Created {
            news.push(format!(
                "Made a new identity key in {}; add it to the server's allowed_clients.txt",
                file.display()
            ));
        }
        news.push(format!("CLIENT PUBLIC KEY: {}", ensured.key.public()));
        of_the_key = ensured.warning;
        config::load(file, pinning)
    });
    let checked = checked.map(|mut checked| {
        let coded = |code| move |it| format!("{it} code={code}");
        let of_the_rest = checked.warnings.into_iter();
        checked.warnings = of_the_rest.map(coded(Code::CONFIG_ODD)).collect();
        let of_the_key = of_the_key.map(coded(Code::KEY_READABLE));
        checked.warnings.extend(of_the_key);
        checked
    });
    Loaded { checked, news }
}

/// `keygen`: makes a key where there is none. What to print.
///
/// # Errors
/// If there is a key already, or it cannot be made or saved.
pub fn keygen(file: &Path) -> Result<String, KeyError> {
    config::keygen(file).map(|key| format!("CLIENT PUBLIC KEY: {}", key.public()))
}

/// `pubkey`: what to print.
///
/// # Errors
/// If there is no key, or no usable one.
pub fn pubkey(file: &Path) -> Result<String, KeyError> {
    config::identity_key(file).map(|ensured| format!("CLIENT PUBLIC KEY: {}", ensured.key.public()))
}

/// Why `check` says no.
#[derive(Debug)]
pub enum CheckError {
    /// What is in the file, or its key.
    Config(KeyError),
    /// What it refers to.
    Forward(forward::StartError),
}

impl Coded for CheckError {
    fn code(&self) -> Code {
        match self {
            Self::Config(e) => e.code(),
            Self::Forward(e) => e.code(),
        }
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(e) => e.fmt(f),
            Self::Forward(e) => e.fmt(f),
        }
    }
}

/// `check`: what the client would do with these options and their configuration, in plain words.
///
/// # Errors
/// If the client would not start with it.
pub fn check(typed: &Arguments) -> Result<String, CheckError> {
    let checked = config::load(&typed.config, typed.pinning()).map_err(CheckError::Config)?;
    let mut warnings = checked.warnings;
    for forward in &checked.config.forwards {
        warnings.extend(forward::check(forward).map_err(CheckError::Forward)?);
    }
    let mut text = describe(typed, &checked.config);
    for warning in warnings {
        text.push_str("\nwarning: ");
        text.push_str(&warning);
    }
    Ok(text)
}

fn describe(typed: &Arguments, config: &Config) -> String {
    let mut lines = vec![format!("{} is fine.", config.file.display())];
    if let Some(reverse) = &config.reverse {
        describe_reverse(&mut lines, reverse, &config.limits);
    }
    lines.extend(config.forwards.iter().map(ToString::to_string));
    lines.extend(typed.log_options(Some(config)).described());
    lines.push(format!(
        "Carries up to {}, in {} MiB of buffers; gives them {} s when it is stopped.",
        config.capacity(),
        config.memory_budget / (1024 * 1024),
        config.grace.as_secs_f64()
    ));
    lines.join("\n")
}

fn describe_reverse(lines: &mut Vec<String>, config: &Reverse, limits: &Limits) {
    lines.push(format!(
        "Connects to {}{}.",
        dial::host_port(config.server_host.as_str(), config.server_port),
        match config.server_pub_key {
            Some(key) => format!(", if it proves to own the key {key}"),
            None => ", whoever it may be (no key is pinned)".to_owned(),
        }
    ));
    lines.push(match &config.identity {
        Some(key) => format!("Is known to the server as {}.", key.public()),
        None => "Makes an identity key at its first start and saves it in this file.".to_owned(),
    });
    for tunnel in &config.tunnels {
        let port = match tunnel.remote_port {
            0 => "a port of the server's choice".to_owned(),
            port => format!("server port {port}"),
        };
        let service = dial::host_port(tunnel.local_host.as_str(), tunnel.local_port);
        lines.push(if tunnel.auto_start {
            format!(
                "Tunnel {:?}: {port} leads to {service}, compression {}.",
                tunnel.id, tunnel.compression
            )
        } else {
            format!(
                "Tunnel {:?}: {port} would lead to {service}, but auto_start is false: it is not opened.",
                tunnel.id
            )
        });
    }
    lines.push(match limits.spare_channels {
        0 => "Keeps no data channels ready for visitors.".to_owned(),
        keep => format!(
            "Keeps data channels ready for visitors: {keep}, up to {} when many come.",
            limits.max_spare_channels
        ),
    });
}
