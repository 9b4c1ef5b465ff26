//! What graphs mean, in f64: tests compare it with the ops' definitions, as there may be no cuDNN and no GPU.

use std::collections::HashMap;

use super::graph::{Graph, Id, Operation, Place, Pointwise, Reduction, Shape};

/// The values of a tensor, row by row of its shape.
#[derive(Clone)]
struct Values {
    shape: Shape,
    values: Vec<f64>,
}

fn indices(shape: Shape) -> impl Iterator<Item = Shape> {
    let [a, b, c, d] = shape;
    (0..a).flat_map(move |i| {
        (0..b).flat_map(move |j| (0..c).flat_map(move |k| (0..d).map(move |l| [i, j, k, l])))
    })
}

fn offset(index: Shape, strides: Shape) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum::<i64>() as usize
}

impl Values {
    fn new(shape: Shape, value: impl Fn(Shape) -> f64) -> Self {
        Self { shape, values: indices(shape).map(value).collect() }
    }

    /// What has one element on a dimension has it everywhere; outside of the others there are zeros.
    fn at(&self, index: Shape) -> f64 {
        let mut place = 0;
        for (i, n) in index.into_iter().zip(self.shape) {
            let i = if n == 1 { 0 } else { i };
            if i < 0 || i >= n {
                return 0.0;
            }
            place = place * n + i;
        }
        self.values[place as usize]
    }
}

/// Computes a graph on memory, elements by the number of their tensor; results are written there too.
pub(super) fn evaluate(graph: &Graph, memory: &mut HashMap<i64, Vec<f64>>) {
    let mut values: Vec<Option<Values>> = graph
        .tensors
        .iter()
        .map(|t| match t.place {
            Place::Outside(number) => {
                let elements = memory.get(&number)?;
                Some(Values::new(t.shape, |index| elements[offset(index, t.strides)]))
            }
            Place::Scalar(value) => Some(Values::new(t.shape, |_| f64::from(value))),
            Place::Between => None,
        })
        .collect();
    for operation in &graph.operations {
        let of = |id: &Id| values[id.0].as_ref().expect("an operation comes behind what it reads");
        let shape = |id: &Id| graph.tensors[id.0].shape;
        let (y, result) = match operation {
            Operation::Convolution { x, filters, y, steps } => {
                let (x, w) = (of(x), of(filters));
                assert_eq!(x.shape[1], w.shape[1]);
                let sum = |[sample, out, row, column]: Shape| {
                    indices([1, w.shape[1], w.shape[2], w.shape[3]])
                        .map(|[_, channel, i, j]| {
                            let at = [row * steps.stride[0] + i, column * steps.stride[1] + j];
                            let [row, column] = [at[0] - steps.before[0], at[1] - steps.before[1]];
                            let inside = (0..x.shape[2]).contains(&row) && (0..x.shape[3]).contains(&column);
                            let x = if inside { x.at([sample, channel, row, column]) } else { 0.0 };
                            x * w.at([out, channel, i, j])
                        })
                        .sum()
                };
                for axis in [0, 1] {
                    let size = x.shape[axis + 2] + steps.before[axis] + steps.after[axis];
                    let steps = (size - w.shape[axis + 2]) / steps.stride[axis];
                    assert_eq!(shape(y)[axis + 2], steps + 1);
                }
                (y, Values::new(shape(y), sum))
            }
            Operation::Product { a, b, y } => {
                let (a, b) = (of(a), of(b));
                assert_eq!(a.shape[3], b.shape[2]);
                let sum = |[i, j, row, column]: Shape| {
                    (0..a.shape[3]).map(|n| a.at([i, j, row, n]) * b.at([i, j, n, column])).sum()
                };
                (y, Values::new(shape(y), sum))
            }
            Operation::Reduction { by, x, y } => {
                let x = of(x);
                assert_eq!((shape(y)[3], &shape(y)[..3]), (1, &x.shape[..3]));
                let reduce = |[i, j, k, _]: Shape| {
                    let row = (0..x.shape[3]).map(|l| x.at([i, j, k, l]));
                    match by {
                        Reduction::Add => row.sum(),
                        Reduction::Maximum => row.fold(f64::NEG_INFINITY, f64::max),
                    }
                };
                (y, Values::new(shape(y), reduce))
            }
            Operation::Pointwise { mode, from, y } => {
                let of = |n: usize| of(&from[n]);
                let compute = |index: Shape| {
                    let x = of(0).at(index);
                    let b = || of(1).at(index);
                    match mode {
                        Pointwise::Add => x + b(),
                        Pointwise::Multiply => x * b(),
                        Pointwise::Divide => x / b(),
                        Pointwise::Subtract => x - b(),
                        Pointwise::Exponential => x.exp(),
                        Pointwise::Logarithm => x.ln(),
                        Pointwise::GreaterOrEqual => f64::from(u8::from(x >= b())),
                        Pointwise::Select => {
                            if of(2).at(index) != 0.0 {
                                x
                            } else {
                                b()
                            }
                        }
                    }
                };
                (y, Values::new(shape(y), compute))
            }
            Operation::Index { axis, x, y } => {
                assert_eq!(of(x).shape, shape(y));
                (y, Values::new(shape(y), |index| index[*axis as usize] as f64))
            }
        };
        let tensor = &graph.tensors[y.0];
        if let Place::Outside(number) = tensor.place {
            let size = tensor.shape.iter().product::<i64>() as usize;
            let elements = memory.entry(number).or_insert_with(|| vec![f64::NAN; size]);
            for (index, value) in indices(tensor.shape).zip(&result.values) {
                elements[offset(index, tensor.strides)] = *value;
            }
        }
        values[y.0] = Some(result);
    }
}
