//! How a command of either program answers: what there is to say on stdout, or what went wrong on stderr with the
//! code to look it up under, and the exit code.

use std::fmt;
use std::io::{self, Write};

use crate::codes::{Code, Coded, log_lines};
use crate::exit::ExitCode;

/// A command line that cannot be followed, or one that asks for help.
pub fn misused(program: &str, e: &clap::Error) -> ExitCode {
    let _ = e.print();
    if !e.use_stderr() {
        return ExitCode::Ok;
    }
    let _ = writeln!(io::stderr(), "\n{}", Code::USAGE.pointer(program));
    ExitCode::Usage
}

/// Prints what a command has to say, or what went wrong.
pub fn answer<E: fmt::Display + Coded>(program: &str, result: Result<String, E>) -> ExitCode {
    match result {
        Ok(text) => say(&text),
        Err(e) => complain(program, &e),
    }
}

/// Prints what a command has to say. A closed stdout is nobody's problem.
pub fn say(text: &str) -> ExitCode {
    let _ = writeln!(io::stdout(), "{text}");
    ExitCode::Ok
}

/// Prints what went wrong.
pub fn complain(program: &str, e: &(impl fmt::Display + Coded)) -> ExitCode {
    let _ = writeln!(io::stderr(), "{e}\n{}", e.code().pointer(program));
    e.exit_code()
}

/// Why a program does not run, as lines of the log; they are its own, so `target` is its `module_path!()`.
pub fn give_up(target: &str, e: &(impl fmt::Display + Coded)) -> ExitCode {
    let lines = log_lines(e);
    (lines.iter()).for_each(|line| log::error!(target: target, "{line}"));
    e.exit_code()
}
