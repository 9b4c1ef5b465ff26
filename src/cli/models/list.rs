//! `aquatint models list`

use std::path::{Path, PathBuf};

use aquatint_models::inspect::{Kind, inspect};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::inspect::kind;
use crate::cli::{Failure, print};
use crate::settings::ListArgs;
use crate::weights::Environment;
use crate::weights::cache::{RepoCache, repositories};

const FORMATS: &str = "Formats: folders in the diffusers layout with safetensors weights, and single files (safetensors, or GGUF) with the\n\
                       original names: Stable Diffusion 1.x, 2.x, SDXL and FLUX.1. `aquatint models inspect FILE` says what one is.\n\
                       Pickles (.ckpt, .pt, .bin) are refused: they can run code.";

/// A model folder and what its index calls it, or a file of weights and what that is.
struct Found {
    path: PathBuf,
    class: String,
    supported: bool,
}

/// A repository in the hub's cache.
struct Cached {
    repo: String,
    /// What its index calls it; none where it is no pipeline.
    class: Option<String>,
    bytes: u64,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let found = args.models_dir.as_deref().map(scan).transpose()?.unwrap_or_default();
    let environment = Environment::of_process();
    let caches = environment.mounted_caches.iter().chain([&environment.cache]);
    let cached: Vec<_> = caches.flat_map(|cache| scan_cache(cache)).collect();
    if args.json {
        let models: Vec<Value> = found
            .iter()
            .map(|m| json!({"model": m.path, "class": m.class, "supported": m.supported}))
            .collect();
        let builtin = json!({"model": "builtin", "class": "StableDiffusionXLPipeline", "supported": true});
        let cached = cached.iter().map(|repo| {
            let supported = repo.class.as_deref().is_none_or(is_supported);
            json!({"model": repo.repo, "class": repo.class, "supported": supported, "bytes": repo.bytes})
        });
        let all: Vec<_> = std::iter::once(builtin).chain(models).chain(cached).collect();
        return print(&format!("{:#}", json!({ "models": all })));
    }
    print("builtin  StableDiffusionXLPipeline, tiny; the default")?;
    for model in &found {
        let note = if model.supported { "" } else { " (not supported)" };
        print(&format!("{}  {}{note}", model.path.display(), model.class))?;
    }
    for repo in &cached {
        let class = repo.class.as_deref().unwrap_or("no pipeline: a LoRA, a VAE or the like");
        let note = if repo.class.as_deref().is_none_or(is_supported) { "" } else { " (not supported)" };
        print(&format!("{}  {class}{note}, {} in the hub's cache", repo.repo, HumanBytes(repo.bytes)))?;
    }
    print(&format!("\n{FORMATS}"))
}

fn scan_cache(cache: &Path) -> Vec<Cached> {
    let look = |repo: String| {
        let here = RepoCache::new(cache, &repo);
        let index = here.commit("main").map(|commit| here.snapshot(&commit).join("model_index.json"));
        let class = index.filter(|path| path.is_file()).and_then(|path| class_of(&path));
        let bytes = here.blobs().iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
        Cached { repo, class, bytes }
    };
    repositories(cache).into_iter().map(look).collect()
}

/// What an index calls its model; `None` where there is no index.
fn class_of(index: &Path) -> Option<String> {
    let index: Value = serde_json::from_slice(&std::fs::read(index).ok()?).unwrap_or_default();
    let class = index.get("_class_name").and_then(Value::as_str);
    Some(class.unwrap_or("unreadable model_index.json").to_owned())
}

fn scan(folder: &Path) -> Result<Vec<Found>, Failure> {
    let bad = |error| Failure::BadInput(format!("--models-dir {}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        if let Some(class) = class_of(&path.join("model_index.json")) {
            found.push(Found { supported: is_supported(&class), path, class });
        } else if path.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
            found.push(file(path));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A file of weights: what `models inspect` says of it, on one line.
fn file(path: PathBuf) -> Found {
    match inspect(&path) {
        Ok(inspection) => {
            let family = inspection.family.map(|family| format!(", {family}")).unwrap_or_default();
            let supported = inspection.kind != Kind::Unknown;
            let class = if supported { kind(inspection.kind) } else { "weights of no known kind" };
            Found { path, class: format!("{class}{family}"), supported }
        }
        // What is wrong with it, `models inspect` tells at length.
        Err(_) => Found { path, class: "unreadable".to_owned(), supported: false },
    }
}

fn is_supported(class: &str) -> bool {
    let known = [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "LatentConsistencyModelPipeline",
        "FluxPipeline",
        "FluxFillPipeline",
        "FluxKontextPipeline",
    ];
    let kind = class.replace("Img2Img", "").replace("Inpaint", "");
    known.contains(&kind.as_str())
}
