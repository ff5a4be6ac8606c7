//! The codes of errors and findings: `E0301` and its like, each with a cause and a cure in three languages.
//!
//! ```text
//!  an error of some room ── Coded ──> Code ──> exit code        (the first two digits)
//!                                       │
//!                                       └──> codes/{en,ko,fr}.txt ──> `explain E0301`, `doctor`
//! ```
//!
//! | first two digits | what |
//! | --- | --- |
//! | 01-07 | ends the program, with the [`ExitCode`] of that number, where it cannot go on |
//! | 10 | the way to the server, and who comes along it |
//! | 11 | a tunnel or the service behind it |
//! | 12 | the forward tunnel and its TLS |
//! | 13 | the log, files and the disk |
//! | 14 | the system: limits, clock, names; up to 1450 what `doctor` finds, from there what a running program meets |
//! | 15 | running as a service |
//!
//! A code is a promise, as exit codes are: it never changes its meaning, and is never used again.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::exit::ExitCode;

pub(crate) mod lines;
mod text;

pub use text::{Explanation, Lang, explain};

/// The number of an error or a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Code(u16);

/// Something that a user may meet, and look up.
pub trait Coded {
    /// Under which number.
    fn code(&self) -> Code;

    /// The number with which a program ends that cannot go on over this.
    fn exit_code(&self) -> ExitCode {
        self.code().exit_code().unwrap_or(ExitCode::Failure)
    }
}

/// An error as lines of the log; the first says under which code to look it up.
pub fn log_lines(e: &(impl Coded + fmt::Display)) -> Vec<String> {
    let mut lines: Vec<String> = e.to_string().lines().map(str::to_owned).collect();
    if let Some(first) = lines.first_mut() {
        *first = format!("{first} code={}", e.code());
    }
    lines
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $name: Self = Self($number);)*

            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    /// Something that should not happen.
    BUG = 101;
    /// `health` has found something that does not answer.
    NOT_WELL = 102;
    /// The command line is wrong.
    USAGE = 201;
    /// A name that no certificate or file can bear.
    CERT_NAME = 202;
    /// The configuration file is missing or cannot be read.
    CONFIG_UNREADABLE = 301;
    /// The configuration is not JSON or YAML.
    CONFIG_SYNTAX = 302;
    /// A key or value of the configuration is wrong.
    CONFIG_INVALID = 303;
    /// The name of the configuration file tells no format.
    CONFIG_EXTENSION = 304;
    /// The allow list cannot be read, or not be made.
    ALLOW_LIST_UNUSABLE = 305;
    /// A line of the allow list is wrong.
    ALLOW_LIST_LINE = 306;
    /// The name that the server's certificate shall bear is none.
    SERVER_HOSTNAME = 307;
    /// The server's key is not pinned, and nothing else is wrong.
    PIN_MISSING = 401;
    /// The server's key file cannot be read.
    KEY_FILE_UNREADABLE = 402;
    /// What should be an identity key is none.
    KEY_DAMAGED = 403;
    /// There is no identity key.
    KEY_MISSING = 404;
    /// There is an identity key already.
    KEY_PRESENT = 405;
    /// A new identity key cannot be saved.
    KEY_NOT_SAVED = 406;
    /// The system gives no random numbers.
    NO_RANDOMNESS = 407;
    /// A file with certificates or a key cannot be read.
    CERT_UNREADABLE = 408;
    /// A file with certificates or a key holds something else.
    CERT_UNUSABLE = 409;
    /// Certificate and key do not belong together.
    CERT_MISMATCH = 410;
    /// The TLS settings contradict each other.
    TLS_SETTINGS = 411;
    /// `certs` would have to overwrite something.
    CERT_EXISTS = 412;
    /// The CA cannot sign.
    CA_UNUSABLE = 413;
    /// New certificates cannot be written.
    CERT_NOT_SAVED = 414;
    /// The port is in use.
    PORT_IN_USE = 501;
    /// The system does not permit the port.
    PORT_FORBIDDEN = 502;
    /// The address is not one of this machine.
    ADDRESS_ELSEWHERE = 503;
    /// The system does not let us listen, for another reason.
    CANNOT_LISTEN = 504;
    /// The server refuses this client for good.
    REFUSED = 601;
    /// The system gives no threads, pollers or descriptors to start with.
    NO_RESOURCES = 701;
    /// Signals cannot be handled.
    NO_SIGNALS = 702;
    /// The name of the server leads to no address.
    NAME_UNKNOWN = 1001;
    /// Nobody listens on the server's port.
    SERVER_ABSENT = 1002;
    /// No answer to the attempt to connect.
    SERVER_TIMEOUT = 1003;
    /// The system knows no way to the server.
    SERVER_UNREACHABLE = 1004;
    /// The server closes without an answer, as for keys that it does not know.
    TURNED_AWAY = 1005;
    /// No complete hello in time.
    HELLO_TIMEOUT = 1006;
    /// The server has another key than the pinned one.
    PIN_MISMATCH = 1007;
    /// The answer is no hello of ours.
    NOT_A_SERVER = 1008;
    /// The signature of a hello is wrong.
    BAD_SIGNATURE = 1009;
    /// The connection to the server broke.
    CONNECTION_BROKE = 1010;
    /// The server says nothing any more.
    SERVER_SILENT = 1011;
    /// The other end does not keep to the protocol.
    PROTOCOL = 1012;
    /// Other clients hold the server's slots.
    SLOT_TAKEN = 1013;
    /// Another client with the same key has taken the session.
    REPLACED = 1014;
    /// The server has ended the session.
    SESSION_CLOSED = 1015;
    /// A limit of the server is reached.
    SERVER_LIMIT = 1016;
    /// A client's key is not in the allow list.
    UNKNOWN_CLIENT = 1017;
    /// Something else than a client of ours has come to the control port.
    NOT_A_CLIENT = 1018;
    /// Too many connections that have not said who they are.
    CROWD = 1019;
    /// The allow list is empty.
    NOBODY_ADMITTED = 1020;
    /// One of several addresses of the server does not work.
    ADDRESS_UNREACHABLE = 1054;
    /// The echo could not begin.
    ECHO_NO_SESSION = 1055;
    /// The server did not open a tunnel, for the reason it gives.
    TUNNEL_NOT_OPEN = 1101;
    /// A public port is not allowed.
    TUNNEL_PORT_FORBIDDEN = 1102;
    /// A public port is in use.
    TUNNEL_PORT_TAKEN = 1103;
    /// A public port cannot be opened for another reason.
    TUNNEL_PORT_UNUSABLE = 1104;
    /// A client has too many tunnels.
    TUNNEL_LIMIT = 1105;
    /// The service behind a tunnel cannot be reached.
    LOCAL_SERVICE = 1106;
    /// A visitor for a tunnel that is not open.
    TUNNEL_DISABLED = 1107;
    /// The client did not come for a visitor.
    NOT_SERVED = 1108;
    /// A bound on connections or memory is reached.
    NO_ROOM = 1109;
    /// The client got no data channel.
    DATA_CHANNEL = 1110;
    /// Nobody answers at a tunnel's public port.
    PUBLIC_PORT_CLOSED = 1151;
    /// The server opened a port for the echo, but it cannot be reached or does not echo.
    ECHO_PORT_HIDDEN = 1152;
    /// No tunnel is opened by itself.
    NO_TUNNELS = 1153;
    /// Allowed public ports are below 1024, which this user may not open.
    PORTS_PRIVILEGED = 1155;
    /// Allowed public ports lie among those that the system gives to outgoing connections.
    PORTS_EPHEMERAL = 1156;
    /// The peer's certificate is not valid now.
    TLS_DATES = 1201;
    /// The peer's certificate is from an unknown CA.
    TLS_UNKNOWN_CA = 1202;
    /// The server's certificate is for another name.
    TLS_WRONG_NAME = 1203;
    /// The peer's certificate cannot be accepted.
    TLS_BAD_CERT = 1204;
    /// The client shows no certificate.
    TLS_NO_CERT = 1205;
    /// The peer refuses our certificate.
    TLS_REFUSED = 1206;
    /// The client's certificate has no name of the allow list.
    TLS_NOT_ADMITTED = 1207;
    /// The two ends speak no common TLS.
    TLS_INCOMPATIBLE = 1208;
    /// The peer does not speak TLS.
    NOT_TLS = 1209;
    /// The handshake ended before its time.
    TLS_CUT = 1210;
    /// A local connection waited for the server in vain.
    WAITED_IN_VAIN = 1211;
    /// A forward has no room for another connection.
    FORWARD_FULL = 1212;
    /// The target service of a forward cannot be reached.
    TARGET_SERVICE = 1213;
    /// One of our certificates ends soon, or is not valid now.
    CERT_ENDS = 1214;
    /// Something about one of our certificates, or the server's, should be seen to.
    CERT_ODD = 1215;
    /// The log file cannot be written.
    LOG_UNWRITABLE = 1301;
    /// The log file cannot be written because the disk is full.
    DISK_FULL = 1302;
    /// The log file cannot be rotated.
    LOG_NOT_ROTATED = 1303;
    /// Lines of the log are lost.
    LOG_LINES_LOST = 1304;
    /// A file has changed to something that cannot be used.
    OLD_FILE_STAYS = 1305;
    /// Others may read a file with a secret key.
    KEY_READABLE = 1306;
    /// The configuration, or the allow list, says something that is hardly meant.
    CONFIG_ODD = 1307;
    /// Nobody takes what goes to stdout.
    STDOUT_LOST = 1308;
    /// The disk of the log file has little room.
    DISK_NEARLY_FULL = 1351;
    /// There is no identity key yet.
    KEY_NOT_MADE = 1354;
    /// The clock of this machine cannot be right.
    CLOCK_WRONG = 1401;
    /// The name service is slow.
    NAME_SLOW = 1402;
    /// The descriptors are used up.
    NO_DESCRIPTORS = 1451;
    /// The system gives a listener no connection.
    CANNOT_ACCEPT = 1452;
    /// The system allows fewer connections than are configured.
    FEWER_CONNECTIONS = 1453;
    /// Few threads can be started.
    FEW_THREADS = 1454;
    /// memory_budget is more than there is.
    LITTLE_MEMORY = 1455;
    /// This machine has no way to addresses of this kind.
    NO_ROUTE = 1456;
    /// Only an administrator may change services.
    SERVICE_NOT_ROOT = 1501;
    /// There is no service manager, or not this one.
    SERVICE_NO_MANAGER = 1502;
    /// A file that we did not write is in the way.
    SERVICE_FOREIGN_FILE = 1503;
    /// A command of the service manager failed.
    SERVICE_COMMAND_FAILED = 1504;
    /// A name or path cannot be handed to a service manager.
    SERVICE_UNUSABLE_TEXT = 1505;
    /// There is no such service.
    SERVICE_NOT_INSTALLED = 1506;
    /// A file of the service could not be written.
    SERVICE_FILE_NOT_WRITTEN = 1507;
    /// A relative path in a service.
    SERVICE_RELATIVE_PATH = 1508;
    /// The service's user cannot read a file.
    SERVICE_UNREADABLE = 1509;
    /// The service would not find the key that is here.
    SERVICE_OTHER_KEY = 1510;
    /// The log of a service cannot be read.
    SERVICE_LOG_UNREADABLE = 1511;
    /// The folder of a service cannot be entered.
    SERVICE_FOLDER = 1512;
    /// `service run` was typed, and not called by a manager.
    SERVICE_NOT_CALLED = 1513;
    /// The service sees home folders.
    SERVICE_SEES_HOMES = 1514;
    /// The service runs as root.
    SERVICE_AS_ROOT = 1515;
    /// The program is not installed as a service.
    NOT_A_SERVICE = 1550;
}

impl Code {
    /// The number with which the program ends over this, if it does.
    #[must_use]
    pub fn exit_code(self) -> Option<ExitCode> {
        let number = self.0 / 100;
        ExitCode::ALL
            .into_iter()
            .find(|code| u16::from(code.number()) == number)
    }

    /// Why nobody can listen there.
    #[must_use]
    pub fn of_bind(e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::AddrInUse => Self::PORT_IN_USE,
            io::ErrorKind::PermissionDenied => Self::PORT_FORBIDDEN,
            io::ErrorKind::AddrNotAvailable => Self::ADDRESS_ELSEWHERE,
            _ => Self::CANNOT_LISTEN,
        }
    }

    /// Why the log file cannot be written.
    #[must_use]
    pub fn of_log_file(e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DISK_FULL,
            _ => Self::LOG_UNWRITABLE,
        }
    }

    /// The last line of what a command says about an error: where more is to be had.
    #[must_use]
    pub fn pointer(self, program: &str) -> String {
        format!("({self}; \"{program} explain {self}\" says more)")
    }

    /// What is known about it.
    #[must_use]
    pub fn explain(self, lang: Lang) -> Explanation {
        text::of(self, lang)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:04}", self.0)
    }
}

/// A text that is no code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownCode(String);

impl fmt::Display for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no code {:?}; ", self.0)?;
        let near = nearest(&self.0);
        if !near.is_empty() {
            let near: Vec<String> = near.iter().map(ToString::to_string).collect();
            write!(f, "near it are {}; ", near.join(", "))?;
        }
        f.write_str("`explain` without a code lists all")
    }
}

impl std::error::Error for UnknownCode {}

/// The codes, at most three, that somebody may have meant; none for what looks like no code at all.
fn nearest(typed: &str) -> Vec<Code> {
    let digits = typed.strip_prefix(['E', 'e']).unwrap_or(typed);
    let Ok(number) = digits.parse::<u16>() else {
        return Vec::new();
    };
    let mut near: Vec<(usize, bool, u16, Code)> = (Code::ALL.iter())
        .map(|code| {
            // Of those that are as far, one that ends the program alike comes first.
            let elsewhere = code.0 / 100 != number / 100;
            let typed = format!("{number:04}");
            let wrong = strsim::damerau_levenshtein(&typed, &format!("{:04}", code.0));
            (wrong, elsewhere, code.0.abs_diff(number), *code)
        })
        .filter(|(wrong, ..)| *wrong <= 2)
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(.., code)| code).collect()
}

/// As printed, or with the letter in lower case or missing, or without leading zeros.
impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let digits = text.strip_prefix(['E', 'e']).unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: Option<u16> = plain.then(|| digits.parse().ok()).flatten();
        let known = number.and_then(|number| Self::ALL.iter().find(|code| code.0 == number));
        known.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod of_errors;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_read_as_they_are_shown() {
        assert!(Code::ALL.is_sorted_by(|a, b| a < b), "in order, none twice");
        for code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
        assert_eq!("e301".parse(), Ok(Code::CONFIG_UNREADABLE));
        assert_eq!("0301".parse(), Ok(Code::CONFIG_UNREADABLE));
        assert_eq!(
            "E0310"
                .parse::<Code>()
                .map_err(|e| e.to_string())
                .unwrap_err(),
            "there is no code \"E0310\"; near it are E0301, E0410, E0307; `explain` without a code lists all"
        );
        for wrong in ["", "E", "E+301", "E9999", "99999999", "éé"] {
            assert!(wrong.parse::<Code>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_two_digits_are_the_exit_code() {
        assert_eq!(
            Code::CONFIG_SYNTAX.exit_code(),
            Some(ExitCode::Configuration)
        );
        for code in Code::ALL {
            assert_eq!(code.exit_code().is_some(), code.0 < 1000, "{code}");
            assert_ne!(code.exit_code(), Some(ExitCode::Ok), "{code}");
        }
    }
}
