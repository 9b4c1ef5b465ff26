//! With the feature `cuda`, compiles every `.cu` file beside an op to one image for all supported GPUs, compressed, and
//! lists them for `src/gpu/cuda.rs` to embed. Without it there is nothing to do.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code for the T4, for the A100 and what follows it (A10G and L4 run it too), and for Hopper; and PTX, which
/// the driver compiles for what comes after them.
const TARGETS: [&str; 4] = [
    "arch=compute_75,code=sm_75",
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    "arch=compute_90,code=compute_90",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(reason) = compile_all() {
        println!("cargo::error={reason}");
        exit(1);
    }
}

fn compile_all() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let entries = fs::read_dir("src").map_err(|e| format!("src: {e}"))?;
    let mut sources: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let compile = || -> Result<(), String> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(source, &image(&out, source))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, 16)).map(|_| scope.spawn(compile)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a compiling thread ended")?)
    })?;
    let mut list = "pub(super) const MODULES: &[(&str, &[u8])] = &[\n".to_owned();
    for source in &sources {
        list += &format!("    ({:?}, include_bytes!({:?})),\n", stem(source), image(&out, source));
    }
    list += "];\n";
    fs::write(out.join("compiled.rs"), list).map_err(|e| format!("compiled.rs: {e}"))
}

fn stem(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn image(out: &Path, source: &Path) -> PathBuf {
    out.join(stem(source)).with_extension("fatbin")
}

fn compile(source: &Path, image: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc());
    command.args(["-fatbin", "--compress-mode=size", "-std=c++17", "-O3", "-I", "src"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    let output = command.arg("-o").arg(image).arg(source).output();
    let output =
        output.map_err(|e| format!("{}: {e}; scripts/cuda-home.sh gets a toolkit", nvcc().display()))?;
    if output.status.success() {
        return Ok(());
    }
    // cargo shows one line an error.
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(format!("{}: {text}", source.display()))
}

fn nvcc() -> PathBuf {
    let home =
        || env::var_os("CUDA_HOME").or_else(|| env::var_os("CUDA_PATH")).filter(|home| !home.is_empty());
    let in_home = || home().map(|home| Path::new(&home).join("bin/nvcc").into_os_string());
    env::var_os("NVCC").or_else(in_home).unwrap_or_else(|| OsString::from("nvcc")).into()
}
