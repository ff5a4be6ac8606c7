//! `doctor`: what keeps this server from working, found before anybody has to read its log.
//!
//! ```text
//!  file ─> config ─┬─> reverse: key, allow list, control port, public ports
//!                  └─> forwards: certificates, listener, targets
//!  machine ─> clock, descriptors, threads, memory, log, service manager
//! ```
//!
//! A server that runs is not disturbed: it is recognised by who holds its port, and asked for no more than a
//! connection.

mod ports;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use minitcptunnel_common::codes::{Code, Coded, Lang};
use minitcptunnel_common::config::{ConfigError, Endpoint, Seconds};
use minitcptunnel_common::dial;
use minitcptunnel_common::doctor::system::{milliseconds, short};
use minitcptunnel_common::doctor::{Finding, Form, Level, Report};
use minitcptunnel_common::doctor::{certificates, disk, net, settings, system};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::health;
use minitcptunnel_common::identity::{self, AllowListFile};
use minitcptunnel_common::pki::ServerTls;
use minitcptunnel_common::resources;

use super::Arguments;
use crate::config::{Checked, Config, Forward};
use crate::forward;
use crate::reverse::within::Within;

/// This program.
const PROGRAM: &str = "minitcptunnel-server";

/// Looks at everything and shows it on `out`. `checked` is what `typed` asks for.
pub fn doctor<W: Write>(
    typed: &Arguments,
    checked: Result<Checked, ConfigError>,
    json: bool,
    out: W,
) -> ExitCode {
    let within = typed.timeout.map_or(health::WITHIN, Seconds::duration);
    let form = Form::asked(json);
    let version = env!("CARGO_PKG_VERSION");
    let mut report = Report::new(PROGRAM, version, form, Lang::of_locale(), out);
    match &checked {
        Ok(checked) => {
            let file = typed.config.as_deref();
            report.add_all(settings::fine(file, &checked.warnings));
            usable(&mut report, &checked.config, within);
        }
        Err(e) => report.add(settings::broken(e)),
    }
    let config = checked.as_ref().ok().map(|it| &it.config);
    report.add_all(disk::log_of(&typed.log_options(config), config.is_some()));
    report.add(system::clock(SystemTime::now()));
    report.add(system::threads());
    report.add(system::service(PROGRAM));
    report.finish()
}

fn usable<W: Write>(report: &mut Report<W>, config: &Config, within: Duration) {
    if config.reverse {
        report.add_all(key(&config.identity_key_file));
        report.add_all(allow_list(&config.allowed_clients_file));
        let control = SocketAddr::new(config.bind, config.port);
        let (found, runs) = net::listener("the control port", control, PROGRAM);
        report.add(found);
        if runs {
            report.add(answers(config, within));
        }
        report.add_all(ports::allowed(config, PROGRAM));
    }
    for one in &config.forwards {
        check_forward(report, one, within);
    }
    let files = resources::raise_open_files();
    let capacity = Within::new(files, config).pairs;
    report.add(system::descriptors(capacity, config.limits.pairs));
    report.add(system::memory(config.memory_budget));
}

fn key(file: &Path) -> Vec<Finding> {
    const CHECK: &str = "key";
    if !file.exists() {
        let said = format!("{} is not there yet", file.display());
        let found = Finding::note(CHECK, Code::KEY_NOT_MADE, said);
        return vec![
            found.cure("start the server once; it makes the key and prints its public half"),
        ];
    }
    match identity::load(file) {
        Ok(loaded) => {
            let said = format!("clients must pin {}", loaded.key.public());
            let mut findings = vec![Finding::ok(CHECK, said)];
            findings.extend(disk::secrets(&[file.to_owned()]));
            findings
        }
        Err(e) => vec![Finding::error(CHECK, e.code(), e.to_string())],
    }
}

fn allow_list(file: &Path) -> Vec<Finding> {
    const CHECK: &str = "allow-list";
    if !file.exists() {
        let said = format!(
            "{} is not there: the first start makes it, empty",
            file.display()
        );
        return vec![Finding::warning(CHECK, Code::NOBODY_ADMITTED, said)];
    }
    let allow = match AllowListFile::load(file) {
        Ok(allow) => allow,
        Err(e) => {
            return vec![Finding::error(CHECK, e.code(), e.to_string())];
        }
    };
    let list = allow.list();
    let mut findings = vec![if list.is_empty() {
        let said = format!("{} has no key in it", file.display());
        Finding::warning(CHECK, Code::NOBODY_ADMITTED, said)
    } else {
        let said = format!("{} admits {} clients", file.display(), list.len());
        Finding::ok(CHECK, said)
    }];
    let doubtful = list.warnings.iter();
    findings.extend(doubtful.map(|it| Finding::warning(CHECK, Code::CONFIG_ODD, it.to_string())));
    findings
}

/// Whether the server that runs takes connections.
fn answers(config: &Config, within: Duration) -> Finding {
    const CHECK: &str = "control-port";
    let only_control = Config {
        forwards: Vec::new(),
        ..config.clone()
    };
    match super::health::health(&only_control, Some(within)) {
        Ok(said) => Finding::ok(CHECK, said.trim_end_matches('.')),
        Err(e) => Finding::error(CHECK, e.code(), e.to_string()),
    }
}

fn check_forward<W: Write>(report: &mut Report<W>, one: &Forward, within: Duration) {
    let name = &one.name;
    let tls = ServerTls::load(&forward::settings(&one.tls));
    report.add_all(certificates::files(name, &tls));
    report.add_all(disk::secrets(std::slice::from_ref(&one.tls.key)));
    let what = format!("the listener of forward {name}");
    report.add(net::listener(&what, one.listen, PROGRAM).0);
    let asked: Vec<_> = (one.targets.iter())
        .map(|target| (target, reach(target, within)))
        .collect();
    let works = asked.iter().any(|(_, asked)| asked.is_ok());
    for (target, asked) in asked {
        report.add(match asked {
            Ok(took) => {
                let said = format!(
                    "forward {name}: {target} takes connections, in {}",
                    short(took)
                );
                Finding::ok("target", said).figure("milliseconds", milliseconds(took))
            }
            Err(e) => {
                let found = Finding::error(
                    "target",
                    Code::TARGET_SERVICE,
                    format!("forward {name}: {e}"),
                );
                // One that works is enough for connections to go on.
                found.at_most(if works { Level::Warning } else { Level::Error })
            }
        });
    }
}

/// The target sees one connection that says nothing.
fn reach(target: &Endpoint, within: Duration) -> Result<Duration, String> {
    let start = Instant::now();
    dial::connect(target.host.as_str(), target.port, within)
        .map(|_| start.elapsed())
        .map_err(|e| e.to_string())
}
