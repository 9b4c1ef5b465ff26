//! Where mutation begins: small valid inputs of each target.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::ROUTES;

/// The inputs of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "json" => bodies().into_iter().map(|(route, body)| routed(route, body.to_string().as_bytes())).collect(),
        "multipart" => (0..2).map(|route| [&[route], form().as_slice()].concat()).collect(),
        "picture" => [image::ImageFormat::Png, image::ImageFormat::Bmp]
            .into_iter()
            .filter_map(file)
            .chain([b"data:image/png;base64,iVBORw0KGgo=".to_vec(), b"RIFF\x10\0\0\0WEBPVP8L".to_vec()])
            .collect(),
        "png_text" => vec![with_text(&png(), "parameters", "a fox\nNegative prompt: b\nSteps: 4, Size: 8x8, Seed: 1")],
        "safetensors" => vec![lora(), whole_checkpoint()],
        "lora" => vec![lora()],
        "runpod" => vec![
            json!({"id": "1", "input": {
                "prompt": "a", "width": 16, "height": 16, "seed": 7, "scheduler": "K_EULER", "num_inference_steps": 2,
                "guidance_scale": 3.5, "num_images": 2, "image_url": uri(), "strength": 0.5, "negative_prompt": "b",
            }})
            .to_string()
            .into_bytes(),
        ],
        "prompt" => ["a (red:1.2) [fox], ((very)) BREAK \\(big\\) :1.5)", "[a:b:0.5] (a:-1e400)", "🦊((((é"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec(),
        _ => Vec::new(),
    }
}

fn routed(route: &str, body: &[u8]) -> Vec<u8> {
    let index = ROUTES.iter().position(|known| *known == route).unwrap_or(0);
    [&[index as u8], body].concat()
}

fn bodies() -> Vec<(&'static str, Value)> {
    let config = json!({"steps": 2, "guidanceScale": 3.5, "seed": 7, "numImages": 1, "negativePrompt": "b",
        "scheduler": "euler", "strength": 0.5, "lora": "x", "loraScale": 1});
    vec![
        (
            "/generate",
            json!({"prompt": "a", "aspectRatio": "1:1", "resolution": "standard", "temperature": 0.5,
            "config": config}),
        ),
        ("/refine", json!({"refinePrompt": "a", "images": [uri()], "config": config})),
        (
            "/jobs",
            json!({"prompt": "a", "width": 16, "height": 16, "image": base64(), "mask": base64(),
            "strength": 0.5, "num_images": 2, "seed": 7, "steps": 2, "loras": [{"name": "x", "scale": 1}]}),
        ),
        (
            "/v1/images/generations",
            json!({"prompt": "a", "size": "64x64", "n": 1, "stream": true,
            "partial_images": 1, "response_format": "b64_json", "output_format": "jpeg", "output_compression": 5}),
        ),
        (
            "/models/fake",
            json!({"inputs": "a", "parameters": {"width": 16, "height": 16, "seed": 7,
            "num_inference_steps": 2, "guidance_scale": 2, "negative_prompt": ["b"], "target_size": {}}}),
        ),
        (
            "/sdapi/v1/txt2img",
            json!({"prompt": "a <lora:x:1>", "steps": 2, "width": 64, "height": 64,
            "sampler_name": "Euler a", "scheduler": "Karras", "enable_hr": true, "hr_scale": 1.5, "hr_upscaler":
            "Latent", "subseed": 3, "subseed_strength": 0.2, "override_settings": {"CLIP_stop_at_last_layers": 2},
            "batch_size": 1, "n_iter": 1, "denoising_strength": 0.5, "seed": -1}),
        ),
        (
            "/sdapi/v1/img2img",
            json!({"prompt": "a", "init_images": [base64()], "mask": base64(), "mask_blur": 4,
            "inpainting_fill": 1, "inpaint_full_res": true, "inpaint_full_res_padding": 8, "resize_mode": 1,
            "inpainting_mask_invert": 1, "width": 64, "height": 64, "steps": 2}),
        ),
        ("/sdapi/v1/options", json!({"sd_model_checkpoint": "fake", "CLIP_stop_at_last_layers": 1})),
        (
            "/sdapi/v1/png-info",
            json!({"image": BASE64.encode(with_text(&png(), "parameters", "a\nSteps: 4"))}),
        ),
    ]
}

fn form() -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in [("prompt", "a"), ("size", "64x64"), ("n", "1"), ("steps", "2")] {
        body.extend(
            format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes(),
        );
    }
    for name in ["image", "mask"] {
        let head = format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"");
        body.extend(format!("--x\r\n{head}\r\nContent-Type: image/png\r\n\r\n").bytes());
        body.extend(png());
        body.extend(b"\r\n");
    }
    body.extend(b"--x--\r\n");
    body
}

fn file(format: image::ImageFormat) -> Option<Vec<u8>> {
    let image = image::RgbaImage::from_fn(8, 8, |x, y| image::Rgba([x as u8 * 30, y as u8 * 30, 99, 200]));
    let mut bytes = Cursor::new(Vec::new());
    image::DynamicImage::from(image).write_to(&mut bytes, format).ok()?;
    Some(bytes.into_inner())
}

fn png() -> Vec<u8> {
    file(image::ImageFormat::Png).unwrap_or_default()
}

fn base64() -> String {
    BASE64.encode(png())
}

fn uri() -> String {
    format!("data:image/png;base64,{}", base64())
}

/// A PNG with a text chunk after its header. Checksums are of no account where they are fuzzed away anyway, but here
/// they are right.
fn with_text(png: &[u8], keyword: &str, text: &str) -> Vec<u8> {
    let body = [b"tEXt", keyword.as_bytes(), b"\0", text.as_bytes()].concat();
    let crc = !body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    let length = (body.len() - 4) as u32;
    let (head, rest) = png.split_at(33.min(png.len()));
    [head, &length.to_be_bytes(), &body, &crc.to_be_bytes(), rest].concat()
}

/// A LoRA of one layer, kohya's and diffusers' keys, and a token.
fn lora() -> Vec<u8> {
    let kohya = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let named = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    tensors(&[
        (format!("{kohya}.lora_down.weight"), vec![2, 8]),
        (format!("{kohya}.lora_up.weight"), vec![8, 2]),
        (format!("{kohya}.alpha"), vec![]),
        (format!("{named}.lora_A.weight"), vec![2, 8]),
        (format!("{named}.lora_B.weight"), vec![8, 2]),
        ("fox".into(), vec![8]),
    ])
}

/// A few tensors of each part, in the original code's names.
fn whole_checkpoint() -> Vec<u8> {
    tensors(&[
        ("model.diffusion_model.input_blocks.0.0.weight".into(), vec![2, 4, 1, 1]),
        ("model.diffusion_model.output_blocks.2.1.conv.weight".into(), vec![2, 2, 1, 1]),
        ("first_stage_model.decoder.mid.attn_1.q.weight".into(), vec![2, 2, 1, 1]),
        ("first_stage_model.decoder.up.3.block.0.conv1.bias".into(), vec![2]),
        ("conditioner.embedders.1.model.text_projection".into(), vec![2, 3]),
        ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight".into(), vec![6, 2]),
    ])
}

fn tensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"fox": "<embed>", "ss_network_alpha": "4"}));
    let mut end = 0;
    for (name, shape) in tensors {
        let bytes = 4 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    let header = Value::from(header).to_string();
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0x3c; end]].concat()
}
