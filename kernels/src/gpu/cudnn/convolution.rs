//! Convolutions as graphs, channels last.

use super::graph::{DataType, Graph, Operation, Pointwise, Shape, Steps};

/// A convolution and what follows it: `y = x * filters + bias + residual`.
///
/// `x`: `(batch, height, width, channels)`; `filters`: `(out, kernel height, kernel width, channels)`; `residual` and `y`:
/// `(batch, out height, out width, out)`, all of one type; `bias`: `(1 or batch, out)` in f32. Sums are f32, and rounded
/// once, at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Convolution {
    /// Of `x`, `filters`, `residual` and `y`.
    pub of: DataType,
    /// Samples.
    pub batch: usize,
    /// Rows of `x`.
    pub height: usize,
    /// Columns of `x`.
    pub width: usize,
    /// Channels of `x`.
    pub channels: usize,
    /// Channels of `y`.
    pub out: usize,
    /// Rows and columns of a filter.
    pub kernel: [usize; 2],
    /// How far the filters move, down and to the right; at least 1.
    pub stride: usize,
    /// Rows of zeros above and columns of zeros to the left.
    pub before: [usize; 2],
    /// Rows of zeros below and columns of zeros to the right.
    pub after: [usize; 2],
    /// Whether a bias is added, and which.
    pub bias: Option<Bias>,
    /// Whether a residual is added.
    pub residual: bool,
}

/// Which bias a sample has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bias {
    /// All the same.
    Shared,
    /// Each its own: it has the time embedding in it.
    PerSample,
}

// What the tensors in memory are called.
pub(crate) const X: i64 = 1;
pub(crate) const FILTERS: i64 = 2;
pub(crate) const BIAS: i64 = 3;
pub(crate) const RESIDUAL: i64 = 4;
pub(crate) const Y: i64 = 5;

impl Convolution {
    /// Rows and columns of `y`.
    pub fn out_size(&self) -> [usize; 2] {
        let of = |size: usize, i: usize| {
            (size + self.before[i] + self.after[i]).saturating_sub(self.kernel[i]) / self.stride.max(1) + 1
        };
        [of(self.height, 0), of(self.width, 1)]
    }

    pub(super) fn graph(&self) -> Graph {
        let n = |n: usize| n as i64;
        let [out_height, out_width] = self.out_size();
        let y_shape = [n(self.batch), n(self.out), n(out_height), n(out_width)];
        let mut graph = Graph::default();
        let mut outside =
            |number: i64, of: DataType, shape: Shape| graph.outside(number, of, shape, channels_last(shape));
        let x = outside(X, self.of, [n(self.batch), n(self.channels), n(self.height), n(self.width)]);
        let filters = [n(self.out), n(self.channels), n(self.kernel[0]), n(self.kernel[1])];
        let filters = outside(FILTERS, self.of, filters);
        let bias = self.bias.map(|bias| {
            let samples = if bias == Bias::Shared { 1 } else { n(self.batch) };
            outside(BIAS, DataType::F32, [samples, n(self.out), 1, 1])
        });
        let residual = self.residual.then(|| outside(RESIDUAL, self.of, y_shape));
        let y = outside(Y, self.of, y_shape);

        let added: Vec<_> = bias.into_iter().chain(residual).collect();
        // The sum so far is f32 between operations; the last of them writes `y`.
        let mut sums: Vec<_> =
            added.iter().map(|_| graph.between(DataType::F32, y_shape, channels_last(y_shape))).collect();
        sums.push(y);
        let steps = Steps {
            stride: [n(self.stride); 2],
            before: self.before.map(|n| n as i64),
            after: self.after.map(|n| n as i64),
        };
        graph.add(Operation::Convolution { x, filters, y: sums[0], steps });
        for (added, sum) in added.into_iter().zip(sums.windows(2)) {
            graph.pointwise(Pointwise::Add, &[sum[0], added], sum[1]);
        }
        graph
    }
}

/// The strides of `(batch, channels, height, width)` whose channels lie side by side.
fn channels_last([_, channels, height, width]: Shape) -> Shape {
    [height * width * channels, 1, width * channels, channels]
}
