//! What a certificate calls its holder, and which of that is admitted.

use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use std::net::IpAddr;
use std::{error, fmt};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The common name. A certificate with several has none that can be relied upon.
    pub common_name: Option<String>,
    /// Host names, as they are written; a wildcard stands for nobody in particular.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// URIs.
    pub uris: Vec<String>,
    /// E-mail addresses.
    pub emails: Vec<String>,
    /// Whether there is a list of alternative names at all, even an empty or unreadable one.
    has_alternatives: bool,
}

impl Names {
    /// Reads the names of a certificate; `None` if it cannot be read.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (rest, certificate) = parse_x509_certificate(certificate).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let mut names = Self::default();
        let mut common = certificate.subject().iter_common_name();
        if let (Some(only), None) = (common.next(), common.next()) {
            names.common_name = only.as_str().ok().map(str::to_owned);
        }
        match certificate.subject_alternative_name() {
            Ok(None) => {}
            Ok(Some(alternatives)) => {
                names.has_alternatives = true;
                for name in &alternatives.value.general_names {
                    names.add(name);
                }
            }
            // Twice, or damaged: nothing in it is believed, nor is the CN in its place.
            Err(_) => names.has_alternatives = true,
        }
        Some(names)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match *name {
            GeneralName::DNSName(name) => self.dns.push(name.to_owned()),
            GeneralName::URI(uri) => self.uris.push(uri.to_owned()),
            GeneralName::RFC822Name(email) => self.emails.push(email.to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
                self.addresses.extend(v4.or(v6));
            }
            _ => {}
        }
    }

    /// Whether the certificate has a list of alternative names, even an empty one.
    #[must_use]
    pub fn has_alternatives(&self) -> bool {
        self.has_alternatives
    }

    /// Whether a server may be taken for `name` by its common name alone: it has no alternative
    /// names that could say otherwise, and the common name is this very host. No wildcards.
    #[must_use]
    pub fn is_common_name_of(&self, name: &ServerName<'_>) -> bool {
        let Some(common) = self.common_name.as_deref() else {
            return false;
        };
        if self.has_alternatives {
            return false;
        }
        match name {
            ServerName::DnsName(dns) => {
                DnsName::try_from(common).is_ok() && same_host(common, dns.as_ref())
            }
            ServerName::IpAddress(address) => common
                .parse::<IpAddr>()
                .is_ok_and(|common| common.to_canonical() == IpAddr::from(*address).to_canonical()),
            _ => false,
        }
    }

    /// One name for log lines: the common name, or else the first of the others.
    #[must_use]
    pub fn short(&self) -> String {
        let one = self
            .common_name
            .as_deref()
            .or(self.dns.first().map(String::as_str))
            .or(self.uris.first().map(String::as_str))
            .or(self.emails.first().map(String::as_str));
        match (one, self.addresses.first()) {
            (Some(name), _) => printable(name),
            (None, Some(address)) => address.to_string(),
            (None, None) => "no name".to_owned(),
        }
    }
}

/// `CN=client1, DNS:client1.example.com`: for errors. Nothing a certificate says can break the line.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("DNS:", &self.dns),
            ("URI:", &self.uris),
            ("email:", &self.emails),
        ];
        let mut all: Vec<String> = Vec::new();
        all.extend(
            self.common_name
                .iter()
                .map(|name| format!("CN={}", printable(name))),
        );
        for (prefix, names) in kinds {
            all.extend(
                names
                    .iter()
                    .map(|name| format!("{prefix}{}", printable(name))),
            );
        }
        all.extend(self.addresses.iter().map(|address| format!("IP:{address}")));
        if all.is_empty() {
            return f.write_str("nobody");
        }
        f.write_str(&all.join(", "))
    }
}

/// A name from outside: control characters escaped, cut where it stops being a name.
fn printable(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut out: String = name
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(LONGEST).is_some() {
        out.push_str("...");
    }
    out
}

fn same_host(a: &str, b: &str) -> bool {
    let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    bare(a) == bare(b)
}

/// Whom the server admits, of those who hold a certificate of the right CA; `None`: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedNames(Option<Vec<Allowed>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Allowed {
    /// As it was written.
    text: String,
    /// If it is an address: then it is compared as one, however it is spelt.
    address: Option<IpAddr>,
}

impl AllowedNames {
    /// Takes names as they are configured: CNs, host names, addresses, URIs, e-mail addresses. Nobody else is
    /// admitted, and without any name nobody at all.
    ///
    /// # Errors
    /// If one of them is empty or holds control characters, so that it cannot be anybody's name.
    pub fn new<T: AsRef<str>>(
        names: impl IntoIterator<Item = T>,
    ) -> Result<Self, AllowedNamesError> {
        let mut list = Vec::new();
        for (index, name) in names.into_iter().enumerate() {
            let text = name.as_ref().trim();
            if text.is_empty() || text.chars().any(char::is_control) {
                return Err(AllowedNamesError { place: index + 1 });
            }
            list.push(Allowed {
                text: text.to_owned(),
                address: text
                    .parse()
                    .ok()
                    .map(|address: IpAddr| address.to_canonical()),
            });
        }
        Ok(Self(Some(list)))
    }

    /// Everybody with a good certificate.
    #[must_use]
    pub fn everybody() -> Self {
        Self(None)
    }

    /// Whether everybody with a good certificate is admitted.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        self.0.is_none()
    }

    /// The names as they were written.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let all = self.0.iter().flatten();
        all.map(|allowed| allowed.text.clone()).collect()
    }

    /// Whether the holder of a certificate with these names is admitted.
    #[must_use]
    pub fn admits(&self, names: &Names) -> bool {
        (self.0.as_ref()).is_none_or(|all| all.iter().any(|allowed| allowed.fits(names)))
    }
}

impl Allowed {
    /// Host names without regard to case, addresses as addresses, everything else to the letter.
    fn fits(&self, names: &Names) -> bool {
        let exactly = |name: &String| *name == self.text;
        names.common_name.iter().any(exactly)
            || names.uris.iter().any(exactly)
            || names.emails.iter().any(exactly)
            || names.dns.iter().any(|name| same_host(name, &self.text))
            || self.address.is_some_and(|address| {
                names
                    .addresses
                    .iter()
                    .any(|name| name.to_canonical() == address)
            })
    }
}

/// An entry of the allow list that cannot be anybody's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedNamesError {
    /// Which entry, counted from 1.
    pub place: usize,
}

impl fmt::Display for AllowedNamesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "entry {} of allowed_client_cns is empty or holds control characters; write a name, or take the entry away \
             (a configuration without the list admits every client with a certificate of the CA)",
            self.place
        )
    }
}

impl error::Error for AllowedNamesError {}
