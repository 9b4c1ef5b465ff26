//! Which layer each module of a file belongs to.

use std::collections::{BTreeMap, BTreeSet};

use super::file::{LoraFile, Module};
use super::key::{LayerName, Place};
use super::layer_names::{LayerNames, Slice};
use super::magnitude::Magnitude;
use super::{Algorithm, Format, LoraReport, Target};
use crate::{Error, Result};

/// Names (without `.weight`) and stored shapes of a component's linear and convolutional layers.
pub type LayerShapes = BTreeMap<String, Vec<usize>>;

/// A file's modules, each with its layers.
pub(super) struct Matched<'f> {
    pub(super) modules: Vec<MatchedModule<'f>>,
    pub(super) report: LoraReport,
}

/// A module and the layers that it changes: several where it is of a fused matrix.
pub(super) struct MatchedModule<'f> {
    pub(super) module: &'f Module,
    pub(super) target: Target,
    pub(super) slices: Vec<Slice>,
}

impl LoraFile {
    /// What merging into components with these layers would match.
    ///
    /// # Errors
    /// Where no key matches, or a difference does not fit its layer; the text names the key and both shapes.
    pub fn check(&self, components: &[(Target, LayerShapes)]) -> Result<LoraReport> {
        Ok(self.matched(components)?.report)
    }

    pub(super) fn matched(&self, components: &[(Target, LayerShapes)]) -> Result<Matched<'_>> {
        let names = self.names(components);
        let encoders = [Target::TextEncoder, Target::TextEncoder2];
        // The first of those that fit best: max_by_key would take the last.
        let encoder = encoders.into_iter().rev().max_by_key(|t| self.fitting(&names, Some(*t)));
        let encoder = encoder.unwrap_or(Target::TextEncoder);
        let (mut own_names, mut other_names) = (Vec::new(), Vec::new());
        let mut unmatched = self.unknown.clone();
        for module in &self.modules {
            let target = names.target(module.place, encoder);
            let Some(slices) = names.find(target, &module.layer) else {
                unmatched.extend(module.keys.iter().cloned());
                continue;
            };
            self.check_shape(module, target, slices)?;
            let is_own_name = match slices {
                [one] => module.layer == LayerName::Named(one.layer.replace('.', "_")),
                _ => false,
            };
            let matched = MatchedModule { module, target, slices: slices.to_vec() };
            if is_own_name { &mut own_names } else { &mut other_names }.push(matched);
        }
        // Where a file has a layer under several of its names, diffusers' name counts, as in diffusers.
        let mut layers: BTreeSet<(Target, String)> = BTreeSet::new();
        let mut modules = Vec::with_capacity(own_names.len() + other_names.len());
        for matched in own_names.into_iter().chain(other_names) {
            let keys = || matched.slices.iter().map(|s| (matched.target, s.layer.clone()));
            if keys().any(|key| layers.contains(&key)) {
                unmatched.extend(matched.module.keys.iter().cloned());
            } else {
                layers.extend(keys());
                modules.push(matched);
            }
        }
        unmatched.sort();
        if modules.is_empty() {
            let first: Vec<_> = unmatched.iter().take(3).map(String::as_str).collect();
            let reason = format!(
                "none of its {} keys belongs to a layer of this model: is it a LoRA for another architecture? Its format \
                 is {}, its first keys are {}",
                unmatched.len(),
                self.format(),
                first.join(", ")
            );
            return Err(Error::file(self.path(), reason));
        }
        let report = LoraReport {
            path: self.path().to_owned(),
            format: self.format(),
            algorithms: modules.iter().flat_map(|m| m.module.algorithms()).collect(),
            matched: modules.iter().map(|m| m.module.keys.len()).sum(),
            unmatched,
            layers: layers.len(),
            beside: 0,
            dequantized: 0,
            resident: 0,
        };
        Ok(Matched { modules, report })
    }

    /// The components' layers; where the file numbers them, in the order that fits more of its shapes.
    fn names<'a>(&self, components: &'a [(Target, LayerShapes)]) -> Names<'a> {
        let names = Names::new(components, false);
        if self.format() == Format::Cloneofsimo {
            let later = Names::new(components, true);
            if self.fitting(&later, None) > self.fitting(&names, None) {
                return later;
            }
        }
        names
    }

    /// How many modules fit their layers; `encoder`: only those that do not say which text encoder they are for.
    fn fitting(&self, names: &Names<'_>, encoder: Option<Target>) -> usize {
        let counts = |module: &&Module| {
            let target = match (encoder, module.place) {
                (Some(encoder), Place::SomeTextEncoder) => encoder,
                (None, Place::Denoiser | Place::In(_)) => names.target(module.place, Target::TextEncoder),
                _ => return false,
            };
            names.find(target, &module.layer).is_some_and(|slices| fits(module, slices))
        };
        self.modules.iter().filter(counts).count()
    }

    fn check_shape(&self, module: &Module, target: Target, slices: &[Slice]) -> Result<()> {
        let Some(first) = slices.first() else { return Ok(()) };
        if !fits(module, slices) {
            let (rows, columns) = module.shape;
            let keys = module.factors.keys();
            let shapes = keys.iter().map(|k| format!("{k} {:?}", self.file.entries()[*k].shape));
            let layers = slices.iter().map(|s| format!("{target}'s {} has shape {:?}", s.layer, s.shape));
            let mut reason = format!(
                "{}: a difference of {rows} x {columns}, but {}",
                shapes.collect::<Vec<_>>().join(", "),
                layers.collect::<Vec<_>>().join(", ")
            );
            // A model that has the channels is FLUX.1 Depth or Canny itself.
            if first.layer == "x_embedder" && columns > flat(&first.shape).1 {
                reason.push_str(
                    ": it is a control LoRA, which widens x_embedder for the latents of a control picture, and control \
                     pictures are not supported",
                );
            }
            return Err(Error::file(self.path(), reason));
        }
        let check = |m: &Magnitude| m.check(&self.file, module.shape.0, &first.shape);
        module.magnitude.as_ref().map_or(Ok(()), check)
    }
}

impl Module {
    fn algorithms(&self) -> BTreeSet<Algorithm> {
        let magnitude = self.magnitude.as_ref().map(|_| Algorithm::DoRA);
        magnitude.into_iter().chain([self.factors.algorithm()]).collect()
    }
}

/// Whether a module has the rows of these layers together, and the columns of each.
fn fits(module: &Module, slices: &[Slice]) -> bool {
    let rows = slices.iter().map(Slice::count).fold(0, usize::saturating_add);
    slices.iter().all(|s| module.shape == (rows, flat(&s.shape).1))
}

/// A stored shape as rows and columns.
fn flat(shape: &[usize]) -> (usize, usize) {
    (shape.first().copied().unwrap_or(0), shape.iter().skip(1).product())
}

/// The layers of all components.
struct Names<'a>(BTreeMap<Target, LayerNames<'a>>);

impl<'a> Names<'a> {
    fn new(components: &'a [(Target, LayerShapes)], feed_forward_last: bool) -> Self {
        let names = |(target, shapes)| LayerNames::new(target, shapes, feed_forward_last);
        Self(components.iter().map(|(target, shapes)| (*target, names((*target, shapes)))).collect())
    }

    /// The component that a module is for; `encoder`: where it does not say which text encoder.
    fn target(&self, place: Place, encoder: Target) -> Target {
        match place {
            Place::Denoiser if self.0.contains_key(&Target::Transformer) => Target::Transformer,
            Place::Denoiser => Target::Unet,
            Place::In(target) => target,
            Place::SomeTextEncoder => encoder,
        }
    }

    fn find(&self, target: Target, layer: &LayerName) -> Option<&[Slice]> {
        self.0.get(&target)?.find(layer)
    }
}
