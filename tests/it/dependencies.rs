//! Dependencies point one way: kernels, models, engine, queue, api, cli, main.

use std::path::{Path, PathBuf};

/// `(folder, what its sources must not name)`
const FORBIDDEN: [(&str, &[&str]); 7] = [
    ("src/api", &["candle", "cli::"]),
    ("src/queue", &["candle", "axum", "api::", "cli::"]),
    ("src/engine", &["axum", "queue::", "api::", "cli::"]),
    ("src/cli", &["candle"]),
    ("models/src", &["tokio", "axum", "hyper::", "reqwest", "clap"]),
    ("kernels/src", &["tokio", "axum", "aquatint_models", "tokenizers"]),
    ("src", &["anyhow"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code, without comments and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, words) in FORBIDDEN {
        let files = sources(&root.join(folder));
        assert!(!files.is_empty(), "{folder}");
        for file in files {
            let code = code(&std::fs::read_to_string(&file).unwrap());
            for word in words {
                assert!(!code.contains(word), "{} names {word}", file.display());
            }
        }
    }
}
