//! Whole pictures, and the parts that they are made of, on random weights of the published shapes: pictures a minute, and
//! which part of the GPU's floor that is. `cargo bench --features cuda --bench pictures [-- NAME]`.
//!
//! A CPU would take hours for these: there it says how far pictures of eight-bit products are from others, and times what
//! steps that reuse features save and change, of the built-in model, a small FLUX and a small picture of Stable Diffusion
//! 1.5's shape.
//! Where a GPU has too little memory for a model, that is said and the next one tried.

// A bench has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/floors.rs"]
mod floors;

use std::path::Path;
use std::time::Instant;

use aquatint_models::checkpoint::published::{Dummy, Published};
use aquatint_models::denoiser::{DeepCache, StepCache};
use aquatint_models::pipeline::{
    DeviceChoice, EightBits, GenerationRequest, LoadOptions, ModelSource, Pipeline, Precision,
};
use floors::{PARTS, PICTURES, floor_ms};
use image::RgbImage;
use serde_json::json;

/// Timed runs of each; one before them is not counted.
const RUNS: usize = 3;

/// A picture to time: its name in the table of floors, and how it is asked for.
struct Work {
    name: &'static str,
    model: &'static str,
    side: usize,
    steps: usize,
    guidance_scale: f64,
    scheduler: Option<&'static str>,
    quantisation: Option<EightBits>,
}

impl Work {
    const fn new(name: &'static str, model: &'static str, steps: usize, guidance_scale: f64) -> Self {
        Self { name, model, side: 1024, steps, guidance_scale, scheduler: None, quantisation: None }
    }
}

const SDXL: Work = Work::new(PICTURES[0].0, "sdxl", 30, 5.0);
const FLUX_DEV: Work = Work::new(PICTURES[4].0, "flux-dev", 28, 3.5);

const WORK: [Work; 9] = [
    SDXL,
    Work { scheduler: Some("LCM"), ..Work::new(PICTURES[1].0, "sdxl", 4, 1.0) },
    Work { name: "SDXL, fp8", quantisation: Some(EightBits::F8E4M3), ..SDXL },
    Work { name: "SDXL, int8", quantisation: Some(EightBits::Int8), ..SDXL },
    Work { side: 512, ..Work::new(PICTURES[2].0, "sd15", 20, 7.5) },
    Work::new(PICTURES[3].0, "flux-schnell", 4, 0.0),
    FLUX_DEV,
    Work { name: "FLUX.1-dev, fp8", quantisation: Some(EightBits::F8E4M3), ..FLUX_DEV },
    Work { name: "FLUX.1-dev, int8", quantisation: Some(EightBits::Int8), ..FLUX_DEV },
];

impl Work {
    fn request(&self) -> GenerationRequest {
        let mut request = GenerationRequest::new("a photo of a red cat", 1);
        (request.width, request.height) = (Some(self.side), Some(self.side));
        request.num_inference_steps = Some(self.steps);
        request.guidance_scale = Some(self.guidance_scale);
        request.scheduler = self.scheduler.map(str::to_owned);
        request
    }

    /// The part of which a step is made: its name in the table of floors, which holds no products of eight bits.
    fn step(&self) -> &'static str {
        match (self.model, self.guidance_scale > 1.0) {
            _ if self.quantisation.is_some() => "a step of it",
            ("sdxl", false) => PARTS[0].0,
            ("sdxl", true) => PARTS[1].0,
            ("sd15", _) => PARTS[2].0,
            ("flux-dev", _) => PARTS[6].0,
            _ => PARTS[7].0,
        }
    }
}

/// The median, in milliseconds.
fn median(mut milliseconds: Vec<f64>) -> f64 {
    milliseconds.sort_by(f64::total_cmp);
    milliseconds[milliseconds.len() / 2]
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A row, with the part of the floor that was reached where there is one.
fn print(table: &[(&str, [f64; 3])], name: &str, milliseconds: f64, gpu: &str) {
    let floor = match floor_ms(table, name, gpu) {
        Some(floor) => format!("{floor:.1} | {:.0} %", 100.0 * floor / milliseconds),
        None => "- | -".to_owned(),
    };
    println!("| {name} | {milliseconds:.1} | {:.1} | {floor} |", 60e3 / milliseconds);
}

fn on_gpu(wanted: &str) {
    let gpu = common::gpu_name();
    println!("| work | ms | a minute | floor ms | of the floor |\n|---|---|---|---|---|");
    let mut loaded: Option<(_, Pipeline)> = None;
    for work in WORK.iter().filter(|work| work.name.to_lowercase().contains(wanted)) {
        let model = (work.model, work.quantisation);
        if loaded.as_ref().is_none_or(|(present, _)| *present != model) {
            // The one before must go first: two do not fit.
            drop(loaded.take());
            let source = ModelSource::Dummy(Dummy::Published(Published::named(work.model).unwrap()));
            let precision = if work.model.starts_with("flux") { Precision::Auto } else { Precision::Fp16 };
            let quantisation = work.quantisation;
            let options =
                LoadOptions { precision, quantisation, device: DeviceChoice::Cuda, ..LoadOptions::default() };
            match Pipeline::load(&source, &options) {
                Ok(pipeline) => loaded = Some((model, pipeline)),
                Err(error) => {
                    println!("{}: {error}", work.name);
                    continue;
                }
            }
        }
        let Some((_, pipeline)) = &loaded else { continue };
        match time(pipeline, &work.request()) {
            Ok(Times { whole, step, decode }) => {
                print(&PICTURES, work.name, whole, &gpu);
                print(&PARTS, work.step(), step, &gpu);
                if work.name == SDXL.name {
                    print(&PARTS, PARTS[3].0, decode, &gpu);
                }
            }
            Err(error) => println!("{}: {error}", work.name),
        }
    }
}

/// Medians in milliseconds.
struct Times {
    whole: f64,
    step: f64,
    decode: f64,
}

/// The prompt is encoded by the run that does not count, as for a server that sees it again.
fn time(pipeline: &Pipeline, request: &GenerationRequest) -> aquatint_models::Result<Times> {
    pipeline.generate(request)?;
    let (mut whole, mut steps, mut decode) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let began = Instant::now();
        let mut denoising = pipeline.start(request)?;
        pipeline.device().synchronize()?;
        let (first, count) = (Instant::now(), denoising.steps());
        while !denoising.is_done() {
            pipeline.step(&mut denoising)?;
        }
        pipeline.device().synchronize()?;
        steps.push(ms(first) / count.max(1) as f64);
        let decoding = Instant::now();
        pipeline.decode(&denoising)?;
        decode.push(ms(decoding));
        whole.push(ms(began));
    }
    Ok(Times { whole: median(whole), step: median(steps), decode: median(decode) })
}

/// The peak signal-to-noise ratio of two pictures in dB.
fn psnr(a: &RgbImage, b: &RgbImage) -> String {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    format!("{:.1} dB", 10.0 * (255f64.powi(2) / mean).log10())
}

/// How far pictures of eight-bit products are from those of f32, of a trained model. The CPU is no faster for it.
fn eight_bits_on_cpu() {
    println!("\nthe built-in model, 20 steps: PSNR to f32, dB\n| prompt | fp8 | int8 |\n|---|---|---|");
    let load = |quantisation| {
        let options = LoadOptions { quantisation, device: DeviceChoice::Cpu, ..LoadOptions::default() };
        Pipeline::load(&ModelSource::Builtin, &options).unwrap()
    };
    let [plain, fp8, int8] = [None, Some(EightBits::F8E4M3), Some(EightBits::Int8)].map(load);
    for prompt in ["a red apple", "a cat on a chair", "a castle by the sea"] {
        let mut request = GenerationRequest::new(prompt, 1);
        request.num_inference_steps = Some(20);
        let [plain, fp8, int8] = [&plain, &fp8, &int8].map(|of| of.generate(&request).unwrap());
        println!("| {prompt} | {} | {} |", psnr(&plain, &fp8), psnr(&plain, &int8));
    }
}

fn on_cpu() {
    eight_bits_on_cpu();
    let deep = |interval, branch_id| StepCache::Deep(DeepCache { interval, branch_id });
    let mut request = GenerationRequest::new("a red apple", 1);
    request.num_inference_steps = Some(20);
    println!("\nthe built-in model, 20 steps");
    let caches = [deep(2, 0), deep(3, 0), deep(5, 0), deep(3, 3)];
    caches_on_cpu(&ModelSource::Builtin, &request, &caches, RUNS);

    let folder = std::env::temp_dir().join(format!("aquatint-small-flux-{}", std::process::id()));
    small_flux(&folder).unwrap();
    (request.width, request.height, request.max_sequence_length) = (Some(128), Some(128), Some(64));
    println!(
        "\na small FLUX, 128x128, 20 steps; random weights change more from step to step than trained ones do"
    );
    let caches = [0.3, 0.5, 0.7].map(|threshold| StepCache::FirstBlock { threshold });
    caches_on_cpu(&ModelSource::Dummy(Dummy::Folder(folder.clone())), &request, &caches, RUNS);
    std::fs::remove_dir_all(folder).unwrap();

    let sd15 = ModelSource::Dummy(Dummy::Published(Published::named("sd15").unwrap()));
    request.num_inference_steps = Some(12);
    (request.width, request.height, request.max_sequence_length) = (Some(256), Some(256), None);
    request.guidance_scale = Some(1.0);
    println!("\nrandom weights of Stable Diffusion 1.5, 256x256, 12 steps without guidance");
    caches_on_cpu(&sd15, &request, &[deep(2, 0), deep(3, 0), deep(5, 0), deep(3, 3)], 1);
}

/// What steps that reuse features save, and by how much they change the picture: the least times of runs in turn.
fn caches_on_cpu(source: &ModelSource, request: &GenerationRequest, caches: &[StepCache], runs: usize) {
    let options = LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() };
    let pipeline = Pipeline::load(source, &options).unwrap();
    let ways = std::iter::once(None).chain(caches.iter().copied().map(Some));
    let requests: Vec<_> =
        ways.map(|step_cache| GenerationRequest { step_cache, ..request.clone() }).collect();
    let make = |request: &GenerationRequest| {
        let mut denoising = pipeline.start(request).unwrap();
        while !denoising.is_done() {
            pipeline.step(&mut denoising).unwrap();
        }
        (pipeline.decode(&denoising).unwrap(), denoising.steps() - denoising.reused())
    };
    // The first run of each encodes the prompt, and does not count.
    let made: Vec<_> = requests.iter().map(make).collect();
    let mut best = vec![f64::INFINITY; requests.len()];
    for _ in 0..runs {
        for (request, best) in requests.iter().zip(&mut best) {
            let began = Instant::now();
            make(request);
            *best = best.min(ms(began));
        }
    }
    println!("| way | steps computed whole | ms | times as fast | PSNR |\n|---|---|---|---|---|");
    for ((request, (picture, whole)), took) in requests.iter().zip(&made).zip(&best) {
        let (way, psnr) = match request.step_cache {
            None => ("none".to_owned(), String::new()),
            Some(StepCache::FirstBlock { threshold }) => {
                (format!("first_block_cache {threshold}"), psnr(&made[0].0, picture))
            }
            Some(StepCache::Deep(DeepCache { interval, branch_id })) => {
                (format!("cache_interval {interval}, cache_branch_id {branch_id}"), psnr(&made[0].0, picture))
            }
        };
        println!("| {way} | {whole} | {took:.0} | {:.2} | {psnr} |", best[0] / took);
    }
}

/// The configs of a FLUX of a twentieth of its width and a fifth of its depth.
fn small_flux(folder: &Path) -> std::io::Result<()> {
    let stages = |kind: &'static str| vec![kind; 4];
    for (file, config) in [
        ("model_index.json", json!({"_class_name": "FluxPipeline"})),
        (
            "scheduler/scheduler_config.json",
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}),
        ),
        (
            "transformer/config.json",
            json!({
                "num_layers": 4, "num_single_layers": 8, "attention_head_dim": 32, "num_attention_heads": 8,
                "joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": [8, 12, 12],
                "guidance_embeds": true,
            }),
        ),
        (
            "text_encoder/config.json",
            json!({
                "vocab_size": 49408, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                "num_attention_heads": 1, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 64,
            }),
        ),
        (
            "text_encoder_2/config.json",
            json!({
                "vocab_size": 32128, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2,
                "feed_forward_proj": "gated-gelu",
            }),
        ),
        (
            "vae/config.json",
            json!({
                "latent_channels": 16, "block_out_channels": [16, 32, 32, 32], "layers_per_block": 1,
                "norm_num_groups": 8, "scaling_factor": 0.3611, "shift_factor": 0.1159,
                "use_quant_conv": false, "use_post_quant_conv": false,
                "down_block_types": stages("DownEncoderBlock2D"), "up_block_types": stages("UpDecoderBlock2D"),
            }),
        ),
    ] {
        let path = folder.join(file);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, config.to_string())?;
    }
    Ok(())
}

fn main() {
    aquatint_kernels::keep_freed_memory();
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let device = common::device();
    println!("{}", common::what());
    if device.is_cpu() { on_cpu() } else { on_gpu(&wanted.to_lowercase()) }
}
