//! One record, one line, nothing in it that could pretend to be another.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use ::log::Level;

/// The longest text of one record, in bytes. Semantics: what is beyond it is cut, and the line says so.
pub(super) const MAX_TEXT: usize = 8 * 1024;

/// How a record becomes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For people.
    Text {
        /// Whether the level is coloured.
        colour: bool,
    },
    /// One JSON object, for programs.
    Json,
}

impl Style {
    /// The same for something that is no terminal.
    pub(super) fn plain(self) -> Self {
        match self {
            Self::Text { .. } => Self::Text { colour: false },
            Self::Json => Self::Json,
        }
    }
}

/// The line for a record, with its line end.
pub(super) fn render(
    when: SystemTime,
    level: Level,
    target: &str,
    text: fmt::Arguments<'_>,
    style: Style,
) -> String {
    match style {
        Style::Text { colour } => render_text(when, level, target, text, colour),
        Style::Json => render_json(when, level, target, text),
    }
}

fn render_text(
    when: SystemTime,
    level: Level,
    target: &str,
    text: fmt::Arguments<'_>,
    colour: bool,
) -> String {
    let mut line = String::with_capacity(128);
    push_time(&mut line, when);
    line.push(' ');
    if colour {
        let sequence = match level {
            Level::Error => "\x1b[1;31m",
            Level::Warn => "\x1b[33m",
            Level::Info => "\x1b[32m",
            Level::Debug => "\x1b[34m",
            Level::Trace => "\x1b[2m",
        };
        line.push_str(sequence);
    }
    // The padding is inside the colour: columns line up with and without.
    push(&mut line, format_args!("{:<5}", level.as_str()));
    if colour {
        line.push_str("\x1b[0m");
    }
    line.push(' ');
    let mut safe = Escaper::new(line, Escapes::Text);
    // Neither write fails by itself. A value whose Display fails leaves its line short, which is visible.
    let _ = write!(safe, "{}: ", short_target(target));
    let _ = safe.write_fmt(text);
    let mut line = safe.finish();
    line.push('\n');
    line
}

/// Always the same four keys in the same order, and `code` behind them where the text names one. Whoever parses it gets the text as it was; whoever reads it raw
/// sees nothing harmful, as in the text format.
fn render_json(when: SystemTime, level: Level, target: &str, text: fmt::Arguments<'_>) -> String {
    let mut line = String::with_capacity(160);
    line.push_str("{\"ts\":\"");
    push_time(&mut line, when);
    push(
        &mut line,
        format_args!("\",\"level\":\"{}\",\"target\":\"", level.as_str()),
    );
    let mut safe = Escaper::new(line, Escapes::Json);
    let _ = safe.write_str(short_target(target));
    safe.line.push_str("\",\"msg\":\"");
    let from = safe.line.len();
    let _ = safe.write_fmt(text);
    let mut line = safe.finish();
    let code = code_in(&line[from..]).map(str::to_owned);
    line.push('"');
    if let Some(code) = code {
        push(&mut line, format_args!(",\"code\":\"{code}\""));
    }
    line.push_str("}\n");
    line
}

/// The code that a text ends with; behind it there may only be how often the same was not said.
fn code_in(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once(" code=")?;
    let (code, behind) = rest.split_at_checked(5)?;
    let digits = code.strip_prefix('E')?;
    let ends = behind.is_empty() || (behind.starts_with(" (") && behind.ends_with(')'));
    (ends && digits.bytes().all(|b| b.is_ascii_digit())).then_some(code)
}

/// The module path without what all of ours share: `minitcptunnel_` goes, and so does the common crate's name
/// unless it is all there is. Targets of others stay as they are.
pub(super) fn short_target(target: &str) -> &str {
    match target.strip_prefix("minitcptunnel_") {
        Some(ours) => ours.strip_prefix("common::").unwrap_or(ours),
        None => target,
    }
}

/// Writing to a `String` cannot fail.
fn push(line: &mut String, text: fmt::Arguments<'_>) {
    let _ = line.write_fmt(text);
}

/// How harmful characters are spelled out.
#[derive(Clone, Copy)]
enum Escapes {
    /// As Rust does: `\u{1b}`.
    Text,
    /// As JSON does, quotes and backslashes too: `\u001b`.
    Json,
}

/// Passes text on to a line, harmful characters spelled out, up to a limit.
struct Escaper {
    line: String,
    escapes: Escapes,
    /// Bytes that may still be written.
    room: usize,
    /// Bytes of input left out.
    cut: usize,
}

impl Escaper {
    fn new(line: String, escapes: Escapes) -> Self {
        Self {
            line,
            escapes,
            room: MAX_TEXT,
            cut: 0,
        }
    }

    /// The line, which says how much of it is missing.
    fn finish(self) -> String {
        let Self { mut line, cut, .. } = self;
        if cut > 0 {
            push(&mut line, format_args!("... [{cut} more bytes]"));
        }
        line
    }

    fn push_harmful(&mut self, character: char) {
        match self.escapes {
            Escapes::Text => push(
                &mut self.line,
                format_args!("{}", character.escape_unicode()),
            ),
            // JSON names characters by their UTF-16 units; those beyond the first plane have two.
            Escapes::Json => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    push(&mut self.line, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
}

impl Write for Escaper {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let before = self.line.len();
            // Once something is cut, all that follows is: a text with holes would mislead.
            if self.cut > 0 {
                self.cut += character.len_utf8();
                continue;
            }
            match character {
                '\n' => self.line.push_str("\\n"),
                '\r' => self.line.push_str("\\r"),
                '\t' => self.line.push_str("\\t"),
                '"' | '\\' if matches!(self.escapes, Escapes::Json) => {
                    self.line.push('\\');
                    self.line.push(character);
                }
                _ if is_harmful(character) => self.push_harmful(character),
                _ => self.line.push(character),
            }
            let written = self.line.len() - before;
            match self.room.checked_sub(written) {
                Some(room) => self.room = room,
                None => {
                    self.line.truncate(before);
                    self.cut = character.len_utf8();
                }
            }
        }
        Ok(())
    }
}

/// Characters that end lines, drive terminals, or make a reader see something else than what is there.
fn is_harmful(character: char) -> bool {
    // C0, DEL and C1: line ends, escape sequences, the one-byte CSI of C1.
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, invisible.
            '\u{ad}'
            // Marks, embeddings, overrides and isolates of writing direction.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            // Spaces and joiners of no width, and invisible operators.
            | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{feff}'
            // Line and paragraph separators: line ends to some readers.
            | '\u{2028}' | '\u{2029}'
            // Annotations and tags, invisible.
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// `2026-01-05T12:00:00.123Z`.
fn push_time(line: &mut String, when: SystemTime) {
    const DAY: i64 = 24 * 3600 * 1000;
    // Milliseconds from 1970, rounded towards the past. A machine whose clock was never set may well be before.
    let millis = match when.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(error) => {
            let before = error.duration().as_nanos().div_ceil(1_000_000);
            i64::try_from(before).map_or(i64::MIN, |before| -before)
        }
    };
    let (year, month, day) = civil(millis.div_euclid(DAY));
    let rest = millis.rem_euclid(DAY);
    let (seconds, millis) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    push(
        line,
        format_args!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        ),
    );
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are taken to begin in March, so that the leap day is a year's last day and every other rule is a plain
/// division: 400 years always have the same number of days, as have 100 years (except the last of the four,
/// which has one more), 4 years (except that the last may lack one), and 1 year (except the last of the four).
fn civil(days: i64) -> (i64, i64, i64) {
    const YEAR: i64 = 365;
    const FOUR_YEARS: i64 = 4 * YEAR + 1;
    const CENTURY: i64 = 25 * FOUR_YEARS - 1;
    const FOUR_CENTURIES: i64 = 4 * CENTURY + 1;
    /// Days from 0000-03-01 to 1970-01-01.
    const TO_1970: i64 = 719_468;

    let days = days + TO_1970;
    let cycle = days.div_euclid(FOUR_CENTURIES);
    let mut rest = days.rem_euclid(FOUR_CENTURIES);
    // The last century of a cycle, and the last year of four, are a day longer: that day must not count as a fifth.
    let century = (rest / CENTURY).min(3);
    rest -= century * CENTURY;
    let fours = rest / FOUR_YEARS;
    rest -= fours * FOUR_YEARS;
    let years = (rest / YEAR).min(3);
    rest -= years * YEAR;

    // From March on, five months have 153 days: 31, 30, 31, 30, 31, and again.
    let from_march = (5 * rest + 2) / 153;
    let day = rest - (153 * from_march + 2) / 5 + 1;
    // January and February belong to the year that began in the March before.
    let (month, carry) = if from_march < 10 {
        (from_march + 3, 0)
    } else {
        (from_march - 9, 1)
    };
    let year = 400 * cycle + 100 * century + 4 * fours + years + carry;
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn time(millis: u64) -> String {
        let mut line = String::new();
        push_time(&mut line, UNIX_EPOCH + Duration::from_millis(millis));
        line
    }

    /// Values from `date --utc --date=@N`.
    #[test]
    fn known_times() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_234_567_890_007, "2009-02-13T23:31:30.007Z"),
            (1_767_614_400_123, "2026-01-05T12:00:00.123Z"),
            (1_709_251_199_000, "2024-02-29T23:59:59.000Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ];
        for (millis, text) in table {
            assert_eq!(time(millis), text);
        }
    }

    #[test]
    fn times_before_1970_and_after_the_end() {
        let mut line = String::new();
        push_time(&mut line, UNIX_EPOCH - Duration::from_micros(500));
        assert_eq!(line, "1969-12-31T23:59:59.999Z");
        line.clear();
        push_time(&mut line, UNIX_EPOCH - Duration::from_secs(86_400));
        assert_eq!(line, "1969-12-31T00:00:00.000Z");
        // Nothing the system can express panics.
        for far in [u64::MAX / 1_000_000_000, i64::MAX as u64] {
            let span = Duration::from_secs(far);
            let times = [UNIX_EPOCH.checked_add(span), UNIX_EPOCH.checked_sub(span)];
            // Windows expresses less than Unix: neither of the second two.
            assert!(cfg!(windows) || times.iter().any(Option::is_some));
            for when in times.into_iter().flatten() {
                line.clear();
                push_time(&mut line, when);
                assert!(line.ends_with('Z'));
            }
        }
    }

    /// Day by day through two whole cycles, beside a calendar that only knows the lengths of the months.
    #[test]
    fn every_day_of_eight_centuries() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..2 * 146_097 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
        assert_eq!((year, month, day), (2770, 1, 1));
    }

    fn line(level: Level, target: &str, text: fmt::Arguments<'_>, colour: bool) -> String {
        let when = UNIX_EPOCH + Duration::from_millis(1_767_614_400_123);
        render(when, level, target, text, Style::Text { colour })
    }

    #[test]
    fn a_code_at_the_end_is_a_key_of_its_own() {
        let code = |text: &str| {
            let line: serde_json::Value =
                serde_json::from_str(&json_line(format_args!("{text}"))).unwrap();
            line.get("code")
                .and_then(|code| code.as_str())
                .map(str::to_owned)
        };
        assert_eq!(code("no way code=E1004").as_deref(), Some("E1004"));
        assert_eq!(
            code("no way code=E1004 (5 more in 10 s)").as_deref(),
            Some("E1004")
        );
        // Not what a stranger put into quotes, nor what is half a code.
        for none in [
            "no way",
            "said \"code=E1004\"",
            "a code=E1004 b",
            "code=E1004",
            "a code=E100",
            "a code=E100é",
            "a code=1004",
        ] {
            assert_eq!(code(none), None, "{none}");
        }
    }

    fn json_line(text: fmt::Arguments<'_>) -> String {
        let when = UNIX_EPOCH + Duration::from_millis(1_767_614_400_123);
        render(
            when,
            Level::Warn,
            "minitcptunnel_server::control",
            text,
            Style::Json,
        )
    }

    #[test]
    fn the_published_json() {
        assert_eq!(
            json_line(format_args!("Tunnel opened: {:?} on port {}", "web", 8080)),
            "{\"ts\":\"2026-01-05T12:00:00.123Z\",\"level\":\"WARN\",\"target\":\"server::control\",\
             \"msg\":\"Tunnel opened: \\\"web\\\" on port 8080\"}\n"
        );
    }

    /// What a parser reads is what was said; what a terminal shows is harmless.
    #[test]
    fn json_cannot_be_forged() {
        let table = [
            ("a\nb\r\tc", r"a\nb\r\tc"),
            (
                r#"","level":"ERROR","x":""#,
                r#"\",\"level\":\"ERROR\",\"x\":\""#,
            ),
            (r"C:\new\", r"C:\\new\\"),
            (
                "\0\x08\x0c\x1b[2J\x7f",
                r"\u0000\u0008\u000c\u001b[2J\u007f",
            ),
            ("\u{9b}31m\u{85}\u{2028}", r"\u009b31m\u0085\u2028"),
            ("\u{202e}gpj.exe\u{e0041}", r"\u202egpj.exe\udb40\udc41"),
            ("Grüße, 世界 🦀", "Grüße, 世界 🦀"),
        ];
        for (evil, raw) in table {
            let line = json_line(format_args!("{evil}"));
            assert!(line.ends_with(&format!(",\"msg\":\"{raw}\"}}\n")), "{line}");
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["msg"], evil);
            assert_eq!(value["level"], "WARN");
            assert_eq!(value.as_object().unwrap().len(), 4);
        }
        for code in (0..0x20).chain(0x7f..0xa0) {
            let evil = char::from_u32(code).unwrap();
            let line = json_line(format_args!("{evil}"));
            assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["msg"], evil.to_string());
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_utf8_are_still_json() {
        use std::os::unix::ffi::OsStrExt as _;

        let name = std::ffi::OsStr::from_bytes(b"a\xff\xed\xa0\x80\nb");
        let line = json_line(format_args!("{}", std::path::Path::new(name).display()));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = value["msg"].as_str().unwrap();
        assert!(
            text.starts_with("a\u{fffd}") && text.ends_with("\nb"),
            "{text:?}"
        );
    }

    #[test]
    fn a_long_text_is_cut_in_json_too() {
        let line = json_line(format_args!("{}", "\"".repeat(MAX_TEXT)));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = value["msg"].as_str().unwrap();
        assert!(text.ends_with(" more bytes]"), "{text}");
        assert!(line.len() < MAX_TEXT + 200);
    }

    #[test]
    fn the_published_format() {
        assert_eq!(
            line(
                Level::Info,
                "minitcptunnel_server::control",
                format_args!("Tunnel opened: {} on port {}", "web", 8080),
                false
            ),
            "2026-01-05T12:00:00.123Z INFO  server::control: Tunnel opened: web on port 8080\n"
        );
        assert_eq!(
            line(Level::Error, "x", format_args!("y"), true),
            "2026-01-05T12:00:00.123Z \x1b[1;31mERROR\x1b[0m x: y\n"
        );
        // Texts begin in the same column at every level, coloured or not.
        for level in Level::iter() {
            let plain = line(level, "x", format_args!("y"), false);
            assert_eq!(plain.find("x: y"), Some(31), "{plain}");
            assert!(line(level, "x", format_args!("y"), true).contains("\x1b[0m x: y\n"));
        }
    }

    #[test]
    fn targets_are_shortened() {
        let table = [
            ("minitcptunnel_server", "server"),
            ("minitcptunnel_server::control", "server::control"),
            ("minitcptunnel_client::proxy", "client::proxy"),
            ("minitcptunnel_common", "common"),
            ("minitcptunnel_common::wire", "wire"),
            ("minitcptunnel_common::wire::frame", "wire::frame"),
            ("minitcptunnelish::common", "minitcptunnelish::common"),
            ("mio::poll", "mio::poll"),
        ];
        for (path, short) in table {
            assert_eq!(short_target(path), short);
        }
    }

    #[test]
    fn nothing_forges_a_line_or_drives_a_terminal() {
        let table = [
            ("a\nb", "a\\nb"),
            ("a\r\nb", "a\\r\\nb"),
            ("a\tb", "a\\tb"),
            ("\x1b[2J", "\\u{1b}[2J"),
            (
                "\0\x07\x08\x0b\x0c\x7f",
                "\\u{0}\\u{7}\\u{8}\\u{b}\\u{c}\\u{7f}",
            ),
            ("\u{85}\u{9b}31m", "\\u{85}\\u{9b}31m"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("\u{2066}x\u{2069}\u{200f}", "\\u{2066}x\\u{2069}\\u{200f}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("\u{200b}\u{feff}\u{e0041}", "\\u{200b}\\u{feff}\\u{e0041}"),
            // Ordinary text of any language, and paths, stay readable.
            ("Grüße, 世界, مرحبا, C:\\x", "Grüße, 世界, مرحبا, C:\\x"),
        ];
        for (evil, safe) in table {
            assert_eq!(
                line(Level::Warn, "t", format_args!("{evil}"), false),
                format!("2026-01-05T12:00:00.123Z WARN  t: {safe}\n")
            );
        }
        // The target too.
        assert!(line(Level::Warn, "t\nu", format_args!("x"), false).ends_with("t\\nu: x\n"));
        // And by the whole set: no control character of Unicode passes.
        for code in (0..0x20).chain(0x7f..0xa0) {
            let evil = char::from_u32(code).unwrap();
            let made = line(Level::Warn, "t", format_args!("{evil}"), false);
            assert_eq!(
                made.chars().filter(|c| c.is_control()).count(),
                1,
                "{code:x}"
            );
        }
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        let head = line(Level::Info, "t", format_args!(""), false).len();
        let room = MAX_TEXT - "t: ".len();
        let fits = "x".repeat(room);
        assert_eq!(
            line(Level::Info, "t", format_args!("{fits}"), false).len(),
            head + room
        );
        let made = line(Level::Info, "t", format_args!("{fits}éyy"), false);
        assert!(made.ends_with("x... [4 more bytes]\n"));
        // An escape is never cut in half, and nothing smaller slips in behind the cut.
        let made = line(
            Level::Info,
            "t",
            format_args!("{}\x1by", "x".repeat(room - 2)),
            false,
        );
        assert!(made.ends_with("xx... [2 more bytes]\n"));
        // Escapes grow the text, not the line.
        let made = line(
            Level::Info,
            "t",
            format_args!("{}", "\x1b".repeat(1 << 20)),
            false,
        );
        assert!(made.len() < MAX_TEXT + 200);
    }
}
