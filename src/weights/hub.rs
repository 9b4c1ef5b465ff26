//! From an id to files on this disk.

use std::path::PathBuf;
use std::sync::Arc;

use hf_hub::HFClient;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::cache::{RepoCache, is_commit};
use super::choose::{self, Variant};
use super::listing::{self, Listing};
use super::progress::{LINE_EVERY, Progress};
use super::transfer::{self, Transfer};
use super::{Environment, Error, HubId, xet};

/// Files that are fetched at a time.
const PARALLEL: usize = 8;

/// What of a repository is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A pipeline in the diffusers layout, as a folder.
    Pipeline(Variant),
    /// One model: a folder where it has a config beside it, else a file of weights.
    Model(Variant),
    /// One file of weights.
    File,
    /// Whichever of these the repository is.
    Any(Variant),
}

/// The files that something takes, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What was asked for.
    pub id: HubId,
    /// The commit that this is.
    pub commit: String,
    /// All files, by their paths in the repository.
    pub files: Vec<String>,
    /// Those that are not here yet, with their bytes.
    pub missing: Vec<(String, u64)>,
    /// What they make up: a folder or a file in the cache.
    pub path: PathBuf,
    cache: RepoCache,
}

impl Plan {
    /// Bytes that a download takes.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The hub, and the caches of it on this machine. Its functions wait; they are not for asynchronous code.
pub struct Hub {
    environment: Environment,
    online: Arc<Online>,
    /// Taken when it ends.
    runtime: Option<Runtime>,
}

/// What speaks with the hub.
struct Online {
    environment: Environment,
    api: HFClient,
    http: reqwest::Client,
    transfer: Transfer,
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// When `HF_ENDPOINT` is no URL, or the system has no means for HTTPS.
    pub fn new(environment: Environment) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Network(format!("no thread for downloads: {error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let http = transfer::client(&environment)?;
        let online = Online {
            api: listing::client(&environment, http.clone())?,
            transfer: Transfer::new(&environment, http.clone())?,
            environment: environment.clone(),
            http,
        };
        Ok(Self { environment, online: Arc::new(online), runtime: Some(runtime.map_err(failed)?) })
    }

    /// Finds out what is needed. Of the files only a pipeline's index is fetched.
    ///
    /// # Errors
    /// When there is no such repository, revision or file, or no way to know.
    pub fn plan(&self, id: &HubId, want: &Want) -> Result<Plan, Error> {
        let want = &with_variant(id, want)?;
        let mut caches = self.environment.mounted_caches.iter();
        let mounted = caches.find_map(|cache| cached(RepoCache::new(cache, &id.repo()), id, want).ok());
        if let Some(plan) = mounted {
            tracing::info!(%id, path = %plan.path.display(), "found in a mounted cache");
            return Ok(plan);
        }
        let here = cached(RepoCache::new(&self.environment.cache, &id.repo()), id, want);
        match here {
            Ok(plan) if self.environment.offline || is_commit(id.revision()) => return Ok(plan),
            Err(lack) if self.environment.offline => {
                return Err(Error::Offline(format!(
                    "{id} is not in {} ({lack}), and HF_HUB_OFFLINE forbids to download it",
                    self.environment.cache.display()
                )));
            }
            _ => {}
        }
        match (self.wait(self.online.clone().plan(id.clone(), want.clone())), here) {
            (Err(error), Ok(plan)) if error.is_network() => {
                tracing::warn!("{error}: what the cache has of {id} is used");
                Ok(plan)
            }
            (planned, _) => planned,
        }
    }

    /// Fetches what is missing of a plan, several files at a time; gives the folder or file.
    ///
    /// # Errors
    /// When a file did not come, or the disk did not take it. What came stays, and is not fetched again.
    pub fn fetch(&self, plan: &Plan) -> Result<PathBuf, Error> {
        self.fetch_some(plan, |_| true)?;
        if plan.cache.folder().starts_with(&self.environment.cache) {
            plan.cache.set_commit(plan.id.revision(), &plan.commit)?;
        }
        Ok(plan.path.clone())
    }

    /// Fetches what tells a model's shapes, and leaves its weights for later; gives the folder.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_configs(&self, plan: &Plan) -> Result<PathBuf, Error> {
        self.fetch_some(plan, choose::is_config)?;
        Ok(plan.path.clone())
    }

    fn fetch_some(&self, plan: &Plan, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let is_missing = |(file, _): &&(String, u64)| {
            which(file) && !plan.cache.snapshot(&plan.commit).join(file).is_file()
        };
        let files: Vec<_> = plan.missing.iter().filter(is_missing).cloned().collect();
        if files.is_empty() {
            return Ok(());
        }
        self.wait(self.online.clone().fetch(plan.clone(), files))
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(Error::Network("downloads have ended".into())),
        }
    }
}

/// The variant may be a part of the id.
fn with_variant(id: &HubId, want: &Want) -> Result<Want, Error> {
    match (id.variant.as_deref(), want) {
        (None, _) => Ok(want.clone()),
        (Some("fp16"), Want::Pipeline(_)) => Ok(Want::Pipeline(Variant::Half)),
        (Some("fp16"), Want::Model(_)) => Ok(Want::Model(Variant::Half)),
        (Some("fp16"), Want::Any(_)) => Ok(Want::Any(Variant::Half)),
        (Some(_), Want::File) => Err(Error::Unknown(format!("{id}: a file has no variants"))),
        (Some(other), _) => {
            Err(Error::Unknown(format!("{id}: the variant {other:?} is unknown: fp16 is allowed")))
        }
    }
}

/// The files that are wanted of a listing, and what they make up in a snapshot.
fn select(
    id: &HubId,
    want: &Want,
    files: &[String],
    index: Option<&Value>,
) -> Result<(Vec<String>, PathBuf), String> {
    match want {
        Want::Any(variant) if id.file.is_none() && index.is_some() => {
            select(id, &Want::Pipeline(variant.clone()), files, index)
        }
        Want::Any(variant) => select(id, &Want::Model(variant.clone()), files, index),
        Want::Pipeline(_) if id.file.is_some() => Err("a pipeline is a whole repository".into()),
        Want::Pipeline(variant) => {
            let index = index.ok_or("it has no model_index.json: it is not in the diffusers layout")?;
            let chosen = choose::pipeline(files, index, variant)?;
            let half = chosen.iter().any(|file| file.contains(".fp16"));
            match id.variant.is_some() && !half {
                true => Err("it has no fp16 variant".into()),
                false => Ok((chosen, PathBuf::new())),
            }
        }
        Want::Model(variant) => {
            let folder = id.file.as_deref().unwrap_or_default();
            match choose::has_config(files, folder) {
                true => Ok((choose::component(files, folder, variant)?, folder.into())),
                false => select(id, &Want::File, files, index),
            }
        }
        Want::File => {
            let chosen = choose::single_file(files, id.file.as_deref())?;
            Ok((vec![chosen.clone()], chosen.into()))
        }
    }
}

/// A plan of what a cache holds; an error says what it lacks.
fn cached(cache: RepoCache, id: &HubId, want: &Want) -> Result<Plan, String> {
    let commit = cache.commit(id.revision()).ok_or_else(|| format!("no {} of it", id.revision()))?;
    let (files, folder) = (cache.files(&commit), cache.snapshot(&commit));
    let index = || serde_json::from_slice(&std::fs::read(folder.join("model_index.json")).ok()?).ok();
    let (files, path) = select(id, want, &files, index().as_ref())?;
    let path = if path.as_os_str().is_empty() { folder } else { folder.join(path) };
    Ok(Plan { id: id.clone(), commit, files, missing: Vec::new(), path, cache })
}

impl Online {
    async fn plan(self: Arc<Self>, id: HubId, want: Want) -> Result<Plan, Error> {
        let Listing { commit, files } = Listing::get(&self.api, &id).await?;
        let cache = RepoCache::new(&self.environment.cache, &id.repo());
        let snapshot = cache.snapshot(&commit);
        let may_be_pipeline = matches!(want, Want::Pipeline(_) | Want::Any(_)) && id.file.is_none();
        let index = match files.get("model_index.json") {
            Some(bytes) if may_be_pipeline => {
                let path = snapshot.join("model_index.json");
                if !path.is_file() {
                    let progress = Progress::new(id.repo(), 1, *bytes);
                    self.file(&cache, &id, &commit, "model_index.json", &progress).await?;
                }
                let bytes = std::fs::read(&path).map_err(|error| Error::disk(&path, &error))?;
                let index = serde_json::from_slice::<Value>(&bytes);
                Some(index.map_err(|error| Error::Unknown(format!("{id}: model_index.json: {error}")))?)
            }
            _ => None,
        };
        let names: Vec<String> = files.keys().cloned().collect();
        let chosen = select(&id, &want, &names, index.as_ref());
        let (chosen, path) =
            chosen.map_err(|lack| Error::Unknown(format!("{id} is in the hub, but {lack}")))?;
        let missing = chosen.iter().filter(|file| !snapshot.join(file).is_file());
        let missing = missing.map(|file| (file.clone(), files.get(file).copied().unwrap_or(0))).collect();
        let path = if path.as_os_str().is_empty() { snapshot } else { snapshot.join(path) };
        Ok(Plan { id, commit, files: chosen, missing, path, cache })
    }

    async fn fetch(self: Arc<Self>, plan: Plan, files: Vec<(String, u64)>) -> Result<(), Error> {
        let progress = Progress::new(plan.id.repo(), files.len(), files.iter().map(|(_, bytes)| bytes).sum());
        let mut waiting = files.into_iter().map(|(file, _)| file);
        let mut running = JoinSet::new();
        let begin = |running: &mut JoinSet<_>, file: String| {
            let (online, plan, progress) = (self.clone(), plan.clone(), progress.clone());
            running.spawn(
                async move { online.file(&plan.cache, &plan.id, &plan.commit, &file, &progress).await },
            );
        };
        waiting.by_ref().take(PARALLEL).for_each(|file| begin(&mut running, file));
        let mut line = interval(LINE_EVERY);
        line.set_missed_tick_behavior(MissedTickBehavior::Skip);
        line.tick().await;
        let ended = loop {
            let done = tokio::select! {
                done = running.join_next() => done,
                _ = line.tick() => {
                    progress.log();
                    continue;
                }
            };
            match done {
                None => break Ok(()),
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => break Err(error),
                Some(Err(error)) => break Err(Error::Network(format!("a download ended: {error}"))),
            }
            if let Some(file) = waiting.next() {
                begin(&mut running, file);
            }
        };
        // Where one failed, the others end here; what they have stays, unless it is the disk that failed.
        running.shutdown().await;
        ended?;
        progress.log();
        Ok(())
    }

    /// One file into the cache, under its name.
    async fn file(
        &self,
        cache: &RepoCache,
        id: &HubId,
        commit: &str,
        file: &str,
        progress: &Progress,
    ) -> Result<(), Error> {
        let repo = id.repo();
        let remote = self.transfer.describe(&repo, commit, file).await?;
        let mut progress = progress.file(file, remote.bytes);
        let blob = cache.blob(&remote.etag);
        if !blob.is_file() {
            cache.make_blobs()?;
            let (locking, etag) = (cache.clone(), remote.etag.clone());
            let locked = tokio::task::spawn_blocking(move || locking.lock(&etag)).await;
            let _lock = locked.map_err(|error| Error::Network(format!("a download ended: {error}")))??;
            // Another program may have been at it meanwhile.
            if !blob.is_file() && !self.in_chunks(cache, id, (commit, file), &remote).await {
                self.transfer.fetch(cache, &repo, file, &remote, &mut progress).await?;
            }
        }
        progress.set(remote.bytes);
        cache.link(commit, file, &remote.etag)
    }

    /// Whether a file came in chunks, where that is asked for.
    async fn in_chunks(
        &self,
        cache: &RepoCache,
        id: &HubId,
        (commit, file): (&str, &str),
        remote: &transfer::Remote,
    ) -> bool {
        if !(self.environment.xet && remote.in_chunks) {
            return false;
        }
        let fetched =
            xet::fetch(&self.environment, self.http.clone(), (cache, id), (commit, file), remote).await;
        if let Err(reason) = &fetched {
            tracing::warn!(file, reason, "not to be had in chunks: plain HTTP is used");
        }
        fetched.is_ok()
    }
}
