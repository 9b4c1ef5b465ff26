//! Attention as a graph, for sm_80 and newer.
//!
//! The operations, their order and types are those of `CompositeSDPANode` in cudnn-frontend 1.20: a pattern that cuDNN's
//! engines for attention look for. Source: Dao et al. 2022.

use super::graph::{DataType, Graph, Id, Operation, Pointwise, Reduction, Shape};

/// `softmax(scale q k^T + bias) v`, head by head.
///
/// `q` and `y`: `(batch, queries, heads, d)`; `k` and `v`: `(batch, keys, heads, d)`, of one half type; `bias`:
/// `(heads, queries, keys)` in f32. Scores, the softmax and sums are f32; weights are rounded before they meet the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attention {
    /// Of `q`, `k`, `v` and `y`.
    pub of: DataType,
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub d: usize,
    /// Tokens of `q`.
    pub queries: usize,
    /// Tokens of `k` and `v`.
    pub keys: usize,
    /// The bits of the scale, an f32.
    pub scale: u32,
    /// Whether a query sees only the keys at its own position and before.
    pub causal: bool,
    /// Whether a bias is added.
    pub bias: bool,
}

// What the tensors in memory are called.
pub(crate) const Q: i64 = 1;
pub(crate) const K: i64 = 2;
pub(crate) const V: i64 = 3;
pub(crate) const BIAS: i64 = 4;
pub(crate) const Y: i64 = 5;

impl Attention {
    pub(super) fn graph(&self) -> Graph {
        let n = |n: usize| n as i64;
        let (batch, heads, d, queries, keys) =
            (n(self.batch), n(self.heads), n(self.d), n(self.queries), n(self.keys));
        let mut graph = Graph::default();
        let mut tokens = |number: i64, count: i64| {
            let strides = [count * heads * d, d, heads * d, 1];
            graph.outside(number, self.of, [batch, heads, count, d], strides)
        };
        let (q, v, y) = (tokens(Q, queries), tokens(V, keys), tokens(Y, queries));
        let transposed = [keys * heads * d, d, 1, heads * d];
        let k = graph.outside(K, self.of, [batch, heads, d, keys], transposed);

        let all = [batch, heads, queries, keys];
        let product = between(&mut graph, DataType::F32, all);
        graph.add(Operation::Product { a: q, b: k, y: product });
        let scale = graph.scalar(f32::from_bits(self.scale));
        let mut scores = pointwise(&mut graph, Pointwise::Multiply, &[product, scale], all);
        if self.bias {
            let bias = [1, heads, queries, keys];
            let bias = graph.outside(BIAS, DataType::F32, bias, row_major(bias));
            scores = pointwise(&mut graph, Pointwise::Add, &[scores, bias], all);
        }
        if self.causal {
            let mut index = |axis| {
                let y = between(&mut graph, DataType::I32, all);
                graph.add(Operation::Index { axis, x: scores, y });
                y
            };
            let (query, key) = (index(2), index(3));
            let is_seen = between(&mut graph, DataType::Boolean, all);
            graph.pointwise(Pointwise::GreaterOrEqual, &[query, key], is_seen);
            let hidden = graph.scalar(f32::MIN);
            scores = pointwise(&mut graph, Pointwise::Select, &[scores, hidden, is_seen], all);
        }

        let of_a_query = [batch, heads, queries, 1];
        let largest = between(&mut graph, DataType::F32, of_a_query);
        graph.add(Operation::Reduction { by: Reduction::Maximum, x: scores, y: largest });
        let difference = pointwise(&mut graph, Pointwise::Subtract, &[scores, largest], all);
        let exponential = pointwise(&mut graph, Pointwise::Exponential, &[difference], all);
        let sum = between(&mut graph, DataType::F32, of_a_query);
        graph.add(Operation::Reduction { by: Reduction::Add, x: exponential, y: sum });
        // The softmax's statistics, which training wants: nobody reads them here, but they are part of the pattern.
        let logarithm = pointwise(&mut graph, Pointwise::Logarithm, &[sum], of_a_query);
        pointwise(&mut graph, Pointwise::Add, &[largest, logarithm], of_a_query);
        let weights = between(&mut graph, self.of, all);
        graph.pointwise(Pointwise::Divide, &[exponential, sum], weights);
        graph.add(Operation::Product { a: weights, b: v, y });
        graph
    }
}

fn row_major([_, b, c, d]: Shape) -> Shape {
    [b * c * d, c * d, d, 1]
}

fn between(graph: &mut Graph, of: DataType, shape: Shape) -> Id {
    graph.between(of, shape, row_major(shape))
}

fn pointwise(graph: &mut Graph, mode: Pointwise, from: &[Id], shape: Shape) -> Id {
    let y = between(graph, DataType::F32, shape);
    graph.pointwise(mode, from, y);
    y
}
