//! MiniTCPTunnel client program: arguments, configuration, start, signals, exit code.

use std::io;

use clap::Parser;
use minitcptunnel_client::cli::{self, Arguments, Subcommands};
use minitcptunnel_client::config;
use minitcptunnel_client::jobs;
use minitcptunnel_common::cli::{answer, complain, give_up, misused, say};
use minitcptunnel_common::codes::{self, Code, Coded};
use minitcptunnel_common::config::{Grace, Seconds};
use minitcptunnel_common::exit::ExitCode;
use minitcptunnel_common::log as logging;
use minitcptunnel_common::service::{self, notify};
use minitcptunnel_common::{resources, signals};

/// What this program is called in its own messages.
const NAME: &str = "minitcptunnel-client";

fn main() -> std::process::ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => return misused(NAME, &e).into(),
    };
    let file = &arguments.config;
    match &arguments.command {
        None | Some(Subcommands::Run) => run(&arguments),
        Some(Subcommands::Keygen) => answer(NAME, cli::keygen(file)),
        Some(Subcommands::Pubkey) => answer(NAME, cli::pubkey(file)),
        Some(Subcommands::Check) => answer(NAME, cli::check(&arguments)),
        Some(Subcommands::Health) => health(&arguments),
        Some(Subcommands::Doctor(options)) => {
            cli::doctor::doctor(&arguments, *options, io::stdout())
        }
        Some(Subcommands::Explain { codes, lang }) => say(&codes::explain(codes, *lang)),
        Some(Subcommands::Service {
            command: service::Command::Run { dir },
        }) => {
            let dir = dir.clone();
            let work = move || run(&arguments).number();
            return service::run(NAME, dir, work).into();
        }
        Some(Subcommands::Service { command }) => {
            return cli::service::service(command, &arguments).into();
        }
    }
    .into()
}

fn health(arguments: &Arguments) -> ExitCode {
    let within = arguments.timeout.map(Seconds::duration);
    match config::load(&arguments.config, arguments.pinning()) {
        Ok(checked) => answer(NAME, cli::health::health(&checked.config, within)),
        Err(e) => complain(NAME, &e),
    }
}

fn run(arguments: &Arguments) -> ExitCode {
    let loaded = cli::load(&arguments.config, arguments.pinning());
    let config = loaded.checked.as_ref().ok().map(|it| &it.config);
    let _log = logging::init(arguments.log_options(config));
    loaded.log_news();
    let checked = match loaded.checked {
        Ok(checked) => checked,
        Err(e) => return give_up(module_path!(), &e),
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
            log::error!("{e} code={}", e.code());
            return e.exit_code();
        }
    };
    let stopper = jobs.stopper();
    if let Err(e) = signals::handle(module_path!(), move || stopper.stop()) {
        log::error!("Signals cannot be handled: {e} code={}", Code::NO_SIGNALS);
        return ExitCode::Resources;
    }
    jobs.tell_manager();
    let end = jobs.wait(arguments.timeout.map(Seconds::duration));
    if end.is_none() {
        log::info!("Stopping: --timeout has passed");
    }
    notify::stopping();
    jobs.stop(
        arguments
            .grace
            .map_or(checked.config.grace, Grace::duration),
    );
    end.map_or(ExitCode::Ok, |end| end.exit_code())
}
