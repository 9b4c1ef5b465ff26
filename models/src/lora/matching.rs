//! Which layer each module of a file belongs to.

use std::collections::{BTreeMap, BTreeSet};

use super::file::{LoraFile, Module};
use super::key::{LayerName, Place};
use super::layer_names::LayerNames;
use super::{Algorithm, Format, LoraReport, Target};
use crate::{Error, Result};

/// Names (without `.weight`) and stored shapes of a component's linear and convolutional layers.
pub type LayerShapes = BTreeMap<String, Vec<usize>>;

/// A file's modules, each with its layer.
pub(super) struct Matched<'f> {
    pub(super) modules: Vec<(Target, String, &'f Module)>,
    pub(super) report: LoraReport,
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
        let mut found: BTreeMap<(Target, &str), &Module> = BTreeMap::new();
        let mut unmatched = self.unknown.clone();
        for module in &self.modules {
            let target = module.target(encoder);
            let Some((layer, shape)) = names.find(target, &module.layer) else {
                unmatched.extend(module.keys.iter().cloned());
                continue;
            };
            self.check_shape(module, target, layer, shape)?;
            // Where a file has a layer under both of its names, diffusers' name counts, as in diffusers.
            if let Some(other) = found.insert((target, layer), module) {
                let is_own_name = |m: &Module| m.layer == LayerName::Named(layer.replace('.', "_"));
                let (kept, left) = if is_own_name(other) { (other, module) } else { (module, other) };
                found.insert((target, layer), kept);
                unmatched.extend(left.keys.iter().cloned());
            }
        }
        unmatched.sort();
        if found.is_empty() {
            let first = unmatched.first().map_or("nothing", String::as_str);
            let reason = format!(
                "none of its {} keys belongs to a layer of this model (the first is {first}): is it a LoRA for another \
                 architecture?",
                unmatched.len()
            );
            return Err(Error::file(self.path(), reason));
        }
        let report = LoraReport {
            path: self.path().to_owned(),
            format: self.format(),
            algorithms: found.values().flat_map(|m| m.algorithms()).collect(),
            matched: found.values().map(|m| m.keys.len()).sum(),
            unmatched,
            layers: found.len(),
        };
        let modules = found.into_iter().map(|((target, layer), m)| (target, layer.to_owned(), m)).collect();
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
        let fits = |module: &&Module| {
            let target = match (encoder, module.place) {
                (Some(encoder), Place::SomeTextEncoder) => encoder,
                (None, Place::In(target)) => target,
                _ => return false,
            };
            let Some((_, shape)) = names.find(target, &module.layer) else { return false };
            module.shape == flat(shape)
        };
        self.modules.iter().filter(fits).count()
    }

    fn check_shape(&self, module: &Module, target: Target, layer: &str, shape: &[usize]) -> Result<()> {
        let (rows, columns) = module.shape;
        if (rows, columns) != flat(shape) {
            let keys = module.factors.keys();
            let shapes = keys.iter().map(|k| format!("{k} {:?}", self.file.entries()[*k].shape));
            let reason = format!(
                "{}: a difference of {rows} x {columns}, but {target}'s {layer} has shape {shape:?}",
                shapes.collect::<Vec<_>>().join(", ")
            );
            return Err(Error::file(self.path(), reason));
        }
        module.magnitude.as_ref().map_or(Ok(()), |m| m.check(&self.file, shape))
    }
}

impl Module {
    fn target(&self, encoder: Target) -> Target {
        match self.place {
            Place::In(target) => target,
            Place::SomeTextEncoder => encoder,
        }
    }

    fn algorithms(&self) -> BTreeSet<Algorithm> {
        let magnitude = self.magnitude.as_ref().map(|_| Algorithm::DoRA);
        magnitude.into_iter().chain([self.factors.algorithm()]).collect()
    }
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

    fn find(&self, target: Target, layer: &LayerName) -> Option<(&'a str, &'a [usize])> {
        self.0.get(&target)?.find(layer)
    }
}
