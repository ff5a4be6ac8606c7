//! One run: everything started, rounds interleaved, connections held, reported.
//!
//! ```text
//!  start all ─> idle ─> round 1: direct ours rathole ...  round 2: direct ours ...  ─> rest ─> held
//! ```

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::load::{AT_ONCE, Way};
use crate::options::Options;
use crate::process::{self, Folder, Used};
use crate::report;
use crate::service::CHUNK;
use crate::stats::percentile;
use crate::targets::{self, Target};

/// Long enough that idle threads end and allocators trim, where they do.
const SETTLE: Duration = Duration::from_secs(6);
/// Between new connections that are not to follow each other as fast as they can: time enough for a TLS handshake.
const BETWEEN: Duration = Duration::from_millis(5);
/// Descriptors kept free for everything but held connections.
const SPARE: usize = 200;

/// All samples of one target: metric name -> one per round, or one in all.
pub(crate) type Samples = BTreeMap<String, Vec<f64>>;

/// What a run found.
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
    /// What was left out, and why.
    pub(crate) left_out: Vec<String>,
    pub(crate) load_before: String,
    pub(crate) load_after: String,
    pub(crate) seconds: f64,
}

/// What a run found about one target.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) samples: Samples,
    /// What went wrong, in words.
    pub(crate) trouble: Vec<String>,
}

impl Row {
    fn add(&mut self, metric: impl Into<String>, value: f64) {
        self.samples.entry(metric.into()).or_default().push(value);
    }

    /// Notes what a measurement gave, or that it failed. A failed one counts as NaN, so that rounds
    /// stay comparable.
    fn try_add(&mut self, metric: &str, value: io::Result<f64>) {
        let value = value.unwrap_or_else(|e| {
            self.trouble.push(format!("{metric}: {e}"));
            f64::NAN
        });
        self.add(metric, value);
    }
}

pub(crate) fn run(options: &Options) -> io::Result<()> {
    give_up_after(options.limit);
    let folder = Folder::new()?;
    let started = Instant::now();
    let load_before = load_average();
    let (targets, left_out) = targets::start_all(&folder, options)?;
    let mut rows: Vec<_> = targets
        .iter()
        .map(|target| Row {
            name: target.name,
            version: target.version.clone(),
            samples: Samples::new(),
            trouble: Vec::new(),
        })
        .collect();

    idle(&targets, &mut rows);
    for round in 1..=options.rounds {
        for (target, row) in targets.iter().zip(&mut rows) {
            eprintln!(
                "bench: round {round} of {}: {}",
                options.rounds, target.name
            );
            measure(target, row, options);
            target.quiesce();
        }
    }
    eprintln!("bench: memory after the load");
    std::thread::sleep(SETTLE);
    memory(&targets, &mut rows, "pss_after_load");
    for count in &options.held {
        held(&targets, &mut rows, *count);
    }
    if !options.held.is_empty() {
        std::thread::sleep(SETTLE);
        memory(&targets, &mut rows, "pss_after_held");
    }
    let results = Results {
        rows,
        left_out,
        load_before,
        load_after: load_average(),
        seconds: started.elapsed().as_secs_f64(),
    };
    drop(targets);
    report::print(&results, options);
    if let Some(file) = &options.json {
        std::fs::write(file, report::json(&results, options))?;
        eprintln!("bench: everything measured is in {}", file.display());
    }
    Ok(())
}

/// Programs that do nothing: what they hold, and how often they wake.
fn idle(targets: &[Target], rows: &mut [Row]) {
    eprintln!("bench: idle");
    std::thread::sleep(SETTLE);
    let watch = Duration::from_secs(3);
    let sleeps = |target: &Target| process::sleeps(&target.pids());
    let before: Vec<_> = targets.iter().map(sleeps).collect();
    std::thread::sleep(watch);
    for ((target, row), before) in targets.iter().zip(&mut *rows).zip(before) {
        if target.is_tunnel() {
            row.add(
                "idle_wakeups_per_second",
                (sleeps(target) - before).max(0.0) / watch.as_secs_f64(),
            );
        }
    }
    memory(targets, rows, "pss_idle");
}

fn memory(targets: &[Target], rows: &mut [Row], metric: &str) {
    for (target, row) in targets.iter().zip(rows) {
        if target.is_tunnel() {
            row.add(metric, process::pss(&target.pids()) / 1024.0);
        }
    }
}

/// One target's part of a round.
fn measure(target: &Target, row: &mut Row, options: &Options) {
    let visitor = target.visitor;
    let pids = target.pids();
    if process::tcp_is_short_of_memory() {
        let trouble = "the system's TCP memory was used up by others: bulk figures are theirs";
        row.trouble.push(trouble.to_owned());
    }
    let bulk = [
        ("to1", Way::ToService, 1),
        ("from1", Way::FromService, 1),
        ("to8", Way::ToService, 8),
        ("from8", Way::FromService, 8),
    ];
    for (name, way, streams) in bulk {
        let used = || process::used(&pids);
        let done = visitor.bulk(way, streams, CHUNK, options.warm_up, options.window, &used);
        let none = Used {
            cpu: f64::NAN,
            sleeps: f64::NAN,
        };
        let (rate, used) = match done {
            Ok(bulk) => (Ok(bulk.rate), bulk.per_gib),
            Err(e) => (Err(e), none),
        };
        row.try_add(&format!("{name}_mb_s"), rate);
        if target.is_tunnel() {
            row.add(format!("{name}_cpu_s_per_gib"), used.cpu);
            row.add(format!("{name}_sleeps_per_gib"), used.sleeps);
        }
        target.quiesce();
    }
    let mut latency = |name: &str, times: io::Result<Vec<f64>>, tail: bool| {
        let (p50, p99) = match times {
            Ok(times) => (Ok(percentile(&times, 0.5)), percentile(&times, 0.99)),
            Err(e) => (Err(e), f64::NAN),
        };
        row.try_add(&format!("{name}_p50_us"), p50);
        if tail {
            row.add(format!("{name}_p99_us"), p99);
        }
    };
    latency("ping", visitor.pings(options.pings, options.window), true);
    let beside = visitor.pings_beside_bulk(options.pings, options.window);
    latency("ping_beside_bulk", beside, true);
    target.quiesce();
    let silence = Duration::from_millis(400);
    latency(
        "ping_after_silence",
        visitor.pings_after_silence(silence),
        false,
    );
    let new = visitor.new_connections(options.connections, options.window, Duration::ZERO);
    latency("new_connection", new, true);
    target.quiesce();
    if options.forward {
        let new = visitor.new_connections(options.connections, options.window, BETWEEN);
        latency("new_after_pause", new, true);
        target.quiesce();
    }
    let used = process::cpu(&pids);
    let (rate, failed) = visitor.connection_rate(options.window);
    let used = process::cpu(&pids) - used;
    row.add("connections_per_second", rate);
    if target.is_tunnel() {
        let done = rate * options.window.as_secs_f64();
        row.add("cpu_us_per_connection", used * 1e6 / done);
    }
    if failed > 0 {
        row.trouble.push(format!(
            "{failed} connections failed with {AT_ONCE} at once"
        ));
    }
}

/// Connections that are open and silent: memory of each, and threads.
fn held(targets: &[Target], rows: &mut [Row], count: usize) {
    let tunnels: Vec<_> = (0..targets.len())
        .filter(|i| targets[*i].is_tunnel())
        .collect();
    let at_once = process::descriptors().saturating_sub(SPARE) / count;
    if at_once == 0 {
        eprintln!("bench: too few descriptors to hold {count} connections; see ulimit -n");
        return;
    }
    for batch in tunnels.chunks(at_once) {
        let mut holding = Vec::new();
        for &i in batch {
            let target = &targets[i];
            eprintln!("bench: {count} held connections: {}", target.name);
            let streams = target.visitor.hold(count, Duration::from_secs(40));
            target.quiesce();
            holding.push((i, streams));
        }
        std::thread::sleep(SETTLE);
        for (i, streams) in &holding {
            let (target, row) = (&targets[*i], &mut rows[*i]);
            let there = target.visitor.ask().map_or(0, |(_, held)| held as usize);
            if streams.len() < count || there < count {
                row.trouble.push(format!(
                    "held {count}: {} opened, {there} at the service",
                    streams.len()
                ));
            }
            // As many as really are there.
            let n = streams.len().min(there);
            let pids = target.pids();
            // What a smaller number has left behind counts again, since it is used again.
            let before = row.samples["pss_after_load"][0] * 1024.0;
            let each = (process::pss(&pids) - before) / n as f64;
            row.add(
                format!("held_{count}_kib_each"),
                if n > count / 2 { each } else { f64::NAN },
            );
            row.add(format!("held_{count}_threads"), process::threads(&pids));
            row.add(format!("held_{count}_open"), n as f64);
        }
        for (i, streams) in holding {
            drop(streams);
            std::thread::sleep(Duration::from_millis(200));
            if let Err(e) = targets[i].visitor.release() {
                rows[i].trouble.push(format!("releasing {count}: {e}"));
            }
            targets[i].quiesce();
        }
    }
}

/// Nothing here waits for ever, but if it does: scripts/bench ends what is left.
pub(crate) fn give_up_after(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("bench: not done after {} s, giving up", limit.as_secs());
        std::process::exit(1);
    });
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .unwrap_or_default()
}
