//! The UNet against diffusers' `UNet2DConditionModel` (`tests/reference/unet.py`).

use aquatint_models::checkpoint::Weights;
use aquatint_models::denoiser::{AddedConditioning, Conditioning, UNet2DCondition, UnetConfig};
use aquatint_models::pipeline::EightBits;
use candle_core::{DType, Device, Tensor};

use crate::common::{Fixture, assert_close, channels_last, max_difference};

const TOLERANCE: f32 = 1e-4;

pub(crate) struct Case {
    unet: UNet2DCondition,
    latents: Tensor,
    timesteps: Vec<f64>,
    conditioning: Conditioning,
    expected: Tensor,
}

impl Case {
    fn open(fixture: &Fixture, name: &str) -> Self {
        Self::open_with(fixture, name, None)
    }

    /// With transformer blocks that multiply in eight bits.
    pub(crate) fn open_with(fixture: &Fixture, name: &str, quantisation: Option<EightBits>) -> Self {
        let json = fixture.text(name);
        let seed = serde_json::from_str::<serde_json::Value>(json).unwrap()["seed"].as_u64().unwrap();
        let config: UnetConfig = serde_json::from_str(json).unwrap();
        let get = |part: &str| fixture.tensor(&format!("{name}.{part}"));
        let added = config.addition_embed_type.is_some().then(|| AddedConditioning {
            pooled_prompt_embeds: get("text_embeds"),
            time_ids: get("time_ids").to_vec2().unwrap(),
        });
        let guidance = config.time_cond_proj_dim.map(|_| 7.5);
        let weights = Weights::synthetic("unet", seed, &Device::Cpu).quantised(quantisation);
        Self {
            unet: UNet2DCondition::new(config, &weights).unwrap(),
            latents: channels_last(&get("x")),
            timesteps: get("t").to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect(),
            conditioning: Conditioning { prompt_embeds: get("prompt"), added, guidance },
            expected: channels_last(&get("y")),
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        self.unet.weights()
    }

    pub(crate) fn run(&self) -> Tensor {
        let context = self.unet.context(&self.conditioning).unwrap();
        self.unet.forward(&self.latents, &self.timesteps, &context).unwrap()
    }
}

#[test]
fn every_config_gives_diffusers_output() {
    let fixture = Fixture::open("unet");
    let names =
        ["sd15", "sd21", "sdxl", "sdxl_inpaint", "refiner", "ssd1b", "no_mid_block", "plain_mid_block"];
    for name in names.into_iter().chain(["lcm_distilled"]) {
        let case = Case::open(&fixture, name);
        assert_close(name, &case.run(), &case.expected, TOLERANCE);
    }
}

#[test]
fn the_fixture_notices_every_input() {
    let fixture = Fixture::open("unet");
    let open = || Case::open(&fixture, "sdxl");
    let mut cases = [open(), open(), open(), open()];
    cases[0].timesteps[1] += 1.0;
    let prompt = &cases[1].conditioning.prompt_embeds;
    cases[1].conditioning.prompt_embeds = (prompt * 1.01).unwrap();
    cases[2].conditioning.added.as_mut().unwrap().time_ids[0][5] += 8.0;
    let pooled = &mut cases[3].conditioning.added.as_mut().unwrap().pooled_prompt_embeds;
    *pooled = (&*pooled * 1.01).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let d = max_difference(&case.run(), &case.expected);
        assert!(d > 10.0 * TOLERANCE, "change {i} moves the output by {d:e} only");
    }
}

#[test]
fn a_wrong_conditioning_is_refused_with_both_numbers() {
    let fixture = Fixture::open("unet");
    let refused = |c: &Case| c.unet.context(&c.conditioning).unwrap_err().to_string();
    let mut case = Case::open(&fixture, "sdxl");
    case.conditioning.prompt_embeds =
        Tensor::zeros((2, 11, 48), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(refused(&case).contains("48 channels, the unet's cross_attention_dim is 32"));
    let mut case = Case::open(&fixture, "sdxl");
    case.conditioning.added.as_mut().unwrap().time_ids.iter_mut().for_each(|ids| ids.truncate(5));
    assert!(refused(&case).contains("64 channels") && refused(&case).contains("72"));
    case.conditioning.added = None;
    assert!(refused(&case).contains("pooled_prompt_embeds"));
}

/// What a GPU computes with: 16 bits between operations. Where types meet is the same on every device.
#[test]
fn half_activations_stay_close() {
    let fixture = Fixture::open("unet");
    for name in ["sd15", "sdxl", "refiner", "lcm_distilled"] {
        for (dtype, tolerance) in [(DType::F16, 0.03), (DType::BF16, 0.25)] {
            let mut case = Case::open(&fixture, name);
            case.unet = case.unet.with_activations(dtype);
            let y = case.run();
            assert_eq!(y.dtype(), DType::F32);
            let largest = max_difference(&case.expected, &case.expected.zeros_like().unwrap());
            assert_close(&format!("{name} in {dtype:?}"), &y, &case.expected, tolerance * largest);
            assert!(
                max_difference(&y, &case.expected) > TOLERANCE,
                "{name}: the activations were not {dtype:?}"
            );
        }
    }
}
