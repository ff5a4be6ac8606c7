//! Connections of the forward tunnel that are kept ready. Here belongs: that they serve, are replaced, and never serve
//! anybody when they are no good any more.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rig::{ForwardWorld, PATIENCE, Service, eventually, ping, steady};

#[test]
fn connections_that_are_ready_serve_at_once_and_are_replaced() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .client("preconnected", 3)
        .run();
    eventually(PATIENCE, "three are ready", || {
        (echo.accepted() == 3).then_some(())
    });
    let mut streams: Vec<_> = (0..10).map(|_| tunnel.visit()).collect();
    for stream in &mut streams {
        ping(stream).expect("served");
    }
    eventually(PATIENCE, "three are ready again", || {
        (echo.accepted() == 13).then_some(())
    });
    drop(streams);
    let calm = Duration::from_millis(300);
    let all = steady(PATIENCE, calm, "connections that are opened", || {
        echo.accepted()
    });
    assert_eq!(all, 13, "what is enough is enough");
}

#[test]
fn nobody_waits_for_connections_that_are_only_ready() {
    let echo = Service::echo();
    let mut tunnel = ForwardWorld::to(echo.port())
        .client("preconnected", 2)
        .run();
    eventually(PATIENCE, "both are ready", || {
        (tunnel.server.log.count(0, "*connection from *") == 2).then_some(())
    });
    let mut used = tunnel.visit();
    ping(&mut used).expect("served");
    eventually(PATIENCE, "another is ready", || {
        (tunnel.server.log.count(0, "*connection from *") == 3).then_some(())
    });
    tunnel.server.signal("TERM");
    tunnel
        .server
        .log
        .wait("*waiting up to 5 s for * running", PATIENCE);
    ping(&mut used).expect("it may finish");
    drop(used);
    assert_eq!(tunnel.server.wait_exit(PATIENCE).code(), Some(0));
    assert_eq!(tunnel.server.log.count(0, "did not finish in time"), 0);
}

/// A service that speaks first is heard through a connection that was ready before anybody asked.
#[test]
fn a_greeting_that_came_early_is_not_lost() {
    let greeter = Service::start(|mut stream| {
        stream.write_all(b"220 hello\r\n")?;
        stream.read_exact(&mut [0])
    });
    let tunnel = ForwardWorld::to(greeter.port())
        .client("preconnected", 1)
        .run();
    eventually(PATIENCE, "one is ready", || {
        (greeter.accepted() == 1).then_some(())
    });
    let mut stream = tunnel.visit();
    let mut line = [0; 11];
    stream.read_exact(&mut line).expect("the greeting");
    assert_eq!(&line, b"220 hello\r\n");
}

/// A service that greets, and closes what is silent for too long.
#[test]
fn what_has_ended_serves_nobody_even_behind_a_greeting() {
    let (close, closing) = mpsc::channel::<()>();
    let (closing, count) = (Mutex::new(closing), AtomicUsize::new(0));
    let service = Service::start(move |mut stream| {
        stream.write_all(b"hello")?;
        if count.fetch_add(1, Ordering::SeqCst) < 2 {
            let _ = closing.lock().expect("no panic").recv();
            return stream.shutdown(Shutdown::Write);
        }
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        stream.write_all(&word)
    });
    let tunnel = ForwardWorld::to(service.port())
        .client("preconnected", 2)
        .run();
    eventually(PATIENCE, "two are ready", || {
        (service.accepted() == 2).then_some(())
    });
    close.send(()).expect("it waits");
    close.send(()).expect("it waits");
    eventually(PATIENCE, "both are given up", || {
        (tunnel.client.log.count(0, "a ready connection is gone") == 2).then_some(())
    });
    for _ in 0..4 {
        let mut stream = tunnel.visit();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).expect("a greeting");
        assert_eq!(&hello, b"hello");
        ping(&mut stream).expect("somebody behind it");
    }
}

#[test]
fn new_certificates_replace_what_is_ready() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .client("preconnected", 2)
        .run();
    eventually(PATIENCE, "two are ready", || {
        (echo.accepted() == 2).then_some(())
    });
    let certs = tunnel.world.dir.join("certs");
    let again = std::process::Command::new(rig::binary("minitcptunnel-server"))
        .current_dir(tunnel.world.dir.path())
        .args(["certs", "client", "desktop"])
        .output()
        .expect("certs");
    assert!(again.status.success(), "{again:?}");
    for end in ["key", "crt"] {
        let from = certs.join(format!("desktop.{end}"));
        fs::copy(from, certs.join(format!("laptop.{end}"))).expect("copy");
    }
    eventually(PATIENCE, "two others are ready", || {
        (echo.accepted() == 4).then_some(())
    });
    ping(&mut tunnel.visit()).expect("served");
    tunnel
        .server
        .log
        .wait("connection from *client=\"desktop\"", PATIENCE);
}
