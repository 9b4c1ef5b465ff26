//! What a transformer's weights take in memory.

use super::FluxTransformer;
use super::options::{WeightBytes, WeightReport};
use crate::checkpoint::stream::transient_bytes;

/// Whether a layer turns timestep, guidance and pooled prompt into modulation vectors.
fn is_modulation(layer: &str) -> bool {
    layer.starts_with("time_text_embed.") || layer.ends_with(".linear")
}

impl FluxTransformer {
    /// What its weights take at present: matrices, in the types they are held in. Biases and the normalisations of
    /// queries and keys, under a thousandth of the whole, are left out.
    pub fn weight_report(&self) -> WeightReport {
        let mut report = WeightReport::default();
        let bytes = |layer: &str| self.weights.weight_bytes(layer).unwrap_or_default();
        for layer in self.weights.layer_shapes().keys() {
            let part = if is_modulation(layer) {
                &mut report.modulation
            } else if layer.contains("transformer_blocks.") {
                &mut report.blocks
            } else {
                &mut report.other
            };
            let (total, resident) = bytes(layer);
            *part = WeightBytes { total: part.total + total, resident: part.resident + resident };
        }
        let blocks = transient_bytes(self.blocks.iter().map(|(_, stage)| stage));
        report.transient = blocks.max(transient_bytes(self.modulation.stages().iter()));
        report
    }
}
