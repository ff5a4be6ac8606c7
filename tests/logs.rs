//! Log files and formats of the real programs. Here belongs: what stands in the file beside stdout, rotation,
//! SIGHUP, levels. Not here: single texts.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use rig::{
    Ended, PATIENCE, Piped, Program, Service, TempDir, Tunnelled, World, binary, eventually,
    figure, tool,
};
use serde_json::{Value, json};

const SERVER: &str = "minitcptunnel-server";

fn ask(visitor: &mut TcpStream, text: &[u8; 4]) {
    visitor.write_all(text).expect("write");
    let mut back = [0; 4];
    visitor.read_exact(&mut back).expect("an answer");
    assert_eq!(&back, text);
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(str::to_owned).collect()
}

/// Two threads that log at once may come out in one order here and in the other there.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// All of a rotated log, the oldest first.
fn whole(path: &Path) -> Vec<String> {
    let old = |number: usize| path.with_extension(format!("log.{number}"));
    let count = (1..).take_while(|&number| old(number).exists()).count();
    let mut all: Vec<String> = (1..=count).rev().flat_map(|n| lines(&old(n))).collect();
    all.extend(lines(path));
    all
}

/// What logrotate does without `copytruncate`: move, signal. Both programs, under a connection that goes on.
#[test]
fn logs_are_moved_away_under_traffic() {
    let service = Service::echo();
    let mut tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("logging", json!({ "log_file": "logs/server.log" })),
        |client| client.set("logging", json!({ "log_file": "logs/client.log" })),
    );
    let mut visitor = tunnel.visit();
    ask(&mut visitor, b"one.");
    let logs = tunnel.world.dir.join("logs");
    for (name, program) in [
        ("server.log", &tunnel.server.program),
        ("client.log", &tunnel.client.program),
    ] {
        let path = logs.join(name);
        fs::rename(&path, path.with_extension("log.1")).expect("the log is there");
        let mark = program.log.mark();
        program.signal("HUP");
        program
            .log
            .wait_from(mark, "SIGHUP: the log file was opened anew", PATIENCE);
        eventually(PATIENCE, "the new log", || path.exists().then_some(()));
    }
    ask(&mut visitor, b"two.");
    ask(&mut tunnel.visit(), b"new.");
    drop(visitor);
    for (name, program) in [
        ("client.log", &mut tunnel.client.program),
        ("server.log", &mut tunnel.server.program),
    ] {
        program.signal("TERM");
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
        let path = logs.join(name);
        let after = lines(&path);
        assert!(
            after[0].ends_with("SIGHUP: the log file was opened anew"),
            "{after:?}"
        );
        assert!(lines(&path.with_extension("log.1")).len() > 3);
        // The same lines as on stdout, every one of them once.
        assert_eq!(sorted(whole(&path)), sorted(program.log.to_end(PATIENCE)));
    }
    figure(
        "logs moved away and SIGHUP, both programs",
        format_args!("a connection went on; no line lost, none twice"),
    );
}

#[test]
fn a_log_that_is_rotated_by_size_loses_nothing() {
    let service = Service::greeter(b"hello");
    let mut tunnel = Tunnelled::with(
        service.port(),
        |server| {
            let rotation = json!({ "max_size": 1024, "keep": 1000 });
            server.set(
                "logging",
                json!({ "log_file": "server.log", "rotation": rotation }),
            )
        },
        |client| client,
    );
    for _ in 0..30 {
        rig::read_end(&mut tunnel.visit());
    }
    tunnel.server.program.signal("TERM");
    assert_eq!(tunnel.server.program.wait_exit(PATIENCE).code(), Some(0));
    let path = tunnel.world.dir.join("server.log");
    assert!(path.with_extension("log.5").exists());
    for number in 1..=5 {
        let old = fs::metadata(path.with_extension(format!("log.{number}"))).expect("there");
        assert!(old.len() <= 1024, "{}", old.len());
    }
    let printed = tunnel.server.log.to_end(PATIENCE);
    assert_eq!(sorted(whole(&path)), sorted(printed));
}

/// What people have open in a terminal for weeks.
#[test]
fn tail_follows_through_rotations() {
    let service = Service::greeter(b"hello");
    let world = World::new();
    let rotation = json!({ "max_size": 2048, "keep": 1000 });
    let mut server = world
        .server()
        .set(
            "logging",
            json!({ "log_file": "server.log", "rotation": rotation }),
        )
        .arguments(&["--verbose"])
        .start();
    let (path, seen) = (world.dir.join("server.log"), world.dir.join("seen"));
    let mut tail = Command::new("sh");
    tail.current_dir(world.dir.path()).args([
        "-c",
        "exec tail -n +1 -s 0.1 -F server.log >seen 2>/dev/null",
    ]);
    let mut tail = Program::start("tail", &mut tail);
    let client = world
        .client(server.port)
        .tunnel("t", 0, service.port())
        .start();
    let port = client.port_of("t");
    // Of a file that is being written, the end of the last line may not be there yet.
    let last = |path: &Path| {
        let text = fs::read_to_string(path).ok()?;
        let whole = text.strip_suffix('\n')?;
        whole.lines().last().map(str::to_owned)
    };
    let caught_up = |path: &Path| {
        eventually(PATIENCE, "tail to show the last line", || {
            (last(&seen)? == last(path)?).then_some(())
        });
    };
    for _ in 0..30 {
        rig::read_end(&mut rig::connect((Ipv4Addr::LOCALHOST, port)));
        caught_up(&path);
    }
    fs::rename(&path, world.dir.join("moved.log")).expect("it is there");
    server.program.signal("HUP");
    server.log.wait("the log file was opened anew", PATIENCE);
    rig::read_end(&mut rig::connect((Ipv4Addr::LOCALHOST, port)));
    caught_up(&path);
    drop(client);
    server.program.signal("TERM");
    assert_eq!(server.program.wait_exit(PATIENCE).code(), Some(0));
    caught_up(&path);
    tail.signal("TERM");
    tail.wait_exit(PATIENCE);
    assert!(path.with_extension("log.3").exists(), "it was rotated");
    // `tail` itself may miss what is written in the instant before a file is moved, whoever moves it; what counts is
    // that it goes on with the new file every time, and shows nothing twice or torn.
    let (seen, all) = (lines(&seen), server.log.to_end(PATIENCE));
    let strange: Vec<&String> = seen.iter().filter(|line| !all.contains(line)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(seen.len() <= all.len(), "{} of {}", seen.len(), all.len());
}

#[test]
fn a_full_disk_stops_no_traffic_and_the_gap_is_told() {
    let service = Service::echo();
    let world = World::new();
    let log = world.dir.join("server.log");
    std::os::unix::fs::symlink("/dev/full", &log).expect("symlink");
    let server = world
        .server()
        .arguments(&["-v", "--log-file", "server.log"])
        .start();
    let client = world
        .client(server.port)
        .tunnel("t", 0, service.port())
        .start();
    let port = client.port_of("t");
    let visit = || ask(&mut rig::connect((Ipv4Addr::LOCALHOST, port)), b"ping");
    visit();
    server.log.wait(
        "log: the log file server.log cannot be written: No space left on device",
        PATIENCE,
    );
    // Room again: the link leads elsewhere. It is noticed with the first line a second later.
    let disk = world.dir.join("disk");
    fs::remove_file(&log).expect("remove");
    std::os::unix::fs::symlink(&disk, &log).expect("symlink");
    eventually(PATIENCE, "the log to be written again", || {
        visit();
        disk.exists().then_some(())
    });
    server.log.wait(
        "log: the log file server.log is written again; lines missing in it: ",
        PATIENCE,
    );
    let first = lines(&disk).remove(0);
    assert!(
        first.contains(" WARN  log: log lines lost here: ")
            && first.contains("(server.log could not be written: No space left on device"),
        "{first}"
    );
    assert_eq!(server.log.count(0, "cannot be written"), 1);
    figure(
        "the disk of the log is full",
        format_args!("traffic went on; told once on stdout, the gap with its count in the file"),
    );
}

/// `minitcptunnel-server | tee FILE`, and tee ends: of both programs.
#[test]
fn a_stdout_that_nobody_reads_any_more_stops_no_traffic_and_is_told_once() {
    /// Leaves before the program has said all.
    fn listen_once(program: &mut Piped) {
        let mut one = [0];
        program.read_exact(&mut one).expect("its first line");
        program.close_stdout();
    }
    /// The number behind `text` in the file, as soon as it is there.
    fn number_in(file: &Path, text: &str) -> u16 {
        eventually(PATIENCE, text, || {
            let all = fs::read_to_string(file).ok()?;
            // A line that has its end.
            let line = all.split_inclusive('\n').find(|it| it.contains(text))?;
            let number = line.strip_suffix('\n')?.split(text).nth(1)?;
            let digits = number.split(|it: char| !it.is_ascii_digit()).next()?;
            digits.parse().ok()
        })
    }
    let service = Service::echo();
    let world = World::new();
    let (of_server, of_client) = (world.dir.join("server.log"), world.dir.join("client.log"));
    let server = world
        .server()
        .arguments(&["-v", "--log-file", "server.log"]);
    let mut server = Piped::start(&mut server.command());
    listen_once(&mut server);
    let port = number_in(&of_server, "Control Server listening on ");
    let client = world.client(port).tunnel("t", 0, service.port());
    let client = client.arguments(&["-v", "--log-file", "client.log"]);
    let mut client = Piped::start(&mut client.command());
    listen_once(&mut client);
    let public = number_in(&of_client, "Tunnel t is open on server port ");
    let mut long = rig::connect((Ipv4Addr::LOCALHOST, public));
    for _ in 0..20 {
        ask(&mut long, b"long");
        ask(&mut rig::connect((Ipv4Addr::LOCALHOST, public)), b"ping");
    }
    drop(long);
    for (mut program, file, visit) in [
        (client, of_client, " client::local_proxy: pair tunnel="),
        (server, of_server, "New public connection from "),
    ] {
        program.terminate();
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
        let lines = lines(&file);
        let of_stdout: Vec<&String> = lines.iter().filter(|it| it.contains("stdout")).collect();
        assert_eq!(of_stdout.len(), 1, "{lines:#?}");
        assert!(
            of_stdout[0].contains(" WARN  log: stdout cannot be written: Broken pipe")
                && of_stdout[0].ends_with(" code=E1308"),
            "{of_stdout:?}"
        );
        let visits = lines.iter().filter(|it| it.contains(visit)).count();
        assert_eq!(visits, 21, "{lines:#?}");
        assert!(
            !lines.iter().any(|it| it.contains("lost here")),
            "{lines:#?}"
        );
        assert_eq!(program.errors.lines(), [""; 0]);
    }
    figure(
        "what reads stdout has gone, both programs",
        format_args!("traffic went on; told once in the log file, in which no line is missing"),
    );
}

#[test]
fn json_is_one_object_per_line_in_both_outputs_and_programs() {
    let service = Service::greeter(b"hello");
    let mut tunnel = Tunnelled::with(
        service.port(),
        |server| {
            // Asked for in the file here, on the command line there.
            let logging = json!({ "format": "json", "log_file": "server.log", "level": "debug" });
            server.set("logging", logging).arguments(&[])
        },
        |client| {
            client.arguments(&[
                "--debug",
                "--log-format",
                "json",
                "--log-file",
                "client.log",
            ])
        },
    );
    rig::read_end(&mut tunnel.visit());
    for (name, target, program) in [
        ("client.log", "client", &mut tunnel.client.program),
        ("server.log", "server", &mut tunnel.server.program),
    ] {
        program.signal("TERM");
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
        let printed = program.log.to_end(PATIENCE);
        let written = lines(&tunnel.world.dir.join(name));
        assert_eq!(sorted(written), sorted(printed.clone()));
        let mut debug = 0;
        for line in &printed {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
            let always = ["ts", "level", "target", "msg"];
            // And one more where the text names an error code.
            let code = value["msg"]
                .as_str()
                .is_some_and(|text| text.contains(" code=E"));
            let wanted = always.into_iter().chain(code.then_some("code"));
            assert!(keys.into_iter().eq(wanted), "{line}");
            debug += usize::from(value["level"] == "DEBUG");
        }
        assert!(debug > 0, "{printed:?}");
        assert!(
            printed
                .iter()
                .any(|line| line.contains(&format!("\"target\":\"{target}")))
        );
    }
}

/// The command line, else `RUST_LOG`, else the configuration, else INFO.
#[test]
fn levels_have_an_order() {
    let dir = TempDir::new();
    let said = |level: &str, rust_log: &str, arguments: &[&str]| -> Ended {
        let config = dir.join("server_config.yaml");
        fs::write(&config, format!("bind: 127.0.0.1\nlogging: {{{level}}}\n")).expect("write");
        let mut command = Command::new(binary(SERVER));
        command
            .current_dir(dir.path())
            .env("RUST_LOG", rust_log)
            .args([
                "--config",
                "server_config.yaml",
                "--port",
                "0",
                "--timeout",
                "0.05",
            ])
            .args(arguments);
        let ended = Program::run(&mut command, PATIENCE);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        ended
    };
    // Every run says so at INFO; -v also allows DEBUG, which `--timeout` alone need not cause.
    let info = "Control Server listening on";
    assert!(said("", "", &[]).out.contains(info));
    assert!(!said("level: warn", "", &[]).out.contains(info));
    assert!(said("level: warn", "info", &[]).out.contains(info));
    assert!(!said("level: info", "error", &[]).out.contains(info));
    assert!(said("level: error", "off", &["-v"]).out.contains(info));
    assert!(said("level: error", "off", &["--debug"]).out.contains(info));
}

#[test]
fn a_hangup_is_for_the_log_or_for_the_terminal() {
    // Nobody's terminal and no log file: the program goes on, and serves.
    let service = Service::echo();
    let tunnel = Tunnelled::to(service.port());
    for program in [&tunnel.server.program, &tunnel.client.program] {
        program.signal("HUP");
        program.log.wait("SIGHUP: there is no log file", PATIENCE);
    }
    ask(&mut tunnel.visit(), b"ping");

    // A terminal that is closed: the program ends in order, unless it has a log file.
    for (arguments, stops) in [("", true), ("--log-file a.log", false)] {
        let dir = TempDir::new();
        let server = format!(
            "echo $$ >pid; exec '{}' --bind 127.0.0.1 --port 0 --grace 0 {arguments}",
            binary(SERVER).display()
        );
        let mut command = Command::new(tool("script", "bsdutils"));
        command.current_dir(dir.path()).args([
            "--quiet",
            "--return",
            "--command",
            &server,
            "/dev/null",
        ]);
        let mut terminal = Program::start("server in a terminal", &mut command);
        terminal.log.wait("Control Server listening on ", PATIENCE);
        let pid = fs::read_to_string(dir.join("pid")).expect("pid");
        let kill = |signal: &str| {
            let sent = Command::new("sh")
                .args(["-c", &format!("kill -{signal} {}", pid.trim())])
                .status();
            assert!(sent.expect("sh").success(), "kill -{signal}");
        };
        kill("HUP");
        if !stops {
            terminal
                .log
                .wait("SIGHUP: the log file was opened anew", PATIENCE);
            assert_eq!(terminal.exited(), None);
            kill("TERM");
        }
        assert_eq!(terminal.wait_exit(PATIENCE).code(), Some(0));
        terminal.log.wait("Stopping; a second signal", PATIENCE);
    }
}
