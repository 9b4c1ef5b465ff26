//! What the memory planner says a step and a decoding of Stable Diffusion take beside the weights, and what the process
//! took for them: `unet_memory MODEL SIDE...` with a published model's shapes and random weights, on the CPU.

// It has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod peak;

use aquatint_models::checkpoint::published::{Dummy, Published};
use aquatint_models::pipeline::{DeviceChoice, GenerationRequest, LoadOptions, ModelSource, Pipeline};
use peak::peak_resident_bytes;

fn main() {
    let mut args = std::env::args().skip(1);
    let model = Published::named(&args.next().unwrap()).unwrap();
    let options = LoadOptions { device: DeviceChoice::Cpu, ..Default::default() };
    let pipeline = Pipeline::load(&ModelSource::Dummy(Dummy::Published(model)), &options).unwrap();
    // Random weights have no files whose sizes would count.
    let beside = pipeline.memory_for(&request(8));
    for side in args.map(|side| side.parse::<usize>().unwrap()) {
        let request = request(side);
        let mut denoising = pipeline.start(&request).unwrap();
        let step = peak_of(|| pipeline.step(&mut denoising).unwrap());
        let decode = peak_of(|| drop(pipeline.decode(&denoising).unwrap()));
        let (estimated, measured) = (pipeline.memory_for(&request) - beside, step.max(decode));
        println!(
            "{}",
            serde_json::json!({"side": side, "step": step, "decode": decode, "estimated": estimated,
                "ratio": estimated as f64 / measured as f64})
        );
    }
}

fn request(side: usize) -> GenerationRequest {
    GenerationRequest {
        width: Some(side),
        height: Some(side),
        num_inference_steps: Some(1),
        ..GenerationRequest::new("a lighthouse on a cliff", 1)
    }
}

/// By how much the process grew at most while this ran.
fn peak_of(run: impl FnOnce()) -> u64 {
    // Linux begins anew with the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_resident_bytes().unwrap();
    run();
    peak_resident_bytes().unwrap() - before
}
