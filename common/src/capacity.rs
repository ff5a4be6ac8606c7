//! How many connections a program can carry, and what bounds them.

use std::fmt;

use crate::budget::Budget;
use crate::config::Count;

/// What comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bound {
    /// What is configured.
    Setting,
    /// So many descriptors.
    OpenFiles(u64),
    /// The budget of so many bytes.
    Memory(usize),
}

/// How many pairs there may be, and why not more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// How many.
    pub pairs: usize,
    bound: Bound,
}

impl Capacity {
    /// The least of what `limits.pairs` says, of what fits into the memory, and of half the descriptors that
    /// are not `kept` for anything else; `None` is no bound.
    pub fn new(setting: usize, descriptors: Option<u64>, kept: usize, budget: &Budget) -> Self {
        let files = descriptors.map(|all| {
            let all_usize = usize::try_from(all).unwrap_or(usize::MAX);
            (
                (all_usize.saturating_sub(kept) / 2).max(1),
                Bound::OpenFiles(all),
            )
        });
        let (pairs, bound) = [
            Some((setting, Bound::Setting)),
            files,
            Some((budget.pairs(), Bound::Memory(budget.limit()))),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(pairs, _)| *pairs)
        .expect("the first is always there");
        Self { pairs, bound }
    }

    /// Whether the system allows fewer than somebody has asked for.
    pub fn falls_short_of(&self, setting: usize) -> bool {
        setting != Count::MOST && self.bound != Bound::Setting
    }
}

impl fmt::Display for Capacity {
    /// `N connections at a time, bounded by ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections at a time, bounded by ", self.pairs)?;
        match self.bound {
            Bound::Setting => f.write_str("limits.pairs"),
            Bound::OpenFiles(all) => write!(
                f,
                "the {all} open files that the system allows (raise that with `ulimit -n` or LimitNOFILE)"
            ),
            Bound::Memory(limit) => {
                write!(f, "memory_budget ({} MiB)", limit / (1024 * 1024))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bound_is_named() {
        let large = Budget::default();
        let small = Budget::new(2 * 1024 * 1024);
        let fits = small.pairs();
        let cases = [
            (5, Some(20_000), 100, &large, 5, "bounded by limits.pairs"),
            (
                Count::MOST,
                Some(20_000),
                1000,
                &large,
                9500,
                "20000 open files",
            ),
            (
                Count::MOST,
                Some(20_000),
                100,
                &small,
                fits,
                "memory_budget (2 MiB)",
            ),
            (Count::MOST, None, 100, &large, Count::MOST, "limits.pairs"),
            (9, Some(10), 100, &large, 1, "10 open files"),
        ];
        for (setting, files, kept, budget, pairs, said) in cases {
            let capacity = Capacity::new(setting, files, kept, budget);
            assert_eq!(capacity.pairs, pairs);
            assert!(capacity.to_string().contains(said), "{capacity}");
        }
        assert!(Capacity::new(50, Some(20), 0, &large).falls_short_of(50));
        assert!(!Capacity::new(Count::MOST, Some(20), 0, &large).falls_short_of(Count::MOST));
    }
}
