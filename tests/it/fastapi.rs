//! Answers equal, byte for byte, to those of FastAPI and of Python's `json` module; `reference/record.py` recorded them.

use serde::Deserialize;
use serde_json::json;

use crate::harness::{Setup, server};

/// A request and what FastAPI answered.
#[derive(Deserialize)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: std::collections::BTreeMap<String, String>,
    /// Bytes as Latin-1.
    pub(crate) body: String,
    pub(crate) status: u16,
    pub(crate) reply_headers: std::collections::BTreeMap<String, String>,
    pub(crate) reply: String,
}

pub(crate) fn recorded() -> Vec<Recorded> {
    let lines = include_str!("reference/fastapi.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn answers_as_fastapi_does() {
    let origins = "http://localhost:8081, http://localhost:5173,https://app.example";
    let server = Setup { flags: vec!["--allow-origins", origins], ..Setup::default() }.start();
    let recorded = recorded();
    assert!(recorded.len() >= 150, "only {} records", recorded.len());
    for (i, r) in recorded.iter().enumerate() {
        let what = format!("line {}: {} {} {:?} {:?}", i + 1, r.method, r.path, r.headers, r.body);
        let headers: Vec<_> = r.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let body: Vec<u8> = r.body.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        let answer = server.call(&r.method, &r.path, &headers, &body).await;
        assert_eq!(answer.text(), r.reply, "{what}");
        assert_eq!(answer.status.as_u16(), r.status, "{what}");
        for (name, value) in &r.reply_headers {
            // Lengths are the connection's business; the text was compared.
            if name != "content-length" {
                assert_eq!(answer.header(name), Some(value.as_str()), "{name} of {what}");
            }
        }
        // Ours, beyond what FastAPI sends.
        let ours = ["content-length", "x-request-id"];
        for name in answer.headers.keys().map(|name| name.as_str()).filter(|name| !ours.contains(name)) {
            assert!(r.reply_headers.contains_key(name), "{name} is not FastAPI's, {what}");
        }
    }
}

#[tokio::test]
async fn says_where_json_breaks_as_python_does() {
    #[derive(Deserialize)]
    struct Broken {
        text: String,
        position: usize,
        message: String,
    }
    let server = server();
    let lines: Vec<_> = include_str!("reference/json_errors.jsonl").lines().collect();
    assert!(lines.len() >= 70, "only {} records", lines.len());
    for line in lines {
        let broken: Broken = serde_json::from_str(line).unwrap();
        if broken.text.is_empty() {
            // FastAPI takes an empty body for none.
            continue;
        }
        let headers = [("content-type", "application/json")];
        let answer = server.call("POST", "/generate", &headers, broken.text.as_bytes()).await;
        let expected = json!({"detail": [{
            "type": "json_invalid", "loc": ["body", broken.position], "msg": "JSON decode error", "input": {},
            "ctx": {"error": broken.message},
        }]});
        assert_eq!(answer.json(), expected, "{:?}", broken.text.chars().take(60).collect::<String>());
        assert_eq!(answer.status, 422);
    }
}

/// Python reads these and this server does not.
#[tokio::test]
async fn refuses_what_only_python_takes_for_json() {
    let server = server();
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    for text in ["{\"a\": NaN}", "{\"a\": -Infinity}", "{\"a\": \"\\ud800\"}", &deep] {
        let answer =
            server.call("POST", "/generate", &[("content-type", "application/json")], text.as_bytes()).await;
        assert_eq!(answer.status, 400, "{text}");
        assert_eq!(answer.text(), r#"{"detail":"There was an error parsing the body"}"#);
    }
}

#[tokio::test]
async fn redirects_keep_https_behind_a_proxy() {
    let server = server();
    let answer = server.call("GET", "/health/", &[("x-forwarded-proto", "https")], b"").await;
    assert_eq!(answer.header("location"), Some("https://testserver/health"));
}
