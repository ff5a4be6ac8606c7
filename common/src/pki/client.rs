//! The client's side of TLS: the server must prove its name, always.

use super::der::{Parts, Version};
use super::expiry::Validity;
use super::load::{self, Anchors, Contents, LoadError, Origin};
use super::names::Names;
use super::reload::Reloadable;
use super::v1::{has_name_constraints, is_version_one};
use super::watched::Certified;
use super::{MinVersion, Refusal, provider};
use crate::codes::Code;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, Resumption, verify_server_cert_signed_by_trust_anchor,
    verify_server_name,
};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::{error, fmt, iter};

/// Sessions kept for resumption: a client has a handful of servers.
const SESSIONS: usize = 32;

/// What the client's configuration says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// `server_ca_cert`: who vouches for servers.
    pub server_ca: PathBuf,
    /// `client_cert`: our own certificate, if the server wants one.
    pub cert: Option<PathBuf>,
    /// `client_key`: its key.
    pub key: Option<PathBuf>,
    /// `min_version`.
    pub min_version: MinVersion,
}

/// The client's side of TLS, ready for handshakes.
#[derive(Debug)]
pub struct ClientTls {
    /// For `rustls::ClientConnection::new`, with the name from [`server_name`].
    pub config: Arc<ClientConfig>,
    /// What should be said about the files.
    pub warnings: Vec<String>,
    /// When the certificates end.
    pub validities: Vec<Validity>,
    notice: Arc<OnceLock<String>>,
}

impl ClientTls {
    /// What was said (once, as a warning in the log) about a server certificate without
    /// alternative names.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.notice.get().map(String::as_str)
    }

    /// Reads the files and makes ready.
    ///
    /// # Errors
    /// If one of the files cannot be used.
    pub fn load(settings: &ClientSettings) -> Result<Self, LoadError> {
        Self::build(settings, &Contents::read(&Self::files(settings)))
    }
}

impl Certified for ClientTls {
    const HELD: &'static str = "certificates or keys";

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn validities(&self) -> &[Validity] {
        &self.validities
    }
}

impl Reloadable for ClientTls {
    type Settings = ClientSettings;

    fn files(settings: &ClientSettings) -> Vec<PathBuf> {
        let own = settings.cert.iter().chain(&settings.key);
        own.chain([&settings.server_ca]).cloned().collect()
    }

    fn build(settings: &ClientSettings, contents: &Contents) -> Result<Self, LoadError> {
        let anchors_file = Origin {
            option: "server_ca_cert",
            path: &settings.server_ca,
        };
        let anchors = load::anchors(contents, anchors_file)?;
        let mut validities = ends_of(anchors_file, &anchors);
        let mut warnings = Vec::new();
        let notice = Arc::new(OnceLock::new());
        let verifier = ServerVerifier {
            anchors,
            algorithms: provider().signature_verification_algorithms,
            notice: Arc::clone(&notice),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(settings.min_version.versions())
            .map_err(LoadError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let pair = both_or_neither(
            ("client_cert", settings.cert.as_ref()),
            ("client_key", settings.key.as_ref()),
        )?;
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let own = load::own_certificate(contents, cert, key)?;
                warnings.extend(own.warnings);
                if own.version == Version::V1 {
                    warnings.push(format!(
                        "{} is of X.509 version 1; it works here, but many TLS servers refuse it. Make a version 3 one: \
                         `minitcptunnel-server certs client NAME`",
                        cert.title()
                    ));
                }
                validities.extend(Validity::of(cert.title(), &own.key.cert[0]));
                // Shown to whoever asks: there is no second certificate to choose.
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key)))
            }
        };
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
        Ok(Self {
            config: Arc::new(config),
            warnings,
            validities,
            notice,
        })
    }
}

/// The ends of all anchors of a file: one that ends takes every peer with it.
pub(super) fn ends_of(file: Origin<'_>, anchors: &Anchors) -> Vec<Validity> {
    let of = |certificate| Validity::of(file.title(), certificate);
    anchors.certificates.iter().filter_map(of).collect()
}

/// An option and what it is set to.
type Given<'a> = (&'static str, Option<&'a PathBuf>);

fn both_or_neither<'a>(
    cert: Given<'a>,
    key: Given<'a>,
) -> Result<Option<(Origin<'a>, Origin<'a>)>, LoadError> {
    let origin = |option, path| Origin { option, path };
    match (cert, key) {
        ((_, None), (_, None)) => Ok(None),
        ((a, Some(cert)), (b, Some(key))) => Ok(Some((origin(a, cert), origin(b, key)))),
        ((given, Some(_)), (missing, None)) | ((missing, None), (given, Some(_))) => {
            Err(LoadError::HalfAPair { given, missing })
        }
    }
}

/// The name that the server's certificate must bear: a host name or an address.
///
/// # Errors
/// If the text is neither.
pub fn server_name(text: &str) -> Result<ServerName<'static>, ServerNameError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let wrong = || ServerNameError {
        text: text.to_owned(),
    };
    ServerName::try_from(bare.to_owned()).map_err(|_| wrong())
}

/// Text that no certificate can be compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNameError {
    text: String,
}

impl fmt::Display for ServerNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is neither a host name nor an address, so no certificate can bear it; set server_hostname to a name in \
             the server's certificate",
            self.text
        )
    }
}

impl error::Error for ServerNameError {}

/// Checks the chain first and the name after it; neither can be turned off.
#[derive(Debug)]
struct ServerVerifier {
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
    notice: Arc<OnceLock<String>>,
}

impl ServerVerifier {
    /// The server's name must be among the alternative names. Only a certificate that has no such
    /// list at all may bear it as its common name: older recipes make those. Name constraints bind alternative names
    /// alone, so where they are, the common name is not believed.
    fn verify_name(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        parsed: &ParsedCertificate<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), Error> {
        let Err(refused) = verify_server_name(parsed, name) else {
            return Ok(());
        };
        let Some(names) = Names::of(certificate).filter(|names| !names.has_alternatives()) else {
            return Err(refused);
        };
        if !names.is_common_name_of(name) {
            return Err(CertificateError::NotValidForNameContext {
                expected: name.to_owned(),
                presented: vec![names.to_string()],
            }
            .into());
        }
        if self.may_be_constrained(certificate, intermediates) {
            return Err(Refusal::Constrained.into_rustls());
        }
        if self.notice.get().is_none() {
            let text = format!(
                "the certificate of {} names it as CN only, without subjectAltName. It is taken, because its chain is good \
                 and the CN is the very name, but other programs refuse it. Make a new one: `minitcptunnel-server certs \
                 init --host {0}`, or give `openssl x509 -req` an -extfile with subjectAltName={}:{0}",
                name.to_str(),
                if matches!(name, ServerName::IpAddress(_)) {
                    "IP"
                } else {
                    "DNS"
                },
            );
            if self.notice.set(text.clone()).is_ok() {
                ::log::warn!("{text} code={}", Code::CERT_ODD);
            }
        }
        Ok(())
    }

    /// Whether a CA that the chain may go through has name constraints. Which way it went is not told, so all count
    /// that were sent, and all anchors that signed one of those by name.
    fn may_be_constrained(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> bool {
        let sent = || iter::once(certificate).chain(intermediates);
        let is_above = |anchor: &CertificateDer<'_>| {
            Parts::of(anchor).is_none_or(|anchor| {
                sent().any(|below| Parts::of(below).is_none_or(|it| it.issuer == anchor.subject))
            })
        };
        intermediates.iter().any(has_name_constraints)
            || (self.anchors.certificates.iter())
                .any(|anchor| has_name_constraints(anchor) && is_above(anchor))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // rustls would say "unsupported version" without a way out.
        if is_version_one(end_entity) {
            return Err(Refusal::VersionOne.into_rustls());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.anchors.store,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.verify_name(end_entity, intermediates, &parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
