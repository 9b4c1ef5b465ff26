//! `config.json` of BLIP, with transformers' defaults for what a file leaves out.

use candle_nn::Activation;
use candle_transformers::models::{blip, blip_text};
use serde::Deserialize;

/// Both halves of the model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BlipConfig {
    /// What sees.
    pub vision_config: VisionConfig,
    /// What writes.
    pub text_config: TextConfig,
}

/// The vision transformer.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Channels of a token.
    pub hidden_size: usize,
    /// Channels inside an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Width and height of the pixel values.
    pub image_size: usize,
    /// Width and height of the square that becomes a token, in pixels.
    pub patch_size: usize,
    /// The MLPs' activation.
    pub hidden_act: Activation,
    /// The layer normalisations' epsilon.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 384,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// The text decoder: BERT with a causal mask and cross-attention to the picture.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Tokens that there are.
    pub vocab_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Channels inside an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Tokens of the longest text.
    pub max_position_embeddings: usize,
    /// The MLPs' activation.
    pub hidden_act: Activation,
    /// The layer normalisations' epsilon.
    pub layer_norm_eps: f64,
    /// The token that every caption starts with.
    pub bos_token_id: u32,
    /// The token that ends a caption. `eos_token_id` is another, which BLIP does not use.
    pub sep_token_id: u32,
    /// Whether the output layer is the table of token embeddings.
    pub tie_word_embeddings: bool,
    /// The longest caption in tokens; see [`TextConfig::max_caption_tokens`].
    pub max_length: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            bos_token_id: 30_522,
            sep_token_id: 102,
            tie_word_embeddings: true,
            max_length: DEFAULT_MAX_LENGTH,
        }
    }
}

/// `GenerationConfig().max_length`.
const DEFAULT_MAX_LENGTH: usize = 20;

/// Beyond any published model; larger numbers in a file are a mistake and would overflow.
const MAX_IMAGE_SIZE_PX: usize = 1 << 13;

impl TextConfig {
    /// The most tokens of a caption, its first one included.
    ///
    /// Source: `GenerationMixin._prepare_generated_length`: the default length of 20 counts the new tokens, any other
    /// counts the first one too.
    pub fn max_caption_tokens(&self) -> usize {
        let first = usize::from(self.max_length == DEFAULT_MAX_LENGTH);
        (self.max_length + first).min(self.max_position_embeddings)
    }
}

impl BlipConfig {
    /// Refuses numbers that fit no model.
    ///
    /// # Errors
    /// The text names the field, its value and what is allowed.
    pub fn check(&self) -> std::result::Result<(), String> {
        let (v, t) = (&self.vision_config, &self.text_config);
        for (part, hidden, heads) in [
            ("vision_config", v.hidden_size, v.num_attention_heads),
            ("text_config", t.hidden_size, t.num_attention_heads),
        ] {
            if heads == 0 || hidden == 0 || hidden % heads != 0 {
                return Err(format!("{part}: hidden_size {hidden} does not divide into {heads} heads"));
            }
        }
        let (image, patch) = (v.image_size, v.patch_size);
        if patch == 0 || image < patch || image > MAX_IMAGE_SIZE_PX {
            return Err(format!(
                "vision_config: image_size {image} with patch_size {patch}: a patch of 1 pixel to the image's size, \
                 and at most {MAX_IMAGE_SIZE_PX} pixels are allowed"
            ));
        }
        for (name, id) in [("bos_token_id", t.bos_token_id), ("sep_token_id", t.sep_token_id)] {
            if id as usize >= t.vocab_size {
                return Err(format!("text_config: {name} {id} is beyond vocab_size {}", t.vocab_size));
            }
        }
        if t.max_caption_tokens() < 2 {
            return Err(format!(
                "text_config: max_length {} with max_position_embeddings {} leaves no room for a caption: at least 2",
                t.max_length, t.max_position_embeddings
            ));
        }
        Ok(())
    }

    /// The same for candle-transformers; its projections belong to BLIP's other tasks.
    pub(super) fn to_candle(&self) -> blip::Config {
        let (v, t) = (&self.vision_config, &self.text_config);
        blip::Config {
            vision_config: blip::VisionConfig {
                hidden_size: v.hidden_size,
                intermediate_size: v.intermediate_size,
                projection_dim: 0,
                num_hidden_layers: v.num_hidden_layers,
                num_attention_heads: v.num_attention_heads,
                image_size: v.image_size,
                patch_size: v.patch_size,
                hidden_act: v.hidden_act,
                layer_norm_eps: v.layer_norm_eps,
            },
            text_config: blip_text::Config {
                vocab_size: t.vocab_size,
                hidden_size: t.hidden_size,
                // Published files have no encoder_hidden_size, or a wrong one: transformers sets it to this.
                encoder_hidden_size: v.hidden_size,
                intermediate_size: t.intermediate_size,
                projection_dim: 0,
                num_hidden_layers: t.num_hidden_layers,
                num_attention_heads: t.num_attention_heads,
                max_position_embeddings: t.max_position_embeddings,
                hidden_act: t.hidden_act,
                layer_norm_eps: t.layer_norm_eps,
                is_decoder: true,
            },
            projection_dim: 0,
            image_text_hidden_size: 0,
        }
    }
}
