//! BLIP: a caption for a picture.
//!
//! [`Captioner`] is what callers use: a folder as published, a picture, its caption. It puts together
//! [`Preprocessor`] (picture to pixel values), [`Blip`] (pixel values to token ids) and [`Detokenizer`] (token ids to
//! text). All three give what transformers' `BlipProcessor` and `BlipForConditionalGeneration.generate` give.
//!
//! Paper: <https://arxiv.org/abs/2201.12086>. Weights: `Salesforce/blip-image-captioning-base` and `-large`.

mod blip;
mod config;
mod detokenizer;
mod preprocessor;

use std::path::Path;

use candle_core::{DType, Device};
use image::RgbImage;

pub use blip::Blip;
pub use config::{BlipConfig, TextConfig, VisionConfig};
pub use detokenizer::Detokenizer;
pub use preprocessor::Preprocessor;

use crate::checkpoint::ModelFolder;
use crate::{Error, Result};

/// Describes pictures in a few English words.
#[derive(Debug)]
pub struct Captioner {
    preprocessor: Preprocessor,
    blip: Blip,
    detokenizer: Detokenizer,
    device: Device,
}

impl Captioner {
    /// Loads a folder in the published layout: `config.json`, `model.safetensors`, `preprocessor_config.json`, and
    /// `tokenizer.json` or `vocab.txt`. The weights are held in f32, 1 GB for the base model.
    ///
    /// # Errors
    /// A file that is missing or malformed, weights that do not fit `config.json`, weights in a Python pickle.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(
                folder,
                "no such folder: a captioning model is a folder with a config.json",
            ));
        }
        let folder = ModelFolder::Disk(folder.to_owned());
        let config: BlipConfig = folder.json("config.json")?;
        let image_size = config.vision_config.image_size;
        config.check().map_err(|e| Error::file(folder.path("config.json"), e))?;
        let preprocessor = Preprocessor::load(&folder)?;
        preprocessor
            .check(image_size)
            .map_err(|e| Error::file(folder.path("preprocessor_config.json"), e))?;
        let detokenizer = Detokenizer::load(&folder)?;
        let blip = Blip::new(config, &folder.weights(".", Some(DType::F32), device)?)?;
        Ok(Self { preprocessor, blip, detokenizer, device: device.clone() })
    }

    /// The caption of a picture of any size, in lower case, such as `two cats sleeping on a couch`.
    ///
    /// It is the likeliest continuation token by token: the same picture always gets the same caption.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn caption(&self, picture: &RgbImage) -> Result<String> {
        let pixel_values = self.preprocessor.pixel_values(picture, &self.device)?;
        let image_embeds = self.blip.encode(&pixel_values)?;
        self.detokenizer.text(&self.blip.generate(&image_embeds)?)
    }
}
