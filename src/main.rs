//! `aquatint`: the command line. Exit codes: 0 done, 2 something asked for is not allowed, 1 anything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let failure = match aquatint::cli::parse().and_then(aquatint::cli::run) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    eprintln!("error: {failure}");
    ExitCode::from(failure.exit_code())
}
