//! How fast two relays in a row are, and what they cost: a measurement.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use minitcptunnel_common::duplex::{self, Duplex};
use minitcptunnel_common::pool::Pool;
use rustls::CipherSuite;

use crate::path::{Layer, dress_both, start};
use crate::tls::{self, Terms};

const MIB: usize = 1024 * 1024;

/// What is between the two relays.
#[derive(Clone, Copy, Debug)]
enum Between {
    Layer(Layer),
    Tls(CipherSuite),
}

/// Prints a line for each layer. To be run in a release build, on a quiet machine; `SPEED_MIB` is how much goes
/// each way (2,048).
pub(crate) fn measure() {
    use CipherSuite as S;
    for between in [
        Between::Layer(Layer::Tcp),
        Between::Layer(Layer::Sealed),
        Between::Tls(S::TLS13_AES_128_GCM_SHA256),
        Between::Tls(S::TLS13_AES_256_GCM_SHA384),
        Between::Tls(S::TLS13_CHACHA20_POLY1305_SHA256),
        Between::Tls(S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ] {
        for both_ways in [false, true] {
            let (rate, cpu) = flood(between, both_ways);
            let ways = if both_ways { "both ways" } else { "one way" };
            println!("{between:?}, {ways}: {rate:.0} MB/s, {cpu:.3} CPU s/GiB in both relays");
        }
    }
}

/// Two ends of a connection whose buffers are the system's affair.
fn link() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

fn dressed(between: Between) -> [Duplex; 2] {
    let (near, far) = link();
    match between {
        Between::Layer(layer) => dress_both(layer, near, far),
        Between::Tls(suite) => {
            let layer = if format!("{suite:?}").starts_with("TLS13") {
                Layer::Tls13
            } else {
                Layer::Tls12
            };
            let terms = Terms {
                suite: Some(suite),
                ..Terms::of(layer)
            };
            let [client, server] = tls::established(terms);
            [tls::over(client, near), tls::over(server, far)]
        }
    }
}

/// MB/s of both directions together, and what the workers needed for a GiB.
fn flood(between: Between, both_ways: bool) -> (f64, f64) {
    let mib = std::env::var("SPEED_MIB").map_or(2048, |mib| mib.parse().unwrap());
    let (left, external) = link();
    let (service, right) = link();
    let [near, far] = dressed(between);
    let pool = Pool::new(2).unwrap();
    let external = duplex::tcp(external).unwrap();
    let service = duplex::tcp(service).unwrap();
    let ended = [
        start(&pool, 1, external, near, &Arc::default()),
        start(&pool, 1, far, service, &Arc::default()),
    ];
    let before = workers_cpu();
    let begin = Instant::now();
    let push = |mut to: &TcpStream| {
        let piece = vec![0x5a; 256 * 1024];
        for _ in 0..mib * MIB / piece.len() {
            to.write_all(&piece).unwrap();
        }
        to.shutdown(std::net::Shutdown::Write).unwrap();
    };
    let pull = |mut from: &TcpStream| {
        let mut piece = vec![0; 256 * 1024];
        while from.read(&mut piece).unwrap() > 0 {}
    };
    thread::scope(|s| {
        s.spawn(|| push(&left));
        s.spawn(|| pull(&right));
        if both_ways {
            s.spawn(|| push(&right));
            s.spawn(|| pull(&left));
        }
    });
    let took = begin.elapsed().as_secs_f64();
    // Those of earlier floods may have gone meanwhile; ours have not.
    let spent = |(task, after)| after - before.get(&task).unwrap_or(&0.0);
    let cpu: f64 = workers_cpu().into_iter().map(spent).sum();
    drop((left, right));
    for ended in ended {
        ended.recv().unwrap();
    }
    let moved = (mib * if both_ways { 2 } else { 1 }) as f64;
    (moved * MIB as f64 / 1e6 / took, cpu / (moved / 1024.0))
}

/// What each live worker of this process has run, in seconds.
fn workers_cpu() -> HashMap<PathBuf, f64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    tasks
        .filter_map(|task| {
            let task = task.ok()?.path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            let ran = std::fs::read_to_string(task.join("schedstat")).ok()?;
            let nanos: f64 = ran.split(' ').next()?.parse().ok()?;
            (name.trim() == "worker").then_some((task, nanos / 1e9))
        })
        .collect()
}
