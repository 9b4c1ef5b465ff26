//! The APIs of others, and those of operators.

use serde_json::{Value, json};

use super::native::{CACHE_BRANCH_ID, CACHE_INTERVAL, FIRST_BLOCK_CACHE};
use super::operation::{Errors, Operation, base64, file, get, object, post};
use crate::settings::{MAX_CACHE_BRANCH_ID, MAX_CACHE_INTERVAL, MAX_GUIDANCE_SCALE, MAX_STEPS};

pub(super) fn operations() -> Vec<Operation> {
    [openai(), huggingface(), operators()].into_iter().flatten().collect()
}

fn any() -> Value {
    json!({"type": "object"})
}

fn text() -> Value {
    json!({"type": "string"})
}

/// What making pictures can come to, whatever the API.
fn fails(operation: Operation) -> Operation {
    operation
        .refuses(400, "A field is not as it should be, or the body is none.")
        .refuses(404, "There is no such model.")
        .refuses(408, "The body came too slowly.")
        .refuses(413, "The body is larger than is accepted.")
        .refuses(504, "The job ran too long and was ended.")
}

fn openai() -> Vec<Operation> {
    let tag = "openai";
    let images = |operation: Operation| {
        let events = ("text/event-stream", text());
        fails(operation.errors(Errors::OpenAi)).gives_as(
            200,
            "The pictures, or their events where `stream` is true.",
            &[("application/json", any()), events],
        )
    };
    let generation = object(
        &["prompt"],
        &[
            ("prompt", json!({"type": "string", "minLength": 1}), "What the pictures should show."),
            ("model", text(), "The model by its name."),
            ("n", json!({"type": "integer", "minimum": 1, "maximum": 10}), "How many pictures."),
            ("size", text(), "`auto`, or width and height as in `1024x1024`."),
            ("quality", text(), "`auto`, `low`, `medium`, `high`, `standard` or `hd`: how many steps."),
            (
                "response_format",
                json!({"type": "string", "enum": ["url", "b64_json"]}),
                "How pictures come back.",
            ),
            (
                "output_format",
                json!({"type": "string", "enum": ["png", "jpeg", "webp"]}),
                "Their files' format.",
            ),
            ("output_compression", json!({"type": "integer", "minimum": 0, "maximum": 100}), "For JPEG."),
            ("stream", json!({"type": "boolean"}), "Answer with events."),
            (
                "partial_images",
                json!({"type": "integer", "minimum": 0, "maximum": 3}),
                "Previews in the stream.",
            ),
            ("seed", json!({"type": "integer"}), "Where the noise starts."),
            ("steps", json!({"type": "integer", "minimum": 1, "maximum": MAX_STEPS}), "Denoising steps."),
            (
                "guidance_scale",
                json!({"type": "number", "minimum": 0, "maximum": MAX_GUIDANCE_SCALE}),
                "Guidance.",
            ),
            ("negative_prompt", text(), "What they should not show."),
            ("first_block_cache", json!({"type": "number", "minimum": 0, "maximum": 1}), FIRST_BLOCK_CACHE),
            (
                "cache_interval",
                json!({"type": "integer", "minimum": 1, "maximum": MAX_CACHE_INTERVAL}),
                CACHE_INTERVAL,
            ),
            (
                "cache_branch_id",
                json!({"type": "integer", "minimum": 0, "maximum": MAX_CACHE_BRANCH_ID}),
                CACHE_BRANCH_ID,
            ),
        ],
    );
    let edit = object(
        &["image", "prompt"],
        &[
            ("image", file(), "The picture; several are `image[]`."),
            ("mask", file(), "Transparent where it is to be edited."),
            ("prompt", text(), "What it should show."),
        ],
    );
    let variation = object(&["image"], &[("image", file(), "The picture.")]);
    let multipart = |schema: &Value| [("multipart/form-data", schema.clone())];
    vec![
        images(post("/v1/images/generations", tag, "Pictures from a prompt"))
            .takes_as(&[("application/json", generation)]),
        images(post("/v1/images/edits", tag, "Edited pictures")).takes_as(&multipart(&edit)),
        images(post("/v1/images/variations", tag, "Variations of a picture"))
            .takes_as(&multipart(&variation)),
        get("/v1/models", tag, "The models").errors(Errors::OpenAi).gives_as(
            200,
            "The list.",
            &[("application/json", any())],
        ),
        get("/v1/models/{id}", tag, "One model")
            .errors(Errors::OpenAi)
            .part("id", "Its name.", text())
            .gives_as(200, "The model.", &[("application/json", any())])
            .refuses(404, "There is no such model."),
        get("/images/{id}", tag, "A picture that a reply named by URL")
            .part("id", "The last part of the URL.", text())
            .gives_as(
                200,
                "The picture.",
                &["image/png", "image/jpeg", "image/webp"].map(|kind| (kind, file())),
            )
            .refuses(404, "There is no such picture, or it is too old."),
    ]
}

fn huggingface() -> Vec<Operation> {
    let body = object(
        &["inputs"],
        &[
            (
                "inputs",
                json!({"anyOf": [text(), base64(), any()]}),
                "A prompt, a picture in base64, or both.",
            ),
            (
                "parameters",
                any(),
                "Everything else; an unknown name is refused. `first_block_cache`, `cache_interval` and `cache_branch_id` are as \
                 in /v1/images/generations, and change the picture.",
            ),
        ],
    );
    let makes = |operation: Operation| {
        fails(operation.errors(Errors::HuggingFace))
            .takes_as(&[("application/json", body.clone()), ("application/octet-stream", file())])
            .gives_as(
                200,
                "The picture itself, in the format that `Accept` asks for.",
                &["image/png", "image/jpeg", "image/webp"].map(|kind| (kind, file())),
            )
    };
    vec![
        makes(post("/", "huggingface", "A picture from the default model")),
        makes(post("/models/{id}", "huggingface", "A picture from a model")).part(
            "id",
            "Its name, also as `organisation/name`.",
            text(),
        ),
    ]
}

fn operators() -> Vec<Operation> {
    let tag = "operations";
    vec![
        get("/ready", tag, "Whether jobs are taken")
            .gives_as(200, "They are.", &[("application/json", any())])
            .gives_as(503, "Not yet, or not any more.", &[("application/json", any())]),
        get("/info", tag, "The program, its models and its limits").gives_as(
            200,
            "What runs here.",
            &[("application/json", any())],
        ),
        get("/metrics", tag, "Counts and times, as Prometheus reads them").gives_as(
            200,
            "The figures.",
            &[("text/plain", text())],
        ),
        get("/ping", tag, "Whether jobs are taken, as RunPod asks").gives_as(200, "They are.", &[]).gives_as(
            204,
            "The model is loading.",
            &[],
        ),
    ]
}
