//! `aquatint`: the command line.
//!
//! Exit codes: 0 done, and a server that ended as it was told to; 2 something asked for is not allowed; 70 the device is
//! lost and a new process is needed; 130 and 143 a second signal cut the end short; 1 anything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let failure = match aquatint::cli::parse().and_then(aquatint::cli::run) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    eprintln!("error: {failure}");
    ExitCode::from(failure.exit_code())
}
