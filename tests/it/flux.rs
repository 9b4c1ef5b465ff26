//! What the server does differently for FLUX: its own guidance, prompts of a given length, editing, stand-ins.

use aquatint::engine::{Family, Mode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Server, Setup, eventually};

fn server(script: Script) -> Server {
    Setup { script: Script { family: Family::Flux, ..script }, ..Setup::default() }.start()
}

fn picture() -> String {
    let mut bytes = std::io::Cursor::new(Vec::new());
    RgbImage::new(16, 16).write_to(&mut bytes, ImageFormat::Png).unwrap();
    STANDARD.encode(bytes.into_inner())
}

/// The strength that the last request reached the model with.
fn strength(server: &Server) -> f64 {
    match server.script.requests().pop().unwrap().mode {
        Mode::ImageToImage { strength, .. } | Mode::Inpaint { strength, .. } => strength,
        Mode::TextToImage => panic!("there is a picture"),
    }
}

#[tokio::test]
async fn a_model_that_edits_sees_the_picture_and_starts_from_noise() {
    for edits_pictures in [false, true] {
        let server = server(Script { edits_pictures, ..Script::default() });
        let refine =
            |config: Value| json!({"refinePrompt": "make it red", "images": [picture()], "config": config});
        for (i, (route, body, own)) in [
            ("/refine", refine(json!({})), None),
            ("/refine", refine(json!({"strength": 0.25})), Some(0.25)),
            ("/jobs", json!({"prompt": "make it red", "image": picture()}), None),
            ("/jobs", json!({"prompt": "make it red", "image": picture(), "strength": 0.5}), Some(0.5)),
            ("/models/fake", json!({"inputs": picture(), "parameters": {"prompt": "make it red"}}), None),
        ]
        .into_iter()
        .enumerate()
        {
            let asked = i + 1;
            let answer = server.post(route, &body).await;
            assert!(answer.status.is_success(), "{route}: {}", answer.text());
            let made = || server.script.requests().len() == asked;
            eventually("the request reaches the model", made).await;
            match (own, edits_pictures) {
                (Some(own), _) => assert_eq!(strength(&server), own, "{route}: what is said holds"),
                (None, true) => assert_eq!(strength(&server), 1.0, "{route}"),
                (None, false) => assert!(strength(&server) < 1.0, "{route}"),
            }
        }
    }
}

#[tokio::test]
async fn fields_of_flux_reach_the_model() {
    let server = server(Script::default());
    let body =
        json!({"prompt": "a", "negative_prompt": "b", "true_cfg_scale": 3.5, "max_sequence_length": 128});
    assert!(server.post("/jobs", &body).await.status.is_success());
    eventually("the request reaches the model", || server.script.requests().len() == 1).await;
    let request = server.script.requests().pop().unwrap();
    assert_eq!((request.true_cfg_scale, request.max_sequence_length), (Some(3.5), Some(128)));
    for (field, value) in [
        ("true_cfg_scale", json!(-1)),
        ("max_sequence_length", json!(513)),
        ("max_sequence_length", json!(0)),
    ] {
        let mut body = json!({"prompt": "a"});
        body[field] = value;
        let answer = server.post("/jobs", &body).await;
        assert!(answer.status.is_client_error() && answer.text().contains(field), "{}", answer.text());
    }
}

/// diffusers leaves a negative prompt out unless there is true classifier-free guidance; so the reply does not name it.
#[tokio::test]
async fn a_negative_prompt_without_guidance_is_not_claimed_to_be_used() {
    let server = server(Script::default());
    let body = json!({"prompt": "a", "config": {"negativePrompt": "b", "numImages": 1}});
    let answer = server.post("/generate", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["parameters"]["negative_prompt"], Value::Null);
    let stable_diffusion = Setup::default().start();
    let answer = stable_diffusion.post("/generate", &body).await;
    assert_eq!(answer.json()["parameters"]["negative_prompt"], "b");
}

#[tokio::test]
async fn every_reply_says_that_another_model_stands_in() {
    let server = server(Script { fallback_for: Some("flux-dev".into()), ..Script::default() });
    let answer = server.post("/generate", &json!({"prompt": "a"})).await;
    assert_eq!(answer.json()["fallback_for"], "flux-dev");
    assert_eq!(answer.json()["parameters"]["fallback_for"], "flux-dev");
    assert_eq!(server.get("/health").await.json()["fallback_for"], "flux-dev");
    assert_eq!(server.get("/info").await.json()["models"][0]["fallback_for"], "flux-dev");
}
