//! The fuzz targets, for a moment each: seeds, and what becomes of them by a fixed sequence of mutations.
//! `scripts/fuzz.sh` runs them for longer, guided by coverage.

use std::time::{Duration, Instant};

use crate::board::Lcg;
use targets::{TARGETS, seeds};

#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    reason = "a crate of its own elsewhere"
)]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// How long a target runs at most.
const MOMENT: Duration = Duration::from_secs(1);
/// And how often.
const RUNS: usize = 3000;
const LONGEST_BYTES: usize = 1 << 14;

/// Bytes that readers treat apart.
const SPECIAL: [&[u8]; 16] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e999",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\r\n--x",
    b"(((",
    b"18446744073709551616",
    b"\xf0\x9f\xa6\x8a",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Lcg) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        let most = 1 << random.below(8);
        let length = random.below(most).min(data.len() - at);
        match random.below(6) {
            0 => drop(data.drain(at..at + length)),
            1 => drop(data.splice(at..at, SPECIAL[random.below(SPECIAL.len())].iter().copied())),
            2 => drop(data.splice(at..at + length, SPECIAL[random.below(SPECIAL.len())].iter().copied())),
            3 => data.truncate(at),
            4 => {
                let part = data[at..at + length].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, part);
            }
            _ => data[at..at + length].iter_mut().for_each(|byte| *byte ^= 1 << random.below(8)),
        }
        data.truncate(LONGEST_BYTES);
    }
    data
}

#[test]
fn no_target_panics() {
    for (name, run) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| run(seed));
        let (begun, mut random) = (Instant::now(), Lcg(13));
        for _ in 0..RUNS {
            let data = mutate(&seeds, &mut random);
            let ended = std::panic::catch_unwind(|| run(&data));
            assert!(ended.is_ok(), "{name} panics at b\"{}\"", data.escape_ascii());
            if begun.elapsed() > MOMENT {
                break;
            }
        }
    }
}

/// For `scripts/fuzz.sh`: a folder of seeds for each target, where `AQUATINT_FUZZ_CORPUS` names one.
#[test]
fn the_corpus_is_written() {
    let Some(folder) = std::env::var_os("AQUATINT_FUZZ_CORPUS").map(std::path::PathBuf::from) else { return };
    for (name, _) in TARGETS {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for (index, seed) in seeds(name).into_iter().enumerate() {
            std::fs::write(folder.join(name).join(format!("seed-{index}")), seed).unwrap();
        }
    }
}

/// The seeds get where mutation is to begin: behind the first checks.
#[test]
fn the_seeds_are_valid() {
    use aquatint_models::checkpoint::safetensors_file::SafetensorsFile;
    use aquatint_models::lora::LoraFile;
    for seed in seeds("lora") {
        let file = LoraFile::new(SafetensorsFile::from_bytes("seed", seed).unwrap()).unwrap();
        assert_eq!(file.textual_inversions().unwrap().len(), 1);
    }
    for seed in seeds("png_text") {
        assert_eq!(aquatint::picture::texts(&seed).unwrap()[0].0, "parameters");
    }
}
