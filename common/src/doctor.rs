//! What is wrong with an installation, found before its log has to tell: for the commands `doctor` of both programs.
//!
//! ```text
//!  checks ── Finding ──> Report ──> a line each, with cause and cure    (or one JSON object)
//!                          └──────> exit code: what the worst finding says
//! ```
//!
//! A check looks, and changes nothing: no file is made, no key, no session. Each has its deadline, so that the whole
//! ends. Here are the checks that both programs need; each program knows its own besides.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde_json::{Map, Value, json};

use crate::codes::{Code, Lang, lines};
use crate::exit::ExitCode;

pub mod certificates;
pub mod disk;
pub mod net;
pub mod settings;
pub mod system;

/// Where the text begins, behind the level and the name of the check.
const INDENT: usize = 21;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something works less well than it could, or will not for long.
    Warning,
    /// The tunnel, or a part of it, does not work.
    Error,
}

impl Level {
    /// As JSON and documents call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// As a line begins.
    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warn",
            Self::Error => "FAIL",
        }
    }

    const fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Note => "\x1b[36m",
            Self::Warning => "\x1b[33m",
            Self::Error => "\x1b[31m",
        }
    }
}

/// What one check has found.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// Which check: a word for scripts, which never changes its meaning.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// Where to read more. What is not as it should be has one.
    pub code: Option<Code>,
    /// What was found, in a sentence without a full stop.
    pub what: String,
    /// What to do here; `None`: what the code says.
    pub cure: Option<String>,
    /// What was measured, for programs.
    pub figures: Vec<(&'static str, f64)>,
}

impl Finding {
    fn new(check: &'static str, level: Level, code: Option<Code>, what: impl Into<String>) -> Self {
        Self {
            check,
            level,
            code,
            what: what.into(),
            cure: None,
            figures: Vec::new(),
        }
    }

    /// All is well.
    #[must_use]
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, None, what)
    }

    /// Worth knowing.
    #[must_use]
    pub fn note(
        check: &'static str,
        code: impl Into<Option<Code>>,
        what: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Note, code.into(), what)
    }

    /// Something to look at.
    #[must_use]
    pub fn warning(check: &'static str, code: Code, what: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, Some(code), what)
    }

    /// Something that keeps the tunnel, or a part of it, from working.
    #[must_use]
    pub fn error(check: &'static str, code: Code, what: impl Into<String>) -> Self {
        Self::new(check, Level::Error, Some(code), what)
    }

    /// With a cure of its own.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// With something that was measured.
    #[must_use]
    pub fn figure(mut self, name: &'static str, value: f64) -> Self {
        self.figures.push((name, value));
        self
    }

    /// As bad as `level`, but no worse.
    #[must_use]
    pub fn at_most(mut self, level: Level) -> Self {
        self.level = self.level.min(level);
        self
    }

    /// Cause and cure in this language, as far as there are any.
    fn explained(&self, lang: Lang) -> (Option<&'static str>, Option<String>) {
        let explanation = self.code.map(|code| code.explain(lang));
        let cure = explanation.map(|it| it.cure.to_owned());
        (
            explanation.map(|it| it.cause),
            self.cure.clone().or(cure).filter(|cure| !cure.is_empty()),
        )
    }

    fn json(&self, lang: Lang) -> Value {
        let (cause, cure) = self.explained(lang);
        let mut object = json!({
            "check": self.check,
            "level": self.level.name(),
            "code": self.code.map(|code| code.to_string()),
            "what": self.what,
            "cause": cause,
            "cure": cure,
        });
        if !self.figures.is_empty() {
            let figures = self.figures.iter();
            object["figures"] = figures
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<Map<_, _>>()
                .into();
        }
        object
    }
}

/// What a report looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// For people: a finding is shown as soon as it is there.
    Text {
        /// Whether the levels are coloured.
        colour: bool,
    },
    /// For programs: one object at the end.
    Json,
}

impl Form {
    /// As asked for. Colours are for terminals whose owner has not refused them (`NO_COLOR`).
    #[must_use]
    pub fn asked(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::Text {
            colour: io::stdout().is_terminal() && !refused,
        }
    }
}

/// All findings of one run, shown on `W`. A reader who leaves is nobody's problem.
pub struct Report<W> {
    program: &'static str,
    version: &'static str,
    form: Form,
    lang: Lang,
    findings: Vec<Finding>,
    out: W,
}

impl<W: Write> Report<W> {
    /// Of this program.
    pub fn new(
        program: &'static str,
        version: &'static str,
        form: Form,
        lang: Lang,
        out: W,
    ) -> Self {
        Self {
            program,
            version,
            form,
            lang,
            findings: Vec::new(),
            out,
        }
    }

    /// One more.
    pub fn add(&mut self, finding: Finding) {
        if let Form::Text { colour } = self.form {
            let text = text_of(&finding, colour, self.lang);
            let _ = self
                .out
                .write_all(text.as_bytes())
                .and_then(|()| self.out.flush());
        }
        self.findings.push(finding);
    }

    /// Several more.
    pub fn add_all(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How bad the worst is.
    #[must_use]
    pub fn worst(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }

    /// What to end with. Where the program itself would end over an error it is that number, the first such.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self.worst() {
            Level::Ok | Level::Note => ExitCode::Ok,
            Level::Warning => ExitCode::Warned,
            Level::Error => (self.findings.iter())
                .filter(|finding| finding.level == Level::Error)
                .find_map(|finding| finding.code?.exit_code())
                .unwrap_or(ExitCode::Unwell),
        }
    }

    /// The end: the object, or how many of what.
    pub fn finish(mut self) -> ExitCode {
        let code = self.exit_code();
        let last = match self.form {
            Form::Json => self.json().to_string(),
            Form::Text { .. } => format!("\n{}", self.summary()),
        };
        let _ = writeln!(self.out, "{last}");
        let _ = self.out.flush();
        code
    }

    fn json(&self) -> Value {
        let findings: Vec<_> = (self.findings.iter())
            .map(|finding| finding.json(self.lang))
            .collect();
        json!({
            "program": self.program,
            "version": self.version,
            "findings": findings,
            "worst": self.worst().name(),
            "exit_code": self.exit_code().number(),
        })
    }

    fn summary(&self) -> String {
        let count = |level| {
            let all = self.findings.iter();
            all.filter(|finding| finding.level == level).count()
        };
        let counts = format!(
            "{} findings: {} ok, {} to know, {} to look at, {} that keep something from working.",
            self.findings.len(),
            count(Level::Ok),
            count(Level::Note),
            count(Level::Warning),
            count(Level::Error)
        );
        if self.findings.iter().any(|finding| finding.code.is_some()) {
            let more = format!("`{} explain CODE` says more about a code.", self.program);
            format!("{counts}\n{more}")
        } else {
            counts
        }
    }
}

impl<W> fmt::Debug for Report<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.findings).finish()
    }
}

fn text_of(finding: &Finding, colour: bool, lang: Lang) -> String {
    let label = finding.level.label();
    let mut text = match colour {
        true => format!("{}{label:<4}\x1b[0m", finding.level.colour()),
        false => format!("{label:<4}"),
    };
    text.push_str(&format!("  {:<13}  ", finding.check));
    let what = match finding.code {
        Some(code) => format!("{} ({code})", finding.what),
        None => finding.what.clone(),
    };
    wrap(&mut text, &what, INDENT);
    if finding.level == Level::Ok {
        return text;
    }
    let (cause, cure) = finding.explained(lang);
    for (name, said) in [("cause", cause), ("cure", cure.as_deref())] {
        if let Some(said) = said {
            text.push_str(&format!("{:INDENT$}{name}: ", ""));
            wrap(&mut text, said, INDENT + name.len() + 2);
        }
    }
    text
}

/// Puts a text into lines; the first has begun already. What cannot be seen, and could pretend to be a line of ours, is
/// written out.
fn wrap(out: &mut String, text: &str, indent: usize) {
    let words = text.split_whitespace();
    let words = words.map(|word| word.chars().flat_map(visible).collect());
    lines::wrap(out, words, indent, indent);
}

fn visible(c: char) -> Vec<char> {
    if c.is_control() {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}

#[cfg(test)]
mod tests;
