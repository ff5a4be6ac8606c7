//! The texts behind the codes, three files that say the same in three languages.
//!
//! ```text
//!  == E0301 The title, without a full stop
//!  Cause: one sentence: what happened and why.
//!  Cure: one sentence: what to do.
//!
//!  More, as long as it helps.
//! ```
//!
//! In the program they are packed.

use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::{Code, lines};

/// A language of the explanations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Korean.
    Ko,
    /// French.
    Fr,
}

impl Lang {
    /// Every language.
    pub const ALL: [Self; 3] = [Self::En, Self::Ko, Self::Fr];

    /// The language of the locale (LC_ALL, LC_MESSAGES, LANG, in that order); English where it is another one.
    #[must_use]
    pub fn of_locale() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        ["LC_ALL", "LC_MESSAGES", "LANG"]
            .into_iter()
            .find_map(set)
            .map_or_else(Self::default, |locale| Self::named_by(&locale))
    }

    fn named_by(locale: &str) -> Self {
        let language = locale.split(['_', '.', '@']).next().unwrap_or_default();
        language.parse().unwrap_or_default()
    }

    /// The whole text, unpacked when it is asked for first.
    fn catalogue(self) -> &'static str {
        static TEXTS: [OnceLock<String>; Lang::ALL.len()] =
            [const { OnceLock::new() }; Lang::ALL.len()];
        // Packed by build.rs, with the length in front.
        let packed: &[u8] = match self {
            Self::En => include_bytes!(concat!(env!("OUT_DIR"), "/en.lz4")),
            Self::Ko => include_bytes!(concat!(env!("OUT_DIR"), "/ko.lz4")),
            Self::Fr => include_bytes!(concat!(env!("OUT_DIR"), "/fr.lz4")),
        };
        TEXTS[self as usize].get_or_init(|| {
            let text = lz4::block::decompress(packed, None).expect("as build.rs packed it");
            String::from_utf8(text).expect("it was text before")
        })
    }
}

impl FromStr for Lang {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "en" => Ok(Self::En),
            "ko" => Ok(Self::Ko),
            "fr" => Ok(Self::Fr),
            _ => Err(format!("{text:?} is none of en, ko, fr")),
        }
    }
}

/// What is known about a code, in one language.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The code.
    pub code: Code,
    /// What it is called.
    pub title: &'static str,
    /// A sentence: what happened, and why.
    pub cause: &'static str,
    /// A sentence: what to do.
    pub cure: &'static str,
    /// The long form; may be empty.
    pub more: &'static str,
    lang: Lang,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, cure) = match self.lang {
            Lang::En => ("Cause", "Cure"),
            Lang::Ko => ("원인", "해결"),
            Lang::Fr => ("Cause ", "Remède "),
        };
        let mut text = format!("{}: {}\n\n", self.code, self.title);
        wrap(&mut text, &format!("{cause}: {}", self.cause));
        wrap(&mut text, &format!("{cure}: {}", self.cure));
        if !self.more.is_empty() {
            text.push('\n');
            self.more.lines().for_each(|line| wrap(&mut text, line));
        }
        f.write_str(text.trim_end())
    }
}

/// What `explain` prints: these codes, or a table of all. The language is that of the locale unless one is asked for.
#[must_use]
pub fn explain(codes: &[Code], lang: Option<Lang>) -> String {
    let lang = lang.unwrap_or_else(Lang::of_locale);
    let lines: Vec<String> = if codes.is_empty() {
        Code::ALL.iter().map(|code| row(*code, lang)).collect()
    } else {
        codes
            .iter()
            .map(|it| it.explain(lang).to_string())
            .collect()
    };
    if codes.is_empty() {
        let head = match lang {
            Lang::En => "Code   Exit  What happened; `explain CODE` says more",
            Lang::Ko => "코드   종료  무슨 일인지; 자세히는 `explain CODE`",
            Lang::Fr => "Code   Fin   Ce qui s'est passé ; `explain CODE` en dit plus",
        };
        format!("{head}\n{}", lines.join("\n"))
    } else {
        lines.join("\n\n")
    }
}

/// A line of the table: the exit code is blank where the program goes on.
fn row(code: Code, lang: Lang) -> String {
    let exit = code.exit_code().map(|exit| exit.number().to_string());
    let title = code.explain(lang).title;
    format!("{code}  {:<4}  {title}", exit.unwrap_or_default())
}

/// Breaks a line of text where it is wider than a terminal; what follows stands under its beginning.
fn wrap(text: &mut String, line: &str) {
    let numbered = line
        .split_once(". ")
        .is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    let indent = if numbered { 3 } else { 0 };
    lines::wrap(text, words(line), 0, indent);
}

/// In French a mark of two parts stands alone, but belongs to the word before it.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for next in line.split(' ') {
        let mark = matches!(next, ":" | ";" | "?" | "!" | "»");
        match words.last_mut() {
            Some(word) if mark || word == "«" || word.ends_with(" «") => {
                word.push(' ');
                word.push_str(next);
            }
            _ => words.push(next.to_owned()),
        }
    }
    words
}

/// The entry of this code. The tests know that each is there in every language.
pub(super) fn of(code: Code, lang: Lang) -> Explanation {
    let head = format!("== {code} ");
    let catalogue = lang.catalogue();
    let entry = catalogue.split_once(&head).map_or("", |(_, rest)| rest);
    let entry = entry.split("\n== ").next().unwrap_or_default();
    let (title, rest) = entry.split_once('\n').unwrap_or((entry, ""));
    let (sentences, more) = rest.split_once("\n\n").unwrap_or((rest, ""));
    let sentence = |name: &str| {
        let line = sentences.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim()
    };
    Explanation {
        code,
        title: title.trim(),
        cause: sentence("Cause:"),
        cure: sentence("Cure:"),
        more: more.trim(),
        lang,
    }
}

#[cfg(test)]
mod tests {
    use super::lines::{WIDTH, width};
    use super::*;

    #[test]
    fn every_code_is_explained_in_every_language_and_nothing_else_is() {
        for lang in Lang::ALL {
            for code in Code::ALL {
                let it = code.explain(lang);
                for (what, text) in [("title", it.title), ("cause", it.cause), ("cure", it.cure)] {
                    assert!(!text.is_empty(), "{code} has no {what} in {lang:?}");
                }
                for sentence in [it.cause, it.cure] {
                    assert!(
                        sentence.ends_with(['.', '。']),
                        "{code} {lang:?}: {sentence}"
                    );
                }
                assert!(!it.title.ends_with('.'), "{code} {lang:?}");
            }
            let heads = lang.catalogue().lines().filter(|l| l.starts_with("== "));
            let heads: Vec<&str> = heads.map(|l| &l[3..8]).collect();
            let codes: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
            assert_eq!(
                heads, codes,
                "{lang:?}: the codes, in their order, none twice"
            );
        }
    }

    #[test]
    fn lines_fit_a_terminal_and_lose_nothing() {
        for lang in Lang::ALL {
            for code in Code::ALL {
                let it = code.explain(lang);
                let shown = it.to_string();
                for line in shown.lines().chain(explain(&[], Some(lang)).lines()) {
                    assert!(width(line) <= WIDTH, "{code} {lang:?}: {line}");
                    assert!(
                        !line.trim_start().starts_with([';', ':', '?', '!', '»']),
                        "{line}"
                    );
                    assert!(!line.ends_with('«'), "{line}");
                }
                let words: Vec<&str> = shown.split_whitespace().collect();
                let said = words.join(" ");
                for part in [it.title, it.cause, it.cure]
                    .into_iter()
                    .chain(it.more.lines())
                {
                    assert!(said.contains(part), "{code} {lang:?}: {part}");
                }
            }
        }
    }

    #[test]
    fn the_numbers_of_steps_are_in_order() {
        for lang in Lang::ALL {
            for code in Code::ALL {
                let steps = code
                    .explain(lang)
                    .more
                    .lines()
                    .filter_map(|line| line.split_once(". "));
                let numbers: Vec<usize> = steps
                    .filter_map(|(number, _)| number.parse().ok())
                    .collect();
                assert!(
                    numbers.iter().copied().eq(1..=numbers.len()),
                    "{code} {lang:?}"
                );
            }
        }
    }

    /// Commands, options and keys are the same in every language; a translation that lacks one is out of date.
    #[test]
    fn translations_name_the_same_codes_and_options() {
        let names = |lang: Lang, code: Code| {
            let it = code.explain(lang);
            let all = [it.cause, it.cure, it.more].join(" ");
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            let mut names: Vec<String> = (all.split(|c| !is_part(c)))
                .map(|word| word.trim_end_matches(['.', '-']))
                .filter(|word| {
                    word.starts_with("--") || word.contains('_') || word.parse::<Code>().is_ok()
                })
                .map(str::to_owned)
                .collect();
            names.sort();
            names.dedup();
            names
        };
        for code in Code::ALL {
            let english = names(Lang::En, *code);
            for lang in [Lang::Ko, Lang::Fr] {
                assert_eq!(names(lang, *code), english, "{code} {lang:?}");
            }
        }
    }

    #[test]
    fn the_locale_is_a_language_or_english() {
        for (locale, lang) in [
            ("ko_KR.UTF-8", Lang::Ko),
            ("fr", Lang::Fr),
            ("fr_CA@euro", Lang::Fr),
            ("de_DE.UTF-8", Lang::En),
            ("C", Lang::En),
            ("한국어", Lang::En),
        ] {
            assert_eq!(Lang::named_by(locale), lang, "{locale}");
        }
    }

    #[test]
    fn languages_differ() {
        for code in Code::ALL {
            let all = Lang::ALL.map(|lang| code.explain(lang).cause);
            assert!(
                all[0] != all[1] && all[0] != all[2] && all[1] != all[2],
                "{code}"
            );
        }
    }
}
