//! Single files against diffusers' own conversion (`tests/reference/single_file.py`): every key that the published
//! files have, with synthetic weights of small widths, gives diffusers' tensors bit for bit; and a picture of a single
//! file is the picture of its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use aquatint_models::checkpoint::view::Views;
use aquatint_models::checkpoint::{CheckpointFile, Component, ModelFolder, SingleFile, synthetic};
use aquatint_models::text::Tokenizer;
use aquatint_models::text::t5::T5Tokenizer;
use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::common::Fixture;

pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

/// The keys of a published file, of which a line says how much it has in common with the one before.
pub(crate) fn shapes(family: &str) -> Shapes {
    let fixture = Fixture::open(&format!("single_file_{family}"));
    let (mut shapes, mut last) = (Shapes::new(), String::new());
    for line in fixture.text("keys").split('\n') {
        let [common, rest, shape] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        last = format!("{}{rest}", &last[..common.parse::<usize>().unwrap()]);
        let shape = shape.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
        shapes.insert(last.clone(), shape);
    }
    shapes
}

/// Writes a file of synthetic weights, each call another.
pub(crate) fn write(name: &str, shapes: &Shapes, metadata: &[(&str, &str)]) -> PathBuf {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("single_files/{call}"));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.safetensors"));
    let bytes = |name: &str, shape: &[usize]| -> Vec<u8> {
        synthetic::tensor(name, shape, 0).iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let data: BTreeMap<_, _> = shapes.iter().map(|(name, shape)| (name, bytes(name, shape))).collect();
    let views = shapes.iter().map(|(name, shape)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &data[name]).unwrap())
    });
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
    path
}

/// A hash of each tensor with its name and shape, in the order of names, as the reference recorded them.
pub(crate) fn hashes(views: &Views) -> String {
    let hash = |name: &String| {
        let tensor = views.read(name).unwrap().tensor(&Device::Cpu).unwrap();
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let head = format!("{name} {:?} ", views.shape(name).unwrap());
        let bytes = head.into_bytes().into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes()));
        let fnv =
            bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        format!("{:08x}", fnv & 0xffff_ffff)
    };
    views.names().map(hash).collect()
}

/// The hashes of diffusers' tensors, by component.
pub(crate) fn recorded(family: &str) -> BTreeMap<String, String> {
    serde_json::from_str(Fixture::open(&format!("single_file_{family}")).text("hashes")).unwrap()
}

/// What of each component does not equal diffusers', of a file that has all keys.
pub(crate) fn differing(family: &str, path: &Path) -> Vec<String> {
    let recorded = recorded(family);
    let file = SingleFile::open(path).unwrap();
    let components: Vec<_> = file.components().map(Component::folder).collect();
    let mut expected: Vec<_> = recorded.keys().map(String::as_str).collect();
    expected.sort_by_key(|folder| Component::of_folder(folder));
    assert_eq!(components, expected, "{family}");
    assert!(file.missing().is_empty(), "{family}");
    let mut differing = Vec::new();
    for (component, recorded) in recorded {
        let component = Component::of_folder(&component).unwrap();
        let views = Views::of_component(component, vec![CheckpointFile::open(path).unwrap()]).unwrap();
        let ours = hashes(&views);
        if ours.len() != recorded.len() {
            differing.push(format!("{component:?}: {} of {} tensors", ours.len() / 8, recorded.len() / 8));
            continue;
        }
        for (i, name) in views.names().enumerate() {
            if ours[8 * i..8 * i + 8] != recorded[8 * i..8 * i + 8] {
                differing.push(name.clone());
            }
        }
    }
    differing
}

#[test]
fn every_key_of_published_files_gives_diffusers_tensors() {
    let families = [
        ("sd1", "sd15", 1130),
        ("sd2", "sd21", 1168),
        ("sdxl", "sdxl", 2448),
        ("refiner", "sdxl-refiner", 1792),
        ("flux", "flux-dev", 780 + 244 + 196 + 219),
    ];
    for (family, like, at_least) in families {
        let shapes = shapes(family);
        assert!(shapes.len() >= at_least, "{family}: {}", shapes.len());
        let path = write(family, &shapes, &[]);
        assert_eq!(differing(family, &path), Vec::<String>::new(), "{family}");
        assert_eq!(SingleFile::open(&path).unwrap().like().name, like);
    }
}

/// The hashes notice a tensor whose rows are others, and one that is missing.
#[test]
fn the_hashes_notice_one_tensor() {
    let mut keys = shapes("sd1");
    let (q, k) = ["to_q", "to_k"]
        .map(|part| format!("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.{part}.weight"))
        .into();
    assert_eq!(keys[&q], keys[&k]);
    keys.remove(&q);
    let without = write("sd1", &keys, &[]);
    assert_eq!(differing("sd1", &without), ["Unet: 685 of 686 tensors"]);
    keys.insert(q, vec![16, 64]);
    assert_eq!(differing("sd1", &write("sd1", &keys, &[])).len(), 1);
}

/// What shapes tell, beside the widths that are small here, is what the published configs say.
#[test]
fn configs_follow_from_shapes() {
    let published = |file: &str| -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("published").join(file);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let layers = |n: [usize; 4]| json!(n);
    for (family, unet, vae, encoders, transformer_layers, prompt_channels) in [
        ("sd1", "sd15/unet.json", "sd15/vae.json", vec!["sd15/text_encoder.json"], layers([1, 1, 1, 1]), 8),
        ("sd2", "sd21/unet.json", "sd15/vae.json", vec!["sd21/text_encoder.json"], layers([1, 1, 1, 1]), 12),
        (
            "sdxl",
            "sdxl/unet.json",
            "sdxl/vae.json",
            vec!["sdxl/text_encoder.json", "sdxl/text_encoder_2.json"],
            json!([1, 2, 10]),
            20,
        ),
        (
            "refiner",
            "sdxl/unet_refiner.json",
            "sdxl/vae.json",
            vec!["sdxl/text_encoder_2.json"],
            layers([1, 4, 4, 4]),
            12,
        ),
    ] {
        let file = SingleFile::open(write(family, &shapes(family), &[])).unwrap();
        let config = |file: &SingleFile, name: &str| -> Value {
            serde_json::from_slice(&file.configs()[name]).unwrap()
        };
        let same = |ours: &Value, theirs: &Value, keys: &[&str]| {
            for key in keys {
                let default = if *key == "use_linear_projection" { json!(false) } else { Value::Null };
                assert_eq!(&ours[key], theirs.get(key).unwrap_or(&default), "{family}: {key}");
            }
        };
        let (ours, theirs) = (config(&file, "unet/config.json"), published(unet));
        let types = ["down_block_types", "up_block_types"];
        same(&ours, &theirs, &types);
        let scalars =
            ["layers_per_block", "in_channels", "out_channels", "use_linear_projection", "sample_size"];
        same(&ours, &theirs, &scalars);
        same(
            &ours,
            &theirs,
            &["addition_embed_type", "mid_block_type", "reverse_transformer_layers_per_block"],
        );
        assert_eq!(ours["transformer_layers_per_block"], transformer_layers, "{family}");
        assert_eq!(ours["cross_attention_dim"], prompt_channels, "{family}");
        let ours = config(&file, "vae/config.json");
        same(&ours, &published(vae), &types);
        same(&ours, &published(vae), &["layers_per_block", "latent_channels", "scaling_factor"]);
        assert_eq!(
            (&ours["block_out_channels"], &ours["use_quant_conv"]),
            (&layers([4, 8, 16, 16]), &json!(true))
        );
        for theirs in encoders {
            let second = theirs.contains("encoder_2");
            let ours = if second { "text_encoder_2/config.json" } else { "text_encoder/config.json" };
            let keys = ["num_hidden_layers", "hidden_act", "architectures", "max_position_embeddings"];
            same(&config(&file, ours), &published(theirs), &keys);
            assert_eq!(config(&file, ours)["vocab_size"], 64);
        }
    }
    let file = SingleFile::open(write("flux", &shapes("flux"), &[])).unwrap();
    let config = |name: &str| -> Value { serde_json::from_slice(&file.configs()[name]).unwrap() };
    let transformer = config("transformer/config.json");
    assert_eq!((&transformer["num_layers"], &transformer["num_single_layers"]), (&json!(19), &json!(38)));
    assert_eq!(
        (&transformer["attention_head_dim"], &transformer["num_attention_heads"]),
        (&json!(4), &json!(2))
    );
    assert_eq!(transformer["guidance_embeds"], true);
    let t5 = config("text_encoder_2/config.json");
    assert_eq!((&t5["num_layers"], &t5["d_kv"], &t5["d_ff"]), (&json!(24), &json!(4), &json!(16)));
    assert_eq!(config("vae/config.json")["use_quant_conv"], false);
}

/// In the order in which they are asked.
#[test]
fn what_a_unet_predicts_is_said_marked_or_guessed() {
    const TELLING: &str = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let sd2 = shapes("sd2");
    let predicts = |shapes: &Shapes, texts: &[(&str, &str)]| {
        SingleFile::open(write("model", shapes, texts)).unwrap().prediction()
    };
    assert_eq!(predicts(&sd2, &[]), "epsilon", "these offsets vary by 0.06");
    let said = [("modelspec.prediction_type", "v")];
    assert_eq!(predicts(&sd2, &said), "v_prediction");
    let mut marked = shapes("sdxl");
    assert_eq!(predicts(&marked, &[]), "epsilon");
    marked.insert("v_pred".into(), vec![0]);
    marked.insert("ztsnr".into(), vec![0]);
    assert_eq!(predicts(&marked, &[]), "v_prediction");
    let scheduler = |shapes: &Shapes| -> Value {
        let file = SingleFile::open(write("marked", shapes, &[])).unwrap();
        serde_json::from_slice(&file.configs()["scheduler/scheduler_config.json"]).unwrap()
    };
    assert_eq!(scheduler(&marked)["rescale_betas_zero_snr"], true);

    // The same file with offsets that vary by more.
    let path = write("varied", &sd2, &[]);
    let (mut bytes, file) = (std::fs::read(&path).unwrap(), CheckpointFile::open(&path).unwrap());
    let channels = file.entries()[TELLING].shape[0];
    let old: Vec<u8> =
        synthetic::tensor(TELLING, &[channels], 0).iter().flat_map(|v| v.to_le_bytes()).collect();
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    for (i, value) in bytes[at..at + old.len()].chunks_exact_mut(4).enumerate() {
        value.copy_from_slice(&(if i % 2 == 0 { 0.1f32 } else { -0.1 }).to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(SingleFile::open(&path).unwrap().prediction(), "v_prediction");
}

/// The golden ids of the published tokenizers, from the files that the program brings.
#[test]
fn the_tokenizers_of_single_files_are_the_published_ones() {
    let path = write("flux", &shapes("flux"), &[]);
    let folder = ModelFolder::open(&path).unwrap();
    let clip = Tokenizer::load(&folder, "tokenizer").unwrap();
    let ids = |text: &str| -> Vec<u32> { clip.encode(text).unwrap().into_iter().flatten().collect() };
    assert_eq!(ids("a photo of a red cat"), [320, 1125, 539, 320, 736, 2368]);
    assert_eq!((clip.bos_token_id(), clip.eos_token_id(), clip.pad_token_id()), (49406, 49407, 49407));
    let t5 = T5Tokenizer::load(&folder, "tokenizer_2").unwrap();
    assert_eq!(t5.encode("a photo of a red cat", 9).unwrap(), [3, 9, 1202, 13, 3, 9, 1131, 1712, 1]);
    let sdxl = ModelFolder::open(write("sdxl", &shapes("sdxl"), &[])).unwrap();
    assert_eq!(Tokenizer::load(&sdxl, "tokenizer_2").unwrap().pad_token_id(), 0, "`!`");
}
