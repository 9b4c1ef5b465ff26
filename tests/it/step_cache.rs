//! Steps that reuse features: asked for in every API, refused by name where the values cannot be.

use aquatint::engine::{DeepCache, StepCache};
use serde_json::{Value, json};

use crate::harness::{Setup, eventually};

fn body(route: &str, [threshold, interval, branch]: [Value; 3]) -> Value {
    let fields =
        json!({"first_block_cache": threshold, "cache_interval": interval, "cache_branch_id": branch});
    match route {
        "/generate" => json!({
            "prompt": "a", "aspectRatio": "1:1",
            "config": {"firstBlockCache": threshold, "cacheInterval": interval, "cacheBranchId": branch, "numImages": 1},
        }),
        "/models/fake" => json!({"inputs": "a", "parameters": fields}),
        _ => {
            let mut body = fields;
            body["prompt"] = json!("a");
            body
        }
    }
}

const ROUTES: [&str; 4] = ["/generate", "/jobs", "/models/fake", "/v1/images/generations"];
const NULL: Value = Value::Null;

#[tokio::test]
async fn a_request_may_turn_it_on() {
    let server = Setup::default().start();
    let deep = |interval, branch_id| Some(StepCache::Deep(DeepCache { interval, branch_id }));
    let mut asked = 0;
    for route in ROUTES {
        for (fields, expected) in [
            ([NULL, NULL, NULL], None),
            ([json!(0.08), NULL, NULL], Some(StepCache::FirstBlock { threshold: 0.08 })),
            ([NULL, json!(3), NULL], deep(3, 0)),
            ([NULL, json!(2), json!(4)], deep(2, 4)),
        ] {
            let answer = server.post(route, &body(route, fields)).await;
            assert!(answer.status.is_success(), "{route}: {}", answer.text());
            asked += 1;
            eventually("the request reaches the model", || server.script.requests().len() == asked).await;
            assert_eq!(server.script.requests().pop().unwrap().step_cache, expected, "{route}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let server = Setup::default().start();
    for route in ROUTES {
        let camel = |name: &str| {
            match (route, name) {
                ("/generate", "first_block_cache") => "firstBlockCache",
                ("/generate", "cache_interval") => "cacheInterval",
                ("/generate", _) => "cacheBranchId",
                _ => "",
            }
            .to_owned()
        };
        for (fields, named) in [
            ([json!(1.5), NULL, NULL], "first_block_cache"),
            ([json!("much"), NULL, NULL], "first_block_cache"),
            ([NULL, json!(0), NULL], "cache_interval"),
            ([NULL, json!(101), NULL], "cache_interval"),
            ([NULL, json!(2.5), NULL], "cache_interval"),
            ([NULL, json!(2), json!(-1)], "cache_branch_id"),
            ([NULL, NULL, json!(1)], "cache_branch_id"),
            ([json!(0.1), json!(2), NULL], "cache_interval"),
        ] {
            let answer = server.post(route, &body(route, fields.clone())).await;
            let own = camel(named);
            let named = if own.is_empty() { named } else { &own };
            let text = answer.text();
            assert!(answer.status.is_client_error() && text.contains(named), "{route} {fields:?}: {text}");
        }
    }
    assert!(server.script.requests().is_empty());
}

/// Whoever gets such a picture can see it in what made it.
#[tokio::test]
async fn the_recipe_says_so() {
    let server = Setup::default().start();
    let answer = server.post("/generate", &body("/generate", [NULL, json!(3), json!(1)])).await;
    let extra = &answer.json()["parameters"]["extra"];
    assert_eq!(*extra, json!([["DeepCache interval", "3"], ["DeepCache branch", "1"]]));
}
