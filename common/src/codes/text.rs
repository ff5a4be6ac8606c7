//! The texts behind the codes, three files that say the same in three languages.
//!
//! ```text
//!  == E0301 The title, without a full stop
//!  Cause: one sentence: what happened and why.
//!  Cure: one sentence: what to do.
//!
//!  More, as long as it helps.
//! ```

use std::env;
use std::fmt;
use std::str::FromStr;

use super::Code;

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
            .and_then(|locale| locale.get(..2)?.parse().ok())
            .unwrap_or_default()
    }

    fn catalogue(self) -> &'static str {
        match self {
            Self::En => include_str!("en.txt"),
            Self::Ko => include_str!("ko.txt"),
            Self::Fr => include_str!("fr.txt"),
        }
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
            Lang::Fr => ("Cause", "Remède"),
        };
        write!(
            f,
            "{}: {}\n\n{cause}: {}\n{cure}: {}",
            self.code, self.title, self.cause, self.cure
        )?;
        if !self.more.is_empty() {
            write!(f, "\n\n{}", self.more)?;
        }
        Ok(())
    }
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
