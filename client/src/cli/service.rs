//! `service`: this client as a service. What the managers are told is common to both programs; here is what a client
//! needs of them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minitcptunnel_common::codes::Coded;
use minitcptunnel_common::config::Grace;
use minitcptunnel_common::service::{self, How, Role, ServiceError, Use, Wanted};

use super::Arguments;
use crate::config::{self, Config, KeyError};

/// This program.
pub const ROLE: Role = Role {
    program: "minitcptunnel-client",
    title: "MiniTCPTunnel client",
};

/// Does what `service` asks for; the exit code.
#[must_use]
pub fn service(command: &service::Command, arguments: &Arguments) -> u8 {
    let key = || ensure_key(&arguments.config);
    service::answer(command, ROLE, || wanted(arguments), key)
}

/// The service cannot write to its configuration, where the key lives; so the key is made before.
fn ensure_key(file: &Path) -> Result<(), ServiceError> {
    if config::runs_reverse(file).map_err(|e| unusable(&e))? {
        let ensured = config::ensure_identity_key(file).map_err(|e| unusable(&e))?;
        let _ = writeln!(io::stdout(), "CLIENT PUBLIC KEY: {}", ensured.key.public());
    }
    Ok(())
}

fn unusable(e: &KeyError) -> ServiceError {
    ServiceError::Config(e.to_string(), e.code())
}

fn wanted(typed: &Arguments) -> Result<Wanted, ServiceError> {
    let checked = config::load(&typed.config, typed.pinning()).map_err(|e| unusable(&e))?;
    let config = checked.config;
    let grace = typed.grace.map_or(config.grace, Grace::duration);
    Ok(Wanted {
        role: ROLE,
        arguments: arguments(typed),
        config: Some(typed.config.clone()),
        log_file: typed.log_file.clone(),
        uses: uses(&config),
        low_ports: config
            .forwards
            .iter()
            .any(|it| service::is_low(it.listen.port())),
        configured_log: config.logging.file,
        grace,
        left_here: Vec::new(),
    })
}

fn arguments(typed: &Arguments) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(grace) = typed.grace {
        let seconds = grace.duration().as_secs_f64();
        out.extend(["--grace".to_owned(), seconds.to_string()]);
    }
    if let Some(format) = typed.log_format {
        out.extend(["--log-format".to_owned(), format.to_string()]);
    }
    for (given, option) in [
        (typed.insecure_no_pin, "--insecure-no-pin"),
        (typed.verbose, "--verbose"),
        (typed.debug, "--debug"),
    ] {
        if given {
            out.push(option.to_owned());
        }
    }
    out
}

fn uses(config: &Config) -> Vec<Use> {
    let mut uses = Vec::new();
    let mut add = |key, path: &PathBuf, how| {
        uses.push(Use {
            key,
            path: path.clone(),
            how,
        });
    };
    // With the identity key in it, it is the service's own secret.
    let how = match config.reverse {
        Some(_) => How::Owns,
        None => How::Reads,
    };
    add(service::CONFIG, &config.file, how);
    for forward in &config.forwards {
        add(
            "remote_server.server_ca_cert",
            &forward.server_ca,
            How::Reads,
        );
        if let Some(own) = &forward.identity {
            add("tls.client_cert", &own.cert, How::Reads);
            add("tls.client_key", &own.key, How::Reads);
        }
    }
    if let Some(log) = &config.logging.file {
        add("logging.log_file", log, How::Writes);
    }
    uses
}
