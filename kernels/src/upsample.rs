//! Nearest-neighbour resizing of channels-last features.

use candle_core::{Result, Tensor};

/// `x`: `(batch, height, width, channels)`; returns `(batch, to_height, to_width, channels)`, where output row `y`
/// copies input row `floor(y * height / to_height)`, as `torch.nn.functional.interpolate(mode="nearest")` does.
pub fn upsample_nearest(x: &Tensor, to_height: usize, to_width: usize) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    let index = |from: usize, to: usize| {
        let i: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
        Tensor::from_vec(i, to, x.device())
    };
    x.contiguous()?.index_select(&index(h, to_height)?, 1)?.index_select(&index(w, to_width)?, 2)
}
