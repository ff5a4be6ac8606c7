//! Waiting for a condition, with a deadline and a name for what is waited for.

use std::fmt::{Arguments, Debug};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a thing that should happen at once may take on a machine that has other work.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Looks until `condition` gives something; panics with `what` when the deadline is over.
pub fn eventually<T>(within: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {within:?} in vain for: {what}"
        );
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Looks until `measure` has given the same value for `calm`; that value.
pub fn steady<T: PartialEq + Copy + Debug>(
    within: Duration,
    calm: Duration,
    what: &str,
    mut measure: impl FnMut() -> T,
) -> T {
    let mut last = measure();
    let mut since = Instant::now();
    eventually(within, &format!("{what} to come to rest"), || {
        let now = measure();
        if now != last {
            last = now;
            since = Instant::now();
        }
        (since.elapsed() >= calm).then_some(now)
    })
}

/// Whether the long versions were asked for (`MTT_FULL=1`).
pub fn full() -> bool {
    std::env::var_os("MTT_FULL").is_some_and(|v| v == "1")
}

/// Prints a figure that a test has measured; `cargo test -- --nocapture` shows them all.
#[allow(clippy::print_stdout, reason = "figures are what some tests are for")]
pub fn figure(name: &str, value: Arguments<'_>) {
    println!("FIGURE {name}: {value}");
}

static ALONE: Mutex<()> = Mutex::new(());

/// Held by tests that need the machine: they run one after the other.
pub fn alone() -> MutexGuard<'static, ()> {
    // A test that failed while holding it has said so itself.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
