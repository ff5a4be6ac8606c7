//! The server's configuration: what was typed ([`Raw`]) and what was meant ([`Config`]).
//!
//! Every key is optional, so the server runs without a file; the command line wins over the file.
//!
//! Which jobs run is told by the keys: those of the reverse tunnel, those of forwards, or both; without any, the
//! reverse tunnel alone.

pub mod forward;

pub use forward::{
    Forward, ForwardLimits, ForwardTimeouts, RawForward, RawForwardLimits, RawForwardTimeouts,
    RawTarget, RawTls, Tls,
};

use minitcptunnel_common::budget::Budget;
use minitcptunnel_common::config::{
    self, AnyPort, Checker, CompressionSetting, ConfigError, Count, Grace, Places, PortSet,
    Problem, RawListener, RawLogging, Seconds, Size, check_logging,
};
use minitcptunnel_common::log::Logging;
use serde::Deserialize;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the file says. Unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct Raw {
    pub port: Option<AnyPort>,
    pub bind: Option<String>,
    pub tunnel_bind: Option<String>,
    pub identity_key_file: Option<String>,
    pub allowed_clients_file: Option<String>,
    pub max_clients: Option<Count>,
    pub allowed_ports: Option<PortSet>,
    pub compression: Option<CompressionSetting>,
    pub memory_budget: Option<Size>,
    pub limits: Option<RawLimits>,
    pub timeouts: Option<RawTimeouts>,
    pub grace: Option<Grace>,
    pub logging: Option<RawLogging>,
    pub server_listener: Option<RawListener>,
    pub target_service: Option<RawTarget>,
    pub tls: Option<RawTls>,
    pub forwards: Option<Vec<RawForward>>,
}

impl Raw {
    /// Whether a key is there that only the reverse job knows.
    fn has_reverse(&self) -> bool {
        self.port.is_some()
            || self.bind.is_some()
            || self.tunnel_bind.is_some()
            || self.identity_key_file.is_some()
            || self.allowed_clients_file.is_some()
            || self.max_clients.is_some()
            || self.allowed_ports.is_some()
            || self.compression.is_some()
    }

    /// Whether a key is there that only the forward job knows.
    fn has_forward(&self) -> bool {
        self.server_listener.is_some()
            || self.target_service.is_some()
            || self.tls.is_some()
            || self.forwards.as_ref().is_some_and(|list| !list.is_empty())
    }
}

/// The `limits` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawLimits {
    pub pending_handshakes: Option<Count>,
    pub pending_handshakes_per_address: Option<Count>,
    pub handshakes_per_second_per_address: Option<Count>,
    pub idle_data_channels: Option<Count>,
    pub waiting_connections: Option<Count>,
    pub pairs: Option<Count>,
    pub tunnels_per_client: Option<Count>,
    pub connections: Option<Count>,
}

/// The `timeouts` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTimeouts {
    pub hello: Option<Seconds>,
    pub first_frame: Option<Seconds>,
    pub pairing: Option<Seconds>,
    pub session_silence: Option<Seconds>,
    pub connect: Option<Seconds>,
    pub write: Option<Grace>,
    pub idle: Option<Grace>,
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--port`
    pub port: Option<u16>,
    /// `--bind`
    pub bind: Option<IpAddr>,
    /// `--grace`
    pub grace: Option<Duration>,
}

/// What the server does.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The control port; 0 lets the system choose.
    pub port: u16,
    /// The address the control port listens on. `::` means IPv6 and IPv4.
    pub bind: IpAddr,
    /// The address public ports listen on.
    pub tunnel_bind: IpAddr,
    /// The server's secret key. Absolute.
    pub identity_key_file: PathBuf,
    /// The allow list. Absolute.
    pub allowed_clients_file: PathBuf,
    /// How many different identities may be connected at once.
    pub max_clients: usize,
    /// The public ports a client may open.
    pub allowed_ports: PortSet,
    /// Whether data sent to clients is compressed.
    pub compression: CompressionSetting,
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
    /// Whether the reverse job runs. What it needs is above, and stands at its defaults when it does not.
    pub reverse: bool,
    /// What the forward job does; without any it does not run.
    pub forwards: Vec<Forward>,
}

/// How much of everything there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have not proved who they are.
    pub pending_handshakes: usize,
    /// The same, from one address.
    pub pending_handshakes_per_address: usize,
    /// New control connections from one address in one second.
    pub handshakes_per_second_per_address: usize,
    /// Data channels of an authenticated client that wait for their first frame.
    pub idle_data_channels: usize,
    /// External connections that wait for their data channel.
    pub waiting_connections: usize,
    /// Running pairs.
    pub pairs: usize,
    /// Tunnels that one client may have open.
    pub tunnels_per_client: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_handshakes: 1024,
            pending_handshakes_per_address: 64,
            handshakes_per_second_per_address: 20,
            idle_data_channels: 256,
            waiting_connections: 1024,
            pairs: Count::MOST,
            tunnels_per_client: 64,
        }
    }
}

/// How long each stage may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to a complete hello.
    pub hello: Duration,
    /// From the handshake to the first frame of a data channel.
    pub first_frame: Duration,
    /// From an external connection to its data channel.
    pub pairing: Duration,
    /// A session that sends nothing for this long is dropped.
    pub session_silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            first_frame: Duration::from_secs(120),
            pairing: Duration::from_secs(10),
            session_silence: Duration::from_secs(90),
        }
    }
}

/// A configuration and what should be warned about.
#[derive(Debug)]
pub struct Checked {
    /// What the server does.
    pub config: Config,
    /// One line each.
    pub warnings: Vec<String>,
}

/// Reads and checks the file, or takes the defaults if there is none, and applies the command line.
pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Checked, ConfigError> {
    match file {
        Some(path) => {
            let loaded = config::load::<Raw>(path)?;
            check(loaded.raw, loaded.places, overrides)
        }
        None => check(Raw::default(), Places::default(), overrides),
    }
}

/// Checks what was typed. Relative paths start at the folder of the file behind `places`.
pub fn check(raw: Raw, places: Places, overrides: &Overrides) -> Result<Checked, ConfigError> {
    let folder = folder_of(places.file())?;
    let mut checker = Checker::new(places);
    // Whoever names the control port wants it, wherever he does so.
    let asked = overrides.port.is_some() || overrides.bind.is_some();
    let forward = raw.has_forward();
    let reverse = raw.has_reverse() || asked || !forward;

    let port = overrides
        .port
        .or(raw.port.map(|port| port.0))
        .unwrap_or(9000);
    if port == 0 && overrides.port.is_none() {
        checker.warn(
            "port",
            "port 0 lets the system choose another port at every start; clients need a fixed one",
        );
    }
    let typed_bind = address(&mut checker, "bind", raw.bind);
    let bind = overrides
        .bind
        .or(typed_bind)
        .unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let tunnel_bind = address(&mut checker, "tunnel_bind", raw.tunnel_bind).unwrap_or(bind);

    let mut file =
        |key: &str, typed: Option<String>, default: &str| match typed.as_deref().map(str::trim) {
            Some("") => {
                checker.error(
                    key,
                    "the file name is empty; name a file, or leave the key out for the default",
                );
                folder.join(default)
            }
            typed => folder.join(typed.unwrap_or(default)),
        };
    let identity_key_file = file(
        "identity_key_file",
        raw.identity_key_file,
        "server_identity_key.hex",
    );
    let allowed_clients_file = file(
        "allowed_clients_file",
        raw.allowed_clients_file,
        "allowed_clients.txt",
    );
    if identity_key_file == allowed_clients_file {
        checker.error(
            "allowed_clients_file",
            "this is the identity key file as well; each needs a file of its own",
        );
    }

    let logging = check_logging(&mut checker, raw.logging, &folder);
    if logging
        .file
        .as_ref()
        .is_some_and(|log| [&identity_key_file, &allowed_clients_file].contains(&log))
    {
        checker.error(
            "logging.log_file",
            "this file is another file of the server already; the log needs one of its own",
        );
    }

    let allowed_ports = raw.allowed_ports.unwrap_or(PortSet::Any);
    match &allowed_ports {
        PortSet::Ranges(ranges) if ranges.is_empty() => {
            checker.warn("allowed_ports", "the list is empty, so no tunnel can be opened; leave the key out to allow any port");
        }
        ports if port != 0 && matches!(ports, PortSet::Ranges(_)) && ports.contains(port) => {
            checker.warn(
                "allowed_ports",
                format!("the control port {port} is among them; a tunnel cannot have it"),
            );
        }
        _ => {}
    }

    let raw_limits = raw.limits.unwrap_or_default();
    let raw_timeouts = raw.timeouts.unwrap_or_default();
    let forwards = if forward {
        let first = RawForward {
            server_listener: raw.server_listener,
            target_service: raw.target_service,
            tls: raw.tls,
            ..RawForward::default()
        };
        let top = forward::Top {
            folder: &folder,
            limits: &raw_limits,
            timeouts: &raw_timeouts,
            control: reverse.then_some(SocketAddr::new(bind, port)),
        };
        forward::check(&mut checker, first, raw.forwards, &top)
    } else {
        Vec::new()
    };
    let limits = limits(&mut checker, &raw_limits);
    let timeouts = timeouts(&mut checker, &raw_timeouts);
    let config = Config {
        port,
        bind,
        tunnel_bind,
        identity_key_file,
        allowed_clients_file,
        max_clients: raw.max_clients.map_or(1, |count| count.0),
        allowed_ports,
        compression: raw.compression.unwrap_or_default(),
        memory_budget: raw.memory_budget.map_or_else(Budget::usual, Size::bytes),
        limits,
        timeouts,
        grace: overrides
            .grace
            .or(raw.grace.map(Grace::duration))
            .unwrap_or(Duration::from_secs(5)),
        logging,
        reverse,
        forwards,
    };
    let warnings = checker.finish()?;
    Ok(Checked { config, warnings })
}

fn limits(checker: &mut Checker, raw: &RawLimits) -> Limits {
    let default = Limits::default();
    let or = |typed: Option<Count>, default: usize| typed.map_or(default, |count| count.0);
    let limits = Limits {
        pending_handshakes: or(raw.pending_handshakes, default.pending_handshakes),
        pending_handshakes_per_address: or(
            raw.pending_handshakes_per_address,
            default.pending_handshakes_per_address,
        ),
        handshakes_per_second_per_address: or(
            raw.handshakes_per_second_per_address,
            default.handshakes_per_second_per_address,
        ),
        idle_data_channels: or(raw.idle_data_channels, default.idle_data_channels),
        waiting_connections: or(raw.waiting_connections, default.waiting_connections),
        pairs: or(raw.pairs, default.pairs),
        tunnels_per_client: or(raw.tunnels_per_client, default.tunnels_per_client),
    };
    // Only if it was typed: nobody is to be told off about a default.
    if raw.pending_handshakes_per_address.is_some()
        && limits.pending_handshakes_per_address > limits.pending_handshakes
    {
        checker.warn(
            "limits.pending_handshakes_per_address",
            format!(
                "{} is more than limits.pending_handshakes ({}), so one address can take every place",
                limits.pending_handshakes_per_address, limits.pending_handshakes
            ),
        );
    }
    limits
}

fn timeouts(checker: &mut Checker, raw: &RawTimeouts) -> Timeouts {
    /// A client sends a heartbeat every 30 s unless told otherwise, and the answer may take 15 s.
    const USUAL_HEARTBEAT: Duration = Duration::from_secs(45);
    let default = Timeouts::default();
    let or = |typed: Option<Seconds>, default: Duration| typed.map_or(default, Seconds::duration);
    let timeouts = Timeouts {
        hello: or(raw.hello, default.hello),
        first_frame: or(raw.first_frame, default.first_frame),
        pairing: or(raw.pairing, default.pairing),
        session_silence: or(raw.session_silence, default.session_silence),
    };
    if timeouts.session_silence < USUAL_HEARTBEAT {
        checker.warn(
            "timeouts.session_silence",
            format!(
                "{} s is short: clients send a heartbeat every 30 s by default and would be dropped between two; \
                 use 45 or more, or shorten heartbeat_interval at every client",
                timeouts.session_silence.as_secs_f64()
            ),
        );
    }
    timeouts
}

fn address(checker: &mut Checker, key: &str, typed: Option<String>) -> Option<IpAddr> {
    let typed = typed?;
    let text = typed.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            checker.error(
                key,
                format!(
                    "\"{}\" is not an IP address; use \"::\" for all addresses, \"0.0.0.0\" for IPv4 only, \
                     or one address of this machine, without a port",
                    text.escape_debug()
                ),
            );
            None
        }
    }
}

/// The folder that relative paths start at, absolute, so that they keep their meaning.
fn folder_of(file: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let absolute = match file {
        Some(file) => std::path::absolute(file)
            .map(|path| path.parent().map_or(path.clone(), Path::to_path_buf)),
        None => std::env::current_dir(),
    };
    absolute.map_err(|e| ConfigError::Invalid {
        path: file.map(Path::to_path_buf),
        problems: vec![Problem {
            key: String::new(),
            place: None,
            message: format!(
                "the working directory cannot be told: {e}; start the program in one that exists"
            ),
        }],
    })
}

#[cfg(test)]
mod tests;
