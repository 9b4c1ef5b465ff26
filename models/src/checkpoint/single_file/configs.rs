//! The configs that follow from a file's shapes, on top of those of the published model that it is like.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Parts;
use super::prediction::Prediction;
use crate::checkpoint::original::Component;
use crate::checkpoint::published::Published;
use crate::checkpoint::view::Views;

/// Channels of an attention head in SD 2.x, SDXL and every CLIP.
const HEAD_CHANNELS: usize = 64;

type Config = Map<String, Value>;
type Found<T> = Result<T, String>;

/// Config by path in a folder. The error is a reason.
pub(super) fn of(
    path: &Path,
    like: &Published,
    parts: &Parts,
    prediction: &Prediction,
) -> Found<BTreeMap<String, Value>> {
    let mut configs = BTreeMap::new();
    let mut index = published(like, "model_index.json");
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(class) = special_class(path, like, parts, &class) {
        index.insert("_class_name".into(), class.into());
    }
    configs.insert("model_index.json".to_owned(), Value::from(index));
    let mut scheduler = published(like, "scheduler/scheduler_config.json");
    if parts.contains_key(&Component::Unet) {
        scheduler.insert("prediction_type".into(), prediction.kind.into());
    }
    if prediction.zero_snr {
        scheduler.insert("rescale_betas_zero_snr".into(), true.into());
        scheduler.insert("timestep_spacing".into(), "trailing".into());
    }
    configs.insert("scheduler/scheduler_config.json".to_owned(), Value::from(scheduler));
    for component in Component::ALL {
        let file = format!("{}/config.json", component.folder());
        if like.file(&file).is_none() {
            continue;
        }
        let base = published(like, &file);
        let config = match (component, parts.get(&component)) {
            // Its weights come from elsewhere.
            (_, None) => base,
            (Component::Unet, Some(views)) => unet(base, &Shapes(views))?,
            (Component::Transformer, Some(views)) => transformer(base, &Shapes(views))?,
            (Component::Vae, Some(views)) => vae(base, &Shapes(views))?,
            (Component::TextEncoder2, Some(views)) if parts.contains_key(&Component::Transformer) => {
                t5(base, &Shapes(views))?
            }
            (_, Some(views)) => clip(base, &Shapes(views))?,
        };
        configs.insert(file, Value::from(config));
    }
    Ok(configs)
}

fn published(like: &Published, file: &str) -> Config {
    let json = like.file(file).and_then(|bytes| serde_json::from_slice(bytes).ok());
    json.unwrap_or_default()
}

/// The pipeline's class where it is not the published model's.
fn special_class(path: &Path, like: &Published, parts: &Parts, class: &str) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    if class == "FluxPipeline" && name.contains("kontext") {
        // Kontext has dev's shapes: its name alone tells.
        return Some("FluxKontextPipeline".into());
    }
    let nine = parts.get(&Component::Unet)?.shape("conv_in.weight")?.get(1) == Some(&9);
    (like.name == "sd21" && nine).then(|| "StableDiffusionInpaintPipeline".into())
}

/// The shapes of a component's tensors.
struct Shapes<'a>(&'a Views);

impl Shapes<'_> {
    fn get(&self, name: &str) -> Found<&[usize]> {
        self.0.shape(name).ok_or_else(|| format!("no tensor {name}, by which its config is known"))
    }

    /// One extent of a tensor.
    fn extent(&self, name: &str, dimension: usize) -> Found<usize> {
        let shape = self.get(name)?;
        let extent = shape.get(dimension).copied();
        extent.ok_or_else(|| format!("tensor {name} has shape {shape:?}, too few dimensions"))
    }

    fn has(&self, prefix: &str) -> bool {
        self.0.any_below(prefix)
    }

    /// How many there are of `prefix.0.`, `prefix.1.`, ..
    fn count(&self, prefix: &str) -> usize {
        (0..).take_while(|i| self.has(&format!("{prefix}.{i}."))).count()
    }

    fn find(&self, ending: &str) -> Option<&str> {
        self.0.names().map(String::as_str).find(|name| name.ends_with(ending))
    }
}

fn unet(mut config: Config, shapes: &Shapes<'_>) -> Found<Config> {
    let blocks = shapes.count("down_blocks");
    let channels: Vec<usize> = (0..blocks)
        .map(|i| shapes.extent(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Found<_>>()?;
    let types = |direction: &str, kind: &str| -> Vec<String> {
        let attends = |i| shapes.has(&format!("{direction}.{i}.attentions."));
        let name = |i| if attends(i) { format!("CrossAttn{kind}") } else { kind.to_owned() };
        (0..blocks).map(name).collect()
    };
    let linear = shapes.find(".proj_in.weight").map(|name| shapes.get(name)).transpose()?;
    let linear = linear.is_some_and(|shape| shape.len() == 2);
    let mut set = |key: &str, value: Value| _ = config.insert(key.to_owned(), value);
    if linear {
        let heads: Vec<usize> = channels.iter().map(|channels| (channels / HEAD_CHANNELS).max(1)).collect();
        set("attention_head_dim", json!(heads));
    }
    set("use_linear_projection", linear.into());
    set("block_out_channels", json!(channels));
    set("down_block_types", json!(types("down_blocks", "DownBlock2D")));
    set("up_block_types", json!(types("up_blocks", "UpBlock2D")));
    set("layers_per_block", shapes.count("down_blocks.0.resnets").into());
    set("in_channels", shapes.extent("conv_in.weight", 1)?.into());
    set("out_channels", shapes.extent("conv_out.weight", 0)?.into());
    if let Some(name) = shapes.find(".attn2.to_k.weight") {
        set("cross_attention_dim", shapes.extent(name, 1)?.into());
    }
    if !shapes.has("mid_block.attentions.") {
        let kind = if shapes.has("mid_block.") { json!("UNetMidBlock2D") } else { Value::Null };
        set("mid_block_type", kind);
    }
    if shapes.has("add_embedding.") {
        let width = shapes.extent("add_embedding.linear_1.weight", 1)?;
        set("projection_class_embeddings_input_dim", width.into());
    }
    if shapes.has("time_embedding.cond_proj.") {
        set("time_cond_proj_dim", shapes.extent("time_embedding.cond_proj.weight", 1)?.into());
    }
    let (down, up) = transformer_layers(shapes, blocks);
    let mirrored: Vec<_> = down.iter().rev().collect();
    let differs = up.iter().zip(mirrored).any(|(up, down)| up.as_ref().is_some_and(|up| up != down));
    if differs {
        let up: Vec<Value> = up.into_iter().map(|layers| layers.unwrap_or_else(|| json!(1))).collect();
        set("reverse_transformer_layers_per_block", json!(up));
    }
    set("transformer_layers_per_block", json!(down));
    Ok(config)
}

/// Layers of the transformers of each block: a number, or one for each transformer where they differ. A block on the
/// way down that has none counts as 1, the last one as the middle block; on the way up there is none.
fn transformer_layers(shapes: &Shapes<'_>, blocks: usize) -> (Vec<Value>, Vec<Option<Value>>) {
    let layers = |block: String| -> Option<Value> {
        let count = |i| shapes.count(&format!("{block}.attentions.{i}.transformer_blocks"));
        let counts: Vec<usize> = (0..shapes.count(&format!("{block}.attentions"))).map(count).collect();
        let first = *counts.first()?;
        Some(if counts.iter().all(|&n| n == first) { json!(first) } else { json!(counts) })
    };
    let middle = layers("mid_block".to_owned());
    let down = |i: usize| {
        let otherwise = || if i + 1 == blocks { middle.clone() } else { None };
        layers(format!("down_blocks.{i}")).or_else(otherwise).unwrap_or_else(|| json!(1))
    };
    ((0..blocks).map(down).collect(), (0..blocks).map(|i| layers(format!("up_blocks.{i}"))).collect())
}

fn transformer(mut config: Config, shapes: &Shapes<'_>) -> Found<Config> {
    let (double, single) = ("transformer_blocks", "single_transformer_blocks");
    let first = if shapes.has(&format!("{double}.")) { double } else { single };
    let head = shapes.extent(&format!("{first}.0.attn.norm_q.weight"), 0)?;
    let width = shapes.extent("x_embedder.weight", 0)?;
    let pooled = shapes.extent("time_text_embed.text_embedder.linear_1.weight", 1)?;
    let mut set = |key: &str, value: usize| _ = config.insert(key.to_owned(), value.into());
    set("in_channels", shapes.extent("x_embedder.weight", 1)?);
    set("out_channels", shapes.extent("proj_out.weight", 0)?);
    set("num_layers", shapes.count(double));
    set("num_single_layers", shapes.count(single));
    set("attention_head_dim", head);
    set("num_attention_heads", width / head.max(1));
    set("joint_attention_dim", shapes.extent("context_embedder.weight", 1)?);
    set("pooled_projection_dim", pooled);
    config.insert("guidance_embeds".into(), shapes.has("time_text_embed.guidance_embedder.").into());
    Ok(config)
}

fn vae(mut config: Config, shapes: &Shapes<'_>) -> Found<Config> {
    let blocks = shapes.count("encoder.down_blocks");
    let channels: Vec<usize> = (0..blocks)
        .map(|i| shapes.extent(&format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Found<_>>()?;
    let mut set = |key: &str, value: Value| _ = config.insert(key.to_owned(), value);
    set("block_out_channels", json!(channels));
    set("down_block_types", json!(vec!["DownEncoderBlock2D"; blocks]));
    set("up_block_types", json!(vec!["UpDecoderBlock2D"; blocks]));
    set("layers_per_block", shapes.count("encoder.down_blocks.0.resnets").into());
    set("latent_channels", shapes.extent("decoder.conv_in.weight", 1)?.into());
    set("use_quant_conv", shapes.has("quant_conv.").into());
    set("use_post_quant_conv", shapes.has("post_quant_conv.").into());
    set("mid_block_add_attention", shapes.has("decoder.mid_block.attentions.").into());
    Ok(config)
}

fn clip(mut config: Config, shapes: &Shapes<'_>) -> Found<Config> {
    // transformers 5 leaves the first part out.
    let model = if shapes.has("text_model.") { "text_model." } else { "" };
    let tokens = format!("{model}embeddings.token_embedding.weight");
    let (vocabulary, hidden) = (shapes.extent(&tokens, 0)?, shapes.extent(&tokens, 1)?);
    let positions = shapes.extent(&format!("{model}embeddings.position_embedding.weight"), 0)?;
    let inner = shapes.extent(&format!("{model}encoder.layers.0.mlp.fc1.weight"), 0)?;
    let mut set = |key: &str, value: usize| _ = config.insert(key.to_owned(), value.into());
    set("vocab_size", vocabulary);
    set("hidden_size", hidden);
    set("num_attention_heads", (hidden / HEAD_CHANNELS).max(1));
    set("max_position_embeddings", positions);
    set("intermediate_size", inner);
    set("num_hidden_layers", shapes.count(&format!("{model}encoder.layers")));
    if shapes.has("text_projection.") {
        set("projection_dim", shapes.extent("text_projection.weight", 0)?);
    }
    Ok(config)
}

fn t5(mut config: Config, shapes: &Shapes<'_>) -> Found<Config> {
    let table = ["shared.weight", "encoder.embed_tokens.weight"];
    let table = table.into_iter().find(|name| shapes.has(name)).unwrap_or("shared.weight");
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let bias = format!("{attention}.relative_attention_bias.weight");
    let heads = shapes.extent(&bias, 1)?;
    let mut set = |key: &str, value: usize| _ = config.insert(key.to_owned(), value.into());
    set("vocab_size", shapes.extent(table, 0)?);
    set("d_model", shapes.extent(table, 1)?);
    set("num_layers", shapes.count("encoder.block"));
    set("num_heads", heads);
    set("relative_attention_num_buckets", shapes.extent(&bias, 0)?);
    set("d_kv", shapes.extent(&format!("{attention}.q.weight"), 0)? / heads.max(1));
    set("d_ff", shapes.extent("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0)?);
    Ok(config)
}
