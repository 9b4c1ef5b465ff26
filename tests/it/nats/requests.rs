//! What the shared queue accepts, refuses and answers.

use std::collections::HashSet;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::cluster::{Cluster, LEASE, job, until};
use super::runs;
use super::server::Nats;
use super::worker::{MODEL, settings};
use crate::board::row;
use crate::cli::{Folder, aquatint};
use crate::running::Running;
use aquatint::engine::{GenerationRequest, Work};
use aquatint::queue::JobQueue;
use aquatint::queue::nats::NatsQueue;

fn picture(base64: &str) -> image::RgbImage {
    aquatint::picture::decode(&BASE64.decode(base64).unwrap()).unwrap().to_rgb8()
}

#[test]
fn every_api_works_with_workers_elsewhere() {
    let cluster = Cluster::start("apis", 2, 1, &["--queue-size", "1000"]);
    let (here, there) = (&cluster.apis[0], &cluster.apis[1]);
    let health = here.json("/health");
    assert_eq!((health["model"].as_str(), health["loras"][0].as_str()), (Some(MODEL), Some("ink")));
    assert_eq!(health["queue"]["capacity"], 1000);

    // The native API waits for its pictures.
    let body =
        json!({"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 2, "steps": 2, "seed": 5}});
    let answer = here.server.ask("POST", "/generate", &[], &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body_text());
    let made: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(made["images"].as_array().unwrap().len(), 2);
    let first = picture(made["images"][0].as_str().unwrap());
    assert_eq!(first.get_pixel(0, 0).0, [0, 0, 5], "the fake paints its seed");

    // A picture travels beside the request, its mask too.
    let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]));
    let start = png(&image::RgbImage::from_pixel(64, 64, image::Rgb([9, 8, 7])));
    let mut repaint = job(6, 2);
    repaint["image"] = BASE64.encode(start).into();
    repaint["mask"] = BASE64.encode(png(&image::DynamicImage::ImageLuma8(mask).to_rgb8())).into();
    repaint["loras"] = json!([{"name": "ink", "scale": 0.5}]);
    // Longer than a message may be.
    repaint["negative_prompt"] = "x".repeat(19_000).into();
    repaint["num_images"] = 4.into();
    let id = here.submit(&repaint);
    assert_eq!(there.ended(&id), "done", "{}", there.json(&format!("/jobs/{id}")));
    let result = there.json(&format!("/jobs/{id}/result"));
    assert_eq!(result["seeds"], json!([6, 7, 8, 9]));
    assert_eq!(result["parameters"][0]["mode"], "inpaint");
    assert_eq!(result["parameters"][0]["loras"][0], json!({"name": "ink", "scale": 0.5}));
    assert_eq!(result, here.json(&format!("/jobs/{id}/result")), "both processes have the same pictures");
    let file = there.get(&format!("/jobs/{id}/images/3"));
    assert!(aquatint::picture::texts(&file.body).unwrap().iter().any(|(name, _)| name == "parameters"));

    // What fails is told with its reason, and as what it is.
    let mut bad = job(7, 2);
    bad["prompt"] = "!invalid".into();
    let id = here.submit(&bad);
    assert_eq!(there.ended(&id), "failed");
    let answer = there.get(&format!("/jobs/{id}/result"));
    assert_eq!((answer.status, answer.body_text()), (422, r#"{"detail":"this cannot be painted"}"#));

    for unknown in ["0123456789abcdef0123456789abcdef", "*", "a.b", "%2a", "%3e"] {
        assert_eq!(here.get(&format!("/jobs/{unknown}")).status, 404, "{unknown}");
    }
    // One that has ended is forgotten for all, once whoever is asked knows of its end: else it is cancelled.
    assert_eq!(here.ended(&id), "failed");
    assert_eq!(here.server.ask("DELETE", &format!("/jobs/{id}"), &[], "").status, 200);
    assert_eq!(here.get(&format!("/jobs/{id}")).status, 404);
    let metrics = here.get("/metrics");
    assert!(metrics.body_text().contains("aquatint_queue_capacity 1000"));
}

fn png(image: &image::RgbImage) -> Vec<u8> {
    aquatint::picture::encode_plain(image, aquatint::picture::Format::Png, 0).unwrap()
}

#[test]
fn the_program_itself_is_a_worker_and_both() {
    let nats = Nats::start("roles");
    let (url, folders) =
        (nats.url(), ["api", "worker", "all"].map(|name| Folder::new(&format!("nats-role-{name}"))));
    let start = |folder, role: &str| Running::start(folder, &[], &["--queue", &url, "--role", role]);
    let api = start(&folders[0], "api");
    assert_eq!(api.ask("GET", "/ready", &[], "").status, 503, "no model is known yet");
    let mut worker = start(&folders[1], "worker");
    until("the worker's model is known", || api.ask("GET", "/ready", &[], "").status == 200);
    let body =
        json!({"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1, "seed": 3}});
    let generate = |server: &Running| {
        let answer = server.ask("POST", "/generate", &[], &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body_text());
        picture(serde_json::from_slice::<Value>(&answer.body).unwrap()["images"][0].as_str().unwrap())
    };
    let made = generate(&api);
    assert_eq!(
        worker.ask("POST", "/generate", &[], &body.to_string()).status,
        404,
        "a worker takes no requests"
    );
    assert_eq!(worker.ask("GET", "/ready", &[], "").status, 200);
    assert!(worker.ask("GET", "/metrics", &[], "").body_text().contains("aquatint_pictures_total 1\n"));
    worker.stop();
    let all = start(&folders[2], "all");
    until("it is ready", || all.ask("GET", "/ready", &[], "").status == 200);
    assert_eq!(generate(&all), made, "the same request is the same picture, whoever makes it");
    assert_eq!(generate(&api), made);
    // A process on its own makes the same.
    let alone = Folder::new("nats-role-alone");
    let alone = Running::start(&alone, &[], &[]);
    until("it is ready", || alone.ask("GET", "/ready", &[], "").status == 200);
    assert_eq!(generate(&alone), made);
}

#[test]
fn a_full_queue_refuses_exactly_what_is_too_much() {
    const ROOM: usize = 5;
    const ASKED: u64 = 12;
    let (mut accepted, mut refused, mut without_time) = (Vec::new(), Vec::new(), 0);
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("full-{run}"), 1, 1, &["--queue-size", "5"]);
        // What it had is known; there is nobody to make anything.
        cluster.workers[0].signal("TERM");
        cluster.workers[0].wait();
        let api = cluster.api0();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let ask = |seed| scope.spawn(move || api.try_submit(&job(seed, 1)).unwrap());
            let asked: Vec<_> = (0..ASKED).map(ask).collect();
            asked.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        let of = |status| answers.iter().filter(|answer| answer.status == status).count();
        accepted.push(of(202));
        refused.push(of(503));
        without_time +=
            answers.iter().filter(|a| a.status == 503 && !a.head.contains("retry-after: ")).count();
        cluster.workers[0] = cluster.worker();
        let ids = answers.iter().filter(|answer| answer.status == 202).map(super::cluster::id);
        assert!(ids.map(|id| cluster.api0().ended(&id)).all(|state| state == "done"));
        // Its places are free again.
        let next = cluster.api0().submit(&job(99, 1));
        assert_eq!(cluster.api0().ended(&next), "done");
    }
    row(
        "nats-full",
        &format!("{ASKED} jobs at once for a queue of {ROOM}, {} runs", runs()),
        "exactly 5 accepted, the others 503 with Retry-After",
        format!("accepted {accepted:?}, refused {refused:?}, {without_time} without Retry-After"),
        accepted.iter().all(|n| *n == ROOM)
            && refused.iter().all(|n| *n == ASKED as usize - ROOM)
            && without_time == 0,
    );
}

#[test]
fn a_job_that_is_submitted_twice_is_made_once() {
    let mut starts = Vec::new();
    for run in 0..runs() {
        let cluster = Cluster::start(&format!("twice-{run}"), 1, 2, &["--queue-size", "1000"]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let id = "00112233445566778899aabbccddeeff";
        runtime.block_on(async {
            let queue = NatsQueue::connect(settings(&cluster.url, LEASE)).await.unwrap();
            let mut request = GenerationRequest::new("a", 41);
            (request.width, request.height, request.num_inference_steps) = (Some(64), Some(64), Some(4));
            let work = Work { requests: vec![request], model: Some(MODEL.into()), ..Work::default() };
            while !queue.is_reachable() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let (a, b) = tokio::join!(queue.submit_as(id, work.clone()), queue.submit_as(id, work.clone()));
            assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
            assert_eq!(cluster.api0().ended(id), "done");
            // Once more, now that it is done.
            queue.submit_as(id, work).await.unwrap();
        });
        let next = cluster.api0().submit(&job(42, 2));
        assert_eq!(cluster.api0().ended(&next), "done");
        starts.push(cluster.journal.starts(41));
    }
    row(
        "nats-twice",
        &format!("the same job submitted three times, {} runs", runs()),
        "made once",
        format!("begun {starts:?} times"),
        starts.iter().all(|starts| *starts == 1),
    );
}

#[test]
fn ids_of_jobs_differ() {
    let cluster = Cluster::start("ids", 1, 1, &["--queue-size", "1000"]);
    let ids: HashSet<_> = (0..20).map(|seed| cluster.api0().submit(&job(seed, 1))).collect();
    assert_eq!(ids.len(), 20);
    assert!(ids.iter().all(|id| cluster.api0().ended(id) == "done"));
}

#[test]
fn the_doctor_knows_a_server_that_keeps_jobs() {
    let folder = Folder::new("nats-doctor");
    let run = |nats: &Nats, flags: &[&str]| {
        let url = nats.url();
        let arguments = [&["doctor", "--queue", &url], flags].concat();
        let output = aquatint(&folder, &[], &arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let good = Nats::start("doctor-good");
    let monitor = format!("http://127.0.0.1:{}", good.monitor);
    let (code, text) = run(&good, &["--nats-monitor", &monitor]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("good  sync_interval: always"), "{text}");
    assert!(text.contains("IMAGE_JOBS is not there yet"), "{text}");
    let lazy = Nats::with_sync("doctor-lazy", "\"2m\"");
    let monitor = format!("http://127.0.0.1:{}", lazy.monitor);
    let (code, text) = run(&lazy, &["--nats-monitor", &monitor]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("bad   sync_interval is 120 s"), "{text}");
    let (code, text) = run(&lazy, &["--json"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("cannot be seen"), "{text}");
    drop(good);
    let gone = aquatint(&folder, &[], &["doctor", "--queue", "nats://127.0.0.1:1"]);
    let mut gone: Command = gone;
    assert_eq!(gone.output().unwrap().status.code(), Some(1));
}
