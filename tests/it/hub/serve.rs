//! Models of the hub, used.

use super::standin::Fault;
use super::*;
use crate::running::Running;

/// The built-in model's files, as a repository.
fn demo() -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"));
    let parts = [
        "model_index.json",
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "vae",
    ];
    let mut files = BTreeMap::new();
    for (path, file) in parts.iter().flat_map(|part| match root.join(part).is_dir() {
        true => {
            links(&root.join(part)).into_iter().map(|(path, file)| (format!("{part}/{path}"), file)).collect()
        }
        false => vec![((*part).to_owned(), root.join(part))],
    }) {
        files.insert(path, std::fs::read(file).unwrap());
    }
    files
}

fn lora() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/lora/duotone.safetensors")).unwrap()
}

#[test]
fn a_server_paints_with_a_model_of_the_hub() {
    let world = World::new("hub-serve");
    world.hub.add("org/emoji", demo());
    world.hub.add("org/duotone", BTreeMap::from([("pytorch_lora_weights.safetensors".to_owned(), lora())]));
    let (endpoint, home) = (world.hub.endpoint(), world.folder.0.join("home").display().to_string());
    let variables = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", &home), ("SD_MODEL_ID", "org/emoji")];
    let arguments = ["--add-model", "second=org/emoji", "--add-lora", "two-colours=org/duotone"];
    let mut server = Running::start(&world.folder, &variables, &arguments);
    let paint = |body: &str| server.ask("POST", "/generate", &[], body);
    let plain = r#"{"prompt": "a red apple", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1, "seed": 5}}"#;
    let painted = paint(plain);
    assert_eq!(painted.status, 200, "{}\n{}", painted.body_text(), server.log());
    let health = server.ask("GET", "/health", &[], "");
    let health: serde_json::Value = serde_json::from_slice(&health.body).unwrap();
    assert_eq!((&health["model"], &health["loras"][0]), (&"emoji".into(), &"two-colours".into()), "{health}");
    let other = paint(&plain.replace("\"seed\": 5", r#""seed": 5, "lora": "two-colours""#));
    assert_eq!(other.status, 200, "{}", other.body_text());
    assert_ne!(painted.body, other.body);
    let second = paint(&plain.replace("\"seed\": 5", r#""seed": 5, "model": "second""#));
    assert_eq!(second.status, 200, "{}", second.body_text());
    let log = server.stop();
    assert!(log.contains("downloading") && log.contains("org/emoji"), "{log}");

    // The command too, and without a network.
    let variables = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", &home), ("HF_HUB_OFFLINE", "1")];
    let make =
        ["generate", "a", "--steps", "1", "--model", "org/emoji", "--lora", "org/duotone:0.5", "--json"];
    let output = aquatint(&world.folder, &variables, &make).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let parameters = &made["images"][0]["parameters"];
    assert_eq!((&parameters["model"], &parameters["loras"][0]["name"]), (&"emoji".into(), &"duotone".into()));
    assert_eq!(parameters["loras"][0]["scale"], 0.5);
}

/// The hub falls silent in the middle of a file, for as long as it takes to be asked again.
#[test]
fn health_tells_how_far_a_download_is() {
    let world = World::new("hub-health");
    world.hub.add("org/emoji", demo());
    let (endpoint, home) = (world.hub.endpoint(), world.folder.0.join("home").display().to_string());
    let patience = ("HF_HUB_DOWNLOAD_TIMEOUT", "2");
    let variables =
        [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", &home), ("SD_MODEL_ID", "org/emoji"), patience];
    world.hub.break_file("unet/diffusion_pytorch_model.safetensors", Fault::Stall(50_000, 1));
    let server = Running::start(&world.folder, &variables, &[]);
    let loading = || -> serde_json::Value {
        let health = server.ask("GET", "/health", &[], "");
        serde_json::from_slice::<serde_json::Value>(&health.body).unwrap()["loading"].clone()
    };
    let number = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap_or(0);
    let begun = std::time::Instant::now();
    let seen = loop {
        let now = loading();
        if number(&now, "downloaded_bytes") > 0 {
            break now;
        }
        assert!(begun.elapsed().as_secs() < 30, "{now} {}", server.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(number(&seen, "downloaded_bytes") < number(&seen, "download_bytes"), "{seen}");
    assert_eq!((&seen["model"], number(&seen, "read_bytes")), (&"emoji".into(), 0), "{seen}");
    let one = r#"{"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}}"#;
    let painted = server.ask("POST", "/generate", &[], one);
    assert_eq!(painted.status, 200, "{}", painted.body_text());
    assert_eq!(loading(), serde_json::Value::Null);
}

/// A textual inversion of so many vectors, as the web UI stores it.
fn embedding(channels: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"emb_params":{{"dtype":"F32","shape":[2,{channels}],"data_offsets":[0,{}]}}}}"#,
        8 * channels
    );
    let numbers = (0..2 * channels).flat_map(|i| (0.01 * (i % 7) as f32).to_le_bytes());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()]
        .concat()
        .into_iter()
        .chain(numbers)
        .collect()
}

#[test]
fn a_folder_may_hold_embeddings_beside_loras() {
    let world = World::new("hub-embeddings");
    let config = include_str!("../../../models/demo/text_encoder/config.json");
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    let channels = config["hidden_size"].as_u64().unwrap() as usize;
    world.folder.write("loras/fits.safetensors", &embedding(channels));
    world.folder.write("loras/fits-not.safetensors", &embedding(channels + 1));
    world.folder.write("loras/two-colours.safetensors", &lora());
    let mut server = Running::start(&world.folder, &[], &["--lora-dir", "loras"]);
    let painted = server.ask(
        "POST",
        "/generate",
        &[],
        r#"{"prompt": "fits", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}}"#,
    );
    assert_eq!(painted.status, 200, "{}", painted.body_text());
    let listed = server.ask("GET", "/sdapi/v1/embeddings", &[], "");
    let listed: serde_json::Value = serde_json::from_slice(&listed.body).unwrap();
    assert_eq!(
        (&listed["loaded"]["fits"]["vectors"], &listed["loaded"]["fits"]["shape"]),
        (&2.into(), &channels.into())
    );
    let loras = text(&server.ask("GET", "/sdapi/v1/loras", &[], "").body);
    assert!(loras.contains("two-colours") && !loras.contains("fits"), "{loras}");
    let log = server.stop();
    assert!(log.contains("left out") && log.contains("fits-not"), "{log}");
}

#[test]
fn a_model_that_cannot_be_had_ends_the_command_or_has_a_stand_in() {
    let world = World::new("hub-serve-none");
    world.hub.gate("org/tiny");
    let make = ["generate", "a red apple", "--steps", "1", "--json", "--model", "org/tiny"];
    let output = world.run(&[], &make);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("--model org/tiny") && error_line(&output).contains("gated"));
    let output = world.run(&[], &[&make[..], &["--fallback", "builtin"]].concat());
    assert!(output.status.success(), "{}", errors(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(made["images"][0]["parameters"]["fallback_for"], "tiny");
}

#[test]
fn what_lies_here_goes_first() {
    let world = World::new("hub-local");
    world.folder.write("org/tiny/readme", b"");
    let output = world.run(&[], &["generate", "a", "--model", "org/tiny"]);
    assert!(error_line(&output).contains("holds no model_index.json"), "{}", error_line(&output));
    assert!(world.hub.asked().is_empty());
    let output = world.run(&[], &["generate", "a", "--lora", "loras/none.safetensors"]);
    assert!(error_line(&output).contains("No such file"), "{}", error_line(&output));
    assert!(world.hub.asked().is_empty(), "a path of a file is no id");
}
