//! Our own tunnel, set up through the command line as a person would.

use std::io;
use std::process::Command;

use super::{START, Setup, version as said_version};
use crate::options::Options;
use crate::process::Program;

fn version(options: &Options) -> String {
    said_version(&options.bin_dir.join("minitcptunnel-server"), "--version")
}

pub(crate) fn start(setup: &Setup<'_>) -> io::Result<(Vec<Program>, String)> {
    let bin = &setup.options.bin_dir;
    let (server_program, client_program) = (
        bin.join("minitcptunnel-server"),
        bin.join("minitcptunnel-client"),
    );

    let client_config = setup.path("client_config.json");
    let write_client = |port: u16, pin: &str, key: &str| {
        let text = format!(
            r#"{{
  "server_host": "127.0.0.1",
  "server_port": {port},
  "server_pub_key": {pin},
  "identity_private_key_hex": {key},
  "tunnels": [
    {{ "id": "bench", "remote_port": {}, "local_host": "127.0.0.1", "local_port": {}, "auto_start": true }}
  ]
}}
"#,
            setup.public.port(),
            setup.service.port(),
        );
        setup.file("client_config.json", &text)
    };
    write_client(1, "null", "null")?;
    let said = Command::new(&client_program)
        .args(["keygen", "--config", &client_config])
        .output()?;
    let said =
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    let public_key = hex_after(&said, "CLIENT PUBLIC KEY: ")?;
    let written = std::fs::read_to_string(&client_config)?;
    let secret_key = hex_after(&written, "\"identity_private_key_hex\": \"")?;

    let allowed = setup.file("allowed_clients.txt", &format!("{public_key} bench\n"))?;
    let server_config = setup.file(
        "server_config.json",
        &format!(
            r#"{{
  "bind": "127.0.0.1",
  "identity_key_file": "{}",
  "allowed_clients_file": "{allowed}"
}}
"#,
            setup.path("server_identity_key.hex"),
        ),
    )?;
    let mut server = setup.program(
        "server",
        Command::new(&server_program).args(["--port", "0", "--config", &server_config]),
    )?;
    let line = server.line("Pin in client config): ", START)?;
    let pin = hex_after(&line, "Pin in client config): ")?;
    let line = server.line("Control Server listening on ", START)?;
    let port = line
        .rsplit(|c: char| !c.is_ascii_digit())
        .find(|digits| !digits.is_empty())
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no port in {line:?}")))?;

    write_client(port, &format!("\"{pin}\""), &format!("\"{secret_key}\""))?;
    let mut client = setup.program(
        "client",
        Command::new(&client_program).args(["--config", &client_config]),
    )?;
    client.line("is open on server port", START)?;
    Ok((vec![server, client], version(setup.options)))
}

/// The 64 hex digits behind `text`.
fn hex_after(said: &str, text: &str) -> io::Result<String> {
    said.split_once(text)
        .map(|(_, rest)| {
            rest.chars()
                .take_while(char::is_ascii_hexdigit)
                .collect::<String>()
        })
        .filter(|hex| hex.len() == 64)
        .ok_or_else(|| io::Error::other(format!("no key behind {text:?} in {said:?}")))
}
