//! Latents as tokens: each 2x2 square of a channels-last picture is a token, whose channels are the picture's with the
//! square's four values beside each other. Source: `_pack_latents` of diffusers' FLUX pipelines.

use candle_core::Tensor;

use crate::{Error, Result};

/// `(batch, height, width, channels)` to `(batch, height / 2 * width / 2, 4 channels)`, and rows and columns in tokens.
/// `what` names the latents in the error that odd or empty sizes are.
pub(super) fn pack(x: &Tensor, what: &str) -> Result<(Tensor, (usize, usize))> {
    let (batch, height, width, channels) = x
        .dims4()
        .map_err(|_| Error::invalid(format!("{what}: {:?}, four dimensions are needed", x.dims())))?;
    if height % 2 != 0 || width % 2 != 0 || height == 0 || width == 0 {
        return Err(Error::invalid(format!("{what}: {height}x{width}, both sides must be even")));
    }
    let (rows, columns) = (height / 2, width / 2);
    let x = x.reshape(&[batch, rows, 2, columns, 2, channels][..])?.permute(&[0, 1, 3, 5, 2, 4][..])?;
    Ok((x.reshape((batch, rows * columns, 4 * channels))?, (rows, columns)))
}

/// The inverse of [`pack`].
pub(super) fn unpack(x: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    let channels = channels / 4;
    let x = x.reshape(&[batch, rows, columns, channels, 2, 2][..])?.permute(&[0, 1, 4, 2, 5, 3][..])?;
    Ok(x.reshape((batch, 2 * rows, 2 * columns, channels))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn unpacking_undoes_packing() {
        let x =
            Tensor::arange(0f32, 2.0 * 4.0 * 6.0 * 3.0, &Device::Cpu).unwrap().reshape((2, 4, 6, 3)).unwrap();
        let (packed, size) = pack(&x, "latents").unwrap();
        assert_eq!((packed.dims(), size), (&[2, 6, 12][..], (2, 3)));
        // The second token's second channel: column 2 of row 0, then 3, then row 1.
        let token = packed.narrow(0, 0, 1).unwrap().narrow(1, 1, 1).unwrap().narrow(2, 4, 4).unwrap();
        assert_eq!(token.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [7.0, 10.0, 25.0, 28.0]);
        let back = unpack(&packed, size).unwrap();
        assert_eq!(
            back.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
    }

    #[test]
    fn odd_sizes_are_refused() {
        let x = Tensor::zeros((1, 4, 5, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(
            pack(&x, "latents").unwrap_err().to_string().contains("latents: 4x5, both sides must be even")
        );
        assert!(pack(&x.squeeze(0).unwrap(), "latents").is_err());
    }
}
