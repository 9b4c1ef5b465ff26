//! Times the loading of a model folder, and tells the process's peak memory:
//!
//!     load FOLDER [auto|fp16|fp32]
//!
//! Prints JSON: seconds, bytes of tensors read, their sum as unsigned bytes (for comparing with the files'), bytes of the
//! weights in the types they are held in, and the process's peak resident bytes. `load.py` does the same with diffusers.

mod peak;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use aquatint_models::checkpoint::{ModelFolder, bytes_read};
use aquatint_models::pipeline::{DeviceChoice, LoadOptions, ModelSource, Pipeline, Precision};
use candle_core::DType;
use peak::peak_resident_bytes;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (folder, dtype) = match &args[..] {
        [folder] => (folder, "auto"),
        [folder, dtype] => (folder, dtype.as_str()),
        _ => bail!("usage: load FOLDER [auto|fp16|fp32]"),
    };
    let precision = match dtype {
        "auto" => Precision::Auto,
        "fp16" => Precision::Fp16,
        "fp32" => Precision::Fp32,
        other => bail!("{other}: auto, fp16 or fp32"),
    };
    aquatint_kernels::keep_freed_memory();
    let options = LoadOptions { precision, device: DeviceChoice::Cpu, ..LoadOptions::default() };
    let source = ModelSource::Folder(PathBuf::from(folder));
    let start = Instant::now();
    let _pipeline = Pipeline::load(&source, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    let (bytes, sum) = bytes_read();
    let (folder, dtype) = (ModelFolder::open(folder)?, (precision == Precision::Fp16).then_some(DType::F16));
    let held = ["text_encoder", "text_encoder_2", "unet", "vae"].map(|part| {
        let there = folder.contains(&format!("{part}/config.json"));
        if there { folder.held_bytes(part, dtype, true) } else { Ok(0) }
    });
    let held = held.into_iter().sum::<Result<u64, _>>()?;
    let report = serde_json::json!({
        "seconds": seconds, "bytes_read": bytes, "sum": sum, "held_bytes": held, "peak_bytes": peak_resident_bytes()?,
    });
    println!("{report}");
    Ok(())
}
