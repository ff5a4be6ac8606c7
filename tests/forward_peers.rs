//! The forward tunnel with other people's TLS at one end. Here belongs: every program that people have at hand, with
//! both versions of TLS, each kind of key, with and without client certificates. A program that is missing is a
//! failure that says what to install.
//!
//! ```text
//!  near ──> peer ══ TLS ══> our server ──> far          near: sends, reads, ends first
//!  near ──> our client ══ TLS ══> peer ──> far          far:  sends, reads, waits for the end, ends
//! ```

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rig::{
    Bytes, End, PATIENCE, Piped, Program, Service, TempDir, connect, eventually, free_port, nginx,
    ok, pems_by_openssl, port_of, read_end, send, start_forwards, tool, wait_for_listener,
};
use serde_json::{Value, json};

/// What goes each way, in bytes.
const N: u64 = 300 * 1024;
/// The seeds of what goes each way.
const TO_FAR: u64 = 1;
const FROM_FAR: u64 = 2;

/// Keys, as openssl makes them. The client's certificate of the first is the documents' own: X.509 version 1.
const KINDS: [(&str, &str); 3] = [
    ("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"),
    ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
    ("ed25519", "-algorithm ed25519"),
];

/// A row of the matrix.
#[derive(Clone, Copy)]
struct Row {
    /// `1.2` or `1.3`: what the other program is held to.
    version: &'static str,
    kind: &'static str,
    /// Whether the client must show a certificate, and does.
    mutual: bool,
}

impl Row {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for version in ["1.2", "1.3"] {
            for (kind, _) in KINDS {
                for mutual in [true, false] {
                    all.push(Self {
                        version,
                        kind,
                        mutual,
                    });
                }
            }
        }
        all
    }

    /// The name of the forward of our server that serves it: it takes both versions.
    fn ours(self) -> String {
        let mutual = if self.mutual { "mutual" } else { "open" };
        format!("{}-{mutual}", self.kind)
    }

    fn file(self, dir: &Path, name: &str) -> String {
        dir.join(self.kind).join(name).display().to_string()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.version, self.ours())
    }
}

/// A folder with the certificates of every kind: `rsa/ca.crt` and so on.
fn certificates() -> TempDir {
    let dir = TempDir::new();
    thread::scope(|all| {
        for (kind, algorithm) in KINDS {
            let folder = dir.join(kind);
            all.spawn(move || pems_by_openssl(&folder, algorithm, kind == "rsa"));
        }
    });
    let text = ok(Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(dir.join("rsa/client.crt")));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("Version: 1 (0x0)"), "the recipe's: {text}");
    dir
}

/// The service behind the tunnel, and how many connections went and ended as they should.
struct Far {
    service: Service,
    good: Arc<AtomicUsize>,
}

impl Far {
    fn start() -> Self {
        let good = Arc::new(AtomicUsize::new(0));
        let count = good.clone();
        let service = Service::start(move |mut stream| {
            let mut out = stream.try_clone()?;
            let sender = thread::spawn(move || send(&mut out, FROM_FAR, N));
            Bytes::new(TO_FAR).expect(&mut stream, N)?;
            sender.join().expect("no panic")?;
            if read_end(&mut stream) == (vec![], End::Clean) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            stream.shutdown(Shutdown::Write)
        });
        Self { service, good }
    }

    /// One more has gone well, all of it.
    fn expect_good(&self, number: usize, row: impl fmt::Display) {
        eventually(
            PATIENCE,
            &format!("{row}: a clean end at the far side"),
            || (self.good.load(Ordering::SeqCst) == number).then_some(()),
        );
    }
}

/// The near side: all of it both ways, then our end, then the other.
fn near<W: Write + Send + 'static>(
    reader: &mut impl Read,
    mut writer: W,
    end: impl FnOnce(W),
    row: impl fmt::Display,
) {
    let sender = thread::spawn(move || send(&mut writer, TO_FAR, N).map(|()| writer));
    let got = Bytes::new(FROM_FAR).expect(reader, N);
    got.unwrap_or_else(|e| panic!("{row}: what came back: {e}"));
    let writer = sender.join().expect("no panic");
    end(writer.unwrap_or_else(|e| panic!("{row}: what went there: {e}")));
    assert_eq!(read_end(reader), (vec![], End::Clean), "{row}");
}

fn near_by_tcp(port: u16, row: impl fmt::Display) {
    let mut stream = connect((Ipv4Addr::LOCALHOST, port));
    let writer = stream.try_clone().expect("clone");
    let end = |stream: TcpStream| stream.shutdown(Shutdown::Write).expect("end");
    near(&mut stream, writer, end, row);
}

fn near_by_pipes(mut peer: Piped, row: impl fmt::Display) {
    let stdin = peer.take_stdin();
    near(&mut peer, stdin, drop, &row);
    let status = peer.wait_exit(PATIENCE);
    assert!(status.success(), "{row}: {status}");
}

/// Our server with a forward for each kind of key, mutual and not.
struct OurServer {
    dir: TempDir,
    program: Program,
}

impl OurServer {
    fn start(target: u16) -> Self {
        let dir = certificates();
        let forwards: Vec<Value> = Row::all()
            .into_iter()
            .filter(|row| row.version == "1.2")
            .map(|row| {
                json!({
                    "name": row.ours(),
                    "server_listener": { "host": "127.0.0.1", "port": 0 },
                    "target_service": { "host": "127.0.0.1", "port": target },
                    "tls": {
                        "server_cert": row.file(dir.path(), "server.crt"),
                        "server_key": row.file(dir.path(), "server.key"),
                        "client_ca_cert": if row.mutual { row.file(dir.path(), "ca.crt") } else { String::new() },
                        "allowed_client_cns": if row.mutual { vec!["your.client.id"] } else { vec![] },
                    },
                })
            })
            .collect();
        let program = start_forwards("server", &dir, &json!({ "forwards": forwards }));
        Self { dir, program }
    }

    fn port(&self, row: Row) -> u16 {
        port_of(&self.program, &row.ours())
    }

    fn file(&self, row: Row, name: &str) -> String {
        row.file(self.dir.path(), name)
    }

    /// The connections of all rows are in the log, with the client's name, and none was cut.
    fn expect_ends(&self, each: usize) {
        for row in Row::all() {
            let client = if row.mutual {
                "\"your.client.id\""
            } else {
                "-"
            };
            let what = format!(
                "ended forward={} * client={client} *finished by=",
                row.ours()
            );
            eventually(PATIENCE, &what, || {
                (self.program.log.count(0, &what) == 2 * each).then_some(())
            });
        }
        assert_eq!(self.program.log.count(0, "failed by="), 0);
    }
}

fn tls_flag(row: Row) -> &'static str {
    match row.version {
        "1.2" => "-tls1_2",
        _ => "-tls1_3",
    }
}

#[test]
fn s_client_to_our_server() {
    let far = Far::start();
    let server = OurServer::start(far.service.port());
    for (n, row) in Row::all().into_iter().enumerate() {
        let mut command = Command::new(tool("openssl", "openssl"));
        command
            .args([
                "s_client",
                "-quiet",
                "-no_ign_eof",
                "-nocommands",
                tls_flag(row),
            ])
            .args(["-connect", &format!("127.0.0.1:{}", server.port(row))])
            .args(["-servername", "localhost", "-verify_hostname", "localhost"])
            .args([
                "-verify_return_error",
                "-CAfile",
                &server.file(row, "ca.crt"),
            ]);
        if row.mutual {
            command.args(["-cert", &server.file(row, "client.crt")]);
            command.args(["-key", &server.file(row, "client.key")]);
        }
        near_by_pipes(Piped::start(&mut command), row);
        far.expect_good(n + 1, row);
    }
    server.expect_ends(1);
}

/// When the service ends first, openssl sees an end of TLS, and not only one of TCP.
#[test]
fn s_client_sees_the_end_of_our_server() {
    let far = Service::start(|mut stream| {
        send(&mut stream, FROM_FAR, N)?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let server = OurServer::start(far.port());
    for row in Row::all().into_iter().filter(|row| !row.mutual) {
        let mut command = Command::new(tool("openssl", "openssl"));
        command
            .args(["s_client", "-quiet", tls_flag(row)])
            .args(["-connect", &format!("127.0.0.1:{}", server.port(row))])
            .args(["-CAfile", &server.file(row, "ca.crt")]);
        let mut client = Piped::start(&mut command);
        let got = Bytes::new(FROM_FAR).expect(&mut client, N);
        got.unwrap_or_else(|e| panic!("{row}: {e}"));
        assert_eq!(read_end(&mut client), (vec![], End::Clean), "{row}");
        client.wait_exit(PATIENCE);
        let errors = client.errors.to_end(PATIENCE).join("\n");
        assert!(!errors.contains("error"), "{row}: {errors}");
    }
}

#[test]
fn socat_to_our_server() {
    let far = Far::start();
    let server = OurServer::start(far.service.port());
    for (n, row) in Row::all().into_iter().enumerate() {
        let version = format!("TLS{}", row.version);
        let mut to = format!(
            "OPENSSL:127.0.0.1:{},verify=1,cafile={},commonname=localhost,\
             openssl-min-proto-version={version},openssl-max-proto-version={version}",
            server.port(row),
            server.file(row, "ca.crt"),
        );
        if row.mutual {
            let (cert, key) = (
                server.file(row, "client.crt"),
                server.file(row, "client.key"),
            );
            to.push_str(&format!(",cert={cert},key={key}"));
        }
        let mut command = Command::new(tool("socat", "socat"));
        command.args(["-t", "20", "STDIO", &to]);
        near_by_pipes(Piped::start(&mut command), row);
        far.expect_good(n + 1, row);
    }
    server.expect_ends(1);
}

/// One stunnel for all rows.
fn stunnel(dir: &TempDir, sections: &str) -> Program {
    let config = format!("foreground = yes\npid =\nsyslog = no\ndebug = 5\n{sections}");
    let file = dir.join("stunnel.conf");
    fs::write(&file, config).expect("write");
    Program::start(
        "stunnel",
        Command::new(tool("stunnel4", "stunnel4")).arg(file),
    )
}

#[test]
fn stunnel_to_our_server() {
    let far = Far::start();
    let server = OurServer::start(far.service.port());
    let mut ports = Vec::new();
    let mut sections = String::new();
    for row in Row::all() {
        let port = free_port();
        let (to, ca) = (server.port(row), server.file(row, "ca.crt"));
        sections.push_str(&format!(
            "[{row}]\nclient = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{to}\nsslVersion = TLSv{}\n\
             verifyChain = yes\nCAfile = {ca}\ncheckHost = localhost\nsni = localhost\n",
            row.version
        ));
        if row.mutual {
            let (cert, key) = (
                server.file(row, "client.crt"),
                server.file(row, "client.key"),
            );
            sections.push_str(&format!("cert = {cert}\nkey = {key}\n"));
        }
        ports.push((row, port));
    }
    let _stunnel = stunnel(&server.dir, &sections);
    for (n, (row, port)) in ports.into_iter().enumerate() {
        wait_for_listener(port);
        near_by_tcp(port, row);
        far.expect_good(n + 1, row);
    }
    server.expect_ends(1);
}

#[test]
fn curl_to_our_server_and_nginx() {
    let dir = TempDir::new();
    let (_nginx, port) = nginx(&dir);
    let server = OurServer::start(port);
    let (up, down) = (dir.join("up"), dir.join("down"));
    send(&mut fs::File::create(&up).expect("create"), TO_FAR, N).expect("write");
    for row in Row::all() {
        let curl = |arguments: &[&str]| {
            let url = format!("https://localhost:{}/{row}", server.port(row));
            let mut command = Command::new(tool("curl", "curl"));
            command
                .args(["-sS", "--fail", "--noproxy", "*"])
                .args([&format!("--tlsv{}", row.version), "--tls-max", row.version])
                .args(["--cacert", &server.file(row, "ca.crt")])
                .args(arguments)
                .arg(url);
            if row.mutual {
                command.args(["--cert", &server.file(row, "client.crt")]);
                command.args(["--key", &server.file(row, "client.key")]);
            }
            ok(&mut command);
        };
        curl(&["-T", &up.display().to_string()]);
        curl(&["-o", &down.display().to_string()]);
        assert_eq!(
            fs::read(&up).expect("read"),
            fs::read(&down).expect("read"),
            "{row}"
        );
    }
    server.expect_ends(2);
}

/// Our client with a forward for each row, to a peer on a port of its own.
struct OurClient {
    dir: TempDir,
    program: Program,
}

impl OurClient {
    fn start(dir: TempDir, peers: &[(Row, u16)]) -> Self {
        let forwards: Vec<Value> = peers
            .iter()
            .map(|(row, port)| {
                let mut forward = json!({
                    "name": row.to_string(),
                    "local_listener": { "port": 0 },
                    "remote_server": {
                        "host": "127.0.0.1",
                        "port": port,
                        "server_ca_cert": row.file(dir.path(), "ca.crt"),
                        "server_hostname": "tunnel-server",
                    },
                    // Some of the peers serve one connection and leave.
                    "preconnected": 0,
                });
                if row.mutual {
                    forward["tls"] = json!({
                        "client_cert": row.file(dir.path(), "client.crt"),
                        "client_key": row.file(dir.path(), "client.key"),
                    });
                }
                forward
            })
            .collect();
        let program = start_forwards("client", &dir, &json!({ "forwards": forwards }));
        Self { dir, program }
    }

    fn port(&self, row: Row) -> u16 {
        port_of(&self.program, &row.to_string())
    }

    fn expect_ends(&self) {
        for row in Row::all() {
            let what = format!("ended forward={row} *finished by=external");
            self.program.log.wait(&what, PATIENCE);
        }
        assert_eq!(self.program.log.count(0, "failed by="), 0);
    }
}

/// A port for each row.
fn ports() -> Vec<(Row, u16)> {
    Row::all()
        .into_iter()
        .map(|row| (row, free_port()))
        .collect()
}

#[test]
fn our_client_to_s_server() {
    let peers = ports();
    let client = OurClient::start(certificates(), &peers);
    let dir = client.dir.path();
    for (row, port) in peers {
        let mut command = Command::new(tool("openssl", "openssl"));
        command
            .args(["s_server", "-quiet", "-naccept", "1", tls_flag(row)])
            .args(["-accept", &format!("127.0.0.1:{port}")])
            .args(["-cert", &row.file(dir, "server.crt")])
            .args(["-key", &row.file(dir, "server.key")]);
        if row.mutual {
            command.args(["-CAfile", &row.file(dir, "ca.crt")]);
            command.args(["-Verify", "1", "-verify_return_error"]);
        }
        let mut far = Piped::start(&mut command);
        wait_for_listener(port);
        let mut out = far.take_stdin();
        let far = thread::spawn(move || {
            // It ends when the near side does, and then its stdin is nothing that it misses.
            let sender = thread::spawn(move || send(&mut out, FROM_FAR, N).map(|()| out));
            Bytes::new(TO_FAR).expect(&mut far, N).expect("what came");
            let _stdin = sender.join().expect("no panic").expect("what went");
            assert_eq!(read_end(&mut far), (vec![], End::Clean));
            far.wait_exit(PATIENCE);
        });
        near_by_tcp(client.port(row), row);
        far.join().unwrap_or_else(|_| panic!("{row}"));
    }
    client.expect_ends();
}

#[test]
fn our_client_to_socat() {
    let far = Far::start();
    let peers = ports();
    let client = OurClient::start(certificates(), &peers);
    let dir = client.dir.path();
    for (n, (row, port)) in peers.into_iter().enumerate() {
        let version = format!("TLS{}", row.version);
        let mut listen = format!(
            "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={},key={},verify={},\
             openssl-min-proto-version={version},openssl-max-proto-version={version}",
            row.file(dir, "server.crt"),
            row.file(dir, "server.key"),
            u8::from(row.mutual),
        );
        if row.mutual {
            listen.push_str(&format!(",cafile={}", row.file(dir, "ca.crt")));
        }
        let to = format!("TCP:127.0.0.1:{}", far.service.port());
        let mut command = Command::new(tool("socat", "socat"));
        let mut socat = Program::start("socat", command.args(["-t", "20", &listen, &to]));
        wait_for_listener(port);
        near_by_tcp(client.port(row), row);
        far.expect_good(n + 1, row);
        let status = socat.wait_exit(PATIENCE);
        assert!(status.success(), "{row}: {status}");
    }
    client.expect_ends();
}

#[test]
fn our_client_to_stunnel() {
    let far = Far::start();
    let peers = ports();
    let client = OurClient::start(certificates(), &peers);
    let dir = client.dir.path();
    let mut sections = String::new();
    for (row, port) in &peers {
        let (cert, key) = (row.file(dir, "server.crt"), row.file(dir, "server.key"));
        sections.push_str(&format!(
            "[{row}]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{}\nsslVersion = TLSv{}\ncert = {cert}\nkey = {key}\n",
            far.service.port(),
            row.version
        ));
        if row.mutual {
            let ca = row.file(dir, "ca.crt");
            sections.push_str(&format!(
                "requireCert = yes\nverifyChain = yes\nCAfile = {ca}\n"
            ));
        }
    }
    let _stunnel = stunnel(&client.dir, &sections);
    for (n, (row, port)) in peers.into_iter().enumerate() {
        wait_for_listener(port);
        near_by_tcp(client.port(row), row);
        far.expect_good(n + 1, row);
    }
    client.expect_ends();
}

/// openssl goes on with the session of before, in both versions, and is still known by its certificate.
#[test]
fn s_client_resumes_at_our_server() {
    let echo = Service::echo();
    let server = OurServer::start(echo.port());
    for row in Row::all() {
        let session = server.dir.join(&format!("{row}.session"));
        let speak = |option: &str| {
            let mut command = Command::new(tool("openssl", "openssl"));
            command
                .args(["s_client", "-nocommands", tls_flag(row)])
                .args(["-connect", &format!("127.0.0.1:{}", server.port(row))])
                .args(["-CAfile", &server.file(row, "ca.crt")])
                .arg(option)
                .arg(&session);
            if row.mutual {
                command.args(["-cert", &server.file(row, "client.crt")]);
                command.args(["-key", &server.file(row, "client.key")]);
            }
            let mut client = Piped::start(&mut command);
            let mut stdin = client.take_stdin();
            stdin.write_all(b"here I am").expect("write");
            let mut said = Vec::new();
            while !said.ends_with(b"here I am") {
                let mut byte = [0];
                client.read_exact(&mut byte).expect("the echo");
                said.push(byte[0]);
            }
            drop(stdin);
            said.extend(read_end(&mut client).0);
            String::from_utf8_lossy(&said).into_owned()
        };
        let first = speak("-sess_out");
        let version = format!("New, TLSv{}", row.version);
        assert!(first.contains(&version), "{row}: {first}");
        for _ in 0..2 {
            let again = speak("-sess_in");
            let version = format!("Reused, TLSv{}", row.version);
            assert!(again.contains(&version), "{row}: {again}");
            // Nobody may speak before the server has answered: that could be said again by anybody who heard it.
            assert!(!again.contains("Max Early Data: 1"), "{row}: {again}");
        }
    }
    server.expect_ends(3);
}

/// Our client goes on with the session of before, in both versions, and never runs out of tickets.
#[test]
fn our_client_resumes_at_s_server() {
    let peers = ports();
    let client = OurClient::start(certificates(), &peers);
    let dir = client.dir.path();
    for (row, port) in peers {
        let mut command = Command::new(tool("openssl", "openssl"));
        command
            // A page about the connection for whoever asks.
            .args(["s_server", "-www", tls_flag(row), "-num_tickets", "1"])
            .args(["-accept", &format!("127.0.0.1:{port}")])
            .args(["-cert", &row.file(dir, "server.crt")])
            .args(["-key", &row.file(dir, "server.key")]);
        if row.mutual {
            command.args(["-CAfile", &row.file(dir, "ca.crt")]);
            command.args(["-Verify", "1", "-verify_return_error"]);
        }
        let _far = Program::start("s_server", &mut command);
        wait_for_listener(port);
        for wanted in ["New, TLSv", "Reused, TLSv", "Reused, TLSv"] {
            let mut stream = connect((Ipv4Addr::LOCALHOST, client.port(row)));
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
            let (page, end) = read_end(&mut stream);
            let page = String::from_utf8_lossy(&page).into_owned();
            assert_eq!(end, End::Clean, "{row}: {page}");
            let wanted = format!("{wanted}{}", row.version);
            assert!(page.contains(&wanted), "{row}: no {wanted} in {page}");
        }
    }
}

/// Nobody else's program, but everybody's certificates: the documents' own, to the letter, at both ends of ours.
#[test]
fn the_recipe_of_the_documents_serves_both_programs() {
    let far = Far::start();
    let server = OurServer::start(far.service.port());
    let rows = || Row::all().into_iter().filter(|row| row.version == "1.3");
    let peers: Vec<_> = rows().map(|row| (row, server.port(row))).collect();
    // The folder of the server's certificates holds the client's as well.
    let (dir, server) = (server.dir, server.program);
    let client = OurClient::start(dir, &peers);
    for (n, row) in rows().enumerate() {
        near_by_tcp(client.port(row), row);
        far.expect_good(n + 1, row);
    }
    assert_eq!(server.log.count(0, "failed by="), 0);
}

/// What a scanner sees: two versions of TLS, and the ciphers that are still good in each.
#[test]
fn sslscan_finds_no_weakness() {
    let server = OurServer::start(free_port());
    for row in Row::all()
        .into_iter()
        .filter(|row| !row.mutual && row.version == "1.2")
    {
        // Its look at key exchange groups waits for seconds.
        let output = ok(Command::new(tool("sslscan", "sslscan"))
            .args(["--no-colour", "--no-groups"])
            .arg(format!("127.0.0.1:{}", server.port(row))));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for (version, wanted) in [
            ("SSLv2", "disabled"),
            ("SSLv3", "disabled"),
            ("TLSv1.0", "disabled"),
            ("TLSv1.1", "disabled"),
            ("TLSv1.2", "enabled"),
            ("TLSv1.3", "enabled"),
            ("TLSv1.2 not vulnerable", "to heartbleed"),
            ("Session renegotiation", "not supported"),
        ] {
            let is_said = said
                .lines()
                .any(|line| line.starts_with(version) && line.ends_with(wanted));
            assert!(is_said, "{row}: {version} {wanted}: {said}");
        }
        let ciphers: Vec<&str> = (said.lines())
            .filter(|line| line.starts_with("Accepted") || line.starts_with("Preferred"))
            .collect();
        assert_eq!(ciphers.len(), 6, "{row}: {said}");
        for cipher in ciphers {
            let has_forward_secrecy = cipher.contains(" ECDHE-") || cipher.contains(" TLS_");
            let is_sealed = cipher.contains("GCM") || cipher.contains("CHACHA20");
            assert!(has_forward_secrecy && is_sealed, "{row}: {cipher}");
        }
    }
}
