//! What the memory planner says a step and a decoding of Stable Diffusion take beside the weights, and what the process
//! took for each: `unet_memory MODEL SIDE...` with a published model's shapes and random weights, on the CPU. Fails where an
//! estimate is not about what was measured, or up to 1.3 times that.

// It has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

mod peak;

use aquatint_models::checkpoint::ModelFolder;
use aquatint_models::checkpoint::published::{Dummy, Published};
use aquatint_models::pipeline::memory::{Extent, UnetNeeds};
use aquatint_models::pipeline::{DeviceChoice, GenerationRequest, LoadOptions, ModelSource, Pipeline};
use aquatint_models::vae::AutoencoderKlConfig;
use peak::peak_resident_bytes;

fn main() {
    let mut args = std::env::args().skip(1);
    let model = Published::named(&args.next().unwrap()).unwrap();
    let options = LoadOptions { device: DeviceChoice::Cpu, ..Default::default() };
    let pipeline = Pipeline::load(&ModelSource::Dummy(Dummy::Published(model)), &options).unwrap();
    let folder = ModelFolder::Published(model);
    let vae: AutoencoderKlConfig = folder.json("vae/config.json").unwrap();
    // Each alone, without weights and what the program takes beside tensors.
    let nothing = UnetNeeds {
        weights: 0,
        unets: Vec::new(),
        activation: 4,
        vae_channels: vec![0; vae.block_out_channels.len()],
        vae_activation: 4,
        overhead: 0,
    };
    let step = UnetNeeds { unets: vec![folder.json("unet/config.json").unwrap()], ..nothing.clone() };
    let decoding = UnetNeeds { vae_channels: vae.block_out_channels, ..nothing };

    println!("| {} | | measured, MB | estimated, MB | ratio |\n|---|---|---|---|---|", model.name);
    let mut all_within = true;
    let mut row = |side: usize, name: &str, measured: u64, estimated: u64| {
        let ratio = estimated as f64 / measured as f64;
        // What is beside tensors, which the planner counts too, is not among these.
        all_within &= (0.98..=1.3).contains(&ratio);
        println!(
            "| {side} | {name} | {:.0} | {:.0} | {ratio:.2} |",
            measured as f64 / 1e6,
            estimated as f64 / 1e6
        );
    };
    for side in args.map(|side| side.parse::<usize>().unwrap()) {
        let mut denoising = pipeline.start(&request(side)).unwrap();
        // Guided: the prompt's sample and the negative prompt's.
        let extent = Extent { pixels: (side * side) as u64, samples: 2, ..Extent::default() };
        let measured = peak_of(|| pipeline.step(&mut denoising).unwrap());
        row(side, "step", measured, step.peak(&extent, false));
        let measured = peak_of(|| drop(pipeline.decode(&denoising).unwrap()));
        row(side, "decoding", measured, decoding.peak(&extent, false));
    }
    std::process::exit(i32::from(!all_within))
}

fn request(side: usize) -> GenerationRequest {
    GenerationRequest {
        width: Some(side),
        height: Some(side),
        num_inference_steps: Some(1),
        guidance_scale: Some(5.0),
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
