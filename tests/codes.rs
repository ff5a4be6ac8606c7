//! Error codes of the real programs. Here belongs: that what goes wrong names its code, and what `explain` says
//! about it. Not here: which error has which code (unit tests), other texts.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use minitcptunnel_common::codes::Code;
use rig::{Ended, PATIENCE, Program, Service, TempDir, Tunnelled, World, binary, free_port};

const SERVER: &str = "minitcptunnel-server";
const CLIENT: &str = "minitcptunnel-client";

/// In a folder without a configuration, and without a locale but the one that is given.
fn explain(program: &str, arguments: &[&str], locale: &[(&str, &str)]) -> Ended {
    let dir = TempDir::new();
    // `explain` needs no configuration, and is not held up by one that is broken.
    fs::write(dir.join("client_config.json"), "{").expect("write");
    let mut command = Command::new(binary(program));
    command
        .current_dir(dir.path())
        .arg("explain")
        .args(arguments);
    for name in ["LC_ALL", "LC_MESSAGES", "LANG"] {
        command.env_remove(name);
    }
    command.envs(locale.iter().copied());
    Program::run(&mut command, PATIENCE)
}

#[test]
fn codes_are_explained_in_three_languages() {
    const ENGLISH: &str = "E0501: The port is in use\n";
    const KOREAN: &str = "E0501: 포트가 이미 사용 중입니다\n";
    const FRENCH: &str = "E0501: Le port est déjà pris\n";
    let korean = ("LANG", "ko_KR.UTF-8");
    let french = ("LANG", "fr_FR.UTF-8");
    for program in [SERVER, CLIENT] {
        for (arguments, locale, head, cure) in [
            (&["E0501"][..], &[][..], ENGLISH, "\nCure: "),
            (&["E0501"], &[korean], KOREAN, "\n해결: "),
            (&["E0501"], &[french], FRENCH, "\nRemède : "),
            // LC_ALL before LC_MESSAGES before LANG; an empty one counts as none.
            (
                &["e501"],
                &[korean, ("LC_ALL", "fr_CA")],
                FRENCH,
                "\nRemède : ",
            ),
            (
                &["501"],
                &[("LC_ALL", ""), ("LC_MESSAGES", "fr"), korean],
                FRENCH,
                "\nRemède : ",
            ),
            (&["E0501"], &[("LANG", "de_DE.UTF-8")], ENGLISH, "\nCure: "),
            // What is asked for comes before the locale.
            (&["E0501", "--lang", "ko"], &[french], KOREAN, "\n해결: "),
            (&["--lang", "fr", "E0501"], &[korean], FRENCH, "\nRemède : "),
            (&["--lang", "en", "E0501"], &[korean], ENGLISH, "\nCure: "),
        ] {
            let ended = explain(program, arguments, locale);
            assert_eq!(ended.code, Some(0), "{}", ended.all());
            assert!(
                ended.out.starts_with(head),
                "{arguments:?} {locale:?}: {}",
                ended.out
            );
            assert!(
                ended.out.contains(cure),
                "{arguments:?} {locale:?}: {}",
                ended.out
            );
            assert_eq!(ended.err, "");
        }
    }
    let both = explain(CLIENT, &["E0501", "E0601"], &[]);
    assert!(both.out.contains(ENGLISH), "{}", both.out);
    assert!(both.out.contains("\n\nE0601: "), "{}", both.out);
}

#[test]
fn without_a_code_all_are_listed_with_their_exit_codes() {
    for program in [SERVER, CLIENT] {
        let ended = explain(program, &[], &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        let lines: Vec<&str> = ended.out.lines().collect();
        assert_eq!(lines.len(), Code::ALL.len() + 1, "{}", ended.out);
        assert!(
            ended.out.contains("\nE0501  5     The port is in use"),
            "{}",
            ended.out
        );
        assert!(
            ended
                .out
                .contains("\nE1002        The server refuses the connection"),
            "{}",
            ended.out
        );
    }
}

#[test]
fn what_is_no_code_is_a_usage_error_with_hints() {
    for program in [SERVER, CLIENT] {
        for (arguments, said) in [
            (&["E0310"][..], "near it are E0301, "),
            (&["nonsense"], "`explain` without a code lists all"),
            (&["E0501", "--lang", "de"], "none of en, ko, fr"),
        ] {
            let ended = explain(program, arguments, &[]);
            assert_eq!(ended.code, Some(2), "{}", ended.all());
            assert!(ended.err.contains(said), "{arguments:?}: {}", ended.err);
            let pointer = format!("(E0201; \"{program} explain E0201\" says more)");
            assert!(
                ended.err.ends_with(&pointer),
                "{arguments:?}: {}",
                ended.err
            );
            assert_eq!(ended.out, "");
        }
    }
}

/// Whoever pipes it into `head` is told nothing about that.
#[test]
fn a_closed_stdout_is_nobodys_problem() {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("\"$0\" explain | true; exit 0")
        .arg(binary(CLIENT));
    let ended = Program::run(&mut command, PATIENCE);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

/// Commands say it on stderr, running programs at the end of the line in the log.
#[test]
fn what_ends_a_program_names_its_code() {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let taken = holder.local_addr().expect("bound").port().to_string();
    let broken = "{\n  \"port\": 1,\n  \"prot\": 2,\n  \"max_clients\": 0\n}";
    for (arguments, exit, code, is_command) in [
        (&["check", "--config", "s.json"][..], 3, "E0303", true),
        (&["pubkey", "--config", "s.json"], 3, "E0303", true),
        (&["--config", "s.json"], 3, "E0303", false),
        (&["--config", "s.toml"], 3, "E0304", false),
        (&["pubkey"], 4, "E0404", true),
        (&["health", "--port", "0"], 1, "E0102", true),
        (&["certs", "init", "--host", ""], 2, "E0202", true),
        (&["certs", "client", "alice"], 4, "E0413", true),
        (&["service", "run", "--dir", "nowhere"], 1, "E1512", true),
        (
            &["--bind", "127.0.0.1", "--port", &taken],
            5,
            "E0501",
            false,
        ),
        (&["--bind", "192.0.2.1", "--port", "0"], 5, "E0503", false),
    ] {
        let dir = TempDir::new();
        fs::write(dir.join("s.json"), broken).expect("write");
        let mut command = Command::new(binary(SERVER));
        let ended = Program::run(command.current_dir(dir.path()).args(arguments), PATIENCE);
        assert_eq!(ended.code, Some(exit), "{arguments:?}: {}", ended.all());
        if is_command {
            let last = ended.err.lines().last().unwrap_or_default();
            let pointer = format!("({code}; \"{SERVER} explain {code}\" says more)");
            assert_eq!(last, pointer, "{arguments:?}: {}", ended.all());
        } else {
            let tail = format!(" code={code}");
            let said = |line: &str| line.contains(" ERROR ") && line.ends_with(&tail);
            let count = ended.out.lines().filter(|line| said(line)).count();
            assert_eq!(count, 1, "{arguments:?}: {}", ended.all());
        }
    }
}

#[test]
fn a_client_that_gets_no_session_names_the_code() {
    let world = World::new();
    let server = world.server().start();
    let other = minitcptunnel_common::identity::IdentityKey::generate().expect("random bytes");
    let pinned = world.client(server.port);
    let mistaken = pinned
        .set("server_pub_key", other.public().to_string())
        .start();
    mistaken
        .log
        .wait("does NOT match expected key!* code=E1007", PATIENCE);
    let stranger = world.client(server.port).identity(&other).start();
    stranger
        .log
        .wait("No session with*allowed_clients.txt* code=E1005", PATIENCE);
    server
        .log
        .wait("Client identity not in whitelist*code=E1017", PATIENCE);
    let alone = world.client(free_port()).start();
    alone
        .log
        .wait("No session with*cannot connect* code=E1002", PATIENCE);
}

#[test]
fn tunnels_and_services_that_fail_name_the_code() {
    let world = World::new();
    let holder = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    let taken = holder.local_addr().expect("bound").port();
    let server = world.server().start();
    let client = world.client(server.port).tunnel("taken", taken, 1).start();
    server
        .log
        .wait("Failed to open tunnel: taken*in use*code=E1103", PATIENCE);
    client
        .log
        .wait("Tunnel taken is not open: *code=E1101", PATIENCE);
    drop((client, server));

    let dead = free_port();
    let tunnel = Tunnelled::to(dead);
    let _visitor = tunnel.visit();
    tunnel
        .client
        .log
        .wait("Refused a connection of tunnel*code=E1106", PATIENCE);
}

#[test]
fn a_revoked_client_ends_with_the_code_of_its_exit_code() {
    let service = Service::echo();
    let mut tunnel = Tunnelled::with(service.port(), |server| server, |client| client.hasty());
    tunnel.world.allow(&[]);
    assert_eq!(tunnel.client.program.wait_exit(PATIENCE).code(), Some(6));
    tunnel.client.log.wait(" ERROR *code=E0601", PATIENCE);
}

/// A program that reads the log gets the code as a key of its own.
#[test]
fn json_lines_have_the_code_as_a_key() {
    let dir = TempDir::new();
    let mut command = Command::new(binary(SERVER));
    let arguments = ["--log-format", "json", "--bind", "192.0.2.1", "--port", "0"];
    let ended = Program::run(command.current_dir(dir.path()).args(arguments), PATIENCE);
    let lines = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<serde_json::Value> = lines.collect();
    let errors: Vec<_> = lines
        .iter()
        .filter(|line| line["level"] == "ERROR")
        .collect();
    assert_eq!(errors.len(), 1, "{}", ended.out);
    assert_eq!(errors[0]["code"], "E0503");
    let plain = lines
        .iter()
        .find(|line| line["level"] == "INFO")
        .expect("a line");
    assert!(plain.get("code").is_none(), "{plain}");
}
