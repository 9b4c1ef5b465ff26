//! Checkpoints that are quantised or go by other names: the same tensors as those that the package `gguf`, torch and
//! diffusers' conversion give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_kernels::{Format, Linear};
use aquatint_models::checkpoint::file::CheckpointFile;
use aquatint_models::checkpoint::flux_shape::{FluxShape, shape_facts};
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::view::Views;
use aquatint_models::checkpoint::{Component, ModelFolder, Weights, builtin, synthetic, t5_gguf_names};
use candle_core::{DType, Device, Tensor};
use safetensors::serialize;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::common::{Fixture, assert_close, max_difference};

const CPU: &Device = &Device::Cpu;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// 64-bit FNV-1a over the f32 bytes.
fn hash(t: &Tensor) -> String {
    let bytes = floats(t).into_iter().flat_map(f32::to_le_bytes);
    let h =
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{h:016x}")
}

fn json(fixture: &Fixture, name: &str) -> Value {
    serde_json::from_str(fixture.text(name)).unwrap()
}

fn shape(v: &Value) -> Vec<usize> {
    serde_json::from_value(v.clone()).unwrap()
}

/// A safetensors file of synthetic tensors in f32.
fn file(shapes: &Value, prefix: &str, extra: &[(&str, usize)]) -> SafetensorsFile {
    let tensors = shapes.as_object().unwrap().iter().map(|(name, dims)| {
        let values = synthetic::tensor(name, &shape(dims), 0);
        (format!("{prefix}{name}"), shape(dims), values)
    });
    let extra = extra.iter().map(|&(name, len)| (name.to_owned(), vec![len], vec![0.0; len]));
    f32_file(tensors.chain(extra).collect())
}

fn f32_file(tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> SafetensorsFile {
    let bytes: Vec<_> = tensors
        .into_iter()
        .map(|(name, dims, values)| {
            (name, dims, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
        .collect();
    let views =
        bytes.iter().map(|(name, dims, b)| (name, TensorView::new(Dtype::F32, dims.clone(), b).unwrap()));
    SafetensorsFile::from_bytes("flux.safetensors", serialize(views, None).unwrap()).unwrap()
}

fn seen(file: SafetensorsFile) -> Weights {
    let views = Views::of_component(Component::Transformer, vec![CheckpointFile::Safetensors(file)]).unwrap();
    Weights::from_views("transformer", views, None, CPU)
}

/// All tensors of `weights`, whose names, shapes and bytes must be these.
fn same(weights: &Weights, expected: &Value) -> BTreeMap<String, Tensor> {
    let expected = expected.as_object().unwrap();
    let mut tensors = BTreeMap::new();
    assert_eq!(
        weights.unused(),
        expected.keys().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    );
    for (name, facts) in expected {
        let t = weights.tensor(name, &shape(&facts[0])).unwrap();
        assert_eq!(hash(&t), facts[1].as_str().unwrap(), "{name}");
        tensors.insert(name.clone(), t);
    }
    assert!(weights.unused().is_empty());
    tensors
}

#[test]
fn the_original_names_of_flux_give_diffusers_tensors() {
    let fixture = Fixture::open("quantised");
    for name in ["original", "original_guidance"] {
        let facts = json(&fixture, name);
        let tensors = same(&seen(file(&facts["shapes"], "", &[])), &facts["diffusers"]);
        // In a whole checkpoint, whose other parts are left out.
        let others = [("vae.decoder.conv_in.bias", 3), ("text_encoders.clip_l.logit_scale", 1)];
        same(&seen(file(&facts["shapes"], "model.diffusion_model.", &others)), &facts["diffusers"]);
        // Under diffusers' names.
        let copy = tensors.iter().map(|(k, t)| (k.clone(), t.dims().to_vec(), floats(t))).collect();
        same(&seen(f32_file(copy)), &facts["diffusers"]);
    }
}

#[test]
fn the_order_of_rows_matters() {
    let fixture = Fixture::open("quantised");
    let facts = json(&fixture, "original");
    let weights = seen(file(&facts["shapes"], "", &[]));
    let hash_of = |name: &str| facts["diffusers"][name][1].as_str().unwrap().to_owned();
    let q = weights.tensor("transformer_blocks.0.attn.to_q.weight", &[32, 32]).unwrap();
    assert_ne!(hash(&q), hash_of("transformer_blocks.0.attn.to_k.weight"));
    let modulation = weights.tensor("norm_out.linear.bias", &[64]).unwrap();
    let unswapped =
        Tensor::cat(&[modulation.narrow(0, 32, 32).unwrap(), modulation.narrow(0, 0, 32).unwrap()], 0);
    assert_ne!(hash(&unswapped.unwrap()), hash_of("norm_out.linear.bias"));
}

#[test]
fn some_rows_are_those_of_the_whole() {
    let fixture = Fixture::open("quantised");
    let facts = json(&fixture, "original");
    let gguf = Weights::open("transformer", &[path("quantised_flux.gguf")], None, CPU).unwrap();
    for weights in [seen(file(&facts["shapes"], "", &[])), gguf] {
        for (name, rows) in [
            ("norm_out.linear.weight", 64),
            ("transformer_blocks.0.attn.add_k_proj.weight", 32),
            ("single_transformer_blocks.0.proj_mlp.weight", 128),
        ] {
            let whole = weights.tensor(name, &[rows, 32]).unwrap();
            for range in [0..1, 5..20, 20..32, 0..rows, rows - 3..rows] {
                let part = weights.rows(name, &[rows, 32], range.clone()).unwrap();
                let expected = whole.narrow(0, range.start, range.len()).unwrap();
                assert_close(name, &part, &expected, 0.0);
            }
            assert!(weights.rows(name, &[rows, 32], rows..rows + 1).is_err());
            assert!(weights.rows(name, &[rows, 32], 0..rows + 1).is_err());
            assert!(weights.rows(name, &[rows, 31], 0..1).is_err());
        }
    }
}

#[test]
fn what_kind_of_flux_it_is_can_be_seen() {
    let fixture = Fixture::open("quantised");
    let expected = FluxShape {
        double_blocks: 1,
        single_blocks: 1,
        in_channels: 64,
        out_channels: 64,
        width: 32,
        head_dim: 16,
        joint_attention_dim: 64,
        pooled_projection_dim: 32,
        guidance_embeds: false,
    };
    let schnell = seen(file(&json(&fixture, "original")["shapes"], "", &[]));
    assert_eq!(shape_facts(&schnell).unwrap(), expected);
    assert_eq!(expected.heads(), 2);
    let dev = Weights::open("transformer", &[path("quantised_flux.gguf")], None, CPU).unwrap();
    assert_eq!(shape_facts(&dev).unwrap(), FluxShape { guidance_embeds: true, ..expected });
    let other = Weights::open("other", &[path("quantised_float8.safetensors")], None, CPU).unwrap();
    let error = shape_facts(&other).unwrap_err().to_string();
    assert!(error.contains("quantised_float8") && error.contains("it has no x_embedder.weight"), "{error}");
}

#[test]
fn every_format_decodes_as_gguf_and_torch_do() {
    let fixture = Fixture::open("quantised");
    let raw = SafetensorsFile::open(path("quantised.safetensors")).unwrap();
    for format in Format::ALL.into_iter().filter(|format| *format != Format::I8) {
        let expected = fixture.tensor(&format!("{format:?}.values"));
        let (bytes, row) = match format {
            Format::F8E4M3 | Format::F8E5M2 => ((0..=255).collect(), 256),
            _ => (raw.stored(&format!("{format:?}.blocks"), None).unwrap().data, expected.dims()[1]),
        };
        let values = format.decode(&bytes, row, None).unwrap();
        for (i, (a, e)) in values.iter().zip(floats(&expected)).enumerate() {
            assert!(a.to_bits() == e.to_bits() || (a.is_nan() && e.is_nan()), "{format:?} {i}: {a} and {e}");
        }
        assert_eq!(values.len(), expected.elem_count(), "{format:?}");
    }
}

#[test]
fn a_gguf_file_gives_what_gguf_reads() {
    let fixture = Fixture::open("quantised");
    let weights = Weights::open("transformer", &[path("quantised_flux.gguf")], None, CPU).unwrap();
    let tensors = same(&weights, &json(&fixture, "gguf"));
    // The same weights before they were quantised are near, and not the same.
    let facts = json(&fixture, "original_guidance");
    let original = seen(file(&facts["shapes"], "", &[]));
    for (name, least, most) in [
        ("transformer_blocks.0.attn.to_q.weight", 1e-5, 4e-3),
        ("transformer_blocks.0.attn.add_q_proj.weight", 1e-3, 6e-2),
        ("single_transformer_blocks.0.attn.to_v.weight", 1e-3, 2e-2),
        ("norm_out.linear.weight", 1e-5, 4e-3),
        ("x_embedder.weight", -1.0, 0.0),
    ] {
        let d = max_difference(&tensors[name], &original.tensor(name, tensors[name].dims()).unwrap());
        assert!(d > least && d <= most, "{name}: {d}");
    }
}

fn linear(weights: &Weights, name: &str) -> (std::sync::Arc<Linear>, Tensor) {
    let dims = weights.stored_shape(&format!("{name}.weight")).unwrap();
    let bias = weights.contains(&format!("{name}.bias"));
    let layer = weights.linear(name, dims[1], dims[0], bias).unwrap();
    (layer, Tensor::from_vec(synthetic::tensor("x.weight", &[9, dims[1]], 0), (9, dims[1]), CPU).unwrap())
}

#[test]
fn layers_keep_their_format_and_give_the_products_of_the_decoded_weight() {
    for file in ["quantised_flux.gguf", "quantised_float8.safetensors"] {
        let open = |dtype| Weights::open("transformer", &[path(file)], dtype, CPU).unwrap();
        let (kept, wide) = (open(None), open(Some(DType::F32)));
        let mut encoded = 0;
        for name in kept.unused().iter().filter_map(|name| name.strip_suffix(".weight")) {
            if kept.stored_shape(&format!("{name}.weight")).unwrap().len() != 2 {
                continue;
            }
            let ((a, x), (b, _)) = (linear(&kept, name), linear(&wide, name));
            assert_eq!(hash(&a.forward(&x).unwrap()), hash(&b.forward(&x).unwrap()), "{name}");
            encoded += usize::from(kept.is_encoded(name));
            assert!(!wide.is_encoded(name));
        }
        assert!(encoded >= 4, "{file}: {encoded}");
    }
}

#[test]
fn a_layer_in_a_format_can_be_replaced_and_restored() {
    for (file, name) in [
        ("quantised_flux.gguf", "single_transformer_blocks.0.attn.to_k"),
        ("quantised_float8.safetensors", "rows"),
        ("quantised_float8.safetensors", "half"),
    ] {
        let weights = Weights::open("transformer", &[path(file)], None, CPU).unwrap();
        let (layer, x) = linear(&weights, name);
        let before = layer.forward(&x).unwrap();
        let merged = (weights.base(name).unwrap() * 1.5).unwrap();
        weights.replace(name, &merged).unwrap();
        let bf16 = Linear::new(&merged.to_dtype(DType::BF16).unwrap(), None).unwrap().forward(&x).unwrap();
        let bias = weights.contains(&format!("{name}.bias"));
        let after = layer.forward(&x).unwrap();
        if weights.is_encoded(name) && !bias {
            assert_eq!(hash(&after), hash(&bf16));
        }
        assert!(max_difference(&after, &before) > 0.1, "{name}");
        weights.restore(name).unwrap();
        assert_eq!(hash(&layer.forward(&x).unwrap()), hash(&before), "{name}");
        assert!(weights.layer_shapes()[name].len() == 2);
    }
}

#[test]
fn eight_bit_floats_are_scaled_as_torch_does() {
    let fixture = Fixture::open("quantised");
    let weights = Weights::open("transformer", &[path("quantised_float8.safetensors")], None, CPU).unwrap();
    let expected = ["half.weight", "one.bias", "one.weight", "other.weight", "plain.weight", "rows.weight"];
    assert_eq!(weights.unused(), expected, "scales and marks are no tensors of their own");
    for name in ["one", "rows", "plain", "other", "half"] {
        let expected = fixture.tensor(&format!("float8.{name}"));
        let t = weights.tensor(&format!("{name}.weight"), &[20, 24]).unwrap();
        assert_eq!(hash(&t), hash(&expected), "{name}");
        let (layer, x) = linear(&weights, name);
        let bias = (name == "one").then(|| weights.tensor("one.bias", &[20]).unwrap());
        let product = Linear::new(&expected, bias.as_ref()).unwrap().forward(&x).unwrap();
        assert_eq!(hash(&layer.forward(&x).unwrap()), hash(&product), "{name}");
    }
    for dtype in [DType::F16, DType::BF16] {
        let weights =
            Weights::open("transformer", &[path("quantised_float8.safetensors")], Some(dtype), CPU).unwrap();
        let (layer, x) = linear(&weights, "plain");
        let wide = fixture.tensor("float8.plain").to_dtype(dtype).unwrap();
        let product = Linear::new(&wide, None).unwrap().forward(&x).unwrap();
        assert_eq!(hash(&layer.forward(&x).unwrap()), hash(&product));
    }
}

#[test]
fn llama_cpps_names_of_t5_are_those_of_gguf() {
    let names = json(&Fixture::open("quantised"), "t5_names");
    let names = names.as_object().unwrap();
    assert_eq!(names.len(), 22);
    for (gguf, transformers) in names {
        assert_eq!(t5_gguf_names::transformers_name(gguf).as_deref(), transformers.as_str(), "{gguf}");
    }
    for other in
        ["dec.blk.0.attn_q.weight", "enc.blk.x.attn_q.weight", "enc.blk.0.attn_q", "output.weight", ""]
    {
        assert_eq!(t5_gguf_names::transformers_name(other), None, "{other}");
    }
}

#[test]
fn a_component_may_be_a_gguf_file() {
    let root = std::env::temp_dir().join(format!("aquatint-gguf-{}", std::process::id()));
    let folder = root.join("transformer");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(root.join("model_index.json"), "{}").unwrap();
    std::fs::copy(path("quantised_flux.gguf"), folder.join("flux-Q4.gguf")).unwrap();
    let model = ModelFolder::open(&root).unwrap();
    let weights = model.weights("transformer", None, CPU).unwrap();
    linear(&weights, "single_transformer_blocks.0.proj_out");
    assert!(weights.is_encoded("single_transformer_blocks.0.proj_out"));
    assert_eq!(model.weight_bytes("transformer"), path("quantised_flux.gguf").metadata().unwrap().len());
    std::fs::copy(path("quantised_flux.gguf"), folder.join("flux-Q8.gguf")).unwrap();
    let error = model.weights("transformer", None, CPU).unwrap_err().to_string();
    assert!(error.contains("holds 2 GGUF files"), "{error}");
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_built_in_models_weights_count() {
    let bytes = builtin::folder().weight_bytes("unet");
    assert_eq!(bytes > 1 << 20, builtin::TRAINED, "{bytes}");
    assert_eq!(builtin::folder().weight_bytes("transformer"), 0);
    let weights = builtin::folder().weights("unet", None, CPU).unwrap();
    assert!(weights.contains("conv_in.weight"));
}
