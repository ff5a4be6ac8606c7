//! The programs as a person or a service manager meets them. Here belongs: arguments, files, signals, exit
//! codes, what is printed. Not here: what a program does with traffic.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rig::{
    Bytes, End, Ended, PATIENCE, Peer, Program, Service, TempDir, Tunnelled, World, binary,
    connect, eventually, free_port, read_end, send,
};

const SERVER: &str = "minitcptunnel-server";
const CLIENT: &str = "minitcptunnel-client";

fn run(dir: &TempDir, program: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(binary(program));
    command.current_dir(dir.path()).args(arguments);
    Program::run(&mut command, PATIENCE)
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("write");
}

const KEY: &str = "29acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7";
const SEED: &str = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";

#[test]
fn each_failure_has_its_exit_code_and_says_why() {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let taken = holder.local_addr().expect("bound").port().to_string();
    let on_taken = ["--bind", "127.0.0.1", "--port", &taken];
    let client = |pin: &str| {
        format!(
            "{{\"server_host\":\"127.0.0.1\",{pin}\"identity_private_key_hex\":\"{SEED}\",\"tunnels\":[]}}"
        )
    };
    let pinned = client(&format!("\"server_pub_key\":\"{KEY}\","));
    // program, arguments, file and its text, exit code, what is said
    type Case<'a> = (&'a str, &'a [&'a str], &'a str, String, i32, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (SERVER, &["--help"], "", String::new(), 0, "--grace"),
        (
            CLIENT,
            &["--help"],
            "",
            String::new(),
            0,
            "--insecure-no-pin",
        ),
        (SERVER, &["--version"], "", String::new(), 0, "0.1.0"),
        (SERVER, &["--prot", "1"], "", String::new(), 2, "--port"),
        (SERVER, &["--port", "70000"], "", String::new(), 2, "70000"),
        (SERVER, &["--timeout", "soon"], "", String::new(), 2, "soon"),
        (SERVER, &["serve"], "", String::new(), 2, "serve"),
        (CLIENT, &["--port", "1"], "", String::new(), 2, "--port"),
        (
            SERVER,
            &["--config", "none.json"],
            "",
            String::new(),
            3,
            "none.json",
        ),
        (
            SERVER,
            &["--config", "s.json"],
            "s.json",
            "{\"prot\": 1}".into(),
            3,
            "did you mean `port`",
        ),
        (
            SERVER,
            &["check", "--config", "s.yaml"],
            "s.yaml",
            "max_clients: 0".into(),
            3,
            "max_clients",
        ),
        (
            SERVER,
            &["--port", "0"],
            "allowed_clients.txt",
            format!("{KEY}\nnot a key\n"),
            3,
            "2",
        ),
        (
            SERVER,
            &["check"],
            "allowed_clients.txt",
            "\n\nabc\n".into(),
            3,
            "3",
        ),
        (CLIENT, &[], "", String::new(), 3, "client_config.json"),
        (
            CLIENT,
            &[],
            "client_config.json",
            "{".into(),
            3,
            "client_config.json",
        ),
        (
            CLIENT,
            &["check"],
            "client_config.json",
            pinned.replace("tunnels", "tunels"),
            3,
            "did you mean `tunnels`",
        ),
        (
            SERVER,
            &["--port", "0"],
            "server_identity_key.hex",
            "beef".into(),
            4,
            "server_identity_key.hex",
        ),
        (
            SERVER,
            &["check"],
            "server_identity_key.hex",
            "zz".repeat(32),
            4,
            "server_identity_key.hex",
        ),
        (
            SERVER,
            &["pubkey"],
            "server_identity_key.hex",
            String::new(),
            4,
            "server_identity_key.hex",
        ),
        (
            SERVER,
            &["pubkey"],
            "",
            String::new(),
            4,
            "server_identity_key.hex",
        ),
        (
            CLIENT,
            &[],
            "client_config.json",
            client(""),
            4,
            "server_pub_key",
        ),
        (
            CLIENT,
            &["check"],
            "client_config.json",
            client("\"server_pub_key\":null,"),
            4,
            "Server Identity Public Key",
        ),
        (
            CLIENT,
            &[],
            "client_config.json",
            client("\"server_pub_key\":\"12\","),
            4,
            "server_pub_key",
        ),
        (
            CLIENT,
            &["check"],
            "client_config.json",
            pinned.replace(SEED, "0102"),
            4,
            "identity_private_key_hex",
        ),
        (
            CLIENT,
            &["keygen"],
            "client_config.json",
            pinned.clone(),
            4,
            "already",
        ),
        (SERVER, &on_taken, "", String::new(), 5, &taken),
        (
            SERVER,
            &["--bind", "192.0.2.1"],
            "",
            String::new(),
            5,
            "192.0.2.1",
        ),
    ];
    let count = cases.len();
    let mut wrong = Vec::new();
    for (program, arguments, file, text, code, said) in cases {
        let dir = TempDir::new();
        if !file.is_empty() {
            write(&dir, file, &text);
        }
        let ended = run(&dir, program, arguments);
        // The code is that of the exit code, wherever it is said.
        let coded = code == 0 || {
            let group = format!("E{code:02}");
            ended.out.contains(&format!(" code={group}"))
                || ended.err.contains(&format!("({group}"))
        };
        if ended.code != Some(code) || !ended.all().contains(said) || !coded {
            wrong.push(format!(
                "{program} {arguments:?} with {file}: wanted {code} and '{said}': {ended:?}"
            ));
        }
        if !file.is_empty() {
            let after = fs::read_to_string(dir.join(file)).expect("still there");
            assert_eq!(after, text, "{program} {arguments:?} changed {file}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(count, 27);
}

/// Both ends set up with nothing but what the programs print, as the guide tells it.
#[test]
fn keys_are_exchanged_by_the_guide() {
    let dir = TempDir::new();
    let service = Service::greeter(b"hello");
    let port = free_port();
    let config = format!(
        "{{\n  \"server_host\": \"127.0.0.1\",\n  \"server_port\": {port},\n  \"server_pub_key\": \"PIN\",\n  \
         \"tunnels\": [\n    {{ \"id\": \"web-server\", \"remote_port\": 0, \"local_port\": {}, \"auto_start\": true }}\n  ]\n}}\n",
        service.port()
    );

    let mut command = Command::new(binary(SERVER));
    command.current_dir(dir.path()).args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "-v",
    ]);
    let server = Program::start("server", &mut command);
    let text = "Server Identity Public Key (Pin in client config): ";
    let line = server.log.wait(text, PATIENCE);
    let pin = line.split(text).nth(1).expect("behind it").to_owned();
    assert_eq!(pin.len(), 64, "{line}");
    server.log.wait("Control Server listening on ", PATIENCE);
    assert_eq!(mode(&dir.join("server_identity_key.hex")), 0o600);
    let printed = run(&dir, SERVER, &["pubkey"]);
    assert!(printed.out.contains(&pin), "{printed:?}");

    write(&dir, "client_config.json", &config.replace("PIN", &pin));
    let made = run(&dir, CLIENT, &["keygen"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let key = made
        .out
        .strip_prefix("CLIENT PUBLIC KEY: ")
        .expect("the guide's text")
        .to_owned();
    assert_eq!(key.len(), 64);
    let saved = fs::read_to_string(dir.join("client_config.json")).expect("there");
    assert_eq!(mode(&dir.join("client_config.json")), 0o600);
    assert!(
        config
            .replace("PIN", &pin)
            .lines()
            .all(|line| saved.contains(line.trim_end_matches(['}', '\n']))),
        "nothing but the key is new: {saved}"
    );
    assert_eq!(
        run(&dir, CLIENT, &["pubkey"]).out,
        format!("CLIENT PUBLIC KEY: {key}")
    );
    let again = run(&dir, CLIENT, &["keygen"]);
    assert_eq!(again.code, Some(4), "{again:?}");
    assert_eq!(
        fs::read_to_string(dir.join("client_config.json")).expect("there"),
        saved
    );

    // Not listed yet: turned away, with a line that says so.
    let mut command = Command::new(binary(CLIENT));
    let client = Program::start("client", command.current_dir(dir.path()));
    server
        .log
        .wait("SECURITY: Client identity not in whitelist", PATIENCE);
    write(
        &dir,
        "allowed_clients.txt",
        &format!("# ours\n{} home # a comment\n", key.to_uppercase()),
    );
    server.log.wait("Whitelisted Key: *...", PATIENCE);
    // No restart: the list is read again, and the client has not given up.
    let text = "Tunnel web-server is open on server port ";
    let line = client.log.wait(text, PATIENCE);
    let public: u16 = line
        .split(text)
        .nth(1)
        .expect("behind it")
        .parse()
        .expect("a port");
    let mut visitor = connect((Ipv4Addr::LOCALHOST, public));
    assert_eq!(read_end(&mut visitor), (b"hello".to_vec(), End::Clean));
}

#[test]
fn a_client_without_a_key_makes_one_and_loses_nothing() {
    let world = World::new();
    let server = world.server().start();
    let yaml = format!(
        "# my tunnels\nserver_host: 127.0.0.1   # here\nserver_port: {}\nserver_pub_key: {}\n\ntunnels:\n  - id: web\n    remote_port: 0\n    local_port: 80\n    auto_start: true\n",
        server.port,
        world.server_key.public()
    );
    write(&world.dir, "c.yaml", &yaml);
    let mut command = Command::new(binary(CLIENT));
    command
        .current_dir(world.dir.path())
        .args(["--config", "c.yaml"]);
    let client = Program::start("client", &mut command);
    let line = client.log.wait("CLIENT PUBLIC KEY: ", PATIENCE);
    let key = line
        .split("CLIENT PUBLIC KEY: ")
        .nth(1)
        .expect("behind it")
        .to_owned();
    write(&world.dir, "allowed_clients.txt", &key);
    client.log.wait("Tunnel web is open", PATIENCE);
    let saved = fs::read_to_string(world.dir.join("c.yaml")).expect("there");
    let kept: String = saved
        .lines()
        .filter(|line| !line.contains("identity_private_key_hex"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(kept, yaml, "the key is one more line");
    let seed = saved
        .lines()
        .find_map(|line| line.strip_prefix("identity_private_key_hex:"))
        .expect("saved")
        .trim()
        .trim_matches('"');
    // It is the key it says it is, and it was never printed.
    let secret = minitcptunnel_common::identity::IdentityKey::from_hex(seed).expect("a key");
    assert_eq!(secret.public().to_string(), key);
    assert!(client.log.lines().iter().all(|line| !line.contains(seed)));
}

#[test]
fn check_says_what_would_happen_and_touches_nothing() {
    let world = World::new();
    let server = world.server();
    drop(server);
    let client = world.client(9000).tunnel("web", 8080, 80);
    let file = client.write();
    let before = fs::read_to_string(&file).expect("there");
    let ended = run(&world.dir, CLIENT, &["check"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for said in [
        "127.0.0.1:9000",
        "8080",
        "127.0.0.1:80",
        &world.client_key.public().to_string(),
    ] {
        assert!(ended.out.contains(said), "'{said}' in {}", ended.out);
    }
    assert_eq!(fs::read_to_string(&file).expect("there"), before);
    let ended = run(&world.dir, SERVER, &["check", "--port", "1234"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for said in [
        "1234",
        &world.server_key.public().to_string(),
        &world.client_key.public().to_string(),
    ] {
        assert!(ended.out.contains(said), "'{said}' in {}", ended.out);
    }
    let bare = TempDir::new();
    assert_eq!(run(&bare, SERVER, &["check"]).code, Some(0));
    assert_eq!(
        fs::read_dir(bare.path()).expect("there").count(),
        0,
        "check makes no files"
    );
}

#[test]
fn timeout_ends_in_order() {
    let world = World::new();
    let start = Instant::now();
    let mut server = world.server().arguments(&["--timeout", "1.5"]).start();
    let mut client = world
        .client(server.port)
        .arguments(&["--timeout", "0.7"])
        .start();
    assert_eq!(client.program.wait_exit(PATIENCE).code(), Some(0));
    assert!(
        start.elapsed() >= Duration::from_millis(700),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        server.program.exited(),
        None,
        "the server's time is not over"
    );
    assert_eq!(server.program.wait_exit(PATIENCE).code(), Some(0));
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(1500) && took < Duration::from_secs(4),
        "{took:?}"
    );
}

#[test]
fn signals_end_in_order() {
    for signal in ["TERM", "INT"] {
        let service = Service::greeter(b"hello");
        let mut tunnel = Tunnelled::to(service.port());
        assert_eq!(
            read_end(&mut tunnel.visit()),
            (b"hello".to_vec(), End::Clean)
        );
        let start = Instant::now();
        tunnel.client.signal(signal);
        assert_eq!(tunnel.client.program.wait_exit(PATIENCE).code(), Some(0));
        tunnel.server.log.wait("Session ended: ", PATIENCE);
        tunnel.server.signal(signal);
        assert_eq!(tunnel.server.program.wait_exit(PATIENCE).code(), Some(0));
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "nothing to wait for, yet {took:?}"
        );
        // The totals: one connection, five bytes towards the visitor.
        let line = tunnel.server.log.wait("Server stopped: ", PATIENCE);
        assert!(line.contains(" INFO "), "{line}");
        assert!(line.contains("from_service=5"), "{line}");
        tunnel.client.log.wait(
            " INFO *Stopped sessions=1 connections=1 *from_service=5",
            PATIENCE,
        );
    }
}

#[test]
fn running_connections_get_their_grace_and_no_more() {
    // Which program is told to stop, and whether the visitor finishes in time.
    for (who, finishes) in [
        ("server", true),
        ("server", false),
        ("client", true),
        ("client", false),
    ] {
        let service = Service::echo();
        let grace = if finishes { 20.0 } else { 0.8 };
        let mut tunnel = Tunnelled::with(
            service.port(),
            |server| server.set("grace", grace),
            |client| client.set("grace", grace),
        );
        let mut visitor = tunnel.visit();
        let mut ask = |text: &[u8; 4]| {
            visitor.write_all(text).expect("write");
            let mut back = [0; 4];
            visitor
                .read_exact(&mut back)
                .map(|()| assert_eq!(&back, text))
        };
        ask(b"ping").expect("before");
        let port = tunnel.port;
        let start = Instant::now();
        let program = tunnel.program(who);
        program.signal("TERM");
        program.log.wait("Stopping", PATIENCE);
        eventually(PATIENCE, "no new visitors", || {
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .is_err()
                .then_some(())
        });
        if finishes {
            ask(b"more").expect("during the grace period");
            assert_eq!(program.exited(), None);
            drop(visitor);
            assert_eq!(program.wait_exit(PATIENCE).code(), Some(0), "{who}");
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{who} waited for nobody"
            );
        } else {
            assert_eq!(
                read_end(&mut visitor).1,
                End::Reset,
                "{who}: cut, not ended"
            );
            assert!(
                start.elapsed() >= Duration::from_millis(700),
                "{who}: {:?}",
                start.elapsed()
            );
            assert_eq!(program.wait_exit(PATIENCE).code(), Some(0), "{who}");
            assert!(
                start.elapsed() < Duration::from_secs(4),
                "{who}: {:?}",
                start.elapsed()
            );
        }
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    for who in ["server", "client"] {
        let service = Service::echo();
        let mut tunnel = Tunnelled::with(
            service.port(),
            |server| server.set("grace", 60.0),
            |client| client.set("grace", 60.0),
        );
        let mut visitor = tunnel.visit();
        visitor.write_all(b"ping").expect("write");
        visitor.read_exact(&mut [0; 4]).expect("read");
        let program = tunnel.program(who);
        program.signal("TERM");
        program.log.wait("Stopping", PATIENCE);
        assert_eq!(program.exited(), None);
        let start = Instant::now();
        program.signal("INT");
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(130), "{who}");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{who}: {:?}",
            start.elapsed()
        );
    }
}

/// Nobody reads the logs of these two, or their reader is gone: traffic must not notice.
#[test]
fn a_blocked_or_closed_stdout_does_not_stop_traffic() {
    for blocked in [true, false] {
        let world = World::new();
        let service = Service::echo();
        let (control, public) = (free_port(), free_port());
        write(
            &world.dir,
            "server_config.json",
            &format!("{{\"bind\":\"127.0.0.1\",\"port\":{control}}}"),
        );
        world
            .client(control)
            .tunnel("t", public, service.port())
            .write();
        let mut running = Vec::new();
        for (program, config) in [
            (SERVER, "server_config.json"),
            (CLIENT, "client_config.json"),
        ] {
            let mut child = Command::new(binary(program))
                .current_dir(world.dir.path())
                .args(["--config", config, "--debug"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("start");
            let stdout = child.stdout.take().expect("piped");
            // Held and never read, or closed at once.
            running.push((Guard(child), blocked.then_some(stdout)));
        }
        let connected = || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, public)).ok();
        drop(eventually(PATIENCE, "the tunnel", connected));
        // At --debug each of these is a dozen lines: far more than the 64 KiB a pipe holds, and with 8 times
        // 400 of them more than the 2 MiB that may wait for it.
        let visit = |n: u64| {
            let mut visitor = connect((Ipv4Addr::LOCALHOST, public));
            send(&mut visitor, n, 1000).expect("send");
            visitor.shutdown(std::net::Shutdown::Write).expect("end");
            Bytes::new(n)
                .expect(&mut visitor, 1000)
                .unwrap_or_else(|e| panic!("visitor {n}: {e}"));
            assert_eq!(read_end(&mut visitor), (vec![], End::Clean));
        };
        let crowd = if blocked { 8 } else { 1 };
        std::thread::scope(|scope| {
            for of in 0..crowd {
                scope.spawn(move || (0..400).for_each(|n| visit(of * 400 + n)));
            }
        });
        // And they still end when asked to.
        for (mut child, stdout) in running.into_iter().rev() {
            let pid = child.0.id();
            let asked = Command::new("sh")
                .arg("-c")
                .arg(format!("kill -TERM {pid}"))
                .status();
            assert!(asked.expect("sh").success());
            let status = eventually(PATIENCE, "the end", || child.0.try_wait().expect("wait"));
            assert_eq!(status.code(), Some(0), "blocked: {blocked}");
            if let Some(mut stdout) = stdout {
                // The pipe was really full: what is in it is all it can hold.
                let mut text = Vec::new();
                stdout.read_to_end(&mut text).expect("read");
                assert!(
                    text.len() >= 60_000,
                    "only {} bytes were logged",
                    text.len()
                );
            }
        }
    }
}

/// A child that is killed when the test is over, however.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `2026-01-05T12:00:00.123Z LEVEL target: text`
fn well_formed(line: &str) -> bool {
    let shape = "dddd-dd-ddTdd:dd:dd.dddZ ";
    let stamp = line.len() > shape.len()
        && line.bytes().zip(shape.bytes()).all(|(c, s)| {
            if s == b'd' {
                c.is_ascii_digit()
            } else {
                c == s
            }
        });
    let Some((level, rest)) = line.get(shape.len()..).and_then(|l| l.split_once(' ')) else {
        return false;
    };
    let Some((target, text)) = rest.trim_start().split_once(": ") else {
        return false;
    };
    stamp
        && ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level)
        && target
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b':')
        && !text.is_empty()
}

#[test]
fn logs_have_the_shape_the_texts_and_no_secrets() {
    assert!(well_formed(
        "2026-01-05T12:00:00.123Z INFO  server::control: text"
    ));
    assert!(!well_formed(
        "2026-01-05 12:00:00.123Z INFO  server::control: text"
    ));
    let service = Service::greeter(b"hello");
    for (arguments, debug, trace) in [
        (&[][..], false, false),
        (&["-v"], true, false),
        (&["--debug"], true, true),
    ] {
        let mut tunnel = Tunnelled::with(
            service.port(),
            |server| server.arguments(arguments),
            |client| client.arguments(arguments),
        );
        assert_eq!(read_end(&mut tunnel.visit()).1, End::Clean);
        tunnel.client.signal("TERM");
        tunnel.client.program.wait_exit(PATIENCE);
        tunnel.server.signal("TERM");
        tunnel.server.program.wait_exit(PATIENCE);
        let server = tunnel.server.log.to_end(PATIENCE);
        let client = tunnel.client.log.to_end(PATIENCE);
        let secrets = [
            tunnel.world.server_key.seed_hex(),
            tunnel.world.client_key.seed_hex(),
        ];
        for line in server.iter().chain(&client) {
            assert!(well_formed(line), "{line}");
            assert!(!line.contains('\x1b'), "colour in a pipe: {line}");
            assert!(
                !secrets.iter().any(|s| line.contains(s.as_str())),
                "a secret: {line}"
            );
            assert!(debug || !line.contains(" DEBUG "), "{line}");
            assert!(trace || !line.contains(" TRACE "), "{line}");
        }
        let holds = |lines: &[String], text: &str| lines.iter().any(|line| line.contains(text));
        let key = tunnel.world.client_key.public().to_string();
        let port = tunnel.port;
        for text in [
            format!(
                "Server Identity Public Key (Pin in client config): {}",
                tunnel.world.server_key.public()
            ),
            format!("Control Server listening on {}", tunnel.server.port),
            format!(
                "Loaded allowed keys from {}",
                tunnel.world.dir.join("allowed_clients.txt").display()
            ),
            format!("-> Whitelisted Key: {}...{}", &key[..8], &key[56..]),
            format!("Tunnel t listening on 127.0.0.1:{port}"),
            format!("Tunnel opened: t on port {port}"),
        ] {
            assert!(holds(&server, &text), "'{text}' in\n{}", server.join("\n"));
        }
        assert_eq!(
            holds(&server, "New public connection from 127.0.0.1:"),
            debug
        );
        assert_eq!(holds(&server, ", conn_id="), debug);
        assert_eq!(holds(&server, "Data Connection Ready for "), debug);
        for text in [
            format!("Tunnel t is open on server port {port}"),
            "Connected to ".to_owned(),
        ] {
            assert!(holds(&client, &text), "'{text}' in\n{}", client.join("\n"));
        }
        // One line at the end of a session, with what it carried.
        let ends: Vec<_> = server
            .iter()
            .filter(|line| line.contains("Session ended: "))
            .collect();
        assert_eq!(ends.len(), 1, "{ends:?}");
        assert!(
            ends[0].contains(" INFO ") && ends[0].contains("from_service=5"),
            "{}",
            ends[0]
        );
    }
}

#[test]
fn what_comes_from_the_network_is_escaped() {
    let world = World::new();
    let server = world.server().start();
    // Our own client does not even start with such a name.
    let mut peer = Peer::control(&world, &world.client_key, server.address());
    peer.open_tunnel("a\n2026-01-01T00:00:00.000Z ERROR server: forged\x1b[31m\u{202e}");
    server.log.wait("Tunnel opened: \"a\\n2026", PATIENCE);
    for line in server.log.lines() {
        assert!(well_formed(&line), "{line:?}");
        assert!(
            !line.starts_with("2026-01-01T00:00:00.000Z"),
            "a forged line: {line}"
        );
        assert!(
            line.chars().all(|c| !c.is_control() && c != '\u{202e}'),
            "{line:?}"
        );
    }
}

#[test]
fn a_wrong_pin_is_told_and_nothing_is_sent() {
    let world = World::new();
    let server = world.server().start();
    let other = minitcptunnel_common::identity::IdentityKey::generate().expect("random bytes");
    let client = world
        .client(server.port)
        .set("server_pub_key", other.public().to_string())
        .start();
    client
        .log
        .wait("Server public key does NOT match expected key!", PATIENCE);
    assert_eq!(server.log.count(0, "Client connected"), 0);
    assert_eq!(client.log.count(0, "Connected to"), 0);
    // Without a pin it connects, and says what that means.
    let trusting = world
        .client(server.port)
        .set("server_pub_key", serde_json::Value::Null)
        .arguments(&["--insecure-no-pin"])
        .start();
    trusting.log.wait(" WARN *pin", PATIENCE);
    trusting.log.wait("Connected to", PATIENCE);
}

#[test]
fn a_revoked_key_is_cut_and_told_for_good() {
    let service = Service::echo();
    // The list is looked at with every heartbeat.
    let mut tunnel = Tunnelled::with(service.port(), |server| server, |client| client.hasty());
    let mut visitor = tunnel.visit();
    visitor.write_all(b"ping").expect("write");
    visitor.read_exact(&mut [0; 4]).expect("read");
    // A list that cannot be read changes nothing.
    write(&tunnel.world.dir, "allowed_clients.txt", "nonsense\n");
    tunnel
        .server
        .log
        .wait("allow list*stays in force", PATIENCE);
    visitor.write_all(b"ping").expect("write");
    visitor.read_exact(&mut [0; 4]).expect("read");
    tunnel.world.allow(&[]);
    assert_eq!(read_end(&mut visitor).1, End::Reset);
    assert_eq!(tunnel.client.program.wait_exit(PATIENCE).code(), Some(6));
    tunnel.client.log.wait(" ERROR ", PATIENCE);
}

/// A port that was asked for and is not there must not pass unnoticed.
#[test]
fn forwards_are_described_and_want_their_certificates() {
    let dir = TempDir::new();
    for (program, file, says, missing) in [
        (
            SERVER,
            "server_config.yaml",
            "Forward \"default\": takes TLS 1.2 or newer on 0.0.0.0:8443 and leads to echo-server:8080",
            "certs/server.crt does not exist",
        ),
        (
            CLIENT,
            "client_config.yaml",
            "Forward \"default\": 127.0.0.1:1080 leads to tunnel-server:8443 over TLS 1.2 or newer",
            "certs/ca.crt does not exist",
        ),
    ] {
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/forward");
        fs::copy(example.join(file), dir.join(file)).expect("copy");
        let checked = run(&dir, program, &["check", "--config", file]);
        assert_eq!(checked.code, Some(4), "{}", checked.all());
        assert!(checked.all().contains(missing), "{}", checked.all());
        assert!(!dir.join("logs").exists(), "checking writes nothing");
        let started = run(&dir, program, &["--config", file, "--timeout", "5"]);
        assert_eq!(started.code, Some(4), "{}", started.all());
        assert!(started.out.contains(missing), "{}", started.out);
        // In the log file, too.
        let log = dir.join("logs").join(file.replace("_config.yaml", ".log"));
        assert!(fs::read_to_string(log).expect("a log").contains(missing));
        fs::remove_dir_all(dir.join("logs")).expect("remove");

        run(&dir, SERVER, &["certs", "init", "--host", "tunnel-server"]);
        run(&dir, SERVER, &["certs", "client", "client"]);
        let checked = run(&dir, program, &["check", "--config", file]);
        assert_eq!(checked.code, Some(0), "{}", checked.all());
        assert!(checked.out.contains(says), "{}", checked.out);
        assert!(
            !checked.out.contains("identity key") && !checked.out.contains("known to"),
            "no reverse job: {}",
            checked.out
        );
        assert!(!dir.join("logs").exists(), "checking writes nothing");
        fs::remove_dir_all(dir.join("certs")).expect("remove");
    }
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .expect("dir")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["client_config.yaml", "server_config.yaml"],
        "no key was made"
    );
}
