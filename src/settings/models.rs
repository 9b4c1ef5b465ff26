//! `aquatint models` and what follows it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ConvertArgs, InspectArgs, Precision};

/// `aquatint models`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The hub's cache, address and token are those of its other programs: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, \
                  HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT. Files come over HTTP, which continues \
                  after an interruption; HF_XET_HIGH_PERFORMANCE=1 prefers the hub's chunks, which does not."
)]
pub struct ModelsArgs {
    /// What to do; without it, list.
    #[command(subcommand)]
    pub command: Option<ModelsCommand>,
    #[command(flatten)]
    /// For the list.
    pub list: ListArgs,
}

/// What to do with models.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the built-in model, those of a folder and those in the hub's cache
    List(ListArgs),
    /// Download from the hub: of each repository the files that are needed, and no others
    Pull(PullArgs),
    /// Remove repositories from the hub's cache
    Rm(RemoveArgs),
    /// Compute the checksums of all files in the hub's cache
    Verify(VerifyArgs),
    /// Say what a file or folder is, and how to use it
    Inspect(InspectArgs),
    /// Write a model in another layout, with weights of another type or quantised
    Convert(ConvertArgs),
}

/// `aquatint models list`
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Folder of model folders to look through
    #[arg(long, value_name = "DIR", env = "AQUATINT_MODELS_DIR")]
    pub models_dir: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `aquatint models pull`
#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// `org/name[/file][@revision][:variant]`: a pipeline, a single model, or a file such as a LoRA
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// fp16 takes the smaller files where there are such; others take the full ones
    #[arg(long, value_name = "TYPE", env = "SD_PRECISION", default_value = "auto")]
    pub dtype: Precision,
}

/// `aquatint models rm`
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// org/name
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// `aquatint models verify`
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// org/name [default: all]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
}
