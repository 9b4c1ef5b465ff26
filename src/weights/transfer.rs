//! One file from the hub to a blob: continued where an earlier try ended, checked, and only then given its name.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};

use super::cache::RepoCache;
use super::digest::{Digest, Running};
use super::listing::{causes, gated, no_access};
use super::progress::FileProgress;
use super::{Environment, Error};

/// Tries in a row that bring nothing new before it is given up.
const TRIES: u32 = 5;
/// The time before the second of them; it doubles from then on.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest that a hub's wish to be left alone is followed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// What counts as something new: a hub that sends a few bytes at a time is given up too.
const PROGRESS_BYTES: u64 = 1 << 16;

/// What the hub says of a file.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) url: Url,
    pub(super) etag: String,
    pub(super) bytes: u64,
    /// The hub stores it in chunks.
    pub(super) in_chunks: bool,
}

/// Requests for files.
pub(super) struct Transfer {
    endpoint: String,
    token: Option<String>,
    /// Follows redirects to wherever the bytes are; the token stays behind.
    body: Client,
    /// Stays with the hub, whose own answer has the checksum.
    head: Client,
    /// The disk takes no more: what is not whole goes, as nothing is won by keeping a full disk full.
    disk_failed: AtomicBool,
}

/// A try that failed.
enum Failed {
    /// Another try may do better, after a wait that the hub may have asked for.
    Once(String, Option<Duration>),
    /// None would.
    ForGood(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::ForGood(error)
    }
}

/// The client for listings and bodies.
pub(super) fn client(environment: &Environment) -> Result<Client, Error> {
    build(environment, redirect::Policy::default())
}

fn build(environment: &Environment, redirects: redirect::Policy) -> Result<Client, Error> {
    let client = Client::builder()
        .user_agent(concat!("aquatint/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(environment.timeout)
        .read_timeout(environment.timeout)
        .redirect(redirects);
    client.build().map_err(|error| Error::Network(format!("no HTTPS client: {}", causes(&error))))
}

impl Transfer {
    pub(super) fn new(environment: &Environment, body: Client) -> Result<Self, Error> {
        let stay = redirect::Policy::custom(|attempt| {
            let same = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
            if same && attempt.previous().len() < 10 { attempt.follow() } else { attempt.stop() }
        });
        let head = build(environment, stay)?;
        let (endpoint, token) = (environment.endpoint.clone(), environment.token.clone());
        Ok(Self { endpoint, token, body, head, disk_failed: AtomicBool::new(false) })
    }

    /// Asks the hub about a file.
    pub(super) async fn describe(&self, repo: &str, commit: &str, file: &str) -> Result<Remote, Error> {
        let url = self.url(repo, commit, file)?;
        let mut tries = Tries::default();
        loop {
            match self.describe_once(&url, repo, file).await {
                Ok(remote) => return Ok(remote),
                Err(failed) => tries.wait_after(failed).await?,
            }
        }
    }

    fn url(&self, repo: &str, commit: &str, file: &str) -> Result<Url, Error> {
        let bad = || Error::Unknown(format!("HF_ENDPOINT {:?} is no URL", self.endpoint));
        let mut url = Url::parse(&self.endpoint).map_err(|_| bad())?;
        let parts = repo.split('/').chain(["resolve", commit]).chain(file.split('/'));
        url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().extend(parts);
        Ok(url)
    }

    async fn describe_once(&self, url: &Url, repo: &str, file: &str) -> Result<Remote, Failed> {
        let response = self.send(self.head.request(Method::HEAD, url.clone()), repo, file).await?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|text| text.parse().ok());
        let unlike =
            |what| Failed::ForGood(Error::Network(format!("{} names no {what} of {file}", self.endpoint)));
        let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str())).ok_or_else(|| unlike("checksum"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        // It becomes a file's name.
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
            return Err(unlike("checksum"));
        }
        let bytes = number("x-linked-size").or_else(|| number(CONTENT_LENGTH.as_str()));
        Ok(Remote {
            url: url.clone(),
            etag: etag.to_owned(),
            bytes: bytes.ok_or_else(|| unlike("size"))?,
            in_chunks: text("x-xet-hash").is_some(),
        })
    }

    /// Sends a request and sorts the statuses that are no success.
    async fn send(&self, request: RequestBuilder, repo: &str, file: &str) -> Result<Response, Failed> {
        let request = request.header("accept-encoding", "identity");
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let unreachable = |error: reqwest::Error| {
            Failed::Once(format!("{} for {file}: {}", self.endpoint, causes(&error)), None)
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let for_good = match status {
            _ if status.is_success() || status.is_redirection() => return Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if code == Some("RepoNotFound") => {
                no_access(repo, &self.endpoint)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => gated(repo, &self.endpoint),
            StatusCode::NOT_FOUND => Error::Unknown(format!("{repo} has no {file} on {}", self.endpoint)),
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(response),
            _ if status.is_server_error() || [408, 425, 429].contains(&status.as_u16()) => {
                let wait = response.headers().get(RETRY_AFTER).and_then(|s| s.to_str().ok()?.parse().ok());
                let wait = wait.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
                return Err(Failed::Once(
                    format!("{} answers {status} for {file} of {repo}", self.endpoint),
                    wait,
                ));
            }
            _ => Error::Network(format!("{} answers {status} for {file} of {repo}", self.endpoint)),
        };
        Err(Failed::ForGood(for_good))
    }

    /// Brings the blob of a file into the cache.
    pub(super) async fn fetch(
        &self,
        cache: &RepoCache,
        repo: &str,
        file: &str,
        remote: &Remote,
        progress: &mut FileProgress,
    ) -> Result<(), Error> {
        let path = cache.incomplete(&remote.etag);
        let mut part = Part::open(&path, remote, &self.disk_failed)?;
        let mut from_the_start = part.bytes == 0;
        let mut tries = Tries::default();
        loop {
            progress.set(part.bytes);
            let before = part.bytes;
            let failed = match self.append(&mut part, repo, file, remote, progress).await {
                Ok(()) if part.is_right(remote) => return part.finish(&cache.blob(&remote.etag)),
                // What an earlier run left may be of a broken disk, or of a program with another idea of it.
                Ok(()) if !from_the_start => {
                    tracing::warn!(file, "what was left of an earlier download is wrong: it starts again");
                    part.restart(remote)?;
                    from_the_start = true;
                    continue;
                }
                Ok(()) => {
                    part.discard();
                    return Err(Error::Corrupt(format!(
                        "{file} of {repo}: what came is not what the hub says it has ({}); it was thrown away",
                        remote.etag
                    )));
                }
                Err(failed) => failed,
            };
            if let Failed::ForGood(Error::Disk { .. }) = &failed {
                self.disk_failed.store(true, Ordering::Relaxed);
            }
            if part.bytes >= before + PROGRESS_BYTES {
                tries = Tries::default();
            }
            tries.wait_after(failed).await?;
        }
    }

    /// Asks for what is missing, and takes what comes until it is whole or breaks off.
    async fn append(
        &self,
        part: &mut Part<'_>,
        repo: &str,
        file: &str,
        remote: &Remote,
        progress: &mut FileProgress,
    ) -> Result<(), Failed> {
        if part.bytes >= remote.bytes {
            return Ok(());
        }
        let request = self.body.get(remote.url.clone());
        let request = match part.bytes {
            0 => request,
            bytes => request.header(RANGE, format!("bytes={bytes}-")),
        };
        let mut response = self.send(request, repo, file).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT
            || range_start(response.headers()) != Some(part.bytes)
        {
            // All of it comes, or something else than what was asked for.
            part.restart(remote)?;
        }
        if !response.status().is_success() {
            return Err(Failed::Once(
                format!("{} answers {} for {file}", self.endpoint, response.status()),
                None,
            ));
        }
        loop {
            let chunk = response.chunk().await.map_err(|error| {
                Failed::Once(format!("{file} of {repo} broke off: {}", causes(&error)), None)
            })?;
            let Some(chunk) = chunk else { break };
            if part.bytes + chunk.len() as u64 > remote.bytes {
                part.restart(remote)?;
                return Err(Failed::Once(format!("{file} of {repo} is longer than the hub says"), None));
            }
            part.take(&chunk)?;
            progress.set(part.bytes);
        }
        match part.bytes == remote.bytes {
            true => Ok(()),
            false => Err(Failed::Once(
                format!("{file} of {repo} ended after {} of {} bytes", part.bytes, remote.bytes),
                None,
            )),
        }
    }
}

/// Where a part of a file begins: `bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Tries in a row that brought nothing.
#[derive(Default)]
struct Tries(u32);

impl Tries {
    /// Waits for the next one, or says why there is none.
    async fn wait_after(&mut self, failed: Failed) -> Result<(), Error> {
        let (reason, wait) = match failed {
            Failed::Once(reason, wait) => (reason, wait),
            Failed::ForGood(error) => return Err(error),
        };
        self.0 += 1;
        if self.0 >= TRIES {
            return Err(Error::Network(format!("{reason}; tried {TRIES} times")));
        }
        tracing::warn!("{reason}: trying again");
        tokio::time::sleep(wait.unwrap_or(FIRST_WAIT * 2u32.pow(self.0 - 1))).await;
        Ok(())
    }
}

/// What there is of a blob.
struct Part<'a> {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The checksum of these bytes, where the hub names one that can be computed.
    sum: Option<Running>,
    disk_failed: &'a AtomicBool,
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 || self.disk_failed.load(Ordering::Relaxed) {
            self.discard();
        }
    }
}

impl<'a> Part<'a> {
    /// What an earlier try left, or an empty one.
    fn open(path: &Path, remote: &Remote, disk_failed: &'a AtomicBool) -> Result<Self, Error> {
        let failed = |error| Error::disk(path, &error);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut part = Self { path: path.to_owned(), file, bytes, sum: sum(remote), disk_failed };
        if bytes > remote.bytes {
            part.restart(remote)?;
        } else if let (true, Some(sum)) = (bytes > 0, &mut part.sum) {
            sum.take_file(path).map_err(failed)?;
        }
        Ok(part)
    }

    fn restart(&mut self, remote: &Remote) -> Result<(), Error> {
        self.file.set_len(0).map_err(|error| Error::disk(&self.path, &error))?;
        (self.bytes, self.sum) = (0, sum(remote));
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| Error::disk(&self.path, &error))?;
        self.bytes += bytes.len() as u64;
        if let Some(sum) = &mut self.sum {
            sum.take(bytes);
        }
        Ok(())
    }

    /// Whether the bytes are those that the hub has.
    fn is_right(&mut self, remote: &Remote) -> bool {
        match (self.sum.take(), Digest::of_name(&remote.etag)) {
            (Some(sum), Some(digest)) => sum.is(&digest),
            _ => {
                tracing::warn!(etag = remote.etag, "this hub names no checksum: only the size was checked");
                true
            }
        }
    }

    /// Gives it its name, once it is on the disk to stay.
    fn finish(&self, blob: &Path) -> Result<(), Error> {
        let finish = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, blob)?;
            File::open(blob.parent().unwrap_or(blob))?.sync_all()
        };
        finish().map_err(|error| Error::disk(blob, &error))
    }

    fn discard(&self) {
        let _is_unfinished_anyway = std::fs::remove_file(&self.path);
    }
}

fn sum(remote: &Remote) -> Option<Running> {
    Digest::of_name(&remote.etag).map(|digest| Running::new(&digest, remote.bytes))
}
