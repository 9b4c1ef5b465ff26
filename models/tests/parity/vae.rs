//! The VAEs against diffusers' (`tests/reference/vae.py`).

use std::path::PathBuf;

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{ModelFolder, Weights, synthetic};
use aquatint_models::range::Range;
use aquatint_models::vae::{AutoencoderKl, AutoencoderKlConfig, picture, taesd};
use candle_core::{DType, Device, Tensor};
use image::{GrayImage, RgbImage};

use crate::common::{Fixture, assert_close, channels_last, max_difference};

const TOLERANCE: f32 = 1e-4;

fn config(fixture: &Fixture) -> AutoencoderKlConfig {
    serde_json::from_str(fixture.text("config")).unwrap()
}

fn seed(fixture: &Fixture) -> u64 {
    fixture.text("seed").parse().unwrap()
}

fn vae(fixture: &Fixture) -> AutoencoderKl {
    AutoencoderKl::new(config(fixture), &Weights::synthetic("vae", seed(fixture), &Device::Cpu)).unwrap()
}

fn images(fixture: &Fixture, name: &str) -> Tensor {
    channels_last(&fixture.tensor(name))
}

/// Both directions of a VAE give what the fixture recorded.
fn assert_equals_diffusers(what: &str, vae: &AutoencoderKl, fixture: &Fixture) {
    let gaussian = vae.encode(&images(fixture, "image")).unwrap();
    assert_close(&format!("{what}: mean"), gaussian.mode(), &images(fixture, "mean"), TOLERANCE);
    assert_close(&format!("{what}: std"), &gaussian.std, &images(fixture, "std"), TOLERANCE);
    let picture = vae.decode(&images(fixture, "latents")).unwrap();
    assert_close(&format!("{what}: picture"), &picture, &images(fixture, "picture"), TOLERANCE);
}

#[test]
fn every_config_gives_diffusers_moments_pictures_and_scaling() {
    for name in ["sd", "sdxl", "flux", "no_attention", "playground"] {
        let fixture = Fixture::open(&format!("vae_{name}"));
        let vae = vae(&fixture);
        assert_equals_diffusers(name, &vae, &fixture);
        let mean = images(&fixture, "mean");
        let scaled = vae.scale_latents(&mean).unwrap();
        assert_close(&format!("{name}: scaled"), &scaled, &images(&fixture, "scaled"), 1e-5);
        assert_close(&format!("{name}: unscaled"), &vae.unscale_latents(&scaled).unwrap(), &mean, 1e-5);
    }
}

#[test]
fn the_config_records_what_the_pipeline_needs() {
    let config = config(&Fixture::open("vae_sdxl"));
    assert_eq!((config.downscale(), config.tile_px(), config.force_upcast), (8, 32, false));
}

#[test]
fn a_sample_is_the_mean_plus_scaled_noise() {
    let fixture = Fixture::open("vae_sd");
    let gaussian = vae(&fixture).encode(&images(&fixture, "image")).unwrap();
    let expected = (&gaussian.mean + (&gaussian.std * 2.0).unwrap()).unwrap();
    let noise = gaussian.mean.ones_like().unwrap().affine(2.0, 0.0).unwrap();
    assert_close("sample", &gaussian.sample(&noise).unwrap(), &expected, 1e-6);
}

#[test]
fn tiles_give_diffusers_seams() {
    let fixture = Fixture::open("vae_tiled");
    let vae = vae(&fixture);
    for name in ["both", "one"] {
        let get = |part: &str| images(&fixture, &format!("{name}.{part}"));
        let picture = vae.decode_tiled(&get("latents"), 32).unwrap();
        assert_close(&format!("{name}: picture"), &picture, &get("picture"), TOLERANCE);
        let gaussian = vae.encode_tiled(&get("image"), 32).unwrap();
        assert_close(&format!("{name}: mean"), &gaussian.mean, &get("mean"), TOLERANCE);
        assert_close(&format!("{name}: std"), &gaussian.std, &get("std"), TOLERANCE);
        let whole = vae.decode(&get("latents")).unwrap();
        assert!(max_difference(&whole, &get("picture")) > 0.1, "{name}: tiling must show in the fixture");
    }
    // What fits in one tile is not cut.
    let latents = images(&fixture, "one.latents");
    let (whole, tile) = (vae.decode(&latents).unwrap(), vae.decode_tiled(&latents, 64).unwrap());
    assert_eq!(max_difference(&whole, &tile), 0.0);
    let refused = vae.decode_tiled(&latents, 40).unwrap_err().to_string();
    assert!(refused.contains("40 pixels: multiples of 32"), "{refused}");
}

/// A safetensors file in which each (key, name, shape) holds the synthetic values of `name`.
fn synthetic_file(keys: impl IntoIterator<Item = (String, String, Vec<usize>)>, seed: u64) -> Vec<u8> {
    planted_file(keys, seed, |_| 1.0)
}

/// The same, each value times what is planted in the tensor of its name.
fn planted_file(
    keys: impl IntoIterator<Item = (String, String, Vec<usize>)>,
    seed: u64,
    planted: fn(&str) -> f32,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (key, name, shape) in keys {
        // A projection stored as a 1x1 convolution has the values of the matrix it stands for.
        let matrix = if name.contains("attentions") && shape.len() == 4 { &shape[..2] } else { &shape };
        let start = data.len();
        let factor = planted(&name);
        let values = synthetic::tensor(&name, matrix, seed).into_iter().map(|v| v * factor);
        data.extend(values.flat_map(f32::to_le_bytes));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(key, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

/// A file in a folder of its own, which is removed when this is dropped.
struct Written(PathBuf);

impl Written {
    fn new(test: &str, bytes: &[u8]) -> Self {
        let folder = std::env::temp_dir().join(format!("aquatint-vae-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("vae.safetensors"), bytes).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.join("vae.safetensors")
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Keys = Vec<(String, String, Vec<usize>)>;

#[test]
fn files_with_the_original_names_load() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("ldm")).unwrap();
    assert!(keys.iter().any(|(old, ..)| old == "first_stage_model.decoder.up.3.block.0.conv1.weight"));
    // As in a whole checkpoint, among tensors that are none of the VAE's; and alone, without the prefix.
    let other = ["model.diffusion_model.out.2.bias".to_owned(), "loss.logvar".to_owned()];
    let checkpoint = keys.iter().cloned().chain(other.map(|k| (k.clone(), k, vec![3])));
    let strip = |key: &str| key.trim_start_matches("first_stage_model.").to_owned();
    let alone = keys.iter().map(|(old, new, shape)| (strip(old), new.clone(), shape.clone()));
    let as_diffusers = keys.iter().map(|(_, new, shape)| (new.clone(), new.clone(), shape.clone()));
    for (i, bytes) in [
        synthetic_file(checkpoint, seed(&fixture)),
        synthetic_file(alone, seed(&fixture)),
        synthetic_file(as_diffusers, seed(&fixture)),
    ]
    .iter()
    .enumerate()
    {
        let file = Written::new(&format!("original-{i}"), bytes);
        let vae = AutoencoderKl::load_file(file.path(), config(&fixture), None, &Device::Cpu).unwrap();
        assert_equals_diffusers(&format!("file {i}"), &vae, &fixture);
    }
}

#[test]
fn a_config_beside_the_file_goes_first() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("ldm")).unwrap();
    let file = Written::new("beside", &synthetic_file(keys, seed(&fixture)));
    let load = |config: &str, fallback| {
        std::fs::write(file.path().with_file_name("config.json"), config).unwrap();
        AutoencoderKl::load_file(file.path(), fallback, None, &Device::Cpu)
    };
    let fallback = AutoencoderKlConfig { scaling_factor: 0.5, ..config(&fixture) };
    assert_eq!(load(fixture.text("config"), fallback.clone()).unwrap().config().scaling_factor, 0.18215);
    assert_eq!(load(r#"{"model_type": "clip"}"#, fallback.clone()).unwrap().config().scaling_factor, 0.5);
    let refused = load(r#"{"_class_name": "AutoencoderKL", "latent_channels": "x"}"#, fallback).unwrap_err();
    assert!(refused.to_string().contains("config.json"), "{refused}");
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_the_tensor_and_both_shapes() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("ldm")).unwrap();
    let file = Written::new("misfit", &synthetic_file(keys, seed(&fixture)));
    let load =
        |config| AutoencoderKl::load_file(file.path(), config, None, &Device::Cpu).unwrap_err().to_string();
    let wide = load(AutoencoderKlConfig { block_out_channels: vec![16, 32, 32, 64], ..config(&fixture) });
    assert!(wide.contains("vae.safetensors") && wide.contains("[64, 32, 3, 3]"), "{wide}");
    let fewer = load(AutoencoderKlConfig {
        block_out_channels: vec![16, 32, 32],
        down_block_types: Vec::new(),
        up_block_types: Vec::new(),
        ..config(&fixture)
    });
    assert!(fewer.contains("[32, 32, 3, 3], this config needs [16, 32, 3, 3]"), "{fewer}");
    let less = load(AutoencoderKlConfig { use_quant_conv: false, ..config(&fixture) });
    assert!(less.contains("quant_conv.bias has no place"), "{less}");
    let groups = load(AutoencoderKlConfig { norm_num_groups: 7, ..config(&fixture) });
    assert!(groups.contains("16 channels do not divide into 7 groups"), "{groups}");
}

#[test]
fn attention_with_its_first_names_loads() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("deprecated")).unwrap();
    assert!(keys.iter().any(|(old, ..)| old == "decoder.mid_block.attentions.0.proj_attn.weight"));
    for convolutions in [false, true] {
        let keys = keys.iter().cloned().map(|(old, new, mut shape)| {
            if convolutions && new.contains("attentions") && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            (old, new, shape)
        });
        let file = SafetensorsFile::from_bytes("vae", synthetic_file(keys, seed(&fixture))).unwrap();
        let weights = Weights::from_files("vae", vec![file], None, &Device::Cpu).unwrap();
        let vae = AutoencoderKl::new(config(&fixture), &weights).unwrap();
        assert_eq!(weights.unused(), Vec::<String>::new());
        assert_equals_diffusers("first names", &vae, &fixture);
    }
}

#[test]
fn a_model_folder_loads() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("deprecated")).unwrap();
    let file = Written::new("folder", b"");
    let component = file.0.join("vae");
    std::fs::create_dir_all(&component).unwrap();
    let weights = synthetic_file(keys, seed(&fixture));
    std::fs::write(component.join("diffusion_pytorch_model.safetensors"), weights).unwrap();
    let load = |config: &str| {
        std::fs::write(component.join("config.json"), config).unwrap();
        AutoencoderKl::load(&ModelFolder::Disk(file.0.clone()), "vae", None, &Device::Cpu)
    };
    assert_equals_diffusers("folder", &load(fixture.text("config")).unwrap(), &fixture);
    let refused = load(r#"{"_class_name": "AsymmetricAutoencoderKL"}"#).unwrap_err().to_string();
    assert!(refused.contains("vae/config.json") && refused.contains("Asymmetric"), "{refused}");
}

/// 16-bit filters change a picture by their own rounding only.
#[test]
fn filters_may_be_held_in_16_bits() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("ldm")).unwrap();
    let file = Written::new("f16", &synthetic_file(keys, seed(&fixture)));
    let vae =
        AutoencoderKl::load_file(file.path(), config(&fixture), Some(DType::F16), &Device::Cpu).unwrap();
    let picture = vae.decode(&images(&fixture, "latents")).unwrap();
    let d = max_difference(&picture, &images(&fixture, "picture"));
    assert!(d > 0.0 && d < 1e-2, "{d}");
}

#[test]
fn the_fixtures_notice_one_latent_one_pixel_and_one_weight() {
    let fixture = Fixture::open("vae_sdxl");
    let weights = Weights::synthetic("vae", seed(&fixture), &Device::Cpu);
    let vae = AutoencoderKl::new(config(&fixture), &weights).unwrap();
    let (latents, image) = (images(&fixture, "latents"), images(&fixture, "image"));
    let (picture, mean) = (images(&fixture, "picture"), images(&fixture, "mean"));

    let picture_of = |latents: &Tensor| max_difference(&vae.decode(latents).unwrap(), &picture);
    let mean_of = |image: &Tensor| max_difference(&vae.encode(image).unwrap().mean, &mean);
    assert!(picture_of(&with_first_moved(&latents, 0.1)) > 100.0 * TOLERANCE);
    assert!(mean_of(&with_first_moved(&image, 1.0)) > 10.0 * TOLERANCE);

    for layer in ["decoder.mid_block.attentions.0.to_q", "decoder.up_blocks.2.resnets.1.conv2"] {
        let base = weights.base(layer).unwrap();
        weights.replace(layer, &with_first_moved(&base, 0.1)).unwrap();
        let moved = picture_of(&latents);
        assert!(moved > 10.0 * TOLERANCE, "{layer}: {moved}");
        weights.restore(layer).unwrap();
    }
    assert!(picture_of(&latents) <= TOLERANCE);
}

fn with_first_moved(x: &Tensor, by: f32) -> Tensor {
    let mut values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[0] += by;
    Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap()
}

#[test]
fn tensors_of_the_wrong_shape_are_refused() {
    let vae = vae(&Fixture::open("vae_sd"));
    let zeros = |shape: (usize, usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let text = |e: aquatint_models::Error| e.to_string();
    assert!(text(vae.encode(&zeros((1, 7, 64, 3))).unwrap_err()).contains("7 x 64 pixels"));
    assert!(text(vae.encode(&zeros((1, 64, 64, 4))).unwrap_err()).contains("4 channels"));
    assert!(text(vae.decode(&zeros((1, 8, 8, 16))).unwrap_err()).contains("16 channels"));
    assert!(text(vae.encode_tiled(&zeros((1, 60, 64, 3)), 32).unwrap_err()).contains("multiples of 8"));
}

fn assert_tiny_equals(what: &str, encoder: &taesd::Encoder, decoder: &taesd::Decoder, fixture: &Fixture) {
    let encoded = encoder.encode(&images(fixture, "image")).unwrap();
    assert_close(&format!("{what}: latents"), &encoded, &images(fixture, "encoded"), TOLERANCE);
    let latents = images(fixture, "latents");
    let picture = decoder.decode(&latents).unwrap();
    assert_close(&format!("{what}: picture"), &picture, &images(fixture, "picture"), TOLERANCE);
    let moved = decoder.decode(&with_first_moved(&latents, 1.0)).unwrap();
    assert!(max_difference(&moved, &picture) > 100.0 * TOLERANCE, "{what}: one latent must show");
}

#[test]
fn taesd_equals_diffusers() {
    let fixture = Fixture::open("vae_taesd");
    let config: taesd::AutoencoderTinyConfig = serde_json::from_str(fixture.text("config")).unwrap();
    let weights = Weights::synthetic("taesd", seed(&fixture), &Device::Cpu);
    let encoder = taesd::Encoder::new(&config, &weights).unwrap();
    let decoder = taesd::Decoder::new(&config, &weights).unwrap();
    assert_tiny_equals("synthetic", &encoder, &decoder, &fixture);

    let keys: Vec<(String, Vec<usize>)> = serde_json::from_str(fixture.text("keys")).unwrap();
    let diffusers = keys.into_iter().map(|(key, shape)| (key.clone(), key, shape));
    let bytes = synthetic_file(diffusers, seed(&fixture));
    let file = Written::new("taesd", &bytes);
    let encoder = taesd::Encoder::open(file.path(), &Device::Cpu).unwrap();
    let decoder = taesd::Decoder::open(file.path(), &Device::Cpu).unwrap();
    assert_tiny_equals("diffusers' names", &encoder, &decoder, &fixture);

    std::fs::write(file.0.join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
    std::fs::write(file.0.join("config.json"), fixture.text("config")).unwrap();
    let parent = ModelFolder::Disk(file.0.parent().unwrap().to_owned());
    let component = file.0.file_name().unwrap().to_str().unwrap();
    let both = taesd::AutoencoderTiny::load(&parent, component, &Device::Cpu).unwrap();
    assert_tiny_equals("folder", &both.encoder, &both.decoder, &fixture);
}

#[test]
fn taef2_equals_the_original() {
    let fixture = Fixture::open("vae_taef2");
    let written = |part: &str, seed: u64| {
        let keys: Vec<(String, Vec<usize>)> = serde_json::from_str(fixture.text(part)).unwrap();
        let keys = keys.into_iter().map(|(key, shape)| (key.clone(), key, shape));
        Written::new(&format!("taef2-{part}"), &synthetic_file(keys, seed))
    };
    let (encoder, decoder) = (written("encoder", 3), written("decoder", 4));
    let swapped = taesd::Decoder::open(encoder.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(swapped.contains("holds no TAESD decoder"), "{swapped}");
    let swapped = taesd::Encoder::open(decoder.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(swapped.contains("holds no TAESD encoder"), "{swapped}");
    let encoder = taesd::Encoder::open(encoder.path(), &Device::Cpu).unwrap();
    let decoder = taesd::Decoder::open(decoder.path(), &Device::Cpu).unwrap();
    assert_tiny_equals("TAEF2", &encoder, &decoder, &fixture);
}

/// With its published weights, where `AQUATINT_TEST_DATA` says they are.
#[test]
fn taef2_equals_the_original_with_trained_weights() {
    let Ok(data) = std::env::var("AQUATINT_TEST_DATA") else {
        eprintln!("skipped: AQUATINT_TEST_DATA is not set, so there are no trained weights of TAEF2");
        return;
    };
    let path = |part: &str| format!("{data}/taef2/taef2_{part}.safetensors");
    let encoder = taesd::Encoder::open(path("encoder"), &Device::Cpu).unwrap();
    let decoder = taesd::Decoder::open(path("decoder"), &Device::Cpu).unwrap();
    assert_tiny_equals("TAEF2", &encoder, &decoder, &Fixture::open("vae_taef2_real"));
}

fn bytes(fixture: &Fixture, name: &str) -> (Vec<u8>, usize, usize) {
    let t = fixture.tensor(name);
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (values.into_iter().map(|v| v as u8).collect(), t.dim(1).unwrap(), t.dim(0).unwrap())
}

fn recorded_picture(fixture: &Fixture, name: &str) -> RgbImage {
    let (bytes, width, height) = bytes(fixture, name);
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

#[test]
fn pictures_are_resized_byte_for_byte_as_pillow_does() {
    let fixture = Fixture::open("vae_preprocessing");
    let picture = recorded_picture(&fixture, "pixels");
    let sizes: Vec<&str> = fixture.names().filter(|n| n.starts_with("resized.")).collect();
    assert_eq!(sizes.len(), 5);
    for name in sizes {
        let expected = recorded_picture(&fixture, name);
        let (width, height) = expected.dimensions();
        let resized = picture::resize(&picture, width as usize, height as usize).unwrap();
        assert!(resized == expected, "{name} differs");
    }
}

#[test]
fn masks_reach_the_latents_as_diffusers_prepares_them() {
    let fixture = Fixture::open("vae_preprocessing");
    let (pixels, width, height) = bytes(&fixture, "mask_pixels");
    let mask = GrayImage::from_raw(width as u32, height as u32, pixels).unwrap();
    let mask = picture::resize_mask(&mask, 56, 40).unwrap();
    let mask = picture::from_mask(&mask, &Device::Cpu).unwrap();
    assert_close("mask", &mask, &images(&fixture, "mask"), 0.0);
    let latents = picture::mask_to_latents(&mask, 8).unwrap();
    assert_close("mask on the latents", &latents, &images(&fixture, "mask_latents"), 0.0);

    let picture = picture::resize(&recorded_picture(&fixture, "pixels"), 56, 40).unwrap();
    let image = picture::from_picture(&picture, &Device::Cpu).unwrap();
    assert_close("image", &image, &images(&fixture, "image"), 0.0);
    let masked = picture::masked_image(&image, &mask).unwrap();
    assert_close("masked image", &masked, &images(&fixture, "masked_image"), 0.0);
}

/// What a GPU computes with: 16 bits between operations.
#[test]
fn half_activations_stay_close() {
    for name in ["sd", "flux"] {
        let fixture = Fixture::open(&format!("vae_{name}"));
        let (latents, expected) = (images(&fixture, "latents"), images(&fixture, "picture"));
        for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 8e-2)] {
            let vae = vae(&fixture).with_activations(dtype);
            let picture = vae.decode(&latents).unwrap();
            assert_eq!(picture.dtype(), DType::F32);
            assert_close(&format!("{name} in {dtype:?}"), &picture, &expected, tolerance);
            assert!(
                max_difference(&picture, &expected) > TOLERANCE,
                "{name}: the activations were not {dtype:?}"
            );
            let mean = vae.encode(&images(&fixture, "image")).unwrap().mode().clone();
            assert_close(&format!("{name}: mean in {dtype:?}"), &mean, &images(&fixture, "mean"), tolerance);
        }
    }
}

/// Layers that make features of values of true size make them so large that f16 cannot hold them.
fn large(name: &str) -> f32 {
    let writes = [".conv1.", ".conv2.", "to_out.0.", "coder.conv_in."];
    if writes.iter().any(|w| name.contains(w)) { 5e4 } else { 1.0 }
}

#[test]
fn features_beyond_f16_are_held_smaller() {
    let fixture = Fixture::open("vae_sd");
    let keys: Keys = serde_json::from_str(fixture.text("ldm")).unwrap();
    let keys = keys.into_iter().map(|(_, new, shape)| (new.clone(), new, shape));
    let file = planted_file(keys, seed(&fixture), large);
    let vae = |weights_in, activations, range| {
        let file = SafetensorsFile::from_bytes("vae", file.clone()).unwrap();
        let weights = Weights::from_files("vae", vec![file], weights_in, &Device::Cpu).unwrap();
        AutoencoderKl::in_range(config(&fixture), &weights, activations, range).unwrap()
    };
    let (latents, image) = (images(&fixture, "latents"), images(&fixture, "image"));
    let exact = vae(None, DType::F32, Range::FULL);
    let (picture, mean) = (exact.decode(&latents).unwrap(), exact.encode(&image).unwrap().mean);
    let full = vae(None, DType::F16, Range::FULL);
    // It overflows, is noticed, and is what f32 gives.
    assert_eq!(max_difference(&full.decode(&latents).unwrap(), &picture), 0.0);
    assert_eq!(full.repeated(), 1);
    assert_eq!(max_difference(&full.encode(&image).unwrap().mean, &mean), 0.0);
    assert_eq!(full.repeated(), 2);
    for weights_in in [None, Some(DType::F16)] {
        let half = vae(weights_in, DType::F16, Range::HALF);
        for (what, y, expected) in [
            ("picture", half.decode(&latents).unwrap(), &picture),
            ("mean", half.encode(&image).unwrap().mean, &mean),
        ] {
            let d = max_difference(&y, expected) / max_difference(expected, &expected.zeros_like().unwrap());
            println!("{what}, weights in {weights_in:?}: {d:e}");
            assert!(d > 0.0 && d <= 1e-2, "{what}: half differs from full by {d:e}");
        }
        assert_eq!(half.repeated(), 0, "nothing may overflow");
    }
    // In f32 the divisor changes no bit.
    for divisor in [64.0, 1024.0] {
        let divided = vae(None, DType::F32, Range::divided_by(divisor));
        assert_eq!(max_difference(&divided.decode(&latents).unwrap(), &picture), 0.0, "{divisor}");
        assert_eq!(max_difference(&divided.encode(&image).unwrap().mean, &mean), 0.0, "{divisor}");
    }
}

#[test]
fn what_f32_cannot_hold_either_is_an_error_and_no_black_picture() {
    let fixture = Fixture::open("vae_sd");
    let vae = vae(&fixture);
    let latents = (images(&fixture, "latents") * f64::NAN).unwrap();
    for vae in [vae, self::vae(&fixture).with_activations(DType::F16)] {
        let refused = [vae.decode(&latents), vae.decode_tiled(&latents, 32)];
        for error in refused.map(|r| r.map(drop).unwrap_err()) {
            assert!(matches!(error, aquatint_models::Error::NotFinite(_)), "{error}");
            assert!(error.to_string().contains("the decoded picture is not finite"), "{error}");
        }
    }
}
