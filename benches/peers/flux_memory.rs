//! What the memory planner says a picture of FLUX takes, beside what the process took:
//! `flux_memory FOLDER MEMORY_GB WIDTH HEIGHT`.

// It has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod peak;

use std::path::PathBuf;

use aquatint_models::pipeline::{GenerationRequest, LoadOptions, ModelSource, Pipeline};
use peak::peak_resident_bytes;

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap());
    let mut number = || args.next().unwrap().parse::<f64>().unwrap();
    let (gigabytes, width, height) = (number(), number() as usize, number() as usize);
    let options = LoadOptions { memory_bytes: Some((gigabytes * 1e9) as u64), ..Default::default() };
    let pipeline = Pipeline::load(&ModelSource::Folder(folder), &options).unwrap();
    let mut request = GenerationRequest::new("a lighthouse on a cliff", 1);
    (request.width, request.height, request.num_inference_steps) = (Some(width), Some(height), Some(1));
    let estimated = pipeline.memory_for(&request);
    pipeline.generate(&request).unwrap();
    let (measured, plan) = (peak_resident_bytes().unwrap(), pipeline.info().memory.unwrap());
    println!(
        "{}",
        serde_json::json!({"plan": plan.savings(), "estimated": estimated, "measured": measured,
            "ratio": estimated as f64 / measured as f64})
    );
}
