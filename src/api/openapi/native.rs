//! The native API, and what people look at.

use serde_json::{Value, json};

use super::operation::{Operation, base64, get, object, post};
use crate::api::sizes;
use crate::settings::{MAX_CACHE_BRANCH_ID, MAX_CACHE_INTERVAL, MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS};

pub(super) const FIRST_BLOCK_CACHE: &str = "Changes the picture: FLUX leaves out all blocks but the first where that one changes by less than this part.";
pub(super) const CACHE_INTERVAL: &str = "Changes the picture: UNets compute all but the finest layers once every so many steps, as DeepCache does.";
pub(super) const CACHE_BRANCH_ID: &str = "DeepCache's branch: 0 is fastest, higher ones change less.";

pub(super) fn operations() -> Vec<Operation> {
    let any = || json!({"type": "object"});
    let html = [("text/html", json!({"type": "string"}))];
    let makes = |operation: Operation| {
        operation
            .gives_as(200, "The pictures.", &[("application/json", pictures())])
            .refuses(400, "The body is no readable text, broke off, or holds what is no picture.")
            .refuses(408, "The body came too slowly.")
            .refuses(413, "The body is larger than is accepted.")
            .refuses(422, "A field is missing or not as it should be.")
            .refuses(503, "Too little memory, a full queue, or a server that is stopping.")
            .refuses(504, "The job ran too long and was ended.")
    };
    vec![
        makes(post("/generate", "native", "Pictures from a prompt"))
            .takes_as(&[("application/json", generate())]),
        makes(post("/refine", "native", "Pictures from pictures"))
            .takes_as(&[("application/json", refine())]),
        get("/health", "native", "What the server is doing")
            .about("Answers at once, also while a model loads or paints.")
            .gives_as(200, "The server is alive.", &[("application/json", any())]),
        get("/benchmark", "native", "Make one picture and tell how long it took")
            .gives_as(200, "The figures.", &[("application/json", benchmark())])
            .refuses(422, "The model refused the request.")
            .refuses(504, "The job ran too long and was ended."),
        get("/", "page", "The web page, or a list of endpoints for whoever does not accept HTML").gives_as(
            200,
            "The page.",
            &[("text/html", json!({"type": "string"})), ("application/json", any())],
        ),
        get("/docs", "page", "This description, with requests to try").gives_as(200, "The page.", &html),
        get("/redoc", "page", "This description, for reading").gives_as(200, "The page.", &html),
        get("/openapi.json", "page", "This description, for programs").gives_as(
            200,
            "An OpenAPI 3.1 document.",
            &[("application/json", any())],
        ),
        get("/page/{file}", "page", "A script, style or icon of the pages")
            .part("file", "Its name.", json!({"type": "string", "pattern": "^[a-z]+\\.[a-z]+$"}))
            .gives_as(
                200,
                "The file.",
                &["text/css", "text/javascript", "image/svg+xml"]
                    .map(|kind| (kind, json!({"type": "string"}))),
            )
            .refuses(404, "There is no such file."),
    ]
}

fn text() -> Value {
    json!({"type": "string"})
}

/// `config`: what both routes share.
fn config() -> Value {
    let optional = |kind: &str, rest: Value| {
        let mut schema = json!({"type": [kind, "null"]});
        if let (Value::Object(schema), Value::Object(rest)) = (&mut schema, rest) {
            schema.extend(rest);
        }
        schema
    };
    let range = |min: f64, max: f64| optional("number", json!({"minimum": min, "maximum": max}));
    let whole = |min: u64, max: u64| optional("integer", json!({"minimum": min, "maximum": max}));
    object(
        &[],
        &[
            ("steps", whole(1, MAX_STEPS), "Denoising steps."),
            ("guidanceScale", range(0.0, MAX_GUIDANCE_SCALE), "How closely the prompt is followed."),
            (
                "seed",
                json!({"type": ["integer", "null"], "minimum": -1}),
                "Where the noise starts; -1 is any.",
            ),
            ("numImages", whole(1, MAX_IMAGES), "How many pictures, with seeds in a row."),
            ("negativePrompt", optional("string", json!({})), "What they should not show."),
            ("scheduler", optional("string", json!({})), "A scheduler by its diffusers or web UI name."),
            ("lora", optional("string", json!({})), "A LoRA, by the names that /health lists."),
            ("loraScale", range(-4.0, 4.0), "How much of it."),
            ("model", optional("string", json!({})), "The model by its name."),
            ("firstBlockCache", range(0.0, 1.0), FIRST_BLOCK_CACHE),
            ("cacheInterval", whole(1, MAX_CACHE_INTERVAL), CACHE_INTERVAL),
            ("cacheBranchId", whole(0, MAX_CACHE_BRANCH_ID), CACHE_BRANCH_ID),
            ("strength", range(0.0, 1.0), "How much of each picture /refine changes."),
        ],
    )
}

fn generate() -> Value {
    let ratios: Vec<_> = sizes::ratios().collect();
    object(
        &["prompt", "aspectRatio"],
        &[
            (
                "prompt",
                json!({"type": "string", "minLength": 1, "pattern": r"\S"}),
                "What the pictures should show.",
            ),
            ("aspectRatio", json!({"type": "string", "enum": ratios}), "Their shape."),
            ("resolution", text(), "`high` for the larger of the two sizes of a shape."),
            (
                "temperature",
                json!({"type": "number"}),
                "Moves guidance: 0 is none, 1 the default, 2 as far beyond. A model whose preset fixes guidance \
                 ignores it.",
            ),
            ("config", config(), "Everything else. Names may be written in snake_case too."),
        ],
    )
}

fn refine() -> Value {
    let pictures = json!({"type": "array", "items": base64(), "minItems": 1, "maxItems": MAX_IMAGES});
    let prompt = json!({"type": "string", "minLength": 1, "pattern": r"\S"});
    object(
        &["refinePrompt", "images"],
        &[
            ("refinePrompt", prompt, "What they should show; `prompt` is an alias."),
            ("images", pictures, "PNG, JPEG or WebP files in base64, with or without a data URI before it."),
            ("config", config(), "Everything else. Names may be written in snake_case too."),
        ],
    )
}

fn pictures() -> Value {
    let seeds = json!({"type": "array", "items": {"type": "integer"}});
    object(
        &["images"],
        &[
            ("images", json!({"type": "array", "items": base64()}), "PNG files in base64, without `data:`."),
            ("seeds", seeds, "The seed of each."),
            ("seed", json!({"type": ["integer", "null"]}), "That of the first."),
            ("model", text(), "Which model made them."),
            ("provider", text(), "`aquatint`"),
            ("processingTime", json!({"type": "integer"}), "Milliseconds from request to reply."),
            (
                "parameters",
                json!({"type": ["object", "null"]}),
                "Everything that determined the first picture.",
            ),
        ],
    )
}

fn benchmark() -> Value {
    let number = || json!({"type": "number"});
    object(
        &["generation_time_seconds", "performance_rating"],
        &[
            ("benchmark", text(), "What was made."),
            ("prompt", text(), "From which prompt."),
            ("generation_time_seconds", number(), "How long it took."),
            ("steps", number(), "Denoising steps."),
            ("device", text(), "Where it was computed."),
            ("guidance_scale", number(), "Classifier-free guidance."),
            ("images_generated", number(), "Pictures made."),
            ("performance_rating", text(), "`excellent`, `good`, `fair` or `slow`."),
        ],
    )
}
