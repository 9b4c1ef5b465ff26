//! Which files of published repositories are taken. The listings are the repositories' own; a mark says what is wanted:
//! `f` where the full weights are, `h` where 16 bits are, `*` in both cases.

use aquatint::weights::choose::{Variant, component, pipeline, single_file};
use serde_json::{Value, json};

fn stable_diffusion() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn sdxl() -> Value {
    json!({
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": true, "add_watermarker": null,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn flux() -> Value {
    json!({
        "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0",
        "feature_extractor": [null, null], "image_encoder": [null, null],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// The paths of a listing, and those of them that are wanted.
fn read(text: &str, mark: char) -> (Vec<String>, Vec<String>) {
    let all = text.lines().map(|line| line[2..].to_owned()).collect();
    let wanted = text.lines().filter(|line| line.starts_with([mark, '*'])).map(|line| line[2..].to_owned());
    (all, wanted.collect())
}

#[test]
fn of_published_repositories_the_fewest_files_are_taken() {
    for (name, text, index) in [
        ("SD 1.5", include_str!("layouts/stable-diffusion-v1-5.txt"), stable_diffusion()),
        ("SDXL", include_str!("layouts/stable-diffusion-xl-base-1.0.txt"), sdxl()),
        ("FLUX.1 dev", include_str!("layouts/FLUX.1-dev.txt"), flux()),
        ("FLUX.1 schnell", include_str!("layouts/FLUX.1-schnell.txt"), flux()),
    ] {
        for (variant, mark) in [(Variant::Full, 'f'), (Variant::Half, 'h')] {
            let (listing, mut wanted) = read(text, mark);
            let mut chosen = pipeline(&listing, &index, &variant).unwrap();
            chosen.sort();
            wanted.sort();
            assert_eq!(chosen, wanted, "{name}, {variant:?}");
        }
    }
}

#[test]
fn what_is_missing_or_a_pickle_is_named() {
    let (listing, _) = read(include_str!("layouts/FLUX.1-dev.txt"), 'f');
    for (gone, named) in [
        ("vae/config.json", "vae/config.json"),
        ("text_encoder/model.safetensors", "text_encoder has no weights"),
        ("transformer/diffusion_pytorch_model-00002-of-00003.safetensors", "part 2 of 3"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", "index.json is missing"),
    ] {
        let listing: Vec<_> = listing.iter().filter(|file| *file != gone).cloned().collect();
        let error = pipeline(&listing, &flux(), &Variant::Full).unwrap_err();
        assert!(error.contains(named), "{gone}: {error}");
    }
    let (listing, _) = read(include_str!("layouts/stable-diffusion-v1-5.txt"), 'f');
    let pickles: Vec<_> = listing.iter().filter(|file| !file.ends_with(".safetensors")).cloned().collect();
    let error = pipeline(&pickles, &stable_diffusion(), &Variant::Full).unwrap_err();
    assert!(error.contains("text_encoder") && error.contains("pickle"), "{error}");
}

#[test]
fn where_only_one_variant_is_there_it_is_taken() {
    let (listing, _) = read(include_str!("layouts/stable-diffusion-xl-base-1.0.txt"), 'f');
    let only = |part: &str| -> Vec<String> {
        let other =
            |file: &String| file.ends_with(".safetensors") && file.contains("fp16") != (part == "fp16");
        listing.iter().filter(|file| !other(file)).cloned().collect()
    };
    let chosen = pipeline(&only("fp16"), &sdxl(), &Variant::Full).unwrap();
    assert!(chosen.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".to_owned()), "{chosen:?}");
    let chosen = pipeline(&only("full"), &sdxl(), &Variant::Half).unwrap();
    assert!(chosen.contains(&"unet/diffusion_pytorch_model.safetensors".to_owned()), "{chosen:?}");
}

#[test]
fn parts_of_a_variant_stay_together() {
    let listing = [
        "t/config.json",
        "t/model-00001-of-00002.safetensors",
        "t/model-00002-of-00002.safetensors",
        "t/model.fp16-00001-of-00002.safetensors",
        "t/model.fp16-00002-of-00002.safetensors",
        "t/model.safetensors.index.fp16.json",
        "t/model.safetensors.index.json",
    ]
    .map(str::to_owned);
    let chosen = component(&listing, "t", &Variant::Half).unwrap();
    let expected = [
        "t/config.json",
        "t/model.safetensors.index.fp16.json",
        "t/model.fp16-00001-of-00002.safetensors",
        "t/model.fp16-00002-of-00002.safetensors",
    ];
    assert_eq!(chosen, expected);
}

#[test]
fn one_model_alone_is_its_config_and_its_weights() {
    let listing = [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
        "sdxl_vae.safetensors",
    ];
    let listing = listing.map(str::to_owned);
    let chosen = component(&listing, "", &Variant::Half).unwrap();
    assert_eq!(chosen, ["config.json", "diffusion_pytorch_model.safetensors"]);
}

#[test]
fn one_file_is_the_named_or_the_only_one() {
    let of = |files: &[&str], named: Option<&str>| {
        single_file(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>(), named)
    };
    assert_eq!(of(&["README.md", "ink.safetensors"], None).unwrap(), "ink.safetensors");
    assert_eq!(
        of(&["a.safetensors", "pytorch_lora_weights.safetensors"], None).unwrap(),
        "pytorch_lora_weights.safetensors"
    );
    assert_eq!(
        of(&["old/a.safetensors", "ink.safetensors"], None).unwrap(),
        "ink.safetensors",
        "the top comes first"
    );
    assert_eq!(of(&["old/a.safetensors"], None).unwrap(), "old/a.safetensors");
    assert_eq!(of(&["a.gguf", "b.gguf"], Some("b.gguf")).unwrap(), "b.gguf");
    assert_eq!(of(&["x/a.safetensors", "b.safetensors"], Some("x")).unwrap(), "x/a.safetensors");
    for (files, named, reason) in [
        (vec!["a.safetensors", "b.safetensors"], None, "a.safetensors, b.safetensors"),
        (vec!["README.md", "learned_embeds.bin"], None, "neither"),
        (vec!["learned_embeds.bin"], Some("learned_embeds.bin"), "can run code"),
        (vec!["a.safetensors"], Some("c.safetensors"), "no c.safetensors"),
    ] {
        let error = of(&files, named).unwrap_err();
        assert!(error.contains(reason), "{files:?}: {error}");
    }
}
