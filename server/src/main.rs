//! MiniTCPTunnel server program: arguments, configuration, start, signals, exit code.

use std::io;

use clap::Parser;
use minitcptunnel_common::cli::{answer, complain, give_up, misused, say};
use minitcptunnel_common::codes::{self, Code, Coded};
use minitcptunnel_common::config::{ConfigError, Seconds};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::log as logging;
use minitcptunnel_common::service::{self, notify};
use minitcptunnel_common::signals;
use minitcptunnel_server::cli::{self, Arguments, Subcommands, certs};
use minitcptunnel_server::config::Checked;
use minitcptunnel_server::jobs;

/// What this program is called in its own messages.
const NAME: &str = "minitcptunnel-server";

fn main() -> std::process::ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => return misused(NAME, &e).into(),
    };
    // These do without a configuration.
    match &arguments.command {
        Some(Subcommands::Certs { command }) => return answer(NAME, certs::run(command)).into(),
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
            let work = move || serve(&arguments, arguments.load()).number();
            return service::run(NAME, dir, work).into();
        }
        Some(Subcommands::Service { command }) => {
            return cli::service::service(command, &arguments).into();
        }
        _ => {}
    }
    let checked = arguments.load();
    let command = arguments.command.as_ref().unwrap_or(&Subcommands::Run);
    match (command, checked) {
        (Subcommands::Run, checked) => serve(&arguments, checked),
        (Subcommands::Pubkey, Ok(checked)) => answer(NAME, cli::pubkey(&checked.config)),
        (Subcommands::Check, Ok(checked)) => answer(NAME, cli::check(&arguments, &checked)),
        (Subcommands::Health, Ok(checked)) => {
            let within = arguments.timeout.map(Seconds::duration);
            answer(NAME, cli::health::health(&checked.config, within))
        }
        (Subcommands::Doctor { json }, checked) => {
            cli::doctor::doctor(&arguments, checked, *json, io::stdout())
        }
        // Done above, in their own ways with the configuration.
        (
            Subcommands::Certs { .. } | Subcommands::Explain { .. } | Subcommands::Service { .. },
            _,
        ) => ExitCode::Ok,
        (_, Err(e)) => complain(NAME, &e),
    }
    .into()
}

fn serve(arguments: &Arguments, checked: Result<Checked, ConfigError>) -> ExitCode {
    let config = checked.as_ref().ok().map(|it| &it.config);
    let _log = logging::init(arguments.log_options(config));
    match checked {
        Ok(checked) => run(arguments, checked),
        Err(e) => give_up(module_path!(), &e),
    }
}

fn run(arguments: &Arguments, checked: Checked) -> ExitCode {
    for warning in &checked.warnings {
        log::warn!("{warning} code={}", Code::CONFIG_ODD);
    }
    let grace = checked.config.grace;
    // Before the first socket: a signal during the start must not be lost.
    let (stop, stopped) = crossbeam_channel::bounded::<()>(1);
    let on_signal = move || {
        let _ = stop.try_send(());
    };
    if let Err(e) = signals::handle(module_path!(), on_signal) {
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
