//! OpenAI Images: what it takes, what it asks the model for, what it answers.

use std::time::Duration;

use aquatint::engine::{GenerationRequest, LoraChoice, Mode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Luma, Rgba, RgbaImage};
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Answer, Server, Setup, eventually, server};
use crate::huggingface::{file, loras, orange};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const VARIATIONS: &str = "/v1/images/variations";

/// Sends a body that must do, and returns what the model was asked for.
async fn asked(server: &Server, mut body: Value) -> (Vec<GenerationRequest>, Value) {
    if body.get("size").is_none() {
        body["size"] = json!("16x16");
    }
    let before = server.script.requests().len();
    let answer = server.post(GENERATIONS, &body).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    (server.script.requests().split_off(before), answer.json())
}

fn decoded(entry: &Value) -> Vec<u8> {
    STANDARD.decode(entry["b64_json"].as_str().unwrap()).unwrap()
}

/// A multipart form of `(name, file name, bytes)`.
async fn form(server: &Server, path: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Answer {
    let mut body = Vec::new();
    for (name, file_name, bytes) in parts {
        let file_name = file_name.map(|f| format!("; filename=\"{f}\"")).unwrap_or_default();
        let head = format!("--limit\r\ncontent-disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--limit--\r\n");
    server.call("POST", path, &[("content-type", "multipart/form-data; boundary=limit")], &body).await
}

#[tokio::test]
async fn a_prompt_alone_gives_one_picture() {
    let server = server();
    let answer = server.post(GENERATIONS, &json!({"prompt": "a red apple"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(json["data"].as_array().unwrap().len(), 1);
    assert_eq!((&json["size"], &json["quality"]), (&json!("1024x1024"), &json!("auto")));
    assert_eq!(json["output_format"], "png");
    let image = image::load_from_memory(&decoded(&json["data"][0])).unwrap();
    assert_eq!((image.width(), image.height()), (1024, 1024));
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.num_inference_steps, request.guidance_scale), (None, None));
}

#[tokio::test]
async fn every_field_changes_what_is_made() {
    let (folder, loras) = loras("openai-fields");
    let server = Setup { loras, ..Setup::default() }.start();
    let (requests, reply) = asked(
        &server,
        json!({
            "prompt": "a red apple", "model": "fake", "n": 3, "size": "64x48", "seed": 7, "steps": 5,
            "guidance_scale": 2.5, "negative_prompt": "blurry", "lora": "ink", "lora_scale": 0.5,
            "scheduler": "Euler a", "clip_skip": 2, "user": "somebody", "unheard_of": {"x": 1},
        }),
    )
    .await;
    assert_eq!(requests.iter().map(|r| r.seed).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!((&reply["seeds"], &reply["size"]), (&json!([7, 8, 9]), &json!("64x48")));
    assert_eq!(reply["safety_identifier"], "somebody");
    for request in &requests {
        assert_eq!((request.width, request.height), (Some(64), Some(48)));
        assert_eq!((request.num_inference_steps, request.guidance_scale), (Some(5), Some(2.5)));
        assert_eq!(request.negative_prompt.as_deref(), Some("blurry"));
        assert_eq!((request.scheduler.as_deref(), request.clip_skip), (Some("Euler a"), 2));
    }
    let merged = server.script.loras.lock().unwrap().pop().unwrap();
    assert_eq!(merged, [LoraChoice::new(folder.0.join("ink.safetensors"), 0.5)]);
    // The fake's defaults are 20 steps and a guidance of 5.
    for (quality, steps, told) in [
        ("low", Some(10), "low"),
        ("medium", None, "medium"),
        ("standard", None, "medium"),
        ("high", Some(30), "high"),
        ("hd", Some(30), "high"),
        ("auto", None, "auto"),
    ] {
        let (requests, reply) = asked(&server, json!({"prompt": "a", "quality": quality})).await;
        assert_eq!((requests[0].num_inference_steps, &reply["quality"]), (steps, &json!(told)), "{quality}");
    }
    for (style, guidance_scale) in [("vivid", 6.0), ("natural", 4.0)] {
        let (requests, _) = asked(&server, json!({"prompt": "a", "style": style})).await;
        assert_eq!(requests[0].guidance_scale, Some(guidance_scale), "{style}");
    }
    for extra in
        [json!({"background": "opaque"}), json!({"moderation": "low"}), json!({"n": null, "size": "auto"})]
    {
        let mut body = extra;
        body["prompt"] = json!("a");
        asked(&server, body).await;
    }
}

#[tokio::test]
async fn the_format_is_chosen() {
    let server = server();
    let format = |reply: &Value| image::guess_format(&decoded(&reply["data"][0])).unwrap();
    for (name, expected) in
        [("png", ImageFormat::Png), ("jpeg", ImageFormat::Jpeg), ("webp", ImageFormat::WebP)]
    {
        let (_, reply) = asked(&server, json!({"prompt": "a", "output_format": name})).await;
        assert_eq!((format(&reply), &reply["output_format"]), (expected, &json!(name)));
    }
    let mut sizes = Vec::new();
    for compression in [10, 100] {
        let body = json!({"prompt": "a", "output_format": "jpeg", "output_compression": compression, "seed": 1_234_567});
        let (_, reply) = asked(&server, body).await;
        sizes.push(decoded(&reply["data"][0]).len());
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");
}

#[tokio::test]
async fn urls_lead_to_the_pictures() {
    let server = server();
    let (_, reply) =
        asked(&server, json!({"prompt": "a", "n": 2, "response_format": "url", "output_format": "webp"}))
            .await;
    for entry in reply["data"].as_array().unwrap() {
        let url = entry["url"].as_str().unwrap();
        let path = url.strip_prefix("http://testserver").unwrap();
        let picture = server.get(path).await;
        assert_eq!((picture.status.as_u16(), picture.header("content-type")), (200, Some("image/webp")));
        assert_eq!(image::guess_format(&picture.body).unwrap(), ImageFormat::WebP);
    }
    let missing = server.get("/images/0123456789abcdef0123456789abcdef").await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn edits_repaint_what_is_transparent() {
    let server = server();
    let image = file(orange(48, 32), ImageFormat::Png);
    let mask = RgbaImage::from_fn(48, 32, |x, _| Rgba([0, 0, 0, if x < 24 { 0 } else { 255 }]));
    let mask = file(mask, ImageFormat::Png);
    let parts: [(&str, Option<&str>, &[u8]); 7] = [
        ("image", Some("a.png"), &image),
        ("mask", Some("m.png"), &mask),
        ("prompt", None, b"a hat"),
        ("n", None, b"2"),
        ("seed", None, b"9"),
        ("strength", None, b"0.75"),
        ("output_format", None, b"jpeg"),
    ];
    let answer = form(&server, EDITS, &parts).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["size"], "48x32");
    let requests = server.script.requests();
    assert_eq!(requests.iter().map(|r| r.seed).collect::<Vec<_>>(), [9, 10]);
    for request in &requests {
        assert_eq!(request.prompt, "a hat");
        let Mode::Inpaint { image, mask, strength } = &request.mode else { panic!("{:?}", request.mode) };
        assert_eq!((image, *strength), (&orange(48, 32), 0.75));
        assert_eq!((mask.get_pixel(0, 0), mask.get_pixel(47, 31)), (&Luma([255]), &Luma([0])));
    }
    // Without a mask the whole picture is changed, unless it is transparent somewhere itself.
    let answer = form(&server, EDITS, &[("image", Some("a.png"), &image), ("prompt", None, b"a hat")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(matches!(server.script.requests().pop().unwrap().mode, Mode::ImageToImage { strength: 0.6, .. }));
    let answer = form(&server, EDITS, &[("image", Some("a.png"), &mask), ("prompt", None, b"a hat")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(matches!(server.script.requests().pop().unwrap().mode, Mode::Inpaint { strength: 1.0, .. }));
}

#[tokio::test]
async fn several_pictures_are_edited_one_by_one() {
    let server = server();
    let (first, second) = (file(orange(48, 32), ImageFormat::Png), file(orange(16, 24), ImageFormat::Jpeg));
    let parts: [(&str, Option<&str>, &[u8]); 4] = [
        ("image[]", Some("a.png"), &first),
        ("image[]", Some("b.jpg"), &second),
        ("prompt", None, b"a hat"),
        ("size", None, b"auto"),
    ];
    let answer = form(&server, EDITS, &parts).await;
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    let sizes: Vec<_> = server.script.requests().iter().map(|r| (r.width, r.height)).collect();
    assert_eq!(sizes, [(Some(48), Some(32)), (Some(16), Some(24))]);
    // A size of another shape cuts, and does not distort.
    let wide = image::RgbImage::from_fn(48, 16, |x, _| image::Rgb([if x < 16 { 0 } else { 255 }; 3]));
    let wide = file(wide, ImageFormat::Png);
    let parts: [(&str, Option<&str>, &[u8]); 3] =
        [("image", Some("a.png"), &wide), ("prompt", None, b"a hat"), ("size", None, b"32x32")];
    form(&server, EDITS, &parts).await;
    let Mode::ImageToImage { image, .. } = server.script.requests().pop().unwrap().mode else { panic!() };
    assert_eq!((image.dimensions(), image.get_pixel(16, 16).0), ((32, 32), [255; 3]));
}

#[tokio::test]
async fn variations_need_no_prompt() {
    let server = server();
    let image = file(orange(48, 32), ImageFormat::Png);
    let answer = form(
        &server,
        VARIATIONS,
        &[("image", Some("a.png"), &image), ("n", None, b"2"), ("seed", None, b"1")],
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.prompt.as_str(), request.seed), ("", 2));
    assert!(matches!(request.mode, Mode::ImageToImage { .. }));
}

/// `{"error": {message, type, param, code}}`, and whether to try again.
#[tokio::test]
async fn refuses_by_name_value_and_range() {
    let server = server();
    let a = |more: Value| {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let table = [
        (json!({}), 400, "prompt", &["required"][..]),
        (json!({"prompt": ""}), 400, "prompt", &["\"\""]),
        (json!({"prompt": 5}), 400, "prompt", &["string", "5"]),
        (a(json!({"n": 0})), 400, "n", &["1 to 10", "0"]),
        (a(json!({"n": 11})), 400, "n", &["1 to 10", "11"]),
        (a(json!({"size": "64"})), 400, "size", &["WIDTHxHEIGHT", "64"]),
        (a(json!({"size": "4x64"})), 400, "size", &["8 to 4096", "4x64"]),
        (a(json!({"size": "64x9999"})), 400, "size", &["8 to 4096", "64x9999"]),
        (a(json!({"quality": "best"})), 400, "quality", &["'low'", "'high'", "best"]),
        (a(json!({"style": "rough"})), 400, "style", &["'vivid'", "'natural'", "rough"]),
        (a(json!({"response_format": "file"})), 400, "response_format", &["'url'", "'b64_json'", "file"]),
        (a(json!({"output_format": "gif"})), 400, "output_format", &["'png'", "gif"]),
        (
            a(json!({"output_compression": 101, "output_format": "jpeg"})),
            400,
            "output_compression",
            &["0 to 100"],
        ),
        (a(json!({"output_compression": 50})), 400, "output_compression", &["jpeg"]),
        (a(json!({"background": "transparent"})), 400, "background", &["opaque"]),
        (a(json!({"moderation": "auto"})), 400, "moderation", &["low"]),
        (a(json!({"partial_images": 4, "stream": true})), 400, "partial_images", &["0 to 3", "4"]),
        (a(json!({"partial_images": 1})), 400, "partial_images", &["stream"]),
        (a(json!({"stream": "yes"})), 400, "stream", &["true or false", "yes"]),
        (a(json!({"steps": 151})), 400, "steps", &["1 to 150", "151"]),
        (a(json!({"guidance_scale": -1})), 400, "guidance_scale", &["0 to 30", "-1"]),
        (a(json!({"seed": 0.5})), 400, "seed", &["0.5"]),
        (a(json!({"lora": "none"})), 400, "lora", &["Unknown lora", "none"]),
        (a(json!({"scheduler": "Eulerr"})), 400, "scheduler", &["Eulerr"]),
        (a(json!({"strength": 0.5})), 400, "strength", &["edits"]),
        (a(json!({"model": "dall-e-3"})), 404, "model", &["dall-e-3", "'fake'"]),
    ];
    for (body, status, param, words) in table {
        let answer = server.post(GENERATIONS, &body).await;
        let json = answer.json();
        assert_eq!(
            (answer.status.as_u16(), &json["error"]["param"]),
            (status, &json!(param)),
            "{body}: {json}"
        );
        let message = json["error"]["message"].as_str().unwrap();
        for word in words {
            assert!(message.contains(word), "{body}: {message} does not name {word}");
        }
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(answer.header("x-should-retry"), Some("false"), "{body}");
    }
    for (prompt, status, final_) in [("!invalid", 400, true), ("!memory", 503, true), ("!fail", 500, false)] {
        let answer = server.post(GENERATIONS, &json!({"prompt": prompt})).await;
        assert_eq!(answer.status.as_u16(), status, "{prompt}");
        assert_eq!(answer.header("x-should-retry").is_some(), final_, "{prompt}");
        assert!(answer.json()["error"]["code"].is_string());
    }
    let large = vec![b' '; (1 << 20) + 1];
    let answer = server.call("POST", GENERATIONS, &[("content-type", "application/json")], &large).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (413, &json!("request_too_large")));
}

#[tokio::test]
async fn refuses_forms_by_name() {
    let server = server();
    let image = file(orange(16, 16), ImageFormat::Png);
    let small = file(RgbaImage::new(8, 8), ImageFormat::Png);
    let plain = file(image::GrayImage::new(16, 16), ImageFormat::Png);
    type Parts<'a> = Vec<(&'a str, Option<&'a str>, &'a [u8])>;
    let whole: Parts<'_> = vec![("image", Some("a.png"), &image), ("prompt", None, b"a")];
    let with = |more: Parts<'static>| [whole.clone(), more].concat();
    let table: Vec<(&str, Parts<'_>, &str, &str)> = vec![
        (EDITS, vec![("prompt", None, b"a")], "image", "required"),
        (EDITS, vec![("image", Some("a.png"), &image)], "prompt", "required"),
        (
            EDITS,
            vec![("image", Some("a.png"), b"GIF89a"), ("prompt", None, b"a")],
            "image",
            "PNG, JPEG or WebP",
        ),
        (EDITS, [whole.clone(), vec![("mask", Some("m.png"), &small[..])]].concat(), "mask", "8x8"),
        (EDITS, [whole.clone(), vec![("mask", Some("m.png"), &plain[..])]].concat(), "mask", "alpha"),
        (EDITS, with(vec![("n", None, b"11")]), "n", "1 to 10"),
        (EDITS, with(vec![("strength", None, b"1.5")]), "strength", "0 to 1"),
        (EDITS, with(vec![("size", None, b"1x1")]), "size", "1x1"),
        (EDITS, vec![whole[0], whole[0], whole[1], ("n", None, b"6")], "image", "10"),
        (VARIATIONS, vec![("n", None, b"1")], "image", "required"),
        (
            VARIATIONS,
            [whole.clone(), vec![("mask", Some("m.png"), &plain[..])]].concat(),
            "mask",
            "variation",
        ),
    ];
    for (path, parts, param, word) in table {
        let answer = form(&server, path, &parts).await;
        let json = answer.json();
        assert_eq!((answer.status.as_u16(), &json["error"]["param"]), (400, &json!(param)), "{json}");
        assert!(json["error"]["message"].as_str().unwrap().contains(word), "{json}");
    }
    for (kind, body) in [
        ("multipart/form-data; boundary=limit", &b"--limit\r\nnonsense"[..]),
        ("multipart/form-data", b"--limit--"),
        ("application/json", b"{}"),
    ] {
        let answer = server.call("POST", EDITS, &[("content-type", kind)], body).await;
        assert_eq!(answer.status, 400, "{kind}");
        assert!(
            answer.json()["error"]["message"].as_str().unwrap().contains("multipart"),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn models_are_listed() {
    let server = server();
    let json = server.get("/v1/models").await.json();
    assert_eq!(json["object"], "list");
    let model = &json["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!("fake"), &json!("model")));
    assert!(model["created"].is_u64() && model["owned_by"].is_string());
    assert_eq!(&server.get("/v1/models/fake").await.json(), model);
    let missing = server.get("/v1/models/gpt-image-1").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (404, &json!("model_not_found")));
}

/// `(event, data)` of each server-sent event; the last has no name.
fn events(answer: &Answer) -> Vec<(String, String)> {
    let event = |block: &str| {
        let line = |name: &str| {
            let found = block.lines().find_map(|line| line.strip_prefix(name));
            found.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        (line("event:"), line("data:"))
    };
    answer.text().split("\n\n").filter(|b| !b.trim().is_empty()).map(event).collect()
}

#[tokio::test]
async fn streams_end_with_the_pictures() {
    let server = server();
    for (path, name) in [(GENERATIONS, "image_generation"), (EDITS, "image_edit")] {
        let answer = if path == GENERATIONS {
            let body = json!({"prompt": "a", "size": "16x16", "n": 2, "stream": true, "seed": 4});
            server.post(path, &body).await
        } else {
            let image = file(orange(16, 16), ImageFormat::Png);
            let parts: [(&str, Option<&str>, &[u8]); 5] = [
                ("image", Some("a.png"), &image),
                ("prompt", None, b"a"),
                ("n", None, b"2"),
                ("stream", None, b"true"),
                ("seed", None, b"4"),
            ];
            form(&server, path, &parts).await
        };
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("text/event-stream")));
        let events = events(&answer);
        assert_eq!(events.len(), 3, "{}", answer.text());
        assert_eq!(events[2].1, "[DONE]");
        for ((event, data), seed) in events[..2].iter().zip([4, 5]) {
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(*event, format!("{name}.completed"));
            assert_eq!((&data["type"], &data["seed"]), (&json!(event), &json!(seed)));
            assert_eq!((&data["size"], &data["output_format"]), (&json!("16x16"), &json!("png")));
            assert!(data["created_at"].is_u64());
            assert_eq!(image::guess_format(&decoded(&data)).unwrap(), ImageFormat::Png);
        }
    }
    // What goes wrong before the first event has a status; what goes wrong after is an event.
    let early = server.post(GENERATIONS, &json!({"prompt": "a", "n": 0, "stream": true})).await;
    assert_eq!(early.status, 400);
    let late = server.post(GENERATIONS, &json!({"prompt": "!fail", "stream": true})).await;
    let events = events(&late);
    assert_eq!((late.status.as_u16(), events[0].0.as_str(), events[1].1.as_str()), (200, "error", "[DONE]"));
    let data: Value = serde_json::from_str(&events[0].1).unwrap();
    assert_eq!(data["error"]["message"], "the latents are not finite");
}

/// The fake's previews are one pixel large.
#[tokio::test]
async fn previews_come_while_it_is_made() {
    let script = Script { step_time: Duration::from_millis(10), ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    for partial_images in [0, 1, 2] {
        let body = json!({
            "prompt": "a", "size": "16x16", "steps": 12, "stream": true, "partial_images": partial_images,
            "output_format": "webp",
        });
        let answer = server.post(GENERATIONS, &body).await;
        let events = events(&answer);
        let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
        let partial = vec!["image_generation.partial_image"; partial_images];
        assert_eq!(names, [&partial[..], &["image_generation.completed", ""]].concat());
        for (index, (_, data)) in events[..partial_images].iter().enumerate() {
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!((&data["partial_image_index"], &data["size"]), (&json!(index), &json!("1x1")));
            assert_eq!(image::guess_format(&decoded(&data)).unwrap(), ImageFormat::WebP);
        }
    }
    assert!(server.script.previews.load(std::sync::atomic::Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_the_job() {
    let script = Script { step_time: Duration::from_millis(10), native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let listening = server.listen(Duration::from_secs(5)).await;
    let script = &listening.server.script;
    let body = json!({"prompt": "a", "steps": 150, "stream": true, "partial_images": 2});
    let stream = listening.post(GENERATIONS, &body);
    eventually("it runs", || script.steps_taken() >= 3).await;
    drop(stream);
    let at_leaving = script.steps_taken();
    let engine = listening.server.app.engine.clone();
    eventually("nothing runs", || engine.status().running.is_none()).await;
    let further = script.steps_taken() - at_leaving;
    assert!(further <= 3, "{further} further steps");
}
