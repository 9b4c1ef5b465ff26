//! `aquatint models`: what can be given as `--model`, and what of the hub is here.

mod convert;
mod inspect;
mod list;
mod pull;
mod rm;
mod verify;

use super::Failure;
use crate::settings::{ModelsArgs, ModelsCommand};
use crate::weights::HubId;

pub(super) fn run(args: &ModelsArgs) -> Result<(), Failure> {
    match &args.command {
        None => list::run(&args.list),
        Some(ModelsCommand::List(args)) => list::run(args),
        Some(ModelsCommand::Pull(args)) => pull::run(args),
        Some(ModelsCommand::Rm(args)) => rm::run(args),
        Some(ModelsCommand::Verify(args)) => verify::run(args),
        Some(ModelsCommand::Inspect(args)) => inspect::run(args),
        Some(ModelsCommand::Convert(args)) => convert::run(args),
    }
}

/// `org/name` and nothing else.
fn repository(text: &str) -> Result<String, Failure> {
    let id: HubId = text.parse()?;
    if id.to_string() != id.repo() {
        return Err(Failure::BadInput(format!("{text}: a whole repository is needed: {}", id.repo())));
    }
    Ok(id.repo())
}
