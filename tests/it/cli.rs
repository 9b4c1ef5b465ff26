//! The program itself: exit codes, one-line errors, files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A folder of the test's own, empty at its start and gone at its end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("aquatint-it-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `aquatint` in a folder, with nothing from outside in its environment.
pub(crate) fn aquatint(folder: &Folder, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquatint"));
    command.current_dir(&folder.0).env_clear().envs(variables.iter().copied()).args(arguments);
    command
}

/// Whoever tests has a network, and the hub is not to be asked.
const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");

fn run(folder: &Folder, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    aquatint(folder, variables, arguments).output().unwrap()
}

fn error_line(output: &Output, what: &str) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    assert!(line.starts_with("error: "), "{what}: {text}");
    assert_eq!(lines.next(), None, "{what}: more than one line: {text}");
    line
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    let folder = Folder::new("bad");
    folder.write("pickle.ckpt", b"PK\x03\x04 archive/data.pkl");
    folder.write("old.pt", b"\x80\x02}q\x00(X\x05\x00\x00\x00");
    folder.write("short.safetensors", b"\x01\x00");
    folder.write("cut.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{}");
    folder.write("text.png", b"not a picture");
    folder.write("empty/readme", b"");
    folder.write("broken/model_index.json", b"{");
    folder.write("flux/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    let wide = image::DynamicImage::new_luma8(5000, 1);
    wide.save(folder.0.join("wide.png")).unwrap();
    image::DynamicImage::new_rgb8(64, 64).save(folder.0.join("fine.png")).unwrap();

    // What is given, and what the line names.
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["<PROMPT>"]),
        (&["a", "--prompt", "b"], &["--prompt"]),
        (&["a", "--steps", "0"], &["--steps", "0", "1..=1000"]),
        (&["a", "--steps", "1001"], &["--steps", "1..=1000"]),
        (&["a", "--steps", "ten"], &["--steps", "ten"]),
        (&["a", "--width", "0"], &["--width", "multiple of 8"]),
        (&["a", "--width", "63"], &["--width", "63", "multiple of 8"]),
        (&["a", "--height", "4104"], &["--height", "4096"]),
        (&["a", "--height", "99999999999999999999"], &["--height", "4096"]),
        (&["a", "--guidance-scale", "nan"], &["--guidance-scale", "0 to 30"]),
        (&["a", "--guidance-scale=-1"], &["--guidance-scale", "0 to 30"]),
        (&["a", "--scheduler", "Eulerr"], &["--scheduler", "Eulerr", "DPM++ 2M"]),
        (&["a", "--seed", "-1"], &["-1"]),
        (&["a", "--seed", "1.5"], &["--seed", "1.5"]),
        (&["a", "--num-images", "0"], &["--num-images", "1..=1000"]),
        (&["a", "--strength", "1.5", "--init-image", "fine.png"], &["--strength", "1.5", "0 to 1"]),
        (&["a", "--strength", "0.001", "--init-image", "fine.png"], &["strength", "0.001"]),
        (&["a", "--mask", "fine.png"], &["--init-image"]),
        (&["a", "--init-image", "none.png"], &["--init-image", "none.png", "No such file"]),
        (&["a", "--init-image", "text.png"], &["--init-image", "text.png", "PNG, JPEG or WebP"]),
        (&["a", "--init-image", "wide.png"], &["--init-image", "5000x1", "4096"]),
        (&["a", "--init-image", "fine.png", "--mask", "none.png"], &["--mask", "none.png"]),
        (&["a", "--clip-skip", "99"], &["--clip-skip", "0..=31"]),
        (&["a", "--dtype", "fp8"], &["--dtype", "fp8", "fp32, fp16, bf16"]),
        (&["a", "--device", "tpu"], &["--device", "tpu", "cpu", "cuda"]),
        (&["a", "--threads", "0"], &["--threads", "1..=1024"]),
        (&["a", "--model", "none"], &["--model", "none", "no such folder", "diffusers layout"]),
        (&["a", "--model", "org/name"], &["--model org/name", "no such file or folder", "HF_HUB_OFFLINE"]),
        (&["a", "--lora", "org/name:0.5"], &["--lora org/name", "HF_HUB_OFFLINE"]),
        (&["a", "--model", "empty"], &["--model", "empty", "model_index.json"]),
        (&["a", "--model", "pickle.ckpt"], &["--model", "pickle.ckpt", "pickle"]),
        (&["a", "--model", "broken"], &["model_index.json"]),
        (&["a", "--model", "flux"], &["flux"]),
        (&["a", "--refiner", "empty"], &["--refiner", "model_index.json"]),
        (&["a", "--unet", "none.safetensors"], &["--unet", "none.safetensors", "No such file"]),
        (&["a", "--unet", "pickle.ckpt"], &["--unet", "pickle.ckpt", "pickle"]),
        (&["a", "--vae", "short.safetensors"], &["--vae", "short.safetensors"]),
        (&["a", "--lora", "none.safetensors"], &["--lora", "none.safetensors", "No such file"]),
        (&["a", "--lora", "old.pt:0.5"], &["--lora", "old.pt", "pickle"]),
        (&["a", "--lora", "cut.safetensors"], &["--lora", "cut.safetensors", "truncated"]),
        (&["a", "--lora", "x.safetensors:much"], &["--lora", "much", "not a number"]),
        (&["a", "--lora", "empty"], &["--lora", "empty", "folder"]),
        (&["a", "--lcm-lora", "none.safetensors"], &["none.safetensors"]),
        (&["a", "--out", "a.gif"], &["--out", "a.gif", ".png"]),
        (&["a", "--out", "none/a.png"], &["--out", "none/a.png", "folder"]),
        (&["a", "--colour"], &["--colour"]),
    ];
    for (arguments, named) in table {
        let all = [&["generate"], *arguments].concat();
        let output = run(&folder, &[OFFLINE], &all);
        let line = error_line(&output, &all.join(" "));
        assert_eq!(output.status.code(), Some(2), "{all:?}: {line}");
        for word in *named {
            assert!(line.contains(word), "{all:?} does not name {word}: {line}");
        }
        assert_eq!(stdout(&output), "", "{all:?}");
    }
}

#[test]
fn settings_of_the_server_are_refused_by_name() {
    let folder = Folder::new("settings");
    let table: &[(&str, &str, &[&str])] = &[
        (
            "REFINE_MODE",
            "caption",
            &["--refine-mode caption", "REFINE_MODE", "--caption-model", "SD_CAPTION_MODEL_ID"],
        ),
        ("REFINE_MODE", "paint", &["REFINE_MODE", "img2img, caption"]),
        ("FLUX_MODEL", "dev", &["FLUX"]),
        ("SD_MODEL_ID", "stabilityai/sdxl-turbo", &["stabilityai/sdxl-turbo", "HF_HUB_OFFLINE"]),
        ("SD_LCM_LORA_ID", "none.safetensors", &["none.safetensors"]),
        ("SD_SCHEDULER", "Eulerr", &["SD_SCHEDULER", "Eulerr"]),
        ("SD_UNET_ID", "none.safetensors", &["--unet", "none.safetensors"]),
        ("SD_PRECISION", "int4", &["SD_PRECISION", "int4"]),
        ("SD_DEVICE", "tpu", &["SD_DEVICE", "tpu"]),
        ("SD_NUM_IMAGES", "9", &["SD_NUM_IMAGES", "1..=8"]),
        ("SD_STEPS", "0", &["SD_STEPS", "1..=150"]),
        ("SD_GUIDANCE", "x", &["SD_GUIDANCE", "0 to 30"]),
        ("PORT", "99999", &["PORT", "99999"]),
        ("AQUATINT_MODEL_FALLBACK", "FLUX.1-dev", &["AQUATINT_MODEL_FALLBACK", "ASKED=USED"]),
        ("PORT_HEALTH", "x", &["PORT_HEALTH"]),
        ("RUNPOD_WEBHOOK_GET_JOB", "ftp://x", &["RUNPOD_WEBHOOK_GET_JOB", "https://"]),
        ("AQUATINT_LORA_DIR", "none", &["--lora-dir", "none"]),
        ("AQUATINT_API_KEYS", "a,,b", &["--api-key", "empty"]),
        ("AQUATINT_API_KEY_FILE", "none", &["--api-key-file none", "No such file"]),
        ("AQUATINT_API_KEY_FILE", "/dev/null", &["--api-key-file /dev/null", "holds no key"]),
        ("AQUATINT_RATE_LIMIT", "0", &["AQUATINT_RATE_LIMIT", "1..=1000000"]),
        ("AQUATINT_MAX_BODY_MIB", "0", &["AQUATINT_MAX_BODY_MIB", "1..=1024"]),
        ("AQUATINT_PNG_COMPRESSION", "9", &["AQUATINT_PNG_COMPRESSION", "none, fast, balanced, high"]),
    ];
    for (name, value, named) in table {
        let output = run(&folder, &[OFFLINE, (name, value)], &["serve"]);
        let line = error_line(&output, name);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {line}");
        for word in *named {
            assert!(line.contains(word), "{name}={value} does not name {word}: {line}");
        }
    }
}

#[test]
fn a_captioning_model_is_a_folder_in_the_published_layout() {
    let folder = Folder::new("caption-model");
    folder.write("empty/readme", b"");
    folder.write("file", b"");
    for (model, reason) in [
        ("none", "no such folder"),
        ("Salesforce/blip-image-captioning-base", "HF_HUB_OFFLINE"),
        ("file", "is a file"),
        ("empty", "holds no config.json"),
    ] {
        let variables = [OFFLINE, ("REFINE_MODE", "caption"), ("SD_CAPTION_MODEL_ID", model)];
        let output = run(&folder, &variables, &["serve"]);
        let line = error_line(&output, model);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(line.contains(&format!("--caption-model {model}: ")) && line.contains(reason), "{line}");
    }
}

#[test]
fn the_built_in_model_makes_pictures() {
    let folder = Folder::new("make");
    let common = ["generate", "a red apple", "--steps", "2", "--seed", "7"];
    let output = run(&folder, &[], &[&common[..], &["--num-images", "2", "--out", "x.png"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stdout(&output).lines().count(), 2);
    assert!(stdout(&output).starts_with("x-0.png (seed 7, 2 steps, "), "{}", stdout(&output));
    let second = std::fs::read(folder.0.join("x-1.png")).unwrap();

    // Picture 1 of seed 7 is picture 0 of seed 8, whatever the number of threads.
    let alone =
        ["generate", "--prompt", "a red apple", "--steps", "2", "--seed", "8", "--threads", "1", "--json"];
    let output = run(&folder, &[], &alone);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["images"][0]["path"], "aquatint-8.png");
    assert_eq!(json["images"][0]["parameters"]["seed"], 8);
    assert_eq!(std::fs::read(folder.0.join("aquatint-8.png")).unwrap(), second);

    let painted = image::open(folder.0.join("aquatint-8.png")).unwrap();
    let again = ["--init-image", "aquatint-8.png", "--strength", "0.5", "--out", "y.jpg"];
    let output = run(&folder, &[], &[&common[..], &again].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let refined = image::open(folder.0.join("y.jpg")).unwrap();
    assert_eq!((refined.width(), refined.height()), (painted.width(), painted.height()));
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing else is left behind: {left:?}");
}

#[test]
fn a_fallback_stands_in_and_says_so() {
    let folder = Folder::new("fallback");
    // There, but gated: a download left the index alone.
    folder.write("flux-dev/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    let make = ["generate", "a red apple", "--steps", "1", "--seed", "7", "--json", "--fallback", "builtin"];
    for model in ["flux-dev", "nowhere"] {
        let output = run(&folder, &[], &[&make[..], &["--model", model]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains(model) && stderr.contains("builtin stands in"), "{stderr}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let parameters = &json["images"][0]["parameters"];
        assert_eq!((&parameters["model"], &parameters["fallback_for"]), (&"builtin".into(), &model.into()));
    }
    let output = run(&folder, &[], &["generate", "a", "--model", "flux-dev"]);
    assert!(error_line(&output, "none").contains("flux-dev"), "without a fallback it is an error");
    let output = run(&folder, &[], &["generate", "a", "--model", "flux-dev", "--fallback", "nowhere"]);
    assert!(error_line(&output, "bad fallback").contains("--fallback nowhere"));
}

/// A GGUF file may be a transformer; that this model has none is found out later.
#[test]
fn a_component_may_be_a_gguf_file() {
    let folder = Folder::new("gguf");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tests/fixtures/quantised_flux.gguf");
    let output = run(&folder, &[], &["generate", "a", "--unet", file]);
    assert!(error_line(&output, "a UNet").contains("no tensor"), "{}", error_line(&output, "a UNet"));
    let output = run(&folder, &[], &["generate", "a", "--t5", file]);
    assert!(error_line(&output, "T5").contains("has none"), "{}", error_line(&output, "T5"));
    let output = run(&folder, &[], &["generate", "a", "--lora", file]);
    assert!(error_line(&output, "a LoRA").contains("GGUF"), "{}", error_line(&output, "a LoRA"));
}

#[test]
fn files_are_told_apart_and_converted() {
    let folder = Folder::new("inspect");
    let fixture = |name: &str| format!("{}/models/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let flux = fixture("quantised_flux.gguf");
    for (file, kind) in [
        (flux.clone(), "FLUX transformer alone"),
        (fixture("lora_kohya_sdxl.safetensors"), "LoRA"),
        (fixture("vae_sd.safetensors"), "not supported"),
    ] {
        let output = run(&folder, &[], &["models", "inspect", &file]);
        assert!(stdout(&output).starts_with(&format!("kind        {kind}")), "{}", stdout(&output));
    }
    let convert =
        |extra: &[&str]| run(&folder, &[], &[&["models", "convert", flux.as_str()], extra].concat());
    let output = convert(&["f16.safetensors", "--dtype", "fp16"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let output = run(&folder, &[], &["models", "inspect", "f16.safetensors", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["kind"], &json["family"]), (&"transformer".into(), &"flux".into()));
    assert!(json["types"]["F16"]["tensors"].as_u64() > Some(50), "{json}");
    assert!(json["usage"].as_str().unwrap().contains("--vae FILE"), "{json}");
    for (arguments, says) in [
        (&["f16.safetensors", "--dtype", "fp16"][..], "exists already"),
        (&["other.safetensors"], "--dtype"),
        (&["folder", "--quantise", "q4_0"], "--to single"),
    ] {
        let line = error_line(&convert(arguments), says);
        assert!(line.contains(says), "{line}");
    }
    assert!(!folder.0.join("other.safetensors").exists() && !folder.0.join("folder").exists());
}

#[test]
fn models_are_listed() {
    let folder = Folder::new("models");
    folder.write("m/b/model_index.json", br#"{"_class_name": "StableDiffusionXLPipeline"}"#);
    folder.write("m/a/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    folder.write("m/c/other.json", b"{}");
    folder.write("m/d/model_index.json", br#"{"_class_name": "KolorsPipeline"}"#);
    let output = run(&folder, &[], &["models", "--models-dir", "m"]);
    let text = stdout(&output);
    assert!(text.starts_with("builtin  "), "{text}");
    assert!(
        text.contains(
            "m/a  FluxPipeline\nm/b  StableDiffusionXLPipeline\nm/d  KolorsPipeline (not supported)\n"
        ),
        "{text}"
    );
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tests/fixtures"));
    for name in ["quantised_flux.gguf", "lora_kohya_sdxl.safetensors"] {
        folder.write(&format!("m/{name}"), &std::fs::read(fixtures.join(name)).unwrap());
    }
    folder.write("m/cut.safetensors", b"12");
    let text = stdout(&run(&folder, &[], &["models", "--models-dir", "m"]));
    for line in [
        "m/cut.safetensors  unreadable (not supported)\n",
        "m/lora_kohya_sdxl.safetensors  LoRA, sdxl\n",
        "m/quantised_flux.gguf  FLUX transformer alone, flux\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    for name in ["quantised_flux.gguf", "lora_kohya_sdxl.safetensors", "cut.safetensors"] {
        std::fs::remove_file(folder.0.join("m").join(name)).unwrap();
    }
    let output = run(&folder, &[("AQUATINT_MODELS_DIR", "m")], &["models", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["models"].as_array().unwrap().len(), 4);
    let missing = run(&folder, &[], &["models", "--models-dir", "none"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(error_line(&missing, "none").contains("--models-dir none"));
}

#[test]
fn help_and_version_are_no_errors() {
    let folder = Folder::new("help");
    for arguments in [&["--help"][..], &["--version"], &["generate", "--help"], &["serve", "--help"]] {
        let output = run(&folder, &[("HF_TOKEN", "hf_secret")], arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!stdout(&output).is_empty() && !stdout(&output).contains("hf_secret"));
    }
    assert_eq!(run(&folder, &[], &["paint"]).status.code(), Some(2));
}

/// The port of a server that has just been started: it is on the first line that says so.
pub(crate) fn port_of(log: &Path) -> u16 {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if let Some((_, rest)) = text.split_once("listening on http://127.0.0.1:") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return digits.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it does not listen: {}", std::fs::read_to_string(log).unwrap_or_default());
}

#[test]
fn the_server_ends_well_when_told_to() {
    let folder = Folder::new("serve");
    let log = folder.0.join("log");
    let arguments = ["serve", "--port", "0", "--log-format", "json"];
    let variables = [("HF_TOKEN", "hf_secret"), ("TORCH_COMPILE", "1")];
    let mut server = aquatint(&folder, &variables, &arguments)
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let port = port_of(&log);
    let taken = run(&folder, &[], &["serve", "--port", &port.to_string()]);
    assert_eq!(taken.status.code(), Some(1), "a taken port is not the input's fault");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("cannot listen on 127.0.0.1"));

    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("TORCH_COMPILE has no effect") && !log.contains("hf_secret"), "{log}");
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn a_model_that_does_not_load_ends_the_server() {
    let folder = Folder::new("unloadable");
    folder.write("broken/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    let output = run(&folder, &[("SD_MODEL_ID", "broken")], &["serve", "--port", "0"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().last().unwrap().starts_with("error: "), "{text}");
}
