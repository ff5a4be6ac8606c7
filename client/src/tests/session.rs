use minitcptunnel_common::wire::capabilities::Capabilities;
use minitcptunnel_common::wire::message::{CompressionWish, Reason};

use super::fake::SESSION_KEY;
use super::*;
use crate::Command;
use crate::state::End;

fn open_tunnel(tunnel: &str, port: u32) -> Message {
    Message::OpenTunnel {
        port,
        tunnel: id(tunnel),
        compression: CompressionWish::Off,
    }
}

#[test]
fn it_offers_opens_and_shows_what_it_has_got() {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).tunnels[1].auto_start = false;
    reverse(&mut config).tunnels.push(tunnel("any", 0, 1));
    let client = start(&config);
    let mut peer = server.channel();
    peer.expect_offer();
    // Without waiting for AuthOk, and only what starts by itself.
    assert_eq!(peer.recv(), open_tunnel("web", 8080));
    assert_eq!(peer.recv(), open_tunnel("any", 0));
    assert!(!is_up(&client.snapshot()));
    peer.send(&Message::AuthOk {
        session_key: SESSION_KEY,
    });
    peer.send(&status("web", Status::Open, "", 8080));
    peer.send(&status("any", Status::Open, "", 4711));
    let open = |s: &Snapshot| state_of(s, "any") == TunnelState::Open { port: 4711 };
    let snapshot = client.wait_for(SOON, open).unwrap();
    assert!(is_up(&snapshot));
    assert_eq!(state_of(&snapshot, "web"), TunnelState::Open { port: 8080 });
    assert_eq!(state_of(&snapshot, "ssh"), TunnelState::Closed);
    assert!(snapshot.to_string().contains("tunnels=3 open=2"));
    // A stop closes the channel.
    client.stop(Duration::ZERO);
    peer.expect_end();
}

#[test]
fn every_reconnect_opens_the_tunnels_again() {
    let server = FakeServer::new();
    let client = start(&eager(&server));
    for round in 1..=5 {
        let (mut peer, asked) = server.session(2);
        assert_eq!(
            asked,
            [open_tunnel("web", 8080), open_tunnel("ssh", 2222)],
            "round {round}"
        );
        peer.send(&status("ssh", Status::Open, "", 2222));
        let open = |s: &Snapshot| {
            s.sessions == round && state_of(s, "ssh") == TunnelState::Open { port: 2222 }
        };
        assert!(client.wait_for(SOON, open).is_some(), "round {round}");
    }
}

#[test]
fn a_lost_session_is_shown_at_once() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&config(&server), &server);
    peer.send(&status("web", Status::Open, "", 8080));
    drop(peer);
    let (reason, _) = waiting(&client);
    assert_eq!(reason, "the server closed the connection");
    assert_eq!(state_of(&client.snapshot(), "web"), TunnelState::Wanted);
}

#[test]
fn answered_heartbeats_keep_a_session_and_silence_ends_it() {
    let server = FakeServer::new();
    let mut config = config(&server);
    config.timeouts.heartbeat_interval = Duration::from_millis(10);
    config.timeouts.heartbeat_timeout = Duration::from_secs(2);
    let client = start(&config);
    let (mut peer, _) = server.session(2);
    // A second's worth and more: each comes an interval after the one before.
    let since = Instant::now();
    for _ in 0..100 {
        let beat = peer.recv();
        assert!(matches!(beat, Message::Heartbeat { .. }), "{beat:?}");
        peer.send(&beat);
    }
    assert!(since.elapsed() >= Duration::from_millis(900), "too many");
    assert_eq!(client.snapshot().sessions, 1);
    assert!(is_up(&client.snapshot()));
    let silent = Instant::now();
    peer.expect_end();
    assert!(
        silent.elapsed() >= Duration::from_secs(1),
        "given up before the timeout"
    );
    let (reason, _) = waiting(&client);
    assert!(
        reason.contains("no answer to a heartbeat within 2 s"),
        "{reason}"
    );
}

#[test]
fn a_server_that_never_says_anything_is_noticed() {
    let server = FakeServer::new();
    let mut config = config(&server);
    config.timeouts.heartbeat_timeout = Duration::from_millis(50);
    let client = start(&config);
    let mut peer = server.channel();
    peer.expect_end();
    let (reason, _) = waiting(&client);
    assert!(reason.contains("no answer to a heartbeat"), "{reason}");
}

#[test]
fn a_server_that_echoes_but_never_accepts_is_noticed() {
    let server = FakeServer::new();
    let mut config = config(&server);
    config.timeouts.handshake = Duration::from_secs(1);
    let client = start(&config);
    let mut peer = server.channel();
    let payload = peer.expect_offer();
    peer.send(&Message::Heartbeat { payload });
    peer.expect_end();
    let (reason, _) = waiting(&client);
    assert!(reason.contains("did not accept the session"), "{reason}");
}

#[test]
fn reasons_decide_when_the_next_attempt_comes() {
    let later = |least: u64, most: u64| Some((least, most));
    // Code, whether the session was up, the wait in seconds, what is said.
    let table = [
        (
            Reason::SlotTaken,
            false,
            later(1, 2),
            "another client holds",
        ),
        (Reason::Limit, false, later(1, 2), "a limit of the server"),
        (Reason::NotAdmitted, false, None, "allowed_clients.txt"),
        (Reason::NotAdmitted, true, None, "allowed_clients.txt"),
        (
            Reason::Replaced,
            true,
            later(30, 30),
            "does another machine use",
        ),
        (Reason::Shutdown, true, later(1, 2), "the server shuts down"),
        (Reason::Silent, true, later(1, 2), "heard nothing"),
        (Reason::Protocol, true, later(1, 2), "broke the protocol"),
        (Reason::Other(77), true, later(1, 2), "code 77"),
    ];
    for (reason, up, wait, said) in table {
        let server = FakeServer::new();
        let mut config = config(&server);
        config.timeouts.backoff_min = Duration::from_secs(1);
        config.timeouts.backoff_max = Duration::from_secs(20);
        let client = start(&config);
        let mut peer = server.channel();
        peer.expect_offer();
        let text = "because".to_owned();
        let ended = Instant::now();
        if up {
            peer.send(&Message::AuthOk {
                session_key: SESSION_KEY,
            });
            peer.send(&Message::Error { reason, text });
        } else {
            peer.send(&Message::AuthFail { reason, text });
        }
        let Some((least, most)) = wait else {
            let Some(End::Refused(why)) = client.wait(Some(SOON)) else {
                panic!("{reason:?} is final")
            };
            assert!(why.contains(said), "{why}");
            continue;
        };
        let (why, until) = waiting(&client);
        assert!(why.contains(said), "{reason:?}: {why}");
        assert!(why.contains("(it says: \"because\")"), "{why}");
        assert!(until >= ended + Duration::from_secs(least), "{reason:?}");
        assert!(
            until <= Instant::now() + Duration::from_secs(most),
            "{reason:?}"
        );
    }
}

#[test]
fn a_taken_slot_is_asked_for_until_it_is_free() {
    let server = FakeServer::new();
    let client = start(&eager(&server));
    for _ in 0..3 {
        let mut peer = server.channel();
        peer.expect_offer();
        peer.send(&Message::AuthFail {
            reason: Reason::SlotTaken,
            text: String::new(),
        });
        peer.expect_end();
    }
    let _session = server.session(2);
    assert!(client.wait_for(SOON, is_up).is_some());
}

#[test]
fn a_server_that_breaks_the_protocol_is_left() {
    let auth_ok = {
        let mut plain = Vec::new();
        Message::AuthOk {
            session_key: SESSION_KEY,
        }
        .encode(true, &mut plain);
        plain
    };
    let plain = |message: &Message| {
        let mut plain = Vec::new();
        message.encode(true, &mut plain);
        plain
    };
    let early_status = plain(&status("web", Status::Open, "", 1));
    let early_call = plain(&incoming("web", "c"));
    let table: [(&str, Vec<Vec<u8>>, &str); 5] = [
        (
            "status first",
            vec![early_status],
            "TunnelStatus before AuthOk",
        ),
        ("call first", vec![early_call], "IncomingConn before AuthOk"),
        (
            "two keys",
            vec![auth_ok.clone(), auth_ok.clone()],
            "a second AuthOk",
        ),
        (
            "nothing",
            vec![vec![]],
            "closed the connection before it accepted",
        ),
        // Expands far beyond what a control message may be.
        (
            "bomb",
            vec![auth_ok, vec![90; 1 << 20]],
            "the server broke the protocol",
        ),
    ];
    for (what, messages, said) in table {
        let server = FakeServer::new();
        let client = start(&config(&server));
        let mut peer = server.channel();
        for message in messages {
            peer.send_plain(&message).unwrap();
        }
        peer.expect_end();
        let (reason, _) = waiting(&client);
        assert!(reason.contains(said), "{what}: {reason}");
    }
}

#[test]
fn frames_that_are_damaged_or_too_long_end_the_session() {
    use std::io::Write;
    let table = [
        (vec![0, 0, 0, 15], "frame length 15"),
        (vec![0, 1, 0, 1], "frame length 65537"),
        (
            [vec![0, 0, 0, 16], vec![0; 16]].concat(),
            "does not authenticate",
        ),
    ];
    for (bytes, said) in table {
        let server = FakeServer::new();
        let (client, mut peer) = in_session(&config(&server), &server);
        peer.stream.write_all(&bytes).unwrap();
        peer.expect_end();
        let (reason, _) = waiting(&client);
        assert!(reason.contains(said), "{reason}");
    }
}

#[test]
fn what_means_nothing_is_passed_over() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&config(&server), &server);
    for kind in [0, 30, 50, 200] {
        peer.send(&Message::Unknown { kind });
    }
    peer.send(&Message::Short);
    // Payloads that their types do not allow.
    peer.send_plain(&[2, 0, 0, 0, 0, 0, 1, 2, 3]).unwrap();
    peer.send_plain(&[12, 0, 0, 0, 0, 0, 9]).unwrap();
    peer.send(&open_tunnel("web", 1));
    // A second answer to the offer does not negotiate again.
    peer.send(&Message::Heartbeat {
        payload: Capabilities::default().answer(),
    });
    peer.send(&status("nobody", Status::Open, "", 1));
    peer.send(&status("web", Status::Open, "", 8080));
    let open = |s: &Snapshot| state_of(s, "web") == TunnelState::Open { port: 8080 };
    assert!(client.wait_for(SOON, open).is_some());
    assert_eq!(client.snapshot().sessions, 1);
    peer.send(&incoming("nobody", "c1"));
    assert!(
        matches!(peer.recv_news(), Message::RefuseConn { .. }),
        "the capabilities are still those of the first answer"
    );
}

#[test]
fn a_refused_tunnel_is_asked_for_again() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&eager(&server), &server);
    for _ in 0..3 {
        peer.send(&status("web", Status::Error, "port 8080 is in use", 0));
        assert_eq!(peer.recv_news(), open_tunnel("web", 8080));
    }
    peer.send(&status("web", Status::Open, "", 8080));
    let open = |s: &Snapshot| state_of(s, "web") == TunnelState::Open { port: 8080 };
    assert!(client.wait_for(SOON, open).is_some());
}

#[test]
fn a_refusal_is_shown_with_its_reason() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&config(&server), &server);
    peer.send(&status("web", Status::Error, "port 8080 is in use", 0));
    let refused = |s: &Snapshot| matches!(state_of(s, "web"), TunnelState::Refused { reason, .. } if reason == "port 8080 is in use");
    assert!(client.wait_for(SOON, refused).is_some());
}

#[test]
fn tunnels_are_opened_and_closed_at_run_time() {
    let server = FakeServer::new();
    let mut config = config(&server);
    reverse(&mut config).tunnels[1].auto_start = false;
    let (client, mut peer) = in_session(&config, &server);
    client.command(Command::OpenTunnel(id("ssh"))).unwrap();
    assert_eq!(peer.recv_news(), open_tunnel("ssh", 2222));
    client.command(Command::CloseTunnel(id("web"))).unwrap();
    assert_eq!(peer.recv_news(), Message::CloseTunnel { tunnel: id("web") });
    assert!(client.command(Command::OpenTunnel(id("nobody"))).is_err());
}

#[test]
fn a_server_that_does_not_read_is_left() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&config(&server), &server);
    // Each of these is answered with a refusal that nobody reads.
    let mut call = Vec::new();
    incoming("nobody", &"c".repeat(64)).encode(true, &mut call);
    // Many at once, so that the answers come in large pieces: thousands of small ones take more of the system's memory
    // than the window says, and a system that has to drop them may stall the connection for good.
    let calls = vec![call.as_slice(); 500];
    let sent = (0..10_000).take_while(|_| peer.send_together(&calls).is_ok());
    assert!(sent.count() < 10_000);
    let (reason, _) = waiting(&client);
    assert_eq!(reason, "the server does not read what it is sent");
}

#[test]
fn a_stopped_client_says_so_and_dials_no_more() {
    let server = FakeServer::new();
    let (client, mut peer) = in_session(&eager(&server), &server);
    client.stopper().stop();
    assert_eq!(client.wait(Some(SOON)), Some(End::Asked));
    peer.expect_end();
    drop(client);
    assert!(server.accept_within(Duration::ZERO).is_none());
}

#[test]
fn wait_gives_up_at_its_timeout() {
    let server = FakeServer::new();
    let client = start(&config(&server));
    assert_eq!(client.wait(Some(Duration::from_millis(1))), None);
}
