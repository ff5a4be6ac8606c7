//! Measures MiniTCPTunnel beside the direct path and its peers. `scripts/bench` builds and starts it.
//!
//! ```text
//!  run ─┬─ targets   a service and a tunnel each: direct, ours, rathole, bore, ssh, wstunnel; or, for
//!       │            the forward tunnel, direct, ours, stunnel, haproxy, nginx, ghostunnel, ssh, wstunnel
//!       ├─ load      bulk, ping, new connections, held connections  ──> tunnel ──> service
//!       ├─ process   CPU seconds, PSS, threads of the tunnel's programs, from /proc
//!       └─ report    medians with spread, ratios, JSON
//!  ladder            our own layers, one upon the other
//!  count ── steps    instructions of the per-frame path, under valgrind
//! ```
//!
//! Linux only: the figures of the programs come from `/proc`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod count;
mod ladder;
mod load;
mod options;
mod process;
mod report;
mod run;
mod service;
mod stats;
mod steps;
mod targets;

use std::process::ExitCode;

use options::{Command, Options};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    // Not for people: the local service that each tunnel leads to runs in a process of its own.
    if arguments.next_if_eq("service").is_some() {
        return told(service::run());
    }
    // Nor this: what is run under an instruction counter.
    if arguments.next_if_eq("loop").is_some() {
        return told(steps::run(arguments));
    }
    match Options::parse(arguments) {
        Ok(Command::Help) => {
            print!("{}", options::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Run(options)) => told(run::run(&options)),
        Ok(Command::Ladder(options)) => told(ladder::run(&options)),
        Ok(Command::Count(save)) => told(count::run(save)),
        Err(e) => {
            eprintln!("bench: {e}; try --help");
            ExitCode::from(2)
        }
    }
}

fn told(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}
