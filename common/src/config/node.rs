//! The tree between a configuration text and the typed raw tier.

use std::collections::HashMap;
use std::ops::Range;
use zeroize::Zeroizing;

/// Where something stands; both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Option<Place>,
    /// The bytes of the value in the text. `None` where a YAML alias or merge brought it here.
    pub(super) span: Option<Range<usize>>,
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Option<Place>,
    pub(super) span: Option<Range<usize>>,
}

/// Two nodes are compared with this, without places: what they mean, not where they stand.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    /// Wiped when dropped: it may be a key.
    Text(Zeroizing<String>),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl Value {
    /// Whether both mean the same; mappings in the same order.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.value.same(&b.value))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .zip(b)
                        .all(|((ka, a), (kb, b))| ka.name == kb.name && a.value.same(&b.value))
            }
            _ => false,
        }
    }
}

impl Node {
    /// Notes where every key below this node stands, under its full path.
    pub(super) fn collect_places(&self, path: &mut String, places: &mut HashMap<String, Place>) {
        if let Some(place) = self.place {
            // A key's own place, put there by its mapping, is better than its value's.
            places.entry(path.clone()).or_insert(place);
        }
        let length = path.len();
        match &self.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    item.collect_places(path, places);
                    path.truncate(length);
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    push_key(path, &key.name);
                    if let Some(place) = key.place {
                        places.insert(path.clone(), place);
                    }
                    value.collect_places(path, places);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }
}

/// Appends a key to a path: `a` + `b` = `a.b`. What a terminal could misread is escaped.
pub(super) fn push_key(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.extend(name.escape_debug());
}

/// Finds keys that stand twice in one mapping.
pub(super) struct Seen(HashMap<String, Option<Place>>);

impl Seen {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Notes a key; the message if it was there already.
    pub(super) fn note(&mut self, key: &Key) -> Result<(), String> {
        match self.0.insert(key.name.clone(), key.place) {
            None => Ok(()),
            Some(first) => {
                let first = first
                    .map(|p| format!(" (first on line {})", p.line))
                    .unwrap_or_default();
                Err(format!(
                    "the key `{}` appears twice{first}; only one can be meant, remove the other",
                    key.name.escape_debug()
                ))
            }
        }
    }
}
