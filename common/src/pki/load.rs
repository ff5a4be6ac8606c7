//! From PEM files to chains, keys and anchors.
//!
//! Every error names the option that gave the file, says what was found instead, and what to do.

use super::der::{Parts, Version};
use super::names::{AllowedNames, AllowedNamesError};
use super::provider;
use crate::codes::{Code, Coded};
use crate::files::{self, ReadError};
use crate::identity::readable_by_others;
use rustls::RootCertStore;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{error, fmt};
use zeroize::Zeroizing;

/// Long chains and large CA bundles fit; anything beyond is the wrong file.
const MAX_FILE: u64 = 4 << 20;

/// Files as they were at one look, so that what was compared is what is used.
#[derive(Debug, Default, PartialEq)]
pub struct Contents(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    path: PathBuf,
    content: Result<Zeroizing<Vec<u8>>, Arc<ReadError>>,
}

/// Two unreadable files are the same sight, whatever the reason.
impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
            && match (&self.content, &other.content) {
                (Ok(a), Ok(b)) => a == b,
                (Err(_), Err(_)) => true,
                _ => false,
            }
    }
}

impl Contents {
    /// Reads the files; one that cannot be read is remembered as such.
    #[must_use]
    pub fn read(paths: &[PathBuf]) -> Self {
        let read = |path: &PathBuf| Seen {
            path: path.clone(),
            content: files::read_small(path, MAX_FILE)
                .map(Zeroizing::new)
                .map_err(Arc::new),
        };
        Self(paths.iter().map(read).collect())
    }

    /// The first thing that could not be read.
    pub(super) fn first_error(&self) -> Option<&ReadError> {
        self.0
            .iter()
            .find_map(|seen| seen.content.as_ref().err().map(Arc::as_ref))
    }

    /// The bytes of a file that was read.
    ///
    /// # Errors
    /// If it could not be read, or was not among the files.
    pub fn get(&self, option: &'static str, path: &Path) -> Result<&[u8], LoadError> {
        let source = match self.0.iter().find(|seen| seen.path == path) {
            Some(Seen {
                content: Ok(bytes), ..
            }) => return Ok(bytes),
            Some(Seen {
                content: Err(e), ..
            }) => Arc::clone(e),
            None => Arc::new(ReadError::NotFound(path.to_path_buf())),
        };
        Err(LoadError::Read { option, source })
    }
}

/// Certificates or keys that cannot be used.
#[derive(Clone, Debug)]
pub enum LoadError {
    /// A file cannot be read.
    Read {
        /// The option that named it.
        option: &'static str,
        /// Why.
        source: Arc<ReadError>,
    },
    /// A file holds something else than it should.
    Wrong {
        /// The option that named it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        fault: Fault,
    },
    /// A certificate and a key that do not belong together.
    Mismatch {
        /// The file with the certificate.
        cert: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
    /// The certificate or the key of a pair is not configured.
    HalfAPair {
        /// The option that is there.
        given: &'static str,
        /// The option that is missing.
        missing: &'static str,
    },
    /// The allow list holds something that is no name.
    Allowed(AllowedNamesError),
    /// An allow list without certificates to hold against it.
    AllowedWithoutCa,
    /// rustls refused the finished configuration.
    Tls(rustls::Error),
}

/// What is the matter with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No certificate in it.
    NoCertificate(Found),
    /// No private key in it.
    NoKey(Found),
    /// A private key under a passphrase.
    EncryptedKey,
    /// PEM that is damaged.
    BadPem,
    /// A certificate that is damaged; which one, counted from 1.
    BadCertificate(usize),
    /// A key of a kind or size that is not supported.
    UnusableKey,
    /// A line of the allow list that is not UTF-8.
    NotText,
}

/// What stood in a file instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A certificate.
    Certificate,
    /// A private key.
    Key,
    /// A certificate signing request.
    Request,
    /// The binary form of something.
    Binary,
    /// Nothing in PEM form.
    Nothing,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "it holds a certificate: were the two files exchanged?",
            Self::Key => "it holds a private key: were the two files exchanged?",
            Self::Request => {
                "it holds a certificate request, which a CA must sign first: \
                              openssl x509 -req -in REQUEST -CA ca.crt -CAkey ca.key -out CERTIFICATE"
            }
            Self::Binary => {
                "it is binary (DER or PKCS#12), and PEM is wanted: convert it with \
                             `openssl x509 -inform der`, `openssl pkey -inform der` or `openssl pkcs12 -nodes`"
            }
            Self::Nothing => "it holds nothing that begins with -----BEGIN: give a file in PEM form",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate(found) => write!(f, "no certificate is in it; {found}"),
            Self::NoKey(found) => write!(f, "no private key is in it; {found}"),
            Self::EncryptedKey => f.write_str(
                "the private key in it is under a passphrase, and nobody is there to type it; \
                 take it off with `openssl pkey -in KEY -out PLAIN` and protect the file instead (chmod 600)",
            ),
            Self::BadPem => f.write_str("its PEM text is damaged; copy the file again"),
            Self::BadCertificate(number) => {
                write!(f, "certificate {number} in it is damaged; copy the file again")
            }
            Self::UnusableKey => f.write_str(
                "its key cannot be used; take ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits",
            ),
            Self::NotText => f.write_str("it is not text in UTF-8; write one name a line"),
        }
    }
}

impl Coded for LoadError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::CERT_UNREADABLE,
            Self::Wrong { .. } => Code::CERT_UNUSABLE,
            Self::Mismatch { .. } => Code::CERT_MISMATCH,
            Self::HalfAPair { .. } | Self::Allowed(_) | Self::AllowedWithoutCa | Self::Tls(_) => {
                Code::TLS_SETTINGS
            }
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { option, source } => write!(f, "{option} cannot be used: {source}"),
            Self::Wrong {
                option,
                path,
                fault,
            } => write!(f, "{option} {} cannot be used: {fault}", path.display()),
            Self::Mismatch { cert, key } => write!(
                f,
                "the key {} does not belong to the first certificate in {}; give the two files that were made together, \
                 with the own certificate first and those of CAs after it",
                key.display(),
                cert.display()
            ),
            Self::HalfAPair { given, missing } => write!(
                f,
                "{given} is configured without {missing}; a certificate is worth nothing without its key: configure \
                 both, or neither"
            ),
            Self::Allowed(e) => e.fmt(f),
            Self::AllowedWithoutCa => f.write_str(
                "allowed_client_cns is configured without client_ca_cert, so no client would show a certificate to \
                 compare; configure client_ca_cert, or take allowed_client_cns away",
            ),
            Self::Tls(e) => write!(f, "TLS cannot be set up: {e}"),
        }
    }
}

impl error::Error for LoadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Allowed(e) => Some(e),
            Self::Tls(e) => Some(e),
            _ => None,
        }
    }
}

/// A file of an option.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) option: &'static str,
    pub(super) path: &'a Path,
}

impl Origin<'_> {
    fn wrong(self, fault: Fault) -> LoadError {
        LoadError::Wrong {
            option: self.option,
            path: self.path.to_path_buf(),
            fault,
        }
    }

    /// `server_cert certs/server.crt`.
    pub(super) fn title(self) -> String {
        format!("{} {}", self.option, self.path.display())
    }
}

/// One section of a PEM file, wiped after use: it may be a key.
type Section = (SectionKind, Zeroizing<Vec<u8>>);

/// Sections of a PEM file. Text around them, and sections of other kinds, are nobody's business.
fn sections(origin: Origin<'_>, bytes: &[u8]) -> Result<Vec<Section>, LoadError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes)
        .map(|section| section.map(|(kind, der)| (kind, Zeroizing::new(der))))
        .collect::<Result<_, _>>()
        .map_err(|_| origin.wrong(Fault::BadPem))
}

fn found(bytes: &[u8], sections: &[Section]) -> Found {
    let has = |kinds: &[SectionKind]| sections.iter().any(|(kind, _)| kinds.contains(kind));
    if has(&[SectionKind::Certificate]) {
        Found::Certificate
    } else if has(&KEYS) {
        Found::Key
    } else if has(&[SectionKind::Csr]) {
        Found::Request
    } else if bytes.first() == Some(&0x30) && !is_text(bytes) {
        // The first byte of every DER sequence, and of every text that begins with a zero.
        Found::Binary
    } else {
        Found::Nothing
    }
}

/// DER has lengths and tags among its bytes that no text has.
fn is_text(bytes: &[u8]) -> bool {
    let odd = |c: char| c.is_control() && !c.is_whitespace();
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(odd))
}

const KEYS: [SectionKind; 3] = [
    SectionKind::PrivateKey,
    SectionKind::RsaPrivateKey,
    SectionKind::EcPrivateKey,
];

/// The certificates of a file, each of them readable.
pub(super) fn certificates(
    origin: Origin<'_>,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let sections = sections(origin, bytes)?;
    let chain: Vec<CertificateDer<'static>> = sections
        .iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der.to_vec()))
        .collect();
    if chain.is_empty() {
        return Err(origin.wrong(Fault::NoCertificate(found(bytes, &sections))));
    }
    match chain.iter().position(|one| Parts::of(one).is_none()) {
        Some(bad) => Err(origin.wrong(Fault::BadCertificate(bad + 1))),
        None => Ok(chain),
    }
}

/// The private key of a file: PKCS#8, PKCS#1 or SEC1.
pub(super) fn private_key(
    origin: Origin<'_>,
    bytes: &[u8],
) -> Result<Arc<dyn SigningKey>, LoadError> {
    // Looked for first: the older form of encryption would only show as damaged PEM.
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if holds(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(b"Proc-Type: 4,ENCRYPTED") {
        return Err(origin.wrong(Fault::EncryptedKey));
    }
    let sections = sections(origin, bytes)?;
    let key = sections
        .iter()
        .find_map(|(kind, der)| PrivateKeyDer::from_pem(*kind, der.to_vec()))
        .ok_or_else(|| origin.wrong(Fault::NoKey(found(bytes, &sections))))?;
    provider()
        .key_provider
        .load_private_key(key)
        .map_err(|_| origin.wrong(Fault::UnusableKey))
}

/// Who we are: a chain, its key, and what should be said about them.
pub(super) struct OwnCertificate {
    pub(super) key: CertifiedKey,
    pub(super) version: Version,
    pub(super) warnings: Vec<String>,
}

/// Loads a certificate chain and the key of its first certificate.
pub(super) fn own_certificate(
    contents: &Contents,
    cert: Origin<'_>,
    key: Origin<'_>,
) -> Result<OwnCertificate, LoadError> {
    let chain = certificates(cert, contents.get(cert.option, cert.path)?)?;
    let private = private_key(key, contents.get(key.option, key.path)?)?;
    // Both were read already; this says what belongs together.
    let parts = Parts::of(&chain[0]).ok_or_else(|| cert.wrong(Fault::BadCertificate(1)))?;
    let version = parts.version;
    if private
        .public_key()
        .is_none_or(|public| public.as_ref() != parts.key_info)
    {
        return Err(LoadError::Mismatch {
            cert: cert.path.to_path_buf(),
            key: key.path.to_path_buf(),
        });
    }
    Ok(OwnCertificate {
        // Not `from_der`, which reads the certificate in rustls' way and refuses version 1.
        key: CertifiedKey::new(chain, private),
        version,
        warnings: readable_by_others(key.path).into_iter().collect(),
    })
}

/// The CA certificates that decide whom we believe.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    pub(super) store: Arc<RootCertStore>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Loads the CA certificates of a file.
pub(super) fn anchors(contents: &Contents, origin: Origin<'_>) -> Result<Anchors, LoadError> {
    let certificates = certificates(origin, contents.get(origin.option, origin.path)?)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        store
            .add(certificate.clone())
            .map_err(|_| origin.wrong(Fault::BadCertificate(index + 1)))?;
    }
    Ok(Anchors {
        store: Arc::new(store),
        certificates,
    })
}

/// The names of an allow list: those of the configuration, and those of a file, one a line. An empty list in the
/// configuration bars nobody; a file without names bars everybody, so that one that is cut off opens no doors.
pub(super) fn allowed_names(
    contents: &Contents,
    listed: &[String],
    file: Option<&Path>,
) -> Result<AllowedNames, LoadError> {
    if listed.is_empty() && file.is_none() {
        return Ok(AllowedNames::everybody());
    }
    let mut names = listed.to_vec();
    if let Some(path) = file {
        let origin = Origin {
            option: "allowed_clients_file",
            path,
        };
        let text = std::str::from_utf8(contents.get(origin.option, path)?)
            .map_err(|_| origin.wrong(Fault::NotText))?;
        names.extend(
            text.trim_start_matches('\u{feff}')
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    AllowedNames::new(names).map_err(LoadError::Allowed)
}
