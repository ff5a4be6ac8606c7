//! - `wrong_peers`  each rule, with a peer that breaks only it
//! - `version_one`  client certificates of X.509 version 1, and attacks on the way that takes them
//! - `openssl`      the commands that people are told to type
//! - `files`        loading, names, following, ends, making

mod files;
mod openssl;
mod version_one;
mod wrong_peers;

use super::*;
use crate::scratch::Scratch;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const DAY: i64 = 24 * 60 * 60;

/// The name that the client wants the server to have.
const HOST: &str = "tunnel.example.com";

/// Both versions: what holds in one must hold in the other.
const VERSIONS: [MinVersion; 2] = [MinVersion::Only12, MinVersion::Tls13];

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    lasting(&mut params, -DAY, 100 * DAY);
    params
}

/// Good from and until, in seconds from now.
fn lasting(params: &mut CertificateParams, from: i64, until: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |offset: i64| {
        epoch + Duration::from_secs(UnixTime::now().as_secs().strict_add_signed(offset))
    };
    params.not_before = at(from);
    params.not_after = at(until);
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(params: CertificateParams) -> Ca {
    CertifiedIssuer::self_signed(params, key()).expect("a CA")
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn server_params() -> CertificateParams {
    let mut params = params(HOST);
    params.subject_alt_names = CertificateParams::new([HOST.to_owned(), "192.0.2.1".to_owned()])
        .expect("names")
        .subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Both ends' files, as PEM; what is `None` is not configured.
#[derive(Clone)]
struct Ends {
    server_cert: String,
    server_key: String,
    client_ca: Option<String>,
    allowed: Vec<String>,
    server_min: MinVersion,
    server_ca: String,
    client: Option<(String, String)>,
    client_min: MinVersion,
    name: String,
}

impl Ends {
    /// A good pair with client certificates, by one CA.
    fn good(ca: &Ca) -> Self {
        let (server, client) = (key(), key());
        let server_cert = server_params().signed_by(&server, ca).expect("signed");
        let client_cert = client_params("client1")
            .signed_by(&client, ca)
            .expect("signed");
        Self {
            server_cert: server_cert.pem(),
            server_key: server.serialize_pem(),
            client_ca: Some(ca.pem()),
            allowed: Vec::new(),
            server_min: MinVersion::Tls12,
            server_ca: ca.pem(),
            client: Some((client_cert.pem(), client.serialize_pem())),
            client_min: MinVersion::Tls12,
            name: HOST.to_owned(),
        }
    }

    fn server_cert(&mut self, ca: &Ca, params: CertificateParams) {
        let key = key();
        self.server_cert = params.signed_by(&key, ca).expect("signed").pem();
        self.server_key = key.serialize_pem();
    }

    fn client_cert(&mut self, ca: &Ca, params: CertificateParams) {
        let key = key();
        let cert = params.signed_by(&key, ca).expect("signed");
        self.client = Some((cert.pem(), key.serialize_pem()));
    }

    /// Writes the files and loads both ends from them.
    fn load(&self) -> Result<(ClientTls, ServerTls), LoadError> {
        let scratch = Scratch::new();
        let file = |name: &str, text: &str| -> PathBuf {
            let path = scratch.path().join(name);
            files_private(&path, text);
            path
        };
        let server = ServerTls::load(&ServerSettings {
            cert: file("server.crt", &self.server_cert),
            key: file("server.key", &self.server_key),
            client_ca: self
                .client_ca
                .as_ref()
                .map(|pem| file("client_ca.crt", pem)),
            allowed: self.allowed.clone(),
            allowed_file: None,
            min_version: self.server_min,
        })?;
        let client = self.client.as_ref();
        let client = ClientTls::load(&ClientSettings {
            server_ca: file("server_ca.crt", &self.server_ca),
            cert: client.map(|(cert, _)| file("client.crt", cert)),
            key: client.map(|(_, key)| file("client.key", key)),
            min_version: self.client_min,
        })?;
        Ok((client, server))
    }

    /// Loads both ends, shakes hands and says what each has to say.
    fn meet(&self) -> Meeting {
        let (client, server) = self.load().expect("good files");
        let mut meeting = shake(&client.config, &server.config, &self.name);
        if meeting.server.is_ok() && meeting.client.is_ok() {
            let certificates = meeting.peer_certificates.as_deref();
            match server.admit(certificates, UnixTime::now()) {
                Ok(peer) => meeting.peer = peer,
                Err(e) => meeting.server = Err(e.to_string()),
            }
        }
        meeting.notice = client.notice().map(str::to_owned);
        meeting
    }
}

fn files_private(path: &std::path::Path, text: &str) {
    let _ = fs::remove_file(path);
    crate::files::create_exclusive(path, text.as_bytes(), crate::files::Access::Private)
        .expect("written");
}

/// What came of a handshake.
#[derive(Debug)]
struct Meeting {
    client: Result<(), String>,
    server: Result<(), String>,
    client_lasts: bool,
    resumed: bool,
    peer: Option<Peer>,
    peer_certificates: Option<Vec<CertificateDer<'static>>>,
    notice: Option<String>,
}

/// A handshake and one byte each way, over two buffers.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &str) -> Meeting {
    let name = server_name(name).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    let mut said: (Option<rustls::Error>, Option<rustls::Error>) = (None, None);
    let mut greeted = false;
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let to_server = wire.len();
        feed(&mut wire.as_slice(), |input| {
            server.read_tls(input).expect("memory");
            if let Err(e) = server.process_new_packets() {
                said.1.get_or_insert(e);
            }
        });
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let to_client = wire.len();
        feed(&mut wire.as_slice(), |input| {
            client.read_tls(input).expect("memory");
            if let Err(e) = client.process_new_packets() {
                said.0.get_or_insert(e);
            }
        });
        if to_server + to_client > 0 {
            continue;
        }
        if greeted || said.0.is_some() || said.1.is_some() {
            break;
        }
        // Session tickets and late alerts come with the first data.
        greeted = true;
        use std::io::Write;
        client.writer().write_all(b"x").expect("memory");
        server.writer().write_all(b"y").expect("memory");
    }
    let client_problem = said.0.map(|e| explain(&e, Side::Client));
    let verdict = |problem: Option<&Problem>, handshaking: bool| match problem {
        Some(problem) => Err(problem.text.clone()),
        None if handshaking => Err("the handshake did not come to its end".to_owned()),
        None => Ok(()),
    };
    let server_problem = said.1.map(|e| explain(&e, Side::Server));
    Meeting {
        client: verdict(client_problem.as_ref(), client.is_handshaking()),
        server: verdict(server_problem.as_ref(), server.is_handshaking()),
        client_lasts: client_problem.is_some_and(|problem| problem.lasts),
        resumed: client.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        peer: None,
        peer_certificates: server.peer_certificates().map(|certificates| {
            certificates
                .iter()
                .map(|c| c.clone().into_owned())
                .collect()
        }),
        notice: None,
    }
}

/// Gives all of it, in as many steps as the other end wants to take.
fn feed(wire: &mut &[u8], mut step: impl FnMut(&mut &[u8])) {
    while !wire.is_empty() {
        let before = wire.len();
        step(wire);
        if wire.len() == before {
            break; // it has failed and reads no more
        }
    }
}
