//! How far a download is: bars where somebody watches, else lines in the log.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::downloads::Download;

/// Time between two lines in the log.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(5);

/// All files of one download.
#[derive(Clone)]
pub(super) struct Progress(Arc<Shared>);

struct Shared {
    repo: String,
    bytes: u64,
    download: Download,
    started: Instant,
    bars: Option<MultiProgress>,
}

/// One file's part of it.
pub(super) struct FileProgress {
    all: Progress,
    bar: Option<ProgressBar>,
    at: u64,
}

impl Progress {
    pub(super) fn new(repo: String, files: usize, bytes: u64) -> Self {
        tracing::info!(repo, files, "downloading {}", HumanBytes(bytes));
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self(Arc::new(Shared {
            repo,
            bytes,
            download: Download::begin(bytes),
            started: Instant::now(),
            bars,
        }))
    }

    pub(super) fn file(&self, name: &str, bytes: u64) -> FileProgress {
        let style = "{wide_msg} {bytes:>10} of {total_bytes:10} {binary_bytes_per_sec:>13}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |bars: &MultiProgress| {
            bars.add(ProgressBar::new(bytes).with_style(style).with_message(name.to_owned()))
        };
        FileProgress { all: self.clone(), bar: self.0.bars.as_ref().map(bar), at: 0 }
    }

    /// A line for the log, unless bars say it.
    pub(super) fn log(&self) {
        let Shared { repo, bytes, download, started, bars } = &*self.0;
        if bars.is_some() {
            return;
        }
        let done = download.arrived();
        let rate = HumanBytes((done as f64 / started.elapsed().as_secs_f64().max(1e-3)) as u64);
        let percent = done * 100 / (*bytes).max(1);
        tracing::info!(repo, percent, "downloaded {} of {}, {rate}/s", HumanBytes(done), HumanBytes(*bytes));
    }
}

impl FileProgress {
    /// So many bytes of the file are here, perhaps fewer than before.
    pub(super) fn set(&mut self, bytes: u64) {
        self.all.0.download.moved(self.at, bytes);
        self.at = bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }
}

impl Drop for FileProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
