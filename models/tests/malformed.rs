//! Files that are damaged, cut off, or made to do harm: each is refused by an error that says what is wrong, nothing
//! panics, and nothing large is allocated on the word of a header. One test, so that the memory measured is its own.

// clippy.toml allows both in test functions; what they share is test code too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::view::Views;
use aquatint_models::checkpoint::{CheckpointFile, SingleFile, Weights};
use aquatint_models::inspect::inspect;
use candle_core::Device;

/// A GGUF file, written in pieces that a case may spoil.
#[derive(Clone)]
struct Gguf {
    magic: Vec<u8>,
    version: u32,
    tensor_count: Option<u64>,
    value_count: Option<u64>,
    values: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
    data: usize,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    name_len: Option<u64>,
    dims: Vec<u64>,
    dim_count: Option<u32>,
    kind: u32,
    at: u64,
}

fn text(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

fn value(key: &[u8], kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], bytes].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, at: u64) -> Tensor {
    Tensor { name: name.into(), name_len: None, dims: dims.to_vec(), dim_count: None, kind, at }
}

/// One that is read: a matrix of Q8_0 and a vector of F32.
fn good() -> Gguf {
    Gguf {
        magic: b"GGUF".to_vec(),
        version: 3,
        tensor_count: None,
        value_count: None,
        values: vec![value(b"general.architecture", 8, &text(b"flux"))],
        tensors: vec![tensor("a.weight", &[32, 3], 8, 0), tensor("b", &[5], 0, 128)],
        data: 128 + 20,
    }
}

impl Gguf {
    fn bytes(&self) -> Vec<u8> {
        let mut b = self.magic.clone();
        b.extend(self.version.to_le_bytes());
        b.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        b.extend(self.value_count.unwrap_or(self.values.len() as u64).to_le_bytes());
        self.values.iter().for_each(|v| b.extend(v));
        for t in &self.tensors {
            b.extend(t.name_len.unwrap_or(t.name.len() as u64).to_le_bytes());
            b.extend(&t.name);
            b.extend(t.dim_count.unwrap_or(t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
            b.extend(t.kind.to_le_bytes());
            b.extend(t.at.to_le_bytes());
        }
        b.resize(b.len().next_multiple_of(32), 0);
        b.resize(b.len() + self.data, 1);
        b
    }
}

fn array(element: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

/// What is wrong with a GGUF file, how it is spoilt, and a part of what the error must say.
fn gguf_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = good();
        change(&mut file);
        file.bytes()
    };
    let first = |change: &dyn Fn(&mut Tensor)| with(&|f| change(&mut f.tensors[0]));
    let metadata = |bytes: Vec<u8>| with(&|f| f.values.push(bytes.clone()));
    let cut = |len: usize| good().bytes()[..len].to_vec();
    let huge = u64::MAX;
    vec![
        ("magic alone", b"GGUF".to_vec(), "too few"),
        ("cut in the counts", cut(23), "too few"),
        ("cut in a key", cut(40), "truncated"),
        ("cut in a tensor's entry", cut(100), "truncated"),
        ("cut in the data", cut(good().bytes().len() - 1), "truncated: tensor b"),
        ("no data at all", with(&|f| f.data = 0), "truncated: tensor"),
        ("version 1", with(&|f| f.version = 1), "version 1"),
        ("version 4", with(&|f| f.version = 4), "version 4"),
        ("version 0", with(&|f| f.version = 0), "version 0"),
        ("big-endian", with(&|f| f.version = 3u32.swap_bytes()), "big-endian"),
        ("2^64 - 1 tensors", with(&|f| f.tensor_count = Some(huge)), "at most 65536"),
        ("2^40 tensors", with(&|f| f.tensor_count = Some(1 << 40)), "at most 65536"),
        ("more tensors than there are", with(&|f| f.tensor_count = Some(65536)), "tensor"),
        ("2^64 - 1 values", with(&|f| f.value_count = Some(huge)), "4096"),
        ("more values than there are", with(&|f| f.value_count = Some(4096)), ""),
        ("fewer values than there are", with(&|f| f.value_count = Some(0)), ""),
        ("a name of 2^64 - 1 bytes", first(&|t| t.name_len = Some(huge)), "a tensor's name has"),
        ("a name of 2^40 bytes", first(&|t| t.name_len = Some(1 << 40)), "a tensor's name has"),
        ("a name of 1025 bytes", first(&|t| t.name = vec![b'a'; 1025]), "1025 bytes, at most 1024"),
        ("a name that is not UTF-8", first(&|t| t.name = vec![0xff, 0xfe]), "not UTF-8"),
        ("two tensors of one name", first(&|t| t.name = b"b".to_vec()), "tensor b stands in it twice"),
        ("5 dimensions", first(&|t| t.dims = vec![32, 1, 1, 1, 3]), "5 dimensions"),
        ("2^32 - 1 dimensions", first(&|t| t.dim_count = Some(u32::MAX)), "dimensions, at most 4"),
        ("an extent of 0", first(&|t| t.dims = vec![32, 0]), "the shape [0, 32]"),
        ("no rows of a vector", first(&|t| t.dims = vec![0]), "the shape [0]"),
        ("an extent of 2^64 - 1", first(&|t| t.dims = vec![32, huge]), "the shape"),
        ("extents whose product overflows", first(&|t| t.dims = vec![1 << 32, 1 << 32]), "the shape"),
        ("bytes that overflow", with(&|f| f.tensors[1].dims = vec![1 << 62]), "the shape"),
        ("four extents that overflow", first(&|t| t.dims = vec![1 << 20; 4]), "the shape"),
        ("2^50 elements", first(&|t| t.dims = vec![1 << 50]), "truncated: tensor a.weight"),
        (
            "rows that are no blocks",
            first(&|t| t.dims = vec![33, 3]),
            "rows of 33 elements are no blocks of 32",
        ),
        ("a row shorter than a block", first(&|t| t.dims = vec![3, 32]), "rows of 3"),
        ("a K format with short rows", first(&|t| t.kind = 12), "no blocks of 256"),
        ("type 4, which is gone", first(&|t| t.kind = 4), "unknown type 4"),
        ("Q8_1", first(&|t| t.kind = 9), "it is Q8_1"),
        ("Q8_K", first(&|t| t.kind = 15), "it is Q8_K"),
        ("IQ2_XXS", first(&|t| t.kind = 16), "one of the IQ types"),
        ("IQ1_M", first(&|t| t.kind = 29), "one of the IQ types"),
        ("I32", first(&|t| t.kind = 26), "whole numbers"),
        ("TQ1_0", first(&|t| t.kind = 34), "ternary"),
        ("MXFP4", first(&|t| t.kind = 39), "unknown type 39"),
        ("type 2^32 - 1", first(&|t| t.kind = u32::MAX), "unknown type"),
        ("an offset that is not aligned", first(&|t| t.at = 8), "no multiple of 32"),
        ("an offset beyond the file", first(&|t| t.at = 1 << 40), "truncated"),
        ("an offset that overflows", first(&|t| t.at = huge - 31), "it lies at"),
        ("an offset that nearly overflows", first(&|t| t.at = huge - 255), "truncated"),
        ("tensors that overlap", with(&|f| f.tensors[1].at = 96), "tensors a.weight and b overlap"),
        ("tensors at one place", with(&|f| f.tensors[1].at = 0), "overlap"),
        ("a key of 2^64 - 1 bytes", metadata(huge.to_le_bytes().to_vec()), "a key of the metadata has"),
        ("a key that is not UTF-8", metadata(value(&[0xff], 4, &[0; 4])), "not UTF-8"),
        (
            "a key that stands twice",
            metadata(value(b"general.architecture", 4, &[0; 4])),
            "stands in it twice",
        ),
        ("a value of type 13", metadata(value(b"k", 13, &[])), "metadata k: a value of the unknown type 13"),
        ("a text of 2^64 - 1 bytes", metadata(value(b"k", 8, &huge.to_le_bytes())), "truncated"),
        ("a text of 2^33 bytes", metadata(value(b"k", 8, &(1u64 << 33).to_le_bytes())), "truncated"),
        ("an array of arrays", metadata(value(b"k", 9, &array(9, 1, &[]))), "an array of the unknown type 9"),
        ("an array of 2^64 - 1 bytes", metadata(value(b"k", 9, &array(0, huge, &[]))), "truncated"),
        ("an array of 2^62 numbers", metadata(value(b"k", 9, &array(4, 1 << 62, &[]))), "an array of"),
        (
            "an array of 2^61 + 1 doubles",
            metadata(value(b"k", 9, &array(12, (1 << 61) + 1, &[]))),
            "an array of",
        ),
        ("an array of 2^60 texts", metadata(value(b"k", 9, &array(8, 1 << 60, &[]))), "an array of"),
        (
            "an array with a long text",
            metadata(value(b"k", 9, &array(8, 1, &huge.to_le_bytes()))),
            "truncated",
        ),
        (
            "an alignment of 0",
            metadata(value(b"general.alignment", 4, &0u32.to_le_bytes())),
            "an alignment of 0",
        ),
        (
            "an alignment of 24",
            metadata(value(b"general.alignment", 4, &24u32.to_le_bytes())),
            "an alignment of 24",
        ),
        (
            "an alignment of 2^31",
            metadata(value(b"general.alignment", 4, &(1u32 << 31).to_le_bytes())),
            "alignment",
        ),
        (
            "an alignment of -8",
            metadata(value(b"general.alignment", 5, &(-8i32).to_le_bytes())),
            "alignment of -8",
        ),
        (
            "an alignment in words",
            metadata(value(b"general.alignment", 8, &text(b"wide"))),
            "alignment of wide",
        ),
    ]
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0x38; data]].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

fn safetensors_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let one = |dtype: &str, shape: &str, from: u64, to: u64, data: usize| {
        safetensors(&format!("{{{}}}", entry("a", dtype, shape, from, to)), data)
    };
    // The longest tensors whose bits can be counted in 64 bits.
    const LEN: u64 = (1 << 61) - 1;
    let up_to_the_last_byte: Vec<_> = (0..8u64)
        .map(|i| entry(&format!("t{i}"), "F8_E4M3", &format!("[{LEN}]"), i * LEN, (i + 1) * LEN))
        .chain([entry("u", "F8_E4M3", "[7]", 8 * LEN, u64::MAX)])
        .collect();
    let two = |second: String, data: usize| {
        safetensors(&format!("{{{},{second}}}", entry("a.weight", "F8_E4M3", "[2,3]", 0, 6)), data)
    };
    vec![
        ("nothing", vec![], "0 bytes are too few"),
        ("a header of 2^64 - 1 bytes", vec![0xff; 40], "header claims"),
        ("a header of 2^40 bytes", [&(1u64 << 40).to_le_bytes()[..], &[0; 40]].concat(), "header claims"),
        ("a header beyond the file", safetensors("{}", 0)[..9].to_vec(), "header claims"),
        ("no JSON", safetensors("nothing", 0), "not valid"),
        ("a list", safetensors("[]", 0), "not valid"),
        ("deep JSON", safetensors(&"[".repeat(100_000), 0), "not valid"),
        ("a shape that overflows", one("F32", "[9223372036854775807,4]", 0, 8, 8), "not valid"),
        ("bytes that overflow", one("F8_E4M3", "[9223372036854775807,4]", 0, 8, 8), "not valid"),
        ("an offset beyond the file", one("F8_E4M3", "[1152921504606846976]", 0, 1 << 60, 8), "truncated"),
        ("2^64 - 1 elements", one("F8_E4M3", "[18446744073709551615]", 0, u64::MAX, 8), "not valid"),
        (
            "ends that overflow",
            safetensors(&format!("{{{}}}", up_to_the_last_byte.join(",")), 8),
            "truncated",
        ),
        ("an end before the start", one("F8_E4M3", "[1]", 1, 0, 8), "not valid"),
        ("a gap", one("F8_E4M3", "[4]", 4, 8, 8), "not valid"),
        ("cut eight-bit floats", one("F8_E4M3", "[4]", 0, 4, 3), "truncated"),
        ("bytes left over", one("F8_E5M2", "[4]", 0, 4, 5), "1 bytes stand after"),
        ("four-bit floats", one("F4", "[8]", 0, 4, 4), "tensor a is F4"),
        ("eight-bit exponents", one("F8_E8M0", "[4]", 0, 4, 4), "tensor a is F8_E8M0"),
        ("a type that is none", one("F9", "[4]", 0, 4, 4), "not valid"),
        (
            "scales of blocks",
            two(entry("a.weight_scale", "F32", "[1,3]", 6, 18), 18),
            "one scale or one for each of the 2 rows",
        ),
        ("three scales for two rows", two(entry("a.scale_weight", "F32", "[3]", 6, 18), 18), "one for each"),
        ("no scales", two(entry("a.scale_weight", "F32", "[0]", 6, 6), 6), "one for each"),
    ]
}

/// Original FLUX names whose rows cannot be taken apart.
fn flux_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let one = |name: &str, shape: &str, len: u64| {
        safetensors(&format!("{{{}}}", entry(name, "F8_E4M3", shape, 0, len)), len as usize)
    };
    let with = |bias: String, len: usize| {
        safetensors(
            &format!("{{{},{bias}}}", entry("single_blocks.0.linear1.weight", "F8_E4M3", "[8,2]", 0, 16)),
            len,
        )
    };
    vec![
        (
            "ten rows of qkv",
            one("double_blocks.0.img_attn.qkv.weight", "[10,2]", 20),
            "10 rows do not divide",
        ),
        ("no rows of qkv", one("double_blocks.0.img_attn.qkv.weight", "[0,2]", 0), "0 rows do not divide"),
        ("a qkv without shape", one("double_blocks.0.txt_attn.qkv.bias", "[]", 1), "0 rows do not divide"),
        (
            "linear1 without an MLP",
            one("single_blocks.0.linear1.weight", "[6,2]", 12),
            "6 rows are no three of 2",
        ),
        (
            "a bias without its matrix",
            one("single_blocks.0.linear1.bias", "[8]", 8),
            "no matrix single_blocks.0",
        ),
        ("linear1 that is a vector", one("single_blocks.0.linear1.weight", "[8]", 8), "no matrix"),
        (
            "a short bias",
            with(entry("single_blocks.0.linear1.bias", "F8_E4M3", "[6]", 16, 22), 22),
            "6 rows are no three",
        ),
        (
            "one name for two tensors",
            with(entry("single_transformer_blocks.0.attn.to_q.weight", "F8_E4M3", "[1]", 16, 17), 17),
            "stands for single_transformer_blocks.0.attn.to_q.weight, as",
        ),
    ]
}

/// A file of eight-bit tensors that lie one after the other.
fn tensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    with_texts(&[], tensors)
}

fn with_texts(texts: &[(&str, &str)], tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut at = 0;
    let mut entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape)| {
            let len = shape.iter().product::<usize>() as u64;
            at += len;
            entry(name, "F8_E4M3", &format!("{shape:?}"), at - len, at)
        })
        .collect();
    if !texts.is_empty() {
        let texts: BTreeMap<_, _> = texts.iter().copied().collect();
        entries.push(format!(r#""__metadata__":{}"#, serde_json::to_string(&texts).unwrap()));
    }
    safetensors(&format!("{{{}}}", entries.join(",")), at as usize)
}

/// Whole checkpoints that are none.
fn single_file_cases() -> Vec<(String, Vec<u8>, &'static str)> {
    const UNET: &str = "model.diffusion_model.input_blocks";
    const FLUX: &str = "model.diffusion_model.double_blocks";
    let mut cases = Vec::new();
    let mut case = |what: String, bytes: Vec<u8>, says: &'static str| cases.push((what, bytes, says));
    let names = |name: &str| format!("tensor {name}");
    // Fused and turned matrices that cannot be taken apart.
    for (prefix, also) in [
        ("conditioner.embedders.1.model", "model.diffusion_model.label_emb.0.0.weight"),
        ("cond_stage_model.model", "model.diffusion_model.out.2.weight"),
    ] {
        for rows in [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 100] {
            for param in ["in_proj_weight", "in_proj_bias"] {
                let name = format!("{prefix}.transformer.resblocks.0.attn.{param}");
                let shape: &[usize] = if param == "in_proj_bias" { &[rows] } else { &[rows, 2] };
                let block = format!("{UNET}.0.0.weight");
                let bytes = tensors(&[(&block, &[2, 4, 1, 1]), (also, &[2, 2]), (&name, shape)]);
                case(format!("{name} of {rows} rows"), bytes, "rows do not divide into queries");
            }
        }
    }
    for shape in [&[][..], &[4], &[2, 2, 2], &[1, 1, 2, 2], &[2, 0, 1]] {
        let name = "conditioner.embedders.1.model.text_projection";
        let block = format!("{UNET}.0.0.weight");
        let label = "model.diffusion_model.label_emb.0.0.weight";
        let bytes = tensors(&[(&block, &[2, 4, 1, 1]), (label, &[2, 2]), (name, shape)]);
        case(format!("{name} of {shape:?}"), bytes, "is no matrix's");
    }
    for part in ["q", "k", "v", "proj_out"] {
        for side in ["encoder", "decoder"] {
            for shape in [&[][..], &[2, 2, 2], &[2, 2, 3, 3], &[2, 2, 1, 2], &[2, 2, 2, 1], &[2, 2, 1, 1, 1]]
            {
                let name = format!("first_stage_model.{side}.mid.attn_1.{part}.weight");
                let bytes = tensors(&[
                    ("first_stage_model.encoder.down.0.block.0.conv1.weight", &[1]),
                    (&name, shape),
                ]);
                case(format!("{} of {shape:?}", names(&name)), bytes, "is no matrix's");
            }
        }
    }
    for rows in [0, 1, 2, 4, 5, 7] {
        let name = format!("{FLUX}.0.img_attn.qkv.weight");
        case(format!("{name} of {rows} rows"), tensors(&[(&name, &[rows, 2])]), "rows do not divide into 3");
        let name = "model.diffusion_model.final_layer.adaLN_modulation.1.bias";
        let block = format!("{FLUX}.0.img_mod.lin.bias");
        if rows % 2 == 1 || rows == 0 {
            case(
                format!("{name} of {rows}"),
                tensors(&[(&block, &[1]), (name, &[rows])]),
                "do not divide into 2",
            );
        }
    }
    // Two tensors for one.
    for (first, second) in [
        ("first_stage_model.decoder.conv_in.bias", "vae.decoder.conv_in.bias"),
        ("cond_stage_model.transformer.x", "conditioner.embedders.0.transformer.x"),
        ("text_encoders.clip_l.transformer.x", "cond_stage_model.transformer.x"),
        ("conditioner.embedders.1.model.text_model.x", "text_encoders.t5xxl.transformer.text_model.x"),
    ] {
        case(format!("{first} and {second}"), tensors(&[(first, &[1]), (second, &[1])]), "stands for");
    }
    // Nothing to denoise with.
    for (name, says) in [
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", "--vae"),
        ("decoder.up.0.block.0.conv1.weight", "--vae"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "--vae"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "--t5"),
        ("text_encoders.t5xxl.transformer.shared.weight", "--t5"),
        ("text_model.embeddings.token_embedding.weight", "--text-encoder"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "--text-encoder"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "--lora"),
        ("emb_params", "known family"),
        ("betas", "known family"),
        ("", "known family"),
        ("model.diffusion_model.", "known family"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("edm_mean", "Playground"),
    ] {
        case(format!("{name} alone"), tensors(&[(name, &[2, 2])]), says);
    }
    // Denoisers that are not known, or of which too little is there.
    for (channels, says) in [
        (8, "InstructPix2Pix"),
        (5, "depth"),
        (3, "4, or 9"),
        (0, "4, or 9"),
        (16, "4, or 9"),
        (4, "no tensor"),
    ] {
        let name = format!("{UNET}.0.0.weight");
        case(format!("a UNet of {channels} channels"), tensors(&[(&name, &[2, channels, 3, 3])]), says);
        let plain =
            [("conv_in.weight", &[2, channels, 3, 3][..]), ("down_blocks.0.resnets.0.norm1.bias", &[2])];
        case(format!("diffusers' UNet of {channels} channels"), tensors(&plain), says);
    }
    for number in ["18446744073709551615", "99999999999999999999", "64", "-1", "x"] {
        let name = format!("{UNET}.{number}.0.in_layers.2.weight");
        case(names(&name), tensors(&[(&name, &[2, 2, 3, 3])]), "channels");
    }
    case(
        "a transformer's middle".into(),
        tensors(&[(&format!("{FLUX}.0.img_mod.lin.bias"), &[6])]),
        "first or last layer",
    );
    let flux = [
        ("img_in.weight", &[2, 2][..]),
        ("final_layer.linear.weight", &[2, 2]),
        ("double_blocks.0.img_mod.lin.bias", &[6]),
    ];
    case("a transformer's ends".into(), tensors(&flux), "no tensor");
    // Configs in the header.
    let unet = format!("{UNET}.0.0.weight");
    for text in ["", "{", "[]", "1", "null", "\"unet\"", "{\"unet/config.json\"", "{\"a\":1}x"] {
        let bytes = with_texts(&[("aquatint.configs", text)], &[(&unet, &[2, 4, 3, 3])]);
        case(format!("configs that are {text:?}"), bytes, "");
    }
    cases
}

/// Headers that would take long or much memory.
fn large_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let many = |count: usize| {
        let entries: Vec<_> = (0..count).map(|i| entry(&i.to_string(), "U8", "[0]", 0, 0)).collect();
        safetensors(&format!("{{{}}}", entries.join(",")), 0)
    };
    let texts = |text: String| safetensors(&format!(r#"{{"__metadata__":{{{text}}}}}"#), 0);
    vec![
        ("16385 tensors", many((1 << 14) + 1), "more than 16384"),
        ("140,000 tensors", many(140_000), "more than 16384"),
        (
            "a shape of 2,000,000 extents",
            safetensors(
                &format!(
                    r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#,
                    "1,".repeat(2_000_000)
                ),
                1,
            ),
            "more than 8 dimensions",
        ),
        (
            "nine dimensions",
            safetensors(&format!("{{{}}}", entry("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1)), 1),
            "8 dim",
        ),
        (
            "600,000 texts",
            texts((0..600_000).map(|i| format!(r#""{i}":"""#)).collect::<Vec<_>>().join(",")),
            "4096",
        ),
        ("a text that is a number", texts(r#""a":1"#.into()), "not valid"),
        ("one name for two texts", texts(r#""a":"1","a":"2""#.into()), "a stands in it twice"),
        ("texts twice", safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "stands in it twice"),
        (
            "one name for two tensors",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[1]", 0, 1), entry("a", "U8", "[1]", 1, 2)),
                2,
            ),
            "a stands in it twice",
        ),
        (
            "one tensor written in two ways",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[1]", 0, 1), entry("\\u0061", "U8", "[1]", 1, 2)),
                2,
            ),
            "a stands in it twice",
        ),
        (
            "tensors that overlap",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[2]", 0, 2), entry("b", "U8", "[2]", 1, 3)),
                3,
            ),
            "not valid",
        ),
        (
            "tensors whose places are swapped",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[2]", 2, 6), entry("b", "U8", "[4]", 0, 2)),
                6,
            ),
            "not valid",
        ),
        (
            "tensors at one place",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[2]", 0, 2), entry("b", "U8", "[2]", 0, 2)),
                2,
            ),
            "not valid",
        ),
        (
            "a field that stands twice",
            safetensors(r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1),
            "not valid",
        ),
        (
            "offsets below 0",
            safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, 1),
            "not valid",
        ),
        (
            "three offsets",
            safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, 1),
            "not valid",
        ),
        (
            "an extent of 1.5",
            safetensors(r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, 1),
            "not valid",
        ),
        ("a header with an end", safetensors("{}{}", 0), "not valid"),
        ("8 MiB of spaces", safetensors(&" ".repeat(8 << 20), 0), "not valid"),
        ("a name of 8 MB", safetensors(&format!("{{\"{}\":1}}", "a".repeat(8_000_000)), 0), "not valid"),
        ("a pickle in a zip", b"PK\x03\x04\x14\x00\x00\x00archive/data.pkl".to_vec(), "pickle"),
        ("a pickle", b"\x80\x02}q\x00X\x05\x00\x00\x00ab".to_vec(), "pickle"),
    ]
}

/// The most memory that the process has had, in bytes of addresses.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn path() -> PathBuf {
    std::env::temp_dir().join(format!("aquatint-malformed-{}", std::process::id()))
}

/// Opens bytes as a component's file, as loading does, and reads all that it claims to have.
fn open(bytes: &[u8]) -> Result<(), String> {
    // Writing over a file would wait for the disk each time.
    let _ = std::fs::remove_file(path());
    std::fs::write(path(), bytes).unwrap();
    let views = Views::open("transformer", &[path()]).map_err(|e| e.to_string())?;
    let weights = Weights::from_views("transformer", views, None, &Device::Cpu);
    for name in weights.unused() {
        let shape = weights.stored_shape(&name).unwrap();
        weights.tensor(&name, &shape).map_err(|e| e.to_string())?;
        if let (Some(layer), [out, input]) = (name.strip_suffix(".weight"), shape.as_slice()) {
            weights.linear(layer, *input, *out, false).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Nanoseconds that this thread has computed; waiting for others does not count.
fn computed() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// What a refusal may cost.
const MOST_NANOSECONDS: u64 = 100_000_000;
const MOST_BYTES: u64 = 64 << 20;

/// Runs `open`, which must refuse within these bounds.
fn bounded(what: &str, open: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let (time, memory) = (computed(), peak());
    let result = open();
    let (time, memory) = (computed() - time, peak() - memory);
    assert!(time <= MOST_NANOSECONDS, "{what}: {} ms", time / 1_000_000);
    assert!(memory <= MOST_BYTES, "{what}: {} MiB", memory >> 20);
    result
}

#[test]
fn damaged_files_are_refused_without_harm() {
    assert_eq!(open(&good().bytes()), Ok(()), "the file that cases spoil");
    let before = peak();

    let cases = [gguf_cases(), safetensors_cases(), flux_cases(), large_cases()].concat();
    let single = single_file_cases();
    assert!(cases.len() >= 115 && cases.len() + single.len() >= 250, "{} {}", cases.len(), single.len());
    let mut wrong = Vec::new();
    let mut check = |what: &str, result: Result<(), String>, says: &str| match result {
        Err(error) if error.contains(says) && error.starts_with(path().to_str().unwrap()) => {}
        other => wrong.push(format!("{what}: {other:?}")),
    };
    for (what, bytes, says) in cases {
        check(what, bounded(what, || open(&bytes)), says);
        // Nothing that looks at files may fall over one either.
        let _ = (SingleFile::open(path()), inspect(path()));
    }
    for (what, bytes, says) in single {
        let _ = std::fs::remove_file(path());
        std::fs::write(path(), &bytes).unwrap();
        let open = || SingleFile::open(path()).map(drop).map_err(|e| e.to_string());
        check(&what, bounded(&what, open), says);
        let _ = (inspect(path()), self::open(&bytes));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Any cut, and any wrong byte: an error or a file that can be read to its end.
    let bytes = good().bytes();
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len]).is_err(), "{len} bytes");
    }
    let header = bytes.len() - 148;
    for (at, bit) in (0..header).flat_map(|at| [0, 3, 7].map(move |bit| (at, bit))) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << bit;
        let _ = open(&bytes);
    }
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quantised_float8.safetensors");
    let bytes = std::fs::read(fixture).unwrap();
    for at in (0..bytes.len().min(1200)).step_by(3) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let _ = open(&bytes);
        let _ = SafetensorsFile::from_bytes("w", bytes);
    }
    assert!(CheckpointFile::open("/").is_err(), "a folder");
    assert!(CheckpointFile::open("/no/such/file").is_err());

    let grown = peak() - before;
    assert!(grown < 256 << 20, "{grown} bytes of memory");
    std::fs::remove_file(path()).unwrap();
}
