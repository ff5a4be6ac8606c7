//! Forwards: their files, listeners and servers.

use std::io::Write;
use std::time::Duration;

use minitcptunnel_common::codes::Coded;
use minitcptunnel_common::doctor::system::{milliseconds, short};
use minitcptunnel_common::doctor::{Finding, Level, Report, certificates, disk, net};
use minitcptunnel_common::pki::ClientTls;

use super::PROGRAM;
use crate::config::forward::Forward;
use crate::forward;
use crate::forward::probe::{Missed, Reached, probe};

pub(super) fn check<W: Write>(report: &mut Report<W>, forward: &Forward, within: Duration) {
    let name = &forward.name;
    let tls = ClientTls::load(&forward::settings(forward));
    report.add_all(certificates::files(name, &tls));
    let keys: Vec<_> = forward.identity.iter().map(|own| own.key.clone()).collect();
    report.add_all(disk::secrets(&keys));
    let what = format!("the local listener of forward {name}");
    report.add(net::listener(&what, forward.listen, PROGRAM).0);
    let Ok(tls) = tls else {
        return;
    };
    let asked: Vec<_> = (forward.servers.iter())
        .map(|server| (server, probe(forward, server, &tls, within)))
        .collect();
    let works = asked.iter().any(|(_, asked)| is_fine(asked));
    // One that works is enough for connections to go on.
    let worst = if works { Level::Warning } else { Level::Error };
    for (server, asked) in asked {
        let about = format!("forward {name}: {server}");
        report.add_all(told(&about, asked).into_iter().map(|it| it.at_most(worst)));
    }
}

fn is_fine(asked: &Result<Reached, Missed>) -> bool {
    matches!(asked, Ok(Reached { then: Ok(()), .. }))
}

fn told(about: &str, asked: Result<Reached, Missed>) -> Vec<Finding> {
    const CHECK: &str = "forward";
    let reached = match asked {
        Ok(reached) => reached,
        Err(Missed::Unreachable(e)) => {
            let said = format!("{about}: {e}");
            return vec![Finding::error(CHECK, e.code(), said)];
        }
        Err(Missed::Tls(problem)) => {
            let said = format!("{about}: {problem}");
            return vec![Finding::error(CHECK, problem.code, said)];
        }
    };
    let mut findings = vec![match reached.then {
        Ok(()) => {
            let said = format!(
                "{about} takes this client: connected in {}, TLS in {}",
                short(reached.connect),
                short(reached.handshake)
            );
            Finding::ok(CHECK, said)
                .figure("connect_milliseconds", milliseconds(reached.connect))
                .figure("handshake_milliseconds", milliseconds(reached.handshake))
        }
        Err(problem) if problem.lasts => {
            Finding::error(CHECK, problem.code, format!("{about}: {problem}"))
        }
        Err(problem) => Finding::error(CHECK, problem.code, format!("{about}: {problem}")),
    }];
    let ends = reached
        .certificate
        .and_then(|it| it.at(certificates::now()));
    findings.extend(ends.map(|expiry| certificates::ends(&format!("{about}: {expiry}"), &expiry)));
    findings
}
