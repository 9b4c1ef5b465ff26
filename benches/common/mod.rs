//! What the benches share: where they compute, and what a GPU could do at best.

use std::sync::OnceLock;

use candle_core::{DType, Device};

/// The GPU where the build has CUDA and the machine a GPU, else the CPU. `AQUATINT_DEVICE`, `cpu` or `cuda`, chooses.
pub(crate) fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let asked = std::env::var("AQUATINT_DEVICE").ok();
        match (asked.as_deref(), gpu()) {
            (Some("cpu"), _) => Device::Cpu,
            (Some("cuda") | None, Ok(gpu)) => gpu,
            (None, Err(_)) => Device::Cpu,
            (Some("cuda"), Err(reason)) => fail(&reason),
            (Some(other), _) => fail(&format!("AQUATINT_DEVICE={other}: cpu or cuda")),
        }
    })
}

/// A bench has nobody to report to but its terminal.
fn fail(reason: &str) -> ! {
    eprintln!("{reason}");
    std::process::exit(2)
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<Device, String> {
    aquatint_kernels::open_gpu().map_err(|e| format!("no usable GPU: {e}"))
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<Device, String> {
    Err("no usable GPU: this was built without CUDA".to_owned())
}

/// The type that is computed with: f32 on the CPU, and on a GPU f16 unless `AQUATINT_DTYPE` says f32 or bf16.
pub(crate) fn dtype() -> DType {
    match (device().is_cpu(), std::env::var("AQUATINT_DTYPE").as_deref()) {
        (true, _) | (_, Ok("f32")) => DType::F32,
        (false, Ok("bf16")) => DType::BF16,
        (false, _) => DType::F16,
    }
}

/// What was measured on: for the first line of a bench.
pub(crate) fn what() -> String {
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let device = match device().is_cpu() {
        true => format!("cpu, {} threads", rayon::current_num_threads()),
        false => gpu_name(),
    };
    format!("{device}, {:?}, commit {commit}", dtype())
}

/// What the driver calls the first GPU.
pub(crate) fn gpu_name() -> String {
    let query = ["--query-gpu=name", "--format=csv,noheader"];
    let said = std::process::Command::new("nvidia-smi").args(query).output();
    let said = said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    said.lines().next().unwrap_or("a GPU without a name").trim().to_owned()
}
