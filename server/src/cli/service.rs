//! `service`: this server as a service. What the managers are told is common to both programs; here is what a server
//! needs of them.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use minitcptunnel_common::codes::{Code, Coded};
use minitcptunnel_common::config::Grace;
use minitcptunnel_common::log::Format;
use minitcptunnel_common::service::{self, How, Role, ServiceError, Use, Wanted};

use crate::config::{self, Config, Overrides};

/// The first port that needs no privilege.
const FREE_PORTS: u16 = 1024;
const KEY_FILE: &str = "server_identity_key.hex";

/// This program.
pub const ROLE: Role = Role {
    program: "minitcptunnel-server",
    title: "MiniTCPTunnel server",
};

/// The options in front of `service`, which the service is started with.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is an option, described there")]
pub struct Typed<'a> {
    pub config: Option<&'a Path>,
    pub port: Option<u16>,
    pub bind: Option<IpAddr>,
    pub grace: Option<Grace>,
    pub log_file: Option<&'a Path>,
    pub log_format: Option<Format>,
    pub verbose: bool,
    pub debug: bool,
}

/// Does what `service` asks for; the exit code.
#[must_use]
pub fn service(command: &service::Command, typed: &Typed<'_>) -> u8 {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let done = service::perform(
        command,
        ROLE,
        || wanted(typed),
        || Ok(()),
        &mut out,
        &mut err,
    );
    match done {
        Ok(status) => status.number(),
        Err(e) => {
            let _ = writeln!(err, "{e}\n{}", e.code().pointer(ROLE.program));
            e.exit_code().number()
        }
    }
}

fn wanted(typed: &Typed<'_>) -> Result<Wanted, ServiceError> {
    let overrides = Overrides {
        port: typed.port,
        bind: typed.bind,
        grace: typed.grace.map(Grace::duration),
    };
    let checked = config::load(typed.config, &overrides)
        .map_err(|e| ServiceError::Config(e.to_string(), e.code()))?;
    let config = checked.config;
    let mut notes = Vec::new();
    if typed.config.is_none() && Path::new(KEY_FILE).exists() {
        notes.push(format!(
            "there is a {KEY_FILE} in this folder, which the service will not look for; to keep that identity, copy it \
             (and allowed_clients.txt) into the service's own folder, /var/lib/{} with systemd, before the first start \
             ({})",
            ROLE.program,
            Code::SERVICE_OTHER_KEY
        ));
    }
    let low = |port: u16| port != 0 && port < FREE_PORTS;
    let low_ports = (config.reverse && low(config.port))
        || (config.forwards.iter()).any(|forward| low(forward.listen.port()));
    Ok(Wanted {
        role: ROLE,
        arguments: arguments(typed),
        config: typed.config.map(Path::to_path_buf),
        log_file: typed.log_file.map(Path::to_path_buf),
        // Without a configuration everything lies in the service's own folder.
        uses: (typed.config.map(|file| uses(file, &config))).unwrap_or_default(),
        configured_log: config.logging.file,
        low_ports,
        grace: config.grace,
        notes,
    })
}

fn arguments(typed: &Typed<'_>) -> Vec<String> {
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
