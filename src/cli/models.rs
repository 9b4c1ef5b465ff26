//! `aquatint models`: what can be given as `--model`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Failure, convert, inspect, print};
use crate::settings::{ModelsArgs, ModelsCommand};

const FORMATS: &str = "Formats: folders in the diffusers layout with safetensors weights, and single files (safetensors, or GGUF) with the\n\
                       original names: Stable Diffusion 1.x, 2.x, SDXL and FLUX.1. `aquatint models inspect FILE` says what one is.\n\
                       Pickles (.ckpt, .pt, .bin) are refused: they can run code.";

/// A model folder and what its index calls it.
struct Found {
    path: PathBuf,
    class: String,
}

pub(super) fn run(args: &ModelsArgs) -> Result<(), Failure> {
    match &args.command {
        Some(ModelsCommand::Inspect(args)) => return inspect::run(args),
        Some(ModelsCommand::Convert(args)) => return convert::run(args),
        None => {}
    }
    let found = args.models_dir.as_deref().map(scan).transpose()?.unwrap_or_default();
    if args.json {
        let models: Vec<Value> = found
            .iter()
            .map(|m| json!({"model": m.path, "class": m.class, "supported": is_supported(&m.class)}))
            .collect();
        let builtin = json!({"model": "builtin", "class": "StableDiffusionXLPipeline", "supported": true});
        let all: Vec<_> = std::iter::once(builtin).chain(models).collect();
        return print(&format!("{:#}", json!({ "models": all })));
    }
    print("builtin  StableDiffusionXLPipeline, tiny; the default")?;
    for model in &found {
        let note = if is_supported(&model.class) { "" } else { " (not supported)" };
        print(&format!("{}  {}{note}", model.path.display(), model.class))?;
    }
    print(&format!("\n{FORMATS}"))
}

fn scan(folder: &Path) -> Result<Vec<Found>, Failure> {
    let bad = |error| Failure::BadInput(format!("--models-dir {}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        let Ok(index) = std::fs::read(path.join("model_index.json")) else { continue };
        let index: Value = serde_json::from_slice(&index).unwrap_or_default();
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("unreadable model_index.json");
        found.push(Found { path, class: class.to_owned() });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
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
