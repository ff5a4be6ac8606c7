//! What the system lets this process have: open files, memory.
//!
//! A pair holds two descriptors in each program, so the soft limit of 1,024 that many systems
//! start with would be reached by 500 visitors. It is raised at start as far as allowed.

use std::path::{Path, PathBuf};

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

/// The memory that this process may use, in bytes: the system's, or its control group's or its limit of addresses
/// (`ulimit -v`) where that is less. `None` where it is not told as on Linux.
pub fn memory() -> Option<u64> {
    [system_memory(), group_memory(), address_space()]
        .into_iter()
        .flatten()
        .min()
}

/// What `ulimit -v` leaves.
fn address_space() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit};
        getrlimit(Resource::As).current
    }
    #[cfg(not(unix))]
    None
}

/// The least `memory.max` (or, with version 1, `memory.limit_in_bytes`) of this process's control group
/// and those above it. A container sees its own as the root.
fn group_memory() -> Option<u64> {
    let limits = group_folders("memory").into_iter().filter_map(|group| {
        // "max" is no number, and no limit.
        number(&group.join("memory.max")).or_else(|| number(&group.join("memory.limit_in_bytes")))
    });
    // Version 1 writes "no limit" as a number that no machine has.
    limits.filter(|limit| *limit < 1 << 62).min()
}

fn system_memory() -> Option<u64> {
    meminfo("MemTotal:")
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory that is free now, in bytes, without what the system can do without. `None` where it is not told as on
/// Linux.
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// How many more threads this user and this control group may have, as far as that is told (Linux).
pub fn threads_left() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let system = number(Path::new("/proc/sys/kernel/threads-max"));
        [user_threads(), group_threads(), system]
            .into_iter()
            .flatten()
            .min()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    None
}

/// What `ulimit -u` leaves. The system does not hold root to it; what other programs of this user have is not known.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn user_threads() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, getuid};
    getrlimit(Resource::Nproc)
        .current
        .filter(|_| !getuid().is_root())
}

/// What the control groups leave: `pids.max` less `pids.current`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn group_threads() -> Option<u64> {
    let left = |group: PathBuf| {
        let max = number(&group.join("pids.max"))?;
        Some(max.saturating_sub(number(&group.join("pids.current")).unwrap_or(0)))
    };
    group_folders("pids").into_iter().filter_map(left).min()
}

/// Where the control group of this process and those above it lie, as far as they may bound what this controller
/// counts: a line of `/proc/self/cgroup` is `0::/path` (version 2) or `4:memory:/path`.
fn group_folders(controller: &str) -> Vec<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let folders = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let root = Path::new("/sys/fs/cgroup");
        let root = match controllers {
            "" => root.to_path_buf(),
            names if names.split(',').any(|name| name == controller) => root.join(controller),
            _ => return None,
        };
        let groups = Path::new(path).ancestors();
        let groups = groups.filter_map(|group| group.strip_prefix("/").ok());
        Some(groups.map(move |group| root.join(group)))
    });
    folders.flatten().collect()
}

/// What a file says, if it says a number.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
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
