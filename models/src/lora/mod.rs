//! LoRAs and their relatives: read a file in any of the published formats, find the layers its tensors belong to,
//! and merge their differences into the weights.
//!
//! A file is a set of *modules*, each the difference of one layer: [`LoraFile`] sorts the keys into modules, the
//! layers of the model at hand say which module belongs where, and [`MergedLoras`] makes the weights
//! "base + these LoRAs". The base is read from the checkpoint again each time, so undoing is exact.
//!
//! A quantised layer would lose a small difference in its steps, and a streamed one would have to stay in memory: a LoRA
//! is applied beside their weights. What is of no low rank replaces them, which the report counts.
//!
//! Of control LoRAs the scales of norms are not merged; one that widens `x_embedder` for the control picture's channels
//! is refused, since there is no picture to give it.
//!
//! - LoRA: `W + scale * alpha / rank * up down`, <https://arxiv.org/abs/2106.09685>; convolutions as in LoCon.
//! - LoHa, LoKr: Hadamard and Kronecker products of small factors, <https://arxiv.org/abs/2309.14859>.
//! - DoRA: the sum's direction with a learnt magnitude, <https://arxiv.org/abs/2402.09353>.

mod adapter_config;
mod factors;
mod file;
mod flux_names;
mod key;
mod layer_names;
mod magnitude;
mod matching;
mod merge;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

pub use file::LoraFile;
pub use matching::LayerShapes;
pub use merge::MergedLoras;

/// A component of a pipeline that LoRAs can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The denoiser of Stable Diffusion.
    Unet,
    /// The denoiser of FLUX.
    Transformer,
    /// CLIP-L, or the only text encoder.
    TextEncoder,
    /// SDXL's OpenCLIP bigG, FLUX's T5.
    TextEncoder2,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        })
    }
}

/// Who wrote a file: how its keys name layers and factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// kohya-ss/sd-scripts, LyCORIS and OneTrainer: `lora_unet_.._to_q.lora_down.weight`, layers in diffusers' or the
    /// original code's names.
    Kohya,
    /// diffusers: `unet...to_q.lora_A.weight` or `unet...to_q.lora.down.weight`; also LDM's names with dots.
    Diffusers,
    /// diffusers before 0.21: `..attn1.processor.to_q_lora.down.weight`.
    AttentionProcessors,
    /// PEFT's own files: `base_model.model...to_q.lora_A.weight`, with `adapter_config.json` beside.
    Peft,
    /// cloneofsimo/lora: `unet:0:down`, layers by their number.
    Cloneofsimo,
    /// FLUX's original names: `double_blocks.0.img_attn.qkv.lora_A.weight`. Black Forest Labs' control LoRAs are so.
    Bfl,
    /// ai-toolkit: FLUX's original names under `diffusion_model.`.
    AiToolkit,
    /// XLabs' x-flux: `double_blocks.0.processor.qkv_lora1.down.weight`.
    Xlabs,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::AttentionProcessors => "diffusers attention processors",
            Self::Peft => "PEFT",
            Self::Cloneofsimo => "cloneofsimo",
            Self::Bfl => "BFL",
            Self::AiToolkit => "ai-toolkit",
            Self::Xlabs => "XLabs",
        })
    }
}

/// How a layer's difference is composed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// A product of two matrices; of three with a core, for convolutions.
    LoRA,
    /// The elementwise product of two low-rank matrices.
    LoHa,
    /// The Kronecker product of two matrices.
    LoKr,
    /// The difference itself.
    Full,
    /// Any of them with a learnt magnitude for each output or input.
    DoRA,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraReport {
    /// The file.
    pub path: PathBuf,
    /// Who wrote it.
    pub format: Format,
    /// How the differences that were matched are composed.
    pub algorithms: BTreeSet<Algorithm>,
    /// Keys that belong to a layer of the model.
    pub matched: usize,
    /// Keys that do not, sorted: layers that the model does not have, biases and norms, formats that are not known.
    pub unmatched: Vec<String>,
    /// Layers that the file changes.
    pub layers: usize,
    /// Those of them that are quantised or streamed and keep their weight: the difference is applied beside it.
    pub beside: usize,
    /// Those of them that are quantised and are not while the file is merged, as its difference is of no low rank:
    /// they take the room of 16-bit weights.
    pub dequantized: usize,
    /// Those of them that are streamed and stay in memory while the file is merged, for the same reason.
    pub resident: usize,
}
