//! The whole server around a model that paints at once.

use std::sync::{Arc, LazyLock};

use aquatint::api::edge::Edge;
use aquatint::api::{App, Operations, router, runpod};
use aquatint::engine::{
    Backend, Denoising, Engine, EngineError, EngineSettings, GenerationRequest, LoraChoice, ModelEntry,
    ModelInfo,
};
use aquatint::queue::LocalQueue;
use aquatint::settings::{Cli, Command};
use aquatint_models::pipeline::Family;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use clap::Parser;
use image::RgbImage;
use tower::ServiceExt;

/// Larger pictures are refused: encoding them is slow, and nothing new.
const LARGEST_PX: usize = 64;

struct Fixture {
    runtime: tokio::runtime::Runtime,
    app: App,
    routes: axum::Router,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let Command::Serve(args) =
        Cli::try_parse_from(["aquatint", "serve"]).expect("the defaults stand").command
    else {
        panic!("serve was asked for");
    };
    let queue = Arc::new(LocalQueue::new(64));
    let model = ModelEntry::new("fake", || Ok(Painted));
    let (engine, _thread) = Engine::spawn(vec![model], queue.clone(), EngineSettings::default())
        .expect("there is a thread to be had");
    let app = App {
        queue,
        engine,
        defaults: Arc::new(args.defaults),
        preset: None,
        loras: Arc::default(),
        jobs: aquatint::api::Jobs::default(),
        images: Arc::default(),
        webui: Arc::default(),
        operations: Operations::default(),
    };
    let edge = Edge::new(&args.edge).expect("the defaults stand");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    Fixture { runtime: runtime.expect("a runtime"), routes: router(app.clone(), &edge), app }
});

/// Sends a body, and reads the answer to its end.
pub(crate) fn post(path: &str, kind: &str, body: &[u8]) {
    let fixture = &*FIXTURE;
    let request = Request::post(path).header("content-type", kind).body(Body::from(body.to_vec()));
    let answer = fixture.runtime.block_on(async {
        let response =
            fixture.routes.clone().oneshot(request.expect("a request")).await.unwrap_or_else(|e| match e {});
        let status = response.status();
        (status, to_bytes(response.into_body(), usize::MAX).await)
    });
    assert!(answer.0 != 500, "{path}: {:?}", answer.1);
}

/// What becomes of a job of RunPod.
pub(crate) fn runpod(job: &[u8]) {
    let fixture = &*FIXTURE;
    if let Ok(result) = fixture.runtime.block_on(runpod::result_of(&fixture.app, job)) {
        let error = result["error"].as_str().unwrap_or_default();
        assert!(error != "internal error", "{result}");
    }
}

/// A model that has painted already.
struct Painted;

struct Done {
    size: (u32, u32),
    position: usize,
}

impl Denoising for Done {
    fn steps(&self) -> usize {
        1
    }

    fn position(&self) -> usize {
        self.position
    }

    fn joins(&self, _: &Self) -> bool {
        false
    }
}

impl Backend for Painted {
    type Denoising = Done;

    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: "fake".into(),
            family: Family::Sdxl,
            native_size_px: LARGEST_PX,
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

    fn set_loras(&mut self, _: &[LoraChoice]) -> Result<(), EngineError> {
        Ok(())
    }

    fn caption(&self, _: &RgbImage) -> Result<String, EngineError> {
        Ok("a picture".into())
    }

    fn start(&self, request: &GenerationRequest) -> Result<Done, EngineError> {
        let side = |side: Option<usize>| side.unwrap_or(LARGEST_PX);
        let (width, height) = (side(request.width), side(request.height));
        if width.max(height) > LARGEST_PX * 4 {
            return Err(EngineError::Invalid("too large".into()));
        }
        Ok(Done { size: (width as u32, height as u32), position: 0 })
    }

    fn step(&self, batch: &mut [&mut Done]) -> Result<(), EngineError> {
        batch.iter_mut().for_each(|done| done.position = 1);
        Ok(())
    }

    fn decode(&self, done: &Done, _: bool) -> Result<RgbImage, EngineError> {
        Ok(RgbImage::new(done.size.0, done.size.1))
    }
}
