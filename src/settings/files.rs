//! `aquatint models inspect` and `aquatint models convert`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Precision;

/// `aquatint models inspect`
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// File or folder
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `aquatint models convert`
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Model: a folder in the diffusers layout, or a single file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// What to write; it must not exist yet
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Layout to write [default: single where OUT ends in .safetensors or .gguf, else folder]
    #[arg(long, value_name = "LAYOUT")]
    pub to: Option<LayoutChoice>,
    /// Type of the weights [default: as they are]
    #[arg(long, value_name = "TYPE", conflicts_with = "quantise", default_value = "auto")]
    pub dtype: Precision,
    /// Quantise the large matrices: fp8 (the denoiser's and T5's, each row with a scale), or a block format, which writes
    /// a GGUF file of the denoiser
    #[arg(long, value_name = "FORMAT", alias = "quantize")]
    pub quantise: Option<Quantisation>,
}

/// A layout to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutChoice {
    /// A folder in the diffusers layout.
    Folder,
    /// One file with the original code's names, as ComfyUI and others read it.
    Single,
}

/// What matrices are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of ggml and of the OCP specification")]
pub enum Quantisation {
    Fp8,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q5_1")]
    Q5_1,
    #[value(name = "q5_0")]
    Q5_0,
    #[value(name = "q4_1")]
    Q4_1,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q3_k")]
    Q3K,
    #[value(name = "q2_k")]
    Q2K,
}
