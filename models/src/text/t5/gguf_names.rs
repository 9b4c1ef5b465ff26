//! The tensor names of a T5 encoder in llama.cpp's GGUF files, as transformers names them.
//!
//! Source: `gguf/constants.py` and `gguf/tensor_mapping.py` of llama.cpp.

/// llama.cpp's name within a layer, and transformers'.
const LAYER: [(&str, &str); 10] = [
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("attn_norm", "layer.0.layer_norm"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
    ("ffn_norm", "layer.1.layer_norm"),
];

/// transformers' name of a tensor: `enc.blk.3.attn_q.weight` is
/// `encoder.block.3.layer.0.SelfAttention.q.weight`. `None` for what is no part of an encoder.
pub fn transformers_name(gguf: &str) -> Option<String> {
    let stem = gguf.strip_suffix(".weight")?;
    match stem {
        "token_embd" => return Some("shared.weight".to_owned()),
        "enc.output_norm" => return Some("encoder.final_layer_norm.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = stem.strip_prefix("enc.blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (_, name) = LAYER.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("encoder.block.{layer}.{name}.weight"))
}

#[cfg(test)]
mod tests {
    use super::transformers_name;

    #[test]
    fn names_of_the_published_files() {
        let name = |gguf| transformers_name(gguf);
        let layer = |i: u32, rest: &str| Some(format!("encoder.block.{i}.layer.{rest}.weight"));
        assert_eq!(name("token_embd.weight").as_deref(), Some("shared.weight"));
        assert_eq!(name("enc.output_norm.weight").as_deref(), Some("encoder.final_layer_norm.weight"));
        assert_eq!(name("enc.blk.0.attn_rel_b.weight"), layer(0, "0.SelfAttention.relative_attention_bias"));
        assert_eq!(name("enc.blk.23.attn_o.weight"), layer(23, "0.SelfAttention.o"));
        assert_eq!(name("enc.blk.7.ffn_gate.weight"), layer(7, "1.DenseReluDense.wi_0"));
        assert_eq!(name("enc.blk.7.ffn_up.weight"), layer(7, "1.DenseReluDense.wi_1"));
        assert_eq!(name("enc.blk.7.ffn_down.weight"), layer(7, "1.DenseReluDense.wo"));
        assert_eq!(name("enc.blk.7.ffn_norm.weight"), layer(7, "1.layer_norm"));
        for other in
            ["dec.blk.0.attn_q.weight", "enc.blk.x.attn_q.weight", "enc.blk.0.attn_q", "output.weight", ""]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
