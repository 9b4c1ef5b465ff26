//! Merging into weights, and undoing it.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::file::{LoraFile, Module};
use super::matching::LayerShapes;
use super::{LoraReport, Target};
use crate::checkpoint::Weights;
use crate::{Error, Result};

/// Which layers of a pipeline's weights are changed at present.
#[derive(Debug, Default)]
pub struct MergedLoras {
    layers: BTreeSet<(Target, String)>,
}

impl MergedLoras {
    /// Whether a component differs from its checkpoint.
    pub fn changes(&self, target: Target) -> bool {
        self.layers.iter().any(|(changed, _)| *changed == target)
    }

    /// Makes the weights "base + these LoRAs, in this order", whatever was merged before.
    ///
    /// Each changed layer is computed from its base, which is read from the checkpoint again, and written once; a
    /// layer that was changed before and no longer is gets its base back bit for bit. A LoRA of scale 0 is checked
    /// and reported as the others, and changes nothing.
    ///
    /// # Errors
    /// Where a file matches no layer, does not fit one, or a scale is not finite; then nothing is changed. Where a
    /// file can no longer be read while it is merged, some layers may be; the next call puts that right.
    pub fn set(
        &mut self,
        components: &[(Target, &Weights)],
        loras: &[(&LoraFile, f64)],
    ) -> Result<Vec<LoraReport>> {
        let shapes: Vec<(Target, LayerShapes)> =
            components.iter().map(|(t, w)| (*t, w.layer_shapes())).collect();
        let mut changes: BTreeMap<(Target, String), Vec<Change<'_>>> = BTreeMap::new();
        let mut reports = Vec::with_capacity(loras.len());
        for &(file, scale) in loras {
            if !scale.is_finite() {
                let text =
                    format!("{}: the scale is {scale}, a finite number is needed", file.path().display());
                return Err(Error::invalid(text));
            }
            let matched = file.matched(&shapes)?;
            reports.push(matched.report);
            if scale != 0.0 {
                for (target, layer, module) in matched.modules {
                    changes.entry((target, layer)).or_default().push(Change { file, module, scale });
                }
            }
        }
        let weights: BTreeMap<Target, &Weights> = components.iter().copied().collect();
        if let Some((target, layer)) = self.layers.iter().find(|(target, _)| !weights.contains_key(target)) {
            return Err(Error::invalid(format!(
                "{target}'s {layer} is changed by a LoRA: its weights are needed"
            )));
        }
        let undone: Vec<_> =
            self.layers.iter().filter(|layer| !changes.contains_key(layer)).cloned().collect();
        for key in undone {
            weights[&key.0].restore(&key.1)?;
            self.layers.remove(&key);
        }
        for (key, changes) in changes {
            let weights = weights[&key.0];
            let mut weight = weights.base(&key.1)?;
            for change in changes {
                weight = change.apply(&weight)?;
            }
            self.layers.insert(key.clone());
            weights.replace(&key.1, &weight)?;
        }
        Ok(reports)
    }
}

/// One LoRA's part in one layer.
struct Change<'a> {
    file: &'a LoraFile,
    module: &'a Module,
    scale: f64,
}

impl Change<'_> {
    /// `weight`: the layer's weight so far, f32.
    fn apply(&self, weight: &Tensor) -> Result<Tensor> {
        let Module { factors, magnitude, scale, .. } = self.module;
        let file = &self.file.file;
        let difference = factors.compute(file, weight.device())?.reshape(weight.dims())?;
        match magnitude {
            None => Ok((weight + (difference * (scale * self.scale))?)?),
            Some(magnitude) => magnitude.apply(file, weight, &(difference * *scale)?, self.scale),
        }
    }
}
