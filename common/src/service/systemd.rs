//! The unit of systemd.

use super::spec::Spec;
use super::steps::written_by;

/// Two for each connection, and what else is open. A system that allows less says so at start.
const OPEN_FILES: u32 = 65536;
/// A thread for each direction that moves data.
const TASKS: u32 = 16384;
/// Semantics: longer than a slow disk or a swapping board may hold a loop, short enough to be noticed.
const WATCHDOG_SECONDS: u32 = 60;

/// What `NAME.service` says.
pub(super) fn unit(spec: &Spec) -> String {
    let capabilities = if spec.low_ports {
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE"
    } else {
        "CapabilityBoundingSet=\nAmbientCapabilities="
    };
    let home = if spec.in_home { "read-only" } else { "yes" };
    let command: Vec<String> = std::iter::once(word(&spec.executable, Dollar::Plain))
        .chain(spec.arguments.iter().map(|it| word(it, Dollar::Doubled)))
        .collect();
    let writable: String = spec
        .writable
        .iter()
        .map(|folder| format!("ReadWritePaths={}\n", word(folder, Dollar::Plain)))
        .collect();
    let state = &spec.name;
    format!(
        "\
# {written_by}
# Changes of your own belong into a drop-in, which a new installation leaves alone: systemctl edit {name}

[Unit]
Description={title}
Wants=network-online.target
After=network-online.target
# It starts again for as long as it takes.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec={WATCHDOG_SECONDS}
Restart=always
RestartSec=3
# Usage, configuration, key and a final refusal do not heal by themselves.
RestartPreventExitStatus=2 3 4 6
TimeoutStopSec={stop}
User={user}
StateDirectory={state}
StateDirectoryMode=0700
WorkingDirectory=/var/lib/{state}
UMask=0077
LimitNOFILE={OPEN_FILES}
TasksMax={TASKS}
# Crashes leave no memory with keys in it behind.
LimitCORE=0

{capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
{writable}ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
# Not ProcSubset=pid: how much memory there is stands in /proc, and memory_budget is a part of it.
ProtectProc=invisible
# Unix for readiness and the journal, netlink for the name service.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources

[Install]
WantedBy=multi-user.target
",
        written_by = written_by(spec),
        name = spec.name,
        title = spec.role.title,
        command = command.join(" "),
        stop = spec.stop_seconds,
        user = spec.user,
    )
}

/// The first word of a command is a path, in which a dollar sign is one; in the others it begins a variable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dollar {
    Plain,
    Doubled,
}

/// One word of a value that systemd takes apart.
pub(super) fn word(text: &str, dollar: Dollar) -> String {
    // A percent sign begins a specifier everywhere.
    let mut out = text.replace('%', "%%");
    if dollar == Dollar::Doubled {
        out = out.replace('$', "$$");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%$".contains(c);
    if !out.is_empty() && out.chars().all(plain) && !out.starts_with(['-', '@', ':', '+', '='])
        || out.starts_with("--") && out.chars().all(plain)
    {
        return out;
    }
    format!("\"{}\"", out.replace('\\', "\\\\").replace('"', "\\\""))
}
