//! MiniTCPTunnel server program: arguments, configuration, start, signals, exit code.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use minitcptunnel_common::config::{Grace, Seconds};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::log::{self as logging, Format, LogOptions, Logging, Verbosity};
use minitcptunnel_common::signals;
use minitcptunnel_server::cli::{self, certs};
use minitcptunnel_server::config::{self, Checked, Overrides};
use minitcptunnel_server::jobs;
use minitcptunnel_server::reverse::StartError;

/// Opens public ports for the local services of MiniTCPTunnel clients, and takes TLS in for target services of its own.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Subcommands>,
    /// Port that clients connect to [default: 9000, or as configured]
    #[arg(long, global = true, value_name = "PORT")]
    port: Option<u16>,
    /// Address to listen on [default: "::", all of IPv6 and IPv4, or as configured]
    #[arg(long, global = true, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Configuration file, JSON or YAML; without it the defaults hold
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stop after this many seconds; of health and doctor: give up a question after them [default: 5]
    #[arg(long, global = true, value_name = "SECONDS")]
    timeout: Option<Seconds>,
    /// How long running connections may go on after a signal [default: 5, or as configured]
    #[arg(long, global = true, value_name = "SECONDS")]
    grace: Option<Grace>,
    /// Log one line per connection
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Log everything, also what libraries have to say
    #[arg(long, global = true)]
    debug: bool,
    /// Log to this file as well as to stdout [default: as configured]
    #[arg(long, global = true, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// What log lines look like: text or json [default: text, or as configured]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<Format>,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Serve (what happens without a command)
    Run,
    /// Print the server's public key, for the clients' server_pub_key
    Pubkey,
    /// Check the configuration and say what it would do
    Check,
    /// Ask the server that runs with this configuration whether it answers; exit code 1 if not
    Health,
    /// Look for what is wrong: configuration, key, list, ports, targets, limits; the exit code is that of the worst
    Doctor {
        /// Print one JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Make certificates for TLS: a CA, and what it signs
    Certs {
        #[command(subcommand)]
        command: certs::Command,
    },
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    if let Some(Subcommands::Certs { command }) = &arguments.command {
        return print(certs::run(command), certs::exit_code).into();
    }
    let overrides = Overrides {
        port: arguments.port,
        bind: arguments.bind,
        grace: arguments.grace.map(Grace::duration),
    };
    let checked = config::load(arguments.config.as_deref(), &overrides);
    let command = arguments.command.as_ref().unwrap_or(&Subcommands::Run);
    match (command, checked) {
        (Subcommands::Run, checked) => {
            // Where the configuration is broken, nobody knows what it says about the log.
            let configured = checked
                .as_ref()
                .map_or_else(|_| Logging::default(), |it| it.config.logging.clone());
            let _log = logging::init(log_options(&arguments, configured));
            match checked {
                Ok(checked) => run(&arguments, checked),
                Err(e) => {
                    e.to_string().lines().for_each(|line| log::error!("{line}"));
                    ExitCode::Configuration
                }
            }
        }
        (Subcommands::Pubkey, Ok(checked)) => {
            print(cli::pubkey(&checked.config), StartError::exit_code)
        }
        (Subcommands::Check, Ok(checked)) => {
            print(cli::check(&checked), jobs::StartError::exit_code)
        }
        (Subcommands::Health, Ok(checked)) => {
            let within = arguments.timeout.map(Seconds::duration);
            print(cli::health::health(&checked.config, within), |_| {
                ExitCode::Failure
            })
        }
        (Subcommands::Doctor { json }, checked) => {
            let within = arguments.timeout.map(Seconds::duration);
            let file = arguments.config.as_deref();
            cli::doctor::doctor(file, checked, within, *json, io::stdout())
        }
        // Done above: certificates are made without a configuration.
        (Subcommands::Certs { .. }, _) => ExitCode::Ok,
        (_, Err(e)) => complain(&e, ExitCode::Configuration),
    }
    .into()
}

fn log_options(arguments: &Arguments, configured: Logging) -> LogOptions {
    let verbosity = match (arguments.debug, arguments.verbose) {
        (true, _) => Verbosity::Debug,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    LogOptions {
        verbosity,
        format: arguments.log_format,
        file: arguments.log_file.clone(),
        configured,
        ..LogOptions::default()
    }
}

/// Prints what a command has to say, or what went wrong. A closed stdout is nobody's problem.
fn print<E: std::error::Error>(result: Result<String, E>, code: fn(&E) -> ExitCode) -> ExitCode {
    match result {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::Ok
        }
        Err(e) => complain(&e, code(&e)),
    }
}

fn complain(e: &dyn std::error::Error, code: ExitCode) -> ExitCode {
    let _ = writeln!(io::stderr(), "{e}");
    code
}

fn run(arguments: &Arguments, checked: Checked) -> ExitCode {
    for warning in &checked.warnings {
        log::warn!("{warning}");
    }
    let grace = checked.config.grace;
    // Before the first socket: a signal during the start must not be lost.
    let (stop, stopped) = crossbeam_channel::bounded::<()>(1);
    let signalled = AtomicBool::new(false);
    let handler = move || {
        if signalled.swap(true, Ordering::SeqCst) {
            log::logger().flush();
            std::process::exit(ExitCode::SecondSignal.number().into());
        }
        log::info!("Stopping; a second signal stops at once");
        let _ = stop.try_send(());
    };
    if let Err(e) = signals::handle(handler) {
        log::error!("signals cannot be handled: {e}");
        return ExitCode::Resources;
    }
    let handle = match jobs::start(checked.config) {
        Ok(handle) => handle,
        Err(e) => {
            log::error!("{e}");
            return e.exit_code();
        }
    };
    let timeout = arguments.timeout.map(Seconds::duration);
    let after = timeout.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    let failed = handle.failed();
    crossbeam_channel::select! {
        recv(stopped) -> _ => {}
        recv(after) -> _ => log::info!("Stopping: --timeout has passed"),
        recv(failed[0]) -> _ => {}
        recv(failed[1]) -> _ => {}
    }
    match handle.stop(grace) {
        Ok(()) => ExitCode::Ok,
        Err(e) => {
            log::error!(
                "the server's loop failed: {e}. This is a bug or a broken system; please report it"
            );
            ExitCode::Failure
        }
    }
}
