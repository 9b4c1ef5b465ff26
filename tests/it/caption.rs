//! `POST /refine` with `REFINE_MODE=caption`: pictures to captions, captions to pictures.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;

use aquatint::engine::pipeline::PipelineBackend;
use aquatint::engine::{Backend, EngineError, Mode};
use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
use aquatint_models::checkpoint::synthetic;
use aquatint_models::pipeline::{LoadOptions, ModelSource};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_core::{Device, Tensor};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use crate::cli::{Folder, aquatint, port_of};
use crate::fake::Script;
use crate::harness::{Server, Setup};
use crate::refine::png;

fn captioning(script: Script) -> Server {
    let flags = vec!["--refine-mode", "caption", "--num-images", "3", "--steps", "2"];
    Setup { script, flags, ..Setup::default() }.start()
}

#[tokio::test]
async fn captions_come_before_what_to_incorporate() {
    let server = captioning(Script::default());
    let (small, wide) = (png(16, 16), png(48, 32));
    for (images, prompt) in [
        (json!([small]), "Based on: a picture of 16 by 16. Incorporate: more green"),
        (
            json!([wide, small]),
            "Based on: a picture of 48 by 32; a picture of 16 by 16. Incorporate: more green",
        ),
    ] {
        let body =
            json!({"refinePrompt": "more green", "images": images, "config": {"seed": 5, "strength": 0.1}});
        let answer = server.post("/refine", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        assert_eq!(
            answer["images"].as_array().unwrap().len(),
            3,
            "as --num-images says, not as there are inputs"
        );
        assert_eq!(answer["seeds"], json!([5, 6, 7]));
        assert_eq!(answer["parameters"]["prompt"], prompt);
        let requests = server.script.requests();
        for request in &requests[requests.len() - 3..] {
            assert_eq!(request.prompt, prompt);
            assert!(matches!(request.mode, Mode::TextToImage));
            assert_eq!((request.width, request.height), (None, None), "the model's own size");
            assert_eq!(request.num_inference_steps, Some(2));
        }
    }
    assert_eq!(server.script.captioned(), 3, "each picture once, however many are made of it");
    assert_eq!(server.get("/health").await.json()["refine_mode"], "caption");
}

#[tokio::test]
async fn a_request_may_ask_for_another_number_of_pictures() {
    let server = captioning(Script::default());
    let body = json!({"refinePrompt": "a", "images": [png(16, 16)], "config": {"numImages": 1}});
    assert_eq!(server.post("/refine", &body).await.json()["images"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_caption_that_fails_fails_the_refinement() {
    for (error, status, detail) in [
        (EngineError::Failed("no caption".into()), 500, "Refinement failed: no caption"),
        (
            EngineError::OutOfMemory("CUDA_ERROR_OUT_OF_MEMORY".into()),
            503,
            "GPU memory insufficient for refinement. Try with fewer images.",
        ),
    ] {
        let server = captioning(Script { caption_error: Some(error), ..Script::default() });
        let answer = server.post("/refine", &json!({"refinePrompt": "a", "images": [png(16, 16)]})).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, json!({"detail": detail})));
        assert!(server.script.requests().is_empty(), "no picture is begun");
    }
}

#[tokio::test]
async fn pictures_are_checked_as_ever() {
    let server = captioning(Script::default());
    let answer = server.post("/refine", &json!({"refinePrompt": "a", "images": ["YWJj"]})).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json(), json!({"detail": "Invalid base64 string in images"}));
    assert_eq!(server.script.captioned(), 0);
}

#[test]
fn a_pipeline_without_a_captioner_says_so() {
    let backend = PipelineBackend::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
    let error = backend.caption(&RgbImage::new(8, 8)).unwrap_err();
    assert_eq!(error, EngineError::Failed("no captioning model is loaded".into()));
}

/// Writes a tiny BLIP as transformers saves it. Returns a picture and the caption that transformers gives it.
fn tiny_blip(folder: &Folder) -> (RgbImage, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/caption.safetensors");
    let fixture = SafetensorsFile::open(path).unwrap();
    let text = |name: &str| fixture.metadata()[name].as_str();
    for file in ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"] {
        folder.write(&format!("blip/{file}"), text(file).as_bytes());
    }
    let seed = text("seed").parse().unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(text("shapes")).unwrap();
    let weights: HashMap<_, _> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = synthetic::tensor(&name, &shape, seed);
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&weights, folder.0.join("blip/model.safetensors")).unwrap();

    let pixels = fixture.tensor("0.picture", &Device::Cpu).unwrap();
    let (height, width, _) = pixels.dims3().unwrap();
    let bytes = pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let captions: Vec<String> = serde_json::from_str(text("captions")).unwrap();
    (RgbImage::from_raw(width as u32, height as u32, bytes).unwrap(), captions[0].clone())
}

#[test]
fn the_program_captions_with_the_folder_it_is_given() {
    let folder = Folder::new("caption");
    let (picture, caption) = tiny_blip(&folder);
    let log = folder.0.join("log");
    let variables = [("REFINE_MODE", "caption"), ("SD_CAPTION_MODEL_ID", "blip"), ("SD_NUM_IMAGES", "1")];
    let mut server = aquatint(&folder, &variables, &["serve", "--port", "0", "--steps", "1"])
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let body = json!({"refinePrompt": "red", "images": [STANDARD.encode(bytes.into_inner())]}).to_string();
    let answer = post(port_of(&log), "/refine", &body);
    server.kill().unwrap();
    server.wait().unwrap();
    let expected = format!("Based on: {caption}. Incorporate: red");
    assert_eq!(answer["parameters"]["prompt"], json!(expected), "{answer}");
    assert_eq!(answer["images"].as_array().unwrap().len(), 1);
}

fn post(port: u16, path: &str, body: &str) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}",
        body.len()
    );
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("not JSON: {answer}"))
}
