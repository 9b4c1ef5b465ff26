//! Plans: what cuDNN makes of a graph, to be run as often as wanted.
//!
//! Source: "cuDNN Backend API" of NVIDIA's documentation. cudnn-frontend, a C++ library of headers, calls the same
//! functions; without it a build needs no header and no library of NVIDIA's for this.

use std::ffi::{c_int, c_void};

use super::descriptor::{Attribute, Descriptor, Kind, Type};
use super::graph::{DataType, Graph, Id, Operation, Place, Pointwise};
use super::library::{Library, Opaque};

/// What a plan is for.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// The GPU of a cuDNN handle.
    Handle(Opaque),
    /// A GPU that need not be there, by its description.
    Described(&'a Descriptor),
}

/// How a GPU computes a graph.
pub(super) struct Plan {
    descriptor: Descriptor,
    /// Memory it needs besides the graph's tensors.
    pub(super) workspace_bytes: usize,
    scalars: Vec<(i64, f32)>,
    /// What the plan refers to.
    _kept: Vec<Descriptor>,
}

/// Kernels that cuDNN had compiled, for graphs that differ in sizes alone: with it a plan takes milliseconds where
/// compiling takes a second.
pub(super) type Compiled = Option<Descriptor>;

impl Plan {
    /// The first plan of those that cuDNN's heuristics name that can be made, and that computes as exactly as `of`
    /// allows.
    ///
    /// `compiled`: where the graph needs kernels that are compiled first, those of graphs like it; empty at first. Graphs
    /// that have their kernels ready are better off without.
    ///
    /// # Errors
    /// Where there is none; says why of the last one.
    pub(super) fn new(
        library: &'static Library,
        graph: &Graph,
        of: DataType,
        target: Target<'_>,
        mut compiled: Option<&mut Compiled>,
    ) -> Result<Self, String> {
        let mut told = Told::new(library, graph)?;
        let operations: Vec<&Descriptor> = told.operations.iter().collect();
        let whole = Descriptor::new(library, Kind::OperationGraph)?
            .descriptors(GRAPH_OPERATIONS, &operations)?
            .boolean(GRAPH_IS_FOR_ANY_SIZE, compiled.is_some())?;
        let whole = match target {
            Target::Handle(handle) => whole.handle(GRAPH_HANDLE, handle)?,
            Target::Described(_) => whole,
        };
        let whole = whole.finish()?;
        if let Some(empty @ None) = compiled.as_deref_mut() {
            let cache = Descriptor::new(library, Kind::KernelCache)?;
            *empty = Some(cache.descriptors(KERNEL_CACHE_GRAPH, &[&whole])?.finish()?);
        }
        let compiled = compiled.and_then(|compiled| compiled.as_ref());
        let mut reason = "cuDNN: no engine takes this graph".to_owned();
        for mode in [HEURISTIC_MODE_A, HEURISTIC_MODE_FALLBACK] {
            for config in configs(library, &whole, mode, target)? {
                match descriptor(library, &config, of, target, compiled) {
                    Ok((descriptor, workspace_bytes)) => {
                        told.kept.extend(told.operations);
                        told.kept.extend([whole, config]);
                        return Ok(Self {
                            descriptor,
                            workspace_bytes,
                            scalars: told.scalars,
                            _kept: told.kept,
                        });
                    }
                    Err(e) => reason = e,
                }
            }
        }
        Err(reason)
    }

    /// Runs it on the handle's stream.
    ///
    /// # Safety
    /// The addresses must be those of the graph's tensors on the handle's GPU, by their numbers, and of as much
    /// workspace as the plan needs.
    pub(super) unsafe fn run(
        &self,
        library: &'static Library,
        handle: Opaque,
        tensors: &[(i64, u64)],
        workspace: u64,
    ) -> Result<(), String> {
        let tensors = tensors.iter().map(|(number, address)| (*number, *address as *const c_void));
        let scalars = self.scalars.iter().map(|(number, value)| (*number, (&raw const *value).cast()));
        let (numbers, addresses): (Vec<i64>, Vec<*const c_void>) = tensors.chain(scalars).unzip();
        let pack = Descriptor::new(library, Kind::VariantPack)?
            .ints(PACK_NUMBERS, &numbers)?
            .pointers(PACK_ADDRESSES, &addresses)?
            .pointers(PACK_WORKSPACE, &[workspace as *const c_void])?
            .finish()?;
        // SAFETY: a finished plan and pack; the addresses are as the caller promises.
        let status = unsafe { (library.execute)(handle, self.descriptor.opaque(), pack.opaque()) };
        library.check(status, || "running a plan".to_owned())
    }
}

/// A graph as descriptors.
struct Told {
    library: &'static Library,
    /// The tensors, and behind them what the operations refer to.
    kept: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    scalars: Vec<(i64, f32)>,
}

/// The first number of tensors that have none of their own.
const FIRST: i64 = 1000;

impl Told {
    fn new(library: &'static Library, graph: &Graph) -> Result<Self, String> {
        let mut told = Self { library, kept: Vec::new(), operations: Vec::new(), scalars: Vec::new() };
        for (i, tensor) in graph.tensors.iter().enumerate() {
            let own = FIRST + i as i64;
            let number = if let Place::Outside(number) = tensor.place { number } else { own };
            let descriptor = Descriptor::new(library, Kind::Tensor)?
                .number(TENSOR_DATA_TYPE, Type::Data, tensor.of as c_int)?
                .ints(TENSOR_DIMENSIONS, &tensor.shape)?
                .ints(TENSOR_STRIDES, &tensor.strides)?
                .ints(TENSOR_BYTE_ALIGNMENT, &[16])?
                .ints(TENSOR_UNIQUE_ID, &[number])?
                .boolean(TENSOR_IS_VIRTUAL, tensor.place == Place::Between)?
                .boolean(TENSOR_IS_BY_VALUE, matches!(tensor.place, Place::Scalar(_)))?;
            told.kept.push(descriptor.finish()?);
            if let Place::Scalar(value) = tensor.place {
                told.scalars.push((number, value));
            }
        }
        for operation in &graph.operations {
            told.tell(operation)?;
        }
        Ok(told)
    }

    fn tell(&mut self, operation: &Operation) -> Result<(), String> {
        let float = DataType::F32 as c_int;
        let new = |kind| Descriptor::new(self.library, kind);
        match operation {
            Operation::Convolution { x, filters, y, steps } => {
                const CROSS_CORRELATION: c_int = 1;
                let how = new(Kind::Convolution)?
                    .number(CONVOLUTION_PRECISION, Type::Data, float)?
                    .number(CONVOLUTION_MODE, Type::ConvolutionMode, CROSS_CORRELATION)?
                    .ints(CONVOLUTION_SPATIAL_DIMENSIONS, &[2])?
                    .ints(CONVOLUTION_DILATIONS, &[1, 1])?
                    .ints(CONVOLUTION_STRIDES, &steps.stride)?
                    .ints(CONVOLUTION_PADDING_BEFORE, &steps.before)?
                    .ints(CONVOLUTION_PADDING_AFTER, &steps.after)?
                    .finish()?;
                // y = 1 (x * filters) + 0 y
                let on = new(Kind::OperationConvolution)?
                    .float(ON_CONVOLUTION_ALPHA, 1.0)?
                    .float(ON_CONVOLUTION_BETA, 0.0)?;
                let tensors = [(ON_CONVOLUTION_X, *x), (ON_CONVOLUTION_W, *filters), (ON_CONVOLUTION_Y, *y)];
                self.put(on, ON_CONVOLUTION_HOW, how, &tensors)
            }
            Operation::Product { a, b, y } => {
                let how = new(Kind::Matmul)?.number(MATMUL_PRECISION, Type::Data, float)?.finish()?;
                let tensors = [(ON_MATMUL_A, *a), (ON_MATMUL_B, *b), (ON_MATMUL_C, *y)];
                self.put(new(Kind::OperationMatmul)?, ON_MATMUL_HOW, how, &tensors)
            }
            Operation::Reduction { by, x, y } => {
                let how = new(Kind::Reduction)?
                    .number(REDUCTION_PRECISION, Type::Data, float)?
                    .number(REDUCTION_OPERATOR, Type::ReductionOperator, *by as c_int)?
                    .finish()?;
                let tensors = [(ON_REDUCTION_X, *x), (ON_REDUCTION_Y, *y)];
                self.put(new(Kind::OperationReduction)?, ON_REDUCTION_HOW, how, &tensors)
            }
            Operation::Pointwise { mode, from, y } => {
                let compares = *mode == Pointwise::GreaterOrEqual;
                let precision = if compares { DataType::Boolean as c_int } else { float };
                let how = new(Kind::Pointwise)?
                    .number(POINTWISE_MODE, Type::PointwiseMode, *mode as c_int)?
                    .number(POINTWISE_PRECISION, Type::Data, precision)?
                    .finish()?;
                let inputs =
                    [ON_POINTWISE_X, ON_POINTWISE_B, ON_POINTWISE_T].into_iter().zip(from.iter().copied());
                let tensors: Vec<(Attribute, Id)> = inputs.chain([(ON_POINTWISE_Y, *y)]).collect();
                self.put(new(Kind::OperationPointwise)?, ON_POINTWISE_HOW, how, &tensors)
            }
            Operation::Index { axis, x, y } => {
                const GENERATE_INDEX: c_int = 501;
                let how = new(Kind::Pointwise)?
                    .number(POINTWISE_MODE, Type::PointwiseMode, GENERATE_INDEX)?
                    .number(POINTWISE_PRECISION, Type::Data, float)?
                    .ints(POINTWISE_AXIS, &[*axis])?
                    .finish()?;
                let tensors = [(ON_POINTWISE_X, *x), (ON_POINTWISE_Y, *y)];
                self.put(new(Kind::OperationPointwise)?, ON_POINTWISE_HOW, how, &tensors)
            }
        }
    }

    fn put(
        &mut self,
        on: Descriptor,
        attribute: Attribute,
        how: Descriptor,
        tensors: &[(Attribute, Id)],
    ) -> Result<(), String> {
        let mut on = on.descriptors(attribute, &[&how])?;
        for (attribute, id) in tensors {
            on = on.descriptors(*attribute, &[&self.kept[id.0]])?;
        }
        self.operations.push(on.finish()?);
        self.kept.push(how);
        Ok(())
    }
}

/// Engines for a graph and how they are set, the best first.
fn configs(
    library: &'static Library,
    graph: &Descriptor,
    mode: c_int,
    target: Target<'_>,
) -> Result<Vec<Descriptor>, String> {
    /// More than are ever named.
    const MOST: usize = 64;
    let heuristics = Descriptor::new(library, Kind::EngineHeuristics)?
        .descriptors(HEURISTICS_GRAPH, &[graph])?
        .number(HEURISTICS_MODE, Type::HeuristicMode, mode)?;
    let heuristics = match target {
        Target::Handle(_) => heuristics,
        Target::Described(device) => heuristics.descriptors(HEURISTICS_DEVICE, &[device])?,
    };
    match heuristics.finish() {
        Ok(heuristics) => heuristics.get_descriptors(HEURISTICS_RESULTS, Kind::EngineConfig, MOST),
        // That is how a mode says that it knows none.
        Err(_) => Ok(Vec::new()),
    }
}

/// The most workspace that a plan may need: as much as the ops' own kernels take. Some engines would take gigabytes.
const WORKSPACE_BYTES: usize = 256 << 20;

/// The plan of one engine, and its workspace.
fn descriptor(
    library: &'static Library,
    config: &Descriptor,
    of: DataType,
    target: Target<'_>,
    compiled: Option<&Descriptor>,
) -> Result<(Descriptor, usize), String> {
    for engine in config.get_descriptors(CONFIG_ENGINE, Kind::Engine, 1)? {
        let notes = engine.get_numbers(ENGINE_NUMERICAL_NOTE, Type::NumericalNote)?;
        if let Some(note) = notes.into_iter().find(|note| is_inexact(*note, of)) {
            return Err(format!("cuDNN: the engines left have the numerical note {note}"));
        }
    }
    let plan = Descriptor::new(library, Kind::ExecutionPlan)?.descriptors(PLAN_CONFIG, &[config])?;
    let plan = match compiled {
        Some(cache) => plan.descriptors(PLAN_KERNEL_CACHE, &[cache])?,
        None => plan,
    };
    let plan = match target {
        Target::Handle(handle) => plan.handle(PLAN_HANDLE, handle)?,
        Target::Described(device) => plan.descriptors(PLAN_DEVICE, &[device])?,
    };
    let plan = plan.finish()?;
    let bytes = usize::try_from(plan.get_int(PLAN_WORKSPACE_SIZE)?).unwrap_or(usize::MAX);
    if bytes > WORKSPACE_BYTES {
        return Err(format!("cuDNN: the engines left need {bytes} bytes of workspace"));
    }
    Ok((plan, bytes))
}

/// Whether an engine with this note is left out: one that sums in less than f32, transforms its inputs, whose sums have
/// no fixed order, or that takes less than f32 of f32 inputs, as tensor cores do. Notes: `CUDNN_NUMERICAL_NOTE_..`.
fn is_inexact(note: c_int, of: DataType) -> bool {
    const TENSOR_CORE: c_int = 0;
    const DOWN_CONVERT_INPUTS: c_int = 1;
    const REDUCED_PRECISION_REDUCTION: c_int = 2;
    const FFT: c_int = 3;
    const NONDETERMINISTIC: c_int = 4;
    const WINOGRAD: c_int = 5;
    match note {
        DOWN_CONVERT_INPUTS | REDUCED_PRECISION_REDUCTION | FFT | NONDETERMINISTIC | WINOGRAD => true,
        TENSOR_CORE => of == DataType::F32,
        _ => false,
    }
}

/// A GPU by its description, JSON as cuDNN writes it: `CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION`.
pub(super) fn described(library: &'static Library, json: &str) -> Result<Descriptor, String> {
    Descriptor::new(library, Kind::DeviceProperties)?.text(DEVICE_JSON, json)?.finish()
}

const HEURISTIC_MODE_FALLBACK: c_int = 2;
const HEURISTIC_MODE_A: c_int = 3;

// Numbers of `cudnnBackendAttributeName_t`.
const POINTWISE_MODE: Attribute = 0;
const POINTWISE_PRECISION: Attribute = 1;
const POINTWISE_AXIS: Attribute = 9;
const CONVOLUTION_PRECISION: Attribute = 100;
const CONVOLUTION_MODE: Attribute = 101;
const CONVOLUTION_DILATIONS: Attribute = 102;
const CONVOLUTION_STRIDES: Attribute = 103;
const CONVOLUTION_PADDING_AFTER: Attribute = 104;
const CONVOLUTION_PADDING_BEFORE: Attribute = 105;
const CONVOLUTION_SPATIAL_DIMENSIONS: Attribute = 106;
const HEURISTICS_MODE: Attribute = 200;
const HEURISTICS_GRAPH: Attribute = 201;
const HEURISTICS_RESULTS: Attribute = 202;
const HEURISTICS_DEVICE: Attribute = 204;
const CONFIG_ENGINE: Attribute = 300;
const PLAN_HANDLE: Attribute = 400;
const PLAN_CONFIG: Attribute = 401;
const PLAN_WORKSPACE_SIZE: Attribute = 402;
const PLAN_KERNEL_CACHE: Attribute = 406;
const PLAN_DEVICE: Attribute = 407;
const ON_CONVOLUTION_ALPHA: Attribute = 700;
const ON_CONVOLUTION_BETA: Attribute = 701;
const ON_CONVOLUTION_HOW: Attribute = 702;
const ON_CONVOLUTION_W: Attribute = 703;
const ON_CONVOLUTION_X: Attribute = 704;
const ON_CONVOLUTION_Y: Attribute = 705;
const ON_POINTWISE_HOW: Attribute = 750;
const ON_POINTWISE_X: Attribute = 751;
const ON_POINTWISE_B: Attribute = 752;
const ON_POINTWISE_Y: Attribute = 753;
const ON_POINTWISE_T: Attribute = 758;
const GRAPH_HANDLE: Attribute = 800;
const GRAPH_OPERATIONS: Attribute = 801;
const GRAPH_IS_FOR_ANY_SIZE: Attribute = 803;
const TENSOR_BYTE_ALIGNMENT: Attribute = 900;
const TENSOR_DATA_TYPE: Attribute = 901;
const TENSOR_DIMENSIONS: Attribute = 902;
const TENSOR_STRIDES: Attribute = 903;
const TENSOR_UNIQUE_ID: Attribute = 906;
const TENSOR_IS_VIRTUAL: Attribute = 907;
const TENSOR_IS_BY_VALUE: Attribute = 908;
const PACK_NUMBERS: Attribute = 1000;
const PACK_ADDRESSES: Attribute = 1001;
const PACK_WORKSPACE: Attribute = 1003;
const ENGINE_NUMERICAL_NOTE: Attribute = 1303;
const MATMUL_PRECISION: Attribute = 1500;
const ON_MATMUL_A: Attribute = 1520;
const ON_MATMUL_B: Attribute = 1521;
const ON_MATMUL_C: Attribute = 1522;
const ON_MATMUL_HOW: Attribute = 1523;
const REDUCTION_OPERATOR: Attribute = 1600;
const REDUCTION_PRECISION: Attribute = 1601;
const ON_REDUCTION_X: Attribute = 1610;
const ON_REDUCTION_Y: Attribute = 1611;
const ON_REDUCTION_HOW: Attribute = 1612;
const KERNEL_CACHE_GRAPH: Attribute = 2400;
const DEVICE_JSON: Attribute = 2702;
