//! Products through cublasLt, on candle's stream; what is asked of it is decided in [`super::product`].
//!
//! An algorithm is chosen once for each shape: the one that was measured to be the fastest and kept in the tuning file,
//! else the library's first suggestion; while [`crate::tuning::Measuring`] is, all suggestions are timed.
//!
//! Type-checked and never run on a device so far.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys::{
    self, cublasLtEpilogue_t as Epilogue, cublasLtMatmulAlgo_t as RawAlgorithm,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulHeuristicResult_t as Suggestion,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t as Status, cudaDataType as DataType,
};
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Device, Result, Tensor};

use super::cuda::address;
use super::product::{Algorithm, Factors, Layout, Library, Operands, Problem};
use crate::eight_bit_rows::Coded;
use crate::tuning::{self, MeasuredWith};
use crate::{Activation, EightBits};

/// `cublasOperation_t`, which cudarc declares for cuBLAS alone.
const CUBLAS_OP_T: i32 = 1;
/// What addresses must be multiples of for the algorithms that are asked for.
const ALIGNMENT: u64 = 16;
/// Suggestions that are timed.
const SUGGESTIONS: usize = 8;
/// Times that each of them is run for a measurement, after one that is not counted.
const RUNS: u32 = 5;

/// The library on the GPU that this process has opened.
struct CublasLt {
    handle: Handle,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    /// `None` where the library has no algorithm.
    chosen: Mutex<HashMap<Problem, Option<Chosen>>>,
}

#[derive(Clone, Copy)]
struct Chosen {
    algorithm: Algorithm,
    measured: bool,
}

struct Handle(sys::cublasLtHandle_t);

// SAFETY: a handle may be used from all threads; see "Thread Safety" of cuBLAS' documentation.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// `activation(x W^T + bias) + residual` on a GPU, or `None` where the library cannot.
pub(super) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    match opened(x.device()) {
        Some(library) => super::product::linear(library, x, weight, bias, activation, residual),
        None => Ok(None),
    }
}

/// The same of rows in eight bits, with a result of `dtype`.
pub(super) fn eight_bit_linear(
    x: &Coded,
    weight: &Coded,
    dtype: DType,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    match opened(x.codes.device()) {
        Some(library) => {
            super::product::eight_bit_linear(library, x, weight, dtype, bias, activation, residual)
        }
        None => Ok(None),
    }
}

fn opened(device: &Device) -> Option<&'static CublasLt> {
    static OPENED: OnceLock<Option<CublasLt>> = OnceLock::new();
    let open = || {
        CublasLt::open(device)
            .inspect_err(|error| tracing::warn!(%error, "products go without cublasLt"))
            .ok()
    };
    OPENED.get_or_init(open).as_ref()
}

impl CublasLt {
    fn open(device: &Device) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let context = stream.context();
        let hopper = context.compute_capability().w()?.0 >= 9;
        // NVIDIA's recommendations.
        let bytes = if hopper { 32 << 20 } else { 4 << 20 };
        // SAFETY: nothing reads it before an algorithm has written it.
        let workspace = unsafe { stream.alloc::<u8>(bytes) }.w()?;
        let mut driver = 0;
        // SAFETY: a number to write to.
        unsafe {
            candle_core::cuda_backend::cudarc::driver::sys::cuDriverGetVersion(&raw mut driver)
                .result()
                .w()?;
        }
        tuning::measured_with(MeasuredWith {
            gpu: context.name().w()?,
            driver: driver.to_string(),
            // SAFETY: it takes nothing and touches nothing.
            library: unsafe { sys::cublasLtGetVersion() }.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
        });
        let handle = Handle(result::create_handle().map_err(said)?);
        Ok(Self { handle, stream: stream.clone(), workspace, chosen: Mutex::default() })
    }

    fn chosen(&self) -> MutexGuard<'_, HashMap<Problem, Option<Chosen>>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The algorithm for a problem, chosen now where it was not before.
    fn choose(&self, problem: &Problem, call: &Call<'_>) -> Result<Option<Algorithm>> {
        let mut chosen = self.chosen();
        // In a capture nothing can be timed.
        let measures = tuning::is_measuring() && !super::graph::is_capturing(&self.stream)?;
        match chosen.get(problem) {
            Some(Some(known)) if measures && !known.measured => {}
            Some(known) => return Ok(known.map(|known| known.algorithm)),
            None => {
                let kept = tuning::get(&problem.key()).and_then(|text| Algorithm::parse(&text));
                if let Some(algorithm) = kept.filter(|algorithm| call.can_be(algorithm)) {
                    chosen.insert(*problem, Some(Chosen { algorithm, measured: true }));
                    return Ok(Some(algorithm));
                }
            }
        }
        let suggestions = call.suggestions()?;
        let first = suggestions.first().copied();
        let algorithm = if measures { call.fastest(&suggestions)?.or(first) } else { first };
        if let (true, Some(algorithm)) = (measures, &algorithm) {
            tuning::insert(problem.key(), algorithm.text());
        }
        chosen.insert(*problem, algorithm.map(|algorithm| Chosen { algorithm, measured: measures }));
        Ok(algorithm)
    }
}

impl Library for CublasLt {
    fn multiply(&self, problem: &Problem, operands: &Operands<'_>) -> Result<Option<Tensor>> {
        if matches!(self.chosen().get(problem), Some(None)) {
            return Ok(None);
        }
        let mut shape = operands.x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = problem.out;
        }
        // SAFETY: the product writes every element.
        let y = unsafe { Tensor::empty(shape, problem.dtype, operands.x.device()) }?;
        let at = |x: &Tensor| address(x, &self.stream);
        let (a, b, d) = (at(operands.weight)?, at(operands.x)?, at(&y)?);
        let c = operands.residual.map_or(Ok(d), at)?;
        let bias = operands.bias.map(at).transpose()?;
        let scales = match operands.scales {
            Some([weight, x]) => Some([at(weight)?, at(x)?]),
            None => None,
        };
        let all = [a, b, c, d].into_iter().chain(bias).chain(scales.into_iter().flatten());
        if all.into_iter().any(|address| !address.is_multiple_of(ALIGNMENT)) {
            return Ok(None);
        }
        let run = || {
            let call = Call::new(self, problem, [a, b, c, d], bias, scales)?;
            let algorithm = self.choose(problem, &call)?;
            algorithm.as_ref().map(|algorithm| call.run(algorithm)).transpose()
        };
        // What an older library does not know is an error of its descriptors.
        let done = run().unwrap_or_else(|error| {
            tracing::warn!(%error, problem = problem.key(), "this product goes without cublasLt");
            self.chosen().insert(*problem, None);
            None
        });
        Ok(done.map(|()| y))
    }
}

/// A product as the library takes it.
struct Call<'a> {
    library: &'a CublasLt,
    operation: Operation,
    a: MatrixLayout,
    b: MatrixLayout,
    d: MatrixLayout,
    /// Of `A`, `B`, `C` and `D`.
    addresses: [u64; 4],
    /// The factors of the product and of `C`, as bits of the type that sums have.
    alpha: u32,
    beta: u32,
}

impl<'a> Call<'a> {
    /// `scales`: of the weight and of the tokens.
    fn new(
        library: &'a CublasLt,
        problem: &Problem,
        addresses: [u64; 4],
        bias: Option<u64>,
        scales: Option<[u64; 2]>,
    ) -> Result<Self> {
        let kind = match problem.dtype {
            DType::F16 => DataType::CUDA_R_16F,
            DType::BF16 => DataType::CUDA_R_16BF,
            DType::I32 => DataType::CUDA_R_32I,
            _ => DataType::CUDA_R_32F,
        };
        let factor_kind = match problem.factors {
            Factors::Plain => kind,
            Factors::Codes(EightBits::Int8) | Factors::ScaledCodes(EightBits::Int8) => DataType::CUDA_R_8I,
            Factors::Codes(EightBits::F8E4M3) | Factors::ScaledCodes(EightBits::F8E4M3) => {
                DataType::CUDA_R_8F_E4M3
            }
        };
        let whole = problem.dtype == DType::I32;
        let operation = Operation::new(whole)?;
        if factor_kind == DataType::CUDA_R_8F_E4M3 {
            // Sums of fewer bits: twice the speed on Hopper, and what PyTorch infers with.
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1i8)?;
        }
        if let Some([weight, x]) = scales {
            let a_scale_each = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &a_scale_each)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &a_scale_each)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &weight)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)?;
        }
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &CUBLAS_OP_T)?;
        let epilogue = match (bias.is_some(), problem.gelu) {
            (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if let Some(bias) = bias {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let a = MatrixLayout::new(factor_kind, problem.a())?;
        let b = MatrixLayout::new(factor_kind, problem.b())?;
        let d = MatrixLayout::new(kind, problem.d())?;
        let alpha = if whole { 1 } else { 1f32.to_bits() };
        // All bits of 0 are 0 in either type.
        let beta = if problem.residual { alpha } else { 0 };
        Ok(Self { library, operation, a, b, d, addresses, alpha, beta })
    }

    /// Puts the product on the stream.
    fn run(&self, algorithm: &Algorithm) -> Result<()> {
        let [a, b, c, d] = self.addresses;
        let (workspace, _) = self.library.workspace.device_ptr(&self.library.stream);
        let raw = RawAlgorithm { data: algorithm.words };
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: descriptors and handle are alive; the addresses are those of tensors with these layouts, which are
        // freed in the stream's order; the workspace is as large as was said when the algorithm was asked for, and all
        // calls are on one stream.
        unsafe {
            result::matmul(
                self.library.handle.0,
                self.operation.0,
                (&raw const self.alpha).cast(),
                (&raw const self.beta).cast(),
                pointer(a),
                self.a.0,
                pointer(b),
                self.b.0,
                pointer(c),
                self.d.0,
                d as *mut c_void,
                self.d.0,
                &raw const raw,
                workspace as *mut c_void,
                self.library.workspace.len(),
                self.library.stream.cu_stream().cast(),
            )
        }
        .map_err(said)
    }

    /// Whether the library takes this algorithm for this product: it may come from a file.
    fn can_be(&self, algorithm: &Algorithm) -> bool {
        let raw = RawAlgorithm { data: algorithm.words };
        let mut checked = empty_suggestion();
        // SAFETY: descriptors and handle are alive; the library checks the algorithm and writes one result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.library.handle.0,
                self.operation.0,
                self.a.0,
                self.b.0,
                self.d.0,
                self.d.0,
                &raw const raw,
                &raw mut checked,
            )
        };
        status == Status::CUBLAS_STATUS_SUCCESS
            && checked.state == Status::CUBLAS_STATUS_SUCCESS
            && checked.workspaceSize <= self.library.workspace.len()
    }

    /// What the library would take, the best first; nothing where it has no way.
    fn suggestions(&self) -> Result<Vec<Algorithm>> {
        let preference = MatmulPreference::new()?;
        preference
            .set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &self.library.workspace.len())?;
        for matrix in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(matrix, &(ALIGNMENT as u32))?;
        }
        let mut found = [empty_suggestion(); SUGGESTIONS];
        let mut count = 0;
        // SAFETY: descriptors and handle are alive; there is room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.library.handle.0,
                self.operation.0,
                self.a.0,
                self.b.0,
                self.d.0,
                self.d.0,
                preference.0,
                SUGGESTIONS as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status != Status::CUBLAS_STATUS_SUCCESS {
            // bf16 on a T4, for one.
            tracing::debug!(?status, "cublasLt suggests no algorithm");
            return Ok(Vec::new());
        }
        let usable = found.iter().take(usize::try_from(count).unwrap_or(0));
        let usable = usable.filter(|suggestion| suggestion.state == Status::CUBLAS_STATUS_SUCCESS);
        Ok(usable.map(|s| Algorithm { words: s.algo.data, workspace_bytes: s.workspaceSize }).collect())
    }

    /// Times them on the operands themselves; what they write is written again. It waits for the device.
    fn fastest(&self, suggestions: &[Algorithm]) -> Result<Option<Algorithm>> {
        let stream = &self.library.stream;
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
        let mut best: Option<(f32, Algorithm)> = None;
        for algorithm in suggestions {
            // One that does not run is none.
            if self.run(algorithm).is_err() {
                continue;
            }
            let begin = event()?;
            (0..RUNS).try_for_each(|_| self.run(algorithm))?;
            let took = begin.elapsed_ms(&event()?).w()?;
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, *algorithm));
            }
        }
        Ok(best.map(|(_, algorithm)| algorithm))
    }
}

fn empty_suggestion() -> Suggestion {
    Suggestion {
        algo: RawAlgorithm { data: [0; 8] },
        workspaceSize: 0,
        state: Status::CUBLAS_STATUS_NOT_INITIALIZED,
        wavesCount: 0.0,
        reserved: [0; 4],
    }
}

fn said(error: CublasError) -> candle_core::Error {
    candle_core::Error::msg(format!("cublasLt: {error}"))
}

struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    /// Sums and factors in 32 bits: whole numbers or floats.
    fn new(whole: bool) -> Result<Self> {
        let (compute, scale) = match whole {
            true => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32I, DataType::CUDA_R_32I),
            false => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F),
        };
        result::create_matmul_desc(compute, scale).map(Self).map_err(said)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<()> {
        let value = (&raw const *value).cast();
        // SAFETY: the descriptor is alive, the value is copied, and each caller gives the attribute's own type.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) }.map_err(said)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _nothing_to_be_done = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(kind: DataType, layout: Layout) -> Result<Self> {
        let Layout { rows, columns, stride } = layout;
        result::create_matrix_layout(kind, rows as u64, columns as u64, stride as i64).map(Self).map_err(said)
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _nothing_to_be_done = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct MatmulPreference(sys::cublasLtMatmulPreference_t);

impl MatmulPreference {
    fn new() -> Result<Self> {
        result::create_matmul_pref().map(Self).map_err(said)
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<()> {
        let value = (&raw const *value).cast();
        // SAFETY: the preference is alive, the value is copied, and each caller gives the attribute's own type.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }.map_err(said)
    }
}

impl Drop for MatmulPreference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _nothing_to_be_done = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
