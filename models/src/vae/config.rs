//! `config.json` of diffusers' `AutoencoderKL`, and which of its values this VAE can be.

use serde::Deserialize;

use crate::{Error, Result};

/// The published config; names and defaults are diffusers'.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// `AutoencoderKL`, where the file says so.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Colours of a picture: 3.
    pub in_channels: usize,
    /// Colours of a decoded picture: 3.
    pub out_channels: usize,
    /// `DownEncoderBlock2D` for each block; empty stands for as many as there are blocks.
    pub down_block_types: Vec<String>,
    /// `UpDecoderBlock2D` for each block; empty stands for as many as there are blocks.
    pub up_block_types: Vec<String>,
    /// Channels of each block, finest first; each block but the last halves the sides.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each block of the encoder; the decoder's have one more.
    pub layers_per_block: usize,
    /// `silu`, also called `swish`.
    pub act_fn: String,
    /// Channels of the latents: 4, or 16 (FLUX, SD3).
    pub latent_channels: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Side of the training pictures in pixels; also the side of a tile, see [`Self::tile_px`].
    pub sample_size: SampleSize,
    /// What latents are multiplied by for the denoiser.
    pub scaling_factor: f64,
    /// What is subtracted from latents before they are scaled.
    pub shift_factor: Option<f64>,
    /// Mean of each latent channel, in place of `shift_factor`.
    pub latents_mean: Option<Vec<f64>>,
    /// Deviation of each latent channel, which the latents are divided by.
    pub latents_std: Option<Vec<f64>>,
    /// The activations overflow in f16: diffusers then computes in f32. Here they are held smaller in f16, whatever this
    /// says (see [`crate::range`]).
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks attend.
    pub mid_block_add_attention: bool,
}

/// A side, or `[height, width]`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum SampleSize {
    /// A square.
    Side(usize),
    /// Height, then width.
    Sides([usize; 2]),
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            in_channels: 3,
            out_channels: 3,
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize::Side(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// Pixels on a side of one latent: `2^(blocks - 1)`.
    pub fn downscale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// Side of a tile in pixels where the caller has no wish, as diffusers chooses it: the first `sample_size`.
    pub fn tile_px(&self) -> usize {
        match self.sample_size {
            SampleSize::Side(side) | SampleSize::Sides([side, _]) => side,
        }
    }

    /// An error that names the first value that cannot be built.
    pub fn check(&self) -> Result<()> {
        if let Some(name) = self.class_name.as_deref()
            && name != "AutoencoderKL"
        {
            return Err(Error::invalid(format!("_class_name is {name}, AutoencoderKL is allowed here")));
        }
        within("in_channels", self.in_channels, 3, 3)?;
        within("out_channels", self.out_channels, 3, 3)?;
        within("latent_channels", self.latent_channels, 1, 256)?;
        within("layers_per_block", self.layers_per_block, 1, 16)?;
        within("number of block_out_channels", self.block_out_channels.len(), 1, 8)?;
        self.block_out_channels.iter().try_for_each(|&c| within("block_out_channels", c, 1, 1 << 16))?;
        if !["silu", "swish"].contains(&self.act_fn.as_str()) {
            return Err(Error::invalid(format!("act_fn is {}, silu is allowed", self.act_fn)));
        }
        self.check_types("down_block_types", &self.down_block_types, "DownEncoderBlock2D")?;
        self.check_types("up_block_types", &self.up_block_types, "UpDecoderBlock2D")?;
        for (name, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if let Some(v) = values
                && v.len() != self.latent_channels
            {
                let (got, wanted) = (v.len(), self.latent_channels);
                return Err(Error::invalid(format!("{name} has {got} values, latent_channels is {wanted}")));
            }
        }
        let divisors = self.latents_std.iter().flatten().chain([&self.scaling_factor]);
        if let Some(v) = divisors.into_iter().find(|v| !v.is_normal()) {
            return Err(Error::invalid(format!(
                "scaling_factor or latents_std is {v}, latents are divided by it"
            )));
        }
        Ok(())
    }

    fn check_types(&self, name: &str, types: &[String], only: &str) -> Result<()> {
        if let Some(other) = types.iter().find(|t| *t != only) {
            return Err(Error::invalid(format!("{name} has {other}, {only} is allowed")));
        }
        let (got, wanted) = (types.len(), self.block_out_channels.len());
        if got != 0 && got != wanted {
            return Err(Error::invalid(format!("{name} has {got} entries, block_out_channels {wanted}")));
        }
        Ok(())
    }
}

fn within(name: &str, value: usize, min: usize, max: usize) -> Result<()> {
    match value {
        v if v < min || v > max => Err(Error::invalid(format!("{name} is {v}, {min} to {max} is allowed"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        serde_json::from_str::<AutoencoderKlConfig>(json).unwrap().check().unwrap_err().to_string()
    }

    #[test]
    fn absent_fields_have_diffusers_defaults() {
        let c: AutoencoderKlConfig = serde_json::from_str(r#"{"shift_factor": null, "_x": 1}"#).unwrap();
        assert_eq!((c.scaling_factor, c.tile_px(), c.downscale(), c.force_upcast), (0.18215, 32, 1, true));
        c.check().unwrap();
    }

    #[test]
    fn refuses_by_name_what_it_cannot_be() {
        assert!(refused(r#"{"_class_name": "AutoencoderTiny"}"#).contains("AutoencoderTiny"));
        assert!(refused(r#"{"act_fn": "gelu"}"#).contains("act_fn is gelu"));
        assert!(refused(r#"{"latent_channels": 18446744073709551615}"#).contains("1 to 256"));
        assert!(refused(r#"{"block_out_channels": []}"#).contains("number of block_out_channels is 0"));
        assert!(refused(r#"{"up_block_types": ["AttnUpDecoderBlock2D"]}"#).contains("AttnUpDecoderBlock2D"));
        assert!(refused(r#"{"latents_mean": [0.0]}"#).contains("latents_mean has 1 values"));
        assert!(refused(r#"{"scaling_factor": 0.0}"#).contains("scaling_factor"));
        let two = r#"{"down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"]}"#;
        assert!(refused(two).contains("down_block_types has 2 entries, block_out_channels 1"));
    }
}
