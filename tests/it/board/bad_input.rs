//! Row 11: bad input of every kind is the client's fault (4xx), costs no memory, and reaches no model.

use std::io::{Read, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{Lcg, full, memory_kib, row};
use crate::fake::Script;
use crate::harness::{Listening, Setup};

/// A request that must not succeed.
struct Bad {
    what: String,
    path: &'static str,
    body: Vec<u8>,
}

fn valid() -> Value {
    json!({"prompt": "a", "aspectRatio": "1:1", "config": {"steps": 4, "numImages": 1, "seed": 1}})
}

/// JSON that is none, or is no request.
fn json_faults(random: &mut Lcg, count: usize) -> Vec<Bad> {
    let text = valid().to_string();
    let mut bodies: Vec<Vec<u8>> = (0..text.len()).map(|end| text.as_bytes()[..end].to_vec()).collect();
    bodies.extend(
        ["null", "[]", "1", "\"a\"", "{}", "[[[[", "{\"prompt\":", "\u{0}", "{\"prompt\" \"a\"}"]
            .map(Vec::from),
    );
    bodies.extend([100, 1000, 100_000].map(|depth| "[".repeat(depth).into_bytes()));
    bodies.extend([100, 1000, 100_000].map(|depth| "{\"prompt\":".repeat(depth).into_bytes()));
    bodies.push(b"{\"prompt\":\"\xff\xfe\",\"aspectRatio\":\"1:1\"}".to_vec());
    bodies.push(b"{\"prompt\":\"\\ud800\",\"aspectRatio\":\"1:1\"}".to_vec());
    bodies.push(
        format!("{{\"prompt\":\"a\",\"aspectRatio\":\"1:1\",\"config\":{{\"seed\":{}}}}}", "9".repeat(5000))
            .into_bytes(),
    );
    while bodies.len() < count {
        // A letter of the structure is lost or doubled: never what it was.
        let mut body = text.clone().into_bytes();
        let marks: Vec<_> = (0..body.len()).filter(|i| b"{}\":,".contains(&body[*i])).collect();
        let at = marks[random.below(marks.len())];
        match random.below(3) {
            0 => drop(body.remove(at)),
            1 => body[at] = b"\x01\x7f#;"[random.below(4)],
            _ => body.truncate(at),
        }
        bodies.push(body);
    }
    let bad = |body: Vec<u8>| {
        let start: String = String::from_utf8_lossy(&body).chars().take(60).collect();
        Bad { what: format!("JSON {start:?}"), path: "/generate", body }
    };
    bodies.into_iter().map(bad).collect()
}

/// Each field with each value that it cannot have.
fn field_faults() -> Vec<Bad> {
    let mut all = Vec::new();
    let mut bad = |path, body: Value| {
        let what: String = body.to_string().chars().take(160).collect();
        all.push(Bad { what: format!("{path} {what}"), path, body: body.to_string().into_bytes() });
    };
    for prompt in
        [json!(null), json!(1), json!([]), json!({}), json!(true), json!(""), json!(" \n\t"), json!(["a"])]
    {
        bad("/generate", json!({"prompt": prompt, "aspectRatio": "1:1"}));
        bad("/refine", json!({"refinePrompt": prompt, "images": ["aGVsbG8="]}));
    }
    for ratio in [
        json!(null),
        json!(1),
        json!([]),
        json!("1:2"),
        json!("1:1 "),
        json!("16:9\n"),
        json!("../1:1"),
        json!(""),
    ] {
        bad("/generate", json!({"prompt": "a", "aspectRatio": ratio}));
    }
    for temperature in
        [json!("hot"), json!([]), json!({}), json!("1e999"), json!("nan"), json!("inf"), json!("")]
    {
        bad("/generate", json!({"prompt": "a", "aspectRatio": "1:1", "temperature": temperature}));
    }
    let numbers =
        [json!("x"), json!([]), json!({}), json!(true), json!(-5), json!(1e30), json!(1e308), json!(-1e308)];
    for field in
        ["steps", "numImages", "num_images", "guidanceScale", "guidance_scale", "loraScale", "strength"]
    {
        for value in &numbers {
            bad("/generate", json!({"prompt": "a", "aspectRatio": "1:1", "config": {field: value}}));
        }
    }
    for (field, value) in [
        ("steps", json!(0)),
        ("steps", json!(1.5)),
        ("steps", json!(151)),
        ("numImages", json!(0)),
        ("numImages", json!(9)),
        ("numImages", json!(u64::MAX)),
        ("guidanceScale", json!(30.1)),
        ("strength", json!(1.01)),
        ("seed", json!(-2)),
        ("seed", json!(1.5)),
        ("seed", json!("1")),
        ("seed", json!(1e20)),
        ("lora", json!("unknown")),
        ("lora", json!(1)),
        ("scheduler", json!("")),
        ("scheduler", json!("Euler; DROP TABLE")),
        ("scheduler", json!([])),
        ("negativePrompt", json!(1)),
        ("negativePrompt", json!([])),
        ("model", json!("other")),
        ("model", json!({})),
    ] {
        bad("/generate", json!({"prompt": "a", "aspectRatio": "1:1", "config": {field: value}}));
    }
    for config in [json!([]), json!("x"), json!(1), json!(true)] {
        bad("/generate", json!({"prompt": "a", "aspectRatio": "1:1", "config": config}));
        bad("/refine", json!({"refinePrompt": "a", "images": ["aGVsbG8="], "config": config}));
    }
    for images in [
        json!(null),
        json!([]),
        json!("x"),
        json!([1]),
        json!([null]),
        json!([[]]),
        json!({}),
        json!(vec!["aGVsbG8="; 9]),
    ] {
        bad("/refine", json!({"refinePrompt": "a", "images": images}));
    }
    all
}

/// A PNG of IHDR, IDAT and IEND alone.
fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 24, 24);
    encoder.set_color(png::ColorType::Rgb);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&(0..24 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>())
        .unwrap();
    bytes
}

/// Says in the header that it is of another size, and keeps the check sum right.
fn resized(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = bytes[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

/// Pictures that are none, are broken, or would fill the memory.
fn picture_faults(random: &mut Lcg, count: usize) -> Vec<Bad> {
    let whole = png();
    // Without the last chunk a picture can be read.
    let needed = whole.len() - 12;
    let mut pictures: Vec<Vec<u8>> = (0..needed).step_by(7).map(|end| whole[..end].to_vec()).collect();
    for (width, height) in [
        (0, 24),
        (24, 0),
        (0, 0),
        (4097, 1),
        (1, 4097),
        (65_535, 65_535),
        (1 << 31, 1),
        (u32::MAX, u32::MAX),
        (4096, 4096),
        (24, 25),
    ] {
        pictures.push(resized(width, height));
    }
    for start in [
        &b"GIF89a"[..],
        b"BM",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"<svg xmlns=\"http://www.w3.org/2000/svg\">",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x80\x02}q",
        b"\x89PNG\r\n\x1a\n",
    ] {
        pictures.push(start.to_vec());
        pictures.push([start, &[0; 4096]].concat());
    }
    let mut large = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_luma8(8000, 8000).write_to(&mut large, image::ImageFormat::Png).unwrap();
    pictures.push(large.into_inner());
    while pictures.len() < count {
        // Every byte up to there is under a check sum, is one, or is the structure.
        let mut broken = whole.clone();
        let at = random.below(needed);
        broken[at] ^= 1 << random.below(8);
        pictures.push(broken);
    }
    let mut texts: Vec<String> = pictures.iter().map(|bytes| BASE64.encode(bytes)).collect();
    texts.extend(
        [
            "",
            "!",
            "data:",
            "data:image/png;base64,",
            "data:image/png;base64,!!!!",
            "====",
            "a",
            "http://127.0.0.1/a.png",
            "file:///etc/passwd",
            "/etc/passwd",
            "\u{0}",
            "😀",
        ]
        .map(str::to_owned),
    );
    let bad = |(i, text): (usize, String)| {
        let text = if i % 3 == 0 { format!("data:image/png;base64,{text}") } else { text };
        let what = format!("picture {i}: {}", text.chars().take(60).collect::<String>());
        let body = json!({"refinePrompt": "a", "images": [text], "config": {"steps": 4}});
        Bad { what, path: "/refine", body: body.to_string().into_bytes() }
    };
    texts.into_iter().enumerate().map(bad).collect()
}

/// Heads that no handler should see, as bytes.
fn heads(random: &mut Lcg, count: usize) -> Vec<Vec<u8>> {
    let mut heads: Vec<Vec<u8>> = [
        "GET /nope HTTP/1.1\r\nhost: x\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n",
        "GET /page/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nhost: x\r\n",
        "GET /%00 HTTP/1.1\r\nhost: x\r\n",
        "BREW /generate HTTP/1.1\r\nhost: x\r\n",
        "GET /generate HTTP/1.1\r\nhost: x\r\n",
        "GET health HTTP/1.1\r\nhost: x\r\n",
        "GET /health HTTP/9.9\r\nhost: x\r\n",
        "GET  /health HTTP/1.1\r\nhost: x\r\n",
        "GET /he alth HTTP/1.1\r\nhost: x\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1e3\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n",
        "POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n",
        "GET /health HTTP/1.1\r\nno colon here\r\n",
        "GET /health HTTP/1.1\r\n: empty\r\n",
        "GET /health HTTP/1.1\r\nbad name: x\r\n",
        "\r\n\r\n\0\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    heads.push([b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n".to_vec(), Vec::new()].concat());
    heads.push(format!("GET /{} HTTP/1.1\r\nhost: x\r\n", "a".repeat(70_000)).into_bytes());
    heads.push(format!("GET /health HTTP/1.1\r\nx: {}\r\n", "a".repeat(500_000)).into_bytes());
    heads.push(format!("GET /health HTTP/1.1\r\n{}", "x-a: b\r\n".repeat(200)).into_bytes());
    while heads.len() < count {
        // A control character within a head is never right.
        let mut head = b"GET /health HTTP/1.1\r\nhost: x\r\naccept: text/html\r\n".to_vec();
        let places: Vec<_> = (0..head.len()).filter(|i| !b"\r\n".contains(&head[*i])).collect();
        head[places[random.below(places.len())]] = [0, 1, 7, 8, 27, 127][random.below(6)];
        heads.push(head);
    }
    heads
}

/// The status that a head gets; `None` where the connection is closed without an answer.
async fn status_of_head(listening: &Listening, head: &[u8]) -> Option<u16> {
    let mut stream = std::net::TcpStream::connect(listening.address).unwrap();
    let head = [head, b"connection: close\r\n\r\n"].concat();
    let read = move || {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _refused_before_its_end = stream.write_all(&head);
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        String::from_utf8_lossy(&answer).split_whitespace().nth(1)?.parse().ok()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_the_clients_fault() {
    let script = Script { native_size_px: 64, ..Script::default() };
    let server = Setup { script, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let mut random = Lcg(11);
    let counts = if full() { (700, 900, 400) } else { (150, 150, 60) };
    let mut bad = json_faults(&mut random, counts.0);
    bad.extend(field_faults());
    bad.extend(picture_faults(&mut random, counts.1));
    let heads = heads(&mut random, counts.2);
    let asked = bad.len() + heads.len();

    // Resets the peak of the resident memory.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory_kib("VmRSS");
    let mut wrong = Vec::new();
    for Bad { what, path, body } in &bad {
        let answer = server.call("POST", path, &[("content-type", "application/json")], body).await;
        if !answer.status.is_client_error() {
            wrong.push(format!("{}: {what}", answer.status));
        } else if answer.json().get("detail").is_none() {
            wrong.push(format!("no detail: {what}"));
        }
    }
    let peak = memory_kib("VmHWM").saturating_sub(before) / 1024;
    let listening = server.listen(Duration::from_secs(1)).await;
    let mut closed = 0;
    for head in &heads {
        match status_of_head(&listening, head).await {
            Some(400..=499) => {}
            None => closed += 1,
            Some(status) => {
                wrong.push(format!("{status}: {:?}", String::from_utf8_lossy(&head[..head.len().min(80)])))
            }
        }
    }
    assert!(listening.server.script.requests().is_empty(), "nothing reaches the model");
    for line in wrong.iter().take(20) {
        eprintln!("{line}");
    }
    row(
        "11",
        ">= 2,000 bad inputs (pictures, base64, JSON, paths, prompts, headers)",
        "all 4xx, no 5xx, memory +<= 128 MiB",
        format!(
            "{asked} inputs, {} not 4xx, {closed} of the heads closed without an answer; memory +{peak} MiB",
            wrong.len()
        ),
        wrong.is_empty() && (!full() || (asked >= 2000 && peak <= 128)),
    );
}
