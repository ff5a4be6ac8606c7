//! Each rule, with a peer that breaks only it, in TLS 1.2 and 1.3.

use super::*;

struct Case {
    title: &'static str,
    /// What the good ends become.
    break_it: fn(&mut Ends, &Ca),
    /// Parts of what each end says.
    client: &'static [&'static str],
    server: &'static [&'static str],
}

/// A CA that neither end knows.
fn another_ca(name: &str) -> Ca {
    ca(ca_params(name))
}

const CASES: &[Case] = &[
    Case {
        title: "server expired",
        break_it: |ends, ca| {
            let mut params = server_params();
            lasting(&mut params, -10 * DAY, -DAY);
            ends.server_cert(ca, params);
        },
        client: &[
            "the certificate of the server ended on 20",
            "certs init",
            "clock",
        ],
        server: &["the client says that our certificate (server_cert) has ended"],
    },
    Case {
        title: "server not yet valid",
        break_it: |ends, ca| {
            let mut params = server_params();
            lasting(&mut params, DAY, 10 * DAY);
            ends.server_cert(ca, params);
        },
        client: &[
            "the certificate of the server is not valid before 20",
            "clock",
        ],
        server: &["has ended or has not begun"],
    },
    Case {
        title: "server from another CA",
        break_it: |ends, _| ends.server_cert(&another_ca("Other CA"), server_params()),
        client: &["from none of the CAs in server_ca_cert", "another CA"],
        server: &["does not know the CA that signed our certificate (server_cert)"],
    },
    Case {
        title: "server from another CA of the same name",
        break_it: |ends, _| ends.server_cert(&another_ca("Good CA"), server_params()),
        client: &["was not signed by the key of the CA it names"],
        server: &["a signature is wrong"],
    },
    Case {
        title: "server self-signed",
        break_it: |ends, _| {
            let key = key();
            ends.server_cert = server_params().self_signed(&key).expect("signed").pem();
            ends.server_key = key.serialize_pem();
        },
        client: &["it is self-signed", "server_ca_cert"],
        server: &["does not know the CA"],
    },
    Case {
        title: "server with a CA's certificate",
        break_it: |ends, ca| {
            let mut params = server_params();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            ends.server_cert(ca, params);
        },
        client: &["is one of a CA (CA:TRUE)"],
        server: &["refuses our certificate (server_cert)"],
    },
    Case {
        title: "wrong host",
        break_it: |ends, _| ends.name = "other.example.com".to_owned(),
        client: &[
            "is not for other.example.com; it is for tunnel.example.com, 192.0.2.1.",
            "server_hostname",
        ],
        server: &["the name that it dials is probably not in it"],
    },
    Case {
        title: "wrong address",
        break_it: |ends, _| ends.name = "192.0.2.2".to_owned(),
        client: &["is not for 192.0.2.2; it is for tunnel.example.com, 192.0.2.1."],
        server: &["the name that it dials is probably not in it"],
    },
    Case {
        title: "the right CN beside SANs that say otherwise",
        break_it: |ends, ca| {
            let mut params = params("other.example.com");
            params.subject_alt_names = server_params().subject_alt_names;
            ends.server_cert(ca, params);
            ends.name = "other.example.com".to_owned();
        },
        client: &["is not for other.example.com; it is for tunnel.example.com, 192.0.2.1."],
        server: &["the name that it dials is probably not in it"],
    },
    Case {
        title: "CN only, and another one",
        break_it: |ends, ca| ends.server_cert(ca, params("other.example.com")),
        client: &["is not for tunnel.example.com; it is for CN=other.example.com."],
        server: &["the name that it dials is probably not in it"],
    },
    Case {
        title: "CN only, with a wildcard",
        break_it: |ends, ca| ends.server_cert(ca, params("*.example.com")),
        client: &["it is for CN=*.example.com."],
        server: &["the name that it dials is probably not in it"],
    },
    Case {
        title: "CN only, the right one, from another CA",
        break_it: |ends, _| ends.server_cert(&another_ca("Other CA"), params(HOST)),
        client: &["from none of the CAs in server_ca_cert"],
        server: &["does not know the CA"],
    },
    Case {
        title: "server with a client's certificate",
        break_it: |ends, ca| {
            let mut params = server_params();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            ends.server_cert(ca, params);
        },
        client: &["is for another purpose", "certs init"],
        server: &["for another purpose"],
    },
    Case {
        title: "client certificate missing",
        break_it: |ends, _| ends.client = None,
        client: &["was shown none"],
        server: &["the client shows no certificate", "certs client NAME"],
    },
    Case {
        title: "client from another CA",
        break_it: |ends, _| ends.client_cert(&another_ca("Other CA"), client_params("client1")),
        client: &[
            "does not know the CA that signed our certificate (client_cert)",
            "client_ca_cert",
        ],
        server: &["from none of the CAs in client_ca_cert"],
    },
    Case {
        title: "client self-signed",
        break_it: |ends, _| {
            let key = key();
            let cert = client_params("client1").self_signed(&key).expect("signed");
            ends.client = Some((cert.pem(), key.serialize_pem()));
        },
        client: &["does not know the CA"],
        server: &["it is self-signed"],
    },
    Case {
        title: "client expired",
        break_it: |ends, ca| {
            let mut params = client_params("client1");
            lasting(&mut params, -10 * DAY, -DAY);
            ends.client_cert(ca, params);
        },
        client: &["our certificate (client_cert) has ended"],
        server: &[
            "the certificate of the client ended on 20",
            "certs client NAME",
        ],
    },
    Case {
        title: "client not on the allow list",
        break_it: |ends, _| ends.allowed = vec!["client2".to_owned(), "client3".to_owned()],
        client: &[
            "refuses our certificate (client_cert)",
            "allowed_client_cns",
        ],
        server: &[
            "the client is not admitted",
            "it names CN=client1",
            "(client2, client3)",
        ],
    },
    Case {
        title: "client with a server's certificate",
        break_it: |ends, ca| {
            let mut params = client_params("client1");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            ends.client_cert(ca, params);
        },
        client: &["for another purpose"],
        server: &["is for another purpose", "certs client NAME"],
    },
];

#[test]
fn every_wrong_peer_is_refused_with_a_reason() {
    let ca = ca(ca_params("Good CA"));
    let mut wrong = Vec::new();
    for version in VERSIONS {
        for case in CASES {
            let mut ends = Ends::good(&ca);
            ends.client_min = version;
            (case.break_it)(&mut ends, &ca);
            let meeting = ends.meet();
            let mut look = |who, said: &Result<(), String>, wanted: &[&str]| match said {
                Ok(()) => wrong.push(format!("{} ({version}): {who} is content", case.title)),
                Err(said) => wrong.extend(wanted.iter().filter(|part| !said.contains(**part)).map(
                    |part| {
                        format!(
                            "{} ({version}): {who} says {said:?}, not {part:?}",
                            case.title
                        )
                    },
                )),
            };
            look("the client", &meeting.client, case.client);
            look("the server", &meeting.server, case.server);
            if !meeting.client_lasts {
                wrong.push(format!(
                    "{} ({version}): the client would try again",
                    case.title
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(CASES.len() >= 19, "the table is whole");
}

#[test]
fn a_good_pair_meets() {
    let ca = ca(ca_params("Good CA"));
    for version in VERSIONS {
        let mut ends = Ends::good(&ca);
        ends.client_min = version;
        for name in [HOST, "TUNNEL.example.COM", "192.0.2.1"] {
            ends.name = name.to_owned();
            let meeting = ends.meet();
            assert_eq!(
                (&meeting.client, &meeting.server),
                (&Ok(()), &Ok(())),
                "{name}"
            );
            let peer = meeting.peer.expect("a client with a certificate");
            assert_eq!(peer.names.to_string(), "CN=client1");
            assert_eq!(meeting.notice, None);
        }
        ends.client_ca = None;
        let meeting = ends.meet();
        assert_eq!((meeting.client, meeting.server), (Ok(()), Ok(())));
        assert_eq!(meeting.peer, None, "nobody was asked");
    }
}

#[test]
fn version_1_2_is_refused_where_1_3_is_the_minimum() {
    let ca = ca(ca_params("Good CA"));
    let mut ends = Ends::good(&ca);
    (ends.client_min, ends.server_min) = (MinVersion::Only12, MinVersion::Tls13);
    let meeting = ends.meet();
    let said = meeting.server.expect_err("too old");
    assert!(
        said.contains("the client speaks no version of TLS that min_version allows"),
        "{said}"
    );
    let said = meeting.client.expect_err("too old");
    assert!(
        said.contains("the server speaks none of our versions of TLS"),
        "{said}"
    );

    (ends.client_min, ends.server_min) = (MinVersion::Tls13, MinVersion::Only12);
    let meeting = ends.meet();
    let said = meeting.server.expect_err("too new");
    assert!(
        said.contains("the client speaks no version of TLS"),
        "{said}"
    );
    let said = meeting.client.expect_err("too new");
    assert!(said.contains("none of our versions of TLS"), "{said}");
}

#[test]
fn a_common_name_alone_is_taken_with_a_warning() {
    let ca = ca(ca_params("Good CA"));
    for version in VERSIONS {
        for (common_name, name) in [
            (HOST, HOST),
            ("Tunnel.Example.COM", HOST),
            ("192.0.2.7", "192.0.2.7"),
        ] {
            let mut ends = Ends::good(&ca);
            ends.client_min = version;
            ends.server_cert(&ca, params(common_name));
            ends.name = name.to_owned();
            let meeting = ends.meet();
            assert_eq!(
                (&meeting.client, &meeting.server),
                (&Ok(()), &Ok(())),
                "{common_name}"
            );
            let notice = meeting.notice.expect("a warning");
            assert!(
                notice.contains("as CN only, without subjectAltName"),
                "{notice}"
            );
            assert!(
                notice.contains(&format!("certs init --host {name}")),
                "{notice}"
            );
        }
    }
}

/// Name constraints bind alternative names alone: a CA that has some could put any host into a CN.
#[test]
fn a_common_name_goes_round_no_name_constraints() {
    use rcgen::{GeneralSubtree, NameConstraints};
    let constrained = |name: &str| {
        let mut params = ca_params(name);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: Vec::new(),
        });
        params
    };
    let root = ca(ca_params("Root CA"));
    let below = |params| Ca::signed_by(params, key(), &root).expect("a CA");
    let bound_root = ca(constrained("Bound root CA"));
    let bound = below(constrained("Bound CA"));
    let free = below(ca_params("Free CA"));
    let excluded = {
        let mut params = ca_params("Excluding CA");
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: Vec::new(),
            excluded_subtrees: vec![GeneralSubtree::DnsName(HOST.to_owned())],
        });
        below(params)
    };
    for version in VERSIONS {
        for (title, issuer, between, anchors, taken) in [
            ("free anchor", &root, None, vec![&root], true),
            ("free CA between", &free, Some(&free), vec![&root], true),
            (
                "bound anchor of others",
                &root,
                None,
                vec![&bound_root, &root],
                true,
            ),
            ("bound anchor", &bound_root, None, vec![&bound_root], false),
            ("bound CA between", &bound, Some(&bound), vec![&root], false),
            ("bound CA as anchor", &bound, None, vec![&bound], false),
            (
                "excluding CA between",
                &excluded,
                Some(&excluded),
                vec![&root],
                false,
            ),
        ] {
            let mut ends = Ends::good(&root);
            ends.client_min = version;
            ends.server_ca = anchors.iter().map(|anchor| anchor.pem()).collect();
            let mut meet = |params| {
                ends.server_cert(issuer, params);
                ends.server_cert
                    .extend(between.map(|between| between.pem()));
                ends.meet().client
            };
            match meet(params(HOST)) {
                Ok(()) => assert!(taken, "{title} ({version})"),
                Err(said) => {
                    assert!(!taken, "{title} ({version}): {said}");
                    assert!(said.contains("bound by name constraints"), "{said}");
                    assert!(said.contains("subjectAltName=DNS:NAME"), "{said}");
                }
            }
            // Names that are bound are held to it, and taken.
            assert_eq!(
                meet(server_params()).is_ok(),
                title != "excluding CA between",
                "{title}"
            );
        }
    }
}

#[test]
fn what_does_not_speak_tls_is_named() {
    let ca = ca(ca_params("Good CA"));
    let (client, server) = Ends::good(&ca).load().expect("good files");
    let mut listening = ServerConnection::new(server.config).expect("a server");
    listening
        .read_tls(&mut b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice())
        .expect("memory");
    let e = listening.process_new_packets().expect_err("no TLS");
    assert!(
        explain(&e, Side::Server)
            .text
            .contains("the client does not speak TLS")
    );
    let name = server_name(HOST).expect("a name");
    let mut dialling = ClientConnection::new(client.config, name).expect("a client");
    dialling
        .read_tls(&mut b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".as_slice())
        .expect("memory");
    let e = dialling.process_new_packets().expect_err("no TLS");
    let said = explain(&e, Side::Client);
    assert!(
        said.text
            .contains("the server does not speak TLS; check that remote_server")
    );
    assert!(said.lasts);
}

#[test]
fn sessions_are_resumed_until_the_files_change() {
    let ca = ca(ca_params("Good CA"));
    for version in VERSIONS {
        let mut ends = Ends::good(&ca);
        ends.client_min = version;
        let (client, server) = ends.load().expect("good files");
        assert!(
            !shake(&client.config, &server.config, HOST).resumed,
            "{version}"
        );
        let again = shake(&client.config, &server.config, HOST);
        assert!(again.resumed, "{version}");
        // Who it was is known still, and can be looked at again.
        let certificates = again.peer_certificates.expect("recalled");
        let peer = server.admit(Some(&certificates), UnixTime::now());
        assert_eq!(
            peer.expect("admitted").expect("named").names.short(),
            "client1"
        );
        let later = UnixTime::since_unix_epoch(Duration::from_secs(
            UnixTime::now().as_secs() + 101 * DAY.unsigned_abs(),
        ));
        assert_eq!(
            server.admit(Some(&certificates), later),
            Err(Refusal::Ended)
        );

        // The allow list shuts out the client of a session that could be resumed.
        ends.allowed = vec!["somebody-else".to_owned()];
        let (_, strict) = ends.load().expect("good files");
        let refused = shake(&client.config, &strict.config, HOST);
        assert!(!refused.resumed, "{version}");
        let said = refused.server.expect_err("not on the list");
        assert!(said.contains("allowed_client_cns"), "{said}");
        assert!(matches!(
            strict.admit(Some(&certificates), UnixTime::now()),
            Err(Refusal::NotAllowed { .. })
        ));
    }
}

#[test]
fn ends_without_a_common_cipher_say_so() {
    use rustls::crypto::ring::{cipher_suite, default_provider};
    let ca = ca(ca_params("Good CA"));
    let (_, server) = Ends::good(&ca).load().expect("good files");
    // Wants to see an RSA key, and the server's is another.
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a CA");
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(MinVersion::Only12.versions())
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let meeting = shake(&Arc::new(client), &server.config, HOST);
    let said = meeting.server.expect_err("nothing in common");
    assert!(
        said.contains("no cipher, key exchange or kind of signature in common"),
        "{said}"
    );
    let said = meeting.client.expect_err("nothing in common");
    assert!(said.contains("found no cipher in common"), "{said}");
    assert!(meeting.client_lasts);
}

/// What every peer of another make must be able to count on, and what must never be on.
#[test]
fn nothing_beyond_plain_tls_is_offered() {
    let ca = ca(ca_params("Good CA"));
    let (client, server) = Ends::good(&ca).load().expect("good files");
    assert!(client.config.alpn_protocols.is_empty() && server.config.alpn_protocols.is_empty());
    // Early data can be sent again by anybody who saw it.
    assert!(!client.config.enable_early_data);
    assert_eq!(server.config.max_early_data_size, 0);
    assert_eq!(server.config.send_tls13_tickets, 1);
    assert!(client.config.enable_sni);
    assert!(server.config.ticketer.enabled());
}
