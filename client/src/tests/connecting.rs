use std::io::Write;

use minitcptunnel_common::identity::PublicKey;

use super::*;

#[test]
fn a_server_that_closes_at_once_most_likely_does_not_know_us() {
    let server = FakeServer::new();
    let client = start(&config(&server));
    drop(server.accept());
    let (reason, _) = waiting(&client);
    assert!(reason.contains("allowed_clients.txt"), "{reason}");
    assert!(reason.contains(&own_key().public().to_string()), "{reason}");
}

#[test]
fn it_goes_on_trying() {
    let server = FakeServer::new();
    let client = start(&eager(&server));
    for _ in 0..5 {
        drop(server.accept());
    }
    let _session = server.session(2);
    assert!(client.wait_for(SOON, is_up).is_some());
}

#[test]
fn half_a_hello_and_silence_end_at_the_deadline() {
    for (sent, said) in [(0, "no answer to the handshake"), (70, "70 bytes came")] {
        let server = FakeServer::new();
        let mut config = config(&server);
        config.timeouts.handshake = Duration::from_millis(100);
        let client = start(&config);
        let (mut stream, hello, _) = server.answer();
        stream.write_all(&hello[..sent]).unwrap();
        let (reason, _) = waiting(&client);
        assert!(reason.contains(said), "{reason}");
        assert!(reason.contains("within 0.1 s"), "{reason}");
    }
}

#[test]
fn a_hello_that_ends_too_early_is_no_refusal() {
    let server = FakeServer::new();
    let client = start(&config(&server));
    let (mut stream, hello, _) = server.answer();
    stream.write_all(&hello[..146]).unwrap();
    drop(stream);
    let (reason, _) = waiting(&client);
    assert!(reason.contains("in the middle of its hello"), "{reason}");
    assert!(!reason.contains("allowed_clients"), "{reason}");
}

#[test]
fn wrong_hellos_are_turned_away() {
    // Which byte of the answer is changed, and what is said.
    let table = [
        (3, "hello of 142 bytes"),
        (5, "protocol version 0"),
        (6, "unexpected role 1"),
        // The ephemeral key and the nonce are signed.
        (4 + 35, "Bad signature from server"),
        (4 + 67, "Bad signature from server"),
        (4 + 79, "Bad signature from server"),
        (4 + 142, "Bad signature from server"),
    ];
    for (at, said) in table {
        let server = FakeServer::new();
        let client = start(&config(&server));
        let (mut stream, mut hello, _) = server.answer();
        hello[at] ^= 1;
        stream.write_all(&hello).unwrap();
        let (reason, _) = waiting(&client);
        assert!(reason.contains(said), "byte {at}: {reason}");
    }
}

#[test]
fn another_identity_than_the_pinned_one_is_not_spoken_to() {
    let server = FakeServer::new();
    let mut config = eager(&server);
    let pin: PublicKey = IdentityKey::from_seed(&[8; 32]).public();
    reverse(&mut config).server_pub_key = Some(pin);
    // The next attempt is far off, although the first wait would be short.
    config.timeouts.backoff_max = NEVER;
    let client = start(&config);
    let mut channel = server.channel();
    assert_eq!(channel.recv_plain(), None, "something was said to it");
    let (reason, until) = waiting(&client);
    assert!(
        reason.contains("Server public key does NOT match expected key!"),
        "{reason}"
    );
    assert!(reason.contains(&format!("expected={pin}")), "{reason}");
    let found = server.identity.public();
    assert!(reason.contains(&format!("found={found}")), "{reason}");
    assert!(until > Instant::now() + NEVER / 2);
}

#[test]
fn without_a_pin_any_identity_will_do() {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).server_pub_key = None;
    in_session(&config, &server);
}

#[test]
fn a_server_that_is_not_there_is_waited_for() {
    let server = FakeServer::new();
    let mut config = eager(&server);
    let (bound, port) = dead_port();
    reverse(&mut config).server_port = port;
    let client = start(&config);
    // It has failed at least once.
    let gone = |s: &Snapshot| matches!(&s.connection, Connection::Waiting { reason, .. } if reason.contains("127.0.0.1"));
    assert!(client.wait_for(SOON, gone).is_some());
    bound.listen(1).unwrap();
    assert!(bound.accept().is_ok());
}

#[test]
fn stopping_does_not_wait_for_a_server_that_does_not_answer() {
    let server = FakeServer::new();
    let client = start(&config(&server));
    let _silent = server.accept();
    let start = Instant::now();
    client.stop(NEVER);
    // Nothing runs, so there is nothing to give time to; the handshake would go on for an hour.
    assert!(start.elapsed() < SOON);
}

#[test]
fn without_an_identity_nothing_is_started() {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).identity = None;
    assert!(matches!(
        Client::start(&config),
        Err(crate::StartError::NoIdentity)
    ));
}
