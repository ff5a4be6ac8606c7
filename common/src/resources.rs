//! What the system lets this process have: open files, memory.
//!
//! A pair holds two descriptors in each program, so the soft limit of 1,024 that many systems
//! start with would be reached by 500 visitors. It is raised at start as far as allowed.

/// Raises the limit on open files as far as the system allows without privileges, and returns it.
/// `None` where there is no such limit (Windows).
pub fn raise_open_files() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // macOS refuses "unlimited" here; then what there is stays.
        let now = if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.maximum
        } else {
            limit.current
        };
        Some(now.unwrap_or(u64::MAX))
    }
    #[cfg(not(unix))]
    None
}

/// How many files this process may have open once the limit is raised. `None` where there is no such limit (Windows).
pub fn open_files_at_most() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit};
        Some(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))
    }
    #[cfg(not(unix))]
    None
}

/// The system's memory in bytes. `None` where it is not told as on Linux.
pub fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Whether the process or the system has no descriptor left.
pub fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    // EMFILE 24 and ENFILE 23 on every Unix; WSAEMFILE 10024 on Windows.
    matches!(error.raw_os_error(), Some(23 | 24 | 10024))
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn the_limit_is_raised_to_the_hard_one() {
        use rustix::process::{Resource, getrlimit};
        let limit = super::raise_open_files();
        assert_eq!(
            limit,
            Some(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))
        );
        assert_eq!(
            getrlimit(Resource::Nofile).current,
            getrlimit(Resource::Nofile).maximum
        );
    }
}
