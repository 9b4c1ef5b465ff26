//! Finished pictures in the object store: one object a job, under the job's id.
//!
//! It begins with the length of a JSON list (four bytes, big-endian) of what each picture is; that list follows, then the PNG
//! files one after another.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::broker::{self, Broker, failed};
use crate::engine::recipe::Recipe;
use crate::engine::{EngineError, Picture};
use crate::picture::{self, Format};
pub(super) use crate::queue::shared::PictureFile as File;

/// Readers may meet an object that a second worker is just putting there again.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
struct About {
    recipe: Recipe,
    elapsed_ms: f64,
    bytes: usize,
}

/// Stores a job's pictures. Doing it twice is doing it once.
pub(super) async fn store(broker: &Broker, id: &str, object: &[u8]) -> Result<(), EngineError> {
    let store = broker.results().await?;
    if broker::exists(store, id).await? {
        return Ok(());
    }
    broker::put(store, id, object).await
}

/// Whether a job's pictures are there.
pub(super) async fn exist(broker: &Broker, id: &str) -> Result<bool, EngineError> {
    broker::exists(broker.results().await?, id).await
}

/// A job's pictures.
pub(super) async fn fetch(broker: &Broker, id: &str) -> Result<Vec<File>, EngineError> {
    let mut attempt = 1;
    loop {
        let read = async { read(&broker::get(broker.results().await?, id).await?) };
        match read.await {
            Err(error) if attempt < ATTEMPTS => tracing::debug!(%error, job = id, attempt, "reading again"),
            read => return read,
        }
        tokio::time::sleep(PAUSE * attempt as u32).await;
        attempt += 1;
    }
}

/// The object of finished pictures, their PNG files made off the threads that answer requests.
pub(super) async fn encode(pictures: Vec<Picture>) -> Result<Vec<u8>, EngineError> {
    let object = tokio::task::spawn_blocking(move || write(&pictures));
    object.await.map_err(failed("finished pictures"))?
}

fn write(pictures: &[Picture]) -> Result<Vec<u8>, EngineError> {
    let encode = |picture| picture::encode(picture, Format::Png);
    let files: Vec<_> =
        pictures.iter().map(encode).collect::<Result<_, _>>().map_err(failed("a PNG file"))?;
    let about = pictures.iter().zip(&files).map(|(picture, file)| About {
        recipe: picture.recipe.clone(),
        elapsed_ms: picture.elapsed_ms,
        bytes: file.len(),
    });
    let about = serde_json::to_vec(&about.collect::<Vec<_>>()).map_err(failed("recipes"))?;
    let length = u32::try_from(about.len()).map_err(failed("recipes"))?;
    let mut object = Vec::with_capacity(4 + about.len() + files.iter().map(Vec::len).sum::<usize>());
    object.extend(length.to_be_bytes());
    object.extend(about);
    files.iter().for_each(|file| object.extend(file));
    Ok(object)
}

fn read(object: &[u8]) -> Result<Vec<File>, EngineError> {
    let short = || EngineError::Failed("NATS: the finished pictures are incomplete".into());
    let (length, rest) = object.split_first_chunk::<4>().ok_or_else(short)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (about, mut rest) = rest.split_at_checked(length).ok_or_else(short)?;
    let about: Vec<About> = serde_json::from_slice(about).map_err(failed("recipes"))?;
    let mut files = Vec::with_capacity(about.len());
    for About { recipe, elapsed_ms, bytes } in about {
        let (png, others) = rest.split_at_checked(bytes).ok_or_else(short)?;
        files.push(File { png: png.to_vec(), recipe, elapsed_ms });
        rest = others;
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Family, GenerationRequest, ModelInfo, Preset};

    #[test]
    fn pictures_are_the_same_after_a_journey() {
        let info = ModelInfo {
            name: "m".into(),
            family: Family::Sdxl,
            native_size_px: 64,
            multiple_px: 8,
            num_inference_steps: 4,
            guidance_scale: 1.5,
            scheduler: "Euler".into(),
            device: "cpu".into(),
            needs_mask: false,
            edits_pictures: false,
            memory: None,
            fallback_for: Some("other".into()),
            random_weights: true,
            preset: Some(Preset::LCM),
        };
        let mut request = GenerationRequest::new("a \"b\"", 3);
        request.true_cfg_scale = Some(2.5);
        let made = |value: u8| {
            let image = image::RgbImage::from_pixel(9, 5, image::Rgb([value, 1, 2]));
            Picture { image, recipe: Recipe::new(&request, (9, 5), &info, &[]), elapsed_ms: 1.25 }
        };
        let pictures = [made(1), made(200)];
        let object = write(&pictures).unwrap();
        let files = read(&object).unwrap();
        for (file, picture) in files.iter().zip(&pictures) {
            assert_eq!((&file.recipe, file.elapsed_ms), (&picture.recipe, picture.elapsed_ms));
            assert_eq!(picture::decode(&file.png).unwrap().to_rgb8(), picture.image);
        }
        assert_eq!(files.len(), 2);
        for cut in [0, 3, 10, object.len() - 1] {
            assert!(read(&object[..cut]).is_err(), "{cut}");
        }
    }
}
