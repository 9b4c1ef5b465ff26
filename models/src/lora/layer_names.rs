//! The layers of one component, found by any name that LoRA files have for them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::Target;
use super::flux_names::flux_names;
use super::key::LayerName;
use super::matching::LayerShapes;
use crate::checkpoint::ldm_unet::LdmUnet;

/// A layer, and which rows of a difference are its own, in the order of its outputs: all of them, or some where the
/// difference is of a fused matrix.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) layer: String,
    /// The layer's stored weight's.
    pub(super) shape: Vec<usize>,
    pub(super) rows: Vec<Range<usize>>,
}

impl Slice {
    /// A layer whose rows lie together, from `start` on.
    pub(super) fn new(layer: &str, shape: &[usize], start: usize) -> Self {
        let end = start.saturating_add(shape.first().copied().unwrap_or(0));
        Self { layer: layer.to_owned(), shape: shape.to_owned(), rows: std::iter::once(start..end).collect() }
    }

    /// How many rows it has.
    pub(super) fn count(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The layers of a component by their names in files.
pub(super) struct LayerNames<'a> {
    /// Names with underscores -> layers.
    by_name: HashMap<String, Vec<Slice>>,
    /// Layers in the order in which cloneofsimo/lora numbers them.
    numbered: Vec<&'a str>,
}

impl<'a> LayerNames<'a> {
    /// `feed_forward_last`: in which order a transformer block of the UNet lists its layers, see [`numbered`].
    pub(super) fn new(target: Target, shapes: &'a LayerShapes, feed_forward_last: bool) -> Self {
        let mut by_name = HashMap::new();
        let whole = |layer: &str| {
            shapes.get(layer).map(|shape| vec![Slice::new(layer, shape, 0)]).unwrap_or_default()
        };
        match target {
            Target::Unet => {
                let names = LdmUnet::of_diffusers(shapes.keys().map(String::as_str));
                let ldm_name =
                    |layer: &String| Some((names.ldm_name(layer)?.replace('.', "_"), whole(layer)));
                by_name.extend(shapes.keys().filter_map(ldm_name));
            }
            Target::Transformer => {
                let names = flux_names(shapes).into_iter();
                by_name.extend(names.map(|(name, slices)| (name.replace('.', "_"), slices)));
            }
            Target::TextEncoder | Target::TextEncoder2 => {
                // transformers 5 leaves `text_model.` out; checkpoints and LoRAs may or may not have it.
                for layer in shapes.keys() {
                    let short = layer.strip_prefix("text_model.").unwrap_or(layer).replace('.', "_");
                    by_name.insert(format!("text_model_{short}"), whole(layer));
                    by_name.insert(short, whole(layer));
                }
            }
        }
        by_name.extend(shapes.keys().map(|layer| (layer.replace('.', "_"), whole(layer))));
        Self { by_name, numbered: numbered(target, shapes, feed_forward_last) }
    }

    /// The layers of this name: several where it is of a fused matrix.
    pub(super) fn find(&self, name: &LayerName) -> Option<&[Slice]> {
        let slices = match name {
            LayerName::Named(name) => self.by_name.get(name)?,
            LayerName::Numbered(number) => {
                self.by_name.get(&self.numbered.get(*number)?.replace('.', "_"))?
            }
        };
        Some(slices)
    }
}

/// The linear layers under cross attention and GEGLU (UNet) or CLIPAttention (text encoders), in the order of
/// torch's `modules()`: the way down, the way up, the middle. A transformer block of diffusers listed attn1, ff, attn2
/// when the format was made, and attn1, attn2, ff later.
/// Source: `_find_modules_v2` in cloneofsimo/lora's `lora.py`.
fn numbered(target: Target, shapes: &LayerShapes, feed_forward_last: bool) -> Vec<&str> {
    let layers = |parent: &str, names: [&str; 4]| names.map(|name| format!("{parent}.{name}"));
    let (first, layers) = if target == Target::Unet {
        let [one, two] = ["attn1", "attn2"].map(|name| layers(name, ["to_q", "to_k", "to_v", "to_out.0"]));
        let feed_forward = ["ff.net.0.proj".to_owned()];
        let order: [&[String]; 3] =
            if feed_forward_last { [&one, &two, &feed_forward] } else { [&one, &feed_forward, &two] };
        (".attn1.to_q", order.concat())
    } else {
        (".self_attn.k_proj", layers("self_attn", ["k_proj", "v_proj", "q_proj", "out_proj"]).to_vec())
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
