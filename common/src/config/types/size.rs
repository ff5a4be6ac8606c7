//! Sizes of memory.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
/// A mebibyte: less holds nothing that is worth starting for.
const MIN: u64 = MIB;
/// A tebibyte: more is a mistake.
const MAX: u64 = 1024 * GIB;

/// An amount of memory: bytes as a number, or text with a unit, as in `"64 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// In bytes; what this system cannot count is the most that it can.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Text or a number that is no such amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeError;

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size from 1 MiB to 1024 GiB, such as \"64 MiB\" or 67108864")
    }
}

impl std::error::Error for SizeError {}

impl TryFrom<u64> for Size {
    type Error = SizeError;

    fn try_from(bytes: u64) -> Result<Self, SizeError> {
        if (MIN..=MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(SizeError)
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        bytes_of(text).ok_or(SizeError)?.try_into()
    }
}

/// A number with or without a unit, in bytes.
pub(in crate::config) fn bytes_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        // Whoever writes MB for memory means this, too.
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// `64 MiB`, for people.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0.is_multiple_of(unit) {
                return write!(f, "{} {name}", self.0 / unit);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{SizeError}")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Size::try_from(bytes)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse()
                    .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let cases = [
            ("1048576", Some(MIB)),
            ("1 MiB", Some(MIB)),
            ("64MiB", Some(64 * MIB)),
            (" 64 mb ", Some(64 * MIB)),
            ("2048 KiB", Some(2 * MIB)),
            ("1 g", Some(GIB)),
            ("1024 GiB", Some(1024 * GIB)),
            ("1025 GiB", None),
            ("1048575", None),
            ("0", None),
            ("", None),
            ("MiB", None),
            ("-1 MiB", None),
            ("1.5 GiB", None),
            ("64 MiB!", None),
            ("64 TiB", None),
            ("99999999999999999999 KiB", None),
            ("18014398509481985 KiB", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Size>().ok().map(|s| s.0), bytes, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_said_as_people_would() {
        for (bytes, text) in [
            (GIB, "1 GiB"),
            (256 * MIB, "256 MiB"),
            (1025 * KIB, "1025 KiB"),
            (MIB + 1, "1048577 bytes"),
        ] {
            assert_eq!(Size::try_from(bytes).unwrap().to_string(), text);
        }
    }
}
