//! CORS headers on every kind of answer; what a preflight says is compared with Starlette's in `fastapi`.

use serde_json::json;

use crate::harness::{Setup, server};

const ORIGIN: (&str, &str) = ("origin", "http://localhost:5173");
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn are_on_every_answer() {
    let server = server();
    let prompt = |p: &str| {
        json!({"prompt": p, "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}}).to_string()
    };
    let large = "x".repeat((1 << 20) + 1);
    let table = [
        ("GET", "/health", String::new(), 200),
        ("GET", "/", String::new(), 200),
        ("GET", "/page/page.js", String::new(), 200),
        ("POST", "/generate", prompt("a"), 200),
        ("GET", "/health/", String::new(), 307),
        ("POST", "/refine", json!({"prompt": "a", "images": ["!"]}).to_string(), 400),
        ("GET", "/nope", String::new(), 404),
        ("HEAD", "/health", String::new(), 405),
        ("DELETE", "/generate", String::new(), 405),
        ("POST", "/generate", large, 413),
        ("POST", "/generate", "{}".into(), 422),
        ("POST", "/generate", "{".into(), 422),
        ("POST", "/generate", prompt("!invalid"), 422),
        ("POST", "/generate", prompt("!fail"), 500),
        ("POST", "/generate", prompt("!panic"), 500),
        ("POST", "/generate", prompt("!memory"), 503),
    ];
    for (method, path, body, status) in table {
        let answer = server.call(method, path, &[ORIGIN, JSON], body.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN.1), "{method} {path} {status}");
        assert_eq!(
            answer.header("access-control-allow-credentials"),
            Some("true"),
            "{method} {path} {status}"
        );
        let vary = answer.header("vary").unwrap();
        assert!(vary.ends_with("Origin"), "{vary}");

        let stranger =
            server.call(method, path, &[("origin", "http://evil.example"), JSON], body.as_bytes()).await;
        assert_eq!(stranger.header("access-control-allow-origin"), None, "{method} {path} {status}");
    }
}

#[tokio::test]
async fn a_star_allows_every_origin_by_name() {
    let server = Setup { flags: vec!["--allow-origins", "https://a.example, *"], ..Setup::default() }.start();
    for method in ["GET", "OPTIONS"] {
        let headers = [("origin", "https://b.example"), ("access-control-request-method", "GET")];
        let answer = server.call(method, "/health", &headers, b"").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://b.example"));
    }
}
