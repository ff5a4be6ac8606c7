//! The allow list: the public keys the server admits, one a line.

use super::{PublicKey, PublicKeyError};
use crate::codes::{Code, Coded};
use crate::files::{self, Access, ReadError, WriteError};
use crate::resources;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{error, fmt};

/// Room for more than ten thousand clients with long names.
const MAX_ALLOW_LIST: u64 = 4 << 20;
/// How many bad lines one error shows; the rest are counted.
const SHOWN_BAD_LINES: usize = 20;

/// What a missing file is created with.
const TEMPLATE: &str = "\
# Public keys of the clients that may connect, one a line: 64 hex digits, then a name if you like.
# `minitcptunnel-client pubkey` prints a client's key. Everything after a # is a comment.
# Changes are noticed while the server runs.
#
# 5f1c...64 hex digits...9a02 home-server   # the machine under the stairs
";

/// One admitted client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its identity.
    pub key: PublicKey,
    /// What the owner calls it.
    pub name: Option<String>,
    /// The line it stands on, counted from 1.
    pub line: usize,
}

/// The public keys the server admits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    entries: Vec<Entry>,
    by_bytes: HashMap<[u8; 32], usize>,
    /// Harmless oddities, such as a key that stands there twice.
    pub warnings: Vec<String>,
}

impl AllowList {
    /// Reads the text of an allow list; every bad line is reported.
    pub fn parse(text: &str) -> Result<Self, Vec<BadLine>> {
        let mut list = Self::default();
        let mut bad = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let content = line.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            match parse_line(content) {
                Ok((key, name)) => list.add(Entry {
                    key,
                    name,
                    line: number,
                }),
                Err(why) => bad.push(BadLine { line: number, why }),
            }
        }
        if bad.is_empty() { Ok(list) } else { Err(bad) }
    }

    fn add(&mut self, entry: Entry) {
        if let Some(&first) = self.by_bytes.get(entry.key.as_bytes()) {
            self.warnings.push(format!(
                "line {}: the key {} stands on line {} already; this line is ignored",
                entry.line,
                entry.key.short(),
                self.entries[first].line
            ));
            return;
        }
        self.by_bytes
            .insert(*entry.key.as_bytes(), self.entries.len());
        self.entries.push(entry);
    }

    /// The entry of a key, if it is admitted.
    pub fn find(&self, key: &PublicKey) -> Option<&Entry> {
        self.find_bytes(key.as_bytes())
    }

    /// The entry of a key as it stands in a hello; cheaper than to check first that it is a key.
    pub fn find_bytes(&self, key: &[u8; 32]) -> Option<&Entry> {
        self.by_bytes.get(key).map(|&index| &self.entries[index])
    }

    /// Everybody, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many clients are admitted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is admitted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The key, then the name. The key may be written in groups, as the original accepts it.
fn parse_line(content: &str) -> Result<(PublicKey, Option<String>), BadLineReason> {
    let mut digits = 0;
    let mut end = 0;
    for word in content.split_whitespace() {
        // Each word is a slice of `content`, so its end is found by where it lies.
        let word_end = word.as_ptr() as usize - content.as_ptr() as usize + word.len();
        if digits > 0 && !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            break;
        }
        digits += word.chars().count();
        end = word_end;
        if digits >= 64 {
            break;
        }
    }
    let key = content[..end].parse().map_err(BadLineReason::Key)?;
    let name = content[end..].trim();
    if name.chars().any(|c| c.is_control() && c != '\t') {
        return Err(BadLineReason::Name);
    }
    Ok((key, (!name.is_empty()).then(|| name.to_owned())))
}

/// A line that is neither a comment nor a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: BadLineReason,
}

/// Why a line of the allow list is bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadLineReason {
    /// It does not begin with a public key.
    Key(PublicKeyError),
    /// The name holds control characters.
    Name,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            BadLineReason::Key(e) => write!(f, "line {}: not a public key: {e}", self.line),
            BadLineReason::Name => write!(
                f,
                "line {}: the name holds control characters; remove them",
                self.line
            ),
        }
    }
}

/// An allow list that cannot be used.
#[derive(Debug)]
pub enum AllowListError {
    /// There but unreadable.
    Read(ReadError),
    /// The commented empty file could not be created.
    Create(WriteError),
    /// Lines that are neither comments nor keys.
    BadLines {
        /// The file.
        path: PathBuf,
        /// All of them, in order.
        lines: Vec<BadLine>,
    },
}

impl Coded for AllowListError {
    fn code(&self) -> Code {
        match self {
            Self::Read(_) | Self::Create(_) => Code::ALLOW_LIST_UNUSABLE,
            Self::BadLines { .. } => Code::ALLOW_LIST_LINE,
        }
    }
}

impl fmt::Display for AllowListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "the allow list cannot be used: {e}"),
            Self::Create(e) => write!(f, "there is no allow list and none could be created: {e}"),
            Self::BadLines { path, lines } => {
                write!(
                    f,
                    "the allow list {} has bad lines; correct them or put a # before them:",
                    path.display()
                )?;
                for line in lines.iter().take(SHOWN_BAD_LINES) {
                    write!(f, "\n  {line}")?;
                }
                if lines.len() > SHOWN_BAD_LINES {
                    write!(f, "\n  and {} more", lines.len() - SHOWN_BAD_LINES)?;
                }
                Ok(())
            }
        }
    }
}

impl error::Error for AllowListError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Read(e) => Some(e),
            Self::Create(e) => Some(e),
            Self::BadLines { .. } => None,
        }
    }
}

/// An allow list that follows its file.
#[derive(Debug)]
pub struct AllowListFile {
    path: PathBuf,
    list: AllowList,
    /// The content behind `list`. Kept whole: it is small, and equality needs no argument.
    applied: Vec<u8>,
    /// What the last look saw, if that was something else.
    seen: Option<Sight>,
    reported: bool,
}

/// What a look at a changed file saw.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    Content(Vec<u8>),
    Unreadable,
}

/// What [`AllowListFile::reload_if_changed`] found.
#[derive(Debug)]
pub enum Reload {
    /// The same as before (or a bad content that was reported already).
    Unchanged,
    /// Something new, which the next look must confirm: an editor may be half-way through.
    Settling,
    /// A new list is in force.
    Changed {
        /// Keys that are admitted now and were not before.
        added: Vec<Entry>,
        /// Keys that are not admitted any more.
        removed: Vec<Entry>,
    },
    /// The new content cannot be used; the old list stays in force. Said once per bad content.
    Bad(AllowListError),
}

impl AllowListFile {
    /// Reads the file; creates it with an explanation if it is missing.
    pub fn load(path: &Path) -> Result<Self, AllowListError> {
        let applied = match files::read_small(path, MAX_ALLOW_LIST) {
            Err(ReadError::NotFound(_)) => {
                match files::create_exclusive(path, TEMPLATE.as_bytes(), Access::Shared) {
                    Err(e) if !e.already_exists() => return Err(AllowListError::Create(e)),
                    _ => {}
                }
                files::read_small(path, MAX_ALLOW_LIST).map_err(AllowListError::Read)?
            }
            other => other.map_err(AllowListError::Read)?,
        };
        let list = parse_bytes(path, &applied)?;
        Ok(Self {
            path: path.to_path_buf(),
            list,
            applied,
            seen: None,
            reported: false,
        })
    }

    /// The list in force.
    pub fn list(&self) -> &AllowList {
        &self.list
    }

    /// The file that is followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the file again; looks that follow each other should be about a second apart.
    ///
    /// A change comes into force when two looks in a row see the same new content. Editors that
    /// empty a file before they write it would otherwise revoke everybody for a moment, and
    /// revoking cuts connections.
    pub fn reload_if_changed(&mut self) -> Reload {
        let now = match files::read_small(&self.path, MAX_ALLOW_LIST) {
            Ok(content) if content == self.applied => {
                self.seen = None;
                return Reload::Unchanged;
            }
            // We have no descriptor left: that says nothing about the file.
            Err(ReadError::Io(_, e)) if resources::is_out_of_descriptors(&e) => {
                return Reload::Unchanged;
            }
            other => other,
        };
        let sight = now
            .as_ref()
            .map_or(Sight::Unreadable, |content| Sight::Content(content.clone()));
        if self.seen.as_ref() != Some(&sight) {
            self.seen = Some(sight);
            self.reported = false;
            return Reload::Settling;
        }
        if self.reported {
            return Reload::Unchanged;
        }
        let loaded = now
            .map_err(AllowListError::Read)
            .and_then(|content| parse_bytes(&self.path, &content).map(|list| (content, list)));
        match loaded {
            Ok((content, list)) => {
                let added = difference(&list, &self.list);
                let removed = difference(&self.list, &list);
                self.list = list;
                self.applied = content;
                self.seen = None;
                Reload::Changed { added, removed }
            }
            Err(e) => {
                self.reported = true;
                Reload::Bad(e)
            }
        }
    }
}

/// The entries of `these` whose keys are not in `those`.
fn difference(these: &AllowList, those: &AllowList) -> Vec<Entry> {
    these
        .entries
        .iter()
        .filter(|entry| those.find(&entry.key).is_none())
        .cloned()
        .collect()
}

/// Bytes that are not UTF-8 are fine in comments and names, and no hex digits elsewhere.
fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<AllowList, AllowListError> {
    AllowList::parse(&String::from_utf8_lossy(bytes)).map_err(|lines| AllowListError::BadLines {
        path: path.to_path_buf(),
        lines,
    })
}
