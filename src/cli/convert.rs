//! `aquatint models convert`: a model in another layout or type.

use aquatint_models::convert::{DType, Encoding, Format, Layout, convert};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, print};
use crate::engine::EngineError;
use crate::settings::{ConvertArgs, LayoutChoice, Precision, Quantisation};

pub(super) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    if !args.input.exists() {
        return Err(Failure::BadInput(format!("{}: no such file or folder", args.input.display())));
    }
    let layout = match args.to {
        Some(LayoutChoice::Folder) => Layout::Folder,
        Some(LayoutChoice::Single) => Layout::Single,
        None if args.output.extension().is_some_and(|e| e == "safetensors" || e == "gguf") => Layout::Single,
        None => Layout::Folder,
    };
    // Hidden when standard error is not a terminal.
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let written = convert(&args.input, &args.output, layout, encoding(args), &mut progress);
    bar.finish_and_clear();
    let written = written.map_err(EngineError::from)?;
    print(&format!(
        "{}: {} tensors, {:.1} MB",
        args.output.display(),
        written.tensors,
        written.bytes as f64 / 1e6
    ))
}

fn encoding(args: &ConvertArgs) -> Encoding {
    match (args.quantise, args.dtype) {
        (Some(Quantisation::Fp8), _) => Encoding::Float8,
        (Some(Quantisation::Q8_0), _) => Encoding::Block(Format::Q8_0),
        (Some(Quantisation::Q5_1), _) => Encoding::Block(Format::Q5_1),
        (Some(Quantisation::Q5_0), _) => Encoding::Block(Format::Q5_0),
        (Some(Quantisation::Q4_1), _) => Encoding::Block(Format::Q4_1),
        (Some(Quantisation::Q4_0), _) => Encoding::Block(Format::Q4_0),
        (Some(Quantisation::Q6K), _) => Encoding::Block(Format::Q6K),
        (Some(Quantisation::Q5K), _) => Encoding::Block(Format::Q5K),
        (Some(Quantisation::Q4K), _) => Encoding::Block(Format::Q4K),
        (Some(Quantisation::Q3K), _) => Encoding::Block(Format::Q3K),
        (Some(Quantisation::Q2K), _) => Encoding::Block(Format::Q2K),
        (None, Precision::Auto) => Encoding::AsStored,
        (None, Precision::Fp32) => Encoding::Type(DType::F32),
        (None, Precision::Fp16) => Encoding::Type(DType::F16),
        (None, Precision::Bf16) => Encoding::Type(DType::BF16),
    }
}
