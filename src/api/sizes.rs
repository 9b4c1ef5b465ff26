//! Picture sizes by aspect ratio.

use crate::engine::ModelInfo;

/// `(width, height)` in pixels.
pub type Size = (u32, u32);

/// `(ratio, standard, high)`, sorted as Python sorts the names.
const SIZES: [(&str, Size, Size); 11] = [
    ("16:9", (896, 512), (1024, 576)),
    ("1:1", (640, 640), (1024, 1024)),
    ("21:9", (960, 416), (1024, 432)),
    ("2:3", (512, 768), (680, 1024)),
    ("3:2", (768, 512), (1024, 680)),
    ("3:4", (576, 768), (768, 1024)),
    ("4:3", (768, 576), (1024, 768)),
    ("4:5", (512, 640), (816, 1024)),
    ("5:4", (640, 512), (1024, 816)),
    ("9:16", (512, 896), (576, 1024)),
    ("Auto", (640, 640), (1024, 1024)),
];

/// Below this native size the table is far beyond what a model has learned.
const SCALED_BELOW_PX: usize = 512;

/// The names of the aspect ratios, sorted.
pub fn ratios() -> impl Iterator<Item = &'static str> {
    SIZES.iter().map(|(name, ..)| *name)
}

/// The table's size for a ratio; `None` for a ratio that is not in it.
pub fn size(ratio: &str, high: bool) -> Option<Size> {
    let (_, standard, large) = SIZES.iter().find(|(name, ..)| *name == ratio)?;
    Some(if high { *large } else { *standard })
}

/// Whether a model gets its own sizes instead of the table's.
pub fn is_scaled(model: &ModelInfo) -> bool {
    model.native_size_px < SCALED_BELOW_PX
}

/// The size as this model makes it: a small model keeps the ratio at the number of pixels it was trained on, in
/// multiples of 8.
pub fn for_model((width, height): Size, model: &ModelInfo) -> Size {
    if !is_scaled(model) {
        return (width, height);
    }
    let multiple = model.multiple_px.max(8) as f64;
    let pixels = f64::from(width) * f64::from(height);
    let scale = model.native_size_px as f64 / pixels.sqrt();
    let side = |px: u32| ((f64::from(px) * scale / multiple).round().max(1.0) * multiple) as u32;
    (side(width), side(height))
}
