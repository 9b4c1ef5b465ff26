//! cuDNN: convolutions and attention, each fused with what follows it into one kernel.
//!
//! The library is opened when it is first wanted. Where it is not there, or has no plan for a shape on this GPU, the ops go
//! on with their own kernels: [`Session::prepare`] says so, once a shape.
//!
//! An op is a [`Request`]: numbers alone, so that equal ones share a plan. `convolution` and `attention` write requests as
//! graphs, `plan` has cuDNN make plans of them, `descriptor` and `library` are its functions. Nothing here knows candle.

use std::collections::HashMap;

pub(crate) mod attention;
pub(crate) mod convolution;
mod descriptor;
#[cfg(test)]
mod evaluate;
mod graph;
mod library;
mod plan;
mod plans;

pub use attention::Attention;
pub use convolution::{Bias, Convolution};
pub use graph::DataType;

use descriptor::Descriptor;
use graph::Graph;
use library::{Library, Opaque};
use plan::{Compiled, Plan, Target};
use plans::Plans;

/// What cuDNN is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// A convolution.
    Convolution(Convolution),
    /// Attention.
    Attention(Attention),
}

impl Request {
    fn graph(&self) -> (Graph, DataType) {
        match self {
            Self::Convolution(c) => (c.graph(), c.of),
            Self::Attention(a) => (a.graph(), a.of),
        }
    }

    /// Whether there may be a plan: what is known to have none is not asked for, as every engine would be tried.
    fn is_possible(&self) -> bool {
        match self {
            // In f32 a bias is all that is fused.
            Self::Convolution(c) => c.of != DataType::F32 || (c.bias != Some(Bias::PerSample) && !c.residual),
            // Half types, and 16 bytes of a head at a time.
            Self::Attention(a) => a.of != DataType::F32 && a.d.is_multiple_of(8),
        }
    }

    /// The request without its sizes, where its kernel is compiled when it is first wanted: requests that are equal but
    /// for them share it. cuDNN has kernels ready for convolutions by themselves, and in f32 with a bias.
    fn compiled(&self) -> Option<Self> {
        match *self {
            Self::Convolution(Convolution { bias: None, residual: false, .. }) => None,
            Self::Convolution(Convolution { of: DataType::F32, .. }) => None,
            Self::Convolution(c) => Some(Self::Convolution(Convolution {
                batch: 0,
                height: 0,
                width: 0,
                channels: 0,
                out: 0,
                ..c
            })),
            Self::Attention(a) => {
                Some(Self::Attention(Attention { batch: 0, heads: 0, queries: 0, keys: 0, scale: 0, ..a }))
            }
        }
    }
}

/// Makes plans for one GPU, with the kernels that were compiled for the plans before.
struct Planner {
    library: &'static Library,
    compiled: HashMap<Request, Compiled>,
}

impl Planner {
    fn new(library: &'static Library) -> Self {
        Self { library, compiled: HashMap::new() }
    }

    fn plan(&mut self, request: &Request, target: Target<'_>) -> Result<Plan, String> {
        if !request.is_possible() {
            return Err(format!("cuDNN: no engine takes {request:?}"));
        }
        let (graph, of) = request.graph();
        let compiled = request.compiled().map(|key| self.compiled.entry(key).or_default());
        Plan::new(self.library, &graph, of, target, compiled)
    }
}

/// The version of the cuDNN that is there, as cuDNN counts: 91900 is 9.19.0.
///
/// # Errors
/// Says that it is not there, or too old.
pub fn version() -> Result<usize, String> {
    Library::open().map(Library::version)
}

/// cuDNN on one GPU, with plans for the shapes that it has seen.
pub struct Session {
    planner: Planner,
    handle: Opaque,
    /// The stream that the handle was last set to.
    stream: Option<u64>,
    plans: Plans<Plan>,
}

// SAFETY: a handle is bound to a GPU and not to a thread; it is used by one at a time, whoever has the session.
unsafe impl Send for Session {}

impl Session {
    /// On the GPU of the CUDA context that is current in this thread.
    ///
    /// # Errors
    /// Says that cuDNN is not there, or cannot use the GPU.
    pub fn new() -> Result<Self, String> {
        let library = Library::open()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: room for a handle. The session lasts as long as the process, and its handle with it.
        let status = unsafe { (library.create)(&raw mut handle) };
        library.check(status, || "opening the GPU".to_owned())?;
        Ok(Self { planner: Planner::new(library), handle, stream: None, plans: Plans::new() })
    }

    /// Bytes of workspace that a request needs, 16-byte aligned; `None` where there is no plan for it.
    ///
    /// The first time this makes the plan, which may compile and load a kernel: not while a graph is captured. One too
    /// many makes older ones go, kernels included: `may_go` says whether nothing that is or will be on the GPU runs them.
    pub fn prepare(&mut self, request: &Request, may_go: impl FnOnce() -> bool) -> Option<usize> {
        let (planner, target) = (&mut self.planner, Target::Handle(self.handle));
        let plan = self.plans.get_or_make(request, may_go, || planner.plan(request, target).ok());
        plan.map(|plan| plan.workspace_bytes)
    }

    /// Runs a request that is [prepared](Self::prepare) on a CUDA stream. Allocates nothing on the GPU and waits for
    /// nothing, so it may be captured.
    ///
    /// # Errors
    /// What cuDNN says; and where the request is not prepared.
    ///
    /// # Safety
    /// `tensors` must have the addresses, on the stream's GPU and 16-byte aligned, of all the request's tensors by their
    /// numbers (`convolution::X` and so on), and `workspace` that of as many bytes as `prepare` says.
    pub unsafe fn run(
        &mut self,
        request: &Request,
        stream: u64,
        tensors: &[(i64, u64)],
        workspace: u64,
    ) -> Result<(), String> {
        let library = self.planner.library;
        if self.stream != Some(stream) {
            // SAFETY: the caller's stream.
            let status = unsafe { (library.set_stream)(self.handle, stream as Opaque) };
            library.check(status, || "setting the stream".to_owned())?;
            self.stream = Some(stream);
        }
        match self.plans.get(request) {
            // SAFETY: as the caller promises.
            Some(plan) => unsafe { plan.run(library, self.handle, tensors, workspace) },
            None => Err(format!("cuDNN: there is no plan for {request:?}")),
        }
    }
}

/// A GPU that need not be there: what plans are made for on a machine that has cuDNN and no GPU.
pub struct Described {
    planner: Planner,
    device: Descriptor,
}

impl Described {
    /// `json`: the GPU's properties as cuDNN 9.8 or newer writes them. All are numbers: yes is 1.
    ///
    /// # Errors
    /// Where cuDNN is not there, or the description lacks something.
    pub fn new(json: &str) -> Result<Self, String> {
        let library = Library::open()?;
        Ok(Self { planner: Planner::new(library), device: plan::described(library, json)? })
    }

    /// Makes a plan; returns the bytes of workspace it needs.
    ///
    /// # Errors
    /// Where there is none, with what cuDNN says of the last that it tried.
    pub fn plan(&mut self, request: &Request) -> Result<usize, String> {
        self.planner.plan(request, Target::Described(&self.device)).map(|plan| plan.workspace_bytes)
    }
}

/// What a request's tensor `y` has in it, given the other tensors in memory by their numbers.
#[cfg(test)]
pub(super) fn evaluate(request: &Request, mut memory: HashMap<i64, Vec<f64>>, y: i64) -> Vec<f64> {
    evaluate::evaluate(&request.graph().0, &mut memory);
    memory.remove(&y).expect("a graph writes its result")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that differ, for the tensors in memory of a request.
    fn memory(request: &Request, y: i64) -> HashMap<i64, Vec<f64>> {
        let mut state = 1u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        let outside = |t: &graph::Tensor| match t.place {
            graph::Place::Outside(number) if number != y => Some((number, t.shape.iter().product::<i64>())),
            _ => None,
        };
        let sizes: Vec<_> = request.graph().0.tensors.iter().filter_map(outside).collect();
        sizes.into_iter().map(|(name, size)| (name, (0..size).map(|_| number()).collect())).collect()
    }

    /// The tests of the ops compare graphs with definitions; here is that each part of a request says something.
    #[test]
    fn every_part_of_a_request_counts() {
        let c = Convolution {
            of: DataType::F32,
            batch: 2,
            height: 4,
            width: 4,
            channels: 2,
            out: 3,
            kernel: [3, 3],
            stride: 1,
            before: [1, 1],
            after: [1, 1],
            bias: Some(Bias::PerSample),
            residual: true,
        };
        let given = memory(&Request::Convolution(c), convolution::Y);
        let result = |c| evaluate(&Request::Convolution(c), given.clone(), convolution::Y);
        let all = result(c);
        for other in [
            Convolution { bias: None, ..c },
            Convolution { bias: Some(Bias::Shared), ..c },
            Convolution { residual: false, ..c },
            Convolution { before: [0, 0], after: [2, 2], ..c },
            Convolution { before: [2, 1], after: [0, 1], ..c },
            Convolution { stride: 2, before: [3, 3], after: [3, 3], ..c },
        ] {
            assert_ne!(result(other), all, "{other:?}");
        }

        let scale = 0.5f32.to_bits();
        let a = Attention {
            of: DataType::F16,
            batch: 2,
            heads: 2,
            d: 8,
            queries: 3,
            keys: 3,
            scale,
            causal: true,
            bias: true,
        };
        let given = memory(&Request::Attention(a), attention::Y);
        let result = |a| evaluate(&Request::Attention(a), given.clone(), attention::Y);
        let all = result(a);
        for other in [
            Attention { causal: false, ..a },
            Attention { bias: false, ..a },
            Attention { scale: 0.25f32.to_bits(), ..a },
            Attention { heads: 1, d: 16, bias: false, ..a },
        ] {
            assert_ne!(result(other), all, "{other:?}");
        }
    }
}
