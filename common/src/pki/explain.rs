//! What a failed handshake means, and what mends it.
//!
//! rustls says precisely what happened. Whoever reads a log also wants to know which option or file
//! is to blame, on which machine, and whether trying again can help.

use super::Refusal;
use super::expiry::date;
use crate::codes::{Code, Coded};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::fmt;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We dialled.
    Client,
    /// We were dialled.
    Server,
}

impl Side {
    fn peer(self) -> &'static str {
        match self {
            Self::Client => "the server",
            Self::Server => "the client",
        }
    }

    /// The option that names whom we believe.
    fn anchors(self) -> &'static str {
        match self {
            Self::Client => "server_ca_cert",
            Self::Server => "client_ca_cert",
        }
    }

    /// The command that makes the peer a good certificate.
    fn command(self) -> &'static str {
        match self {
            Self::Client => "minitcptunnel-server certs init --host NAME",
            Self::Server => "minitcptunnel-server certs client NAME",
        }
    }
}

/// A failed handshake in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What happened, what it means, what to do.
    pub text: String,
    /// Whether it stays until somebody changes a file or a setting: trying again soon is useless.
    pub lasts: bool,
    /// Where more is to be had.
    pub code: Code,
}

impl Coded for Problem {
    fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Says what an error of a TLS connection means for the end that saw it.
#[must_use]
pub fn explain(error: &Error, side: Side) -> Problem {
    let lasting = |(code, text)| Problem {
        text,
        lasts: true,
        code,
    };
    let peer = side.peer();
    match error {
        Error::InvalidCertificate(fault) => lasting(certificate(fault, side)),
        Error::NoCertificatesPresented => lasting((
            Code::TLS_NO_CERT,
            format!(
                "{peer} shows no certificate, and client_ca_cert wants one; give it client_cert and client_key \
                 (`{}` makes them)",
                side.command()
            ),
        )),
        Error::AlertReceived(alert) => alert_from_peer(*alert, side),
        Error::PeerIncompatible(why) => lasting((Code::TLS_INCOMPATIBLE, incompatible(why, side))),
        Error::InvalidMessage(_) => lasting((
            Code::NOT_TLS,
            format!(
                "{peer} does not speak TLS; {}",
                match side {
                    Side::Client => "check that remote_server names the port of a tunnel server",
                    Side::Server =>
                        "something else than a TLS client has connected, by mistake or to see what is here",
                }
            ),
        )),
        other => Problem {
            text: format!("the TLS connection to {peer} failed: {other}"),
            lasts: false,
            code: Code::TLS_CUT,
        },
    }
}

fn certificate(fault: &CertificateError, side: Side) -> (Code, String) {
    use CertificateError as C;
    let peer = side.peer();
    let (anchors, command) = (side.anchors(), side.command());
    let mut code = Code::TLS_BAD_CERT;
    let text = match fault {
        C::ExpiredContext { not_after, .. } => {
            code = Code::TLS_DATES;
            format!(
                "the certificate of {peer} ended on {}; make a new one (`{command}`), or set the clock of this machine right",
                date(not_after.as_secs())
            )
        }
        C::Expired => {
            code = Code::TLS_DATES;
            format!("the certificate of {peer} has ended; make a new one (`{command}`)")
        }
        C::NotValidYetContext { not_before, .. } => {
            code = Code::TLS_DATES;
            format!(
                "the certificate of {peer} is not valid before {}; is the clock of this machine right?",
                date(not_before.as_secs())
            )
        }
        C::UnknownIssuer => {
            code = Code::TLS_UNKNOWN_CA;
            format!(
                "the certificate of {peer} is from none of the CAs in {anchors}: it is self-signed, from another CA, or the \
             CAs between are missing in its file; put the certificate of the CA that signed it into {anchors}, or do not \
             trust this peer"
            )
        }
        C::NotValidForNameContext {
            expected,
            presented,
        } => {
            code = Code::TLS_WRONG_NAME;
            format!(
                "the certificate of {peer} is not for {}; it is for {}. Set server_hostname to one of these if this is the \
             right server, or make a certificate with the name (`{command}`)",
                expected.to_str(),
                names(presented)
            )
        }
        C::BadSignature => format!(
            "the certificate of {peer} was not signed by the key of the CA it names, or the handshake not by its own key: \
             somebody pretends, or two CAs in use have the same name; put the right one into {anchors}"
        ),
        C::InvalidPurposeContext { required, .. } => format!(
            "the certificate of {peer} is for another purpose, {required} is wanted: was a server's certificate given to \
             a client, or the other way round? Make the right one (`{command}`)"
        ),
        C::UnsupportedSignatureAlgorithmContext { .. }
        | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => format!(
            "the certificate of {peer} is signed in a way that is not safe or not known here (SHA-1, RSA under 2048 bits, \
             an unusual curve); make a new one (`{command}`)"
        ),
        C::Other(other) => {
            let text = other.0.to_string();
            if let Some(refusal) = other.0.downcast_ref::<Refusal>() {
                code = refusal.code();
                format!("{peer} is not admitted: {refusal}")
            } else if text == "CaUsedAsEndEntity" {
                format!(
                    "the certificate of {peer} is one of a CA (CA:TRUE), as `openssl req -x509` makes them; sign a \
                     separate one for it (`{command}`)"
                )
            } else {
                format!(
                    "the certificate of {peer} cannot be accepted: {text}; make a new one (`{command}`)"
                )
            }
        }
        other => format!(
            "the certificate of {peer} cannot be accepted: {other}; make a new one (`{command}`)"
        ),
    };
    (code, text)
}

/// The names as rustls writes them, without its spelling of Rust types.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "nobody".to_owned();
    }
    let plain = |name: &String| {
        let inner = name
            .strip_prefix("DnsName(\"")
            .and_then(|rest| rest.strip_suffix("\")"))
            .or_else(|| {
                name.strip_prefix("IpAddress(")
                    .and_then(|rest| rest.strip_suffix(')'))
            });
        inner.unwrap_or(name).to_owned()
    };
    presented.iter().map(plain).collect::<Vec<_>>().join(", ")
}

fn incompatible(why: &PeerIncompatible, side: Side) -> String {
    use PeerIncompatible as P;
    let peer = side.peer();
    match why {
        P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled
        // Only TLS 1.1 and what is older have hellos without it; rustls looks at that before the version.
        | P::SignatureAlgorithmsExtensionRequired => format!(
            "{peer} speaks no version of TLS that min_version allows here; bring it up to date, or set tls.min_version \
             to \"1.2\" on this side if it is \"1.3\""
        ),
        P::NoCipherSuitesInCommon | P::NoKxGroupsInCommon | P::NoSignatureSchemesInCommon => {
            format!(
                "{peer} and we have no cipher, key exchange or kind of signature in common; allow it ECDHE with AES-GCM or \
             ChaCha20-Poly1305, X25519 or P-256, and SHA-256"
            )
        }
        other => format!("{peer} speaks another TLS than we do: {other:?}"),
    }
}

fn alert_from_peer(alert: AlertDescription, side: Side) -> Problem {
    use AlertDescription as A;
    let peer = side.peer();
    let ours = match side {
        Side::Client => "client_cert",
        Side::Server => "server_cert",
    };
    let its_anchors = match side {
        Side::Client => "its client_ca_cert",
        Side::Server => "its server_ca_cert",
    };
    let code = match alert {
        A::CertificateRequired => Code::TLS_NO_CERT,
        A::ProtocolVersion | A::HandshakeFailure => Code::TLS_INCOMPATIBLE,
        _ => Code::TLS_REFUSED,
    };
    let text = match alert {
        A::CertificateRequired => format!(
            "{peer} wants a certificate and was shown none: configure client_cert and client_key \
             (`minitcptunnel-server certs client NAME` makes them)"
        ),
        A::UnknownCA => format!(
            "{peer} does not know the CA that signed our certificate ({ours}): the CA must be in {its_anchors}"
        ),
        A::CertificateExpired => format!(
            "{peer} says that our certificate ({ours}) has ended or has not begun: replace it, and compare the clocks"
        ),
        A::BadCertificate => match side {
            Side::Client => format!(
                "{peer} cannot accept our certificate ({ours}), or wants one and was shown none; its log says more"
            ),
            Side::Server => format!(
                "{peer} does not accept our certificate ({ours}): the name that it dials is probably not in it; its log \
                 says more"
            ),
        },
        A::CertificateUnknown | A::AccessDenied => format!(
            "{peer} refuses our certificate ({ours}){}; its log says more",
            match side {
                Side::Client => ": its name is probably not in allowed_client_cns there",
                Side::Server => "",
            }
        ),
        A::UnsupportedCertificate => format!(
            "{peer} says that our certificate ({ours}) is for another purpose: was a server's certificate given to a \
             client, or the other way round?"
        ),
        A::DecryptError => format!(
            "{peer} says that a signature is wrong: our certificate ({ours}) is not from the CA it names, or two CAs \
             have the same name"
        ),
        A::ProtocolVersion => format!(
            "{peer} speaks none of our versions of TLS: bring the older end up to date, or set tls.min_version to \
             \"1.2\" on the end that has \"1.3\""
        ),
        A::HandshakeFailure => match side {
            Side::Client => format!(
                "{peer} found no cipher in common, or wants a certificate and was shown none; its log says more. Allow \
                 it ECDHE with AES-GCM or ChaCha20-Poly1305, or configure client_cert and client_key here"
            ),
            Side::Server => format!("{peer} found no cipher in common; its log says more"),
        },
        A::CloseNotify | A::UserCanceled => {
            return Problem {
                text: format!("{peer} left in the middle of the TLS handshake"),
                lasts: false,
                code: Code::TLS_CUT,
            };
        }
        other => {
            return Problem {
                text: format!(
                    "{peer} ended the TLS connection with the alert {other:?}; its log says more"
                ),
                lasts: false,
                code: Code::TLS_CUT,
            };
        }
    };
    Problem {
        text,
        lasts: true,
        code,
    }
}
