//! `aquatint models pull`

use indicatif::HumanBytes;

use crate::cli::hub::variant;
use crate::cli::{Failure, print};
use crate::settings::PullArgs;
use crate::weights::{Environment, Hub, HubId, Want};

/// Prints where each lies: a path that `--model`, `--lora` and the like take too.
pub(super) fn run(args: &PullArgs) -> Result<(), Failure> {
    let ids = args.ids.iter().map(|text| text.parse()).collect::<Result<Vec<HubId>, _>>()?;
    let hub = Hub::new(Environment::of_process())?;
    for id in &ids {
        let plan = hub.plan(id, &Want::Any(variant(args.dtype)))?;
        eprintln!("{id}: {} files, {} to download", plan.files.len(), HumanBytes(plan.missing_bytes()));
        print(&hub.fetch(&plan)?.display().to_string())?;
    }
    Ok(())
}
