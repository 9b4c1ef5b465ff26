//! Merging into weights, and undoing it.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::file::{LoraFile, Module};
use super::layer_names::Slice;
use super::magnitude::squares_by_input;
use super::matching::{LayerShapes, Matched, MatchedModule};
use super::{LoraReport, Target};
use crate::checkpoint::Weights;
use crate::layers::LowRank;
use crate::{Error, Result};

/// Which layers of a pipeline's weights are changed at present.
#[derive(Debug, Default)]
pub struct MergedLoras {
    layers: BTreeMap<(Target, String), Changed>,
}

/// What of a layer is not as the checkpoint has it.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    weight: bool,
    bias: bool,
    /// Something is applied beside the weight.
    beside: bool,
}

impl MergedLoras {
    /// Whether a component differs from its checkpoint.
    pub fn changes(&self, target: Target) -> bool {
        self.layers.keys().any(|(changed, _)| *changed == target)
    }

    /// Makes the weights "base + these LoRAs, in this order", whatever was merged before.
    ///
    /// Each changed layer is computed from its base, which is read from the checkpoint again, and written once; a
    /// layer that was changed before and no longer is gets its base back bit for bit. A quantised or streamed layer keeps
    /// its weight where all its differences are of low rank, and they are applied beside it. A LoRA of scale 0 is checked
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
        let mut matched = Vec::with_capacity(loras.len());
        for &(file, scale) in loras {
            if !scale.is_finite() {
                let text =
                    format!("{}: the scale is {scale}, a finite number is needed", file.path().display());
                return Err(Error::invalid(text));
            }
            matched.push(file.matched(&shapes)?);
        }
        let plan = Plan::new(components, loras, &matched)?;
        if let Some((target, layer)) =
            self.layers.keys().find(|(target, _)| !plan.weights.contains_key(target))
        {
            return Err(Error::invalid(format!(
                "{target}'s {layer} is changed by a LoRA: its weights are needed"
            )));
        }
        let undone: Vec<_> =
            self.layers.keys().filter(|layer| !plan.changes.contains_key(layer)).cloned().collect();
        for key in undone {
            self.write(&plan, &key, Changed::default())?;
            self.layers.remove(&key);
        }
        for key in plan.changes.keys() {
            self.write(&plan, key, plan.changed(key))?;
        }
        let mut reports: Vec<_> = matched.iter().map(|m| m.report.clone()).collect();
        plan.count(&mut reports);
        Ok(reports)
    }

    /// Makes one layer what the plan says; `new`: what of it that changes.
    fn write(&mut self, plan: &Plan<'_>, key: &Key, new: Changed) -> Result<()> {
        let old = self.layers.get(key).copied().unwrap_or_default();
        // Until all is written, either may be there: so the next call undoes both.
        let either = Changed {
            weight: old.weight || new.weight,
            bias: old.bias || new.bias,
            beside: old.beside || new.beside,
        };
        self.layers.insert(key.clone(), either);
        let (weights, layer) = (plan.weights[&key.0], &key.1);
        if old.beside && !new.beside {
            weights.replace_low_rank(layer, Vec::new())?;
        }
        if new.weight {
            weights.replace(layer, &plan.weight(key, usize::MAX)?)?;
        } else if old.weight {
            weights.restore(layer)?;
        }
        if new.beside {
            weights.replace_low_rank(layer, plan.low_rank(key)?)?;
        }
        if new.bias {
            weights.replace_bias(layer, &plan.bias(key)?)?;
        } else if old.bias {
            weights.restore_bias(layer)?;
        }
        self.layers.insert(key.clone(), new);
        Ok(())
    }
}

type Key = (Target, String);

/// All changes of all layers.
struct Plan<'a> {
    weights: BTreeMap<Target, &'a Weights>,
    changes: BTreeMap<Key, Vec<Change<'a>>>,
}

/// One LoRA's part in one layer.
struct Change<'a> {
    /// Which of the LoRAs it is, in their order.
    number: usize,
    file: &'a LoraFile,
    matched: &'a MatchedModule<'a>,
    slice: &'a Slice,
    scale: f64,
}

impl<'a> Plan<'a> {
    fn new(
        components: &[(Target, &'a Weights)],
        loras: &[(&'a LoraFile, f64)],
        matched: &'a [Matched<'a>],
    ) -> Result<Self> {
        let weights: BTreeMap<Target, &Weights> = components.iter().copied().collect();
        let mut changes: BTreeMap<Key, Vec<Change<'_>>> = BTreeMap::new();
        for (number, (&(file, scale), found)) in loras.iter().zip(matched).enumerate() {
            for matched in &found.modules {
                for slice in &matched.slices {
                    let (target, layer) = (matched.target, &slice.layer);
                    if let Some(key) = &matched.module.bias
                        && !weights.get(&target).is_some_and(|w| w.has_bias(layer))
                    {
                        let reason = format!("{key} changes a bias, and {target}'s {layer} has none");
                        return Err(Error::file(file.path(), reason));
                    }
                    if scale != 0.0 {
                        let change = Change { number, file, matched, slice, scale };
                        changes.entry((target, layer.clone())).or_default().push(change);
                    }
                }
            }
        }
        Ok(Self { weights, changes })
    }

    /// What of a layer its changes are about.
    fn changed(&self, key: &Key) -> Changed {
        let (changes, weights) = (&self.changes[key], self.weights[&key.0]);
        let keeps = weights.is_encoded(&key.1) || weights.is_streamed(&key.1);
        let beside = keeps && changes.iter().all(Change::is_low_rank);
        Changed { weight: !beside, bias: changes.iter().any(|c| c.module().bias.is_some()), beside }
    }

    /// Says in the reports what became of quantised and streamed layers.
    fn count(&self, reports: &mut [LoraReport]) {
        for (key, changes) in &self.changes {
            let (beside, weights) = (self.changed(key).beside, self.weights[&key.0]);
            for change in changes {
                if let Some(report) = reports.get_mut(change.number) {
                    report.beside += usize::from(beside);
                    report.dequantized += usize::from(!beside && weights.is_encoded(&key.1));
                    report.resident += usize::from(!beside && weights.is_streamed(&key.1));
                }
            }
        }
    }

    /// A layer's weight in f32 with the changes of the first `before` LoRAs.
    fn weight(&self, key: &Key, before: usize) -> Result<Tensor> {
        let mut weight = self.weights[&key.0].base(&key.1)?;
        for change in self.changes.get(key).into_iter().flatten().filter(|c| c.number < before) {
            weight = self.apply(change, &weight)?;
        }
        Ok(weight)
    }

    /// `weight`: the layer's weight so far, f32.
    fn apply(&self, change: &Change<'_>, weight: &Tensor) -> Result<Tensor> {
        let Module { magnitude, scale, shape, .. } = change.module();
        let file = &change.file.file;
        let difference = change.difference(weight)?;
        let Some(magnitude) = magnitude else {
            return Ok((weight + (difference * (scale * change.scale))?)?);
        };
        let slices = &change.matched.slices;
        let is_split = slices.len() > 1 && magnitude.is_by_input(file, shape.0, weight.dims())?;
        let squares = if is_split { Some(self.squares(change)?) } else { None };
        let place = (shape.0, change.slice);
        magnitude.apply(file, weight, &(difference * *scale)?, change.scale, place, squares.as_ref())
    }

    /// For each input the sum of squares over all the layers that a module is fused of, changed by it in full.
    fn squares(&self, change: &Change<'_>) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for slice in &change.matched.slices {
            let weight = self.weight(&(change.matched.target, slice.layer.clone()), change.number)?;
            let change = Change { slice, ..*change };
            let changed = (&weight + (change.difference(&weight)? * change.module().scale)?)?;
            let squares = squares_by_input(&changed)?;
            sum = Some(match sum {
                Some(sum) => (sum + squares)?,
                None => squares,
            });
        }
        sum.ok_or_else(|| Error::invalid("a difference of no layer"))
    }

    /// A layer's bias with all its changes.
    fn bias(&self, key: &Key) -> Result<Tensor> {
        let mut bias = self.weights[&key.0].base_bias(&key.1)?;
        for change in &self.changes[key] {
            let Module { bias: Some(name), scale, .. } = change.module() else { continue };
            let difference = change.file.file.tensor(name, bias.device())?.to_dtype(DType::F32)?;
            let own = super::factors::join(&change.slice.rows, |rows| {
                Ok(difference.narrow(0, rows.start, rows.len())?)
            })?;
            bias = (bias + (own * (scale * change.scale))?)?;
        }
        Ok(bias)
    }

    /// A layer's changes, to be applied beside its weight.
    fn low_rank(&self, key: &Key) -> Result<Vec<LowRank>> {
        let device = self.weights[&key.0].device();
        let mut all = Vec::new();
        for change in &self.changes[key] {
            let Module { factors, scale, .. } = change.module();
            if let Some((down, up)) = factors.low_rank(&change.file.file, device, &change.slice.rows)? {
                all.push(LowRank::new(&down, &up, scale * change.scale)?);
            }
        }
        Ok(all)
    }
}

impl Change<'_> {
    fn module(&self) -> &Module {
        self.matched.module
    }

    /// Whether [`Plan::low_rank`] says all of it.
    fn is_low_rank(&self) -> bool {
        self.module().magnitude.is_none() && self.module().factors.is_low_rank()
    }

    /// The layer's own rows of the difference, not scaled, in the shape of its weight.
    fn difference(&self, weight: &Tensor) -> Result<Tensor> {
        let rows = &self.slice.rows;
        let difference = self.module().factors.compute(&self.file.file, weight.device(), rows)?;
        Ok(difference.reshape(weight.dims())?)
    }
}
