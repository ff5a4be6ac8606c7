//! Client certificates of X.509 version 1, and attacks on the way that takes them.
//!
//! rcgen makes version 3 only, so these are put together here, byte by byte.

use super::*;
use crate::pki::der::{Parts, Version};
use rcgen::{PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// The algorithm identifiers of ECDSA with SHA-256 and SHA-384.
const ECDSA_SHA256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const RSA_SHA256: &[u8] = &[
    0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 0x05, 0,
];

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match contents.len() {
        short @ ..=0x7f => out.push(short as u8),
        long @ ..=0xff => out.extend([0x81, long as u8]),
        long => out.extend([0x82, (long >> 8) as u8, long as u8]),
    }
    out.extend(contents);
    out
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

/// `YYYYMMDDHHMMSSZ`.
fn time(offset: i64) -> Vec<u8> {
    let day = date(UnixTime::now().as_secs().strict_add_signed(offset));
    element(0x18, format!("{}000000Z", day.replace('-', "")).as_bytes())
}

/// Everything about a certificate of version 1 that an attacker could choose.
struct Forge<'a> {
    issuer: Vec<u8>,
    signer: &'a KeyPair,
    algorithm: &'static [u8],
    inner_algorithm: &'static [u8],
    days: (i64, i64),
    /// After the key, where version 1 has nothing.
    more: &'static [u8],
}

impl<'a> Forge<'a> {
    fn honest(ca: &'a Ca) -> Self {
        let parts = Parts::of(ca.der()).expect("a CA");
        Self {
            issuer: element(0x30, parts.subject),
            signer: ca.key(),
            algorithm: ECDSA_SHA256,
            inner_algorithm: ECDSA_SHA256,
            days: (-2, 100),
            more: &[],
        }
    }

    fn certificate(&self, key: &KeyPair) -> Vec<u8> {
        let common_name = sequence(&[&[0x06, 3, 0x55, 4, 3], &element(0x0c, b"client1")]);
        let tbs = sequence(&[
            &element(0x02, &[42]),
            &sequence(&[self.inner_algorithm]),
            &self.issuer,
            &sequence(&[&time(self.days.0 * DAY), &time(self.days.1 * DAY)]),
            &sequence(&[&element(0x31, &common_name)]),
            &key.subject_public_key_info(),
            self.more,
        ]);
        let signature = self.signer.sign(&tbs).expect("signed");
        sequence(&[
            &tbs,
            &sequence(&[self.algorithm]),
            &element(0x03, &[&[0], &*signature].concat()),
        ])
    }
}

fn pem(der: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for chunk in der.chunks(3) {
        let word = chunk
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0usize, |word, byte| word << 8 | usize::from(*byte));
        for place in 0..4 {
            if place > chunk.len() {
                text.push('=');
            } else {
                text.push(char::from(LETTERS[word >> (18 - 6 * place) & 63]));
            }
        }
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

fn meet_with(ca: &Ca, version: MinVersion, forge: &Forge<'_>) -> Meeting {
    let key = key();
    let mut ends = Ends::good(ca);
    ends.client_min = version;
    ends.client = Some((pem(&forge.certificate(&key)), key.serialize_pem()));
    ends.meet()
}

#[test]
fn a_good_one_is_taken() {
    let ca = ca(ca_params("Good CA"));
    for version in VERSIONS {
        let key = key();
        let der = Forge::honest(&ca).certificate(&key);
        assert_eq!(Parts::of(&der).expect("DER").version, Version::V1);
        let mut ends = Ends::good(&ca);
        ends.client_min = version;
        ends.client = Some((pem(&der), key.serialize_pem()));
        ends.allowed = vec!["client1".to_owned()];
        let meeting = ends.meet();
        assert_eq!(
            (meeting.client, meeting.server),
            (Ok(()), Ok(())),
            "{version}"
        );
        assert_eq!(meeting.peer.expect("named").names.short(), "client1");
        let (client, _) = ends.load().expect("good files");
        assert!(
            client.warnings[0].contains("of X.509 version 1"),
            "{:?}",
            client.warnings
        );

        // The allow list stands behind this way, too.
        ends.allowed = vec!["client2".to_owned()];
        let said = ends.meet().server.expect_err("not on the list");
        assert!(said.contains("it names CN=client1"), "{said}");
    }
}

#[test]
fn forged_ones_are_refused() {
    let good = ca(ca_params("Good CA"));
    let namesake = ca(ca_params("Good CA"));
    let other = ca(ca_params("Other CA"));
    let cases: [(&str, Forge<'_>, &str); 6] = [
        (
            "another CA's key under the right issuer name",
            Forge {
                signer: namesake.key(),
                ..Forge::honest(&good)
            },
            "was not signed by the key of the CA it names",
        ),
        (
            "another CA",
            Forge::honest(&other),
            "from none of the CAs in client_ca_cert",
        ),
        (
            "expired",
            Forge {
                days: (-10, -1),
                ..Forge::honest(&good)
            },
            "the certificate of the client ended on 20",
        ),
        (
            "not yet valid",
            Forge {
                days: (2, 10),
                ..Forge::honest(&good)
            },
            "is not valid before 20",
        ),
        (
            "a signature of a kind that the CA's key cannot make",
            Forge {
                algorithm: RSA_SHA256,
                inner_algorithm: RSA_SHA256,
                ..Forge::honest(&good)
            },
            "is signed in a way that is not safe or not known here",
        ),
        (
            "extensions in version 1",
            Forge {
                more: &[0xa3, 2, 0x30, 0],
                ..Forge::honest(&good)
            },
            "cannot be accepted",
        ),
    ];
    for version in VERSIONS {
        for (title, forge, wanted) in &cases {
            let said = meet_with(&good, version, forge).server;
            let said = said.expect_err(title);
            assert!(said.contains(wanted), "{title} ({version}): {said}");
        }
    }
}

/// A client of whoever wrote it: it shows what it likes and signs with what it has.
fn meet_attacker(ca: &Ca, version: MinVersion, chain: Vec<Vec<u8>>, signs: &KeyPair) -> Meeting {
    let mut ends = Ends::good(ca);
    ends.client_min = version;
    let (client, server) = ends.load().expect("good files");
    let mut config = ClientConfig::clone(&client.config);
    let signs = provider()
        .key_provider
        .load_private_key(rustls::pki_types::PrivatePkcs8KeyDer::from(signs.serialize_der()).into())
        .expect("a key");
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    config.client_auth_cert_resolver =
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signs)));
    shake(&Arc::new(config), &server.config, HOST)
}

#[test]
fn the_wrong_key_and_changed_bytes_are_refused() {
    let ca = ca(ca_params("Good CA"));
    let (own, stolen) = (key(), key());
    let good = Forge::honest(&ca).certificate(&own);
    for version in VERSIONS {
        assert_eq!(
            meet_attacker(&ca, version, vec![good.clone()], &own).server,
            Ok(())
        );

        // Somebody else's certificate, without its key.
        let said = meet_attacker(&ca, version, vec![good.clone()], &stolen).server;
        let said = said.expect_err("no proof");
        assert!(
            said.contains("or the handshake not by its own key"),
            "{version}: {said}"
        );

        // A key of another kind than the certificate's.
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let said = meet_attacker(&ca, version, vec![good.clone()], &ed25519).server;
        said.expect_err("no proof");

        // Another name, another key, another date: every change breaks the CA's signature.
        let place = |needle: &[u8]| {
            good.windows(needle.len())
                .position(|window| window == needle)
                .expect("it is there")
        };
        let parts = Parts::of(&good).expect("DER");
        for at in [place(b"client1"), place(parts.key) + 40, place(b"000000Z")] {
            let mut tampered = good.clone();
            tampered[at] ^= 1;
            let said = meet_attacker(&ca, version, vec![tampered], &own).server;
            let said = said.expect_err("tampered");
            assert!(
                said.contains("was not signed by the key of the CA"),
                "{version}: {said}"
            );
        }

        // Bytes after the end, and an inner algorithm that is not the outer one.
        let mut longer = good.clone();
        longer.push(0);
        let two = Forge {
            inner_algorithm: ECDSA_SHA384,
            ..Forge::honest(&ca)
        };
        for odd in [
            longer,
            two.certificate(&own),
            good[..40].to_vec(),
            Vec::new(),
        ] {
            meet_attacker(&ca, version, vec![odd], &own)
                .server
                .expect_err("no certificate");
        }
    }
}

#[test]
fn a_leaf_of_version_1_is_no_ca() {
    let ca = ca(ca_params("Good CA"));
    let own = key();
    let v1 = Forge::honest(&ca).certificate(&own);
    let parts = Parts::of(&v1).expect("DER");
    // Signs both a version 1 and a version 3 certificate with the key of a version 1 leaf.
    let below = Forge {
        issuer: element(0x30, parts.subject),
        signer: &own,
        ..Forge::honest(&ca)
    };
    let mallory = key();
    let issuer = rcgen::Issuer::new(params("client1"), &own);
    let v3 = client_params("admin")
        .signed_by(&mallory, &issuer)
        .expect("signed");
    for version in VERSIONS {
        for leaf in [below.certificate(&mallory), v3.der().to_vec()] {
            let said = meet_attacker(&ca, version, vec![leaf, v1.clone()], &mallory).server;
            said.expect_err("signed by a leaf");
        }
    }
}

#[test]
fn an_anchor_that_may_not_sign_signs_nobody() {
    let restricted: [(&str, CertificateParams); 6] = [
        ("CA:FALSE", {
            let mut params = params("Good CA");
            params.is_ca = IsCa::ExplicitNoCa;
            params
        }),
        ("no basic constraints", params("Good CA")),
        ("no keyCertSign", {
            let mut params = ca_params("Good CA");
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params
        }),
        ("for servers only", {
            let mut params = ca_params("Good CA");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params
        }),
        ("name constraints", {
            let mut params = ca_params("Good CA");
            params.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())],
                excluded_subtrees: Vec::new(),
            });
            params
        }),
        ("ended", {
            let mut params = ca_params("Good CA");
            lasting(&mut params, -10 * DAY, -DAY);
            params
        }),
    ];
    let good = ca(ca_params("Good CA"));
    for (title, params) in restricted {
        let anchor = ca(params);
        for version in VERSIONS {
            let key = key();
            let mut ends = Ends::good(&good);
            ends.client_min = version;
            ends.client_ca = Some(anchor.pem());
            let leaf = Forge::honest(&anchor).certificate(&key);
            ends.client = Some((pem(&leaf), key.serialize_pem()));
            let said = ends.meet().server.expect_err(title);
            assert!(
                said.contains("may not sign client certificates"),
                "{title}: {said}"
            );

            // Beside it stands one of the same name that may: it did not sign, and one that did
            // sign suffices wherever it stands.
            ends.client_ca = Some(anchor.pem() + &good.pem());
            let said = ends.meet().server.expect_err(title);
            assert!(
                said.contains("was not signed by the key"),
                "{title}: {said}"
            );
            let leaf = Forge::honest(&good).certificate(&key);
            ends.client = Some((pem(&leaf), key.serialize_pem()));
            assert_eq!(ends.meet().server, Ok(()), "{title}");
        }
    }
}

/// A server of version 1 says nothing about its names: it is not taken, and both ends say why.
#[test]
fn a_server_of_version_1_is_refused() {
    let ca = ca(ca_params("Good CA"));
    for version in VERSIONS {
        let key = key();
        let mut ends = Ends::good(&ca);
        ends.client_min = version;
        ends.server_cert = pem(&Forge::honest(&ca).certificate(&key));
        ends.server_key = key.serialize_pem();
        let said = ends.meet().client.expect_err("no names");
        assert!(
            said.contains("X.509 version 1") && said.contains("certs init"),
            "{said}"
        );
        let (_, server) = ends.load().expect("good files");
        assert!(server.warnings[0].contains("of X.509 version 1, and clients refuse it"));
    }
}
