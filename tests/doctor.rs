//! `doctor`. Here belongs: a fault, and the finding that names it; that nothing is disturbed, changed or given away.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use minitcptunnel_common::identity::IdentityKey;
use rig::{
    ForwardWorld, PATIENCE, Program, Service, TempDir, Tunnelled, World, binary, figure, free_port,
    ping,
};
use serde_json::Value;

const SERVER: &str = "minitcptunnel-server";
const CLIENT: &str = "minitcptunnel-client";

/// What a doctor has found.
struct Found {
    json: Value,
    code: i32,
}

/// Asks a program's doctor. Whatever it finds: the object is one, and says what the process ended with.
fn ask(dir: &TempDir, program: &str, arguments: &[&str]) -> Found {
    let before = contents(dir.path());
    let mut command = Command::new(binary(program));
    command.current_dir(dir.path()).env("LC_ALL", "C");
    command
        .args(["doctor", "--json", "--timeout", "3"])
        .args(arguments);
    let ended = Program::run(&mut command, 2 * PATIENCE);
    let json: Value =
        serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{e}: {}", ended.all()));
    let code = ended.code.expect("ended by itself");
    assert_eq!(json["exit_code"], code, "{json:#}");
    assert_eq!(json["program"], program);
    assert_eq!(ended.err, "", "nothing besides");
    assert_eq!(contents(dir.path()), before, "doctor changes no file");
    for finding in json["findings"].as_array().expect("a list") {
        let (level, code) = (&finding["level"], &finding["code"]);
        if level == "warning" || level == "error" {
            assert!(code.is_string(), "no code: {finding:#}");
            for key in ["cause", "cure"] {
                assert!(finding[key].is_string(), "no {key}: {finding:#}");
            }
        }
    }
    Found { json, code }
}

/// Names, permissions and bytes of a folder.
fn contents(dir: &Path) -> BTreeSet<(String, u32, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    files
        .map(|entry| {
            let mode = entry.metadata().expect("there").permissions().mode();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, mode, fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

impl Found {
    /// The findings of one check as `level code`.
    fn of(&self, check: &str) -> Vec<String> {
        let all = self.json["findings"].as_array().expect("a list").iter();
        all.filter(|finding| finding["check"] == check)
            .map(|finding| {
                let code = finding["code"].as_str().unwrap_or_default();
                let text = format!("{} {code}", finding["level"].as_str().expect("a level"));
                text.trim_end().to_owned()
            })
            .collect()
    }

    /// What is not as it should be, without what depends on the machine of the test.
    fn faults(&self) -> Vec<String> {
        let machine = [
            "clock",
            "threads",
            "memory",
            "descriptors",
            "service",
            "log",
        ];
        let all = self.json["findings"].as_array().expect("a list").iter();
        all.filter(|finding| {
            let check = finding["check"].as_str().expect("a word");
            let level = finding["level"].as_str().expect("a level");
            !machine.contains(&check) && ["warning", "error"].contains(&level)
        })
        .map(|finding| {
            let text = |key| finding[key].as_str().unwrap_or_default();
            format!("{} {} {}", text("check"), text("level"), text("code"))
        })
        .collect()
    }

    fn text(&self) -> String {
        self.json.to_string()
    }
}

#[test]
fn what_is_well_is_called_well_and_no_secret_is_shown() {
    let world = World::new();
    let server = world.server().start();
    let service = Service::echo();
    let public = free_port();
    world
        .client(server.port)
        .tunnel("t", public, service.port())
        .write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(found.faults(), [""; 0], "{:#}", found.json);
    for check in [
        "config",
        "key",
        "dns",
        "server",
        "handshake",
        "local-service",
    ] {
        assert_eq!(found.of(check), ["ok"], "{check}: {:#}", found.json);
    }
    assert_eq!(found.of("public-port"), ["note E1151"], "no client runs");
    assert_eq!(found.of("echo"), ["note"], "not asked for");
    assert!(!found.text().contains(world.client_key.seed_hex().as_str()));

    let port = server.port.to_string();
    let on = ["--config", "server_config.json", "--port", &port];
    let found = ask(&world.dir, SERVER, &on);
    assert_eq!(found.faults(), [""; 0], "{:#}", found.json);
    assert!(
        found
            .text()
            .contains(&format!("127.0.0.1:{port} is held by {SERVER}"))
    );
    assert_eq!(found.of("control-port"), ["ok"]);
    assert_eq!(found.of("allow-list"), ["ok"]);
    assert!(
        found
            .text()
            .contains(&world.server_key.public().to_string())
    );
    assert!(!found.text().contains(world.server_key.seed_hex().as_str()));
    drop(server);
    let found = ask(&world.dir, SERVER, &on);
    assert_eq!(found.of("port"), ["ok"], "free: {:#}", found.json);
    assert_eq!(found.of("control-port"), [""; 0], "nobody to ask");
}

#[test]
fn why_the_server_cannot_be_used_is_told_apart() {
    let world = World::new();
    let server = world.server().start();
    let service = Service::echo();
    let handshake = |found: &Found| (found.of("handshake"), found.code);
    let told = |code: &str| (vec![format!("error {code}")], 9);

    let other = IdentityKey::generate().expect("random bytes");
    let client = || world.client(server.port).tunnel("t", 0, service.port());
    client()
        .set("server_pub_key", other.public().to_string())
        .write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(handshake(&found), told("E1007"), "{:#}", found.json);
    assert!(
        found
            .text()
            .contains(&world.server_key.public().to_string())
    );

    let file = client().identity(&other).write();
    let file = file.to_str().expect("UTF-8");
    let found = ask(&world.dir, CLIENT, &["--config", file]);
    assert_eq!(handshake(&found), told("E1005"), "{:#}", found.json);
    let line = format!("allowed_clients.txt on the server: {}", other.public());
    assert!(found.text().contains(&line), "{:#}", found.json);
    // And to try through a server that takes nobody is useless.
    let found = ask(&world.dir, CLIENT, &["--config", file, "--echo"]);
    assert_eq!(found.of("echo"), ["error E1055"], "{:#}", found.json);

    let stranger = Service::greeter(b"220 mail.example.org ESMTP, and a good day to you; what may we do for you today? \
        We speak SMTP here, and nothing else, to whoever comes, for as long as he likes to listen to us.\r\n");
    world
        .client(stranger.port())
        .tunnel("t", 0, service.port())
        .write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(handshake(&found), told("E1008"), "{:#}", found.json);

    world
        .client(free_port())
        .tunnel("t", 0, service.port())
        .write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(found.of("server"), ["error E1002"], "{:#}", found.json);
    assert_eq!(handshake(&found), (vec![], 9));

    client().set("server_host", "tunnel.invalid").write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(found.of("dns"), ["error E1001"], "{:#}", found.json);
    assert_eq!(found.code, 9);
}

#[test]
fn local_faults_are_told() {
    let world = World::new();
    let server = world.server().start();
    let service = Service::echo();
    let (dead, public) = (free_port(), free_port());
    let client = world
        .client(server.port)
        .tunnel("t", public, service.port());
    client.tunnel("dead", 0, dead).write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(
        found.of("local-service"),
        ["ok", "error E1106"],
        "{:#}",
        found.json
    );
    assert_eq!(found.code, 9);

    let open = |file: &Path| {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("chmod");
    };
    let client = world
        .client(server.port)
        .tunnel("t", public, service.port());
    open(&client.write());
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(found.of("key"), ["ok", "warning E1306"], "{:#}", found.json);
    assert_eq!(found.code, 8);

    let port = server.port.to_string();
    let on = ["--config", "server_config.json", "--port", &port];
    open(&world.dir.join("server_identity_key.hex"));
    let found = ask(&world.dir, SERVER, &on);
    assert_eq!(found.of("key"), ["ok", "warning E1306"], "{:#}", found.json);
    assert_eq!(found.code, 8);

    // Somebody else's port, in every place where one is wanted.
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let taken = holder.local_addr().expect("bound").port().to_string();
    let allowed = format!(r#"{{"bind": "127.0.0.1", "allowed_ports": ["{taken}"]}}"#);
    fs::write(world.dir.join("allowing.json"), allowed).expect("write");
    let found = ask(
        &world.dir,
        SERVER,
        &["--config", "allowing.json", "--port", &taken],
    );
    assert_eq!(found.of("port"), ["error E0501"], "{:#}", found.json);
    assert_eq!(found.code, 5, "as the server itself would end");
    let on = ["--config", "allowing.json", "--port", &port];
    let found = ask(&world.dir, SERVER, &on);
    assert!(
        found
            .of("public-ports")
            .contains(&"warning E1103".to_owned()),
        "{:#}",
        found.json
    );

    world.allow(&[]);
    assert_eq!(
        ask(&world.dir, SERVER, &on).of("allow-list"),
        ["warning E1020"]
    );
    fs::write(world.dir.join("allowed_clients.txt"), "not a key\n").expect("write");
    let found = ask(&world.dir, SERVER, &on);
    assert_eq!(found.of("allow-list"), ["error E0306"], "{:#}", found.json);
    assert_eq!(found.code, 3);
}

#[test]
fn a_broken_configuration_does_not_hide_the_rest() {
    let world = World::new();
    let server = world.server().start();
    let client = || world.client(server.port);
    client().set("server_pub_key", Value::Null).write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(found.of("config"), ["error E0401"], "{:#}", found.json);
    assert_eq!(found.code, 4);
    assert_eq!(found.of("key"), ["ok"]);
    assert_eq!(found.of("server"), ["ok"], "{:#}", found.json);
    assert_eq!(found.of("clock"), ["ok"]);

    client().set("identity_private_key_hex", "12").write();
    let found = ask(&world.dir, CLIENT, &[]);
    assert_eq!(
        (found.of("key"), found.code),
        (vec!["error E0403".into()], 4)
    );
    assert_eq!(found.of("server"), ["ok"]);

    for (text, code) in [("{", "E0302"), (r#"{"port": "x"}"#, "E0303")] {
        fs::write(world.dir.join("broken.json"), text).expect("write");
        for program in [CLIENT, SERVER] {
            let found = ask(&world.dir, program, &["--config", "broken.json"]);
            let told = vec![format!("error {code}")];
            assert_eq!(
                (found.of("config"), found.code),
                (told, 3),
                "{:#}",
                found.json
            );
            assert_eq!(found.of("clock").len(), 1);
            assert_eq!(found.of("service").len(), 1);
        }
    }
    let found = ask(&world.dir, CLIENT, &["--config", "nowhere.json"]);
    assert_eq!(found.of("config"), ["error E0301"], "{:#}", found.json);
}

/// The figures of an echo that came through.
fn figures(found: &Found) -> [f64; 3] {
    assert_eq!(found.of("echo"), ["ok"], "{:#}", found.json);
    let mut all = found.json["findings"].as_array().expect("a list").iter();
    let echo = all.rfind(|it| it["check"] == "echo").expect("it");
    ["median_milliseconds", "mebibytes", "mebibytes_per_second"].map(|name| {
        let value = echo["figures"][name].as_f64().expect(name);
        assert!(value > 0.0, "{name}: {:#}", found.json);
        value
    })
}

#[test]
fn an_echo_goes_through_everything_and_leaves_nothing() {
    let world = World::new();
    let server = world.server().start();
    let service = Service::echo();
    world
        .client(server.port)
        .tunnel("t", 0, service.port())
        .write();
    let found = ask(&world.dir, CLIENT, &["--echo"]);
    let [median, mebibytes, speed] = figures(&found);
    figure(
        "doctor --echo",
        format_args!("median {median} ms, {mebibytes} MiB, {speed:.0} MiB/s"),
    );
    server.log.wait("Session ended: ", PATIENCE);
    assert_eq!(server.log.count(0, "Client connected: "), 1);
    // The port that was asked for.
    let port = free_port().to_string();
    let found = ask(&world.dir, CLIENT, &["--echo", "--echo-port", &port]);
    figures(&found);
    assert!(found.text().contains(&format!("through 127.0.0.1:{port}")));
    drop(server);

    let only = free_port();
    let server = world
        .server()
        .set("allowed_ports", vec![only.to_string()])
        .start();
    world
        .client(server.port)
        .tunnel("t", only, service.port())
        .write();
    let found = ask(&world.dir, CLIENT, &["--echo"]);
    assert_eq!(found.of("echo"), ["error E1055"], "{:#}", found.json);
    figures(&ask(
        &world.dir,
        CLIENT,
        &["--echo", "--echo-port", &only.to_string()],
    ));
}

#[test]
fn a_client_that_runs_is_left_alone() {
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    let mut visitor = tunnel.visit();
    ping(&mut visitor).expect("an echo");
    for _ in 0..3 {
        let found = ask(&tunnel.world.dir, CLIENT, &[]);
        assert_eq!(found.of("handshake"), ["ok"], "{:#}", found.json);
        ping(&mut visitor).expect("an echo");
    }
    ping(&mut tunnel.visit()).expect("an echo");
    assert_eq!(tunnel.server.log.count(0, "Client connected: "), 1);
    assert_eq!(tunnel.server.log.count(0, "SECURITY"), 0);
    assert_eq!(tunnel.client.log.count(0, "Disconnected"), 0);

    // With --echo it loses its session, as is said, and comes back by itself.
    let mark = tunnel.client.log.mark();
    let found = ask(&tunnel.world.dir, CLIENT, &["--echo"]);
    figures(&found);
    ping(&mut visitor).expect("an echo: what runs goes on");
    // Who was replaced waits 30 s, so as not to fight.
    let (_, line) =
        (tunnel.client.log).wait_from(mark, "Tunnel t is open on server port ", 3 * PATIENCE);
    let port = line
        .rsplit(' ')
        .next()
        .expect("a port")
        .parse::<u16>()
        .expect("a number");
    ping(&mut rig::connect((Ipv4Addr::LOCALHOST, port))).expect("an echo");
}

#[test]
fn forwards_are_asked_to_their_end() {
    let service = Service::echo();
    let port = service.port();
    // Fixed ports, as people have: 0 is worth a warning.
    let own = free_port();
    let tunnel = ForwardWorld::to(port)
        .client("local_listener.port", own)
        .server("server_listener.port", free_port())
        .run();
    let dir = &tunnel.world.dir;
    let found = ask(dir, CLIENT, &[]);
    assert_eq!(found.faults(), [""; 0], "{:#}", found.json);
    assert_eq!(found.of("forward"), ["ok"]);
    assert_eq!(found.of("certificates"), ["ok"]);
    let on = ["--config", "server_config.json"];
    let found = ask(dir, SERVER, &on);
    assert_eq!(found.faults(), [""; 0], "{:#}", found.json);
    assert_eq!(
        (found.of("target"), found.of("certificates")),
        (vec!["ok".into()], vec!["ok".into()])
    );

    let key = dir.join("certs/laptop.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(ask(dir, CLIENT, &[]).of("key"), ["warning E1306"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");

    let file = dir.join("client_config.json");
    let text = fs::read_to_string(&file).expect("read");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let taken = listener.local_addr().expect("bound").port();
    for (from, to, check, told, code) in [
        (
            "\"localhost\"",
            "\"elsewhere.example\"",
            "forward",
            "error E1203",
            9,
        ),
        (
            "certs/ca.crt",
            "certs/laptop.crt",
            "forward",
            "error E1202",
            9,
        ),
        (
            "certs/laptop.crt",
            "certs/nobody.crt",
            "certificates",
            "error E0408",
            4,
        ),
        (
            &format!("\"port\":{own}"),
            &format!("\"port\":{taken}"),
            "port",
            "error E0501",
            5,
        ),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        fs::write(&file, changed).expect("write");
        let found = ask(dir, CLIENT, &[]);
        assert_eq!(
            (found.of(check), found.code),
            (vec![told.into()], code),
            "{:#}",
            found.json
        );
    }
    fs::write(&file, &text).expect("write");

    drop(service);
    let found = ask(dir, CLIENT, &[]);
    assert_eq!(found.of("forward"), ["error E1213"], "{:#}", found.json);
    let found = ask(dir, SERVER, &on);
    assert_eq!(
        (found.of("target"), found.code),
        (vec!["error E1213".into()], 9)
    );
    let mut tunnel = tunnel;
    tunnel.server.kill();
    let found = ask(&tunnel.world.dir, CLIENT, &[]);
    assert_eq!(found.of("forward"), ["error E1002"], "{:#}", found.json);
}

/// What the command line says of the log counts, as in a run: that is how `service install` starts the programs where
/// a manager keeps no log.
#[test]
fn the_log_file_of_the_command_line_is_the_one_that_is_tried() {
    let world = World::new();
    let service = Service::echo();
    let port = free_port();
    // It is written only.
    let server = |log: Value| {
        let config = serde_json::json!({ "bind": "127.0.0.1", "port": port, "logging": log });
        fs::write(world.dir.join("server_config.json"), config.to_string()).expect("write");
        "server_config.json"
    };
    let client = |log: Value| {
        let client = world.client(port).tunnel("t", 0, service.port());
        client.set("logging", log).write();
        "client_config.json"
    };
    let programs: [(&str, &dyn Fn(Value) -> &'static str); 2] =
        [(SERVER, &server), (CLIENT, &client)];
    for (program, config) in programs {
        let with = |log: Value, arguments: &[&str]| {
            let file = config(log);
            ask(
                &world.dir,
                program,
                &[&["--config", file][..], arguments].concat(),
            )
        };
        let none = || Value::Object(serde_json::Map::new());
        let bad = || serde_json::json!({ "log_file": "/proc/configured.log" });
        let good = || serde_json::json!({ "log_file": "configured.log" });
        // How much room there is depends on the machine of the test.
        let written = |found: &Found, name: &str| {
            assert_ne!(found.of("log"), ["error E1301"], "{:#}", found.json);
            let text = found.text();
            assert!(text.contains(&format!("{name} can be written")), "{text}");
        };
        for typed in ["/proc/typed.log", "allowed_clients.txt/deep/typed.log"] {
            for log in [none(), good()] {
                let found = with(log, &["--log-file", typed]);
                assert_eq!(found.of("log"), ["error E1301"], "{:#}", found.json);
                assert!(found.text().contains(typed), "{:#}", found.json);
                assert!(found.code >= 3, "{}", found.code);
            }
        }
        for typed in ["typed.log", "new/folder/typed.log"] {
            written(&with(bad(), &["--log-file", typed]), typed);
        }
        assert!(!world.dir.join("new").exists(), "nothing is made");
        assert_eq!(with(bad(), &[]).of("log"), ["error E1301"]);
        let found = with(none(), &[]);
        assert_eq!(found.of("log"), ["ok"]);
        assert!(found.text().contains("stdout alone"), "{:#}", found.json);
        // A start with a broken configuration says so in the file that is typed.
        let found = with(Value::from(7), &["--log-file", "/proc/typed.log"]);
        assert_eq!(found.of("config"), ["error E0303"], "{:#}", found.json);
        assert_eq!(found.of("log"), ["error E1301"], "{:#}", found.json);
        // Where nothing is typed nobody knows where it would.
        let found = with(Value::from(7), &[]);
        assert!(found.of("log").is_empty(), "{:#}", found.json);

        let check = |log: Value, arguments: &[&str]| {
            let file = config(log);
            let mut command = Command::new(binary(program));
            command.current_dir(world.dir.path());
            command.args(["check", "--config", file]).args(arguments);
            let ended = Program::run(&mut command, PATIENCE);
            assert_eq!(ended.code, Some(0), "{}", ended.all());
            let mut lines = ended.out.lines();
            lines
                .find(|line| line.starts_with("Logs to "))
                .map(str::to_owned)
        };
        let usual = "a new file before 10485760 bytes are exceeded, old ones kept: 5";
        assert_eq!(check(none(), &[]), None);
        assert_eq!(
            check(good(), &["--log-file", "typed.log"]),
            Some(format!("Logs to stdout and to typed.log: {usual}."))
        );
        let json = ["--log-file", "typed.log", "--log-format", "json"];
        assert_eq!(
            check(none(), &json),
            Some(format!(
                "Logs to stdout and to typed.log: {usual}, one JSON object per line."
            ))
        );
    }
}
