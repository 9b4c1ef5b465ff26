//! `config.json` of diffusers' `FluxTransformer2DModel`, and which of its values this transformer can be.

use serde::Deserialize;

use crate::{Error, Result};

/// The published config; names and defaults are diffusers'. Unknown keys are ignored.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct FluxConfig {
    /// Side of the patches that the transformer itself would make: 1, since 2x2 latents are packed before it.
    pub patch_size: usize,
    /// Channels of a token: four times the latents'; 384 for Fill (latents, masked picture's latents, mask).
    pub in_channels: usize,
    /// Channels of a predicted token; `in_channels` where it is absent.
    pub out_channels: Option<usize>,
    /// Double blocks, in which text and picture have weights of their own.
    pub num_layers: usize,
    /// Single blocks, over text and picture together.
    pub num_single_layers: usize,
    /// Channels of an attention head.
    pub attention_head_dim: usize,
    /// Attention heads; times `attention_head_dim` they are the width of the residual stream.
    pub num_attention_heads: usize,
    /// Channels of the prompt embeddings.
    pub joint_attention_dim: usize,
    /// Channels of the pooled prompt embedding.
    pub pooled_projection_dim: usize,
    /// Whether the guidance is an input, as in dev; schnell has none.
    pub guidance_embeds: bool,
    /// Channels of a head that are turned by each axis of the position: picture, row, column.
    pub axes_dims_rope: Vec<usize>,
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
        }
    }
}

impl FluxConfig {
    /// Refuses what this transformer cannot be, naming the key, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let bad = |text: String| Err(Error::invalid(format!("transformer config: {text}")));
        if self.patch_size != 1 {
            return bad(format!("patch_size is {}, only 1 is supported", self.patch_size));
        }
        for (name, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels())] {
            if channels == 0 || channels % 4 != 0 || channels > 1 << 16 {
                return bad(format!(
                    "{name} is {channels}, a multiple of 4 (2x2 latents make a token) up to 65536 is supported"
                ));
            }
        }
        // Far beyond anything published, and small enough that no product of them overflows.
        for (name, value, least, most) in [
            ("num_layers", self.num_layers, 0, 1 << 10),
            ("num_single_layers", self.num_single_layers, 0, 1 << 10),
            ("attention_head_dim", self.attention_head_dim, 2, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1, 1 << 10),
            ("joint_attention_dim", self.joint_attention_dim, 1, 1 << 16),
            ("pooled_projection_dim", self.pooled_projection_dim, 1, 1 << 16),
        ] {
            if !(least..=most).contains(&value) {
                return bad(format!("{name} is {value}, {least} to {most} is supported"));
            }
        }
        let axes = &self.axes_dims_rope;
        let sum = axes.iter().try_fold(0usize, |sum, &a| sum.checked_add(a));
        if axes.len() != 3 || axes.iter().any(|a| a % 2 != 0) || sum != Some(self.attention_head_dim) {
            return bad(format!(
                "axes_dims_rope is {axes:?}: three even numbers are needed whose sum is attention_head_dim, {}",
                self.attention_head_dim
            ));
        }
        Ok(())
    }

    /// Channels of a predicted token.
    pub fn out_channels(&self) -> usize {
        self.out_channels.filter(|&c| c > 0).unwrap_or(self.in_channels)
    }

    /// Channels of the residual stream.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        serde_json::from_str::<FluxConfig>(json).unwrap().check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_schnell() {
        let c = FluxConfig::default();
        c.check().unwrap();
        assert_eq!((c.inner_dim(), c.out_channels()), (3072, 64));
    }

    #[test]
    fn absent_null_and_unknown_keys_are_taken() {
        let json = r#"{"_class_name":"FluxTransformer2DModel","in_channels":384,"out_channels":64,
            "guidance_embeds":true,"attention_backend":"flash"}"#;
        let c: FluxConfig = serde_json::from_str(json).unwrap();
        c.check().unwrap();
        assert_eq!((c.in_channels, c.out_channels(), c.num_single_layers), (384, 64, 38));
        let c: FluxConfig = serde_json::from_str(r#"{"out_channels":null}"#).unwrap();
        assert_eq!(c.out_channels(), 64);
    }

    #[test]
    fn refuses_by_name_what_it_cannot_be() {
        assert!(refused(r#"{"patch_size":2}"#).contains("patch_size is 2, only 1"));
        assert!(refused(r#"{"in_channels":66}"#).contains("in_channels is 66, a multiple of 4"));
        assert!(refused(r#"{"out_channels":3}"#).contains("out_channels is 3"));
        assert!(refused(r#"{"num_attention_heads":0}"#).contains("num_attention_heads is 0, 1 to 1024"));
        assert!(refused(r#"{"num_layers":9999999999}"#).contains("num_layers is 9999999999"));
        assert!(refused(r#"{"axes_dims_rope":[16,56]}"#).contains("[16, 56]: three even numbers"));
        assert!(refused(r#"{"axes_dims_rope":[15,57,56]}"#).contains("three even numbers"));
        assert!(refused(r#"{"attention_head_dim":64}"#).contains("attention_head_dim, 64"));
    }
}
