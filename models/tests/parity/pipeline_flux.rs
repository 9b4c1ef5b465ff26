//! Whole pictures of FLUX against diffusers' (`tests/reference/pipeline_flux.py`), by the rule of `pipeline.rs`.

use aquatint_models::checkpoint::published::{Dummy, Published};
use aquatint_models::checkpoint::{ModelFolder, Weights};
use aquatint_models::denoiser::flux::{BlockWeights, FluxOptions, ModulationWeights};
use aquatint_models::denoiser::{FluxConfig, FluxTransformer};
use aquatint_models::pipeline::{Family, GenerationRequest, Mode, ModelSource, Pipeline};
use aquatint_models::text::t5::{T5Encoder, T5Options};
use candle_core::{DType, Device};

use crate::pipeline::{Model, check_all};

#[test]
fn flux_dev() {
    check_all("flux_dev");
}

#[test]
fn flux_schnell() {
    check_all("flux_schnell");
}

#[test]
fn flux_fill() {
    check_all("flux_fill");
}

#[test]
fn flux_kontext() {
    check_all("flux_kontext");
}

/// Each change must move the picture beyond the tolerance, or the fixtures would not show an error in that input.
#[test]
fn the_fixtures_notice_every_input_of_flux() {
    type Change = fn(&mut GenerationRequest);
    let changes: [(&str, Change); 5] = [
        ("prompt", |r| r.prompt = r.prompt.replace("red", "blue")),
        ("seed", |r| r.seed += 1),
        ("step count", |r| *r.num_inference_steps.as_mut().unwrap() += 1),
        ("sequence length", |r| r.max_sequence_length = Some(64)),
        ("guidance by 0.5", |r| *r.guidance_scale.as_mut().unwrap() += 0.5),
    ];
    // Schnell takes no guidance. Kontext sees a megapixel beside, which takes a while.
    for (name, cases, count) in [
        ("flux_dev", &["txt2img", "img2img", "inpaint", "true_cfg"][..], 5),
        ("flux_schnell", &["txt2img"], 4),
        ("flux_fill", &["inpaint"], 5),
        ("flux_kontext", &["edit"], 1),
    ] {
        let model = Model::load(name);
        for case in cases {
            for (what, change) in &changes[..count] {
                let (beyond_1, worst) = model.compare(case, &model.picture(case, change));
                assert!(worst > 2 || beyond_1 > 0.01, "{name} {case}: another {what} goes unnoticed");
            }
        }
    }
    let model = Model::load("flux_dev");
    let (beyond_1, worst) =
        model.compare("true_cfg", &model.picture("true_cfg", |r| r.true_cfg_scale = Some(4.2)));
    assert!(worst > 2 || beyond_1 > 0.01, "another true_cfg_scale goes unnoticed");
}

#[test]
fn what_flux_cannot_do_is_refused_by_name() {
    let model = Model::load("flux_schnell");
    let refused = |change: fn(&mut GenerationRequest)| {
        let mut request = GenerationRequest::new("a cat", 1);
        (request.width, request.height, request.num_inference_steps) = (Some(64), Some(64), Some(1));
        change(&mut request);
        model.pipeline().start(&request).unwrap_err().to_string()
    };
    assert!(refused(|r| r.scheduler = Some("DPM++ 2M".into())).contains("flow matching"));
    assert!(refused(|r| r.max_sequence_length = Some(513)).contains("max_sequence_length is 513"));
    assert!(refused(|r| r.true_cfg_scale = Some(-1.0)).contains("true_cfg_scale is -1"));
    let fill = Model::load("flux_fill");
    let mut request = GenerationRequest::new("a cat", 1);
    request.mode = Mode::TextToImage;
    assert!(fill.pipeline().start(&request).unwrap_err().to_string().contains("mask"));
}

/// diffusers floors sides to multiples of 16; here they are rounded up and the picture is cropped.
#[test]
fn a_size_between_is_the_larger_picture_cropped() {
    let model = Model::load("flux_schnell");
    let exact = model.picture("txt2img", |r| (r.width, r.height) = (Some(80), Some(64)));
    let odd = model.picture("txt2img", |r| (r.width, r.height) = (Some(72), Some(60)));
    assert_eq!(odd.dimensions(), (72, 60));
    assert_eq!(odd, image::imageops::crop_imm(&exact, 0, 0, 72, 60).to_image());
}

/// The published shapes, against the counts that their authors give, 11.9 B parameters and 4.76 B of T5-XXL's encoder, and
/// against the formula of the modulation's 3.28 B.
#[test]
fn published_shapes_have_the_published_sizes() {
    let streamed = FluxOptions {
        modulation: ModulationWeights::Streamed,
        blocks: BlockWeights::Streamed,
        ..FluxOptions::default()
    };
    let config = FluxConfig { guidance_embeds: true, ..FluxConfig::default() };
    let weights = Weights::random("transformer", DType::BF16, &Device::Cpu);
    let report = FluxTransformer::with_options(config, &weights, streamed).unwrap().weight_report();
    let billions = |bytes: u64| bytes as f64 / 2e9;
    let all = report.blocks.total + report.modulation.total + report.other.total;
    assert!((billions(all) - 11.9).abs() < 0.01, "{}", billions(all));
    // Twelve squares of the width a double block, three a single one, two at the end; and what makes the vector of it.
    let d = 3072;
    let modulation = (19 * 12 + 38 * 3 + 2) * d * d + (256 + 256 + 768) * d + 3 * d * d;
    assert_eq!(report.modulation.total, 2 * modulation);
    let flux = Published::named("flux-dev").unwrap();
    let options = T5Options { streamed: true, dtype: Some(DType::BF16), ..T5Options::default() };
    let folder = ModelFolder::Published(flux);
    let t5 = T5Encoder::load(&folder, "text_encoder_2", "tokenizer_2", &options, &Device::Cpu).unwrap();
    assert!((billions(t5.weight_bytes().0) - 4.76).abs() < 0.01, "{}", billions(t5.weight_bytes().0));

    for (model, family, steps, guidance_scale) in [
        ("sd15", Family::Sd15, 50, 7.5),
        ("sd15-inpainting", Family::Sd15, 50, 7.5),
        ("sd21", Family::Sd21, 50, 7.5),
        ("sdxl", Family::Sdxl, 50, 5.0),
        ("sdxl-inpainting", Family::Sdxl, 50, 5.0),
        ("sdxl-refiner", Family::SdxlRefiner, 50, 5.0),
        ("flux-fill", Family::Flux, 50, 30.0),
        ("flux-dev", Family::Flux, 28, 3.5),
        ("flux-schnell", Family::Flux, 4, 0.0),
    ] {
        let published = Dummy::Published(Published::named(model).unwrap());
        let (info, _) = Pipeline::describe(&ModelSource::Dummy(published)).unwrap();
        assert_eq!(
            (info.family, info.num_inference_steps, info.guidance_scale),
            (family, steps, guidance_scale)
        );
        assert!(info.random_weights);
        assert_eq!(info.needs_mask, model.ends_with("inpainting") || model == "flux-fill", "{model}");
    }
}
