//! The Stable Diffusion web UI's API: what it takes, what it asks the model for, what it answers.

use std::time::Duration;

use aquatint::engine::{GenerationRequest, Interpolation, LoraChoice, MaskedContent, Mode, Variation};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use crate::fake::Script;
use crate::harness::{Server, Setup, eventually, server};
use crate::huggingface::{base64, file, loras, orange};

const TXT2IMG: &str = "/sdapi/v1/txt2img";
const IMG2IMG: &str = "/sdapi/v1/img2img";

fn small(more: Value) -> Value {
    let mut body = json!({"prompt": "a red apple", "width": 64, "height": 48, "steps": 4});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Sends a body that must do: what the model was asked for, the reply, and its `info`.
async fn asked(server: &Server, path: &str, body: Value) -> (Vec<GenerationRequest>, Value, Value) {
    let before = server.script.requests().len();
    let answer = server.post(path, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reply = answer.json();
    let info = serde_json::from_str(reply["info"].as_str().unwrap()).unwrap();
    (server.script.requests().split_off(before), reply, info)
}

fn picture(reply: &Value, index: usize) -> RgbImage {
    let bytes = STANDARD.decode(reply["images"][index].as_str().unwrap()).unwrap();
    image::load_from_memory(&bytes).unwrap().to_rgb8()
}

fn png(image: impl Into<DynamicImage>) -> String {
    base64(&file(image, ImageFormat::Png))
}

#[tokio::test]
async fn every_field_reaches_the_model() {
    let (folder, loras) = loras("webui-fields");
    let server = Setup { loras, ..Setup::default() }.start();
    let body = json!({
        "prompt": "a red apple <lora:ink:0.5>", "negative_prompt": "blurry", "seed": 7, "steps": 4,
        "cfg_scale": 3.5, "width": 64, "height": 48, "sampler_name": "DPM++ 2M", "scheduler": "karras",
        "batch_size": 2, "n_iter": 2, "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "fake"},
        "tiling": false, "styles": [], "s_churn": 0, "unheard_of": {},
    });
    let (requests, reply, info) = asked(&server, TXT2IMG, body.clone()).await;
    assert_eq!(requests.iter().map(|r| r.seed).collect::<Vec<_>>(), [7, 8, 9, 10]);
    for request in &requests {
        assert_eq!(
            (request.prompt.as_str(), request.negative_prompt.as_deref()),
            ("a red apple", Some("blurry"))
        );
        assert_eq!((request.width, request.height), (Some(64), Some(48)));
        assert_eq!((request.num_inference_steps, request.guidance_scale), (Some(4), Some(3.5)));
        assert_eq!((request.scheduler.as_deref(), request.clip_skip), (Some("DPM++ 2M Karras"), 1));
        assert_eq!(request.variation, None);
    }
    let merged = server.script.loras.lock().unwrap().pop().unwrap();
    assert_eq!(merged, [LoraChoice::new(folder.0.join("ink.safetensors"), 0.5)]);
    assert_eq!(reply["images"].as_array().unwrap().len(), 4);
    assert_eq!(reply["parameters"], body, "the request is repeated");
    assert_eq!((&info["seed"], &info["all_seeds"]), (&json!(7), &json!([7, 8, 9, 10])));
    for (name, expected) in [
        ("prompt", json!("a red apple <lora:ink:0.5>")),
        ("negative_prompt", json!("blurry")),
        ("width", json!(64)),
        ("height", json!(48)),
        ("sampler_name", json!("DPM++ 2M")),
        ("cfg_scale", json!(3.5)),
        ("steps", json!(4)),
        ("batch_size", json!(2)),
        ("sd_model_name", json!("fake")),
        ("index_of_first_image", json!(0)),
        ("clip_skip", json!(2)),
    ] {
        assert_eq!(info[name], expected, "{name}");
    }
    assert_eq!(info["all_prompts"].as_array().unwrap().len(), 4);
    assert_eq!(info["job_timestamp"].as_str().unwrap().len(), 14);
    assert!(info["version"].is_string() && info["sd_model_hash"].is_null());
    let text = info["infotexts"][0].as_str().unwrap();
    assert!(
        text.starts_with(
            "a red apple <lora:ink:0.5>\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M, "
        )
    );
    assert!(
        text.contains("Schedule type: Karras, CFG scale: 3.5, Seed: 7, Size: 64x48, Model: fake"),
        "{text}"
    );

    let info = server.post("/sdapi/v1/png-info", &json!({"image": reply["images"][0]})).await.json();
    assert_eq!(info["info"], text);
    assert_eq!(info["items"]["parameters"], text);
    assert_eq!((&info["parameters"]["Seed"], &info["parameters"]["Size-1"]), (&json!("7"), &json!("64")));
}

#[tokio::test]
async fn samplers_have_old_and_new_names() {
    let server = server();
    for (fields, expected) in [
        (json!({"sampler_name": "DPM++ 2M Karras"}), Some("DPM++ 2M Karras")),
        (
            json!({"sampler_name": "DPM++ 2M Karras", "scheduler": "Exponential"}),
            Some("DPM++ 2M Exponential"),
        ),
        (json!({"sampler_name": "Euler a", "scheduler": "automatic"}), Some("Euler a")),
        (json!({"sampler_index": "Euler"}), Some("Euler")),
        (json!({"sampler_name": "Heun", "sampler_index": "Euler"}), Some("Heun")),
        (json!({"sampler_name": "Euler", "scheduler": "sgm_uniform"}), Some("Euler SGM Uniform")),
        (json!({"scheduler": "Automatic"}), None),
        (json!({"sampler_name": null}), None),
    ] {
        let (requests, ..) = asked(&server, TXT2IMG, small(fields.clone())).await;
        assert_eq!(requests[0].scheduler.as_deref(), expected, "{fields}");
    }
}

#[tokio::test]
async fn subseeds_vary_a_seed() {
    let server = server();
    let (requests, _, info) = asked(
        &server,
        TXT2IMG,
        small(json!({"seed": 5, "subseed": 70, "subseed_strength": 0.25, "batch_size": 2})),
    )
    .await;
    let seeds: Vec<_> = requests.iter().map(|r| (r.seed, r.variation.unwrap())).collect();
    let varied = |seed| Variation { seed, strength: 0.25 };
    assert_eq!(seeds, [(5, varied(70)), (5, varied(71))], "the subseed rises, and the seed stays");
    assert_eq!((&info["all_seeds"], &info["all_subseeds"]), (&json!([5, 5]), &json!([70, 71])));
    assert!(
        info["infotexts"][0].as_str().unwrap().contains("Variation seed: 70, Variation seed strength: 0.25")
    );
    let (requests, ..) = asked(&server, TXT2IMG, small(json!({"subseed": 70}))).await;
    assert_eq!(requests[0].variation, None);
}

#[tokio::test]
async fn hires_fix_makes_it_twice() {
    let server = server();
    let (requests, reply, info) = asked(
        &server,
        TXT2IMG,
        small(json!({
            "enable_hr": true, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "denoising_strength": 0.5, "seed": 3,
            "hr_second_pass_steps": 6, "hr_prompt": "a green apple", "hr_negative_prompt": "sharp",
            "hr_sampler_name": "Euler a", "sampler_name": "Heun", "batch_size": 2, "hr_checkpoint_name": "fake",
        })),
    )
    .await;
    assert_eq!(requests.len(), 4);
    let (first, second) = requests.split_at(2);
    assert_eq!((first[0].width, first[0].height, first[1].seed), (Some(64), Some(48), 4));
    for (i, request) in second.iter().enumerate() {
        assert_eq!((request.width, request.height, request.seed), (Some(96), Some(72), 3 + i as u64));
        assert_eq!(
            (request.prompt.as_str(), request.negative_prompt.as_deref()),
            ("a green apple", Some("sharp"))
        );
        // Half the schedule of twelve steps is the six that were asked for.
        assert_eq!((request.num_inference_steps, request.scheduler.as_deref()), (Some(12), Some("Euler a")));
        let Mode::ImageToImage { image, strength } = &request.mode else { panic!("{:?}", request.mode) };
        assert_eq!((image.dimensions(), *strength), ((96, 72), 0.5));
        // The fake paints its seed.
        assert_eq!(image.get_pixel(0, 0).0[2], 3 + i as u8);
        assert_eq!(request.latent_resize, None);
    }
    assert_eq!(picture(&reply, 1).dimensions(), (96, 72));
    let text = info["infotexts"][0].as_str().unwrap();
    for words in [
        "Steps: 4, Sampler: Heun",
        "Seed: 3, Size: 64x48",
        "Denoising strength: 0.5",
        "Hires upscale: 1.5",
        "Hires steps: 6",
        "Hires upscaler: Lanczos",
        "Hires prompt: a green apple",
    ] {
        assert!(text.contains(words), "{text} does not say {words}");
    }
    for (upscaler, expected) in [
        ("Latent", Some(Interpolation::Bilinear)),
        ("Latent (nearest)", Some(Interpolation::Nearest)),
        ("Latent (nearest-exact)", Some(Interpolation::NearestExact)),
        ("Latent (bicubic)", Some(Interpolation::Bicubic)),
        ("Nearest", None),
        ("None", None),
    ] {
        let body = small(json!({"enable_hr": true, "hr_upscaler": upscaler}));
        let (requests, ..) = asked(&server, TXT2IMG, body).await;
        assert_eq!(requests[1].latent_resize, expected, "{upscaler}");
        assert_eq!((requests[1].width, requests[1].height), (Some(128), Some(96)), "twice as large");
        let Mode::ImageToImage { image, strength } = &requests[1].mode else { panic!() };
        assert_eq!(image.dimensions(), if expected.is_some() { (64, 48) } else { (128, 96) }, "{upscaler}");
        // As many steps as before: 4 of ceil(4 / 0.75).
        assert_eq!((*strength, requests[1].num_inference_steps), (0.75, Some(6)));
    }
    for (sides, expected) in [
        (json!({"hr_resize_x": 96}), (96, 72)),
        (json!({"hr_resize_y": 96}), (128, 96)),
        (json!({"hr_resize_x": 80, "hr_resize_y": 96}), (80, 96)),
        (json!({"firstphase_width": 32, "firstphase_height": 24}), (64, 48)),
    ] {
        let mut body = small(json!({"enable_hr": true}));
        body.as_object_mut().unwrap().extend(sides.as_object().unwrap().clone());
        let (requests, reply, _) = asked(&server, TXT2IMG, body).await;
        assert_eq!((requests[1].width.unwrap(), requests[1].height.unwrap()), expected, "{sides}");
        assert_eq!(picture(&reply, 0).dimensions(), (expected.0 as u32, expected.1 as u32));
    }
    for (fields, expected) in [
        (json!({"sampler_name": "Euler", "hr_scheduler": "karras"}), "Euler Karras"),
        (
            json!({"sampler_name": "Euler", "hr_sampler_name": "Heun", "hr_scheduler": "Karras"}),
            "Heun Karras",
        ),
        (json!({"sampler_name": "Euler", "hr_sampler_name": "Use same sampler"}), "Euler"),
    ] {
        let mut body = small(json!({"enable_hr": true}));
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (requests, ..) = asked(&server, TXT2IMG, body).await;
        assert_eq!(requests[1].scheduler.as_deref(), Some(expected), "{fields}");
    }
    // The fields of hires fix alone do nothing.
    let (requests, ..) =
        asked(&server, TXT2IMG, small(json!({"hr_scale": 2, "denoising_strength": 0.7}))).await;
    assert_eq!(requests.len(), 1);
}

#[tokio::test]
async fn pictures_are_changed_at_the_size_asked_for() {
    let server = server();
    let wide = RgbImage::from_fn(96, 32, |x, _| Rgb([if x < 32 { 0 } else { 255 }; 3]));
    let uri = format!("data:image/png;base64,{}", png(wide));
    let with = |more: Value| small(json!({"init_images": [uri], "width": 32, "height": 32, "more": more}));
    for (resize_mode, at_left) in [(0, 0), (1, 255), (2, 0)] {
        let mut body = with(Value::Null);
        body["resize_mode"] = json!(resize_mode);
        let (requests, reply, _) = asked(&server, IMG2IMG, body).await;
        let Mode::ImageToImage { image, strength } = &requests[0].mode else { panic!() };
        assert_eq!((image.dimensions(), *strength), ((32, 32), 0.75));
        assert_eq!(image.get_pixel(1, 16).0[0], at_left, "resize_mode {resize_mode}");
        assert_eq!(reply["parameters"]["init_images"], Value::Null, "pictures are not sent back");
    }
    let mut body = with(Value::Null);
    body["resize_mode"] = json!(3);
    body["denoising_strength"] = json!(0.5);
    let (requests, ..) = asked(&server, IMG2IMG, body).await;
    assert_eq!(requests[0].latent_resize, Some(Interpolation::Bilinear));
    assert!(matches!(requests[0].mode, Mode::ImageToImage { strength: 0.5, .. }));
    let several =
        json!({"init_images": [png(orange(16, 16)), png(orange(24, 24))], "n_iter": 2, "batch_size": 2});
    let (requests, ..) = asked(&server, IMG2IMG, several).await;
    let sizes: Vec<_> = requests.iter().map(|r| r.width.unwrap()).collect();
    assert_eq!(sizes, [16, 16, 24, 24], "one of each for each n_iter");
}

/// White from 24 to 40 across, and all the way down.
fn stripe() -> GrayImage {
    GrayImage::from_fn(64, 48, |x, _| Luma([if (24..40).contains(&x) { 255 } else { 0 }]))
}

#[tokio::test]
async fn masks_keep_the_rest_of_the_picture() {
    let server = server();
    let body = |more: Value| {
        let mut body = small(json!({
            "init_images": [png(orange(64, 48))], "mask": png(stripe()), "mask_blur": 0, "seed": 0,
            "inpaint_full_res": false, "inpainting_fill": 1,
        }));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (requests, reply, _) = asked(&server, IMG2IMG, body(json!({}))).await;
    let Mode::Inpaint { image, mask, .. } = &requests[0].mode else { panic!("{:?}", requests[0].mode) };
    assert_eq!((image, mask), (&orange(64, 48), &stripe()));
    // The fake paints its seed, which is black.
    let made = picture(&reply, 0);
    assert_eq!((made.get_pixel(32, 20).0, made.get_pixel(10, 20).0), ([0; 3], [200, 100, 50]));
    assert_eq!(requests[0].masked_content, MaskedContent::Picture);

    let (_, reply, _) = asked(&server, IMG2IMG, body(json!({"inpainting_mask_invert": 1}))).await;
    let made = picture(&reply, 0);
    assert_eq!((made.get_pixel(32, 20).0, made.get_pixel(10, 20).0), ([200, 100, 50], [0; 3]));

    let (requests, reply, _) = asked(&server, IMG2IMG, body(json!({"mask_blur": 4}))).await;
    let Mode::Inpaint { mask, .. } = &requests[0].mode else { panic!() };
    assert!((1..255).contains(&mask.get_pixel(22, 20).0[0]), "the edge is soft");
    let soft = picture(&reply, 0).get_pixel(20, 20).0[0];
    assert!((1..200).contains(&soft), "{soft}");

    let blurred = |x: f64, y: f64| {
        let mut body = body(json!({"mask_blur_x": x, "mask_blur_y": y}));
        body.as_object_mut().unwrap().remove("mask_blur");
        body
    };
    let (requests, ..) = asked(&server, IMG2IMG, blurred(0.0, 4.0)).await;
    let Mode::Inpaint { mask, .. } = &requests[0].mode else { panic!() };
    assert_eq!(*mask, stripe(), "along the stripe there is nothing to soften");

    // A mask may be an alpha channel.
    let alpha =
        RgbaImage::from_fn(64, 48, |x, _| Rgba([9, 9, 9, if (24..40).contains(&x) { 255 } else { 0 }]));
    let (requests, ..) = asked(&server, IMG2IMG, body(json!({"mask": png(alpha)}))).await;
    let Mode::Inpaint { mask, .. } = &requests[0].mode else { panic!() };
    assert_eq!(*mask, stripe());

    // Nothing masked is an ordinary request.
    let (requests, ..) = asked(&server, IMG2IMG, body(json!({"mask": png(GrayImage::new(64, 48))}))).await;
    assert!(matches!(requests[0].mode, Mode::ImageToImage { .. }));
}

#[tokio::test]
async fn what_is_under_the_mask_can_be_replaced() {
    let server = server();
    let painted =
        RgbImage::from_fn(
            64,
            48,
            |x, _| {
                if (24..40).contains(&x) { Rgb([0, 0, 255]) } else { Rgb([200, 100, 50]) }
            },
        );
    for (fill, expected, content) in [
        (0, [200, 100, 50], MaskedContent::Picture),
        (1, [0, 0, 255], MaskedContent::Picture),
        (2, [0, 0, 255], MaskedContent::Noise),
        (3, [0, 0, 255], MaskedContent::Zeros),
    ] {
        let body = small(json!({
            "init_images": [png(painted.clone())], "mask": png(stripe()), "mask_blur": 0, "inpaint_full_res": false,
            "inpainting_fill": fill,
        }));
        let (requests, ..) = asked(&server, IMG2IMG, body).await;
        let Mode::Inpaint { image, .. } = &requests[0].mode else { panic!() };
        let seen = image.get_pixel(32, 24).0;
        let close = seen.iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 2);
        assert!(close, "inpainting_fill {fill}: {seen:?}");
        assert_eq!(requests[0].masked_content, content);
    }
}

/// The masked part alone is made at the full size, and put back where it belongs.
#[tokio::test]
async fn only_the_masked_part_is_made() {
    let server = server();
    // Red rises to the right and green downwards, so that every place can be told.
    let image = RgbImage::from_fn(200, 160, |x, y| Rgb([x as u8, y as u8, 99]));
    let mut mask = GrayImage::new(200, 160);
    for (x, y) in (100..120).flat_map(|x| (40..60).map(move |y| (x, y))) {
        mask.put_pixel(x, y, Luma([255]));
    }
    let body = json!({
        "prompt": "a", "init_images": [png(image.clone())], "mask": png(mask), "mask_blur": 0, "seed": 0, "steps": 4,
        "width": 128, "height": 64, "inpaint_full_res": true, "inpaint_full_res_padding": 10, "inpainting_fill": 1,
    });
    let (requests, reply, _) = asked(&server, IMG2IMG, body).await;
    assert_eq!((requests[0].width, requests[0].height), (Some(128), Some(64)));
    let Mode::Inpaint { image: part, mask, .. } = &requests[0].mode else { panic!() };
    assert_eq!((part.dimensions(), mask.dimensions()), ((128, 64), (128, 64)));
    // 20 x 20 and 10 around it is 40 x 40, which is 80 x 40 in the proportions of 128 x 64: from (70, 30).
    let [left, top, _] = part.get_pixel(0, 0).0;
    let [right, bottom, _] = part.get_pixel(127, 63).0;
    assert!(left.abs_diff(70) <= 1 && top.abs_diff(30) <= 1, "{left} {top}");
    assert!(right.abs_diff(149) <= 1 && bottom.abs_diff(69) <= 1, "{right} {bottom}");
    let made = picture(&reply, 0);
    assert_eq!(made.dimensions(), (200, 160), "the whole picture comes back");
    for (x, y, pixel) in made.enumerate_pixels() {
        let inside = (100..120).contains(&x) && (40..60).contains(&y);
        let expected = if inside { Rgb([0; 3]) } else { *image.get_pixel(x, y) };
        assert_eq!(*pixel, expected, "at {x}, {y}");
    }
}

#[tokio::test]
async fn pictures_may_be_left_out_or_of_another_format() {
    let server = server();
    let (requests, reply, info) = asked(&server, TXT2IMG, small(json!({"send_images": false}))).await;
    assert_eq!((requests.len(), &reply["images"]), (1, &json!([])));
    assert_eq!(info["all_seeds"].as_array().unwrap().len(), 1);
    let format = |reply: &Value| {
        image::guess_format(&STANDARD.decode(reply["images"][0].as_str().unwrap()).unwrap()).unwrap()
    };
    let body = small(json!({"override_settings": {"samples_format": "webp"}}));
    let (_, reply, _) = asked(&server, TXT2IMG, body).await;
    assert_eq!(format(&reply), ImageFormat::WebP);
    let (_, reply, _) = asked(&server, TXT2IMG, small(json!({}))).await;
    assert_eq!(format(&reply), ImageFormat::Png, "it held for one request");
}

#[tokio::test]
async fn options_hold_until_they_are_changed() {
    let server = server();
    let options = server.get("/sdapi/v1/options").await.json();
    assert_eq!(
        (&options["sd_model_checkpoint"], &options["CLIP_stop_at_last_layers"]),
        (&json!("fake"), &json!(1))
    );
    // Some clients send all of it back.
    let answer = server.post("/sdapi/v1/options", &options).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, Value::Null));
    assert_eq!(server.get("/sdapi/v1/options").await.json(), options);
    let changed = json!({"CLIP_stop_at_last_layers": 2, "samples_format": "jpg", "jpeg_quality": 50});
    assert_eq!(server.post("/sdapi/v1/options", &changed).await.status, 200);
    let (requests, reply, info) = asked(&server, TXT2IMG, small(json!({}))).await;
    assert_eq!((requests[0].clip_skip, &info["clip_skip"]), (1, &json!(2)));
    assert_eq!(
        image::guess_format(&STANDARD.decode(reply["images"][0].as_str().unwrap()).unwrap()).unwrap(),
        ImageFormat::Jpeg
    );
    let missing = server.post("/sdapi/v1/options", &json!({"sd_model_checkpoint": "other"})).await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["detail"].as_str().unwrap().contains("'fake'"));
}

#[tokio::test]
async fn lists_have_the_shapes_that_clients_read() {
    let (_folder, loras) = loras("webui-lists");
    let server = Setup { loras, ..Setup::default() }.start();
    for (path, fields) in [
        ("sd-models", &["title", "model_name", "hash", "sha256", "filename", "config"][..]),
        ("samplers", &["name", "aliases", "options"]),
        ("schedulers", &["name", "label"]),
        ("loras", &["name", "alias", "path", "metadata"]),
        ("upscalers", &["name", "model_name", "model_path", "model_url", "scale"]),
        ("latent-upscale-modes", &["name"]),
    ] {
        let list = server.get(&format!("/sdapi/v1/{path}")).await.json();
        let entries = list.as_array().unwrap();
        assert!(!entries.is_empty(), "{path}");
        for field in fields {
            assert!(entries[0].get(field).is_some(), "{path}: {field}");
        }
    }
    let names = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    // Every sampler and every schedule type that is listed is taken.
    for sampler in names(server.get("/sdapi/v1/samplers").await.json()) {
        asked(&server, TXT2IMG, small(json!({"sampler_name": sampler}))).await;
    }
    for scheduler in names(server.get("/sdapi/v1/schedulers").await.json()) {
        asked(&server, TXT2IMG, small(json!({"sampler_name": "Euler", "scheduler": scheduler}))).await;
    }
    assert_eq!(names(server.get("/sdapi/v1/loras").await.json()), ["ink", "lcm-lora", "misfit"]);
    assert_eq!(server.get("/sdapi/v1/sd-vae").await.json(), json!([]));
    assert_eq!(server.get("/sdapi/v1/scripts").await.json(), json!({"txt2img": [], "img2img": []}));
    assert!(server.get("/sdapi/v1/cmd-flags").await.json().is_object());
    assert!(server.get("/sdapi/v1/memory").await.json()["ram"]["total"].as_u64().unwrap() > 1 << 20);
    assert_eq!(server.post("/sdapi/v1/refresh-checkpoints", &json!({})).await.status, 200);
    for name in ["unload-checkpoint", "reload-checkpoint"] {
        let refused = server.post(&format!("/sdapi/v1/{name}"), &json!({})).await;
        assert_eq!(refused.status, 501);
        assert!(refused.json()["detail"].as_str().unwrap().starts_with(name), "{}", refused.text());
    }
}

/// `{"error", "detail", "body", "errors"}`
#[tokio::test]
async fn refuses_by_name_value_and_range() {
    let (_folder, loras) = loras("webui-refuses");
    let server = Setup { loras, ..Setup::default() }.start();
    let image = png(orange(16, 16));
    let img = |more: Value| {
        let mut body = json!({"prompt": "a", "init_images": [image]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (IMG2IMG, body)
    };
    let txt = |more: Value| (TXT2IMG, small(more));
    let table = [
        (txt(json!({"prompt": 5})), 422, &["prompt", "string", "5"][..]),
        (txt(json!({"steps": 151})), 422, &["steps", "1 to 150", "151"]),
        (txt(json!({"cfg_scale": 31})), 422, &["cfg_scale", "0 to 30", "31"]),
        (txt(json!({"width": 7})), 422, &["width", "8 to 4096", "7"]),
        (txt(json!({"height": 5000})), 422, &["height", "8 to 4096", "5000"]),
        (txt(json!({"seed": -2})), 422, &["seed", "-2"]),
        (txt(json!({"subseed_strength": 1.5})), 422, &["subseed_strength", "0 to 1", "1.5"]),
        (txt(json!({"batch_size": 0})), 422, &["batch_size", "1 to 16", "0"]),
        (txt(json!({"batch_size": 8, "n_iter": 3})), 422, &["batch_size 8", "n_iter 3", "16"]),
        (txt(json!({"sampler_name": "Eulerr"})), 404, &["Sampler not found"]),
        (txt(json!({"sampler_name": "Euler", "scheduler": "turbo"})), 404, &["Scheduler not found"]),
        (txt(json!({"denoising_strength": 2})), 422, &["denoising_strength", "0 to 1", "2"]),
        (txt(json!({"enable_hr": "yes"})), 422, &["enable_hr", "true or false", "yes"]),
        (txt(json!({"enable_hr": true, "hr_scale": 0.5})), 422, &["hr_scale", "1 to 8", "0.5"]),
        (
            txt(json!({"enable_hr": true, "width": 4096, "hr_scale": 2})),
            422,
            &["hr_scale", "8192x96", "4096"],
        ),
        (
            txt(json!({"enable_hr": true, "hr_upscaler": "SwinIR 4x"})),
            422,
            &["hr_upscaler", "'Latent'", "SwinIR"],
        ),
        (txt(json!({"enable_hr": true, "denoising_strength": 0})), 422, &["denoising_strength", "above 0"]),
        (txt(json!({"enable_hr": true, "hr_second_pass_steps": 500})), 422, &["hr_second_pass_steps", "500"]),
        (
            txt(json!({"override_settings": {"sd_vae": "my.vae"}})),
            422,
            &["override_settings.sd_vae", "my.vae"],
        ),
        (txt(json!({"override_settings": {"colour": 1}})), 422, &["colour"]),
        (txt(json!({"override_settings": {"CLIP_stop_at_last_layers": 13}})), 422, &["1 to 12", "13"]),
        (txt(json!({"override_settings": {"sd_model_checkpoint": "other"}})), 404, &["other", "'fake'"]),
        (txt(json!({"prompt": "a <lora:none:1>"})), 422, &["Unknown lora", "none"]),
        (txt(json!({"prompt": "a <lora:ink:much>"})), 422, &["<lora:ink:much>", "number"]),
        (txt(json!({"prompt": "a <lora:ink:9>"})), 422, &["ink", "-4 to 4", "9"]),
        (txt(json!({"prompt": "!invalid"})), 422, &["this cannot be painted"]),
        (txt(json!({"prompt": "!memory"})), 503, &["memory"]),
        (txt(json!({"prompt": "!fail"})), 500, &["the latents are not finite"]),
        ((IMG2IMG, json!({"prompt": "a"})), 422, &["init_images"]),
        ((IMG2IMG, json!({"init_images": []})), 422, &["init_images", "1 to 8"]),
        ((IMG2IMG, json!({"init_images": ["!"]})), 422, &["init_images", "base64"]),
        ((IMG2IMG, json!({"init_images": ["https://x/a.png"]})), 422, &["init_images", "URL"]),
        ((IMG2IMG, json!({"init_images": [base64(b"GIF89a")]})), 422, &["init_images", "PNG, JPEG or WebP"]),
        (img(json!({"mask": "!"})), 422, &["mask", "base64"]),
        (img(json!({"mask_blur": 65})), 422, &["mask_blur", "0 to 64", "65"]),
        (img(json!({"resize_mode": 4})), 422, &["resize_mode", "0 to 3", "4"]),
        (img(json!({"resize_mode": 3, "mask": image})), 422, &["resize_mode 3"]),
        (img(json!({"inpainting_fill": 4})), 422, &["inpainting_fill", "0 to 3", "4"]),
        (img(json!({"inpaint_full_res_padding": -1})), 422, &["inpaint_full_res_padding", "-1"]),
        (("/sdapi/v1/options", json!({"colour": 1})), 422, &["colour", "sd_model_checkpoint"]),
        (("/sdapi/v1/png-info", json!({})), 422, &["image"]),
        (("/sdapi/v1/png-info", json!({"image": "!"})), 422, &["image", "base64"]),
    ];
    for ((path, body), status, words) in table {
        let answer = server.post(path, &body).await;
        let short: String = body.to_string().chars().take(160).collect();
        let json = answer.json();
        assert_eq!(answer.status.as_u16(), status, "{short}: {json}");
        assert!(
            json["error"].is_string() && json["errors"].is_string() && json["body"] == "",
            "{short}: {json}"
        );
        let detail = json["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{short}: {detail} does not name {word}");
        }
    }
    for body in ["{", "[]", ""] {
        let answer =
            server.call("POST", TXT2IMG, &[("content-type", "application/json")], body.as_bytes()).await;
        assert_eq!(answer.status, 422, "{body}");
        assert!(answer.json()["detail"].is_string(), "{body}");
    }
}

fn slow() -> Server {
    let script = Script { step_time: Duration::from_millis(10), native_size_px: 64, ..Script::default() };
    Setup { script, ..Setup::default() }.start()
}

/// SillyTavern polls until `progress` and `job_count` are 0.
#[tokio::test]
async fn progress_tells_of_the_job_at_work() {
    let server = slow();
    server.app.engine.model().await.unwrap();
    let idle = server.get("/sdapi/v1/progress").await.json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    assert!(idle["current_image"].is_null() && idle["eta_relative"].is_number());
    let listening = server.listen(Duration::from_secs(5)).await;
    let stream = listening.post(TXT2IMG, &small(json!({"steps": 100})));
    let script = &listening.server.script;
    eventually("it runs", || script.steps_taken() >= 10).await;
    let busy = listening.server.get("/sdapi/v1/progress?skip_current_image=true").await.json();
    let (progress, state) = (busy["progress"].as_f64().unwrap(), &busy["state"]);
    assert!((0.05..1.0).contains(&progress), "{busy}");
    assert_eq!((&state["job_count"], &state["sampling_steps"]), (&json!(1), &json!(100)));
    assert!(state["sampling_step"].as_u64().unwrap() >= 9, "{busy}");
    assert!(busy["eta_relative"].as_f64().unwrap() > 0.0);
    drop(stream);
    let queue = listening.server.queue.clone();
    eventually("nothing runs", || aquatint::queue::JobQueue::depth(&queue).running == 0).await;
    let idle = listening.server.get("/sdapi/v1/progress").await.json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
}

#[tokio::test]
async fn interrupt_ends_the_job_at_work() {
    let server = slow();
    server.app.engine.model().await.unwrap();
    assert_eq!(server.post("/sdapi/v1/interrupt", &json!({})).await.status, 200, "with nothing to interrupt");
    let script = server.script.clone();
    let ended = async {
        eventually("it runs", || script.steps_taken() >= 3).await;
        server.call("POST", "/sdapi/v1/interrupt", &[], b"").await
    };
    let body = small(json!({"steps": 150, "seed": 1}));
    let (answer, interrupted) = tokio::join!(server.post(TXT2IMG, &body), ended);
    assert_eq!(interrupted.status, 200);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(server.script.steps_taken() < 100, "{} steps", server.script.steps_taken());
    let reply = answer.json();
    assert!(reply["images"].is_array() && reply["info"].is_string());
    let (requests, ..) = asked(&server, TXT2IMG, small(json!({}))).await;
    assert_eq!(requests.len(), 1, "the next job is not interrupted");
}
