//! Row 18: nothing that a client sends can forge or break a line of the log.

use serde_json::{Value, json};

use super::{full, row};
use crate::cli::Folder;
use crate::running::Running;

#[test]
fn each_request_is_one_line_whatever_its_prompt() {
    let folder = Folder::new("board-log");
    let mut server = Running::start(&folder, &[], &["--log-format", "json"]);
    let forged = "{\"level\":\"ERROR\",\"message\":\"request\",\"path\":\"/generate\"}";
    let prompts: Vec<_> = (0..50u32)
        .map(|i| match i {
            0..32 => format!("a{}b", char::from(i as u8)),
            32 => "\u{7f}".to_owned(),
            33..41 => format!("x\u{1b}[{}mred\u{1b}[0m{}", 30 + i, char::from_u32(0x80 + i).unwrap()),
            41 => format!("a\n{forged}"),
            42 => format!("a\r\n{forged}\r\n"),
            43 => "\u{2028}\u{2029}\u{85}".to_owned(),
            44 => "\u{202e}gnp.exe\u{2066}".to_owned(),
            45 => "\u{feff}\u{fffd}\u{0}".to_owned(),
            46 => "\\n\\r\\u000a%0a%0d".to_owned(),
            47 => "\"},\n{\"level\":\"INFO\"".to_owned(),
            48 => "\u{1b}]0;title\u{7}".to_owned(),
            _ => "\u{8}".repeat(200),
        })
        .collect();
    let mut statuses = Vec::new();
    // Every fifth is one of each kind.
    let step = if full() { 1 } else { 5 };
    let asked = prompts.len().div_ceil(step);
    for (i, prompt) in prompts.iter().enumerate().step_by(step) {
        // Also as names that errors quote.
        let config = match i / step % 5 {
            0 => json!({"numImages": 1, "steps": 1, "lora": prompt}),
            1 => json!({"numImages": 1, "steps": 1, "scheduler": prompt}),
            _ => json!({"numImages": 1, "steps": 1, "negativePrompt": prompt}),
        };
        let body = json!({"prompt": prompt, "aspectRatio": "1:1", "config": config}).to_string();
        let id = format!("q-{i}");
        statuses.push(server.ask("POST", "/generate", &[("x-request-id", &id)], &body).status);
    }
    let log = server.stop();
    let mut lines = vec![0; prompts.len()];
    let mut broken = 0;
    for line in log.lines() {
        let Ok(Value::Object(line)) = serde_json::from_str(line) else {
            broken += 1;
            continue;
        };
        let id = line.get("request_id").and_then(Value::as_str).and_then(|id| id.strip_prefix("q-"));
        if let (Some(id), Some("request")) = (id, line.get("message").and_then(Value::as_str)) {
            let id: usize = id.parse().unwrap();
            assert_eq!(line["status"], statuses[id / step]);
            lines[id] += 1;
        }
    }
    let raw = log.chars().filter(|c| c.is_control() && *c != '\n').count();
    let exact = lines.iter().filter(|count| **count == 1).count();
    let painted = statuses.iter().filter(|status| **status == 200).count();
    row(
        "18",
        "50 prompts with control characters",
        "one JSON log line each",
        format!(
            "{exact} of {asked} with one line, {broken} broken lines, {raw} raw control characters; {painted} painted"
        ),
        exact == asked && broken == 0 && raw == 0 && painted * 2 >= asked,
    );
}
