//! The FLUX transformer against diffusers' `FluxTransformer2DModel` (`tests/reference/flux_transformer.py`).

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{Weights, synthetic};
use aquatint_models::denoiser::flux::{
    BlockWeights, FluxConditioning, FluxConfig, FluxContext, FluxOptions, FluxTransformer, ModulationWeights,
};
use aquatint_models::lora::{LoraFile, MergedLoras, Target};
use aquatint_models::pipeline::EightBits;
use candle_core::{DType, Device, Tensor};

use crate::common::{Fixture, assert_close, channels_last, max_difference};

const TOLERANCE: f32 = 2e-5;
const NAMES: [&str; 4] = ["dev", "schnell", "fill", "kontext"];

/// Timesteps of a run that the fixture's are among.
const STEPS: [f64; 4] = [1000.0, 900.5, 752.3125, 33.0];

pub(crate) struct Case {
    config: FluxConfig,
    seed: u64,
    /// What the blocks' products are rounded to.
    pub(crate) quantisation: Option<EightBits>,
    latents: Tensor,
    timesteps: Vec<f64>,
    /// One a sample.
    conditionings: Vec<FluxConditioning>,
    expected: Tensor,
}

impl Case {
    fn open(name: &str) -> Self {
        Self::open_in(&Fixture::open("flux_transformer"), name)
    }

    pub(crate) fn open_in(fixture: &Fixture, name: &str) -> Self {
        let json = fixture.text(name);
        let seed = serde_json::from_str::<serde_json::Value>(json).unwrap()["seed"].as_u64().unwrap();
        let get = |part: &str| fixture.tensor(&format!("{name}.{part}"));
        let has = |part: &str| fixture.names().any(|n| n == format!("{name}.{part}"));
        let latents = channels_last(&get("x"));
        let conditioning = |i: usize| FluxConditioning {
            prompt_embeds: get("prompt").narrow(0, i, 1).unwrap(),
            pooled_prompt_embeds: get("pooled").narrow(0, i, 1).unwrap(),
            guidance: has("guidance").then(|| f64::from(get("guidance").to_vec1::<f32>().unwrap()[i])),
            reference: has("reference")
                .then(|| channels_last(&get("reference").narrow(0, i, 1).unwrap()))
                .into_iter()
                .collect(),
        };
        Self {
            config: serde_json::from_str(json).unwrap(),
            seed,
            quantisation: None,
            conditionings: (0..latents.dim(0).unwrap()).map(conditioning).collect(),
            latents,
            timesteps: get("t").to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect(),
            expected: channels_last(&get("y")),
        }
    }

    fn weights(&self) -> Weights {
        Weights::synthetic("transformer", self.seed, &Device::Cpu).quantised(self.quantisation)
    }

    fn transformer(&self, options: FluxOptions) -> FluxTransformer {
        FluxTransformer::with_options(self.config.clone(), &self.weights(), options).unwrap()
    }

    fn context(&self, transformer: &FluxTransformer) -> FluxContext {
        let context = |c| transformer.context(c, &STEPS).unwrap();
        let all: Vec<FluxContext> = self.conditionings.iter().map(context).collect();
        FluxContext::cat(&all.iter().collect::<Vec<_>>()).unwrap()
    }

    fn run_on(&self, transformer: &FluxTransformer) -> Tensor {
        transformer.forward(&self.latents, &self.timesteps, &self.context(transformer)).unwrap()
    }

    pub(crate) fn run(&self) -> Tensor {
        self.run_on(&self.transformer(FluxOptions::default()))
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_config_gives_diffusers_output() {
    for name in NAMES {
        let case = Case::open(name);
        assert_close(name, &case.run(), &case.expected, TOLERANCE);
    }
}

#[test]
fn the_fixture_notices_every_input() {
    let scaled = |t: &Tensor| (t * 1.02).unwrap();
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Case));
    let changes: [Change<'_>; 7] = [
        ("guidance", &|c| c.conditionings[0].guidance = Some(3.6)),
        ("timestep", &|c| c.timesteps[1] = 900.5),
        ("pooled prompt", &|c| {
            let pooled = &mut c.conditionings[1].pooled_prompt_embeds;
            *pooled = scaled(pooled);
        }),
        ("prompt", &|c| {
            let prompt = &mut c.conditionings[0].prompt_embeds;
            let token = scaled(&prompt.narrow(1, 6, 1).unwrap());
            *prompt = Tensor::cat(&[&prompt.narrow(1, 0, 6).unwrap(), &token], 1).unwrap();
        }),
        ("reference", &|c| {
            let reference = &mut c.conditionings[1].reference[0];
            *reference = scaled(reference);
        }),
        ("the reference's place", &|c| {
            // The same tokens as 2x3 instead of 3x2 of them.
            for conditioning in &mut c.conditionings {
                let r = &conditioning.reference[0];
                let packed =
                    r.reshape(&[1, 3, 2, 2, 2, 4][..]).unwrap().permute(&[0, 1, 3, 2, 4, 5][..]).unwrap();
                let packed = packed.reshape(&[1, 2, 3, 2, 2, 4][..]).unwrap();
                let turned = packed.permute(&[0, 1, 3, 2, 4, 5][..]).unwrap().reshape((1, 4, 6, 4)).unwrap();
                conditioning.reference[0] = turned;
            }
        }),
        ("latents", &|c| c.latents = scaled(&c.latents)),
    ];
    for (what, change) in changes {
        let mut case = Case::open("kontext");
        change(&mut case);
        let d = max_difference(&case.run(), &case.expected);
        assert!(d > 10.0 * TOLERANCE, "{what} moves the output by {d:e} only");
    }
    let mut case = Case::open("kontext");
    case.conditionings.iter_mut().for_each(|c| c.reference.clear());
    assert!(max_difference(&case.run(), &case.expected) > 10.0 * TOLERANCE, "no reference");
}

#[test]
fn a_sample_gives_the_same_bytes_alone_and_in_a_batch() {
    for name in ["dev", "kontext"] {
        let case = Case::open(name);
        let transformer = case.transformer(FluxOptions::default());
        let both = case.run_on(&transformer);
        for i in 0..2 {
            let context = transformer.context(&case.conditionings[i], &case.timesteps[i..=i]).unwrap();
            let x = case.latents.narrow(0, i, 1).unwrap();
            let alone = transformer.forward(&x, &case.timesteps[i..=i], &context).unwrap();
            assert!(bits(&alone) == bits(&both.narrow(0, i, 1).unwrap()), "{name}, sample {i}");
        }
    }
}

#[test]
fn streamed_weights_give_the_same_bytes() {
    for name in NAMES {
        let case = Case::open(name);
        let resident = case.transformer(FluxOptions::default());
        let expected = bits(&case.run_on(&resident));
        let whole = resident.weight_report();
        assert_eq!(whole.transient, 0);
        let parts = [whole.blocks, whole.modulation, whole.other];
        assert!(parts.iter().all(|p| p.total > 0 && p.resident == p.total));
        for (modulation, blocks) in [
            (ModulationWeights::Streamed, BlockWeights::Resident),
            (ModulationWeights::Resident, BlockWeights::Streamed),
            (ModulationWeights::Streamed, BlockWeights::Streamed),
        ] {
            let streamed = case.transformer(FluxOptions { modulation, blocks, ..FluxOptions::default() });
            for _ in 0..2 {
                assert!(bits(&case.run_on(&streamed)) == expected, "{name}: {modulation:?}, {blocks:?}");
                let report = streamed.weight_report();
                let [blocks_left, modulation_left, other] = parts.map(|p| p.total);
                let left = |is_streamed: bool, all: u64| if is_streamed { 0 } else { all };
                assert_eq!(report.blocks.total, blocks_left);
                assert_eq!(report.modulation.total, modulation_left);
                assert_eq!(report.blocks.resident, left(blocks == BlockWeights::Streamed, blocks_left));
                let is_streamed = modulation == ModulationWeights::Streamed;
                assert_eq!(report.modulation.resident, left(is_streamed, modulation_left));
                assert_eq!(report.other.resident, other);
                assert!(report.transient > 0 && report.transient < blocks_left + modulation_left);
            }
        }
    }
}

#[test]
fn streamed_layers_keep_what_a_lora_made_of_them() {
    let case = Case::open("dev");
    let layers = [
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.0.norm1.linear",
        "single_transformer_blocks.1.proj_out",
        "norm_out.linear",
        "x_embedder",
    ];
    let change = |transformer: &FluxTransformer| {
        for layer in layers {
            let weight = (transformer.weights().base(layer).unwrap() * 1.25).unwrap();
            transformer.weights().replace(layer, &weight).unwrap();
        }
    };
    let resident = case.transformer(FluxOptions::default());
    let base = bits(&case.run_on(&resident));
    change(&resident);
    let changed = bits(&case.run_on(&resident));
    assert!(base != changed);
    let streamed = case.transformer(FluxOptions {
        modulation: ModulationWeights::Streamed,
        blocks: BlockWeights::Streamed,
        ..FluxOptions::default()
    });
    assert_eq!(streamed.weights().layer_shapes(), resident.weights().layer_shapes());
    change(&streamed);
    for _ in 0..2 {
        assert!(bits(&case.run_on(&streamed)) == changed);
    }
    for layer in layers {
        streamed.weights().restore(layer).unwrap();
    }
    assert!(bits(&case.run_on(&streamed)) == base);
    assert_eq!(streamed.weight_report().blocks.resident, 0);
}

/// A LoRA on blocks, modulation and embedders, in diffusers' names.
fn lora(case: &Case) -> LoraFile {
    let inner = case.config.inner_dim();
    let mut all = Vec::new();
    for (layer, from, out) in [
        ("transformer_blocks.1.attn.to_q", inner, inner),
        ("transformer_blocks.0.ff.net.2", 4 * inner, inner),
        ("transformer_blocks.0.norm1.linear", inner, 6 * inner),
        ("single_transformer_blocks.1.proj_out", 5 * inner, inner),
        ("norm_out.linear", inner, 2 * inner),
        ("x_embedder", case.config.in_channels, inner),
    ] {
        for (factor, shape) in [("lora_A", [3, from]), ("lora_B", [out, 3])] {
            let key = format!("transformer.{layer}.{factor}.weight");
            let values = synthetic::tensor(&key, &shape, 1);
            all.push((key, Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()));
        }
    }
    let bytes = safetensors::serialize(all.iter().map(|(k, v)| (k.as_str(), v)), None).unwrap();
    LoraFile::new(SafetensorsFile::from_bytes("lora.safetensors", bytes).unwrap()).unwrap()
}

#[test]
fn a_lora_is_applied_beside_weights_that_stay_in_the_file() {
    let case = Case::open("dev");
    let resident = case.transformer(FluxOptions::default());
    let streamed = case.transformer(FluxOptions {
        modulation: ModulationWeights::Streamed,
        blocks: BlockWeights::Streamed,
        ..FluxOptions::default()
    });
    let base = case.run_on(&resident);
    let file = lora(&case);
    let merge = |transformer: &FluxTransformer, merged: &mut MergedLoras, loras: &[(&LoraFile, f64)]| {
        merged.set(&[(Target::Transformer, transformer.weights())], loras).unwrap().pop()
    };
    let (mut merged, mut beside) = (MergedLoras::default(), MergedLoras::default());
    let report = merge(&resident, &mut merged, &[(&file, 0.8)]).unwrap();
    assert_eq!((report.layers, report.beside), (6, 0));
    let report = merge(&streamed, &mut beside, &[(&file, 0.8)]).unwrap();
    // The embedder stays in memory, so its weight is changed.
    assert_eq!((report.layers, report.beside), (6, 5));
    let expected = case.run_on(&resident);
    assert!(max_difference(&expected, &base) > 1e-2);
    assert_close("beside", &case.run_on(&streamed), &expected, TOLERANCE);
    let left = streamed.weight_report();
    assert_eq!((left.blocks.resident, left.modulation.resident), (0, 0));
    merge(&streamed, &mut beside, &[]);
    assert!(bits(&case.run_on(&streamed)) == bits(&base));
}

/// A transformer from a file, some of whose weights `change` replaced.
fn from_file(
    case: &Case,
    options: FluxOptions,
    change: impl Fn(&str, Tensor) -> Option<Tensor>,
) -> aquatint_models::Result<FluxTransformer> {
    let tensors = case.weights();
    let names = {
        let model = FluxTransformer::new(case.config.clone(), &tensors).unwrap();
        model.weights().layer_shapes()
    };
    let mut all = Vec::new();
    for (name, shape) in names {
        for (part, shape) in [("weight", shape.clone()), ("bias", vec![shape[0]])] {
            let key = format!("{name}.{part}");
            let value = tensors.tensor(&key, &shape).unwrap();
            all.extend(change(&key, value).map(|value| (key, value)));
        }
    }
    let doubles = (0..case.config.num_layers).map(|i| format!("transformer_blocks.{i}.attn"));
    let singles = (0..case.config.num_single_layers).map(|i| format!("single_transformer_blocks.{i}.attn"));
    let d = case.config.attention_head_dim;
    for attn in doubles.chain(singles) {
        for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            let key = format!("{attn}.{norm}.weight");
            all.push((key.clone(), tensors.tensor(&key, &[d]).unwrap()));
        }
    }
    let bytes = safetensors::serialize(all.iter().map(|(k, v)| (k.as_str(), v)), None).unwrap();
    let file = SafetensorsFile::from_bytes("transformer.safetensors", bytes).unwrap();
    let weights = Weights::from_files("transformer", vec![file], None, &Device::Cpu).unwrap();
    FluxTransformer::with_options(case.config.clone(), &weights, options)
}

#[test]
fn a_missing_or_misshapen_streamed_tensor_is_refused_at_load() {
    let case = Case::open("schnell");
    let options = FluxOptions { blocks: BlockWeights::Streamed, ..FluxOptions::default() };
    let gone = "transformer_blocks.0.ff.net.2.weight";
    let refused = |change: &dyn Fn(&str, Tensor) -> Option<Tensor>| {
        from_file(&case, options, change).unwrap_err().to_string()
    };
    assert!(refused(&|key, v| (key != gone).then_some(v)).contains(&format!("no tensor {gone}")));
    let turned =
        |key: &str, v: Tensor| Some(if key == gone { v.t().unwrap().contiguous().unwrap() } else { v });
    assert!(refused(&turned).contains("has shape [160, 40], this config needs [40, 160]"));
    let whole = from_file(&case, options, |_, v| Some(v)).unwrap();
    assert!(bits(&case.run_on(&whole)) == bits(&case.run()));
}

#[test]
fn large_weights_stay_within_f16_when_the_stream_is_scaled() {
    let case = Case::open("dev");
    // Writes into the residual stream that are thousands of times what the fixture's are.
    let plant = |key: &str, v: Tensor| {
        let writes =
            ["ff.net.2.", "ff_context.net.2.", "single_transformer_blocks.1.proj_out.", "to_add_out."];
        Some(if writes.iter().any(|w| key.contains(w)) { (v * 3e4).unwrap() } else { v })
    };
    let run = |options: FluxOptions| case.run_on(&from_file(&case, options, plant).unwrap());
    let half = FluxOptions { activations: DType::F16, ..FluxOptions::default() };
    let exact = run(FluxOptions::default());
    let size = exact.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let finite = |t: &Tensor| bits(t).into_iter().all(|b| f32::from_bits(b).is_finite());
    assert!(finite(&exact));
    assert!(!finite(&run(half)), "nothing overflows");
    let scaled = run(FluxOptions { residual_scale: 1024.0, ..half });
    assert!(finite(&scaled));
    let d = max_difference(&scaled, &exact);
    assert!(d <= 2e-2 * size.max(1.0), "differs by {d:e} of {size:e}");
    // In f32 the scale alone changes nothing but what rounding in the sums does.
    let d = max_difference(&run(FluxOptions { residual_scale: 1024.0, ..FluxOptions::default() }), &exact);
    assert!(d <= 1e-5, "differs by {d:e}");
    let options = FluxOptions { residual_scale: 3.0, ..FluxOptions::default() };
    let refused = FluxTransformer::with_options(case.config.clone(), &case.weights(), options);
    assert!(refused.unwrap_err().to_string().contains("residual_scale is 3, a power of two"));
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let case = Case::open("kontext");
    let transformer = case.transformer(FluxOptions::default());
    let context = case.context(&transformer);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let forward = |x: &Tensor, t: &[f64]| transformer.forward(x, t, &context).unwrap_err().to_string();
    let t = [1000.0, 752.3125];
    assert!(forward(&zeros(&[2, 4, 7, 4]), &t).contains("latents: 4x7, both sides must be even"));
    assert!(forward(&zeros(&[2, 4, 4]), &t).contains("four dimensions"));
    assert!(forward(&zeros(&[2, 4, 8, 5]), &t).contains("5 channels"));
    assert!(forward(&zeros(&[1, 4, 8, 4]), &t).contains("1 samples"));
    assert!(forward(&case.latents, &t[..1]).contains("1 timesteps for 2 samples"));
    assert!(forward(&case.latents, &[1000.0, 752.0]).contains("timestep 752 is none"));
    let refused = |change: &dyn Fn(&mut FluxConditioning)| {
        let mut conditioning = case.conditionings[0].clone();
        change(&mut conditioning);
        transformer.context(&conditioning, &STEPS).unwrap_err().to_string()
    };
    assert!(refused(&|c| c.guidance = None).contains("needs a guidance"));
    assert!(refused(&|c| c.prompt_embeds = zeros(&[1, 7, 25])).contains("joint_attention_dim is 24"));
    assert!(refused(&|c| c.prompt_embeds = zeros(&[1, 0, 24])).contains("prompt_embeds: [1, 0, 24]"));
    assert!(refused(&|c| c.pooled_prompt_embeds = zeros(&[1, 13])).contains("pooled_projection_dim is 12"));
    assert!(refused(&|c| c.reference[0] = zeros(&[1, 5, 4, 4])).contains("reference latents: 5x4"));
    assert!(refused(&|c| c.reference[0] = zeros(&[1, 4, 4, 3])).contains("3 channels"));
    assert!(transformer.context(&case.conditionings[0], &[]).is_err());
}

#[test]
fn contexts_of_other_shapes_do_not_join() {
    let case = Case::open("kontext");
    let transformer = case.transformer(FluxOptions::default());
    let context = |change: &dyn Fn(&mut FluxConditioning)| {
        let mut conditioning = case.conditionings[0].clone();
        change(&mut conditioning);
        transformer.context(&conditioning, &STEPS[..2]).unwrap()
    };
    let first = context(&|_| {});
    assert!(first.joins(&context(&|c| c.guidance = Some(9.0))));
    let shorter = context(&|c| c.prompt_embeds = c.prompt_embeds.narrow(1, 0, 5).unwrap());
    let plain = context(&|c| c.reference.clear());
    for other in [&shorter, &plain] {
        assert!(!first.joins(other) && FluxContext::cat(&[&first, other]).is_err());
    }
    assert!(FluxContext::cat(&[]).is_err());
}
