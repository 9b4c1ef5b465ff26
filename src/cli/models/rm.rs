//! `aquatint models rm`

use indicatif::HumanBytes;

use super::repository;
use crate::cli::{Failure, print};
use crate::settings::RemoveArgs;
use crate::weights::Environment;
use crate::weights::cache::RepoCache;

pub(super) fn run(args: &RemoveArgs) -> Result<(), Failure> {
    let cache = Environment::of_process().cache;
    let repos = args.ids.iter().map(|text| repository(text)).collect::<Result<Vec<_>, _>>()?;
    for repo in repos {
        let found = RepoCache::new(&cache, &repo);
        if !found.folder().is_dir() {
            return Err(Failure::BadInput(format!("{repo} is not in {}", cache.display())));
        }
        print(&format!("{repo}: {} removed", HumanBytes(found.remove()?)))?;
    }
    Ok(())
}
