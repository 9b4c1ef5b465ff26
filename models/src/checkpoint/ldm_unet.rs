//! The UNet's modules in the names of the original Stable Diffusion and SDXL code (LDM, SGM), which single files and
//! most SDXL LoRAs use, beside diffusers'.
//!
//! The original numbers its blocks through: `input_blocks.4.1` is the second child of the fifth block on the way
//! down. So the numbers follow from how many layers each block of the model at hand has, which either kind of name
//! tells, and every UNet of the family is covered: SD 1 and 2, SDXL and its refiner, SSD-1B.
//! Source: `convert_ldm_unet_checkpoint` in `diffusers/loaders/single_file_utils.py`.

use std::collections::{BTreeMap, BTreeSet};

/// More blocks than any UNet has: names cannot make the tables long.
const MOST_BLOCKS: usize = 64;

/// Inside a residual block: the original's children, diffusers' layers.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

const OUTER: [(&str, &str); 8] = [
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
];

/// What the blocks of one direction consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Block {
    resnets: usize,
    /// Has a layer of its own that changes the size.
    resizes: bool,
    attends: bool,
}

/// Every module of one UNet under both names.
#[derive(Debug, Default)]
pub(crate) struct LdmUnet {
    to_diffusers: BTreeMap<String, String>,
    to_ldm: BTreeMap<String, String>,
}

impl LdmUnet {
    /// The UNet whose tensors or layers have these diffusers names.
    pub(crate) fn of_diffusers<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        Self::new(&diffusers_blocks(names.clone(), "down_blocks"), &diffusers_blocks(names, "up_blocks"))
    }

    /// The UNet whose tensors have these original names, without a prefix.
    pub(crate) fn of_ldm<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let children = children(names);
        Self::new(&ldm_blocks(&children, "input_blocks"), &ldm_blocks(&children, "output_blocks"))
    }

    fn new(down: &[Block], up: &[Block]) -> Self {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut put = |ldm: String, diffusers: String| pairs.push((ldm, diffusers));
        let resnet = |put: &mut dyn FnMut(String, String), ldm: String, diffusers: String| {
            RESNET.iter().for_each(|(a, b)| put(format!("{ldm}.{a}"), format!("{diffusers}.{b}")));
        };
        OUTER.iter().for_each(|(ldm, diffusers)| put((*ldm).to_owned(), (*diffusers).to_owned()));
        for child in 0..2 {
            resnet(&mut put, format!("middle_block.{}", 2 * child), format!("mid_block.resnets.{child}"));
        }
        put("middle_block.1".to_owned(), "mid_block.attentions.0".to_owned());
        // The first input block is conv_in; a layer that halves the size is an input block of its own.
        let mut at = 1;
        for (i, block) in down.iter().enumerate() {
            for j in 0..block.resnets {
                resnet(&mut put, format!("input_blocks.{at}.0"), format!("down_blocks.{i}.resnets.{j}"));
                put(format!("input_blocks.{at}.1"), format!("down_blocks.{i}.attentions.{j}"));
                at += 1;
            }
            if block.resizes {
                put(format!("input_blocks.{at}.0.op"), format!("down_blocks.{i}.downsamplers.0.conv"));
                at += 1;
            }
        }
        // A layer that doubles the size is the last child of the block's last output block.
        let mut at = 0;
        for (i, block) in up.iter().enumerate() {
            for j in 0..block.resnets {
                resnet(&mut put, format!("output_blocks.{at}.0"), format!("up_blocks.{i}.resnets.{j}"));
                if block.attends {
                    put(format!("output_blocks.{at}.1"), format!("up_blocks.{i}.attentions.{j}"));
                }
                if block.resizes && j + 1 == block.resnets {
                    let child = 1 + usize::from(block.attends);
                    put(
                        format!("output_blocks.{at}.{child}.conv"),
                        format!("up_blocks.{i}.upsamplers.0.conv"),
                    );
                }
                at += 1;
            }
        }
        let to_ldm = pairs.iter().cloned().map(|(ldm, diffusers)| (diffusers, ldm)).collect();
        Self { to_diffusers: pairs.into_iter().collect(), to_ldm }
    }

    /// Diffusers' name of a tensor or layer; `None` for what is no part of the UNet.
    pub(crate) fn diffusers_name(&self, ldm: &str) -> Option<String> {
        renamed(&self.to_diffusers, ldm)
    }

    /// The original's name of a tensor or layer; `None` for what is no part of the UNet.
    pub(crate) fn ldm_name(&self, diffusers: &str) -> Option<String> {
        renamed(&self.to_ldm, diffusers)
    }
}

/// A name whose beginning is that of a module, with the module's other name there.
fn renamed(modules: &BTreeMap<String, String>, name: &str) -> Option<String> {
    let ends = name.match_indices('.').map(|(dot, _)| dot).chain([name.len()]);
    let (end, module) = ends.rev().find_map(|end| Some((end, modules.get(name.get(..end)?)?)))?;
    Some(format!("{module}{}", name.get(end..)?))
}

/// `down_blocks.1.resnets.0.conv1` says that the second block on the way down has a first residual block.
fn diffusers_blocks<'a>(names: impl Iterator<Item = &'a str>, direction: &str) -> Vec<Block> {
    let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
    for name in names {
        let mut parts = name.split('.');
        if parts.next() != Some(direction) {
            continue;
        }
        let mut number = || parts.next()?.parse::<usize>().ok().filter(|&n| n < MOST_BLOCKS);
        let Some(index) = number() else { continue };
        let block = blocks.entry(index).or_default();
        match (parts.next(), parts.next().and_then(|n| n.parse::<usize>().ok())) {
            (Some("resnets"), Some(child)) if child < MOST_BLOCKS => {
                block.resnets = block.resnets.max(child + 1);
            }
            (Some("attentions"), _) => block.attends = true,
            (Some("downsamplers" | "upsamplers"), _) => block.resizes = true,
            _ => {}
        }
    }
    blocks.into_values().collect()
}

/// `input_blocks.4.1.norm.weight` -> `("input_blocks", 4, 1, "norm")`.
type Child<'a> = (&'a str, usize, usize, &'a str);

fn children<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<Child<'a>> {
    let child = |name: &'a str| -> Option<Child<'a>> {
        let mut parts = name.split('.');
        let direction = parts.next()?;
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (block, child) = (number()?, number()?);
        (block < MOST_BLOCKS).then_some((direction, block, child, parts.next()?))
    };
    names.filter_map(child).collect()
}

/// Blocks end where the size changes, and with the last residual block.
fn ldm_blocks(children: &BTreeSet<Child<'_>>, direction: &str) -> Vec<Block> {
    let has = |block: usize, child: usize, name: &str| children.contains(&(direction, block, child, name));
    let (mut blocks, mut open) = (Vec::new(), Block::default());
    for at in usize::from(direction == "input_blocks").. {
        let (resnet, halves) = (has(at, 0, "in_layers"), has(at, 0, "op"));
        if !resnet && !halves {
            break;
        }
        open.resnets += usize::from(resnet);
        open.attends |= has(at, 1, "norm");
        open.resizes = halves || has(at, 1, "conv") || has(at, 2, "conv");
        if open.resizes {
            blocks.push(std::mem::take(&mut open));
        }
    }
    if open != Block::default() {
        blocks.push(open);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole map is checked against diffusers in `tests/parity/single_file.rs`; here is what it leaves out.
    #[test]
    fn both_kinds_of_names_tell_the_blocks() {
        let diffusers = [
            "down_blocks.0.resnets.0.conv1.weight",
            "down_blocks.0.attentions.0.norm.weight",
            "down_blocks.0.downsamplers.0.conv.weight",
            "down_blocks.1.resnets.0.norm2.bias",
            "mid_block.attentions.0.transformer_blocks.3.attn1.to_q.weight",
            "up_blocks.0.resnets.0.conv1.weight",
            "up_blocks.0.resnets.1.conv_shortcut.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
            "up_blocks.1.resnets.0.time_emb_proj.bias",
            "up_blocks.1.attentions.0.proj_in.weight",
            "conv_norm_out.weight",
        ];
        let ldm = [
            "input_blocks.1.0.in_layers.2.weight",
            "input_blocks.1.1.norm.weight",
            "input_blocks.2.0.op.weight",
            "input_blocks.3.0.out_layers.0.bias",
            "middle_block.1.transformer_blocks.3.attn1.to_q.weight",
            "output_blocks.0.0.in_layers.2.weight",
            "output_blocks.1.0.skip_connection.weight",
            "output_blocks.1.1.conv.weight",
            "output_blocks.2.0.emb_layers.1.bias",
            "output_blocks.2.1.proj_in.weight",
            "out.0.weight",
        ];
        let forward = LdmUnet::of_diffusers(diffusers.into_iter());
        let more = ["input_blocks.3.0.in_layers.0.weight", "output_blocks.1.0.in_layers.0.weight"];
        let also = ["output_blocks.2.0.in_layers.0.weight", "output_blocks.2.1.norm.weight"];
        let backward = LdmUnet::of_ldm(ldm.into_iter().chain(more).chain(also));
        for (diffusers, ldm) in diffusers.into_iter().zip(ldm) {
            assert_eq!(forward.ldm_name(diffusers).as_deref(), Some(ldm));
            assert_eq!(backward.diffusers_name(ldm).as_deref(), Some(diffusers));
        }
        for other in ["input_blocks.9.0.in_layers.0.weight", "input_blocks.1", "", "betas"] {
            assert_eq!(backward.diffusers_name(other), None, "{other}");
        }
    }

    #[test]
    fn numbers_in_names_cannot_make_the_tables_long() {
        let large = "down_blocks.18446744073709551615.resnets.0.conv1";
        let names = [large, "down_blocks.0.resnets.18446744073709551615.conv1"];
        assert!(LdmUnet::of_diffusers(names.into_iter()).to_ldm.len() < 100);
    }
}
