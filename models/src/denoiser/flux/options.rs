//! How a transformer is held: which of its weights stay in memory, and in which range it computes.

use candle_core::DType;

/// Where the weights of the modulation's linear layers are (3.25 B of the 11.9 B of FLUX.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModulationWeights {
    /// In memory.
    #[default]
    Resident,
    /// In the checkpoint: each is read, used for all steps of a run and dropped, in every
    /// [`context`](super::FluxTransformer::context).
    Streamed,
}

/// Where the blocks' other weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockWeights {
    /// In memory.
    #[default]
    Resident,
    /// In the checkpoint: every run reads block by block, the next one while the present one computes. Two blocks are
    /// in memory at a time.
    Streamed,
}

/// How a [`FluxTransformer`](super::FluxTransformer) is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FluxOptions {
    /// The modulation's weights.
    pub modulation: ModulationWeights,
    /// The blocks' weights.
    pub blocks: BlockWeights,
    /// The type of the activations between operations; sums are f32 in any case.
    pub activations: DType,
    /// The residual stream holds its values divided by this power of two, so that they stay within f16's range. Every
    /// reader of the stream is a layer normalisation, which undoes it exactly.
    pub residual_scale: f64,
}

impl Default for FluxOptions {
    fn default() -> Self {
        Self {
            modulation: ModulationWeights::default(),
            blocks: BlockWeights::default(),
            activations: DType::F32,
            residual_scale: 1.0,
        }
    }
}

/// Bytes of some weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// In the type they are held in.
    pub total: u64,
    /// Those that stay in memory between runs.
    pub resident: u64,
}

/// What a transformer's weights take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightReport {
    /// Attention and feed-forward layers of all blocks.
    pub blocks: WeightBytes,
    /// What turns timestep, guidance and pooled prompt into the modulation vectors.
    pub modulation: WeightBytes,
    /// The embedders of latents and prompt, and the last projection.
    pub other: WeightBytes,
    /// The most that is read for a moment while a run or a context is computed: streamed layers or blocks.
    pub transient: u64,
}
