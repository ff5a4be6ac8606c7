//! TLS for the table: certificates of its own, and connections with their handshakes behind them.

use std::net::TcpStream;
use std::sync::{Arc, OnceLock};
use std::thread::yield_now;

use minitcptunnel_common::channel::ledger::Ledger;
use minitcptunnel_common::channel::tls::{self, Established, Handshake, Progress};
use minitcptunnel_common::duplex::{Duplex, Socket};
use rcgen::{CertificateParams, CertifiedIssuer, CustomExtension, Issuer, KeyPair};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::path::{Hand, Layer};
use crate::rig::link;

/// A certificate for `localhost` and its key, for either end, and who has signed it.
struct Identity {
    roots: Arc<RootCertStore>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn make_identity() -> Identity {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca_certificate.der().clone()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    Identity {
        roots: Arc::new(roots),
        certificate: certificate.der().clone(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

/// Both ends as [`Terms`] has them, but for the client's chain: three certificates of 3 KiB and more each.
pub(crate) fn with_long_chain(terms: Terms) -> (ClientConfig, ServerConfig) {
    let params = || {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let padding =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![0; 3000]);
        params.custom_extensions = vec![padding];
        params
    };
    let ca_params = || {
        let mut params = params();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let key = || KeyPair::generate().unwrap();
    let root = CertifiedIssuer::self_signed(ca_params(), key()).unwrap();
    let upper = CertifiedIssuer::signed_by(ca_params(), key(), &root).unwrap();
    let lower = CertifiedIssuer::signed_by(ca_params(), key(), &upper).unwrap();
    let leaf_key = key();
    let leaf = params().signed_by(&leaf_key, &lower).unwrap();
    let chain = [leaf.der(), lower.der(), upper.der()].map(Clone::clone);
    let mut anchors = RootCertStore::empty();
    anchors.add(root.der().clone()).unwrap();

    let identity = identity();
    let client = ClientConfig::builder_with_provider(terms.provider())
        .with_protocol_versions(&[terms.version])
        .unwrap()
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(
            chain.to_vec(),
            PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), terms.provider());
    let server = ServerConfig::builder_with_provider(terms.provider())
        .with_protocol_versions(&[terms.version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    (client, server)
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(make_identity)
}

/// What both ends agree on.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) version: &'static SupportedProtocolVersion,
    /// Any, when there is none.
    pub(crate) suite: Option<CipherSuite>,
}

impl Terms {
    pub(crate) fn of(layer: Layer) -> Self {
        let version = match layer {
            Layer::Tls12 => &rustls::version::TLS12,
            Layer::Tls13 => &rustls::version::TLS13,
            other => panic!("{other:?} is not TLS"),
        };
        Self {
            version,
            suite: None,
        }
    }

    fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        if let Some(wanted) = self.suite {
            provider
                .cipher_suites
                .retain(|suite| suite.suite() == wanted);
        }
        Arc::new(provider)
    }

    /// The dialling end; with a certificate or without.
    pub(crate) fn client(self, shows_certificate: bool) -> ClientConfig {
        let Identity {
            roots,
            certificate,
            key,
        } = identity();
        let config = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots.clone());
        if shows_certificate {
            let chain = vec![certificate.clone()];
            config
                .with_client_auth_cert(chain, key.clone_key())
                .unwrap()
        } else {
            config.with_no_client_auth()
        }
    }

    /// The listening end, which wants a certificate to be shown.
    pub(crate) fn server(self) -> ServerConfig {
        let Identity {
            roots,
            certificate,
            key,
        } = identity();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider())
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key.clone_key())
            .unwrap();
        // Behind the handshake there is silence.
        config.send_tls13_tickets = 0;
        config
    }
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Takes both ends through their handshake.
pub(crate) fn shake(mut ends: [Handshake; 2]) -> [Established; 2] {
    while {
        let progress = ends.each_mut().map(|end| end.step().unwrap());
        progress != [Progress::Done; 2]
    } {
        yield_now();
    }
    ends.map(Handshake::established)
}

/// A client and a server that have found each other, over sockets that are not needed any more.
pub(crate) fn established(terms: Terms) -> [Established; 2] {
    let (near, far) = link();
    shake([
        Handshake::client(
            Arc::new(terms.client(true)),
            name(),
            Socket::new(near).unwrap(),
        )
        .unwrap(),
        Handshake::server(Arc::new(terms.server()), Socket::new(far).unwrap()).unwrap(),
    ])
}

pub(crate) fn over(established: Established, stream: TcpStream) -> Duplex {
    let socket = Socket::new(stream).unwrap();
    tls::duplex(established, socket, &Ledger::default())
}

/// The client on the left.
pub(crate) fn dress_both(layer: Layer, near: TcpStream, far: TcpStream) -> [Duplex; 2] {
    let [client, server] = established(Terms::of(layer));
    [over(client, near), over(server, far)]
}

/// One end; the other is nowhere.
pub(crate) fn dress(layer: Layer, hand: Hand, stream: TcpStream) -> Duplex {
    let [client, server] = established(Terms::of(layer));
    match hand {
        Hand::Left => over(client, stream),
        Hand::Right => over(server, stream),
    }
}
