//! YAML into a tree with places.
//!
//! The parser tells events (a text, the start of a list, its end); this reader makes the tree of them: which
//! plain text is a number, what an alias stands for, what a merge (`<<`) brings in. It takes what YAML 1.1 and 1.2
//! readers have in common, and `yes`, `on` and their like as people write them.

use super::SyntaxError;
use super::node::{Key, Node, Place, Seen, Value};
use granit_parser::{
    Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, StructureStyle, Tag,
};
use std::collections::{HashMap, HashSet};
use zeroize::Zeroizing;

/// The most values a file may have, those that aliases repeat counted again: an alias is fine, a bomb of them is not.
const MAX_NODES: usize = 100_000;

/// Reads a whole YAML text. A text of comments alone is an empty mapping.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    // The parser knows a mark at the beginning, but counts it in its places.
    let mark = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let options = granit_parser::options! {
        flow_nesting_limit: super::json::MAX_DEPTH,
        block_nesting_limit: super::json::MAX_DEPTH,
    };
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(&text[mark..], options),
        mark,
        anchors: HashMap::new(),
        nodes: 0,
        depth: 0,
    };
    let mut root = reader.document()?;
    if matches!(root.value, Value::Null) {
        root.value = Value::Map(Vec::new());
    }
    Ok(root)
}

fn error(place: Option<Place>, message: String) -> SyntaxError {
    SyntaxError {
        key: String::new(),
        place,
        message,
    }
}

fn invalid(place: Option<Place>, what: &str) -> SyntaxError {
    error(place, format!("this is not valid YAML: {what}"))
}

fn place(marker: &Marker) -> Place {
    Place {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Bytes before what the parser was given.
    mark: usize,
    /// What has a name, for the aliases behind it.
    anchors: HashMap<usize, Node>,
    /// Values so far.
    nodes: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, SyntaxError> {
        self.parser
            .next_event()
            .transpose()
            .map_err(|e: ScanError| {
                let what = e.info();
                invalid(
                    Some(place(e.marker())),
                    what.lines().next().unwrap_or_default(),
                )
            })
    }

    /// The next event, where the parser promises one.
    fn must(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        self.next()?
            .ok_or_else(|| invalid(None, "the file ends too early"))
    }

    /// The only document of the text.
    fn document(&mut self) -> Result<Node, SyntaxError> {
        let mut root = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_none() => {
                    let (event, span) = self.must()?;
                    root = Some(self.node(event, &span)?);
                }
                Event::DocumentStart(..) => {
                    return Err(error(
                        Some(place(&span.start)),
                        "the file holds several YAML documents (`---`); only one can be meant, remove the others"
                            .to_owned(),
                    ));
                }
                _ => {
                    return Err(invalid(
                        Some(place(&span.start)),
                        "there is something behind its end",
                    ));
                }
            }
        }
        Ok(root.unwrap_or(Node {
            value: Value::Null,
            place: None,
            span: None,
        }))
    }

    fn node(&mut self, event: Event<'a>, span: &Span) -> Result<Node, SyntaxError> {
        let at = place(&span.start);
        self.count(1, at)?;
        self.depth += 1;
        if self.depth > super::json::MAX_DEPTH {
            return Err(too_deep(at));
        }
        let (value, anchor, end) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref(), at)?;
                (value, anchor, Some(*span))
            }
            Event::SequenceStart(style, anchor, tag) => {
                fits(tag.as_deref(), "seq", at)?;
                let mut items = Vec::new();
                let end = loop {
                    match self.must()? {
                        (Event::SequenceEnd, end) => break end,
                        (event, span) => items.push(self.node(event, &span)?),
                    }
                };
                (Value::List(items), anchor, Some(last(style, span, end)))
            }
            Event::MappingStart(style, anchor, tag) => {
                fits(tag.as_deref(), "map", at)?;
                let (entries, end) = self.mapping()?;
                (Value::Map(entries), anchor, Some(last(style, span, end)))
            }
            Event::Alias(id) => (self.alias(id, at)?, 0, None),
            _ => return Err(invalid(Some(at), "a value is missing")),
        };
        self.depth -= 1;
        let node = Node {
            value,
            place: Some(at),
            span: end.and_then(|end| {
                let start = span.start.byte_offset()? + self.mark;
                Some(start..end.end.byte_offset()? + self.mark)
            }),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, at: Place) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return Err(error(
                Some(at),
                format!(
                    "there are more than {MAX_NODES} values, those that aliases repeat included; nothing here needs so many"
                ),
            ));
        }
        Ok(())
    }

    /// What an alias stands for, as if it stood here.
    fn alias(&mut self, id: usize, at: Place) -> Result<Value, SyntaxError> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(invalid(Some(at), "an alias stands within what it names"));
        };
        // Before it is copied: copies are what a bomb is made of.
        let (nodes, levels) = (size(&node.value), depth(&node.value));
        self.count(nodes, at)?;
        if self.depth + levels > super::json::MAX_DEPTH {
            return Err(too_deep(at));
        }
        let mut value = self.anchors[&id].value.clone();
        forget_places(&mut value);
        Ok(value)
    }

    fn mapping(&mut self) -> Result<(Vec<(Key, Node)>, Span), SyntaxError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut merged: Vec<(Key, Node)> = Vec::new();
        let mut seen = Seen::new();
        let end = loop {
            let (event, span) = self.must()?;
            let at = place(&span.start);
            let (name, plain) = match &event {
                Event::MappingEnd => break span,
                Event::Scalar(text, style, ..) => {
                    (text.as_ref().to_owned(), *style == ScalarStyle::Plain)
                }
                Event::Alias(id) => match self.anchors.get(id).map(|node| &node.value) {
                    Some(Value::Text(text)) => (text.as_str().to_owned(), false),
                    _ => return Err(invalid(Some(at), "a key must be a text")),
                },
                _ => return Err(invalid(Some(at), "a key must be a text")),
            };
            self.count(1, at)?;
            if let Event::Scalar(text, style, anchor, tag) = &event
                && *anchor != 0
            {
                let value = scalar(text, *style, tag.as_deref(), at)?;
                let key = Node {
                    value,
                    place: Some(at),
                    span: None,
                };
                self.anchors.insert(*anchor, key);
            }
            let key = Key {
                name,
                place: Some(at),
                span: (!matches!(event, Event::Alias(_)))
                    .then(|| {
                        span.byte_range()
                            .map(|r| r.start + self.mark..r.end + self.mark)
                    })
                    .flatten(),
            };
            let (event, span) = self.must()?;
            let node = self.node(event, &span)?;
            if plain && key.name == "<<" {
                merge(node, at, &mut merged)?;
                continue;
            }
            seen.note(&key)
                .map_err(|message| error(Some(at), message))?;
            entries.push((key, node));
        };
        // What stands here wins over what a merge brings, and of merges the first.
        let mut known: HashSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
        for (key, node) in merged {
            if known.insert(key.name.clone()) {
                entries.push((key, node));
            }
        }
        Ok((entries, end))
    }
}

/// Where a list or mapping can be said to end. In block style that is where the next thing begins, behind blank
/// lines and comments that are not its own: the beginning serves better.
fn last(style: StructureStyle, start: &Span, end: Span) -> Span {
    match style {
        StructureStyle::Flow => end,
        StructureStyle::Block => *start,
    }
}

/// The entries that `<<` brings in: of one mapping, or of a list of them.
fn merge(node: Node, at: Place, into: &mut Vec<(Key, Node)>) -> Result<(), SyntaxError> {
    let wrong = || {
        invalid(
            Some(at),
            "`<<` takes a group of keys, or a list of such groups",
        )
    };
    match node.value {
        Value::Map(entries) => {
            into.extend(entries.into_iter().map(|(mut key, mut node)| {
                key.span = None;
                node.span = None;
                forget_places(&mut node.value);
                (key, node)
            }));
            Ok(())
        }
        Value::List(items) => items.into_iter().try_for_each(|item| match item.value {
            Value::Map(_) => merge(item, at, into),
            _ => Err(wrong()),
        }),
        _ => Err(wrong()),
    }
}

fn too_deep(at: Place) -> SyntaxError {
    let levels = super::json::MAX_DEPTH;
    error(
        Some(at),
        format!("there are more than {levels} levels of nesting; nothing here needs so many"),
    )
}

fn size(value: &Value) -> usize {
    match value {
        Value::List(items) => items.iter().map(|item| 1 + size(&item.value)).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| 2 + size(&node.value)).sum(),
        _ => 0,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::List(items) => {
            1 + items
                .iter()
                .map(|item| depth(&item.value))
                .max()
                .unwrap_or(0)
        }
        Value::Map(entries) => {
            1 + entries
                .iter()
                .map(|(_, node)| depth(&node.value))
                .max()
                .unwrap_or(0)
        }
        _ => 0,
    }
}

/// Nothing in it stands where its text would be cut.
fn forget_places(value: &mut Value) {
    match value {
        Value::List(items) => {
            for item in items {
                item.span = None;
                forget_places(&mut item.value);
            }
        }
        Value::Map(entries) => {
            for (key, node) in entries {
                (key.span, node.span) = (None, None);
                forget_places(&mut node.value);
            }
        }
        _ => {}
    }
}

/// A tag says what it stands at.
fn fits(tag: Option<&Tag>, wanted: &str, at: Place) -> Result<(), SyntaxError> {
    match tag.and_then(Tag::core_suffix) {
        Some(other) if other != wanted => Err(invalid(
            Some(at),
            &format!("`!!{other}` does not fit what it stands at"),
        )),
        _ => Ok(()),
    }
}

/// What a text means: as its tag says, else a plain one by its looks.
fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    at: Place,
) -> Result<Value, SyntaxError> {
    let as_text = || Value::Text(Zeroizing::new(text.to_owned()));
    let tagged = tag.and_then(Tag::core_suffix);
    let found = match tagged {
        None if tag.is_some() || style != ScalarStyle::Plain => Some(as_text()),
        None => return Ok(plain(text).unwrap_or_else(as_text)),
        Some("str") => Some(as_text()),
        Some("null") => Some(Value::Null),
        Some("bool") => boolean(text).map(Value::Bool),
        Some("int") => integer(text).map(Value::Integer),
        Some("float") => float(text).map(Value::Float),
        Some(_) => None,
    };
    found.ok_or_else(|| {
        let tag = tagged.unwrap_or_default();
        invalid(
            Some(at),
            &format!("`!!{tag}` does not fit what it stands at"),
        )
    })
}

fn plain(text: &str) -> Option<Value> {
    if text.is_empty() || text == "~" || text.eq_ignore_ascii_case("null") {
        return Some(Value::Null);
    }
    boolean(text)
        .map(Value::Bool)
        .or_else(|| integer(text).map(Value::Integer))
        .or_else(|| float(text).map(Value::Float))
}

fn boolean(text: &str) -> Option<bool> {
    let any = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if any(["true", "yes", "on", "y"]) {
        Some(true)
    } else if any(["false", "no", "off", "n"]) {
        Some(false)
    } else {
        None
    }
}

/// Decimal, `0x`, `0o` or `0b`, `_` between digits. One that begins with a needless zero is not a number: it may be
/// meant octal, or as a text.
fn integer(text: &str) -> Option<i128> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = rest.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match lower.as_deref() {
        Some("0x") => (16, &rest[2..]),
        Some("0o") => (8, &rest[2..]),
        Some("0b") => (2, &rest[2..]),
        _ if rest.len() > 1 && rest.starts_with('0') => return None,
        _ => (10, rest),
    };
    let bare = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if bare
        || !digits
            .bytes()
            .all(|b| b == b'_' || char::from(b).is_digit(radix))
    {
        return None;
    }
    let digits: String = digits.chars().filter(|&c| c != '_').collect();
    let value = i128::from(u64::from_str_radix(&digits, radix).ok()?);
    Some(if negative { -value } else { value })
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match unsigned.to_ascii_lowercase().as_str() {
        ".nan" => return Some(f64::NAN),
        ".inf" if text.starts_with('-') => return Some(f64::NEG_INFINITY),
        ".inf" => return Some(f64::INFINITY),
        _ => {}
    }
    // Rust also knows `inf` and `nan` as numbers; here they are texts.
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    // Octal for one reader, decimal for the next.
    if unsigned
        .strip_prefix('0')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    {
        return None;
    }
    text.parse().ok()
}
