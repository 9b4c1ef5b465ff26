//! Models and LoRAs that need few steps: found by their names, applied where the request is silent, told in the reply.
//! Numbers are those of the models' own pages.

use aquatint::api::LoraRegistry;
use aquatint::engine::LoraChoice;
use aquatint_models::sampler::SamplerSettings;
use serde_json::{Value, json};

use crate::cli::Folder;
use crate::harness::{Server, Setup};

const FILES: [&str; 6] = [
    "lcm-lora-sdxl.safetensors",
    "sdxl_lightning_2step_lora.safetensors",
    "Hyper-SDXL-8steps-CFG-lora.safetensors",
    "Hyper-SDXL-1step-lora.safetensors",
    "sdxl-turbo-lora.safetensors",
    "ink.safetensors",
];

/// A server with these LoRAs, and settings that a model for many steps would want.
fn server(folder: &Folder) -> Server {
    for file in FILES {
        folder.write(&format!("loras/{file}"), b"");
    }
    let loras = LoraRegistry::scan(&folder.0.join("loras")).unwrap();
    let flags = vec!["--steps", "30", "--guidance-scale", "7.5", "--scheduler", "Heun"];
    Setup { loras, flags, ..Setup::default() }.start()
}

/// What the reply says it was made with.
async fn made(server: &Server, config: Value, temperature: Option<f64>) -> Value {
    let mut config = config;
    config["numImages"] = json!(1);
    let body = json!({"prompt": "a", "aspectRatio": "1:1", "temperature": temperature, "config": config});
    let answer = server.post("/generate", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["parameters"].clone()
}

fn of(made: &Value) -> Value {
    json!([made["preset"], made["scheduler"], made["num_inference_steps"], made["guidance_scale"]])
}

#[tokio::test]
async fn a_lora_that_distils_brings_sampler_steps_and_guidance() {
    let folder = Folder::new("presets");
    let server = server(&folder);
    for (lora, expected) in [
        ("lcm-lora-sdxl", json!(["lcm", "LCMScheduler", 8, 1.0])),
        ("sdxl_lightning_2step_lora", json!(["lightning", "Euler SGM Uniform", 2, 0.0])),
        // Made for guidance: the server's own holds.
        ("Hyper-SDXL-8steps-CFG-lora", json!(["hyper", "DDIM SGM Uniform", 8, 7.5])),
        ("Hyper-SDXL-1step-lora", json!(["hyper", "TCD", 1, 0.0])),
        ("sdxl-turbo-lora", json!(["turbo", "Euler a SGM Uniform", 4, 0.0])),
        ("ink", json!([null, "Heun", 30, 7.5])),
    ] {
        assert_eq!(of(&made(&server, json!({"lora": lora}), None).await), expected, "{lora}");
    }
    assert_eq!(
        of(&made(&server, json!({}), None).await),
        json!([null, "Heun", 30, 7.5]),
        "none is left behind"
    );
}

#[tokio::test]
async fn a_request_goes_before_a_preset() {
    let folder = Folder::new("presets-overridden");
    let server = server(&folder);
    let lora = "sdxl_lightning_2step_lora";
    let all = json!({"lora": lora, "steps": 12, "guidanceScale": 2.5, "scheduler": "DPM++ 2M"});
    assert_eq!(of(&made(&server, all, None).await), json!(["lightning", "DPM++ 2M", 12, 2.5]));
    let steps = json!({"lora": lora, "steps": 4});
    assert_eq!(of(&made(&server, steps, None).await), json!(["lightning", "Euler SGM Uniform", 4, 0.0]));
    // The web app's temperature means guidance, which this LoRA is not made for.
    let tempered = made(&server, json!({"lora": lora}), Some(0.3)).await;
    assert_eq!(tempered["guidance_scale"], 0.0);
    let tempered = made(&server, json!({"lora": "Hyper-SDXL-8steps-CFG-lora"}), Some(0.0)).await;
    assert_eq!(tempered["guidance_scale"], 1.0);
}

#[tokio::test]
async fn a_lora_of_the_server_itself_counts_too() {
    let always = vec![LoraChoice::new("Hyper-SD15-4steps-lora.safetensors", 1.0)];
    let flags = vec!["--steps", "30", "--scheduler", "Heun"];
    let server = Setup { always, flags, ..Setup::default() }.start();
    let expected = json!(["hyper", "DDIM SGM Uniform", 4, 0.0]);
    assert_eq!(of(&made(&server, json!({}), None).await), expected);
    let health = server.get("/health").await.json();
    assert_eq!(health["preset"], "hyper");
    assert_eq!(health["optimizations"]["steps"], 4);
    assert_eq!(health["optimizations"]["scheduler"], "DDIM SGM Uniform");
    assert_eq!(server.get("/info").await.json()["models"][0]["preset"], "hyper");
}

#[test]
fn every_preset_names_a_sampler_that_there_is() {
    let of = |file: &str| LoraChoice::new(file, 1.0).preset;
    let schedulers: Vec<_> = FILES.iter().filter_map(|file| of(file)?.scheduler).collect();
    assert_eq!(schedulers.len(), 5);
    for scheduler in schedulers {
        SamplerSettings::web_ui_names(scheduler).unwrap();
    }
}
