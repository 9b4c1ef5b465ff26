//! `aquatint models verify`: whether the files in the hub's cache are still those that were downloaded.

use std::path::Path;

use super::repository;
use crate::cli::{Failure, print};
use crate::settings::VerifyArgs;
use crate::weights::Environment;
use crate::weights::cache::{INCOMPLETE, RepoCache, repositories};
use crate::weights::digest::Digest;

/// What a blob turned out to be.
enum Found {
    Right,
    Wrong,
    /// It bears no checksum.
    Unknown,
    /// A download that was interrupted; the next one goes on with it.
    Incomplete,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let cache = Environment::of_process().cache;
    let asked = args.ids.iter().map(|text| repository(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(repo) = asked.iter().find(|repo| !RepoCache::new(&cache, repo).folder().is_dir()) {
        return Err(Failure::BadInput(format!("{repo} is not in {}", cache.display())));
    }
    let repos = if asked.is_empty() { repositories(&cache) } else { asked };
    let mut wrong = 0;
    for repo in &repos {
        let (mut right, mut rest) = (0, 0);
        for blob in RepoCache::new(&cache, repo).blobs() {
            let failed = |error| Failure::Other(format!("{}: {error}", blob.display()));
            match examine(&blob).map_err(failed)? {
                Found::Right => right += 1,
                Found::Unknown | Found::Incomplete => rest += 1,
                Found::Wrong => {
                    wrong += 1;
                    print(&format!("{repo}: WRONG {}", blob.display()))?;
                }
            }
        }
        let rest =
            if rest > 0 { format!(", {rest} incomplete or without a checksum") } else { String::new() };
        print(&format!("{repo}: {right} files are right{rest}"))?;
    }
    match wrong {
        0 => Ok(()),
        n => {
            Err(Failure::Other(format!("{n} files are not what was downloaded: remove them, and pull again")))
        }
    }
}

fn examine(blob: &Path) -> std::io::Result<Found> {
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(INCOMPLETE) {
        return Ok(Found::Incomplete);
    }
    match Digest::of_name(name) {
        None => Ok(Found::Unknown),
        Some(digest) if digest.is_of(blob)? => Ok(Found::Right),
        Some(_) => Ok(Found::Wrong),
    }
}
