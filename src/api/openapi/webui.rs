//! The Stable Diffusion web UI's API under `/sdapi/v1`.

use serde_json::{Value, json};

use super::operation::{Errors, Operation, base64, get, object, post};
use crate::settings::{MAX_GUIDANCE_SCALE, MAX_STEPS};

/// Routes that only list something, with what that is.
const LISTS: [(&str, &str); 17] = [
    ("progress", "How far the running job is"),
    ("sd-models", "The models"),
    ("samplers", "The samplers"),
    ("schedulers", "The schedule types"),
    ("loras", "The LoRAs"),
    ("upscalers", "The upscalers of hires fix"),
    ("latent-upscale-modes", "Its upscalers of latents"),
    ("memory", "Memory in use"),
    ("cmd-flags", "Settings of the server"),
    ("scripts", "Scripts; there are none"),
    ("embeddings", "Textual inversions"),
    ("sd-vae", "VAEs to choose from; there are none"),
    ("hypernetworks", "Hypernetworks; there are none"),
    ("face-restorers", "Face restorers; there are none"),
    ("realesrgan-models", "Upscaling models; there are none"),
    ("prompt-styles", "Prompt styles; there are none"),
    ("options", "The options"),
];

pub(super) fn operations() -> Vec<Operation> {
    let reply = object(
        &["images", "parameters", "info"],
        &[
            ("images", json!({"type": "array", "items": base64()}), "PNG files in base64."),
            ("parameters", any(), "The request."),
            ("info", text(), "What was made, as JSON in a string."),
        ],
    );
    let makes = |path: &str, summary: &str, body: Value| {
        takes(path, summary)
            .takes_as(&[("application/json", body)])
            .gives_as(200, "The pictures.", &[("application/json", reply.clone())])
            .refuses(404, "There is no such sampler, schedule type or model.")
            .refuses(504, "The job ran too long and was ended.")
    };
    let json_body = |body: Value| [("application/json", body)];
    let mut all = vec![
        makes("txt2img", "Pictures from a prompt", generation(&[])),
        makes("img2img", "Pictures from pictures", generation(&image_fields())),
        takes("options", "Change options")
            .takes_as(&json_body(any()))
            .gives_as(200, "null", &json_body(json!({})))
            .refuses(404, "There is no such model."),
        takes("png-info", "How a picture was made")
            .takes_as(&json_body(object(&["image"], &[("image", base64(), "The file.")])))
            .gives_as(200, "What its file says.", &json_body(any())),
        web_ui(post("/sdapi/v1/interrupt", "webui", "End the running job")).gives_as(
            200,
            "It ends before its next step.",
            &json_body(json!({})),
        ),
        web_ui(post("/sdapi/v1/refresh-checkpoints", "webui", "Look for models again")).gives_as(
            200,
            "null",
            &json_body(json!({})),
        ),
        unsupported("unload-checkpoint", "Free the model's memory; this server does so by itself"),
        unsupported("reload-checkpoint", "Load the model again; this server does so by itself"),
    ];
    all.extend(LISTS.map(|(path, summary)| {
        web_ui(get(&format!("/sdapi/v1/{path}"), "webui", summary)).gives_as(
            200,
            "As the web UI answers.",
            &[("application/json", json!({}))],
        )
    }));
    all
}

fn any() -> Value {
    json!({"type": "object"})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn web_ui(operation: Operation) -> Operation {
    operation.errors(Errors::WebUi)
}

fn unsupported(path: &str, summary: &str) -> Operation {
    web_ui(post(&format!("/sdapi/v1/{path}"), "webui", summary)).refuses(501, "It is not supported.")
}

fn takes(path: &str, summary: &str) -> Operation {
    web_ui(post(&format!("/sdapi/v1/{path}"), "webui", summary))
        .refuses(400, "The body is no JSON object, or broke off.")
        .refuses(408, "The body came too slowly.")
        .refuses(413, "The body is larger than is accepted.")
        .refuses(422, "A field is not as it should be.")
}

fn generation(more: &[(&str, Value, &str)]) -> Value {
    let whole = |min: i64, max: u64| json!({"type": "integer", "minimum": min, "maximum": max});
    let share = || json!({"type": "number", "minimum": 0, "maximum": 1});
    let seed = || json!({"type": "integer", "minimum": -1});
    let mut fields = vec![
        ("prompt", text(), "What the picture should show; `<lora:name:0.8>` merges a LoRA."),
        ("negative_prompt", text(), "What it should not show."),
        ("seed", seed(), "Where the noise starts; -1 is any."),
        ("subseed", seed(), "Where the noise starts that is mixed in."),
        ("subseed_strength", share(), "How much of it."),
        ("steps", whole(1, MAX_STEPS), "Denoising steps."),
        ("cfg_scale", json!({"type": "number", "minimum": 0, "maximum": MAX_GUIDANCE_SCALE}), "Guidance."),
        ("width", whole(8, 4096), "In pixels."),
        ("height", whole(8, 4096), "In pixels."),
        ("sampler_name", text(), "A sampler by its name."),
        ("scheduler", text(), "A schedule type by its name."),
        ("batch_size", whole(1, 8), "Pictures at a time."),
        ("n_iter", whole(1, 8), "How often."),
        ("denoising_strength", share(), "How much of the picture to change."),
        ("override_settings", any(), "Options for this request alone."),
        ("send_images", json!({"type": "boolean"}), "Whether the reply has the pictures."),
    ];
    fields.extend_from_slice(more);
    object(&[], &fields)
}

fn image_fields() -> Vec<(&'static str, Value, &'static str)> {
    let integer = || json!({"type": "integer"});
    let pictures = json!({"type": "array", "items": base64(), "minItems": 1});
    vec![
        ("init_images", pictures, "The pictures to start from."),
        ("mask", base64(), "White is repainted."),
        ("mask_blur", integer(), "How soft its edge is, in pixels."),
        ("resize_mode", integer(), "How a picture of another size is fitted."),
        ("inpainting_fill", integer(), "What the masked part starts from."),
        (
            "inpaint_full_res",
            json!({"type": ["boolean", "integer"]}),
            "Only the masked part is made, at full size.",
        ),
        ("inpaint_full_res_padding", integer(), "What is seen around it, in pixels."),
        ("inpainting_mask_invert", integer(), "1 repaints what is black."),
    ]
}
