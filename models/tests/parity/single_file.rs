//! Single files against diffusers' own conversion (`tests/reference/single_file.py`): every key that the published
//! files have, with synthetic weights of small widths, gives diffusers' tensors bit for bit; and a picture of a single
//! file is the picture of its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use aquatint_models::checkpoint::view::Views;
use aquatint_models::checkpoint::{CheckpointFile, Component, SingleFile, synthetic};
use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView};

use crate::common::Fixture;

pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

/// The keys of a published file, of which a line says how much it has in common with the one before.
pub(crate) fn shapes(family: &str) -> Shapes {
    let fixture = Fixture::open(&format!("single_file_{family}"));
    let (mut shapes, mut last) = (Shapes::new(), String::new());
    for line in fixture.text("keys").split('\n') {
        let [common, rest, shape] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        last = format!("{}{rest}", &last[..common.parse::<usize>().unwrap()]);
        let shape = shape.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
        shapes.insert(last.clone(), shape);
    }
    shapes
}

/// Writes a file of synthetic weights, each call another.
pub(crate) fn write(name: &str, shapes: &Shapes, metadata: &[(&str, &str)]) -> PathBuf {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("single_files/{call}"));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.safetensors"));
    let bytes = |name: &str, shape: &[usize]| -> Vec<u8> {
        synthetic::tensor(name, shape, 0).iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let data: BTreeMap<_, _> = shapes.iter().map(|(name, shape)| (name, bytes(name, shape))).collect();
    let views = shapes.iter().map(|(name, shape)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &data[name]).unwrap())
    });
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
    path
}

/// A hash of each tensor with its name and shape, in the order of names, as the reference recorded them.
pub(crate) fn hashes(views: &Views) -> String {
    let hash = |name: &String| {
        let tensor = views.read(name).unwrap().tensor(&Device::Cpu).unwrap();
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let head = format!("{name} {:?} ", views.shape(name).unwrap());
        let bytes = head.into_bytes().into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes()));
        let fnv =
            bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        format!("{:08x}", fnv & 0xffff_ffff)
    };
    views.names().map(hash).collect()
}

/// The hashes of diffusers' tensors, by component.
pub(crate) fn recorded(family: &str) -> BTreeMap<String, String> {
    serde_json::from_str(Fixture::open(&format!("single_file_{family}")).text("hashes")).unwrap()
}

/// What of each component does not equal diffusers', of a file that has all keys.
pub(crate) fn differing(family: &str, path: &Path) -> Vec<String> {
    let recorded = recorded(family);
    let file = SingleFile::open(path).unwrap();
    let components: Vec<_> = file.components().map(Component::folder).collect();
    let mut expected: Vec<_> = recorded.keys().map(String::as_str).collect();
    expected.sort_by_key(|folder| Component::of_folder(folder));
    assert_eq!(components, expected, "{family}");
    assert!(file.missing().is_empty(), "{family}");
    let mut differing = Vec::new();
    for (component, recorded) in recorded {
        let component = Component::of_folder(&component).unwrap();
        let views = Views::of_component(component, vec![CheckpointFile::open(path).unwrap()]).unwrap();
        let ours = hashes(&views);
        if ours.len() != recorded.len() {
            differing.push(format!("{component:?}: {} of {} tensors", ours.len() / 8, recorded.len() / 8));
            continue;
        }
        for (i, name) in views.names().enumerate() {
            if ours[8 * i..8 * i + 8] != recorded[8 * i..8 * i + 8] {
                differing.push(name.clone());
            }
        }
    }
    differing
}

#[test]
fn every_key_of_published_files_gives_diffusers_tensors() {
    let families = [
        ("sd1", "sd15", 1130),
        ("sd2", "sd21", 1168),
        ("sdxl", "sdxl", 2448),
        ("refiner", "sdxl-refiner", 1792),
        ("flux", "flux-dev", 780 + 244 + 196 + 219),
    ];
    for (family, like, at_least) in families {
        let shapes = shapes(family);
        assert!(shapes.len() >= at_least, "{family}: {}", shapes.len());
        let path = write(family, &shapes, &[]);
        assert_eq!(differing(family, &path), Vec::<String>::new(), "{family}");
        assert_eq!(SingleFile::open(&path).unwrap().like().name, like);
    }
}

/// The hashes notice a tensor whose rows are others, and one that is missing.
#[test]
fn the_hashes_notice_one_tensor() {
    let mut keys = shapes("sd1");
    let (q, k) = ["to_q", "to_k"]
        .map(|part| format!("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.{part}.weight"))
        .into();
    assert_eq!(keys[&q], keys[&k]);
    keys.remove(&q);
    let without = write("sd1", &keys, &[]);
    assert_eq!(differing("sd1", &without), ["Unet: 685 of 686 tensors"]);
    keys.insert(q, vec![16, 64]);
    assert_eq!(differing("sd1", &write("sd1", &keys, &[])).len(), 1);
}
