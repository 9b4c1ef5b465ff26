//! The names of OpenCLIP's text encoders, which the single files of SD 2.x and SDXL have, as those of transformers.
//!
//! OpenCLIP keeps queries, keys and values in one matrix, one after the other, and multiplies by its projection from the
//! other side, so that it is the transpose of a linear layer's weight.
//! Source: `convert_open_clip_checkpoint` in `diffusers/loaders/single_file_utils.py`.

use super::view::{Form, Piece};

/// The names of the tensors of one layer.
const LAYER: [&str; 12] = [
    "ln_1.weight",
    "ln_1.bias",
    "ln_2.weight",
    "ln_2.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
];
const OUTER: [&str; 5] =
    ["positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "text_projection"];

/// The names of the tensors of an encoder with so many layers.
pub(crate) fn names(layers: usize) -> Vec<String> {
    let of_layer = |i| LAYER.map(|name| format!("transformer.resblocks.{i}.{name}"));
    OUTER.map(str::to_owned).into_iter().chain((0..layers).flat_map(of_layer)).collect()
}

/// The tensors of transformers that a tensor consists of; none where the encoder has no use for it.
///
/// `rows`: those of the tensor. The error is a reason.
pub(crate) fn pieces(name: &str, rows: usize) -> Result<Vec<Piece>, String> {
    let whole = |name: String| Ok(vec![Piece::whole(name)]);
    match name {
        "positional_embedding" => return whole("text_model.embeddings.position_embedding.weight".into()),
        "token_embedding.weight" => return whole("text_model.embeddings.token_embedding.weight".into()),
        "text_projection" => {
            return Ok(vec![Piece { form: Form::Transposed, ..Piece::whole("text_projection.weight") }]);
        }
        _ => {}
    }
    if let Some(param) = name.strip_prefix("ln_final.") {
        return whole(format!("text_model.final_layer_norm.{param}"));
    }
    let Some((layer, rest)) =
        name.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split_once('.'))
    else {
        return Ok(Vec::new());
    };
    let layer = format!("text_model.encoder.layers.{layer}");
    if let Some(param) = rest.strip_prefix("attn.in_proj_") {
        if rows == 0 || !rows.is_multiple_of(3) {
            return Err(format!("its {rows} rows do not divide into queries, keys and values"));
        }
        let third = rows / 3;
        let piece = |(i, part): (usize, &str)| {
            Piece::rows(format!("{layer}.self_attn.{part}.{param}"), i * third..(i + 1) * third)
        };
        return Ok(["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(piece).collect());
    }
    let Some((module, param)) = rest.rsplit_once('.') else { return Ok(Vec::new()) };
    let module = match module {
        "ln_1" => "layer_norm1",
        "ln_2" => "layer_norm2",
        "attn.out_proj" => "self_attn.out_proj",
        "mlp.c_fc" => "mlp.fc1",
        "mlp.c_proj" => "mlp.fc2",
        _ => return Ok(Vec::new()),
    };
    whole(format!("{layer}.{module}.{param}"))
}
