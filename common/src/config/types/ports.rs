//! Sets of ports, written as `8080` and `10000-20000`.

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Unexpected, Visitor};
use std::str::FromStr;
use std::{error, fmt};

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Text that is no range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRangeError {
    /// Neither a port nor two with a dash.
    NotARange,
    /// The first is larger than the last.
    Backwards,
}

impl fmt::Display for PortRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotARange => {
                "a port from 1 to 65535 such as \"8080\", or a range such as \"10000-20000\""
            }
            Self::Backwards => "a range with the smaller port first, such as \"10000-20000\"",
        })
    }
}

impl error::Error for PortRangeError {}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(PortRangeError::NotARange),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            Err(PortRangeError::Backwards)
        } else {
            Ok(Self { first, last })
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RangeVisitor;
        impl Visitor<'_> for RangeVisitor {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", PortRangeError::NotARange)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<PortRange, E> {
                match u16::try_from(value) {
                    Ok(port) if port > 0 => Ok(PortRange {
                        first: port,
                        last: port,
                    }),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(|e: PortRangeError| {
                    E::invalid_value(Unexpected::Str(text), &e.to_string().as_str())
                })
            }
        }
        deserializer.deserialize_any(RangeVisitor)
    }
}

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSet {
    /// All of them.
    Any,
    /// Those of the ranges.
    Ranges(Vec<PortRange>),
}

impl PortSet {
    /// Whether a port belongs to the set.
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|range| (range.first..=range.last).contains(&port)),
        }
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Ranges(ranges) => {
                for (index, range) in ranges.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    range.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SetVisitor;
        impl<'de> Visitor<'de> for SetVisitor {
            type Value = PortSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ports and ranges, such as [\"8080\", \"10000-20000\"]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<PortSet, A::Error> {
                super::elements(access).map(PortSet::Ranges)
            }
        }
        deserializer.deserialize_seq(SetVisitor)
    }
}
