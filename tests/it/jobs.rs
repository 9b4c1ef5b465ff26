//! `/jobs`: submit, watch, fetch, cancel.

use std::time::{Duration, Instant};

use aquatint::engine::Mode;
use aquatint::queue::JobQueue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Answer, Server, Setup, eventually, server};
use crate::refine::png;

async fn submit(server: &Server, body: &Value) -> String {
    let answer = server.post("/jobs", body).await;
    assert_eq!(answer.status, 202, "{body}: {}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/jobs/{id}").as_str()));
    id
}

/// A server whose steps take a while.
fn slow(step_ms: u64) -> Server {
    let script =
        Script { step_time: Duration::from_millis(step_ms), native_size_px: 64, ..Script::default() };
    Setup { script, ..Setup::default() }.start()
}

/// `(id, event, data)` of each event.
fn events(answer: &Answer) -> Vec<(u64, String, Value)> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let blocks = answer.text().split("\n\n").filter(|block| block.contains("data:"));
    blocks
        .map(|block| {
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_else(|| panic!("no {name} in {block:?}")).trim()
            };
            (
                field("id").parse().unwrap(),
                field("event").to_owned(),
                serde_json::from_str(field("data")).unwrap(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_job_is_submitted_watched_and_fetched() {
    let server = server();
    let body =
        json!({"prompt": "a fox", "seed": 70_000, "num_images": 2, "steps": 3, "negative_prompt": "blurry"});
    let id = submit(&server, &body).await;
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");

    let result = server.get(&format!("/jobs/{id}/result?wait=10")).await;
    assert_eq!(result.status, 200, "{}", result.text());
    let result = result.json();
    assert_eq!(result["seeds"], json!([70_000, 70_001]));
    assert_eq!(result["parameters"][1]["seed"], 70_001);
    assert_eq!(result["parameters"][0]["negative_prompt"], "blurry");
    let file = STANDARD.decode(result["images"][1].as_str().unwrap()).unwrap();
    let pixels = image::load_from_memory(&file).unwrap().to_rgb8();
    assert_eq!(pixels.dimensions(), (640, 640), "1:1 at the standard resolution");
    assert_eq!(pixels.get_pixel(0, 0).0, [1, 0x11, 0x71], "the fake paints its seed, 70001");

    let status = server.get(&format!("/jobs/{id}")).await.json();
    assert_eq!(
        (&status["state"], &status["picture"], &status["pictures"]),
        (&json!("done"), &json!(2), &json!(2))
    );
    assert_eq!(status["images"], json!([format!("/jobs/{id}/images/0"), format!("/jobs/{id}/images/1")]));
    let one = server.get(status["images"][1].as_str().unwrap()).await;
    assert_eq!(one.header("content-type"), Some("image/png"));
    assert_eq!(one.body, file);
    assert_eq!(server.get(&format!("/jobs/{id}/images/2")).await.status, 404);
    assert_eq!(server.get(&format!("/jobs/{id}/images/x")).await.status, 404);

    let forgotten = server.call("DELETE", &format!("/jobs/{id}"), &[], b"").await;
    assert_eq!((forgotten.status.as_u16(), &forgotten.json()["state"]), (200, &json!("done")));
    for path in ["", "/result", "/events", "/images/0"] {
        assert_eq!(server.get(&format!("/jobs/{id}{path}")).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn every_field_reaches_the_model() {
    let server = server();
    let body = json!({
        "prompt": "a", "negative_prompt": "b", "aspect_ratio": "16:9", "resolution": "high", "num_images": 1,
        "steps": 12, "guidance_scale": 3.5, "seed": 9, "scheduler": "DPM++ 2M Karras", "clip_skip": 1, "model": "fake",
        "loras": [],
    });
    let id = submit(&server, &body).await;
    server.get(&format!("/jobs/{id}/result?wait=10")).await;
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.prompt.as_str(), request.negative_prompt.as_deref()), ("a", Some("b")));
    assert_eq!((request.width, request.height), (Some(1024), Some(576)));
    assert_eq!((request.num_inference_steps, request.guidance_scale), (Some(12), Some(3.5)));
    assert_eq!((request.seed, request.clip_skip), (9, 1));
    assert_eq!(request.scheduler.as_deref(), Some("DPM++ 2M Karras"));
    assert!(matches!(request.mode, Mode::TextToImage));

    let id = submit(&server, &json!({"prompt": "a", "width": 72, "height": 200, "steps": null})).await;
    server.get(&format!("/jobs/{id}/result?wait=10")).await;
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.width, request.height, request.num_inference_steps), (Some(72), Some(200), None));
}

#[tokio::test]
async fn pictures_are_refined_and_parts_of_them_repainted() {
    let server = server();
    // White on the left, and on the right white that is transparent.
    let mask =
        image::RgbaImage::from_fn(48, 32, |x, _| image::Rgba([255, 255, 255, if x < 24 { 255 } else { 0 }]));
    let mut file = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut file, image::ImageFormat::Png).unwrap();
    let mask = STANDARD.encode(file.into_inner());

    let id = submit(&server, &json!({"prompt": "a", "image": png(48, 32), "strength": 0.25})).await;
    server.get(&format!("/jobs/{id}/result?wait=10")).await;
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.width, request.height), (Some(48), Some(32)));
    let Mode::ImageToImage { image, strength } = request.mode else { panic!("{:?}", request.mode) };
    assert_eq!((image, strength), (RgbImage::from_pixel(48, 32, Rgb([200, 100, 50])), 0.25));

    let body = json!({"prompt": "a", "image": png(48, 32), "mask": mask, "aspect_ratio": "2:3"});
    let id = submit(&server, &body).await;
    server.get(&format!("/jobs/{id}/result?wait=10")).await;
    let request = server.script.requests().pop().unwrap();
    assert_eq!(
        (request.width, request.height),
        (Some(512), Some(768)),
        "aspect_ratio goes before the picture's size"
    );
    let Mode::Inpaint { mask, strength, .. } = request.mode else { panic!("{:?}", request.mode) };
    assert_eq!(mask, GrayImage::from_fn(48, 32, |x, _| Luma([if x < 24 { 255 } else { 0 }])));
    assert_eq!(strength, 0.6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_follow_every_step_and_can_be_taken_up_again() {
    let server = slow(60);
    let id = submit(&server, &json!({"prompt": "a", "steps": 4, "num_images": 2})).await;
    let path = format!("/jobs/{id}/events");
    let all = events(&server.get(&path).await);
    let ids: Vec<u64> = all.iter().map(|(id, ..)| *id).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    let (_, name, last) = all.last().unwrap();
    assert_eq!((name.as_str(), &last["state"]), ("done", &json!("done")));
    assert_eq!(last["images"].as_array().unwrap().len(), 2);
    let steps: Vec<_> = all
        .iter()
        .filter(|(_, name, data)| name == "progress" && data["state"] == "running" && data["steps"] == 4)
        .map(|(_, _, data)| (data["picture"].as_u64().unwrap(), data["step"].as_u64().unwrap()))
        .collect();
    assert!(steps.is_sorted(), "{steps:?}");
    // On a busy machine a step may be passed over, a picture may not.
    assert!(steps.len() >= 5 && steps[0].0 == 0 && steps.last().unwrap().0 == 1, "{steps:?}");

    // Whoever lost the connection after an event hears of everything after it. Old previews are gone by then.
    for seen in [0, ids[0], ids[ids.len() / 2]] {
        let again = events(&server.call("GET", &path, &[("last-event-id", &seen.to_string())], b"").await);
        let kept = all.iter().filter(|(id, name, _)| *id > seen && name != "preview").cloned();
        assert_eq!(again, kept.collect::<Vec<_>>(), "after {seen}");
    }
    let end = ids.last().unwrap().to_string();
    assert_eq!(server.call("GET", &path, &[("last-event-id", &end)], b"").await.status, 204);
    assert_eq!(server.call("GET", &path, &[("last-event-id", "x")], b"").await.status, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_stops_within_a_step_wherever_it_is() {
    let server = slow(20);
    let long = json!({"prompt": "a", "steps": 150});
    let (running, waiting) = (submit(&server, &long).await, submit(&server, &long).await);
    let script = server.script.clone();
    eventually("it runs", || script.steps_taken() >= 3).await;
    let early = server.get(&format!("/jobs/{running}/result")).await;
    assert_eq!((early.status.as_u16(), early.header("retry-after")), (409, Some("1")));

    for id in [&waiting, &running] {
        let cancelled = server.call("DELETE", &format!("/jobs/{id}"), &[], b"").await;
        assert_eq!((cancelled.status.as_u16(), &cancelled.json()["state"]), (200, &json!("cancelled")));
        assert_eq!(server.get(&format!("/jobs/{id}/result")).await.status, 410);
        assert_eq!(events(&server.get(&format!("/jobs/{id}/events")).await).last().unwrap().1, "cancelled");
    }
    let at_cancel = server.script.steps_taken();
    let queue = server.queue.clone();
    eventually("no place is taken", || queue.depth().running + queue.depth().waiting == 0).await;
    let further = server.script.steps_taken() - at_cancel;
    assert!(further <= 2, "{further} further steps: one at work, one before the engine saw it");
    let next = submit(&server, &json!({"prompt": "b", "steps": 1})).await;
    assert_eq!(server.get(&format!("/jobs/{next}/result?wait=10")).await.status, 200);
}

#[tokio::test]
async fn a_job_outlives_the_connection_that_submitted_it() {
    let server = slow(10);
    let id = submit(&server, &json!({"prompt": "a", "steps": 5})).await;
    let script = server.script.clone();
    eventually("it is made with nobody watching", || script.steps_taken() == 5).await;
    assert_eq!(server.get(&format!("/jobs/{id}/result?wait=5")).await.status, 200);
}

#[tokio::test]
async fn what_is_wrong_is_named_with_its_value_and_what_is_allowed() {
    let server = server();
    let with = |field: &str, value: Value| json!({"prompt": "a", field: value});
    let ratios = "16:9, 1:1, 21:9, 2:3, 3:2, 3:4, 4:3, 4:5, 5:4, 9:16, Auto";
    let words = "a string of 1 to 20000 characters that is not blank";
    let number = |from: &str, to: &str| format!("a number from {from} to {to}");
    let table = [
        (json!({}), format!("prompt is required: {words}.")),
        (json!({"prompt": null}), format!("prompt is required: {words}.")),
        (json!({"prompt": 5}), format!("prompt must be {words}, not 5.")),
        (json!({"prompt": " "}), format!("prompt must be {words}, not \" \".")),
        (with("steps", json!(0)), "steps must be an integer from 1 to 150, not 0.".into()),
        (with("steps", json!(151)), "steps must be an integer from 1 to 150, not 151.".into()),
        (with("steps", json!(1.5)), "steps must be an integer from 1 to 150, not 1.5.".into()),
        (with("steps", json!("5")), "steps must be an integer from 1 to 150, not \"5\".".into()),
        (with("num_images", json!(9)), "num_images must be an integer from 1 to 8, not 9.".into()),
        (with("guidance_scale", json!(31)), format!("guidance_scale must be {}, not 31.", number("0", "30"))),
        (with("seed", json!(-1)), format!("seed must be an integer from 0 to {}, not -1.", u64::MAX)),
        (with("clip_skip", json!(32)), "clip_skip must be an integer from 0 to 31, not 32.".into()),
        (with("aspect_ratio", json!("7:1")), format!("aspect_ratio must be one of {ratios}, not \"7:1\".")),
        (with("resolution", json!("HIGH")), "resolution must be one of standard, high, not \"HIGH\".".into()),
        (
            json!({"prompt": "a", "width": 65, "height": 64}),
            "width must be an integer from 8 to 4096, a multiple of 8, not 65.".into(),
        ),
        (with("width", json!(64)), "width is given: height is required.".into()),
        (with("height", json!(64)), "height is given: width is required.".into()),
        (
            json!({"prompt": "a", "width": 64, "height": 64, "aspect_ratio": "1:1"}),
            "aspect_ratio cannot be given beside width and height.".into(),
        ),
        (
            json!({"prompt": "a", "image": png(8, 8), "resolution": "high"}),
            "resolution has no effect here: it chooses between the sizes of an aspect_ratio.".into(),
        ),
        (with("mask", json!(png(8, 8))), "mask needs an image to repaint.".into()),
        (with("strength", json!(0.5)), "strength needs an image to start from.".into()),
        (
            json!({"prompt": "a", "image": png(8, 8), "strength": 2}),
            format!("strength must be {}, not 2.", number("0", "1")),
        ),
        (with("loras", json!([{"name": "x"}])), "Unknown lora \"x\". Known are: none.".into()),
        (with("loras", json!([{"scale": 1}])), "name is required".into()),
        (with("loras", json!(["x"])), "loras must be a list of at most 8 objects, not [\"x\"].".into()),
        (with("cfg_scale", json!(7)), "Unknown field \"cfg_scale\". Known are: prompt, ".into()),
        (with("model", json!("other")), "Unknown model \"other\". Must be one of ['fake']".into()),
        (with("scheduler", json!("quick")), "scheduler: ".into()),
        (with("image", json!("!")), "image ".into()),
    ];
    for (body, text) in table {
        let answer = server.post("/jobs", &body).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(&text), "{body}: {detail}");
    }
    assert_eq!(server.script.requests().len(), 0);
    for path in ["/jobs/0", "/jobs/0/events", "/jobs/0/result", "/jobs/0/images/0"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    let allow = server.call("PUT", "/jobs/0", &[], b"").await;
    assert_eq!((allow.status.as_u16(), allow.header("allow")), (405, Some("DELETE, GET")));
    let id = submit(&server, &json!({"prompt": "a", "steps": 1})).await;
    for wait in ["301", "-1", "soon", ""] {
        assert_eq!(server.get(&format!("/jobs/{id}/result?wait={wait}")).await.status, 422, "{wait}");
    }
}

#[tokio::test]
async fn a_failed_job_says_why() {
    let server = server();
    for (prompt, status, text) in [
        ("!fail", 500, "the latents are not finite"),
        ("!invalid", 422, "this cannot be painted"),
        ("!panic", 500, "internal error"),
    ] {
        let id = submit(&server, &json!({"prompt": prompt})).await;
        let result = server.get(&format!("/jobs/{id}/result?wait=10")).await;
        assert_eq!(result.status, status, "{}", result.text());
        assert!(result.text().contains(text), "{}", result.text());
        let all = events(&server.get(&format!("/jobs/{id}/events")).await);
        let (_, name, data) = all.last().unwrap();
        assert_eq!((name.as_str(), &data["error"]), ("failed", &json!(text)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_are_given_up_end_every_stream() {
    let server = slow(20);
    let jobs = server.app.jobs.clone();
    let ids = [
        submit(&server, &json!({"prompt": "a", "steps": 150})).await,
        submit(&server, &json!({"prompt": "a"})).await,
    ];
    let script = server.script.clone();
    eventually("it runs", || script.steps_taken() >= 1).await;
    let told = Instant::now();
    jobs.close();
    jobs.abandon();
    for id in ids {
        let all = events(&server.get(&format!("/jobs/{id}/events")).await);
        assert_eq!(all.last().unwrap().2["error"], "the server is shutting down");
    }
    assert!(told.elapsed() < Duration::from_secs(1), "took {:?}", told.elapsed());
    assert_eq!(server.post("/jobs", &json!({"prompt": "a"})).await.status, 503);
}
