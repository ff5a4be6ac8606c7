//! What a bad day does to programs that run as they are installed: by default settings, under load. Here belongs what
//! `scripts/faults` tabulates: who is cut, who goes on, and after how many seconds everybody is served again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rig::{
    PATIENCE, Service, Tunnelled, World, alone, connect, eventually, figure, free_port, is_reset,
    ping, seconds,
};

/// Visitors who talk without a pause.
const VISITORS: usize = 20;

/// Visitors who send and compare until somebody stops or cuts them.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    visitors: Vec<JoinHandle<Result<(), std::io::Error>>>,
}

impl Load {
    fn on(port: u16) -> Self {
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let visitors = (0..VISITORS)
            .map(|n| {
                let mut stream = connect((Ipv4Addr::LOCALHOST, port));
                let (stop, rounds) = (stop.clone(), rounds.clone());
                thread::spawn(move || converse(&mut stream, n, &stop, &rounds))
            })
            .collect();
        let load = Self {
            stop,
            rounds,
            visitors,
        };
        load.wait_more();
        load
    }

    /// Waits until everybody had several answers more.
    fn wait_more(&self) {
        let from = self.rounds.load(Ordering::SeqCst);
        eventually(PATIENCE, "traffic", || {
            (self.rounds.load(Ordering::SeqCst) > from + 10 * VISITORS as u64).then_some(())
        });
    }

    /// What became of each visitor; without an error, he was served until now.
    fn end(self) -> Vec<Result<(), std::io::Error>> {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.visitors.into_iter();
        all.map(|visitor| visitor.join().expect("no wrong byte"))
            .collect()
    }

    /// Waits until everybody has been cut, and says whether each saw a reset.
    fn all_reset(self) -> bool {
        eventually(PATIENCE, "every visitor to notice", || {
            self.visitors
                .iter()
                .all(JoinHandle::is_finished)
                .then_some(())
        });
        self.end()
            .into_iter()
            .all(|end| end.is_err_and(|e| is_reset(&e)))
    }
}

fn converse(
    stream: &mut TcpStream,
    number: usize,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> Result<(), std::io::Error> {
    let mut sent = vec![0; 8 * 1024];
    let mut back = sent.clone();
    for round in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        sent.fill((round as usize + 31 * number) as u8);
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        assert_eq!(sent, back, "bytes of another round or visitor");
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Seconds until a new visitor is answered through this port.
fn served_again(port: u16, since: Instant) -> f64 {
    eventually(Duration::from_secs(60), "somebody to be served", || {
        let mut visitor = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        visitor.set_read_timeout(Some(PATIENCE)).ok()?;
        ping(&mut visitor).ok()
    });
    seconds(since)
}

#[test]
fn a_killed_program_is_started_again_and_serves() {
    let _alone = alone();
    for who in ["server", "client"] {
        let service = Service::echo();
        let world = World::new();
        let mut server = world.server().start();
        let (control, port) = (server.port, free_port());
        let start = || {
            world
                .client(control)
                .tunnel("t", port, service.port())
                .start()
        };
        let mut client = start();
        client.port_of("t");
        let load = Load::on(port);
        let killed = Instant::now();
        if who == "server" {
            server.program.kill();
        } else {
            client.program.kill();
        }
        assert!(load.all_reset(), "{who}: a cut is a reset and no end");
        // What a service manager does at once.
        if who == "server" {
            server = world.server().set("port", control).start();
        } else {
            client = start();
        }
        let took = served_again(port, killed);
        figure(
            &format!("kill -9 of the {who}, started again at once"),
            format_args!("{VISITORS} of {VISITORS} visitors reset; served again after {took:.2} s"),
        );
        drop((client, server));
    }
}

#[test]
fn a_loaded_program_stops_in_order() {
    let _alone = alone();
    for who in ["server", "client"] {
        let service = Service::echo();
        let mut tunnel = Tunnelled::to(service.port());
        let load = Load::on(tunnel.port);
        let asked = Instant::now();
        let program = tunnel.program(who);
        program.signal("TERM");
        program.log.wait("Stopping", PATIENCE);
        // During the grace everybody is served as before.
        load.wait_more();
        assert_eq!(program.wait_exit(PATIENCE).code(), Some(0), "{who}");
        let took = seconds(asked);
        assert!(load.all_reset(), "{who}: a cut is a reset and no end");
        figure(
            &format!("SIGTERM to the {who} under load"),
            format_args!(
                "{VISITORS} visitors served for the grace, then reset; exit 0 after {took:.2} s"
            ),
        );
    }
}

#[test]
fn a_loaded_program_does_not_mind_hangups() {
    let service = Service::echo();
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("logging.log_file", "server.log"),
        |client| client.set("logging.log_file", "client.log"),
    );
    let load = Load::on(tunnel.port);
    const HANGUPS: usize = 50;
    for n in 1..=HANGUPS {
        for program in [&tunnel.server.program, &tunnel.client.program] {
            program.signal("HUP");
            eventually(PATIENCE, "the log to be opened anew", || {
                (program.log.count(0, "the log file was opened anew") == n).then_some(())
            });
        }
    }
    load.wait_more();
    assert!(load.end().iter().all(Result::is_ok), "nobody was cut");
    figure(
        "SIGHUP to both programs under load",
        format_args!("{HANGUPS} times; {VISITORS} visitors were served on, none cut"),
    );
}
