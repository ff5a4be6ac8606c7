//! What must hold for any bytes at all, one function per fuzz target. The fuzz targets call these with what libFuzzer
//! makes up, `tests/fuzz_corpus.rs` with the committed corpus, on every test run and without any instrumentation.

use minitcptunnel_client::config as client;
use minitcptunnel_common::config::{self, Format};
use minitcptunnel_common::identity::{AllowList, IdentityKey};
use minitcptunnel_common::pki::{self, AllowedNames, CertificateDer, Names, UnixTime, Validity};
use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::compress::{self, Unpacked};
use minitcptunnel_common::wire::frame::{self, FrameReader, Opener, Sealer};
use minitcptunnel_common::wire::handshake::v1::{
    self, HELLO_WIRE_LEN, Hello, HelloError, HelloReader, Initiator, Role, Seeds,
};
use minitcptunnel_common::wire::keys::DirectionKey;
use minitcptunnel_common::wire::message::{Kind, Message};
use minitcptunnel_common::wire::{CONTROL_FRAME_MAX, MESSAGE_HEAD, MESSAGE_MAX};
use minitcptunnel_server::config as server;
use std::path::Path;

/// Takes `N` bytes off the front.
fn take<'a, const N: usize>(data: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = data.split_first_chunk::<N>()?;
    *data = rest;
    Some(taken)
}

// ---------------------------------------------------------------------------------------------------------------------

fn read_hello(wire: &[u8], from: Role, step: usize) -> Result<Option<Hello>, HelloError> {
    let mut reader = HelloReader::new(from);
    let mut rest = wire;
    while !rest.is_empty() {
        let room = reader.room();
        assert!(!room.is_empty(), "a reader that has no hello yet has room");
        let n = step.min(room.len()).min(rest.len());
        room[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        if let Some(hello) = reader.advance(n)? {
            return Ok(Some(hello));
        }
    }
    Ok(None)
}

/// Hellos: `mode, step, bytes`. Mode 0 reads the bytes as a hello. Otherwise they are pairs of place and change for an
/// honest hello, and only the unchanged one may pass.
pub(super) fn hello(mut data: &[u8]) {
    let Some(&[mode, step]) = take(&mut data) else {
        return;
    };
    let step = usize::from(step).max(1);
    let client = IdentityKey::from_seed(&[1; 32]);
    let server = IdentityKey::from_seed(&[2; 32]);
    let seeds = |byte| Seeds {
        ephemeral: [byte; 32],
        nonce: [byte; 12],
    };
    let pin = *server.public().as_bytes();
    let (initiator, honest) = Initiator::new(client.signing_key(), &seeds(3));

    if mode == 0 {
        for from in [Role::Client, Role::Server] {
            let slow = read_hello(data, from, step);
            let fast = read_hello(data, from, usize::MAX);
            match (slow, fast) {
                // In one piece a later mistake may be seen before an earlier one could be.
                (Err(_), Err(_)) | (Ok(None), Ok(None)) => {}
                (Ok(Some(slow)), Ok(Some(fast))) => {
                    let role = if from == Role::Client { 1 } else { 0 };
                    assert!(
                        data.starts_with(&[0, 0, 0, 143, 0, 1, role]),
                        "length, version and role are looked at"
                    );
                    assert!(
                        slow == fast,
                        "the same bytes are the same hello, however they arrive"
                    );
                    let _ = v1::respond(server.signing_key(), &slow, &seeds(4));
                }
                _ => panic!("the verdict on a hello depends on how it arrives"),
            }
        }
        if let Ok(Some(answer)) = read_hello(data, Role::Server, step) {
            assert!(
                initiator.finish(&answer, Some(&pin)).is_err(),
                "a made-up answer passed"
            );
        }
        return;
    }

    let change = |wire: &mut [u8; HELLO_WIRE_LEN]| {
        for pair in data.chunks_exact(2) {
            wire[usize::from(pair[0]) % HELLO_WIRE_LEN] ^= pair[1];
        }
    };
    let mut wire = honest;
    if mode == 1 {
        change(&mut wire);
    }
    let answered = read_hello(&wire, Role::Client, step)
        .map(|hello| hello.expect("147 bytes are a hello"))
        .and_then(|hello| v1::respond(server.signing_key(), &hello, &seeds(4)));
    assert_eq!(
        answered.is_ok(),
        wire == honest,
        "a hello passes exactly when nobody changed it"
    );
    if let Ok((honest, keys)) = answered {
        let mut wire = honest;
        if mode != 1 {
            change(&mut wire);
        }
        let finished = read_hello(&wire, Role::Server, step)
            .map(|answer| answer.expect("147 bytes are a hello"))
            .and_then(|answer| initiator.finish(&answer, Some(&pin)));
        assert_eq!(
            finished.is_ok(),
            wire == honest,
            "an answer passes exactly when nobody changed it"
        );
        if let Ok(mine) = finished {
            assert_eq!(mine.c2s.parts(), keys.c2s.parts());
            assert_eq!(mine.s2c.parts(), keys.s2c.parts());
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------

fn direction() -> DirectionKey {
    DirectionKey::from_parts([7; 32], [1, 2, 3, 4])
}

/// Reads a stream in pieces; the messages up to the first error, and whether there was one.
fn read_frames(stream: &[u8], step: usize) -> (Vec<Vec<u8>>, bool) {
    let mut opener = Opener::new(&direction());
    let mut reader = FrameReader::new(CONTROL_FRAME_MAX);
    let mut messages = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let n = step.min(reader.wanted()).min(rest.len());
        assert!(n > 0, "a reader without a whole frame wants more");
        reader.push(&rest[..n]);
        rest = &rest[n..];
        loop {
            match reader.next(&mut opener, CONTROL_FRAME_MAX) {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

/// Frames: `mode, step, place, change, bytes`. Mode 0 reads the bytes as frames, which nobody sealed. Otherwise they
/// are messages (`how, length, bytes`), sealed, perhaps changed at one place, and read again.
pub(super) fn frame(mut data: &[u8]) {
    let Some(&[mode, step, place_high, place_low, change]) = take(&mut data) else {
        return;
    };
    let step = usize::from(step).max(1);
    if mode == 0 {
        let (messages, _) = read_frames(data, step);
        assert!(messages.is_empty(), "nobody sealed this");
        return;
    }

    let mut sealer = Sealer::new(&direction());
    let mut stream = Vec::new();
    let mut sent = Vec::new();
    let mut ends = Vec::new();
    while let Some(&[how, length]) = take(&mut data) {
        // Repeated, so that some of it shrinks.
        let part = &data[..usize::from(length).min(data.len())];
        data = &data[part.len()..];
        let payload = part.repeat(1 + usize::from(how >> 4));
        let flags = how >> 2 & 1;
        let mut buffer = vec![0; frame::HEAD + payload.len() + frame::TAIL];
        buffer[frame::HEAD..frame::HEAD + payload.len()].copy_from_slice(&payload);
        let mut message = vec![Kind::Data as u8, 0, 0, 0, 0, 0];
        let mut packed = Vec::new();
        match how & 3 {
            0 => {
                message[1] = flags;
                let n = sealer
                    .seal_stored(&mut buffer, Kind::Data, flags, payload.len())
                    .expect("counters left");
                stream.extend_from_slice(&buffer[..n]);
            }
            1 => match sealer
                .seal_packed(&mut buffer, Kind::Data, payload.len(), &mut packed)
                .expect("counters left")
            {
                Some(frame) => {
                    assert!(frame.len() < buffer.len(), "packed is smaller than stored");
                    stream.extend_from_slice(frame);
                }
                None => {
                    let n = sealer
                        .seal_stored(&mut buffer, Kind::Data, 0, payload.len())
                        .expect("counters left");
                    stream.extend_from_slice(&buffer[..n]);
                }
            },
            _ => {
                if how & 3 == 3 {
                    message.clear();
                }
                message.extend_from_slice(&payload);
                sealer
                    .seal_message(&message, &mut stream)
                    .expect("counters left");
            }
        }
        if how & 3 < 2 {
            message.extend_from_slice(&payload);
        }
        sent.push(message);
        ends.push(stream.len());
    }
    let place = usize::from(place_high) << 8 | usize::from(place_low);
    if change == 0 || place >= stream.len() {
        let (messages, damaged) = read_frames(&stream, step);
        assert!(
            !damaged && messages == sent,
            "what was sealed is what comes out"
        );
        return;
    }
    stream[place] ^= change;
    let (messages, _) = read_frames(&stream, step);
    let intact = ends.iter().take_while(|&&end| end <= place).count();
    assert!(
        messages == sent[..intact],
        "all before the damage comes out, and nothing after it"
    );
}

// ---------------------------------------------------------------------------------------------------------------------

/// Messages: any bytes decode or are refused, and what was decoded survives being written and read again.
pub(super) fn messages(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let mut written = Vec::new();
        message.encode(true, &mut written);
        assert!(
            written.len() <= data.len().max(MESSAGE_HEAD) + 16,
            "nothing grows out of proportion"
        );
        assert_eq!(Message::decode(&written).as_ref(), Ok(&message));
        // Towards an original peer the optional fields are missing, and the rest still reads.
        written.clear();
        message.encode(false, &mut written);
        assert!(Message::decode(&written).is_ok());
        if let Message::Heartbeat { payload } = &message {
            if let Some(known) = Capabilities::read_offer(payload) {
                assert_eq!(Capabilities::read_offer(&known.offer()), Some(known));
                assert!(
                    Capabilities::read_answer(payload).is_none(),
                    "an offer is not an answer"
                );
                assert_eq!(known.and(Capabilities::ALL), known);
            }
            if let Some(known) = Capabilities::read_answer(payload) {
                assert_eq!(Capabilities::read_answer(&known.answer()), Some(known));
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------

/// The message of a container, with everything held to be true of [`compress::unpack`]; `None` when it is refused.
pub(super) fn unpack(container: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut spare = Vec::new();
    let unpacked = compress::unpack(container, &mut spare, limit);
    // One byte over the limit is how it finds out that there is more.
    assert!(
        spare.len() <= limit.max(4096) + 1,
        "expansion stops at the limit, not after it"
    );
    let message = match unpacked.ok()? {
        Unpacked::InPlace(range) => container[range].to_vec(),
        Unpacked::Spare(len) => spare[..len].to_vec(),
    };
    assert!(message.len() <= limit, "never more than the limit");
    Some(message)
}

/// LZ4 containers: `limit, bytes`. The bytes as a container; then as a message, packed and unpacked.
pub(super) fn lz4(mut data: &[u8]) {
    let Some(&[limit]) = take(&mut data) else {
        return;
    };
    let limit = match limit {
        0 => MESSAGE_MAX,
        1 => CONTROL_FRAME_MAX,
        n => usize::from(n) << 4,
    };
    if let Some(message) = unpack(data, limit) {
        assert_eq!(
            unpack(data, MESSAGE_MAX),
            Some(message),
            "a wider limit does not change a message"
        );
    }
    let mut container = vec![0xEE; 3];
    if compress::pack(data, &mut container) {
        assert!(
            container.len() - 3 < data.len() + compress::OVERHEAD,
            "packed is smaller than stored"
        );
        assert_eq!(unpack(&container[3..], data.len()).as_deref(), Some(data));
        assert_eq!(
            unpack(&container[3..], data.len() - 1),
            None,
            "one byte less is too little room"
        );
    }
    assert!(container.starts_with(&[0xEE; 3]), "what stood before stays");
}

// ---------------------------------------------------------------------------------------------------------------------

fn read_config(path: &str, text: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    match config::parse::<serde_json::Value>(Path::new(path), text) {
        Ok(loaded) => Some(
            loaded
                .raw
                .as_object()
                .expect("a configuration is a mapping")
                .clone(),
        ),
        Err(problem) => {
            assert!(!problem.to_string().is_empty(), "a refusal says why");
            None
        }
    }
}

/// The typed reading of both programs: whatever the file says, it is taken or refused in words.
fn read_typed(path: &str, text: &str) {
    let path = Path::new(path);
    if let Ok(loaded) = config::parse::<server::Raw>(path, text)
        && let Err(problem) =
            server::check(loaded.raw, loaded.places, &server::Overrides::default())
    {
        assert!(!problem.to_string().is_empty(), "a refusal says why");
    }
    if let Ok(loaded) = config::parse::<client::Raw>(path, text) {
        match client::check(loaded.raw, loaded.places, client::Pinning::Required) {
            Ok(checked) => match checked.config.reverse {
                Some(reverse) => {
                    assert!(reverse.server_pub_key.is_some(), "no pin, no configuration");
                }
                None => assert!(
                    !checked.config.forwards.is_empty(),
                    "a configuration is for something"
                ),
            },
            Err(problem) => assert!(!problem.to_string().is_empty(), "a refusal says why"),
        }
    }
}

/// Files a person writes. `y...` is YAML, `a...` an allow list, `k...` a key file, anything else JSON.
pub(super) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (format, path, text) = match text.as_bytes().first() {
        Some(b'a') => return allow_list(&text[1..]),
        Some(b'k') => return key_file(&text[1..]),
        Some(b'y') => (Format::Yaml, "x.yaml", &text[1..]),
        _ => (Format::Json, "x.json", text),
    };
    read_typed(path, text);
    let before = read_config(path, text);
    let key = "identity_private_key_hex";
    let value = "00ff".repeat(16);
    if let Ok(new) = config::edit::insert_text(format, text, key, &value, "server_pub_key") {
        let Some(mut expected) = before else {
            // Well formed, but with something no key here takes, such as a number of 25 digits.
            assert_eq!(read_config(path, &new), None);
            return;
        };
        let old = expected.insert(key.to_owned(), value.into());
        assert!(
            old.is_none_or(
                |old| old.is_null() || old.as_str().is_some_and(|text| text.trim().is_empty())
            ),
            "a value that was there is never replaced"
        );
        assert_eq!(
            read_config(path, &new),
            Some(expected),
            "nothing else changes"
        );
        assert!(
            config::edit::insert_text(format, &new, key, "11", "").is_err(),
            "nor a second time"
        );
    }
}

fn allow_list(text: &str) {
    let lines = text.lines().count();
    match AllowList::parse(text) {
        Ok(list) => {
            assert!(list.len() + list.warnings.len() <= lines);
            for entry in list.entries() {
                assert!((1..=lines).contains(&entry.line));
                assert_eq!(list.find(&entry.key), Some(entry));
            }
        }
        Err(bad) => {
            assert!(!bad.is_empty());
            assert!(
                bad.is_sorted_by(|a, b| a.line < b.line),
                "each bad line once, in order"
            );
            assert!(bad.iter().all(|bad| (1..=lines).contains(&bad.line)));
        }
    }
}

fn key_file(text: &str) {
    if let Ok(key) = IdentityKey::from_hex(text) {
        let again = IdentityKey::from_hex(&key.seed_hex()).expect("what we write we read");
        assert_eq!(again.public(), key.public());
    }
}

// ---------------------------------------------------------------------------------------------------------------------

/// A certificate, as a peer may send it: reading it never panics, and what the log says of it is one line.
pub(super) fn certificate(data: &[u8]) {
    let certificate = CertificateDer::from(data);
    if let Some(validity) = Validity::of("it".into(), &certificate) {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1 << 31));
        let _ = validity.at(now).map(|end| end.to_string());
    }
    let Some(names) = Names::of(&certificate) else {
        return;
    };
    for text in [names.short(), names.to_string()] {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    assert!(AllowedNames::everybody().admits(&names));
    // A list admits whom it names.
    let own = names.common_name.as_deref().unwrap_or_default().trim();
    if let Ok(list) = AllowedNames::new([own])
        && Some(own) == names.common_name.as_deref()
    {
        assert!(list.admits(&names), "{own:?}");
    }
    let host = pki::server_name("localhost").expect("a name");
    if names.is_common_name_of(&host) {
        assert!(
            own.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
            "{own:?}"
        );
    }
}
