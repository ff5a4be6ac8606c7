//! What a plan says, step by step.

use super::*;

/// What happens to a plan, one step of a table.
#[derive(Clone, Copy, Debug)]
enum Step {
    At(u64),
    Opened,
    Failed,
    Taken,
    Returned,
    Closed,
    Missed,
    Beat,
    /// `open` says this.
    Opens(usize),
    /// `due` says this, in ms from the start.
    Due(Option<u64>),
    Surplus(usize),
}
use Step::*;

fn run(name: &str, keep: usize, max: usize, steps: &[Step]) {
    run_with(false, name, keep, max, steps);
}

fn run_with(reuse: bool, name: &str, keep: usize, max: usize, steps: &[Step]) {
    let start = Instant::now();
    let (min, most) = (Duration::from_millis(1000), Duration::from_millis(8000));
    let mut plan = Plan::new(keep, max, reuse, (min, most));
    let mut now = start;
    // With these bits the wait is the ceiling itself: 2, 4, 8, 8 s.
    let random = u64::MAX;
    for (n, step) in steps.iter().enumerate() {
        let at = format!("{name}: step {n} {step:?}");
        match *step {
            At(ms) => now = start + Duration::from_millis(ms),
            Opened => plan.opened(),
            Failed => plan.failed(now, random),
            Taken => plan.taken(now),
            Returned => plan.returned(now),
            Closed => plan.closed(now, random),
            Missed => plan.missed(now),
            Beat => plan.beat(),
            Opens(wanted) => assert_eq!(plan.open(now), wanted, "{at}"),
            Surplus(wanted) => assert_eq!(plan.surplus(), wanted, "{at}"),
            Due(ms) => {
                let due = plan.due().map(|due| {
                    let ms = due.saturating_duration_since(start).as_secs_f64() * 1e3;
                    ms.round() as u64
                });
                assert_eq!(due, ms, "{at}");
            }
        }
    }
}

#[test]
fn it_keeps_what_it_should() {
    run(
        "begin",
        2,
        64,
        &[Opens(2), Opens(0), Opened, Opened, Opens(0), Due(None)],
    );
    run(
        "four at once",
        9,
        64,
        &[Opens(4), Opened, Opens(1), Opened, Opened, Opens(2)],
    );
    run("none", 0, 64, &[Opens(0), Beat, Opens(0)]);
    run(
        "what comes back is not opened again",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Opened,
            Taken,
            Opens(1),
            Returned,
            Opened,
            Taken,
            Opens(0),
            Returned,
            Surplus(1),
        ],
    );
}

#[test]
fn short_visits_open_no_channels() {
    run_with(
        true,
        "one after the other",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Opened,
            Due(None),
            Taken,
            Opens(0),
            Due(Some(200)),
            At(10),
            Returned,
            Opens(0),
            At(20),
            Taken,
            Returned,
            At(200),
            Opens(0),
            Due(None),
        ],
    );
    run_with(
        true,
        "two who stay are replaced",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Opened,
            Taken,
            At(30),
            Taken,
            At(99),
            Opens(0),
            At(150),
            Opens(0),
            Due(Some(200)),
            At(250),
            Opens(2),
            Due(None),
        ],
    );
    run_with(
        true,
        "a crowd beyond the spares: what was dialled for it will do",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Opened,
            Taken,
            Taken,
            Missed,
            Missed,
            Missed,
            Opens(0),
            At(50),
            Returned,
            Returned,
            Returned,
            Returned,
            Returned,
            Opens(0),
            Surplus(1),
        ],
    );
}

#[test]
fn it_grows_with_the_demand_and_shrinks_without() {
    run(
        "a crowd raises the target once",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Opened,
            Taken,
            Taken,
            Opens(2),
            Missed,
            Missed,
            Missed,
            Opens(2),
            Opened,
            Opened,
            Opened,
            Opened,
            Opens(0),
        ],
    );
    run(
        "crowd after crowd",
        1,
        5,
        &[
            Opens(1),
            Opened,
            Missed,
            At(49),
            Missed,
            Opens(1),
            At(50),
            Missed,
            Opens(2),
            At(100),
            Missed,
            At(150),
            Missed,
            Opens(1),
            Opens(0),
        ],
    );
    run(
        "and back",
        2,
        64,
        &[
            Missed,
            At(50),
            Missed,
            At(100),
            Missed, // 16
            Opens(4),
            Opened,
            Opened,
            Opened,
            Opened,
            Opens(4),
            Opened,
            Opened,
            Opened,
            Opened,
            Opens(4),
            Opened,
            Opened,
            Opened,
            Opened,
            Opens(4),
            Opened,
            Opened,
            Opened,
            Opened,
            Opens(0),
            Beat,
            Surplus(0),
            Beat,
            Surplus(7),
            Beat,
            Surplus(11),
            Beat,
            Surplus(13),
            Beat,
            Surplus(14),
            Beat,
            Surplus(14),
        ],
    );
}

#[test]
fn it_does_not_run_against_a_server_that_will_not() {
    run(
        "failures wait longer and longer",
        2,
        64,
        &[
            Opens(2),
            Failed,
            Due(Some(2000)),
            Failed,
            Due(Some(2000)),
            Opens(0),
            At(1999),
            Opens(0),
            At(2000),
            Opens(2),
            Failed,
            Failed,
            Due(Some(6000)),
            Missed,
            Opens(0),
            At(6000),
            Opens(4),
            Failed,
            Due(Some(14_000)),
        ],
    );
    run(
        "a server that closes them as soon as they are there",
        1,
        64,
        &[
            Opens(1),
            Opened,
            Closed,
            Opens(0),
            Due(Some(2000)),
            At(2000),
            Opens(1),
            Opened,
            Closed,
            Due(Some(6000)),
        ],
    );
    run(
        "success forgives",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Failed,
            Due(Some(2000)),
            Taken,
            Due(None),
            Opens(2),
            Failed,
            Due(Some(2000)),
        ],
    );
}

#[test]
fn the_servers_word_counts_above_keep() {
    run(
        "closed above keep is not opened again",
        1,
        64,
        &[
            Opens(1),
            Opened,
            Missed,
            At(60),
            Missed,
            Opens(3),
            Opened,
            Opened,
            Opened,
            Closed,
            Closed,
            At(9000),
            Opens(0),
            Due(None),
            Closed,
            Closed,
            At(20_000),
            Opens(1),
        ],
    );
}

#[test]
fn a_server_that_closes_them_is_not_asked_again_by_every_visitor() {
    // Its own limit is one, and two are kept.
    let refused = [
        Opens(2),
        Opened,
        Opened,
        Closed,
        Due(Some(2000)),
        Taken,
        Opens(0),
        Due(Some(2000)),
        At(1000),
        Returned,
        Opens(0),
        At(2000),
        Opens(1),
        Opened,
        Closed,
        Due(Some(6000)),
        Taken,
        Returned,
        Opens(0),
        At(6000),
        Opens(1),
        Opened,
    ];
    let and = |more: &[Step]| [&refused[..], more].concat();
    let soon = and(&[At(13_999), Closed, Due(Some(21_999))]);
    run("it goes on", 2, 64, &soon);
    let late = and(&[At(14_000), Closed, Due(Some(16_000))]);
    run("forgotten after the longest wait", 2, 64, &late);
    run(
        "both waits: the longer one counts",
        2,
        64,
        &[
            Opens(2),
            Opened,
            Closed,
            At(500),
            Failed,
            Due(Some(2500)),
            At(2000),
            Opens(0),
            Due(Some(2500)),
            At(2500),
            Opens(2),
        ],
    );
}

#[test]
fn a_look_at_who_has_stayed_is_over_while_a_wait_goes_on() {
    run_with(
        true,
        "the wait is of no interest",
        1,
        1,
        &[
            Opens(1),
            Opened,
            Closed,
            Missed,
            Returned,
            Due(Some(200)),
            At(200),
            Opens(0),
            Due(None),
        ],
    );
}

#[test]
fn whatever_happens_nothing_is_due_in_the_past() {
    let waits = (Duration::from_millis(50), Duration::from_millis(2000));
    let mut bits = 42u64;
    let mut next = move |below: u64| {
        // Knuth's constants: a weak but sufficient source.
        bits = bits
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (bits >> 33) % below
    };
    for round in 0..300 {
        let reuse = round % 2 == 0;
        let (keep, max) = (1 + next(4) as usize, next(9) as usize);
        let mut plan = Plan::new(keep, max, reuse, waits);
        let mut now = Instant::now();
        let mut serving = 0;
        for step in 0..300 {
            match next(8) {
                0 if plan.opening > 0 => plan.opened(),
                1 if plan.opening > 0 => plan.failed(now, next(u64::MAX)),
                2 if plan.idle > 0 => {
                    plan.taken(now);
                    serving += 1;
                }
                3 if serving > 0 && reuse => {
                    plan.returned(now);
                    serving -= 1;
                }
                4 if plan.idle > 0 => plan.closed(now, next(u64::MAX)),
                5 => {
                    plan.missed(now);
                    serving += 1;
                }
                6 => plan.beat(),
                _ => {}
            }
            now += Duration::from_millis([0, 1, 30, 120, 300, 5000][next(6) as usize]);
            // As the loop does: at any time, and not before it is due.
            let begun = plan.open(now);
            assert!(begun <= OPENING_MAX && plan.opening <= OPENING_MAX);
            let due = plan.due();
            assert!(
                due.is_none_or(|at| at > now),
                "round {round}, step {step}: late by {:?}",
                due.map(|at| now - at)
            );
        }
    }
}
