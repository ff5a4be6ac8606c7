//! The public ports that clients may open.

use std::net::SocketAddr;

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::config::{PortRange, PortSet};
use minitcptunnel_common::doctor::Finding;
use minitcptunnel_common::doctor::net::{self, Holder};

use crate::config::Config;

const CHECK: &str = "public-ports";
/// Looked at one by one where there are no more than these; whoever allows thousands does not mean each of them.
const FEW: usize = 64;

/// Whether they can be opened.
pub(super) fn allowed(config: &Config, own: &str) -> Vec<Finding> {
    let PortSet::Ranges(ranges) = &config.allowed_ports else {
        return vec![Finding::ok(CHECK, "clients may open any port that is free")];
    };
    let rights = Rights::of_this_process();
    let mut findings = judge(ranges, &rights);
    let count: usize = ranges
        .iter()
        .map(|it| usize::from(it.last - it.first) + 1)
        .sum();
    if count <= FEW {
        let ports = ranges.iter().flat_map(|it| it.first..=it.last);
        // The control port among them is the configuration's warning.
        let others = ports.filter(|&port| port != config.port);
        findings.extend(others.filter_map(|port| taken(config, port, own)));
    }
    if findings.is_empty() {
        let said = format!("clients may open {}", config.allowed_ports);
        findings.push(Finding::ok(CHECK, said));
    }
    findings
}

fn taken(config: &Config, port: u16, own: &str) -> Option<Finding> {
    let by = match net::holder(SocketAddr::new(config.tunnel_bind, port)) {
        Ok(Holder::Program(name)) if name != own => name,
        // Perhaps by our own server; what is not permitted has been told.
        _ => return None,
    };
    let said = format!("port {port} is taken by {by}");
    Some(Finding::warning(CHECK, Code::TUNNEL_PORT_TAKEN, said))
}

/// What the system lets this process have.
struct Rights {
    /// The lowest port that needs no privilege, unless this process has it.
    lowest: u16,
    /// What the system gives to outgoing connections.
    outgoing: Option<(u16, u16)>,
}

impl Rights {
    fn of_this_process() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            return Self {
                lowest: 0,
                outgoing: None,
            };
        }
        let lowest = read("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let lowest = lowest.trim().parse().unwrap_or(1024);
        let privileged = may_bind_low(&read("/proc/self/status"));
        Self {
            lowest: if privileged { 0 } else { lowest },
            outgoing: range(&read("/proc/sys/net/ipv4/ip_local_port_range")),
        }
    }
}

/// Whether CAP_NET_BIND_SERVICE (number 10) is among the effective ones.
fn may_bind_low(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << 10) != 0)
}

fn range(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

fn judge(ranges: &[PortRange], rights: &Rights) -> Vec<Finding> {
    let mut findings = Vec::new();
    let low: Vec<_> = (ranges.iter())
        .filter(|range| range.first < rights.lowest)
        .map(ToString::to_string)
        .collect();
    if !low.is_empty() {
        let said = format!(
            "{}: this user may open ports from {} on only",
            low.join(", "),
            rights.lowest
        );
        findings.push(Finding::warning(CHECK, Code::PORTS_PRIVILEGED, said));
    }
    if let Some((first, last)) = rights.outgoing {
        let among: Vec<_> = (ranges.iter())
            .filter(|range| range.first <= last && range.last >= first)
            .map(ToString::to_string)
            .collect();
        if !among.is_empty() {
            let said = format!(
                "{}: the system gives {first}-{last} to outgoing connections",
                among.join(", ")
            );
            findings.push(Finding::note(CHECK, Code::PORTS_EPHEMERAL, said));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_held_against_what_the_system_gives() {
        let ranges = |texts: &[&str]| -> Vec<PortRange> {
            texts
                .iter()
                .map(|text| text.parse().expect("a range"))
                .collect()
        };
        let user = Rights {
            lowest: 1024,
            outgoing: range("32768\t60999\n"),
        };
        let root = Rights {
            lowest: 0,
            outgoing: None,
        };
        let codes = |texts: &[&str], rights: &Rights| -> Vec<Code> {
            judge(&ranges(texts), rights)
                .iter()
                .filter_map(|it| it.code)
                .collect()
        };
        assert_eq!(codes(&["8080", "10000-20000"], &user), []);
        assert_eq!(codes(&["80", "8080"], &user), [Code::PORTS_PRIVILEGED]);
        assert_eq!(codes(&["80", "1-65535"], &root), []);
        assert_eq!(codes(&["61000-65535"], &user), []);
        assert_eq!(codes(&["60999"], &user), [Code::PORTS_EPHEMERAL]);
        assert_eq!(
            codes(&["1000-40000"], &user),
            [Code::PORTS_PRIVILEGED, Code::PORTS_EPHEMERAL]
        );
    }

    #[test]
    fn the_right_to_low_ports_is_a_bit() {
        let status = |bits: &str| format!("Name:\tx\nCapEff:\t{bits}\nCapBnd:\tffff\n");
        assert!(may_bind_low(&status("0000000000000400")));
        assert!(may_bind_low(&status("000001ffffffffff")));
        assert!(!may_bind_low(&status("0000000000000200")));
        assert!(!may_bind_low(""));
    }
}
