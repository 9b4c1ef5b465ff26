//! The least time that work can take on a GPU: its floating-point operations at the GPU's highest rate, or the bytes of
//! its weights at the memory's, whichever is longer.
//!
//! Operations and bytes are counted from the published configs. The H200's rates were measured (790 TFLOP/s of dense bf16,
//! 4.3 TB/s of copying), the others are those of their data sheets: A10G 70 TFLOP/s and 600 GB/s, T4 65 TFLOP/s and
//! 320 GB/s. Rounded as they were published with the counts, so attention and small layers count a little.

/// Milliseconds on `[H200, A10G, T4]`.
type Floor = [f64; 3];

const GPUS: [&str; 3] = ["H200", "A10G", "T4"];

/// One run of a part of a model.
pub(crate) const PARTS: [(&str, Floor); 10] = [
    ("SDXL UNet 1024x1024", [9.3, 101.0, 113.0]),
    ("SDXL UNet 1024x1024, guided", [18.3, 201.0, 225.0]),
    ("SD1.5 UNet 512x512, guided", [2.3, 24.5, 29.0]),
    ("SDXL VAE decode 1024x1024", [16.0, 169.0, 198.0]),
    ("SDXL VAE encode 1024x1024", [7.6, 80.0, 95.0]),
    ("SDXL text encoders, two prompts", [0.4, 3.4, 5.7]),
    ("FLUX.1-dev transformer 1024x1024", [98.0, 1092.0, 1199.0]),
    ("FLUX.1-schnell transformer 1024x1024", [92.0, 1020.0, 1121.0]),
    ("T5-XXL, 512 tokens", [6.2, 70.0, 76.0]),
    ("T5-XXL, 256 tokens", [3.1, 35.0, 38.0]),
];

/// A whole picture.
pub(crate) const PICTURES: [(&str, Floor); 5] = [
    ("SDXL 1024x1024, 30 steps, guided", [570.0, 6200.0, 6900.0]),
    ("SDXL 1024x1024, 4 steps of LCM", [53.0, 580.0, 660.0]),
    ("SD1.5 512x512, 20 steps, guided", [50.0, 530.0, 630.0]),
    ("FLUX.1-schnell 1024x1024, 4 steps", [390.0, 4300.0, 4700.0]),
    ("FLUX.1-dev 1024x1024, 28 steps", [2770.0, 31000.0, 34000.0]),
];

/// The floor of some work on the GPU of this name, in milliseconds; `None` where it is not known.
pub(crate) fn floor_ms(table: &[(&str, Floor)], work: &str, gpu: &str) -> Option<f64> {
    let column = GPUS.iter().position(|name| gpu.split_whitespace().any(|word| word == *name))?;
    let (_, floor) = table.iter().find(|(name, _)| *name == work)?;
    Some(floor[column])
}
