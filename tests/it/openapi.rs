//! `/openapi.json`, `/docs` and `/redoc`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::server;

/// Every path in the router's source, as OpenAPI writes it.
fn routes() -> BTreeSet<String> {
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/mod.rs")).unwrap();
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let in_routes = |text: &str| -> Vec<String> {
        let plain = text.split(".route(").skip(1).filter(|rest| rest.trim_start().starts_with('"'));
        plain.map(|rest| quoted(rest)[0].replace("{*", "{")).collect()
    };
    let (top, web_ui) = source.split_once("fn web_ui()").unwrap();
    let (web_ui, _) = web_ui.split_once("\n}\n").unwrap();
    let listed = web_ui.split("for path in [").nth(1).map(|rest| quoted(rest.split(']').next().unwrap()));
    let nested = in_routes(web_ui).into_iter().chain(listed.into_iter().flatten());
    in_routes(top).into_iter().chain(nested.map(|path| format!("/sdapi/v1{path}"))).collect()
}

#[tokio::test]
async fn describes_every_route_and_no_other() {
    let document = server().get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let routes = routes();
    assert!(routes.len() > 10 && routes.contains("/jobs/{id}/events"), "{routes:?}");
    assert_eq!(described, routes);
}

/// All objects with `$ref` in a document.
fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|inner| references(inner, into));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, into)),
        _ => {}
    }
}

#[tokio::test]
async fn holds_together() {
    let document = server().get("/openapi.json").await.json();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(
                ids.insert(operation["operationId"].to_string()),
                "two operations are {}",
                operation["operationId"]
            );
            let in_path = path
                .split('/')
                .filter(|part| part.starts_with('{'))
                .map(|part| part.trim_matches(['{', '}']));
            let parameters = operation["parameters"].as_array().unwrap();
            let declared =
                parameters.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().unwrap());
            assert_eq!(in_path.collect::<BTreeSet<_>>(), declared.collect(), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(
                    response["description"].as_str().is_some_and(|d| d.len() > 3),
                    "{method} {path} {status}"
                );
            }
        }
    }
}

/// What a body's schema says is what its route checks.
#[tokio::test]
async fn the_ranges_are_those_that_are_checked() {
    let server = server();
    let document = server.get("/openapi.json").await.json();
    let job = document["components"]["schemas"]["JobRequest"].clone();
    assert_eq!(job["required"], json!(["prompt"]));
    assert_eq!(job["additionalProperties"], false);
    assert_eq!(job["properties"]["steps"]["maximum"], 150);
    let mut checked = 0;
    for (name, property) in job["properties"].as_object().unwrap() {
        for (bound, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
            let Some(limit) = property[bound].as_f64().filter(|limit| limit.abs() < 1e15) else { continue };
            let answer = server.post("/jobs", &json!({"prompt": "a", name: limit + beyond})).await;
            assert_eq!(answer.status, 422, "{name} {bound} {limit}");
            assert!(answer.text().contains(&format!("{name} must be")), "{}", answer.text());
            checked += 1;
        }
    }
    assert!(checked >= 12, "{checked}");
    let unknown = server.post("/jobs", &json!({"prompt": "a", "nonsense": 1})).await;
    assert_eq!(unknown.status, 422);
}

#[tokio::test]
async fn is_shown_without_the_internet() {
    let server = server();
    for path in ["/docs", "/redoc"] {
        let page = server.get(path).await;
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let html = page.text();
        assert!(!html.contains("http://") && !html.contains("https://"), "{path} refers to somewhere else");
        for linked in html.split("page/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert_eq!(server.get(&format!("/page/{linked}")).await.status, 200, "{linked}");
        }
    }
}
