//! The names of a T5 encoder in llama.cpp's GGUF files as those of transformers.
//!
//! Source: `gguf/tensor_mapping.py` of llama.cpp.

/// Whether a file with a tensor of this name has llama.cpp's names.
pub fn is_llama_cpp(name: &str) -> bool {
    name.starts_with("enc.blk.")
}

/// The name in transformers; `None` for what is no part of an encoder.
pub fn transformers_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    match stem {
        "token_embd" => return Some("shared.weight".to_owned()),
        "enc.output_norm" => return Some("encoder.final_layer_norm.weight".to_owned()),
        _ => {}
    }
    let (block, part) = stem.strip_prefix("enc.blk.")?.split_once('.')?;
    let block: u16 = block.parse().ok()?;
    let part = match part {
        "attn_norm" => "layer.0.layer_norm",
        "attn_q" => "layer.0.SelfAttention.q",
        "attn_k" => "layer.0.SelfAttention.k",
        "attn_v" => "layer.0.SelfAttention.v",
        "attn_o" => "layer.0.SelfAttention.o",
        "attn_rel_b" => "layer.0.SelfAttention.relative_attention_bias",
        "ffn_norm" => "layer.1.layer_norm",
        "ffn_gate" => "layer.1.DenseReluDense.wi_0",
        "ffn_up" => "layer.1.DenseReluDense.wi_1",
        "ffn_down" => "layer.1.DenseReluDense.wo",
        _ => return None,
    };
    Some(format!("encoder.block.{block}.{part}.weight"))
}
