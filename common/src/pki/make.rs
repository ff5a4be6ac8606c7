//! Certificates for people without a CA of their own: the work of the `certs` commands.
//!
//! ```text
//!   init    ca.crt  ca.key ──signs──> server.crt  server.key
//!   server  the CA there   ──signs──> server.crt  server.key    (when the first ones end)
//!   client  the CA there   ──signs──> NAME.crt    NAME.key      (any CA, also one of openssl)
//! ```
//!
//! ECDSA P-256 keys: every TLS program of the last ten years takes them, and they are quick. RSA is
//! not made here, because ring makes no RSA keys; those of openssl are taken everywhere.
//!
//! Nothing is ever overwritten. Keys are readable by their owner alone, from their first byte on.

use super::UnixTime;
use super::der::Parts;
use super::expiry::date;
use super::load::{self, Contents, LoadError, Origin};
use crate::codes::{Code, Coded};
use crate::files::{self, Access, WriteError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, DnsName};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{error, fmt, fs, io};
use zeroize::Zeroizing;

const DAY: u64 = 24 * 60 * 60;
/// A CA is put in place on every machine by hand: that should not be needed often.
const CA_DAYS: u64 = 3652;
/// The longest that common TLS programs accept for servers.
const LEAF_DAYS: u64 = 825;
/// Clocks differ: a certificate is good from an hour before it was made.
const BACKDATED: u64 = 60 * 60;
/// The longest common name (X.520, ub-common-name).
const LONGEST_COMMON_NAME: usize = 64;

/// What was made: files, and until when it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The last day.
    pub until: String,
}

/// Certificates that could not be made.
#[derive(Debug)]
pub enum MakeError {
    /// A file is there already.
    Exists(PathBuf),
    /// A CA is there already, but no certificate for a server.
    CaExists(PathBuf),
    /// The folder could not be created.
    Folder(PathBuf, io::Error),
    /// A name that no certificate or file can bear.
    Name(String, &'static str),
    /// The CA cannot be used.
    Ca(LoadError),
    /// The CA is none, or its time is over.
    NoCa(PathBuf, &'static str),
    /// The key of the CA is good, but not in the one form that can be used to sign.
    CaKey(PathBuf),
    /// A file could not be written.
    Write(WriteError),
    /// The certificate could not be made.
    Make(String),
}

impl Coded for MakeError {
    fn code(&self) -> Code {
        match self {
            Self::Exists(_) | Self::CaExists(_) => Code::CERT_EXISTS,
            Self::Folder(..) | Self::Write(_) => Code::CERT_NOT_SAVED,
            Self::Name(..) => Code::CERT_NAME,
            Self::Ca(_) | Self::NoCa(..) | Self::CaKey(_) => Code::CA_UNUSABLE,
            Self::Make(_) => Code::BUG,
        }
    }
}

impl fmt::Display for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(path) => write!(
                f,
                "{} exists already and is left as it is; nothing was made. Move it away, or choose another folder with --dir",
                path.display()
            ),
            Self::CaExists(path) => write!(
                f,
                "{} exists already and is left as it is; nothing was made. `minitcptunnel-server certs server --host NAME` \
                 makes a server's certificate by this CA; for another CA choose another folder with --dir",
                path.display()
            ),
            Self::Folder(path, e) => {
                write!(f, "the folder {} cannot be created: {e}", path.display())
            }
            Self::Name(name, why) => write!(f, "{name:?} cannot be used as a name: {why}"),
            Self::Ca(e) => write!(
                f,
                "{e}. The CA is made by `minitcptunnel-server certs init --host NAME`; --dir says where it lies"
            ),
            Self::NoCa(path, why) => write!(
                f,
                "{} cannot sign certificates: {why}. `minitcptunnel-server certs init --host NAME --dir NEW-FOLDER` makes \
                 a CA that can",
                path.display()
            ),
            Self::CaKey(path) => write!(
                f,
                "{} cannot be used to sign; convert it with `openssl pkcs8 -topk8 -nodes -in OLD -out NEW`",
                path.display()
            ),
            Self::Write(e) => e.fmt(f),
            Self::Make(why) => write!(f, "the certificate could not be made: {why}"),
        }
    }
}

impl error::Error for MakeError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Folder(_, e) => Some(e),
            Self::Ca(e) => Some(e),
            Self::Write(e) => Some(e),
            _ => None,
        }
    }
}

impl From<rcgen::Error> for MakeError {
    fn from(e: rcgen::Error) -> Self {
        Self::Make(e.to_string())
    }
}

/// The files of a certificate and its key in a folder.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn new(folder: &Path, name: &str) -> Self {
        Self {
            cert: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        }
    }

    /// Asked before anything is made, so that a refusal leaves nothing half-done.
    fn must_be_free(&self) -> Result<(), MakeError> {
        match [&self.cert, &self.key]
            .into_iter()
            .find(|path| path.symlink_metadata().is_ok())
        {
            Some(taken) => Err(MakeError::Exists(taken.clone())),
            None => Ok(()),
        }
    }

    /// The key first: a certificate is seen only when its key is there.
    fn write(self, certificate: &str, key: &KeyPair, until: u64) -> Result<Made, MakeError> {
        let secret = Zeroizing::new(key.serialize_pem());
        files::create_exclusive(&self.key, secret.as_bytes(), Access::Private)
            .map_err(MakeError::Write)?;
        if let Err(e) = files::create_exclusive(&self.cert, certificate.as_bytes(), Access::Shared)
        {
            // Ours, of a moment ago, and worth nothing alone.
            let _ = fs::remove_file(&self.key);
            return Err(MakeError::Write(e));
        }
        Ok(Made {
            cert: self.cert,
            key: self.key,
            until: date(until),
        })
    }
}

/// `certs init`: a CA, and a certificate for a server with these names and addresses.
///
/// # Errors
/// If one of the files exists, a name cannot be used, or nothing can be written.
pub fn init(
    folder: &Path,
    hosts: &[String],
    addresses: &[IpAddr],
    now: UnixTime,
) -> Result<[Made; 2], MakeError> {
    let leaf = Leaf::server(hosts, addresses)?;
    let (ca, server) = (Pair::new(folder, "ca"), Pair::new(folder, "server"));
    if ca.cert.is_file() && ca.key.is_file() && server.must_be_free().is_ok() {
        return Err(MakeError::CaExists(ca.cert));
    }
    ca.must_be_free()?;
    server.must_be_free()?;
    fs::create_dir_all(folder).map_err(|e| MakeError::Folder(folder.to_path_buf(), e))?;

    let ca_key = KeyPair::generate()?;
    let (mut params, ca_until) = lifetime(now, CA_DAYS, u64::MAX);
    // The day tells it from the next one: two CAs of one name are hard to tell apart in errors.
    let name = format!("MiniTCPTunnel CA {}", date(now.as_secs()));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, &ca_key);

    let key = KeyPair::generate()?;
    let (certificate, until) = leaf.signed(&key, &issuer, now, ca_until)?;
    let ca = ca.write(&ca_certificate.pem(), &ca_key, ca_until)?;
    and_server(ca, server.write(&certificate, &key, until))
}

/// A new CA whose server's certificate could not be written goes again, or the next try would find it in its way.
fn and_server(ca: Made, server: Result<Made, MakeError>) -> Result<[Made; 2], MakeError> {
    match server {
        Ok(server) => Ok([ca, server]),
        Err(e) => {
            for file in [&ca.cert, &ca.key] {
                let _ = fs::remove_file(file);
            }
            Err(e)
        }
    }
}

/// `certs server`: another certificate for a server, by the CA in the folder.
///
/// # Errors
/// If there is no CA, a name cannot be used, or one of the files exists.
pub fn server(
    folder: &Path,
    hosts: &[String],
    addresses: &[IpAddr],
    now: UnixTime,
) -> Result<Made, MakeError> {
    let leaf = Leaf::server(hosts, addresses)?;
    by_the_ca(folder, "server", leaf, now)
}

/// `certs client`: a certificate for a client of this name, by the CA in the folder.
///
/// # Errors
/// If there is no CA, the name cannot be used, or one of the files exists.
pub fn client(folder: &Path, name: &str, now: UnixTime) -> Result<Made, MakeError> {
    let refuse = |why| Err(MakeError::Name(name.to_owned(), why));
    if name.is_empty() || name.len() > LONGEST_COMMON_NAME {
        return refuse("it must have 1 to 64 characters");
    }
    // It becomes the name of two files, on every system.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@+".contains(c);
    if !name.chars().all(plain) || name.starts_with(['.', '-']) || name.ends_with('.') {
        return refuse(
            "write letters, digits and - _ . @ + only, beginning with a letter or digit",
        );
    }
    if ["ca", "server"].contains(&name.to_ascii_lowercase().as_str()) {
        return refuse("the files of the CA and the server bear it already");
    }
    if is_device(name) {
        return refuse("Windows has a device of this name, so that no file there can bear it");
    }
    // Not every name is one of a host; the common name is always there.
    let alternatives = if name.contains('@') {
        vec![SanType::Rfc822Name(text(name)?)]
    } else if DnsName::try_from(name).is_ok() {
        vec![SanType::DnsName(text(name)?)]
    } else {
        Vec::new()
    };
    let leaf = Leaf {
        common_name: Some(name.to_owned()),
        alternatives,
        purpose: ExtendedKeyUsagePurpose::ClientAuth,
    };
    by_the_ca(folder, name, leaf, now)
}

/// Whether Windows takes a file of this name for one of its devices; it looks at what is before the first point.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    let port = stem.strip_prefix("com").or(stem.strip_prefix("lpt"));
    ["con", "prn", "aux", "nul"].contains(&stem.as_str())
        || port.is_some_and(|number| matches!(number.as_bytes(), [b'1'..=b'9']))
}

fn by_the_ca(folder: &Path, name: &str, leaf: Leaf, now: UnixTime) -> Result<Made, MakeError> {
    let pair = Pair::new(folder, name);
    pair.must_be_free()?;
    let ca = Ca::load(folder, now)?;
    let key = KeyPair::generate()?;
    let (certificate, until) = leaf.signed(&key, &ca.issuer, now, ca.until)?;
    ca.must_have_signed(&certificate)?;
    pair.write(&certificate, &key, until)
}

/// A CA from its files.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
    until: u64,
}

impl Ca {
    fn load(folder: &Path, now: UnixTime) -> Result<Self, MakeError> {
        let files = Pair::new(folder, "ca");
        let cert = Origin {
            option: "the CA's certificate",
            path: &files.cert,
        };
        let key = Origin {
            option: "the CA's key",
            path: &files.key,
        };
        let contents = Contents::read(&[files.cert.clone(), files.key.clone()]);
        // Also sees to it that the two belong together.
        let own = load::own_certificate(&contents, cert, key).map_err(MakeError::Ca)?;
        let certificate = own.key.cert[0].clone();
        let pem = contents.get(key.option, key.path).map_err(MakeError::Ca)?;
        let key_pair = std::str::from_utf8(pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| MakeError::CaKey(files.key.clone()))?;
        let no_ca = |why| MakeError::NoCa(files.cert.clone(), why);
        let until = sign_until(&certificate, now).map_err(no_ca)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key_pair)?,
            certificate,
            until,
            path: files.cert,
        })
    }

    /// The issuer's name must be the CA's name byte for byte, or nobody will find the CA.
    fn must_have_signed(&self, pem: &str) -> Result<(), MakeError> {
        let leaf = load::certificates(
            Origin {
                option: "the new certificate",
                path: &self.path,
            },
            pem.as_bytes(),
        )
        .map_err(MakeError::Ca)?;
        match (Parts::of(&leaf[0]), Parts::of(&self.certificate)) {
            (Some(leaf), Some(ca)) if leaf.issuer == ca.subject => Ok(()),
            _ => Err(MakeError::NoCa(
                self.path.clone(),
                "its name is written in a way that cannot be repeated",
            )),
        }
    }
}

/// The last second at which a CA may sign, if it may sign now.
fn sign_until(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<u64, &'static str> {
    let (_, read) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| "it cannot be read")?;
    if !matches!(read.basic_constraints(), Ok(Some(basic)) if basic.value.ca) {
        return Err("it is not a CA (CA:TRUE is missing)");
    }
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let until = seconds(read.validity().not_after.timestamp());
    if now.as_secs() > until {
        return Err("its time is over");
    }
    Ok(until)
}

struct Leaf {
    common_name: Option<String>,
    alternatives: Vec<SanType>,
    purpose: ExtendedKeyUsagePurpose,
}

impl Leaf {
    fn server(hosts: &[String], addresses: &[IpAddr]) -> Result<Self, MakeError> {
        let first = hosts.first().cloned();
        let common_name = first.or(addresses.first().map(IpAddr::to_string));
        Ok(Self {
            common_name: common_name.filter(|name| name.len() <= LONGEST_COMMON_NAME),
            alternatives: server_names(hosts, addresses)?,
            purpose: ExtendedKeyUsagePurpose::ServerAuth,
        })
    }

    /// The certificate as PEM, and its end.
    fn signed<S: rcgen::SigningKey>(
        self,
        key: &KeyPair,
        issuer: &Issuer<'_, S>,
        now: UnixTime,
        ca_until: u64,
    ) -> Result<(String, u64), MakeError> {
        let (mut params, until) = lifetime(now, LEAF_DAYS, ca_until);
        if let Some(name) = self.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = self.alternatives;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![self.purpose];
        params.use_authority_key_identifier_extension = true;
        Ok((params.signed_by(key, issuer)?.pem(), until))
    }
}

/// Parameters without a name that are good for so many days, but not longer than the CA.
fn lifetime(now: UnixTime, days: u64, at_most: u64) -> (CertificateParams, u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let from = now.as_secs().saturating_sub(BACKDATED);
    let until = (now.as_secs() + days * DAY - BACKDATED).min(at_most);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
    (params, until)
}

/// The alternative names of a server. An address given as a host is taken for what it is.
fn server_names(hosts: &[String], addresses: &[IpAddr]) -> Result<Vec<SanType>, MakeError> {
    let mut names = Vec::new();
    for host in hosts {
        if let Ok(address) = host.parse() {
            names.push(SanType::IpAddress(address));
        } else if DnsName::try_from(host.strip_prefix("*.").unwrap_or(host)).is_ok() {
            names.push(SanType::DnsName(text(host)?));
        } else {
            return Err(MakeError::Name(
                host.clone(),
                "it is neither a host name nor an address",
            ));
        }
    }
    names.extend(addresses.iter().copied().map(SanType::IpAddress));
    if names.is_empty() {
        return Err(MakeError::Name(
            String::new(),
            "a server needs a host name or an address",
        ));
    }
    Ok(names)
}

fn text(name: &str) -> Result<rcgen::string::Ia5String, MakeError> {
    name.try_into()
        .map_err(|_| MakeError::Name(name.to_owned(), "it has characters outside ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_run_that_fails_leaves_nothing_in_the_way_of_the_next() {
        let scratch = Scratch::new();
        let key = KeyPair::generate().expect("a key");
        fs::write(scratch.path().join("elsewhere.crt"), "precious").expect("written");
        let write = |folder: &Path, name: &str| Pair::new(folder, name).write("", &key, 0);
        let ca = write(scratch.path(), "ca").expect("written");
        let server = write(&scratch.path().join("missing"), "server");
        let e = and_server(ca, server).expect_err("there is no such folder");
        assert!(matches!(e, MakeError::Write(_)), "{e}");
        assert_eq!(scratch.names(), ["elsewhere.crt"]);

        let ca = write(scratch.path(), "ca").expect("written");
        let server = write(scratch.path(), "server");
        and_server(ca, server).expect("written");
        assert_eq!(scratch.names().len(), 5);
    }
}
