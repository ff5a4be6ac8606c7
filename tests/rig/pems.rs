//! Certificates: those of the documents' recipe, made by openssl, and any others, made here.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::ok;

const DAY: i64 = 24 * 60 * 60;

/// The documents' recipe. To the letter but for the kind of key (`KEY`, with `-algorithm RSA -pkeyopt
/// rsa_keygen_bits:2048` it is the very thing), the name of the host, and what the client's certificate may
/// have beyond theirs (`CLIENT`): with nothing there openssl makes it one of X.509 version 1.
const RECIPE: &str = r#"
openssl genpkey KEY -out ca.key
openssl req -new -x509 -key ca.key -out ca.crt -days 365 -subj "/CN=MyTestCA"

SERVER_HOSTNAME="tunnel-server"
openssl genpkey KEY -out server.key
openssl req -new -key server.key -out server.csr -subj "/CN=${SERVER_HOSTNAME}"
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 360 -extfile <(printf "subjectAltName=DNS:${SERVER_HOSTNAME},DNS:localhost,IP:127.0.0.1")

CLIENT_ID="your.client.id"
openssl genpkey KEY -out client.key
openssl req -new -key client.key -out client.csr -subj "/CN=${CLIENT_ID}"
openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAserial ca.srl -out client.crt -days 360 CLIENT
"#;

/// Runs the recipe in this folder: `ca`, `server` and `client`, each `.crt` and `.key`. `algorithm` is what `openssl
/// genpkey` is given; with `version_one` the client's certificate is as the documents' commands make it.
pub fn pems_by_openssl(folder: &Path, algorithm: &str, version_one: bool) {
    fs::create_dir_all(folder).expect("a folder for certificates");
    let client = if version_one {
        ""
    } else {
        "-extfile <(printf 'extendedKeyUsage=clientAuth')"
    };
    let script = RECIPE
        .replace("KEY", algorithm)
        .replace("CLIENT\n", &format!("{client}\n"));
    ok(Command::new("bash")
        .args(["-euc", &script])
        .current_dir(folder));
}

/// A certificate and its key, as PEM.
pub struct Pems {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Pems {
    /// Writes them to `NAME.crt` and `NAME.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        let at = |end: &str| folder.join(format!("{name}.{end}"));
        fs::write(at("crt"), &self.cert).expect("write");
        let mut key = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut key, 0o600);
        let mut key = (key.create(true).truncate(true).write(true))
            .open(at("key"))
            .expect("create");
        std::io::Write::write_all(&mut key, self.key.as_bytes()).expect("write");
    }
}

/// A CA that signs whatever it is asked to.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    lasting(&mut params, -DAY, 100 * DAY);
    params
}

/// Good from and until, in seconds from now.
pub fn lasting(params: &mut CertificateParams, from: i64, until: i64) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let at = |offset| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.saturating_add_signed(offset))
    };
    params.not_before = at(from);
    params.not_after = at(until);
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

impl Ca {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, key()).expect("a CA"))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A good server for these names and addresses, but for what `change` changes.
    pub fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pems {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = named("the server");
        params.subject_alt_names = CertificateParams::new(names)
            .expect("names")
            .subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.signed(params, change)
    }

    /// A good client of this name, but for what `change` changes.
    pub fn client(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pems {
        let mut params = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(params, change)
    }

    fn signed(
        &self,
        mut params: CertificateParams,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pems {
        change(&mut params);
        let key = key();
        Pems {
            cert: params.signed_by(&key, &self.0).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pems {
    /// One that vouches for itself: a server for these names, and a client as well.
    pub fn self_signed(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = named("nobody vouches");
        params.subject_alt_names = CertificateParams::new(names)
            .expect("names")
            .subject_alt_names;
        let key = key();
        Self {
            cert: params.self_signed(&key).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}
