//! `service`: this server as a service. What the managers are told is common to both programs; here is what a server
//! needs of them.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minitcptunnel_common::codes::Coded;
use minitcptunnel_common::identity::{self, AllowListFile};
use minitcptunnel_common::service::{self, How, Role, ServiceError, Use, Wanted};

use super::Arguments;
use crate::config::{Checked, Config};

/// What the server looks for where it is started, unless a configuration says otherwise.
const KEY_FILE: &str = "server_identity_key.hex";
const LIST_FILE: &str = "allowed_clients.txt";

/// This program.
pub const ROLE: Role = Role {
    program: "minitcptunnel-server",
    title: "MiniTCPTunnel server",
};

/// Does what `service` asks for; the exit code.
#[must_use]
pub fn service(command: &service::Command, typed: &Arguments) -> u8 {
    service::answer(command, ROLE, || wanted(typed), || ensure_files(typed))
}

/// The service cannot write to the folder of its configuration; so the key and the list that would lie there are made
/// before. Without a configuration both lie in its own folder.
fn ensure_files(typed: &Arguments) -> Result<(), ServiceError> {
    let config = load(typed)?.config;
    if typed.config.is_none() || !config.reverse {
        return Ok(());
    }
    let refused = |e: &dyn fmt::Display, code| ServiceError::Config(e.to_string(), code);
    let loaded =
        identity::load_or_create(&config.identity_key_file).map_err(|e| refused(&e, e.code()))?;
    AllowListFile::load(&config.allowed_clients_file).map_err(|e| refused(&e, e.code()))?;
    let public = loaded.key.public();
    let _ = writeln!(
        io::stdout(),
        "Server Identity Public Key (Pin in client config): {public}"
    );
    Ok(())
}

fn load(typed: &Arguments) -> Result<Checked, ServiceError> {
    (typed.load()).map_err(|e| ServiceError::Config(e.to_string(), e.code()))
}

fn wanted(typed: &Arguments) -> Result<Wanted, ServiceError> {
    let config = load(typed)?.config;
    let matters = typed.config.is_none() && Path::new(KEY_FILE).exists();
    let left_here = [KEY_FILE, LIST_FILE]
        .into_iter()
        .map(PathBuf::from)
        .filter(|file| matters && file.exists())
        .collect();
    let low_ports = (config.reverse && service::is_low(config.port))
        || (config.forwards.iter()).any(|forward| service::is_low(forward.listen.port()));
    Ok(Wanted {
        role: ROLE,
        arguments: arguments(typed),
        config: typed.config.clone(),
        log_file: typed.log_file.clone(),
        // Without a configuration everything lies in the service's own folder.
        uses: (typed.config.as_deref().map(|file| uses(file, &config))).unwrap_or_default(),
        configured_log: config.logging.file,
        low_ports,
        grace: config.grace,
        left_here,
    })
}

fn arguments(typed: &Arguments) -> Vec<String> {
    let mut out = Vec::new();
    let mut option = |name: &str, value: String| out.extend([name.to_owned(), value]);
    if let Some(port) = typed.port {
        option("--port", port.to_string());
    }
    if let Some(bind) = typed.bind {
        option("--bind", bind.to_string());
    }
    if let Some(grace) = typed.grace {
        option("--grace", grace.duration().as_secs_f64().to_string());
    }
    if let Some(format) = typed.log_format {
        option("--log-format", format.to_string());
    }
    if typed.verbose {
        out.push("--verbose".to_owned());
    }
    if typed.debug {
        out.push("--debug".to_owned());
    }
    out
}

fn uses(file: &Path, config: &Config) -> Vec<Use> {
    let mut uses = Vec::new();
    let mut add = |key, path: &Path, how| {
        uses.push(Use {
            key,
            path: path.to_path_buf(),
            how,
        });
    };
    add(service::CONFIG, file, How::Reads);
    if config.reverse {
        add("identity_key_file", &config.identity_key_file, How::Owns);
        add(
            "allowed_clients_file",
            &config.allowed_clients_file,
            How::Makes,
        );
    }
    for forward in &config.forwards {
        let tls = &forward.tls;
        add("tls.server_cert", &tls.cert, How::Reads);
        add("tls.server_key", &tls.key, How::Reads);
        if let Some(ca) = &tls.client_ca {
            add("tls.client_ca_cert", ca, How::Reads);
        }
        if let Some(list) = &tls.allowed_clients_file {
            add("tls.allowed_clients_file", list, How::Reads);
        }
    }
    if let Some(log) = &config.logging.file {
        add("logging.log_file", log, How::Writes);
    }
    uses
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_lies_beside_a_configuration_is_made_before() {
        let dir = Scratch::new();
        let config = dir.path().join("server.json");
        let text = r#"{"identity_key_file": "key.hex", "allowed_clients_file": "list.txt"}"#;
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let typed = Arguments::parse_from(["x", "--config", config, "pubkey"]);
        ensure_files(&typed).unwrap();
        let key = fs::read(dir.path().join("key.hex")).unwrap();
        assert_eq!(key.len(), 65);
        assert!(dir.path().join("list.txt").exists());
        // One that is there stays.
        ensure_files(&typed).unwrap();
        assert_eq!(fs::read(dir.path().join("key.hex")).unwrap(), key);
    }
}
