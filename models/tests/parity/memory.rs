//! What fits into memory, with the built-in model: what is refused, and that what is done to fit changes no picture.

use aquatint_models::Error;
use aquatint_models::pipeline::{GenerationRequest, LoadOptions, ModelSource, Pipeline};

fn load(memory_bytes: Option<u64>) -> Result<Pipeline, Error> {
    Pipeline::load(&ModelSource::Builtin, &LoadOptions { memory_bytes, ..LoadOptions::default() })
}

fn request(side: Option<usize>, seed: u64) -> GenerationRequest {
    GenerationRequest {
        width: side,
        height: side,
        num_inference_steps: Some(2),
        ..GenerationRequest::new("a red circle", seed)
    }
}

#[test]
fn a_model_without_room_is_refused_before_it_is_read() {
    let error = load(Some(1 << 20)).unwrap_err();
    assert!(matches!(error, Error::NoRoom(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("needs at least 0.1 GB") && text.contains("0.0 GB are free"), "{text}");
}

#[test]
fn what_one_picture_needs_is_enough_for_it_and_for_no_larger_one() {
    let free = load(None).unwrap();
    let (small, large) = (request(None, 1), request(Some(2048), 1));
    let room = free.memory_for(&small);
    assert!(free.memory_for(&large) > room);
    let bounded = load(Some(room)).unwrap();
    assert_eq!(bounded.generate(&small).unwrap(), free.generate(&small).unwrap());
    let error = bounded.start(&large).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)));
    assert!(error.to_string().contains("4194304 pixels need"), "{error}");
}

#[test]
fn a_batch_that_does_not_fit_goes_in_parts() {
    let free = load(None).unwrap();
    let bounded = load(Some(free.memory_for(&request(None, 1)))).unwrap();
    let made = |pipeline: &Pipeline| {
        let mut all: Vec<_> = (1..4).map(|seed| pipeline.start(&request(None, seed)).unwrap()).collect();
        while !all[0].is_done() {
            pipeline.step_together(&mut all.iter_mut().collect::<Vec<_>>()).unwrap();
        }
        all.iter().map(|denoising| pipeline.decode(denoising).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(made(&bounded), made(&free));
}
