//! Pictures and masks as the VAE and the denoiser take them, and back.
//!
//! Source: `VaeImageProcessor` of diffusers and `StableDiffusionInpaintPipeline.prepare_mask_latents`.

use aquatint_kernels::{rgb8, upsample_nearest};
use candle_core::{Device, Tensor};
use image::{GrayImage, RgbImage};

use crate::resample::{self, Filter};
use crate::{Error, Result};

/// `(1, height, width, 3)` in -1..1.
pub fn from_picture(picture: &RgbImage, device: &Device) -> Result<Tensor> {
    let (width, height) = size(picture.dimensions());
    let values = picture.as_raw().iter().map(|&v| 2.0 * (f32::from(v) / 255.0) - 1.0).collect();
    Ok(Tensor::from_vec::<_, f32>(values, (1, height, width, 3), device)?)
}

/// The pictures of `(batch, height, width, 3)` in -1..1; values beyond are clamped.
pub fn to_pictures(images: &Tensor) -> Result<Vec<RgbImage>> {
    let (batch, height, width, channels) = images.dims4()?;
    let refused =
        || Error::invalid(format!("a tensor of {:?} is no picture: 3 channels are allowed", images.dims()));
    if channels != 3 {
        return Err(refused());
    }
    let picture = |i: usize| {
        let bytes = rgb8(&images.get(i)?)?;
        RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(refused)
    };
    (0..batch).map(picture).collect()
}

/// The picture at another size, as Pillow's Lanczos filter makes it; the proportions are not kept.
///
/// # Errors
/// A side of 0.
pub fn resize(picture: &RgbImage, width: usize, height: usize) -> Result<RgbImage> {
    let bytes = resized(picture.as_raw(), 3, size(picture.dimensions()), (width, height))?;
    RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| refused(width, height))
}

/// The mask at another size, through the same filter: its edges turn grey.
///
/// # Errors
/// A side of 0.
pub fn resize_mask(mask: &GrayImage, width: usize, height: usize) -> Result<GrayImage> {
    let bytes = resized(mask.as_raw(), 1, size(mask.dimensions()), (width, height))?;
    GrayImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| refused(width, height))
}

/// `(1, height, width, 1)`: 1 where the mask is at least half white and is repainted, 0 where the picture is kept.
pub fn from_mask(mask: &GrayImage, device: &Device) -> Result<Tensor> {
    let (width, height) = size(mask.dimensions());
    let values = mask.as_raw().iter().map(|&v| if v >= 128 { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec::<_, f32>(values, (1, height, width, 1), device)?)
}

/// The mask on the latents' grid, each taking its upper left pixel: `(1, height / downscale, width / downscale, 1)`.
pub fn mask_to_latents(mask: &Tensor, downscale: usize) -> Result<Tensor> {
    let (_, height, width, _) = mask.dims4()?;
    if downscale == 0 || height < downscale || width < downscale {
        return Err(Error::invalid(format!("a mask of {height} x {width} is smaller than one latent")));
    }
    Ok(upsample_nearest(mask, height / downscale, width / downscale)?)
}

/// The picture with what is repainted set to 0, a middle grey: what inpainting UNets see of it.
///
/// `image`: `(batch, height, width, 3)` in -1..1; `mask`: `(1, height, width, 1)` of 0 and 1.
pub fn masked_image(image: &Tensor, mask: &Tensor) -> Result<Tensor> {
    Ok(image.broadcast_mul(&mask.affine(-1.0, 1.0)?)?)
}

fn size((width, height): (u32, u32)) -> (usize, usize) {
    (width as usize, height as usize)
}

fn resized(bytes: &[u8], channels: usize, from: (usize, usize), to: (usize, usize)) -> Result<Vec<u8>> {
    if [from.0, from.1, to.0, to.1].contains(&0) {
        return Err(Error::invalid(format!(
            "a picture of {from:?} cannot be resized to {to:?}: at least 1 x 1"
        )));
    }
    if to.0.max(to.1) > MAX_SIDE_PX {
        return Err(refused(to.0, to.1));
    }
    Ok(resample::resize(bytes, channels, from, to, Filter::Lanczos))
}

/// No model makes larger pictures, and larger sizes would overflow.
const MAX_SIDE_PX: usize = 1 << 15;

fn refused(width: usize, height: usize) -> Error {
    Error::invalid(format!("a picture cannot be resized to {width} x {height}: sides of 1 to {MAX_SIDE_PX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_way_to_a_tensor_and_back() {
        let picture =
            RgbImage::from_fn(16, 16, |x, y| image::Rgb([(16 * y + x) as u8, 255 - x as u8, y as u8]));
        let tensor = from_picture(&picture, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 16, 16, 3]);
        assert_eq!(to_pictures(&tensor).unwrap(), [picture]);
    }

    #[test]
    fn sizes_that_cannot_be_are_errors() {
        assert!(resize(&RgbImage::new(0, 4), 8, 8).is_err());
        assert!(resize(&RgbImage::new(4, 4), 0, 8).is_err());
        assert!(resize_mask(&GrayImage::new(4, 4), 8, usize::MAX).is_err());
        assert!(
            to_pictures(&Tensor::zeros((1, 2, 2, 4), candle_core::DType::F32, &Device::Cpu).unwrap())
                .is_err()
        );
    }
}
