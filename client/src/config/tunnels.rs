//! Checks the `tunnels` of the configuration.

use super::{RawTunnel, Tunnel, host};
use minitcptunnel_common::config::{AnyPort, Checker, CompressionSetting};
use std::collections::HashMap;

/// The wire's limit on a tunnel id.
const MAX_TUNNEL_ID: usize = 255;

/// Checks all tunnels, each for itself and then against the others.
pub(super) fn check(
    checker: &mut Checker,
    raw: Option<Vec<RawTunnel>>,
    compression: CompressionSetting,
) -> Vec<Tunnel> {
    let raw = raw.unwrap_or_default();
    if raw.is_empty() {
        checker.warn(
            "tunnels",
            "there are no tunnels, so the client connects and offers nothing; add one to `tunnels`",
        );
    } else if raw.iter().all(|tunnel| tunnel.auto_start != Some(true)) {
        checker.warn(
            "tunnels",
            "no tunnel has `auto_start: true`, so none is opened",
        );
    }
    let tunnels: Vec<Option<Tunnel>> = raw
        .into_iter()
        .enumerate()
        .map(|(index, tunnel)| one_tunnel(checker, index, tunnel, compression))
        .collect();

    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut ports: HashMap<u16, (usize, bool)> = HashMap::new();
    for (index, tunnel) in tunnels
        .iter()
        .enumerate()
        .filter_map(|(index, t)| Some((index, t.as_ref()?)))
    {
        match ids.get(tunnel.id.as_str()) {
            Some(first) => checker.error(
                format!("tunnels[{index}].id"),
                format!(
                    "\"{}\" is the id of tunnels[{first}] already; every tunnel needs its own",
                    tunnel.id.escape_debug()
                ),
            ),
            None => {
                ids.insert(&tunnel.id, index);
            }
        }
        if tunnel.remote_port == 0 {
            continue;
        }
        let key = format!("tunnels[{index}].remote_port");
        match ports.get(&tunnel.remote_port) {
            Some(&(first, true)) if tunnel.auto_start => checker.error(
                key,
                format!(
                    "port {} is the remote_port of tunnels[{first}] already and both have `auto_start: true`; \
                     the server can open it only once",
                    tunnel.remote_port
                ),
            ),
            Some(&(first, _)) => checker.warn(
                key,
                format!(
                    "port {} is the remote_port of tunnels[{first}] too; only one of them can be open at a time",
                    tunnel.remote_port
                ),
            ),
            None => {}
        }
        // One that starts by itself is the better one to measure others against.
        if tunnel.auto_start || !ports.contains_key(&tunnel.remote_port) {
            ports.insert(tunnel.remote_port, (index, tunnel.auto_start));
        }
    }
    tunnels.into_iter().flatten().collect()
}

/// Checks one tunnel. All of its mistakes are reported before it is given up.
fn one_tunnel(
    checker: &mut Checker,
    index: usize,
    raw: RawTunnel,
    compression: CompressionSetting,
) -> Option<Tunnel> {
    let path = |key: &str| format!("tunnels[{index}].{key}");
    let id = match raw.id {
        None => {
            checker.error(path("id"), "the key is missing; give the tunnel a name");
            None
        }
        Some(id) if id.trim().is_empty() => {
            checker.error(path("id"), "it is empty; give the tunnel a name");
            None
        }
        Some(id) if id.len() > MAX_TUNNEL_ID => {
            checker.error(
                path("id"),
                format!(
                    "it has {} bytes; a tunnel id has at most {MAX_TUNNEL_ID}",
                    id.len()
                ),
            );
            None
        }
        Some(id) if id.chars().any(char::is_control) => {
            checker.error(
                path("id"),
                "it holds control characters; use letters, digits and the like",
            );
            None
        }
        Some(id) => Some(id),
    };
    if raw.remote_port.is_none() {
        checker.error(
            path("remote_port"),
            "the key is missing; write the port that the server is to open",
        );
    }
    if raw.remote_port == Some(AnyPort(0)) {
        checker.warn(
            path("remote_port"),
            "port 0 lets the server choose another port at every connection",
        );
    }
    let local_host = host(
        checker,
        &path("local_host"),
        Some(raw.local_host.as_deref().unwrap_or("127.0.0.1")),
    );
    if raw.local_port.is_none() {
        checker.error(
            path("local_port"),
            "the key is missing; write the port of the local service",
        );
    }
    Some(Tunnel {
        id: id?,
        remote_port: raw.remote_port?.0,
        local_host: local_host?,
        local_port: raw.local_port?.0,
        auto_start: raw.auto_start.unwrap_or(false),
        compression: raw.compression.unwrap_or(compression),
    })
}
