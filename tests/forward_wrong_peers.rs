//! The forward tunnel with peers that break one rule each. Here belongs: what the log says on our side, what the peer
//! is told, what the application sees, and that the program goes on.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rig::{
    Ca, End, PATIENCE, Pems, Piped, Program, Service, TempDir, connect, eventually, free_port,
    lasting, port_of, read_end, send, start_forwards, tool, wait_for_listener,
};
use serde_json::{Value, json};

const MIB: u64 = 1024 * 1024;
const DAY: i64 = 24 * 60 * 60;
const BOTH: &[&str] = &["-tls1_2", "-tls1_3"];
const OLD: &[&str] = &["-tls1_2"];
const NEW: &[&str] = &["-tls1_3"];

/// All certificates of this room: what is in a file is what its name says.
fn certificates(dir: &Path) {
    let (ca, other, twin) = (Ca::new("Good CA"), Ca::new("Other CA"), Ca::new("Good CA"));
    std::fs::write(dir.join("ca.crt"), ca.pem()).expect("write");
    std::fs::write(dir.join("other.crt"), other.pem()).expect("write");
    let names = ["tunnel.example", "192.0.2.1"];
    let servers = [
        ("server", ca.server(&names, |_| {})),
        (
            "server-ended",
            ca.server(&names, |p| lasting(p, -10 * DAY, -DAY)),
        ),
        (
            "server-early",
            ca.server(&names, |p| lasting(p, DAY, 10 * DAY)),
        ),
        ("server-other", other.server(&names, |_| {})),
        ("server-twin", twin.server(&names, |_| {})),
        ("server-self", Pems::self_signed(&names)),
        (
            "server-client",
            ca.server(&names, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
        (
            "server-cn",
            ca.server(&[], |p| common_name(p, "tunnel.example")),
        ),
        (
            "server-other-cn",
            ca.server(&[], |p| common_name(p, "other.example")),
        ),
    ];
    let clients = [
        ("client", ca.client("laptop", |_| {})),
        (
            "client-ended",
            ca.client("laptop", |p| lasting(p, -10 * DAY, -DAY)),
        ),
        (
            "client-early",
            ca.client("laptop", |p| lasting(p, DAY, 10 * DAY)),
        ),
        ("client-other", other.client("laptop", |_| {})),
        ("client-twin", twin.client("laptop", |_| {})),
        ("client-self", Pems::self_signed(&["laptop"])),
        (
            "client-server",
            ca.client("laptop", |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
    ];
    for (name, pems) in servers.into_iter().chain(clients) {
        pems.write(dir, name);
    }
}

fn common_name(params: &mut rcgen::CertificateParams, name: &str) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.distinguished_name).push(rcgen::DnType::CommonName, name);
}

fn openssl() -> Command {
    Command::new(tool("openssl", "openssl"))
}

/// A server that is wrong, as our client meets it.
struct WrongServer {
    name: &'static str,
    versions: &'static [&'static str],
    /// Its certificate.
    shows: &'static str,
    /// What else `openssl s_server` is given.
    arguments: &'static [&'static str],
    /// What is special about our client's configuration.
    ours: fn(&mut Value),
    /// What our log says.
    log: &'static str,
}

fn as_it_is(_: &mut Value) {}

fn named(forward: &mut Value, name: &str) {
    forward["remote_server"]["server_hostname"] = name.into();
}

fn shows(forward: &mut Value, name: &str) {
    forward["tls"] =
        json!({ "client_cert": format!("{name}.crt"), "client_key": format!("{name}.key") });
}

const MUTUAL: &[&str] = &["-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt"];

const WRONG_SERVERS: &[WrongServer] = &[
    WrongServer {
        name: "ended",
        versions: BOTH,
        shows: "server-ended",
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the server ended on 20*certs init*clock",
    },
    WrongServer {
        name: "early",
        versions: BOTH,
        shows: "server-early",
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the server is not valid before 20*clock",
    },
    WrongServer {
        name: "other-ca",
        versions: BOTH,
        shows: "server-other",
        arguments: &[],
        ours: as_it_is,
        log: "from none of the CAs in server_ca_cert*from another CA*put the certificate of the CA that signed it into",
    },
    WrongServer {
        name: "twin-ca",
        versions: BOTH,
        shows: "server-twin",
        arguments: &[],
        ours: as_it_is,
        log: "was not signed by the key of the CA it names*somebody pretends",
    },
    WrongServer {
        name: "self-signed",
        versions: BOTH,
        shows: "server-self",
        arguments: &[],
        ours: as_it_is,
        log: "from none of the CAs in server_ca_cert: it is self-signed",
    },
    WrongServer {
        name: "wrong-host",
        versions: BOTH,
        shows: "server",
        arguments: &[],
        ours: |forward| named(forward, "bank.example"),
        log: "is not for bank.example; it is for tunnel.example, 192.0.2.1. Set server_hostname",
    },
    WrongServer {
        name: "wrong-address",
        versions: BOTH,
        shows: "server",
        arguments: &[],
        ours: |forward| named(forward, "192.0.2.2"),
        log: "is not for 192.0.2.2; it is for tunnel.example, 192.0.2.1. Set server_hostname",
    },
    WrongServer {
        name: "other-cn",
        versions: BOTH,
        shows: "server-other-cn",
        arguments: &[],
        ours: as_it_is,
        log: "is not for tunnel.example; it is for CN=other.example.",
    },
    WrongServer {
        name: "clients-purpose",
        versions: BOTH,
        shows: "server-client",
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the server is for another purpose*certs init",
    },
    WrongServer {
        name: "tls-1.1",
        versions: &["-tls1_1"],
        shows: "server",
        arguments: &["-cipher", "DEFAULT:@SECLEVEL=0"],
        ours: as_it_is,
        log: "the server speaks none of our versions of TLS*min_version",
    },
    WrongServer {
        name: "too-old",
        versions: OLD,
        shows: "server",
        arguments: &[],
        ours: |forward| forward["tls"]["min_version"] = "1.3".into(),
        log: "the server speaks none of our versions of TLS*tls.min_version to \"1.2\"",
    },
    WrongServer {
        name: "no-cipher-1.2",
        versions: OLD,
        shows: "server",
        arguments: &["-cipher", "ECDHE-ECDSA-AES256-SHA384"],
        ours: as_it_is,
        log: "the server found no cipher in common",
    },
    WrongServer {
        name: "no-cipher-1.3",
        versions: NEW,
        shows: "server",
        arguments: &["-ciphersuites", "TLS_AES_128_CCM_SHA256"],
        ours: as_it_is,
        log: "the server found no cipher in common",
    },
    WrongServer {
        name: "no-client-cert",
        versions: BOTH,
        shows: "server",
        arguments: MUTUAL,
        ours: as_it_is,
        log: "wants a certificate and was shown none*client_cert and client_key",
    },
    WrongServer {
        name: "client-of-other-ca",
        versions: BOTH,
        shows: "server",
        arguments: MUTUAL,
        ours: |forward| shows(forward, "client-other"),
        log: "the server does not know the CA that signed our certificate (client_cert): the CA must be in its client_ca_cert",
    },
    WrongServer {
        name: "client-ended",
        versions: BOTH,
        shows: "server",
        arguments: MUTUAL,
        ours: |forward| shows(forward, "client-ended"),
        log: "the server says that our certificate (client_cert) has ended*replace it, and compare the clocks",
    },
    WrongServer {
        name: "client-purpose",
        versions: BOTH,
        shows: "server",
        arguments: MUTUAL,
        ours: |forward| shows(forward, "client-server"),
        log: "our certificate (client_cert) is for another purpose",
    },
];

#[test]
fn our_client_says_what_is_wrong_with_a_server() {
    let dir = TempDir::new();
    certificates(dir.path());
    let mut rows = Vec::new();
    let mut forwards = Vec::new();
    let mut servers = Vec::new();
    let mut add = |name: String, shows: &str, arguments: &[&str], ours: fn(&mut Value)| {
        let port = free_port();
        let mut command = openssl();
        command
            .current_dir(dir.path())
            // Whoever gets in sees his lines in reverse.
            .args(["s_server", "-rev", "-accept", &format!("127.0.0.1:{port}")])
            .args([
                "-cert",
                &format!("{shows}.crt"),
                "-key",
                &format!("{shows}.key"),
            ])
            .args(arguments);
        servers.push(Program::start("s_server", &mut command));
        wait_for_listener(port);
        let mut forward = to_server(&name, port);
        ours(&mut forward);
        forwards.push(forward);
    };
    for row in WRONG_SERVERS {
        for version in row.versions {
            let name = format!("{}{version}", row.name);
            let arguments = [&[*version], row.arguments].concat();
            add(name.clone(), row.shows, &arguments, row.ours);
            rows.push((name, row));
        }
    }
    add("good".into(), "server", MUTUAL, |forward| {
        shows(forward, "client");
    });
    add("cn-only".into(), "server-cn", &[], as_it_is);
    let config = json!({ "forwards": forwards });
    let client = start_forwards("client", &dir, &config);

    for (name, row) in rows {
        let start = Instant::now();
        speak_and_be_cut(port_of(&client, &name), &name);
        // Waiting would not mend it: the application is told at once.
        assert!(start.elapsed() < Duration::from_secs(10), "{name}");
        let line = client
            .log
            .wait(&format!(" ERROR *forward {name}: *{}", row.log), PATIENCE);
        assert!(!line.contains("alert"), "in words, please: {line}");
    }

    let answers = |name: &str| {
        let mut stream = connect((Ipv4Addr::LOCALHOST, port_of(&client, name)));
        let mut back = [0; 5];
        stream.write_all(b"ping\n").expect("write");
        stream.read_exact(&mut back).expect("served");
        assert_eq!(&back, b"gnip\n", "{name}");
    };
    answers("cn-only");
    client.log.wait(
        " WARN *the certificate of tunnel.example names it as CN only, without subjectAltName*certs init --host tunnel.example",
        PATIENCE,
    );
    answers("good");
}

/// A forward of our client to the good server behind this port, or to one that should be it.
fn to_server(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "local_listener": { "port": 0 },
        "remote_server": {
            "host": "127.0.0.1",
            "port": port,
            "server_ca_cert": "ca.crt",
            "server_hostname": "tunnel.example",
        },
        "preconnected": 0,
        "timeouts": { "retry_within": 600 },
    })
}

/// An application that has much to say and says it at once: it is cut, and takes that for no end.
fn speak_and_be_cut(port: u16, name: &str) {
    let mut stream = connect((Ipv4Addr::LOCALHOST, port));
    let mut out = stream.try_clone().expect("clone");
    let sender = thread::spawn(move || send(&mut out, 1, MIB));
    let (got, end) = read_end(&mut stream);
    // The system tells of a reset once: whoever asks first.
    let sent = sender.join().expect("no panic");
    let is_cut = end == End::Reset || sent.is_err();
    assert!(
        got.is_empty() && is_cut,
        "{name}: {got:?}, {end:?}, {sent:?}"
    );
}

/// What no file or setting of ours is to blame for passes by itself: the application waits. What is no TLS does not.
#[test]
fn our_client_knows_what_passes_by_itself() {
    let dir = TempDir::new();
    certificates(dir.path());
    let silent = Service::start(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let cutting = Service::start(|_| Ok(()));
    let ssh = Service::greeter(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
    let mut forwards = Vec::new();
    for (name, service) in [("silent", &silent), ("cutting", &cutting), ("ssh", &ssh)] {
        let mut forward = to_server(name, service.port());
        forward["timeouts"] = json!({ "handshake": 0.2, "backoff_min": 0.1, "backoff_max": 0.2, "retry_within": 600 });
        forwards.push(forward);
    }
    let client = start_forwards("client", &dir, &json!({ "forwards": forwards }));
    for (name, service, log) in [
        (
            "silent",
            &silent,
            "no complete TLS handshake in time (timeouts.handshake): *remote_server",
        ),
        (
            "cutting",
            &cutting,
            "the server cut the connection during the TLS handshake: *remote_server",
        ),
    ] {
        let stream = connect((Ipv4Addr::LOCALHOST, port_of(&client, name)));
        client.log.wait(
            &format!(
                " ERROR *forward {name}: 127.0.0.1:*{log}*; next try in *connections that wait=1"
            ),
            PATIENCE,
        );
        eventually(PATIENCE, "a third try", || {
            (service.accepted() >= 3).then_some(())
        });
        stream.set_nonblocking(true).expect("nonblocking");
        let e = (&stream).read(&mut [0]).expect_err("nothing has come");
        assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{name}: it waits");
    }
    speak_and_be_cut(port_of(&client, "ssh"), "ssh");
    client.log.wait(
        " ERROR *forward ssh: *the server does not speak TLS; check that remote_server names the port of a tunnel \
         server; this does not pass by itself code=E1209",
        PATIENCE,
    );
    client.log.wait(
        " WARN *forward ssh: the connection from 127.0.0.1:* is closed at once, as waiting would not help: \
         *does not speak TLS* code=E1209",
        PATIENCE,
    );
}

/// Of several attempts that are under way at once each is told or counted, whatever came of another one a moment ago.
#[test]
fn our_client_tells_of_each_attempt_that_fails() {
    let dir = TempDir::new();
    certificates(dir.path());
    let come = AtomicUsize::new(0);
    let told = Arc::new(AtomicBool::new(false));
    let peer = {
        let told = told.clone();
        Service::start(move |mut stream| {
            // One is cut when all are there, the others get another answer after that.
            let first = come.fetch_add(1, SeqCst) == 0;
            eventually(PATIENCE, "all of them", || {
                (if first {
                    come.load(SeqCst) >= 4
                } else {
                    told.load(SeqCst)
                })
                .then_some(())
            });
            if first {
                return Ok(());
            }
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        })
    };
    let mut forward = to_server("peer", peer.port());
    forward["timeouts"] = json!({ "backoff_min": 300, "backoff_max": 300, "retry_within": 600 });
    let client = start_forwards("client", &dir, &json!({ "forwards": [forward] }));
    let visitors = [(); 4].map(|()| connect((Ipv4Addr::LOCALHOST, port_of(&client, "peer"))));
    client.log.wait(
        " ERROR *the server cut the connection *; next try in * code=E1210",
        PATIENCE,
    );
    told.store(true, SeqCst);
    client.log.wait(
        " ERROR *the server does not speak TLS* code=E1209",
        PATIENCE,
    );
    client.log.wait(
        " WARN *is closed at once, as waiting would not help: *does not speak TLS* code=E1209",
        PATIENCE,
    );
    drop(visitors);
}

/// A client that is wrong, as our server meets it.
struct WrongClient {
    name: &'static str,
    versions: &'static [&'static str],
    /// Its certificate.
    shows: Option<&'static str>,
    /// What else `openssl s_client` is given.
    arguments: &'static [&'static str],
    /// What is special about our server's configuration.
    ours: fn(&mut Value),
    /// What our log says.
    log: &'static str,
    /// What the client is told.
    told: &'static str,
}

const WRONG_CLIENTS: &[WrongClient] = &[
    WrongClient {
        name: "none",
        versions: BOTH,
        shows: None,
        arguments: &[],
        ours: as_it_is,
        log: "the client shows no certificate, and client_ca_cert wants one*certs client NAME",
        told: "alert ",
    },
    WrongClient {
        name: "other-ca",
        versions: BOTH,
        shows: Some("client-other"),
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the client is from none of the CAs in client_ca_cert",
        told: "alert unknown ca",
    },
    WrongClient {
        name: "twin-ca",
        versions: BOTH,
        shows: Some("client-twin"),
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the client was not signed by the key of the CA it names",
        told: "alert decrypt error",
    },
    WrongClient {
        name: "self-signed",
        versions: BOTH,
        shows: Some("client-self"),
        arguments: &[],
        ours: as_it_is,
        log: "from none of the CAs in client_ca_cert: it is self-signed",
        told: "alert unknown ca",
    },
    WrongClient {
        name: "ended",
        versions: BOTH,
        shows: Some("client-ended"),
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the client ended on 20*certs client NAME*clock",
        told: "alert certificate expired",
    },
    WrongClient {
        name: "early",
        versions: BOTH,
        shows: Some("client-early"),
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the client is not valid before 20*clock",
        told: "alert certificate expired",
    },
    WrongClient {
        name: "servers-purpose",
        versions: BOTH,
        shows: Some("client-server"),
        arguments: &[],
        ours: as_it_is,
        log: "the certificate of the client is for another purpose*certs client NAME",
        told: "alert unsupported certificate",
    },
    WrongClient {
        name: "not-allowed",
        versions: BOTH,
        shows: Some("client"),
        arguments: &[],
        ours: |forward| forward["tls"]["allowed_client_cns"] = json!(["desktop"]),
        log: "it names CN=laptop, and none of that is in allowed_client_cns (desktop); add one of these names",
        told: "alert certificate unknown",
    },
    WrongClient {
        name: "tls-1.1",
        versions: &["-tls1_1"],
        shows: Some("client"),
        arguments: &["-cipher", "DEFAULT:@SECLEVEL=0"],
        ours: as_it_is,
        log: "the client speaks no version of TLS that min_version allows here; bring it up to date",
        told: "alert handshake failure",
    },
    WrongClient {
        name: "too-old",
        versions: OLD,
        shows: Some("client"),
        arguments: &[],
        ours: |forward| forward["tls"]["min_version"] = "1.3".into(),
        log: "the client speaks no version of TLS that min_version allows here*set tls.min_version to \"1.2\" on this side",
        told: "alert protocol version",
    },
    WrongClient {
        name: "no-cipher-1.2",
        versions: OLD,
        shows: Some("client"),
        arguments: &["-cipher", "ECDHE-ECDSA-AES256-SHA384"],
        ours: as_it_is,
        log: "the client and we have no cipher, key exchange or kind of signature in common",
        told: "alert handshake failure",
    },
    WrongClient {
        name: "no-cipher-1.3",
        versions: NEW,
        shows: Some("client"),
        arguments: &["-ciphersuites", "TLS_AES_128_CCM_SHA256"],
        ours: as_it_is,
        log: "the client and we have no cipher, key exchange or kind of signature in common",
        told: "alert handshake failure",
    },
    WrongClient {
        name: "no-group",
        versions: BOTH,
        shows: Some("client"),
        arguments: &["-groups", "P-521"],
        ours: as_it_is,
        log: "the client and we have no cipher, key exchange or kind of signature in common",
        told: "alert handshake failure",
    },
];

fn our_server(
    dir: &TempDir,
    target: u16,
    rows: impl IntoIterator<Item = (String, fn(&mut Value))>,
    also: impl Fn(&mut Value),
) -> Program {
    let forwards: Vec<_> = rows
        .into_iter()
        .map(|(name, change)| {
            let mut forward = json!({
                "name": name,
                "server_listener": { "host": "127.0.0.1", "port": 0 },
                "target_service": { "host": "127.0.0.1", "port": target },
                "tls": {
                    "server_cert": "server.crt",
                    "server_key": "server.key",
                    "client_ca_cert": "ca.crt",
                },
            });
            change(&mut forward);
            also(&mut forward);
            forward
        })
        .collect();
    start_forwards("server", dir, &json!({ "forwards": forwards }))
}

#[test]
fn our_server_says_what_is_wrong_with_a_client() {
    let dir = TempDir::new();
    certificates(dir.path());
    let echo = Service::echo();
    let rows: Vec<_> = (WRONG_CLIENTS.iter())
        .flat_map(|row| {
            row.versions
                .iter()
                .map(move |version| (format!("{}{version}", row.name), *version, row))
        })
        .collect();
    let forwards = rows.iter().map(|(name, _, row)| (name.clone(), row.ours));
    let forwards = forwards.chain([("good".to_owned(), as_it_is as fn(&mut Value))]);
    let server = our_server(&dir, echo.port(), forwards, |_| {});
    let s_client = |forward: &str, shows: Option<&str>, arguments: &[&str]| {
        let mut command = openssl();
        command
            .current_dir(dir.path())
            .args([
                "s_client",
                "-quiet",
                "-CAfile",
                "ca.crt",
                "-verify_return_error",
            ])
            .args([
                "-connect",
                &format!("127.0.0.1:{}", port_of(&server, forward)),
            ])
            .args(arguments);
        if let Some(shows) = shows {
            command.args([
                "-cert",
                &format!("{shows}.crt"),
                "-key",
                &format!("{shows}.key"),
            ]);
        }
        Piped::start(&mut command)
    };
    for (name, version, row) in &rows {
        let arguments = [&[*version], row.arguments].concat();
        let mut client = s_client(name, row.shows, &arguments);
        let (got, _) = read_end(&mut client);
        assert_eq!(got, b"", "{name}");
        assert!(!client.wait_exit(PATIENCE).success(), "{name}");
        client.errors.wait(row.told, PATIENCE);
        let line = server.log.wait(
            &format!(
                " WARN *forward {name}: connection from 127.0.0.1:*{}",
                row.log
            ),
            PATIENCE,
        );
        assert!(!line.contains("alert"), "in words, please: {line}");
    }
    assert_eq!(echo.accepted(), 0, "nobody of them has reached the target");

    for version in BOTH {
        let mut client = s_client("good", Some("client"), &[version]);
        let mut stdin = client.take_stdin();
        stdin.write_all(b"ping").expect("write");
        let mut back = [0; 4];
        client.read_exact(&mut back).expect("served");
        assert_eq!(&back, b"ping");
    }
}

/// Who refuses is ours as well: both logs say why, and the target hears of nobody.
#[test]
fn our_server_refuses_our_client_and_both_say_why() {
    /// Name, certificate, who is allowed, the server's log, the client's log.
    type Row = (
        &'static str,
        Option<&'static str>,
        &'static str,
        &'static str,
        &'static str,
    );
    const ROWS: &[Row] = &[
        (
            "none",
            None,
            "",
            "the client shows no certificate",
            "the server wants a certificate and was shown none: configure client_cert and client_key",
        ),
        (
            "other-ca",
            Some("client-other"),
            "",
            "from none of the CAs in client_ca_cert",
            "the server does not know the CA that signed our certificate (client_cert)",
        ),
        (
            "ended",
            Some("client-ended"),
            "",
            "the certificate of the client ended on 20",
            "the server says that our certificate (client_cert) has ended",
        ),
        (
            "purpose",
            Some("client-server"),
            "",
            "the certificate of the client is for another purpose",
            "our certificate (client_cert) is for another purpose",
        ),
        (
            "not-allowed",
            Some("client"),
            "desktop",
            "none of that is in allowed_client_cns (desktop)",
            "the server refuses our certificate (client_cert): its name is probably not in allowed_client_cns there",
        ),
    ];
    let dir = TempDir::new();
    certificates(dir.path());
    let echo = Service::echo();
    let rows = ROWS
        .iter()
        .map(|row| (row.0.to_owned(), as_it_is as fn(&mut Value)));
    let server = our_server(
        &dir,
        echo.port(),
        rows.chain([("good".into(), as_it_is as _)]),
        |forward| {
            let row = ROWS.iter().find(|row| forward["name"] == row.0);
            if let Some(row) = row.filter(|row| !row.2.is_empty()) {
                forward["tls"]["allowed_client_cns"] = json!([row.2]);
            }
        },
    );
    let mut forwards = Vec::new();
    // With nothing ready the connection that is refused is an application's; with something ready it is nobody's.
    for ready in [0, 2] {
        for row in ROWS {
            let mut forward = to_server(&format!("{}-{ready}", row.0), port_of(&server, row.0));
            forward["preconnected"] = ready.into();
            if let Some(name) = row.1 {
                shows(&mut forward, name);
            }
            forwards.push(forward);
        }
    }
    let mut good = to_server("good", port_of(&server, "good"));
    shows(&mut good, "client");
    forwards.push(good);
    let client = start_forwards("client", &dir, &json!({ "forwards": forwards }));
    for row in ROWS {
        for ready in [0, 2] {
            let name = format!("{}-{ready}", row.0);
            let error = format!(" ERROR *forward {name}: 127.0.0.1:*{}", row.4);
            if ready > 0 {
                client.log.wait(&error, PATIENCE);
            }
            speak_and_be_cut(port_of(&client, &name), &name);
            client.log.wait(&error, PATIENCE);
        }
        let warning = format!(
            " WARN *forward {}: connection from 127.0.0.1:*{}",
            row.0, row.3
        );
        server.log.wait(&warning, PATIENCE);
    }
    let mut stream = connect((Ipv4Addr::LOCALHOST, port_of(&client, "good")));
    stream.write_all(b"ping").expect("write");
    stream.read_exact(&mut [0; 4]).expect("served");
}
