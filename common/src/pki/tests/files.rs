//! Loading, names, following, ends, making.

use super::*;
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;

fn names_of(params: CertificateParams) -> Names {
    let cert = params.self_signed(&key()).expect("signed");
    Names::of(cert.der()).expect("names")
}

#[test]
fn the_allow_list_compares_each_kind_of_name_in_its_way() {
    let mut params = params("Client One");
    params.subject_alt_names = vec![
        rcgen::SanType::DnsName("Host.example.com".try_into().expect("ASCII")),
        rcgen::SanType::IpAddress("2001:db8::1".parse().expect("an address")),
        rcgen::SanType::URI("spiffe://example.com/One".try_into().expect("ASCII")),
        rcgen::SanType::Rfc822Name("One@example.com".try_into().expect("ASCII")),
    ];
    let names = names_of(params);
    assert_eq!(
        names.to_string(),
        "CN=Client One, DNS:Host.example.com, URI:spiffe://example.com/One, email:One@example.com, IP:2001:db8::1"
    );
    for (entry, admitted) in [
        ("Client One", true),
        ("client one", false),
        ("Client", false),
        ("host.EXAMPLE.com", true),
        ("example.com", false),
        ("*.example.com", false),
        ("2001:DB8:0:0::1", true),
        ("2001:db8::2", false),
        ("spiffe://example.com/One", true),
        ("spiffe://example.com/one", false),
        ("One@example.com", true),
        ("one@example.com", false),
    ] {
        let list = AllowedNames::new(["nobody", entry]).expect("a list");
        assert_eq!(list.admits(&names), admitted, "{entry}");
    }
    assert!(
        AllowedNames::everybody().admits(&names),
        "no list admits all"
    );
    let nobody = AllowedNames::new(Vec::<String>::new()).expect("a list");
    assert!(!nobody.admits(&names), "an empty one admits nobody");
    let said = AllowedNames::new(["good", " "])
        .expect_err("empty")
        .to_string();
    assert!(said.contains("entry 2 of allowed_client_cns"), "{said}");
}

#[test]
fn a_name_cannot_break_a_log_line() {
    let names = names_of(params("evil\n2026-01-01 INFO all is well"));
    assert_eq!(names.short(), "evil\\n2026-01-01 INFO all is well");
    assert!(!names.to_string().contains('\n'));
    let long = names_of(params(&"x".repeat(500)));
    assert!(long.short().len() < 130);
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_option() {
    let ca = ca(ca_params("Good CA"));
    let said = |change: fn(&mut Ends)| {
        let mut ends = Ends::good(&ca);
        change(&mut ends);
        ends.load().expect_err("not usable").to_string()
    };
    for (change, wanted) in [
        (
            (|ends: &mut Ends| ends.server_cert = String::new()) as fn(&mut Ends),
            "nothing that begins with -----BEGIN",
        ),
        (
            |ends| ends.server_key = ends.server_cert.clone(),
            "server_key",
        ),
        (
            |ends| ends.server_cert = ends.server_cert.replace("MII", "M!I"),
            "its PEM text is damaged",
        ),
        (
            |ends| ends.server_ca = ends.server_ca.replace("MII", "AAA"),
            "certificate 1 in it is damaged",
        ),
        (
            |ends| ends.server_key = KeyPair::generate().expect("a key").serialize_pem(),
            "does not belong to the first certificate",
        ),
        (
            |ends| {
                ends.client_ca = None;
                ends.allowed = vec!["client1".to_owned()];
            },
            "allowed_client_cns is configured without client_ca_cert",
        ),
        (
            |ends| ends.allowed = vec![String::new()],
            "entry 1 of allowed_client_cns is empty",
        ),
    ] {
        let said = said(change);
        assert!(said.contains(wanted), "{said:?}, not {wanted:?}");
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("ca.crt");
    files_private(&path, &ca.pem());
    let half = ClientSettings {
        server_ca: path,
        cert: Some("client.crt".into()),
        key: None,
        min_version: MinVersion::Tls12,
    };
    let said = ClientTls::load(&half).expect_err("half a pair").to_string();
    assert!(
        said.starts_with("client_cert is configured without client_key"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn a_key_that_others_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    assert_eq!(site.tls().warnings, Vec::<String>::new());
    fs::set_permissions(&site.settings.key, fs::Permissions::from_mode(0o644)).expect("mode");
    let warnings = site.tls().warnings;
    assert!(warnings[0].contains("chmod 600"), "{warnings:?}");
}

/// A server's files in a folder.
struct Site {
    ca: Ca,
    settings: ServerSettings,
    allowed: PathBuf,
    _scratch: Scratch,
}

impl Site {
    fn new() -> Self {
        let ca = ca(ca_params("Good CA"));
        let scratch = Scratch::new();
        let at = |name: &str| scratch.path().join(name);
        let ends = Ends::good(&ca);
        files_private(&at("server.crt"), &ends.server_cert);
        files_private(&at("server.key"), &ends.server_key);
        files_private(&at("ca.crt"), &ca.pem());
        files_private(&at("allowed.txt"), "# everybody's name\nclient1\n");
        Self {
            settings: ServerSettings {
                cert: at("server.crt"),
                key: at("server.key"),
                client_ca: Some(at("ca.crt")),
                allowed: Vec::new(),
                allowed_file: Some(at("allowed.txt")),
                min_version: MinVersion::Tls12,
            },
            ca,
            allowed: at("allowed.txt"),
            _scratch: scratch,
        }
    }

    #[cfg(unix)]
    fn tls(&self) -> ServerTls {
        ServerTls::load(&self.settings).expect("good files")
    }

    fn follower(&self) -> Follower<ServerTls> {
        Follower::load(self.settings.clone()).expect("good files")
    }

    fn client(&self) -> Arc<ClientConfig> {
        let (client, _) = Ends::good(&self.ca).load().expect("good files");
        client.config
    }
}

#[test]
fn changed_files_come_into_force_at_the_second_look() {
    let site = Site::new();
    let mut follower = site.follower();
    let current = follower.current();
    let (first, client) = (current.get(), site.client());
    assert!(matches!(follower.look(), Look::Unchanged));
    assert_eq!(shake(&client, &first.config, HOST).server, Ok(()));

    files_private(&site.allowed, "client2\n");
    assert!(matches!(follower.look(), Look::Settling));
    assert!(Arc::ptr_eq(&first, &current.get()), "not yet");
    assert!(matches!(follower.look(), Look::Changed));
    assert!(matches!(follower.look(), Look::Unchanged));
    let said = shake(&client, &current.get().config, HOST).server;
    assert!(said.expect_err("not on the list").contains("(client2)"));
    // Whoever holds the old one goes on with it.
    assert_eq!(shake(&client, &first.config, HOST).server, Ok(()));

    // Nobody's name: a list that somebody has cut off opens no doors.
    files_private(&site.allowed, "# none\n");
    assert!(matches!(follower.look(), Look::Settling));
    assert!(matches!(follower.look(), Look::Changed));
    let said = shake(&client, &current.get().config, HOST).server;
    assert!(said.is_err(), "{said:?}");

    // A list in the configuration comes the other way.
    let mut settings = site.settings;
    settings.allowed = vec!["client1".to_owned()];
    follower.set(settings).expect("good");
    assert_eq!(shake(&client, &current.get().config, HOST).server, Ok(()));
    assert!(matches!(follower.look(), Look::Unchanged));
}

#[test]
fn a_bad_new_content_keeps_the_old_one_and_is_said_once() {
    let site = Site::new();
    let mut follower = site.follower();
    let first = follower.current().get();

    // A renewal in two steps: certificate first, key later.
    let next = Ends::good(&site.ca);
    files_private(&site.settings.cert, &next.server_cert);
    assert!(matches!(follower.look(), Look::Settling));
    let Look::Bad(e) = follower.look() else {
        panic!("the old key does not fit");
    };
    assert!(e.to_string().contains("does not belong"), "{e}");
    assert!(matches!(follower.look(), Look::Unchanged), "said once");
    assert!(Arc::ptr_eq(&first, &follower.current().get()));

    fs::remove_file(&site.settings.key).expect("removed");
    assert!(matches!(follower.look(), Look::Settling));
    let Look::Bad(e) = follower.look() else {
        panic!("no key at all");
    };
    assert!(e.to_string().contains("does not exist"), "{e}");
    assert!(Arc::ptr_eq(&first, &follower.current().get()));

    files_private(&site.settings.key, &next.server_key);
    assert!(matches!(follower.look(), Look::Settling));
    assert!(matches!(follower.look(), Look::Changed));
    assert!(!Arc::ptr_eq(&first, &follower.current().get()));
}

#[test]
fn ends_are_told_thirty_days_ahead_once_a_day() {
    let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
    let one = Validity {
        what: "server_cert server.crt".to_owned(),
        from: 100 * 86_400,
        until: 200 * 86_400,
    };
    let said = |days| one.at(at(days)).map(|expiry| expiry.to_string());
    assert!(
        said(99)
            .expect("early")
            .contains("is not valid before 1970-04-11")
    );
    assert_eq!(said(100), None);
    assert_eq!(said(170), None);
    assert_eq!(
        said(171).expect("soon"),
        "server_cert server.crt ends on 1970-07-20, in 29 days: replace it before (the new file is taken up while running)"
    );
    assert!(
        said(201)
            .expect("over")
            .contains("ended on 1970-07-20: peers refuse it")
    );

    let all = [one];
    let mut watch = ExpiryWatch::default();
    assert_eq!(watch.due(&all, at(180)).len(), 1);
    assert_eq!(watch.due(&all, at(180)).len(), 0, "said today");
    assert_eq!(watch.due(&all, at(181)).len(), 1);
    watch.again();
    assert_eq!(watch.due(&all, at(181)).len(), 1, "new certificates");
}

#[test]
fn every_file_of_a_side_has_its_end_watched() {
    let (client, server) = Ends::good(&ca(ca_params("Good CA")))
        .load()
        .expect("good files");
    let what = |validities: &[Validity]| -> Vec<String> {
        let option = |one: &Validity| one.what.split(' ').next().unwrap_or("").to_owned();
        validities.iter().map(option).collect()
    };
    assert_eq!(what(&client.validities), ["server_ca_cert", "client_cert"]);
    assert_eq!(what(&server.validities), ["server_cert", "client_ca_cert"]);
}

#[test]
fn versions_are_read_in_other_spellings_too() {
    for text in ["1.2", "TLSv1.2", "tls 1.2", "TLS1.2"] {
        assert_eq!(text.parse(), Ok(MinVersion::Tls12), "{text}");
    }
    assert_eq!("1.3".parse(), Ok(MinVersion::Tls13));
    for text in ["1.1", "", "SSLv3", "13"] {
        assert_eq!(text.parse::<MinVersion>(), Err(MinVersionError), "{text}");
    }
}

#[test]
fn made_certificates_meet() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("certs");
    let now = UnixTime::now();
    let address: IpAddr = "192.0.2.9".parse().expect("an address");
    let hosts = [HOST.to_owned(), "::1".to_owned()];
    make::init(&folder, &hosts, &[address], now).expect("made");
    make::client(&folder, "alice", now).expect("made");
    make::client(&folder, "bob@example.com", now).expect("made");

    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("made");
    for version in VERSIONS {
        for (client, shown) in [
            ("alice", "CN=alice, DNS:alice"),
            (
                "bob@example.com",
                "CN=bob@example.com, email:bob@example.com",
            ),
        ] {
            for name in [HOST, "::1", "192.0.2.9"] {
                let ends = Ends {
                    server_cert: read("server.crt"),
                    server_key: read("server.key"),
                    client_ca: Some(read("ca.crt")),
                    allowed: vec![client.to_owned()],
                    server_min: MinVersion::Tls12,
                    server_ca: read("ca.crt"),
                    client: Some((
                        read(&format!("{client}.crt")),
                        read(&format!("{client}.key")),
                    )),
                    client_min: version,
                    name: name.to_owned(),
                };
                let meeting = ends.meet();
                assert_eq!(
                    (&meeting.client, &meeting.server),
                    (&Ok(()), &Ok(())),
                    "{name}"
                );
                assert_eq!(meeting.peer.expect("named").names.to_string(), shown);
            }
        }
    }
    let days = |name: &str| {
        let cert = load::certificates(
            load::Origin {
                option: "x",
                path: &folder,
            },
            read(name).as_bytes(),
        )
        .expect("a certificate");
        let validity = Validity::of(String::new(), &cert[0]).expect("dates");
        (validity.until - validity.from).div_ceil(86_400)
    };
    assert_eq!(days("ca.crt"), 3652);
    assert_eq!((days("server.crt"), days("alice.crt")), (825, 825));
    #[cfg(unix)]
    for key in ["ca.key", "server.key", "alice.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder.join(key))
            .expect("made")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn nothing_is_overwritten_and_bad_names_are_refused() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    let now = UnixTime::now();
    let hosts = [HOST.to_owned()];
    let said = make::client(folder, "alice", now)
        .expect_err("no CA")
        .to_string();
    assert!(said.contains("ca.crt does not exist"), "{said}");
    assert!(said.contains("certs init --host NAME"), "{said}");

    fs::write(folder.join("server.key"), "precious").expect("written");
    let said = make::init(folder, &hosts, &[], now)
        .expect_err("taken")
        .to_string();
    assert!(
        said.contains("server.key exists already and is left as it is"),
        "{said}"
    );
    assert_eq!(scratch.names(), ["server.key"], "nothing half-done");
    fs::remove_file(folder.join("server.key")).expect("removed");

    make::init(folder, &hosts, &[], now).expect("made");
    let before = fs::read(folder.join("ca.key")).expect("made");
    make::init(folder, &hosts, &[], now).expect_err("taken");
    assert_eq!(
        fs::read(folder.join("ca.key")).expect("still there"),
        before
    );
    make::client(folder, "alice", now).expect("made");
    make::client(folder, "alice", now).expect_err("taken");
    for name in [
        "",
        "../alice",
        "a/b",
        "a\\b",
        ".hidden",
        "-x",
        "CA",
        "Server",
        "x.",
        "a b",
        // Devices of Windows, whatever follows the point.
        "con",
        "NUL",
        "prn.example.com",
        "Aux.laptop",
        "com1",
        "LPT9.office.example.com",
        &"x".repeat(65),
    ] {
        let e = make::client(folder, name, now).expect_err(name);
        assert!(matches!(e, make::MakeError::Name(..)), "{name:?}: {e}");
    }
    for name in ["console", "com10", "com", "lpt.1", "my-con", "x.con"] {
        make::client(folder, name, now).expect(name);
    }
    for hosts in [vec![], vec!["no host".to_owned()], vec![String::new()]] {
        let e = make::init(&folder.join("new"), &hosts, &[], now).expect_err("no name");
        assert!(matches!(e, make::MakeError::Name(..)), "{hosts:?}: {e}");
    }
    assert!(!folder.join("new").exists());

    // The old certificate of the server is out of the way, its CA is not.
    for end in ["crt", "key"] {
        fs::remove_file(folder.join(format!("server.{end}"))).expect("removed");
    }
    let said = make::init(folder, &hosts, &[], now).expect_err("taken");
    assert!(
        said.to_string()
            .contains("`minitcptunnel-server certs server --host NAME`"),
        "{said}"
    );
    make::server(folder, &hosts, &[], now).expect("made");
    make::server(folder, &hosts, &[], now).expect_err("taken");

    // A CA whose time is over, and a certificate that is none.
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 3653 * 86_400));
    let said = make::client(folder, "bob", later)
        .expect_err("over")
        .to_string();
    assert!(said.contains("its time is over"), "{said}");
    for end in ["crt", "key"] {
        fs::rename(
            folder.join(format!("alice.{end}")),
            folder.join(format!("ca.{end}")),
        )
        .expect("renamed");
    }
    let said = make::client(folder, "bob", now)
        .expect_err("no CA")
        .to_string();
    assert!(said.contains("it is not a CA"), "{said}");
}

/// A certificate made near the end of its CA ends with it: a longer life would be a lie.
#[test]
fn nothing_outlives_its_ca() {
    let scratch = Scratch::new();
    let now = UnixTime::now();
    make::init(scratch.path(), &[HOST.to_owned()], &[], now).expect("made");
    let late = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 3600 * 86_400));
    let made = make::client(scratch.path(), "late", late).expect("made");
    let end = |path: PathBuf| {
        let pem = fs::read_to_string(path).expect("made");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let cert = CertificateDer::from(pem.contents);
        Validity::of(String::new(), &cert).expect("dates").until
    };
    assert_eq!(end(made.cert), end(scratch.path().join("ca.crt")));
}

#[test]
fn a_common_name_counts_only_where_no_list_of_names_is() {
    let host = server_name(HOST).expect("a name");
    assert!(names_of(params(HOST)).is_common_name_of(&host));
    // An empty list, a damaged one, and two of them.
    for lists in [
        &[&[0x30, 0][..]][..],
        &[&[0x30, 3, 0x82, 5, b'a']],
        &[&[0x30, 3, 0x82, 1, b'a'], &[0x30, 3, 0x82, 1, b'a']],
    ] {
        let mut params = params(HOST);
        for list in lists {
            let list = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], list.to_vec());
            params.custom_extensions.push(list);
        }
        let names = names_of(params);
        assert!(names.has_alternatives(), "{lists:?}");
        assert!(!names.is_common_name_of(&host), "{lists:?}");
    }
}
