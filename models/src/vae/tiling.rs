//! Encoding and decoding in overlapping tiles with blended seams: memory is bounded by the tile, not by the picture.
//!
//! A tile sees its own pixels only, in its normalisations and its attention too, so the result differs a little from
//! that of the whole picture. Source: `AutoencoderKL.enable_tiling` of diffusers, with its overlap of a quarter.

use candle_core::Tensor;

use super::{AutoencoderKl, DiagonalGaussian};
use crate::{Error, Result};

const HEIGHT: usize = 1;
const WIDTH: usize = 2;

impl AutoencoderKl {
    /// [`AutoencoderKl::decode`] in tiles of `tile_px` pixels a side.
    ///
    /// # Errors
    /// A `tile_px` that is no multiple of four times [`AutoencoderKl::downscale`]: the quarter that tiles overlap by
    /// must be whole latents. [`super::AutoencoderKlConfig::tile_px`] is diffusers' choice.
    pub fn decode_tiled(&self, latents: &Tensor, tile_px: usize) -> Result<Tensor> {
        let tile = self.tile_in_latents(tile_px)?;
        let (_, height, width, _) = latents.dims4()?;
        if height <= tile && width <= tile {
            return self.decode(latents);
        }
        tiled(latents, tile, tile_px, |t| self.decode(t))
    }

    /// [`AutoencoderKl::encode`] in tiles of `tile_px` pixels a side.
    ///
    /// # Errors
    /// As [`AutoencoderKl::decode_tiled`]; and sides of the picture that are no multiples of the downscale.
    pub fn encode_tiled(&self, image: &Tensor, tile_px: usize) -> Result<DiagonalGaussian> {
        let tile = self.tile_in_latents(tile_px)?;
        let (_, height, width, _) = image.dims4()?;
        if height <= tile_px && width <= tile_px {
            return self.encode(image);
        }
        let unit = self.downscale();
        if !height.is_multiple_of(unit) || !width.is_multiple_of(unit) {
            return Err(Error::invalid(format!(
                "a picture of {height} x {width} pixels cannot be encoded in tiles: multiples of {unit} are allowed"
            )));
        }
        DiagonalGaussian::from_moments(&tiled(image, tile_px, tile, |t| self.moments(t))?)
    }

    fn tile_in_latents(&self, tile_px: usize) -> Result<usize> {
        let unit = 4 * self.downscale();
        if tile_px == 0 || !tile_px.is_multiple_of(unit) {
            return Err(Error::invalid(format!(
                "a tile of {tile_px} pixels: multiples of {unit} are allowed"
            )));
        }
        Ok(tile_px / self.downscale())
    }
}

/// Runs `f` over tiles of `from` rows and columns of `x`, each of which gives `to` rows and columns, and joins them.
///
/// Only what later tiles blend with is kept: the lower edges of the row above, and the right edge of the tile before.
fn tiled(x: &Tensor, from: usize, to: usize, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    let (stride, overlap) = (from - from / 4, to / 4);
    let mut rows = Vec::new();
    let mut above: Vec<Tensor> = Vec::new();
    for y in (0..height).step_by(stride) {
        let (mut row, mut lower_edges) = (Vec::new(), Vec::new());
        let mut before = None;
        let x = x.narrow(HEIGHT, y, from.min(height - y))?;
        for (i, left) in (0..width).step_by(stride).enumerate() {
            let mut tile = f(&x.narrow(WIDTH, left, from.min(width - left))?.contiguous()?)?;
            if let Some(above) = above.get(i) {
                tile = blend(above, &tile, HEIGHT)?;
            }
            if let Some(before) = &before {
                tile = blend(before, &tile, WIDTH)?;
            }
            lower_edges.push(end(&tile, HEIGHT, overlap)?);
            before = Some(end(&tile, WIDTH, overlap)?);
            let (_, h, w, _) = tile.dims4()?;
            let kept = tile.narrow(HEIGHT, 0, h.min(to - overlap))?.narrow(WIDTH, 0, w.min(to - overlap))?;
            // A copy: a view would keep the whole tile alive.
            row.push(kept.force_contiguous()?);
        }
        rows.push(Tensor::cat(&row, WIDTH)?);
        above = lower_edges;
    }
    Ok(Tensor::cat(&rows, HEIGHT)?)
}

/// A copy of the last `length` rows or columns.
fn end(x: &Tensor, dim: usize, length: usize) -> Result<Tensor> {
    let size = x.dim(dim)?;
    let length = length.min(size);
    Ok(x.narrow(dim, size - length, length)?.force_contiguous()?)
}

/// `b`, faded in over the end of `a` that it overlaps.
fn blend(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let size = b.dim(dim)?;
    let length = a.dim(dim)?.min(size);
    let a = a.narrow(dim, a.dim(dim)? - length, length)?;
    let weights: Vec<f32> = (0..length).map(|i| i as f32 / length as f32).collect();
    let mut shape = [1; 4];
    shape[dim] = length;
    let weights = Tensor::from_vec(weights, &shape, b.device())?;
    let seam = (a.broadcast_mul(&weights.affine(-1.0, 1.0)?)?
        + b.narrow(dim, 0, length)?.broadcast_mul(&weights)?)?;
    Ok(Tensor::cat(&[&seam, &b.narrow(dim, length, size - length)?], dim)?)
}
