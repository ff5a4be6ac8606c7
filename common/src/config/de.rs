//! The tree into the typed raw tier, with errors in our own words.

use super::Problem;
use super::node::{Key, Node, Place, Value, push_key};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor,
};
use std::fmt;

/// Reads a whole tree. The top must be a mapping.
pub(super) fn from_node<T: DeserializeOwned>(root: &Node) -> Result<T, Problem> {
    if !matches!(root.value, Value::Map(_)) {
        return Err(Problem {
            key: String::new(),
            place: root.place,
            message: "the file must hold keys and values at its top level".into(),
        });
    }
    T::deserialize(root).map_err(|e| e.into_problem())
}

/// What is wrong; the path is collected on the way out, innermost step first.
#[derive(Debug)]
pub(super) struct DeError {
    message: String,
    steps: Vec<Step>,
    place: Option<Place>,
}

#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl DeError {
    fn new(message: String) -> Self {
        Self {
            message,
            steps: Vec::new(),
            place: None,
        }
    }

    /// The innermost place wins.
    fn at(mut self, place: Option<Place>) -> Self {
        self.place = self.place.or(place);
        self
    }

    fn inside(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn into_problem(self) -> Problem {
        let mut key = String::new();
        for step in self.steps.iter().rev() {
            match step {
                Step::Key(name) => push_key(&mut key, name),
                Step::Index(index) => key.push_str(&format!("[{index}]")),
            }
        }
        Problem {
            key,
            place: self.place,
            message: self.message,
        }
    }
}

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeError {}

impl de::Error for DeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        // serde speaks to Rust programmers; the derived visitors are recognised by their words.
        let scalar = matches!(
            found,
            Unexpected::Bool(_)
                | Unexpected::Unsigned(_)
                | Unexpected::Signed(_)
                | Unexpected::Float(_)
        );
        let mut hint = "";
        let expected = match expected.to_string().as_str() {
            "a string" => {
                hint = if scalar { "; put it in quotes" } else { "" };
                "text".to_owned()
            }
            "a boolean" => "true or false".to_owned(),
            "a sequence" => "a list".to_owned(),
            words if words.starts_with("struct ") => "a group of keys".to_owned(),
            words => words.to_owned(),
        };
        Self::new(format!(
            "expected {expected}, found {}{hint}",
            describe(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!(
            "expected one of {}, found {}",
            list(expected),
            describe(Unexpected::Str(variant))
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let nearest = match nearest(field, expected) {
            Some(key) => format!("; did you mean `{key}`?"),
            None => ".".to_owned(),
        };
        Self::new(format!(
            "unknown key `{}`{nearest} Known here: {}",
            shown(field),
            list(expected)
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the key `{field}` is missing"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!(
            "the key `{field}` appears twice; only one can be meant, remove the other"
        ))
    }
}

/// The known key that was probably meant.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Below this the guess would be noise. `port` for `remote_port` is above, `colour` is not.
    const LEAST: f64 = 0.72;
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let typed = plain(typed);
    known
        .iter()
        .map(|key| {
            let contained =
                typed.len() >= 3 && (key.contains(typed.as_str()) || typed.contains(key));
            let score = strsim::normalized_damerau_levenshtein(&typed, key).max(if contained {
                LEAST
            } else {
                0.0
            });
            (score, *key)
        })
        .filter(|(score, _)| *score >= LEAST)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

fn list(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Text from the file, safe to print and not too long.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let mut shown: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().count() > MOST {
        shown.push_str("...");
    }
    shown
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(text) => format!("the text \"{}\"", shown(text)),
        Unexpected::Unit | Unexpected::Option => "nothing (null)".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a group of keys".into(),
        // Used by our own types to name numbers that fit none of the above.
        Unexpected::Other(text) => text.into(),
        other => other.to_string(),
    }
}

impl<'de> de::Deserializer<'de> for &Node {
    type Error = DeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => Err(de::Error::invalid_type(
                    Unexpected::Other(&format!("the number {value}")),
                    &visitor,
                )),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                current: None,
            }),
        }
        .map_err(|e| e.at(self.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|e| e.at(self.place))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|e| e.at(self.place))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        match &self.value {
            Value::Text(text) => {
                let text: StrDeserializer<'_, DeError> = text.as_str().into_deserializer();
                visitor.visit_enum(text).map_err(|e| e.at(self.place))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    /// A derived struct would take a list for its fields in order; nobody means that.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        match &self.value {
            Value::List(_) => {
                let error: DeError = de::Error::invalid_type(Unexpected::Seq, &visitor);
                Err(error.at(self.place))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        let Some((index, item)) = self.items.next() else {
            return Ok(None);
        };
        seed.deserialize(item)
            .map(Some)
            .map_err(|e| e.inside(Step::Index(index)))
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    current: Option<&'a (Key, Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeError> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, DeError> = key.name.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|e| e.at(key.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        // serde asks for a value only after a key.
        let Some((key, value)) = self.current.take() else {
            return Err(DeError::new("a value without a key".into()));
        };
        seed.deserialize(value).map_err(|e| {
            e.at(value.place.or(key.place))
                .inside(Step::Key(key.name.clone()))
        })
    }
}
