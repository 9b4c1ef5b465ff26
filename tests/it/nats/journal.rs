//! What the worker processes did, by the lines that their fake models wrote.

use std::path::PathBuf;

use crate::cli::Folder;

pub(super) struct Journal {
    folder: Folder,
}

impl Journal {
    pub(super) fn new(name: &str) -> Self {
        let folder = Folder::new(&format!("nats-journal-{name}"));
        folder.write("journal", b"");
        Self { folder }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.0.join("journal")
    }

    /// `(what, seed, process)`
    fn lines(&self) -> Vec<(String, u64, u32)> {
        let text = std::fs::read_to_string(self.path()).unwrap();
        let line = |line: &str| {
            let mut words = line.split(' ');
            let (what, seed) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            Some((what, seed, words.next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    fn count(&self, what: &str, seed: u64) -> usize {
        self.lines().iter().filter(|(w, s, _)| w == what && *s == seed).count()
    }

    /// How often a picture of this seed was begun.
    pub(super) fn starts(&self, seed: u64) -> usize {
        self.count("start", seed)
    }

    /// Steps taken for it.
    pub(super) fn steps(&self, seed: u64) -> usize {
        self.count("step", seed)
    }

    /// The process that began it last.
    pub(super) fn maker(&self, seed: u64) -> Option<u32> {
        self.lines().iter().rev().find(|(what, s, _)| what == "start" && *s == seed).map(|line| line.2)
    }

    /// Pictures begun, and those begun more than once.
    pub(super) fn begun(&self) -> (usize, usize) {
        let mut seeds: Vec<_> =
            self.lines().into_iter().filter(|line| line.0 == "start").map(|line| line.1).collect();
        let all = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        (seeds.len(), all - seeds.len())
    }
}
