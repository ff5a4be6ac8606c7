//! The service managers, and which of them is here.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;

/// What starts services, and keeps them running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Manager {
    /// systemd
    Systemd,
    /// OpenRC (Alpine, Gentoo)
    Openrc,
    /// procd (OpenWrt)
    Procd,
    /// SysV init scripts, also of Busybox
    Sysv,
    /// The service manager of Windows
    Windows,
    /// NSSM on Windows
    Nssm,
}

impl Manager {
    /// The one that runs this machine.
    #[must_use]
    pub fn detect() -> Option<Self> {
        if cfg!(windows) {
            return Some(Self::Windows);
        }
        Self::detect_under(Path::new("/"))
    }

    /// The most telling sign first: a machine with systemd has `/etc/init.d`, too.
    pub(crate) fn detect_under(root: &Path) -> Option<Self> {
        let is_there = |path: &str| root.join(path).exists();
        if is_there("run/systemd/system") {
            Some(Self::Systemd)
        } else if is_there("etc/openwrt_release") || is_there("sbin/procd") {
            Some(Self::Procd)
        } else if is_there("run/openrc") || is_there("sbin/openrc-run") {
            Some(Self::Openrc)
        } else if is_there("etc/init.d") {
            Some(Self::Sysv)
        } else {
            None
        }
    }

    /// The files that can make a service known to it: ours, then where a packager would put it. None on Windows.
    pub(crate) fn files(self, name: &str) -> Vec<String> {
        match self {
            Self::Systemd => ["/etc", "/usr/local/lib", "/usr/lib", "/lib"]
                .map(|folder| format!("{folder}/systemd/system/{name}.service"))
                .into(),
            Self::Openrc | Self::Procd | Self::Sysv => vec![format!("/etc/init.d/{name}")],
            Self::Windows | Self::Nssm => Vec::new(),
        }
    }

    /// Whether it can be on a system like this one at all.
    #[must_use]
    pub fn is_of_this_system(self) -> bool {
        self.is_of_windows() == cfg!(windows)
    }

    pub(super) fn is_of_windows(self) -> bool {
        matches!(self, Self::Windows | Self::Nssm)
    }

    /// Where the program keeps what it makes, unless told otherwise.
    pub(super) fn state_dir(self, name: &str) -> String {
        match self {
            // On OpenWrt /var is in memory.
            Self::Procd => format!("/etc/{name}"),
            Self::Windows | Self::Nssm => {
                let data = std::env::var("ProgramData");
                let data = data.unwrap_or_else(|_| r"C:\ProgramData".to_owned());
                format!(r"{data}\MiniTCPTunnel\{name}")
            }
            _ => format!("/var/lib/{name}"),
        }
    }

    /// The log file of a service whose output nobody keeps.
    pub(super) fn log_file(self, name: &str) -> Option<String> {
        match self {
            // The journal, logd.
            Self::Systemd | Self::Procd => None,
            Self::Openrc | Self::Sysv => Some(format!("/var/log/{name}/{name}.log")),
            Self::Windows | Self::Nssm => Some(format!(r"{}\{name}.log", self.state_dir(name))),
        }
    }

    /// Whom the program runs as, unless told otherwise.
    pub(super) fn user(self) -> &'static str {
        match self {
            Self::Windows | Self::Nssm => r"NT AUTHORITY\LocalService",
            _ => "minitcptunnel",
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Systemd => "systemd",
            Self::Openrc => "OpenRC",
            Self::Procd => "procd",
            Self::Sysv => "SysV init",
            Self::Windows => "the service manager of Windows",
            Self::Nssm => "NSSM",
        })
    }
}
