//! Picture files: PNG, JPEG and WebP out and in.

use std::io::Cursor;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::ValueEnum;
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ImageDecoder, ImageEncoder, ImageReader, Limits, Rgb, RgbImage};

use crate::engine::Picture;
use crate::engine::recipe::Recipe;

/// The longest side of a picture that is read or made, in pixels.
pub const MAX_SIDE_PX: u32 = 4096;
/// Pixels of the largest picture as RGBA with 16 bits, the widest format that is decoded.
const MAX_DECODED_BYTES: u64 = MAX_SIDE_PX as u64 * MAX_SIDE_PX as u64 * 8;
/// Bytes that reading a file's texts may take; its pixels are left out.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// JPEG's usual compromise.
pub const JPEG_QUALITY: u8 = 90;

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lossless, and the only one that carries the recipe.
    Png,
    /// Quality 90.
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    /// By a file name's extension.
    pub fn from_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::WebP),
            _ => None,
        }
    }

    /// The content type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }
}

/// How small PNGs are made, at the cost of time. The pixels are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PngCompression {
    /// Not at all.
    None,
    /// In one pass with a fixed code.
    Fast,
    /// As most programs do.
    Balanced,
    /// As small as it gets.
    High,
}

/// Of the whole program, as its settings say.
static PNG_COMPRESSION: AtomicU8 = AtomicU8::new(PngCompression::Fast as u8);

/// Sets how small PNGs are made from now on; without it, [`PngCompression::Fast`].
pub fn use_png_compression(compression: PngCompression) {
    PNG_COMPRESSION.store(compression as u8, Ordering::Relaxed);
}

fn png_compression() -> png::Compression {
    let chosen = PNG_COMPRESSION.load(Ordering::Relaxed);
    match PngCompression::value_variants().iter().find(|variant| **variant as u8 == chosen) {
        Some(PngCompression::None) => png::Compression::NoCompression,
        Some(PngCompression::Balanced) => png::Compression::Balanced,
        Some(PngCompression::High) => png::Compression::High,
        // Its Fast tries every filter on every row: five times as long for files 5 % smaller.
        Some(PngCompression::Fast) | None => png::Compression::Fastest,
    }
}

/// Why a picture could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// It is larger than is accepted.
    #[error("is {width}x{height} pixels; sides of at most {MAX_SIDE_PX} are accepted")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// It is no picture, or a damaged one.
    #[error("is no readable PNG, JPEG or WebP picture ({0})")]
    Unreadable(String),
    /// The encoder refused it.
    #[error("could not be encoded: {0}")]
    Unwritable(String),
}

/// A picture's file. PNG carries the recipe in the text chunks `parameters`, as the Stable Diffusion web UI writes
/// it, and `aquatint`, as JSON.
pub fn encode(picture: &Picture, format: Format) -> Result<Vec<u8>, PictureError> {
    let mut bytes = Vec::new();
    match format {
        Format::Png => write_png(&picture.image, Some(&picture.recipe), &mut bytes).map_err(unwritable)?,
        other => return encode_plain(&picture.image, other, JPEG_QUALITY),
    }
    Ok(bytes)
}

/// A picture's file without a recipe; `jpeg_quality` is from 1 to 100.
pub fn encode_plain(image: &RgbImage, format: Format, jpeg_quality: u8) -> Result<Vec<u8>, PictureError> {
    let mut bytes = Vec::new();
    let (width, height, colour) = (image.width(), image.height(), image::ExtendedColorType::Rgb8);
    match format {
        Format::Png => write_png(image, None, &mut bytes).map_err(unwritable)?,
        Format::Jpeg => write_jpeg(image, jpeg_quality, &mut bytes)?,
        Format::WebP => WebPEncoder::new_lossless(&mut bytes)
            .write_image(image, width, height, colour)
            .map_err(unwritable)?,
    }
    Ok(bytes)
}

fn unwritable(error: impl std::fmt::Display) -> PictureError {
    PictureError::Unwritable(error.to_string())
}

/// With colours at full resolution. Not by the `image` crate, whose encoder takes several times as long.
fn write_jpeg(image: &RgbImage, quality: u8, into: &mut Vec<u8>) -> Result<(), PictureError> {
    let side = |pixels: u32| u16::try_from(pixels).map_err(unwritable);
    let (width, height) = (side(image.width())?, side(image.height())?);
    let mut encoder = jpeg_encoder::Encoder::new(into, quality);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.encode(image, width, height, jpeg_encoder::ColorType::Rgb).map_err(unwritable)
}

fn write_png(
    image: &RgbImage,
    recipe: Option<&Recipe>,
    into: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(into, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png_compression());
    let texts = match recipe {
        Some(recipe) => {
            let json = serde_json::to_string(recipe).map_err(std::io::Error::from)?;
            vec![("parameters", recipe.parameters()), ("aquatint", json)]
        }
        None => Vec::new(),
    };
    for (keyword, text) in texts {
        // tEXt is Latin-1; readers of the web UI's pictures look in both.
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(keyword.into(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.into(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()
}

/// Reads a picture, turned as its EXIF data says. The size is checked before a pixel is decoded.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, PictureError> {
    let unreadable = |e: &dyn std::fmt::Display| PictureError::Unreadable(e.to_string());
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| unreadable(&e))?;
    let mut decoder = reader.into_decoder().map_err(|e| unreadable(&e))?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE_PX || height > MAX_SIDE_PX {
        return Err(PictureError::TooLarge { width, height });
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    decoder.set_limits(limits).map_err(|e| unreadable(&e))?;
    let orientation = decoder.orientation().map_err(|e| unreadable(&e))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| unreadable(&e))?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// The texts in a picture's file by their keywords: of a PNG's text chunks; other formats have none here.
pub fn texts(bytes: &[u8]) -> Result<Vec<(String, String)>, PictureError> {
    let unreadable = |e: &dyn std::fmt::Display| PictureError::Unreadable(e.to_string());
    let format = image::guess_format(bytes).map_err(|e| unreadable(&e))?;
    if format != image::ImageFormat::Png {
        decode(bytes)?;
        return Ok(Vec::new());
    }
    let limits = png::Limits { bytes: MAX_TEXT_BYTES };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    reader.set_ignore_text_chunk(false);
    let mut reader = reader.read_info().map_err(|e| unreadable(&e))?;
    // Texts may come after the pixels.
    reader.finish().map_err(|e| unreadable(&e))?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    let compressed = info.compressed_latin1_text.iter().map(|t| t.get_text().map(|x| (t.keyword.clone(), x)));
    let unicode = info.utf8_text.iter().map(|t| t.get_text().map(|x| (t.keyword.clone(), x)));
    let texts: Result<Vec<_>, _> = plain.map(Ok).chain(compressed).chain(unicode).collect();
    texts.map_err(|e| unreadable(&e))
}

/// The picture without transparency: what shows through is white.
pub fn on_white(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        Rgb([r, g, b].map(|c| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbaImage;

    fn file(image: DynamicImage, format: image::ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn refuses_large_pictures_before_decoding_them() {
        let wide = file(DynamicImage::new_luma8(4097, 1), image::ImageFormat::Png);
        assert!(matches!(decode(&wide), Err(PictureError::TooLarge { width: 4097, height: 1 })));
        let square = file(DynamicImage::new_luma8(8000, 8000), image::ImageFormat::Png);
        let started = std::time::Instant::now();
        assert!(matches!(decode(&square), Err(PictureError::TooLarge { .. })));
        assert!(started.elapsed().as_millis() < 20, "took {:?}", started.elapsed());
    }

    #[test]
    fn refuses_what_is_no_picture() {
        let whole = file(DynamicImage::new_rgb8(8, 8), image::ImageFormat::Png);
        for bytes in [&b""[..], b"GIF89a", b"not a picture at all", &whole[..whole.len() / 2]] {
            assert!(matches!(decode(bytes), Err(PictureError::Unreadable(_))), "{bytes:?}");
        }
        assert!(decode(&whole).is_ok());
    }

    #[test]
    fn shows_white_through_transparency() {
        let pixels = RgbaImage::from_raw(3, 1, vec![10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 51]).unwrap();
        let seen = on_white(&pixels.into());
        // alpha 51 is a fifth: 0 * 0.2 + 255 * 0.8
        assert_eq!(seen.into_raw(), [10, 20, 30, 255, 255, 255, 204, 204, 204]);
    }
}
