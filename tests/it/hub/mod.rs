//! Models of the hub: a stand-in for it on this machine, and the real program that downloads from there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cli::{Folder, aquatint};

mod faults;
mod killed;
mod layouts;
mod pull;
mod serve;
mod standin;

use standin::{COMMIT, StandIn, git_sha1, sha256};

/// A repository of a pipeline, whose weights mean nothing, with what most have beside it. About 1.2 MB are to be
/// downloaded.
fn tiny() -> BTreeMap<String, Vec<u8>> {
    let index = br#"{
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]
    }"#;
    let mut files = BTreeMap::from([("model_index.json".to_owned(), index.to_vec())]);
    for (name, bytes) in [
        ("README.md", 3000),
        ("model.ckpt", 9000),
        ("scheduler/scheduler_config.json", 300),
        ("text_encoder/config.json", 500),
        ("text_encoder/model.fp16.safetensors", 100_000),
        ("text_encoder/model.safetensors", 200_000),
        ("tokenizer/merges.txt", 5000),
        ("tokenizer/vocab.json", 0),
        ("unet/config.json", 700),
        ("unet/diffusion_pytorch_model.bin", 600_000),
        ("unet/diffusion_pytorch_model.fp16.safetensors", 300_000),
        ("unet/diffusion_pytorch_model.safetensors", 600_000),
        ("vae/config.json", 400),
        ("vae/diffusion_pytorch_model.safetensors", 400_000),
    ] {
        files.insert(name.to_owned(), noise(name, bytes));
    }
    files
}

/// The files of it that are needed.
const NEEDED: [&str; 10] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Bytes that depend on a name.
fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut state =
        name.bytes().fold(7u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// A stand-in with `org/tiny`, and a machine that has downloaded nothing yet.
struct World {
    hub: StandIn,
    folder: Folder,
}

impl World {
    fn new(name: &str) -> Self {
        let hub = StandIn::start();
        hub.add("org/tiny", tiny());
        Self { hub, folder: Folder::new(name) }
    }

    fn cache(&self) -> PathBuf {
        self.folder.0.join("home/hub")
    }

    fn repo(&self) -> PathBuf {
        self.cache().join("models--org--tiny")
    }

    fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    /// The program, with nothing of this machine in its environment.
    fn command(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
        let (endpoint, home) = (self.hub.endpoint(), self.folder.0.join("home").display().to_string());
        let ours = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", &home), ("HF_HUB_DOWNLOAD_TIMEOUT", "1")];
        aquatint(&self.folder, &[&ours[..], variables].concat(), arguments)
    }

    fn run(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        self.command(variables, arguments).output().unwrap()
    }

    /// `models pull org/tiny`, which is to work.
    fn pull(&self) {
        let output = self.run(&[], &["models", "pull", "org/tiny"]);
        assert!(output.status.success(), "{}", errors(&output));
        assert_eq!(text(&output.stdout).trim(), self.snapshot().display().to_string());
    }

    /// What stands under a final name is right, whatever happened; gives how many blobs there are.
    fn check(&self) -> usize {
        let files = tiny();
        for (path, link) in links(&self.snapshot()) {
            let bytes = std::fs::read(&link).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(files[&path] == bytes, "{path} is not what the hub has");
        }
        let blobs = blobs(&self.repo());
        for blob in &blobs {
            let (name, bytes) = (blob.file_name().unwrap().to_str().unwrap(), std::fs::read(blob).unwrap());
            let sum = if name.len() == 64 { sha256(&bytes) } else { git_sha1(&bytes) };
            assert_eq!(name, sum, "a blob is not what its name says");
        }
        if let Ok(commit) = std::fs::read_to_string(self.repo().join("refs/main")) {
            assert_eq!(commit, COMMIT);
            self.check_whole();
        }
        blobs.len()
    }

    /// All that is needed is here, and nothing else.
    fn check_whole(&self) {
        let found: Vec<_> = links(&self.snapshot()).into_iter().map(|(path, _)| path).collect();
        assert_eq!(found, NEEDED);
    }

    /// Names of files that are not whole.
    fn incomplete(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.repo().join("blobs")).into_iter().flatten().flatten();
        all.map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect()
    }
}

/// The files of a snapshot by their paths in it, sorted.
fn links(snapshot: &Path) -> Vec<(String, PathBuf)> {
    let (mut found, mut folders) = (Vec::new(), vec![snapshot.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false => found.push((path.strip_prefix(snapshot).unwrap().display().to_string(), path)),
            }
        }
    }
    found.sort();
    found
}

/// The blobs under their final names.
fn blobs(repo: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(repo.join("blobs")).into_iter().flatten().flatten();
    all.map(|entry| entry.path()).filter(|path| path.extension().is_none()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn errors(output: &Output) -> String {
    text(&output.stderr)
}

/// The last line of what went wrong, which begins so.
fn error_line(output: &Output) -> String {
    let text = errors(output);
    let line = text.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("error: "), "{text}");
    line
}
