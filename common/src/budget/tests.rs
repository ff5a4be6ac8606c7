use super::*;

const MIB: usize = 1024 * 1024;

#[test]
fn pairs_are_admitted_until_the_reserve() {
    let budget = Budget::new(8 * MIB);
    let mut pairs: Vec<_> = std::iter::from_fn(|| budget.pair()).collect();
    assert_eq!(pairs.len(), budget.pairs());
    assert!(budget.is_used_up());
    assert!(budget.used() <= 7 * MIB && budget.used() + PAIR > 7 * MIB);
    pairs.pop();
    assert!(!budget.is_used_up());
    drop(pairs);
    assert_eq!(budget.used(), 0);
}

/// (asked, wanted how, granted, used afterwards), one after the other on one account of 1 MiB with
/// 100 bytes included.
#[test]
fn a_half_grows_and_shrinks_within_the_bounds() {
    let comfort = MIB - MIB / RESERVE;
    let steps = [
        (100, Want::Comfort, true, 0),
        (101, Want::Comfort, true, 1),
        (comfort + 100, Want::Comfort, true, comfort),
        (comfort + 101, Want::Comfort, false, comfort),
        (comfort + 101, Want::Need, true, comfort + 1),
        (comfort + 102, Want::Comfort, false, comfort + 1),
        (MIB + 100, Want::Need, true, MIB),
        (MIB + 101, Want::Need, false, MIB),
        (usize::MAX, Want::Need, false, MIB),
        // Less is granted even where nothing more would be.
        (MIB, Want::Comfort, true, MIB - 100),
        (0, Want::Comfort, true, 0),
    ];
    let budget = Budget::new(MIB);
    let mut half = budget.half(100);
    for (n, (asked, want, granted, used)) in steps.into_iter().enumerate() {
        assert_eq!(half.hold(asked, want), granted, "step {n}");
        assert_eq!(budget.used(), used, "step {n}");
    }
    assert!(half.hold(5000, Want::Need));
    drop(half);
    assert_eq!(budget.used(), 0);
}

#[test]
fn threads_together_never_pass_the_limit() {
    let budget = Budget::new(MIB);
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 1..=4 {
            let (budget, most) = (&budget, &most);
            scope.spawn(move || {
                let mut half = budget.half(0);
                for i in 0..2000 {
                    let _ = half.hold((i * 7919 * n) % MIB, Want::Need);
                    most.fetch_max(budget.used(), Ordering::Relaxed);
                }
            });
        }
    });
    let most = most.into_inner();
    assert!(most <= MIB && most > MIB / 2, "{most}");
    assert_eq!(budget.used(), 0);
}

#[test]
fn no_bound_and_the_least_bound() {
    let unbounded = Budget::default();
    let mut half = unbounded.half(0);
    assert!(half.hold(usize::MAX / 2, Want::Comfort));
    assert!(!unbounded.is_used_up());
    assert_eq!(Budget::new(0).limit(), LEAST);
    let usual = Budget::usual();
    assert!((LEAST..=USUAL).contains(&usual), "{usual}");
}

#[test]
fn a_table_that_has_emptied_is_small_again() {
    let mut table: HashMap<usize, usize> = (0..10_000).map(|n| (n, n)).collect();
    let large = table.capacity();
    for n in 0..9_999 {
        table.remove(&n);
        shrink(&mut table);
    }
    assert_eq!(table.len(), 1);
    assert!(table.capacity() <= 256, "{large} -> {}", table.capacity());
}
