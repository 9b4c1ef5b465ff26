//! Files that the hub stores in chunks, fetched as such by `hf-hub`: faster on fast lines, and chunks that another file
//! had are not fetched again. It does not continue after a kill, and anything wrong with it leads back to plain HTTP.

use std::path::PathBuf;

use hf_hub::HFClient;

use super::cache::RepoCache;
use super::digest::Digest;
use super::transfer::Remote;
use super::{Environment, HubId};

/// Brings the blob of a file into the cache.
///
/// # Errors
/// Why that did not work; nothing is left behind then.
pub(super) async fn fetch(
    environment: &Environment,
    http: reqwest::Client,
    (cache, id): (&RepoCache, &HubId),
    (commit, file): (&str, &str),
    remote: &Remote,
) -> Result<(), String> {
    let digest = Digest::of_name(&remote.etag).ok_or("the hub names no checksum")?;
    // A cache of its own: hf-hub would give unchecked bytes their final name.
    let staging = Staging(cache.incomplete(&remote.etag).with_extension("chunks"));
    let aside = Environment { cache: staging.0.clone(), ..environment.clone() };
    let client: HFClient = super::listing::client(&aside, http).map_err(|error| error.to_string())?;
    let repo = client.model(&id.owner, &id.name);
    let path = repo
        .download_file()
        .filename(file)
        .revision(commit)
        .send()
        .await
        .map_err(|error| error.to_string())?;
    let check = || -> std::io::Result<bool> {
        let path = path.canonicalize()?;
        if !digest.is_of(&path)? {
            return Ok(false);
        }
        std::fs::File::open(&path)?.sync_all()?;
        std::fs::rename(&path, cache.blob(&remote.etag))?;
        Ok(true)
    };
    match check() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{file} is not what the hub says it has")),
        Err(error) => Err(error.to_string()),
    }
}

/// A folder that is gone afterwards.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _it_may_never_have_been = std::fs::remove_dir_all(&self.0);
    }
}
