//! The server's side of TLS: its certificate, and whom it lets in.

use super::client::ends_of;
use super::der::Version;
use super::expiry::Validity;
use super::load::{self, Anchors, Contents, LoadError, Origin};
use super::names::{AllowedNames, Names};
use super::reload::Reloadable;
use super::watched::Certified;
use super::{MinVersion, Refusal, provider, ticketer, v1};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::path::PathBuf;
use std::sync::Arc;

/// What the server's configuration says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// `server_cert`: our certificate, and those of CAs between it and the clients' anchor.
    pub cert: PathBuf,
    /// `server_key`: its key.
    pub key: PathBuf,
    /// `client_ca_cert`: who vouches for clients. Without it clients show no certificate.
    pub client_ca: Option<PathBuf>,
    /// `allowed_client_cns`: names that a client's certificate must bear one of; empty: any.
    pub allowed: Vec<String>,
    /// More such names, one a line.
    pub allowed_file: Option<PathBuf>,
    /// `min_version`.
    pub min_version: MinVersion,
}

/// The server's side of TLS, ready for handshakes.
#[derive(Debug)]
pub struct ServerTls {
    /// For `rustls::ServerConnection::new`.
    pub config: Arc<ServerConfig>,
    /// What should be said about the files.
    pub warnings: Vec<String>,
    /// When the certificates end.
    pub validities: Vec<Validity>,
    allowed: AllowedNames,
    mutual: bool,
}

/// Who is at the other end of a connection that asks clients for certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The names in its certificate.
    pub names: Names,
}

impl ServerTls {
    /// Reads the files and makes ready.
    ///
    /// # Errors
    /// If one of the files cannot be used.
    pub fn load(settings: &ServerSettings) -> Result<Self, LoadError> {
        Self::build(settings, &Contents::read(&Self::files(settings)))
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub fn is_mutual(&self) -> bool {
        self.mutual
    }

    /// To be asked after every handshake, with `peer_certificates()` of the connection: who it is.
    ///
    /// A resumed session shows no certificate but recalls the one it was begun with. Its dates and
    /// its place on the allow list are looked at again here; that its CA is still ours is certain,
    /// because new files mean new ticket keys, and no session outlives those.
    ///
    /// # Errors
    /// If that certificate would not be admitted now.
    pub fn admit(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
        now: UnixTime,
    ) -> Result<Option<Peer>, Refusal> {
        if !self.mutual {
            return Ok(None);
        }
        // The handshake would not have come to its end without one.
        let leaf = (certificates.and_then(<[_]>::first)).ok_or(Refusal::NoCertificate)?;
        let ended =
            Validity::of(String::new(), leaf).is_none_or(|dates| now.as_secs() > dates.until);
        if ended {
            return Err(Refusal::Ended);
        }
        // Read once already, by the verifier.
        let names = Names::of(leaf).unwrap_or_default();
        admitted(&self.allowed, &names)?;
        Ok(Some(Peer { names }))
    }
}

fn admitted(allowed: &AllowedNames, names: &Names) -> Result<(), Refusal> {
    if allowed.admits(names) {
        return Ok(());
    }
    Err(Refusal::NotAllowed {
        names: Box::new(names.clone()),
        allowed: allowed.texts(),
    })
}

impl Certified for ServerTls {
    const HELD: &'static str = "certificates, keys or lists";

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn validities(&self) -> &[Validity] {
        &self.validities
    }
}

impl Reloadable for ServerTls {
    type Settings = ServerSettings;

    fn files(settings: &ServerSettings) -> Vec<PathBuf> {
        let own = [&settings.cert, &settings.key].into_iter();
        own.chain(&settings.client_ca)
            .chain(&settings.allowed_file)
            .cloned()
            .collect()
    }

    fn build(settings: &ServerSettings, contents: &Contents) -> Result<Self, LoadError> {
        let cert = Origin {
            option: "server_cert",
            path: &settings.cert,
        };
        let key = Origin {
            option: "server_key",
            path: &settings.key,
        };
        let own = load::own_certificate(contents, cert, key)?;
        let mut warnings = own.warnings;
        warnings.extend(hard_to_verify(cert, own.version, &own.key.cert[0]));
        let mut validities: Vec<Validity> = Validity::of(cert.title(), &own.key.cert[0])
            .into_iter()
            .collect();

        let allowed = load::allowed_names(
            contents,
            &settings.allowed,
            settings.allowed_file.as_deref(),
        )?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(settings.min_version.versions())
            .map_err(LoadError::Tls)?;
        let builder = match &settings.client_ca {
            None if !allowed.is_everybody() => {
                return Err(LoadError::AllowedWithoutCa);
            }
            None => builder.with_no_client_auth(),
            Some(path) => {
                let file = Origin {
                    option: "client_ca_cert",
                    path,
                };
                let anchors = load::anchors(contents, file)?;
                validities.extend(ends_of(file, &anchors));
                let verifier = ClientVerifier::new(anchors, allowed.clone())?;
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own.key)));
        // Tickets alone: what the client keeps costs the server nothing.
        config.ticketer = ticketer().map_err(LoadError::Tls)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A handshake uses up one at most and is given one, so a client that has resumed once never runs out. More
        // would be bytes and work behind every handshake, for clients that dial in bursts and once.
        config.send_tls13_tickets = 1;
        // Whoever has seen early data can send it again, and what is behind us could take that for new.
        config.max_early_data_size = 0;
        Ok(Self {
            config: Arc::new(config),
            warnings,
            validities,
            allowed,
            mutual: settings.client_ca.is_some(),
        })
    }
}

/// A certificate of our own that clients will not like.
fn hard_to_verify(cert: Origin<'_>, version: Version, leaf: &CertificateDer<'_>) -> Option<String> {
    const MEND: &str = "Make a new one: `minitcptunnel-server certs init --host NAME`, or give `openssl x509 -req` an \
                        -extfile with subjectAltName=DNS:NAME";
    if version == Version::V1 {
        return Some(format!(
            "{} is of X.509 version 1, and clients refuse it. {MEND}",
            cert.title()
        ));
    }
    let names = Names::of(leaf).unwrap_or_default();
    (!names.has_alternatives()).then(|| {
        format!(
            "{} has no subjectAltName, and most clients refuse that (ours takes the CN if it is the very host name). {MEND}",
            cert.title()
        )
    })
}

/// rustls' own verifier, with a way for leaves of version 1, and an allow list behind both.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    anchors: Anchors,
    allowed: AllowedNames,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    fn new(anchors: Anchors, allowed: AllowedNames) -> Result<Self, LoadError> {
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors.store), provider())
                .build()
                .map_err(|e| LoadError::Tls(Error::General(e.to_string())))?;
        Ok(Self {
            inner,
            anchors,
            allowed,
            algorithms: provider().signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if v1::is_version_one(end_entity) {
            v1::verify_client(
                end_entity,
                &self.anchors.certificates,
                &self.algorithms,
                now,
            )?;
        } else {
            self.inner
                .verify_client_cert(end_entity, intermediates, now)?;
        }
        let names = Names::of(end_entity).ok_or(CertificateError::BadEncoding)?;
        admitted(&self.allowed, &names).map_err(Refusal::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if v1::is_version_one(cert) {
            return v1::verify_tls12(message, cert, dss, &self.algorithms);
        }
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if v1::is_version_one(cert) {
            return v1::verify_tls13(message, cert, dss, &self.algorithms);
        }
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
