//! The forward tunnel. Here belongs: every shape of traffic through TLS, every way a connection ends, wrong peers as
//! an operator sees them, and servers that come and go.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::thread;
use std::time::{Duration, Instant};

use minitcptunnel_common::resources::raise_open_files;
use rig::{
    Bytes, End, ForwardWorld, Forwarded, PATIENCE, Program, Service, connect, eventually, figure,
    free_port, ping, read_end, seconds, send,
};

const MIB: u64 = 1024 * 1024;

#[test]
fn bytes_go_both_ways_at_once_in_both_versions() {
    for version in ["1.2", "1.3"] {
        let echo = Service::echo();
        let tunnel = ForwardWorld::to(echo.port())
            .server("tls.min_version", version)
            .client("preconnected", 0)
            .run();
        let n = 64 * MIB;
        let mut stream = tunnel.visit();
        let mut out = stream.try_clone().expect("clone");
        let start = Instant::now();
        let sender = thread::spawn(move || {
            send(&mut out, 7, n).expect("send");
            out.shutdown(Shutdown::Write).expect("end");
        });
        Bytes::new(7).expect(&mut stream, n).expect("all of it");
        assert_eq!(read_end(&mut stream), (vec![], End::Clean));
        sender.join().expect("sender");
        figure(
            "forward, 64 MiB there and back",
            format_args!("TLS {version} or newer: {:.2} s", seconds(start)),
        );
        let ended = tunnel.server.log.wait("connection ended *", PATIENCE);
        assert!(ended.contains("client=\"laptop\""), "{ended}");
        assert!(
            ended.contains(&format!("to_service={n} from_service={n}")),
            "{ended}"
        );
        assert!(ended.contains("finished by=external"), "{ended}");
        assert!(ended.contains("active=0"), "{ended}");
        tunnel.client.log.wait("connection ended *", PATIENCE);
    }
}

#[test]
fn either_side_may_end_first_and_still_be_answered() {
    let last_words = Service::start(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        write!(stream, "heard {}", all.len())
    });
    let tunnel = ForwardWorld::to(last_words.port()).run();
    let mut stream = tunnel.visit();
    send(&mut stream, 1, MIB).expect("send");
    stream.shutdown(Shutdown::Write).expect("end");
    assert_eq!(
        read_end(&mut stream),
        (b"heard 1048576".to_vec(), End::Clean)
    );

    let first_words = Service::start(|mut stream| {
        stream.write_all(b"I am done.")?;
        stream.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        assert_eq!(all.len() as u64, MIB);
        Ok(())
    });
    let tunnel = ForwardWorld::to(first_words.port())
        .client("preconnected", 0)
        .run();
    let mut stream = tunnel.visit();
    assert_eq!(read_end(&mut stream), (b"I am done.".to_vec(), End::Clean));
    send(&mut stream, 1, MIB).expect("the other direction is open");
    drop(stream);
    let ended = tunnel.server.log.wait("connection ended *", PATIENCE);
    assert!(ended.contains("to_service=1048576"), "{ended}");
    assert!(ended.contains("finished by=service"), "{ended}");
}

#[test]
fn a_local_connection_waits_for_a_server_that_is_not_there_yet() {
    let echo = Service::echo();
    let mut world = ForwardWorld::to(echo.port());
    let port = free_port();
    let (client, local) = world.start_client(port);
    let mut waiting: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = connect((Ipv4Addr::LOCALHOST, local));
            stream.write_all(b"ping").expect("write");
            stream
        })
        .collect();
    client.log.wait("next try in", PATIENCE);
    assert!(
        client.usage().threads < 30,
        "who waits holds no thread: {}",
        client.usage().threads
    );
    world.server["server_listener"]["port"] = port.into();
    let (_server, _) = world.start_server();
    for stream in &mut waiting {
        let mut back = [0; 4];
        stream.read_exact(&mut back).expect("served after all");
        assert_eq!(&back, b"ping");
    }
}

#[test]
fn a_local_connection_does_not_wait_for_ever() {
    let world = ForwardWorld::to(free_port()).client("timeouts.retry_within", 0.5);
    let (client, local) = world.start_client(free_port());
    let start = Instant::now();
    let mut stream = connect((Ipv4Addr::LOCALHOST, local));
    assert_eq!(read_end(&mut stream), (vec![], End::Reset));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    client.log.wait(
        "waited 0.5 s for the server in vain (timeouts.retry_within); closed: *cannot connect to * code=E1211",
        PATIENCE,
    );
}

#[test]
fn a_fallback_serves_while_the_first_is_down() {
    let echo = Service::echo();
    let dead = free_port();
    let fallbacks = |port: u16| serde_json::json!([{ "host": "127.0.0.1", "port": port }]);
    let mut world =
        ForwardWorld::to(dead).server("target_service.fallbacks", fallbacks(echo.port()));
    let (_server, port) = world.start_server();
    let world = world.client("remote_server.fallbacks", fallbacks(port));
    let (_client, local) = world.start_client(free_port());
    for _ in 0..3 {
        ping(&mut connect((Ipv4Addr::LOCALHOST, local))).expect("by the fallbacks");
    }
}

/// One that takes connections and then says nothing costs the others none of their time.
#[test]
fn a_fallback_serves_while_the_first_is_silent() {
    let echo = Service::echo();
    let silent = Service::start(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let mut world = ForwardWorld::to(echo.port());
    let (_server, port) = world.start_server();
    let fallback = serde_json::json!([{ "host": "127.0.0.1", "port": port }]);
    let world = world
        .client("remote_server.fallbacks", fallback)
        .client("timeouts.connect", 0.4)
        .client("tls.handshake_timeout", 0.5)
        .client("timeouts.retry_within", 0);
    let (_client, local) = world.start_client(silent.port());
    ping(&mut connect((Ipv4Addr::LOCALHOST, local))).expect("by the fallback, at the first try");
}

/// Reverse tunnel and forwards in the same two programs.
#[test]
fn both_jobs_run_in_one_process() {
    let echo = Service::echo();
    let mut world = ForwardWorld::to(echo.port());
    let public = free_port();
    for (key, value) in [
        ("server_host", serde_json::json!("127.0.0.1")),
        ("server_port", free_port().into()),
        (
            "tunnels",
            serde_json::json!([{
                "id": "echo", "remote_port": public, "local_host": "127.0.0.1", "local_port": echo.port(), "auto_start": true
            }]),
        ),
    ] {
        world.client[key] = value;
    }
    let file = world.dir.join("keys.json");
    fs::write(&file, world.client.to_string()).expect("write");
    let mut keygen = std::process::Command::new(rig::binary("minitcptunnel-client"));
    let made = Program::run(keygen.arg("keygen").arg("--config").arg(&file), PATIENCE);
    let key = made.out.trim().rsplit(' ').next().expect("a key");
    fs::write(world.dir.join("allowed_clients.txt"), key).expect("write");
    let with_key = fs::read_to_string(&file).expect("read");
    world.client = serde_json::from_str(&with_key).expect("JSON");
    world.server["port"] = world.client["server_port"].clone();
    world.server["bind"] = "127.0.0.1".into();
    let (server, port) = world.start_server();
    let pin = server.log.wait("Pin in client config", PATIENCE);
    world.client["server_pub_key"] = pin.rsplit(' ').next().into();
    let (client, local) = world.start_client(port);
    client.log.wait("echo* is open", PATIENCE);
    for port in [local, public] {
        ping(&mut connect((Ipv4Addr::LOCALHOST, port))).expect("both");
    }
    for mut program in [client, server] {
        program.signal("TERM");
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(0));
        program.log.wait("Forwards stopped", PATIENCE);
    }
}

#[test]
fn a_check_looks_at_the_certificates() {
    let mut world = ForwardWorld::to(1).client("remote_server.port", 1);
    world.server["server_listener"]["port"] = 1.into();
    let check = |name: &str, config: &serde_json::Value| {
        let file = world.dir.join("checked.json");
        fs::write(&file, config.to_string()).expect("write");
        let mut command = std::process::Command::new(rig::binary(name));
        Program::run(command.arg("--config").arg(file).arg("check"), PATIENCE)
    };
    for (name, config, key) in [
        ("minitcptunnel-server", &world.server, "server_cert"),
        ("minitcptunnel-client", &world.client, "client_cert"),
    ] {
        let ended = check(name, config);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        let mut config = config.clone();
        config["tls"][key] = "certs/missing.crt".into();
        let ended = check(name, &config);
        assert_eq!(ended.code, Some(4), "{}", ended.all());
        assert!(
            ended.all().contains("missing.crt does not exist"),
            "{}",
            ended.all()
        );
    }
}

/// A third says nothing, a third begins and goes no further, a third goes on and on, a byte at a time.
#[test]
fn silent_and_slow_handshakes_hold_no_thread_and_end_in_time() {
    const MANY: usize = 3000;
    const LIMIT: Duration = Duration::from_secs(4);
    let _ = raise_open_files();
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .server("tls.handshake_timeout", LIMIT.as_secs())
        .server("limits.pending_handshakes", MANY * 2)
        .server("limits.pending_handshakes_per_address", MANY * 2)
        .run();
    ping(&mut tunnel.visit()).expect("before");
    let mut all: Vec<_> = (0..MANY)
        .map(|n| {
            let mut stream = connect((Ipv4Addr::LOCALHOST, tunnel.server_port));
            if n % 3 > 0 {
                stream.write_all(&[22, 3, 1, 2, 0, 1]).expect("write");
            }
            stream
        })
        .collect();
    let start = Instant::now();
    let mut slow: Vec<_> = (all.iter().skip(2).step_by(3))
        .map(|stream| stream.try_clone().expect("clone"))
        .collect();
    let dribble = thread::spawn(move || {
        // The rest of a client's hello, as far as it gets: whoever is cut takes no more.
        for byte in [0, 1, 252, 3, 3].into_iter().chain([7; 400]) {
            slow.retain_mut(|stream| stream.write_all(&[byte]).is_ok());
            if slow.is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{} may dribble for ever", slow.len());
    });
    let mut slowest: f64 = 0.0;
    let mut threads = 0;
    while start.elapsed() < LIMIT / 2 {
        let asked = Instant::now();
        ping(&mut tunnel.visit()).expect("beside them");
        slowest = slowest.max(seconds(asked));
        threads = threads.max(tunnel.server.usage().threads);
    }
    assert!(threads < 20, "{threads} threads");
    assert!(slowest < 2.0, "{slowest} s for a connection beside them");
    figure(
        "3,000 silent and slow handshakes",
        format_args!(
            "{:?}, threads at most {threads}, a new connection beside them {:.1} ms at most",
            tunnel.server.usage(),
            slowest * 1e3
        ),
    );
    let late = format!("no complete TLS handshake within {} s", LIMIT.as_secs());
    tunnel.server.log.wait(&late, PATIENCE);
    for stream in &mut all {
        assert_ne!(read_end(stream).1, End::StillOpen);
    }
    assert!(
        start.elapsed() < LIMIT + Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    dribble.join().expect("cut, too");
    ping(&mut tunnel.visit()).expect("after");
}

#[test]
fn the_oldest_silent_handshake_makes_room() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .server("limits.pending_handshakes", 10)
        // The newcomer is the newest then: none that gets ready earlier is in its place.
        .client("preconnected", 0)
        .run();
    let mut silent: Vec<_> = (0..30)
        .map(|_| connect((Ipv4Addr::LOCALHOST, tunnel.server_port)))
        .collect();
    ping(&mut tunnel.visit()).expect("there is room");
    for stream in &mut silent[..20] {
        assert_ne!(read_end(stream).1, End::StillOpen);
    }
    tunnel.server.log.wait("the oldest makes room", PATIENCE);
}

#[test]
fn an_allow_list_names_who_may_come() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .server("tls.allowed_client_cns", serde_json::json!(["desktop"]))
        .run();
    assert_eq!(read_end(&mut tunnel.visit()), (vec![], End::Reset));
    tunnel.server.log.wait(
        "names *laptop*none of that is in allowed_client_cns (desktop)",
        PATIENCE,
    );
    let tunnel = ForwardWorld::to(echo.port())
        .server(
            "tls.allowed_client_cns",
            serde_json::json!(["desktop", "laptop"]),
        )
        .run();
    ping(&mut tunnel.visit()).expect("welcome");
}

#[test]
fn a_list_in_a_file_is_followed() {
    let echo = Service::echo();
    let world = ForwardWorld::to(echo.port())
        .server("tls.allowed_clients_file", "clients.txt")
        .client("preconnected", 0);
    let list = world.dir.join("clients.txt");
    fs::write(&list, "# who may come\nlaptop\n").expect("write");
    let tunnel = world.run();
    let mut old = tunnel.visit();
    ping(&mut old).expect("on the list");
    fs::write(&list, "").expect("write");
    let log = &tunnel.server.log;
    log.wait("new certificates, keys or lists are in force", PATIENCE);
    assert_eq!(read_end(&mut tunnel.visit()), (vec![], End::Reset));
    log.wait("names *laptop*", PATIENCE);
    ping(&mut old).expect("whoever is in stays");
}

#[test]
fn a_server_of_another_name_is_refused() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .client("remote_server.server_hostname", "bank.example")
        .run();
    assert_eq!(read_end(&mut tunnel.visit()), (vec![], End::Reset));
    tunnel.client.log.wait("bank.example*localhost", PATIENCE);
}

#[test]
fn a_client_without_a_certificate_is_told_what_is_missing() {
    let echo = Service::echo();
    let mut world = ForwardWorld::to(echo.port());
    world.client.as_object_mut().expect("object").remove("tls");
    let tunnel = world.run();
    assert_eq!(read_end(&mut tunnel.visit()), (vec![], End::Reset));
    tunnel.server.log.wait("shows no certificate", PATIENCE);
}

#[test]
fn new_certificates_are_taken_up_and_nobody_is_cut() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port()).run();
    let mut old = tunnel.visit();
    ping(&mut old).expect("before");
    let other = ForwardWorld::to(echo.port());
    for file in [
        "ca.crt",
        "server.crt",
        "server.key",
        "laptop.crt",
        "laptop.key",
    ] {
        let from = other.dir.join("certs").join(file);
        fs::copy(from, tunnel.world.dir.join("certs").join(file)).expect("copy");
    }
    tunnel
        .server
        .log
        .wait("new certificates, keys or lists are in force", PATIENCE);
    tunnel
        .client
        .log
        .wait("new certificates or keys are in force", PATIENCE);
    ping(&mut tunnel.visit()).expect("with the new ones");
    ping(&mut old).expect("the old connection goes on");
}

#[test]
fn silence_is_cut_where_it_is_bounded() {
    let echo = Service::echo();
    let tunnel = ForwardWorld::to(echo.port())
        .server("timeouts.idle", 1)
        .run();
    let mut busy = tunnel.visit();
    let mut silent = tunnel.visit();
    ping(&mut silent).expect("before");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        ping(&mut busy).expect("who speaks is not cut");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(read_end(&mut silent).1, End::Reset);
    tunnel
        .server
        .log
        .wait("cut connections=1 after 1 s of silence", PATIENCE);
}

/// Who does not read is given up in time, at either end of either program, and whoever reads slowly is not.
#[test]
fn who_takes_nothing_is_cut_where_that_is_bounded() {
    for (ours, theirs) in [("server", "client"), ("client", "server")] {
        let service = Service::source(7, 1024 * MIB);
        let mut world = ForwardWorld::to(service.port()).client("preconnected", 0);
        let bounded = if ours == "server" {
            &mut world.server
        } else {
            &mut world.client
        };
        bounded["timeouts"] = serde_json::json!({ "write": 1 });
        let mut tunnel = world.run();
        let mut visitor = tunnel.visit();

        // It reads nothing, and then what there was: the end of it is no orderly one.
        tunnel.program(ours).log.wait(
            "connection ended *it takes nothing for 1 s (timeouts.write)",
            PATIENCE,
        );
        assert_eq!(
            read_end(&mut visitor).1,
            End::Reset,
            "{ours} bounded, {theirs} not"
        );
    }
}

#[test]
fn no_more_connections_than_allowed() {
    for ours in ["server", "client"] {
        let echo = Service::echo();
        let mut world = ForwardWorld::to(echo.port()).client("preconnected", 0);
        let bounded = if ours == "server" {
            &mut world.server
        } else {
            &mut world.client
        };
        bounded["limits"] = serde_json::json!({ "connections": 2 });
        let mut tunnel = world.run();
        let mut first = tunnel.visit();
        ping(&mut first).expect("one");
        let mut second = tunnel.visit();
        ping(&mut second).expect("two");
        assert_eq!(
            read_end(&mut tunnel.visit()),
            (vec![], End::Reset),
            "{ours}"
        );
        tunnel
            .program(ours)
            .log
            .wait("refused*(limits.connections)", PATIENCE);
        drop(first);
        tunnel
            .program(ours)
            .log
            .wait("connection ended *", PATIENCE);
        ping(&mut tunnel.visit()).expect("there is a place again");
        ping(&mut second).expect("still there");
    }
}

#[test]
fn five_hundred_idle_connections_need_a_few_threads() {
    let echo = Service::echo();
    let tunnel: Forwarded = ForwardWorld::to(echo.port()).run();
    let mut streams: Vec<_> = (0..500).map(|_| tunnel.visit()).collect();
    for stream in &mut streams {
        ping(stream).expect("served");
    }
    for program in [&tunnel.server, &tunnel.client] {
        eventually(PATIENCE, "a dozen threads", || {
            (program.usage().threads <= 16).then_some(())
        });
    }
    for stream in &mut streams {
        ping(stream).expect("and still there");
    }
    figure(
        "500 idle forwarded connections",
        format_args!(
            "server {:?}, client {:?}",
            tunnel.server.usage(),
            tunnel.client.usage()
        ),
    );
}
