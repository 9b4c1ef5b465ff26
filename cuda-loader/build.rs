//! Writes the jumps of `src/lib.rs` for every function in `names/`.

use std::env;
use std::fs;
use std::path::PathBuf;

/// A list of functions, the library they are in, what they return while it is not there, and its soname: CUDA 13's and,
/// in case the program was built for it, CUDA 12's.
const LIBRARIES: [(&str, u32, &str); 5] = [
    ("driver", 100, r#"&[c"libcuda.so.1"]"#), // CUDA_ERROR_NO_DEVICE
    ("cublas", 1, r#"&[c"libcublas.so.13", c"libcublas.so.12"]"#), // CUBLAS_STATUS_NOT_INITIALIZED
    ("cublaslt", 1, r#"&[c"libcublasLt.so.13", c"libcublasLt.so.12"]"#),
    ("curand", 203, r#"&[c"libcurand.so.10"]"#), // CURAND_STATUS_INITIALIZATION_FAILED
    ("nvrtc", 11, r#"&[c"libnvrtc.so.13", c"libnvrtc.so.12"]"#), // NVRTC_ERROR_INTERNAL_ERROR
];

/// Functions that return a text and no number.
const TEXTS: [&str; 5] = [
    "cublasGetStatusName",
    "cublasGetStatusString",
    "cublasLtGetStatusName",
    "cublasLtGetStatusString",
    "nvrtcGetErrorString",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=names");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(reason) = write() {
        println!("cargo::error={reason}");
        return;
    }
    // The runtime that candle's own kernels call opens the driver itself, when it is linked in.
    if let Some(home) = env::var_os("CUDA_HOME").or_else(|| env::var_os("CUDA_PATH")) {
        println!("cargo::rustc-link-search=native={}", PathBuf::from(home).join("lib64").display());
    }
    println!("cargo::rustc-link-search=native=/usr/local/cuda/lib64");
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=cudart_static");
}

fn write() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let is_arm = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "aarch64");
    let mut text = String::from(".text\n");
    let mut slots = String::from(
        ".data\n.balign 8\n.globl aquatint_cuda_slots\n.hidden aquatint_cuda_slots\naquatint_cuda_slots:\n",
    );
    let mut list = String::from("const LIBRARIES: &[Library] = &[\n");
    let mut count = 0;
    text += &absent("aquatint_cuda_text", is_arm, None);
    for (library, code, files) in LIBRARIES {
        let path = format!("names/{library}.txt");
        let names = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        text += &absent(&format!("aquatint_cuda_no_{library}"), is_arm, Some(code));
        list += &format!("    Library {{ files: {files}, names: &[\n");
        for name in names.lines() {
            let offset = count * 8;
            text += &format!(".globl {name}\n.hidden {name}\n.type {name}, %function\n{name}:\n");
            text += &if is_arm {
                format!(
                    "    adrp x16, aquatint_cuda_slots+{offset}\n    ldr x16, [x16, :lo12:aquatint_cuda_slots+{offset}]\n    br x16\n"
                )
            } else {
                format!("    jmp *aquatint_cuda_slots+{offset}(%rip)\n")
            };
            let first = if TEXTS.contains(&name) { "text".to_owned() } else { format!("no_{library}") };
            slots += &format!("    .quad aquatint_cuda_{first}\n");
            list += &format!("        c\"{name}\",\n");
            count += 1;
        }
        list += "    ] },\n";
    }
    list += &format!("];\nconst SLOTS: usize = {count};\n");
    let message =
        ".section .rodata\naquatint_cuda_message: .asciz \"a library of CUDA is not there\"\n.text\n";
    fs::write(out.join("jumps.s"), format!("{message}{text}{slots}.text\n")).map_err(|e| e.to_string())?;
    fs::write(out.join("libraries.rs"), list).map_err(|e| e.to_string())
}

/// A function that returns a number, or the message.
fn absent(name: &str, is_arm: bool, code: Option<u32>) -> String {
    let body = match (is_arm, code) {
        (false, Some(code)) => format!("    movl ${code}, %eax\n    ret\n"),
        (false, None) => "    leaq aquatint_cuda_message(%rip), %rax\n    ret\n".to_owned(),
        (true, Some(code)) => format!("    mov w0, #{code}\n    ret\n"),
        (true, None) => {
            "    adrp x0, aquatint_cuda_message\n    add x0, x0, :lo12:aquatint_cuda_message\n    ret\n"
                .to_owned()
        }
    };
    format!("{name}:\n{body}")
}
