//! The peers, each with its defaults; where one has a choice of ciphers it is said.

use std::io;
use std::path::Path;
use std::process::Command;

use super::{START, Setup, Started, free_port, version};
use crate::process::{Program, find};

/// One rathole pair. `server` and `client` are what the two files say about the transport.
fn rathole_pair(setup: &Setup<'_>, program: &Path, server: &str, client: &str) -> Started {
    let (control, public, service) = (free_port()?, setup.public, setup.service);
    let server = setup.file(
        "server.toml",
        &format!(
            "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n{server}\n\
             [server.services.bench]\nbind_addr = \"{public}\"\n"
        ),
    )?;
    let client = setup.file(
        "client.toml",
        &format!(
            "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n{client}\n\
             [client.services.bench]\nlocal_addr = \"{service}\"\n"
        ),
    )?;
    let start = |role: &str, file: &str| -> io::Result<Program> {
        setup.program(
            role,
            Command::new(program).args([&format!("--{role}"), file]),
        )
    };
    let server = start("server", &server)?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let client = start("client", &client)?;
    Ok(Some((vec![server, client], version(program, "--version"))))
}

pub(super) fn rathole(setup: &Setup<'_>) -> Started {
    match find("rathole") {
        None => Ok(None),
        Some(program) => rathole_pair(setup, &program, "", ""),
    }
}

pub(super) fn rathole_noise(setup: &Setup<'_>) -> Started {
    let Some(program) = find("rathole") else {
        return Ok(None);
    };
    let said = Command::new(&program).arg("--genkey").output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let key = |name: &str| {
        let mut lines = said.lines().skip_while(|line| !line.starts_with(name));
        lines.nth(1).unwrap_or_default().trim().to_owned()
    };
    rathole_pair(
        setup,
        &program,
        &format!(
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{}\"\n",
            key("Private Key")
        ),
        &format!(
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{}\"\n",
            key("Public Key")
        ),
    )
}

pub(super) fn rathole_tls(setup: &Setup<'_>) -> Started {
    let (Some(program), Some(openssl)) = (find("rathole"), find("openssl")) else {
        return Ok(None);
    };
    let (key, certificate, bundle) = (
        setup.path("key.pem"),
        setup.path("certificate.pem"),
        setup.path("identity.pfx"),
    );
    let run = |arguments: &[&str]| -> io::Result<()> {
        let done = Command::new(&openssl).args(arguments).output()?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Err(io::Error::other(format!("openssl: {said}")))
    };
    run(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ])?;
    run(&[
        "pkcs12",
        "-export",
        "-inkey",
        &key,
        "-in",
        &certificate,
        "-passout",
        "pass:bench",
        "-out",
        &bundle,
    ])?;
    rathole_pair(
        setup,
        &program,
        &format!(
            "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{bundle}\"\npkcs12_password = \"bench\"\n"
        ),
        &format!(
            "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{certificate}\"\nhostname = \"localhost\"\n"
        ),
    )
}

pub(super) fn bore(setup: &Setup<'_>) -> Started {
    let Some(program) = find("bore") else {
        return Ok(None);
    };
    let port = setup.public.port().to_string();
    // Its control port is always 7835.
    let mut server = setup.program(
        "server",
        Command::new(&program)
            .args([
                "server",
                "--bind-addr",
                "127.0.0.1",
                "--min-port",
                &port,
                "--max-port",
                &port,
            ])
            .env("NO_COLOR", "1"),
    )?;
    server.line("listening", START)?;
    let service = setup.service.port().to_string();
    let client = setup.program(
        "client",
        Command::new(&program).args(["local", &service, "--to", "127.0.0.1", "--port", &port]),
    )?;
    Ok(Some((vec![server, client], version(&program, "--version"))))
}

/// OpenSSH with chacha20-poly1305, the cipher that it prefers.
pub(super) fn ssh(setup: &Setup<'_>) -> Started {
    let way = ["-R", &format!("{}:{}", setup.public, setup.service)];
    ssh_with(setup, "chacha20-poly1305@openssh.com", way)
}

/// OpenSSH with this cipher; `way` says what it forwards.
pub(super) fn ssh_with(setup: &Setup<'_>, cipher: &str, way: [&str; 2]) -> Started {
    let (Some(sshd), Some(ssh), Some(keygen)) = (find("sshd"), find("ssh"), find("ssh-keygen"))
    else {
        return Ok(None);
    };
    let (host_key, user_key) = (setup.path("host_key"), setup.path("user_key"));
    for key in [&host_key, &user_key] {
        Command::new(&keygen)
            .args(["-q", "-t", "ed25519", "-N", "", "-f", key])
            .output()?;
    }
    // As root it insists on this folder.
    let _ = std::fs::create_dir("/run/sshd");
    let control = free_port()?;
    let config = setup.file(
        "sshd_config",
        &format!(
            "ListenAddress {control}\nHostKey {host_key}\nAuthorizedKeysFile {user_key}.pub\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nAllowTcpForwarding yes\nGatewayPorts clientspecified\n\
             LogLevel ERROR\n"
        ),
    )?;
    let server = setup.program(
        "server",
        Command::new(&sshd).args(["-D", "-e", "-f", &config]),
    )?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let client = setup.program(
        "client",
        Command::new(&ssh)
            .args([
                "-N",
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
            ])
            .args([
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "ExitOnForwardFailure=yes",
            ])
            .args(["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"])
            .args(["-c", cipher, "-i", &user_key])
            .args(["-p", &control.port().to_string()])
            .args(way)
            .arg(control.ip().to_string()),
    )?;
    let said = format!("{}, {cipher}", version(&ssh, "-V"));
    Ok(Some((vec![server, client], said)))
}

pub(super) fn wstunnel(setup: &Setup<'_>) -> Started {
    let way = format!("tcp://{}:{}", setup.public, setup.service);
    wstunnel_with(setup, ["-R", &way])
}

/// wstunnel; `way` says what it forwards.
pub(super) fn wstunnel_with(setup: &Setup<'_>, way: [&str; 2]) -> Started {
    let Some(program) = find("wstunnel") else {
        return Ok(None);
    };
    let control = free_port()?;
    let server = setup.program(
        "server",
        Command::new(&program).args(["--log-lvl", "WARN", "server", &format!("wss://{control}")]),
    )?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let client = setup.program(
        "client",
        Command::new(&program)
            .args(["--log-lvl", "WARN", "client"])
            .args(way)
            .arg(format!("wss://{control}")),
    )?;
    Ok(Some((vec![server, client], version(&program, "--version"))))
}
