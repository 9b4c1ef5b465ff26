//! `config.json` of diffusers' `UNet2DConditionModel`, and which of its values this UNet can be.

use std::cmp::Ordering;

use serde::Deserialize;

use crate::{Error, Result};

/// A number for all blocks, or one for each.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum PerBlock<T> {
    // First, so that a list is one entry a block, not one value for all of them that happens to be a list.
    /// One a block, in the order of the down blocks.
    Each(Vec<T>),
    /// The same everywhere.
    All(T),
}

impl<T: Clone> PerBlock<T> {
    fn of(&self, block: usize) -> Option<T> {
        match self {
            Self::All(value) => Some(value.clone()),
            Self::Each(values) => values.get(block).cloned(),
        }
    }

    fn fits(&self, blocks: usize) -> bool {
        matches!(self, Self::All(_)) || matches!(self, Self::Each(v) if v.len() == blocks)
    }
}

/// The published config; names and defaults are diffusers'.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// Native side of the latents.
    pub sample_size: Option<PerBlock<usize>>,
    /// 4; 9 for inpainting (latents, mask, masked picture's latents).
    pub in_channels: usize,
    /// Channels of the model output.
    pub out_channels: usize,
    /// Cosines before sines in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Offset of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// `DownBlock2D` or `CrossAttnDownBlock2D`, finest first.
    pub down_block_types: Vec<String>,
    /// `UNetMidBlock2DCrossAttn`, `UNetMidBlock2D`, or none.
    pub mid_block_type: Option<String>,
    /// `UpBlock2D` or `CrossAttnUpBlock2D`, coarsest first.
    pub up_block_types: Vec<String>,
    /// Channels of each block.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each down block; up blocks have one more.
    pub layers_per_block: PerBlock<usize>,
    /// Zero padding of the downsampling convolutions.
    pub downsample_padding: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' normalisations.
    pub norm_eps: f64,
    /// Channels of the prompt embeddings.
    pub cross_attention_dim: PerBlock<usize>,
    /// Transformer layers in each attention of a block.
    pub transformer_layers_per_block: PerBlock<PerBlock<usize>>,
    /// The same for the up blocks, in their order, where they are not the mirror image (SSD-1B).
    pub reverse_transformer_layers_per_block: Option<Vec<PerBlock<usize>>>,
    /// Attention **heads** of each block: a historic misnomer of the published configs.
    pub attention_head_dim: PerBlock<usize>,
    /// Projections around the transformers are matrices; else 1x1 convolutions, which are the same product.
    pub use_linear_projection: bool,
    /// `text_time` for SDXL.
    pub addition_embed_type: Option<String>,
    /// Channels of each embedded time id.
    pub addition_time_embed_dim: Option<usize>,
    /// Pooled prompt channels plus embedded time ids.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Channels of the embedded guidance scale of distilled models (LCM).
    pub time_cond_proj_dim: Option<usize>,
    /// Kernel of the first convolution.
    pub conv_in_kernel: usize,
    /// Kernel of the last convolution.
    pub conv_out_kernel: usize,
    /// Channels of the time embedding; four times the first block's by default.
    pub time_embedding_dim: Option<usize>,
    /// Everything else the file holds, so that what is not supported can be refused by name.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        let names = |all: [&str; 4]| all.map(str::to_owned).to_vec();
        let cross = "CrossAttnDownBlock2D";
        let up = "CrossAttnUpBlock2D";
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([cross, cross, cross, "DownBlock2D"]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".to_owned()),
            up_block_types: names(["UpBlock2D", up, up, up]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::All(2),
            downsample_padding: 1,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::All(1280),
            transformer_layers_per_block: PerBlock::All(PerBlock::All(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerBlock::All(8),
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            time_embedding_dim: None,
            rest: serde_json::Map::new(),
        }
    }
}

/// Keys this UNet does not read, with the only value they may have (as JSON). `upcast_attention` is not among them:
/// attention accumulates in f32 whatever it says.
const ONLY: [(&str, &str); 22] = [
    ("act_fn", r#""silu""#),
    ("addition_embed_type_num_heads", "64"),
    ("attention_type", r#""default""#),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("cross_attention_norm", "null"),
    ("dropout", "0.0"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("mid_block_only_cross_attention", "null"),
    ("mid_block_scale_factor", "1.0"),
    ("num_attention_heads", "null"),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1.0"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", r#""default""#),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_type", r#""positional""#),
    ("timestep_post_act", "null"),
];

impl UnetConfig {
    /// Refuses what this UNet cannot be, naming the key, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let blocks = self.block_out_channels.len();
        let bad = |text: String| Err(Error::invalid(format!("unet config: {text}")));
        for (key, only) in ONLY {
            let Some(value) = self.rest.get(key) else { continue };
            // `null` where a switch may stand means the switch is off; 1 and 1.0 are one number.
            let equal = serde_json::from_str::<serde_json::Value>(only).is_ok_and(|only| only == *value);
            let same = equal || (value.is_number() && value.as_f64() == only.parse().ok());
            if !same && !value.is_null() {
                return bad(format!("{key} is {value}, only {only} is supported"));
            }
        }
        if blocks == 0 || self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            return bad(format!(
                "{blocks} block_out_channels, {} down_block_types and {} up_block_types must be equally many",
                self.down_block_types.len(),
                self.up_block_types.len()
            ));
        }
        let fit = self.layers_per_block.fits(blocks)
            && self.cross_attention_dim.fits(blocks)
            && self.transformer_layers_per_block.fits(blocks)
            && self.attention_head_dim.fits(blocks)
            && self.reverse_transformer_layers_per_block.as_ref().is_none_or(|r| r.len() == blocks);
        if !fit {
            return bad(format!(
                "layers_per_block, cross_attention_dim, transformer_layers_per_block and attention_head_dim must be \
                 one number or one for each of the {blocks} blocks"
            ));
        }
        for (i, &channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.heads(i);
            if channels == 0 || self.norm_num_groups == 0 || channels % self.norm_num_groups != 0 {
                return bad(format!(
                    "block {i}: {channels} channels, norm_num_groups {}",
                    self.norm_num_groups
                ));
            }
            if heads == 0 || channels % heads != 0 {
                return bad(format!("block {i}: {channels} channels cannot be divided into {heads} heads"));
            }
        }
        match self.addition_embed_type.as_deref() {
            None => {}
            Some("text_time")
                if self.addition_time_embed_dim.is_some()
                    && self.projection_class_embeddings_input_dim.is_some() => {}
            Some("text_time") => {
                return bad(
                    "text_time needs addition_time_embed_dim and projection_class_embeddings_input_dim"
                        .into(),
                );
            }
            Some(other) => {
                return bad(format!("addition_embed_type is {other:?}, text_time or none is supported"));
            }
        }
        for (kernel, name) in
            [(self.conv_in_kernel, "conv_in_kernel"), (self.conv_out_kernel, "conv_out_kernel")]
        {
            if kernel % 2 == 0 || kernel > 7 {
                return bad(format!("{name} is {kernel}, 1, 3, 5 or 7 is supported"));
            }
        }
        if self.in_channels == 0
            || self.out_channels == 0
            || self.norm_eps.partial_cmp(&0.0) != Some(Ordering::Greater)
            || self.downsample_padding > 1
        {
            return bad(format!(
                "in_channels {}, out_channels {}, norm_eps {}, downsample_padding {}: the first three must be \
                 positive, the last 0 or 1",
                self.in_channels, self.out_channels, self.norm_eps, self.downsample_padding
            ));
        }
        Ok(())
    }

    /// Attention heads of down block `block`.
    pub fn heads(&self, block: usize) -> usize {
        self.attention_head_dim.of(block).unwrap_or(8)
    }

    /// Residual blocks of down block `block`.
    pub fn layers(&self, block: usize) -> usize {
        self.layers_per_block.of(block).unwrap_or(2)
    }

    /// Channels of the prompt embeddings seen by down block `block`.
    pub fn context_channels(&self, block: usize) -> usize {
        self.cross_attention_dim.of(block).unwrap_or(1280)
    }

    /// Transformer layers of attention `layer` in down block `block`.
    pub fn transformer_layers(&self, block: usize, layer: usize) -> usize {
        self.transformer_layers_per_block.of(block).and_then(|b| b.of(layer)).unwrap_or(1)
    }

    /// Transformer layers of attention `layer` in up block `block`.
    pub fn up_transformer_layers(&self, block: usize, layer: usize) -> usize {
        match &self.reverse_transformer_layers_per_block {
            Some(reversed) => reversed.get(block).and_then(|b| b.of(layer)).unwrap_or(1),
            None => self.transformer_layers(self.block_out_channels.len() - 1 - block, layer),
        }
    }

    /// Channels of the time embedding.
    pub fn time_channels(&self) -> usize {
        self.time_embedding_dim.unwrap_or(self.block_out_channels[0] * 4)
    }

    /// Native side of the latents, 64 where the config does not say.
    pub fn native_latent_size(&self) -> usize {
        self.sample_size.as_ref().and_then(|s| s.of(0)).unwrap_or(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        serde_json::from_str::<UnetConfig>(json).unwrap().check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_sd_1() {
        UnetConfig::default().check().unwrap();
    }

    #[test]
    fn ssd_1b_has_its_own_depths_on_the_way_up() {
        let c: UnetConfig = serde_json::from_str(
            r#"{"block_out_channels":[320,640,1280],"attention_head_dim":[5,10,20],
                "down_block_types":["DownBlock2D","CrossAttnDownBlock2D","CrossAttnDownBlock2D"],
                "up_block_types":["CrossAttnUpBlock2D","CrossAttnUpBlock2D","UpBlock2D"],
                "transformer_layers_per_block":[1,[2,2],[4,4]],
                "reverse_transformer_layers_per_block":[[4,4,10],[2,1,1],1]}"#,
        )
        .unwrap();
        c.check().unwrap();
        assert_eq!((c.transformer_layers(1, 1), c.transformer_layers(2, 0)), (2, 4));
        assert_eq!((c.up_transformer_layers(0, 2), c.up_transformer_layers(1, 1)), (10, 1));
    }

    /// diffusers writes every key into the file, also those with one supported value.
    #[test]
    fn takes_every_key_at_its_usual_value() {
        for (key, only) in ONLY {
            let json = format!(r#"{{"{key}":{only}}}"#);
            serde_json::from_str::<UnetConfig>(&json).unwrap().check().unwrap();
        }
    }

    #[test]
    fn refuses_by_name_what_it_cannot_be() {
        assert!(refused(r#"{"act_fn":"mish"}"#).contains(r#"act_fn is "mish", only "silu""#));
        assert!(refused(r#"{"class_embed_type":"timestep"}"#).contains("class_embed_type"));
        assert!(refused(r#"{"addition_embed_type":"image"}"#).contains("addition_embed_type"));
        assert!(refused(r#"{"block_out_channels":[320,640]}"#).contains("equally many"));
        assert!(
            refused(r#"{"attention_head_dim":7}"#).contains("320 channels cannot be divided into 7 heads")
        );
        assert!(refused(r#"{"norm_num_groups":33}"#).contains("norm_num_groups 33"));
        assert!(refused(r#"{"layers_per_block":[1,2]}"#).contains("one for each of the 4 blocks"));
        assert!(refused(r#"{"addition_embed_type":"text_time"}"#).contains("addition_time_embed_dim"));
        assert!(refused(r#"{"mid_block_scale_factor":1.4}"#).contains("mid_block_scale_factor is 1.4"));
    }
}
