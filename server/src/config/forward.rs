//! The forwards of the configuration: TLS comes in on a port, and goes on in the clear to a target service.

use super::{Count, Limits, RawLimits, RawTimeouts};
use minitcptunnel_common::config::{
    Checker, Endpoint, ForwardNames, Grace, Port, RawFallback, RawListener, Seconds, Section,
    check_endpoints, check_listener, check_ports, named_file, or_never, required_file,
};
use minitcptunnel_common::pki::MinVersion;
use serde::Deserialize;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One of the `forwards` of the file. The same keys at its top are one more.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForward {
    pub name: Option<String>,
    pub server_listener: Option<RawListener>,
    pub target_service: Option<RawTarget>,
    pub tls: Option<RawTls>,
    pub limits: Option<RawForwardLimits>,
    pub timeouts: Option<RawForwardTimeouts>,
}

/// A `target_service`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTarget {
    pub host: Option<String>,
    pub port: Option<Port>,
    pub fallbacks: Option<Vec<RawFallback>>,
}

/// A `tls` section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawTls {
    pub server_cert: Option<String>,
    pub server_key: Option<String>,
    pub client_ca_cert: Option<String>,
    pub allowed_client_cns: Option<Vec<String>>,
    pub allowed_clients_file: Option<String>,
    pub min_version: Option<MinVersion>,
    pub handshake_timeout: Option<Seconds>,
}

/// The `limits` of one forward; those at the top of the file hold for what is missing here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForwardLimits {
    pub connections: Option<Count>,
    pub pending_handshakes: Option<Count>,
    pub pending_handshakes_per_address: Option<Count>,
}

/// The `timeouts` of one forward; those at the top of the file hold for what is missing here.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawForwardTimeouts {
    pub connect: Option<Seconds>,
    pub write: Option<Grace>,
    pub idle: Option<Grace>,
}

/// A forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name in the log.
    pub name: String,
    /// Where clients connect to. `::` means IPv6 and IPv4, port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The target service and its fallbacks, at least one, in the order in which they are tried.
    pub targets: Vec<Endpoint>,
    /// What is proved and asked for.
    pub tls: Tls,
    /// How much of everything there may be.
    pub limits: ForwardLimits,
    /// How long each stage may take.
    pub timeouts: ForwardTimeouts,
}

/// The server's side of TLS. Paths are absolute; what is in the files is not looked at here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate and those that lead from it to its root.
    pub cert: PathBuf,
    /// Its secret key.
    pub key: PathBuf,
    /// Who signs clients' certificates; `None` asks for none, so that everybody is let in.
    pub client_ca: Option<PathBuf>,
    /// The names (CN, or of the SANs) that a client's certificate must have one of; empty allows every one that
    /// the CA has signed.
    pub allowed_clients: Vec<String>,
    /// More such names, one a line, in a file that is followed; even without a name in it, nobody else is let in.
    pub allowed_clients_file: Option<PathBuf>,
    /// The lowest version of TLS.
    pub min_version: MinVersion,
    /// How long a whole handshake may take.
    pub handshake_timeout: Duration,
}

/// How much of everything there may be in one forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardLimits {
    /// Connections that are carried at a time; `limits.pairs` bounds those of all jobs together.
    pub connections: usize,
    /// Connections whose handshake is not complete.
    pub pending_handshakes: usize,
    /// The same, from one address.
    pub pending_handshakes_per_address: usize,
}

/// How long each stage may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardTimeouts {
    /// Connecting to the target service, all of its addresses and fallbacks together.
    pub connect: Duration,
    /// An end that takes nothing for this long while there is something for it is cut; `None`: never.
    pub write: Option<Duration>,
    /// A connection on which nothing moves for this long is cut; `None`: never.
    pub idle: Option<Duration>,
}

impl Default for ForwardTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            write: None,
            idle: None,
        }
    }
}

/// What the top of the file gives to all forwards.
pub(super) struct Top<'a> {
    pub(super) folder: &'a Path,
    pub(super) limits: &'a RawLimits,
    pub(super) timeouts: &'a RawTimeouts,
    /// Where the reverse job takes clients, if it runs.
    pub(super) control: Option<SocketAddr>,
}

/// Checks all forwards, each for itself and then against the others. `first` is what stands at the top of the file;
/// its `tls` also holds, key by key, for those of the list.
pub(super) fn check(
    checker: &mut Checker,
    mut first: RawForward,
    list: Option<Vec<RawForward>>,
    top: &Top<'_>,
) -> Vec<Forward> {
    let first_is_one = first.server_listener.is_some()
        || first.target_service.is_some()
        || list.as_ref().is_none_or(Vec::is_empty);
    let shared_tls = first.tls.take();

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
        let forward = one(checker, &path, name, raw, shared_tls.as_ref(), top);
        forwards.extend(forward.map(|it| (path, it)));
    }

    let listeners: Vec<_> = (forwards.iter())
        .map(|(path, forward)| (path.as_str(), forward.name.as_str(), forward.listen))
        .collect();
    check_ports(checker, "server_listener.port", &listeners, top.control);
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
    let all = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let listen = check_listener(checker, &at("server_listener"), raw.server_listener, all);
    let target = raw.target_service.unwrap_or_default();
    let targets = check_endpoints(
        checker,
        &at("target_service"),
        "the target service",
        (target.host.as_deref(), target.port),
        target.fallbacks,
    );
    let tls = match merged(raw.tls, &at("tls"), shared_tls) {
        Some((section, raw)) => tls(checker, &section, raw, top),
        None => {
            checker.error(
                at("tls"),
                "the section is missing; it names the server's certificate and key (`server_cert`, `server_key`)",
            );
            None
        }
    };
    Some(Forward {
        name: name?,
        listen: listen?,
        targets: targets?,
        tls: tls?,
        limits: limits(raw.limits.unwrap_or_default(), top.limits),
        timeouts: timeouts(raw.timeouts.unwrap_or_default(), top.timeouts),
    })
}

/// What a forward says about TLS itself, and what the top of the file says about the rest: who writes a part of the
/// section must not open the door by what is not in it.
fn merged(own: Option<RawTls>, path: &str, shared: Option<&RawTls>) -> Option<(Section, RawTls)> {
    let Some(mut own) = own else {
        return Some((Section::new("tls", "tls"), shared?.clone()));
    };
    let mut section = Section::new(path, "tls");
    let Some(shared) = shared else {
        return Some((section, own));
    };
    let named = |file: &Option<String>| file.as_ref().map(|name| !name.trim().is_empty());
    let lists_clients = own
        .allowed_client_cns
        .as_ref()
        .is_some_and(|names| !names.is_empty())
        || named(&own.allowed_clients_file) == Some(true);
    let asks_nobody = named(&own.client_ca_cert) == Some(false);

    section.inherit(
        "server_cert",
        &mut own.server_cert,
        shared.server_cert.as_ref(),
    );
    section.inherit(
        "server_key",
        &mut own.server_key,
        shared.server_key.as_ref(),
    );
    section.inherit(
        "client_ca_cert",
        &mut own.client_ca_cert,
        shared.client_ca_cert.as_ref(),
    );
    // The two lists are one: whoever names clients means no others. And nobody is on a list where nobody is asked.
    if !lists_clients && !asks_nobody {
        let (names, file) = (&shared.allowed_client_cns, &shared.allowed_clients_file);
        section.inherit(
            "allowed_client_cns",
            &mut own.allowed_client_cns,
            names.as_ref(),
        );
        section.inherit(
            "allowed_clients_file",
            &mut own.allowed_clients_file,
            file.as_ref(),
        );
    }
    section.inherit(
        "min_version",
        &mut own.min_version,
        shared.min_version.as_ref(),
    );
    let timeout = shared.handshake_timeout.as_ref();
    section.inherit("handshake_timeout", &mut own.handshake_timeout, timeout);
    Some((section, own))
}

fn tls(checker: &mut Checker, section: &Section, raw: RawTls, top: &Top<'_>) -> Option<Tls> {
    let at = |key: &str| section.at(key);
    let mut file = |key: &str, what: &str, typed: Option<String>| {
        required_file(checker, &at(key), what, typed.as_deref(), top.folder)
    };
    let cert = file("server_cert", "the server's certificate", raw.server_cert);
    let key = file("server_key", "its secret key", raw.server_key);
    let client_ca = named_file(raw.client_ca_cert.as_deref(), top.folder);
    let allowed_clients = raw.allowed_client_cns.unwrap_or_default();
    let allowed_clients_file = named_file(raw.allowed_clients_file.as_deref(), top.folder);
    for (index, name) in allowed_clients.iter().enumerate() {
        if name.trim().is_empty() {
            checker.error(
                at(&format!("allowed_client_cns[{index}]")),
                "the name is empty; no certificate has such a name, take the line out",
            );
        }
    }
    if client_ca.is_none() {
        if allowed_clients_file.is_some() {
            checker.error(
                at("allowed_clients_file"),
                "a list is named, but without client_ca_cert no client shows a certificate, so the list would bar \
                 nobody; name the CA, or take the list out",
            );
        } else if allowed_clients.is_empty() {
            checker.warn(
                at("client_ca_cert"),
                "no CA is named, so no client has to show a certificate: whoever reaches this port reaches the target",
            );
        } else {
            checker.error(
                at("allowed_client_cns"),
                "names are listed, but without client_ca_cert no client shows a certificate, so the list would bar \
                 nobody; name the CA, or take the list out",
            );
        }
    }
    Some(Tls {
        cert: cert?,
        key: key?,
        client_ca,
        allowed_clients,
        allowed_clients_file,
        min_version: raw.min_version.unwrap_or_default(),
        handshake_timeout: raw
            .handshake_timeout
            .map_or(Duration::from_secs(10), Seconds::duration),
    })
}

fn limits(own: RawForwardLimits, top: &RawLimits) -> ForwardLimits {
    /// Many connections of one client begin at the same time: more than a stranger of the reverse job needs.
    const PER_ADDRESS: usize = 256;
    let or = |own: Option<Count>, top: Option<Count>, default: usize| {
        own.or(top).map_or(default, |count| count.0)
    };
    ForwardLimits {
        connections: or(own.connections, top.connections, Count::MOST),
        pending_handshakes: or(
            own.pending_handshakes,
            top.pending_handshakes,
            Limits::default().pending_handshakes,
        ),
        pending_handshakes_per_address: or(
            own.pending_handshakes_per_address,
            top.pending_handshakes_per_address,
            PER_ADDRESS,
        ),
    }
}

fn timeouts(own: RawForwardTimeouts, top: &RawTimeouts) -> ForwardTimeouts {
    let default = ForwardTimeouts::default();
    ForwardTimeouts {
        connect: own
            .connect
            .or(top.connect)
            .map_or(default.connect, Seconds::duration),
        write: or_never(own.write.or(top.write)),
        idle: or_never(own.idle.or(top.idle)),
    }
}

/// What it would do, for `check`.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tls {
            client_ca,
            allowed_clients,
            allowed_clients_file,
            min_version,
            ..
        } = &self.tls;
        write!(
            f,
            "Forward {:?}: takes TLS {min_version} or newer on {} and leads to {}",
            self.name, self.listen, self.targets[0]
        )?;
        for fallback in &self.targets[1..] {
            write!(f, ", else {fallback}")?;
        }
        match client_ca {
            None => f.write_str("; takes everybody, no client certificate is asked for"),
            Some(ca) => {
                write!(
                    f,
                    "; takes clients whose certificate {} signed",
                    ca.display()
                )?;
                let mut separator = ", with the name ";
                for name in allowed_clients {
                    write!(f, "{separator}{name:?}")?;
                    separator = " or ";
                }
                if let Some(file) = allowed_clients_file {
                    write!(f, "{separator}that is in {}", file.display())?;
                }
                Ok(())
            }
        }?;
        f.write_char('.')
    }
}
