//! The section `logging`, which both programs' files have.

use std::path::Path;
use std::time::Duration;

use ::log::Level;
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::Checker;
use super::types::bytes_of;
use crate::log::{Format, Logging, Rotation};

/// The `logging` of the file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawLogging {
    pub log_file: Option<String>,
    pub level: Option<LevelName>,
    pub format: Option<FormatName>,
    pub rotation: Option<RawRotation>,
}

/// The `logging.rotation` of the file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is described at the checked tier")]
pub struct RawRotation {
    pub max_size: Option<FileSize>,
    pub interval: Option<Interval>,
    pub keep: Option<Keep>,
}

/// Checks the section. Relative paths start at `folder`.
pub fn check_logging(checker: &mut Checker, raw: Option<RawLogging>, folder: &Path) -> Logging {
    let Some(raw) = raw else {
        return Logging::default();
    };
    let file = match raw.log_file.as_deref().map(str::trim) {
        Some("") => {
            checker.error(
                "logging.log_file",
                "the file name is empty; name a file, or leave the key out to log to stdout alone",
            );
            None
        }
        name => name.map(|name| folder.join(name)),
    };
    Logging {
        file,
        level: raw.level.map(|level| level.0),
        format: raw.format.map_or(Format::default(), |format| format.0),
        rotation: rotation(raw.rotation.as_ref()),
    }
}

fn rotation(raw: Option<&RawRotation>) -> Rotation {
    let usual = Rotation::USUAL;
    let Some(raw) = raw else { return usual };
    let interval = raw.interval.and_then(|interval| interval.0);
    Rotation {
        max_size: match raw.max_size {
            Some(size) => size.0,
            // Whoever asks for a file a day does not mean a file every 10 MiB.
            None if interval.is_some() => None,
            None => usual.max_size,
        },
        interval,
        keep: raw.keep.map_or(usual.keep, |keep| keep.0),
    }
}

/// `logging.level`: a level of ours, or the name that Python has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelName(pub Level);

impl<'de> Deserialize<'de> for LevelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        let level = |text: &str| match text.to_ascii_lowercase().as_str() {
            "warning" => Some(Level::Warn),
            "critical" => Some(Level::Error),
            name => name.parse().ok(),
        };
        text_or_number(deserializer, what, level, |_| None).map(Self)
    }
}

/// `logging.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatName(pub Format);

impl<'de> Deserialize<'de> for FormatName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(
            deserializer,
            "\"text\" or \"json\"",
            |text| text.parse().ok(),
            |_| None,
        )
        .map(Self)
    }
}

/// `logging.rotation.max_size`; `None` was typed as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSize(pub Option<u64>);

impl<'de> Deserialize<'de> for FileSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Room for one line at its longest would be more; a test wants less.
        const MIN: u64 = 1024;
        const MAX: u64 = 1 << 40;
        fn within(bytes: u64) -> Option<FileSize> {
            match bytes {
                0 => Some(FileSize(None)),
                MIN..=MAX => Some(FileSize(Some(bytes))),
                _ => None,
            }
        }
        text_or_number(
            deserializer,
            "a size from 1 KiB to 1024 GiB, such as \"10 MiB\", or 0 for no bound",
            |text| bytes_of(text).and_then(within),
            within,
        )
    }
}

/// `logging.rotation.interval`; `None` was typed as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Option<Duration>);

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        const DAY: u64 = 24 * HOUR;
        fn within(seconds: u64) -> Option<Interval> {
            match seconds {
                0 => Some(Interval(None)),
                1..=31_536_000 => Some(Interval(Some(Duration::from_secs(seconds)))),
                _ => None,
            }
        }
        fn seconds_of(text: &str) -> Option<u64> {
            let text = text.trim().to_ascii_lowercase();
            let digits = text.find(|c: char| !c.is_ascii_digit());
            let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
            let unit = match (number, unit.trim_start()) {
                ("", "hourly") => return Some(HOUR),
                ("", "daily") => return Some(DAY),
                ("", "weekly") => return Some(7 * DAY),
                (_, "" | "s") => 1,
                (_, "m") => MINUTE,
                (_, "h") => HOUR,
                (_, "d") => DAY,
                (_, "w") => 7 * DAY,
                _ => return None,
            };
            number.parse::<u64>().ok()?.checked_mul(unit)
        }
        text_or_number(
            deserializer,
            "\"hourly\", \"daily\", \"weekly\", a time such as \"12h\" or \"7d\" of at most a year, \
             a whole number of seconds, or 0 for never",
            |text| seconds_of(text).and_then(within),
            within,
        )
    }
}

/// `logging.rotation.keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(pub u32);

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(
            deserializer,
            "a whole number from 0 to 1000",
            |_| None,
            // The bound is far below that of u32.
            |number| (number <= 1000).then_some(Self(number as u32)),
        )
    }
}

/// Reads what people write as text or as a number; what neither function takes is refused as not `what`.
fn text_or_number<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &'static str,
    text: impl FnOnce(&str) -> Option<T>,
    number: impl FnOnce(u64) -> Option<T>,
) -> Result<T, D::Error> {
    struct Either<A, B>(&'static str, A, B);
    impl<T, A, B> Visitor<'_> for Either<A, B>
    where
        A: FnOnce(&str) -> Option<T>,
        B: FnOnce(u64) -> Option<T>,
    {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text.trim()).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self.0))
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            (self.2)(value).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self.0))
        }
    }
    deserializer.deserialize_any(Either(what, text, number))
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, Loaded, parse};
    use super::*;

    #[derive(serde::Deserialize)]
    struct File {
        logging: Option<RawLogging>,
    }

    fn check(yaml: &str) -> Result<Logging, ConfigError> {
        let Loaded { raw, places } = parse::<File>(Path::new("c.yaml"), yaml)?;
        let mut checker = Checker::new(places);
        let logging = check_logging(&mut checker, raw.logging, Path::new("/etc/tunnel"));
        checker.finish().map(|_| logging)
    }

    #[test]
    fn nothing_typed_is_stdout_at_info_in_text() {
        for yaml in ["logging:", "{}", "logging: {}"] {
            assert_eq!(check(yaml).unwrap(), Logging::default(), "{yaml}");
        }
        let logging = Logging::default();
        assert_eq!((logging.file, logging.level), (None, None));
        assert_eq!(logging.format, Format::Text);
        assert_eq!(logging.rotation, Rotation::USUAL);
    }

    #[test]
    fn everything_typed_is_meant() {
        let logging = check(
            "logging: {log_file: logs/a.log, level: WARNING, format: json, \
             rotation: {max_size: 1 MiB, interval: daily, keep: 0}}",
        );
        assert_eq!(
            logging.unwrap(),
            Logging {
                file: Some("/etc/tunnel/logs/a.log".into()),
                level: Some(Level::Warn),
                format: Format::Json,
                rotation: Rotation {
                    max_size: Some(1 << 20),
                    interval: Some(Duration::from_secs(86400)),
                    keep: 0,
                },
            }
        );
        let elsewhere = check("logging: {log_file: /var/log/a.log}").unwrap();
        assert_eq!(elsewhere.file, Some("/var/log/a.log".into()));
    }

    #[test]
    fn what_is_left_out_of_rotation_is_usual() {
        let day = Duration::from_secs(86400);
        let usual = Rotation::USUAL.max_size;
        let cases = [
            ("{}", usual, None, 5),
            ("{keep: 9}", usual, None, 9),
            ("{max_size: 2048}", Some(2048), None, 5),
            ("{interval: daily}", None, Some(day), 5),
            ("{interval: 0}", usual, None, 5),
            ("{max_size: 0}", None, None, 5),
            ("{interval: 24h, max_size: '1k'}", Some(1024), Some(day), 5),
            ("{interval: 1d}", None, Some(day), 5),
            ("{interval: 1w}", None, Some(7 * day), 5),
            ("{interval: weekly}", None, Some(7 * day), 5),
            ("{interval: Hourly}", None, Some(day / 24), 5),
            ("{interval: 30 m}", None, Some(day / 48), 5),
            ("{interval: 86400}", None, Some(day), 5),
        ];
        for (text, max_size, interval, keep) in cases {
            let logging = check(&format!("logging: {{rotation: {text}}}")).unwrap();
            let expected = Rotation {
                max_size,
                interval,
                keep,
            };
            assert_eq!(logging.rotation, expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let levels = "expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        let interval = "expected \"hourly\", \"daily\", \"weekly\", a time such as \"12h\" or \"7d\" of at most a \
                        year, a whole number of seconds, or 0 for never";
        let size = "expected a size from 1 KiB to 1024 GiB, such as \"10 MiB\", or 0 for no bound";
        let cases = [
            (
                "{levle: info}",
                "c.yaml:1:11: logging: unknown key `levle`; did you mean `level`? \
                 Known here: `log_file`, `level`, `format`, `rotation`"
                    .to_owned(),
            ),
            (
                "{level: loud}",
                format!("c.yaml:1:18: logging.level: {levels}, found the text \"loud\""),
            ),
            (
                "{level: 3}",
                format!("c.yaml:1:18: logging.level: {levels}, found the number 3"),
            ),
            (
                "{format: xml}",
                "c.yaml:1:19: logging.format: expected \"text\" or \"json\", found the text \"xml\"".into(),
            ),
            (
                "{log_file: ' '}",
                "c.yaml:1:11: logging.log_file: the file name is empty; name a file, or leave the key out to log to \
                 stdout alone"
                    .into(),
            ),
            (
                "{rotation: {max_size: 1000}}",
                format!("c.yaml:1:32: logging.rotation.max_size: {size}, found the number 1000"),
            ),
            (
                "{rotation: {max_size: huge}}",
                format!("c.yaml:1:32: logging.rotation.max_size: {size}, found the text \"huge\""),
            ),
            (
                "{rotation: {interval: monthly}}",
                format!(
                    "c.yaml:1:32: logging.rotation.interval: {interval}, found the text \"monthly\""
                ),
            ),
            (
                "{rotation: {interval: 366d}}",
                format!(
                    "c.yaml:1:32: logging.rotation.interval: {interval}, found the text \"366d\""
                ),
            ),
            (
                "{rotation: {keep: 1001}}",
                "c.yaml:1:28: logging.rotation.keep: expected a whole number from 0 to 1000, found the number 1001"
                    .into(),
            ),
            (
                "{rotation: daily}",
                "c.yaml:1:21: logging.rotation: expected a group of keys, found the text \"daily\"".into(),
            ),
        ];
        for (text, message) in cases {
            let error = check(&format!("logging: {text}")).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
