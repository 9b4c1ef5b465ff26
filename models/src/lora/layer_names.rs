//! The layers of one component, found by any name that LoRA files have for them.

use std::collections::{BTreeMap, HashMap};

use super::Target;
use super::key::LayerName;
use super::ldm_names::ldm_names;
use super::matching::LayerShapes;

/// The layers of a component by their names in files.
pub(super) struct LayerNames<'a> {
    shapes: &'a LayerShapes,
    /// Names with underscores -> layers.
    by_name: HashMap<String, &'a str>,
    /// Layers in the order in which cloneofsimo/lora numbers them.
    numbered: Vec<&'a str>,
}

impl<'a> LayerNames<'a> {
    /// `feed_forward_last`: in which order a transformer block of the UNet lists its layers, see [`numbered`].
    pub(super) fn new(target: Target, shapes: &'a LayerShapes, feed_forward_last: bool) -> Self {
        let mut by_name = HashMap::new();
        if target == Target::Unet {
            by_name.extend(
                ldm_names(shapes.keys()).into_iter().map(|(layer, ldm)| (ldm.replace('.', "_"), layer)),
            );
        }
        for layer in shapes.keys() {
            by_name.insert(layer.replace('.', "_"), layer.as_str());
            // transformers 5 leaves the prefix out; files have it all the same.
            if target != Target::Unet && !layer.starts_with("text_") {
                by_name.insert(format!("text_model_{}", layer.replace('.', "_")), layer.as_str());
            }
        }
        Self { shapes, by_name, numbered: numbered(target, shapes, feed_forward_last) }
    }

    /// The layer of this name, with its stored weight's shape.
    pub(super) fn find(&self, name: &LayerName) -> Option<(&'a str, &'a [usize])> {
        let layer = match name {
            LayerName::Named(name) => *self.by_name.get(name)?,
            LayerName::Numbered(number) => *self.numbered.get(*number)?,
        };
        Some((layer, self.shapes.get(layer)?))
    }
}

/// The linear layers under cross attention and GEGLU (UNet) or CLIPAttention (text encoders), in the order of
/// torch's `modules()`: the way down, the way up, the middle. A transformer block of diffusers listed attn1, ff, attn2
/// when the format was made, and attn1, attn2, ff later.
/// Source: `_find_modules_v2` in cloneofsimo/lora's `lora.py`.
fn numbered(target: Target, shapes: &LayerShapes, feed_forward_last: bool) -> Vec<&str> {
    let (first, layers): (&str, &[&str]) = match (target, feed_forward_last) {
        (Target::Unet, false) => (
            ".attn1.to_q",
            &[
                "attn1.to_q",
                "attn1.to_k",
                "attn1.to_v",
                "attn1.to_out.0",
                "ff.net.0.proj",
                "attn2.to_q",
                "attn2.to_k",
                "attn2.to_v",
                "attn2.to_out.0",
            ],
        ),
        (Target::Unet, true) => (
            ".attn1.to_q",
            &[
                "attn1.to_q",
                "attn1.to_k",
                "attn1.to_v",
                "attn1.to_out.0",
                "attn2.to_q",
                "attn2.to_k",
                "attn2.to_v",
                "attn2.to_out.0",
                "ff.net.0.proj",
            ],
        ),
        _ => (
            ".self_attn.k_proj",
            &["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"],
        ),
    };
    let blocks: BTreeMap<_, _> = shapes
        .keys()
        .filter_map(|layer| layer.strip_suffix(first))
        .map(|block| (module_order(block), block))
        .collect();
    let names = blocks.values().flat_map(|block| layers.iter().map(move |layer| format!("{block}.{layer}")));
    names.filter_map(|name| Some(shapes.get_key_value(&name)?.0.as_str())).collect()
}

/// Sorts as torch lists modules: numbers by value, the middle block last.
fn module_order(block: &str) -> (bool, Vec<(usize, &str)>) {
    let part = |s| str::parse(s).map_or((0, s), |n| (n, ""));
    (block.starts_with("mid_block"), block.split('.').map(part).collect())
}
