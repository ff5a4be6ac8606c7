//! One table of behaviours, run over every kind of duplex.
//!
//! A row is what must hold, a column a [`Kind`](path::Kind): plain TCP, sealed, sealed as an
//! original speaks it, sealed and compressed, TLS of both versions, each alone and within the real path of two pools. Where
//! kinds differ by their nature, the row says how. `DUPLEX_TABLE=words` runs only cases whose name
//! contains them.

// What a failed run, or `--nocapture`, shows.
#![allow(clippy::print_stdout)]

#[path = "duplex_table/aborts.rs"]
mod aborts;
#[path = "duplex_table/cuts.rs"]
mod cuts;
#[path = "duplex_table/flows.rs"]
mod flows;
#[path = "duplex_table/handshakes.rs"]
mod handshakes;
#[path = "duplex_table/hostile.rs"]
mod hostile;
#[path = "duplex_table/path.rs"]
mod path;
#[path = "duplex_table/pools.rs"]
mod pools;
#[path = "duplex_table/resting.rs"]
mod resting;
#[path = "duplex_table/rig.rs"]
mod rig;
#[path = "duplex_table/speed.rs"]
mod speed;
#[path = "duplex_table/tls.rs"]
mod tls;
#[path = "duplex_table/tls_hostile.rs"]
mod tls_hostile;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use path::{Kind, Layer};

/// Which columns a row has.
#[derive(Clone, Copy)]
enum Over {
    All,
    /// All but plain TCP.
    Protected,
    Sealed,
    /// With FIN frames.
    TellsEnds,
    Direct,
    SealedDirect,
    Chains,
    /// Rows about what only an original's peer does.
    LegacyChain,
    /// Rows for which the layer makes no difference and a column costs much.
    SealedChain,
    /// Both versions, alone.
    Tls,
    Tls12,
    Tls13,
}

impl Over {
    fn has(self, kind: Kind) -> bool {
        match self {
            Self::All => true,
            Self::Protected => kind.is_protected(),
            Self::Sealed => kind.is_sealed(),
            Self::TellsEnds => kind.is_sealed() && kind.tells_ends(),
            Self::Direct => !kind.chain,
            Self::SealedDirect => kind.is_sealed() && !kind.chain,
            Self::Chains => kind.chain,
            Self::LegacyChain => kind.chain && kind.layer == Layer::Legacy,
            Self::SealedChain => kind.chain && kind.layer == Layer::Sealed,
            Self::Tls => !kind.chain && kind.is_tls(),
            Self::Tls12 => !kind.chain && kind.layer == Layer::Tls12,
            Self::Tls13 => !kind.chain && kind.layer == Layer::Tls13,
        }
    }
}

/// Whether a case needs the processors or mostly waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Few at a time.
    Heavy,
    /// Holds a bound in time: not beside too many others.
    Timed,
    Light,
}

type Row = (&'static str, Over, Load, fn(Kind));

// One line each.
#[rustfmt::skip]
const TABLE: &[Row] = {
    use Load::{Heavy, Light, Timed};
    use Over::{All, Chains, Direct, LegacyChain, Protected, Sealed, SealedChain, SealedDirect, TellsEnds, Tls, Tls12, Tls13};
    &[
        // The longest first, so that they wait beside each other.
        ("drain", Chains, Light, pools::drain),
        ("admission", Chains, Light, pools::admission),
        ("many idle", SealedChain, Light, pools::many_idle),
        ("slow reader of an original", LegacyChain, Light, flows::slow_reader_of_an_original),
        ("half close left", All, Light, flows::half_close_left),
        ("half close right", All, Light, flows::half_close_right),
        ("half close at rest", All, Light, flows::half_close_at_rest),
        ("panic in a pump", Chains, Light, pools::panic_in_a_pump),
        ("abort after an end", Direct, Light, aborts::end_under_the_mark),
        ("flood", All, Heavy, flows::flood),
        ("dribble", All, Light, flows::dribble),
        ("odd pieces", All, Light, flows::odd_pieces),
        ("data at rest", All, Light, flows::data_at_rest),
        ("both go", Chains, Light, flows::both_go),
        ("reset", All, Light, cuts::reset),
        ("close", All, Light, cuts::close),
        ("reset at rest", All, Light, cuts::reset_at_rest),
        ("close at rest", All, Light, cuts::close_at_rest),
        ("cut in flight", All, Heavy, cuts::cut_in_flight),
        ("application resets", Chains, Heavy, cuts::application_resets),
        ("truncated frame", Protected, Light, cuts::truncated_frame),
        ("flipped bit", Protected, Light, cuts::flipped_bit),
        ("flipped bit at rest", Protected, Light, cuts::flipped_bit_at_rest),
        ("flipped length", Sealed, Light, cuts::flipped_length),
        ("replayed frame", Sealed, Light, cuts::replayed_frame),
        ("swapped frames", Sealed, Light, cuts::swapped_frames),
        ("dropped frame", Sealed, Light, cuts::dropped_frame),
        ("reset told to the sink", Direct, Light, cuts::reset_told_to_the_sink),
        #[cfg(target_os = "linux")]
        ("timed out", Direct, Light, cuts::timed_out),
        ("abort while reading", All, Timed, aborts::while_reading),
        ("abort while writing", All, Timed, aborts::while_writing),
        ("abort while resting", All, Timed, aborts::while_resting),
        ("abort by many while reading", All, Timed, aborts::by_many_while_reading),
        ("abort by many while writing", All, Timed, aborts::by_many_while_writing),
        ("finish under the mark", Direct, Light, aborts::finish_under_the_mark),
        ("wrong type", Sealed, Light, hostile::wrong_type),
        ("CloseTunnel", Sealed, Light, hostile::close_tunnel),
        ("FIN with payload", Sealed, Light, hostile::fin_with_payload),
        ("data after FIN", Sealed, Light, hostile::data_after_fin),
        ("data long after FIN", TellsEnds, Light, hostile::data_long_after_fin),
        ("short message", Sealed, Light, hostile::short_message),
        ("bad length", Sealed, Light, hostile::bad_length),
        ("odd but legal", Sealed, Light, hostile::odd_but_legal),
        ("left over", SealedDirect, Light, hostile::left_over),
        ("a rest keeps part of a frame", SealedDirect, Light, hostile::a_rest_keeps_part_of_a_frame),
        ("blocked writers", Chains, Timed, pools::blocked_writers),
        ("abort all", Chains, Timed, pools::abort_all),
        ("start when closed", Chains, Light, pools::start_when_closed),
        ("no job is lost", SealedChain, Light, pools::no_job_is_lost),
        ("little needs no worker", SealedDirect, Light, resting::little_needs_no_worker),
        ("nobody is held up", SealedDirect, Light, resting::nobody_is_held_up),
        ("nothing is lost unwaited", Direct, Light, resting::nothing_is_lost_unwaited),
        ("silence within a frame", SealedDirect, Light, resting::silence_within_a_frame),
        ("left over is in the budget", SealedDirect, Light, resting::left_over_is_in_the_budget),
        ("much is heavy", SealedDirect, Light, resting::much_is_heavy),
        ("when readable", SealedChain, Light, resting::when_readable),
        ("panic at rest", Chains, Light, resting::panic_at_rest),
        ("handshake in single bytes", Tls, Light, handshakes::in_single_bytes),
        ("early bytes", Tls, Light, handshakes::early_bytes),
        ("handshake dribbles", Tls, Timed, handshakes::dribble),
        ("handshake in threads", Tls, Light, handshakes::run),
        ("no handshake", Tls, Light, handshakes::nonsense),
        ("a hello without end", Tls, Light, handshakes::hello_without_end),
        ("a long chain", Tls, Light, handshakes::long_chain),
        ("refused certificate", Tls, Light, handshakes::refused_certificate),
        ("nothing in common", Tls, Light, handshakes::nothing_in_common),
        ("ready and gone", Tls, Light, handshakes::ready_and_gone),
        ("no memory for TLS", Tls, Light, handshakes::no_memory),
        ("memory comes back", Tls, Light, handshakes::memory_comes_back),
        ("little needs no worker with TLS", Tls, Light, tls_hostile::little_needs_no_worker),
        ("odd but legal records", Tls, Light, tls_hostile::odd_but_legal),
        ("data after close_notify", Tls, Light, tls_hostile::data_after_close_notify),
        ("nothing without end", Tls, Light, tls_hostile::nothing_without_end),
        ("damage after our end", Tls, Light, tls_hostile::damage_after_our_end),
        ("fatal alert", Tls, Light, tls_hostile::fatal_alert),
        ("renegotiation", Tls12, Light, tls_hostile::renegotiation),
        ("key updates", Tls13, Light, tls_hostile::key_updates),
        ("ticket in parts", Tls13, Light, tls_hostile::ticket_in_parts),
        ("tickets that never fit", Tls13, Light, tls_hostile::tickets_that_never_fit),
        ("many tickets are heavy", Tls13, Light, tls_hostile::many_tickets_are_heavy),
    ]
};

/// Rows that say nothing under wine, and why. Its runner, scripts/windows/wine-run, is known by what it sets.
const NOT_UNDER_WINE: &[(&str, &str)] = &[(
    "blocked writers",
    // Measured: 20 sockets that wait for room, each with one byte unread, cost its server a processor; without the byte
    // nothing. It waits for the peer's end with each of them, is told of the byte instead, and asks again at once.
    "wine's one server is busy with sockets that wait to write while something lies unread, and nobody else's turn comes",
)];

fn is_left_out(row: &str) -> Option<&'static str> {
    let (_, why) = NOT_UNDER_WINE.iter().find(|(name, _)| *name == row)?;
    (cfg!(windows) && std::env::var_os("MTT_WINE").is_some()).then_some(why)
}

/// Rows times columns, counted by hand: 17 rows over all 11, 3 over the 9 that are protected, 11 over the 6 sealed, 9
/// over the 5 chains, 4 over the 6 that are direct, 1 over the 4 with FIN frames, 7 over 3, 18 over 2, 9 over one. On
/// Linux one more over the 6 that are direct.
const CASES: usize =
    187 + 27 + 66 + 45 + 24 + 4 + 21 + 36 + 9 + if cfg!(target_os = "linux") { 6 } else { 0 };

#[test]
fn the_table_holds_for_every_kind() {
    let only = std::env::var("DUPLEX_TABLE").ok();
    let ran = AtomicUsize::new(0);
    let mut left_out = 0;
    let failures = Mutex::new(Vec::new());
    let watched = watch();
    // Under wine every wait is a conversation with one server that serves all.
    let timed = if cfg!(windows) { 2 } else { 6 };
    for (load, threads) in [(Load::Light, 24), (Load::Timed, timed), (Load::Heavy, 3)] {
        let mut cases: Vec<_> = TABLE
            .iter()
            .filter(|(_, _, of, _)| *of == load)
            .flat_map(|row| {
                Kind::ALL
                    .into_iter()
                    .filter(|kind| row.1.has(*kind))
                    .map(move |kind| (format!("{}: {kind}", row.0), row.3, kind))
            })
            .filter(|(name, _, _)| only.as_ref().is_none_or(|only| name.contains(only)))
            .collect();
        cases.retain(|(name, _, _)| {
            let (row, _) = name.split_once(": ").expect("made so above");
            let why = is_left_out(row);
            if let Some(why) = why {
                println!("left out  {name}: {why}");
                left_out += 1;
            }
            why.is_none()
        });
        // To an original every end is told 5 s late: these wait beside everything else.
        cases.sort_by_key(|(_, _, kind)| kind.layer != Layer::Legacy);
        let next = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    while let Some((name, run, kind)) =
                        cases.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let start = Instant::now();
                        watched.lock().unwrap().insert(name.clone(), start);
                        let failed = catch_unwind(AssertUnwindSafe(|| run(*kind))).is_err();
                        if failed {
                            failures.lock().unwrap().push(name.clone());
                        }
                        watched.lock().unwrap().remove(name);
                        ran.fetch_add(1, Ordering::Relaxed);
                        let mark = if failed { "  FAILED" } else { "" };
                        println!("{:6.2} s  {name}{mark}", start.elapsed().as_secs_f64());
                    }
                });
            }
        });
    }
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "failed: {failures:#?}");
    if only.is_none() {
        assert_eq!(ran.into_inner() + left_out, CASES, "cases are missing");
    }
}

/// Ends the process when a case hangs, as one may whose failure leaves another thread blocked.
fn watch() -> Arc<Mutex<BTreeMap<String, Instant>>> {
    let running = Arc::new(Mutex::new(BTreeMap::<String, Instant>::new()));
    let weak = Arc::downgrade(&running);
    std::thread::spawn(move || {
        while let Some(running) = weak.upgrade() {
            let hung: Vec<_> = {
                let running = running.lock().unwrap();
                let long = |start: &Instant| start.elapsed() > 3 * rig::PATIENCE;
                let hung = running.iter().filter(|(_, start)| long(start));
                hung.map(|(name, _)| name.clone()).collect()
            };
            if !hung.is_empty() {
                println!("hung: {hung:#?}");
                std::process::exit(1);
            }
            drop(running);
            std::thread::park_timeout(Duration::from_secs(1));
        }
    });
    running
}

#[test]
#[ignore = "a measurement"]
fn memory_of_idle_pairs() {
    for layer in [Layer::Packed, Layer::Tls12, Layer::Tls13] {
        for line in pools::memory_of_idle_pairs(layer) {
            println!("{line}");
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn speed_of_relays() {
    speed::measure();
}
