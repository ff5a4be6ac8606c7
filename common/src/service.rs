//! Running as a service: what each service manager is given, and how it is told.
//!
//! ```text
//!  command line ─> Wanted ─┬─ spec ──> Spec ──> systemd, scripts, windows    (texts and commands, nothing is touched)
//!                          └─ warnings            │
//!                                                 └─> Vec<Step> ── act ──> shown (--print), or done
//!  running program ─ notify ─> READY=1, STATUS=, WATCHDOG=1, STOPPING=1      (systemd)
//!                     └─ scm ─> Running, StopPending, Stopped                (native service of Windows)
//! ```

mod act;
mod command;
mod error;
mod manager;
pub mod notify;
#[cfg(windows)]
pub mod scm;
mod scripts;
mod spec;
mod steps;
mod systemd;
mod windows;

#[cfg(test)]
mod tests;

pub use command::{Command, Target, answer, run};
#[cfg(windows)]
pub(crate) use command::{Status, status_on_windows};
pub use error::ServiceError;
pub use manager::Manager;
pub use spec::{CONFIG, How, Role, Use, Wanted, is_low};
