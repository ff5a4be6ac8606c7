//! Certificates in service: files that are followed, and what there is to say about them.
//!
//! ```text
//!   load ─> warnings, ends ─ look ─┬─ nothing new ─> the ends that are due
//!                                  ├─ new ─────────> said, with the warnings, and all ends again
//!                                  └─ of no use ───> said once
//! ```

use super::expiry::{ExpiryWatch, Validity};
use super::load::LoadError;
use super::reload::{Current, Follower, Look, Reloadable};
use crate::codes::Code;
use log::Level;
use rustls::pki_types::UnixTime;

/// What is built from certificates, and so can say something about them.
pub trait Certified: Reloadable {
    /// What the files hold, in the plural, for the line that says that they are new.
    const HELD: &'static str;

    /// What should be said about the files.
    fn warnings(&self) -> &[String];

    /// When the certificates end.
    fn validities(&self) -> &[Validity];
}

/// See the module head.
pub struct Watched<T: Certified> {
    follower: Follower<T>,
    expiry: ExpiryWatch,
}

/// What a look has found.
#[derive(Debug)]
pub struct News {
    /// New files are in force.
    pub changed: bool,
    /// What to say, in this order.
    pub lines: Vec<(Level, String)>,
}

impl<T: Certified> Watched<T> {
    /// Builds from the files for the first time.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn load(settings: T::Settings) -> Result<Self, LoadError> {
        Ok(Self {
            follower: Follower::load(settings)?,
            expiry: ExpiryWatch::default(),
        })
    }

    /// What is in force, for those who begin connections.
    #[must_use]
    pub fn current(&self) -> Current<T> {
        self.follower.current()
    }

    /// What should be said about the files.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.current().get().warnings().to_vec()
    }

    /// Which certificates are about to end, or are not good now ([`Code::CERT_ENDS`]); each is said once a day.
    pub fn ends(&mut self, now: UnixTime) -> Vec<String> {
        let current = self.current().get();
        let ends = self.expiry.due(current.validities(), now);
        ends.iter().map(ToString::to_string).collect()
    }

    /// Looks at the files; looks that follow each other should be about a second apart.
    pub fn look(&mut self, now: UnixTime) -> News {
        let mut lines = Vec::new();
        let look = self.follower.look();
        let changed = matches!(look, Look::Changed);
        match look {
            Look::Unchanged | Look::Settling => {}
            Look::Changed => {
                let news = format!("new {} are in force; running connections go on", T::HELD);
                lines.push((Level::Info, news));
                self.expiry.again();
                let code = Code::CERT_ODD;
                let odd = self.warnings().into_iter();
                lines.extend(odd.map(|it| (Level::Warn, format!("{it} code={code}"))));
            }
            Look::Bad(e) => {
                let code = Code::OLD_FILE_STAYS;
                let line = format!("{e}. The old files stay in force code={code}");
                lines.push((Level::Error, line));
            }
        }
        let ends = self.ends(now).into_iter();
        let code = Code::CERT_ENDS;
        lines.extend(ends.map(|it| (Level::Warn, format!("{it} code={code}"))));
        News { changed, lines }
    }
}
