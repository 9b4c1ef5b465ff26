//! Positions of tokens, and by how much each turns the queries' and keys' channels.
//!
//! A position has three axes: which picture (0; 1 for Kontext's references), row and column, in tokens. Text tokens
//! stand at 0 on all of them. Source: `FluxPosEmbed` of diffusers; Su et al. 2021.

use aquatint_kernels::Rotation;
use candle_core::Device;

use crate::Result;

const THETA: f64 = 10_000.0;

/// The shape of a sequence: text, then the picture, then its references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Positions {
    /// Text tokens.
    pub(super) text: usize,
    /// Rows and columns of the picture in tokens.
    pub(super) picture: (usize, usize),
    /// The same of each reference.
    pub(super) references: Vec<(usize, usize)>,
}

impl Positions {
    /// Positions in the sequence's order.
    fn each(&self) -> impl Iterator<Item = [usize; 3]> + '_ {
        let text = std::iter::repeat_n([0; 3], self.text);
        let pictures =
            std::iter::once((0, self.picture)).chain(self.references.iter().map(|&size| (1, size)));
        text.chain(pictures.flat_map(|(which, (rows, columns))| {
            (0..rows).flat_map(move |y| (0..columns).map(move |x| [which, y, x]))
        }))
    }

    /// The angles of all tokens; `axes`: the channels that each axis turns.
    pub(super) fn rotation(&self, axes: &[usize], device: &Device) -> Result<Rotation> {
        let frequencies = |&channels: &usize| {
            (0..channels / 2).map(move |i| 1.0 / THETA.powf((2 * i) as f64 / channels as f64)).collect()
        };
        let frequencies: Vec<Vec<f64>> = axes.iter().map(frequencies).collect();
        let mut angles = Vec::new();
        for position in self.each() {
            for (frequencies, at) in frequencies.iter().zip(position) {
                angles.extend(frequencies.iter().map(|f| f * at as f64));
            }
        }
        let pairs = axes.iter().map(|channels| channels / 2).sum();
        Ok(Rotation::new(&angles, pairs, device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_then_rows_then_references() {
        let positions = Positions { text: 2, picture: (2, 3), references: vec![(1, 2)] };
        let expected =
            [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]];
        let expected: Vec<_> = expected.into_iter().chain([[1, 0, 0], [1, 0, 1]]).collect();
        assert_eq!(positions.each().collect::<Vec<_>>(), expected);
        assert_eq!(positions.rotation(&[2, 4, 6], &Device::Cpu).unwrap().tokens(), expected.len());
    }
}
