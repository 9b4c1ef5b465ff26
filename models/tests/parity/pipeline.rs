//! Whole pictures against diffusers' (`tests/reference/pipeline.py`): the same model folder, the same request, the
//! same seed. No pixel may differ by more than 2 levels, and 99 % by none or one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use aquatint_models::checkpoint::synthetic;
use aquatint_models::pipeline::{
    Family, GenerationRequest, LoadOptions, LoraChoice, Mode, ModelSource, Pipeline,
};
use candle_core::Tensor;
use image::{GrayImage, Luma, Rgb, RgbImage};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::common::Fixture;

/// A model folder written from a fixture, and the pipeline loaded from it.
pub(crate) struct Model {
    name: String,
    fixture: Fixture,
    cases: BTreeMap<String, Value>,
    pipeline: Pipeline,
}

impl Model {
    pub(crate) fn load(name: &str) -> Self {
        Self::load_with(name, LoadOptions::default())
    }

    fn load_with(name: &str, options: LoadOptions) -> Self {
        let fixture = Fixture::open(&format!("pipeline_{name}"));
        let folder = write_folder(&fixture, name);
        let cases = serde_json::from_str(fixture.text("cases")).unwrap();
        let pipeline = Pipeline::load(&ModelSource::Folder(folder), &options).unwrap();
        Self { name: name.to_owned(), fixture, cases, pipeline }
    }

    /// The recorded request of a case.
    pub(crate) fn request(&self, case: &str) -> GenerationRequest {
        let flux = self.pipeline.info().family == Family::Flux;
        request(&self.cases[case], if flux { 3.5 } else { 5.0 })
    }

    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The picture of a case, after `change` has had its way with the request.
    pub(crate) fn picture(&self, case: &str, change: impl FnOnce(&mut GenerationRequest)) -> RgbImage {
        let mut request = self.request(case);
        change(&mut request);
        self.pipeline.generate(&request).unwrap()
    }

    fn check(&mut self, case: &str) {
        let scale = self.cases[case].get("lora").and_then(Value::as_f64);
        self.merge(scale);
        let (beyond_1, worst) = self.compare(case, &self.picture(case, |_| {}));
        assert!(
            worst <= 2 && beyond_1 <= 0.01,
            "{case}: {:.2} % differ by more than 1, the worst by {worst}",
            beyond_1 * 100.0
        );
    }

    /// Merges the recorded LoRA with this scale, or takes it out.
    fn merge(&mut self, scale: Option<f64>) {
        let file = format!("tests/fixtures/pipeline_{}_lora.safetensors", self.name);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let loras: Vec<_> = scale.map(|scale| LoraChoice::new(path, scale)).into_iter().collect();
        for report in self.pipeline.set_loras(&loras).unwrap() {
            assert!(report.unmatched.is_empty(), "{:?}", report.unmatched);
        }
    }

    /// The part of values that differ by more than one level, and the largest difference.
    pub(crate) fn compare(&self, case: &str, ours: &RgbImage) -> (f64, u8) {
        differences(&self.fixture.tensor(case), ours)
    }
}

/// The part of values that differ by more than one level from a recorded picture, and the largest difference.
pub(crate) fn differences(expected: &Tensor, ours: &RgbImage) -> (f64, u8) {
    let (height, width, _) = expected.dims3().unwrap();
    assert_eq!((ours.width() as usize, ours.height() as usize), (width, height), "the size differs");
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    let differences: Vec<u8> =
        ours.as_raw().iter().zip(expected).map(|(&a, b)| a.abs_diff(b as u8)).collect();
    let beyond = differences.iter().filter(|&&d| d > 1).count() as f64 / differences.len() as f64;
    (beyond, differences.into_iter().max().unwrap())
}

/// Writes the model folder that the fixture describes; tests run side by side, so each call has its own.
pub(crate) fn write_folder(fixture: &Fixture, name: &str) -> PathBuf {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pipelines/{name}-{call}"));
    let _ = std::fs::remove_dir_all(&root);
    let model: BTreeMap<String, Value> = serde_json::from_str(fixture.text("model")).unwrap();
    let shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(fixture.text("shapes")).unwrap();
    let seed: u64 = fixture.text("seed").parse().unwrap();
    for (part, config) in &model {
        let file = match part.as_str() {
            "model_index" => "model_index.json".to_owned(),
            "scheduler" => "scheduler/scheduler_config.json".to_owned(),
            component => format!("{component}/config.json"),
        };
        std::fs::create_dir_all(root.join(&file).parent().unwrap()).unwrap();
        std::fs::write(root.join(file), config.to_string()).unwrap();
    }
    for (component, shapes) in &shapes {
        let seed = if component == "text_encoder_2" { seed + 1 } else { seed };
        let tensors: BTreeMap<_, _> =
            shapes.iter().map(|(k, shape)| (k.as_str(), (shape.clone(), bytes(k, shape, seed)))).collect();
        let views =
            tensors.iter().map(|(k, (s, b))| (*k, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
        let file = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
        let path = root.join(component).join(format!("{file}.safetensors"));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
    let tokenizers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let flux = model.contains_key("transformer");
    if flux {
        std::fs::create_dir_all(root.join("tokenizer_2")).unwrap();
        let file = "tokenizer_2/tokenizer.json";
        std::fs::copy(tokenizers.join("t5_tokenizer/tokenizer.json"), root.join(file)).unwrap();
    }
    for (to, from) in [("tokenizer", "tokenizer"), ("tokenizer_2", "tokenizer_2")].into_iter().take(if flux {
        1
    } else {
        2
    }) {
        std::fs::create_dir_all(root.join(to)).unwrap();
        for file in ["vocab.json", "merges.txt"] {
            std::fs::copy(tokenizers.join("tokenizer").join(file), root.join(to).join(file)).unwrap();
        }
        let map = "special_tokens_map.json";
        std::fs::copy(tokenizers.join(from).join(map), root.join(to).join(map)).unwrap();
    }
    root
}

fn bytes(name: &str, shape: &[usize], seed: u64) -> Vec<u8> {
    synthetic::tensor(name, shape, seed).iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The recorded request in our words.
pub(crate) fn request(case: &Value, default_guidance: f64) -> GenerationRequest {
    let number = |key: &str| case.get(key).and_then(Value::as_f64);
    let pair =
        |key: &str| case.get(key).map(|v| (v[0].as_u64().unwrap() as usize, v[1].as_u64().unwrap() as usize));
    let (height, width) = (number("height").unwrap_or(64.0) as u32, number("width").unwrap_or(64.0) as u32);
    let mut request = GenerationRequest::new(case["prompt"].as_str().unwrap(), 7);
    request.negative_prompt = case.get("negative_prompt").map(|v| v.as_str().unwrap().to_owned());
    request.width = Some(width as usize);
    request.height = Some(height as usize);
    request.num_inference_steps = Some(number("num_inference_steps").unwrap_or(6.0) as usize);
    request.guidance_scale = number("guidance_scale").or(Some(default_guidance));
    request.true_cfg_scale = number("true_cfg_scale");
    request.max_sequence_length = number("max_sequence_length").map(|n| n as usize);
    request.scheduler = case.get("scheduler").map(|v| v.as_str().unwrap().to_owned());
    request.clip_skip = number("clip_skip").unwrap_or(0.0) as usize;
    request.micro_conditioning.original_size = pair("original_size");
    request.micro_conditioning.crops_coords_top_left = pair("crops_coords_top_left").unwrap_or_default();
    request.micro_conditioning.target_size = pair("target_size");
    let strength = number("strength").unwrap_or(1.0);
    let (image, mask) = picture(width, height);
    request.mode = match case.get("mode").and_then(Value::as_str) {
        Some("img2img") => Mode::ImageToImage { image, strength },
        Some("inpaint") => Mode::Inpaint { image, mask, strength },
        _ => Mode::TextToImage,
    };
    request
}

/// The formula of `picture` in the recording script.
fn picture(width: u32, height: u32) -> (RgbImage, GrayImage) {
    let byte = |v: u32| v as u8;
    let image = RgbImage::from_fn(width, height, |x, y| {
        Rgb([byte(x * 255 / width), byte(y * 255 / height), byte((x * 5 + y * 3) % 256)])
    });
    let mask = GrayImage::from_fn(width, height, |x, y| {
        let (dx, dy) = (f64::from(x) - f64::from(width) / 2.0, f64::from(y) - f64::from(height) / 2.0);
        let inside = dx * dx + dy * dy < (f64::from(width.min(height)) / 3.0).powi(2);
        Luma([if inside { 255 } else { 0 }])
    });
    (image, mask)
}

pub(crate) fn check_all(name: &str) {
    let mut model = Model::load(name);
    for case in model.cases.clone().keys() {
        model.check(case);
    }
}

#[test]
fn sd15() {
    check_all("sd15");
}

#[test]
fn sd21_v_prediction() {
    check_all("sd21");
}

#[test]
fn sd15_nine_channel_inpainting() {
    check_all("sd15_inpaint");
}

#[test]
fn sdxl() {
    check_all("sdxl");
}

#[test]
fn sdxl_nine_channel_inpainting() {
    check_all("sdxl_inpaint");
}

#[test]
fn sdxl_refiner_alone_and_after_the_base() {
    Model::load("refiner").check("alone");
    let recorded = Model::load("refiner");
    let refiner = write_folder(&recorded.fixture, "refiner_as_second_stage");
    let mut base = Model::load_with("sdxl", LoadOptions { refiner: Some(refiner), ..Default::default() });
    base.cases = recorded.cases;
    base.fixture = recorded.fixture;
    base.check("after_base");
}

/// The folder's own components under other names, then ones that do not fit.
#[test]
fn one_component_is_replaced() {
    let fixture = Fixture::open("pipeline_sd15");
    let other = write_folder(&fixture, "other_components");
    let unet = other.join("unet/diffusion_pytorch_model.safetensors");
    let options =
        |vae: PathBuf| LoadOptions { unet: Some(unet.clone()), vae: Some(vae), ..Default::default() };
    // Garbage in the folder's own place shows that it is not read.
    for vae in [other.join("vae"), other.join("vae/diffusion_pytorch_model.safetensors")] {
        let folder = write_folder(&fixture, "sd15_without_weights");
        for component in ["unet", "vae"] {
            std::fs::write(folder.join(component).join("diffusion_pytorch_model.safetensors"), "garbage")
                .unwrap();
        }
        let pipeline = Pipeline::load(&ModelSource::Folder(folder), &options(vae)).unwrap();
        let cases = serde_json::from_str(fixture.text("cases")).unwrap();
        let fixture = Fixture::open("pipeline_sd15");
        Model { name: "sd15".to_owned(), fixture, cases, pipeline }.check("txt2img");
    }
    let sdxl = write_folder(&Fixture::open("pipeline_sdxl"), "sdxl_for_sd15");
    let refused =
        Pipeline::load(&ModelSource::Folder(sdxl), &options(other.join("vae"))).unwrap_err().to_string();
    assert!(refused.contains("other_components") && refused.contains("add_embedding"), "{refused}");
}

#[test]
fn tiles_are_used_when_asked_for() {
    let larger = |r: &mut GenerationRequest| r.width = Some(128);
    let whole = Model::load("sd15").picture("txt2img", larger);
    let tiled = Model::load_with("sd15", LoadOptions { vae_tiling: true, ..Default::default() });
    let tiled = tiled.picture("txt2img", larger);
    assert_eq!(tiled.dimensions(), whole.dimensions());
    assert_ne!(tiled, whole, "tiles see less of the picture, so some pixel must differ");
}

#[test]
fn what_is_no_number_is_an_error_and_no_black_picture() {
    let fixture = Fixture::open("pipeline_sd15");
    let request = Model::load("sd15").request("txt2img");
    for (component, file, said) in [
        ("text_encoder", "model", "the latents after step 1 are not finite"),
        ("unet", "diffusion_pytorch_model", "the latents after step 1 are not finite"),
        ("vae", "diffusion_pytorch_model", "the decoded picture is not finite"),
    ] {
        let folder = write_folder(&fixture, &format!("sd15_no_number_{component}"));
        let path = folder.join(component).join(format!("{file}.safetensors"));
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        // In f32, all ones is NaN.
        bytes[header..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        let pipeline = Pipeline::load(&ModelSource::Folder(folder), &LoadOptions::default()).unwrap();
        let error = pipeline.generate(&request).map(drop).unwrap_err().to_string();
        assert!(error.contains(said), "{component}: {error}");
    }
}

/// Each change must move the picture beyond the tolerance, or the fixtures would not show an error in that input.
#[test]
fn the_fixtures_notice_every_input() {
    type Change = fn(&mut GenerationRequest);
    let changes: [(&str, Change); 5] = [
        ("prompt", |r| r.prompt = r.prompt.replace("red", "blue")),
        ("seed", |r| r.seed += 1),
        ("step count", |r| *r.num_inference_steps.as_mut().unwrap() += 1),
        ("guidance by 0.5", |r| *r.guidance_scale.as_mut().unwrap() += 0.5),
        ("original_size", |r| r.micro_conditioning.original_size = Some((72, 64))),
    ];
    for (name, count) in [("sd15", 4), ("sdxl", 5)] {
        let mut model = Model::load(name);
        for case in ["txt2img", "img2img", "inpaint"] {
            for (what, change) in &changes[..count] {
                let (beyond_1, worst) = model.compare(case, &model.picture(case, change));
                assert!(worst > 2 || beyond_1 > 0.01, "{name} {case}: another {what} goes unnoticed");
            }
        }
        model.merge(Some(0.9));
        let (beyond_1, worst) = model.compare("lora", &model.picture("lora", |_| {}));
        assert!(worst > 2 || beyond_1 > 0.01, "{name}: a LoRA scale of 0.9 for 0.8 goes unnoticed");
    }
}
