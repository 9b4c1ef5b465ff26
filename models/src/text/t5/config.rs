//! `config.json` of a T5 v1.1 encoder.

use candle_core::DType;
use serde::Deserialize;

use crate::{Error, Result};

/// `config.json` of a `T5EncoderModel`, by transformers' field names; missing ones have transformers' defaults.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the token embedding table; more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Channels of the hidden states.
    pub d_model: usize,
    /// Channels of a head; `num_heads * d_kv` need not be `d_model`.
    pub d_kv: usize,
    /// Channels inside the feed-forward network.
    pub d_ff: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Distances of tokens that are told apart, in both directions together.
    pub relative_attention_num_buckets: usize,
    /// From this distance on all are one bucket, in tokens.
    pub relative_attention_max_distance: usize,
    /// What the norms add to the mean square.
    pub layer_norm_epsilon: f64,
    /// `gated-gelu`: v1.1. v1.0's `relu` is refused.
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
        }
    }
}

impl T5Config {
    /// T5 v1.1 XXL: FLUX's encoder, 4.7 billion parameters.
    pub fn xxl() -> Self {
        Self {
            d_model: 4096,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            feed_forward_proj: "gated-gelu".to_owned(),
            ..Self::default()
        }
    }

    /// Channels of queries, keys and values.
    pub(super) fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.feed_forward_proj != "gated-gelu" {
            return Err(Error::invalid(format!(
                "feed_forward_proj {:?}: only T5 v1.1's \"gated-gelu\" is supported",
                self.feed_forward_proj
            )));
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::invalid(format!("{name} is 0: at least 1 is needed")));
        }
        if let Some((name, n)) = sizes.iter().find(|(_, n)| *n > MOST) {
            return Err(Error::invalid(format!("{name} is {n}: at most {MOST} is allowed")));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || buckets % 4 != 0 || distance <= buckets / 4 || buckets.max(distance) > MOST {
            return Err(Error::invalid(format!(
                "relative_attention_num_buckets {buckets} and relative_attention_max_distance {distance}: a multiple \
                 of 4 and a distance beyond a quarter of it are needed, each at most {MOST}"
            )));
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon >= 0.0) {
            let text = format!("layer_norm_epsilon is {}: 0 or more is needed", self.layer_norm_epsilon);
            return Err(Error::invalid(text));
        }
        Ok(())
    }

    /// Bytes of the encoder's weights when matrices and the embedding table are held in `dtype`; norms and position
    /// biases are held in f32. What quantised files hold is in their own headers.
    pub fn weight_bytes(&self, dtype: DType) -> u64 {
        let [vocab, d, inner, ff, layers] =
            [self.vocab_size, self.d_model, self.inner(), self.d_ff, self.num_layers].map(|n| n as u64);
        let matrices = vocab * d + layers * (4 * d * inner + 3 * d * ff);
        let biases = (self.relative_attention_num_buckets * self.num_heads) as u64;
        matrices * dtype.size_in_bytes() as u64 + 4 * ((2 * layers + 1) * d + biases)
    }

    /// Bytes that encoding one prompt of `tokens` tokens takes beside the weights at its peak, with activations of
    /// `activation_bytes` each: the position bias, and the largest of what a layer holds at once.
    pub fn activation_bytes(&self, tokens: usize, activation_bytes: usize) -> u64 {
        let [d, inner, ff, heads, n] =
            [self.d_model, self.inner(), self.d_ff, self.num_heads, tokens].map(|n| n as u64);
        let a = activation_bytes as u64;
        let bias = 4 * heads * n * n;
        let attention = a * n * (2 * d + 4 * inner) + 2 * 4 * heads * n * n;
        let feed_forward = a * n * (2 * d + 3 * ff);
        bias + attention.max(feed_forward)
    }
}

/// Far beyond every published config, and small enough that no product of two overflows.
const MOST: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_encoder_has_4_76_billion_parameters() {
        // The published bf16 shards of text_encoder_2 hold 9,524,621,312 bytes, every tensor in bf16.
        let c = T5Config::xxl();
        let f32_only = 2 * 24 + 1;
        let narrow = (f32_only * 4096 + 32 * 64) as u64;
        assert_eq!(c.weight_bytes(DType::BF16) - 2 * narrow, 9_524_621_312);
        assert_eq!(c.weight_bytes(DType::F32), 2 * 9_524_621_312);
    }

    #[test]
    fn unusable_configs_are_refused_by_name() {
        let refused = |change: fn(&mut T5Config)| {
            let mut config = T5Config::xxl();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        T5Config::xxl().check().unwrap();
        assert!(refused(|c| c.feed_forward_proj = "relu".into()).contains("feed_forward_proj \"relu\""));
        assert!(refused(|c| c.feed_forward_proj = "gated-silu".into()).contains("gated-gelu"));
        assert!(refused(|c| c.num_heads = 0).contains("num_heads is 0"));
        assert!(refused(|c| c.d_ff = 1 << 40).contains("d_ff is 1099511627776"));
        assert!(refused(|c| c.relative_attention_num_buckets = 3).contains("num_buckets 3"));
        assert!(refused(|c| c.relative_attention_max_distance = 8).contains("max_distance 8"));
        assert!(refused(|c| c.layer_norm_epsilon = -1.0).contains("layer_norm_epsilon is -1"));
    }
}
