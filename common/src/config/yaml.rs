//! YAML into a tree with places.

use super::SyntaxError;
use super::node::{Key, Node, Place, Seen, Value};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::fmt;
use std::ops::Range;
use zeroize::Zeroizing;

/// Reads a whole YAML text. A text of comments alone is an empty mapping.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // Judged by the types, in our words.
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
        // An alias is fine, a bomb of them is not.
        budget: serde_saphyr::budget! { max_depth: super::json::MAX_DEPTH, max_nodes: 100_000, max_events: 400_000 },
    };
    let spanned: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| {
            let (message, place) = describe(&e);
            SyntaxError {
                key: String::new(),
                place,
                message,
            }
        })?;
    let mut root = spanned
        .value
        .into_node(&spanned.referenced, &spanned.defined);
    if matches!(root.value, Value::Null) {
        root.value = Value::Map(Vec::new());
    }
    Ok(root)
}

fn describe(e: &serde_saphyr::Error) -> (String, Option<Place>) {
    use serde_saphyr::Error as E;
    let place = e.location().and_then(|l| place(&l));
    let message = match e {
        E::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(|key| format!(" `{}`", key.escape_debug())).unwrap_or_default();
            format!("the key{key} appears twice; only one can be meant, remove the other")
        }
        E::MultipleDocuments { .. } => {
            "the file holds several YAML documents (`---`); only one can be meant, remove the others".to_owned()
        }
        E::Message { msg, .. } => format!("this is not valid YAML: {msg}"),
        other => {
            // The library names the place in its own words at the end; ours stands in front.
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or(&text);
            let line = text.lines().next().unwrap_or_default();
            format!("this is not valid YAML: {line}")
        }
    };
    (message, place)
}

fn place(l: &Location) -> Option<Place> {
    (*l != Location::UNKNOWN).then(|| Place {
        line: l.line() as usize,
        column: l.column() as usize,
    })
}

fn span(referenced: &Location, defined: &Location) -> Option<Range<usize>> {
    if referenced != defined {
        return None;
    }
    let span = referenced.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    Some(start..start + usize::try_from(span.byte_len()?).ok()?)
}

/// The tree as serde hands it over.
enum Raw {
    Plain(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl Raw {
    fn into_node(self, referenced: &Location, defined: &Location) -> Node {
        let value = match self {
            Self::Plain(value) => value,
            Self::List(items) => Value::List(
                items
                    .into_iter()
                    .map(|i| i.value.into_node(&i.referenced, &i.defined))
                    .collect(),
            ),
            Self::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let node = value.value.into_node(&value.referenced, &value.defined);
                        let (place, span) =
                            (place(&key.referenced), span(&key.referenced, &key.defined));
                        (
                            Key {
                                name: key.value,
                                place,
                                span,
                            },
                            node,
                        )
                    })
                    .collect(),
            ),
        };
        Node {
            value,
            place: place(referenced),
            span: span(referenced, defined),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Integer(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Integer(value.into())))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Integer(value)))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Raw, E> {
        i128::try_from(value)
            .map(|v| Raw::Plain(Value::Integer(v)))
            .map_err(|_| E::custom("a number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Text(Zeroizing::new(value.to_owned()))))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Plain(Value::Text(Zeroizing::new(value))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Raw>)> = Vec::new();
        let mut seen = Seen::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            // The library refuses equal keys; what a merge brings in as well is judged here.
            let noted = Key {
                name: key.value.clone(),
                place: place(&key.referenced),
                span: None,
            };
            seen.note(&noted).map_err(de::Error::custom)?;
            entries.push((key, access.next_value()?));
        }
        Ok(Raw::Map(entries))
    }
}
