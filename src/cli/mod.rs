//! The commands.

use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::engine::EngineError;
use crate::settings::{Cli, Command, LogFormat};

mod convert;
mod generate;
mod inspect;
mod model;
mod models;
mod runpod;
mod serve;

/// Why a command did not do its work, in one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Something asked for is not allowed.
    #[error("{0}")]
    BadInput(String),
    /// The device needs a new process; a supervisor should start one.
    #[error("{0}")]
    DeviceLost(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What the program ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => 2,
            Self::Other(_) => 1,
            // EX_SOFTWARE of sysexits.h
            Self::DeviceLost(_) => 70,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let text = one_line(&error.to_string());
        match error {
            EngineError::DeviceLost(_) => Self::DeviceLost(text),
            error if error.is_bad_input() => Self::BadInput(text),
            _ => Self::Other(text),
        }
    }
}

/// Reads the command line. Help and version are printed here and end the program.
///
/// # Errors
/// What is wrong with it, in one line, with the name of the environment variable where that may be the cause.
pub fn parse() -> Result<Command, Failure> {
    match Cli::try_parse() {
        Ok(cli) => Ok(cli.command),
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => Err(Failure::BadInput(describe(&error))),
    }
}

fn describe(error: &clap::Error) -> String {
    // The message, its list of possible values or missing arguments, then after a blank line usage and tips.
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    let message = one_line(message.strip_prefix("error: ").unwrap_or(message));
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => match variable(argument) {
            Some(name) => format!("{message} (also set by {name})"),
            None => message,
        },
        _ => message,
    }
}

/// The set environment variable that an argument like `--steps <N>` is read from.
fn variable(argument: &str) -> Option<String> {
    let mut command = Cli::command();
    command.build();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let mut named = arguments.filter(|a| a.to_string() == argument).filter_map(clap::Arg::get_env);
    named.find(|name| std::env::var_os(name).is_some()).map(|name| name.to_string_lossy().into_owned())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Does what the command says.
///
/// # Errors
/// Why it could not.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Generate(args) => {
            log_to_stderr(LogFormat::Text, "warn", false);
            generate::run(&args)
        }
        Command::Serve(args) => {
            log_to_stderr(args.log_format, "info", args.log_stages);
            serve::run(*args)
        }
        Command::Models(args) => models::run(&args),
    }
}

/// `level` holds where `AQUATINT_LOG` does not say otherwise. With `stages` each stage of a job has a line at its end.
fn log_to_stderr(format: LogFormat, level: &str, stages: bool) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::format::FmtSpan;
    let level = if stages { format!("{level},aquatint::engine=debug") } else { level.to_owned() };
    let filter = EnvFilter::try_from_env("AQUATINT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(if stages { FmtSpan::CLOSE } else { FmtSpan::NONE })
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(stages).init(),
    }
}

/// Writes to standard output; a reader that has gone is no error.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
