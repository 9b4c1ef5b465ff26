//! `aquatint generate`: a prompt to picture files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use aquatint_models::checkpoint::bytes_read;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::hub::Finder;
use super::model::{Choice, use_threads};
use super::{Failure, print};
use crate::engine::pipeline::PipelineBackend;
use crate::engine::recipe::random_seed;
use crate::engine::{Backend, DeepCache, GenerationRequest, Mode, Picture, StepCache, make};
use crate::picture::{self, Format};
use crate::settings::GenerateArgs;

/// How much of an initial picture is changed where nothing is said.
const DEFAULT_STRENGTH: f64 = 0.6;

const LOADING_BAR_EVERY: Duration = Duration::from_millis(100);

/// Checks everything that can be checked, then loads, paints and writes, one picture after the other.
pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or_else(random_seed);
    let mut request = request(args, seed)?;
    let targets = targets(args.out.as_deref(), seed, args.num_images)?;
    let mut choice = Choice::new(&args.model, &Finder::new(args.model.dtype))?;
    choice.options.first_request = Some(request.clone());
    use_threads(args.model.threads)?;
    aquatint_models::keep_recordings(args.cuda_graphs);
    // Nobody waits for the file but its reader.
    picture::use_png_compression(picture::PngCompression::Balanced);

    let mut backend = load(&choice)?;
    if args.strength.is_none() && backend.info().edits_pictures {
        request.mode.set_strength(1.0);
    }
    backend.set_loras(&choice.loras)?;
    let mut made = Vec::new();
    for (i, (path, format)) in targets.iter().enumerate() {
        let request = GenerationRequest { seed: seed.wrapping_add(i as u64), ..request.clone() };
        let bar = progress_bar(i, targets.len());
        let mut on_step = |position, steps| {
            bar.set_length(steps as u64);
            bar.set_position(position as u64);
            ControlFlow::Continue(())
        };
        let picture = make(&backend, &request, &choice.loras, &mut on_step)?;
        bar.finish_and_clear();
        write(&picture, path, *format)?;
        if !args.json {
            print(&format!(
                "{} (seed {}, {} steps, {:.1} s)",
                path.display(),
                picture.recipe.seed,
                picture.recipe.num_inference_steps,
                picture.elapsed_ms / 1e3
            ))?;
        }
        made.push((path, picture));
    }
    if backend.info().random_weights {
        eprintln!(
            "note: this model has random weights, its pictures are noise; --model DIR takes a trained one"
        );
    }
    if args.json { print_json(&made) } else { Ok(()) }
}

/// Loads the model; a terminal sees how much of it was read.
fn load(choice: &Choice) -> Result<PipelineBackend, Failure> {
    let bar = bar("loading {wide_bar} {bytes}/{total_bytes}", choice.describe()?.1);
    let loaded = std::thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let bar = &bar;
        scope.spawn(move || {
            while is_done.recv_timeout(LOADING_BAR_EVERY) == Err(RecvTimeoutError::Timeout) {
                bar.set_position(bytes_read().0);
            }
        });
        let loaded = choice.load();
        drop(done);
        loaded
    });
    bar.finish_and_clear();
    Ok(loaded?)
}

fn request(args: &GenerateArgs, seed: u64) -> Result<GenerationRequest, Failure> {
    let prompt = args.prompt.as_ref().or(args.prompt_flag.as_ref()).cloned().unwrap_or_default();
    let mut request = GenerationRequest::new(prompt, seed);
    request.negative_prompt = args.negative_prompt.clone();
    request.width = args.width;
    request.height = args.height;
    request.num_inference_steps = args.steps;
    request.guidance_scale = args.guidance_scale;
    request.true_cfg_scale = args.true_cfg_scale;
    request.max_sequence_length = args.max_sequence_length;
    request.scheduler = args.scheduler.clone();
    request.clip_skip = args.clip_skip;
    request.step_cache = step_cache(args);
    let Some(path) = &args.init_image else { return Ok(request) };

    let image = picture::on_white(&read("--init-image", path)?);
    // A picture keeps its size unless told otherwise.
    request.width = request.width.or(Some(image.width() as usize));
    request.height = request.height.or(Some(image.height() as usize));
    let strength = args.strength.unwrap_or(DEFAULT_STRENGTH);
    request.mode = match &args.mask {
        Some(mask) => {
            let mask = picture::on_white(&read("--mask", mask)?);
            Mode::Inpaint { image, mask: image::DynamicImage::from(mask).to_luma8(), strength }
        }
        None => Mode::ImageToImage { image, strength },
    };
    Ok(request)
}

fn step_cache(args: &GenerateArgs) -> Option<StepCache> {
    match (args.first_block_cache, args.cache_interval) {
        (Some(threshold), _) => Some(StepCache::FirstBlock { threshold }),
        (None, Some(interval)) => {
            Some(StepCache::Deep(DeepCache { interval, branch_id: args.cache_branch_id }))
        }
        (None, None) => None,
    }
}

fn read(flag: &str, path: &Path) -> Result<image::DynamicImage, Failure> {
    let bad =
        |error: &dyn std::fmt::Display| Failure::BadInput(format!("{flag} {}: {error}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| bad(&error))?;
    picture::decode(&bytes).map_err(|error| bad(&error))
}

/// Where each picture goes.
fn targets(out: Option<&Path>, seed: u64, count: usize) -> Result<Vec<(PathBuf, Format)>, Failure> {
    let bad = |path: &Path, text: &str| Err(Failure::BadInput(format!("--out {}: {text}", path.display())));
    let by_seed = |folder: &Path| {
        let name = |i| folder.join(format!("aquatint-{}.png", seed.wrapping_add(i as u64)));
        Ok((0..count).map(|i| (name(i), Format::Png)).collect())
    };
    let Some(out) = out else { return by_seed(Path::new("")) };
    if out.is_dir() {
        return by_seed(out);
    }
    if out.as_os_str().to_string_lossy().ends_with('/') {
        return bad(out, "no such folder");
    }
    let (Some(stem), Some(extension)) = (out.file_stem(), out.extension()) else {
        return bad(
            out,
            "a file name that ends in .png, .jpg, .jpeg or .webp is needed, or a folder that exists",
        );
    };
    let (stem, extension) = (stem.to_string_lossy(), extension.to_string_lossy());
    let Some(format) = Format::from_extension(&extension) else {
        return bad(out, "a file name that ends in .png, .jpg, .jpeg or .webp is needed");
    };
    if out.parent().is_some_and(|folder| folder != Path::new("") && !folder.is_dir()) {
        return bad(out, "its folder does not exist");
    }
    if count == 1 {
        return Ok(vec![(out.to_owned(), format)]);
    }
    Ok((0..count).map(|i| (out.with_file_name(format!("{stem}-{i}.{extension}")), format)).collect())
}

/// Hidden when standard error is not a terminal.
fn bar(template: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn progress_bar(index: usize, count: usize) -> ProgressBar {
    let bar = bar("{msg}{wide_bar} step {pos}/{len}, {eta} left", 0);
    if count > 1 {
        bar.set_message(format!("picture {}/{count} ", index + 1));
    }
    bar
}

/// A file is there whole or not at all.
fn write(picture: &Picture, path: &Path, format: Format) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Other(format!("{}: {error}", path.display()));
    let bytes = picture::encode(picture, format).map_err(|error| failed(&error))?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".part");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path)).map_err(|error| {
        let _may_not_exist = std::fs::remove_file(&partial);
        failed(&error)
    })
}

fn print_json(made: &[(&PathBuf, Picture)]) -> Result<(), Failure> {
    let images: Vec<_> = made
        .iter()
        .map(|(path, picture)| {
            let elapsed_ms = (picture.elapsed_ms * 10.0).round() / 10.0;
            json!({"path": path, "elapsed_ms": elapsed_ms, "parameters": picture.recipe})
        })
        .collect();
    print(&format!("{:#}", json!({ "images": images })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(out: Option<&str>, count: usize) -> Vec<String> {
        let targets = targets(out.map(Path::new), 7, count).unwrap();
        targets.into_iter().map(|(path, _)| path.display().to_string()).collect()
    }

    #[test]
    fn pictures_go_where_they_are_expected() {
        assert_eq!(names(None, 2), ["aquatint-7.png", "aquatint-8.png"]);
        assert_eq!(names(Some("a.png"), 1), ["a.png"]);
        assert_eq!(names(Some("a.b.jpg"), 2), ["a.b-0.jpg", "a.b-1.jpg"]);
        assert_eq!(names(Some("/tmp"), 1), ["/tmp/aquatint-7.png"]);
        assert_eq!(names(Some("/tmp/x.webp"), 2), ["/tmp/x-0.webp", "/tmp/x-1.webp"]);
        for bad in ["a.gif", "a", "/no/such/folder/a.png", "no-such-folder/", ""] {
            assert!(targets(Some(Path::new(bad)), 7, 1).is_err(), "{bad}");
        }
    }
}
