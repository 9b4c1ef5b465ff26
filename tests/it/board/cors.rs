//! Row 17: CORS headers over all origins and answers.

use std::time::Duration;

use serde_json::json;

use super::row;
use crate::harness::{Answer, Setup};

const FLAGS: [&str; 4] =
    ["--allow-origins", "https://app.example, http://10.0.0.1:3000", "--api-key", "sesame"];
const KEY: (&str, &str) = ("authorization", "Bearer sesame");
const JSON: (&str, &str) = ("content-type", "application/json");

/// `(origin, whether its pages may read)`: those listed, exactly, and any port of this machine.
const ORIGINS: [(&str, bool); 18] = [
    ("https://app.example", true),
    ("http://10.0.0.1:3000", true),
    ("http://localhost:1", true),
    ("http://localhost:65535", true),
    ("http://127.0.0.1:5173", true),
    ("http://app.example", false),
    ("https://app.example:443", false),
    ("https://app.example.evil.example", false),
    ("https://evil.example", false),
    ("https://APP.example", false),
    ("http://10.0.0.1:3001", false),
    ("http://localhost", false),
    ("http://localhost:", false),
    ("http://localhost:80.evil.example", false),
    ("http://localhost.evil.example:80", false),
    ("https://localhost:5173", false),
    ("http://127.0.0.2:80", false),
    ("null", false),
];

/// `(what, method, path, headers, body, status)`
type Case = (&'static str, &'static str, &'static str, Vec<(&'static str, &'static str)>, String, u16);

fn generate(prompt: &str) -> String {
    json!({"prompt": prompt, "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}}).to_string()
}

fn cases() -> Vec<Case> {
    let post = |what, body, status| (what, "POST", "/generate", vec![KEY, JSON], body, status);
    let get = |what, path, status| (what, "GET", path, vec![KEY], String::new(), status);
    vec![
        get("page", "/", 200),
        get("health", "/health", 200),
        get("metrics", "/metrics", 200),
        get("slash", "/health/", 307),
        get("unknown", "/nope", 404),
        ("head", "HEAD", "/health", vec![KEY], String::new(), 405),
        ("delete", "DELETE", "/generate", vec![KEY], String::new(), 405),
        ("no key", "POST", "/generate", vec![JSON], generate("a"), 401),
        ("wrong key", "POST", "/generate", vec![JSON, ("authorization", "Bearer x")], generate("a"), 401),
        ("wrong key, web UI", "POST", "/sdapi/v1/txt2img", vec![JSON], generate("a"), 401),
        post("picture", generate("a"), 200),
        post("no body", String::new(), 422),
        post("broken JSON", "{".into(), 422),
        post("large", "x".repeat((1 << 20) + 1), 413),
        post("invalid", generate("!invalid"), 422),
        post("failure", generate("!fail"), 500),
        post("panic", generate("!panic"), 500),
        post("memory", generate("!memory"), 503),
    ]
}

/// What is wrong with the headers of an answer that is no preflight's.
fn fault(answer: &Answer, origin: Option<&str>, allowed: bool) -> Option<String> {
    let expected = [
        ("access-control-allow-origin", origin.filter(|_| allowed)),
        ("access-control-allow-credentials", origin.map(|_| "true")),
        ("access-control-allow-methods", None),
        ("access-control-allow-headers", None),
    ];
    let wrong = expected.iter().find(|(name, value)| answer.header(name) != *value);
    let varies = answer.header("vary").is_some_and(|v| v.split(", ").any(|name| name == "Origin"));
    wrong.map(|(name, _)| format!("{name}: {:?}", answer.header(name))).or((!varies).then(|| "vary".into()))
}

#[tokio::test]
async fn every_origin_and_answer_is_as_in_the_table() {
    let server = Setup { flags: FLAGS.to_vec(), ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let (mut checked, mut wrong) = (0, Vec::new());
    let mut check = |what: String, fault: Option<String>| {
        checked += 1;
        wrong.extend(fault.map(|fault| format!("{what}: {fault}")));
    };
    let origins = ORIGINS.iter().map(|(origin, allowed)| (Some(*origin), *allowed)).chain([(None, false)]);
    for (origin, allowed) in origins {
        for (what, method, path, headers, body, status) in cases() {
            let headers: Vec<_> = headers.into_iter().chain(origin.map(|o| ("origin", o))).collect();
            let answer = server.call(method, path, &headers, body.as_bytes()).await;
            assert_eq!(answer.status, status, "{what}: {}", answer.text());
            check(format!("{what} from {origin:?}"), fault(&answer, origin, allowed));
            if what == "panic" {
                // Three in a row end the engine.
                assert_eq!(
                    server.call("POST", "/generate", &[KEY, JSON], generate("a").as_bytes()).await.status,
                    200
                );
            }
        }
        let Some(origin) = origin else { continue };
        for (method, known) in [("GET", true), ("POST", true), ("DELETE", true), ("BREW", false)] {
            let asked = [
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", "authorization, x-anything"),
            ];
            let answer = server.call("OPTIONS", "/generate", &asked, b"").await;
            let status = if allowed && known { 200 } else { 400 };
            let as_expected = answer.status == status
                && answer.header("access-control-allow-origin") == allowed.then_some(origin)
                && answer.header("access-control-allow-credentials") == Some("true")
                && answer.header("access-control-allow-headers") == Some("authorization, x-anything")
                && answer.header("access-control-max-age") == Some("600");
            check(
                format!("preflight of {method} from {origin}"),
                (!as_expected).then(|| format!("{:?}", answer.headers)),
            );
        }
    }
    for (what, answer) in
        [("rate", too_often().await), ("slow body", too_slow().await), ("not ready", unready().await)]
    {
        check(what.to_owned(), fault(&answer, Some(ORIGINS[0].0), true));
    }
    for line in wrong.iter().take(20) {
        eprintln!("{line}");
    }
    row(
        "17",
        "CORS matrix",
        "the exact expected table",
        format!("{checked} answers, {} differ", wrong.len()),
        checked >= 400 && wrong.is_empty(),
    );
}

const ORIGIN: (&str, &str) = ("origin", ORIGINS[0].0);

/// 429
async fn too_often() -> Answer {
    let server =
        Setup { flags: vec!["--rate-limit", "1", "--allow-origins", ORIGINS[0].0], ..Setup::default() }
            .start();
    server.call("POST", "/generate", &[ORIGIN], b"").await;
    let answer = server.call("POST", "/generate", &[ORIGIN], b"").await;
    assert_eq!(answer.status, 429);
    answer
}

/// 408
async fn too_slow() -> Answer {
    let mut server = Setup { flags: vec!["--allow-origins", ORIGINS[0].0], ..Setup::default() }.start();
    server.edge.bodies.time = Duration::from_millis(20);
    let answer = server.call_with_endless_body("/generate", &[ORIGIN]).await;
    assert_eq!(answer.status, 408);
    answer
}

/// 503 of a platform's probe.
async fn unready() -> Answer {
    let server =
        Setup { flags: vec!["--health-until-ready", "--allow-origins", ORIGINS[0].0], ..Setup::default() }
            .start();
    server.app.operations.stopping.tell();
    let answer = server.call("GET", "/health", &[ORIGIN], b"").await;
    assert_eq!(answer.status, 503);
    answer
}
