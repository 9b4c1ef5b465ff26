//! Tokens and text encoders against transformers, prompt_embeds against diffusers and the web UI's formula.

use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::{ModelFolder, Weights, synthetic};
use aquatint_models::text::{
    ClipTextModel, Encoded, HiddenStates, Prompt, TextEncoder, Tokenizer, clip, encoder, prompt,
};
use candle_core::{Device, IndexOp, Tensor};
use serde_json::Value;

use crate::common::{Fixture, assert_close, max_difference};

const TOLERANCE: f32 = 1e-5;
/// Restoring a mean that is nearly 0 enlarges its rounding errors.
const EMPHASIS_TOLERANCE: f32 = 1e-4;

const VOCAB: &[u8] = include_bytes!("../fixtures/tokenizer/vocab.json");
const MERGES: &[u8] = include_bytes!("../fixtures/tokenizer/merges.txt");

type Files = Vec<(&'static str, &'static [u8])>;

fn leak(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

fn folder(files: Files) -> ModelFolder {
    ModelFolder::Embedded(Box::leak(files.into_boxed_slice()))
}

/// The published vocabulary in `component/`, with the JSON files that the fixture's tokenizer `name` has.
fn tokenizer_files(fixture: &Fixture, component: &str, name: &str) -> Files {
    let file = |name: &str| leak(&format!("{component}/{name}"));
    let mut files: Files = vec![(file("vocab.json"), VOCAB), (file("merges.txt"), MERGES)];
    let tokenizers: Value = serde_json::from_str(fixture.text("tokenizers")).unwrap();
    for (json, content) in tokenizers[name].as_object().unwrap() {
        files.push((file(json), leak(&content.to_string()).as_bytes()));
    }
    files
}

fn tokenizer(fixture: &Fixture, name: &str) -> Tokenizer {
    Tokenizer::load(&folder(tokenizer_files(fixture, "tokenizer", name)), "tokenizer").unwrap()
}

/// The encoder `component` of the fixture with synthetic weights, as the reference scripts fill theirs.
fn text_encoder(
    fixture: &Fixture,
    component: &str,
    tokenizer: &str,
    change: impl FnOnce(&mut Value),
) -> TextEncoder {
    let configs: Value = serde_json::from_str(fixture.text("configs")).unwrap();
    let mut config = configs[component].clone();
    change(&mut config);
    let mut files = tokenizer_files(fixture, "tokenizer", tokenizer);
    files.push((leak(&format!("{component}/config.json")), leak(&config.to_string()).as_bytes()));
    TextEncoder::load(&folder(files), component, "tokenizer", None, None, &Device::Cpu).unwrap()
}

fn sdxl(fixture: &Fixture) -> [TextEncoder; 2] {
    let encoder = |component, tokenizer| text_encoder(fixture, component, tokenizer, |_| {});
    [encoder("text_encoder", "plain"), encoder("text_encoder_2", "exclamation")]
}

fn flat(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text).unwrap().into_iter().flatten().collect()
}

fn rows(ids: &Tensor) -> Vec<Vec<u32>> {
    let rows = ids.to_vec2::<i64>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
}

#[test]
fn texts_have_the_reference_ids() {
    let fixture = Fixture::open("clip_tokens");
    let texts: Vec<String> = serde_json::from_str(fixture.text("texts")).unwrap();
    assert!(texts.len() >= 100);
    for name in ["plain", "exclamation", "older"] {
        let tokenizer = tokenizer(&fixture, name);
        let ids = fixture.tensor(&format!("{name}.ids")).to_vec1::<i64>().unwrap();
        let lengths = fixture.tensor(&format!("{name}.lengths")).to_vec1::<i64>().unwrap();
        let mut ids = ids.into_iter().map(|id| id as u32);
        assert_eq!(texts.len(), lengths.len());
        for (text, length) in texts.iter().zip(lengths) {
            let expected: Vec<u32> = ids.by_ref().take(length as usize).collect();
            let (bos, eos) = (tokenizer.bos_token_id(), tokenizer.eos_token_id());
            let ours: Vec<u32> = [vec![bos], flat(&tokenizer, text), vec![eos]].concat();
            assert_eq!(ours, expected, "{name}: {text:?}");
        }
        assert_eq!(ids.next(), None);
    }
}

#[test]
fn the_published_golden_ids() {
    let tokenizer = tokenizer(&Fixture::open("clip_tokens"), "plain");
    let chunks = prompt::chunks("a photo of a red cat", &tokenizer, 77).unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].ids[..8], [49406, 320, 1125, 539, 320, 736, 2368, 49407]);
    assert_eq!(chunks[0].ids[8..], [49407; 69]);
    assert_eq!(chunks[0].weights, [1.0; 77]);
}

#[test]
fn the_configs_say_which_token_pads() {
    let fixture = Fixture::open("clip_tokens");
    let pads: Value = serde_json::from_str(fixture.text("pads")).unwrap();
    for (name, id) in pads.as_object().unwrap() {
        assert_eq!(u64::from(tokenizer(&fixture, name).pad_token_id()), id.as_u64().unwrap(), "{name}");
    }
    let empty = prompt::Chunk::empty(&tokenizer(&fixture, "exclamation"), 77);
    assert_eq!(empty.ids[..3], [49406, 49407, 0]);
}

#[test]
fn tokenizer_json_says_the_same_as_two_files() {
    let merges: Vec<_> = std::str::from_utf8(MERGES).unwrap().lines().skip(1).collect();
    let pairs: Vec<_> = merges.iter().map(|m| m.split_once(' ').unwrap()).collect();
    let vocab: Value = serde_json::from_slice(VOCAB).unwrap();
    let fixture = Fixture::open("clip_tokens");
    let text = "an otter's café! 2 <|endoftext|>";
    let expected = flat(&tokenizer(&fixture, "plain"), text);
    for merges in [serde_json::json!(merges), serde_json::json!(pairs)] {
        let json = serde_json::json!({
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
            "added_tokens": [{"id": 49407, "content": "<|endoftext|>", "special": true, "normalized": false}],
        });
        let files: Files = vec![("tokenizer/tokenizer.json", leak(&json.to_string()).as_bytes())];
        let tokenizer = Tokenizer::load(&folder(files), "tokenizer").unwrap();
        assert_eq!(flat(&tokenizer, text), expected);
    }
}

#[test]
fn malformed_tokenizers_are_refused_by_name() {
    let refused = |files: Files| Tokenizer::load(&folder(files), "tokenizer").unwrap_err().to_string();
    let two = |vocab: &'static str, merges: &'static str| -> Files {
        vec![("tokenizer/vocab.json", vocab.as_bytes()), ("tokenizer/merges.txt", merges.as_bytes())]
    };
    let small = r#"{"a":0,"b":1,"ab":2,"<|startoftext|>":3,"<|endoftext|>":4}"#;
    assert!(refused(vec![]).contains("builtin:tokenizer: holds no tokenizer"));
    assert!(refused(vec![("tokenizer/vocab.json", VOCAB)]).contains("merges.txt: no such file"));
    assert!(refused(two(small, "#version: 0.2\na b\na")).contains(r#""a" is no merge"#));
    assert!(refused(two(small, "b a")).contains(r#"the merge of "b" and "a" makes a token that is not"#));
    assert!(refused(two("{\"a\": -1}", "a b")).contains("vocab.json: invalid value"));
    assert!(
        refused(two(r#"{"a":0,"b":1,"ab":2}"#, "a b")).contains(r#"special token "<|startoftext|>" is not"#)
    );
    let mut gap = two(small, "a b");
    gap.push(("tokenizer/added_tokens.json", br#"{"<new>": 7}"#));
    assert!(refused(gap).contains(r#"the added token "<new>" has id 7, but its place is Some(5)"#));
    Tokenizer::load(&folder(two(small, "a b")), "tokenizer").unwrap();
}

#[test]
fn every_hidden_state_and_the_pooled_embedding() {
    for name in ["quick_gelu", "gelu", "gelu_new"] {
        let fixture = Fixture::open(&format!("clip_{name}"));
        let config: clip::Config = serde_json::from_str(fixture.text("config")).unwrap();
        let weights = Weights::synthetic("text_encoder", 0, &Device::Cpu);
        let model = ClipTextModel::new(config.clone(), &weights).unwrap();
        assert_eq!(model.has_projection(), name != "quick_gelu");
        let output = model.forward(&rows(&fixture.tensor("ids"))).unwrap();
        assert_eq!(output.hidden_states.len(), config.num_hidden_layers + 1);
        for (i, states) in output.hidden_states.iter().enumerate() {
            let key = format!("hidden_states.{i}");
            assert_close(&format!("{name}: {key}"), states, &fixture.tensor(&key), TOLERANCE);
        }
        assert_close(name, &output.last_hidden_state, &fixture.tensor("last_hidden_state"), TOLERANCE);
        assert_close(&format!("{name}: pooled"), &output.pooled, &fixture.tensor("pooled"), TOLERANCE);
    }
}

/// Keys and shapes of an encoder of one layer, as transformers 5 writes them.
fn keys_without_prefix(vocab: usize, c: usize, inner: usize) -> Vec<(String, Vec<usize>)> {
    let mut keys = vec![
        ("embeddings.token_embedding.weight".to_owned(), vec![vocab, c]),
        ("embeddings.position_embedding.weight".to_owned(), vec![77, c]),
    ];
    let mut layer = |name: &str, weight: Vec<usize>| {
        keys.push((format!("{name}.bias"), vec![weight[0]]));
        keys.push((format!("{name}.weight"), weight));
    };
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        layer(&format!("encoder.layers.0.self_attn.{name}"), vec![c, c]);
    }
    layer("encoder.layers.0.mlp.fc1", vec![inner, c]);
    layer("encoder.layers.0.mlp.fc2", vec![c, inner]);
    for name in ["encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "final_layer_norm"] {
        layer(name, vec![c]);
    }
    keys
}

#[test]
fn keys_with_and_without_the_prefix_give_the_same_encoder() {
    let config: clip::Config = serde_json::from_value(serde_json::json!({
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
    }))
    .unwrap();
    let tensors = keys_without_prefix(50, 16, 32).into_iter().map(|(key, shape)| {
        let values = synthetic::tensor(&format!("text_model.{key}"), &shape, 0);
        (key, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    let bytes = safetensors::serialize(tensors, None).unwrap();
    let file = SafetensorsFile::from_bytes("model.safetensors", bytes).unwrap();
    let stored = Weights::from_files("text_encoder", vec![file], None, &Device::Cpu).unwrap();
    let synthetic = Weights::synthetic("text_encoder", 0, &Device::Cpu);
    let pooled = |weights: &Weights| {
        ClipTextModel::new(config.clone(), weights).unwrap().forward(&[vec![1, 40, 7, 49, 3]]).unwrap().pooled
    };
    assert_eq!(max_difference(&pooled(&stored), &pooled(&synthetic)), 0.0);
    assert!(stored.unused().is_empty());
    // LoRAs find the layers under the keys of the checkpoint.
    assert!(stored.layer_shapes().contains_key("encoder.layers.0.self_attn.q_proj"));
    assert!(synthetic.layer_shapes().contains_key("text_model.encoder.layers.0.mlp.fc2"));
}

#[test]
fn prompt_embeds_are_those_of_diffusers() {
    let fixture = Fixture::open("clip_encode_prompt");
    let [first, second] = sdxl(&fixture);
    let text = fixture.text("prompt");
    for clip_skip in 0..3 {
        let prompts = [Prompt { text, clip_skip }, Prompt::new("")];
        let sd = first.encode(&prompts, HiddenStates::Final).unwrap();
        assert!(sd.pooled.is_none());
        let xl = encoder::encode(&[&first, &second], &prompts, HiddenStates::Penultimate).unwrap();
        let pooled = xl.pooled.unwrap();
        for (b, which) in [clip_skip.to_string().as_str(), "negative"].into_iter().enumerate() {
            for (model, hidden) in [("sd", &sd.hidden), ("sdxl", &xl.hidden)] {
                let key = format!("{model}.{which}");
                assert_close(&key, &hidden.i(b..b + 1).unwrap(), &fixture.tensor(&key), TOLERANCE);
            }
        }
        assert_close("pooled", &pooled.i(0..1).unwrap(), &fixture.tensor("sdxl.pooled"), TOLERANCE);
        assert_close(
            "negative",
            &pooled.i(1..2).unwrap(),
            &fixture.tensor("sdxl.negative_pooled"),
            TOLERANCE,
        );
    }
}

#[test]
fn weights_and_long_prompts_follow_the_formula() {
    let fixture = Fixture::open("clip_emphasis");
    let [first, second] = sdxl(&fixture);
    let prompts: Value = serde_json::from_str(fixture.text("prompts")).unwrap();
    let mut compared = 0;
    for (name, text) in prompts.as_object().unwrap() {
        let prompt = [Prompt::new(text.as_str().unwrap())];
        let sd = first.encode(&prompt, HiddenStates::Final).unwrap();
        let xl = encoder::encode(&[&first, &second], &prompt, HiddenStates::Penultimate).unwrap();
        let ours = [("sd", sd.hidden), ("sdxl", xl.hidden), ("pooled", xl.pooled.unwrap())];
        for (what, ours) in ours {
            let key = format!("{name}.{what}");
            if fixture.names().any(|n| n == key) {
                assert_close(&key, &ours, &fixture.tensor(&key), EMPHASIS_TOLERANCE);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, fixture.names().count());
}

#[test]
fn fixtures_are_sensitive_to_words_weights_layers_and_ends() {
    let fixture = Fixture::open("clip_encode_prompt");
    let [first, second] = sdxl(&fixture);
    let run = |text, clip_skip| -> Encoded {
        encoder::encode(&[&first, &second], &[Prompt { text, clip_skip }], HiddenStates::Penultimate).unwrap()
    };
    let base = run("a lighthouse in a storm", 0);
    let far = |other: Encoded, what: &str| {
        let d = max_difference(&other.hidden, &base.hidden);
        assert!(d > 1000.0 * TOLERANCE, "{what}: {d:e}");
        max_difference(&other.pooled.unwrap(), base.pooled.as_ref().unwrap())
    };
    assert!(far(run("a lighthouse in a desert", 0), "one word") > 1000.0 * TOLERANCE);
    assert!(far(run("a lighthouse in the storm", 0), "one small word") > 1000.0 * TOLERANCE);
    assert!(far(run("a lighthouse in a storm!", 0), "one mark") > 1000.0 * TOLERANCE);
    far(run("a lighthouse in a (storm:1.05)", 0), "a weight");
    far(run("a lighthouse in a storm", 1), "clip_skip");
}

#[test]
fn prompts_of_one_call_get_equal_length() {
    let fixture = Fixture::open("clip_emphasis");
    let [first, _] = sdxl(&fixture);
    let long = "sea ".repeat(80);
    let both = first.encode(&[Prompt::new("a cat"), Prompt::new(&long)], HiddenStates::Final).unwrap();
    assert_eq!(both.hidden.dims(), [2, 154, 32]);
    let cat = first.encode(&[Prompt::new("a cat")], HiddenStates::Final).unwrap();
    let empty = first.encode(&[Prompt::new("")], HiddenStates::Final).unwrap();
    let filled = Tensor::cat(&[cat.hidden, empty.hidden], 1).unwrap();
    assert_close("filled with an empty chunk", &both.hidden.i(0..1).unwrap(), &filled, TOLERANCE);
}

#[test]
fn textual_inversions_are_those_of_diffusers() {
    let fixture = Fixture::open("clip_textual_inversion");
    // 2 is what published configs claim; the end must be found with both.
    for eos in [49407, 2] {
        let mut encoder =
            text_encoder(&fixture, "text_encoder", "plain", |config| config["eos_token_id"] = eos.into());
        encoder.add_textual_inversion("<cat-toy>", &fixture.tensor("vectors.1")).unwrap();
        encoder.add_textual_inversion("<style>", &fixture.tensor("vectors.3")).unwrap();
        let text = fixture.text("prompt");
        let expected = rows(&fixture.tensor("ids"));
        let chunks = prompt::chunks(text, encoder.tokenizer(), 77).unwrap();
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].ids, expected[0]);
        let output = encoder.model().forward(&expected).unwrap();
        assert_close("pooled", &output.pooled, &fixture.tensor("pooled"), TOLERANCE);
        let encoded = encoder.encode(&[Prompt::new(text)], HiddenStates::Final).unwrap();
        assert_close("hidden", &encoded.hidden, &fixture.tensor("last_hidden_state"), TOLERANCE);
        let any_case = prompt::chunks(&text.to_uppercase(), encoder.tokenizer(), 77).unwrap();
        assert_eq!(any_case[0].ids, expected[0]);
    }
}

#[test]
fn textual_inversions_that_do_not_fit_are_refused() {
    let fixture = Fixture::open("clip_textual_inversion");
    let mut encoder = text_encoder(&fixture, "text_encoder", "plain", |_| {});
    let (one, three) = (fixture.tensor("vectors.1"), fixture.tensor("vectors.3"));
    encoder.add_textual_inversion("<style>", &three).unwrap();
    let mut refused =
        |name: &str, vectors: &Tensor| encoder.add_textual_inversion(name, vectors).unwrap_err().to_string();
    assert!(refused("<style>", &one).contains("in the vocabulary already"));
    assert!(refused("<style>_2", &one).contains("in the vocabulary already"));
    assert!(refused("<STYLE>", &one).contains("in case alone"));
    assert!(refused("", &one).contains("a name"));
    let wide = Tensor::zeros((1, 33), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(refused("<wide>", &wide).contains("[1, 33], this encoder takes (n, 32)"));
    // Nothing of what was refused is left behind.
    encoder.add_textual_inversion("<wide>", &one).unwrap();
    assert_eq!(encoder.tokenizer().vocab_size(), 49408 + 4);
    assert_eq!(encoder.model().vocab_size(), 49408 + 4);
}

#[test]
fn vectors_of_an_inversion_stay_in_one_chunk() {
    let mut tokenizer = tokenizer(&Fixture::open("clip_tokens"), "plain");
    assert_eq!(tokenizer.add_tokens("<eight>", 8).unwrap(), 49408..49416);
    let text = format!("{}<eight>", "sea ".repeat(70));
    let chunks = prompt::chunks(&text, &tokenizer, 77).unwrap();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0].ids[71..], [49407; 6]);
    assert_eq!(chunks[1].ids[1..10], [49408, 49409, 49410, 49411, 49412, 49413, 49414, 49415, 49407]);
    tokenizer.add_tokens("<hundred>", 100).unwrap();
    assert_eq!(prompt::chunks("<hundred>", &tokenizer, 77).unwrap().len(), 2);
}

#[test]
fn configs_that_contradict_themselves_are_refused() {
    let refused = |json: Value| {
        let config: clip::Config = serde_json::from_value(json).unwrap();
        ClipTextModel::new(config, &Weights::synthetic("text_encoder", 0, &Device::Cpu))
            .unwrap_err()
            .to_string()
    };
    let heads = refused(serde_json::json!({"hidden_size": 32, "num_attention_heads": 5}));
    assert!(heads.contains("hidden_size 32") && heads.contains("num_attention_heads 5"));
    assert!(refused(serde_json::json!({"hidden_act": "mish"})).contains("hidden_act \"mish\""));
    assert!(refused(serde_json::json!({"num_hidden_layers": 0})).contains("num_hidden_layers is 0"));
    assert!(
        refused(serde_json::json!({"max_position_embeddings": 2})).contains("max_position_embeddings is 2")
    );
}

#[test]
fn requests_beyond_the_encoder_are_refused() {
    let fixture = Fixture::open("clip_encode_prompt");
    let [first, _] = sdxl(&fixture);
    let refused =
        |clip_skip, which| first.encode(&[Prompt { text: "a", clip_skip }], which).unwrap_err().to_string();
    assert!(refused(4, HiddenStates::Final).contains("clip_skip is 4: 0 to 3"));
    assert!(refused(3, HiddenStates::Penultimate).contains("clip_skip is 3: 0 to 2"));
    assert!(first.encode(&[], HiddenStates::Final).unwrap_err().to_string().contains("one prompt"));
    let model = first.model();
    assert!(model.forward(&[vec![49408]]).unwrap_err().to_string().contains("token id 49408"));
    assert!(model.forward(&[vec![0; 78]]).unwrap_err().to_string().contains("[78] tokens"));
    assert!(model.forward(&[vec![0; 3], vec![0; 4]]).unwrap_err().to_string().contains("[3, 4] tokens"));
}
