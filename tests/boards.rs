//! Small machines, as a board in a cupboard is one. Here belongs: 64 MiB of memory, a root nothing can be written to,
//! a clock that is right only later, a network and names that come up only later.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rig::{
    Bytes, End, ForwardWorld, PATIENCE, Program, Service, Tunnelled, World, alone, binary, connect,
    eventually, figure, free_port, listening, ok, ping, read_end,
};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// Whether this may be tried here at all; said where it may not.
fn root(what: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt as _;
        own.uid() == 0
    }) && Command::new("unshare")
        .args(["-m", "-n", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !root {
        figure(what, format_args!("not tried: needs root and namespaces"));
    }
    root
}

/// Bulk one way and back at once, then a crowd that is all there at the same time and speaks twice.
fn bulk_and_a_crowd(tunnel: &Tunnelled) {
    let sent = Bytes::new(7).take(16 * 1024 * 1024);
    let mut visitor = tunnel.visit();
    let mut back = visitor.try_clone().expect("clone");
    let expected = sent.clone();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        back.read_to_end(&mut got).expect("all of it");
        assert!(
            got == expected,
            "{} of {} bytes, or others",
            got.len(),
            expected.len()
        );
    });
    visitor.write_all(&sent).expect("written");
    visitor.shutdown(Shutdown::Write).expect("ended");
    reader.join().expect("the echo");

    let mut crowd: Vec<TcpStream> = (0..100).map(|_| tunnel.visit()).collect();
    for round in 0..2_u8 {
        for (n, visitor) in crowd.iter_mut().enumerate() {
            visitor.write_all(&[round, n as u8]).expect("written");
        }
        for (n, visitor) in crowd.iter_mut().enumerate() {
            let mut got = [0; 2];
            visitor
                .read_exact(&mut got)
                .unwrap_or_else(|e| panic!("visitor {n}, round {round}: {e}"));
            assert_eq!(got, [round, n as u8]);
        }
    }
}

#[test]
fn sixty_four_mib_of_addresses_carry_bulk_and_a_hundred_connections() {
    let _alone = alone();
    let service = Service::echo();
    let limit = "ulimit -v 65536";
    let tunnel = Tunnelled::with(service.port(), |s| s.shell(limit), |c| c.shell(limit));
    // A quarter of it, not the quarter of a big machine behind it.
    let line = tunnel.server.log.wait("memory_budget (16 MiB)", PATIENCE);
    bulk_and_a_crowd(&tunnel);
    figure(
        "64 MiB of addresses",
        format_args!(
            "{:?} {:?}; {line}",
            tunnel.server.usage(),
            tunnel.client.usage()
        ),
    );
    for program in [&tunnel.server.program, &tunnel.client.program] {
        assert!(
            program.log.count(0, "panicked") == 0 && program.log.count(0, "refused a thread") == 0
        );
    }
}

/// A control group of its own for one program; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup/memory");
        let path = root.join(format!("mtt-e2e-{}-{name}", std::process::id()));
        if !root.is_dir() || fs::create_dir(&path).is_err() {
            return None;
        }
        let group = Self(path);
        fs::write(group.0.join("memory.limit_in_bytes"), limit.to_string()).ok()?;
        Some(group)
    }

    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.0.join(file))
            .expect(file)
            .trim()
            .parse()
            .expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel needs a moment to take the last process out; a group that stays is empty.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn sixty_four_mib_of_memory_carry_bulk_and_a_hundred_connections() {
    let _alone = alone();
    let groups = (
        Group::new("server", 64 * MIB),
        Group::new("client", 64 * MIB),
    );
    let (Some(at_server), Some(at_client)) = groups else {
        figure(
            "64 MiB of memory",
            format_args!("not tried: no control group can be made here"),
        );
        return;
    };
    let service = Service::echo();
    {
        let tunnel = Tunnelled::with(
            service.port(),
            |server| server.shell(&at_server.enter()),
            |client| client.shell(&at_client.enter()),
        );
        tunnel.server.log.wait("memory_budget (16 MiB)", PATIENCE);
        bulk_and_a_crowd(&tunnel);
        for (name, group) in [("server", &at_server), ("client", &at_client)] {
            let most = group.number("memory.max_usage_in_bytes") / 1024;
            figure(
                "64 MiB of memory",
                format_args!("{name}: at most {most} KiB with its part of the page cache"),
            );
            let kills =
                fs::read_to_string(group.0.join("memory.oom_control")).expect("oom_control");
            assert!(kills.contains("oom_kill 0"), "{kills}");
        }
    }
}

/// The folder of the world, as nothing can be written to it.
const READ_ONLY: &str =
    "mount --bind . . && mount -o remount,bind,ro . && cd \"$PWD\" && ! touch x 2>/dev/null";

#[test]
fn a_root_that_is_read_only_is_enough() {
    if !root("a read-only root") {
        return;
    }
    let service = Service::echo();
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.unshare(&["-m"]).shell(READ_ONLY),
        |client| client.unshare(&["-m"]).shell(READ_ONLY),
    );
    ping(&mut tunnel.visit()).expect("an echo");
    figure(
        "a read-only root",
        format_args!("both programs serve from one, with keys that are there already"),
    );
}

#[test]
fn a_key_that_cannot_be_saved_is_told() {
    if !root("a key on a read-only root") {
        return;
    }
    let world = World::new();
    fs::remove_file(world.dir.join("server_identity_key.hex")).expect("it was there");
    let mut command = world.server().unshare(&["-m"]).shell(READ_ONLY).command();
    let ended = Program::run(&mut command, PATIENCE);
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.all().contains("server_identity_key.hex"), "{ended:?}");
    assert!(
        ended.all().contains("the file system is read-only"),
        "{ended:?}"
    );
}

/// The library that lies about the date, where it is installed.
fn faketime() -> Option<PathBuf> {
    let found = [
        "x86_64-linux-gnu",
        "aarch64-linux-gnu",
        "arm-linux-gnueabihf",
    ]
    .map(|machine| PathBuf::from(format!("/usr/lib/{machine}/faketime/libfaketimeMT.so.1")))
    .into_iter()
    .find(|path| path.is_file());
    if found.is_none() {
        figure(
            "a clock that jumps",
            format_args!("not tried: libfaketime is not installed"),
        );
    }
    found
}

#[test]
fn a_clock_that_jumps_by_decades_cuts_nothing() {
    let Some(library) = faketime() else { return };
    let world = World::new();
    let date = world.dir.join("date");
    // In one step: half a date would be read as none.
    let set = |text: &str| {
        let new = world.dir.join("date.new");
        fs::write(&new, format!("@{text}\n")).expect("write");
        fs::rename(new, &date).expect("rename");
    };
    let lie = format!(
        "export LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
        library.display(),
        date.display()
    );
    set("1970-01-02 00:00:00");
    let service = Service::echo();
    let log = world.dir.join("server.log");
    let server = world
        .server()
        .set("timeouts.session_silence", 3)
        .set("logging.log_file", log.to_str().expect("UTF-8"))
        .set("logging.rotation.interval", "daily")
        .shell(&lie)
        .start();
    let client = world
        .client(server.port)
        .tunnel("t", 0, service.port())
        .hasty()
        .shell(&lie)
        .start();
    let visit = |port: u16| {
        connect((
            "127.0.0.1"
                .parse::<std::net::Ipv4Addr>()
                .expect("an address"),
            port,
        ))
    };
    let port = client.port_of("t");
    let mut resting = visit(port);
    ping(&mut resting).expect("the resting one still lives");
    let mut visits = 0;
    assert!(
        server
            .log
            .wait("New public connection", PATIENCE)
            .starts_with("1970-01-02T")
    );
    // Forward by decades as when the network brings the time, back, and forward again.
    for year in ["2026", "1999", "2037"] {
        let from = server.log.mark();
        set(&format!("{year}-06-15 12:00:00"));
        // Several heartbeats of half a second, and several limits on silence, on the clock that does not jump.
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            ping(&mut resting).expect("the resting one still lives");
            ping(&mut visit(port)).expect("an echo");
            visits += 1;
        }
        let (_, line) = server.log.wait_from(
            from,
            &format!("{year}-06-15T*New public connection"),
            PATIENCE,
        );
        assert!(line.starts_with(year), "{line}");
        assert!(client.log.count(0, "Disconnected") == 0, "in {year}");
    }
    let rotated = fs::read_dir(world.dir.path())
        .expect("the folder")
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("server.log.")
        })
        .count();
    assert!(
        (1..=3).contains(&rotated),
        "{rotated} old logs: one for each day that came, at most"
    );
    // And the wait before the next attempt is one of the steady clock as well.
    let control = server.port;
    drop(server);
    client.log.wait("Disconnected", PATIENCE);
    set("1980-01-01 00:00:00");
    let from = client.log.mark();
    let _server = world.server().set("port", control).shell(&lie).start();
    let (_, port) = client.port_from(from, "t");
    ping(&mut visit(port)).expect("an echo");
    figure(
        "a clock that jumps",
        format_args!(
            "1970, 2026, 1999, 2037: a connection lived through all, {visits} of {visits} visitors had their echo, \
             nobody was disconnected, {rotated} logs rotated"
        ),
    );
}

#[test]
fn a_network_that_comes_later_is_waited_for_in_few_words() {
    if !root("a network that comes later") {
        return;
    }
    let world = World::new();
    let service = Service::echo();
    // Each in a network of its own, in which nothing is yet; nothing of this machine is touched.
    let server = world
        .server()
        .set("bind", "0.0.0.0")
        .unshare(&["-n"])
        .start();
    let hosts = world.dir.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("write");
    let resolv = world.dir.join("resolv.conf");
    fs::write(&resolv, "").expect("write");
    let client = world
        .client(server.port)
        .set("server_host", "cupboard.example")
        .tunnel("t", 0, service.port())
        .unshare(&["-m", "-n"])
        .shell(&format!("mount --bind {} /etc/hosts", hosts.display()))
        .shell(&format!(
            "mount --bind {} /etc/resolv.conf",
            resolv.display()
        ))
        .arguments(&["--debug"])
        .start();
    let tries = |wanted: usize| {
        eventually(PATIENCE, "tries", || {
            (client.log.count(0, "Connecting to ") >= wanted).then_some(())
        });
    };
    // Neither name nor network.
    tries(15);
    let said = client.log.count(0, "No session with ");
    assert!(
        (1..=2).contains(&said),
        "{said} lines for one state of things:\n{}",
        client.log.lines().join("\n")
    );
    // The name is known now; there is still no way.
    fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.1 cupboard.example\n").expect("write");
    let now = client.log.count(0, "Connecting to ");
    tries(now + 15);
    let said = client.log.count(0, "No session with ");
    assert!((2..=4).contains(&said), "{said}");
    // And the network.
    let (at_server, at_client) = (server.pid().to_string(), client.pid().to_string());
    let inside = |pid: &str, arguments: &str| {
        let enter = ["-t", pid, "-n", "ip"];
        ok(Command::new("nsenter")
            .args(enter)
            .args(arguments.split(' ')));
    };
    inside(
        &at_server,
        &format!("link add wire type veth peer name wire netns {at_client}"),
    );
    inside(&at_server, "addr add 192.0.2.1/30 dev wire");
    inside(&at_client, "addr add 192.0.2.2/30 dev wire");
    inside(&at_server, "link set wire up");
    inside(&at_client, "link set wire up");
    let up = Instant::now();
    client.log.wait("Connected to ", LONG);
    client.port_of("t");
    figure(
        "a network that comes later",
        format_args!(
            "tunnel open {:.1} s after the link",
            up.elapsed().as_secs_f64()
        ),
    );
}

#[test]
fn a_forward_without_names_says_so_once_and_works_when_they_come() {
    if !root("a forward without names") {
        return;
    }
    let echo = Service::echo();
    let port = free_port();
    let mut world = ForwardWorld::to(echo.port())
        .server("server_listener.port", port)
        .client("remote_server.host", "cupboard.example")
        .client("remote_server.port", port)
        .client("preconnected", 1)
        .client("timeouts.backoff_min", 0.05)
        .client("timeouts.backoff_max", 0.2)
        .client("timeouts.retry_within", 0.3);
    let file = |name: &str, text: &str| {
        let path = world.dir.join(name);
        fs::write(&path, text).expect("write");
        path
    };
    let hosts = file("hosts", "127.0.0.1 localhost\n");
    let resolv = file("resolv.conf", "");
    let config = file("client_config.json", &world.client.to_string());
    let mut command = Command::new("unshare");
    command
        .current_dir(world.dir.path())
        .args(["-m", "sh", "-ec"])
        .arg(
            "mount --bind \"$0\" /etc/hosts; mount --bind \"$1\" /etc/resolv.conf; shift; exec \"$@\"",
        )
        .args([&hosts, &resolv, &binary("minitcptunnel-client")])
        .args(["--verbose", "--config"])
        .arg(config);
    let client = Program::start("client", &mut command);
    let local = listening(&client);
    // What is not said is at DEBUG: that counts the tries.
    let tries = |what: &str| {
        eventually(PATIENCE, "tries", || {
            (client.log.count(0, what) >= 15).then_some(())
        });
        let said = client.log.count(0, &format!(" ERROR *{what}*"));
        assert!(
            (1..=2).contains(&said),
            "{said} lines for one state of things:\n{}",
            client.log.lines().join("\n")
        );
    };
    tries("cannot find the address of \"cupboard.example\"");
    client
        .log
        .wait(" ERROR *cupboard.example* code=E1001", PATIENCE);
    // Who comes meanwhile is turned away, and one of them is told of, with the reason.
    let local = ("127.0.0.1", local);
    for _ in 0..5 {
        assert_eq!(read_end(&mut connect(local)), (vec![], End::Reset));
    }
    client.log.wait(
        " WARN *waited 0.3 s for the server in vain *cannot find the address of * code=E1211",
        PATIENCE,
    );
    assert_eq!(client.log.count(0, " in vain "), 1);
    // The name is known now; there is still no server.
    fs::write(&hosts, "127.0.0.1 localhost cupboard.example\n").expect("write");
    tries("cannot connect to cupboard.example");
    assert_eq!(client.log.count(0, " takes connections"), 0);
    // And the server.
    let (server, _) = world.start_server();
    let up = Instant::now();
    eventually(LONG, "one is ready", || {
        (echo.accepted() == 1).then_some(())
    });
    figure(
        "a name that comes later",
        format_args!(
            "a connection is ready {:.1} s after the server",
            up.elapsed().as_secs_f64()
        ),
    );
    ping(&mut connect(local)).expect("an echo");
    let works = "the server takes connections; failed attempts=* within * connections closed=5";
    client.log.wait(&format!(" INFO *{works}"), PATIENCE);
    // What fails after that is news.
    let from = client.log.mark();
    drop(server);
    client.log.wait_from(
        from,
        " ERROR *cannot connect to cupboard.example*",
        PATIENCE,
    );
    assert_eq!(client.log.count(0, " takes connections"), 1);
}
