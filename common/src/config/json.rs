//! JSON into a tree with places.
//!
//! `serde_json` judges the text; this reader then only has to find its way through JSON that is
//! known to be valid, noting where things stand and which keys come twice (serde_json would keep
//! the last one silently).

use super::SyntaxError;
use super::node::{Key, Node, Place, Seen, Value, push_key};
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

/// Levels of nesting; each costs a little stack.
pub(super) const MAX_DEPTH: usize = 32;

/// Reads a whole JSON text.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    if text.trim_start().is_empty() {
        return Err(SyntaxError {
            key: String::new(),
            place: None,
            message: "the file is empty; the least that JSON needs is {}".into(),
        });
    }
    // `IgnoredAny` is read without recursion; the depth is watched by the reader below.
    serde_json::from_str::<IgnoredAny>(text).map_err(|e| {
        let (at, place) = place_of(text, &e);
        let trailing_comma =
            text[..at].trim_end().ends_with(',') && text[at..].starts_with(['}', ']']);
        SyntaxError {
            key: String::new(),
            place: Some(place),
            message: describe(&e, trailing_comma),
        }
    })?;
    let mut reader = Reader {
        text,
        at: 0,
        line: 1,
        line_start: 0,
        depth: 0,
        path: String::new(),
    };
    reader.skip_space();
    reader.node()
}

/// Where serde_json stopped: the offset, and the same for people. It counts columns in bytes.
fn place_of(text: &str, e: &serde_json::Error) -> (usize, Place) {
    let lines_before = e.line().saturating_sub(1);
    let line_start = match lines_before {
        0 => 0,
        n => text
            .match_indices('\n')
            .nth(n - 1)
            .map_or(0, |(i, _)| i + 1),
    };
    let mut at = (line_start + e.column().saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let column = 1 + text[line_start.min(at)..at].chars().count();
    (
        at,
        Place {
            line: e.line().max(1),
            column,
        },
    )
}

fn describe(e: &serde_json::Error, trailing_comma: bool) -> String {
    if trailing_comma {
        return "this is not valid JSON: a comma before a closing bracket; remove it".into();
    }
    // serde_json appends the place, which the caller shows in its own way.
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    let hint = match what {
        "key must be a string" => {
            "; write keys in double quotes (JSON has no comments; a .yaml file does)"
        }
        "expected `,` or `}`" | "expected `,` or `]`" => "; a comma may be missing",
        "expected value" => {
            "; is a text without its quotes? (JSON has no comments; a .yaml file does)"
        }
        what if what.starts_with("EOF") => {
            "; the file ends too early, a bracket or quote may be missing"
        }
        _ => "",
    };
    format!("this is not valid JSON: {what}{hint}")
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    line_start: usize,
    depth: usize,
    path: String,
}

impl Reader<'_> {
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn place(&self) -> Place {
        Place {
            line: self.line,
            column: 1 + self.text[self.line_start..self.at].chars().count(),
        }
    }

    fn skip_space(&mut self) {
        loop {
            match self.peek() {
                b'\n' => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.at;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                _ => return,
            }
        }
    }

    /// Steps over one mark (`,` `:` `}` ...) and the space behind it.
    fn skip_mark(&mut self) {
        self.at += 1;
        self.skip_space();
    }

    /// One value. The space behind it is left alone, so that spans end where values do.
    fn node(&mut self) -> Result<Node, SyntaxError> {
        let (start, place) = (self.at, self.place());
        if self.depth == MAX_DEPTH {
            return Err(SyntaxError {
                key: String::new(),
                place: Some(place),
                message: format!(
                    "there are more than {MAX_DEPTH} levels of brackets; nothing here needs so many"
                ),
            });
        }
        self.depth += 1;
        let value = match self.peek() {
            b'{' => self.map()?,
            b'[' => self.list()?,
            b'"' => Value::Text(Zeroizing::new(self.string()?)),
            _ => self.plain(),
        };
        self.depth -= 1;
        Ok(Node {
            value,
            place: Some(place),
            span: Some(start..self.at),
        })
    }

    fn map(&mut self) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        let mut seen = Seen::new();
        self.skip_mark();
        while self.peek() == b'"' {
            let (start, place) = (self.at, self.place());
            let name = self.string()?;
            let key = Key {
                name,
                place: Some(place),
                span: Some(start..self.at),
            };
            if let Err(message) = seen.note(&key) {
                return Err(SyntaxError {
                    key: self.path.clone(),
                    place: Some(place),
                    message,
                });
            }
            let length = self.path.len();
            push_key(&mut self.path, &key.name);
            self.skip_space();
            self.skip_mark(); // :
            let value = self.node()?;
            self.path.truncate(length);
            entries.push((key, value));
            self.skip_space();
            if self.peek() == b',' {
                self.skip_mark();
            }
        }
        self.at += 1; // }
        Ok(Value::Map(entries))
    }

    fn list(&mut self) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        self.skip_mark();
        while self.peek() != b']' {
            let length = self.path.len();
            self.path.push_str(&format!("[{}]", items.len()));
            items.push(self.node()?);
            self.path.truncate(length);
            self.skip_space();
            if self.peek() == b',' {
                self.skip_mark();
            }
        }
        self.at += 1; // ]
        Ok(Value::List(items))
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let (start, place) = (self.at, self.place());
        self.at += 1;
        while self.peek() != b'"' {
            // An escape is at least two bytes; its second may be a quote.
            self.at += if self.peek() == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        // Judged again because only this time the escapes are decoded (`\ud800` alone is no text).
        serde_json::from_str(&self.text[start..self.at]).map_err(|e| SyntaxError {
            key: self.path.clone(),
            place: Some(place),
            message: describe(&e, false),
        })
    }

    fn plain(&mut self) -> Value {
        let start = self.at;
        while !matches!(
            self.peek(),
            0 | b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'
        ) {
            self.at += 1;
        }
        match &self.text[start..self.at] {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number => match number.parse() {
                Ok(integer) => Value::Integer(integer),
                // Valid JSON and neither of the above: a number that f64 can at least round.
                Err(_) => Value::Float(number.parse().unwrap_or(f64::NAN)),
            },
        }
    }
}
