//! Texts per manager, held against the files that packagers take.

use std::fs;
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::act::Way;
use super::spec::{Choices, Spec, check_name, is_low, spec};
use super::steps::{self, Step};
use super::systemd::Dollar;
use super::{How, Manager, Role, ServiceError, Use, Wanted, scripts, systemd, windows};
use crate::scratch::Scratch;

const SERVER: Role = Role {
    program: "minitcptunnel-server",
    title: "MiniTCPTunnel server",
};
const CLIENT: Role = Role {
    program: "minitcptunnel-client",
    title: "MiniTCPTunnel client",
};

fn wanted(role: Role, config: Option<&str>) -> Wanted {
    Wanted {
        role,
        arguments: Vec::new(),
        config: config.map(PathBuf::from),
        log_file: None,
        configured_log: None,
        uses: Vec::new(),
        low_ports: false,
        grace: Duration::from_secs(5),
        left_here: Vec::new(),
    }
}

fn choices(executable: &str) -> Choices {
    Choices {
        executable: executable.into(),
        ..Choices::default()
    }
}

fn usual(manager: Manager, role: Role) -> Spec {
    let config = match role.program {
        "minitcptunnel-server" => None,
        _ => Some("/etc/minitcptunnel/client_config.json"),
    };
    let choices = choices(&format!("/usr/local/bin/{}", role.program));
    let (spec, warnings) = spec(manager, &wanted(role, config), &choices).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    spec
}

/// With UPDATE_SERVICE_FILES set, writes them anew.
#[cfg_attr(windows, ignore = "for managers of Unix, with paths of Unix")]
#[test]
fn the_files_for_packagers_are_what_is_installed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/service");
    let mut checked = 0;
    for (manager, extension) in [
        (Manager::Systemd, "service"),
        (Manager::Openrc, "openrc"),
        (Manager::Procd, "procd"),
        (Manager::Sysv, "sysv"),
    ] {
        for role in [SERVER, CLIENT] {
            let steps = steps::install(manager, &usual(manager, role), "nssm");
            let texts: Vec<&String> = (steps.iter())
                .filter_map(|step| match step {
                    Step::File { text, .. } => Some(text),
                    _ => None,
                })
                .collect();
            assert_eq!(texts.len(), 1, "{manager}");
            let path = folder.join(format!("{}.{extension}", role.program));
            if std::env::var_os("UPDATE_SERVICE_FILES").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, texts[0]).unwrap();
            }
            let file = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(&file, texts[0], "{}", path.display());
            checked += 1;
        }
    }
    assert_eq!(checked, 8);
}

#[test]
fn words_keep_their_signs_in_units() {
    for (text, first, other) in [
        ("/usr/bin/x", "/usr/bin/x", "/usr/bin/x"),
        ("--port", "--port", "--port"),
        ("/a b/c", "\"/a b/c\"", "\"/a b/c\""),
        ("/100%", "/100%%", "/100%%"),
        ("/$HOME", "/$HOME", "/$$HOME"),
        ("a\"b\\c", "\"a\\\"b\\\\c\"", "\"a\\\"b\\\\c\""),
        ("it's", "\"it's\"", "\"it's\""),
        ("-x", "\"-x\"", "\"-x\""),
        ("", "\"\"", "\"\""),
        ("/é", "\"/é\"", "\"/é\""),
        (";", "\";\"", "\";\""),
    ] {
        assert_eq!(systemd::word(text, Dollar::Plain), first, "{text}");
        assert_eq!(systemd::word(text, Dollar::Doubled), other, "{text}");
    }
}

/// The very shell is asked what it makes of them.
#[cfg(unix)]
#[test]
fn words_keep_their_signs_in_shells() {
    for text in [
        "/usr/bin/x",
        "a b",
        "it's",
        "$HOME `id` \"x\" \\",
        "",
        "*",
        "é",
        "~",
        "a;b",
    ] {
        let script = format!("printf %s {}", scripts::quoted(text));
        let out = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
    }
}

#[test]
fn words_keep_their_signs_on_windows() {
    for (text, quoted) in [
        (r"C:\x\y.exe", r"C:\x\y.exe"),
        (r"C:\a b\c", r#""C:\a b\c""#),
        (r"C:\a b\", r#""C:\a b\\""#),
        (r#"a"b"#, r#""a\"b""#),
        (r#"a\"b"#, r#""a\\\"b""#),
        ("", "\"\""),
    ] {
        assert_eq!(windows::quoted(text), quoted);
    }
}

#[cfg_attr(windows, ignore = "for managers of Unix, with paths of Unix")]
#[test]
fn relative_paths_become_absolute_and_are_told() {
    let dir = Scratch::new();
    let here = std::env::current_dir().unwrap();
    let config = dir.path().join("server_config.json");
    let typed = dir.path().join("absolute.log");
    fs::write(
        &config,
        format!(
            "{{\"identity_key_file\":\"key.hex\",\"logging\":{{\"log_file\":{:?}}}}}",
            typed.display().to_string()
        ),
    )
    .unwrap();
    let mut it = wanted(SERVER, Some("odd/server.json"));
    let (made, warnings) = spec(Manager::Systemd, &it, &choices("/bin/x")).unwrap();
    let absolute = here.join("odd/server.json").display().to_string();
    assert_eq!(made.arguments, ["--config", &absolute]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("--config odd/server.json is relative; the service gets /"));
    assert!(warnings[0].ends_with("(E1508)"), "{warnings:?}");

    it = wanted(SERVER, config.to_str());
    let uses = |key, name, how| Use {
        key,
        path: dir.path().join(name),
        how,
    };
    it.uses = vec![
        uses("logging.log_file", "absolute.log", How::Writes),
        uses("identity_key_file", "key.hex", How::Owns),
    ];
    it.configured_log = Some(typed.clone());
    let (made, warnings) = spec(Manager::Systemd, &it, &choices("/bin/x")).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("identity_key_file is not an absolute path"),
        "{warnings:?}"
    );
    let folder = dir.path().display().to_string();
    assert_eq!(made.writable, std::slice::from_ref(&folder));
    assert_eq!(made.log_file, Some(typed.display().to_string()));
    assert!(made.own.is_empty());
    assert!(
        systemd::unit(&made).contains(&format!("\nReadWritePaths={folder}\nProtectHome=yes\n"))
    );
    // What is not named has its usual place, of which there is nothing to tell; one that lies open stays as it is.
    let list = dir.path().join("list.txt");
    fs::write(&list, "").unwrap();
    it.uses
        .push(uses("allowed_clients_file", "list.txt", How::Makes));
    let (made, warnings) = spec(Manager::Systemd, &it, &choices("/bin/x")).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(made.own.is_empty(), "{:?}", made.own);
    #[cfg(unix)]
    {
        fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).unwrap();
        let (made, warnings) = spec(Manager::Systemd, &it, &choices("/bin/x")).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(made.own, [list.display().to_string()]);
    }
    it.uses.pop();
    // A key that is there is given to the service's user, and its folder stays closed.
    fs::write(dir.path().join("key.hex"), "x").unwrap();
    it.uses.remove(0);
    it.configured_log = None;
    let (made, _) = spec(Manager::Systemd, &it, &choices("/bin/x")).unwrap();
    assert_eq!(made.own, [dir.path().join("key.hex").display().to_string()]);
    assert!(made.writable.is_empty(), "{:?}", made.writable);
}

#[test]
fn a_key_that_would_be_left_here_can_be_taken_along() {
    let mut it = wanted(SERVER, None);
    it.left_here = vec!["server_identity_key.hex".into()];
    let mut choices = choices("/bin/x");
    choices.name = Some("web".to_owned());
    let (_, warnings) = spec(Manager::Systemd, &it, &choices).unwrap();
    let here = std::env::current_dir().unwrap();
    let from = scripts::quoted(&here.join("server_identity_key.hex").display().to_string());
    let to = "/var/lib/web/server_identity_key.hex";
    let end = format!(
        "start: mkdir -p /var/lib/web && cp {from} {to} && chown minitcptunnel {to} && chmod 600 {to} (E1510)"
    );
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].ends_with(&end), "{warnings:?}");
    // Where it looks anyway there is nothing to do. That is a path of Unix, which only Unix calls absolute.
    if cfg!(unix) {
        it.left_here = vec![to.into()];
        let (_, warnings) = spec(Manager::Systemd, &it, &choices).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn what_cannot_be_handed_over_is_refused() {
    let config = "/etc/a\nExecStart=/bin/evil";
    let choices = choices("/bin/x");
    let e = spec(Manager::Systemd, &wanted(SERVER, Some(config)), &choices).unwrap_err();
    assert!(matches!(e, ServiceError::Unusable(..)), "{config}: {e}");
    for name in ["a/b", "-a", "", "a b", "$(id)"] {
        let e = check_name("the name", name, Manager::Systemd).unwrap_err();
        assert!(matches!(e, ServiceError::Unusable(..)), "{name}: {e}");
    }
}

#[test]
fn ports_below_1024_are_low_and_any_port_is_not() {
    let low: Vec<u16> = [0, 1, 1023, 1024]
        .into_iter()
        .filter(|port| is_low(*port))
        .collect();
    assert_eq!(low, [1, 1023]);
}

#[test]
fn low_ports_cost_one_capability_and_no_more() {
    let mut it = usual(Manager::Systemd, SERVER);
    let without = systemd::unit(&it);
    assert!(without.contains("\nCapabilityBoundingSet=\nAmbientCapabilities=\nNoNew"));
    it.low_ports = true;
    let with = systemd::unit(&it);
    assert!(with.contains(
        "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\nNoNew"
    ));
    let set = Step::Run(
        ["setcap", "cap_net_bind_service=+ep", &it.executable]
            .map(str::to_owned)
            .to_vec(),
    );
    assert!(steps::install(Manager::Sysv, &it, "nssm").contains(&set));
    assert!(scripts::openrc(&it).contains("\ncapabilities=\"^cap_net_bind_service\"\n"));
    assert!(scripts::procd(&it).contains("\tprocd_set_param user root\n"));
    // By the first word of its command, whatever the service is called.
    let shown = steps::logs(Manager::Procd, "web", "minitcptunnel-server", 7, true).unwrap();
    assert_eq!(shown.join(" "), "logread -e minitcptunnel-server -l 7 -f");
}

#[test]
fn windows_gets_one_command_per_fact() {
    // Absolute where this runs.
    let at = |name: &str| {
        if cfg!(windows) {
            format!(r"C:\{name}")
        } else {
            format!("/C/{name}")
        }
    };
    let (config, log) = (at("a b.json"), at("log"));
    let mut it = wanted(SERVER, Some(&config));
    it.log_file = Some(log.clone().into());
    let (mut made, _) = spec(Manager::Windows, &it, &choices("/C/Program Files/x.exe")).unwrap();
    made.state_dir = r"C:\Data\x".to_owned();
    let commands = windows::native(&made);
    assert_eq!(
        commands[0][..4],
        ["sc", "create", "minitcptunnel-server", "binPath="]
    );
    assert_eq!(
        commands[0][4],
        format!(
            r#""/C/Program Files/x.exe" --config "{config}" --log-file {log} service run --dir C:\Data\x"#
        )
    );
    assert_eq!(commands[0][5..8], ["start=", "auto", "obj="]);
    // A key that was made for an administrator alone would be out of the service's reach.
    made.own = vec![r"C:\a b.json".to_owned()];
    let given = [
        "icacls",
        r"C:\a b.json",
        "/grant",
        r"NT AUTHORITY\LocalService:R",
    ];
    for manager in [Manager::Windows, Manager::Nssm] {
        let steps = steps::install(manager, &made, "nssm");
        assert!(
            steps
                .iter()
                .any(|step| matches!(step, Step::Try(command) if *command == given)),
            "{steps:?}"
        );
    }
    let it = wanted(SERVER, Some(&config));
    let (made, _) = spec(Manager::Nssm, &it, &choices("/C/x.exe")).unwrap();
    let commands = windows::nssm(&made, "nssm");
    let set = |key: &str, value: &str| {
        let mut found = commands
            .iter()
            .filter(|c| c.get(3).is_some_and(|k| k == key));
        assert!(
            found.any(|c| c.last().is_some_and(|v| v == value)),
            "{key} {value}: {commands:?}"
        );
    };
    set("AppParameters", &format!("--config \"{config}\""));
    set("AppStopMethodConsole", "20000");
    set("AppExit", "Restart");
    set("AppRotateOnline", "1");
    set("obj=", r"NT AUTHORITY\LocalService");
    assert!(
        commands
            .iter()
            .any(|c| c[3] == "AppStdout" && c[4].ends_with("minitcptunnel-server.log"))
    );
    // Two would write one file, and rotate it, each in its own way.
    let log = Some(PathBuf::from(log));
    for (typed, configured) in [(&log, &None), (&None, &log), (&log, &log)] {
        let mut it = wanted(SERVER, Some(&config));
        it.log_file.clone_from(typed);
        it.configured_log.clone_from(configured);
        let (made, _) = spec(Manager::Nssm, &it, &choices("/C/x.exe")).unwrap();
        let commands = windows::nssm(&made, "nssm");
        assert!(
            !commands
                .iter()
                .any(|c| c[3].starts_with("AppStd") || c[3].starts_with("AppRotate")),
            "{commands:?}"
        );
    }
    for code in ["2", "3", "4", "6"] {
        assert!(commands.iter().any(|c| c[3..] == ["AppExit", code, "Exit"]));
    }
}

#[cfg(unix)]
#[test]
fn no_link_is_followed() {
    let dir = Scratch::new();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("mine"), "mine").unwrap();
    // As `systemctl mask` leaves it.
    fs::create_dir(at("units")).unwrap();
    std::os::unix::fs::symlink(at("mine"), at("units/x.service")).unwrap();
    let way = Way {
        manager: Manager::Systemd,
        print: false,
        force: true,
        root: Some(dir.path().to_owned()),
    };
    let file = Step::File {
        path: "/units/x.service".to_owned(),
        text: "ours".to_owned(),
        executable: false,
    };
    way.take(&[file], &mut Vec::new(), &mut Vec::new()).unwrap();
    assert_eq!(fs::read_to_string(at("mine")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(at("units/x.service")).unwrap(), "ours");
    assert!(!at("units/x.service").is_symlink());
    // What somebody else has put in a key's place is not given away.
    std::os::unix::fs::symlink(at("mine"), at("link")).unwrap();
    fs::hard_link(at("mine"), at("second")).unwrap();
    for name in ["link", "second", "units"] {
        super::act::give(&at(name), "root").unwrap_err();
    }
    let mode = fs::metadata(at("mine")).unwrap().permissions();
    assert_ne!(mode.mode() & 0o777, 0o600);
}

#[test]
fn a_name_is_looked_at_before_it_is_part_of_a_path() {
    use clap::Subcommand as _;
    let verbs = ["install", "uninstall", "start", "stop", "status", "logs"];
    let names = verbs.map(|verb| (verb, "--name", "../../x y"));
    for (verb, option, name) in names.into_iter().chain([("install", "--user", "$(id)")]) {
        let typed = clap::Command::new("service").no_binary_name(true);
        let typed = super::Command::augment_subcommands(typed);
        let words = [verb, "--print", "--manager", "sysv", option, name];
        let words = words
            .into_iter()
            .filter(|w| *w != "--print" || !["status", "logs"].contains(&verb));
        let matches = typed.get_matches_from(words);
        let command = <super::Command as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let wanted = || unreachable!("the names come first");
        let done = super::command::perform(&command, SERVER, wanted, || Ok(()), &mut out, &mut err);
        assert!(
            matches!(done, Err(ServiceError::Unusable(..))),
            "{verb}: {done:?}"
        );
        assert!(out.is_empty(), "{verb}");
    }
}

#[test]
fn managers_are_known_by_their_signs() {
    let dir = Scratch::new();
    assert_eq!(Manager::detect_under(dir.path()), None);
    for (sign, manager) in [
        ("etc/init.d", Manager::Sysv),
        ("run/openrc", Manager::Openrc),
        ("sbin/procd", Manager::Procd),
        ("run/systemd/system", Manager::Systemd),
    ] {
        fs::create_dir_all(dir.path().join(sign)).unwrap();
        assert_eq!(Manager::detect_under(dir.path()), Some(manager));
    }
}

#[test]
fn files_of_others_stay() {
    let dir = Scratch::new();
    let way = |force| Way {
        manager: Manager::Systemd,
        print: false,
        force,
        root: Some(dir.path().to_path_buf()),
    };
    let steps = steps::install(Manager::Systemd, &usual(Manager::Systemd, SERVER), "nssm");
    let unit = dir
        .path()
        .join("etc/systemd/system/minitcptunnel-server.service");
    let take = |force, steps: &[Step]| way(force).take(steps, &mut Vec::new(), &mut Vec::new());
    take(false, &steps).unwrap();
    let ours = fs::read_to_string(&unit).unwrap();
    assert!(ours.contains("ExecStart=/usr/local/bin/minitcptunnel-server\n"));
    // Ours is replaced without a word, somebody's is not, nor removed.
    take(false, &steps).unwrap();
    fs::write(&unit, "[Service]\n").unwrap();
    let remove = [Step::Remove(
        "/etc/systemd/system/minitcptunnel-server.service".to_owned(),
    )];
    for steps in [&steps[..], &remove] {
        let e = take(false, steps).unwrap_err();
        assert!(matches!(e, ServiceError::Foreign(_)), "{e}");
        assert_eq!(fs::read_to_string(&unit).unwrap(), "[Service]\n");
    }
    take(true, &steps).unwrap();
    assert_eq!(fs::read_to_string(&unit).unwrap(), ours);
    take(false, &remove).unwrap();
    assert!(!unit.exists());
}

#[cfg_attr(windows, ignore = "for managers of Unix, with paths of Unix")]
#[test]
fn what_is_shown_is_not_done() {
    let dir = Scratch::new();
    let way = Way {
        manager: Manager::Openrc,
        print: true,
        force: false,
        root: Some(dir.path().to_path_buf()),
    };
    let mut out = Vec::new();
    let steps = steps::install(Manager::Openrc, &usual(Manager::Openrc, CLIENT), "nssm");
    way.take(&steps, &mut out, &mut Vec::new()).unwrap();
    let out = String::from_utf8(out).unwrap();
    for part in [
        "# unless there is a user minitcptunnel:\nuseradd --system ",
        "# file /etc/init.d/minitcptunnel-client, mode 755:\n#!/sbin/openrc-run\n",
        "\nrc-update add minitcptunnel-client default\n",
    ] {
        assert!(out.contains(part), "{part:?} is not in:\n{out}");
    }
    assert!(dir.names().is_empty());
}

/// The script that `install` would write, with its places in a folder, and a start-stop-daemon that does what those of
/// Debian and Busybox do.
#[cfg(target_os = "linux")]
mod sysv {
    use super::*;
    use std::process::{Command, Output};

    struct Script {
        dir: Scratch,
        program: PathBuf,
    }

    impl Script {
        fn new(program: &str) -> Self {
            let dir = Scratch::new();
            let place = |name: &str| dir.path().join(name);
            let executable = place("program");
            write(&executable, program);
            // Its options: -S -b -m -p FILE -c USER -x PROGRAM -- ARGUMENTS.
            write(
                &place("start-stop-daemon"),
                "#!/bin/sh\npid=$5 shell=$9\nshift 10\n\"$shell\" \"$@\" </dev/null >/dev/null 2>&1 &\necho $! >\"$pid\"\n",
            );
            write(&place("chown"), "#!/bin/sh\n");
            let mut spec = usual(Manager::Sysv, SERVER);
            spec.executable = executable.display().to_string();
            spec.arguments = vec!["--config".to_owned(), "/etc/my server.json".to_owned()];
            spec.state_dir = place("state").display().to_string();
            spec.writable.clear();
            spec.log_file = Some(place("log").display().to_string());
            let here = dir.path().display();
            let text = scripts::sysv(&spec)
                .replace("PATH=/sbin", &format!("PATH={here}:/sbin"))
                .replace("/run/", &format!("{here}/"));
            write(&place("script"), &text);
            Self {
                dir,
                program: executable,
            }
        }

        fn run(&self, verb: &str) -> (Option<i32>, String) {
            let out = Command::new(self.dir.path().join("script"))
                .arg(verb)
                .output();
            let Output {
                status,
                stdout,
                stderr,
            } = out.unwrap();
            let said = [stdout, stderr].concat();
            (status.code(), String::from_utf8(said).unwrap())
        }

        fn pid_file(&self) -> PathBuf {
            self.dir.path().join("minitcptunnel-server.pid")
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            self.run("stop");
        }
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Shells and the like end at SIGTERM.
    const STAYS: &str = "#!/bin/sh\nwhile :; do sleep 0.1; done\n";

    #[test]
    fn starts_and_stops() {
        let script = Script::new(STAYS);
        assert_eq!(
            script.run("status"),
            (Some(3), "minitcptunnel-server is not running\n".to_owned())
        );
        assert_eq!(
            script.run("reload"),
            (Some(7), "minitcptunnel-server is not running\n".to_owned())
        );
        assert_eq!(script.run("start"), (Some(0), String::new()));
        let pid = fs::read_to_string(script.pid_file()).unwrap();
        let running = format!("minitcptunnel-server is running (pid {})\n", pid.trim());
        assert_eq!(script.run("status"), (Some(0), running.clone()));
        assert_eq!(script.run("start"), (Some(0), String::new()));
        assert_eq!(script.run("status"), (Some(0), running));
        assert_eq!(script.run("stop"), (Some(0), String::new()));
        assert_eq!(script.run("status").0, Some(3));
        assert!(!script.pid_file().exists());
    }

    #[test]
    fn a_start_that_fails_is_told() {
        let script = Script::new("#!/bin/sh\necho the reason >&2\nexit 3\n");
        let (code, said) = script.run("start");
        assert_eq!(code, Some(1), "{said}");
        let log = script.dir.path().join("log");
        assert_eq!(
            said,
            format!(
                "minitcptunnel-server ended as soon as it was started; {} says why, or this does: {} --config \
                 /etc/my server.json check\n",
                log.display(),
                script.program.display()
            )
        );
        assert_eq!(fs::read_to_string(&log).unwrap(), "the reason\n");
        assert!(!script.pid_file().exists());
        fs::remove_file(&script.program).unwrap();
        assert_eq!(script.run("start").0, Some(1));
        let told = fs::read_to_string(&log).unwrap();
        let program = script.program.display().to_string();
        assert!(told.contains(&program), "{told}");
    }

    /// After a crash the number in the file may be somebody else's, who is not to be stopped.
    #[test]
    fn a_number_that_has_gone_to_another_is_not_ours() {
        let script = Script::new(STAYS);
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(script.pid_file(), other.id().to_string()).unwrap();
        let told = script.run("status");
        let stopped = script.run("stop");
        let alive = other.try_wait().unwrap().is_none();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(told.0, Some(3), "{told:?}");
        assert!(
            told.1.ends_with("it ended without having been stopped\n"),
            "{told:?}"
        );
        assert_eq!(stopped.0, Some(0), "{stopped:?}");
        assert!(alive);
    }
}

/// Only Windows has a manager that calls it; what a person is told who types it is the same text everywhere.
#[test]
fn why_service_run_cannot_has_a_code_and_the_exit_code_of_the_readme() {
    use crate::codes::{Code, Coded as _};
    use crate::exit::ExitCode;

    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    for (e, code, exit, words) in [
        (
            ServiceError::Folder("/var/lib/x".into(), missing),
            Code::SERVICE_FOLDER,
            ExitCode::Failure,
            "in the folder /var/lib/x: ",
        ),
        (
            ServiceError::NotCalled("1063".into()),
            Code::SERVICE_NOT_CALLED,
            ExitCode::Usage,
            "(1063); `run` runs in a terminal",
        ),
    ] {
        assert_eq!((e.code(), e.exit_code()), (code, exit), "{e}");
        assert!(e.to_string().contains(words), "{e}");
    }
}
