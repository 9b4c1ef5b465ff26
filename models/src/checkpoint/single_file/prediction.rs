//! What a UNet predicts: no shape tells, so files mark it, and programs guess.

use candle_core::{DType, Device};

use super::Parts;
use crate::Result;
use crate::checkpoint::file::CheckpointFile;
use crate::checkpoint::original::Component;
use crate::checkpoint::published::Published;

/// What a denoiser predicts, and on which noise schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prediction {
    /// `epsilon`, `v_prediction` or `flow`.
    pub(super) kind: &'static str,
    /// Whether it was trained down to pure noise.
    pub(super) zero_snr: bool,
}

/// In this order: what the header says (ModelSpec's `modelspec.prediction_type`), tensors that ComfyUI looks for as
/// marks (`v_pred`, `ztsnr`), and for SD 2.x ComfyUI's guess: the offsets of the last transformer's first norm vary
/// more in models that predict v. SD 2.x models for inpainting and everything else predict epsilon.
///
/// Source: `SD20.model_type` and `SDXL.model_type` in ComfyUI's `comfy/supported_models.py`.
pub(super) fn of(file: &CheckpointFile, parts: &Parts, like: &Published) -> Result<Prediction> {
    let zero_snr = file.entries().contains_key("ztsnr");
    let Some(unet) = parts.get(&Component::Unet) else {
        return Ok(Prediction { kind: "flow", zero_snr: false });
    };
    let said = file.metadata().get("modelspec.prediction_type").map(String::as_str);
    let kind = match said {
        Some("v" | "v_prediction") => "v_prediction",
        Some("epsilon") => "epsilon",
        _ if file.entries().contains_key("v_pred") => "v_prediction",
        _ if like.name == "sd21" && unet.shape("conv_in.weight").is_some_and(|s| s.get(1) == Some(&4)) => {
            const TELLING: &str = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias";
            match unet.shape(TELLING) {
                Some(&[channels]) if channels <= 1 << 16 => {
                    let values = unet.read(TELLING)?.tensor(&Device::Cpu)?.to_dtype(DType::F32)?;
                    let values = values.flatten_all()?.to_vec1::<f32>()?;
                    if deviation(&values) > 0.09 { "v_prediction" } else { "epsilon" }
                }
                _ => "epsilon",
            }
        }
        _ => "epsilon",
    };
    Ok(Prediction { kind, zero_snr })
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}
