//! What one key of a LoRA file says: which layer, and what the tensor is to it.

use super::{Format, Target};

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
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
    /// Into this component.
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
    let (stem, part) = split_part(key)?;
    if stem.contains(':') {
        return parse_cloneofsimo(stem, part);
    }
    parse_kohya(stem, part).or_else(|| Some(parse_dotted(stem, part)))
}

/// PEFT's and diffusers' names, and the original code's with dots.
fn parse_dotted(stem: &str, part: Part) -> Key {
    const PREFIXES: [(&str, Option<Target>); 6] = [
        ("base_model.model.", None),
        ("unet.", Some(Target::Unet)),
        ("diffusion_model.", Some(Target::Unet)),
        ("model.diffusion_model.", Some(Target::Unet)),
        ("text_encoder.", Some(Target::TextEncoder)),
        ("text_encoder_2.", Some(Target::TextEncoder2)),
    ];
    let (mut path, mut target) = (stem, None);
    while let Some((rest, found)) = PREFIXES.iter().find_map(|(p, t)| Some((path.strip_prefix(p)?, *t))) {
        (path, target) = (rest, found.or(target));
    }
    let is_text =
        ["text_model.", "text_projection", "encoder.layers."].iter().any(|start| path.starts_with(start));
    let place = match target {
        Some(target) => Place::In(target),
        None if is_text => Place::SomeTextEncoder,
        None => Place::In(Target::Unet),
    };
    let format = if path.contains(".processor.") {
        Format::AttentionProcessors
    } else if stem.starts_with("base_model.model.") {
        Format::Peft
    } else {
        Format::Diffusers
    };
    let path = attention_projection(path, place != Place::In(Target::Unet));
    Key { format, place, layer: LayerName::Named(path.replace('.', "_")), path, part }
}

fn split_part(key: &str) -> Option<(&str, Part)> {
    for (infix, part) in PEFT_PARTS {
        if let Some((stem, rest)) = key.rsplit_once(infix)
            && (rest == "weight" || rest.ends_with(".weight"))
        {
            return Some((stem, part));
        }
    }
    PARTS.iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, *part)))
}

fn parse_kohya(stem: &str, part: Part) -> Option<Key> {
    const PREFIXES: [(&str, Target); 5] = [
        ("lora_unet_", Target::Unet),
        ("lora_te_", Target::TextEncoder),
        ("lora_te1_", Target::TextEncoder),
        ("lora_te2_", Target::TextEncoder2),
        ("lycoris_", Target::Unet),
    ];
    let (name, target) = PREFIXES.iter().find_map(|(prefix, t)| Some((stem.strip_prefix(prefix)?, *t)))?;
    Some(Key {
        format: Format::Kohya,
        place: Place::In(target),
        layer: LayerName::Named(name.replace('.', "_")),
        path: name.to_owned(),
        part,
    })
}

fn parse_cloneofsimo(stem: &str, part: Part) -> Option<Key> {
    let (component, number) = stem.split_once(':')?;
    let target = match component {
        "unet" => Target::Unet,
        "text_encoder" => Target::TextEncoder,
        _ => return None,
    };
    Some(Key {
        format: Format::Cloneofsimo,
        place: Place::In(target),
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
        let unet = Place::In(Target::Unet);
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
            let expected = (unet, LayerName::Named(to_out.to_owned()), Part::Down);
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
    fn what_is_no_part_of_a_lora_is_not_understood() {
        for key in
            ["<s1>", "conv_in.weight", "lora_unet_conv_in.diff_b", "unet:x:down", "vae:0:down", "emb_params"]
        {
            assert_eq!(parse(key), None, "{key}");
        }
        assert_eq!(parse("unet:12:down").unwrap().layer, LayerName::Numbered(12));
    }
}
