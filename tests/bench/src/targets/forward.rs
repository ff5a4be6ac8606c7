//! The forward tunnel and what else carries local connections over TLS to a fixed service.
//!
//! ```text
//!  visitor ──> public | client ══ TLS 1.3, both ends show certificates ══ server | ──> service
//! ```
//!
//! All have the same certificates (P-256, made by `certs init`), check them at both ends, and use AES-256-GCM. What is
//! the server's choice is asked with `openssl s_client`, and shown.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{START, Setup, Started, free_port, peers, version};
use crate::process::{Program, find};

/// The suite that everybody uses who can be told.
const SUITE: &str = "TLS_AES_256_GCM_SHA384";
/// What the certificates say the server is called.
const HOST: &str = "localhost";
/// More connections than are ever open, within the descriptors that there mostly are.
const MANY: usize = 4_000;

/// Where the certificates are that all have in common.
struct Certs {
    folder: String,
}

impl Certs {
    /// Makes them, unless another target did.
    fn of(setup: &Setup<'_>) -> io::Result<Self> {
        let folder = setup.folder.path().join("certs").display().to_string();
        let certs = Self { folder };
        if Path::new(&certs.folder).exists() {
            return Ok(certs);
        }
        let server = setup.options.bin_dir.join("minitcptunnel-server");
        for what in [&["init", "--host", HOST][..], &["client", "bench"]] {
            let mut command = Command::new(&server);
            command.arg("certs").args(what);
            quietly(command.args(["--dir", &certs.folder]))?;
        }
        // Certificate and key in one file, as HAProxy wants them.
        for end in ["server", "bench"] {
            let both = [
                certs.at(&format!("{end}.crt")),
                certs.at(&format!("{end}.key")),
            ];
            let both: io::Result<Vec<_>> = both.iter().map(std::fs::read_to_string).collect();
            std::fs::write(certs.at(&format!("{end}.pem")), both?.concat())?;
        }
        Ok(certs)
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// What is spoken with the server there.
    fn spoken(&self, control: SocketAddr) -> String {
        let Some(openssl) = find("openssl") else {
            return "cipher not asked for want of openssl".to_owned();
        };
        let mut command = Command::new(openssl);
        command.args(["s_client", "-connect", &control.to_string()]);
        command.args(["-servername", HOST, "-CAfile", &self.at("ca.crt")]);
        command.args([
            "-cert",
            &self.at("bench.crt"),
            "-key",
            &self.at("bench.key"),
        ]);
        let said = command.stdin(Stdio::null()).output();
        let said = said.map_or_else(|_| Vec::new(), |said| said.stdout);
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().find_map(|line| line.strip_prefix("New, "));
        line.unwrap_or("cipher unknown").to_owned()
    }
}

/// Runs something to its end; what it said is only of interest when it failed.
fn quietly(command: &mut Command) -> io::Result<()> {
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}

/// Waits until somebody listens there.
fn listens(program: &mut Program, address: SocketAddr) -> io::Result<()> {
    program.until(START, || std::net::TcpStream::connect(address).is_ok())
}

/// With so many connections kept ready, or as many as it does by itself.
pub(super) fn ours(
    setup: &Setup<'_>,
    preconnected: Option<usize>,
) -> io::Result<(Vec<Program>, String)> {
    let (certs, control) = (Certs::of(setup)?, free_port()?);
    let certificate = |name: &str| certs.at(name);
    let server = setup.file(
        "server_config.json",
        &format!(
            r#"{{
  "server_listener": {{ "host": "127.0.0.1", "port": {} }},
  "target_service": {{ "host": "127.0.0.1", "port": {} }},
  "tls": {{ "server_cert": "{}", "server_key": "{}", "client_ca_cert": "{}" }}
}}
"#,
            control.port(),
            setup.service.port(),
            certificate("server.crt"),
            certificate("server.key"),
            certificate("ca.crt"),
        ),
    )?;
    let preconnected =
        preconnected.map_or(String::new(), |n| format!("\n  \"preconnected\": {n},"));
    let client = setup.file(
        "client_config.json",
        &format!(
            r#"{{
  "local_listener": {{ "host": "127.0.0.1", "port": {} }},{preconnected}
  "remote_server": {{ "host": "127.0.0.1", "port": {}, "server_ca_cert": "{}", "server_hostname": "{HOST}" }},
  "tls": {{ "client_cert": "{}", "client_key": "{}" }}
}}
"#,
            setup.public.port(),
            control.port(),
            certificate("ca.crt"),
            certificate("bench.crt"),
            certificate("bench.key"),
        ),
    )?;
    let bin = &setup.options.bin_dir;
    let start = |role: &str, config: &str| -> io::Result<Program> {
        let program = bin.join(format!("minitcptunnel-{role}"));
        let mut program = setup.program(role, Command::new(program).args(["--config", config]))?;
        program.line("listening on", START)?;
        Ok(program)
    };
    let programs = vec![start("server", &server)?, start("client", &client)?];
    let said = version(&bin.join("minitcptunnel-server"), "--version");
    Ok((programs, format!("{said}, {}", certs.spoken(control))))
}

pub(super) fn stunnel(setup: &Setup<'_>) -> Started {
    let Some(program) = find("stunnel4").or_else(|| find("stunnel")) else {
        return Ok(None);
    };
    let (certs, control) = (Certs::of(setup)?, free_port()?);
    let start = |role: &str, name: &str, own: &str, listen: SocketAddr, to: SocketAddr| {
        let config = setup.file(
            &format!("{role}.conf"),
            &format!(
                "foreground = yes\npid =\ndebug = err\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
                 [bench]\naccept = {listen}\nconnect = {to}\n{own}\
                 cert = {}\nkey = {}\nCAfile = {}\nverifyChain = yes\nciphersuites = {SUITE}\n",
                certs.at(&format!("{name}.crt")),
                certs.at(&format!("{name}.key")),
                certs.at("ca.crt"),
            ),
        )?;
        let mut started = setup.program(role, Command::new(&program).arg(config))?;
        listens(&mut started, listen).map(|()| started)
    };
    let client = format!("client = yes\ncheckHost = {HOST}\nsni = {HOST}\n");
    let programs = vec![
        start("server", "server", "client = no\n", control, setup.service)?,
        start("client", "bench", &client, setup.public, control)?,
    ];
    let said = version(&program, "-version");
    Ok(Some((
        programs,
        format!("{said}, {}", certs.spoken(control)),
    )))
}

/// TCP mode, with as many threads as it takes by itself.
pub(super) fn haproxy(setup: &Setup<'_>) -> Started {
    let Some(program) = find("haproxy") else {
        return Ok(None);
    };
    let (certs, control) = (Certs::of(setup)?, free_port()?);
    let ca = certs.at("ca.crt");
    let start = |role: &str, bind: String, listen: SocketAddr, server: String| {
        let config = setup.file(
            &format!("{role}.cfg"),
            &format!(
                "global\n  maxconn {MANY}\ndefaults\n  mode tcp\n  maxconn {MANY}\n  timeout connect 10s\n  \
                 timeout client 1h\n  timeout server 1h\nlisten bench\n  bind {bind}\n  server bench {server}\n"
            ),
        )?;
        let mut started =
            setup.program(role, Command::new(&program).args(["-db", "-f", &config]))?;
        listens(&mut started, listen).map(|()| started)
    };
    let inner = format!(
        "{control} ssl crt {} ca-file {ca} verify required ciphersuites {SUITE}",
        certs.at("server.pem")
    );
    let outer = format!(
        "{control} ssl crt {} ca-file {ca} verify required verifyhost {HOST} sni str({HOST}) ciphersuites {SUITE}",
        certs.at("bench.pem")
    );
    let programs = vec![
        start("server", inner, control, setup.service.to_string())?,
        start("client", setup.public.to_string(), setup.public, outer)?,
    ];
    let said = version(&program, "-v");
    Ok(Some((
        programs,
        format!("{said}, {}", certs.spoken(control)),
    )))
}

/// Its stream module, with as many workers as there are cores.
pub(super) fn nginx(setup: &Setup<'_>) -> Started {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let Some(program) = find("nginx") else {
        return Ok(None);
    };
    let (certs, control) = (Certs::of(setup)?, free_port()?);
    let module = match Path::new(MODULE).is_file() {
        true => format!("load_module {MODULE};\n"),
        false => String::new(),
    };
    let start = |role: &str, listen: SocketAddr, text: String| {
        let config = setup.file(
            &format!("{role}.conf"),
            &format!(
                "{module}daemon off;\nworker_processes auto;\npid {};\nerror_log stderr error;\n\
                 events {{ worker_connections {MANY}; }}\nstream {{\n  server {{\n{text}  }}\n}}\n",
                setup.path(&format!("{role}.pid"))
            ),
        )?;
        let mut command = Command::new(&program);
        command.args(["-e", "stderr", "-c", &config]);
        let mut started = setup.program(role, &mut command)?;
        listens(&mut started, listen).map(|()| started)
    };
    let (ca, public, service) = (certs.at("ca.crt"), setup.public, setup.service);
    let server = format!(
        "    listen {control} ssl backlog=4096;\n    proxy_pass {service};\n    ssl_protocols TLSv1.3;\n    \
         ssl_conf_command Ciphersuites {SUITE};\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
         ssl_client_certificate {ca};\n    ssl_verify_client on;\n",
        certs.at("server.crt"),
        certs.at("server.key"),
    );
    let client = format!(
        "    listen {public} backlog=4096;\n    proxy_pass {control};\n    proxy_ssl on;\n    proxy_ssl_protocols TLSv1.3;\n    \
         proxy_ssl_conf_command Ciphersuites {SUITE};\n    proxy_ssl_certificate {};\n    \
         proxy_ssl_certificate_key {};\n    proxy_ssl_trusted_certificate {ca};\n    proxy_ssl_verify on;\n    \
         proxy_ssl_name {HOST};\n    proxy_ssl_server_name on;\n",
        certs.at("bench.crt"),
        certs.at("bench.key"),
    );
    let programs = vec![
        start("server", control, server)?,
        start("client", public, client)?,
    ];
    let said = version(&program, "-v");
    Ok(Some((
        programs,
        format!("{said}, {}", certs.spoken(control)),
    )))
}

/// It has no choice of single suites; AES-256-GCM is what comes of it where there are instructions for that.
pub(super) fn ghostunnel(setup: &Setup<'_>) -> Started {
    let Some(program) = find("ghostunnel") else {
        return Ok(None);
    };
    let (certs, control) = (Certs::of(setup)?, free_port()?);
    let start = |role: &str, own: &str, name: &str, listen: SocketAddr, to: SocketAddr| {
        let mut command = Command::new(&program);
        command.args([role, own, "--quiet", "conns"]);
        command.args(["--listen", &listen.to_string()]);
        command.args(["--target", &format!("{HOST}:{}", to.port())]);
        command.args(["--cacert", &certs.at("ca.crt")]);
        command.args(["--cert", &certs.at(&format!("{name}.crt"))]);
        command.args(["--key", &certs.at(&format!("{name}.key"))]);
        let mut started = setup.program(role, &mut command)?;
        listens(&mut started, listen).map(|()| started)
    };
    let programs = vec![
        start("server", "--allow-all", "server", control, setup.service)?,
        start(
            "client",
            "--quiet=conn-errs",
            "bench",
            setup.public,
            control,
        )?,
    ];
    let said = version(&program, "--version");
    Ok(Some((
        programs,
        format!("{said}, {}", certs.spoken(control)),
    )))
}

/// `ssh -L`: one connection for all, no TLS; of the same class of ciphers.
pub(super) fn ssh(setup: &Setup<'_>) -> Started {
    const CIPHER: &str = "aes256-gcm@openssh.com";
    let way = ["-L", &format!("{}:{}", setup.public, setup.service)];
    peers::ssh_with(setup, CIPHER, way)
}

/// rustls as we, but its client shows no certificate: websockets carry every connection.
pub(super) fn wstunnel(setup: &Setup<'_>) -> Started {
    let way = format!("tcp://{}:{}", setup.public, setup.service);
    peers::wstunnel_with(setup, ["-L", &way])
}
