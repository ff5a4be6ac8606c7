//! Puts one text value into a configuration without touching anything else in it.
//!
//! The text is not written anew but cut and joined, so that order, comments and odd formatting
//! stay. The result is read again and compared before anybody gets to save it.

use super::node::{Key, Node, Value};
use super::{Format, SyntaxError};
use std::{error, fmt};
use zeroize::Zeroizing;

/// Why a value could not be put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditError {
    /// The text could not be read in the first place.
    Unreadable(String),
    /// The key has a value already.
    Present,
    /// No way was found that leaves the rest as it is.
    NoWay,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(message) => f.write_str(message),
            Self::Present => f.write_str("the key has a value already, which is never replaced"),
            Self::NoWay => f.write_str("the file is written in a way that a new key cannot be added to safely; add it by hand"),
        }
    }
}

impl error::Error for EditError {}

impl From<SyntaxError> for EditError {
    fn from(e: SyntaxError) -> Self {
        Self::Unreadable(e.message)
    }
}

/// Gives the top-level key `key` the text `value`. A missing key goes behind the key `after` if
/// there is one; a key whose value is null or an empty text gets the new one in its place.
///
/// `key` and `value` must be plain ASCII without quotes or backslashes, as names and hex are.
pub fn insert_text(
    format: Format,
    text: &str,
    key: &str,
    value: &str,
    after: &str,
) -> Result<Zeroizing<String>, EditError> {
    let mark = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let (mark, text) = text.split_at(mark);
    let old = format.parse(text)?;
    let Value::Map(entries) = &old.value else {
        return Err(EditError::NoWay);
    };

    let present = entries.iter().find(|(k, _)| k.name == key);
    let quoted = format!("\"{value}\"");
    let candidates = match present {
        Some((k, node)) => match &node.value {
            Value::Null => replacements(format, text, k, node, &quoted),
            Value::Text(t) if t.trim().is_empty() => replacements(format, text, k, node, &quoted),
            _ => return Err(EditError::Present),
        },
        None => insertions(format, text, &old, entries, key, &quoted, after),
    };
    for cut in candidates {
        let mut new = Zeroizing::new(String::with_capacity(text.len() + cut.text.len()));
        new.push_str(&text[..cut.start]);
        new.push_str(&cut.text);
        new.push_str(&text[cut.end..]);
        if format
            .parse(&new)
            .is_ok_and(|new| only_added(&old, &new, key, value))
        {
            new.insert_str(0, mark);
            return Ok(new);
        }
    }
    Err(EditError::NoWay)
}

/// `start..end` of the old text makes room for `text`.
struct Cut {
    start: usize,
    end: usize,
    text: Zeroizing<String>,
}

impl Cut {
    fn new(start: usize, end: usize, text: String) -> Self {
        Self {
            start,
            end,
            text: Zeroizing::new(text),
        }
    }
}

fn replacements(format: Format, text: &str, key: &Key, node: &Node, quoted: &str) -> Vec<Cut> {
    let mut cuts = Vec::new();
    if let Some(span) = node
        .span
        .clone()
        .filter(|span| span.end <= text.len() && !span.is_empty())
    {
        cuts.push(Cut::new(span.start, span.end, quoted.to_owned()));
    }
    // YAML's null may be nothing at all: `key:`.
    if format == Format::Yaml
        && let Some(span) = &key.span
        && let Some(colon) = text.get(span.end..).and_then(|rest| rest.find(':'))
    {
        let behind = span.end + colon + 1;
        cuts.push(Cut::new(behind, behind, format!(" {quoted}")));
    }
    cuts
}

/// Where the new entry could go, best first. The caller tries them in turn.
fn insertions(
    format: Format,
    text: &str,
    root: &Node,
    entries: &[(Key, Node)],
    key: &str,
    quoted: &str,
    after: &str,
) -> Vec<Cut> {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut cuts = Vec::new();
    let anchor = entries
        .iter()
        .find(|(k, _)| k.name == after)
        .or(entries.last());

    if format == Format::Yaml {
        // Block style: a line of its own, first behind the anchor's line, else before all.
        let anchors = [
            anchor.map(|(k, n)| (k, n, true)),
            entries.first().map(|(k, n)| (k, n, false)),
        ];
        for (k, node, behind) in anchors.into_iter().flatten() {
            let (Some(key_span), Some(indent)) = (
                &k.span,
                k.span.as_ref().and_then(|s| indent_of(text, s.start)),
            ) else {
                continue;
            };
            if behind {
                let end = node
                    .span
                    .as_ref()
                    .map_or(key_span.end, |s| s.end)
                    .max(key_span.end);
                match text.get(end..).map(|rest| rest.find('\n')) {
                    Some(Some(line_end)) => {
                        let at = end + line_end + 1;
                        cuts.push(Cut::new(
                            at,
                            at,
                            format!("{indent}{key}: {quoted}{newline}"),
                        ));
                    }
                    Some(None) => {
                        cuts.push(Cut::new(
                            text.len(),
                            text.len(),
                            format!("{newline}{indent}{key}: {quoted}{newline}"),
                        ));
                    }
                    None => {}
                }
            } else {
                let at = key_span.start - indent.len();
                cuts.push(Cut::new(
                    at,
                    at,
                    format!("{indent}{key}: {quoted}{newline}"),
                ));
            }
        }
        if entries.is_empty() {
            let gap = if text.is_empty() || text.ends_with('\n') {
                ""
            } else {
                newline
            };
            cuts.push(Cut::new(
                text.len(),
                text.len(),
                format!("{gap}{key}: {quoted}{newline}"),
            ));
        }
    }

    // JSON, and YAML that is written like JSON.
    if let Some((k, node)) = anchor
        && let (Some(key_span), Some(value_span)) = (&k.span, &node.span)
    {
        let gap = match indent_of(text, key_span.start) {
            Some(indent) => format!("{newline}{indent}"),
            None => " ".to_owned(),
        };
        cuts.push(Cut::new(
            value_span.end,
            value_span.end,
            format!(",{gap}\"{key}\": {quoted}"),
        ));
    }
    if entries.is_empty()
        && let Some(brace) = root.span.as_ref().map(|span| span.start)
    {
        cuts.push(Cut::new(
            brace + 1,
            brace + 1,
            format!("\"{key}\": {quoted}"),
        ));
    }
    cuts.retain(|cut| text.is_char_boundary(cut.start) && text.is_char_boundary(cut.end));
    cuts
}

/// The white space before `at`, if there is nothing else on its line.
fn indent_of(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?;
    let line = &before[before.rfind('\n').map_or(0, |i| i + 1)..];
    line.bytes()
        .all(|b| b == b' ' || b == b'\t')
        .then_some(line)
}

/// Whether `new` says what `old` said, in the same order, and the new value besides.
pub(super) fn only_added(old: &Node, new: &Node, key: &str, value: &str) -> bool {
    let (Value::Map(old), Value::Map(new)) = (&old.value, &new.value) else {
        return false;
    };
    let added = new
        .iter()
        .any(|(k, n)| k.name == key && matches!(&n.value, Value::Text(t) if t.as_str() == value));
    let without = |entries: &[(Key, Node)]| {
        Value::Map(
            entries
                .iter()
                .filter(|(k, _)| k.name != key)
                .cloned()
                .collect(),
        )
    };
    added && without(old).same(&without(new))
}
