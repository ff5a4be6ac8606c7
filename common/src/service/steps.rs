//! What each command of `service` comes to, step by step, for each manager. Nothing is touched here.

use super::spec::Spec;
use super::{Manager, scripts, systemd, windows};

/// The sign by which our files are known.
pub(super) const MARK: &str = "service install`; `service uninstall` takes it away again.";

/// The line that says who wrote a file.
pub(super) fn written_by(spec: &Spec) -> String {
    format!("Written by `{} {MARK}", spec.role.program)
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes a folder, unless it is there, and gives it to a user.
    Folder(String, String),
    /// Writes a file of ours.
    File {
        path: String,
        text: String,
        executable: bool,
    },
    /// Lets a user, and nobody else, read and write a file.
    Give(String, String),
    /// Takes a file of ours away.
    Remove(String),
    /// Makes a user by the first command that this system has, unless he is there.
    User(String, Vec<Vec<String>>),
    /// Runs a command, which has to succeed.
    Run(Vec<String>),
    /// Runs a command; that it fails is worth a warning.
    Try(Vec<String>),
    /// Runs the first of these commands that this system has.
    First(Vec<Vec<String>>),
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// The file that makes a service known to its manager.
pub(super) fn file(manager: Manager, name: &str) -> Option<String> {
    manager.files(name).into_iter().next()
}

/// What `install` does. `nssm` is the program of that name.
pub(super) fn install(manager: Manager, spec: &Spec, nssm: &str) -> Vec<Step> {
    let name = spec.name.as_str();
    let mut steps = Vec::new();
    if manager.is_of_windows() {
        steps.push(Step::Folder(spec.state_dir.clone(), String::new()));
        steps.push(Step::Try(windows::protect(&spec.state_dir, &spec.user)));
        let own = spec.own.iter();
        steps.extend(own.map(|file| Step::Try(windows::give(file, &spec.user))));
        let commands = match manager {
            Manager::Nssm => windows::nssm(spec, nssm),
            _ => windows::native(spec),
        };
        // Without the first there is no service; without one of the others it is not as it should be.
        for (n, command) in commands.into_iter().enumerate() {
            let needed = n == 0 || command.iter().any(|word| word == "AppParameters");
            steps.push(if needed {
                Step::Run(command)
            } else {
                Step::Try(command)
            });
        }
        return steps;
    }
    if spec.user != "root" {
        steps.push(Step::User(
            spec.user.clone(),
            ways_to_make_user(manager, &spec.user, &spec.state_dir),
        ));
    }
    // The script of a manager makes its own log folder at every start, for /var/log may be in memory.
    if manager == Manager::Systemd {
        for folder in &spec.writable {
            steps.push(Step::Folder(folder.clone(), spec.user.clone()));
        }
    }
    for own in &spec.own {
        steps.push(Step::Give(own.clone(), spec.user.clone()));
    }
    let (text, executable) = match manager {
        Manager::Systemd => (systemd::unit(spec), false),
        Manager::Openrc => (scripts::openrc(spec), true),
        Manager::Procd => (scripts::procd(spec), true),
        _ => (scripts::sysv(spec), true),
    };
    if let Some(path) = file(manager, name) {
        steps.push(Step::File {
            path,
            text,
            executable,
        });
    }
    if manager == Manager::Sysv && spec.low_ports {
        steps.push(Step::Run(vec![
            "setcap".into(),
            "cap_net_bind_service=+ep".into(),
            spec.executable.clone(),
        ]));
    }
    steps.extend(match manager {
        Manager::Systemd => vec![
            Step::Run(words("systemctl daemon-reload")),
            Step::Run(words(&format!("systemctl enable {name}.service"))),
        ],
        Manager::Openrc => vec![Step::Run(words(&format!("rc-update add {name} default")))],
        Manager::Procd => vec![Step::Run(words(&format!("/etc/init.d/{name} enable")))],
        _ => vec![Step::First(vec![
            words(&format!("update-rc.d {name} defaults")),
            words(&format!("chkconfig --add {name}")),
            // Busybox starts what is called S and two digits, in this order.
            words(&format!("ln -sf {name} /etc/init.d/S90{name}")),
        ])],
    });
    steps
}

fn ways_to_make_user(manager: Manager, user: &str, home: &str) -> Vec<Vec<String>> {
    if manager == Manager::Procd {
        let script = format!(
            ". /lib/functions.sh; user_add {user} '' \"$(group_add_next {user})\" {user} {home} /bin/false"
        );
        return vec![vec!["sh".into(), "-c".into(), script]];
    }
    let mut ways = vec![words(&format!(
        "useradd --system --user-group --no-create-home --home-dir {home} --shell /usr/sbin/nologin {user}"
    ))];
    // Busybox, which would put it into a group that others share.
    let script =
        format!("addgroup -S {user}; adduser -S -D -H -G {user} -h {home} -s /sbin/nologin {user}");
    ways.push(vec!["sh".into(), "-c".into(), script]);
    ways
}

/// What `uninstall` does.
pub(super) fn uninstall(manager: Manager, name: &str, nssm: &str) -> Vec<Step> {
    let mut steps = vec![stop(manager, name)];
    // A service that does not run cannot be stopped, which is no reason to keep it.
    if let Some(Step::Run(command)) = steps.pop() {
        steps.push(Step::Try(command));
    }
    let remove = file(manager, name).map(Step::Remove);
    match manager {
        Manager::Systemd => {
            steps.push(Step::Try(words(&format!(
                "systemctl disable {name}.service"
            ))));
            steps.extend(remove);
            steps.push(Step::Run(words("systemctl daemon-reload")));
        }
        Manager::Openrc => {
            steps.push(Step::Try(words(&format!("rc-update del {name} default"))));
            steps.extend(remove);
        }
        Manager::Procd => {
            steps.push(Step::Try(words(&format!("/etc/init.d/{name} disable"))));
            steps.extend(remove);
        }
        Manager::Sysv => {
            steps.extend(remove);
            steps.push(Step::First(vec![
                words(&format!("update-rc.d {name} remove")),
                words(&format!("chkconfig --del {name}")),
                words(&format!("rm -f /etc/init.d/S90{name}")),
            ]));
        }
        Manager::Windows => steps.push(Step::Run(words(&format!("sc delete {name}")))),
        Manager::Nssm => steps.push(Step::Run(vec![
            nssm.to_owned(),
            "remove".into(),
            name.to_owned(),
            "confirm".into(),
        ])),
    }
    steps
}

fn told(manager: Manager, name: &str, verb: &str) -> Vec<String> {
    words(&match manager {
        Manager::Systemd => format!("systemctl {verb} {name}.service"),
        Manager::Openrc => format!("rc-service {name} {verb}"),
        Manager::Procd | Manager::Sysv => format!("/etc/init.d/{name} {verb}"),
        // NSSM's services are services like others. `net` waits for what comes of it, `sc` does not.
        Manager::Windows | Manager::Nssm => format!("net {verb} {name}"),
    })
}

/// What `start` does.
pub(super) fn start(manager: Manager, name: &str) -> Step {
    Step::Run(told(manager, name, "start"))
}

/// What `stop` does.
pub(super) fn stop(manager: Manager, name: &str) -> Step {
    Step::Run(told(manager, name, "stop"))
}

/// What tells whether it runs.
pub(super) fn status(manager: Manager, name: &str) -> Vec<String> {
    match manager {
        Manager::Systemd => words(&format!(
            "systemctl --no-pager --lines=0 status {name}.service"
        )),
        Manager::Windows | Manager::Nssm => words(&format!("sc query {name}")),
        _ => told(manager, name, "status"),
    }
}

/// What shows the log, where no file holds it.
pub(super) fn logs(
    manager: Manager,
    name: &str,
    program: &str,
    lines: u32,
    follow: bool,
) -> Option<Vec<String>> {
    let mut command = match manager {
        Manager::Systemd => words(&format!(
            "journalctl --no-pager --unit {name}.service --lines {lines}"
        )),
        // The name that logd knows is that of the command's first word.
        Manager::Procd => words(&format!("logread -e {program} -l {lines}")),
        _ => return None,
    };
    if follow {
        command.push("-f".into());
    }
    Some(command)
}
