//! The cache that huggingface_hub and its kin share: `models--org--name/` with `blobs/` named by their checksums, and
//! `snapshots/COMMIT/` of links to them under the repository's own names; `refs/` says which commit a branch was at.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Error;

/// One repository's folder in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// What the names of unfinished blobs end with.
pub const INCOMPLETE: &str = ".incomplete";

impl RepoCache {
    /// That of `org/name`; it need not exist.
    pub fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that a branch or tag was at when it was last asked for; a commit is itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The files of a commit that are here and whole, by their paths in the repository, sorted.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if path.is_file()
                    && let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str)
                {
                    found.push(name.to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// Where the blob of a checksum lies, or would.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// What there is of a blob that is not whole.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}{INCOMPLETE}"))
    }

    /// Makes the folder for blobs.
    pub(super) fn make_blobs(&self) -> Result<(), Error> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(|error| Error::disk(blobs, &error))
    }

    /// Waits until no other program works on a blob, and keeps them waiting while the result lives.
    pub(super) fn lock(&self, etag: &str) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        let locked = || {
            fs::create_dir_all(&self.locks)?;
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        locked().map_err(|error: io::Error| Error::disk(&path, &error))
    }

    /// Gives a whole blob its name in a commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), Error> {
        let path = self.snapshot(commit).join(file);
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        let linked = || {
            if fs::read_link(&path).is_ok_and(|there| there == target) {
                return Ok(());
            }
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::os::unix::fs::symlink(&target, &path)
        };
        linked().map_err(|error| Error::disk(&path, &error))
    }

    /// Remembers where a branch or tag is.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        // Whole or not at all: a reader may come between.
        let new = self.folder.join(format!("ref-{}.new", std::process::id()));
        let written = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::write(&new, commit)?;
            fs::rename(&new, &path)
        };
        written().map_err(|error| Error::disk(&path, &error))
    }

    /// Every blob, also unfinished ones, sorted.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.join("blobs")).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        paths.sort();
        paths
    }

    /// Removes the repository from the cache; gives the bytes that this frees.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(&self) -> Result<u64, Error> {
        let bytes = self.blobs().iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
        fs::remove_dir_all(&self.folder).map_err(|error| Error::disk(&self.folder, &error))?;
        let _there_may_be_none = fs::remove_dir_all(&self.locks);
        Ok(bytes)
    }
}

/// The names of all repositories of models in a cache, sorted.
pub fn repositories(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let repo = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("models--")?.replacen("--", "/", 1))
    };
    let mut repos: Vec<_> = entries.filter_map(repo).collect();
    repos.sort();
    repos
}

/// Commits are 40 hexadecimal digits.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_blobs_and_refs_to_commits() {
        let root = std::env::temp_dir().join(format!("aquatint-cache-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let (cache, commit) = (RepoCache::new(&root, "org/name"), "0123456789".repeat(4));
        assert_eq!(cache.folder(), root.join("models--org--name"));
        cache.make_blobs().unwrap();
        fs::write(cache.blob("abc"), b"{}").unwrap();
        cache.link(&commit, "unet/config.json", "abc").unwrap();
        cache.link(&commit, "model_index.json", "abc").unwrap();
        cache.link(&commit, "model_index.json", "abc").unwrap();
        cache.link(&commit, "gone.json", "not-there").unwrap();
        assert_eq!(fs::read(cache.snapshot(&commit).join("unet/config.json")).unwrap(), b"{}");
        assert_eq!(
            cache.files(&commit),
            ["model_index.json", "unet/config.json"],
            "a link to nothing is no file"
        );

        assert_eq!(cache.commit("main"), None);
        cache.set_commit("main", &commit).unwrap();
        cache.set_commit("refs/pr/1", &commit).unwrap();
        assert_eq!(cache.commit("main"), Some(commit.clone()));
        assert_eq!(cache.commit("refs/pr/1"), Some(commit.clone()));
        assert_eq!(cache.commit(&commit), Some(commit));
        assert_eq!(repositories(&root), ["org/name"]);
        assert_eq!(cache.remove().unwrap(), 2);
        assert_eq!(repositories(&root), Vec::<String>::new());
        fs::remove_dir_all(&root).unwrap();
    }
}
