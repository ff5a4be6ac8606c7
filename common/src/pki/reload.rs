//! Certificates that follow their files.
//!
//! ```text
//!   look ── same as in force ───────────────────────────────> Unchanged
//!     │ different
//!     ├─ first sight of it ─────────────────────────────────> Settling   an editor, or a copy of
//!     │ same again                                                       several files, may be half-way
//!     ├─ builds ──> swapped ────────────────────────────────> Changed
//!     └─ does not ──> the old one stays ── once ────────────> Bad
//! ```
//!
//! Contents are compared, not times or inode numbers: that works in containers, over network
//! shares, with links that are swapped, and on Windows.
//!
//! A swap touches no connection: each holds the configuration it was begun with. New handshakes
//! take the new one, and with it new ticket keys and session stores, so that no session begun under
//! the old files is resumed.

use super::load::{Contents, LoadError};
use crate::files::ReadError;
use crate::resources;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// Something that is built from files and built again when they change.
pub trait Reloadable: Sized {
    /// What names the files, and all else that matters.
    type Settings: Clone;

    /// The files.
    fn files(settings: &Self::Settings) -> Vec<PathBuf>;

    /// Builds it from what was read, looking at no other file's content.
    ///
    /// # Errors
    /// If a file cannot be used.
    fn build(settings: &Self::Settings, contents: &Contents) -> Result<Self, LoadError>;
}

/// What is in force now. Cheap to clone and to ask; shared by whoever begins connections.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Current<T> {
    fn new(first: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(first))))
    }

    /// What is in force now. Take it once per connection, so that one connection has one truth.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        // Nothing is half-done under this lock: a panic elsewhere leaves it good.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, next: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// What [`Follower::look`] found.
#[derive(Debug)]
pub enum Look {
    /// The same as before, or a bad content that was reported already.
    Unchanged,
    /// Something new, which the next look must confirm.
    Settling,
    /// The new content is in force.
    Changed,
    /// The new content cannot be used; the old one stays in force. Said once per bad content.
    Bad(LoadError),
}

/// Looks at files again and again, and swaps what is built from them.
#[derive(Debug)]
pub struct Follower<T: Reloadable> {
    settings: T::Settings,
    current: Current<T>,
    /// The contents behind what is in force.
    applied: Contents,
    /// What the last look saw, if that was something else.
    seen: Option<Contents>,
    reported: bool,
}

impl<T: Reloadable> Follower<T> {
    /// Builds from the files for the first time.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn load(settings: T::Settings) -> Result<Self, LoadError> {
        let applied = Contents::read(&T::files(&settings));
        let current = Current::new(T::build(&settings, &applied)?);
        Ok(Self {
            settings,
            current,
            applied,
            seen: None,
            reported: false,
        })
    }

    /// What is in force, for those who begin connections.
    #[must_use]
    pub fn current(&self) -> Current<T> {
        self.current.clone()
    }

    /// Takes new settings, such as an allow list from a configuration that was read again.
    ///
    /// # Errors
    /// If they cannot be used; the old ones stay in force.
    pub fn set(&mut self, settings: T::Settings) -> Result<(), LoadError> {
        let contents = Contents::read(&T::files(&settings));
        self.current.set(T::build(&settings, &contents)?);
        self.settings = settings;
        self.applied = contents;
        self.seen = None;
        Ok(())
    }

    /// Looks at the files; looks that follow each other should be about a second apart.
    pub fn look(&mut self) -> Look {
        let now = Contents::read(&T::files(&self.settings));
        if now == self.applied {
            self.seen = None;
            return Look::Unchanged;
        }
        if let Some(ReadError::Io(_, e)) = now.first_error()
            && resources::is_out_of_descriptors(e)
        {
            // We have no descriptor left: that says nothing about the files.
            return Look::Unchanged;
        }
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            self.reported = false;
            return Look::Settling;
        }
        if self.reported {
            return Look::Unchanged;
        }
        match T::build(&self.settings, &now) {
            Ok(next) => {
                self.current.set(next);
                self.applied = now;
                self.seen = None;
                Look::Changed
            }
            Err(e) => {
                self.reported = true;
                Look::Bad(e)
            }
        }
    }
}
