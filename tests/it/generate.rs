//! `POST /generate`: what it takes, what it asks the model for, what it answers.

use std::collections::BTreeMap;
use std::io::Cursor;

use aquatint::api::LoraRegistry;
use aquatint::engine::{GenerationRequest, LoraChoice, Mode, Preset};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Server, Setup, server};

/// Sends a body that must do, and returns what the model was asked for.
async fn asked(server: &Server, body: &Value) -> Vec<GenerationRequest> {
    let before = server.script.requests().len();
    let answer = server.post("/generate", body).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    server.script.requests().split_off(before)
}

/// A body with this `config`.
fn with(config: Value) -> Value {
    json!({"prompt": "a red apple", "aspectRatio": "1:1", "config": config})
}

fn one(requests: &[GenerationRequest]) -> &GenerationRequest {
    requests.first().unwrap()
}

/// The sizes that clients of the replaced service know.
#[tokio::test]
async fn sizes_are_the_documented_ones() {
    let table = [
        ("Auto", (640, 640), (1024, 1024)),
        ("1:1", (640, 640), (1024, 1024)),
        ("9:16", (512, 896), (576, 1024)),
        ("16:9", (896, 512), (1024, 576)),
        ("3:4", (576, 768), (768, 1024)),
        ("4:3", (768, 576), (1024, 768)),
        ("3:2", (768, 512), (1024, 680)),
        ("2:3", (512, 768), (680, 1024)),
        ("5:4", (640, 512), (1024, 816)),
        ("4:5", (512, 640), (816, 1024)),
        ("21:9", (960, 416), (1024, 432)),
    ];
    let server = server();
    for (ratio, standard, high) in table {
        for (resolution, expected) in [
            (json!("standard"), standard),
            (json!("high"), high),
            (json!("HIGH"), high),
            (json!("ultra"), standard),
            (json!(7), standard),
            (Value::Null, standard),
        ] {
            let config = json!({"numImages": 1, "steps": 1});
            let body =
                json!({"prompt": "a", "aspectRatio": ratio, "resolution": resolution, "config": config});
            let requests = asked(&server, &body).await;
            let size = (one(&requests).width.unwrap(), one(&requests).height.unwrap());
            assert_eq!(size, expected, "{ratio} {resolution}");
        }
    }
}

/// A model of 64x64 pixels gets about 4096 pixels of the same shape, in multiples of 8.
#[tokio::test]
async fn a_small_model_keeps_the_shape_at_its_own_size() {
    let script = Script { native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    for (ratio, shape) in
        [("1:1", 1.0), ("16:9", 16.0 / 9.0), ("9:16", 9.0 / 16.0), ("3:2", 1.5), ("21:9", 21.0 / 9.0)]
    {
        for resolution in ["standard", "high"] {
            let config = json!({"numImages": 1, "steps": 1});
            let body =
                json!({"prompt": "a", "aspectRatio": ratio, "resolution": resolution, "config": config});
            let requests = asked(&server, &body).await;
            let (width, height) = (one(&requests).width.unwrap(), one(&requests).height.unwrap());
            assert_eq!((width % 8, height % 8), (0, 0), "{ratio}");
            let pixels = (width * height) as f64 / 4096.0;
            assert!((0.85..1.15).contains(&pixels), "{ratio}: {width}x{height}");
            let off = width as f64 / height as f64 / shape;
            assert!((0.85..1.15).contains(&off), "{ratio}: {width}x{height}");
        }
    }
}

#[tokio::test]
async fn every_field_reaches_the_model() {
    let server = server();
    let camel = with(json!({
        "steps": 12, "guidanceScale": 3.5, "seed": 77, "numImages": 3, "negativePrompt": "blurry",
        "scheduler": "DPM++ 2M Karras", "model": "fake", "modelPath": "ignored", "unheard of": {},
    }));
    let snake = json!({
        "prompt": "a red apple", "aspect_ratio": "1:1", "sessionId": 5,
        "config": {
            "steps": 12.0, "guidance_scale": 3.5, "seed": 77, "num_images": 3, "negative_prompt": "blurry",
            "scheduler": "DPM++ 2M Karras",
        },
    });
    for body in [camel, snake] {
        let requests = asked(&server, &body).await;
        assert_eq!(requests.iter().map(|r| r.seed).collect::<Vec<_>>(), [77, 78, 79]);
        for request in &requests {
            assert_eq!(request.prompt, "a red apple");
            assert_eq!(request.negative_prompt.as_deref(), Some("blurry"));
            assert_eq!(request.num_inference_steps, Some(12));
            assert_eq!(request.guidance_scale, Some(3.5));
            assert_eq!(request.scheduler.as_deref(), Some("DPM++ 2M Karras"));
            assert!(matches!(request.mode, Mode::TextToImage));
        }
    }
}

#[tokio::test]
async fn settings_hold_where_a_request_is_silent() {
    let plain = server();
    let requests = asked(&plain, &json!({"prompt": "a", "aspectratio": "Auto"})).await;
    assert_eq!(requests.len(), 2, "SD_NUM_IMAGES is 2");
    let first = one(&requests);
    assert_eq!((first.num_inference_steps, first.guidance_scale, &first.scheduler), (None, None, &None));
    let again = asked(&plain, &json!({"prompt": "a", "aspectratio": "Auto"})).await;
    assert_ne!(first.seed, one(&again).seed, "a seed is drawn for each request");

    let flags = vec!["--num-images", "1", "--steps", "33", "--guidance-scale", "4", "--scheduler", "DDIM"];
    let set = Setup { flags, ..Setup::default() }.start();
    let requests = asked(&set, &json!({"prompt": "a", "aspectRatio": "1:1", "config": null})).await;
    assert_eq!(requests.len(), 1);
    let first = one(&requests);
    assert_eq!((first.num_inference_steps, first.guidance_scale), (Some(33), Some(4.0)));
    assert_eq!(first.scheduler.as_deref(), Some("DDIM"));
    let requests = asked(&set, &with(json!({"steps": 5, "guidanceScale": 0, "scheduler": "Euler a"}))).await;
    let first = one(&requests);
    assert_eq!((first.num_inference_steps, first.guidance_scale), (Some(5), Some(0.0)));
    assert_eq!(first.scheduler.as_deref(), Some("Euler a"));
}

#[tokio::test]
async fn temperature_moves_guidance_around_the_default() {
    let server = server();
    let mut body = with(json!({"numImages": 1, "steps": 1}));
    for (temperature, expected) in [
        (json!(1), Some(5.0)),
        (json!(0), Some(1.0)),
        (json!(0.5), Some(3.0)),
        (json!("0.5"), Some(3.0)),
        (json!(2), Some(9.0)),
        (json!(40), Some(9.0)),
        (Value::Null, None),
    ] {
        body["temperature"] = temperature.clone();
        assert_eq!(one(&asked(&server, &body).await).guidance_scale, expected, "{temperature}");
    }
    body["temperature"] = json!(0.1);
    body["config"]["guidanceScale"] = json!(6);
    assert_eq!(one(&asked(&server, &body).await).guidance_scale, Some(6.0), "guidanceScale goes before it");

    let turbo =
        Setup { script: Script { guidance_scale: 1.0, ..Script::default() }, ..Setup::default() }.start();
    let body = json!({"prompt": "a", "aspectRatio": "1:1", "temperature": 0.3, "config": {"steps": 1}});
    assert_eq!(
        one(&asked(&turbo, &body).await).guidance_scale,
        None,
        "a model without guidance keeps to that"
    );
}

#[tokio::test]
async fn an_lcm_lora_brings_its_own_defaults() {
    let lcm = LoraChoice { path: "lcm.safetensors".into(), scale: 1.0, preset: Some(Preset::LCM_LORA) };
    let flags = vec!["--steps", "30", "--guidance-scale", "7.5", "--scheduler", "DDIM"];
    let server = Setup { flags, always: vec![lcm], ..Setup::default() }.start();
    let body = json!({"prompt": "a", "aspectRatio": "1:1", "temperature": 0.3});
    let requests = asked(&server, &body).await;
    let first = one(&requests);
    assert_eq!((first.num_inference_steps, first.guidance_scale, &first.scheduler), (Some(8), None, &None));
    let requests = asked(&server, &with(json!({"steps": 3, "guidanceScale": 1.5}))).await;
    assert_eq!((one(&requests).num_inference_steps, one(&requests).guidance_scale), (Some(3), Some(1.5)));
    let health = server.get("/health").await.json();
    assert_eq!(health["optimizations"]["steps"], 8);
    assert_eq!(health["optimizations"]["guidance_scale"], 1.0);
    assert_eq!(health["optimizations"]["scheduler"], "LCMScheduler");
}

#[tokio::test]
async fn loras_are_merged_by_name_and_taken_out_again() {
    let folder = std::env::temp_dir().join(format!("aquatint-it-loras-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["ink.safetensors", "misfit.safetensors", "notes.txt"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let loras = LoraRegistry::scan(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let base = LoraChoice::new("base.safetensors", 0.5);
    let server = Setup { loras, always: vec![base.clone()], ..Setup::default() }.start();
    assert_eq!(server.get("/health").await.json()["loras"], json!(["ink", "misfit"]));

    asked(&server, &with(json!({"lora": "ink", "loraScale": 0.8}))).await;
    asked(&server, &with(json!({"lora": "ink", "lora_scale": 0.8}))).await;
    let misfit = server.post("/generate", &with(json!({"lora": "misfit"}))).await;
    assert_eq!(misfit.status, 500);
    let text = "Generation failed: misfit.safetensors: no key of it fits this model";
    assert_eq!(misfit.json()["detail"], text, "no path of ours is shown");
    asked(&server, &with(json!({"lora": ""}))).await;

    let ink = LoraChoice::new(folder.join("ink.safetensors"), 0.8);
    let misfit = LoraChoice::new(folder.join("misfit.safetensors"), 1.0);
    let merged = server.script.loras.lock().unwrap().clone();
    let always = vec![base.clone()];
    assert_eq!(merged, [always.clone(), vec![base.clone(), ink], vec![base, misfit], always]);
}

#[tokio::test]
async fn answers_with_pictures_that_carry_their_recipe() {
    let server = server();
    let body = with(json!({"seed": 70_000, "numImages": 2, "steps": 3, "negativePrompt": "naïve"}));
    let answer = server.post("/generate", &body).await.json();
    assert_eq!(answer["seeds"], json!([70_000, 70_001]));
    assert_eq!(answer["seed"], 70_000);
    assert_eq!(answer["model"], "fake");
    assert_eq!(answer["provider"], "aquatint");
    assert!(answer["processingTime"].is_u64());

    let images = answer["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    let bytes = STANDARD.decode(images[1].as_str().unwrap()).unwrap();
    let pixels = image::load_from_memory(&bytes).unwrap().to_rgb8();
    assert_eq!((pixels.width(), pixels.height()), (640, 640));
    assert_eq!(pixels.get_pixel(0, 0).0, [1, 0x11, 0x71], "the fake paints its seed, 70001");

    let text = text_chunks(&bytes);
    let expected = format!(
        "a red apple\nNegative prompt: naïve\nSteps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 70001, Size: 640x640, Model: fake, Version: aquatint {}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(text["parameters"], expected);
    let recipe: Value = serde_json::from_str(&text["aquatint"]).unwrap();
    assert_eq!(recipe["seed"], 70_001);
    assert_eq!(recipe["num_inference_steps"], 3);
}

#[tokio::test]
async fn prompts_of_every_script_survive_in_the_file() {
    let server = server();
    for prompt in ["naïve café", "りんご 🍎", "a\nb"] {
        let body = json!({"prompt": prompt, "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}});
        let answer = server.post("/generate", &body).await.json();
        let bytes = STANDARD.decode(answer["images"][0].as_str().unwrap()).unwrap();
        assert!(text_chunks(&bytes)["parameters"].starts_with(&format!("{prompt}\nSteps: 1")));
    }
}

/// Both kinds of text chunk of a PNG.
fn text_chunks(bytes: &[u8]) -> BTreeMap<String, String> {
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|c| (c.keyword.clone(), c.text.clone()));
    let utf8 = info.utf8_text.iter().map(|c| (c.keyword.clone(), c.get_text().unwrap()));
    latin.chain(utf8).collect()
}

/// `(body, what is answered)`; none of them reaches the model.
fn refused() -> Vec<(Value, String)> {
    let ratios = "Invalid aspectRatio. Must be one of ['16:9', '1:1', '21:9', '2:3', '3:2', '3:4', '4:3', '4:5', '5:4', '9:16', 'Auto']";
    let prompt = "prompt field is required.";
    let steps = "config.steps must be an integer from 1 to 150, not";
    let guidance = "config.guidanceScale must be a number from 0 to 30, not";
    let seed = "config.seed must be an integer from 0 to 18446744073709551615, not";
    let count = "config.numImages must be an integer from 1 to 8, not";
    let not = |must: &str, bad: &Value| format!("{must} {bad}.");
    let mut table = [
        (json!({}), prompt),
        (json!({"prompt": null, "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": "", "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": " \n", "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": 5, "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": ["a"], "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": {"a": 1}, "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": true, "aspectRatio": "1:1"}), prompt),
        (json!({"Prompt": "a", "aspectRatio": "1:1"}), prompt),
        (json!({"prompt": "a"}), "aspectRatio field is required."),
        (json!({"prompt": "a", "aspectRatio": null}), "aspectRatio field is required."),
        (json!({"prompt": "a", "aspectRatio": ""}), "aspectRatio field is required."),
    ]
    .map(|(body, text)| (body, text.to_owned()))
    .to_vec();
    for ratio in
        [json!("1:2"), json!("auto"), json!("1:1 "), json!(1), json!(["1:1"]), json!({}), json!(false)]
    {
        table.push((json!({"prompt": "a", "aspectRatio": ratio}), ratios.to_owned()));
    }
    for t in [json!("hot"), json!(""), json!([1]), json!({}), json!(true), json!("nan"), json!("inf")] {
        table.push((
            json!({"prompt": "a", "aspectRatio": "1:1", "temperature": t}),
            "temperature must be a number.".to_owned(),
        ));
    }
    for config in [json!(5), json!("x"), json!([]), json!(true)] {
        let text = not("config must be an object, not", &config);
        table.push((with(config), text));
    }
    for bad in
        [json!(0), json!(151), json!(-1), json!(1.5), json!("20"), json!(true), json!([20]), json!(1e300)]
    {
        table.push((with(json!({"steps": bad})), not(steps, &bad)));
    }
    for bad in [json!(-0.1), json!(30.1), json!("7"), json!(false), json!({})] {
        table.push((with(json!({"guidance_scale": bad})), not(guidance, &bad)));
    }
    for bad in [json!(-2), json!(0.5), json!("1"), json!(1e30)] {
        table.push((with(json!({"seed": bad})), not(seed, &bad)));
    }
    for bad in [json!(0), json!(9), json!(-1), json!("2")] {
        table.push((with(json!({"num_images": bad})), not(count, &bad)));
    }
    let more = [
        (with(json!({"negativePrompt": 5})), "config.negativePrompt must be a string, not 5."),
        (with(json!({"scheduler": 5})), "config.scheduler must be a string, not 5."),
        (with(json!({"strength": 1.5})), "config.strength must be a number from 0 to 1, not 1.5."),
        (with(json!({"strength": -0.5})), "config.strength must be a number from 0 to 1, not -0.5."),
        (with(json!({"lora": 5})), "config.lora must be a string, not 5."),
        (with(json!({"lora": "../../etc/passwd"})), r#"Unknown lora "../../etc/passwd". Must be one of []"#),
        (
            with(json!({"lora": "x", "loraScale": 9})),
            "config.loraScale must be a number from -4 to 4, not 9.",
        ),
        (with(json!({"model": 5})), "config.model must be a string, not 5."),
        (
            with(json!({"model": "/models/other"})),
            r#"Unknown model "/models/other". Must be one of ['fake']"#,
        ),
    ];
    table.extend(more.map(|(body, text)| (body, text.to_owned())));
    table
}

#[tokio::test]
async fn refuses_bad_fields_by_name() {
    let server = server();
    let table = refused();
    assert!(table.len() >= 40);
    for (body, expected) in table {
        let answer = server.post("/generate", &body).await;
        assert_eq!(answer.status, 422, "{body}");
        assert_eq!(answer.json(), json!({"detail": expected}), "{body}");
    }
    let unknown = server.post("/generate", &with(json!({"scheduler": "Eulerr"}))).await;
    assert_eq!(unknown.status, 422);
    let text = unknown.json()["detail"].as_str().unwrap().to_owned();
    assert!(text.contains(r#""Eulerr""#) && text.contains("DPM++ 2M"), "{text}");
    assert!(server.script.requests().is_empty());
}

#[tokio::test]
async fn the_models_own_failures_have_their_texts() {
    let server = server();
    for (prompt, status, detail) in [
        ("!invalid", 422, "this cannot be painted"),
        ("!memory", 503, "GPU memory insufficient. Try reducing steps or image size."),
        ("!fail", 500, "Generation failed: the latents are not finite"),
        ("!panic", 500, "Generation failed: internal error"),
    ] {
        let answer = server.post("/generate", &json!({"prompt": prompt, "aspectRatio": "1:1"})).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, json!({"detail": detail})), "{prompt}");
        asked(&server, &with(json!({"steps": 1}))).await;
    }
}
