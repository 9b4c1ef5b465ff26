//! Row 15: names that clients give are keys of lists, and open nothing outside of the folders that were meant.

use std::os::unix::fs::symlink;

use aquatint::api::LoraRegistry;
use serde_json::json;

use super::row;
use crate::cli::Folder;
use crate::harness::Setup;

/// Ways out of a folder, to be put before a name.
const WAYS: [&str; 24] = [
    "../",
    "../../",
    "../../../../../../../../",
    "./../",
    "x/../../",
    "..//",
    "../.",
    "/",
    "//",
    "file://",
    "file:///",
    "\\..\\",
    "..\\",
    "..\\..\\",
    "C:\\",
    "\\\\host\\share\\",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%2f",
    "..%252f",
    "..%c0%af",
    "\u{ff0e}\u{ff0e}\u{ff0f}",
    "~/",
    "~root/",
];
const NAMES: [&str; 6] = [
    "secret",
    "secret.safetensors",
    "etc/passwd",
    "inside/../secret",
    "secret\u{0}",
    "secret\u{0}.safetensors",
];

#[tokio::test]
async fn no_name_leads_out_of_its_folder() {
    let folder = Folder::new("board-traversal");
    let marker = "the content of a file outside";
    folder.write("secret.safetensors", marker.as_bytes());
    folder.write("outside/deep.safetensors", marker.as_bytes());
    folder.write("loras/inside.safetensors", b"{}");
    let loras = folder.0.join("loras");
    symlink("../secret.safetensors", loras.join("link.safetensors")).unwrap();
    symlink(folder.0.join("secret.safetensors"), loras.join("absolute.safetensors")).unwrap();
    symlink("link.safetensors", loras.join("twice.safetensors")).unwrap();
    symlink("../outside", loras.join("folder.safetensors")).unwrap();
    symlink("/etc/passwd", loras.join("passwd.safetensors")).unwrap();
    symlink("loop.safetensors", loras.join("loop.safetensors")).unwrap();
    symlink("inside.safetensors", loras.join("beside.safetensors")).unwrap();

    let registry = LoraRegistry::scan(&loras).unwrap();
    let known = registry.names();
    let server = Setup { loras: registry, ..Setup::default() }.start();
    server.app.engine.model().await.unwrap();
    let links = ["link", "absolute", "twice", "folder", "passwd", "loop", "folder/deep", "link.safetensors"];
    let mut names: Vec<String> = links.map(str::to_owned).to_vec();
    names.extend(WAYS.iter().flat_map(|way| NAMES.iter().map(move |name| format!("{way}{name}"))));
    names.extend(
        [".", "..", "/", "", "\u{0}", "inside/", "inside/.", "./inside", "inside.safetensors"]
            .map(str::to_owned),
    );

    let (mut asked, mut let_in, mut leaked) = (0, Vec::new(), 0);
    for name in &names {
        for field in ["lora", "model"] {
            // An empty name is none.
            if name.is_empty() {
                continue;
            }
            let config = json!({"numImages": 1, "steps": 1, field: name});
            let answer = server
                .post("/generate", &json!({"prompt": "a", "aspectRatio": "1:1", "config": config}))
                .await;
            asked += 1;
            leaked += usize::from(answer.text().contains(marker) || answer.text().contains("root:"));
            if answer.status != 422 {
                let_in.push(format!("{field} {name:?}: {}", answer.status));
            }
        }
        for place in ["/page/", "/images/", "/jobs/", "/docs/", "/"] {
            let plain = |c: char| c.is_ascii_graphic() && !r#"\"<>^`{|}#?"#.contains(c);
            let path: String = name
                .chars()
                .map(|c| {
                    if plain(c) {
                        c.to_string()
                    } else {
                        c.to_string().bytes().map(|b| format!("%{b:02x}")).collect()
                    }
                })
                .collect();
            let answer = server.get(&format!("{place}{path}")).await;
            asked += 1;
            leaked += usize::from(String::from_utf8_lossy(&answer.body).contains(marker));
            let is_ours =
                ["/", "//", "/./", "/."].contains(&format!("{place}{path}").as_str()) || path.is_empty();
            if !is_ours && !answer.status.is_client_error() && !answer.status.is_redirection() {
                let_in.push(format!("GET {place}{path}: {}", answer.status));
            }
        }
    }
    // A link within the folder is as good as a file.
    assert_eq!(known, ["beside", "inside"]);
    let opened: Vec<_> =
        server.script.loras.lock().unwrap().iter().flatten().map(|l| l.path.clone()).collect();
    let root = loras.canonicalize().unwrap();
    let outside =
        opened.iter().filter(|path| !path.canonicalize().is_ok_and(|p| p.starts_with(&root))).count();
    for line in let_in.iter().take(20) {
        eprintln!("{line}");
    }
    row(
        "15",
        ">= 100 traversal and symlink names",
        "0 opens outside the root",
        format!(
            "{} names, {asked} requests: {outside} opens outside, {leaked} leaks, {} accepted",
            names.len(),
            let_in.len()
        ),
        names.len() >= 100 && outside == 0 && leaked == 0 && let_in.is_empty(),
    );
}
