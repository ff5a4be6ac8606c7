//! The values that both programs' files have in common.

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Unexpected, Visitor};
use std::str::FromStr;
use std::time::Duration;
use std::{error, fmt};
use zeroize::Zeroizing;

/// Whether data is compressed on its way through the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionSetting {
    /// Where it helps: data that does not shrink is sent as it is.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
}

impl fmt::Display for CompressionSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::On => "on",
        })
    }
}

impl<'de> Deserialize<'de> for CompressionSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = CompressionSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"off\" or \"on\"")
            }

            // YAML takes an unquoted `off` for `false`.
            fn visit_bool<E>(self, value: bool) -> Result<CompressionSetting, E> {
                Ok(if value {
                    CompressionSetting::On
                } else {
                    CompressionSetting::Off
                })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CompressionSetting, E> {
                match text {
                    "auto" => Ok(CompressionSetting::Auto),
                    "off" => Ok(CompressionSetting::Off),
                    "on" => Ok(CompressionSetting::On),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// Text that must not be seen: masked in every print, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Masked;
        // What is found is never repeated, whatever it is.
        impl Visitor<'_> for Masked {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes")
            }

            fn visit_str<E>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret(Zeroizing::new(text.to_owned())))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom("expected text in quotes"))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("expected text in quotes"))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom("expected text in quotes"))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("expected text in quotes"))
            }
        }
        deserializer.deserialize_str(Masked)
    }
}

/// Reads a whole number between two bounds, both included.
fn whole_number<'de, D: Deserializer<'de>>(
    deserializer: D,
    least: u64,
    most: u64,
    what: &'static str,
) -> Result<u64, D::Error> {
    struct Within {
        least: u64,
        most: u64,
        what: &'static str,
    }
    impl Visitor<'_> for Within {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} from {} to {}", self.what, self.least, self.most)
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
            if (self.least..=self.most).contains(&value) {
                Ok(value)
            } else {
                Err(E::invalid_value(Unexpected::Unsigned(value), &self))
            }
        }
    }
    deserializer.deserialize_any(Within { least, most, what })
}

/// A port that exists: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The bounds are those of u16.
        whole_number(deserializer, 1, 65535, "a port").map(|port| Self(port as u16))
    }
}

/// A port to listen on, where 0 lets the system choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyPort(pub u16);

impl<'de> Deserialize<'de> for AnyPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole_number(deserializer, 0, 65535, "a port").map(|port| Self(port as u16))
    }
}

/// How many of something may be: at least one, at most a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

impl Count {
    /// The largest count: more than any system of today holds, so it bounds nothing.
    pub const MOST: usize = 1_000_000;
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A million fits every usize that std supports with sockets.
        whole_number(deserializer, 1, Self::MOST as u64, "a whole number")
            .map(|count| Self(count as usize))
    }
}

/// How many of something may be, where none is fine: at most 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountOrNone(pub u16);

impl<'de> Deserialize<'de> for CountOrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole_number(deserializer, 0, 65535, "a whole number").map(|count| Self(count as u16))
    }
}

/// One year: longer than any timeout means, short enough for every clock.
const MAX_SECONDS: f64 = 31_536_000.0;
/// One millisecond: shorter waits than this are not kept by any system.
const MIN_SECONDS: f64 = 0.001;

/// A time to wait, in seconds; fractions are fine, nothing is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(Duration);

impl Seconds {
    /// The time.
    pub fn duration(self) -> Duration {
        self.0
    }
}

/// Like [`Seconds`], but 0 is fine and means "do not wait".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grace(Duration);

impl Grace {
    /// The time.
    pub fn duration(self) -> Duration {
        self.0
    }
}

/// A number that is no time to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondsError {
    zero_is_fine: bool,
}

impl fmt::Display for SecondsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.zero_is_fine { 0.0 } else { MIN_SECONDS };
        write!(f, "a number of seconds from {least} to {MAX_SECONDS}")
    }
}

impl error::Error for SecondsError {}

impl TryFrom<f64> for Seconds {
    type Error = SecondsError;

    fn try_from(value: f64) -> Result<Self, SecondsError> {
        // NaN is in no range.
        if (MIN_SECONDS..=MAX_SECONDS).contains(&value) {
            Ok(Self(Duration::from_secs_f64(value)))
        } else {
            Err(SecondsError {
                zero_is_fine: false,
            })
        }
    }
}

impl TryFrom<f64> for Grace {
    type Error = SecondsError;

    fn try_from(value: f64) -> Result<Self, SecondsError> {
        if (0.0..=MAX_SECONDS).contains(&value) {
            Ok(Self(Duration::from_secs_f64(value)))
        } else {
            Err(SecondsError { zero_is_fine: true })
        }
    }
}

impl FromStr for Seconds {
    type Err = SecondsError;

    /// For command lines.
    fn from_str(text: &str) -> Result<Self, SecondsError> {
        text.parse::<f64>()
            .map_err(|_| SecondsError {
                zero_is_fine: false,
            })?
            .try_into()
    }
}

impl FromStr for Grace {
    type Err = SecondsError;

    /// For command lines.
    fn from_str(text: &str) -> Result<Self, SecondsError> {
        text.parse::<f64>()
            .map_err(|_| SecondsError { zero_is_fine: true })?
            .try_into()
    }
}

struct SecondsVisitor {
    zero_is_fine: bool,
}

impl Visitor<'_> for SecondsVisitor {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = SecondsError {
            zero_is_fine: self.zero_is_fine,
        };
        write!(f, "{range}")
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
        let fits = if self.zero_is_fine {
            Grace::try_from(value).is_ok()
        } else {
            Seconds::try_from(value).is_ok()
        };
        if fits {
            Ok(value)
        } else {
            Err(E::invalid_value(Unexpected::Float(value), &self))
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
        // Rounding begins far above the bound.
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
        self.visit_f64(value as f64)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(SecondsVisitor {
            zero_is_fine: false,
        })?;
        Self::try_from(value).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Grace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(SecondsVisitor { zero_is_fine: true })?;
        Self::try_from(value).map_err(de::Error::custom)
    }
}

mod host;
mod ports;
mod size;
pub use host::{Host, HostError};
pub use ports::{PortRange, PortRangeError, PortSet};
pub(super) use size::bytes_of;
pub use size::{Size, SizeError};

/// Reads a list element by element, so that each error carries its index.
fn elements<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
    mut access: A,
) -> Result<Vec<T>, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = access.next_element()? {
        items.push(item);
    }
    Ok(items)
}
