//! One FLUX transformer in every kind of file that people have, held in every way: the same picture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_models::checkpoint::synthetic;
use aquatint_models::pipeline::{LoadOptions, MemoryPlan, ModelSource, Pipeline, Place, Precision};
use image::RgbImage;
use safetensors::tensor::{Dtype, TensorView};

use crate::common::Fixture;
use crate::pipeline::{Model, write_folder};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Under diffusers' names.
fn transformer(fixture: &Fixture) -> Tensors {
    let shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(fixture.text("shapes")).unwrap();
    let tensor = |(name, shape): (&String, &Vec<usize>)| {
        (name.clone(), (shape.clone(), synthetic::tensor(name, shape, 0)))
    };
    shapes["transformer"].iter().map(tensor).collect()
}

/// Under the names of Black Forest Labs, whose layers are fused, written out from their `flux/modules/layers.py`.
fn original(tensors: &Tensors) -> Tensors {
    let mut out = Tensors::new();
    let mut put = |name: String, parts: &[String]| {
        let mut rows = 0;
        let mut values = Vec::new();
        let mut rest = Vec::new();
        for part in parts {
            let (shape, part) = &tensors[part];
            rows += shape[0];
            rest = shape[1..].to_vec();
            values.extend_from_slice(part);
        }
        out.insert(name, ([vec![rows], rest].concat(), values));
    };
    for end in ["weight", "bias"] {
        let mut one = |to: &str, from: &str| put(format!("{to}.{end}"), &[format!("{from}.{end}")]);
        one("img_in", "x_embedder");
        one("txt_in", "context_embedder");
        one("final_layer.linear", "proj_out");
        for (to, from) in [("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")] {
            one(&format!("{to}.in_layer"), &format!("time_text_embed.{from}_embedder.linear_1"));
            one(&format!("{to}.out_layer"), &format!("time_text_embed.{from}_embedder.linear_2"));
        }
        for i in 0..2 {
            let (to, from) = (format!("double_blocks.{i}"), format!("transformer_blocks.{i}"));
            for (stream, norm, proj, ff) in
                [("img", "norm1", "to_out.0", "ff"), ("txt", "norm1_context", "to_add_out", "ff_context")]
            {
                one(&format!("{to}.{stream}_mod.lin"), &format!("{from}.{norm}.linear"));
                one(&format!("{to}.{stream}_attn.proj"), &format!("{from}.attn.{proj}"));
                one(&format!("{to}.{stream}_mlp.0"), &format!("{from}.{ff}.net.0.proj"));
                one(&format!("{to}.{stream}_mlp.2"), &format!("{from}.{ff}.net.2"));
            }
            let (to, from) = (format!("single_blocks.{i}"), format!("single_transformer_blocks.{i}"));
            one(&format!("{to}.modulation.lin"), &format!("{from}.norm.linear"));
            one(&format!("{to}.linear2"), &format!("{from}.proj_out"));
        }
        let parts = |from: String, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("{from}.{name}.{end}")).collect()
        };
        for i in 0..2 {
            let from = format!("transformer_blocks.{i}.attn");
            put(
                format!("double_blocks.{i}.img_attn.qkv.{end}"),
                &parts(from.clone(), &["to_q", "to_k", "to_v"]),
            );
            put(
                format!("double_blocks.{i}.txt_attn.qkv.{end}"),
                &parts(from, &["add_q_proj", "add_k_proj", "add_v_proj"]),
            );
            let from = format!("single_transformer_blocks.{i}");
            put(
                format!("single_blocks.{i}.linear1.{end}"),
                &parts(from, &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
            );
        }
    }
    for i in 0..2 {
        for (to, from) in [
            (
                format!("double_blocks.{i}.img_attn.norm.query_norm"),
                format!("transformer_blocks.{i}.attn.norm_q"),
            ),
            (
                format!("double_blocks.{i}.img_attn.norm.key_norm"),
                format!("transformer_blocks.{i}.attn.norm_k"),
            ),
            (
                format!("double_blocks.{i}.txt_attn.norm.query_norm"),
                format!("transformer_blocks.{i}.attn.norm_added_q"),
            ),
            (
                format!("double_blocks.{i}.txt_attn.norm.key_norm"),
                format!("transformer_blocks.{i}.attn.norm_added_k"),
            ),
            (
                format!("single_blocks.{i}.norm.query_norm"),
                format!("single_transformer_blocks.{i}.attn.norm_q"),
            ),
            (
                format!("single_blocks.{i}.norm.key_norm"),
                format!("single_transformer_blocks.{i}.attn.norm_k"),
            ),
        ] {
            put(format!("{to}.scale"), &[format!("{from}.weight")]);
        }
    }
    // There the shift comes first.
    for end in ["weight", "bias"] {
        let (shape, values) = &tensors[&format!("norm_out.linear.{end}")];
        let (scale, shift) = values.split_at(values.len() / 2);
        let swapped = [shift, scale].concat();
        out.insert(format!("final_layer.adaLN_modulation.1.{end}"), (shape.clone(), swapped));
    }
    let count = |tensors: &Tensors| tensors.values().map(|(_, values)| values.len()).sum::<usize>();
    assert_eq!(count(&out), count(tensors), "every value has its place");
    out
}

fn write_safetensors(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let view = |name: &String| TensorView::new(Dtype::F32, tensors[name].0.clone(), &bytes[name]).unwrap();
    safetensors::serialize_to_file(tensors.keys().map(|name| (name.clone(), view(name))), None, path)
        .unwrap();
}

/// 32 values in Q8_0: the scale in f16, a 127th of the largest, and whole multiples of it.
fn q8_0(values: &[f32]) -> (half::f16, Vec<i8>) {
    let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    (half::f16::from_f32(scale), values.iter().map(|v| (v / scale).round() as i8).collect())
}

/// A GGUF file, version 3, as its specification describes it; matrices in Q8_0 where `quantised`.
fn write_gguf(path: &Path, tensors: &Tensors, quantised: bool) {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut header = [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("flux")].concat());
    let mut data: Vec<u8> = Vec::new();
    for (name, (shape, values)) in tensors {
        let encoded = quantised && shape.len() == 2;
        data.resize(data.len().next_multiple_of(32), 0);
        header.extend(text(name));
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| header.extend((n as u64).to_le_bytes()));
        header.extend((if encoded { 8u32 } else { 0 }).to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        if encoded {
            for block in values.chunks(32) {
                let (scale, codes) = q8_0(block);
                data.extend(scale.to_le_bytes());
                data.extend(codes.iter().map(|c| *c as u8));
            }
        } else {
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    header.resize(header.len().next_multiple_of(32), 0);
    std::fs::write(path, [header, data].concat()).unwrap();
}

fn picture(model: &Model, pipeline: &Pipeline) -> RgbImage {
    pipeline.generate(&model.request("txt2img")).unwrap()
}

fn worst(a: &RgbImage, b: &RgbImage) -> u8 {
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn diffusers_original_and_gguf_files_give_one_picture() {
    let model = Model::load("flux_dev");
    let expected = picture(&model, model.pipeline());
    let tensors = transformer(&Fixture::open("pipeline_flux_dev"));
    let folder = write_folder(&Fixture::open("pipeline_flux_dev"), "flux_files");
    let load = |file: PathBuf| {
        let options = LoadOptions { unet: Some(file), ..Default::default() };
        Pipeline::load(&ModelSource::Folder(folder.clone()), &options).unwrap()
    };
    let original = original(&tensors);
    write_safetensors(&folder.join("diffusers.safetensors"), &tensors);
    write_safetensors(&folder.join("original.safetensors"), &original);
    write_gguf(&folder.join("f32.gguf"), &original, false);
    for file in ["diffusers.safetensors", "original.safetensors", "f32.gguf"] {
        assert_eq!(picture(&model, &load(folder.join(file))), expected, "{file}");
    }

    write_gguf(&folder.join("q8_0.gguf"), &original, true);
    let rounded = tensors.iter().map(|(name, (shape, values))| {
        let round = |block: &[f32]| {
            let (scale, codes) = q8_0(block);
            codes.into_iter().map(move |c| f32::from(c) * scale.to_f32()).collect::<Vec<_>>()
        };
        let values =
            if shape.len() == 2 { values.chunks(32).flat_map(round).collect() } else { values.clone() };
        (name.clone(), (shape.clone(), values))
    });
    write_safetensors(&folder.join("rounded.safetensors"), &rounded.collect());
    let (quantised, rounded) = (
        picture(&model, &load(folder.join("q8_0.gguf"))),
        picture(&model, &load(folder.join("rounded.safetensors"))),
    );
    assert!(worst(&quantised, &rounded) <= 1, "Q8_0 and what it stands for: {}", worst(&quantised, &rounded));
    assert_ne!(quantised, expected, "rounding is seen");
}

/// Every plan that less and less memory leads to, and its picture.
fn plans(model: &Model, folder: &Path, precision: Precision) -> Vec<(MemoryPlan, RgbImage)> {
    let (mut room, mut all) = (None, Vec::new());
    loop {
        let options = LoadOptions { memory_bytes: room, precision, ..Default::default() };
        match Pipeline::load(&ModelSource::Folder(folder.to_owned()), &options) {
            Ok(pipeline) => {
                let plan = pipeline.info().memory.unwrap();
                room = Some(plan.peak_bytes - 1);
                all.push((plan, picture(model, &pipeline)));
            }
            Err(error) => {
                assert!(error.to_string().contains("needs at least"), "{error}");
                return all;
            }
        }
    }
}

#[test]
fn what_is_streamed_gives_the_same_bytes() {
    let model = Model::load("flux_dev");
    let expected = picture(&model, model.pipeline());
    let folder = write_folder(&Fixture::open("pipeline_flux_dev"), "flux_plans");
    let exact = plans(&model, &folder, Precision::Fp32);
    for (plan, ours) in &exact {
        // Where the VAE works in tiles, this picture is one.
        assert_eq!(*ours, expected, "{plan}");
    }
    use Place::{Resident, Streamed};
    for wanted in [
        (Resident, Resident, Resident),
        (Streamed, Resident, Resident),
        (Streamed, Streamed, Resident),
        (Streamed, Streamed, Streamed),
    ] {
        assert!(exact.iter().any(|(p, _)| (p.t5, p.modulation, p.blocks) == wanted), "{wanted:?}");
    }
    let shrunk = plans(&model, &folder, Precision::Auto);
    let (plan, ours) = shrunk.iter().find(|(plan, _)| plan.eight_bits).unwrap();
    assert!(*ours != expected && worst(ours, &expected) < 64, "{plan}: {}", worst(ours, &expected));
}
