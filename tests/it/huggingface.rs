//! Hugging Face Inference: what it takes, what it asks the model for, what it answers.

use std::io::Cursor;
use std::time::Duration;

use aquatint::api::LoraRegistry;
use aquatint::engine::{GenerationRequest, LoraChoice, Mode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Answer, Server, Setup, eventually, server};

/// A picture's file.
pub(crate) fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(crate) fn orange(width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb([200, 100, 50]))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Sends a body that must do, and returns what the model was asked for.
async fn asked(server: &Server, body: &Value) -> GenerationRequest {
    let answer = server.post("/", body).await;
    assert_eq!(answer.status, 200, "{body}: {}", String::from_utf8_lossy(&answer.body));
    server.script.requests().pop().unwrap()
}

fn size(answer: &Answer) -> (u32, u32) {
    let image = image::load_from_memory(&answer.body).unwrap();
    (image.width(), image.height())
}

/// A registry of LoRAs, in a folder of its own.
pub(crate) fn loras(name: &str) -> (crate::cli::Folder, LoraRegistry) {
    let folder = crate::cli::Folder::new(name);
    for lora in ["ink", "misfit", "lcm-lora"] {
        folder.write(&format!("{lora}.safetensors"), b"");
    }
    let registry = LoraRegistry::scan(&folder.0).unwrap();
    (folder, registry)
}

#[tokio::test]
async fn a_prompt_alone_gives_a_picture() {
    let server = server();
    for path in ["/", "/models/fake", "/models/someone/fake", "/models/someone/Fake"] {
        let answer = server.post(path, &json!({"inputs": "a red apple"})).await;
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("image/png"));
        assert_eq!(answer.header("x-model"), Some("fake"));
        assert_eq!(answer.header("x-fallback-from"), None);
        assert_eq!(size(&answer), (1024, 1024), "the model's own size");
        let asked = server.script.requests().pop().unwrap();
        assert_eq!((asked.prompt.as_str(), asked.negative_prompt), ("a red apple", None));
        assert_eq!(answer.header("x-seed"), Some(asked.seed.to_string().as_str()));
        assert!(matches!(asked.mode, Mode::TextToImage));
    }
}

#[tokio::test]
async fn every_parameter_reaches_the_model() {
    let (folder, loras) = loras("hf-parameters");
    let server = Setup { loras, ..Setup::default() }.start();
    let body = json!({"inputs": "a red apple", "parameters": {
        "guidance_scale": 3.5, "height": 48, "width": 64, "negative_prompt": "blurry", "num_inference_steps": 7,
        "scheduler": "DPM++ 2M Karras", "seed": 77, "lora": "ink", "lora_scale": 0.5, "clip_skip": 1,
    }});
    let request = asked(&server, &body).await;
    assert_eq!((request.width, request.height), (Some(64), Some(48)));
    assert_eq!((request.guidance_scale, request.num_inference_steps), (Some(3.5), Some(7)));
    assert_eq!(request.negative_prompt.as_deref(), Some("blurry"));
    assert_eq!(request.scheduler.as_deref(), Some("DPM++ 2M Karras"));
    assert_eq!((request.seed, request.clip_skip), (77, 1));
    let merged = server.script.loras.lock().unwrap().pop().unwrap();
    assert_eq!(merged, [LoraChoice::new(folder.0.join("ink.safetensors"), 0.5)]);
    let sized = json!({"inputs": "a", "parameters": {"target_size": {"width": 32, "height": 24}}});
    let square = asked(&server, &sized).await;
    assert_eq!((square.width, square.height), (Some(32), Some(24)));
}

#[tokio::test]
async fn accept_chooses_the_format() {
    let server = server();
    let body = json!({"inputs": "a", "parameters": {"width": 16, "height": 16}}).to_string();
    for (accept, expected) in [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/webp", "image/webp"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("application/json", "image/png"),
        ("image/png;q=0.2, image/webp;q=0.9", "image/webp"),
        ("image/jpeg, */*;q=0.1", "image/jpeg"),
    ] {
        let headers = [("accept", accept), ("content-type", "application/json")];
        let answer = server.call("POST", "/", &headers, body.as_bytes()).await;
        assert_eq!(answer.header("content-type"), Some(expected), "{accept}");
        let format = image::guess_format(&answer.body).unwrap();
        assert_eq!(format.to_mime_type(), expected, "{accept}");
    }
}

/// The shapes in which clients send pictures.
#[tokio::test]
async fn pictures_are_changed() {
    let server = server();
    let bytes = file(orange(48, 32), ImageFormat::Png);
    let base64 = base64(&bytes);
    // As it is, without a content type or with its own.
    for headers in
        [&[][..], &[("content-type", "image/png")], &[("content-type", "application/octet-stream")]]
    {
        let answer = server.call("POST", "/", headers, &bytes).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        let asked = server.script.requests().pop().unwrap();
        assert_eq!((asked.prompt.as_str(), asked.width, asked.height), ("", Some(48), Some(32)));
        let Mode::ImageToImage { image, .. } = &asked.mode else { panic!("{:?}", asked.mode) };
        assert_eq!(*image, orange(48, 32));
    }
    let parameters = json!({"prompt": "greener", "negative_prompt": "red", "strength": 0.25,
        "target_size": {"width": 64, "height": 40}});
    for inputs in [json!(base64), json!(format!("data:image/png;base64,{base64}")), json!({"image": base64})]
    {
        let asked = asked(&server, &json!({"inputs": inputs, "parameters": parameters})).await;
        assert_eq!((asked.prompt.as_str(), asked.negative_prompt.as_deref()), ("greener", Some("red")));
        assert_eq!((asked.width, asked.height), (Some(64), Some(40)));
        assert!(matches!(asked.mode, Mode::ImageToImage { strength: 0.25, .. }));
    }
    // Without any parameter the text is known for a picture by its first letters.
    let alone = asked(&server, &json!({"inputs": base64, "parameters": {}})).await;
    assert!(matches!(alone.mode, Mode::ImageToImage { strength: 0.6, .. }));
}

#[tokio::test]
async fn masks_are_white_where_it_is_repainted() {
    let server = server();
    let image = base64(&file(orange(48, 32), ImageFormat::Png));
    let white = image::GrayImage::from_fn(48, 32, |x, _| Luma([if x < 24 { 255 } else { 0 }]));
    let mask = base64(&file(white.clone(), ImageFormat::Png));
    for body in [
        json!({"inputs": {"prompt": "a hat", "image": image, "mask_image": mask}, "parameters": {"strength": 0.9}}),
        json!({"inputs": {"image": image, "mask": mask}, "parameters": {"prompt": "a hat", "strength": 0.9}}),
        json!({"inputs": image, "parameters": {"prompt": "a hat", "mask_image": mask, "strength": 0.9}}),
    ] {
        let asked = asked(&server, &body).await;
        assert_eq!(asked.prompt, "a hat");
        let Mode::Inpaint { mask, strength, .. } = &asked.mode else { panic!("{:?}", asked.mode) };
        assert_eq!((mask, *strength), (&white, 0.9));
    }
}

/// Errors are texts: the JavaScript client reads nothing else.
#[tokio::test]
async fn refuses_by_name_value_and_range() {
    let server = server();
    let image = base64(&file(orange(16, 16), ImageFormat::Png));
    let with = |parameters: Value| json!({"inputs": "a", "parameters": parameters});
    let table = [
        (json!({}), 400, &["inputs"][..]),
        (json!({"inputs": ""}), 400, &["inputs"]),
        (json!({"inputs": 7}), 400, &["inputs", "7"]),
        (json!({"inputs": {}}), 400, &["inputs", "prompt or an image"]),
        (json!({"inputs": {"prompt": "a", "colour": 1}}), 400, &["Unknown parameter(s): inputs.colour"]),
        (json!({"inputs": "a", "parameter": {}}), 400, &["Unknown parameter(s): parameter"]),
        (json!({"inputs": "a", "parameters": []}), 400, &["parameters", "object", "[]"]),
        (with(json!({"steps": 4, "cfg": 1})), 400, &["Unknown parameter(s): steps, cfg"]),
        (with(json!({"num_inference_steps": 0})), 400, &["parameters.num_inference_steps", "1 to 150", "0"]),
        (with(json!({"num_inference_steps": 1.5})), 400, &["num_inference_steps", "1.5"]),
        (with(json!({"guidance_scale": 31})), 400, &["guidance_scale", "0 to 30", "31"]),
        (with(json!({"width": 4})), 400, &["width", "8 to 4096", "4"]),
        (with(json!({"height": 4104})), 400, &["height", "8 to 4096", "4104"]),
        (with(json!({"target_size": {"width": 9999, "height": 8}})), 400, &["target_size.width", "9999"]),
        (with(json!({"scheduler": "Eulerr"})), 400, &["scheduler", "Eulerr", "DPM++ 2M"]),
        (with(json!({"seed": -2})), 400, &["seed", "-2"]),
        (with(json!({"lora": "none"})), 400, &["Unknown lora", "none"]),
        (with(json!({"lora": "../etc/passwd"})), 400, &["Unknown lora"]),
        (with(json!({"strength": 0.5})), 400, &["strength", "picture"]),
        (with(json!({"negative_prompt": 1})), 400, &["negative_prompt", "string"]),
        (
            json!({"inputs": image, "parameters": {"prompt": "a", "strength": 2}}),
            400,
            &["strength", "0 to 1", "2"],
        ),
        (json!({"inputs": "!!", "parameters": {"prompt": "a"}}), 400, &["inputs", "base64"]),
        (
            json!({"inputs": "http://x/a.png", "parameters": {"prompt": "a"}}),
            400,
            &["inputs", "URL", "fetched"],
        ),
        (json!({"inputs": {"prompt": "a", "mask": image}}), 400, &["image", "mask"]),
        (json!({"inputs": "!invalid"}), 400, &["this cannot be painted"]),
        (json!({"inputs": "!memory"}), 429, &["memory"]),
        (json!({"inputs": "!fail"}), 500, &["the latents are not finite"]),
    ];
    for (body, status, words) in table {
        let answer = server.post("/", &body).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text());
        let json = answer.json();
        let error = json["error"].as_str().unwrap_or_else(|| panic!("{body}: {json}"));
        for word in words {
            assert!(error.contains(word), "{body}: {error} does not name {word}");
        }
        assert_eq!(status == 429, answer.header("retry-after").is_some(), "{body}");
    }
    for (headers, body) in [
        (vec![("content-type", "application/json")], "{"),
        (vec![("content-type", "application/json")], "[]"),
        (vec![("content-type", "application/json")], ""),
        (vec![], ""),
        (vec![], "no picture"),
    ] {
        let answer = server.call("POST", "/", &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["error"].is_string(), "{body}");
    }
    let large = vec![b' '; (64 << 20) + 1];
    let answer = server.call("POST", "/", &[("content-type", "application/json")], &large).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].is_string()), (413, true));
}

#[tokio::test]
async fn a_model_that_is_not_here_may_have_a_stand_in() {
    let server = server();
    let answer = server.post("/models/org/FLUX.1-dev", &json!({"inputs": "a"})).await;
    assert_eq!(answer.status, 404);
    let error = answer.json()["error"].to_string();
    assert!(error.contains("FLUX.1-dev") && error.contains("'fake'"), "{error}");

    let flags = vec!["--model-fallback", "FLUX.1-dev=fake"];
    let server = Setup { flags, ..Setup::default() }.start();
    let answer = server.post("/models/org/FLUX.1-dev", &json!({"inputs": "a"})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        (answer.header("x-model"), answer.header("x-fallback-from")),
        (Some("fake"), Some("org/FLUX.1-dev"))
    );
    assert_eq!(server.post("/models/other", &json!({"inputs": "a"})).await.status, 404);
}

/// The JavaScript client repeats a 503 at once and for ever, so there is none unless it was asked for.
#[tokio::test]
async fn holds_the_request_while_the_model_loads() {
    let script = Script { load_time: Duration::from_millis(300), ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    let body = json!({"inputs": "a"}).to_string();
    let headers = [("content-type", "application/json"), ("x-wait-for-model", "false")];
    let answer = server.call("POST", "/models/fake", &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json(), json!({"error": "Model fake is currently loading", "estimated_time": 20.0}));
    let headers = [("content-type", "application/json"), ("x-use-cache", "false")];
    assert_eq!(server.call("POST", "/models/fake", &headers, body.as_bytes()).await.status, 200);
    let headers = [("content-type", "application/json"), ("x-wait-for-model", "false")];
    assert_eq!(
        server.call("POST", "/models/fake", &headers, body.as_bytes()).await.status,
        200,
        "it is loaded"
    );
}

#[tokio::test]
async fn a_full_queue_is_429() {
    let script = Script { step_time: Duration::from_millis(20), native_size_px: 64, ..Script::default() };
    let server = Setup { script, flags: vec!["--queue-size", "0"], ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let listening = server.listen(Duration::from_secs(5)).await;
    let running = listening.post("/", &json!({"inputs": "a", "parameters": {"num_inference_steps": 100}}));
    let script = &listening.server.script;
    eventually("it runs", || script.steps_taken() > 0).await;
    let refused = listening.server.post("/", &json!({"inputs": "a"})).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("retry-after").is_some() && refused.json()["error"].is_string());
    drop(running);
}

#[tokio::test]
async fn a_lora_that_does_not_fit_is_an_error() {
    let (_folder, loras) = loras("hf-misfit");
    let server = Setup { loras, ..Setup::default() }.start();
    let answer = server.post("/", &json!({"inputs": "a", "parameters": {"lora": "misfit"}})).await;
    assert_eq!(answer.status, 500);
    let error = answer.json()["error"].to_string();
    assert!(
        error.contains("misfit.safetensors: no key of it fits") && !error.contains("aquatint-it"),
        "{error}"
    );
    assert_eq!(server.post("/", &json!({"inputs": "a"})).await.status, 200, "the next job is fine");
}
