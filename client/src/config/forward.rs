//! The forwards of the configuration: connections come in on a local port, and go on over TLS to a server.

use super::{RawLimits, RawTimeouts};
use minitcptunnel_common::config::{
    Checker, Count, CountOrNone, Endpoint, ForwardNames, Grace, Host, Port, RawFallback,
    RawListener, Seconds, Section, check_endpoints, check_listener, check_ports, named_file,
    or_never, required_file,
};
use minitcptunnel_common::pki::MinVersion;
use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One of the `forwards` of the file. The same keys at its top are one more.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForward {
    pub name: Option<String>,
    pub local_listener: Option<RawListener>,
    pub local_listen: Option<RawListener>,
    pub remote_server: Option<RawServer>,
    pub tls: Option<RawTls>,
    pub preconnected: Option<CountOrNone>,
    pub limits: Option<RawForwardLimits>,
    pub timeouts: Option<RawForwardTimeouts>,
}

/// A `remote_server`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawServer {
    pub host: Option<String>,
    pub port: Option<Port>,
    pub server_ca_cert: Option<String>,
    pub server_hostname: Option<String>,
    pub fallbacks: Option<Vec<RawFallback>>,
}

/// A `tls` section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTls {
    pub client_cert: Option<String>,
    pub client_key: Option<String>,
    pub min_version: Option<MinVersion>,
    pub handshake_timeout: Option<Seconds>,
}

/// The `limits` of one forward; those at the top of the file hold for what is missing here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForwardLimits {
    pub connections: Option<Count>,
}

/// The `timeouts` of one forward; those at the top of the file hold for what is missing here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForwardTimeouts {
    pub connect: Option<Seconds>,
    pub handshake: Option<Seconds>,
    pub retry_within: Option<Grace>,
    pub write: Option<Grace>,
    pub idle: Option<Grace>,
    pub backoff_min: Option<Seconds>,
    pub backoff_max: Option<Seconds>,
}

/// A forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name in the log.
    pub name: String,
    /// Where local applications connect to. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The server and its fallbacks, at least one, in the order in which they are tried.
    pub servers: Vec<Endpoint>,
    /// The certificates that a server's certificate must lead to. Absolute.
    pub server_ca: PathBuf,
    /// The name that a server's certificate must have; `None`: the host that was dialled.
    pub server_hostname: Option<Host>,
    /// What is shown to a server that asks.
    pub identity: Option<ClientCert>,
    /// The lowest version of TLS.
    pub min_version: MinVersion,
    /// How many connections to the server are kept ready, so that a new local one pays no handshake.
    pub preconnected: u16,
    /// Connections that are carried at a time; `limits.pairs` bounds those of all jobs together.
    pub connections: usize,
    /// How long each stage may take.
    pub timeouts: ForwardTimeouts,
}

impl Forward {
    /// The name that the certificate of this one of the `servers` must have.
    #[must_use]
    pub fn name_of<'a>(&'a self, server: &'a Endpoint) -> &'a Host {
        self.server_hostname.as_ref().unwrap_or(&server.host)
    }
}

/// A client's certificate. Paths are absolute; what is in the files is not looked at here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// The certificate, and those that lead from it to its root.
    pub cert: PathBuf,
    /// Its secret key.
    pub key: PathBuf,
}

/// How long each stage may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardTimeouts {
    /// Connecting to one server, all of its addresses together.
    pub connect: Duration,
    /// The whole TLS handshake.
    pub handshake: Duration,
    /// How long a local application is kept waiting while attempts fail; zero: one attempt.
    pub retry_within: Duration,
    /// An end that takes nothing for this long while there is something for it is cut; `None`: never.
    pub write: Option<Duration>,
    /// A connection on which nothing moves for this long is cut; `None`: never.
    pub idle: Option<Duration>,
    /// The first wait before another attempt.
    pub backoff_min: Duration,
    /// The longest wait before another attempt.
    pub backoff_max: Duration,
}

impl Default for ForwardTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            retry_within: Duration::from_secs(30),
            write: None,
            idle: None,
            // An application waits: sooner than the control channel of the reverse job tries again.
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// How many connections are kept ready, unless the file says. None: the server reaches the target for each of them,
/// and not every target bears connections that nobody uses (one that serves one at a time, one that counts those who
/// never log in).
const PRECONNECTED: u16 = 0;

/// What the top of the file gives to all forwards.
pub(super) struct Top<'a> {
    pub(super) folder: &'a Path,
    pub(super) limits: &'a RawLimits,
    pub(super) timeouts: &'a RawTimeouts,
    /// The timeouts at the top have been held against each other already.
    pub(super) compared: bool,
}

/// What a `tls` section says.
#[derive(Default)]
struct Tls {
    identity: Option<ClientCert>,
    min_version: MinVersion,
    handshake: Option<Duration>,
}

/// Checks all forwards, each for itself and then against the others. `first` is what stands at the top of the file;
/// its `tls`, key by key, and `preconnected` also hold for those of the list.
pub(super) fn check(
    checker: &mut Checker,
    mut first: RawForward,
    list: Option<Vec<RawForward>>,
    top: &Top<'_>,
) -> Vec<Forward> {
    let first_is_one = first.local_listener.is_some()
        || first.local_listen.is_some()
        || first.remote_server.is_some()
        || list.as_ref().is_none_or(Vec::is_empty);
    let shared_tls = first.tls.take();
    let preconnected = first.preconnected;

    let mut names = ForwardNames::default();
    let mut forwards: Vec<(String, Forward)> = Vec::new();
    if first_is_one {
        let name = Some(names.top());
        let forward = one(checker, "", name, first, shared_tls.as_ref(), top);
        forwards.extend(forward.map(|it| (String::new(), it)));
    }
    for (index, mut raw) in list.unwrap_or_default().into_iter().enumerate() {
        let path = format!("forwards[{index}].");
        let name = names.check(checker, index, raw.name.take());
        raw.preconnected = raw.preconnected.or(preconnected);
        let forward = one(checker, &path, name, raw, shared_tls.as_ref(), top);
        forwards.extend(forward.map(|it| (path, it)));
    }

    let listeners: Vec<_> = (forwards.iter())
        .map(|(path, forward)| (path.as_str(), forward.name.as_str(), forward.listen))
        .collect();
    check_ports(checker, "local_listener.port", &listeners, None);
    forwards.into_iter().map(|(_, forward)| forward).collect()
}

/// Checks one forward. All of its mistakes are reported before it is given up.
fn one(
    checker: &mut Checker,
    path: &str,
    name: Option<String>,
    raw: RawForward,
    shared_tls: Option<&RawTls>,
    top: &Top<'_>,
) -> Option<Forward> {
    let at = |key: &str| format!("{path}{key}");
    let (listener, listener_key) = match (raw.local_listener, raw.local_listen) {
        (Some(_), Some(_)) => {
            checker.error(
                at("local_listen"),
                "this is another name of local_listener, which is there as well; take one of them out",
            );
            return None;
        }
        (None, Some(short)) => (Some(short), "local_listen"),
        (long, None) => (long, "local_listener"),
    };
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listen = check_listener(checker, &at(listener_key), listener, local);
    let server = raw.remote_server.unwrap_or_default();
    let servers = check_endpoints(
        checker,
        &at("remote_server"),
        "the server",
        (server.host.as_deref(), server.port),
        server.fallbacks,
    );
    let server_ca = required_file(
        checker,
        &at("remote_server.server_ca_cert"),
        "the certificate of the CA that signed the server's",
        server.server_ca_cert.as_deref(),
        top.folder,
    );
    let server_hostname = match server.server_hostname.as_deref().map(str::trim) {
        None | Some("") => Some(None),
        Some(typed) => match typed.parse() {
            Ok(host) => Some(Some(host)),
            Err(e) => {
                checker.error(at("remote_server.server_hostname"), e);
                None
            }
        },
    };
    let tls = match merged(raw.tls, &at("tls"), shared_tls) {
        Some((section, raw)) => tls(checker, &section, raw, top),
        None => Some(Tls::default()),
    };
    if let (Some(listen), Some(tls)) = (listen, &tls) {
        warn_if_open(checker, &at(listener_key), listen, tls);
    }
    let handshake = tls.as_ref().and_then(|tls| tls.handshake);
    let own_timeouts = raw.timeouts.unwrap_or_default();
    let timeouts = timeouts(checker, &at("timeouts"), own_timeouts, top, handshake);
    let connections = raw.limits.and_then(|limits| limits.connections);
    let tls = tls?;
    Some(Forward {
        name: name?,
        listen: listen?,
        servers: servers?,
        server_ca: server_ca?,
        server_hostname: server_hostname?,
        identity: tls.identity,
        min_version: tls.min_version,
        preconnected: raw.preconnected.map_or(PRECONNECTED, |count| count.0),
        connections: connections
            .or(top.limits.connections)
            .map_or(Count::MOST, |count| count.0),
        timeouts,
    })
}

/// Whoever can connect to a listener needs no certificate: the client shows its own.
fn warn_if_open(checker: &mut Checker, path: &str, listen: SocketAddr, tls: &Tls) {
    if listen.ip().to_canonical().is_loopback() {
        return;
    }
    let as_whom = match tls.identity {
        Some(_) => " under this client's certificate",
        None => "",
    };
    checker.warn(
        format!("{path}.host"),
        format!(
            "other machines can reach this port, and whoever does reaches the service behind the tunnel{as_whom}; leave \
             it at 127.0.0.1 unless they shall"
        ),
    );
}

/// What a forward says about TLS itself, and what the top of the file says about the rest.
fn merged(own: Option<RawTls>, path: &str, shared: Option<&RawTls>) -> Option<(Section, RawTls)> {
    let Some(mut own) = own else {
        return Some((Section::new("tls", "tls"), shared?.clone()));
    };
    let mut section = Section::new(path, "tls");
    if let Some(shared) = shared {
        section.inherit(
            "client_cert",
            &mut own.client_cert,
            shared.client_cert.as_ref(),
        );
        section.inherit(
            "client_key",
            &mut own.client_key,
            shared.client_key.as_ref(),
        );
        section.inherit(
            "min_version",
            &mut own.min_version,
            shared.min_version.as_ref(),
        );
        let timeout = shared.handshake_timeout.as_ref();
        section.inherit("handshake_timeout", &mut own.handshake_timeout, timeout);
    }
    Some((section, own))
}

fn tls(checker: &mut Checker, section: &Section, raw: RawTls, top: &Top<'_>) -> Option<Tls> {
    let cert = named_file(raw.client_cert.as_deref(), top.folder);
    let key = named_file(raw.client_key.as_deref(), top.folder);
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(ClientCert { cert, key }),
        (None, None) => None,
        (cert, _) => {
            let (missing, there) = if cert.is_some() {
                ("client_key", "client_cert")
            } else {
                ("client_cert", "client_key")
            };
            checker.error(
                section.at(missing),
                format!("no file is named, but {there} is; a certificate and its key go together"),
            );
            return None;
        }
    };
    Some(Tls {
        identity,
        min_version: raw.min_version.unwrap_or_default(),
        handshake: raw.handshake_timeout.map(Seconds::duration),
    })
}

/// `handshake` is that of the `tls` section, which is nearer than that of `timeouts` at the top.
fn timeouts(
    checker: &mut Checker,
    path: &str,
    own: RawForwardTimeouts,
    top: &Top<'_>,
    handshake: Option<Duration>,
) -> ForwardTimeouts {
    let default = ForwardTimeouts::default();
    let typed = top.timeouts;
    let seconds = |own: Option<Seconds>, top: Option<Seconds>| own.or(top).map(Seconds::duration);
    let min = seconds(own.backoff_min, typed.backoff_min);
    let max = seconds(own.backoff_max, typed.backoff_max);
    // A default gives way to what was typed.
    let backoff_min = min.unwrap_or(default.backoff_min.min(max.unwrap_or(Duration::MAX)));
    let backoff_max = max.unwrap_or(default.backoff_max.max(backoff_min));
    let own_typed = own.backoff_min.is_some() || own.backoff_max.is_some();
    if backoff_min > backoff_max && (own_typed || !top.compared) {
        // Whichever was typed here is the one to point at.
        let key = match (own.backoff_min, own.backoff_max) {
            (Some(_), _) => format!("{path}.backoff_min"),
            (None, Some(_)) => format!("{path}.backoff_max"),
            (None, None) => "timeouts.backoff_min".to_owned(),
        };
        checker.error(
            key,
            format!(
                "backoff_min ({} s) is longer than backoff_max ({} s); the waits grow from the first to the second",
                backoff_min.as_secs_f64(),
                backoff_max.as_secs_f64()
            ),
        );
    }
    ForwardTimeouts {
        connect: seconds(own.connect, typed.connect).unwrap_or(default.connect),
        handshake: handshake
            .filter(|_| own.handshake.is_none())
            .or(seconds(own.handshake, typed.handshake))
            .unwrap_or(default.handshake),
        retry_within: own
            .retry_within
            .or(typed.retry_within)
            .map_or(default.retry_within, Grace::duration),
        write: or_never(own.write.or(typed.write)),
        idle: or_never(own.idle.or(typed.idle)),
        backoff_min,
        backoff_max,
    }
}

/// What it would do, for `check`.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Forward {:?}: {} leads to ", self.name, self.listen)?;
        for (index, server) in self.servers.iter().enumerate() {
            let or = if index > 0 { ", else " } else { "" };
            write!(f, "{or}{server}")?;
            if self.name_of(server) != &server.host {
                write!(f, " as {}", self.name_of(server))?;
            }
        }
        write!(
            f,
            " over TLS {} or newer, if {} vouches for it; ",
            self.min_version,
            self.server_ca.display()
        )?;
        match &self.identity {
            Some(own) => write!(f, "shows the certificate {}", own.cert.display())?,
            None => f.write_str("shows no certificate")?,
        }
        match self.preconnected {
            0 => f.write_str("; keeps no connections ready."),
            keep => write!(f, "; connections kept ready: {keep}."),
        }
    }
}
