//! Every file of `tests/vectors` through the code that the programs run. The files come from a second
//! implementation; their format is told in `tests/vectors/README.md`. A new kind of vector belongs here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minitcptunnel_common::wire::compress::{self, Unpacked};
use minitcptunnel_common::wire::frame::{self, Opened, Opener};
use minitcptunnel_common::wire::handshake::v1::{
    Hello, HelloReader, Initiator, Role, Seeds, respond,
};
use minitcptunnel_common::wire::keys::{self, DirectionKey, SessionKey};
use minitcptunnel_common::wire::message::{Message, Status};
use minitcptunnel_common::wire::{CIPHERTEXT_MAX, MESSAGE_MAX};
use orion::hazardous::ecc::x25519;
use orion::hazardous::kdf::hkdf;
use orion::hazardous::mac::hmac::sha256 as hmac;

/// How many files there must be, by kind and expectation. A file more or less is a change of this table.
const FILES: &[(&str, usize, usize)] = &[
    // kind, good, bad
    ("chacha20poly1305", 1, 2),
    ("ed25519", 3, 2),
    ("frame", 12, 13),
    ("hello-client", 3, 16),
    ("hello-server", 1, 7),
    ("hkdf", 3, 0),
    ("keys", 2, 1),
    ("lz4", 23, 28),
    ("message", 26, 15),
    ("token", 3, 2),
    ("x25519", 3, 3),
];

/// Why a vector was refused; only that it was counts.
#[derive(Debug)]
struct Refused(String);

fn refused(why: impl std::fmt::Debug) -> Refused {
    Refused(format!("{why:?}"))
}

struct Vector {
    name: String,
    fields: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Vector {
    fn parse(name: &str, text: &str) -> Self {
        let (head, body) = text.split_once("\n\n").expect("head, empty line, body");
        let mut fields = BTreeMap::new();
        for line in head.lines() {
            let (key, value) = line.split_once(':').expect("name: value");
            let old = fields.insert(key.to_owned(), value.trim().to_owned());
            assert!(old.is_none(), "{name}: {key} twice");
        }
        Self {
            name: name.to_owned(),
            fields,
            body: expression(body),
        }
    }

    fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .unwrap_or_else(|| panic!("{}: no {field}", self.name))
    }

    fn bytes(&self, field: &str) -> Vec<u8> {
        expression(self.text(field))
    }

    /// Whether it should have been refused: then there are no results to compare with.
    fn bad(&self) -> bool {
        self.text("expect") == "error"
    }

    fn optional(&self, field: &str) -> Option<Vec<u8>> {
        self.fields.get(field).map(|text| expression(text))
    }

    fn string(&self, field: &str) -> Option<String> {
        self.optional(field)
            .map(|bytes| String::from_utf8(bytes).expect("a string"))
    }

    fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field)
            .try_into()
            .unwrap_or_else(|v: Vec<u8>| panic!("{}: {field} has {} bytes", self.name, v.len()))
    }

    fn number(&self, field: &str) -> Option<u64> {
        let text = self.fields.get(field)?;
        Some(text.parse().expect("a number"))
    }
}

fn expression(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for term in text.split_whitespace() {
        let (count, digits) = match term.split_once('*') {
            Some((count, digits)) => (count.parse().expect("a count"), digits),
            None => (1, term),
        };
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"))
            .collect();
        for _ in 0..count {
            out.extend_from_slice(&bytes);
        }
    }
    out
}

/// The client hellos of the good vectors by signature: a server hello answers one of them.
type ClientHellos = BTreeMap<Vec<u8>, (SigningKey, [u8; 32], [u8; 12], Vec<u8>)>;

#[test]
fn every_file_means_what_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let mut vectors = Vec::new();
    for entry in fs::read_dir(&dir).expect("tests/vectors") {
        let path = entry.expect("readable").path();
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        if name != "README.md" {
            let text = fs::read_to_string(&path).expect("readable");
            vectors.push(Vector::parse(&name, &text));
        }
    }
    vectors.sort_by(|a, b| a.name.cmp(&b.name));

    let mut hellos = ClientHellos::new();
    for v in &vectors {
        if v.text("kind") == "hello-client" && v.text("expect") == "ok" {
            let identity = SigningKey::from_bytes(&v.array("identity-seed"));
            let known = (
                identity,
                v.array("ephemeral-private"),
                v.array("nonce"),
                v.body.clone(),
            );
            hellos.insert(v.bytes("signature"), known);
        }
    }

    let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for v in &vectors {
        let count = seen.entry(v.text("kind")).or_default();
        let result = run(v, &hellos);
        match (v.text("expect"), result) {
            ("ok", Ok(())) => count.0 += 1,
            ("error", Err(_)) => count.1 += 1,
            ("ok", Err(e)) => wrong.push(format!("{}: refused: {}", v.name, e.0)),
            ("error", Ok(())) => {
                wrong.push(format!("{}: taken, wanted {}", v.name, v.text("reason")));
            }
            (other, _) => panic!("{}: expect: {other}", v.name),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let expected: BTreeMap<&str, (usize, usize)> = FILES
        .iter()
        .map(|&(kind, good, bad)| (kind, (good, bad)))
        .collect();
    assert_eq!(seen, expected, "files by kind: (good, bad)");
}

/// Runs one vector. A result that differs is a panic, a refusal an error.
fn run(v: &Vector, hellos: &ClientHellos) -> Result<(), Refused> {
    match v.text("kind") {
        "hello-client" => hello_client(v),
        "hello-server" => hello_server(v, hellos),
        "keys" => key_schedule(v),
        "frame" => sealed_frame(v),
        "lz4" => container(v),
        "message" => message(v),
        "token" => token(v),
        "hkdf" => hkdf_sha256(v),
        "x25519" => agreement(v),
        "ed25519" => signature(v),
        "chacha20poly1305" => aead(v),
        other => panic!("{}: unknown kind {other}", v.name),
    }
}

fn read_hello(body: &[u8], from: Role) -> Result<Hello, Refused> {
    let mut reader = HelloReader::new(from);
    let mut rest = body;
    // Byte by byte: a wrong one must be seen no later than it comes.
    while let Some((first, more)) = rest.split_first() {
        reader.room()[0] = *first;
        rest = more;
        if let Some(hello) = reader.advance(1).map_err(refused)? {
            return Ok(hello);
        }
    }
    Err(refused("it never became a hello"))
}

/// Compares what a hello says with the fields of its vector.
fn same_hello(v: &Vector, hello: &Hello) {
    assert_eq!(hello.identity()[..], v.bytes("identity"), "{}", v.name);
    assert_eq!(hello.ephemeral()[..], v.bytes("ephemeral"), "{}", v.name);
}

fn seeds(v: &Vector) -> Seeds {
    Seeds {
        ephemeral: v.array("ephemeral-private"),
        nonce: v.array("nonce"),
    }
}

fn holds_key(joined: &[u8], key: &[u8; 32]) -> bool {
    joined.as_chunks::<32>().0.contains(key)
}

fn hello_client(v: &Vector) -> Result<(), Refused> {
    let hello = read_hello(&v.body, Role::Client)?;
    if !holds_key(&v.bytes("allowed"), hello.identity()) {
        return Err(refused("not in the allow list"));
    }
    let server = SigningKey::from_bytes(&[1; 32]);
    let any = Seeds {
        ephemeral: [2; 32],
        nonce: [3; 12],
    };
    respond(&server, &hello, &any).map_err(refused)?;
    // The memory of replays is the server's; `hostile.rs` tries it. Here the vector itself is checked.
    if holds_key(&v.optional("seen").unwrap_or_default(), hello.ephemeral()) {
        return Err(refused("replayed"));
    }
    if v.bad() {
        return Ok(());
    }
    same_hello(v, &hello);
    let identity = SigningKey::from_bytes(&v.array("identity-seed"));
    let (_, wire) = Initiator::new(&identity, &seeds(v));
    assert_eq!(wire[..], v.body[..wire.len()], "{}: made anew", v.name);
    Ok(())
}

fn hello_server(v: &Vector, hellos: &ClientHellos) -> Result<(), Refused> {
    // Where nobody knows the seeds behind the client's signature, another client takes its place, whom
    // the answer fits as little.
    let stranger = (
        SigningKey::from_bytes(&[4; 32]),
        [5; 32],
        [6; 12],
        Vec::new(),
    );
    let client = hellos.get(&v.bytes("client-signature"));
    let (identity, ephemeral, nonce, client_wire) = client.unwrap_or(&stranger);
    let client_seeds = Seeds {
        ephemeral: *ephemeral,
        nonce: *nonce,
    };
    let (initiator, _) = Initiator::new(identity, &client_seeds);
    let hello = read_hello(&v.body, Role::Server)?;
    initiator
        .finish(&hello, Some(&v.array("pin")))
        .map_err(refused)?;
    if v.bad() {
        return Ok(());
    }
    assert!(client.is_some(), "{}: an answer to no known hello", v.name);
    same_hello(v, &hello);
    let server = SigningKey::from_bytes(&v.array("identity-seed"));
    let asked = read_hello(client_wire, Role::Client)?;
    let (wire, _) = respond(&server, &asked, &seeds(v)).map_err(refused)?;
    assert_eq!(wire[..], v.body[..wire.len()], "{}: made anew", v.name);
    Ok(())
}

fn agree(private: [u8; 32], public: [u8; 32]) -> Result<Vec<u8>, Refused> {
    let private = x25519::PrivateKey::try_from(&private).map_err(refused)?;
    let public = x25519::PublicKey::try_from(&public).map_err(refused)?;
    let shared = x25519::key_agreement(&private, &public).map_err(refused)?;
    Ok(shared.unprotected_as_ref().to_vec())
}

fn extract(salt: &[u8], ikm: &[u8]) -> Vec<u8> {
    // HKDF-Extract is HMAC keyed with the salt (RFC 5869, 2.2).
    let key = hmac::SecretKey::try_from(salt).expect("a salt");
    let tag = hmac::HmacSha256::hmac(&key, ikm).expect("short");
    tag.unprotected_as_ref().to_vec()
}

fn key_schedule(v: &Vector) -> Result<(), Refused> {
    let shared = agree(v.array("client-private"), v.array("server-public"))?;
    let other = agree(v.array("server-private"), v.array("client-public"))?;
    if v.bad() {
        return Ok(());
    }
    assert_eq!(shared, v.bytes("shared"), "{}", v.name);
    assert_eq!(shared, other, "{}: both sides", v.name);
    let salt = [v.bytes("client-nonce"), v.bytes("server-nonce")].concat();
    assert_eq!(extract(&salt, &shared), v.bytes("prk"), "{}", v.name);
    let made = keys::derive(&shared, &v.array("client-nonce"), &v.array("server-nonce"));
    let ((c2s, c2s_base), (s2c, s2c_base)) = (made.c2s.parts(), made.s2c.parts());
    assert_eq!(c2s[..], v.bytes("key-c2s"), "{}", v.name);
    assert_eq!(s2c[..], v.bytes("key-s2c"), "{}", v.name);
    assert_eq!(c2s_base[..], v.bytes("base-c2s"), "{}", v.name);
    assert_eq!(s2c_base[..], v.bytes("base-s2c"), "{}", v.name);
    let joined = [&c2s[..], s2c, c2s_base, s2c_base].concat();
    assert_eq!(joined, v.body, "{}", v.name);
    Ok(())
}

fn sealed_frame(v: &Vector) -> Result<(), Refused> {
    let max = v.number("limit-n").map_or(CIPHERTEXT_MAX, |n| n as usize);
    let len = frame::frame_len(&v.body, max)
        .map_err(refused)?
        .ok_or_else(|| refused("no length yet"))?;
    let mut body = v
        .body
        .get(4..4 + len)
        .ok_or_else(|| refused("not all there"))?
        .to_vec();
    let key = DirectionKey::from_parts(v.array("key"), v.array("nonce-base"));
    let mut opener = Opener::at(&key, v.number("counter").expect("a counter"));
    let mut spare = Vec::new();
    let opened = opener
        .open(&mut body, &mut spare, MESSAGE_MAX)
        .map_err(refused)?;
    if v.bad() {
        return Ok(());
    }
    assert_eq!(body[..len - 16], v.bytes("container"), "{}", v.name);
    let plain = match opened {
        Opened::InPlace(range) => &body[range],
        Opened::Spare(n) => &spare[..n],
    };
    assert_eq!(plain, v.bytes("plaintext"), "{}", v.name);
    Ok(())
}

fn container(v: &Vector) -> Result<(), Refused> {
    let limit = v.number("limit").map_or(MESSAGE_MAX, |n| n as usize);
    let mut spare = Vec::new();
    let unpacked = compress::unpack(&v.body, &mut spare, limit);
    // The promise of L3: expansion stops at the limit.
    assert!(
        spare.len() <= limit.max(4096) + 1,
        "{}: {} bytes for a limit of {limit}",
        v.name,
        spare.len()
    );
    let unpacked = unpacked.map_err(refused)?;
    if v.bad() {
        return Ok(());
    }
    let plain = match unpacked {
        Unpacked::InPlace(range) => &v.body[range],
        Unpacked::Spare(n) => &spare[..n],
    };
    assert!(plain == v.bytes("plaintext"), "{}", v.name);
    Ok(())
}

fn message(v: &Vector) -> Result<(), Refused> {
    let message = Message::decode(&v.body).map_err(refused)?;
    if matches!(message, Message::Short | Message::Empty) {
        return Err(refused(message));
    }
    if v.bad() {
        return Ok(());
    }
    assert_eq!(u64::from(v.body[0]), v.number("type").expect("type"));
    assert_eq!(u64::from(v.body[1]), v.number("flags").expect("flags"));
    let stream = u32::from_be_bytes(v.body[2..6].try_into().expect("four"));
    assert_eq!(u64::from(stream), v.number("stream").expect("stream"));
    same_message(v, &message);
    // Made anew, with the optional fields where the vector has them; bytes behind the last field are
    // nobody's, and flags and stream id are not ours to repeat.
    if !matches!(message, Message::Unknown { .. }) {
        let extended = ["compression", "reason-text", "visitor"]
            .iter()
            .any(|field| v.fields.contains_key(*field));
        let mut made = Vec::new();
        message.encode(extended, &mut made);
        assert_eq!(made[6..], v.body[6..made.len()], "{}: made anew", v.name);
        assert_eq!(made[0], v.body[0], "{}", v.name);
    }
    Ok(())
}

fn same_message(v: &Vector, message: &Message) {
    let name = &v.name;
    let is = |field: &str, value: &str| {
        assert_eq!(v.string(field).as_deref(), Some(value), "{name}: {field}");
    };
    // Optional fields: missing in the vector means the value a missing field is read as.
    let number = |field: &str, value: u64| {
        assert_eq!(v.number(field).unwrap_or(0), value, "{name}: {field}");
    };
    match message {
        Message::AuthOk { session_key } => {
            assert_eq!(v.bytes("session-key"), session_key, "{name}");
        }
        Message::AuthFail { reason, text } | Message::Error { reason, text } => {
            number("code", reason.code().into());
            is("text", text);
        }
        Message::OpenTunnel {
            port,
            tunnel,
            compression,
        } => {
            number("public-port", (*port).into());
            is("tunnel-id", tunnel.as_str());
            number("compression", *compression as u64);
        }
        Message::CloseTunnel { tunnel } => is("tunnel-id", tunnel.as_str()),
        Message::TunnelStatus {
            status,
            tunnel,
            reason,
            port,
        } => {
            let word = match status {
                Status::Open => "Open",
                Status::Stopped => "Stopped",
                Status::Error => "Error",
                Status::Other(other) => other,
            };
            let wanted = v.string("status").expect("a status");
            assert!(wanted.eq_ignore_ascii_case(word), "{name}: {word}");
            is("tunnel-id", tunnel.as_str());
            let text = v.string("reason-text").unwrap_or_default();
            assert_eq!(&text, reason, "{name}");
            number("port", (*port).into());
        }
        Message::IncomingConn {
            tunnel,
            conn,
            visitor,
        } => {
            is("tunnel-id", tunnel.as_str());
            is("conn-id", conn.as_str());
            assert_eq!(&v.string("visitor"), visitor, "{name}");
        }
        Message::DataConnReady { token, conn } => {
            assert_eq!(v.bytes("token"), token, "{name}");
            is("conn-id", conn.as_str());
        }
        Message::RefuseConn { conn, reason } => {
            is("conn-id", conn.as_str());
            is("reason-text", reason);
        }
        Message::SpareReady { token, keep, max } => {
            assert_eq!(v.bytes("token"), token, "{name}");
            number("keep", (*keep).into());
            number("max", (*max).into());
        }
        Message::Assign {
            tunnel,
            conn,
            visitor,
        } => {
            is("tunnel-id", tunnel.as_str());
            is("conn-id", conn.as_str());
            is("visitor", visitor);
        }
        Message::Heartbeat { payload } => assert_eq!(&v.bytes("payload"), payload, "{name}"),
        Message::Unknown { kind } => {
            assert_eq!(v.number("type"), Some((*kind).into()), "{name}");
            assert_eq!(v.bytes("payload"), v.body[6..], "{name}");
        }
        Message::Short | Message::Empty => unreachable!("refused before"),
    }
}

fn token(v: &Vector) -> Result<(), Refused> {
    let key = SessionKey::new(v.array("session-key"));
    let conn = v.string("conn-id").expect("a conn id");
    let token: [u8; 32] = v.body[..].try_into().expect("32 bytes");
    assert_eq!(key.verify(&conn, &token), key.token(&conn) == token);
    assert_eq!(
        key.verify_spare(&token),
        v.name == "token-spare.txt",
        "{}",
        v.name
    );
    if key.verify(&conn, &token) {
        Ok(())
    } else {
        Err(refused("another token"))
    }
}

fn hkdf_sha256(v: &Vector) -> Result<(), Refused> {
    let (salt, ikm, info) = (v.bytes("salt"), v.bytes("ikm"), v.bytes("info"));
    if !salt.is_empty() {
        assert_eq!(extract(&salt, &ikm), v.bytes("prk"), "{}", v.name);
    }
    let mut out = vec![0; v.body.len()];
    hkdf::Hkdf::<hkdf::SHA256>::derive_key(&salt, &ikm, Some(&info), &mut out).map_err(refused)?;
    assert_eq!(out, v.body, "{}", v.name);
    Ok(())
}

fn agreement(v: &Vector) -> Result<(), Refused> {
    let shared = agree(v.array("private"), v.array("public"))?;
    if v.bad() {
        return Ok(());
    }
    assert_eq!(shared, v.body, "{}", v.name);
    Ok(())
}

fn signature(v: &Vector) -> Result<(), Refused> {
    let public = VerifyingKey::from_bytes(&v.array("public")).map_err(refused)?;
    let message = v.bytes("message");
    let signature = Signature::from_slice(&v.body).map_err(refused)?;
    public
        .verify_strict(&message, &signature)
        .map_err(refused)?;
    if v.fields.contains_key("seed") {
        let key = SigningKey::from_bytes(&v.array("seed"));
        assert_eq!(key.verifying_key(), public, "{}", v.name);
        assert_eq!(key.sign(&message), signature, "{}", v.name);
    }
    Ok(())
}

fn aead(v: &Vector) -> Result<(), Refused> {
    let cipher = ChaCha20Poly1305::new(&v.array::<32>("key").into());
    let (sealed, tag) = v.body.split_at(v.body.len() - 16);
    let mut plain = sealed.to_vec();
    let nonce = v.array::<12>("nonce").into();
    let tag: [u8; 16] = tag.try_into().expect("16 bytes");
    let aad = v.bytes("aad");
    cipher
        .decrypt_inout_detached(&nonce, &aad, (&mut plain[..]).into(), &tag.into())
        .map_err(refused)?;
    if v.bad() {
        return Ok(());
    }
    assert_eq!(plain, v.bytes("plaintext"), "{}", v.name);
    let tag_made = cipher
        .encrypt_inout_detached(&nonce, &aad, (&mut plain[..]).into())
        .map_err(refused)?;
    assert_eq!(
        (&plain[..], &tag_made[..]),
        (sealed, &tag[..]),
        "{}",
        v.name
    );
    Ok(())
}
