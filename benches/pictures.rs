//! Whole pictures, and the parts that they are made of, on random weights of the published shapes: pictures a minute, and
//! which part of the GPU's floor that is. `cargo bench --features cuda --bench pictures [-- NAME]`.
//!
//! A CPU would take hours for these: there it times the built-in model, and what its steps that reuse features save.
//! Where a GPU has too little memory for a model, that is said and the next one tried.

// A bench has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/floors.rs"]
mod floors;

use std::time::Instant;

use aquatint_models::checkpoint::published::{Dummy, Published};
use aquatint_models::denoiser::{DeepCache, StepCache};
use aquatint_models::pipeline::{
    DeviceChoice, GenerationRequest, LoadOptions, ModelSource, Pipeline, Precision,
};
use floors::{PARTS, PICTURES, floor_ms};
use image::RgbImage;

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
}

const WORK: [Work; 5] = [
    Work { name: PICTURES[0].0, model: "sdxl", side: 1024, steps: 30, guidance_scale: 5.0, scheduler: None },
    Work {
        name: PICTURES[1].0,
        model: "sdxl",
        side: 1024,
        steps: 4,
        guidance_scale: 1.0,
        scheduler: Some("LCM"),
    },
    Work { name: PICTURES[2].0, model: "sd15", side: 512, steps: 20, guidance_scale: 7.5, scheduler: None },
    Work {
        name: PICTURES[3].0,
        model: "flux-schnell",
        side: 1024,
        steps: 4,
        guidance_scale: 0.0,
        scheduler: None,
    },
    Work {
        name: PICTURES[4].0,
        model: "flux-dev",
        side: 1024,
        steps: 28,
        guidance_scale: 3.5,
        scheduler: None,
    },
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

    /// The part of which a step is made, and its name in the table of floors.
    fn step(&self) -> &'static str {
        match (self.model, self.guidance_scale > 1.0) {
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
    let mut loaded: Option<(&str, Pipeline)> = None;
    for work in WORK.iter().filter(|work| work.name.to_lowercase().contains(wanted)) {
        if loaded.as_ref().is_none_or(|(name, _)| *name != work.model) {
            // The one before must go first: two do not fit.
            drop(loaded.take());
            let source = ModelSource::Dummy(Dummy::Published(Published::named(work.model).unwrap()));
            let precision = if work.model.starts_with("flux") { Precision::Auto } else { Precision::Fp16 };
            let options = LoadOptions { precision, device: DeviceChoice::Cuda, ..LoadOptions::default() };
            match Pipeline::load(&source, &options) {
                Ok(pipeline) => loaded = Some((work.model, pipeline)),
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
                if work.side == 1024 && work.model == "sdxl" {
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
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    10.0 * (255f64.powi(2) / mean).log10()
}

fn on_cpu() {
    let options = LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() };
    let pipeline = Pipeline::load(&ModelSource::Builtin, &options).unwrap();
    let mut request = GenerationRequest::new("a red apple", 1);
    request.num_inference_steps = Some(20);
    let whole = time(&pipeline, &request).unwrap();
    let picture = pipeline.generate(&request).unwrap();
    println!("the built-in model, {0}x{0}, 20 steps", pipeline.info().native_size_px);
    println!("| steps | ms | a minute | faster | PSNR |\n|---|---|---|---|---|");
    println!("| all whole | {:.0} | {:.1} | 1 | |", whole.whole, 60e3 / whole.whole);
    for (interval, branch_id) in [(2, 0), (3, 0), (5, 0), (3, 3)] {
        request.step_cache = Some(StepCache::Deep(DeepCache { interval, branch_id }));
        let times = time(&pipeline, &request).unwrap();
        let psnr = psnr(&picture, &pipeline.generate(&request).unwrap());
        println!(
            "| cache_interval {interval}, cache_branch_id {branch_id} | {:.0} | {:.1} | {:.2} | {psnr:.1} dB |",
            times.whole,
            60e3 / times.whole,
            whole.whole / times.whole
        );
    }
}

fn main() {
    aquatint_kernels::keep_freed_memory();
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let device = common::device();
    println!("{}", common::what());
    if device.is_cpu() { on_cpu() } else { on_gpu(&wanted.to_lowercase()) }
}
