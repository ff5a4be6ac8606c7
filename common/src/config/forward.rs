//! What the forward sections of both programs have in common.
//!
//! A forward stands at the top of the file, or in the list `forwards`: each check is told the path of the group
//! that it looks at (`""` or `"forwards[1]."`), so that messages point at the right one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::Checker;
use super::types::{AnyPort, Grace, Host, Port};
use crate::pki::MinVersion;

/// The longest name of a forward, as of a tunnel.
const MAX_NAME: usize = 255;

/// What a forward at the top of the file is called.
pub const TOP_FORWARD: &str = "default";

impl<'de> Deserialize<'de> for MinVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Versions;
        impl Visitor<'_> for Versions {
            type Value = MinVersion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"1.2\" or \"1.3\"")
            }

            // Unquoted, it is a number.
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<MinVersion, E> {
                match value {
                    1.2 => Ok(MinVersion::Tls12),
                    1.3 => Ok(MinVersion::Tls13),
                    other => Err(E::invalid_value(Unexpected::Float(other), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MinVersion, E> {
                // Python and OpenSSL write TLSv1.2 and TLSv1_2.
                let plain = text.trim().to_ascii_lowercase().replace('_', ".");
                match plain.trim_start_matches("tls").trim_start_matches('v') {
                    "1.2" => Ok(MinVersion::Tls12),
                    "1.3" => Ok(MinVersion::Tls13),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Versions)
    }
}

/// A `server_listener` or `local_listener`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawListener {
    pub host: Option<String>,
    pub port: Option<AnyPort>,
}

/// One of the `fallbacks`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawFallback {
    pub host: Option<String>,
    pub port: Option<Port>,
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::dial::host_port(self.host.as_str(), self.port))
    }
}

impl Endpoint {
    /// Several of them as a log line names them, in the order in which they are tried.
    pub fn list(all: &[Self]) -> String {
        let all: Vec<_> = all.iter().map(Self::to_string).collect();
        all.join(", then ")
    }
}

/// The address that a listener listens on.
pub fn check_listener(
    checker: &mut Checker,
    path: &str,
    raw: Option<RawListener>,
    default: IpAddr,
) -> Option<SocketAddr> {
    let raw = raw.unwrap_or_default();
    let host = match raw.host.as_deref().map(str::trim) {
        None => Some(default),
        Some(typed) => check_address(checker, &format!("{path}.host"), typed),
    };
    let port = match raw.port {
        Some(AnyPort(port)) => {
            if port == 0 {
                checker.warn(
                    format!("{path}.port"),
                    "port 0 lets the system choose another port at every start",
                );
            }
            Some(port)
        }
        None => {
            checker.error(
                format!("{path}.port"),
                "the key is missing; write the port to listen on",
            );
            None
        }
    };
    Some(SocketAddr::new(host?, port?))
}

/// An address to listen on. `localhost` is one, other names are not.
fn check_address(checker: &mut Checker, key: &str, typed: &str) -> Option<IpAddr> {
    if typed.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::from([127, 0, 0, 1]));
    }
    let bare = typed
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(typed);
    let address = bare.parse().ok();
    if address.is_none() {
        checker.error(
            key,
            format!(
                "\"{}\" is not an IP address; use \"0.0.0.0\" for all of IPv4, \"::\" for all addresses, \
                 or one address of this machine, without a port",
                typed.escape_debug()
            ),
        );
    }
    address
}

/// The places to connect to, in the order in which they are tried. A fallback without a port has that of the
/// first. `what` is what the first one is.
pub fn check_endpoints(
    checker: &mut Checker,
    path: &str,
    what: &str,
    (host, port): (Option<&str>, Option<Port>),
    fallbacks: Option<Vec<RawFallback>>,
) -> Option<Vec<Endpoint>> {
    let host = check_host(checker, &format!("{path}.host"), what, host);
    if port.is_none() {
        checker.error(
            format!("{path}.port"),
            format!("the key is missing; write the port of {what}"),
        );
    }
    let fallbacks: Vec<_> = fallbacks
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(index, raw)| {
            let key = format!("{path}.fallbacks[{index}].host");
            let host = check_host(checker, &key, what, raw.host.as_deref());
            (host, raw.port.or(port))
        })
        .collect();
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (index, (host, port)) in [(host, port)].into_iter().chain(fallbacks).enumerate() {
        let (host, Port(port)) = (host?, port?);
        let endpoint = Endpoint { host, port };
        if endpoints.contains(&endpoint) {
            checker.warn(
                format!("{path}.fallbacks[{}]", index - 1),
                format!("{endpoint} is named before; it would be tried twice"),
            );
        }
        endpoints.push(endpoint);
    }
    Some(endpoints)
}

fn check_host(checker: &mut Checker, key: &str, what: &str, typed: Option<&str>) -> Option<Host> {
    let Some(typed) = typed else {
        checker.error(
            key,
            format!("the key is missing; write the host name or IP address of {what}"),
        );
        return None;
    };
    typed.parse().map_err(|e| checker.error(key, e)).ok()
}

/// A file that is named or not; a blank name counts as none.
pub fn named_file(typed: Option<&str>, folder: &Path) -> Option<PathBuf> {
    let typed = typed.map(str::trim).filter(|name| !name.is_empty())?;
    Some(folder.join(typed))
}

/// A file that must be named. `what` is what it holds.
pub fn required_file(
    checker: &mut Checker,
    key: &str,
    what: &str,
    typed: Option<&str>,
    folder: &Path,
) -> Option<PathBuf> {
    let file = named_file(typed, folder);
    if file.is_none() {
        checker.error(
            key,
            format!("no file is named; name the PEM file with {what}"),
        );
    }
    file
}

/// A time where 0 stands for "never".
pub fn or_never(typed: Option<Grace>) -> Option<Duration> {
    typed
        .map(Grace::duration)
        .filter(|duration| !duration.is_zero())
}

/// Where the keys of a section stand, when a forward says some of them and the top of the file says the others.
#[derive(Debug)]
pub struct Section {
    path: String,
    top: &'static str,
    from_top: Vec<&'static str>,
}

impl Section {
    /// A section of a forward, and the one at the top that holds for what is missing in it.
    pub fn new(path: impl Into<String>, top: &'static str) -> Self {
        Self {
            path: path.into(),
            top,
            from_top: Vec::new(),
        }
    }

    /// Takes a key from the top, unless the forward has it; one that is there but blank it has.
    pub fn inherit<T: Clone>(&mut self, key: &'static str, own: &mut Option<T>, top: Option<&T>) {
        if own.is_none() && top.is_some() {
            *own = top.cloned();
            self.from_top.push(key);
        }
    }

    /// The path of a key, or of something in it, for messages.
    #[must_use]
    pub fn at(&self, key: &str) -> String {
        let whole = key.split('[').next().unwrap_or(key);
        let path = if self.from_top.contains(&whole) {
            self.top
        } else {
            &self.path
        };
        format!("{path}.{key}")
    }
}

/// The names of all forwards, checked one by one as they are met.
#[derive(Debug, Default)]
pub struct ForwardNames(Vec<String>);

impl ForwardNames {
    /// The name of `forwards[index]`.
    pub fn check(
        &mut self,
        checker: &mut Checker,
        index: usize,
        typed: Option<String>,
    ) -> Option<String> {
        let key = format!("forwards[{index}].name");
        let problem = match typed.as_deref() {
            None => "the key is missing; give the forward a name".to_owned(),
            Some(name) if name.trim().is_empty() => "it is empty; give the forward a name".into(),
            Some(name) if name.len() > MAX_NAME => {
                format!("it has {} bytes; a name has at most {MAX_NAME}", name.len())
            }
            Some(name) if name.chars().any(char::is_control) => {
                "it holds control characters; use letters, digits and the like".into()
            }
            Some(name) if self.0.iter().any(|known| known == name) => format!(
                "\"{}\" is the name of another forward already; every forward needs its own",
                name.escape_debug()
            ),
            Some(_) => {
                self.0.extend(typed.clone());
                return typed;
            }
        };
        checker.error(key, problem);
        None
    }

    /// The forward at the top has its name, too.
    pub fn top(&mut self) -> String {
        self.0.push(TOP_FORWARD.to_owned());
        TOP_FORWARD.to_owned()
    }
}

/// Where a forward stands in the file, what it is called, and where it listens.
type Listener<'a> = (&'a str, &'a str, SocketAddr);

/// Holds the listeners of all forwards against each other and against that of the reverse job, if it has one; `key`
/// is where a forward's port stands.
pub fn check_ports(
    checker: &mut Checker,
    key: &str,
    listeners: &[Listener<'_>],
    control: Option<SocketAddr>,
) {
    for (index, &(path, _, listen)) in listeners.iter().enumerate() {
        let others = &listeners[..index];
        let rival = (others.iter().find(|(.., other)| overlap(*other, listen)))
            .map(|(_, name, _)| format!("forward \"{}\"", name.escape_debug()));
        let control = (control.filter(|control| overlap(*control, listen)))
            .map(|_| "the control port of the reverse tunnel".to_owned());
        if let Some(rival) = rival.or(control) {
            checker.error(
                format!("{path}{key}"),
                format!("{listen} is taken by {rival}; every listener needs a port of its own"),
            );
        }
    }
}

/// Whether two listeners would be in each other's way.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port()
        && one.port() != 0
        && (a == b || a.is_unspecified() || b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::super::{Loaded, parse};
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        v: MinVersion,
    }

    fn version(text: &str) -> Result<MinVersion, String> {
        let loaded: Result<Loaded<File>, _> = parse(Path::new("c.yaml"), &format!("v: {text}"));
        loaded.map(|it| it.raw.v).map_err(|e| e.to_string())
    }

    #[test]
    fn versions_are_read_as_people_write_them() {
        for text in ["1.2", "'1.2'", "TLSv1.2", "tls1.2", "TLSv1_2", "v1.2"] {
            assert_eq!(version(text), Ok(MinVersion::Tls12), "{text}");
        }
        for text in ["1.3", "\"1.3\"", "TLSv1_3"] {
            assert_eq!(version(text), Ok(MinVersion::Tls13), "{text}");
        }
        for (text, found) in [
            ("1.1", "the number 1.1"),
            ("TLSv1", "the text \"TLSv1\""),
            ("13", "the number 13"),
            ("''", "the text \"\""),
        ] {
            assert_eq!(
                version(text),
                Err(format!(
                    "c.yaml:1:4: v: expected \"1.2\" or \"1.3\", found {found}"
                ))
            );
        }
    }

    #[test]
    fn listeners_overlap_where_the_system_would_refuse_one() {
        let cases = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.2:80", true),
            ("[::]:80", "127.0.0.2:80", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ];
        for (one, other, expected) in cases {
            let (a, b) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((overlap(a, b), overlap(b, a)), (expected, expected));
        }
    }
}
