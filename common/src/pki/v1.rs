//! Client certificates of X.509 version 1.
//!
//! `openssl x509 -req` without an extension file makes them, so they are what many recipes leave
//! their readers with; rustls refuses them. A leaf of version 1 can be verified as safely as any
//! other, because everything that version 3 adds only ever restricts a certificate, and the one
//! restriction that matters, "is no CA", is kept here by never taking it for one:
//!
//! ```text
//!   1 version 1, nothing after the key
//!   2 issuer = subject, byte for byte, of one of the configured anchors   no intermediates
//!   3 that anchor may sign: version 3, CA:TRUE, keyCertSign, its purposes and dates, and no
//!     restriction (such as name constraints) that we would have to apply
//!   4 its key, of the kind that the signature names, signed the leaf
//!   5 the leaf's own dates
//!   6 handshake: signed with the leaf's key, of the kind that the signature scheme names
//! ```
//!
//! Steps 4 and 6 use the algorithms of the provider, as rustls does: no SHA-1, no short RSA keys.

use super::Refusal;
use super::der::{Parts, Version};
use super::expiry::Validity;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};
use x509_parser::parse_x509_certificate;

/// Whether a certificate is of version 1.
pub(super) fn is_version_one(certificate: &CertificateDer<'_>) -> bool {
    Parts::of(certificate).is_some_and(|parts| parts.version == Version::V1)
}

/// Whether a certificate binds the names below it. One that cannot be read is taken to.
pub(super) fn has_name_constraints(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate).map_or(true, |(_, read)| {
        let mut ids = read.extensions().iter().map(|extension| &extension.oid);
        ids.any(|id| *id == OID_X509_EXT_NAME_CONSTRAINTS)
    })
}

/// Steps 1 to 5.
pub(super) fn verify_client(
    leaf: &CertificateDer<'_>,
    anchors: &[CertificateDer<'_>],
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Error> {
    let parts = Parts::of(leaf).ok_or(CertificateError::BadEncoding)?;
    if parts.version != Version::V1 || parts.has_more {
        return Err(CertificateError::BadEncoding.into());
    }
    // Several anchors may bear one name, after a CA has changed its key: one that signed suffices.
    let mut verdict = Err(CertificateError::UnknownIssuer.into());
    for anchor in anchors {
        let Some(issuer) = Parts::of(anchor).filter(|issuer| issuer.subject == parts.issuer) else {
            continue;
        };
        verdict = if may_sign_clients(anchor, &issuer, now) {
            signed_by(&parts, &issuer, algorithms)
        } else {
            Err(Refusal::IssuerMayNotSign.into_rustls())
        };
        if verdict.is_ok() {
            break;
        }
    }
    verdict?;
    within_dates(leaf, now)
}

/// Step 3.
fn may_sign_clients(anchor: &CertificateDer<'_>, parts: &Parts<'_>, now: UnixTime) -> bool {
    let Ok((_, anchor_read)) = parse_x509_certificate(anchor) else {
        return false;
    };
    // Anything critical that is not looked at below might be a reason to refuse.
    let known = anchor_read.extensions().iter().all(|extension| {
        let id = &extension.oid;
        *id != OID_X509_EXT_NAME_CONSTRAINTS
            && (!extension.critical
                || [
                    OID_X509_EXT_BASIC_CONSTRAINTS,
                    OID_X509_EXT_KEY_USAGE,
                    OID_X509_EXT_EXTENDED_KEY_USAGE,
                    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
                    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
                ]
                .contains(id))
    });
    // `Err` where an extension is damaged or there twice: then nothing is taken for granted.
    let is_ca = matches!(anchor_read.basic_constraints(), Ok(Some(basic)) if basic.value.ca);
    let signs = match anchor_read.key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Err(_) => false,
    };
    let for_clients = match anchor_read.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(purposes)) => purposes.value.any || purposes.value.client_auth,
        Err(_) => false,
    };
    parts.version == Version::V3
        && known
        && is_ca
        && signs
        && for_clients
        && within_dates(anchor, now).is_ok()
}

/// Step 4.
fn signed_by(
    leaf: &Parts<'_>,
    issuer: &Parts<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), Error> {
    let algorithm = algorithms.all.iter().find(|algorithm| {
        algorithm.signature_alg_id().as_ref() == leaf.signature_algorithm
            && algorithm.public_key_alg_id().as_ref() == issuer.key_algorithm
    });
    algorithm
        .ok_or_else(
            || CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                signature_algorithm_id: leaf.signature_algorithm.to_vec(),
                public_key_algorithm_id: issuer.key_algorithm.to_vec(),
            },
        )?
        .verify_signature(issuer.key, leaf.signed, leaf.signature)
        .map_err(|_| CertificateError::BadSignature.into())
}

/// Step 5, and the dates of the anchor.
fn within_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = Validity::of(String::new(), certificate).ok_or(CertificateError::BadEncoding)?;
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    if now.as_secs() < validity.from {
        Err(CertificateError::NotValidYetContext {
            time: now,
            not_before: at(validity.from),
        }
        .into())
    } else if now.as_secs() > validity.until {
        Err(CertificateError::ExpiredContext {
            time: now,
            not_after: at(validity.until),
        }
        .into())
    } else {
        Ok(())
    }
}

/// Step 6 in TLS 1.3.
pub(super) fn verify_tls13(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let parts = Parts::of(leaf).ok_or(CertificateError::BadEncoding)?;
    // It compares the key's algorithm with the scheme's.
    let key = SubjectPublicKeyInfoDer::from(parts.key_info);
    verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
}

/// Step 6 in TLS 1.2, where a scheme may stand for several curves: the key says which.
pub(super) fn verify_tls12(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let parts = Parts::of(leaf).ok_or(CertificateError::BadEncoding)?;
    let (_, candidates) = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signature.scheme)
        .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    candidates
        .iter()
        .find(|algorithm| algorithm.public_key_alg_id().as_ref() == parts.key_algorithm)
        .ok_or_else(
            || CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                signature_algorithm_id: candidates[0].signature_alg_id().as_ref().to_vec(),
                public_key_algorithm_id: parts.key_algorithm.to_vec(),
            },
        )?
        .verify_signature(parts.key, message, signature.signature())
        .map_err(|_| CertificateError::BadSignature)?;
    Ok(HandshakeSignatureValid::assertion())
}
