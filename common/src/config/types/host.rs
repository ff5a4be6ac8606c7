//! Hosts to connect to.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::{error, fmt};

/// A host to connect to: a name or an IP address, without a port. Names are not resolved here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Host(String);

impl Host {
    /// As it is given to the resolver; IPv6 without brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.0)
    }
}

/// Text that names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// Nothing there.
    Empty,
    /// A URL.
    Url,
    /// A port behind the host.
    WithPort,
    /// Letters outside ASCII.
    NotAscii,
    /// Digits and dots, but no IPv4 address.
    BadIpv4,
    /// Colons, but no IPv6 address.
    BadIpv6,
    /// A name that no resolver would take.
    BadName,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty; write a host name or an IP address",
            Self::Url => "this is a URL; write the host name alone, without http:// and without a path",
            Self::WithPort => "write the host alone; the port has a key of its own",
            Self::NotAscii => "a host name has ASCII letters only; write an international name in its xn-- form",
            Self::BadIpv4 => "this is not an IPv4 address; it needs four numbers from 0 to 255",
            Self::BadIpv6 => "this is not an IPv6 address",
            Self::BadName => "this is not a host name; letters, digits, - and _ between dots, no part over 63 characters",
        })
    }
}

impl error::Error for HostError {}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.contains('/') {
            return Err(HostError::Url);
        }
        if let Some(inner) = text.strip_prefix('[') {
            return match inner.split_once(']') {
                Some((address, "")) => ipv6(address),
                Some((address, rest)) if rest.starts_with(':') && ipv6(address).is_ok() => {
                    Err(HostError::WithPort)
                }
                _ => Err(HostError::BadIpv6),
            };
        }
        match text.matches(':').count() {
            0 => {}
            1 => return Err(HostError::WithPort),
            _ => return ipv6(text),
        }
        if !text.is_ascii() {
            return Err(HostError::NotAscii);
        }
        if text.parse::<IpAddr>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        // A name whose last part is a number is taken for an address by some resolvers (127.1).
        let name = text.strip_suffix('.').unwrap_or(text);
        if name
            .rsplit('.')
            .next()
            .is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(HostError::BadIpv4);
        }
        let good_part = |part: &str| {
            (1..=63).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(good_part) {
            return Err(HostError::BadName);
        }
        Ok(Self(text.to_owned()))
    }
}

/// An IPv6 address, perhaps with a zone (`fe80::1%eth0`).
fn ipv6(text: &str) -> Result<Host, HostError> {
    let (address, zone) = text
        .split_once('%')
        .map_or((text, None), |(address, zone)| (address, Some(zone)));
    let zone_is_fine =
        zone.is_none_or(|zone| !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic()));
    if address.parse::<Ipv6Addr>().is_ok() && zone_is_fine {
        Ok(Host(text.to_owned()))
    } else {
        Err(HostError::BadIpv6)
    }
}
