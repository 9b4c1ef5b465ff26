//! Plans for a T4, an A10G and an H100, none of which has to be there.

use std::collections::BTreeSet;

use aquatint_kernels::cudnn::{self, Attention, Bias, Convolution, DataType, Described, Request};
use serde_json::{Value, json};

use crate::shapes;

/// Whether plans are looked at, and if so whether all of them or only what takes seconds.
fn needed() -> Option<bool> {
    let needed = std::env::var("AQUATINT_NEEDS_CUDNN").ok()?;
    println!("cuDNN {}", cudnn::version().unwrap());
    Some(needed != "quick")
}

struct Gpu {
    compute_capability: u32,
    properties: Value,
}

/// In what GPUs differ, under the names that cuDNN writes them by; sizes in bytes, rates in kHz.
const PROPERTIES: [&str; 9] = [
    "multiProcessorCount",
    "totalGlobalMem",
    "l2CacheSize",
    "maxSharedMemoryPerBlockOptin",
    "reservedSharedMemoryPerBlock",
    "maxThreadsPerSM",
    "maxCtasPerSM",
    "smClockRateKHz",
    "memClockRateKHz",
];

/// Facts of NVIDIA's data sheets and of the CUDA programming guide's table of compute capabilities.
fn gpus() -> [Gpu; 3] {
    [
        ("T4", 75, [40, 15 << 30, 4 << 20, 64 << 10, 0, 1024, 16, 1_590_000, 5_001_000]),
        ("A10G", 86, [80, 22 << 30, 6 << 20, 99 << 10, 1 << 10, 1536, 16, 1_710_000, 6_251_000]),
        ("H100", 90, [132, 79u64 << 30, 50 << 20, 227 << 10, 1 << 10, 2048, 32, 1_980_000, 2_619_000]),
    ]
    .map(|(name, compute_capability, values)| {
        let mut properties = json!({
            "deviceName": name, "deviceVer": compute_capability * 10, "driverVer": 13000,
            "cudaDeviceId": 0, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
            "warpSize": 32, "maxThreadsPerBlock": 1024, "maxBlockSize": [1024, 1024, 64],
            "maxGridSize": [2147483647, 65535, 65535], "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
            "maxSharedMemoryPerBlock": 48 << 10,
        });
        PROPERTIES.iter().zip(values).for_each(|(property, value)| properties[property] = json!(value));
        Gpu { compute_capability, properties }
    })
}

/// The UNets in half types; the VAEs in f32 too, which SDXL's takes where there is no bf16.
fn convolutions(gpu: &Gpu) -> BTreeSet<Convolution> {
    let vaes = joined([shapes::vae("sd15", 64), shapes::vae("sdxl", 128)]);
    let all = joined([shapes::unet("sd15", 64, 2), shapes::unet("sdxl", 128, 2), vaes.clone()]);
    let as_type = |of| move |c: &Convolution| Convolution { of, ..*c };
    let f32s = vaes.iter().map(as_type(DataType::F32)).collect();
    match gpu.compute_capability {
        75 => joined([all, f32s]),
        _ => joined([all.iter().map(as_type(DataType::BF16)).collect(), all, f32s]),
    }
}

fn joined<T: Ord, const N: usize>(sets: [BTreeSet<T>; N]) -> BTreeSet<T> {
    sets.into_iter().flatten().collect()
}

/// Whether cuDNN has to fuse all that follows. Else the op adds it in a kernel of its own: on a T4 what differs between
/// samples, and in f32.
fn is_fused(gpu: &Gpu, c: &Convolution) -> bool {
    c.of != DataType::F32 && (gpu.compute_capability >= 80 || c.bias != Some(Bias::PerSample))
}

#[test]
fn every_convolution_has_a_plan() {
    let Some(all) = needed() else { return };
    for gpu in gpus() {
        let mut described = Described::new(&gpu.properties.to_string()).unwrap();
        let mut plan = |c| {
            let plan = described.plan(&Request::Convolution(c));
            plan.unwrap_or_else(|e| panic!("{c:?} on sm_{}: {e}", gpu.compute_capability))
        };
        let convolutions = convolutions(&gpu);
        // What is left where cuDNN fuses nothing.
        let alone =
            convolutions.iter().map(|c| plan(Convolution { bias: None, residual: false, ..*c })).max();
        let fused: Vec<usize> =
            convolutions.iter().filter(|c| all && is_fused(&gpu, c)).map(|c| plan(*c)).collect();
        println!(
            "sm_{}: {} convolutions, {} of them with what follows; at most {:?} and {:?} bytes of workspace",
            gpu.compute_capability,
            convolutions.len(),
            fused.len(),
            alone,
            fused.iter().max()
        );
    }
}

#[test]
fn every_attention_has_a_plan_from_sm_80_on() {
    if needed().is_none() {
        return;
    }
    let mut all = joined([
        shapes::unet_attentions("sd15", 64, 2),
        shapes::unet_attentions("sdxl", 128, 2),
        shapes::vae_attentions("sd15", 64),
        shapes::vae_attentions("sdxl", 128),
    ]);
    all.extend(all.clone().into_iter().map(|a| Attention { of: DataType::BF16, ..a }));
    all.extend(shapes::other_attentions());
    for gpu in gpus() {
        let mut described = Described::new(&gpu.properties.to_string()).unwrap();
        for a in &all {
            let plan = described.plan(&Request::Attention(*a));
            assert_eq!(
                plan.is_ok(),
                gpu.compute_capability >= 80,
                "{a:?} on {}: {plan:?}",
                gpu.compute_capability
            );
        }
        println!("sm_{}: {} attentions", gpu.compute_capability, all.len());
    }
}

/// What is asked for matters: the same description finds no plan for what no engine takes.
#[test]
fn a_plan_is_not_made_of_anything() {
    if needed().is_none() {
        return;
    }
    let [t4, _, h100] = gpus();
    let mut described = Described::new(&h100.properties.to_string()).unwrap();
    let odd = Attention { d: 33, ..shapes::other_attentions()[0] };
    assert!(described.plan(&Request::Attention(odd)).is_err());
    let wrong = Convolution { before: [1 << 20; 2], ..*shapes::vae("sd15", 64).first().unwrap() };
    assert!(described.plan(&Request::Convolution(wrong)).is_err());
    let bf16 = Convolution {
        of: DataType::BF16,
        bias: None,
        residual: false,
        ..*shapes::vae("sd15", 64).last().unwrap()
    };
    assert!(Described::new(&t4.properties.to_string()).unwrap().plan(&Request::Convolution(bf16)).is_err());
    assert!(Described::new("{}").is_err());
}
