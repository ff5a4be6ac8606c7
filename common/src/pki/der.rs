//! The outer parts of a certificate as they lie in its bytes: what was signed, by which algorithm,
//! with which key.
//!
//! rustls keeps these to itself and refuses version 1 outright; x509-parser gives meanings, not
//! bytes. A strict reader for the few fields is shorter than going around either.

/// What follows must be read by the rules of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
    V3,
}

/// Slices of a certificate (RFC 5280, 4.1).
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) version: Version,
    /// TBSCertificate with its header: the bytes that the issuer signed.
    pub(super) signed: &'a [u8],
    /// The algorithm identifier of the signature, without the header, as `pki_types` writes it.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// The names without their headers, compared as bytes.
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// SubjectPublicKeyInfo with its header.
    pub(super) key_info: &'a [u8],
    /// The algorithm identifier in it, without the header.
    pub(super) key_algorithm: &'a [u8],
    /// The key in it.
    pub(super) key: &'a [u8],
    /// Whether something follows the key: unique ids or extensions.
    pub(super) has_more: bool,
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT`, the version; absent in version 1.
const VERSION: u8 = 0xa0;

impl<'a> Parts<'a> {
    /// `None` if the bytes are not one certificate in DER and nothing else.
    pub(super) fn of(certificate: &'a [u8]) -> Option<Self> {
        let mut outside = Reader(certificate);
        let mut certificate = Reader(outside.expect(SEQUENCE)?.contents);
        outside.end()?;
        let tbs = certificate.expect(SEQUENCE)?;
        let signature_algorithm = certificate.expect(SEQUENCE)?.contents;
        let signature = certificate.expect(BIT_STRING)?.bits()?;
        certificate.end()?;

        let mut fields = Reader(tbs.contents);
        let version = match fields.peek() {
            Some(VERSION) => {
                let mut inner = Reader(fields.expect(VERSION)?.contents);
                let number = inner.expect(INTEGER)?.contents;
                inner.end()?;
                match number {
                    // Not DER, which leaves a default out, but seen in the wild.
                    [0] => Version::V1,
                    [1] => Version::V2,
                    [2] => Version::V3,
                    _ => return None,
                }
            }
            _ => Version::V1,
        };
        fields.expect(INTEGER)?; // the serial number
        if fields.expect(SEQUENCE)?.contents != signature_algorithm {
            return None; // RFC 5280, 4.1.1.2: both must be the same
        }
        let issuer = fields.expect(SEQUENCE)?.contents;
        fields.expect(SEQUENCE)?; // the dates: x509-parser reads them
        let subject = fields.expect(SEQUENCE)?.contents;
        let key_info = fields.expect(SEQUENCE)?;
        let has_more = fields.end().is_none();

        let mut inner = Reader(key_info.contents);
        let key_algorithm = inner.expect(SEQUENCE)?.contents;
        let key = inner.expect(BIT_STRING)?.bits()?;
        inner.end()?;
        Some(Self {
            version,
            signed: tbs.whole,
            signature_algorithm,
            signature,
            issuer,
            subject,
            key_info: key_info.whole,
            key_algorithm,
            key,
            has_more,
        })
    }
}

struct Element<'a> {
    contents: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Element<'a> {
    /// The bytes of a bit string of whole bytes.
    fn bits(&self) -> Option<&'a [u8]> {
        match self.contents {
            [0, bytes @ ..] => Some(bytes),
            _ => None,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element, if it has this tag and its length is written as DER wants it.
    fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        let whole = self.0;
        let [found, first, rest @ ..] = whole else {
            return None;
        };
        if *found != tag {
            return None;
        }
        let (length, rest) = match (*first, rest) {
            (short @ ..=0x7f, rest) => (usize::from(short), rest),
            // The long forms, which DER allows only where the shorter one does not do.
            (0x81, [a, rest @ ..]) if *a >= 0x80 => (usize::from(*a), rest),
            (0x82, [a, b, rest @ ..]) if *a > 0 => (usize::from(*a) << 8 | usize::from(*b), rest),
            // Over 64 KiB, or of no stated length: not a certificate of this world.
            _ => return None,
        };
        let (contents, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some(Element {
            contents,
            whole: &whole[..whole.len() - after.len()],
        })
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
