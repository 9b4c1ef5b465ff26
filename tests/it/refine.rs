//! `POST /refine`: pictures in, pictures out.

use std::io::Cursor;

use aquatint::engine::Mode;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::harness::server;

fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(width, height, Rgb([200, 100, 50]));
    DynamicImage::from(image).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG as base64.
pub(crate) fn png(width: u32, height: u32) -> String {
    STANDARD.encode(picture(width, height, ImageFormat::Png))
}

#[tokio::test]
async fn each_picture_is_refined_at_its_own_size() {
    let server = server();
    let wide = picture(48, 32, ImageFormat::Png);
    let odd = picture(33, 65, ImageFormat::Jpeg);
    let webp = picture(16, 16, ImageFormat::WebP);
    let uri = format!("data:image/jpeg;base64,{}", STANDARD.encode(odd));
    let wrapped = STANDARD
        .encode(webp)
        .as_bytes()
        .chunks(60)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect::<Vec<_>>()
        .join("\n");
    let body = json!({
        "refinePrompt": "greener",
        "images": [STANDARD_NO_PAD.encode(&wide), uri, wrapped],
        "config": {"seed": 5, "steps": 2, "strength": 0.25, "guidanceScale": 2, "numImages": 7},
    });
    let answer = server.post("/refine", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["images"].as_array().unwrap().len(), 3, "one for each, whatever numImages says");
    assert_eq!(answer.json()["seeds"], json!([5, 6, 7]));
    let requests = server.script.requests();
    for (request, size) in requests.iter().zip([(48, 32), (33, 65), (16, 16)]) {
        assert_eq!(request.prompt, "greener");
        assert_eq!((request.width.unwrap(), request.height.unwrap()), size);
        assert_eq!((request.num_inference_steps, request.guidance_scale), (Some(2), Some(2.0)));
        let Mode::ImageToImage { image, strength } = &request.mode else { panic!("{:?}", request.mode) };
        assert_eq!(*strength, 0.25);
        // JPEG moves colours by a level or two.
        let [r, g, b] = image.get_pixel(3, 3).0;
        assert!(r.abs_diff(200) < 4 && g.abs_diff(100) < 4 && b.abs_diff(50) < 4);
    }
}

#[tokio::test]
async fn fields_have_aliases_and_strength_a_default() {
    let server = server();
    let image = STANDARD.encode(picture(16, 16, ImageFormat::Png));
    for body in [
        json!({"refinePrompt": "x", "images": [image]}),
        json!({"prompt": "x", "baseImages": [image]}),
        json!({"refine_prompt": "x", "base_images": [image], "config": {}}),
    ] {
        assert_eq!(server.post("/refine", &body).await.status, 200, "{body}");
        let last = server.script.requests().pop().unwrap();
        assert!(matches!(last.mode, Mode::ImageToImage { strength: 0.6, .. }));
    }
}

#[tokio::test]
async fn refuses_what_cannot_be_refined() {
    let server = server();
    let image = STANDARD.encode(picture(16, 16, ImageFormat::Png));
    let prompt = "refinePrompt field is required.";
    let images = "images field must contain base64 strings.";
    let undecodable = "Invalid base64 string in images";
    let cut = STANDARD.encode(&picture(16, 16, ImageFormat::Png)[..40]);
    let wide = STANDARD.encode(picture(5000, 1, ImageFormat::Png));
    let gif = STANDARD.encode(b"GIF89a\x01\x00\x01\x00");
    let x = |images: Value| json!({"refinePrompt": "x", "images": images});
    let table = [
        (json!({"images": [image]}), 422, prompt),
        (json!({"refinePrompt": " ", "images": [image]}), 422, prompt),
        (json!({"refinePrompt": 7, "images": [image]}), 422, prompt),
        (json!({"refinePrompt": "x"}), 422, images),
        (x(Value::Null), 422, images),
        (x(json!([])), 422, images),
        (x(json!(image)), 422, images),
        (x(json!([image, 5])), 422, images),
        (x(json!([null])), 422, images),
        (x(json!([{"data": image}])), 422, images),
        (x(json!(vec![&image; 9])), 422, "images field must contain at most 8 pictures."),
        (x(json!([""])), 400, undecodable),
        (x(json!(["not base64!"])), 400, undecodable),
        (x(json!(["YWJj"])), 400, undecodable),
        (x(json!([image, cut])), 400, undecodable),
        (x(json!([gif])), 400, undecodable),
        (x(json!(["data:image/png;base64"])), 400, undecodable),
        (x(json!(["https://example.com/a.png"])), 400, undecodable),
        (
            x(json!([image, wide])),
            400,
            "Image 2 in images is 5000x1 pixels; sides of at most 4096 are accepted.",
        ),
        (
            json!({"refinePrompt": "x", "images": [image], "config": {"strength": 2}}),
            422,
            "config.strength must be a number from 0 to 1, not 2.",
        ),
        (
            json!({"refinePrompt": "!memory", "images": [image]}),
            503,
            "GPU memory insufficient for refinement. Try with fewer images.",
        ),
        (
            json!({"refinePrompt": "!fail", "images": [image]}),
            500,
            "Refinement failed: the latents are not finite",
        ),
    ];
    for (body, status, detail) in table {
        let answer = server.post("/refine", &body).await;
        let short: String = body.to_string().chars().take(120).collect();
        assert_eq!((answer.status.as_u16(), answer.json()), (status, json!({"detail": detail})), "{short}");
    }
}

#[tokio::test]
async fn a_body_beyond_64_mib_is_refused() {
    let server = server();
    let headers = [("content-type", "application/json")];
    let answer = server.call("POST", "/refine", &headers, &vec![b' '; (64 << 20) + 1]).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json(), json!({"detail": "Request body is too large: at most 64 MiB are accepted."}));
    let announced = [("content-type", "application/json"), ("content-length", "99999999999")];
    assert_eq!(server.call("POST", "/refine", &announced, b"").await.status, 413);
}
