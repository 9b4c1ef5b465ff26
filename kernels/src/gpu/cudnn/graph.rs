//! Graphs of operations on tensors of four dimensions: what cuDNN is asked to fuse into one kernel.
//!
//! What lies between two operations has no memory. A graph is plain data: `plan.rs` tells it to cuDNN, and tests compute
//! what it means.

/// The types of elements: `CUDNN_DATA_..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// 32-bit floats.
    F32 = 0,
    /// 16-bit floats.
    F16 = 2,
    /// Indices, between operations.
    I32 = 4,
    /// bfloat16.
    BF16 = 9,
    /// What comparisons give, between operations.
    Boolean = 11,
}

/// `CUDNN_POINTWISE_..`: `x` and `b` are the first and second input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointwise {
    Add = 0,
    Multiply = 1,
    Divide = 6,
    Subtract = 9,
    Exponential = 13,
    Logarithm = 15,
    GreaterOrEqual = 303,
    /// `x` where the third input holds, else `b`.
    Select = 601,
}

/// `CUDNN_REDUCE_TENSOR_..`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    Add = 0,
    Maximum = 3,
}

pub(super) type Shape = [i64; 4];

/// One of a graph's tensors, by its place among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub(super) usize);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// In memory, whose address a run gives by this number.
    Outside(i64),
    /// Between two operations.
    Between,
    /// The same number for all elements.
    Scalar(f32),
}

#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) place: Place,
    pub(super) of: DataType,
    pub(super) shape: Shape,
    /// In elements.
    pub(super) strides: Shape,
}

/// How far a convolution's filters move, and zeros around its input, `[vertical, horizontal]` each.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub(super) stride: [i64; 2],
    pub(super) before: [i64; 2],
    pub(super) after: [i64; 2],
}

/// All arithmetic is f32, whatever the tensors' types.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// `x`: `(batch, in, height, width)`; `filters`: `(out, in, height, width)`; `y`: `(batch, out, height, width)`.
    Convolution { x: Id, filters: Id, y: Id, steps: Steps },
    /// `y = a b` on the last two dimensions.
    Product { a: Id, b: Id, y: Id },
    /// `y` has one element on the dimensions that are reduced.
    Reduction { by: Reduction, x: Id, y: Id },
    /// Element by element; what has one element on a dimension has it for all.
    Pointwise { mode: Pointwise, from: Vec<Id>, y: Id },
    /// Each element's index on an axis of `x`.
    Index { axis: i64, x: Id, y: Id },
}

/// Operations in their order, and the tensors they are on.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) tensors: Vec<Tensor>,
    pub(super) operations: Vec<Operation>,
}

impl Graph {
    fn tensor(&mut self, place: Place, of: DataType, shape: Shape, strides: Shape) -> Id {
        self.tensors.push(Tensor { place, of, shape, strides });
        Id(self.tensors.len() - 1)
    }

    /// A tensor in memory, whose address begins at a multiple of 16.
    pub(super) fn outside(&mut self, number: i64, of: DataType, shape: Shape, strides: Shape) -> Id {
        self.tensor(Place::Outside(number), of, shape, strides)
    }

    /// A tensor between two operations.
    pub(super) fn between(&mut self, of: DataType, shape: Shape, strides: Shape) -> Id {
        self.tensor(Place::Between, of, shape, strides)
    }

    /// One number.
    pub(super) fn scalar(&mut self, value: f32) -> Id {
        self.tensor(Place::Scalar(value), DataType::F32, [1; 4], [1; 4])
    }

    pub(super) fn add(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    pub(super) fn pointwise(&mut self, mode: Pointwise, from: &[Id], y: Id) {
        self.add(Operation::Pointwise { mode, from: from.to_vec(), y });
    }
}
