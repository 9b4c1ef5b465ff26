//! `preprocessor_config.json`: a picture as the pixel values that BLIP sees.
//!
//! Source: `BlipImageProcessor` of transformers, the one that resizes through Pillow.

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::Deserialize;

use crate::checkpoint::ModelFolder;
use crate::resample::{self, Filter};
use crate::{Error, Result};

/// How a picture becomes pixel values.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Preprocessor {
    size: Size,
    resample: u32,
    rescale_factor: f64,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
}

/// Older files say `384`, newer ones name both sides.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Sides { height: usize, width: usize },
}

/// `PIL.Image.Resampling.BICUBIC`.
const BICUBIC: u32 = 3;

impl Default for Preprocessor {
    fn default() -> Self {
        Self {
            size: Size::Side(384),
            resample: BICUBIC,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
        }
    }
}

impl Preprocessor {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn load(folder: &ModelFolder) -> Result<Self> {
        folder.json("preprocessor_config.json")
    }

    /// Refuses what does not lead to pictures of `image_size`, the model's.
    ///
    /// # Errors
    /// The text names the field, its value and what is allowed.
    pub fn check(&self, image_size: usize) -> std::result::Result<(), String> {
        let (width, height) = self.sides();
        if (width, height) != (image_size, image_size) {
            return Err(format!("size is {width} x {height}, the model's image_size is {image_size}"));
        }
        if self.resample != BICUBIC {
            return Err(format!("resample is {}: only {BICUBIC}, bicubic, is known", self.resample));
        }
        for (name, on) in [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ] {
            if !on {
                return Err(format!("{name} is false: only true is known"));
            }
        }
        Ok(())
    }

    /// The picture at the model's size, whatever its proportions: `(1, 3, image_size, image_size)`, of mean 0 and
    /// deviation 1 over natural pictures.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn pixel_values(&self, picture: &RgbImage, device: &Device) -> Result<Tensor> {
        let from = (picture.width() as usize, picture.height() as usize);
        if from.0 == 0 || from.1 == 0 {
            return Err(Error::invalid(format!(
                "a picture of {from:?} pixels has no caption: at least 1 x 1"
            )));
        }
        let (width, height) = self.sides();
        let bytes = resample::resize(picture.as_raw(), 3, from, (width, height), Filter::Bicubic);
        let mut values = Vec::with_capacity(bytes.len());
        for (c, (mean, std)) in self.image_mean.iter().zip(self.image_std).enumerate() {
            // As numpy does it: rescaled in f64, rounded to f32, normalised in f32.
            let value = |&v: &u8| ((f64::from(v) * self.rescale_factor) as f32 - mean) / std;
            values.extend(bytes.iter().skip(c).step_by(3).map(value));
        }
        Ok(Tensor::from_vec(values, (1, 3, height, width), device)?)
    }

    fn sides(&self) -> (usize, usize) {
        match self.size {
            Size::Side(side) => (side, side),
            Size::Sides { height, width } => (width, height),
        }
    }
}
