//! FLUX LoRA files of every format, merged and undone, against diffusers and PEFT; fixtures by
//! `tests/reference/flux_lora.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquatint_models::Error;
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{Weights, synthetic};
use aquatint_models::layers::Linear;
use aquatint_models::lora::{Algorithm, Format, LayerShapes, LoraFile, LoraReport, MergedLoras, Target};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;

use super::common::{Fixture, max_difference};

/// One recorded merge: which files, and the layers (by their number in the model) that change.
#[derive(Deserialize)]
struct Case {
    /// The model's x_embedder has twice the channels, the new ones zero: as diffusers makes it for a control LoRA.
    wide: bool,
    loras: Vec<(String, f64)>,
    layers: Vec<usize>,
}

/// A tiny model's layers with synthetic weights: of the network only what LoRAs see.
struct Model {
    components: Vec<(Target, Weights)>,
    layers: Vec<(Target, String, Arc<Linear>)>,
}

/// How the transformer's weights are stored and held.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    F32,
    /// Eight-bit floats, which layers keep.
    Eight,
    /// The values of the eight-bit floats in f32, held in another type where one is named.
    Decoded(Option<DType>),
}

/// The code of an e4m3 float for an element, and its value: `(-1)^s 2^(e - 7) (1 + m / 8)`.
fn eight_bit(index: usize) -> (u8, f32) {
    let hash = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let (sign, exponent, mantissa) = ((hash >> 8 & 1) as u8, (hash >> 4 & 3) as u8 + 3, (hash & 7) as u8);
    let value = 2f32.powi(i32::from(exponent) - 7) * (1.0 + f32::from(mantissa) / 8.0);
    (sign << 7 | exponent << 3 | mantissa, if sign == 1 { -value } else { value })
}

impl Model {
    fn new(wide: bool) -> Self {
        Self::stored(wide, Stored::F32)
    }

    fn stored(wide: bool, stored: Stored) -> Self {
        let listed: Vec<(String, String, Vec<usize>)> =
            serde_json::from_str(Fixture::open("flux_lora_expected").text("layers")).unwrap();
        let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (component, layer, shape) in &listed {
            let is_eight = stored != Stored::F32 && component == "transformer";
            let eight = || (0..shape.iter().product()).map(|i| eight_bit(i + layer.len()));
            let mut values = match is_eight {
                true => eight().map(|(_, value)| value).collect(),
                false => synthetic::tensor(&format!("{layer}.weight"), shape, 0),
            };
            let mut shape = shape.clone();
            if wide && layer == "x_embedder" {
                let zeros = vec![0.0; shape[1]];
                values = values.chunks(shape[1]).flat_map(|row| [row, &zeros].concat()).collect();
                shape[1] *= 2;
            }
            let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect();
            let bias = synthetic::tensor(&format!("{layer}.bias"), &shape[..1], 0);
            tensors.insert(format!("{layer}.bias"), (Dtype::F32, shape[..1].to_vec(), bytes(bias)));
            let weight = match stored {
                Stored::Eight if is_eight => {
                    let codes = BTreeMap::from_iter(eight().map(|(code, value)| (value.to_bits(), code)));
                    let code = |value: &f32| if *value == 0.0 { 0 } else { codes[&value.to_bits()] };
                    (Dtype::F8_E4M3, shape, values.iter().map(code).collect())
                }
                _ => (Dtype::F32, shape, bytes(values)),
            };
            tensors.insert(format!("{layer}.weight"), weight);
        }
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = serialize(views, None).unwrap();
        let weights = [Target::Transformer, Target::TextEncoder].map(|target| {
            let file = SafetensorsFile::from_bytes("base", file.clone()).unwrap();
            let dtype = match stored {
                Stored::Decoded(dtype) if target == Target::Transformer => dtype,
                _ => None,
            };
            (target, Weights::from_files(&target.to_string(), vec![file], dtype, &Device::Cpu).unwrap())
        });
        let made = |(component, layer, _): &(String, String, Vec<usize>)| {
            let (target, weights) = weights.iter().find(|(t, _)| t.to_string() == *component).unwrap();
            let shape = &tensors[&format!("{layer}.weight")].1;
            (*target, layer.clone(), weights.linear(layer, shape[1], shape[0], true).unwrap())
        };
        let layers = listed.iter().map(made).collect();
        Self { components: weights.to_vec(), layers }
    }

    fn merge(&self, merged: &mut MergedLoras, loras: &[(&LoraFile, f64)]) -> Result<Vec<LoraReport>, Error> {
        let components: Vec<_> = self.components.iter().map(|(t, w)| (*t, w)).collect();
        merged.set(&components, loras)
    }

    /// Of each layer the products of its weight with the two vectors that the reference used, and its bias: `(out, 3)`.
    fn columns(&self) -> Vec<Tensor> {
        self.layers.iter().map(|(_, _, linear)| columns(linear)).collect()
    }
}

fn columns(linear: &Linear) -> Tensor {
    let shape = [2, linear.in_features()];
    let probe = Tensor::from_vec(synthetic::tensor("probe", &shape, 0), &shape, &Device::Cpu).unwrap();
    let bias = linear.forward(&probe.narrow(0, 0, 1).unwrap().zeros_like().unwrap()).unwrap();
    let products = linear.forward(&probe).unwrap().broadcast_sub(&bias).unwrap();
    Tensor::cat(&[products, bias], 0).unwrap().t().unwrap().contiguous().unwrap()
}

fn open(name: &str) -> LoraFile {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    LoraFile::open(fixtures.join(format!("{name}.safetensors"))).unwrap()
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_str(Fixture::open("flux_lora_expected").text("cases")).unwrap()
}

/// The largest difference from a recorded case, over all layers; unchanged ones must be exactly the base.
fn difference(name: &str, case: &Case, model: &Model, base: &[Tensor]) -> f32 {
    let expected = Fixture::open("flux_lora_expected").tensor(name);
    let (mut row, mut largest) = (0, 0.0f32);
    let ours = model.columns();
    for index in &case.layers {
        let rows = ours[*index].dims()[0];
        let d = max_difference(&ours[*index], &expected.narrow(0, row, rows).unwrap());
        row += rows;
        largest = if d > largest || d.is_nan() { d } else { largest };
    }
    assert_eq!(row, expected.dims()[0], "{name}");
    for (i, (ours, base)) in ours.iter().zip(base).enumerate() {
        let changed = max_difference(ours, base) != 0.0;
        assert_eq!(changed, case.layers.contains(&i), "{name}: {}", model.layers[i].1);
    }
    largest
}

#[test]
fn every_format_is_merged_as_the_reference_does_and_undone_exactly() {
    let cases = cases();
    assert_eq!(cases.len(), 14);
    for (name, case) in cases {
        let model = Model::new(case.wide);
        let base = model.columns();
        let files: Vec<_> = case.loras.iter().map(|(file, scale)| (open(file), *scale)).collect();
        let loras: Vec<_> = files.iter().map(|(file, scale)| (file, *scale)).collect();
        let mut merged = MergedLoras::default();
        let reports = model.merge(&mut merged, &loras).unwrap();
        for (report, (file, _)) in reports.iter().zip(&files) {
            // Norms are not merged.
            let norms = report.unmatched.iter().all(|key| key.ends_with("_norm.scale"));
            assert!(report.unmatched.is_empty() || (name == "control" && norms), "{:?}", report.unmatched);
            let all = SafetensorsFile::open(file.path()).unwrap().entries().len();
            assert_eq!(report.matched + report.unmatched.len(), all, "{name}");
            assert_eq!((report.beside, report.dequantized), (0, 0), "{name}");
        }
        let d = difference(&name, &case, &model, &base);
        println!("{name}: {d:e}");
        assert!(d <= 1e-5, "{name}: differs by {d:e}");

        model.merge(&mut merged, &[]).unwrap();
        assert!(!merged.changes(Target::Transformer) && !merged.changes(Target::TextEncoder));
        for ((restored, base), (_, layer, _)) in model.columns().iter().zip(&base).zip(&model.layers) {
            assert_eq!(max_difference(restored, base), 0.0, "{name}: {layer} is not what it was");
        }
    }
}

#[test]
fn the_scale_matters() {
    for (name, case) in cases() {
        let model = Model::new(case.wide);
        let base = model.columns();
        let files: Vec<_> = case.loras.iter().map(|(file, scale)| (open(file), *scale)).collect();
        let loras: Vec<_> = files.iter().map(|(file, scale)| (file, *scale + 0.1)).collect();
        model.merge(&mut MergedLoras::default(), &loras).unwrap();
        let d = difference(&name, &case, &model, &base);
        assert!(d > 1e-3, "{name}: a scale that is off by 0.1 makes a difference of {d:e} only");
    }
}

#[test]
fn what_was_merged_before_leaves_no_trace() {
    let fresh = Model::new(true);
    let (control, dora, second) =
        (open("flux_lora_control"), open("flux_lora_dora"), open("flux_lora_second"));
    fresh.merge(&mut MergedLoras::default(), &[(&dora, 0.5), (&second, 2.0)]).unwrap();
    let used = Model::new(true);
    let mut merged = MergedLoras::default();
    for loras in
        [&[(&control, 3.0)][..], &[], &[(&second, -1.0), (&control, 0.1)], &[(&dora, 0.5), (&second, 2.0)]]
    {
        used.merge(&mut merged, loras).unwrap();
    }
    for (ours, expected) in used.columns().iter().zip(fresh.columns()) {
        assert_eq!(max_difference(ours, &expected), 0.0);
    }
}

#[test]
fn quantised_layers_keep_their_weights_beside_differences_of_low_rank() {
    let (kohya, second) = (open("flux_lora_kohya"), open("flux_lora_second"));
    let loras = [(&kohya, 0.7), (&second, -0.3)];
    let (eight, decoded) = (Model::stored(false, Stored::Eight), Model::stored(false, Stored::Decoded(None)));
    let base = eight.columns();
    let mut merged = MergedLoras::default();
    let reports = eight.merge(&mut merged, &loras).unwrap();
    // The other 6 of kohya's 46 layers are CLIP's.
    assert_eq!((reports[0].layers, reports[0].beside, reports[0].dequantized), (46, 40, 0));
    assert_eq!((reports[1].layers, reports[1].beside, reports[1].dequantized), (8, 8, 0));
    decoded.merge(&mut MergedLoras::default(), &loras).unwrap();
    let mut changed = 0;
    for ((ours, expected), base) in eight.columns().iter().zip(decoded.columns()).zip(&base) {
        let d = max_difference(ours, &expected);
        assert!(d <= 1e-5, "differs by {d:e}");
        changed += usize::from(max_difference(ours, base) > 1e-2);
    }
    assert_eq!(changed, 46);
    eight.merge(&mut merged, &[]).unwrap();
    for (restored, base) in eight.columns().iter().zip(&base) {
        assert_eq!(max_difference(restored, base), 0.0);
    }
}

#[test]
fn quantised_layers_become_16_bits_for_other_differences() {
    let (lycoris, control, kohya) =
        (open("flux_lora_lycoris"), open("flux_lora_control"), open("flux_lora_kohya"));
    let eight = Model::stored(true, Stored::Eight);
    let base = eight.columns();
    let mut merged = MergedLoras::default();
    // Biases are merged beside a difference of low rank too.
    let expect = |loras: &[(&LoraFile, f64)], dtype| {
        let decoded = Model::stored(true, Stored::Decoded(dtype));
        decoded.merge(&mut MergedLoras::default(), loras).unwrap();
        decoded.columns()
    };
    let reports = eight.merge(&mut merged, &[(&control, 0.5)]).unwrap();
    assert_eq!((reports[0].layers, reports[0].beside, reports[0].dequantized), (50, 50, 0));
    for (ours, expected) in eight.columns().iter().zip(expect(&[(&control, 0.5)], None)) {
        assert!(max_difference(ours, &expected) <= 1e-5);
    }
    // A layer that is 16 bits for one LoRA is so for the others.
    let loras = [(&lycoris, 0.7), (&kohya, 0.3)];
    let reports = eight.merge(&mut merged, &loras).unwrap();
    assert_eq!((reports[0].beside, reports[0].dequantized), (0, 27));
    let others = 40 - reports[1].dequantized;
    assert_eq!((reports[1].beside, reports[1].layers), (others, 46));
    let (exact, rounded) = (expect(&loras, None), expect(&loras, Some(DType::BF16)));
    let mut in_16_bits = 0;
    for ((ours, exact), rounded) in eight.columns().iter().zip(exact).zip(rounded) {
        let is_rounded = max_difference(ours, &rounded) == 0.0;
        assert!(is_rounded || max_difference(ours, &exact) <= 1e-5);
        in_16_bits += usize::from(is_rounded && max_difference(ours, &exact) > 1e-4);
    }
    assert_eq!(in_16_bits, 27);
    // From 16 bits back to beside, and undone.
    eight.merge(&mut merged, &[(&kohya, 1.0)]).unwrap();
    for (ours, expected) in eight.columns().iter().zip(expect(&[(&kohya, 1.0)], None)) {
        assert!(max_difference(ours, &expected) <= 1e-5);
    }
    eight.merge(&mut merged, &[]).unwrap();
    for (restored, base) in eight.columns().iter().zip(&base) {
        assert_eq!(max_difference(restored, base), 0.0);
    }
}

#[test]
fn streamed_layers_are_not_kept_in_memory_for_a_difference_of_low_rank() {
    let layers = ["to_q", "to_k", "to_v"].map(|name| format!("transformer_blocks.0.attn.{name}"));
    let made = |weights: &Weights| layers.each_ref().map(|name| weights.linear(name, 16, 16, true).unwrap());
    let base = Weights::synthetic("transformer", 0, &Device::Cpu);
    let (resident, streamed) = (made(&base), Weights::synthetic("transformer", 0, &Device::Cpu).streamed());
    let linears = made(&streamed);
    let qkv = "double_blocks.0.img_attn.qkv";
    let low_rank =
        file(&[(&format!("{qkv}.lora_A.weight"), &[1, 16]), (&format!("{qkv}.lora_B.weight"), &[48, 1])]);
    let whole = file(&[(&format!("diffusion_model.{qkv}.diff"), &[48, 16])]);
    let (mut merged, mut reference) = (MergedLoras::default(), MergedLoras::default());
    for (loras, beside, kept) in
        [(&[(&low_rank, 0.5)][..], 3, 0), (&[(&whole, 0.1)], 0, 3), (&[(&low_rank, -1.0)], 3, 0), (&[], 0, 0)]
    {
        reference.set(&[(Target::Transformer, &base)], loras).unwrap();
        let reports = merged.set(&[(Target::Transformer, &streamed)], loras).unwrap();
        let counts = |r: &LoraReport| (r.beside, r.resident, r.dequantized);
        assert_eq!(reports.first().map_or((0, 0, 0), counts), (beside, kept, 0));
        let in_memory = linears.iter().filter(|linear| linear.weight_bytes() > 0).count();
        assert_eq!(in_memory, kept);
        for ((name, ours), expected) in layers.iter().zip(&linears).zip(&resident) {
            streamed.load(name).unwrap();
            let d = max_difference(&columns(ours), &columns(expected));
            assert!(d <= 1e-5, "{name}: differs by {d:e}");
            streamed.unload(name).unwrap();
        }
    }
}

#[test]
fn reports_say_who_wrote_a_file_and_how_it_is_composed() {
    for (file, format, layers) in [
        ("kohya", Format::Kohya, 46),
        ("kohya_outer", Format::Kohya, 10),
        ("onetrainer", Format::Kohya, 9),
        ("diffusers", Format::Diffusers, 38),
        ("peft/adapter_model", Format::Peft, 32),
        ("ai_toolkit", Format::AiToolkit, 40),
        ("xlabs", Format::Xlabs, 24),
        ("bfl", Format::Peft, 41),
        ("control", Format::Bfl, 50),
        ("lycoris", Format::AiToolkit, 27),
    ] {
        let model = Model::new(file == "control");
        let lora = open(&format!("flux_lora_{file}"));
        let report = model.merge(&mut MergedLoras::default(), &[(&lora, 1.0)]).unwrap().remove(0);
        assert_eq!((report.format, report.layers), (format, layers), "{file}");
        let all = [Algorithm::LoRA, Algorithm::LoHa, Algorithm::LoKr, Algorithm::Full, Algorithm::DoRA];
        let algorithms = if file == "lycoris" { &all[..] } else { &all[..1] };
        assert_eq!(report.algorithms, algorithms.iter().copied().collect(), "{file}");
    }
}

/// A LoRA file in memory: f32 tensors of ones.
fn file(tensors: &[(&str, &[usize])]) -> LoraFile {
    let ones: Vec<u8> = std::iter::repeat_n(1.0f32.to_le_bytes(), 4096).flatten().collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &ones[..4 * shape.iter().product::<usize>()];
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    LoraFile::new(SafetensorsFile::from_bytes("some.safetensors", serialize(views, None).unwrap()).unwrap())
        .unwrap()
}

#[test]
fn files_that_do_not_fit_are_refused_and_change_nothing() {
    let model = Model::new(false);
    let base = model.columns();
    let mut merged = MergedLoras::default();
    let good = open("flux_lora_kohya");
    let mut refused =
        |file: &LoraFile| model.merge(&mut merged, &[(&good, 1.0), (file, 1.0)]).unwrap_err().to_string();
    // A control LoRA on a model without the channels.
    let control = refused(&open("flux_lora_control"));
    for part in
        ["img_in.lora_A.weight [2, 16]", "x_embedder has shape [16, 8]", "control pictures are not supported"]
    {
        assert!(control.contains(part), "{part} is not in: {control}");
    }
    // A fused matrix with too many rows.
    let qkv = "double_blocks.0.img_attn.qkv";
    let (down, up, bias) =
        (format!("{qkv}.lora_A.weight"), format!("{qkv}.lora_B.weight"), format!("{qkv}.lora_B.bias"));
    let rows = refused(&file(&[(&down, &[1, 16]), (&up, &[50, 1])]));
    assert!(
        rows.contains("a difference of 50 x 16") && rows.contains("0.attn.to_v has shape [16, 16]"),
        "{rows}"
    );
    // A LoRA of another architecture.
    let unet = "lora_unet_mid_block_attentions_0_proj_in";
    let other =
        file(&[(&format!("{unet}.lora_down.weight"), &[1, 4]), (&format!("{unet}.lora_up.weight"), &[4, 1])]);
    let other = refused(&other);
    assert!(
        other.contains("none of its 2 keys") && other.contains("kohya") && other.contains(unet),
        "{other}"
    );
    for (ours, base) in model.columns().iter().zip(&base) {
        assert_eq!(max_difference(ours, base), 0.0, "a refused set must change nothing");
    }
    // A bias for a layer that has none.
    let weights = Weights::synthetic("transformer", 0, &Device::Cpu);
    for name in ["to_q", "to_k", "to_v"] {
        weights.linear(&format!("transformer_blocks.0.attn.{name}"), 16, 16, false).unwrap();
    }
    let biased = file(&[(&down, &[1, 16]), (&up, &[48, 1]), (&bias, &[48])]);
    let error =
        MergedLoras::default().set(&[(Target::Transformer, &weights)], &[(&biased, 1.0)]).unwrap_err();
    assert!(error.to_string().contains(&bias) && error.to_string().contains("has none"), "{error}");
}

#[test]
fn a_layer_under_two_names_counts_once() {
    let model = Model::new(false);
    let lora = file(&[
        ("double_blocks.0.img_attn.qkv.lora_A.weight", &[1, 16]),
        ("double_blocks.0.img_attn.qkv.lora_B.weight", &[48, 1]),
        ("transformer.transformer_blocks.0.attn.to_k.lora_A.weight", &[1, 16]),
        ("transformer.transformer_blocks.0.attn.to_k.lora_B.weight", &[16, 1]),
    ]);
    let report = model.merge(&mut MergedLoras::default(), &[(&lora, 1.0)]).unwrap().remove(0);
    let left = ["A", "B"].map(|part| format!("double_blocks.0.img_attn.qkv.lora_{part}.weight"));
    assert_eq!((report.matched, report.layers, report.unmatched), (2, 1, left.to_vec()));
}

#[test]
fn t5_is_found_by_its_names() {
    let layer = "encoder.block.0.layer.0.SelfAttention.q";
    let clip = "text_model.encoder.layers.0.mlp.fc1";
    let shapes = |layer: &str, shape: [usize; 2]| LayerShapes::from([(layer.to_owned(), shape.to_vec())]);
    let components =
        [(Target::TextEncoder, shapes(clip, [4, 2])), (Target::TextEncoder2, shapes(layer, [6, 3]))];
    for key in [
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    ] {
        let (down, up) = (format!("{key}.lora_down.weight"), format!("{key}.lora_up.weight"));
        let lora = file(&[(&down, &[1, 3]), (&up, &[6, 1])]);
        assert_eq!(lora.check(&components).unwrap().matched, 2, "{key}");
        // Without T5's layers its keys are listed.
        let (own_down, own_up) = (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        );
        let lora = file(&[(&down, &[1, 3]), (&up, &[6, 1]), (own_down, &[1, 2]), (own_up, &[4, 1])]);
        let report = lora.check(&components[..1]).unwrap();
        assert_eq!((report.matched, report.unmatched), (2, vec![down, up]));
    }
}

/// The layers of FLUX.1 dev and its CLIP at full size; `channels`: of x_embedder.
fn flux_dev(channels: usize) -> [(Target, LayerShapes); 2] {
    let (inner, mlp) = (3072, 12288);
    let mut transformer = LayerShapes::new();
    let mut add = |name: String, out, inputs| _ = transformer.insert(name, vec![out, inputs]);
    add("x_embedder".to_owned(), inner, channels);
    add("context_embedder".to_owned(), inner, 4096);
    add("norm_out.linear".to_owned(), 2 * inner, inner);
    add("proj_out".to_owned(), 64, inner);
    for (embedder, inputs) in [("timestep", 256), ("guidance", 256), ("text", 768)] {
        add(format!("time_text_embed.{embedder}_embedder.linear_1"), inner, inputs);
        add(format!("time_text_embed.{embedder}_embedder.linear_2"), inner, inner);
    }
    for i in 0..19 {
        let block = format!("transformer_blocks.{i}");
        for name in
            ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"]
        {
            add(format!("{block}.attn.{name}"), inner, inner);
        }
        for context in ["", "_context"] {
            add(format!("{block}.norm1{context}.linear"), 6 * inner, inner);
            add(format!("{block}.ff{context}.net.0.proj"), mlp, inner);
            add(format!("{block}.ff{context}.net.2"), inner, mlp);
        }
    }
    for i in 0..38 {
        let block = format!("single_transformer_blocks.{i}");
        for name in ["to_q", "to_k", "to_v"] {
            add(format!("{block}.attn.{name}"), inner, inner);
        }
        add(format!("{block}.norm.linear"), 3 * inner, inner);
        add(format!("{block}.proj_mlp"), mlp, inner);
        add(format!("{block}.proj_out"), inner, inner + mlp);
    }
    let text = (0..12).flat_map(|i| {
        let square =
            ["q_proj", "k_proj", "v_proj", "out_proj"].map(|n| (format!("self_attn.{n}"), vec![768, 768]));
        let mlp = [("mlp.fc1".to_owned(), vec![3072, 768]), ("mlp.fc2".to_owned(), vec![768, 3072])];
        square
            .into_iter()
            .chain(mlp)
            .map(move |(n, shape)| (format!("text_model.encoder.layers.{i}.{n}"), shape))
    });
    [(Target::Transformer, transformer), (Target::TextEncoder, text.collect())]
}

/// A file with the keys and shapes of a list, all zeros; it takes no room, as only its header is written.
fn sparse(name: &str, keys: &BTreeMap<String, Vec<usize>>) -> PathBuf {
    let mut end = 0;
    let entry = |(key, shape): (&String, &Vec<usize>)| {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        (key.clone(), serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }))
    };
    let header: serde_json::Map<_, _> = keys.iter().map(entry).collect();
    let header = serde_json::to_vec(&header).unwrap();
    let path = std::env::temp_dir().join(format!("aquatint-{}-{name}.safetensors", std::process::id()));
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();
    path
}

#[test]
fn all_keys_of_published_files_are_matched() {
    let Some(folder) = std::env::var_os("AQUATINT_TEST_DATA") else {
        println!("skipped: all_keys_of_published_files_are_matched needs AQUATINT_TEST_DATA");
        return;
    };
    for (list, format, layers, channels) in [
        ("flux_lora_kohya_format", Format::Kohya, 494, 64),
        ("flux_lora_kohya_with_te1_format", Format::Kohya, 566, 64),
        ("flux_lora_diffusers_format", Format::Diffusers, 494, 64),
        ("flux_lora_diffusers_no_proj_mlp_format", Format::Diffusers, 342, 64),
        ("flux_lora_aitoolkit_format", Format::AiToolkit, 418, 64),
        ("flux_control_lora_format", Format::Bfl, 504, 128),
        ("flux_lokr_bfl_format", Format::AiToolkit, 11, 64),
    ] {
        let path = Path::new(&folder).join(format!("lora/keys/{list}.json"));
        let text = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("AQUATINT_TEST_DATA is set, but {}: {e}", path.display()));
        let mut keys: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&text).unwrap();
        if list == "flux_lokr_bfl_format" {
            // The list's shapes make no layer of FLUX: [32, 96] and [32, 32] are 1024 x 3072. Its names count.
            for (key, shape) in &mut keys {
                let (out, inputs) = match key.rsplit_once('.').unwrap().0.split('.').next_back().unwrap() {
                    "qkv" => (9216, 3072),
                    "proj" => (3072, 3072),
                    "0" => (12288, 3072),
                    "2" => (3072, 12288),
                    "linear1" => (21504, 3072),
                    "linear2" => (3072, 15360),
                    layer => panic!("{layer}"),
                };
                match key.rsplit_once('.').unwrap().1 {
                    "lokr_w1" => *shape = vec![32, 32],
                    "lokr_w2" => *shape = vec![out / 32, inputs / 32],
                    _ => {}
                }
            }
        }
        let path = sparse(list, &keys);
        let report = LoraFile::open(&path).and_then(|lora| lora.check(&flux_dev(channels)));
        std::fs::remove_file(&path).unwrap();
        let report = report.unwrap();
        let unmatched: Vec<_> = report.unmatched.iter().filter(|key| !key.ends_with("_norm.scale")).collect();
        assert!(unmatched.is_empty(), "{list}: {unmatched:?}");
        assert_eq!((report.format, report.layers), (format, layers), "{list}");
        assert_eq!(report.matched + report.unmatched.len(), keys.len(), "{list}");
    }
}
