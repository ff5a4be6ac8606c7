//! The scripts of OpenRC, procd and SysV init.

use super::spec::Spec;
use super::steps::written_by;

/// Two for each connection, and what else is open.
const OPEN_FILES: u32 = 65536;

/// One word for a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What a line of a script begins with that tells `service logs` where the log is.
pub(super) const LOG_LINE: &str = "# Log: ";

fn log_line(spec: &Spec) -> String {
    let file = spec.log_file.as_deref().unwrap_or("none");
    format!("{LOG_LINE}{file}")
}

fn words<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let words: Vec<String> = texts.into_iter().map(|text| quoted(text)).collect();
    words.join(" ")
}

/// The folders that have to be there and belong to the service's user.
fn folders(spec: &Spec) -> Vec<(&str, &str)> {
    let others = spec.writable.iter().map(|folder| (folder.as_str(), "0750"));
    // A log folder that lies in its own place is ours to make; others are somebody's already.
    let logs = format!("/var/log/{}", spec.name);
    std::iter::once((spec.state_dir.as_str(), "0700"))
        .chain(others.filter(move |(folder, _)| *folder == logs))
        .collect()
}

/// `/etc/init.d/NAME` of OpenRC.
pub(super) fn openrc(spec: &Spec) -> String {
    let user = &spec.user;
    let mut prepared = String::new();
    for (folder, mode) in folders(spec) {
        prepared.push_str(&format!(
            "\tcheckpath --directory --mode {mode} --owner {user} {} || return 1\n",
            quoted(folder)
        ));
    }
    let capabilities = if spec.low_ports {
        "# Ports below 1024 (OpenRC 0.45 or later, built with libcap).\ncapabilities=\"^cap_net_bind_service\"\n"
    } else {
        ""
    };
    format!(
        "\
#!/sbin/openrc-run
# {written_by}
{log_line}
# shellcheck shell=dash disable=SC2034

name={title}
description={title}
supervisor=supervise-daemon
command={command}
# The shell takes these apart once more.
command_args={arguments}
command_user={user}
directory={state}
umask=077
output_log=/dev/null
error_log=/dev/null
respawn_delay=3
respawn_max=0
retry=TERM/{stop}/KILL/5
{capabilities}extra_started_commands=\"reload\"

depend() {{
\tneed localmount
\tuse net dns logger
\tafter firewall
}}

start_pre() {{
{prepared}\t# With rc_ulimit a system that allows fewer would not start it at all.
\tulimit -n {OPEN_FILES} 2>/dev/null || ulimit -n \"$(ulimit -H -n)\"
\t# Some versions hand no_new_privs=yes to their supervisor as an option that it does not know, and older ones have none.
\tif supervise-daemon \"$RC_SVCNAME\" --help 2>&1 | grep -q -e --no-new-privs; then
\t\tsupervise_daemon_args=\"${{supervise_daemon_args:-}} --no-new-privs\"
\tfi
}}

reload() {{
\tebegin \"Opening the log file of $RC_SVCNAME anew\"
\tsupervise-daemon \"$RC_SVCNAME\" --signal HUP
\teend $?
}}
",
        log_line = log_line(spec),
        written_by = written_by(spec),
        title = quoted(spec.role.title),
        // As the arguments: OpenRC's own shell evaluates both.
        command = quoted(&quoted(&spec.executable)),
        arguments = quoted(&words(&spec.arguments)),
        state = quoted(&spec.state_dir),
        stop = spec.stop_seconds,
    )
}

/// `/etc/init.d/NAME` of procd.
pub(super) fn procd(spec: &Spec) -> String {
    // It cannot change to a folder, and its log knows a service by the first word of the command: hence no shell. Without
    // a jail it can hand no capability over.
    let user = if spec.low_ports { "root" } else { &spec.user };
    let mut prepared = String::new();
    for (folder, mode) in folders(spec) {
        let folder = quoted(folder);
        prepared.push_str(&format!(
            "\tmkdir -p {folder} && chmod {mode} {folder} && chown {user} {folder}\n"
        ));
    }
    format!(
        "\
#!/bin/sh /etc/rc.common
# {written_by}
# shellcheck shell=dash disable=SC2016,SC2034

USE_PROCD=1
START=99
STOP=10

start_service() {{
{prepared}\tprocd_open_instance
\tprocd_set_param command {command} service run --dir {state}
\tprocd_set_param user {user}
\tprocd_set_param no_new_privs 1
\t# Again after 3 s, however often.
\tprocd_set_param respawn 3600 3 0
\tprocd_set_param limits nofile=\"{OPEN_FILES} {OPEN_FILES}\"
\tprocd_set_param stdout 1
\tprocd_set_param stderr 1
\tprocd_set_param term_timeout {stop}
\tprocd_close_instance
}}

reload_service() {{
\tprocd_send_signal {name} '*' HUP
}}
",
        written_by = written_by(spec),
        state = quoted(&spec.state_dir),
        command = words(std::iter::once(&spec.executable).chain(&spec.arguments)),
        stop = spec.stop_seconds,
        name = spec.name,
    )
}

/// The same with a log as the second one, for what is said before the program itself opens it, and last words.
const WITH_LOG: &str = r#"'umask 077; log=$1; shift; cd "$0" && exec "$@" 2>>"$log"'"#;

/// `/etc/init.d/NAME` of SysV init, for the start-stop-daemon of Debian and that of Busybox.
pub(super) fn sysv(spec: &Spec) -> String {
    let user = &spec.user;
    let mut prepared = String::new();
    for (folder, mode) in folders(spec) {
        let folder = quoted(folder);
        prepared.push_str(&format!(
            "\tmkdir -p {folder} && chmod {mode} {folder} && chown {user} {folder} || return 1\n"
        ));
    }
    let command = words(std::iter::once(&spec.executable).chain(&spec.arguments));
    // A program that cannot read its configuration does not know the log file that is named there.
    let check = if spec.arguments.iter().any(|it| it == "--log-file") {
        String::new()
    } else {
        format!("', or this does:' {command} check")
    };
    format!(
        "\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          {name}
# Required-Start:    $remote_fs $syslog
# Required-Stop:     $remote_fs $syslog
# Should-Start:      $network $named
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: {title}
### END INIT INFO
# {written_by}
{log_line}
# SysV init does not start again what has failed.
# shellcheck disable=SC2016

PATH=/sbin:/usr/sbin:/bin:/usr/bin
name={name}
pid_file=/run/{name}.pid

# The number may be another's by now, and not everybody who asks may signal it.
running() {{
\tpid=$(cat \"$pid_file\" 2>/dev/null) && [ -n \"$pid\" ] || return 1
\t{{ tr '\\0' ' ' <\"/proc/$pid/cmdline\" | grep -qF -- {executable}; }} 2>/dev/null
}}

start() {{
\trunning && return 0
{prepared}\tulimit -n {OPEN_FILES} 2>/dev/null || ulimit -n \"$(ulimit -H -n)\"
\tstart-stop-daemon -S -b -m -p \"$pid_file\" -c {user} -x /bin/sh -- \\
\t\t-c {WITH_LOG} {state} {log} \\
\t\t{command} || return 1
\t# What cannot work ends at once, and nobody else would say so.
\tsleep 1
\trunning && return 0
\trm -f \"$pid_file\"
\techo \"$name ended as soon as it was started;\" {log} \"says why\"{check} >&2
\treturn 1
}}

stop() {{
\trunning || {{ rm -f \"$pid_file\"; return 0; }}
\tkill -TERM \"$pid\"
\tleft={stop}
\twhile running; do
\t\tif [ \"$left\" -le 0 ]; then
\t\t\tkill -KILL \"$pid\"
\t\t\tbreak
\t\tfi
\t\tleft=$((left - 1))
\t\tsleep 1
\tdone
\trm -f \"$pid_file\"
}}

case \"$1\" in
start) start ;;
stop) stop ;;
restart | force-reload) stop && start ;;
reload)
\tif running; then
\t\tkill -HUP \"$pid\"
\telse
\t\techo \"$name is not running\" >&2
\t\texit 7
\tfi
\t;;
status)
\tif running; then
\t\techo \"$name is running (pid $pid)\"
\telif [ -e \"$pid_file\" ]; then
\t\techo \"$name is not running; it ended without having been stopped\"
\t\texit 3
\telse
\t\techo \"$name is not running\"
\t\texit 3
\tfi
\t;;
*)
\techo \"usage: $0 start|stop|restart|reload|status\" >&2
\texit 2
\t;;
esac
",
        log_line = log_line(spec),
        written_by = written_by(spec),
        name = spec.name,
        title = spec.role.title,
        state = quoted(&spec.state_dir),
        executable = quoted(&spec.executable),
        log = quoted(spec.log_file.as_deref().unwrap_or("/dev/null")),
        stop = spec.stop_seconds,
    )
}
