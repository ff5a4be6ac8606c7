//! The client's configuration: what was typed ([`Raw`]) and what was meant ([`Config`]).
//!
//! Pinning is mandatory: without the server's public key anybody on the way could play the server.
//!
//! Which jobs run is told by the keys: those of the reverse tunnel, those of forwards, or both; without any, the
//! reverse tunnel alone.

pub mod forward;
mod key;
mod tunnels;

pub use forward::{
    ClientCert, Forward, ForwardTimeouts, RawForward, RawForwardLimits, RawForwardTimeouts,
    RawServer, RawTls,
};
pub use key::{EnsuredKey, KeyError, ensure_identity_key, identity_key, keygen};

use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::capacity::Capacity;
use minitcptunnel_common::config::{
    self, AnyPort, Checker, CompressionSetting, Count, CountOrNone, Grace, Host, Places, Port,
    RawListener, RawLogging, Seconds, Secret, Size, check_logging,
};
use minitcptunnel_common::identity::{self, IdentityKey, PublicKey};
use minitcptunnel_common::log::Logging;
use minitcptunnel_common::resources;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Descriptors that are for neither pairs nor spare channels: pollers, the session, files.
const OWN_FILES: usize = 64;

/// The share of the descriptors that spare channels may have, at most: one part of this many.
const SPARE_SHARE: u64 = 4;

/// Appended wherever the pin is missing or broken.
const HOW_TO_PIN: &str = "the server prints its key when it starts (\"Server Identity Public Key (Pin in client config): ...\") \
                          and with `minitcptunnel-server pubkey`; copy the 64 hex digits here";

/// What the file says. Unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct Raw {
    pub server_host: Option<String>,
    pub server_port: Option<Port>,
    pub server_pub_key: Option<String>,
    pub identity_private_key_hex: Option<Secret>,
    pub tunnels: Option<Vec<RawTunnel>>,
    pub compression: Option<CompressionSetting>,
    pub memory_budget: Option<Size>,
    pub limits: Option<RawLimits>,
    pub timeouts: Option<RawTimeouts>,
    pub grace: Option<Grace>,
    pub logging: Option<RawLogging>,
    pub local_listener: Option<RawListener>,
    pub local_listen: Option<RawListener>,
    pub remote_server: Option<RawServer>,
    pub tls: Option<RawTls>,
    pub preconnected: Option<CountOrNone>,
    pub forwards: Option<Vec<RawForward>>,
}

impl Raw {
    /// Whether the reverse job runs: a key of it is there, or none of the other.
    fn runs_reverse(&self) -> bool {
        // An identity alone asks for nothing; it may be left from another life of the file.
        self.server_host.is_some()
            || self.server_port.is_some()
            || self.server_pub_key.is_some()
            || self.tunnels.is_some()
            || self.compression.is_some()
            || !self.runs_forward()
    }

    /// Whether a key is there that only the forward job knows.
    fn runs_forward(&self) -> bool {
        self.local_listener.is_some()
            || self.local_listen.is_some()
            || self.remote_server.is_some()
            || self.tls.is_some()
            || self.preconnected.is_some()
            || self.forwards.as_ref().is_some_and(|list| !list.is_empty())
    }
}

/// One of the `tunnels` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTunnel {
    pub id: Option<String>,
    pub remote_port: Option<AnyPort>,
    pub local_host: Option<String>,
    pub local_port: Option<Port>,
    pub auto_start: Option<bool>,
    pub compression: Option<CompressionSetting>,
}

/// The `limits` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawLimits {
    pub pairs: Option<Count>,
    pub spare_channels: Option<CountOrNone>,
    pub max_spare_channels: Option<CountOrNone>,
    pub connections: Option<Count>,
}

/// The `timeouts` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTimeouts {
    pub connect: Option<Seconds>,
    pub handshake: Option<Seconds>,
    pub local_connect: Option<Seconds>,
    pub heartbeat_interval: Option<Seconds>,
    pub heartbeat_timeout: Option<Seconds>,
    pub backoff_min: Option<Seconds>,
    pub backoff_max: Option<Seconds>,
    pub retry_within: Option<Grace>,
    pub write: Option<Grace>,
    pub idle: Option<Grace>,
}

/// Whether a missing pin stops the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// It does.
    Required,
    /// `--insecure-no-pin`: a missing pin is let through. A pin that is there is still kept to,
    /// and a malformed one is still an error.
    InsecureOptional,
}

/// What the client does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Absolute path of the file.
    pub file: PathBuf,
    /// What the reverse job does; `None` if it does not run.
    pub reverse: Option<Reverse>,
    /// What the forward job does; without any it does not run.
    pub forwards: Vec<Forward>,
    /// What pairs and their buffers may hold together, in bytes.
    pub memory_budget: usize,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How long each stage may take.
    pub timeouts: Timeouts,
    /// How long running pairs may go on after a signal.
    pub grace: Duration,
    /// Where the log goes besides stdout, and what it says.
    pub logging: Logging,
}

impl Config {
    /// How many connections that allows on this system, as far as it is known before the start.
    pub fn capacity(&self) -> Capacity {
        Capacity::new(
            self.limits.pairs,
            resources::open_files_at_most(),
            OWN_FILES + usize::from(self.limits.max_spare_channels),
            &Budget::new(self.memory_budget),
        )
    }
}

/// What the reverse job does.
#[derive(Clone, Debug)]
pub struct Reverse {
    /// Where the server is.
    pub server_host: Host,
    /// The server's control port.
    pub server_port: u16,
    /// The server's public key; `None` only with [`Pinning::InsecureOptional`].
    pub server_pub_key: Option<PublicKey>,
    /// This client's identity; `None` if none was made yet (see [`ensure_identity_key`]).
    pub identity: Option<IdentityKey>,
    /// The tunnels, in the order of the file.
    pub tunnels: Vec<Tunnel>,
    /// Whether data sent to the server is compressed, unless a tunnel says otherwise.
    pub compression: CompressionSetting,
}

/// A tunnel: a public port of the server and the local service behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name on both sides, 1 to 255 bytes.
    pub id: String,
    /// The server's port; 0 lets the server choose.
    pub remote_port: u16,
    /// Where the local service is.
    pub local_host: Host,
    /// The local service's port.
    pub local_port: u16,
    /// Whether it is opened as soon as the client is connected.
    pub auto_start: bool,
    /// Whether its data is compressed.
    pub compression: CompressionSetting,
}

/// How much of everything there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Running pairs.
    pub pairs: usize,
    /// Data channels that are kept ready for visitors; 0 for none.
    pub spare_channels: u16,
    /// The most that are kept when many visitors come at once.
    pub max_spare_channels: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pairs: Count::MOST,
            spare_channels: 2,
            max_spare_channels: 64,
        }
    }
}

/// How long each stage may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting to the server, all its addresses together.
    pub connect: Duration,
    /// From the connection to the end of the handshake.
    pub handshake: Duration,
    /// Connecting to the local service.
    pub local_connect: Duration,
    /// From one heartbeat to the next.
    pub heartbeat_interval: Duration,
    /// A heartbeat without an answer for this long means the server is gone.
    pub heartbeat_timeout: Duration,
    /// The first wait before another attempt.
    pub backoff_min: Duration,
    /// The longest wait before another attempt.
    pub backoff_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            local_connect: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(15),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
        }
    }
}

/// A configuration and what should be warned about.
#[derive(Debug)]
pub struct Checked {
    /// What the client does.
    pub config: Config,
    /// One line each.
    pub warnings: Vec<String>,
}

/// Whether the file asks for the reverse job, which needs an identity key.
pub fn runs_reverse(path: &Path) -> Result<bool, KeyError> {
    let loaded = config::load::<Raw>(path).map_err(|e| key::with_example(path, e))?;
    Ok(loaded.raw.runs_reverse())
}

/// Reads and checks the file. A broken identity key is a [`KeyError`] of its own, because it has
/// its own exit code.
pub fn load(path: &Path, pinning: Pinning) -> Result<Checked, KeyError> {
    let loaded = config::load::<Raw>(path).map_err(|e| key::with_example(path, e))?;
    let checked = check(loaded.raw, loaded.places, pinning)?;
    Ok(checked)
}

/// Checks what was typed.
pub fn check(mut raw: Raw, places: Places, pinning: Pinning) -> Result<Checked, KeyError> {
    let file = places.file().map(Path::to_path_buf).unwrap_or_default();
    // So that what is relative to it keeps its meaning.
    let absolute = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
    let folder = absolute.parent().unwrap_or(Path::new(""));
    let mut checker = Checker::new(places);

    let (runs_reverse, runs_forward) = (raw.runs_reverse(), raw.runs_forward());
    let reverse = if runs_reverse {
        reverse(&mut checker, &file, &mut raw, pinning)?
    } else {
        None
    };
    let raw_limits = raw.limits.unwrap_or_default();
    let raw_timeouts = raw.timeouts.unwrap_or_default();
    let forwards = if runs_forward {
        let first = RawForward {
            local_listener: raw.local_listener,
            local_listen: raw.local_listen,
            remote_server: raw.remote_server,
            tls: raw.tls,
            preconnected: raw.preconnected,
            ..RawForward::default()
        };
        let top = forward::Top {
            folder,
            limits: &raw_limits,
            timeouts: &raw_timeouts,
            compared: runs_reverse,
        };
        forward::check(&mut checker, first, raw.forwards, &top)
    } else {
        Vec::new()
    };
    let limits = limits(&mut checker, &raw_limits, resources::open_files_at_most());
    let timeouts = if runs_reverse {
        timeouts(&mut checker, &raw_timeouts)
    } else {
        Timeouts::default()
    };
    let logging = check_logging(&mut checker, raw.logging, folder);
    if logging.file.as_ref() == Some(&absolute) {
        checker.error(
            "logging.log_file",
            "this is the configuration file itself; the log needs a file of its own",
        );
    }

    let warnings = checker.finish()?;
    let config = Config {
        file: absolute,
        reverse,
        forwards,
        memory_budget: raw.memory_budget.map_or_else(Budget::usual, Size::bytes),
        limits,
        timeouts,
        grace: raw.grace.map_or(Duration::from_secs(5), Grace::duration),
        logging,
    };
    Ok(Checked { config, warnings })
}

/// Checks the keys of the reverse job; `None` when there is a mistake that `finish` will return.
fn reverse(
    checker: &mut Checker,
    file: &Path,
    raw: &mut Raw,
    pinning: Pinning,
) -> Result<Option<Reverse>, KeyError> {
    let identity = raw
        .identity_private_key_hex
        .as_ref()
        .map(|secret| identity_of(file, secret))
        .transpose()?
        .flatten();
    let server_host = host(checker, "server_host", raw.server_host.as_deref());
    let server_pub_key = pin(
        checker,
        raw.server_pub_key.as_deref(),
        pinning,
        identity.as_ref(),
    );
    let compression = raw.compression.unwrap_or_default();
    let tunnels = tunnels::check(checker, raw.tunnels.take(), compression);
    Ok(server_host.map(|server_host| Reverse {
        server_host,
        server_port: raw.server_port.map_or(9000, |port| port.0),
        server_pub_key,
        identity,
        tunnels,
        compression,
    }))
}

/// The key of the file; an empty text counts as none.
fn identity_of(file: &Path, secret: &Secret) -> Result<Option<IdentityKey>, KeyError> {
    match IdentityKey::from_hex(secret.expose()) {
        Ok(key) => Ok(Some(key)),
        Err(identity::HexError::Empty) => Ok(None),
        Err(source) => Err(KeyError::Malformed {
            path: file.to_path_buf(),
            source,
        }),
    }
}

fn host(checker: &mut Checker, key: &str, typed: Option<&str>) -> Option<Host> {
    let Some(typed) = typed else {
        checker.error(
            key,
            "the key is missing; write the host name or IP address of the server",
        );
        return None;
    };
    typed.parse().map_err(|e| checker.error(key, e)).ok()
}

fn pin(
    checker: &mut Checker,
    typed: Option<&str>,
    pinning: Pinning,
    own: Option<&IdentityKey>,
) -> Option<PublicKey> {
    const KEY: &str = "server_pub_key";
    let Some(typed) = typed.filter(|text| !text.trim().is_empty()) else {
        match pinning {
            Pinning::Required => checker.error(
                KEY,
                format!("the server's public key is missing, so the server could not be told from an impostor; {HOW_TO_PIN}"),
            ),
            Pinning::InsecureOptional => checker.warn(
                KEY,
                format!("INSECURE: no server key is pinned, so anybody on the way can read and change everything; {HOW_TO_PIN}"),
            ),
        }
        return None;
    };
    match typed.parse::<PublicKey>() {
        Ok(key) if own.is_some_and(|own| own.public() == key) => {
            checker.error(
                KEY,
                format!("this is the public key of this client, not of the server; {HOW_TO_PIN}"),
            );
            None
        }
        Ok(key) => Some(key),
        Err(e) => {
            checker.error(KEY, format!("this is not a public key ({e}); {HOW_TO_PIN}"));
            None
        }
    }
}

fn limits(checker: &mut Checker, raw: &RawLimits, files: Option<u64>) -> Limits {
    let default = Limits::default();
    let or = |typed: Option<CountOrNone>, default| typed.map_or(default, |count| count.0);
    let spare_channels = or(raw.spare_channels, default.spare_channels);
    // Whoever keeps more than the usual maximum need not say so twice.
    let max = default.max_spare_channels.max(spare_channels);
    let mut limits = Limits {
        pairs: raw.pairs.map_or(default.pairs, |count| count.0),
        spare_channels,
        max_spare_channels: or(raw.max_spare_channels, max),
    };
    if limits.max_spare_channels < limits.spare_channels {
        checker.error(
            "limits.max_spare_channels",
            format!(
                "{} is less than limits.spare_channels ({}), which are always kept; raise the one or lower the other",
                limits.max_spare_channels, limits.spare_channels
            ),
        );
    }
    if let Some(files) = files {
        // Connections need descriptors as well.
        let most = u16::try_from(files / SPARE_SHARE).unwrap_or(u16::MAX);
        for (key, typed, limit) in [
            (
                "limits.spare_channels",
                raw.spare_channels,
                &mut limits.spare_channels,
            ),
            (
                "limits.max_spare_channels",
                raw.max_spare_channels,
                &mut limits.max_spare_channels,
            ),
        ] {
            if typed.is_some() && *limit > most {
                checker.warn(
                    key,
                    format!(
                        "{limit} is more than a quarter of the {files} open files that the system allows, so that \
                         too few would be left for connections; {most} are used (raise that with `ulimit -n` or \
                         LimitNOFILE, or write {most})"
                    ),
                );
            }
            *limit = (*limit).min(most);
        }
    }
    limits
}

fn timeouts(checker: &mut Checker, raw: &RawTimeouts) -> Timeouts {
    /// A server drops a session that is silent for this long, unless told otherwise.
    const USUAL_SILENCE: Duration = Duration::from_secs(90);
    let default = Timeouts::default();
    let or = |typed: Option<Seconds>, default: Duration| typed.map_or(default, Seconds::duration);
    let timeouts = Timeouts {
        connect: or(raw.connect, default.connect),
        handshake: or(raw.handshake, default.handshake),
        local_connect: or(raw.local_connect, default.local_connect),
        heartbeat_interval: or(raw.heartbeat_interval, default.heartbeat_interval),
        heartbeat_timeout: or(raw.heartbeat_timeout, default.heartbeat_timeout),
        backoff_min: or(raw.backoff_min, default.backoff_min),
        backoff_max: or(raw.backoff_max, default.backoff_max),
    };
    if timeouts.heartbeat_interval >= USUAL_SILENCE {
        checker.error(
            "timeouts.heartbeat_interval",
            format!(
                "{} s is too long: a server drops a session that is silent for 90 s; use less than 90, 30 is usual",
                timeouts.heartbeat_interval.as_secs_f64()
            ),
        );
    } else if timeouts.heartbeat_interval + timeouts.heartbeat_timeout > USUAL_SILENCE {
        checker.warn(
            "timeouts.heartbeat_timeout",
            format!(
                "with heartbeat_interval a dead server is noticed only after {} s; 45 s is usual",
                (timeouts.heartbeat_interval + timeouts.heartbeat_timeout).as_secs_f64()
            ),
        );
    }
    if timeouts.backoff_min > timeouts.backoff_max {
        // Whichever was typed is the one to point at.
        let key = if raw.backoff_min.is_some() {
            "timeouts.backoff_min"
        } else {
            "timeouts.backoff_max"
        };
        checker.error(
            key,
            format!(
                "backoff_min ({} s) is longer than backoff_max ({} s); the waits grow from the first to the second",
                timeouts.backoff_min.as_secs_f64(),
                timeouts.backoff_max.as_secs_f64()
            ),
        );
    }
    timeouts
}

#[cfg(test)]
mod tests;
