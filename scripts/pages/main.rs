//! Manual pages and shell completions of both programs, from the descriptions behind `--help`.
//!
//! ```text
//!  clap's Command ─┬─ clap_mangen ──> FOLDER/man/PROGRAM[-SUBCOMMAND].1
//!                  └─ clap_complete ─> FOLDER/completions/{bash,zsh,fish,powershell}
//! ```

use std::path::Path;
use std::{env, fs, io, process};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use minitcptunnel_common::exit::ExitCode;

const SHELLS: [Shell; 4] = [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell];

#[allow(
    clippy::print_stderr,
    reason = "a tool of the release, not a program of ours"
)]
fn main() -> process::ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: minitcptunnel-pages FOLDER");
        return process::ExitCode::from(ExitCode::Usage.number());
    };
    let programs = [
        minitcptunnel_server::cli::Arguments::command().name("minitcptunnel-server"),
        minitcptunnel_client::cli::Arguments::command().name("minitcptunnel-client"),
    ];
    for program in programs {
        if let Err(e) = write(Path::new(&folder), program) {
            eprintln!("cannot write to {}: {e}", folder.display());
            return process::ExitCode::from(ExitCode::Failure.number());
        }
    }
    process::ExitCode::SUCCESS
}

/// `help SUBCOMMAND` would have a page for each of the others.
fn without_help(command: Command) -> Command {
    let names: Vec<String> = (command.get_subcommands())
        .map(|it| it.get_name().to_owned())
        .collect();
    let command = command.disable_help_subcommand(true);
    (names.iter()).fold(command, |command, name| {
        command.mut_subcommand(name, without_help)
    })
}

fn write(folder: &Path, mut program: Command) -> io::Result<()> {
    let name = program.get_name().to_owned();
    // Before clap builds it for the completions: then the help subcommands are there.
    let described = without_help(program.clone());
    let completions = folder.join("completions");
    for shell in SHELLS {
        let folder = completions.join(shell.to_string());
        fs::create_dir_all(&folder)?;
        clap_complete::generate_to(shell, &mut program, &name, folder)?;
    }
    let manual = folder.join("man");
    fs::create_dir_all(&manual)?;
    clap_mangen::generate_to(described.clone(), &manual)?;
    // The page of the program itself says what no description of arguments knows.
    let mut page = Vec::new();
    Man::new(described).render(&mut page)?;
    more(&name).to_writer(&mut page)?;
    fs::write(manual.join(format!("{name}.1")), page)
}

fn more(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for code in ExitCode::ALL {
        roff.control("TP", []);
        roff.text([bold(code.number().to_string())]);
        roff.text([roman(format!("{}.", code.describe()))]);
    }
    roff.control("SH", ["SIGNALS"]);
    for (signals, what) in [
        (
            "SIGINT, SIGTERM",
            "Nothing new is accepted; running connections get the grace period. A second one ends at once.",
        ),
        (
            "SIGHUP",
            "The log file, if there is one, is opened anew. Without one, and away from a terminal, nothing happens.",
        ),
    ] {
        roff.control("TP", []);
        roff.text([bold(signals)]);
        roff.text([roman(what)]);
    }
    let other = if name.ends_with("server") {
        "minitcptunnel-client"
    } else {
        "minitcptunnel-server"
    };
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(other), roman("(1)")]);
    roff
}
