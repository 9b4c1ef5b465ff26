//! Scaled dot-product attention.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::cpu::{self, Level, Line, PANEL, Shared, by_level, for_each_piece, math};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// Which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those at its own position and before: CLIP's text encoders.
    Causal,
}

/// `softmax(scale * q k^T) v`, head by head.
///
/// `q`: `(batch, queries, heads * d)`; `k`, `v`: `(batch, keys, heads * d)`, heads side by side in the channels;
/// returns `(batch, queries, heads * d)`. `scale` is `1 / sqrt(d)` in every model here.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v, heads)?;
    let scale = f64::from(1.0 / (sizes.d as f32).sqrt());
    let scores = Scores { mask, scale, bias: None };
    run(q, k, v, sizes, scores)
}

/// `softmax(scale * q k^T + bias) v`, head by head: T5, whose `scale` is 1 and whose bias tells positions apart.
///
/// Shapes as for [`attention`]; `bias`: `(heads, queries, keys)`, the same for every sample. Scores are scaled,
/// moved and normalised in f32 whatever the type of `q`.
pub fn biased_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f64,
    bias: &Tensor,
) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v, heads)?;
    if bias.dims() != [heads, sizes.queries, sizes.keys] {
        let Sizes { queries, keys, .. } = sizes;
        bail!("attention: a bias of {:?} for {heads} heads, {queries} queries, {keys} keys", bias.dims());
    }
    run(q, k, v, sizes, Scores { mask: Mask::None, scale, bias: Some(bias) })
}

fn run(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, scores: Scores<'_>) -> Result<Tensor> {
    if q.device().is_cpu() {
        on_cpu(Level::best(), q, k, v, sizes, scores)
    } else if gpu::takes(q) {
        on_gpu(q, k, v, sizes, scores)
    } else {
        definition(q, k, v, sizes, scores)
    }
}

/// What becomes of the products of queries and keys.
#[derive(Clone, Copy)]
struct Scores<'a> {
    mask: Mask,
    scale: f64,
    /// `(heads, queries, keys)`
    bias: Option<&'a Tensor>,
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    d: usize,
    queries: usize,
    keys: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Self> {
        let (batch, queries, channels) = q.dims3()?;
        let (_, keys, _) = k.dims3()?;
        if heads == 0 || channels % heads != 0 {
            bail!("attention: {channels} channels cannot be divided into {heads} heads");
        }
        if keys == 0 || k.dims() != [batch, keys, channels] || v.dims() != k.dims() {
            bail!(
                "attention: keys of shape {:?} and values of {:?} for queries of {:?}",
                k.dims(),
                v.dims(),
                q.dims()
            );
        }
        Ok(Self { batch, heads, d: channels / heads, queries, keys })
    }
}

fn definition(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, how: Scores<'_>) -> Result<Tensor> {
    let Sizes { batch, heads, d, queries, keys } = sizes;
    let split = |t: &Tensor, n: usize| t.reshape((batch, n, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let mut scores = q.matmul(&k.t()?.contiguous()?)?;
    scores = match how.bias {
        None => (scores * how.scale)?,
        // What is added to the scores can need more range and digits than half types have.
        Some(bias) => {
            (scores.to_dtype(DType::F32)? * how.scale)?.broadcast_add(&bias.to_dtype(DType::F32)?)?
        }
    };
    if how.mask == Mask::Causal {
        let row = |i: usize| (0..keys).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
        let m: Vec<f32> = (0..queries).flat_map(row).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(m, (queries, keys), q.device())?)?;
    }
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    weights.to_dtype(v.dtype())?.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, heads * d))
}

fn on_gpu(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, how: Scores<'_>) -> Result<Tensor> {
    let same = |t: &Tensor| t.to_dtype(q.dtype())?.contiguous();
    let (q, k, v) = (q.contiguous()?, same(k)?, same(v)?);
    let bias = how.bias.map(floats).transpose()?;
    let how = Scores { bias: bias.as_ref(), ..how };
    #[cfg(target_os = "linux")]
    if let Some(y) = on_cudnn(&q, &k, &v, sizes, how)? {
        return Ok(y);
    }
    by_own_kernels(&q, &k, &v, sizes, how)
}

/// One kernel of cuDNN's, or `None` where it has none: f32, sm_75, heads whose channels are no multiple of 8.
///
/// Tensors are contiguous, of one type but for the bias in f32.
#[cfg(target_os = "linux")]
fn on_cudnn(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, how: Scores<'_>) -> Result<Option<Tensor>> {
    use gpu::cudnn::{Attention, Request, attention};

    let Sizes { batch, heads, d, queries, keys } = sizes;
    let Some(of) = gpu::cudnn_type(q.dtype()).filter(|_| gpu::multiplies(q)) else { return Ok(None) };
    let request = Attention {
        of,
        batch,
        heads,
        d,
        queries,
        keys,
        scale: (how.scale as f32).to_bits(),
        causal: how.mask == Mask::Causal,
        bias: how.bias.is_some(),
    };
    let mut tensors = vec![(attention::Q, q), (attention::K, k), (attention::V, v)];
    tensors.extend(how.bias.map(|b| (attention::BIAS, b)));
    gpu::ask_cudnn(&Request::Attention(request), &tensors, attention::Y, q.shape(), q.dtype())
}

fn by_own_kernels(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, how: Scores<'_>) -> Result<Tensor> {
    match HEAD_DIMENSIONS.into_iter().find(|&dimension| sizes.d <= dimension) {
        Some(dimension) if gpu::multiplies(q) => fused(q, k, v, dimension, sizes, how),
        _ => in_parts(q, k, v, SCORE_BYTES, sizes, how),
    }
}

/// What the fused kernel is compiled for; smaller heads are filled up with zeros on the way.
const HEAD_DIMENSIONS: [usize; 5] = [48, 64, 80, 128, 160];

/// One kernel, which keeps the scores to itself; f16 or bf16 on tensor cores.
fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    dimension: usize,
    sizes: Sizes,
    how: Scores<'_>,
) -> Result<Tensor> {
    // Those of attention.cu: queries of a block, keys of a tile, what is between rows in shared memory.
    const QUERIES: usize = 64;
    const KEYS: usize = 64;
    const GAP: usize = 8;
    let Sizes { batch, heads, d, queries, keys } = sizes;
    let launch = Launch::typed("attention", &format!("attention_{dimension}"), q.dtype())?;
    let launch = launch.input(q).input(k).input(v).optional(how.bias).output(q.shape(), q.dtype());
    let launch = launch.int(queries).int(keys).int(d).float(how.scale);
    let launch = launch.int(usize::from(how.mask == Mask::Causal));
    let tiles = 2 * KEYS * (dimension + GAP) * q.dtype().size_in_bytes();
    launch.shared(tiles).blocks([queries.div_ceil(QUERIES), heads, batch], 128)
}

/// Bytes of scores that are in memory at once.
const SCORE_BYTES: usize = 256 << 20;

/// Product, softmax, product, for some of the queries at a time: any head dimension, f32 too.
fn in_parts(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    score_bytes: usize,
    sizes: Sizes,
    how: Scores<'_>,
) -> Result<Tensor> {
    let Sizes { batch, heads, d, queries, keys } = sizes;
    let dtype = q.dtype();
    let split = |t: &Tensor, n: usize| {
        t.reshape((batch, n, heads, d))?.transpose(1, 2)?.contiguous()?.reshape((batch * heads, n, d))
    };
    // Products must stay in f16's range, and a power of two costs no digits: the rest of the scale comes later, in f32.
    let before = how.scale.log2().floor().exp2().min(1.0);
    let (q, k, v) = (split(&(q * before)?, queries)?, split(k, keys)?.t()?, split(v, keys)?);
    let most = (score_bytes / (batch * heads * keys * dtype.size_in_bytes())).max(1);
    let mut parts = Vec::new();
    for first in (0..queries).step_by(most) {
        let count = most.min(queries - first);
        let scores = gpu::product(&q.narrow(1, first, count)?.contiguous()?, &k)?;
        let rows = batch * heads * count;
        let launch = Launch::typed("attention", "softmax", dtype)?.input(&scores).optional(how.bias);
        let launch = launch.output(scores.shape(), dtype).int(rows).int(count).int(first).int(queries);
        let launch = launch.int(heads).int(keys).float(how.scale / before);
        let weights = launch.int(usize::from(how.mask == Mask::Causal)).for_each_row(rows)?;
        parts.push(gpu::product(&weights, &v)?);
    }
    let y = Tensor::cat(&parts, 1)?.reshape((batch, heads, queries, d))?;
    y.transpose(1, 2)?.reshape((batch, queries, heads * d))
}

/// Queries of a piece of work, and keys of a pass over them: a block of scores stays in the second-level cache.
const QUERIES: usize = 56;
const KEYS: usize = 512;

fn on_cpu(
    level: Level,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sizes: Sizes,
    scores: Scores<'_>,
) -> Result<Tensor> {
    let dtype = q.dtype();
    let bias = scores.bias.map(floats).transpose()?;
    let bias = bias.as_ref().map(cpu::elements).transpose()?;
    let (q, k, v) = (floats(q)?, floats(k)?, floats(v)?);
    let (q, k, v) = (cpu::elements(&q)?, cpu::elements(&k)?, cpu::elements(&v)?);
    let Sizes { batch, heads, d, queries, keys } = sizes;
    let packed = Packed::new(&k, &v, sizes);
    let blocks = queries.div_ceil(QUERIES).max(1);
    let rows = queries.div_ceil(blocks).max(1);
    let blocks = queries.div_ceil(rows);
    let steps = 2 * batch * heads * d * queries * keys;
    let fill = |out| {
        let out = Shared::new(out);
        for_each_piece(batch * heads * blocks, steps, |piece| {
            let first = piece % blocks * rows;
            let head = piece / blocks;
            let bias = bias.as_deref().map(|b| &b[head % heads * queries * keys..][..queries * keys]);
            let Scores { mask, scale, .. } = scores;
            let block =
                Block { head, first, end: queries.min(first + rows), mask, scale: scale as f32, bias };
            // SAFETY: `out` has the shape below; no two pieces have a head and a query in common.
            unsafe { block.run(level, &q, &packed, sizes, out) };
        });
    };
    // SAFETY: the pieces cover all heads of all queries.
    unsafe { cpu::from_parts((batch, queries, heads * d), fill) }?.to_dtype(dtype)
}

/// Keys and values as panels for the matrix kernel, head after head.
struct Packed {
    lines: Vec<Line>,
    /// Panels of 16 keys, and of 16 channels of the values.
    key_panels: usize,
    value_panels: usize,
    sizes: Sizes,
}

impl Packed {
    fn new(k: &[f32], v: &[f32], sizes: Sizes) -> Self {
        let Sizes { batch, heads, d, keys, .. } = sizes;
        let (key_panels, value_panels) = (keys.div_ceil(PANEL), d.div_ceil(PANEL));
        let panels = key_panels + value_panels;
        let mut packed = Self { lines: Vec::new(), key_panels, value_panels, sizes };
        let len = batch * heads * packed.lines_of_a_head();
        let mut lines = Vec::<Line>::with_capacity(len);
        let shared = Shared::new(lines.as_mut_ptr().cast());
        for_each_piece(batch * heads * panels, batch * heads * keys * d, |piece| {
            let (head, panel) = (piece / panels, piece % panels);
            let (is_key, panel, steps) =
                if panel < key_panels { (true, panel, d) } else { (false, panel - key_panels, keys) };
            let offset =
                head * packed.lines_of_a_head() + if is_key { 0 } else { key_panels * d } + panel * steps;
            // SAFETY: the panels follow each other in the capacity reserved above, and each piece has one of them.
            let to = unsafe {
                let to = shared.at(offset * PANEL).cast::<Line>();
                to.write_bytes(0, steps);
                std::slice::from_raw_parts_mut(to, steps)
            };
            let at = |key: usize| ((head / heads) * keys + key) * heads * d + head % heads * d;
            if is_key {
                for (lane, key) in (panel * PANEL..keys.min((panel + 1) * PANEL)).enumerate() {
                    to.iter_mut().zip(&k[at(key)..][..d]).for_each(|(to, &k)| to.0[lane] = k);
                }
            } else {
                let columns = panel * PANEL..d.min((panel + 1) * PANEL);
                for (key, to) in to.iter_mut().enumerate() {
                    to.0[..columns.len()].copy_from_slice(&v[at(key)..][columns.clone()]);
                }
            }
        });
        // SAFETY: the pieces have written all panels.
        unsafe { lines.set_len(len) };
        packed.lines = lines;
        packed
    }

    fn lines_of_a_head(&self) -> usize {
        self.key_panels * self.sizes.d + self.value_panels * self.sizes.keys
    }

    /// The panel of a head's keys that begins with key `first`, and the distance of panels in floats.
    fn keys(&self, head: usize, first: usize) -> (*const f32, usize) {
        let d = self.sizes.d;
        (self.lines[head * self.lines_of_a_head() + first / PANEL * d..].as_ptr().cast(), d * PANEL)
    }

    /// The first panel of a head's values from key `first` on, and the distance of panels in floats.
    fn values(&self, head: usize, first: usize) -> (*const f32, usize) {
        let (d, keys) = (self.sizes.d, self.sizes.keys);
        (
            self.lines[head * self.lines_of_a_head() + self.key_panels * d + first..].as_ptr().cast(),
            keys * PANEL,
        )
    }
}

/// A block of queries of one head, counted over the batch.
struct Block<'a> {
    head: usize,
    first: usize,
    end: usize,
    mask: Mask,
    scale: f32,
    /// The head's, for all queries.
    bias: Option<&'a [f32]>,
}

impl Block<'_> {
    /// Online softmax: the keys come in blocks, and what was summed is scaled down where a larger score appears.
    /// Source: Milakov and Gimelshein 2018; Dao et al. 2022.
    ///
    /// # Safety
    /// `out` must have room for the attention's result, and nobody else may write these queries of this head.
    unsafe fn run(&self, level: Level, q: &[f32], packed: &Packed, sizes: Sizes, out: Shared) {
        let Sizes { heads, d, queries, keys, .. } = sizes;
        let channels = heads * d;
        let at = |row: usize| ((self.head / heads) * queries + row) * channels + self.head % heads * d;
        let rows: Vec<*const f32> = (self.first..self.end).map(|row| q[at(row)..][..d].as_ptr()).collect();
        // A panel's width more than the block, so that rows do not lie a power of two apart.
        let stride = KEYS.min(keys).next_multiple_of(PANEL) + PANEL;
        let mut scores = vec![0.0; rows.len() * stride];
        let mut softmax = vec![Softmax::START; rows.len()];
        let seen = if self.mask == Mask::Causal { keys.min(self.end) } else { keys };
        for first in (0..seen).step_by(KEYS) {
            let len = KEYS.min(seen - first);
            let columns = len.next_multiple_of(PANEL);
            let to = (scores.as_mut_ptr(), stride, columns);
            // SAFETY: the rows have `d` floats, the panels `d` steps, the scores room for `columns`.
            unsafe { cpu::multiply_all(level, (&rows, d), packed.keys(self.head, first), to, false) };
            for (i, (scores, state)) in scores.chunks_exact_mut(stride).zip(&mut softmax).enumerate() {
                let row = self.first + i;
                let visible =
                    if self.mask == Mask::Causal { (row + 1).saturating_sub(first).min(len) } else { len };
                let factor = match self.bias {
                    None => self.scale,
                    Some(bias) => {
                        move_scores(
                            level,
                            &mut scores[..len],
                            self.scale,
                            &bias[row * keys + first..][..len],
                        );
                        1.0
                    }
                };
                let shrink = weigh(level, &mut scores[..columns], visible, factor, state);
                if first > 0 && shrink != 1.0 {
                    // SAFETY: the row lies within the result, is this piece's own, and was written for the first keys.
                    scale(level, unsafe { std::slice::from_raw_parts_mut(out.at(at(row)), d) }, shrink);
                }
            }
            let score_rows: Vec<*const f32> = scores.chunks_exact(stride).map(<[f32]>::as_ptr).collect();
            let to = (out.at(at(self.first)), channels, d);
            // SAFETY: the scores have `len` floats a row, the values' panels as many steps; the rows are this piece's.
            unsafe {
                cpu::multiply_all(level, (&score_rows, len), packed.values(self.head, first), to, first > 0)
            };
        }
        for (row, state) in (self.first..self.end).zip(&softmax) {
            // SAFETY: the row lies within the result, is this piece's own and was written.
            scale(level, unsafe { std::slice::from_raw_parts_mut(out.at(at(row)), d) }, 1.0 / state.sum);
        }
    }
}

/// The largest score of a row so far, and the sum of all weights relative to it.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    const START: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// Turns the first `visible` scores into weights `e^(factor (score - max))` and the others into 0; returns what the
/// earlier weights must be multiplied by.
#[inline(always)]
fn weigh_body<const FUSED: bool>(
    scores: &mut [f32],
    visible: usize,
    factor: f32,
    state: &mut Softmax,
) -> f32 {
    scores[visible..].fill(f32::NEG_INFINITY);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut largest = [state.max; PANEL];
    for scores in scores.chunks_exact(PANEL) {
        largest.iter_mut().zip(scores).for_each(|(m, &s)| *m = larger(*m, s));
    }
    let max = math::fold(largest, larger);
    let offset = -max * factor;
    let mut sums = [0.0; PANEL];
    for scores in scores.chunks_exact_mut(PANEL) {
        for (sum, s) in sums.iter_mut().zip(scores) {
            *s = math::exp_below_88::<FUSED>(math::mul_add::<FUSED>(*s, factor, offset));
            *sum += *s;
        }
    }
    let shrink = if state.max == max { 1.0 } else { math::exp_below_88::<FUSED>((state.max - max) * factor) };
    *state = Softmax { max, sum: state.sum * shrink + math::fold(sums, |a, b| a + b) };
    shrink
}

#[inline(always)]
fn scale_body<const FUSED: bool>(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

#[inline(always)]
fn move_scores_body<const FUSED: bool>(scores: &mut [f32], scale: f32, bias: &[f32]) {
    scores.iter_mut().zip(bias).for_each(|(s, b)| *s = math::mul_add::<FUSED>(*s, scale, *b));
}

by_level! { fn move_scores(scores: &mut [f32], scale: f32, bias: &[f32]) = move_scores_body; }
by_level! { fn weigh(scores: &mut [f32], visible: usize, factor: f32, state: &mut Softmax) -> f32 = weigh_body; }
by_level! { fn scale(x: &mut [f32], factor: f32) = scale_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{TYPES, assert_result, put, seen};
    use crate::testing::{assert_close, f64s, random, same_bytes, with_threads};

    fn inputs(s: Sizes) -> Result<[Tensor; 3]> {
        let channels = s.heads * s.d;
        // Scores spread over several units, so that the softmax is neither flat nor a single key.
        let q = (random((s.batch, s.queries, channels), 1)? * 6.0)?;
        Ok([q, random((s.batch, s.keys, channels), 2)?, random((s.batch, s.keys, channels), 3)?])
    }

    fn sizes(batch: usize, heads: usize, d: usize, queries: usize, keys: usize) -> Sizes {
        Sizes { batch, heads, d, queries, keys }
    }

    #[test]
    fn every_level_gives_the_definition() -> Result<()> {
        for s in [
            sizes(1, 1, 1, 1, 1),
            sizes(2, 3, 40, 30, 77),
            sizes(1, 2, 64, 77, 77),
            sizes(1, 1, 33, 13, 513),
            sizes(2, 2, 8, 130, 1100),
            sizes(1, 2, 128, 70, 600),
            sizes(1, 1, 512, 20, 40),
        ] {
            let [q, k, v] = inputs(s)?;
            let bias = (random((s.heads, s.queries, s.keys), 4)? * 4.0)?;
            let plain = |mask| Scores { mask, scale: 1.0 / (s.d as f64).sqrt(), bias: None };
            let biased = Scores { mask: Mask::None, scale: 1.5 / (s.d as f64).sqrt(), bias: Some(&bias) };
            for how in [plain(Mask::None), plain(Mask::Causal), biased] {
                let expected = f64s(&definition(&q, &k, &v, s, how)?)?;
                for level in Level::available() {
                    assert_close(&on_cpu(level, &q, &k, &v, s, how)?, &expected, 3e-6)?;
                }
            }
        }
        Ok(())
    }

    /// The formula in f64, one number after the other.
    #[test]
    fn the_bias_of_a_head_query_and_key_is_added_to_their_score() -> Result<()> {
        let s = sizes(2, 3, 5, 7, 9);
        let [q, k, v] = inputs(s)?;
        let bias = (random((3, 7, 9), 4)? * 4.0)?;
        let (qs, ks, vs, bs) = (f64s(&q)?, f64s(&k)?, f64s(&v)?, f64s(&bias)?);
        let mut expected = vec![0.0; 2 * 7 * 15];
        for (b, h, i) in (0..2).flat_map(|b| (0..3).flat_map(move |h| (0..7).map(move |i| (b, h, i)))) {
            let at = |token: usize, c: usize| token * 15 + h * 5 + c;
            let dot = |j: usize| (0..5).map(|c| qs[at(b * 7 + i, c)] * ks[at(b * 9 + j, c)]).sum::<f64>();
            let weights: Vec<f64> = (0..9).map(|j| (2.0 * dot(j) + bs[(h * 7 + i) * 9 + j]).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for c in 0..5 {
                let mixed: f64 = (0..9).map(|j| weights[j] / sum * vs[at(b * 9 + j, c)]).sum();
                expected[at(b * 7 + i, c)] = mixed;
            }
        }
        let how = Scores { mask: Mask::None, scale: 2.0, bias: Some(&bias) };
        assert_close(&definition(&q, &k, &v, s, how)?, &expected, 1e-5)?;
        assert_close(&biased_attention(&q, &k, &v, 3, 2.0, &bias)?, &expected, 1e-5)?;
        assert!(biased_attention(&q, &k, &v, 3, 2.0, &bias.narrow(2, 0, 8)?).is_err());
        assert!(biased_attention(&q, &k, &v, 3, 2.0, &bias.narrow(0, 0, 1)?).is_err());
        Ok(())
    }

    #[test]
    fn threads_and_batches_change_no_byte_with_a_bias() -> Result<()> {
        let s = sizes(3, 4, 32, 200, 600);
        let [q, k, v] = inputs(s)?;
        let bias = random((4, 200, 600), 4)?;
        let all = with_threads(1, || biased_attention(&q, &k, &v, 4, 1.0, &bias))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || biased_attention(&q, &k, &v, 4, 1.0, &bias))?, &all)?;
        }
        for i in 0..3 {
            let one = |t: &Tensor| t.narrow(0, i, 1);
            same_bytes(&biased_attention(&one(&q)?, &one(&k)?, &one(&v)?, 4, 1.0, &bias)?, &one(&all)?)?;
        }
        Ok(())
    }

    #[test]
    fn a_causal_query_sees_nothing_behind_it() -> Result<()> {
        let s = sizes(1, 2, 16, 70, 70);
        let [q, k, v] = inputs(s)?;
        let y = attention(&q, &k, &v, 2, Mask::Causal)?;
        let (k, v) = (k.narrow(1, 0, 20)?, v.narrow(1, 0, 20)?);
        let short = attention(&q.narrow(1, 0, 20)?, &k, &v, 2, Mask::Causal)?;
        assert_close(&y.narrow(1, 0, 20)?, &f64s(&short)?, 1e-6)
    }

    #[test]
    fn threads_and_batches_change_no_byte() -> Result<()> {
        let s = sizes(3, 4, 32, 200, 600);
        let [q, k, v] = inputs(s)?;
        let all = with_threads(1, || attention(&q, &k, &v, 4, Mask::None))?;
        for threads in [2, 3] {
            same_bytes(&with_threads(threads, || attention(&q, &k, &v, 4, Mask::None))?, &all)?;
        }
        for i in 0..3 {
            let one = |t: &Tensor| t.narrow(0, i, 1);
            same_bytes(&attention(&one(&q)?, &one(&k)?, &one(&v)?, 4, Mask::None)?, &one(&all)?)?;
        }
        Ok(())
    }

    #[test]
    fn large_scores_stay_finite_and_nan_comes_through() -> Result<()> {
        let s = sizes(1, 1, 16, 5, 20);
        let [q, k, v] = inputs(s)?;
        let y = attention(&(&q * 1e4)?, &k, &v, 1, Mask::None)?;
        assert!(f64s(&y)?.iter().all(|v| v.is_finite()));
        let y = attention(&(&q * f64::NAN)?, &k, &v, 1, Mask::None)?;
        assert!(f64s(&y)?.iter().all(|v| v.is_nan()));
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let [q, k, v] = inputs(sizes(1, 2, 8, 4, 6))?;
        assert!(attention(&q, &k, &v, 3, Mask::None).is_err());
        assert!(attention(&q, &k, &v.narrow(1, 0, 5)?, 2, Mask::None).is_err());
        assert!(attention(&q, &k.narrow(2, 0, 8)?, &v.narrow(2, 0, 8)?, 2, Mask::None).is_err());
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_definition() -> Result<()> {
        for (dtype, tolerance) in TYPES {
            for s in [
                sizes(1, 1, 1, 1, 1),
                sizes(2, 3, 40, 30, 77),
                sizes(1, 2, 64, 77, 77),
                sizes(1, 1, 33, 13, 65),
                sizes(1, 2, 8, 70, 150),
                sizes(1, 2, 72, 20, 40),
                sizes(1, 1, 128, 20, 100),
                sizes(1, 1, 160, 9, 64),
                sizes(1, 1, 512, 20, 40),
            ] {
                let [q, k, v] = inputs(s)?;
                let (q, k, v) = (put(&q, dtype)?, put(&k, dtype)?, put(&v, dtype)?);
                let bias = put(&(random((s.heads, s.queries, s.keys), 4)? * 4.0)?, DType::F32)?;
                let plain = |mask| Scores { mask, scale: 1.0 / (s.d as f64).sqrt(), bias: None };
                let biased = Scores { mask: Mask::None, scale: 1.5 / (s.d as f64).sqrt(), bias: Some(&bias) };
                for how in [plain(Mask::None), plain(Mask::Causal), biased] {
                    let wide = how.bias.map(seen).transpose()?;
                    let expected_of = Scores { bias: wide.as_ref(), ..how };
                    let expected = definition(&seen(&q)?, &seen(&k)?, &seen(&v)?, s, expected_of)?;
                    // Weights are rounded to the type before they are multiplied with the values; scores too, where
                    // they are in memory, and then they are as far off as their size makes a rounding.
                    for arm in [on_gpu, by_own_kernels] {
                        assert_result(&arm(&q, &k, &v, s, how)?, dtype, &expected, 2.0 * tolerance)?;
                    }
                    let score_bytes = 7 * s.batch * s.heads * s.keys * dtype.size_in_bytes();
                    let y = in_parts(&q, &k, &v, score_bytes, s, how)?;
                    assert_result(&y, dtype, &expected, 8.0 * tolerance)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn nan_and_large_scores_come_through_the_cuda_arm() -> Result<()> {
        let s = sizes(1, 1, 16, 5, 70);
        let [q, k, v] = inputs(s)?;
        for (dtype, _) in TYPES {
            for arm in [on_gpu, by_own_kernels] {
                let run = |q: Tensor| {
                    let scores = Scores { mask: Mask::None, scale: 0.25, bias: None };
                    f64s(&arm(&put(&q, dtype)?, &put(&k, dtype)?, &put(&v, dtype)?, s, scores)?)
                };
                assert!(run((&q * 1e3)?)?.iter().all(|v| v.is_finite()), "{dtype:?}");
                assert!(run((&q * f64::NAN)?)?.iter().all(|v| v.is_nan()), "{dtype:?}");
            }
        }
        Ok(())
    }
}
