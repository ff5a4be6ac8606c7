//! The programs under a service manager. Here belongs: what they tell it, and what `service` would give it. The
//! manager itself is played, as it is not the one that runs this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rig::{Ended, PATIENCE, Program, TempDir, binary, free_port, tool, wait_for_port};

const SERVER: &str = "minitcptunnel-server";
const CLIENT: &str = "minitcptunnel-client";
const KEY: &str = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";
const SEED: &str = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";

/// The manager's end of the line.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(dir: &TempDir) -> Self {
        let path = dir.join("notify");
        Self(UnixDatagram::bind(&path).expect("bind"), path)
    }

    fn hear(&self, within: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(within)).expect("timeout");
        let mut room = [0; 4096];
        let n = self.0.recv(&mut room).ok()?;
        Some(String::from_utf8_lossy(&room[..n]).into_owned())
    }

    /// The next message that has this in it; others are passed over.
    fn wait(&self, wanted: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let heard = self.hear(left.max(Duration::from_millis(1)));
            let heard = heard.unwrap_or_else(|| panic!("the manager never heard {wanted:?}"));
            if heard.contains(wanted) {
                return heard;
            }
        }
    }

    fn start(
        &self,
        dir: &TempDir,
        program: &str,
        arguments: &[&str],
        watchdog: Duration,
    ) -> Program {
        let mut command = Command::new(binary(program));
        command
            .current_dir(dir.path())
            .env("NOTIFY_SOCKET", &self.1)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string())
            .args(arguments);
        Program::start(program, &mut command)
    }
}

fn client_config(dir: &TempDir, port: u16) {
    let text = format!(
        "{{\"server_host\":\"127.0.0.1\",\"server_port\":{port},\"server_pub_key\":\"{KEY}\",\
         \"identity_private_key_hex\":\"{SEED}\",\"tunnels\":[]}}"
    );
    let path = dir.join("client_config.json");
    fs::write(&path, text).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
}

#[test]
fn the_server_says_ready_alive_and_stopping() {
    let dir = TempDir::new();
    let manager = Manager::new(&dir);
    let port = free_port().to_string();
    let arguments = ["--port", &port, "--bind", "127.0.0.1"];
    let mut program = manager.start(&dir, SERVER, &arguments, Duration::from_millis(200));
    let first = manager.wait("READY=1");
    assert_eq!(
        first,
        format!("READY=1\nSTATUS=takes clients on port {port}")
    );
    // Ready means that it listens already.
    drop(
        std::net::TcpStream::connect(("127.0.0.1", port.parse().expect("a port")))
            .expect("listens"),
    );
    for _ in 0..3 {
        assert_eq!(manager.wait("WATCHDOG=1"), "WATCHDOG=1");
    }
    // What stands still does not say that it lives.
    program.signal("STOP");
    while manager.hear(Duration::from_millis(300)).is_some() {}
    assert_eq!(manager.hear(Duration::from_millis(700)), None, "silence");
    program.signal("CONT");
    manager.wait("WATCHDOG=1");
    program.signal("TERM");
    manager.wait("STOPPING=1");
    assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
    while let Some(heard) = manager.hear(Duration::from_millis(50)) {
        assert!(!heard.contains("READY"), "{heard}");
    }
}

#[test]
fn the_client_is_ready_without_its_server_and_says_how_it_is() {
    let dir = TempDir::new();
    let manager = Manager::new(&dir);
    client_config(&dir, free_port());
    let mut program = manager.start(&dir, CLIENT, &[], Duration::from_millis(200));
    manager.wait("READY=1\nSTATUS=connecting");
    manager.wait("STATUS=not connected to 127.0.0.1:");
    manager.wait("WATCHDOG=1");
    manager.wait("WATCHDOG=1");
    program.signal("TERM");
    manager.wait("STOPPING=1");
    assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn without_a_watchdog_nobody_is_told_more_than_once() {
    let dir = TempDir::new();
    let manager = Manager::new(&dir);
    let arguments = ["--port", "0", "--bind", "127.0.0.1"];
    let program = manager.start(&dir, SERVER, &arguments, Duration::ZERO);
    manager.wait("READY=1");
    assert_eq!(manager.hear(Duration::from_millis(500)), None);
    drop(program);
}

fn service(dir: &TempDir, program: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(binary(program));
    command.current_dir(dir.path()).args(arguments);
    Program::run(&mut command, PATIENCE)
}

#[test]
fn what_would_be_installed_is_shown_and_nothing_is_done() {
    let dir = TempDir::new();
    client_config(&dir, 9000);
    let root = dir.join("root");
    let root = root.to_str().expect("UTF-8");
    for (manager, file) in [
        (
            "systemd",
            "/etc/systemd/system/minitcptunnel-client.service",
        ),
        ("openrc", "/etc/init.d/minitcptunnel-client"),
        ("procd", "/etc/init.d/minitcptunnel-client"),
        ("sysv", "/etc/init.d/minitcptunnel-client"),
        ("windows", "sc create minitcptunnel-client"),
        ("nssm", "nssm install minitcptunnel-client"),
    ] {
        let arguments = [
            "--config",
            "client_config.json",
            "service",
            "install",
            "--print",
            "--root",
            root,
            "--manager",
            manager,
        ];
        let ended = service(&dir, CLIENT, &arguments);
        let all = ended.all();
        assert_eq!(ended.code, Some(0), "{manager}: {all}");
        assert!(all.contains(file), "{manager}: {all}");
        assert!(
            all.contains("--config client_config.json is relative; the service gets /"),
            "{all}"
        );
        let absolute = dir.join("client_config.json").display().to_string();
        assert!(
            all.contains(&format!("--config {absolute}")),
            "{manager}: {all}"
        );
        assert!(!std::path::Path::new(root).exists(), "{manager}");
    }
}

#[test]
fn a_service_is_installed_into_another_root_and_taken_out_again() {
    let dir = TempDir::new();
    let root = dir.join("root");
    let root = root.to_str().expect("UTF-8");
    let unit = dir.join("root/etc/systemd/system/minitcptunnel-server.service");
    let run = |verb: &str, more: &[&str]| {
        let mut arguments = vec![
            "--port",
            "443",
            "service",
            verb,
            "--root",
            root,
            "--manager",
            "systemd",
        ];
        arguments.extend(more);
        let ended = service(&dir, SERVER, &arguments);
        (ended.code, ended.all())
    };
    let (code, said) = run("status", &[]);
    assert_eq!(code, Some(4), "{said}");
    let (code, said) = run("install", &["--user", "daemon"]);
    assert_eq!(code, Some(0), "{said}");
    let text = fs::read_to_string(&unit).expect("written");
    assert!(text.contains(" --port 443\n"), "{text}");
    assert!(text.contains("\nUser=daemon\n"), "{text}");
    // 443 is below 1024, so the one capability is there without being asked for.
    assert!(
        text.contains("\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"),
        "{text}"
    );
    assert_eq!(
        fs::metadata(&unit).expect("there").permissions().mode() & 0o777,
        0o644
    );
    let (code, said) = run("status", &[]);
    assert_eq!(code, Some(3), "{said}");
    fs::write(&unit, "[Service]\n").expect("write");
    let (code, said) = run("install", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("E1503"), "{said}");
    let (code, said) = run("uninstall", &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!unit.exists());
    let (code, said) = run("install", &["--name", "a/b"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("E1505"), "{said}");
}

/// The script of SysV init, with the real start-stop-daemon and the real shell; only its folders are others.
#[test]
fn the_script_of_sysv_init_starts_and_stops_the_server() {
    tool("start-stop-daemon", "dpkg");
    let dir = TempDir::new();
    let root = dir.join("root");
    let port = free_port().to_string();
    let arguments = [
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "service",
        "install",
        "--manager",
        "sysv",
        "--root",
        root.to_str().expect("UTF-8"),
        "--user",
        "root",
    ];
    let ended = service(&dir, SERVER, &arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.all());
    let script = root.join("etc/init.d/minitcptunnel-server");
    let text = fs::read_to_string(&script).expect("written");
    let mut moved = text;
    for folder in [
        "/var/lib/minitcptunnel-server",
        "/var/log/minitcptunnel-server",
        "/run/minitcptunnel-server",
    ] {
        let there = dir.join(folder.trim_start_matches('/'));
        fs::create_dir_all(there.parent().expect("a folder")).expect("made");
        moved = moved.replace(folder, there.to_str().expect("UTF-8"));
    }
    fs::write(&script, moved).expect("write");
    let run = |verb: &str| {
        let ended = Program::run(Command::new(&script).arg(verb), PATIENCE);
        (ended.code, ended.all())
    };
    assert_eq!(run("status").0, Some(3));
    let (code, said) = run("start");
    assert_eq!(code, Some(0), "{said}");
    wait_for_port(port.parse().expect("a port"));
    let (code, said) = run("status");
    assert_eq!(code, Some(0), "{said}");
    // A second start finds the first.
    assert_eq!(run("start").0, Some(0));
    assert_eq!(run("reload").0, Some(0));
    let (code, said) = run("stop");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(run("status").0, Some(3));
    let key = dir.join("var/lib/minitcptunnel-server/server_identity_key.hex");
    assert_eq!(
        fs::metadata(key)
            .expect("made in its folder")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let log = fs::read_to_string(dir.join("var/log/minitcptunnel-server/minitcptunnel-server.log"))
        .expect("a log");
    for line in [
        "Control Server listening on",
        "SIGHUP: the log file was opened anew",
        "Server stopped",
    ] {
        assert!(log.contains(line), "{line} is not in:\n{log}");
    }
}
