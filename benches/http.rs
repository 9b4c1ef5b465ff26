//! What an answer costs beside the painting: encoders at 1024x1024, and a whole request over loopback around a model
//! that paints at once. `cargo bench --bench http`; the last lines say what part of a job of one second it is.

// A bench has nobody to report to but its terminal.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquatint::api::edge::Edge;
use aquatint::api::{App, Operations, router, server};
use aquatint::engine::recipe::Recipe;
use aquatint::engine::{
    Backend, Denoising, Engine, EngineError, EngineSettings, GenerationRequest, LoraChoice, ModelEntry,
    ModelInfo, Picture,
};
use aquatint::picture::{Format, PngCompression, decode, encode, use_png_compression};
use aquatint::queue::LocalQueue;
use aquatint::settings::{Cli, Command};
use aquatint_models::pipeline::Family;
use clap::Parser;
use criterion::Criterion;
use image::RgbImage;

const SIDE: u32 = 1024;

/// Soft shapes with the grain of a photograph: what encoders see of a real picture.
fn photograph() -> RgbImage {
    let mut state = 1u32;
    let mut grain = move || {
        let mut sum = 0;
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sum += (state >> 24) as i32 - 127;
        }
        sum as f32 / 100.0
    };
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let (x, y) = (x as f32 / 97.0, y as f32 / 61.0);
        let shape = |phase: f32| {
            127.0 + 70.0 * (x + phase).sin() * (0.7 * y - phase).cos() + 40.0 * (x * y / 9.0).sin()
        };
        image::Rgb([0.0, 1.3, 2.1].map(|phase| (shape(phase) + grain()).clamp(0.0, 255.0) as u8))
    })
}

fn info() -> ModelInfo {
    ModelInfo {
        name: "instant".into(),
        family: Family::Sdxl,
        native_size_px: SIDE as usize,
        multiple_px: 8,
        num_inference_steps: 1,
        guidance_scale: 1.0,
        scheduler: "EulerDiscreteScheduler".into(),
        device: "cpu".into(),
        needs_mask: false,
        edits_pictures: false,
        memory: None,
        fallback_for: None,
        random_weights: false,
        preset: None,
    }
}

/// A model that has painted already.
struct Painted(RgbImage);

struct Done(usize);

impl Denoising for Done {
    fn steps(&self) -> usize {
        1
    }

    fn position(&self) -> usize {
        self.0
    }

    fn joins(&self, _: &Self) -> bool {
        false
    }
}

impl Backend for Painted {
    type Denoising = Done;

    fn info(&self) -> ModelInfo {
        info()
    }

    fn set_loras(&mut self, _: &[LoraChoice]) -> Result<(), EngineError> {
        Ok(())
    }

    fn caption(&self, _: &RgbImage) -> Result<String, EngineError> {
        Ok(String::new())
    }

    fn start(&self, _: &GenerationRequest) -> Result<Done, EngineError> {
        Ok(Done(0))
    }

    fn step(&self, batch: &mut [&mut Done]) -> Result<(), EngineError> {
        batch.iter_mut().for_each(|done| done.0 = 1);
        Ok(())
    }

    fn decode(&self, _: &Done, _: bool) -> Result<RgbImage, EngineError> {
        Ok(self.0.clone())
    }
}

fn encoders(c: &mut Criterion, image: &RgbImage) {
    let recipe = Recipe::new(&GenerationRequest::new("a red apple", 7), (SIDE, SIDE), &info(), &[]);
    let picture = Picture { image: image.clone(), recipe, elapsed_ms: 0.0 };
    for (name, format, compression) in [
        ("png none", Format::Png, PngCompression::None),
        ("png balanced", Format::Png, PngCompression::Balanced),
        ("png high", Format::Png, PngCompression::High),
        ("jpeg 90", Format::Jpeg, PngCompression::Fast),
        ("webp lossless", Format::WebP, PngCompression::Fast),
        // The last stays for the requests.
        ("png fast", Format::Png, PngCompression::Fast),
    ] {
        use_png_compression(compression);
        let bytes = encode(&picture, format).unwrap();
        let again = decode(&bytes).unwrap().to_rgb8();
        assert_eq!(again.dimensions(), (SIDE, SIDE), "{name}");
        assert!(format == Format::Jpeg || again == *image, "{name} is not lossless");
        println!("{name}: {} KiB", bytes.len() / 1024);
        c.bench_function(&format!("encode 1024x1024, {name}"), |b| {
            b.iter(|| encode(&picture, format).unwrap());
        });
    }
    for (key, test, format) in [
        ("png", "PNG of 1024x1024, fast", Format::Png),
        ("jpeg", "JPEG of 1024x1024, quality 90", Format::Jpeg),
        ("webp", "WebP of 1024x1024, lossless", Format::WebP),
    ] {
        let took = median(21, || drop(encode(&picture, format).unwrap()));
        row(key, test, "<= 40 ms", &format!("median {took:.1} ms"), took <= 40.0);
    }
}

/// Milliseconds.
fn median(runs: usize, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}

/// For `scripts/scoreboard.py`.
fn row(key: &str, test: &str, target: &str, measured: &str, reached: bool) {
    println!("SCOREBOARD|{key}|{test}|{target}|{measured}|{}", if reached { "yes" } else { "NO" });
}

fn ask(address: SocketAddr) -> usize {
    let body = r#"{"prompt":"a","aspectRatio":"1:1","resolution":"high","config":{"numImages":1}}"#;
    let head =
        "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer[..200.min(answer.len())])
    );
    answer.len()
}

fn whole_requests(image: RgbImage) {
    let Command::Serve(args) = Cli::try_parse_from(["aquatint", "serve"]).unwrap().command else { return };
    let queue = LocalQueue::new(args.queue_size);
    let model = ModelEntry::new("painted", move || Ok(Painted(image.clone())));
    let settings = EngineSettings::default();
    let (engine, _thread) = Engine::spawn(vec![model], Arc::new(queue.clone()), settings).unwrap();
    let app = App {
        queue: Arc::new(queue),
        engine,
        defaults: Arc::new(args.defaults),
        preset: None,
        loras: Arc::default(),
        jobs: aquatint::api::Jobs::default(),
        images: Arc::default(),
        webui: Arc::default(),
        operations: Operations::default(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let edge = Edge::new(&args.edge).unwrap();
    runtime.spawn(server::serve(
        listener,
        router(app.clone(), &edge),
        app,
        edge,
        std::future::pending(),
        Duration::ZERO,
    ));
    let whole = median(41, || assert!(ask(address) > 100_000));
    let test = "HTTP, queue, PNG and base64 around a job of 1 s, one 1024x1024 picture";
    row("overhead", test, "<= 3 %", &format!("{:.1} % ({whole:.1} ms)", whole / 10.0), whole <= 30.0);
}

fn main() {
    let image = photograph();
    let mut criterion = Criterion::default().sample_size(10).without_plots().configure_from_args();
    encoders(&mut criterion, &image);
    criterion.final_summary();
    whole_requests(image);
}
