//! Models converted from one layout into another: tensors stay what they are, to the bit, and so do pictures.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aquatint_kernels::Format;
use aquatint_models::checkpoint::published::Dummy;
use aquatint_models::checkpoint::stored::StoredType;
use aquatint_models::checkpoint::{CheckpointFile, Component, ModelFolder, SingleFile};
use aquatint_models::convert::{Encoding, Layout, convert};
use aquatint_models::inspect::{Kind, inspect};
use aquatint_models::pipeline::{GenerationRequest, LoadOptions, ModelSource, Pipeline};
use candle_core::DType;

use crate::common::Fixture;
use crate::pipeline::{Model, write_folder};
use crate::single_file::{differing, hashes, recorded, shapes, write};

/// Beside the input.
fn to(path: &Path, name: &str, layout: Layout, encoding: Encoding) -> PathBuf {
    to_path(path, path.with_file_name(name), layout, encoding)
}

fn to_path(path: &Path, output: PathBuf, layout: Layout, encoding: Encoding) -> PathBuf {
    let _ = std::fs::remove_dir_all(&output).or_else(|_| std::fs::remove_file(&output));
    let (mut last, mut calls) = (0, 0);
    let written = convert(path, &output, layout, encoding, &mut |done, total| {
        assert!(done >= last && done <= total, "{done} of {total}");
        (last, calls) = (done, calls + 1);
    });
    let written = written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!((written.bytes, written.tensors), (last, calls));
    let mut partial = output.clone().into_os_string();
    partial.push(".part");
    assert!(!Path::new(&partial).exists());
    output
}

/// Original names -> diffusers' folder -> original names, with all keys of the published files.
#[test]
fn both_ways_keep_every_tensor() {
    for family in ["sd1", "sd2", "sdxl", "refiner", "flux"] {
        let keys = shapes(family);
        let single = write(family, &keys, &[]);
        let folder = to(&single, "folder", Layout::Folder, Encoding::AsStored);
        let model = ModelFolder::open(&folder).unwrap();
        for (component, recorded) in recorded(family) {
            assert_eq!(hashes(&model.views(&component).unwrap()), recorded, "{family} {component}");
        }
        let again = to(&folder, "again.safetensors", Layout::Single, Encoding::AsStored);
        assert_eq!(differing(family, &again), Vec::<String>::new(), "{family}");
        let names: BTreeSet<String> =
            CheckpointFile::open(&again).unwrap().entries().keys().cloned().collect();
        let published: BTreeSet<String> = keys.into_keys().collect();
        assert_eq!(names.difference(&published).next(), None, "{family}");
        // What diffusers has no use for: noise schedules, averages' counts, the last layer of SD 2's encoder.
        let lost: Vec<_> = published.difference(&names).collect();
        let allowed = |name: &str| {
            let ends =
                ["logit_scale", "position_ids", "cumprod", "betas", "cond_stage_model.model.text_projection"];
            let parts = [".resblocks.23.", "cumprod", "posterior_", "model_ema."];
            ends.iter().any(|end| name.ends_with(end)) || parts.iter().any(|part| name.contains(part))
        };
        assert!(lost.iter().all(|name| allowed(name)), "{family}: {lost:?}");
    }
}

fn load(path: &Path) -> Pipeline {
    Pipeline::load(&ModelSource::Folder(path.to_owned()), &LoadOptions::default()).unwrap()
}

/// A single file, and a folder made of it, give the picture of the folder that it was made of, byte for byte.
#[test]
fn a_single_file_gives_the_picture_of_its_folder() {
    for (name, case) in
        [("sd15_inpaint", "inpaint"), ("sd21", "txt2img"), ("sdxl", "txt2img"), ("flux_dev", "txt2img")]
    {
        let model = Model::load(name);
        let folder = write_folder(&Fixture::open(&format!("pipeline_{name}")), "to_convert");
        // The tiny models have tokenizers of their own, which lie beside the file then.
        let file = to_path(&folder, folder.join("whole.safetensors"), Layout::Single, Encoding::AsStored);
        let back = to(&file, "folder", Layout::Folder, Encoding::AsStored);
        let short = |request: &mut GenerationRequest| request.num_inference_steps = Some(2);
        let mut request = model.request(case);
        short(&mut request);
        let expected = model.picture(case, short);
        assert_eq!(load(&file).generate(&request).unwrap(), expected, "{name}");
        assert_eq!(load(&back).generate(&request).unwrap(), expected, "{name}");
        let inspected = inspect(&file).unwrap();
        assert_eq!((inspected.kind, inspected.missing), (Kind::Checkpoint, vec![]), "{name}");
    }
}

/// A whole file may stand in for each part of a folder; what the UNet predicts may be said.
#[test]
fn parts_come_out_of_whole_files() {
    let model = Model::load("sd21");
    let folder = write_folder(&Fixture::open("pipeline_sd21"), "parts");
    let file = to_path(&folder, folder.join("whole.safetensors"), Layout::Single, Encoding::AsStored);
    for component in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
        std::fs::write(folder.join(format!("{component}.safetensors")), "garbage").unwrap();
    }
    let mut options = LoadOptions {
        unet: Some(file.clone()),
        vae: Some(file.clone()),
        text_encoder: Some(file),
        ..Default::default()
    };
    let picture = |options: &LoadOptions| {
        let pipeline = Pipeline::load(&ModelSource::Folder(folder.clone()), options).unwrap();
        pipeline.generate(&model.request("txt2img")).unwrap()
    };
    let expected = model.picture("txt2img", |_| {});
    assert_eq!(picture(&options), expected);
    options.prediction_type = Some("epsilon".into());
    assert_ne!(picture(&options), expected, "this model predicts v");
    options.prediction_type = Some("v_prediction".into());
    assert_eq!(picture(&options), expected);
}

/// Configs and a tokenizer, and no weights at all.
#[test]
fn a_folder_of_configs_makes_noise() {
    let folder = write_folder(&Fixture::open("pipeline_sd15"), "configs");
    for component in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
        std::fs::remove_file(folder.join(format!("{component}.safetensors"))).unwrap();
    }
    std::fs::remove_dir_all(folder.join("tokenizer")).unwrap();
    let untrained = |source| Pipeline::load(&source, &LoadOptions::default());
    assert!(untrained(ModelSource::Folder(folder.clone())).is_err());
    let pipeline = untrained(ModelSource::Dummy(Dummy::Folder(folder))).unwrap();
    assert!(pipeline.info().random_weights);
    let mut request = Model::load("sd15").request("txt2img");
    request.num_inference_steps = Some(1);
    assert_eq!(pipeline.generate(&request).unwrap().width(), 64);
}

#[test]
fn types_and_formats_are_written() {
    let folder = write_folder(&Fixture::open("pipeline_flux_dev"), "flux_to_quantise");
    let types = |path: &Path| -> BTreeSet<String> {
        let file = CheckpointFile::open(path).unwrap();
        file.entries().values().map(|entry| entry.stored_type.to_string()).collect()
    };
    let half = to(&folder, "half.safetensors", Layout::Single, Encoding::Type(DType::F16));
    assert_eq!(types(&half), BTreeSet::from(["F16".to_owned()]));
    let float8 = to(&folder, "float8.safetensors", Layout::Single, Encoding::Float8);
    assert_eq!(types(&float8), BTreeSet::from(["F32".to_owned(), "F8_E4M3".to_owned()]));
    let gguf = to(&folder, "q8_0.gguf", Layout::Single, Encoding::Block(Format::Q8_0));
    assert_eq!(types(&gguf), BTreeSet::from(["F32".to_owned(), "Q8_0".to_owned()]));
    let file = CheckpointFile::open(&gguf).unwrap();
    assert_eq!(file.metadata()["general.architecture"], "flux");
    let matrix = &file.entries()["double_blocks.0.img_attn.qkv.weight"];
    assert_eq!(matrix.stored_type, StoredType::Encoded(Format::Q8_0));
    assert_eq!(file.entries()["img_in.weight"].stored_type, StoredType::Plain(DType::F32));
    assert!(SingleFile::open(&gguf).unwrap().components().eq([Component::Transformer]));

    // Rounded weights make nearly the same picture.
    let model = Model::load("flux_dev");
    let exact = model.picture("txt2img", |_| {});
    let with = |unet: &Path| {
        let options = LoadOptions { unet: Some(unet.to_owned()), ..Default::default() };
        let pipeline = Pipeline::load(&ModelSource::Folder(folder.clone()), &options).unwrap();
        pipeline.generate(&model.request("txt2img")).unwrap()
    };
    for path in [&half, &float8, &gguf] {
        let worst = with(path).as_raw().iter().zip(exact.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst > Some(0) && worst < Some(64), "{}: {worst:?}", path.display());
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let folder = write_folder(&Fixture::open("pipeline_sd15"), "refused");
    let refused = |output: &Path, layout, encoding| {
        convert(&folder, output, layout, encoding, &mut |_, _| {}).unwrap_err().to_string()
    };
    let output = folder.with_file_name("refused-output");
    assert!(refused(&folder, Layout::Single, Encoding::AsStored).contains("exists already"));
    assert!(refused(&output, Layout::Folder, Encoding::Block(Format::Q4_0)).contains("--to single"));
    std::fs::write(folder.join("vae/diffusion_pytorch_model.safetensors"), "garbage").unwrap();
    assert!(refused(&output, Layout::Single, Encoding::AsStored).contains("vae"));
    let unet = folder.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&unet).unwrap();
    std::fs::write(&unet, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused(&output, Layout::Folder, Encoding::AsStored).contains("truncated"));
    assert!(!output.exists() && !folder.with_file_name("refused-output.part").exists());
}
