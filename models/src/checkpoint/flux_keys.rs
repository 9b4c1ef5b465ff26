//! The names of the original FLUX checkpoints as diffusers' names.
//!
//! The original fuses what diffusers keeps apart: queries, keys and values of a double block, and those with the first
//! half of the MLP of a single block. Both are rows of one matrix, one after the other. The last modulation has its
//! scale and shift in the other order. Source: `convert_flux_transformer_checkpoint_to_diffusers` of diffusers.

use super::view::Piece;

/// What some programs put before every name of the transformer, beside the other parts of a whole checkpoint.
const PREFIX: &str = "model.diffusion_model.";

/// Whether a file with a tensor of this name has the original names.
pub fn is_original(name: &str) -> bool {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    name.starts_with("double_blocks.") || name.starts_with("single_blocks.")
}

/// The names of all tensors of a transformer with so many blocks, and those of the guidance's embedder, which schnell
/// does not have.
pub(crate) fn original_names(double_blocks: usize, single_blocks: usize) -> Vec<String> {
    const OUTER: [&str; 10] = [
        "img_in",
        "txt_in",
        "time_in.in_layer",
        "time_in.out_layer",
        "vector_in.in_layer",
        "vector_in.out_layer",
        "guidance_in.in_layer",
        "guidance_in.out_layer",
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ];
    let (mut layers, mut names) = (OUTER.map(str::to_owned).to_vec(), Vec::new());
    for block in (0..double_blocks).flat_map(|i| ["img", "txt"].map(|s| format!("double_blocks.{i}.{s}"))) {
        layers.extend(
            ["mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2"].map(|name| format!("{block}_{name}")),
        );
        names.extend(["query", "key"].map(|norm| format!("{block}_attn.norm.{norm}_norm.scale")));
    }
    for block in (0..single_blocks).map(|i| format!("single_blocks.{i}")) {
        layers.extend(["linear1", "linear2", "modulation.lin"].map(|name| format!("{block}.{name}")));
        names.extend(["query", "key"].map(|norm| format!("{block}.norm.{norm}_norm.scale")));
    }
    names.extend(layers.iter().flat_map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")]));
    names
}

/// The diffusers tensors that a tensor of an original checkpoint consists of.
///
/// Unknown names stay as they are; in a whole checkpoint, whose transformer has a prefix, the tensors without that
/// prefix belong to other parts and give none. `shape_of` tells the shape of any stored tensor. The error is a reason.
pub fn pieces(name: &str, shape_of: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Vec<Piece>, String> {
    let short = name.strip_prefix(PREFIX).unwrap_or(name);
    if short.len() == name.len() && shape_of(&format!("{PREFIX}img_in.weight")).is_some() {
        return Ok(Vec::new());
    }
    let rows = || shape_of(name).and_then(|shape| shape.first().copied()).unwrap_or(0);
    let names: Vec<&str> = short.split('.').collect();
    let whole = |name: String| Ok(vec![Piece::whole(name)]);
    match names.as_slice() {
        ["img_in", param] => whole(format!("x_embedder.{param}")),
        ["txt_in", param] => whole(format!("context_embedder.{param}")),
        [embedder @ ("time_in" | "vector_in" | "guidance_in"), layer @ ("in_layer" | "out_layer"), param] => {
            let embedder = match *embedder {
                "time_in" => "timestep_embedder",
                "vector_in" => "text_embedder",
                _ => "guidance_embedder",
            };
            let layer = if *layer == "in_layer" { "linear_1" } else { "linear_2" };
            whole(format!("time_text_embed.{embedder}.{layer}.{param}"))
        }
        ["final_layer", "linear", param] => whole(format!("proj_out.{param}")),
        ["final_layer", "adaLN_modulation", "1", param] => {
            let half = parts(rows(), 2)?;
            let rows = vec![half..2 * half, 0..half];
            Ok(vec![Piece { rows, ..Piece::whole(format!("norm_out.linear.{param}")) }])
        }
        ["double_blocks", block, stream, rest @ ..] => {
            double(&format!("transformer_blocks.{block}"), stream, rest, rows())
                .unwrap_or_else(|| whole(short.to_owned()))
        }
        ["single_blocks", block, "linear1", param] => {
            let weight = format!("{}.weight", name.rsplit_once('.').map_or(name, |(layer, _)| layer));
            let Some([_, width]) =
                shape_of(&weight).as_deref().map(<[usize; 2]>::try_from).and_then(Result::ok)
            else {
                return Err(format!("no matrix {weight} tells where its parts begin"));
            };
            fused_single(&format!("single_transformer_blocks.{block}"), param, rows(), width)
        }
        ["single_blocks", block, rest @ ..] => {
            let rest = match *rest {
                ["linear2", param] => format!("proj_out.{param}"),
                ["modulation", "lin", param] => format!("norm.linear.{param}"),
                ["norm", norm @ ("query_norm" | "key_norm"), "scale"] => {
                    format!("attn.{}.weight", if norm == "query_norm" { "norm_q" } else { "norm_k" })
                }
                _ => return whole(short.to_owned()),
            };
            whole(format!("single_transformer_blocks.{block}.{rest}"))
        }
        _ => whole(short.to_owned()),
    }
}

/// The rows of one of `count` equal parts.
fn parts(rows: usize, count: usize) -> Result<usize, String> {
    if rows == 0 || !rows.is_multiple_of(count) {
        return Err(format!("its {rows} rows do not divide into {count} equal parts"));
    }
    Ok(rows / count)
}

/// What stands below a double block, for one of its two streams; `None` for a name that is not known.
fn double(block: &str, stream: &str, rest: &[&str], rows: usize) -> Option<Result<Vec<Piece>, String>> {
    let (stream, part) = stream.split_once('_')?;
    let image = match stream {
        "img" => true,
        "txt" => false,
        _ => return None,
    };
    let one = |image_name: &str, text_name: &str, param: &str| {
        let name = if image { image_name } else { text_name };
        Some(Ok(vec![Piece::whole(format!("{block}.{name}.{param}"))]))
    };
    match (part, rest) {
        ("mod", ["lin", param]) => one("norm1.linear", "norm1_context.linear", param),
        ("mlp", ["0", param]) => one("ff.net.0.proj", "ff_context.net.0.proj", param),
        ("mlp", ["2", param]) => one("ff.net.2", "ff_context.net.2", param),
        ("attn", ["proj", param]) => one("attn.to_out.0", "attn.to_add_out", param),
        ("attn", ["norm", "query_norm", "scale"]) => one("attn.norm_q", "attn.norm_added_q", "weight"),
        ("attn", ["norm", "key_norm", "scale"]) => one("attn.norm_k", "attn.norm_added_k", "weight"),
        ("attn", ["qkv", param]) => {
            let names =
                if image { ["to_q", "to_k", "to_v"] } else { ["add_q_proj", "add_k_proj", "add_v_proj"] };
            Some(parts(rows, 3).map(|third| {
                let piece = |(i, name): (usize, &str)| {
                    Piece::rows(format!("{block}.attn.{name}.{param}"), i * third..(i + 1) * third)
                };
                names.into_iter().enumerate().map(piece).collect()
            }))
        }
        _ => None,
    }
}

/// Queries, keys and values of `width` rows each; the MLP has the rest.
fn fused_single(block: &str, param: &str, rows: usize, width: usize) -> Result<Vec<Piece>, String> {
    let mlp = width.checked_mul(3).filter(|mlp| width > 0 && *mlp < rows);
    let Some(mlp) = mlp else {
        return Err(format!("its {rows} rows are no three of {width} and an MLP"));
    };
    let mut pieces: Vec<_> = ["to_q", "to_k", "to_v"]
        .into_iter()
        .enumerate()
        .map(|(i, name)| Piece::rows(format!("{block}.attn.{name}.{param}"), i * width..(i + 1) * width))
        .collect();
    pieces.push(Piece::rows(format!("{block}.proj_mlp.{param}"), mlp..rows));
    Ok(pieces)
}
