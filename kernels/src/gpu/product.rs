//! `activation(x W^T + bias) + residual` as one call of cublasLt, as far as it can do that; of numbers of 16 and 32 bits,
//! and of eight.
//!
//! What is asked of the library is decided here, and tested against a stand-in that computes what the library's
//! documentation says; `cublaslt` passes it on. What the library leaves over, the epilogue kernel does.
//!
//! Source: NVIDIA's cuBLAS documentation, `cublasLtMatmul` and `cublasLtEpilogue_t`.

use candle_core::{DType, Result, Tensor};

use super::suffix;
use crate::eight_bit_rows::{Coded, apply_scales};
use crate::linear::epilogue_on_gpu;
use crate::{Activation, EightBits};

/// `D = f(A^T B + beta C + bias)`, all matrices column after column; f is GELU's tanh approximation or nothing, and
/// `C` has the shape of `D`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    /// Of `C`, `D` and the bias.
    pub(crate) dtype: DType,
    /// What `A` and `B` are in.
    pub(crate) factors: Factors,
    /// Columns of `A`, rows of `D`, values of the bias: what the layer puts out.
    pub(crate) out: usize,
    /// Columns of `B` and `D`: tokens.
    pub(crate) tokens: usize,
    /// Rows of `A` and `B`: what the layer takes in.
    pub(crate) depth: usize,
    pub(crate) bias: bool,
    pub(crate) gelu: bool,
    /// `beta` is 1, else 0.
    pub(crate) residual: bool,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Factors {
    /// Numbers of the result's type.
    Plain,
    /// Codes, whose sums are the result.
    Codes(EightBits),
    /// Codes, each column of `A` and `B` with a scale, by which its sums are multiplied.
    ScaledCodes(EightBits),
}

/// A matrix that is stored column after column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements from one column to the next.
    pub(crate) stride: usize,
}

impl Problem {
    /// The weight, row after row `(out, in)`, is column after column `(in, out)`: `A`, which is taken transposed.
    pub(crate) fn a(&self) -> Layout {
        Layout { rows: self.depth, columns: self.out, stride: self.depth }
    }

    /// The tokens, `(tokens, in)`.
    pub(crate) fn b(&self) -> Layout {
        Layout { rows: self.depth, columns: self.tokens, stride: self.depth }
    }

    /// The result, `(tokens, out)`, and the residual.
    pub(crate) fn d(&self) -> Layout {
        Layout { rows: self.out, columns: self.tokens, stride: self.out }
    }

    /// What measurements are kept under.
    pub(crate) fn key(&self) -> String {
        let Self { out, tokens, depth, .. } = self;
        let also = [(self.bias, " bias"), (self.gelu, " gelu"), (self.residual, " residual")];
        let also: String = also.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        let factors = match self.factors {
            Factors::Plain => String::new(),
            Factors::Codes(of) => format!("{of:?} "),
            Factors::ScaledCodes(of) => format!("scaled {of:?} "),
        };
        let dtype = suffix(self.dtype).unwrap_or("other");
        format!("linear {factors}{dtype} {tokens}x{depth}x{out}{also}")
    }
}

/// What a [`Problem`] is about, in its types; all contiguous.
pub(crate) struct Operands<'a> {
    /// `(out, in)`
    pub(crate) weight: &'a Tensor,
    /// `(.., in)`
    pub(crate) x: &'a Tensor,
    /// Of the weight's rows and of the tokens, f32, for [`Factors::ScaledCodes`].
    pub(crate) scales: Option<[&'a Tensor; 2]>,
    /// `(out)`
    pub(crate) bias: Option<&'a Tensor>,
    /// `(.., out)`
    pub(crate) residual: Option<&'a Tensor>,
}

/// cublasLt, or what stands for it in tests.
pub(crate) trait Library {
    /// The result, `(.., out)`; `None` where the library has no way to do it.
    fn multiply(&self, problem: &Problem, operands: &Operands<'_>) -> Result<Option<Tensor>>;
}

/// The whole layer through a library; `None` where it cannot do the product.
pub(crate) fn linear(
    library: &impl Library,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (out, depth) = weight.dims2()?;
    let (dtype, tokens) = (x.dtype(), x.elem_count() / depth.max(1));
    if tokens == 0 || weight.dtype() != dtype || suffix(dtype).is_none() || !weight.is_contiguous() {
        return Ok(None);
    }
    let x = x.contiguous()?;
    let problem = Problem {
        dtype,
        factors: Factors::Plain,
        out,
        tokens,
        depth,
        bias: false,
        gelu: false,
        residual: false,
    };
    let operands = Operands { weight, x: &x, scales: None, bias: None, residual: None };
    fused(library, problem, operands, bias, activation, residual)
}

/// The same of rows in eight bits; the result, `(.., out)`, is of `dtype`.
pub(crate) fn eight_bit_linear(
    library: &impl Library,
    x: &Coded,
    weight: &Coded,
    dtype: DType,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (of, (out, depth)) = (weight.of, weight.codes.dims2()?);
    let tokens = x.codes.elem_count() / depth.max(1);
    if tokens == 0 || x.of != of || suffix(dtype).is_none() {
        return Ok(None);
    }
    let plain = Problem {
        // What no sum of codes overflows.
        dtype: if of == EightBits::Int8 { DType::I32 } else { DType::F32 },
        factors: Factors::Codes(of),
        out,
        tokens,
        depth,
        bias: false,
        gelu: false,
        residual: false,
    };
    let operands =
        || Operands { weight: &weight.codes, x: &x.codes, scales: None, bias: None, residual: None };
    if of == EightBits::F8E4M3 && dtype != DType::F32 {
        let problem = Problem { dtype, factors: Factors::ScaledCodes(of), ..plain };
        let operands = Operands { scales: Some([&weight.scales, &x.scales]), ..operands() };
        // A layer does not know what type its bias will be added in.
        let bias = bias.map(|bias| bias.to_dtype(dtype)?.contiguous()).transpose()?;
        let whole = fused(library, problem, operands, bias.as_ref(), activation, residual)?;
        if whole.is_some() {
            return Ok(whole);
        }
    }
    let Some(sums) = library.multiply(&plain, &operands())? else { return Ok(None) };
    apply_scales(&sums, (&x.scales, &weight.scales), dtype, bias, activation, residual).map(Some)
}

/// A product with as much of what follows it as the library can do with it; the rest after it.
fn fused(
    library: &impl Library,
    problem: Problem,
    operands: Operands<'_>,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let dtype = problem.dtype;
    let bias_now = bias.filter(|bias| bias.dtype() == dtype && bias.is_contiguous());
    let gelu = activation == Activation::GeluTanh && bias.is_none() == bias_now.is_none();
    // The library adds `C` before the function, a layer its residual after it.
    let residual_now = residual
        .filter(|r| activation == Activation::None && r.dtype() == dtype)
        .map(Tensor::contiguous)
        .transpose()?;
    let problem = Problem { bias: bias_now.is_some(), gelu, residual: residual_now.is_some(), ..problem };
    let operands = Operands { bias: bias_now, residual: residual_now.as_ref(), ..operands };
    let Some(y) = library.multiply(&problem, &operands)? else { return Ok(None) };
    let bias = bias.filter(|_| !problem.bias);
    let activation = if gelu { Activation::None } else { activation };
    let residual = residual.filter(|_| !problem.residual);
    epilogue_on_gpu(y, bias, None, activation, residual).map(Some)
}

/// An algorithm of the library as it is kept in a file: opaque words, and the workspace it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Algorithm {
    pub(crate) words: [u64; 8],
    pub(crate) workspace_bytes: usize,
}

impl Algorithm {
    pub(crate) fn text(&self) -> String {
        let words: String = self.words.iter().map(|word| format!("{word:016x} ")).collect();
        format!("{words}{}", self.workspace_bytes)
    }

    /// `None` where it is not what [`Self::text`] writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let mut words = [0; 8];
        for word in &mut words {
            let part = parts.next().filter(|part| part.len() == 16)?;
            *word = u64::from_str_radix(part, 16).ok()?;
        }
        let workspace_bytes = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { words, workspace_bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::Device;

    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{f64s, random};

    /// What the documentation says of the library, on the CPU.
    #[derive(Default)]
    struct StandIn {
        last: Cell<Option<Problem>>,
        refuses: bool,
        /// As before sm_90.
        scales_nothing: bool,
    }

    impl Library for StandIn {
        fn multiply(&self, problem: &Problem, operands: &Operands<'_>) -> Result<Option<Tensor>> {
            self.last.set(Some(*problem));
            if self.refuses {
                return Ok(None);
            }
            let (of, scaled) = match problem.factors {
                Factors::Plain => (None, false),
                Factors::Codes(of) => (Some(of), false),
                Factors::ScaledCodes(of) => (Some(of), true),
            };
            if self.scales_nothing && scaled {
                return Ok(None);
            }
            let factor_type = if of.is_some() { DType::U8 } else { problem.dtype };
            for tensor in [operands.x, operands.weight] {
                assert!(tensor.is_contiguous() && tensor.dtype() == factor_type);
            }
            for tensor in [operands.bias, operands.residual].into_iter().flatten() {
                assert!(tensor.is_contiguous() && tensor.dtype() == problem.dtype);
            }
            if problem.dtype == DType::I32 {
                assert!(!problem.bias && !problem.gelu && !problem.residual, "whole numbers are summed only");
            }
            assert_eq!(scaled, operands.scales.is_some());
            let ones = |count| Tensor::ones(count, DType::F32, operands.x.device());
            let (row_scales, token_scales) = match operands.scales {
                Some([weight, x]) => (f64s(weight)?, f64s(x)?),
                None => (f64s(&ones(problem.out)?)?, f64s(&ones(problem.tokens)?)?),
            };
            let factors = |x: &Tensor| match of {
                None => f64s(x),
                Some(of) => {
                    let values = of.format().decode(&x.flatten_all()?.to_vec1::<u8>()?, 1, None)?;
                    Ok(values.into_iter().map(f64::from).collect())
                }
            };
            assert_eq!(
                (problem.bias, problem.residual),
                (operands.bias.is_some(), operands.residual.is_some())
            );
            let (a, b, d) = (problem.a(), problem.b(), problem.d());
            let at = |layout: Layout, row: usize, column: usize| {
                assert!(row < layout.rows && column < layout.columns && layout.rows <= layout.stride);
                column * layout.stride + row
            };
            let (weight, x) = (factors(operands.weight)?, factors(operands.x)?);
            let (bias, c) = (operands.bias.map(f64s).transpose()?, operands.residual.map(f64s).transpose()?);
            let mut y = vec![0f32; d.stride * d.columns];
            for column in 0..d.columns {
                for row in 0..d.rows {
                    // Row and step of the transposed `A` are its column and row.
                    let mut sum: f64 =
                        (0..a.rows).map(|step| weight[at(a, step, row)] * x[at(b, step, column)]).sum();
                    sum *= row_scales[row] * token_scales[column];
                    sum += c.as_ref().map_or(0.0, |c| c[at(d, row, column)]);
                    sum += bias.as_ref().map_or(0.0, |bias| bias[row]);
                    if problem.gelu {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (sum + 0.044_715 * sum.powi(3));
                        sum *= 0.5 * (1.0 + inner.tanh());
                    }
                    y[at(d, row, column)] = sum as f32;
                }
            }
            let mut shape = operands.x.dims().to_vec();
            shape.pop();
            shape.push(problem.out);
            Tensor::from_vec(y, shape, operands.x.device())?.to_dtype(problem.dtype).map(Some)
        }
    }

    #[test]
    fn whatever_is_fused_the_layer_is_the_same() -> Result<()> {
        use Activation::{GeluTanh, None as No, Silu};
        let library = StandIn::default();
        for (dtype, tolerance) in TYPES {
            for (batch, tokens, depth, out) in [(1, 1, 8, 8), (2, 5, 24, 17), (3, 2, 7, 40)] {
                let (x, w) = (random((batch, tokens, depth), 1)?, random((out, depth), 2)?);
                let w = (w / (depth as f64).sqrt())?;
                let (b, r) = (random(out, 3)?, random((batch, tokens, out), 4)?);
                let (x, w, r) = (put(&x, dtype)?, put(&w, dtype)?, put(&r, dtype)?);
                for activation in [No, GeluTanh, Silu] {
                    for bias_type in [Option::None, Some(DType::F32), Some(dtype)] {
                        let bias = bias_type.map(|t| put(&b, t)).transpose()?;
                        for residual in [Option::None, Some(&r)] {
                            let mut expected = seen(&x)?.broadcast_matmul(&seen(&w)?.t()?)?;
                            if let Some(bias) = &bias {
                                expected = expected.broadcast_add(&seen(bias)?)?;
                            }
                            expected = activation.definition(&expected)?;
                            if let Some(r) = residual {
                                expected = (expected + seen(r)?)?;
                            }
                            let y = linear(&library, &x, &w, bias.as_ref(), activation, residual)?;
                            let y = y.ok_or_else(|| candle_core::Error::msg("it is not refused"))?;
                            assert_result(&y, dtype, &expected, tolerance * 3.0)?;
                            let problem = library.last.get().unwrap();
                            assert_eq!(problem.bias, bias_type == Some(dtype));
                            let typed = bias_type.is_none_or(|t| t == dtype);
                            assert_eq!(problem.gelu, activation == GeluTanh && typed);
                            assert_eq!(problem.residual, residual.is_some() && activation == No);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn products_of_codes_are_those_of_what_they_stand_for() -> Result<()> {
        use Activation::{GeluTanh, None as No, Silu};
        for of in [EightBits::F8E4M3, EightBits::Int8] {
            for (dtype, tolerance) in TYPES {
                for (batch, tokens, depth, out) in [(1, 1, 16, 16), (2, 5, 48, 32), (3, 2, 16, 80)] {
                    let x = put(&random((batch, tokens, depth), 1)?, dtype)?;
                    let (w, b) = (random((out, depth), 2)?, random(out, 3)?);
                    let (w, b) = (put(&w, DType::F32)?, put(&b, DType::F32)?);
                    let r = put(&random((batch, tokens, out), 4)?, dtype)?;
                    let (x, w) = (Coded::of(&x, of)?, Coded::of(&w, of)?);
                    let product = x.decode(DType::F64)?.broadcast_matmul(&w.decode(DType::F64)?.t()?)?;
                    for activation in [No, GeluTanh, Silu] {
                        for (bias, residual) in [(None, None), (Some(&b), None), (Some(&b), Some(&r))] {
                            let mut expected = product.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                            if let Some(bias) = bias {
                                expected = expected.broadcast_add(&seen(bias)?)?;
                            }
                            expected = activation.definition(&expected)?;
                            if let Some(r) = residual {
                                expected = (expected + seen(r)?)?;
                            }
                            for scales_nothing in [false, true] {
                                let library = StandIn { scales_nothing, ..StandIn::default() };
                                let y =
                                    eight_bit_linear(&library, &x, &w, dtype, bias, activation, residual)?;
                                assert_result(&y.unwrap(), dtype, &expected, tolerance * 3.0)?;
                                let by_library = matches!(
                                    library.last.get().unwrap().factors,
                                    Factors::ScaledCodes(EightBits::F8E4M3)
                                );
                                let can = of == EightBits::F8E4M3 && dtype != DType::F32 && !scales_nothing;
                                assert_eq!(by_library, can);
                                let Problem { bias: added, gelu, .. } = library.last.get().unwrap();
                                assert_eq!(added, can && bias.is_some());
                                assert_eq!(gelu, can && activation == GeluTanh);
                            }
                            let library = StandIn { refuses: true, ..StandIn::default() };
                            let y = eight_bit_linear(&library, &x, &w, dtype, bias, activation, residual)?;
                            assert!(y.is_none());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_done_is_left_to_others() -> Result<()> {
        let (x, w) = (random((3, 8), 1)?, random((5, 8), 2)?);
        let run = |library: &StandIn, x: &Tensor, w: &Tensor| {
            linear(library, x, w, Option::None, Activation::None, Option::None).map(|y| y.is_some())
        };
        let library = StandIn::default();
        assert!(run(&library, &x, &w)?);
        assert!(!run(&StandIn { refuses: true, ..StandIn::default() }, &x, &w)?);
        assert!(!run(&library, &x.to_dtype(DType::F16)?, &w)?, "types differ");
        assert!(!run(&library, &x.to_dtype(DType::F64)?, &w.to_dtype(DType::F64)?)?);
        assert!(!run(&library, &x.narrow(0, 0, 0)?, &w)?, "no tokens");
        assert!(!run(&library, &x, &random((8, 5), 2)?.t()?)?, "the weight is no row after another");
        assert!(run(&library, &random((8, 3), 1)?.t()?, &w)?, "tokens are copied");
        Ok(())
    }

    #[test]
    fn every_problem_has_its_own_key() {
        let problem = Problem {
            dtype: DType::F16,
            factors: Factors::Plain,
            out: 640,
            tokens: 4096,
            depth: 1280,
            bias: true,
            gelu: false,
            residual: true,
        };
        assert_eq!(problem.key(), "linear f16 4096x1280x640 bias residual");
        let others = [
            Problem { dtype: DType::BF16, ..problem },
            Problem { factors: Factors::Codes(EightBits::F8E4M3), ..problem },
            Problem { factors: Factors::ScaledCodes(EightBits::F8E4M3), ..problem },
            Problem { factors: Factors::Codes(EightBits::Int8), ..problem },
            Problem { out: 641, ..problem },
            Problem { tokens: 4097, ..problem },
            Problem { depth: 1281, ..problem },
            Problem { bias: false, ..problem },
            Problem { gelu: true, ..problem },
            Problem { residual: false, ..problem },
        ];
        for other in others {
            assert_ne!(other.key(), problem.key(), "{other:?}");
        }
    }

    #[test]
    fn algorithms_are_read_as_they_were_written() {
        let algorithm = Algorithm { words: [0, 1, u64::MAX, 3, 4, 5, 6, 1 << 63], workspace_bytes: 1 << 22 };
        assert_eq!(Algorithm::parse(&algorithm.text()), Some(algorithm));
        let text = algorithm.text();
        for bad in
            ["", "1 2 3", &text[1..], &text[..text.len() - 8], &format!("{text} 1"), &format!("{text}x")]
        {
            assert_eq!(Algorithm::parse(bad), None, "{bad}");
        }
    }
}
