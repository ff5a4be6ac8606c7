//! Text for a terminal, in lines.

/// Columns of a line. Most terminals have 80 at least, and commands should stay on one line.
pub(crate) const WIDTH: usize = 96;

/// Puts words into lines. The first has `column` columns already, the others begin with `indent` blanks.
pub(crate) fn wrap(
    out: &mut String,
    words: impl IntoIterator<Item = String>,
    mut column: usize,
    indent: usize,
) {
    for (n, word) in words.into_iter().enumerate() {
        let wide = width(&word);
        if n > 0 && column + 1 + wide > WIDTH {
            out.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if n > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(&word);
        column += wide;
    }
    out.push('\n');
}

/// How many columns a text takes in a terminal: letters of Korean take two.
pub(crate) fn width(text: &str) -> usize {
    let one = |c: char| {
        if matches!(c, '\u{1100}'..='\u{11ff}' | '\u{3000}'..='\u{d7ff}') {
            2
        } else {
            1
        }
    };
    text.chars().map(one).sum()
}
