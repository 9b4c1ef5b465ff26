//! T5's tokens and hidden states against transformers, and half precision against full.

use std::path::Path;

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{ModelFolder, Weights, synthetic};
use aquatint_models::text::t5::{MAX_TOKENS, Precision, T5Model, T5Options, T5Tokenizer};
use aquatint_models::text::{T5Config, T5Encoder};
use candle_core::{DType, Device, IndexOp, Tensor};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::common::{Fixture, assert_close, max_difference};

/// The largest difference seen is 5e-5, at 512 tokens.
const TOLERANCE: f32 = 1e-4;

const SPIECE: &[u8] = include_bytes!("../fixtures/t5_tokenizer/spiece.model");
const JSON: &[u8] = include_bytes!("../fixtures/t5_tokenizer/tokenizer.json");

type Files = Vec<(&'static str, &'static [u8])>;

fn folder(files: Files) -> ModelFolder {
    ModelFolder::Embedded(Box::leak(files.into_boxed_slice()))
}

fn leak(value: &Value) -> &'static [u8] {
    Box::leak(value.to_string().into_bytes().into_boxed_slice())
}

fn tokenizer(files: Files) -> aquatint_models::Result<T5Tokenizer> {
    T5Tokenizer::load(&folder(files), "tokenizer_2")
}

fn small() -> T5Tokenizer {
    tokenizer(vec![("tokenizer_2/spiece.model", SPIECE)]).unwrap()
}

fn ids(fixture: &Fixture, name: &str) -> Vec<u32> {
    fixture
        .tensor(name)
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(|v| v as u32)
        .collect()
}

/// The tokenizer's ids of all texts against those recorded under `name`.
fn assert_texts_have_the_ids(fixture: &Fixture, name: &str, tokenizer: &T5Tokenizer) {
    let texts: Vec<String> = serde_json::from_str(fixture.text("texts")).unwrap();
    assert!(texts.len() >= 200);
    let (all, lengths) = (ids(fixture, &format!("{name}.ids")), ids(fixture, &format!("{name}.lengths")));
    assert_eq!(texts.len(), lengths.len());
    let mut rest = &all[..];
    for (text, length) in texts.iter().zip(lengths) {
        let (expected, later) = rest.split_at(length as usize);
        rest = later;
        let mut ours = tokenizer.tokens(text).unwrap();
        ours.push(tokenizer.eos_token_id());
        assert_eq!(ours, expected, "{name}: {text:?}");
        let fitted = tokenizer.encode(text, expected.len()).unwrap();
        assert_eq!(fitted, expected, "{name}: {text:?} at its own length");
    }
    assert!(rest.is_empty());
}

#[test]
fn texts_have_the_reference_ids() {
    let fixture = Fixture::open("t5_tokens");
    let config: Value = serde_json::from_str(fixture.text("config")).unwrap();
    assert_texts_have_the_ids(&fixture, "spiece", &small());
    let json = tokenizer(vec![("tokenizer_2/tokenizer.json", JSON)]).unwrap();
    assert_texts_have_the_ids(&fixture, "json", &json);
    let not_legacy =
        vec![("tokenizer_2/spiece.model", SPIECE), ("tokenizer_2/tokenizer_config.json", leak(&config))];
    assert_texts_have_the_ids(&fixture, "first", &tokenizer(not_legacy).unwrap());
    assert_ne!(ids(&fixture, "spiece.ids"), ids(&fixture, "first.ids"), "the config changes nothing");
}

/// FLUX's own files, where `AQUATINT_TEST_DATA` has them.
#[test]
fn the_published_tokenizer() {
    let folder = std::env::var_os("AQUATINT_TEST_DATA").map(|data| Path::new(&data).join("flux"));
    let Some(folder) = folder.filter(|f| f.join("tokenizer_2/spiece.model").is_file()) else {
        eprintln!("skipped: there is no flux/tokenizer_2 in AQUATINT_TEST_DATA, or the variable is not set");
        return;
    };
    let fixture = Fixture::open("t5_tokens");
    for file in ["spiece.model", "tokenizer.json"] {
        let path = folder.join("tokenizer_2");
        let bytes = |name: &str| -> &'static [u8] {
            Box::leak(std::fs::read(path.join(name)).unwrap().into_boxed_slice())
        };
        let name =
            if file == "spiece.model" { "tokenizer_2/spiece.model" } else { "tokenizer_2/tokenizer.json" };
        let files =
            vec![(name, bytes(file)), ("tokenizer_2/tokenizer_config.json", bytes("tokenizer_config.json"))];
        let tokenizer = tokenizer(files).unwrap();
        assert_eq!(tokenizer.vocab_size(), 32100);
        let golden = tokenizer.encode("a photo of a red cat", 9).unwrap();
        assert_eq!(golden, [3, 9, 1202, 13, 3, 9, 1131, 1712, 1]);
        assert_texts_have_the_ids(&fixture, "published", &tokenizer);
    }
}

#[test]
fn prompts_are_cut_before_the_end_and_padded_after_it() {
    let tokenizer = small();
    let text = "a photo of a red cat";
    let tokens = tokenizer.tokens(text).unwrap();
    let n = tokens.len();
    assert_eq!((tokenizer.eos_token_id(), tokenizer.pad_token_id(), tokenizer.vocab_size()), (1, 0, 736));
    let encoded = tokenizer.encode(text, n + 4).unwrap();
    assert_eq!(encoded, [&tokens[..], &[1, 0, 0, 0]].concat());
    assert_eq!(tokenizer.encode(text, n).unwrap(), [&tokens[..n - 1], &[1]].concat());
    assert_eq!(tokenizer.encode(text, 1).unwrap(), [1]);
    assert_eq!(tokenizer.encode("", 3).unwrap(), [1, 0, 0]);
    assert!(tokenizer.encode(text, 0).unwrap_err().to_string().contains("max_length is 0"));
}

#[test]
fn malformed_tokenizers_are_refused_by_name() {
    let refused = |files: Files| tokenizer(files).unwrap_err().to_string();
    let json = |change: fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(JSON).unwrap();
        change(&mut json);
        refused(vec![("tokenizer_2/tokenizer.json", leak(&json))])
    };
    assert!(refused(vec![]).contains("tokenizer.json or spiece.model is needed"));
    assert!(refused(vec![("tokenizer_2/spiece.model", &SPIECE[..5000])]).contains("spiece.model: "));
    assert!(refused(vec![("tokenizer_2/spiece.model", b"")]).contains("unk_id 0"));
    assert!(refused(vec![("tokenizer_2/tokenizer.json", b"{}")]).contains("missing field `model`"));
    assert!(json(|j| j["model"]["unk_id"] = json!(99999)).contains("tokenizer.json: The `unk_id` is larger"));
    assert!(json(|j| j["model"]["byte_fallback"] = json!(true)).contains("byte_fallback"));
    assert!(json(|j| j["model"]["vocab"][1][0] = json!("<end>")).contains("</s>"));
    assert!(json(|j| j["added_tokens"][2]["id"] = json!(7)).contains("has id 7"));
    assert!(
        json(|j| j["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("AAAA"))
            .contains("malformed")
    );
    assert!(
        json(|j| j["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("?"))
            .contains("its normalizer")
    );
    assert!(json(|j| j["normalizer"]["type"] = json!("None")).contains("its normalizer"));
    let config = leak(&json!({"extra_ids": 1_000_000_000}));
    let files = vec![("tokenizer_2/spiece.model", SPIECE), ("tokenizer_2/tokenizer_config.json", config)];
    assert!(refused(files).contains("extra_ids is 1000000000"));
}

/// Every byte of the model file flipped: read or refused, and no text makes it panic.
#[test]
fn damaged_models_never_panic() {
    for at in (0..SPIECE.len()).step_by(41) {
        let mut bytes = SPIECE.to_vec();
        bytes[at] ^= 0x5a;
        let bytes = &*Box::leak(bytes.into_boxed_slice());
        if let Ok(tokenizer) = tokenizer(vec![("tokenizer_2/spiece.model", bytes)]) {
            for text in ["a photo of a red cat", "Ｆｕｌｌ e\u{301} ﬁ ½\n", "猫\u{0}</s>"] {
                _ = tokenizer.encode(text, 20);
            }
        }
    }
}

fn config(fixture: &Fixture) -> T5Config {
    serde_json::from_str(fixture.text("config")).unwrap()
}

fn encoder(fixture: &Fixture, change: impl FnOnce(&mut Value)) -> aquatint_models::Result<T5Encoder> {
    let mut config: Value = serde_json::from_str(fixture.text("config")).unwrap();
    change(&mut config);
    let files = vec![("tokenizer_2/tokenizer.json", JSON), ("text_encoder_2/config.json", leak(&config))];
    T5Encoder::load(&folder(files), "text_encoder_2", "tokenizer_2", &T5Options::default(), &Device::Cpu)
}

fn prompts(fixture: &Fixture) -> Vec<String> {
    serde_json::from_str(fixture.text("prompts")).unwrap()
}

#[test]
fn prompts_become_the_reference_hidden_states() {
    for length in [77, 256, 512] {
        let fixture = Fixture::open(&format!("t5_{length}"));
        let encoder = encoder(&fixture, |_| {}).unwrap();
        let prompts = prompts(&fixture);
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let rows: Vec<_> =
            prompts.iter().flat_map(|p| encoder.tokenizer().encode(p, length).unwrap()).collect();
        assert_eq!(rows, ids(&fixture, "ids"));
        let hidden = encoder.encode(&prompts, length).unwrap();
        let expected = fixture.tensor("hidden");
        assert_close(&format!("{length} tokens"), &hidden, &expected, TOLERANCE);
        // Each alone, as a request of one prompt has it.
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = encoder.encode(&[prompt], length).unwrap();
            assert_eq!(max_difference(&alone, &hidden.i(i..i + 1).unwrap()), 0.0);
        }
    }
}

#[test]
fn hidden_states_depend_on_prompt_length_and_buckets() {
    let fixture = Fixture::open("t5_77");
    let normal = encoder(&fixture, |_| {}).unwrap();
    let prompts = prompts(&fixture);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let first = |prompt, length| normal.encode(&[prompt], length).unwrap().i((.., ..20)).unwrap();
    let cat = first(prompts[0], 77);
    let differ = |what: &str, a: &Tensor, b: &Tensor| {
        let d = max_difference(a, b);
        assert!(d > 0.01, "{what} changes the hidden states by {d} only");
    };
    differ("another animal", &cat, &first("a photo of a red dog", 77));
    differ("a capital letter", &cat, &first("A photo of a red cat", 77));
    // Padding is attended to: more of it is another result for the same tokens.
    differ("more padding", &cat, &first(prompts[0], 256));
    differ("emphasis, which is text", &cat, &first("a photo of a (red:1.2) cat", 77));
    let few = encoder(&fixture, |c| {
        c["relative_attention_num_buckets"] = json!(8);
        c["relative_attention_max_distance"] = json!(20);
    });
    let hidden = few.unwrap().encode(&prompts, 77).unwrap();
    assert_close("few buckets", &hidden, &fixture.tensor("few_buckets"), TOLERANCE);
    differ("fewer buckets", &hidden, &fixture.tensor("hidden"));
}

#[test]
fn what_cannot_be_encoded_is_refused_by_name() {
    let fixture = Fixture::open("t5_77");
    let refused = |change: fn(&mut Value)| encoder(&fixture, change).unwrap_err().to_string();
    assert!(
        refused(|c| c["feed_forward_proj"] = json!("relu"))
            .contains("text_encoder_2/config.json: feed_forward_proj \"relu\"")
    );
    assert!(refused(|c| c["vocab_size"] = json!(700)).contains("has 736 tokens, the text encoder 700"));
    assert!(refused(|c| c["num_layers"] = json!(0)).contains("num_layers is 0"));
    let encoder = encoder(&fixture, |_| {}).unwrap();
    let refused = |prompts: &[&str], n| encoder.encode(prompts, n).unwrap_err().to_string();
    assert!(refused(&[], 77).contains("no prompt"));
    assert!(refused(&["a"], 0).contains("max_length is 0"));
    assert!(refused(&["a"], MAX_TOKENS + 1).contains("max_length is 4097"));
    let model = encoder.model();
    assert!(model.forward(&[vec![736]]).unwrap_err().to_string().contains("token id 736"));
    assert!(model.forward(&[vec![1], vec![1, 2]]).unwrap_err().to_string().contains("[1, 2] tokens"));
}

/// A file of the encoder's tensors: synthetic ones, each multiplied by what `planted` says of its name.
fn weights(config: &T5Config, table: &[&str], planted: impl Fn(&str) -> f32) -> Weights {
    let (d, inner, ff) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
    let mut shapes: Vec<(String, Vec<usize>)> =
        table.iter().map(|name| ((*name).to_owned(), vec![config.vocab_size, d])).collect();
    shapes.push(("encoder.final_layer_norm.weight".to_owned(), vec![d]));
    for i in 0..config.num_layers {
        let mut part = |name: &str, shape: &[usize]| {
            shapes.push((format!("encoder.block.{i}.layer.{name}.weight"), shape.to_vec()));
        };
        for name in ["q", "k", "v"] {
            part(&format!("0.SelfAttention.{name}"), &[inner, d]);
        }
        part("0.SelfAttention.o", &[d, inner]);
        part("0.layer_norm", &[d]);
        part("1.layer_norm", &[d]);
        part("1.DenseReluDense.wi_0", &[ff, d]);
        part("1.DenseReluDense.wi_1", &[ff, d]);
        part("1.DenseReluDense.wo", &[d, ff]);
        if i == 0 {
            part("0.SelfAttention.relative_attention_bias", &[32, config.num_heads]);
        }
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            // One table, whatever it is called.
            let source = if table.contains(&&*name) { "shared.weight" } else { &name };
            let factor = planted(&name);
            let values = synthetic::tensor(source, &shape, 0);
            let bytes = values.into_iter().flat_map(|v| (v * factor).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let file = SafetensorsFile::from_bytes("planted", bytes).unwrap();
    Weights::from_files("text_encoder_2", vec![file], None, &Device::Cpu).unwrap()
}

fn reference_ids(fixture: &Fixture) -> Vec<Vec<u32>> {
    ids(fixture, "ids").chunks(77).map(<[u32]>::to_vec).collect()
}

#[test]
fn the_embedding_table_may_have_either_name_or_both() {
    let fixture = Fixture::open("t5_77");
    let (shared, embed) = ("shared.weight", "encoder.embed_tokens.weight");
    for table in [vec![shared], vec![embed], vec![shared, embed]] {
        let weights = weights(&config(&fixture), &table, |_| 1.0);
        let model = T5Model::new(config(&fixture), &weights, Precision::Full).unwrap();
        let hidden = model.forward(&reference_ids(&fixture)).unwrap();
        assert_close(&format!("{table:?}"), &hidden, &fixture.tensor("hidden"), TOLERANCE);
        let unused = weights.unused();
        assert_eq!(unused, if table.len() == 2 { vec![embed.to_owned()] } else { vec![] });
    }
    let error = T5Model::new(config(&fixture), &weights(&config(&fixture), &[], |_| 1.0), Precision::Full);
    assert!(error.unwrap_err().to_string().contains("no tensor shared.weight"));
}

/// What is planted, by the end of a tensor's name.
const PLANTED: [(&str, &[(&str, f32)]); 6] = [
    ("embedded tokens", &[("shared.weight", 3e5)]),
    ("the attention's output", &[("SelfAttention.o.weight", 5e4)]),
    (
        "queries and keys",
        &[("block.1.layer.0.SelfAttention.q.weight", 6e4), ("relative_attention_bias.weight", 1e3)],
    ),
    ("values", &[("SelfAttention.v.weight", 1e5)]),
    ("the gated product", &[("wi_0.weight", 400.0), ("wi_1.weight", 400.0), ("wo.weight", 0.01)]),
    ("the feed-forward output", &[("wo.weight", 3e5)]),
];

#[test]
fn planted_large_weights_overflow_half_unless_rescaled() {
    let fixture = Fixture::open("t5_77");
    let ids = reference_ids(&fixture);
    for (what, planted) in PLANTED {
        let factor = |name: &str| {
            planted.iter().find(|(end, _)| name.ends_with(end)).map_or(1.0, |(_, factor)| *factor)
        };
        let weights = weights(&config(&fixture), &["shared.weight"], factor);
        let hidden = |dtype, scale| {
            let model = T5Model::with_scale(config(&fixture), &weights, dtype, scale).unwrap();
            model.forward(&ids).unwrap()
        };
        let full = hidden(DType::F32, 1.0);
        assert!(max_difference(&full, &full) == 0.0, "{what}: f32 is not finite");
        let plain = hidden(DType::F16, 1.0);
        assert!(max_difference(&plain, &plain).is_nan(), "{what}: nothing overflows");
        let scaled = hidden(DType::F16, Precision::HALF_SCALE);
        let relative = max_difference(&scaled, &full) / max_difference(&full, &full.zeros_like().unwrap());
        println!("{what}: {relative:e}");
        assert!(relative <= 2e-2, "{what}: half differs from full by {relative}");
    }
}

#[test]
fn the_scale_changes_no_bit_in_f32() {
    let fixture = Fixture::open("t5_77");
    let ids = reference_ids(&fixture);
    let weights = weights(&config(&fixture), &["shared.weight"], |_| 1.0);
    let hidden = |dtype, scale| {
        T5Model::with_scale(config(&fixture), &weights, dtype, scale).unwrap().forward(&ids).unwrap()
    };
    let full = hidden(DType::F32, 1.0);
    for scale in [0.25, 64.0, 1024.0] {
        assert_eq!(max_difference(&hidden(DType::F32, scale), &full), 0.0, "{scale}");
    }
    // Where nothing overflows, half is as near with the scale as without.
    let error = |scale| max_difference(&hidden(DType::F16, scale), &full);
    let (plain, scaled) = (error(1.0), error(Precision::HALF_SCALE));
    assert!(plain > 0.0, "f16 rounds nothing");
    assert!(scaled < 2.0 * plain + 1e-3, "half differs by {scaled} with the scale, {plain} without");
}
