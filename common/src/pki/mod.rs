//! Certificates: who may be at the other end of a TLS connection, and who we are ourselves.
//!
//! ```text
//!   files ──> Contents ──> load ──> chain, key, anchors, names ──┬─> client: rustls::ClientConfig
//!  (certificates, keys,     PEM     strict, with the option's     └─> server: rustls::ServerConfig
//!   anchors, allow list)            name in each error                    │
//!        ▲                                                                │ Arc, swapped whole
//!        └──────────────── reload: Follower looks again ◄─────────────────┘
//!
//!   during a handshake                        after it
//!     client ─ ServerVerifier                   server ─ ServerTls::admit: names of the peer,
//!       1 chain to an anchor, dates, purpose       dates and allow list once more (a resumed
//!       2 host name in the SANs                    session shows no certificate)
//!       (3 no SAN at all: the CN, with a warning;
//!          not below a CA with name constraints)
//!     server ─ ClientVerifier                   both ─ explain: what a failed handshake means
//!       1 chain to an anchor, dates, purpose       and what mends it
//!         (v1 leaf: the same, in `v1`)
//!       2 allow list
//! ```
//!
//! `names` holds what a certificate calls its holder and which of that is admitted, `expiry` what to
//! say before it ends, `make` the certificates of the `certs` commands.
//!
//! What is not here: revocation lists, OCSP, the system's own anchors. Whoever is to be kept out is
//! taken from the allow list, or gets no new certificate when the old one ends.

mod client;
mod der;
mod expiry;
mod explain;
mod load;
pub mod make;
mod names;
mod reload;
mod server;
mod v1;
mod watched;

pub use client::{ClientSettings, ClientTls, ServerNameError, server_name};
pub use expiry::{Expiry, ExpiryWatch, Validity, date};
pub use explain::{Problem, Side, explain};
pub use load::{Contents, Fault, Found, LoadError};
pub use names::{AllowedNames, AllowedNamesError, Names};
pub use reload::{Current, Follower, Look, Reloadable};
pub use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
pub use server::{Peer, ServerSettings, ServerTls};
pub use watched::{Certified, News, Watched};

use crate::codes::{Code, Coded};
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::{error, fmt};

/// The cryptography under every TLS connection of ours. The one place that names ring.
///
/// It is always handed over, never installed process-wide: with a second provider in the tree that
/// default would be ambiguous.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// Seals session tickets with keys of its own, which it changes every six hours.
fn ticketer() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    rustls::crypto::ring::Ticketer::new()
}

/// The oldest TLS version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
    /// TLS 1.2 alone: for tests, which hold both versions to the same tables.
    #[cfg(test)]
    Only12,
}

impl MinVersion {
    /// The versions that are offered.
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
            #[cfg(test)]
            Self::Only12 => &BOTH[1..],
        }
    }
}

impl fmt::Display for MinVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
            #[cfg(test)]
            Self::Only12 => "1.2 alone",
        })
    }
}

/// Text that is no version we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinVersionError;

impl fmt::Display for MinVersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"1.2\" or \"1.3\" (older versions of TLS are broken and not spoken)")
    }
}

impl error::Error for MinVersionError {}

impl FromStr for MinVersion {
    type Err = MinVersionError;

    /// The spellings of other programs are fine, too: `TLSv1.2`, `TLS 1.3`.
    fn from_str(text: &str) -> Result<Self, MinVersionError> {
        let text = text.trim().to_ascii_lowercase();
        let number = text.strip_prefix("tls").unwrap_or(&text).trim_start();
        match number.strip_prefix('v').unwrap_or(number).trim_start() {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(MinVersionError),
        }
    }
}

/// Something about a peer's certificate that rustls has no word for.
///
/// It travels inside rustls' error, and [`explain`] takes it out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// None of the certificate's names is on the allow list.
    NotAllowed {
        /// What the certificate calls its holder.
        names: Box<Names>,
        /// What the allow list admits, as it was written.
        allowed: Vec<String>,
    },
    /// An X.509 v1 certificate where none can be taken.
    VersionOne,
    /// The issuer of a v1 certificate is an anchor that may not sign certificates.
    IssuerMayNotSign,
    /// A server whose host name is its CN alone, below a CA with name constraints.
    Constrained,
    /// None was shown where one is wanted.
    NoCertificate,
    /// A resumed session whose certificate has ended since.
    Ended,
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Self::NotAllowed { .. } => Code::TLS_NOT_ADMITTED,
            Self::VersionOne | Self::IssuerMayNotSign | Self::Constrained => Code::TLS_BAD_CERT,
            Self::NoCertificate => Code::TLS_NO_CERT,
            Self::Ended => Code::TLS_DATES,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed { names, allowed } => write!(
                f,
                "its certificate is good, but it names {names}, and none of that is in allowed_client_cns ({}); \
                 add one of these names to allowed_client_cns if this client is welcome",
                if allowed.is_empty() {
                    "no name".to_owned()
                } else {
                    allowed.join(", ")
                }
            ),
            Self::VersionOne => f.write_str(
                "its certificate is of X.509 version 1, which says neither which hosts it is for nor that it is no CA; \
                 make a version 3 one: `minitcptunnel-server certs init --host NAME`, or give `openssl x509 -req` an \
                 -extfile with subjectAltName=DNS:NAME",
            ),
            Self::IssuerMayNotSign => f.write_str(
                "its certificate is of X.509 version 1, and its issuer in client_ca_cert may not sign client certificates \
                 (CA:FALSE, a key usage without keyCertSign, another purpose, name constraints, or its time is over); \
                 make a version 3 certificate: `minitcptunnel-server certs client NAME`",
            ),
            Self::Constrained => f.write_str(
                "its certificate has the name as CN only, without subjectAltName, and a CA above it is bound by name \
                 constraints, which say nothing about a CN; make one with the name where it can be held against them: \
                 give `openssl x509 -req` an -extfile with subjectAltName=DNS:NAME",
            ),
            Self::NoCertificate => f.write_str(
                "it has shown no certificate, and client_ca_cert wants one; give the client one: \
                 `minitcptunnel-server certs client NAME`",
            ),
            Self::Ended => f.write_str(
                "its certificate has ended since the session was begun; give the client a new one: \
                 `minitcptunnel-server certs client NAME`",
            ),
        }
    }
}

impl error::Error for Refusal {}

impl Refusal {
    fn into_rustls(self) -> rustls::Error {
        rustls::CertificateError::Other(rustls::OtherError(Arc::new(self))).into()
    }
}

#[cfg(test)]
mod tests;
