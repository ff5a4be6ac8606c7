//! The machine: its clock, its limits, who starts the program.

#[cfg(any(not(windows), test))]
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Finding;
use crate::capacity::Capacity;
use crate::codes::Code;
use crate::pki::date;
use crate::resources;
#[cfg(any(not(windows), test))]
use crate::service::Manager;

const DAY: u64 = 24 * 60 * 60;
/// A clock before this program was written is wrong: 2026-01-01, in days since 1970.
const WRITTEN: u64 = 20_454;
/// So is one far behind its life: 2060-01-01.
const FORGOTTEN: u64 = 32_872;

/// Threads that a program needs at rest and with a little traffic.
const THREADS: u64 = 64;
/// And with much.
const MANY_THREADS: u64 = 512;

/// Whether the clock can be right. No peer of ours tells the time, so only the calendar is asked; certificates have
/// their own say where there are any.
#[must_use]
pub fn clock(now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let Ok(since) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return Finding::warning(CHECK, Code::CLOCK_WRONG, "it stands before 1970");
    };
    let (day, seconds) = (date(since.as_secs()), since.as_secs());
    if seconds < WRITTEN * DAY {
        let what = format!("it says {day}, which is before this program was written");
        Finding::warning(CHECK, Code::CLOCK_WRONG, what)
    } else if seconds > FORGOTTEN * DAY {
        let what = format!("it says {day}, which is far in the future");
        Finding::warning(CHECK, Code::CLOCK_WRONG, what)
    } else {
        let what = format!(
            "it says {day}, {:02}:{:02} UTC; no peer tells the time, so look whether that is so",
            seconds / 3600 % 24,
            seconds / 60 % 60
        );
        Finding::ok(CHECK, what)
    }
}

/// Whether there are descriptors for the connections that are wanted; a running connection holds two.
#[must_use]
pub fn descriptors(capacity: Capacity, setting: usize) -> Finding {
    const CHECK: &str = "descriptors";
    /// Fewer than these is a limit that nobody has chosen for a tunnel.
    const FEW: u64 = 4096;
    let files = resources::open_files_at_most();
    let what = match files {
        Some(files) => format!("up to {files} open files: room for {capacity}"),
        None => format!("no limit on open files: room for {capacity}"),
    };
    let cure = "LimitNOFILE=65536 in the unit, or `ulimit -Hn 65536` in what starts the program";
    if capacity.falls_short_of(setting) {
        let what = format!("{what}; limits.pairs = {setting} asks for more");
        Finding::warning(CHECK, Code::FEWER_CONNECTIONS, what).cure(cure)
    } else if files.is_some_and(|files| files < FEW) {
        Finding::note(CHECK, Code::FEWER_CONNECTIONS, what).cure(cure)
    } else {
        Finding::ok(CHECK, what)
    }
}

/// Whether there are threads: one for each direction that is moving data.
#[must_use]
pub fn threads() -> Finding {
    threads_left(resources::threads_left())
}

fn threads_left(left: Option<u64>) -> Finding {
    const CHECK: &str = "threads";
    let Some(left) = left else {
        return Finding::ok(CHECK, "no limit is known");
    };
    let what = format!("{left} more can be started; each direction that moves data takes one");
    let cure = "TasksMax=16384 in the unit, `ulimit -u` higher, or pids.max of the container";
    if left < THREADS {
        Finding::error(CHECK, Code::FEW_THREADS, what).cure(cure)
    } else if left < MANY_THREADS {
        Finding::warning(CHECK, Code::FEW_THREADS, what).cure(cure)
    } else {
        Finding::ok(CHECK, what)
    }
}

/// Whether what connections may hold is there.
#[must_use]
pub fn memory(budget: usize) -> Finding {
    memory_of(budget, resources::memory(), resources::memory_available())
}

fn memory_of(budget: usize, all: Option<u64>, available: Option<u64>) -> Finding {
    const CHECK: &str = "memory";
    const MIB: u64 = 1024 * 1024;
    let budget = u64::try_from(budget).unwrap_or(u64::MAX);
    let Some(all) = all else {
        return Finding::ok(
            CHECK,
            format!(
                "memory_budget is {} MiB; the system's is unknown",
                budget / MIB
            ),
        );
    };
    let free = available.unwrap_or(all);
    let what = format!(
        "memory_budget is {} MiB of {} MiB, of which {} MiB are free",
        budget / MIB,
        all / MIB,
        free / MIB
    );
    if budget > all {
        Finding::warning(CHECK, Code::LITTLE_MEMORY, what)
    } else if budget > free {
        Finding::note(CHECK, Code::LITTLE_MEMORY, what)
    } else {
        Finding::ok(CHECK, what)
    }
}

/// Who starts programs here, and whether it knows ours, by the name that `service install` gives it.
#[must_use]
pub fn service(program: &str) -> Finding {
    #[cfg(windows)]
    return service_on_windows(program);
    #[cfg(not(windows))]
    service_in(Path::new("/"), program)
}

#[cfg(windows)]
fn service_on_windows(program: &str) -> Finding {
    const CHECK: &str = "service";
    use crate::service::Status;
    match crate::service::status_on_windows(program) {
        Ok(Status::Fine) => Finding::ok(CHECK, format!("Windows has {program}, and it runs")),
        Ok(Status::Stopped) => Finding::note(
            CHECK,
            None,
            format!("Windows has {program}, but it does not run"),
        ),
        Ok(Status::NotInstalled) => Finding::note(
            CHECK,
            Code::NOT_A_SERVICE,
            format!("Windows has no service {program}; one of another name is not looked for"),
        ),
        Err(e) => Finding::note(CHECK, None, e.to_string()),
    }
}

#[cfg(any(not(windows), test))]
fn service_in(root: &Path, program: &str) -> Finding {
    const CHECK: &str = "service";
    let Some(manager) = Manager::detect_under(root) else {
        let what =
            "no service manager is seen, as in a container; whoever starts the program restarts it";
        return Finding::note(CHECK, Code::NOT_A_SERVICE, what);
    };
    let found = (manager.files(program).iter())
        .map(|file| root.join(file.trim_start_matches('/')))
        .find(|file| file.exists());
    match found {
        Some(file) => Finding::ok(CHECK, format!("{manager} has it: {}", file.display())),
        None => Finding::note(
            CHECK,
            Code::NOT_A_SERVICE,
            format!("{manager} is there, but has no {program} of its own"),
        ),
    }
}

/// A time for people: `0.4 ms`, `120 ms`, `2.1 s`.
#[must_use]
pub fn short(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// The same for programs, in milliseconds.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::scratch::Scratch;
    use std::fs;

    #[test]
    fn a_clock_is_held_against_the_calendar() {
        let at = |day: u64| clock(SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY));
        for (day, level) in [
            (0, Level::Warning),
            (WRITTEN - 1, Level::Warning),
            (WRITTEN, Level::Ok),
            (FORGOTTEN + 1, Level::Warning),
        ] {
            assert_eq!(at(day).level, level, "{:?}", at(day));
        }
        assert!(
            at(WRITTEN).what.contains("2026-01-01, 00:00 UTC"),
            "{:?}",
            at(WRITTEN)
        );
        assert!(at(FORGOTTEN + 1).what.contains("2060-01-02"));
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(clock(before).level, Level::Warning);
        assert_eq!(clock(SystemTime::now()).level, Level::Ok, "this machine's");
    }

    #[test]
    fn limits_are_judged_by_what_is_left() {
        let threads = [Some(10), Some(100), Some(5000), None].map(|left| threads_left(left).level);
        assert_eq!(
            threads,
            [Level::Error, Level::Warning, Level::Ok, Level::Ok]
        );
        assert_eq!(threads_left(Some(10)).code.and_then(Code::exit_code), None);
        let memory = [
            (100, Some(50), Some(40)),
            (100, Some(200), Some(40)),
            (100, Some(200), Some(150)),
            (100, None, None),
        ]
        .map(|(budget, all, free)| memory_of(budget, all, free).level);
        assert_eq!(memory, [Level::Warning, Level::Note, Level::Ok, Level::Ok]);
    }

    #[test]
    fn the_service_manager_is_known_by_its_signs() {
        let scratch = Scratch::new();
        let root = scratch.path();
        let look = || service_in(root, "minitcptunnel-server");
        assert_eq!(look().code, Some(Code::NOT_A_SERVICE));
        fs::create_dir_all(root.join("etc/init.d")).unwrap();
        assert!(
            look().what.starts_with("SysV init is there"),
            "{:?}",
            look()
        );
        fs::write(root.join("etc/init.d/minitcptunnel-server"), "").unwrap();
        assert!(look().what.starts_with("SysV init has it"), "{:?}", look());
        fs::create_dir_all(root.join("run/systemd/system")).unwrap();
        assert_eq!(look().level, Level::Note, "systemd knows no init.d of ours");
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        fs::write(
            root.join("etc/systemd/system/minitcptunnel-server.service"),
            "",
        )
        .unwrap();
        assert!(look().what.starts_with("systemd has it"), "{:?}", look());
        assert_eq!(look().level, Level::Ok);
    }

    #[cfg(windows)]
    #[test]
    fn windows_is_asked_for_the_service() {
        let found = service("minitcptunnel-nobody");
        assert_eq!(found.code, Some(Code::NOT_A_SERVICE), "{found:?}");
        // One that every Windows has, and wine too.
        let found = service("eventlog");
        assert!(found.what.contains("Windows has eventlog"), "{found:?}");
        assert_eq!(found.code, None, "{found:?}");
    }

    #[test]
    fn times_are_short() {
        let said = [300, 25_000, 2_140_000].map(|us| short(Duration::from_micros(us)));
        assert_eq!(said, ["0.3 ms", "25 ms", "2.1 s"]);
        assert_eq!(milliseconds(Duration::from_micros(1234)), 1.234);
    }
}
