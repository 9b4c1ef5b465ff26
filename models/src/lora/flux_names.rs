//! The FLUX transformer's layers in the names of the original code, which most FLUX LoRAs use, and in those of
//! XLabs' attention processors.
//!
//! The original fuses layers that diffusers keeps apart, so one of its names may stand for several layers: rows of
//! the fused matrix, one layer after the other. How many rows each has is read from the model's own layers.
//! Sources: <https://github.com/black-forest-labs/flux> `src/flux/modules/layers.py` (BFL);
//! <https://github.com/XLabs-AI/x-flux> `src/flux/modules/layers.py` (processors);
//! diffusers `scripts/convert_flux_to_diffusers.py`.

use std::collections::BTreeSet;

use super::layer_names::Slice;
use super::matching::LayerShapes;

/// A name, and the layers that it stands for in the order of its rows.
type Name = (&'static str, &'static [&'static str]);

/// Of `double_blocks.N` and `transformer_blocks.N`.
const DOUBLE: [Name; 14] = [
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("img_attn.proj", &["attn.to_out.0"]),
    ("img_mlp.0", &["ff.net.0.proj"]),
    ("img_mlp.2", &["ff.net.2"]),
    ("img_mod.lin", &["norm1.linear"]),
    ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("txt_attn.proj", &["attn.to_add_out"]),
    ("txt_mlp.0", &["ff_context.net.0.proj"]),
    ("txt_mlp.2", &["ff_context.net.2"]),
    ("txt_mod.lin", &["norm1_context.linear"]),
    ("processor.qkv_lora1", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("processor.qkv_lora2", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("processor.proj_lora1", &["attn.to_out.0"]),
    ("processor.proj_lora2", &["attn.to_add_out"]),
];

/// Of `single_blocks.N` and `single_transformer_blocks.N`.
const SINGLE: [Name; 5] = [
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("modulation.lin", &["norm.linear"]),
    ("processor.qkv_lora", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("processor.proj_lora", &["proj_out"]),
];

const OUTER: [Name; 10] = [
    ("img_in", &["x_embedder"]),
    ("txt_in", &["context_embedder"]),
    ("time_in.in_layer", &["time_text_embed.timestep_embedder.linear_1"]),
    ("time_in.out_layer", &["time_text_embed.timestep_embedder.linear_2"]),
    ("vector_in.in_layer", &["time_text_embed.text_embedder.linear_1"]),
    ("vector_in.out_layer", &["time_text_embed.text_embedder.linear_2"]),
    ("guidance_in.in_layer", &["time_text_embed.guidance_embedder.linear_1"]),
    ("guidance_in.out_layer", &["time_text_embed.guidance_embedder.linear_2"]),
    ("final_layer.linear", &["proj_out"]),
    (MODULATION_OUT, &["norm_out.linear"]),
];

/// The original has the shift first, diffusers the scale.
const MODULATION_OUT: &str = "final_layer.adaLN_modulation.1";

/// Whether a key's path is one of the original's.
pub(super) fn is_bfl(path: &str) -> bool {
    let starts = ["double_blocks.", "single_blocks."];
    starts.iter().any(|start| path.starts_with(start)) || OUTER.iter().any(|(name, _)| path == *name)
}

/// Names with dots -> what of the layers they stand for, of all layers that have an original name.
pub(super) fn flux_names(shapes: &LayerShapes) -> Vec<(String, Vec<Slice>)> {
    let mut names = Vec::new();
    for (ours, theirs, table) in [
        ("transformer_blocks", "double_blocks", &DOUBLE[..]),
        ("single_transformer_blocks", "single_blocks", &SINGLE),
    ] {
        let blocks = shapes
            .keys()
            .filter_map(|layer| Some(layer.strip_prefix(ours)?.strip_prefix('.')?.split_once('.')?.0));
        for block in blocks.collect::<BTreeSet<_>>() {
            for (name, layers) in table {
                let layers = layers.iter().map(|layer| format!("{ours}.{block}.{layer}"));
                names.extend(slices(shapes, layers).map(|s| (format!("{theirs}.{block}.{name}"), s)));
            }
        }
    }
    for (name, layers) in OUTER {
        let slices = slices(shapes, layers.iter().map(|layer| (*layer).to_owned()));
        names.extend(
            slices.map(|s| (name.to_owned(), if name == MODULATION_OUT { halves_swapped(s) } else { s })),
        );
    }
    names
}

/// Layers that lie one after the other in a fused matrix; `None` where the model lacks one.
fn slices(shapes: &LayerShapes, layers: impl Iterator<Item = String>) -> Option<Vec<Slice>> {
    let mut start = 0;
    let slice = |layer: String| {
        let slice = Slice::new(&layer, shapes.get(&layer)?, start);
        start += slice.count();
        Some(slice)
    };
    layers.map(slice).collect()
}

fn halves_swapped(mut slices: Vec<Slice>) -> Vec<Slice> {
    for slice in &mut slices {
        let count = slice.count();
        slice.rows = vec![count / 2..count, 0..count / 2];
    }
    slices
}
