//! LoRA files of every format, merged and undone, against diffusers and PEFT; fixtures by `tests/reference/lora.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_models::Error;
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{Weights, synthetic};
use aquatint_models::layers::{Conv2d, Linear, Padding};
use aquatint_models::lora::{Algorithm, Format, LayerShapes, LoraFile, LoraReport, MergedLoras, Target};
use aquatint_models::text::textual_inversion::TextualInversion;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;

use super::common::{Fixture, assert_close, max_difference};

/// One recorded merge: which files into which model, and the layers (by their number in the model) that change.
#[derive(Deserialize)]
struct Case {
    model: String,
    loras: Vec<(String, f64)>,
    layers: Vec<usize>,
}

enum Layer {
    Linear(std::sync::Arc<Linear>),
    Conv2d(std::sync::Arc<Conv2d>),
}

/// A tiny model's layers with synthetic weights: of the network only what LoRAs see.
struct Model {
    components: Vec<(Target, Weights)>,
    layers: Vec<(Target, String, Vec<usize>, Layer)>,
}

fn target(name: &str) -> Target {
    let all = [Target::Unet, Target::TextEncoder, Target::TextEncoder2];
    all.into_iter().find(|t| t.to_string() == name).unwrap()
}

impl Model {
    fn new(name: &str) -> Self {
        let listed: Vec<(String, String, Vec<usize>)> =
            serde_json::from_str(Fixture::open("lora_expected").text(name)).unwrap();
        let mut components: BTreeMap<Target, Weights> = BTreeMap::new();
        let mut layers = Vec::new();
        for (component, layer, shape) in listed {
            let target = target(&component);
            let weights =
                components.entry(target).or_insert_with(|| Weights::synthetic(&component, 0, &Device::Cpu));
            let made = match shape[..] {
                [out, inputs] => Layer::Linear(weights.linear(&layer, inputs, out, false).unwrap()),
                [out, inputs, kernel, _] => {
                    Layer::Conv2d(weights.conv2d(&layer, inputs, out, kernel, 1, Padding::default()).unwrap())
                }
                _ => panic!("{layer}: {shape:?}"),
            };
            layers.push((target, layer, shape, made));
        }
        Self { components: components.into_iter().collect(), layers }
    }

    fn components(&self) -> Vec<(Target, &Weights)> {
        self.components.iter().map(|(t, w)| (*t, w)).collect()
    }

    /// The products of each layer's weight with the two vectors that the reference used, `(out, 2)`.
    fn products(&self) -> Vec<Tensor> {
        self.layers.iter().map(|(_, _, shape, layer)| product(layer, shape)).collect()
    }
}

fn product(layer: &Layer, shape: &[usize]) -> Tensor {
    let columns: usize = shape[1..].iter().product();
    let probe = synthetic::tensor("probe", &[2, columns], 0);
    match layer {
        Layer::Linear(linear) => {
            let probe = Tensor::from_vec(probe, (2, columns), &Device::Cpu).unwrap();
            linear.forward(&probe).unwrap().t().unwrap()
        }
        Layer::Conv2d(conv) => {
            let probe = Tensor::from_vec(probe, (2, shape[1], shape[2], shape[3]), &Device::Cpu).unwrap();
            let probe = probe.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let bias = conv.forward(&probe.zeros_like().unwrap()).unwrap();
            let product = (conv.forward(&probe).unwrap() - bias).unwrap();
            product.reshape((2, shape[0])).unwrap().t().unwrap()
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.safetensors"))
}

fn open(name: &str) -> LoraFile {
    LoraFile::open(fixture(name)).unwrap()
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_str(Fixture::open("lora_expected").text("cases")).unwrap()
}

fn merge(
    model: &Model,
    merged: &mut MergedLoras,
    loras: &[(&LoraFile, f64)],
) -> Result<Vec<LoraReport>, Error> {
    merged.set(&model.components(), loras)
}

/// The largest difference from a recorded case, over all layers; unchanged ones must be exactly the base.
fn difference(name: &str, case: &Case, model: &Model, base: &[Tensor]) -> f32 {
    let expected = Fixture::open("lora_expected").tensor(name);
    let (mut row, mut largest) = (0, 0.0f32);
    let ours = model.products();
    for index in &case.layers {
        let rows = model.layers[*index].2[0];
        let expected = expected.narrow(0, row, rows).unwrap();
        row += rows;
        let d = max_difference(&ours[*index], &expected);
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
    assert_eq!(cases.len(), 16);
    for (name, case) in cases {
        let model = Model::new(&case.model);
        let base = model.products();
        let files: Vec<_> = case.loras.iter().map(|(file, scale)| (open(file), *scale)).collect();
        let loras: Vec<_> = files.iter().map(|(file, scale)| (file, *scale)).collect();
        let mut merged = MergedLoras::default();
        let reports = merge(&model, &mut merged, &loras).unwrap();
        for (report, (file, _)) in reports.iter().zip(&files) {
            let biases = report.unmatched.iter().all(|key| key.ends_with(".diff_b"));
            assert!(report.unmatched.is_empty() || (name == "lycoris" && biases), "{:?}", report.unmatched);
            let all = SafetensorsFile::open(file.path()).unwrap().entries().len();
            let tokens = file.textual_inversions().unwrap().len();
            assert_eq!(report.matched + report.unmatched.len() + tokens, all, "{name}");
        }
        let d = difference(&name, &case, &model, &base);
        println!("{name}: {d:e}");
        assert!(d <= 1e-5, "{name}: differs by {d:e}");

        merge(&model, &mut merged, &[]).unwrap();
        for ((restored, base), (_, layer, ..)) in model.products().iter().zip(&base).zip(&model.layers) {
            assert_eq!(max_difference(restored, base), 0.0, "{name}: {layer} is not what it was");
        }
    }
}

#[test]
fn the_scale_matters() {
    for (name, case) in cases() {
        let model = Model::new(&case.model);
        let base = model.products();
        let files: Vec<_> = case.loras.iter().map(|(file, scale)| (open(file), *scale)).collect();
        let loras: Vec<_> = files.iter().map(|(file, scale)| (file, *scale + 0.1)).collect();
        merge(&model, &mut MergedLoras::default(), &loras).unwrap();
        let d = difference(&name, &case, &model, &base);
        assert!(d > 1e-3, "{name}: a scale that is off by 0.1 makes a difference of {d:e} only");
    }
}

#[test]
fn what_was_merged_before_leaves_no_trace() {
    let case = &cases()["several"];
    let (first, second, other) = (open("lora_kohya_sdxl"), open("lora_second"), open("lora_lycoris"));
    let scales: Vec<_> = case.loras.iter().map(|(_, scale)| *scale).collect();
    let both = [(&first, scales[0]), (&second, scales[1])];
    let fresh = Model::new("sdxl");
    merge(&fresh, &mut MergedLoras::default(), &both).unwrap();

    let used = Model::new("sdxl");
    let mut merged = MergedLoras::default();
    for loras in [&[(&other, 3.0)][..], &[(&first, 1e4)], &[], &[(&second, 0.3), (&other, -2.0)], &both] {
        merge(&used, &mut merged, loras).unwrap();
    }
    for (ours, expected) in used.products().iter().zip(fresh.products()) {
        assert_eq!(max_difference(ours, &expected), 0.0);
    }
    // At scale 0 a file is only reported.
    let base = Model::new("sdxl").products();
    let reports = merge(&used, &mut merged, &[(&other, 0.0)]).unwrap();
    assert!(reports[0].matched > 0);
    for (ours, expected) in used.products().iter().zip(&base) {
        assert_eq!(max_difference(ours, expected), 0.0);
    }
}

#[test]
fn reports_say_who_wrote_a_file_and_how_it_is_composed() {
    let report = |model: &str, file: &str| {
        let model = Model::new(model);
        merge(&model, &mut MergedLoras::default(), &[(&open(file), 1.0)]).unwrap().remove(0)
    };
    let lycoris = report("sdxl", "lora_lycoris");
    assert_eq!((lycoris.format, lycoris.layers), (Format::Kohya, 17));
    assert_eq!(lycoris.unmatched.len(), 2, "{:?}", lycoris.unmatched);
    let all = [Algorithm::LoRA, Algorithm::LoHa, Algorithm::LoKr, Algorithm::Full, Algorithm::DoRA];
    assert_eq!(lycoris.algorithms, all.into());
    assert_eq!(report("sd15", "lora_kohya").algorithms, [Algorithm::LoRA].into());
    assert_eq!(report("sdxl", "lora_diffusers").format, Format::Diffusers);
    assert_eq!(report("sd15", "lora_attention_processors").format, Format::AttentionProcessors);
    assert_eq!(report("sd15", "lora_peft/adapter_model").format, Format::Peft);
    assert_eq!(report("sd15", "lora_cloneofsimo").format, Format::Cloneofsimo);
}

#[test]
fn keys_that_belong_to_no_layer_are_listed() {
    let model = Model::new("sd15");
    let q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let (down, up) = (format!("{q}.lora_down.weight"), format!("{q}.lora_up.weight"));
    let keys: [(&str, &[usize]); 6] = [
        (&down, &[2, 32]),
        (&up, &[32, 2]),
        ("lora_unet_mid_block_attentions_9_proj_in.lora_down.weight", &[2, 32]),
        ("lora_unet_mid_block_attentions_9_proj_in.lora_up.weight", &[32, 2]),
        ("lora_unet_conv_in.alpha", &[]),
        ("lora_unet_conv_norm_out.w_norm", &[16]),
    ];
    let report =
        merge(&model, &mut MergedLoras::default(), &[(&file(&keys).unwrap(), 1.0)]).unwrap().remove(0);
    assert_eq!((report.matched, report.layers), (2, 1));
    let mut others: Vec<_> = keys[2..].iter().map(|(key, _)| *key).collect();
    others.sort_unstable();
    assert_eq!(report.unmatched, others);

    // A layer under both of its names: diffusers' counts.
    let original = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q";
    let (second_down, second_up) =
        (format!("{original}.lora_down.weight"), format!("{original}.lora_up.weight"));
    let twice = file(&[(&down, &[2, 32]), (&up, &[32, 2]), (&second_down, &[2, 32]), (&second_up, &[32, 2])]);
    let report = merge(&model, &mut MergedLoras::default(), &[(&twice.unwrap(), 1.0)]).unwrap().remove(0);
    assert_eq!((report.matched, report.unmatched), (2, vec![second_down, second_up]));
}

/// A LoRA file in memory: f32 tensors of ones.
fn file(tensors: &[(&str, &[usize])]) -> Result<LoraFile, Error> {
    let ones: Vec<u8> = std::iter::repeat_n(1.0f32.to_le_bytes(), 4096).flatten().collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &ones[..4 * shape.iter().product::<usize>()];
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    LoraFile::new(SafetensorsFile::from_bytes("some.safetensors", serialize(views, None).unwrap()).unwrap())
}

#[test]
fn files_that_do_not_fit_are_refused_and_change_nothing() {
    let model = Model::new("sd15");
    let base = model.products();
    let mut merged = MergedLoras::default();
    let good = open("lora_kohya");
    let mut refused = |tensors: &[(&str, &[usize])]| {
        let file = file(tensors).unwrap();
        let error = merge(&model, &mut merged, &[(&good, 1.0), (&file, 1.0)]).unwrap_err().to_string();
        assert!(error.starts_with("some.safetensors: "), "{error}");
        error
    };
    let q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let (down, up) = (format!("{q}.lora_down.weight"), format!("{q}.lora_up.weight"));
    let wrong = refused(&[(&down, &[2, 16]), (&up, &[32, 2])]);
    for part in [
        &down,
        "[2, 16]",
        &up,
        "[32, 2]",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "[32, 32]",
    ] {
        assert!(wrong.contains(part), "{part} is not in: {wrong}");
    }
    let zero = refused(&[
        ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", &[1, 4]),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_up.weight", &[4, 1]),
    ]);
    assert!(zero.contains("none of its 2 keys") && zero.contains("double_blocks_0_img_mlp_0"), "{zero}");
    let magnitude = refused(&[(&down, &[2, 32]), (&up, &[32, 2]), (&format!("{q}.dora_scale"), &[16])]);
    assert!(magnitude.contains("to_q.dora_scale has shape [16], the weight has 32 outputs"), "{magnitude}");
    for scale in [f64::NAN, f64::INFINITY] {
        let error = merge(&model, &mut merged, &[(&good, scale)]).unwrap_err().to_string();
        assert!(error.contains(&scale.to_string()), "{error}");
    }
    for (ours, base) in model.products().iter().zip(&base) {
        assert_eq!(max_difference(ours, base), 0.0, "a refused set must change nothing");
    }
}

#[test]
fn files_that_are_no_loras_are_refused_when_opened() {
    let refused = |tensors: &[(&str, &[usize])]| file(tensors).unwrap_err().to_string();
    assert!(
        refused(&[("conv_in.weight", &[2, 2])])
            .contains("no LoRA of a known format: it holds conv_in.weight")
    );
    assert!(refused(&[]).contains("nothing at all"));
    let lone = refused(&[("lora_unet_conv_in.lora_down.weight", &[2, 2])]);
    assert!(lone.contains("lora_unet_conv_in.lora_down.weight") && lone.contains("Up is missing"), "{lone}");
    let half = refused(&[("lora_unet_conv_in.hada_w1_a", &[2, 2]), ("lora_unet_conv_in.hada_w1_b", &[2, 2])]);
    assert!(half.contains("HadaW2A is missing"), "{half}");
    let alpha = [
        ("lora_unet_conv_in.lora_down.weight", &[2, 2][..]),
        ("lora_unet_conv_in.lora_up.weight", &[2, 2]),
        ("lora_unet_conv_in.alpha", &[2]),
    ];
    assert!(refused(&alpha).contains("lora_unet_conv_in.alpha has shape [2]"));
    let scalar =
        [("lora_unet_conv_in.lora_down.weight", &[][..]), ("lora_unet_conv_in.lora_up.weight", &[2, 2])];
    assert!(refused(&scalar).contains("lora_down.weight has shape"));
    let product = |down: &[usize], up: &[usize]| {
        refused(&[("lora_unet_conv_in.lora_down.weight", down), ("lora_unet_conv_in.lora_up.weight", up)])
    };
    let ranks = product(&[2, 32], &[32, 3]);
    assert!(
        ranks.contains("no product") && ranks.contains("[2, 32]") && ranks.contains("[32, 3]"),
        "{ranks}"
    );
    let huge = [0, 1 << 40, 1 << 40];
    let factors = product(&huge, &[2, 0]);
    assert!(factors.contains("no product") && factors.contains("[0, 1099511627776, "), "{factors}");
    let alpha = refused(&[("lora_unet_conv_in.alpha", &huge), alpha[0], alpha[1]]);
    assert!(alpha.contains("lora_unet_conv_in.alpha has shape [0, "), "{alpha}");
}

/// The layers of a full-size model, with their names in the original code.
fn names(model: &str) -> Vec<(String, String, Vec<usize>)> {
    serde_json::from_str(Fixture::open(&format!("lora_names_{model}")).text("layers")).unwrap()
}

#[test]
fn every_layer_is_found_by_each_of_its_names() {
    for (model, count) in [("full_sd15", 282), ("full_sdxl", 794), ("ssd1b", 273), ("tiny_sd15", 83)] {
        let layers = names(model);
        assert_eq!(layers.len(), count, "{model}");
        // Each layer gets a shape of its own, so that one that is taken for another does not fit.
        let shapes =
            layers.iter().enumerate().map(|(i, (layer, ..))| (layer.clone(), vec![i + 1, 1])).collect();
        let components = [(Target::Unet, shapes)];
        let spellings: [fn(&str, &str) -> String; 5] = [
            |layer, _| format!("lora_unet_{}", layer.replace('.', "_")),
            |_, ldm| format!("lora_unet_{}", ldm.replace('.', "_")),
            |layer, _| format!("unet.{layer}"),
            |_, ldm| format!("diffusion_model.{ldm}"),
            |layer, _| format!("base_model.model.{layer}"),
        ];
        for spelling in spellings {
            let keys = layers.iter().map(|(layer, ldm, _)| spelling(layer, ldm)).enumerate();
            let factors: Vec<(String, Vec<usize>)> = keys
                .flat_map(|(i, key)| {
                    [
                        (format!("{key}.lora_A.weight"), vec![1, 1]),
                        (format!("{key}.lora_B.weight"), vec![i + 1, 1]),
                    ]
                })
                .collect();
            let factors: Vec<_> = factors.iter().map(|(key, shape)| (key.as_str(), &shape[..])).collect();
            let report = file(&factors).unwrap().check(&components).unwrap();
            assert_eq!((report.matched, report.unmatched.len()), (2 * count, 0), "{model}: {}", factors[0].0);
        }
    }
}

#[test]
fn text_encoders_are_found_with_and_without_their_prefix() {
    let layer = "encoder.layers.0.mlp.fc1";
    for prefix in ["", "text_model."] {
        let shapes = LayerShapes::from([(format!("{prefix}{layer}"), vec![4, 2])]);
        let components = [(Target::TextEncoder, shapes.clone()), (Target::TextEncoder2, shapes)];
        for key in [
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
            "base_model.model.text_model.encoder.layers.0.mlp.fc1",
            "base_model.model.encoder.layers.0.mlp.fc1",
        ] {
            let (down, up) = (format!("{key}.lora_A.weight"), format!("{key}.lora_B.weight"));
            let file = file(&[(&down, &[1, 2]), (&up, &[4, 1])]).unwrap();
            assert_eq!(file.check(&components).unwrap().matched, 2, "{key} in {prefix}{layer}");
        }
    }
}

/// A real file under `AQUATINT_TEST_DATA`; unset, the test is skipped; set, the file must be there.
fn test_data(test: &str, file: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("AQUATINT_TEST_DATA") else {
        println!("skipped: {test} needs AQUATINT_TEST_DATA");
        return None;
    };
    let path = Path::new(&folder).join(file);
    assert!(path.is_file(), "AQUATINT_TEST_DATA is set, but there is no {}", path.display());
    Some(path)
}

/// The layers of SD 1.5 at full size.
fn sd15() -> [(Target, LayerShapes); 2] {
    let unet = names("full_sd15").into_iter().map(|(layer, _, shape)| (layer, shape)).collect();
    let text = (0..12).flat_map(|i| {
        let layers = [
            ("self_attn.q_proj", [768, 768]),
            ("self_attn.k_proj", [768, 768]),
            ("self_attn.v_proj", [768, 768]),
            ("self_attn.out_proj", [768, 768]),
            ("mlp.fc1", [3072, 768]),
            ("mlp.fc2", [768, 3072]),
        ];
        layers.map(|(layer, shape)| (format!("text_model.encoder.layers.{i}.{layer}"), shape.to_vec()))
    });
    [(Target::Unet, unet), (Target::TextEncoder, text.collect())]
}

#[test]
fn all_keys_of_published_files_are_matched() {
    let test = "all_keys_of_published_files_are_matched";
    if let Some(path) = test_data(test, "lora/sd15_diffusers_attnprocs.safetensors") {
        let report = LoraFile::open(path).unwrap().check(&sd15()).unwrap();
        assert_eq!((report.matched, report.layers, report.unmatched.len()), (256, 128, 0));
        assert_eq!(report.format, Format::AttentionProcessors);
    }
    if let Some(path) = test_data(test, "lora/sd15_cloneofsimo_rank1.safetensors") {
        let file = LoraFile::open(path).unwrap();
        let report = file.check(&sd15()).unwrap();
        assert_eq!((report.matched, report.layers, report.unmatched.len()), (384, 144 + 48, 0));
        assert_eq!(report.format, Format::Cloneofsimo);
        let tokens = file.textual_inversions().unwrap();
        let tokens: Vec<_> = tokens.iter().map(|t| t.token.as_deref().unwrap()).collect();
        assert_eq!(tokens, ["<s1>", "<s2>"]);
    }
}

#[test]
fn a_published_file_is_merged() {
    let path = test_data("a_published_file_is_merged", "lora/sd15_diffusers_attnprocs.safetensors");
    let Some(path) = path else { return };
    let layer = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v";
    let weights = Weights::synthetic("unet", 0, &Device::Cpu);
    let linear = Layer::Linear(weights.linear(layer, 768, 320, false).unwrap());
    let base = product(&linear, &[320, 768]);
    let lora = LoraFile::open(&path).unwrap();
    let report = MergedLoras::default().set(&[(Target::Unet, &weights)], &[(&lora, 0.5)]).unwrap().remove(0);
    assert_eq!((report.matched, report.unmatched.len()), (2, 254));

    let file = SafetensorsFile::open(&path).unwrap();
    let factor = |end: &str| {
        let key = format!("{}_lora.{end}.weight", layer.replace(".to_v", ".processor.to_v"));
        file.tensor(&key, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    };
    let probe = Tensor::from_vec(synthetic::tensor("probe", &[2, 768], 0), (2, 768), &Device::Cpu).unwrap();
    let through = factor("up").matmul(&factor("down").matmul(&probe.t().unwrap()).unwrap()).unwrap();
    let expected = (&base + (through * 0.5).unwrap()).unwrap();
    let ours = product(&linear, &[320, 768]);
    assert!(max_difference(&ours, &base) > 1e-3);
    assert_close("the merged layer", &ours, &expected, 1e-5);
}

#[test]
fn published_textual_inversions_are_read() {
    let test = "published_textual_inversions_are_read";
    let Some(path) = test_data(test, "textual_inversion/cat-toy.safetensors") else { return };
    let web_ui = TextualInversion::open(&path).unwrap();
    let diffusers = TextualInversion::open(path.with_file_name("cat-toy.diffusers.safetensors")).unwrap();
    assert_eq!((web_ui.token, diffusers.token.as_deref()), (None, Some("<cat-toy>")));
    let (a, b) = (web_ui.text_encoder.unwrap(), diffusers.text_encoder.unwrap());
    assert_eq!(a.dims(), [1, 768]);
    assert_eq!(max_difference(&a, &b), 0.0, "the same embedding in two styles");
}
