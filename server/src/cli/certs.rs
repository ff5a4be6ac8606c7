//! `certs`: certificates for people who do not want to know OpenSSL, and what to do with them.

use clap::Subcommand;
use minitcptunnel_common::pki::UnixTime;
use minitcptunnel_common::pki::make::{self, Made, MakeError};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What to make.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a CA and a certificate for the server
    Init(ServerNames),
    /// Make a new certificate for the server, by the CA that is there
    Server(ServerNames),
    /// Make a certificate for a client, by the CA that is there
    Client {
        /// What the client is called, for allowed_client_cns and the log
        name: String,
        /// Folder of the CA, and of the new files
        #[arg(long, value_name = "FOLDER", default_value = "certs")]
        dir: PathBuf,
        /// Be content with files that are there already: for scripts that may run again
        #[arg(long)]
        keep: bool,
    },
}

/// What clients call the server.
#[derive(Debug, clap::Args)]
pub struct ServerNames {
    /// Host name that clients dial; may be given again for more names
    #[arg(long, required = true, value_name = "NAME")]
    host: Vec<String>,
    /// Address that clients dial instead of a name; may be given again
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Folder for the files
    #[arg(long, value_name = "FOLDER", default_value = "certs")]
    dir: PathBuf,
    /// Be content with files that are there already: for scripts that may run again
    #[arg(long)]
    keep: bool,
}

impl Command {
    /// The files to be made, without their endings; and where.
    fn pairs(&self) -> (Vec<&str>, &Path) {
        match self {
            Self::Init(server) => (vec!["ca", "server"], &server.dir),
            Self::Server(server) => (vec!["server"], &server.dir),
            Self::Client { name, dir, .. } => (vec![name], dir),
        }
    }

    /// With `--keep`, what is said about files that are all there. Whether they are any good is not looked at.
    fn kept(&self) -> Option<String> {
        let keep = match self {
            Self::Init(server) | Self::Server(server) => server.keep,
            Self::Client { keep, .. } => *keep,
        };
        let (names, dir) = self.pairs();
        let endings = ["crt", "key"];
        let mut files = names
            .iter()
            .flat_map(|name| endings.map(|ending| dir.join(format!("{name}.{ending}"))));
        (keep && files.all(|file| file.is_file())).then(|| {
            format!(
                "Kept what is in {} already: {}. Nothing was made.",
                dir.display(),
                names.join(", ")
            )
        })
    }
}

/// Makes what was asked for and says what to copy where.
///
/// # Errors
/// If it cannot be made. Nothing is ever overwritten.
pub fn run(command: &Command) -> Result<String, MakeError> {
    if let Some(kept) = command.kept() {
        return Ok(kept);
    }
    let now = UnixTime::now();
    let mut text = String::new();
    match command {
        Command::Init(server) => {
            let [ca, made] = make::init(&server.dir, &server.host, &server.ip, now)?;
            list(
                &mut text,
                &[
                    (&ca, "the CA: every server and client needs it", CA_KEY),
                    (
                        &made,
                        "for the server alone",
                        "its key, for the server alone",
                    ),
                ],
            );
            on_the_server(&mut text, &server.dir);
            // Writing to a String cannot fail, here and below.
            let _ = write!(
                text,
                "\n\nFor each client:\n\n  minitcptunnel-server certs client NAME{}",
                dir_argument(&server.dir)
            );
        }
        Command::Server(server) => {
            let made = make::server(&server.dir, &server.host, &server.ip, now)?;
            let use_of = "for the server alone";
            list(
                &mut text,
                &[(&made, use_of, "its key, for the server alone")],
            );
            on_the_server(&mut text, &server.dir);
            text.push_str(
                "\n\nA running server takes up files that are replaced; clients need nothing new.",
            );
        }
        Command::Client { name, dir, .. } => {
            let made = make::client(dir, name, now)?;
            let use_of = "for this client alone";
            list(
                &mut text,
                &[(&made, use_of, "its key, for this client alone")],
            );
            on_the_client(&mut text, dir, &made, name);
        }
    }
    Ok(text)
}

const CA_KEY: &str =
    "its key: keep it off the servers and clients; whoever has it can let anybody in";

fn list(text: &mut String, made: &[(&Made, &str, &str)]) {
    text.push_str("Made:\n");
    for (made, certificate, key) in made {
        let _ = write!(
            text,
            "\n  {}  {certificate}; good until {}\n  {}  {key}",
            made.cert.display(),
            made.until,
            made.key.display()
        );
    }
}

fn on_the_server(text: &mut String, dir: &Path) {
    let at = |name: &str| dir.join(name).display().to_string();
    let _ = write!(
        text,
        "\n\nOn the server, copy {}, {} and {} and configure:\n\n  tls:\n    server_cert: {1}\n    server_key: {2}\n    \
         client_ca_cert: {0}    # clients must show a certificate; without this line anybody may connect",
        at("ca.crt"),
        at("server.crt"),
        at("server.key"),
    );
}

fn on_the_client(text: &mut String, dir: &Path, made: &Made, name: &str) {
    let ca = dir.join("ca.crt").display().to_string();
    let _ = write!(
        text,
        "\n\nOn the client, copy {ca}, {cert} and {key} and configure:\n\n  remote_server:\n    server_ca_cert: {ca}\n  \
         tls:\n    client_cert: {cert}\n    client_key: {key}\n\nThe server admits every client of its CA. To admit only \
         some, name them there:\n\n  tls:\n    allowed_client_cns: [\"{name}\"]",
        cert = made.cert.display(),
        key = made.key.display(),
    );
}

fn dir_argument(dir: &Path) -> String {
    if dir == Path::new("certs") {
        String::new()
    } else {
        format!(" --dir {}", dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use clap::Parser;
    use minitcptunnel_common::codes::{Code, Coded};
    use minitcptunnel_common::pki::{
        ClientSettings, ClientTls, MinVersion, ServerSettings, ServerTls,
    };
    use std::fs;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn type_in(words: &[&str]) -> Result<String, MakeError> {
        let line = Line::try_parse_from([&["certs"], words].concat()).expect("a command line");
        run(&line.command)
    }

    #[test]
    fn what_is_made_is_what_the_text_says_to_configure() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("certs");
        let at = |name: &str| dir.join(name);
        let shown = |name: &str| at(name).display().to_string();
        let folder = dir.to_str().expect("a plain name");

        let said = type_in(&[
            "init",
            "--host",
            "tunnel.example.com",
            "--ip",
            "::1",
            "--dir",
            folder,
        ]);
        let said = said.expect("made");
        for wanted in [
            format!("server_cert: {}\n", shown("server.crt")),
            format!("server_key: {}\n", shown("server.key")),
            format!("client_ca_cert: {} ", shown("ca.crt")),
            format!("certs client NAME --dir {folder}"),
            "keep it off the servers and clients".to_owned(),
        ] {
            assert!(said.contains(&wanted), "{wanted:?} is not in:\n{said}");
        }
        let said = type_in(&["client", "alice", "--dir", folder]).expect("made");
        for wanted in [
            format!("server_ca_cert: {}\n", shown("ca.crt")),
            format!("client_cert: {}\n", shown("alice.crt")),
            format!("client_key: {}\n", shown("alice.key")),
            "allowed_client_cns: [\"alice\"]".to_owned(),
        ] {
            assert!(said.contains(&wanted), "{wanted:?} is not in:\n{said}");
        }
        let server = ServerTls::load(&ServerSettings {
            cert: at("server.crt"),
            key: at("server.key"),
            client_ca: Some(at("ca.crt")),
            allowed: vec!["alice".to_owned()],
            allowed_file: None,
            min_version: MinVersion::Tls12,
        });
        assert_eq!(server.expect("loads").warnings, Vec::<String>::new());
        let client = ClientTls::load(&ClientSettings {
            server_ca: at("ca.crt"),
            cert: Some(at("alice.crt")),
            key: Some(at("alice.key")),
            min_version: MinVersion::Tls13,
        });
        assert_eq!(client.expect("loads").warnings, Vec::<String>::new());

        // Again: everything is there already, and stays.
        for words in [
            &["init", "--host", "x", "--dir", folder][..],
            &["server", "--host", "x", "--dir", folder],
            &["client", "alice", "--dir", folder],
        ] {
            let e = type_in(words).expect_err("taken");
            assert!(e.to_string().contains("exists already"), "{e}");
            assert_eq!(e.code(), Code::CERT_EXISTS);
        }
        // Unless that is what was asked for; a part of them is not enough.
        let before = fs::read(at("server.key")).expect("made");
        let init = ["init", "--keep", "--host", "x", "--dir", folder];
        let said = type_in(&init).expect("kept");
        assert!(said.contains("Nothing was made"), "{said}");
        type_in(&["client", "--keep", "alice", "--dir", folder]).expect("kept");
        type_in(&["client", "--keep", "carol", "--dir", folder]).expect("made");
        assert_eq!(fs::read(at("server.key")).expect("kept"), before);
        fs::rename(at("ca.key"), at("elsewhere")).expect("made");
        type_in(&init).expect_err("a key is missing, a new CA would fit nothing");
        fs::rename(at("elsewhere"), at("ca.key")).expect("moved");

        let e = type_in(&["client", "../bob", "--dir", folder]).expect_err("a path");
        assert_eq!(e.code(), Code::CERT_NAME);
        // The old certificate out of the way, the CA makes the server a new one.
        for name in ["server.crt", "server.key"] {
            fs::remove_file(at(name)).expect("made");
        }
        let said = type_in(&["server", "--host", "x", "--dir", folder]).expect("made");
        assert!(said.contains("takes up files that are replaced"), "{said}");
    }

    #[test]
    fn a_server_without_a_name_is_a_usage_error() {
        for words in [&["certs", "init"][..], &["certs", "client"], &["certs"]] {
            Line::try_parse_from(words).expect_err("something is missing");
        }
    }
}
