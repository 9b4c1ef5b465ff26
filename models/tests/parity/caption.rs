//! Captions against transformers' BLIP (`tests/reference/caption.py`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aquatint_models::caption::{Blip, BlipConfig, Captioner, Detokenizer, Preprocessor};
use aquatint_models::checkpoint::{ModelFolder, Weights, synthetic};
use candle_core::{Device, Tensor};
use image::RgbImage;

use crate::common::{Fixture, assert_close, max_difference};

const PICTURES: usize = 4;
const FILES: [&str; 5] =
    ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"];

fn blip(fixture: &Fixture) -> Blip {
    let config: BlipConfig = serde_json::from_str(fixture.text("config.json")).unwrap();
    Blip::new(config, &Weights::synthetic("blip", seed(fixture), &Device::Cpu)).unwrap()
}

fn seed(fixture: &Fixture) -> u64 {
    fixture.text("seed").parse().unwrap()
}

fn picture(fixture: &Fixture, i: usize) -> RgbImage {
    let pixels = fixture.tensor(&format!("{i}.picture"));
    let (height, width, _) = pixels.dims3().unwrap();
    let bytes =
        pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(|v| v as u8).collect();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

fn ids(fixture: &Fixture, i: usize) -> Vec<u32> {
    let ids = fixture.tensor(&format!("{i}.ids")).to_vec1::<i64>().unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

fn captions(fixture: &Fixture) -> Vec<String> {
    serde_json::from_str(fixture.text("captions")).unwrap()
}

/// A folder as transformers saves it, removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, fixture: &Fixture) -> Self {
        let folder = std::env::temp_dir().join(format!("aquatint-caption-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for file in FILES {
            std::fs::write(folder.join(file), fixture.text(file)).unwrap();
        }
        let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(fixture.text("shapes")).unwrap();
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let values = synthetic::tensor(&name, &shape, seed(fixture));
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        };
        let tensors: HashMap<_, _> = shapes.into_iter().map(tensor).collect();
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn load(&self) -> aquatint_models::Result<Captioner> {
        Captioner::load(&self.0, &Device::Cpu)
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.0.join(file)).unwrap();
    }

    /// What loading says once `from` in a file has become `to`; the file is put back.
    fn refusal(&self, file: &str, from: &str, to: &str) -> String {
        let path = self.0.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} holds no {from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = self.load().unwrap_err().to_string();
        std::fs::write(&path, text).unwrap();
        assert!(error.contains(file), "{error}");
        error
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn pixel_values_are_those_of_pillow() {
    let fixture = Fixture::open("caption");
    let preprocessor: Preprocessor = serde_json::from_str(fixture.text("preprocessor_config.json")).unwrap();
    for i in 0..PICTURES {
        let values = preprocessor.pixel_values(&picture(&fixture, i), &Device::Cpu).unwrap();
        // A level of 255 is 0.015 here: not one may be off.
        assert_close(&format!("picture {i}"), &values, &fixture.tensor(&format!("{i}.pixel_values")), 1e-6);
    }
}

#[test]
fn logits_and_ids_are_those_of_transformers() {
    let fixture = Fixture::open("caption");
    let blip = blip(&fixture);
    for i in 0..PICTURES {
        let image_embeds = blip.encode(&fixture.tensor(&format!("{i}.pixel_values"))).unwrap();
        let logits = blip.first_logits(&image_embeds).unwrap();
        let expected = fixture.tensor(&format!("{i}.logits"));
        println!("picture {i}: logits differ by {:e}", max_difference(&logits, &expected));
        assert_close(&format!("picture {i}"), &logits, &expected, 1e-4);
        assert_eq!(blip.generate(&image_embeds).unwrap(), ids(&fixture, i), "picture {i}");
    }
}

#[test]
fn a_published_folder_gives_each_picture_its_own_caption() {
    let fixture = Fixture::open("caption");
    let folder = Folder::new("published", &fixture);
    let captioner = folder.load().unwrap();
    let captions_of = |captioner: &Captioner| -> Vec<String> {
        (0..PICTURES).map(|i| captioner.caption(&picture(&fixture, i)).unwrap()).collect()
    };
    assert_eq!(captions_of(&captioner), captions(&fixture));
    assert_eq!(captions_of(&captioner), captions(&fixture), "a caption must not depend on earlier ones");
    for i in 1..PICTURES {
        assert_ne!(captions(&fixture)[i], captions(&fixture)[0], "the fixture has too few captions");
    }
    folder.remove("tokenizer.json");
    folder.remove("tokenizer_config.json");
    assert_eq!(captions_of(&folder.load().unwrap()), captions(&fixture), "from vocab.txt alone");
}

#[test]
fn special_tokens_and_loose_spaces_go_as_in_transformers() {
    let fixture = Fixture::open("caption");
    let folder = Folder::new("decoding", &fixture);
    let recorded: serde_json::Value = serde_json::from_str(fixture.text("decoding")).unwrap();
    let ids: Vec<u32> = serde_json::from_value(recorded["ids"].clone()).unwrap();
    let text = || {
        let folder = ModelFolder::Disk(folder.path().to_owned());
        Detokenizer::load(&folder).unwrap().text(&ids).unwrap()
    };
    assert_eq!(text(), recorded["cleaned"], "tokenizer_config.json asks for it");
    folder.remove("tokenizer_config.json");
    assert_eq!(text(), recorded["plain"], "the default with tokenizer.json");
    folder.remove("tokenizer.json");
    assert_eq!(text(), recorded["cleaned"], "the default with vocab.txt");
    assert_ne!(recorded["plain"], recorded["cleaned"]);
}

#[test]
fn what_does_not_fit_is_refused_by_file_and_reason() {
    let fixture = Fixture::open("caption");
    let folder = Folder::new("refused", &fixture);
    let refused = |file: &str, from: &str, to: &str, reason: &str| {
        let error = folder.refusal(file, from, to);
        assert!(error.contains(reason), "{from} -> {to}: {error}");
    };
    let config = "config.json";
    refused(config, "\"image_size\": 48", "\"image_size\": 8", "image_size 8 with patch_size 16");
    refused(config, "\"patch_size\": 16", "\"patch_size\": 0", "patch_size 0");
    refused(config, "\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "into 0 heads");
    refused(
        config,
        "\"num_attention_heads\": 4",
        "\"num_attention_heads\": 3",
        "hidden_size 40 does not divide into 3 heads",
    );
    refused(config, "\"bos_token_id\": ", "\"bos_token_id\": 9", "is beyond vocab_size");
    refused(config, "\"max_position_embeddings\": 24", "\"max_position_embeddings\": 1", "at least 2");
    refused(config, "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"gelo\"", "gelo");
    let preprocessor = "preprocessor_config.json";
    refused(preprocessor, "\"resample\": 3", "\"resample\": 2", "resample is 2");
    refused(preprocessor, "\"height\": 48", "\"height\": 64", "48 x 64, the model's image_size is 48");
    refused(preprocessor, "\"do_normalize\": true", "\"do_normalize\": false", "do_normalize is false");
    refused("tokenizer.json", "{", "[", "tokenizer.json");

    let weights = |from: &str, to: &str| {
        let path = folder.path().join(config);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = folder.load().unwrap_err().to_string();
        std::fs::write(&path, text).unwrap();
        error
    };
    let error = weights("\"intermediate_size\": 48", "\"intermediate_size\": 64");
    assert!(
        error.contains("model.safetensors: tensor vision_model.encoder.layers.0.mlp.fc1.weight"),
        "{error}"
    );
    assert!(error.contains("has shape [48, 40], this config needs [64, 40]"), "{error}");
    let error = weights("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(error.contains("no tensor vision_model.encoder.layers.2"), "{error}");

    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("pytorch_model.bin"))
        .unwrap();
    let error = folder.load().unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin: this is a Python pickle"), "{error}");
    folder.remove(config);
    assert!(folder.load().unwrap_err().to_string().contains("config.json"));
    let error = Captioner::load(&folder.path().join("none"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
}

#[test]
fn a_picture_without_pixels_is_refused() {
    let fixture = Fixture::open("caption");
    let captioner = Folder::new("empty", &fixture).load().unwrap();
    assert!(captioner.caption(&RgbImage::new(0, 7)).unwrap_err().to_string().contains("(0, 7)"));
}
