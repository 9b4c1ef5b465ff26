//! What holds for every request: keys, rates, ids, bounds of bodies, each in the shape of the route's clients.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Setup, server, status_of};

const KEYS: [&str; 2] = ["--api-key", "sesame,user:secret"];
const ONE: &str = r#"{"prompt": "a", "aspectRatio": "1:1", "config": {"numImages": 1, "steps": 1}}"#;
const JSON: (&str, &str) = ("content-type", "application/json");

/// user:secret, anyone:sesame, anyone:wrong
const BASIC: [&str; 3] = ["Basic dXNlcjpzZWNyZXQ=", "Basic YW55b25lOnNlc2FtZQ==", "Basic YW55b25lOndyb25n"];

#[tokio::test]
async fn a_key_opens_what_makes_work() {
    let server = Setup { flags: KEYS.to_vec(), ..Setup::default() }.start();
    for (authorization, status) in [
        (Some("Bearer sesame"), 200),
        (Some("bearer user:secret"), 200),
        (Some("Bearer sesam"), 401),
        (Some("Bearer sesamee"), 401),
        (Some("Bearer"), 401),
        (Some("sesame"), 401),
        // The Basic scheme is for the web UI's routes.
        (Some(BASIC[0]), 401),
        (None, 401),
    ] {
        let headers: Vec<_> = [JSON].into_iter().chain(authorization.map(|a| ("authorization", a))).collect();
        let answer = server.call("POST", "/generate", &headers, ONE.as_bytes()).await;
        assert_eq!(answer.status, status, "{authorization:?}: {}", answer.text());
        if status == 401 {
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(answer.json()["detail"].as_str().unwrap().contains("API key"));
            assert!(!answer.text().contains("sesame"));
        }
    }
    assert_eq!(server.script.requests().len(), 2, "nothing is painted for the others");
    for (authorization, passes) in
        [(BASIC[0], true), (BASIC[1], true), (BASIC[2], false), ("Bearer sesame", true)]
    {
        let answer =
            server.call("GET", "/sdapi/v1/nothing-here", &[("authorization", authorization)], b"").await;
        let expected = if passes { StatusCode::NOT_FOUND } else { StatusCode::UNAUTHORIZED };
        assert_eq!(answer.status, expected, "{authorization}");
        assert_eq!(answer.header("www-authenticate"), (!passes).then_some("Basic"));
    }
}

#[tokio::test]
async fn what_shows_no_work_needs_no_key() {
    let server = Setup { flags: KEYS.to_vec(), ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    for path in ["/", "/page/page.js", "/page/style.css", "/health", "/ready"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    // No way leads from an open folder to something else.
    let around = ["/page/../metrics", "/page/%2e%2e/metrics", "/images/../info"];
    for path in ["/metrics", "/info", "/benchmark", "/nope", "//health"].into_iter().chain(around) {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    let preflight = [("origin", "http://localhost:5173"), ("access-control-request-method", "POST")];
    assert_eq!(server.call("OPTIONS", "/generate", &preflight, b"").await.status, 200);
}

#[tokio::test]
async fn refusals_have_the_shape_of_their_route() {
    let server = Setup { flags: KEYS.to_vec(), ..Setup::default() }.start();
    let text = "An API key is needed.";
    let openai = json!({"error": {
        "message": text, "type": "invalid_request_error", "param": null, "code": "invalid_api_key",
    }});
    let web_ui = json!({"error": "HTTPException", "detail": text, "body": "", "errors": text});
    for (path, expected) in [
        ("/generate", json!({ "detail": text })),
        ("/v1/images/generations", openai),
        ("/models/some/model", json!({ "error": text })),
        ("/", json!({ "error": text })),
        ("/sdapi/v1/txt2img", web_ui),
    ] {
        let answer = server.call("POST", path, &[JSON], b"{}").await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.json(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_caller_may_send_so_many_a_minute() {
    let flags = ["--rate-limit", "3", "--behind-proxy"];
    let server = Setup { flags: flags.to_vec(), ..Setup::default() }.start();
    let ask = async |from: &'static str| {
        server.call("POST", "/generate", &[JSON, ("x-forwarded-for", from)], ONE.as_bytes()).await
    };
    for _ in 0..3 {
        assert_eq!(ask("10.0.0.1").await.status, 200);
    }
    let refused = ask("10.0.0.1").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json(), json!({"detail": "Too many requests: 3 a minute are allowed."}));
    // A third of a minute for each token, less what has passed.
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((18..=20).contains(&seconds), "{seconds}");
    assert_eq!(
        ask("10.0.0.1, 10.0.0.2").await.status,
        200,
        "the last address is the one the proxy has added"
    );
    assert_eq!(
        ask("10.0.0.2, 10.0.0.1").await.status,
        429,
        "what is before it is the client's own invention"
    );
    let read = server.call("GET", "/health", &[("x-forwarded-for", "10.0.0.1")], b"").await;
    assert_eq!(read.status, 200, "reading is free");
}

#[tokio::test]
async fn every_answer_has_an_id() {
    let server = server();
    for (path, given) in [("/health", "abc-1"), ("/nope", "abc-2"), ("/page/page.js", "00-4bf9:2/3+4=@_")] {
        let answer = server.call("GET", path, &[("x-request-id", given)], b"").await;
        assert_eq!(answer.header("x-request-id"), Some(given), "{path}");
    }
    let preflight = [("origin", "http://localhost:1"), ("access-control-request-method", "POST")];
    let mut made = std::collections::HashSet::new();
    for (method, headers) in [
        ("GET", &[][..]),
        ("GET", &[("x-request-id", "")]),
        ("GET", &[("x-request-id", "a b")]),
        ("GET", &[("x-request-id", "{\"level\":\"ERROR\"}")]),
        ("OPTIONS", &preflight),
    ] {
        let answer = server.call(method, "/health", headers, b"").await;
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert!(id.len() == 16 && id.bytes().all(|c| c.is_ascii_hexdigit()), "{headers:?}: {id}");
        made.insert(id);
    }
    assert_eq!(made.len(), 5, "no two are the same");
}

#[tokio::test]
async fn a_body_is_bounded_whether_or_not_it_says_its_length() {
    let mut setup = Setup { flags: vec!["--max-body-mib", "1"], ..Setup::default() }.start();
    setup.edge.bodies.time = Duration::from_secs(5);
    let listening = setup.listen(Duration::from_secs(1)).await;
    let text = json!({"detail": "Request body is too large: at most 1 MiB are accepted."});
    let large = "x".repeat((1 << 20) + 1);
    let said = listening.server.call("POST", "/refine", &[JSON], large.as_bytes()).await;
    assert_eq!((said.status, said.json()), (StatusCode::PAYLOAD_TOO_LARGE, text.clone()));

    // Over a socket: all of it can be written, and then the refusal be read. A connection that is closed on a client
    // who still sends is reset, and browsers show no answer at all.
    let head = "POST /refine HTTP/1.1\r\nhost: x\r\norigin: http://localhost:1\r\ncontent-type: application/json\r\n";
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    let chunked =
        [&*format!("{head}transfer-encoding: chunked\r\n\r\n"), &chunk.repeat(48), "0\r\n\r\n"].concat();
    let plain = format!("{head}content-length: {}\r\n\r\n{}", 3 << 20, "x".repeat(3 << 20));
    for request in [chunked, plain] {
        let mut stream = listening.send(&head[..5]);
        let rest = request[5..].to_owned();
        let answer = tokio::task::spawn_blocking(move || {
            stream.write_all(rest.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.contains("access-control-allow-origin: http://localhost:1"), "{answer}");
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body, text);
    }
}

#[tokio::test]
async fn heads_and_bodies_that_dribble_are_given_up() {
    let mut setup = server();
    setup.edge.patience.head = Duration::from_millis(300);
    setup.edge.bodies.time = Duration::from_millis(300);
    let listening = setup.listen(Duration::from_secs(1)).await;
    let dribble = |start: &str| {
        let mut stream = listening.send(start);
        let mut reader = stream.try_clone().unwrap();
        let begun = Instant::now();
        std::thread::spawn(move || {
            for _ in 0..100 {
                std::thread::sleep(Duration::from_millis(30));
                if stream.write_all(b"x").is_err() {
                    break;
                }
            }
        });
        tokio::task::spawn_blocking(move || {
            let mut answer = String::new();
            let _ = reader.read_to_string(&mut answer);
            (begun.elapsed(), answer)
        })
    };
    let head = dribble("GET /health HTTP/1.1\r\nx-a: ");
    let post = "POST /generate HTTP/1.1\r\nhost: x\r\norigin: http://localhost:1\r\ncontent-type: application/json\r\n";
    let body = dribble(&format!("{post}content-length: 1000\r\n\r\n"));
    let chunks = dribble(&format!("{post}transfer-encoding: chunked\r\n\r\n3E8\r\n"));
    // An honest request beside them.
    let honest = listening.generate(&serde_json::from_str(ONE).unwrap());
    assert_eq!(status_of(honest).await, Some(200));
    let (took, _) = head.await.unwrap();
    assert!(took < Duration::from_millis(900), "the head was read for {took:?}");
    for dribbling in [body, chunks] {
        let (took, answer) = dribbling.await.unwrap();
        assert!(took < Duration::from_millis(900), "the body was read for {took:?}");
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("access-control-allow-origin: http://localhost:1"), "{answer}");
    }
}

#[tokio::test]
async fn a_slow_body_may_take_its_time_while_it_comes() {
    let mut setup = server();
    setup.edge.bodies.time = Duration::from_millis(200);
    let listening = setup.listen(Duration::from_secs(1)).await;
    // 160 KiB in 0.8 s: slower than the time, faster than the least rate.
    let body = format!(
        "{{\"prompt\": \"a\", \"aspectRatio\": \"1:1\", \"config\": {{\"steps\": 1}}, \"x\": \"{}\"}}",
        "x".repeat(160 << 10)
    );
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = listening.send(&head);
    let answer = tokio::task::spawn_blocking(move || {
        for part in body.as_bytes().chunks(10 << 10) {
            stream.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        String::from_utf8_lossy(&status).into_owned()
    });
    assert_eq!(answer.await.unwrap(), "HTTP/1.1 200");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let mut setup = Setup { flags: vec!["--max-connections", "2"], ..Setup::default() }.start();
    setup.edge.patience.head = Duration::from_millis(300);
    let listening = setup.listen(Duration::from_secs(1)).await;
    let _held = [listening.send("GET / HTTP/1.1\r\n"), listening.send("GET / HTTP/1.1\r\n")];
    let begun = Instant::now();
    let third = listening.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(status_of(third).await, Some(200));
    assert!(begun.elapsed() >= Duration::from_millis(200), "it came after {:?}", begun.elapsed());
}
