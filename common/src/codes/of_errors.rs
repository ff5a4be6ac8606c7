//! Which error has which code, variant by variant, and so which exit code.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::config::{ConfigError, Problem};
use crate::dial::{Attempt, DialError};
use crate::files::ReadError;
use crate::health::Findings;
use crate::identity::{AllowListError, HexError, KeyFileError, NoRandomness};
use crate::pki::make::MakeError;
use crate::pki::{Fault, Found, LoadError};

/// What each of these ends with, if it ends a program; `Ok` where it never does.
#[track_caller]
fn all(exit: ExitCode, table: &[(&dyn Coded, Code)]) {
    for (e, code) in table {
        assert_eq!(e.code(), *code);
        assert_eq!(code.exit_code().unwrap_or(ExitCode::Ok), exit, "{code}");
    }
}

fn path() -> PathBuf {
    "a".into()
}

fn denied() -> ReadError {
    ReadError::Io(path(), ErrorKind::PermissionDenied.into())
}

fn problem() -> Problem {
    Problem {
        key: "server_pub_key".into(),
        place: None,
        message: String::new(),
    }
}

#[test]
fn of_configurations() {
    all(
        ExitCode::Configuration,
        &[
            (&ConfigError::Extension(path()), Code::CONFIG_EXTENSION),
            (&ConfigError::Read(denied()), Code::CONFIG_UNREADABLE),
            (
                &ConfigError::NotText {
                    path: path(),
                    line: 1,
                },
                Code::CONFIG_SYNTAX,
            ),
            (
                &ConfigError::Syntax {
                    path: path(),
                    problem: problem(),
                },
                Code::CONFIG_SYNTAX,
            ),
            // Only a client has a pin; to a server this is a key like any other that it does not know.
            (
                &ConfigError::Invalid {
                    path: None,
                    problems: vec![problem()],
                },
                Code::CONFIG_INVALID,
            ),
            (&AllowListError::Read(denied()), Code::ALLOW_LIST_UNUSABLE),
            (
                &AllowListError::BadLines {
                    path: path(),
                    lines: Vec::new(),
                },
                Code::ALLOW_LIST_LINE,
            ),
        ],
    );
}

#[test]
fn of_keys_and_certificates() {
    let missing = ReadError::NotFound(path());
    let wrong = LoadError::Wrong {
        option: "server_cert",
        path: path(),
        fault: Fault::NoKey(Found::Nothing),
    };
    let half = LoadError::HalfAPair {
        given: "client_key",
        missing: "client_cert",
    };
    all(
        ExitCode::Identity,
        &[
            (&KeyFileError::Read(missing), Code::KEY_MISSING),
            (&KeyFileError::Read(denied()), Code::KEY_FILE_UNREADABLE),
            (
                &KeyFileError::Malformed {
                    path: path(),
                    source: HexError::Empty,
                },
                Code::KEY_DAMAGED,
            ),
            (&KeyFileError::NotText(path()), Code::KEY_DAMAGED),
            (&KeyFileError::Randomness(NoRandomness), Code::NO_RANDOMNESS),
            (
                &LoadError::Read {
                    option: "server_cert",
                    source: Arc::new(denied()),
                },
                Code::CERT_UNREADABLE,
            ),
            (&wrong, Code::CERT_UNUSABLE),
            (
                &LoadError::Mismatch {
                    cert: path(),
                    key: path(),
                },
                Code::CERT_MISMATCH,
            ),
            (&half, Code::TLS_SETTINGS),
            (&LoadError::AllowedWithoutCa, Code::TLS_SETTINGS),
            (&MakeError::Exists(path()), Code::CERT_EXISTS),
            (&MakeError::CaExists(path()), Code::CERT_EXISTS),
            (
                &MakeError::Folder(path(), ErrorKind::NotFound.into()),
                Code::CERT_NOT_SAVED,
            ),
            (&MakeError::Ca(half.clone()), Code::CA_UNUSABLE),
            (&MakeError::NoCa(path(), "why"), Code::CA_UNUSABLE),
            (&MakeError::CaKey(path()), Code::CA_UNUSABLE),
        ],
    );
    all(
        ExitCode::Usage,
        &[(&MakeError::Name(String::new(), "why"), Code::CERT_NAME)],
    );
    all(
        ExitCode::Failure,
        &[(&MakeError::Make(String::new()), Code::BUG)],
    );
}

#[test]
fn of_what_is_asked_from_outside() {
    let mut findings = Findings::default();
    findings.add(Err("it does not answer".to_owned()));
    let sick = findings.verdict().unwrap_err();
    all(ExitCode::Failure, &[(&sick, Code::NOT_WELL)]);
}

/// Whoever cannot reach a server goes on trying.
#[test]
fn of_the_way_to_the_server() {
    let lost = |kind: ErrorKind| DialError::Connect {
        host: "a".into(),
        port: 1,
        attempts: vec![Attempt {
            address: "192.0.2.1:1".parse().unwrap(),
            error: kind.into(),
        }],
    };
    let unknown = DialError::ResolveTimedOut { host: "a".into() };
    all(
        ExitCode::Ok,
        &[
            (&unknown, Code::NAME_UNKNOWN),
            (&lost(ErrorKind::ConnectionRefused), Code::SERVER_ABSENT),
            (&lost(ErrorKind::TimedOut), Code::SERVER_TIMEOUT),
            (
                &lost(ErrorKind::NetworkUnreachable),
                Code::SERVER_UNREACHABLE,
            ),
        ],
    );
}

#[test]
fn of_listeners() {
    for (kind, code) in [
        (ErrorKind::AddrInUse, Code::PORT_IN_USE),
        (ErrorKind::PermissionDenied, Code::PORT_FORBIDDEN),
        (ErrorKind::AddrNotAvailable, Code::ADDRESS_ELSEWHERE),
        (ErrorKind::Other, Code::CANNOT_LISTEN),
    ] {
        assert_eq!(Code::of_bind(&io::Error::from(kind)), code);
        assert_eq!(code.exit_code(), Some(ExitCode::Bind));
    }
}

#[test]
fn the_first_line_of_many_has_the_code() {
    struct Two;
    impl Coded for Two {
        fn code(&self) -> Code {
            Code::CONFIG_INVALID
        }
    }
    impl fmt::Display for Two {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one\ntwo")
        }
    }
    assert_eq!(log_lines(&Two), ["one code=E0303", "two"]);
    assert_eq!(Two.exit_code(), ExitCode::Configuration);
    assert_eq!(
        Two.code().pointer("minitcptunnel-server"),
        "(E0303; \"minitcptunnel-server explain E0303\" says more)"
    );
}
