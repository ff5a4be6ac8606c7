//! `doctor`: what keeps this client from working, found before anybody has to read its log.
//!
//! ```text
//!  file ─> config, key ─┬─> reverse: names, addresses, handshake, services, public ports, echo
//!                       └─> forwards: certificates, listener, servers
//!  machine ─> clock, descriptors, threads, memory, log, service manager
//! ```
//!
//! A client that runs is not disturbed: the handshake with the server is broken off before anything is said, where no
//! session begins. Only `--echo` opens one.

mod echo;
mod forward;
mod reverse;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use minitcptunnel_common::codes::{Code, Coded, Lang};
use minitcptunnel_common::config::{self as files, ConfigError, Seconds};
use minitcptunnel_common::doctor::{Finding, Form, Report, disk, net, settings, system};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::health;
use minitcptunnel_common::resources;

use super::Arguments;
use crate::config::{self, Checked, KeyError, Raw};

/// This program.
const PROGRAM: &str = "minitcptunnel-client";

/// What `doctor` is told.
#[derive(Args, Clone, Copy, Default, Debug)]
pub struct Options {
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// Send bytes to the server and back through a tunnel of its own: latency and throughput. A client that runs with
    /// the same key loses its session for half a minute
    #[arg(long)]
    pub echo: bool,
    /// The public port for --echo [default: one that the server chooses]
    #[arg(long, value_name = "PORT", requires = "echo")]
    pub echo_port: Option<u16>,
}

/// Looks at everything and shows it on `out`.
pub fn doctor<W: Write>(arguments: &Arguments, options: Options, out: W) -> ExitCode {
    let within = (arguments.timeout).map_or(health::WITHIN, Seconds::duration);
    let form = Form::asked(options.json);
    let version = env!("CARGO_PKG_VERSION");
    let mut report = Report::new(PROGRAM, version, form, Lang::of_locale(), out);
    let file = &arguments.config;
    let checked = config::load(file, arguments.pinning());
    match &checked {
        Ok(checked) => usable(&mut report, file, checked, options, within),
        Err(e) => unusable(&mut report, file, e, within),
    }
    let config = checked.as_ref().ok().map(|it| &it.config);
    report.add_all(disk::log_of(
        &arguments.log_options(config),
        config.is_some(),
    ));
    report.add(system::clock(SystemTime::now()));
    report.add(system::threads());
    report.add(system::service(PROGRAM));
    report.finish()
}

fn usable<W: Write>(
    report: &mut Report<W>,
    file: &Path,
    checked: &Checked,
    options: Options,
    within: Duration,
) {
    let config = &checked.config;
    report.add_all(settings::fine(Some(file), &checked.warnings));
    if let Some(reverse) = &config.reverse {
        report.add_all(key(file));
        reverse::check(report, config, reverse, options, within);
    }
    for forward in &config.forwards {
        forward::check(report, forward, within);
    }
    // As the program does at its start: what counts is the limit that it will have.
    resources::raise_open_files();
    report.add(system::descriptors(config.capacity(), config.limits.pairs));
    report.add(system::memory(config.memory_budget));
}

/// Whatever can be asked without a configuration that is whole.
fn unusable<W: Write>(report: &mut Report<W>, file: &Path, e: &KeyError, within: Duration) {
    report.add(broken(e));
    if matches!(e, KeyError::Config(ConfigError::Invalid { .. })) {
        // What is wrong with the rest has been said.
        report.add_all(key(file).into_iter().filter(|it| it.check == "key"));
    }
    let Ok(loaded) = files::load::<Raw>(file) else {
        return;
    };
    let Some(host) = loaded.raw.server_host.as_deref().map(str::trim) else {
        return;
    };
    let port = loaded.raw.server_port.map_or(9000, |port| port.0);
    let (addresses, found) = net::resolve(host, port, within);
    report.add(found);
    reverse::connects(report, &addresses, within);
}

fn broken(e: &KeyError) -> Finding {
    match e {
        // Of a missing pin the client has a code of its own.
        KeyError::Config(told) => Finding::error("config", e.code(), told.to_string()),
        KeyError::NoFile { path, .. } => Finding::error(
            "config",
            Code::CONFIG_UNREADABLE,
            format!("there is no file {}", path.display()),
        )
        .cure("`minitcptunnel-client keygen` makes one to fill in; name another with --config"),
        e => Finding::error("key", e.code(), e.to_string()),
    }
}

/// The identity key: there, whole, and a secret.
fn key(file: &Path) -> Vec<Finding> {
    match config::identity_key(file) {
        Ok(ensured) => {
            let said = format!(
                "the server must know this client as {}",
                ensured.key.public()
            );
            let mut findings = vec![Finding::ok("key", said)];
            findings.extend(disk::secrets(&[file.to_owned()]));
            findings
        }
        Err(KeyError::Missing(_)) => vec![
            Finding::warning(
                "key",
                Code::KEY_NOT_MADE,
                "this client has no identity key yet",
            )
            .cure("`minitcptunnel-client keygen`, then give the server the key that it prints"),
        ],
        Err(e) => vec![broken(&e)],
    }
}
