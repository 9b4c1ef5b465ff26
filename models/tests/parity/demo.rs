//! The built-in model's pictures against diffusers' on the same weights (`tests/reference/demo.py`).

use std::collections::BTreeMap;

use aquatint_models::checkpoint::builtin;
use aquatint_models::pipeline::{
    EightBits, GenerationRequest, LoadOptions, LoraChoice, Mode, ModelSource, Pipeline,
};
use image::RgbImage;
use serde_json::Value;

use crate::common::Fixture;

/// Peak signal-to-noise ratio, dB. Rounding to levels alone, half a level at random places, is 54 dB.
const AT_LEAST_DB: f64 = 45.0;

struct Recorded {
    fixture: Fixture,
    cases: BTreeMap<String, Value>,
    pipeline: Pipeline,
}

impl Recorded {
    fn open() -> Self {
        let fixture = Fixture::open("demo");
        let cases = serde_json::from_str(fixture.text("cases")).unwrap();
        let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
        Self { fixture, cases, pipeline }
    }

    fn picture(&self, case: &str) -> RgbImage {
        let tensor = self.fixture.tensor(case);
        let (height, width, _) = tensor.dims3().unwrap();
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        RgbImage::from_raw(width as u32, height as u32, values.iter().map(|&v| v as u8).collect()).unwrap()
    }

    /// The request of a case.
    fn request(&self, case: &str) -> GenerationRequest {
        let case = &self.cases[case];
        let number = |key: &str| case.get(key).and_then(Value::as_f64);
        let text = |key: &str| case.get(key).and_then(Value::as_str);
        let mut request = GenerationRequest::new(text("prompt").unwrap(), number("seed").unwrap() as u64);
        request.negative_prompt = text("negative_prompt").map(str::to_owned);
        request.num_inference_steps = number("num_inference_steps").map(|n| n as usize);
        request.guidance_scale = number("guidance_scale");
        if let Some(image) = text("image") {
            let strength = number("strength").unwrap();
            request.mode = Mode::ImageToImage { image: self.picture(image), strength };
        }
        request
    }

    fn merge(&mut self, case: &str) {
        let loras: Vec<_> = match self.cases[case].get("lora").and_then(Value::as_str) {
            None => vec![],
            Some(name) => {
                let path = format!("{}lora/{name}.safetensors", builtin::PREFIX);
                let scale = self.cases[case]["lora_scale"].as_f64().unwrap();
                vec![LoraChoice::new(path, scale)]
            }
        };
        for report in self.pipeline.set_loras(&loras).unwrap() {
            assert!(report.unmatched.is_empty(), "{:?}", report.unmatched);
        }
    }
}

fn psnr_db(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares: f64 =
        a.as_raw().iter().zip(b.as_raw()).map(|(&x, &y)| f64::from(x.abs_diff(y)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.as_raw().len() as f64 / squares).log10()
}

#[test]
fn draws_what_diffusers_draws() {
    let mut recorded = Recorded::open();
    for case in recorded.cases.clone().keys() {
        recorded.merge(case);
        let ours = recorded.pipeline.generate(&recorded.request(case)).unwrap();
        let db = psnr_db(&ours, &recorded.picture(case));
        assert!(db >= AT_LEAST_DB, "{case}: {db:.1} dB, {AT_LEAST_DB} are needed");
    }
}

/// Another word, seed or scale must fall below the bound, or the comparison above would show nothing.
#[test]
fn notices_other_requests() {
    let mut recorded = Recorded::open();
    let expected = recorded.picture("apple");
    let mut request = recorded.request("apple");
    request.seed += 1;
    assert!(psnr_db(&recorded.pipeline.generate(&request).unwrap(), &expected) < AT_LEAST_DB);
    let mut request = recorded.request("apple");
    request.prompt = "a green apple".into();
    assert!(psnr_db(&recorded.pipeline.generate(&request).unwrap(), &expected) < AT_LEAST_DB);
    recorded.merge("cat_duotone");
    let request = recorded.request("apple");
    assert!(psnr_db(&recorded.pipeline.generate(&request).unwrap(), &expected) < AT_LEAST_DB);
}

/// How much of the coloured part of a picture is more `channel` than anything else.
fn share_of(picture: &RgbImage, channel: usize) -> f64 {
    let coloured: Vec<_> =
        picture.pixels().filter(|p| p.0.iter().max().unwrap() - p.0.iter().min().unwrap() > 60).collect();
    assert!(coloured.len() > 1000, "an almost colourless picture");
    let most = coloured.iter().filter(|p| (0..3).all(|c| c == channel || p.0[channel] > p.0[c])).count();
    most as f64 / coloured.len() as f64
}

/// Colours follow the prompt, in a few steps with the LCM-LoRA as in many without; image-to-image changes the colour.
#[test]
fn colours_follow_the_prompt() {
    let mut recorded = Recorded::open();
    let draw = |pipeline: &Pipeline, prompt: &str, seed| {
        pipeline.generate(&GenerationRequest::new(prompt, seed)).unwrap()
    };
    for case in ["apple", "lion_lcm"] {
        recorded.merge(case);
        for seed in 1..4 {
            for (prompt, channel) in [("a red apple", 0), ("a green apple", 1), ("a blue heart", 2)] {
                let share = share_of(&draw(&recorded.pipeline, prompt, seed), channel);
                assert!(share > 0.6, "{case}, {prompt}, seed {seed}: {share:.2} of the coloured pixels");
            }
        }
    }
    assert!(share_of(&recorded.picture("apple"), 0) > 0.6);
    assert!(share_of(&recorded.picture("apple_refined"), 1) > 0.6);
}

/// Lossy, and little so: beside diffusers' picture in f32, whose levels alone are rounded.
#[test]
fn products_of_eight_bits_change_little() {
    let recorded = Recorded::open();
    for (to, least_db, most_db) in [(EightBits::F8E4M3, 33.0, 52.0), (EightBits::Int8, 40.0, 60.0)] {
        let options = LoadOptions { quantisation: Some(to), ..LoadOptions::default() };
        let pipeline = Pipeline::load(&ModelSource::Builtin, &options).unwrap();
        let picture = pipeline.generate(&recorded.request("apple")).unwrap();
        let db = psnr_db(&picture, &recorded.picture("apple"));
        println!("{to:?}: {db:.1} dB");
        assert!(db > least_db && db < most_db, "{to:?}: {db:.1} dB");
    }
}
