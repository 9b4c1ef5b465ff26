//! What a repository holds at a revision: the hub's API, through `hf-hub`.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError};

use super::id::is_inside;
use super::{Environment, Error, HubId};

/// A repository at a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Bytes of each file by its path.
    pub(super) files: BTreeMap<String, u64>,
}

/// Requests after the first, where the hub fails.
const RETRIES: usize = 4;

pub(super) fn client(environment: &Environment, http: reqwest::Client) -> Result<HFClient, Error> {
    let client = HFClient::builder()
        .endpoint(&environment.endpoint)
        .cache_dir(&environment.cache)
        .retry_max_attempts(RETRIES)
        .client(http);
    let client = match &environment.token {
        Some(token) => client.token(token),
        None => client,
    };
    client.build().map_err(|error| Error::Unknown(format!("HF_ENDPOINT {}: {error}", environment.endpoint)))
}

impl Listing {
    pub(super) async fn get(client: &HFClient, id: &HubId) -> Result<Self, Error> {
        let failed = |error| explain(error, id, client.endpoint());
        let repo = client.model(&id.owner, &id.name);
        let info = repo.info().revision(id.revision()).send().await.map_err(failed)?;
        let commit = info.sha.filter(|sha| super::cache::is_commit(sha));
        let commit =
            commit.ok_or_else(|| Error::Network(format!("{} names no commit of {id}", client.endpoint())))?;
        let tree = repo.list_tree().revision(commit.as_str()).recursive(true).send().map_err(failed)?;
        let entries: Vec<_> = tree.try_collect().await.map_err(failed)?;
        let file = |entry| match entry {
            // Names become paths in the cache.
            RepoTreeEntry::File { path, size, .. } => is_inside(&path).then_some((path, size)),
            RepoTreeEntry::Directory { .. } => None,
        };
        Ok(Self { commit, files: entries.into_iter().filter_map(file).collect() })
    }
}

/// One line that says what helps.
fn explain(error: HFError, id: &HubId, endpoint: &str) -> Error {
    let repo = id.repo();
    match &error {
        HFError::AuthRequired { .. } => no_access(&repo, endpoint),
        HFError::Forbidden { .. } => gated(&repo, endpoint),
        HFError::RevisionNotFound { context: Some(context), .. }
            if context.error_code.as_deref() == Some("RepoNotFound") =>
        {
            no_access(&repo, endpoint)
        }
        HFError::RevisionNotFound { .. } => {
            Error::Unknown(format!("{repo} has no revision {:?} on {endpoint}", id.revision()))
        }
        HFError::RepoNotFound { .. } => no_access(&repo, endpoint),
        HFError::Http { context } => match context.status.as_u16() {
            401 => no_access(&repo, endpoint),
            403 => gated(&repo, endpoint),
            404 => Error::Unknown(format!("{endpoint} has no {id}")),
            status => Error::Network(format!("{endpoint} answers {status} for {repo}, again and again")),
        },
        HFError::Request { source, .. } => {
            Error::Network(format!("{endpoint} cannot be reached: {}", causes(source)))
        }
        _ => Error::Network(format!("{endpoint} does not answer as the hub does: {error}")),
    }
}

/// The hub does not tell strangers whether a private repository exists.
pub(super) fn no_access(repo: &str, endpoint: &str) -> Error {
    Error::Denied(format!(
        "{endpoint} has no repository {repo}, or it is private: check the name, or set HF_TOKEN to a token that may read it"
    ))
}

/// A repository whose conditions were not accepted, or not by the one who asks.
pub(super) fn gated(repo: &str, endpoint: &str) -> Error {
    Error::Denied(format!(
        "{repo} is gated: accept its conditions at {endpoint}/{repo} and set HF_TOKEN to a token of that account"
    ))
}

/// An error with what lies below it: reqwest's own text leaves the cause out.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
