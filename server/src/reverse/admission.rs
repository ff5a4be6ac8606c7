//! The allow list while the server runs: who was added, who was taken out.
//!
//! ```text
//!  a hello has come ──┐
//!  every 10 s while ──┴─> look ─┬─ the same ───────────────> nothing
//!  anybody is here              ├─ new ─ again after 1 s ──> in force; removed keys are cut
//!                               └─ unusable ───────────────> the old one stays, said once
//! ```

use std::time::Duration;

use minitcptunnel_common::codes::Code;
use minitcptunnel_common::identity::{PublicKey, Reload};
use minitcptunnel_common::wire::message::Reason;

use super::event_loop::{EventLoop, Timer, owner_of};

/// How soon a changed allow list is looked at for the second time, and the least between two looks.
const ALLOW_LIST_SETTLES: Duration = Duration::from_secs(1);
/// How often it is looked at while clients are connected: a removed key is cut within this and a
/// moment.
const ALLOW_LIST_WATCH: Duration = Duration::from_secs(10);

impl EventLoop {
    /// Arranges regular looks at the allow list while there is somebody whom it could concern, and
    /// none otherwise: a server without clients sleeps.
    pub(super) fn watch_allow_list(&mut self) {
        let idle = self.sessions.is_empty() && self.pool.live() == 0;
        if self.allow_list_due.is_none() && !idle {
            let due = self.now + ALLOW_LIST_WATCH;
            self.allow_list_due = Some(self.deadlines.add(due, Timer::AllowList));
        }
    }

    /// Looks whether the allow list has changed: regularly, and when a hello has come, but not more
    /// often than it takes a file to settle.
    pub(super) fn look_at_allow_list(&mut self) {
        if self.now < self.allow_list_rest {
            return;
        }
        self.allow_list_rest = self.now + ALLOW_LIST_SETTLES;
        match self.allow.reload_if_changed() {
            Reload::Unchanged => {}
            Reload::Settling => {
                if let Some(later) = self.allow_list_due.take() {
                    self.deadlines.cancel(later);
                }
                let due = self.allow_list_rest;
                self.allow_list_due = Some(self.deadlines.add(due, Timer::AllowList));
            }
            Reload::Changed { added, removed } => {
                log::info!(
                    "allow list changed: added={} removed={}",
                    added.len(),
                    removed.len()
                );
                for entry in added {
                    log::info!("-> Whitelisted Key: {}", entry.key.short());
                }
                for entry in removed {
                    log::info!("-> Removed Key: {}", entry.key.short());
                    self.revoke(&entry.key);
                }
            }
            Reload::Bad(e) => log::error!(
                "the allow list has changed and cannot be used, the old one stays in force: {e} code={}",
                Code::OLD_FILE_STAYS
            ),
        }
    }

    /// Ends everything of an identity that is not admitted any more.
    fn revoke(&mut self, key: &PublicKey) {
        if let Some(session) = self.sessions.of_identity(key.as_bytes()) {
            self.end_session(
                session,
                Some((
                    Reason::NotAdmitted,
                    "this client's key was removed from the allow list",
                )),
                "its key was revoked",
            );
        }
        for token in self.sessions.fresh_of(key.as_bytes()) {
            self.drop_entry(token);
        }
        let cut = self.pool.abort_owner(owner_of(key.as_bytes()));
        if cut > 0 {
            log::info!(
                "cut {cut} running connections of the revoked key {}",
                key.short()
            );
        }
    }
}
