use super::*;

/// What happens, one step of a table. Local connections and ready ones are numbers.
#[derive(Clone, Copy, Debug)]
enum Step {
    At(u64),
    /// This local connection comes; with whom it is served.
    Came(u32, Option<u32>),
    /// So many dials are begun.
    Dials(usize),
    /// This connection is made; whom it serves.
    Connected(u32, Option<u32>),
    /// A dial fails; how long the pause is that it begins, in ms.
    Failed(Option<u64>),
    /// The ready connection of this number is gone.
    Lost(u64),
    /// These have waited long enough.
    Expired(&'static [u32]),
    /// In ms from the start.
    Due(Option<u64>),
}
use Step::*;

fn run(name: &str, keep: usize, steps: &[Step]) {
    run_for(name, keep, 10_000, steps);
}

fn run_for(name: &str, keep: usize, patience: u64, steps: &[Step]) {
    let start = Instant::now();
    let ms = Duration::from_millis;
    let mut plan = Plan::<u32, u32>::new(Bounds {
        keep,
        patience: ms(patience),
        pauses: (ms(500), ms(4000)),
    });
    let mut now = start;
    // With these bits the pause is the ceiling itself: 1, 2, 4, 4 s.
    let random = u64::MAX;
    for (n, step) in steps.iter().enumerate() {
        let at = format!("{name}: step {n} {step:?}");
        match *step {
            At(n) => now = start + ms(n),
            Came(local, Some(with)) => {
                assert_eq!(plan.came(local, now), Next::Serve(local, with), "{at}");
            }
            Came(local, None) => assert_eq!(plan.came(local, now), Next::Kept(0), "{at}"),
            Dials(count) => assert_eq!(plan.dial(now), count, "{at}"),
            Connected(with, Some(local)) => {
                assert_eq!(plan.connected(with), Next::Serve(local, with), "{at}");
            }
            Connected(with, None) => {
                assert!(matches!(plan.connected(with), Next::Kept(1..)), "{at}");
            }
            Failed(pause) => assert_eq!(plan.failed(now, random), pause.map(ms), "{at}"),
            Lost(number) => assert!(plan.lost(number, now, random).is_some(), "{at}"),
            Expired(who) => assert_eq!(plan.expired(now), who, "{at}"),
            Due(due) => {
                let seen = plan.due().map(|at| at.saturating_duration_since(start));
                assert_eq!(seen, due.map(ms), "{at}");
            }
        }
    }
}

#[test]
fn whoever_waits_is_served_in_order() {
    run(
        "two",
        0,
        &[
            Dials(0),
            Due(None),
            Came(1, None),
            Dials(1),
            Came(2, None),
            Dials(1),
            Dials(0),
            Connected(10, Some(1)),
            Connected(11, Some(2)),
            Dials(0),
            Due(None),
        ],
    );
    let mut steps: Vec<_> = (0..20).map(|n| Came(n, None)).collect();
    steps.extend([Dials(DIALS_MAX), Dials(0)]);
    steps.extend((0..16).map(|n| Connected(n, Some(n))));
    steps.extend([Dials(4), Came(21, None), Dials(1)]);
    run("a crowd", 0, &steps);
}

#[test]
fn what_is_ready_serves_at_once_and_is_replaced() {
    run(
        "kept",
        2,
        &[
            Dials(2),
            Due(None),
            Connected(10, None),
            Connected(11, None),
            Dials(0),
            Came(1, Some(11)),
            Dials(1),
            Came(2, Some(10)),
            Came(3, None),
            Dials(2),
            Connected(12, Some(3)),
            Connected(13, None),
        ],
    );
}

#[test]
fn a_server_that_is_down_is_asked_by_one_for_all() {
    run(
        "down",
        0,
        &[
            Came(1, None),
            Came(2, None),
            Dials(2),
            Failed(Some(1000)),
            Failed(None),
            Dials(0),
            Due(Some(1000)),
            Came(3, None),
            Dials(0),
            At(1000),
            Dials(1),
            Due(Some(10_000)),
            Failed(Some(2000)),
            Due(Some(3000)),
            At(3000),
            Dials(1),
            Connected(10, Some(1)),
            Dials(2),
            Connected(11, Some(2)),
            Connected(12, Some(3)),
        ],
    );
    run(
        "for ever",
        0,
        &[
            Came(1, None),
            Dials(1),
            Failed(Some(1000)),
            At(2000),
            Came(2, None),
            Dials(1),
            Failed(Some(2000)),
            At(9999),
            Expired(&[]),
            Dials(1),
            At(10_000),
            Expired(&[1]),
            Due(Some(12_000)),
            Failed(Some(4000)),
            Due(Some(12_000)),
            At(12_000),
            Expired(&[2]),
            Due(None),
        ],
    );
}

#[test]
fn a_server_that_closes_what_is_ready_is_not_asked_at_once() {
    run(
        "closes",
        2,
        &[
            Dials(2),
            Connected(10, None),
            Connected(11, None),
            Lost(1),
            Lost(2),
            Dials(0),
            Due(Some(1000)),
            // Somebody who waits is another matter.
            Came(1, None),
            Dials(1),
            Connected(12, Some(1)),
            Dials(0),
            At(1000),
            Dials(2),
            Connected(13, None),
            Connected(14, None),
            Lost(3),
            Due(Some(3000)),
            // One that was of use: it is worth it.
            Came(2, Some(14)),
            Dials(2),
        ],
    );
}

#[test]
fn without_patience_there_is_one_attempt() {
    run_for(
        "once",
        0,
        0,
        &[
            Came(1, None),
            Expired(&[]),
            Dials(1),
            Due(None),
            At(5000),
            Expired(&[]),
            Came(2, None),
            Dials(1),
            At(6000),
            Failed(Some(1000)),
            Expired(&[1, 2]),
            At(7000),
            Came(3, None),
            Expired(&[]),
            Dials(0),
            Connected(10, Some(3)),
        ],
    );
    run_for(
        "none in vain",
        0,
        0,
        &[
            Came(1, None),
            Dials(1),
            Failed(Some(1000)),
            Expired(&[1]),
            At(500),
            Came(2, None),
            Expired(&[]),
            Due(Some(1000)),
            At(1000),
            Dials(1),
            Connected(10, Some(2)),
        ],
    );
}

#[test]
fn the_end_gives_everything_back() {
    let ms = Duration::from_millis;
    let now = Instant::now();
    let mut plan = Plan::<u32, u32>::new(Bounds {
        keep: 1,
        patience: ms(1000),
        pauses: (ms(1), ms(1)),
    });
    assert_eq!(plan.dial(now), 1);
    assert_eq!(plan.connected(7), Next::Kept(1));
    assert_eq!(plan.came(1, now), Next::Serve(1, 7));
    assert_eq!(plan.came(2, now), Next::Kept(0));
    assert_eq!(plan.waiting(), 1);
    assert_eq!(plan.dial(now), 2);
    assert_eq!(plan.connected(8), Next::Serve(2, 8));
    assert_eq!(plan.connected(9), Next::Kept(2));
    assert_eq!(plan.end(), (vec![], vec![9]));
}
