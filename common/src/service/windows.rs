//! The commands for services of Windows: native ones by sc.exe, and NSSM's.

use super::spec::Spec;

/// One argument of a command line that is taken apart as programs of Windows do.
pub(super) fn quoted(text: &str) -> String {
    if !text.is_empty() && !text.contains([' ', '\t', '"']) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    let mut backslashes = 0;
    for c in text.chars() {
        match c {
            '\\' => backslashes += 1,
            '"' => {
                // Before a quote each backslash counts, and the quote needs one of its own.
                out.push_str(&"\\".repeat(backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        out.push(c);
    }
    out.push_str(&"\\".repeat(backslashes));
    out.push('"');
    out
}

fn line<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = texts.into_iter().map(quoted).collect();
    words.join(" ")
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A file of its own that was made for administrators and the system alone: the service's user may read it, too.
pub(super) fn give(file: &str, user: &str) -> Vec<String> {
    command(&["icacls", file, "/grant", &format!("{user}:R")])
}

/// What only administrators, the system and the service's user may look into.
pub(super) fn protect(folder: &str, user: &str) -> Vec<String> {
    command(&[
        "icacls",
        folder,
        "/inheritance:r",
        "/grant:r",
        "*S-1-5-18:(OI)(CI)F",
        "*S-1-5-32-544:(OI)(CI)F",
        &format!("{user}:(OI)(CI)M"),
    ])
}

/// Registers a native service.
pub(super) fn native(spec: &Spec) -> Vec<Vec<String>> {
    let name = spec.name.as_str();
    let run = ["service", "run", "--dir", &spec.state_dir];
    let words = std::iter::once(spec.executable.as_str())
        .chain(spec.arguments.iter().map(String::as_str))
        .chain(run);
    // The path is always in quotes: without, a folder with a space would be tried as a program.
    let mut words: Vec<&str> = words.collect();
    let program = words.remove(0);
    let path = format!("\"{program}\" {}", line(words));
    vec![
        command(&[
            "sc",
            "create",
            name,
            "binPath=",
            &path,
            "start=",
            "auto",
            "obj=",
            &spec.user,
            "DisplayName=",
            spec.role.title,
        ]),
        command(&["sc", "description", name, spec.role.title]),
        command(&[
            "sc",
            "failure",
            name,
            "reset=",
            "3600",
            "actions=",
            "restart/3000/restart/3000/restart/30000",
        ]),
        // Also when it ends by itself with an exit code, not only when it crashes.
        command(&["sc", "failureflag", name, "1"]),
    ]
}

/// Registers a service that NSSM runs.
pub(super) fn nssm(spec: &Spec, nssm: &str) -> Vec<Vec<String>> {
    let name = spec.name.as_str();
    let parameters = line(spec.arguments.iter().map(String::as_str));
    let wait = (spec.stop_seconds * 1000).to_string();
    let set = |key: &str, values: &[&str]| {
        let mut words = command(&[nssm, "set", name, key]);
        words.extend(values.iter().map(|value| (*value).to_owned()));
        words
    };
    let mut commands = vec![
        command(&[nssm, "install", name, &spec.executable]),
        set("AppParameters", &[&parameters]),
        set("AppDirectory", &[&spec.state_dir]),
        set("DisplayName", &[spec.role.title]),
        set("Description", &[spec.role.title]),
        set("Start", &["SERVICE_AUTO_START"]),
        // NSSM would ask for a password, which this kind of user has not.
        command(&["sc", "config", name, "obj=", &spec.user]),
        // Ctrl+C first, and only that: the program takes no other hint, and ends in order.
        set("AppStopMethodConsole", &[&wait]),
        set("AppRestartDelay", &["3000"]),
        set("AppExit", &["Default", "Restart"]),
    ];
    if let Some(log) = &spec.log_file {
        commands.push(set("AppStdout", &[log]));
        commands.push(set("AppStderr", &[log]));
        commands.push(set("AppRotateFiles", &["1"]));
        commands.push(set("AppRotateOnline", &["1"]));
        commands.push(set("AppRotateBytes", &["10485760"]));
    }
    // Usage, configuration, key and a final refusal do not heal by themselves.
    for code in ["2", "3", "4", "6"] {
        commands.push(set("AppExit", &[code, "Exit"]));
    }
    commands
}
