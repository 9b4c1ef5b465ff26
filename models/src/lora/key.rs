//! What one key of a LoRA file says: which layer, and what the tensor is to it.

use super::flux_names::is_bfl;
use super::{Format, Target};

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
    /// The bias of `Up`, added to the layer's own.
    UpBias,
    Mid,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Diff,
    Alpha,
    /// LyCORIS' magnitude, see [`super::magnitude`].
    DoraScale,
    /// PEFT's magnitude.
    MagnitudeVector,
}

/// The ends of keys. A longer end stands before a shorter one that it contains.
const PARTS: [(&str, Part); 30] = [
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    ("_lora.alpha", Part::Alpha),
    (".lora.alpha", Part::Alpha),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (":down", Part::Down),
    (":up", Part::Up),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t1", Part::HadaT1),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".diff", Part::Diff),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::MagnitudeVector),
];

/// PEFT's names, which an adapter's name may follow: `.lora_A.weight`, `.lora_A.default.weight`.
const PEFT_PARTS: [(&str, Part); 3] =
    [(".lora_A.", Part::Down), (".lora_B.", Part::Up), (".lora_magnitude_vector.", Part::MagnitudeVector)];

/// Where a module goes, as far as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Into the denoiser, whichever the pipeline has.
    Denoiser,
    /// Into this text encoder.
    In(Target),
    /// Into a text encoder; the shapes decide into which.
    SomeTextEncoder,
}

/// The layer of a module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LayerName {
    /// By name, with underscores for dots as kohya's scripts write it.
    Named(String),
    /// By its number in the order of the network's modules.
    Numbered(usize),
}

/// A key, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) format: Format,
    pub(super) place: Place,
    pub(super) layer: LayerName,
    /// The layer's name with dots where the key has it so: what the patterns of an adapter's config are about.
    pub(super) path: String,
    pub(super) part: Part,
}

/// Reads one key; `None` where it is of no known kind.
pub(super) fn parse(key: &str) -> Option<Key> {
    if let Some(parsed) = parse_xlabs(key) {
        return Some(parsed);
    }
    let (stem, part) = split_part(key)?;
    if stem.contains(':') {
        return parse_cloneofsimo(stem, part);
    }
    parse_kohya(stem, part).or_else(|| Some(parse_dotted(stem, part)))
}

/// PEFT's and diffusers' names, and the original code's with dots.
fn parse_dotted(stem: &str, part: Part) -> Key {
    const PREFIXES: [(&str, Option<Place>); 10] = [
        ("base_model.model.", None),
        ("unet.", Some(Place::Denoiser)),
        ("transformer.", Some(Place::Denoiser)),
        ("diffusion_model.", Some(Place::Denoiser)),
        ("model.diffusion_model.", Some(Place::Denoiser)),
        ("text_encoder.", Some(Place::In(Target::TextEncoder))),
        ("text_encoder_2.", Some(Place::In(Target::TextEncoder2))),
        // ComfyUI's.
        ("text_encoders.clip_l.transformer.", Some(Place::In(Target::TextEncoder))),
        ("text_encoders.clip_g.transformer.", Some(Place::In(Target::TextEncoder2))),
        ("text_encoders.t5xxl.transformer.", Some(Place::In(Target::TextEncoder2))),
    ];
    let (mut path, mut place) = (stem, None);
    while let Some((rest, found)) = PREFIXES.iter().find_map(|(p, t)| Some((path.strip_prefix(p)?, *t))) {
        (path, place) = (rest, found.or(place));
    }
    let is_text = ["text_model.", "text_projection", "encoder.layers.", "encoder.block."];
    let place = match place {
        Some(place) => place,
        None if is_text.iter().any(|start| path.starts_with(start)) => Place::SomeTextEncoder,
        None => Place::Denoiser,
    };
    let format = if path.contains(".processor.") {
        Format::AttentionProcessors
    } else if stem.starts_with("base_model.model.") {
        Format::Peft
    } else if is_bfl(path) {
        if stem.starts_with("diffusion_model.") { Format::AiToolkit } else { Format::Bfl }
    } else {
        Format::Diffusers
    };
    let path = attention_projection(path, place != Place::Denoiser);
    Key { format, place, layer: LayerName::Named(path.replace('.', "_")), path, part }
}

fn split_part(key: &str) -> Option<(&str, Part)> {
    for (infix, part) in PEFT_PARTS {
        if let Some((stem, rest)) = key.rsplit_once(infix) {
            let (_, last) = rest.rsplit_once('.').unwrap_or(("", rest));
            match (last, part) {
                ("weight", part) => return Some((stem, part)),
                ("bias", Part::Up) => return Some((stem, Part::UpBias)),
                _ => {}
            }
        }
    }
    PARTS.iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, *part)))
}

fn parse_kohya(stem: &str, part: Part) -> Option<Key> {
    const PREFIXES: [(&str, Place); 7] = [
        ("lora_unet_", Place::Denoiser),
        ("lora_transformer_", Place::Denoiser),
        ("lora_te_", Place::In(Target::TextEncoder)),
        ("lora_te1_", Place::In(Target::TextEncoder)),
        ("lora_te2_", Place::In(Target::TextEncoder2)),
        // FLUX's T5: numbered as in Stable Diffusion 3.
        ("lora_te3_", Place::In(Target::TextEncoder2)),
        ("lycoris_", Place::Denoiser),
    ];
    let (name, place) = PREFIXES.iter().find_map(|(prefix, p)| Some((stem.strip_prefix(prefix)?, *p)))?;
    Some(Key {
        format: Format::Kohya,
        place,
        layer: LayerName::Named(name.replace('.', "_")),
        path: name.to_owned(),
        part,
    })
}

/// `double_blocks.0.processor.qkv_lora1.down.weight`: numbers tell picture and text apart.
fn parse_xlabs(key: &str) -> Option<Key> {
    let path = key.strip_prefix("diffusion_model.").unwrap_or(key);
    let (path, part) = match path.strip_suffix(".down.weight") {
        Some(path) => (path, Part::Down),
        None => (path.strip_suffix(".up.weight")?, Part::Up),
    };
    (is_bfl(path) && path.contains(".processor.")).then(|| Key {
        format: Format::Xlabs,
        place: Place::Denoiser,
        layer: LayerName::Named(path.replace('.', "_")),
        path: path.to_owned(),
        part,
    })
}

fn parse_cloneofsimo(stem: &str, part: Part) -> Option<Key> {
    let (component, number) = stem.split_once(':')?;
    let place = match component {
        "unet" => Place::Denoiser,
        "text_encoder" => Place::In(Target::TextEncoder),
        _ => return None,
    };
    Some(Key {
        format: Format::Cloneofsimo,
        place,
        layer: LayerName::Numbered(number.parse().ok()?),
        path: stem.to_owned(),
        part,
    })
}

/// The layer behind an attention processor's name of it: `attn1.processor.to_out` is `attn1.to_out.0`, and in text
/// encoders `self_attn.to_q` is `self_attn.q_proj`.
fn attention_projection(path: &str, is_text: bool) -> String {
    let path = path.replace(".processor.", ".");
    let Some((parent, last)) = path.rsplit_once('.') else { return path };
    match (is_text, last) {
        (false, "to_out") => format!("{parent}.to_out.0"),
        (true, "to_q") => format!("{parent}.q_proj"),
        (true, "to_k") => format!("{parent}.k_proj"),
        (true, "to_v") => format!("{parent}.v_proj"),
        (true, "to_out") => format!("{parent}.out_proj"),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_the_same_layer() {
        let to_out = "down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0";
        let dotted = "down_blocks.0.attentions.1.transformer_blocks.0.attn1";
        for key in [
            format!("lora_unet_{to_out}.lora_down.weight"),
            format!("lycoris_{to_out}.lora_down.weight"),
            format!("unet.{dotted}.to_out.0.lora_A.weight"),
            format!("unet.{dotted}.to_out.0.lora.down.weight"),
            format!("unet.{dotted}.processor.to_out_lora.down.weight"),
            format!("{dotted}.processor.to_out_lora.down.weight"),
            format!("base_model.model.{dotted}.to_out.0.lora_A.weight"),
            format!("base_model.model.unet.{dotted}.to_out.0.lora_A.default.weight"),
        ] {
            let parsed = parse(&key).unwrap();
            let expected = (Place::Denoiser, LayerName::Named(to_out.to_owned()), Part::Down);
            assert_eq!((parsed.place, parsed.layer, parsed.part), expected, "{key}");
        }
        let q_proj = "text_model_encoder_layers_0_self_attn_q_proj";
        let dotted = "text_model.encoder.layers.0.self_attn";
        for (key, place) in [
            (format!("lora_te_{q_proj}.lora_up.weight"), Place::In(Target::TextEncoder)),
            (format!("lora_te1_{q_proj}.lora_up.weight"), Place::In(Target::TextEncoder)),
            (format!("lora_te2_{q_proj}.lora_up.weight"), Place::In(Target::TextEncoder2)),
            (format!("text_encoder_2.{dotted}.q_proj.lora_B.weight"), Place::In(Target::TextEncoder2)),
            (format!("text_encoder.{dotted}.to_q_lora.up.weight"), Place::In(Target::TextEncoder)),
            (
                format!("text_encoder.{dotted}.q_proj.lora_linear_layer.up.weight"),
                Place::In(Target::TextEncoder),
            ),
            (format!("base_model.model.{dotted}.q_proj.lora_B.weight"), Place::SomeTextEncoder),
        ] {
            let parsed = parse(&key).unwrap();
            let expected = (place, LayerName::Named(q_proj.to_owned()), Part::Up);
            assert_eq!((parsed.place, parsed.layer, parsed.part), expected, "{key}");
        }
    }

    #[test]
    fn keys_of_flux_are_understood() {
        let named = |name: &str| LayerName::Named(name.to_owned());
        let qkv = "double_blocks_0_img_attn_qkv";
        let to_q = "single_transformer_blocks_3_attn_to_q";
        let t5 = "encoder_block_0_layer_0_SelfAttention_q";
        let (l, t) = (Place::In(Target::TextEncoder), Place::In(Target::TextEncoder2));
        let fc1 = "text_model_encoder_layers_0_mlp_fc1";
        for (key, format, place, layer, part) in [
            (
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
                Format::Kohya,
                Place::Denoiser,
                qkv,
                Part::Up,
            ),
            (
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight",
                Format::AiToolkit,
                Place::Denoiser,
                qkv,
                Part::Up,
            ),
            (
                "diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1",
                Format::AiToolkit,
                Place::Denoiser,
                qkv,
                Part::LokrW1,
            ),
            ("double_blocks.0.img_attn.qkv.lora_B.bias", Format::Bfl, Place::Denoiser, qkv, Part::UpBias),
            (
                "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight",
                Format::Peft,
                Place::Denoiser,
                qkv,
                Part::Down,
            ),
            (
                "base_model.model.double_blocks.0.img_attn.qkv.lora_B.default.bias",
                Format::Peft,
                Place::Denoiser,
                qkv,
                Part::UpBias,
            ),
            ("img_in.lora_A.weight", Format::Bfl, Place::Denoiser, "img_in", Part::Down),
            (
                "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight",
                Format::Diffusers,
                Place::Denoiser,
                to_q,
                Part::Down,
            ),
            (
                "lora_transformer_single_transformer_blocks_3_attn_to_q.alpha",
                Format::Kohya,
                Place::Denoiser,
                to_q,
                Part::Alpha,
            ),
            (
                "double_blocks.0.processor.qkv_lora2.down.weight",
                Format::Xlabs,
                Place::Denoiser,
                "double_blocks_0_processor_qkv_lora2",
                Part::Down,
            ),
            (
                "diffusion_model.single_blocks.7.processor.proj_lora.up.weight",
                Format::Xlabs,
                Place::Denoiser,
                "single_blocks_7_processor_proj_lora",
                Part::Up,
            ),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", Format::Kohya, l, fc1, Part::Alpha),
            (
                "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight",
                Format::Diffusers,
                l,
                fc1,
                Part::Down,
            ),
            (
                "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
                Format::Kohya,
                t,
                t5,
                Part::Up,
            ),
            (
                "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight",
                Format::Diffusers,
                t,
                t5,
                Part::Up,
            ),
        ] {
            let parsed = parse(key).unwrap();
            assert_eq!((parsed.format, parsed.place, parsed.part), (format, place, part), "{key}");
            assert_eq!(parsed.layer, named(layer), "{key}");
        }
    }

    #[test]
    fn what_is_no_part_of_a_lora_is_not_understood() {
        for key in [
            "<s1>",
            "conv_in.weight",
            "lora_unet_conv_in.diff_b",
            "img_in.lora_A.bias",
            "unet:x:down",
            "vae:0:down",
            "emb_params",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
        assert_eq!(parse("unet:12:down").unwrap().layer, LayerName::Numbered(12));
    }
}
