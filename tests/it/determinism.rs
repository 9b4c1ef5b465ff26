//! The same request gives the same picture, whatever else the server does: the built-in model through the real
//! scheduler, and batches against single steps.

use std::sync::Arc;

use aquatint::engine::pipeline::PipelineBackend;
use aquatint::engine::{
    Engine, EngineSettings, GenerationRequest, Interpolation, MaskedContent, Mode, ModelEntry, Variation,
    Work,
};
use aquatint::queue::{Caller, Cost, JobQueue, LocalQueue, Ticket};
use aquatint_models::pipeline::{LoadOptions, ModelSource, Pipeline};
use image::{GrayImage, Luma, Rgb, RgbImage};

fn request(seed: u64, steps: usize) -> GenerationRequest {
    let mut request = GenerationRequest::new("a red apple", seed);
    (request.width, request.height) = (Some(64), Some(64));
    request.num_inference_steps = Some(steps);
    request.guidance_scale = Some(5.0);
    request
}

struct Real {
    queue: LocalQueue,
}

impl Real {
    fn start(max_batch: usize) -> Self {
        let queue = LocalQueue::new(50);
        let load = || PipelineBackend::load(&ModelSource::Builtin, &LoadOptions::default());
        let settings = EngineSettings { max_batch, ..EngineSettings::default() };
        let model = ModelEntry::new("builtin", load);
        let (_engine, _thread) = Engine::spawn(vec![model], Arc::new(queue.clone()), settings).unwrap();
        Self { queue }
    }

    fn submit(&self, request: GenerationRequest) -> Ticket {
        let place = self.queue.admit(&Caller::anonymous(), Cost::default()).unwrap();
        self.queue.put(place, Work { requests: vec![request], ..Work::default() })
    }

    async fn run(&self, request: GenerationRequest) -> RgbImage {
        self.submit(request).await.unwrap().remove(0).image
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn furthest(a: &RgbImage, b: &RgbImage) -> u8 {
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seed_is_one_picture() {
    let real = Real::start(1);
    let first = real.run(request(1, 5)).await;
    assert_eq!(real.run(request(1, 5)).await, first, "twice");
    assert_ne!(real.run(request(2, 5)).await, first, "another seed");

    let cancelled = real.submit(request(3, 150));
    let mut watch = cancelled.progress();
    watch.wait_for(|p| p.step >= 2).await.unwrap();
    drop(cancelled);
    assert_eq!(real.run(request(1, 5)).await, first, "after one that was cancelled halfway");

    let others: Vec<_> = (4..8).map(|seed| real.submit(request(seed, 3 + seed as usize))).collect();
    let again = real.submit(request(1, 5));
    assert_eq!(again.await.unwrap()[0].image, first, "among others");
    for other in others {
        other.await.unwrap();
    }

    let batched = Real::start(4);
    let together: Vec<_> = [1, 2, 3, 1].map(|seed| batched.submit(request(seed, 5))).into_iter().collect();
    for (ticket, seed) in together.into_iter().zip([1, 2, 3, 1]) {
        let made = ticket.await.unwrap().remove(0).image;
        let alone = if seed == 1 { first.clone() } else { real.run(request(seed, 5)).await };
        assert!(furthest(&made, &alone) <= 1, "in a batch: seed {seed}");
    }
    let figure =
        "byte-identical twice, after a cancelled one, among others; in a batch within 1 of 255 levels";
    crate::scoreboard::record(
        19,
        "same seed twice, batch 1 vs 4, after cancel, concurrently",
        figure,
        "byte-identical on the CPU; batch <= 1e-4",
    );
}

#[test]
fn a_batch_gives_what_single_steps_give() {
    let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
    let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 4, y as u8 * 4, 90]));
    let mask = GrayImage::from_fn(64, 64, |x, _| Luma([if x < 32 { 255 } else { 0 }]));
    // All that may differ in one batch: steps, guidance or none, prompts, samplers that draw noise, pictures, masks.
    let mut requests = [request(1, 6), request(2, 4), request(3, 5), request(4, 6), request(5, 6)];
    requests[1].guidance_scale = Some(1.0);
    requests[2].prompt = "a (blue:1.3) boat".into();
    requests[2].scheduler = Some("EulerAncestralDiscreteScheduler".into());
    requests[3].mode = Mode::ImageToImage { image: picture.clone(), strength: 0.7 };
    requests[4].mode = Mode::Inpaint { image: picture, mask, strength: 0.9 };
    let start = || requests.iter().map(|r| pipeline.start(r).unwrap()).collect::<Vec<_>>();

    let mut single = start();
    for denoising in &mut single {
        while !denoising.is_done() {
            pipeline.step(denoising).unwrap();
        }
    }
    let mut together = start();
    assert!(together.iter().all(|d| d.joins(&together[0])));
    while together.iter().any(|d| !d.is_done()) {
        let mut batch: Vec<_> = together.iter_mut().filter(|d| !d.is_done()).collect();
        pipeline.step_together(&mut batch).unwrap();
    }
    for (i, (a, b)) in single.iter().zip(&together).enumerate() {
        assert_eq!(a.position(), b.position());
        let difference = (a.latents() - b.latents()).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_scalar::<f32>().unwrap();
        assert!(difference <= 1e-4, "picture {i}: latents differ by {difference}");
    }

    // Longer prompts have more tokens: they go alone, and still right.
    let mut long = request(6, 2);
    long.prompt = "a red apple on a wooden table ".repeat(12);
    let (mut a, mut b) = (pipeline.start(&long).unwrap(), pipeline.start(&request(1, 2)).unwrap());
    assert!(!a.joins(&b));
    pipeline.step_together(&mut [&mut a, &mut b]).unwrap();
    assert_eq!((a.position(), b.position()), (1, 1));
}

#[test]
fn a_preview_has_a_pixel_for_each_latent() {
    let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
    let mut denoising = pipeline.start(&request(1, 3)).unwrap();
    let before = pipeline.preview(&denoising).unwrap();
    pipeline.step(&mut denoising).unwrap();
    let after = pipeline.preview(&denoising).unwrap();
    assert_eq!((before.dimensions(), after.dimensions()), ((8, 8), (8, 8)));
    assert_ne!(before, after, "it follows the latents");
}

/// What only some APIs ask for changes the picture, and by nothing else than what it says.
#[test]
fn variations_masks_and_latents_change_the_picture() {
    let pipeline = Pipeline::load(&ModelSource::Builtin, &LoadOptions::default()).unwrap();
    let make = |request: &GenerationRequest| pipeline.generate(request).unwrap();
    let varied = |strength| GenerationRequest {
        variation: Some(Variation { seed: 2, strength }),
        scheduler: Some("Euler".into()),
        ..request(1, 3)
    };
    let plain = |seed| make(&GenerationRequest { scheduler: Some("Euler".into()), ..request(seed, 3) });
    // The second noise alone is the picture of its seed, as Euler draws no more.
    assert_eq!(make(&varied(1.0)), plain(2));
    assert_eq!(make(&varied(0.0)), plain(1));
    let between = make(&varied(0.5));
    assert!(between != plain(1) && between != plain(2));

    let image = RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, 90]));
    let start = |image: &RgbImage, latent_resize| GenerationRequest {
        mode: Mode::ImageToImage { image: image.clone(), strength: 0.7 },
        latent_resize,
        ..request(1, 4)
    };
    // Of the same size there is nothing to resize.
    let same = make(&start(&image, None));
    assert_eq!(make(&start(&image, Some(Interpolation::Nearest))), same);
    let half = image::imageops::thumbnail(&image, 32, 32);
    let pixels = make(&start(&half, None));
    let latents = [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic];
    let latents = latents.map(|how| make(&start(&half, Some(how))));
    assert!(latents.iter().all(|made| *made != pixels));
    assert!(latents[0] != latents[1] && latents[1] != latents[2] && latents[0] != latents[2]);

    let mask = GrayImage::from_fn(64, 64, |x, _| Luma([if x < 32 { 255 } else { 0 }]));
    let content = |masked_content| GenerationRequest {
        mode: Mode::Inpaint { image: image.clone(), mask: mask.clone(), strength: 0.7 },
        masked_content,
        ..request(1, 4)
    };
    let contents = [MaskedContent::Picture, MaskedContent::Noise, MaskedContent::Zeros];
    let contents = contents.map(|masked_content| make(&content(masked_content)));
    assert!(contents[0] != contents[1] && contents[1] != contents[2] && contents[0] != contents[2]);
}
