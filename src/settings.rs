//! Flags and environment, read once.
//!
//! The variables that start with `SD_`, and `ALLOW_ORIGINS`, `HOST` and `PORT`, are those of the Python service
//! that this server replaces.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquatint_models::checkpoint::builtin;
use aquatint_models::checkpoint::published::{Dummy, PUBLISHED, Published};
use aquatint_models::sampler::SamplerSettings;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::engine::LoraChoice;
use crate::picture::{MAX_SIDE_PX, PngCompression};

mod files;
mod models;

pub use files::{ConvertArgs, InspectArgs, LayoutChoice, Quantisation};
pub use models::{ListArgs, ModelsArgs, ModelsCommand, PullArgs, RemoveArgs, VerifyArgs};

/// Image generation with Stable Diffusion 1.5, 2.x, SDXL and FLUX.1, as a command and as a server.
#[derive(Debug, Parser)]
#[command(name = "aquatint", version, max_term_width = 110, infer_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make pictures from a prompt.
    Generate(Box<GenerateArgs>),
    /// Serve the HTTP API and the web page.
    Serve(Box<ServeArgs>),
    /// Ask a server on this machine how it is; ends with 0 or 1, for container platforms.
    Health(HealthArgs),
    /// List the models that can be used, and manage those of the Hugging Face hub.
    Models(ModelsArgs),
    /// Check a queue that several machines share, and the server that holds it.
    #[cfg(feature = "nats")]
    Doctor(DoctorArgs),
}

/// The model and where it runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a folder in the diffusers layout, a single file (safetensors, or GGUF), or `org/name[@revision][:variant]`
    /// of the Hugging Face hub, which is downloaded. Without it /repository, where a platform has mounted one, else the
    /// built-in model
    #[arg(long, value_name = "PATH|ID", env = "SD_MODEL_ID")]
    pub model: Option<String>,
    /// Model that stands in where the first cannot be loaded: FLUX.1-schnell for FLUX.1-dev, say. Every reply then
    /// says so
    #[arg(long, value_name = "DIR|ID", env = "AQUATINT_FALLBACK", requires = "model")]
    pub fallback: Option<String>,
    /// Random weights in the shapes of a published model, or of a folder of configs, to measure speed and memory without
    /// a checkpoint; pictures are noise
    #[arg(long, value_name = "MODEL", conflicts_with = "model", value_parser = dummy)]
    pub dummy_weights: Option<Dummy>,
    /// Memory that the model and its pictures may take, in GiB: what of FLUX does not fit is read from the checkpoint
    /// when it is needed, and pictures that do not fit are refused [default: what is free]
    #[arg(long, value_name = "GIB", env = "AQUATINT_MEMORY", value_parser = positive)]
    pub memory: Option<f64>,
    /// What the weights are held in
    #[arg(long, value_name = "TYPE", env = "SD_PRECISION", default_value = "auto")]
    pub dtype: Precision,
    /// Multiply in eight bits in the denoiser's transformer blocks: half the memory for them, and the eight-bit tensor
    /// cores of GPUs that have such (fp8: sm_89 and later; int8: sm_75 and later). Lossy: pictures differ
    #[arg(long, value_name = "TYPE", env = "AQUATINT_QUANTISE", alias = "quantize")]
    pub quantise: Option<EightBits>,
    /// Copy weights into memory instead of using files where they are mapped: slower to load, but safe on a volume that
    /// may fail, or whose files are overwritten in place
    #[arg(long)]
    pub no_mmap: bool,
    /// Where to compute
    #[arg(long, value_name = "DEVICE", env = "SD_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Safetensors file that replaces the model's UNet, or its FLUX transformer: then GGUF files too. As with all files
    /// of weights, org/name/FILE is one of the hub, and org/name the only one of a repository
    #[arg(long, value_name = "FILE|ID", env = "SD_UNET_ID")]
    pub unet: Option<PathBuf>,
    /// File that replaces the model's CLIP text encoder, the first where it has two
    #[arg(long, value_name = "FILE|ID")]
    pub text_encoder: Option<PathBuf>,
    /// What the UNet predicts, where its config or the guess for a single file is wrong
    #[arg(long, value_name = "KIND")]
    pub prediction_type: Option<PredictionType>,
    /// Safetensors or GGUF file that replaces FLUX's T5
    #[arg(long, value_name = "FILE|ID")]
    pub t5: Option<PathBuf>,
    /// Safetensors file, or folder with one and its config.json, that replaces the model's VAE
    #[arg(long, value_name = "FILE|ID")]
    pub vae: Option<PathBuf>,
    /// Encode and decode pictures in tiles: less memory for large pictures, seams are blended
    #[arg(long)]
    pub vae_tiling: bool,
    /// SDXL refiner, which takes over for the last steps
    #[arg(long, value_name = "DIR|ID")]
    pub refiner: Option<PathBuf>,
    /// Part of the schedule that the base model does before the refiner: diffusers' denoising_end
    #[arg(long, value_name = "PART", default_value_t = 0.8, requires = "refiner")]
    pub denoising_end: f64,
    /// LoRA to merge, and by how much; may be given several times
    #[arg(long, value_name = "FILE|ID[:SCALE]", value_parser = lora)]
    pub lora: Vec<LoraChoice>,
    /// LCM-LoRA to merge: 8 steps at most and no guidance become the default; the built-in model has its own unless
    /// this is `none`
    #[arg(long, value_name = "FILE|ID", env = "SD_LCM_LORA_ID")]
    pub lcm_lora: Option<PathBuf>,
    /// Textual inversion to load, asked for by its token; may be given several times
    #[arg(long, value_name = "FILE|ID")]
    pub textual_inversion: Vec<PathBuf>,
    /// Threads for computing; without it, as many as there are cores
    #[arg(long, value_name = "N", value_parser = number(1..=1024))]
    pub threads: Option<usize>,
}

/// What a UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// A mixture of noise and sample: many models of SD 2.x.
    #[value(alias = "v_prediction", alias = "v")]
    VPrediction,
    /// The sample.
    Sample,
}

impl PredictionType {
    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v_prediction",
            Self::Sample => "sample",
        }
    }
}

/// What weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// The best of what the device and the checkpoint offer.
    Auto,
    /// 32 bits.
    #[value(alias = "float32", alias = "f32")]
    Fp32,
    /// 16 bits, IEEE.
    #[value(alias = "float16", alias = "f16")]
    Fp16,
    /// 16 bits, bfloat.
    #[value(alias = "bfloat16")]
    Bf16,
}

/// What weights and activations are rounded to, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EightBits {
    /// Floats of eight bits, e4m3.
    Fp8,
    /// Whole numbers of eight bits.
    Int8,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// CUDA where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// `aquatint health`
#[derive(Args, Clone, Debug)]
pub struct HealthArgs {
    /// Port of the server
    #[arg(long, value_name = "PORT", env = "PORT", default_value = "7860")]
    pub port: u16,
    /// Ask /ready: 0 only while jobs are taken, not while the model loads
    #[arg(long)]
    pub ready: bool,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds)]
    pub timeout_seconds: Duration,
}

/// `aquatint generate`
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// What the picture should show; `(word:1.2)` weights a part
    #[arg(value_name = "PROMPT", required_unless_present = "prompt_flag")]
    pub prompt: Option<String>,
    /// The same as a flag
    #[arg(long = "prompt", value_name = "TEXT", conflicts_with = "prompt")]
    pub prompt_flag: Option<String>,
    /// What it should not show
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PX", value_parser = side)]
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PX", value_parser = side)]
    pub height: Option<usize>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N", env = "SD_STEPS", value_parser = number(1..=1000))]
    pub steps: Option<usize>,
    /// How closely the prompt is followed; 1 turns guidance off [default: the model's]
    #[arg(long, value_name = "X", env = "SD_GUIDANCE", value_parser = guidance_scale)]
    pub guidance_scale: Option<f64>,
    /// FLUX: classifier-free guidance beside the model's own; above 1 and with a negative prompt, each step takes twice
    /// as long
    #[arg(long, value_name = "X", value_parser = guidance_scale)]
    pub true_cfg_scale: Option<f64>,
    /// FLUX: tokens of the prompt, beyond which it is cut [default: 512, schnell 256]
    #[arg(long, value_name = "N", value_parser = number(1..=512))]
    pub max_sequence_length: Option<usize>,
    /// CHANGES THE PICTURE. FLUX: leave out all blocks but the first in steps where that one changes by less than this
    /// part, as diffusers' FirstBlockCache does with its threshold: 0.05 changes little, 0.1 more [default: off]
    #[arg(long, value_name = "X", value_parser = unit_interval)]
    pub first_block_cache: Option<f64>,
    /// CHANGES THE PICTURE. UNets: compute all but the finest layers once every N steps, as DeepCache does: 2 or 3 change
    /// little with 20 steps and more [default: off]
    #[arg(long, value_name = "N", conflicts_with = "first_block_cache", value_parser = number(1..=MAX_CACHE_INTERVAL))]
    pub cache_interval: Option<usize>,
    /// DeepCache's branch: 0 is fastest; higher ones, up to three a block of the UNet, change less
    #[arg(long, value_name = "ID", default_value = "0", requires = "cache_interval", value_parser = number(0..=MAX_CACHE_BRANCH_ID))]
    pub cache_branch_id: usize,
    /// Scheduler by its diffusers or web UI name, for example "DPM++ 2M Karras" [default: the model's]
    #[arg(long, value_name = "NAME", env = "SD_SCHEDULER", value_parser = scheduler)]
    pub scheduler: Option<String>,
    /// Where the noise starts; without it one is drawn and printed. Picture i has seed + i
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How many pictures
    #[arg(long, value_name = "N", default_value = "1", value_parser = number(1..=1000))]
    pub num_images: usize,
    /// Picture to start from
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// Which part of it to repaint: white is repainted, black kept
    #[arg(long, value_name = "FILE", requires = "init_image")]
    pub mask: Option<PathBuf>,
    /// How much of it to change, from 0 to 1 [default: 0.6, with Kontext 1]
    #[arg(long, value_name = "X", value_parser = unit_interval)]
    pub strength: Option<f64>,
    /// Text encoder layers to leave out at the end
    #[arg(long, value_name = "N", default_value = "0", value_parser = number(0..=31))]
    pub clip_skip: usize,
    /// Where to write: a file (.png, .jpg, .webp) or a folder. Several pictures go to NAME-0.png, NAME-1.png, ...
    /// [default: aquatint-SEED.png, here]
    #[arg(long, short, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Print what was made as one JSON document
    #[arg(long)]
    pub json: bool,
    /// Recorded runs (CUDA graphs) that each network keeps on a GPU, as `serve` has them
    #[arg(long, value_name = "N", env = "AQUATINT_CUDA_GRAPHS", default_value = "0", value_parser = number(0..=64))]
    pub cuda_graphs: usize,
    #[command(flatten)]
    /// The model.
    pub model: ModelArgs,
}

/// `aquatint doctor`
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    /// The queue.
    pub queue: QueueArgs,
    /// The server's monitoring port, which says whether it writes at once: http://host:8222
    #[arg(long, value_name = "URL", env = "AQUATINT_NATS_MONITOR", value_parser = web_address)]
    pub nats_monitor: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `aquatint serve`
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address or host name to listen on; 0.0.0.0 is every network
    #[arg(long, value_name = "HOST", env = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", env = "PORT", default_value = "7860")]
    pub port: u16,
    /// Jobs that may wait while one runs; of a shared queue, jobs that may wait or be at work on all machines
    #[arg(long, value_name = "N", env = "AQUATINT_QUEUE_SIZE", default_value = "32", value_parser = number(0..=100_000))]
    pub queue_size: usize,
    /// Seconds that running jobs get when the server is told to stop
    #[arg(long, value_name = "S", env = "AQUATINT_DRAIN_SECONDS", default_value = "30")]
    pub drain_seconds: u64,
    /// Answer /health with 503 until the model is loaded, for platforms whose only probe it is
    #[arg(long, env = "AQUATINT_HEALTH_UNTIL_READY", value_parser = FalseyValueParser::new())]
    pub health_until_ready: bool,
    /// Folder of LoRAs that requests may name, each by its file name without .safetensors; textual inversions among them
    /// are loaded where they fit the model
    #[arg(long, value_name = "DIR", env = "AQUATINT_LORA_DIR")]
    pub lora_dir: Option<PathBuf>,
    /// Another LoRA that requests may name; may be given several times
    #[arg(long, value_name = "NAME=FILE|ID", value_parser = named::<PathBuf>)]
    pub add_lora: Vec<(String, PathBuf)>,
    /// BLIP captioning model, for --refine-mode caption
    #[arg(long, value_name = "DIR|ID", env = "SD_CAPTION_MODEL_ID")]
    pub caption_model: Option<PathBuf>,
    /// How small PNGs are made, at the cost of time
    #[arg(long, value_name = "LEVEL", env = "AQUATINT_PNG_COMPRESSION", default_value = "fast")]
    pub png_compression: PngCompression,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", env = "AQUATINT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log the end of each stage of a job (start, step, decode) with the time it took
    #[arg(long, env = "AQUATINT_LOG_STAGES", value_parser = FalseyValueParser::new())]
    pub log_stages: bool,
    #[command(flatten)]
    /// The queue.
    pub queue: QueueArgs,
    #[command(flatten)]
    /// What RunPod tells its containers.
    pub runpod: RunPod,
    #[command(flatten)]
    /// What the engine and its queue take on.
    pub capacity: Capacity,
    #[command(flatten)]
    /// What requests get unless they say otherwise.
    pub defaults: Defaults,
    #[command(flatten)]
    /// The policy towards clients.
    pub edge: EdgeArgs,
    #[command(flatten)]
    /// The model.
    pub model: ModelArgs,
    #[command(flatten)]
    /// Variables that are understood and have no effect yet.
    pub unused: Unused,
}

/// The policy towards clients.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Clients")]
pub struct EdgeArgs {
    /// Origins whose web pages may call, separated by commas; * is all [default: localhost]
    #[arg(long, value_name = "ORIGINS", env = "ALLOW_ORIGINS")]
    pub allow_origins: Option<String>,
    /// Key that opens the server, as a bearer token, or as the Basic password on /sdapi; may be given several times.
    /// Other users of this machine can read it off the command line: prefer the variable or the file
    #[arg(
        long,
        value_name = "KEY",
        env = "AQUATINT_API_KEYS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub api_key: Vec<Secret>,
    /// File of such keys, one a line
    #[arg(long, value_name = "FILE", env = "AQUATINT_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Requests for work that one caller may send at once, and in each minute from then on
    #[arg(long, value_name = "N", env = "AQUATINT_RATE_LIMIT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit: Option<u32>,
    /// Take the last address of X-Forwarded-For for the caller's: only behind a proxy that sets it
    #[arg(long, env = "AQUATINT_BEHIND_PROXY", value_parser = FalseyValueParser::new())]
    pub behind_proxy: bool,
    /// Largest body of a request in MiB; some routes take less
    #[arg(long, value_name = "MIB", env = "AQUATINT_MAX_BODY_MIB", default_value = "64", value_parser = number(1..=1024))]
    pub max_body_mib: usize,
    /// Connections that may be open at a time; more wait
    #[arg(long, value_name = "N", env = "AQUATINT_MAX_CONNECTIONS", default_value = "900", value_parser = number(1..=1_000_000))]
    pub max_connections: usize,
}

/// The queue between those who take requests and those who make pictures.
#[derive(Args, Clone, Debug)]
pub struct QueueArgs {
    /// `local` is a queue in this process. nats://host:4222 (several with commas between them) is one that several
    /// processes share: those that take requests, and those that make pictures
    #[arg(long = "queue", value_name = "QUEUE", env = "AQUATINT_QUEUE", hide_env_values = true, default_value = "local", value_parser = queue)]
    pub queue: QueueChoice,
    /// What this process does for a shared queue
    #[arg(long, value_name = "ROLE", env = "AQUATINT_ROLE", default_value = "all")]
    pub role: Role,
    /// Seconds for which a job of a shared queue may stand still before another worker gets it: several times the
    /// longest step
    #[arg(long, value_name = "S", env = "AQUATINT_LEASE_SECONDS", default_value = "30", value_parser = lease)]
    pub lease_seconds: Duration,
    /// Workers of a shared queue that may begin a job before it counts as failed
    #[arg(long, value_name = "N", env = "AQUATINT_MAX_DELIVERIES", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_deliveries: u32,
    /// Seconds for which a shared queue keeps finished pictures, and what happened to jobs
    #[arg(long, value_name = "S", env = "AQUATINT_KEEP_SECONDS", default_value = "3600", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    pub keep_seconds: u32,
    /// Servers of a NATS cluster that hold a copy of everything: 3 survive the loss of one
    #[arg(long, value_name = "N", env = "AQUATINT_QUEUE_REPLICAS", default_value = "1", value_parser = number(1..=5))]
    pub queue_replicas: usize,
}

/// Where the queue is.
#[derive(Clone, Debug)]
pub enum QueueChoice {
    /// In this process.
    Local,
    /// On NATS, at this address, which may hold a password.
    Nats(Secret),
}

/// What a process does for a shared queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Takes requests and makes pictures.
    All,
    /// Takes requests; needs no model and no GPU.
    Api,
    /// Makes pictures; answers health checks and metrics alone.
    Worker,
}

/// What RunPod tells its containers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "RunPod")]
pub struct RunPod {
    /// Another port for GET /ping alone, as RunPod's load balancer may ask for
    #[arg(long, value_name = "PORT", env = "PORT_HEALTH")]
    pub health_port: Option<u16>,
    /// Where a RunPod queue worker takes its jobs; $ID stands for the worker.
    #[arg(long, value_name = "URL", env = "RUNPOD_WEBHOOK_GET_JOB", value_parser = web_address)]
    pub runpod_get_job: Option<String>,
    /// Where it hands results over; $RUNPOD_POD_ID stands for the worker, $ID for the job
    #[arg(long, value_name = "URL", env = "RUNPOD_WEBHOOK_POST_OUTPUT", value_parser = web_address)]
    pub runpod_post_output: Option<String>,
    /// Where it says that it lives
    #[arg(long, value_name = "URL", env = "RUNPOD_WEBHOOK_PING", value_parser = web_address)]
    pub runpod_ping: Option<String>,
    /// Milliseconds between two pings
    #[arg(long, value_name = "MS", env = "RUNPOD_PING_INTERVAL", default_value = "10000", value_parser = number(10..=3_600_000))]
    pub runpod_ping_interval: usize,
    /// The worker
    #[arg(long, value_name = "ID", env = "RUNPOD_POD_ID", default_value = "aquatint")]
    pub runpod_pod_id: String,
    /// What proves it; only from the environment, as arguments are for all to see
    #[arg(long, hide = true, env = "RUNPOD_AI_API_KEY", hide_env_values = true)]
    pub runpod_ai_api_key: Option<Secret>,
}

/// What the engine and its queue take on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Capacity")]
pub struct Capacity {
    /// Another model that requests may name; it is loaded when the first does. May be given several times
    #[arg(long, value_name = "NAME=DIR|ID", value_parser = named::<String>)]
    pub add_model: Vec<(String, String)>,
    /// Work that is admitted at a time: megapixels times steps of all jobs together [default: no limit]
    #[arg(long, value_name = "N", env = "AQUATINT_QUEUE_COST", value_parser = positive)]
    pub queue_cost: Option<f64>,
    /// Jobs that one caller may have running or waiting [default: no limit]
    #[arg(long, value_name = "N", env = "AQUATINT_JOBS_PER_CALLER", value_parser = number(1..=100_000))]
    pub jobs_per_caller: Option<usize>,
    /// Longest time a job may wait, in seconds; 0 is no limit
    #[arg(long, value_name = "S", env = "AQUATINT_MAX_WAIT_SECONDS", default_value = "900", value_parser = seconds)]
    pub max_wait_seconds: Duration,
    /// Longest time a job may run, in seconds; 0 is no limit
    #[arg(long, value_name = "S", env = "AQUATINT_MAX_RUN_SECONDS", default_value = "3600", value_parser = seconds)]
    pub max_run_seconds: Duration,
    /// Longest time one step or decoding may take, in seconds, before the device counts as lost and the program
    /// ends with 70; 0 is no limit
    #[arg(long, value_name = "S", env = "AQUATINT_MAX_STEP_SECONDS", default_value = "0", value_parser = seconds)]
    pub max_step_seconds: Duration,
    /// Jobs that may be halfway at a time, so that a short one can overtake a long one
    #[arg(long, value_name = "N", env = "AQUATINT_IN_FLIGHT", default_value = "4", value_parser = number(1..=64))]
    pub in_flight: usize,
    /// Pictures that go through the denoiser together; on a CPU more than one gains nothing
    #[arg(long, value_name = "N", env = "AQUATINT_MAX_BATCH", default_value = "1", value_parser = number(1..=64))]
    pub max_batch: usize,
    /// Memory for the weights of all models, in GiB; beyond it the model that was not used for longest is unloaded
    /// [default: no limit]
    #[arg(long, value_name = "GIB", env = "AQUATINT_MODEL_MEMORY", value_parser = positive)]
    pub model_memory: Option<f64>,
    /// Unload a model when no job asked for it for so many seconds; 0 is never
    #[arg(long, value_name = "S", env = "AQUATINT_UNLOAD_SECONDS", default_value = "0", value_parser = seconds)]
    pub unload_seconds: Duration,
    /// Recorded runs (CUDA graphs) that each network keeps on a GPU, one for each size and batch, the last used ones: a
    /// step is then started as a whole. 0 is none. Never tried on a device yet
    #[arg(long, value_name = "N", env = "AQUATINT_CUDA_GRAPHS", default_value = "0", value_parser = number(0..=64))]
    pub cuda_graphs: usize,
    /// File that keeps which algorithms were measured to be the fastest on this GPU; `none` keeps nothing [default:
    /// aquatint/tuning.txt in the user's cache]
    #[arg(long, value_name = "FILE", env = "AQUATINT_TUNING_CACHE")]
    pub tuning_cache: Option<PathBuf>,
    /// Take jobs at once when the model is loaded: without it, a model on a GPU makes three pictures before that, which
    /// measures algorithms and records runs
    #[arg(long, env = "AQUATINT_NO_WARM_UP", value_parser = FalseyValueParser::new())]
    pub no_warm_up: bool,
    /// Memory for finished pictures, in MiB: a request that repeats an earlier one, seed included, gets its pictures
    /// again; 0 keeps none
    #[arg(long, value_name = "MIB", env = "AQUATINT_PICTURE_CACHE", default_value = "0", value_parser = number(0..=1_000_000))]
    pub picture_cache: usize,
}

/// A time of which 0 means that there is no limit.
pub fn limit(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

/// What requests get unless they say otherwise; where this does not, the model's own defaults hold.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Defaults of requests")]
pub struct Defaults {
    /// Pictures for each request
    #[arg(long, value_name = "N", env = "SD_NUM_IMAGES", default_value = "2", value_parser = number(1..=MAX_IMAGES))]
    pub num_images: usize,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N", env = "SD_STEPS", value_parser = number(1..=MAX_STEPS))]
    pub steps: Option<usize>,
    /// How closely the prompt is followed; 1 turns guidance off [default: the model's]
    #[arg(long, value_name = "X", env = "SD_GUIDANCE", value_parser = guidance_scale)]
    pub guidance_scale: Option<f64>,
    /// Scheduler by its diffusers or web UI name [default: the model's]
    #[arg(long, value_name = "NAME", env = "SD_SCHEDULER", value_parser = scheduler)]
    pub scheduler: Option<String>,
    /// A model that stands in for one that is not here, for example FLUX.1-dev=FLUX.1-schnell; may be given
    /// several times
    #[arg(long, value_name = "ASKED=USED", env = "AQUATINT_MODEL_FALLBACK", value_delimiter = ',', value_parser = fallback)]
    pub model_fallback: Vec<Fallback>,
    /// How /refine works
    #[arg(long, value_name = "MODE", env = "REFINE_MODE", default_value = "img2img")]
    pub refine_mode: RefineMode,
}

/// A model that stands in for another.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// The model that is asked for and not here.
    pub asked: String,
    /// The model that is used.
    pub used: String,
}

/// Pictures a request may ask for.
pub const MAX_IMAGES: u64 = 8;
/// Steps a request may ask for.
pub const MAX_STEPS: u64 = 150;
/// Guidance that a request may ask for.
pub const MAX_GUIDANCE_SCALE: f64 = 30.0;

/// Intervals of DeepCache that a request may ask for.
pub const MAX_CACHE_INTERVAL: u64 = 100;
/// Branches of DeepCache that a request may ask for; how many there are is the model's to say.
pub const MAX_CACHE_BRANCH_ID: u64 = 29;

/// How `/refine` works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "lower")]
#[serde(rename_all = "lowercase")]
pub enum RefineMode {
    /// Each picture is the start of its own image-to-image run.
    Img2Img,
    /// The pictures are captioned, and new ones made from the captions and the prompt; needs --caption-model.
    Caption,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Variables of the replaced service that are accepted; the log says that they have no effect.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Accepted without effect")]
pub struct Unused {
    /// A switch for tuning
    #[arg(long, hide = true, env = "TORCH_COMPILE")]
    torch_compile: Option<String>,
    /// A FLUX model
    #[arg(long, hide = true, env = "FLUX_MODEL", value_parser = no_flux)]
    flux_model: Option<String>,
}

impl Unused {
    /// The names of those that are set, with the reason why they do nothing.
    pub fn set(&self) -> Vec<(&'static str, &'static str)> {
        [("TORCH_COMPILE", self.torch_compile.is_some(), "there is nothing to compile")]
            .into_iter()
            .filter_map(|(name, set, why)| set.then_some((name, why)))
            .collect()
    }
}

/// A value that no log may show.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A whole number in a range.
fn number(range: std::ops::RangeInclusive<u64>) -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u64).range(range).map(|n| n as usize)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "a number of seconds, 0 or more, is needed".into())
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = seconds(text).ok().filter(|lease| *lease >= Duration::from_millis(300));
    lease.ok_or_else(|| "a number of seconds, 0.3 or more, is needed".into())
}

/// `local`, or addresses of NATS servers. What is wrong is told without them: they may hold a password.
fn queue(text: &str) -> Result<QueueChoice, String> {
    let is_address = |text: &str| {
        let rest = text.strip_prefix("nats://").or_else(|| text.strip_prefix("tls://"));
        rest.is_some_and(|rest| !rest.is_empty())
    };
    match text {
        "local" => Ok(QueueChoice::Local),
        text if cfg!(feature = "nats") && text.split(',').all(is_address) => {
            Ok(QueueChoice::Nats(text.to_owned().into()))
        }
        _ if cfg!(feature = "nats") => Err("`local`, nats://host:port or tls://host:port is needed".into()),
        _ => Err("this program was built without the feature `nats`: `local` alone is possible".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "a number above 0 is needed".into())
}

/// A model whose shapes are known.
fn dummy(text: &str) -> Result<Dummy, String> {
    let folder = PathBuf::from(text);
    if let Some(model) = Published::named(text) {
        Ok(Dummy::Published(model))
    } else if folder.join("model_index.json").is_file() {
        Ok(Dummy::Folder(folder))
    } else {
        let names: Vec<_> = PUBLISHED.iter().map(|model| model.name).collect();
        Err(format!("one of {}, or a folder with a model_index.json is needed", names.join(", ")))
    }
}

/// `NAME=` and what bears that name.
fn named<T: for<'a> From<&'a str>>(text: &str) -> Result<(String, T), String> {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name.to_owned(), rest.into())),
        _ => Err("NAME=PATH or NAME=ID is needed".into()),
    }
}

/// A side of a picture in pixels.
fn side(text: &str) -> Result<usize, String> {
    let allowed = format!("a multiple of 8 from 8 to {MAX_SIDE_PX} is needed");
    let side: usize = text.parse().map_err(|_| allowed.clone())?;
    let fits = side > 0 && side.is_multiple_of(8) && side <= MAX_SIDE_PX as usize;
    if fits { Ok(side) } else { Err(allowed) }
}

fn scheduler(text: &str) -> Result<String, String> {
    SamplerSettings::web_ui_names(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn unit_interval(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 1.0)
}

fn guidance_scale(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, MAX_GUIDANCE_SCALE)
}

fn in_range(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("a number from {low} to {high} is needed")),
    }
}

/// `FILE` or `FILE:SCALE`.
fn lora(text: &str) -> Result<LoraChoice, String> {
    let (path, scale) = match text.rsplit_once(':') {
        // A colon may also belong to the file's name.
        Some(_) if Path::new(text).exists() || builtin::file(Path::new(text)).is_some() => (text, 1.0),
        Some((path, scale)) => {
            let number = scale.parse().ok().filter(|s: &f64| s.is_finite());
            (path, number.ok_or_else(|| format!("the scale {scale:?} is not a number"))?)
        }
        None => (text, 1.0),
    };
    if path.is_empty() {
        return Err("FILE or FILE:SCALE is needed".into());
    }
    Ok(LoraChoice::new(path, scale))
}

fn web_address(text: &str) -> Result<String, String> {
    let known = text.starts_with("http://") || text.starts_with("https://");
    if known {
        Ok(text.to_owned())
    } else {
        Err("a URL that starts with https:// or http:// is needed".into())
    }
}

/// `ASKED=USED`.
fn fallback(text: &str) -> Result<Fallback, String> {
    match text.split_once('=').map(|(asked, used)| (asked.trim(), used.trim())) {
        Some((asked, used)) if !asked.is_empty() && !used.is_empty() => {
            Ok(Fallback { asked: asked.to_owned(), used: used.to_owned() })
        }
        _ => Err("ASKED=USED is needed: two model names".into()),
    }
}

fn no_flux(_: &str) -> Result<String, String> {
    Err("FLUX models are not built yet: give a Stable Diffusion folder as SD_MODEL_ID".into())
}

/// Whether an address can be reached from this machine alone.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::from("hf_abcdef".to_owned());
        assert_eq!(format!("{secret:?}"), "(secret)");
        assert_eq!(secret.expose(), "hf_abcdef");
    }

    #[test]
    fn a_lora_may_have_a_scale() {
        assert_eq!(lora("a.safetensors:0.5").unwrap(), LoraChoice::new("a.safetensors", 0.5));
        assert_eq!(lora("a.safetensors").unwrap().scale, 1.0);
        assert_eq!(lora("a:-1").unwrap().scale, -1.0);
        for bad in ["a:x", "a:", "a:nan", ":0.5", ""] {
            assert!(lora(bad).is_err(), "{bad}");
        }
    }
}
