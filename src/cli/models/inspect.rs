//! `aquatint models inspect`: what a file or folder is.

use aquatint_models::inspect::{Inspection, Kind, inspect};

use crate::cli::{Failure, print};
use crate::engine::EngineError;
use crate::settings::InspectArgs;

pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    if !args.path.exists() {
        return Err(Failure::BadInput(format!("{}: no such file or folder", args.path.display())));
    }
    let inspection = inspect(&args.path).map_err(EngineError::from)?;
    if args.json {
        let json = serde_json::to_value(&inspection).map_err(|e| Failure::Other(e.to_string()))?;
        return print(&format!("{json:#}"));
    }
    print(&text(&inspection))
}

/// What people call it.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Folder => "model folder",
        Kind::Checkpoint => "checkpoint",
        Kind::Unet => "UNet alone",
        Kind::Transformer => "FLUX transformer alone",
        Kind::Vae => "VAE alone",
        Kind::TextEncoder => "CLIP text encoder alone",
        Kind::T5 => "T5 alone",
        Kind::Lora => "LoRA",
        Kind::TextualInversion => "textual inversion",
        Kind::Unknown => "not supported",
    }
}

fn text(inspection: &Inspection) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<11} {value}"));
    line("kind", kind(inspection.kind).to_owned());
    if let Some(family) = &inspection.family {
        line("family", family.clone());
    }
    if let Some(lora) = &inspection.lora {
        let ranks: Vec<_> = lora.ranks.iter().map(usize::to_string).collect();
        line("format", lora.format.clone());
        line("rank", ranks.join(", "));
        line("changes", format!("{} layers of {}", lora.layers, lora.components.join(", ")));
        if lora.unknown_keys > 0 {
            line("unknown", format!("{} keys", lora.unknown_keys));
        }
    }
    if let Some(embedding) = &inspection.embedding {
        line("token", embedding.token.clone().unwrap_or_else(|| "the file's name".into()));
        line("vectors", format!("{} of {:?} channels", embedding.vectors, embedding.channels));
    }
    if let Some(prediction) = &inspection.prediction_type {
        line("predicts", prediction.clone());
    }
    if !inspection.components.is_empty() {
        line("holds", inspection.components.join(", "));
    }
    if !inspection.missing.is_empty() {
        line("lacks", inspection.missing.join(", "));
    }
    let types = inspection.types.iter();
    let types: Vec<_> = types.map(|(name, count)| format!("{name} ({} tensors)", count.tensors)).collect();
    line("types", types.join(", "));
    line("parameters", short(inspection.parameters));
    line("size", format!("{}B", short(inspection.bytes)));
    line("use", inspection.usage.clone());
    lines.join("\n")
}

/// `2.6 G`, `83.7 M`, `1.5 k`
fn short(number: u64) -> String {
    match number as f64 {
        n if n >= 1e9 => format!("{:.1} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} k", n / 1e3),
    }
}
