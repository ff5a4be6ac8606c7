//! MiniTCPTunnel server program: arguments, configuration, start, signals, exit code.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use minitcptunnel_common::codes::{self, Code, Coded, Lang};
use minitcptunnel_common::config::{ConfigError, Grace, Seconds};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::log::{self as logging, Format, LogOptions, Logging, Verbosity};
use minitcptunnel_common::service::{self, notify};
use minitcptunnel_common::signals;
use minitcptunnel_server::cli::{self, certs};
use minitcptunnel_server::config::{self, Checked, Overrides};
use minitcptunnel_server::jobs;

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
    /// Run as a service that starts with the system; options in front of it are the service's
    Service {
        #[command(subcommand)]
        command: service::Command,
    },
    /// Make certificates for TLS: a CA, and what it signs
    Certs {
        #[command(subcommand)]
        command: certs::Command,
    },
    /// Say what an error code means and what to do about it; without a code, list all
    Explain {
        /// As in messages and in the log: E0301
        #[arg(value_name = "CODE")]
        codes: Vec<Code>,
        /// en, ko or fr [default: that of the locale]
        #[arg(long, value_name = "LANGUAGE")]
        lang: Option<Lang>,
    },
}

/// What this program is called in its own messages.
const NAME: &str = "minitcptunnel-server";

fn main() -> std::process::ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => return misused(&e).into(),
    };
    // These do without a configuration.
    match &arguments.command {
        Some(Subcommands::Certs { command }) => return print(certs::run(command)).into(),
        Some(Subcommands::Explain { codes, lang }) => {
            return say(&codes::explain(codes, *lang)).into();
        }
        _ => {}
    }
    match &arguments.command {
        Some(Subcommands::Service {
            command: service::Command::Run { dir },
        }) => {
            let dir = dir.clone();
            let work = move || serve(&arguments, load(&arguments)).number();
            return service::run(dir.as_deref(), work).into();
        }
        Some(Subcommands::Service { command }) => {
            return cli::service::service(command, &typed(&arguments)).into();
        }
        _ => {}
    }
    let checked = load(&arguments);
    let command = arguments.command.as_ref().unwrap_or(&Subcommands::Run);
    match (command, checked) {
        (Subcommands::Run, checked) => serve(&arguments, checked),
        (Subcommands::Pubkey, Ok(checked)) => print(cli::pubkey(&checked.config)),
        (Subcommands::Check, Ok(checked)) => print(cli::check(&checked)),
        (Subcommands::Health, Ok(checked)) => {
            let within = arguments.timeout.map(Seconds::duration);
            print(cli::health::health(&checked.config, within))
        }
        (Subcommands::Doctor { json }, checked) => {
            let within = arguments.timeout.map(Seconds::duration);
            let file = arguments.config.as_deref();
            cli::doctor::doctor(file, checked, within, *json, io::stdout())
        }
        // Done above, in their own ways with the configuration.
        (
            Subcommands::Certs { .. } | Subcommands::Explain { .. } | Subcommands::Service { .. },
            _,
        ) => ExitCode::Ok,
        (_, Err(e)) => complain(&e),
    }
    .into()
}

/// A command line that cannot be followed, or one that asks for help.
fn misused(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    if !e.use_stderr() {
        return ExitCode::Ok;
    }
    let _ = writeln!(io::stderr(), "\n{}", Code::USAGE.pointer(NAME));
    ExitCode::Usage
}

fn load(arguments: &Arguments) -> Result<Checked, ConfigError> {
    let overrides = Overrides {
        port: arguments.port,
        bind: arguments.bind,
        grace: arguments.grace.map(Grace::duration),
    };
    config::load(arguments.config.as_deref(), &overrides)
}

/// What `service` hands on to the service.
fn typed(arguments: &Arguments) -> cli::service::Typed<'_> {
    cli::service::Typed {
        config: arguments.config.as_deref(),
        port: arguments.port,
        bind: arguments.bind,
        grace: arguments.grace,
        log_file: arguments.log_file.as_deref(),
        log_format: arguments.log_format,
        verbose: arguments.verbose,
        debug: arguments.debug,
    }
}

fn serve(arguments: &Arguments, checked: Result<Checked, ConfigError>) -> ExitCode {
    // Where the configuration is broken, nobody knows what it says about the log.
    let configured = checked
        .as_ref()
        .map_or_else(|_| Logging::default(), |it| it.config.logging.clone());
    let _log = logging::init(log_options(arguments, configured));
    match checked {
        Ok(checked) => run(arguments, checked),
        Err(e) => {
            let lines = codes::log_lines(&e);
            lines.iter().for_each(|line| log::error!("{line}"));
            e.exit_code()
        }
    }
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

/// Prints what a command has to say, or what went wrong.
fn print<E: std::fmt::Display + Coded>(result: Result<String, E>) -> ExitCode {
    match result {
        Ok(text) => say(&text),
        Err(e) => complain(&e),
    }
}

/// A closed stdout is nobody's problem.
fn say(text: &str) -> ExitCode {
    let _ = writeln!(io::stdout(), "{text}");
    ExitCode::Ok
}

fn complain(e: &(impl std::fmt::Display + Coded)) -> ExitCode {
    let _ = writeln!(io::stderr(), "{e}\n{}", e.code().pointer(NAME));
    e.exit_code()
}

fn run(arguments: &Arguments, checked: Checked) -> ExitCode {
    for warning in &checked.warnings {
        log::warn!("{warning} code={}", Code::CONFIG_ODD);
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
        log::error!("signals cannot be handled: {e} code={}", Code::NO_SIGNALS);
        return ExitCode::Resources;
    }
    let handle = match jobs::start(checked.config) {
        Ok(handle) => handle,
        Err(e) => {
            log::error!("{e} code={}", e.code());
            return e.exit_code();
        }
    };
    notify::ready(&handle.status(), handle.probes());
    let timeout = arguments.timeout.map(Seconds::duration);
    let after = timeout.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    let failed = handle.failed();
    crossbeam_channel::select! {
        recv(stopped) -> _ => {}
        recv(after) -> _ => log::info!("Stopping: --timeout has passed"),
        recv(failed[0]) -> _ => {}
        recv(failed[1]) -> _ => {}
    }
    notify::stopping();
    match handle.stop(grace) {
        Ok(()) => ExitCode::Ok,
        Err(e) => {
            log::error!(
                "the server's loop failed: {e}. This is a bug or a broken system; please report it code={}",
                Code::BUG
            );
            ExitCode::Failure
        }
    }
}
