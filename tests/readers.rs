//! Many connections that do little. Here belongs: visitors that never read, connections that rest, what a crowd
//! costs in memory, threads and descriptors, and whether everybody else still gets served.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use rig::{
    Bytes, PATIENCE, Service, Tunnelled, Usage, alone, eventually, figure, full, read_end, seconds,
    send, steady,
};

/// Long enough for a busy machine; what is asserted are numbers, not times.
const LONG: Duration = Duration::from_secs(60);

fn usage(tunnel: &Tunnelled) -> (Usage, Usage) {
    (tunnel.server.usage(), tunnel.client.usage())
}

/// Threads and descriptors of both programs, once they no longer change.
fn at_rest(tunnel: &Tunnelled) -> (Usage, Usage) {
    let counts = || {
        let (s, c) = usage(tunnel);
        (s.threads, s.fds, c.threads, c.fds)
    };
    // Longer than a worker waits for more work before it ends (5 s).
    let calm = Duration::from_millis(5500);
    steady(LONG, calm, "threads and descriptors", counts);
    usage(tunnel)
}

#[test]
fn five_hundred_visitors_who_never_read_cost_their_buffers_and_no_more() {
    let _alone = alone();
    const VISITORS: usize = 500;
    /// Of either program, in KiB. Each direction that waits for its reader may hold what it has read and what it
    /// has made of it: two buffers of 64 KiB, so 64 MiB for all; and a thread with its stack.
    const BUDGET: u64 = (VISITORS as u64) * 160 + 16 * 1024;
    /// Bytes on the way to one visitor: in both programs and in the sockets between service and visitor.
    const STUCK: u64 = 2_900_000;

    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let service = Service::start(move |mut stream| {
        // What is counted is what the programs and their sockets hold, not what this one does.
        SockRef::from(&stream).set_send_buffer_size(64 * 1024)?;
        // The first byte says what is wanted: everything there is, or an echo of 16 MiB.
        let mut want = [0];
        stream.read_exact(&mut want)?;
        if want[0] == b'e' {
            let mut out = stream.try_clone()?;
            std::io::copy(&mut stream, &mut out)?;
            return out.shutdown(Shutdown::Write);
        }
        let piece = Bytes::new(1).take(64 * 1024);
        loop {
            let n = stream.write(&piece)?;
            counter.fetch_add(n as u64, Ordering::Relaxed);
        }
    });
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.arguments(&[]),
        // What is left is counted, so nothing is kept for the next visitor.
        |client| client.set("limits.spare_channels", 0).arguments(&[]),
    );
    let transfer = |what: &str| {
        let n = 16 << 20;
        let start = Instant::now();
        let mut visitor = tunnel.visit();
        visitor.write_all(b"e").expect("write");
        let mut out = visitor.try_clone().expect("clone");
        let sender = thread::spawn(move || {
            send(&mut out, 2, n).expect("send");
            out.shutdown(Shutdown::Write).expect("end");
        });
        Bytes::new(2)
            .expect(&mut visitor, n)
            .unwrap_or_else(|e| panic!("16 MiB {what}: {e}"));
        sender.join().expect("sender");
        start.elapsed()
    };
    let alone_took = transfer("alone");
    let before = at_rest(&tunnel);

    let visitors: Vec<TcpStream> = (0..VISITORS)
        .map(|_| {
            let mut visitor = tunnel.visit();
            SockRef::from(&visitor)
                .set_recv_buffer_size(64 * 1024)
                .expect("a small buffer");
            visitor.write_all(b"g").expect("ask");
            visitor
        })
        .collect();
    eventually(LONG, "every visitor to be served", || {
        (service.live() == VISITORS).then_some(())
    });
    // Until every buffer on the way is full and nothing moves.
    let total = steady(
        LONG,
        Duration::from_secs(1),
        "the downloads to stand still",
        || sent.load(Ordering::Relaxed),
    );
    let (server, client) = usage(&tunnel);
    // All of a machine's connections share the kernel's memory for them: a crowd must not empty it.
    let stuck = total / VISITORS as u64;
    assert!(stuck < STUCK, "{stuck} bytes stuck for each visitor");
    let crowd_took = transfer("beside the crowd");
    let (server_after, client_after) = usage(&tunnel);
    figure(
        "never-reading visitors",
        format_args!(
            "{VISITORS} with {} MiB stuck on the way: server {server:?}, client {client:?}; \
             16 MiB echoed in {alone_took:.2?} alone, {crowd_took:.2?} beside them",
            total >> 20
        ),
    );
    for (who, usage) in [
        ("server", server),
        ("client", client),
        ("server after the transfer", server_after),
        ("client after the transfer", client_after),
    ] {
        assert!(
            usage.rss_kib < BUDGET,
            "{who}: {usage:?}, budget {BUDGET} KiB"
        );
    }
    assert!(crowd_took < LONG);

    drop(visitors);
    eventually(LONG, "the service to be left alone", || {
        (service.live() == 0).then_some(())
    });
    let after = at_rest(&tunnel);
    for (who, before, after) in [("server", before.0, after.0), ("client", before.1, after.1)] {
        assert!(after.fds <= before.fds, "{who}: {before:?} -> {after:?}");
        assert!(
            after.threads <= before.threads + 2,
            "{who}: {before:?} -> {after:?}"
        );
    }
    figure(
        "after they left",
        format_args!("server {:?}, client {:?}", after.0, after.1),
    );
}

#[test]
fn a_thousand_resting_connections_need_a_dozen_threads() {
    let _alone = alone();
    let count = if full() { 5000 } else { 1000 };
    let service = Service::echo();
    let tunnel = Tunnelled::with(
        service.port(),
        |server| server.set("limits.pairs", 6000).arguments(&[]),
        |client| {
            client
                .set("limits.pairs", 6000)
                // What is left is counted, so nothing is kept for the next visitor.
                .set("limits.spare_channels", 0)
                .arguments(&[])
        },
    );
    let before = at_rest(&tunnel);
    let start = Instant::now();
    let mut visitors: Vec<TcpStream> = Vec::new();
    for n in 0..count {
        let mut visitor = tunnel.visit();
        let text = format!("first {n}");
        visitor.write_all(text.as_bytes()).expect("write");
        let mut back = vec![0; text.len()];
        visitor.read_exact(&mut back).expect("echo");
        assert_eq!(back, text.as_bytes());
        visitors.push(visitor);
    }
    let opened = seconds(start);
    let (server, client) = at_rest(&tunnel);
    for (who, usage) in [("server", server), ("client", client)] {
        assert!(
            usage.threads <= 40,
            "{who}: {usage:?} with {count} resting connections"
        );
    }
    let each = |now: Usage, then: Usage| {
        (now.rss_kib.saturating_sub(then.rss_kib)) as f64 / f64::from(count)
    };
    figure(
        "resting connections",
        format_args!(
            "{count} opened in {opened:.1} s; server {server:?} ({:.1} KiB each), client {client:?} ({:.1} KiB each)",
            each(server, before.0),
            each(client, before.1)
        ),
    );
    assert!(each(server, before.0) < 16.0 && each(client, before.1) < 16.0);
    let cpu = (tunnel.server.cpu(), tunnel.client.cpu());
    let idle = Instant::now();
    // All of them wake up at once, say something else, and all are answered.
    for (n, visitor) in visitors.iter_mut().enumerate() {
        visitor
            .write_all(format!("again {n}").as_bytes())
            .expect("write");
    }
    for (n, visitor) in visitors.iter_mut().enumerate() {
        let text = format!("again {n}");
        let mut back = vec![0; text.len()];
        visitor
            .read_exact(&mut back)
            .unwrap_or_else(|e| panic!("visitor {n}: {e}"));
        assert_eq!(back, text.as_bytes());
    }
    figure(
        "all wake at once",
        format_args!(
            "{:.2} s, processor time server {:?}, client {:?}",
            seconds(idle),
            tunnel.server.cpu() - cpu.0,
            tunnel.client.cpu() - cpu.1
        ),
    );
    // Every end is noticed where nobody is reading.
    for visitor in &visitors {
        visitor.shutdown(Shutdown::Write).expect("end");
    }
    for visitor in &mut visitors {
        assert_eq!(read_end(visitor).0, b"");
    }
    eventually(PATIENCE, "the service to be left alone", || {
        (service.live() == 0).then_some(())
    });
    let after = at_rest(&tunnel);
    assert!(
        after.0.fds <= before.0.fds && after.1.fds <= before.1.fds,
        "{before:?} -> {after:?}"
    );
}
