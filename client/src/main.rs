//! MiniTCPTunnel client program: arguments, configuration, start, signals, exit code.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use minitcptunnel_client::cli::{self, Arguments, CheckError, Subcommands};
use minitcptunnel_client::config;
use minitcptunnel_client::jobs;
use minitcptunnel_common::config::{Grace, Seconds};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::log as logging;
use minitcptunnel_common::{resources, signals};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let file = &arguments.config;
    match arguments.command {
        None | Some(Subcommands::Run) => run(&arguments),
        Some(Subcommands::Keygen) => print(cli::keygen(file), cli::code_of_config),
        Some(Subcommands::Pubkey) => print(cli::pubkey(file), cli::code_of_config),
        Some(Subcommands::Check) => {
            print(cli::check(file, arguments.pinning()), CheckError::exit_code)
        }
        Some(Subcommands::Health) => health(&arguments),
        Some(Subcommands::Doctor(options)) => {
            cli::doctor::doctor(&arguments, options, io::stdout())
        }
    }
    .into()
}

/// Prints what a command has to say, or what went wrong. A closed stdout is nobody's problem.
fn print<E: std::fmt::Display>(result: Result<String, E>, code: fn(&E) -> ExitCode) -> ExitCode {
    match result {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::Ok
        }
        Err(e) => {
            let _ = writeln!(io::stderr(), "{e}");
            code(&e)
        }
    }
}

fn health(arguments: &Arguments) -> ExitCode {
    let within = arguments.timeout.map(Seconds::duration);
    match config::load(&arguments.config, arguments.pinning()) {
        Ok(checked) => print(cli::health::health(&checked.config, within), |_| {
            ExitCode::Failure
        }),
        Err(e) => print(Err(e), cli::code_of_config),
    }
}

fn run(arguments: &Arguments) -> ExitCode {
    let loaded = cli::load(&arguments.config, arguments.pinning());
    let _log = logging::init(arguments.log_options(loaded.logging()));
    loaded.log_news();
    let checked = match loaded.checked {
        Ok(checked) => checked,
        Err(e) => {
            e.to_string().lines().for_each(|line| log::error!("{line}"));
            return cli::code_of_config(&e);
        }
    };
    checked
        .warnings
        .iter()
        .for_each(|warning| log::warn!("{warning}"));
    // A running connection holds two.
    resources::raise_open_files();
    let jobs = match jobs::start(&checked.config) {
        Ok(jobs) => jobs,
        Err(e) => {
            log::error!("{e}");
            return e.exit_code();
        }
    };
    let (stopper, signalled) = (jobs.stopper(), AtomicBool::new(false));
    let handler = move || {
        if signalled.swap(true, Ordering::SeqCst) {
            log::logger().flush();
            std::process::exit(ExitCode::SecondSignal.number().into());
        }
        log::info!("Stopping; a second signal stops at once");
        stopper.stop();
    };
    if let Err(e) = signals::handle(handler) {
        log::error!("Signals cannot be handled: {e}");
        return ExitCode::Resources;
    }
    let end = jobs.wait(arguments.timeout.map(Seconds::duration));
    if end.is_none() {
        log::info!("Stopping: --timeout has passed");
    }
    jobs.stop(
        arguments
            .grace
            .map_or(checked.config.grace, Grace::duration),
    );
    end.map_or(ExitCode::Ok, |end| end.exit_code())
}
