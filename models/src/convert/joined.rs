//! Tensors as they are to be written: stretches of rows of a component's, one after the other.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Device;

use super::Family;
use crate::checkpoint::ldm_unet::LdmUnet;
use crate::checkpoint::stored::{Stored, StoredType};
use crate::checkpoint::view::{Form, Piece, Views};
use crate::checkpoint::{Component, flux_keys, ldm_vae, open_clip};
use crate::{Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) name: String,
    /// Tensors of the component, and their rows; all of them where none are said.
    parts: Vec<(String, Option<Range<usize>>)>,
    /// What an original tensor's rows become as they are read, to be undone here.
    form: Form,
}

/// What was read of one.
pub(super) struct Rows {
    pub(super) parts: Vec<Stored>,
    form: Form,
}

impl Joined {
    /// A tensor that stays as it is.
    pub(super) fn whole(name: &str) -> Self {
        Self::renamed(name, name)
    }

    fn renamed(name: impl Into<String>, from: &str) -> Self {
        Self { name: name.into(), parts: vec![(from.to_owned(), None)], form: Form::AsStored }
    }

    pub(super) fn below(self, prefix: &str) -> Self {
        Self { name: format!("{prefix}{}", self.name), ..self }
    }

    /// What its parts have in common.
    pub(super) fn stored_type(&self, views: &Views) -> Option<StoredType> {
        let mut types = self.parts.iter().map(|(part, _)| views.stored_type(part));
        let first = types.next()??;
        types.all(|other| other == Some(first)).then_some(first)
    }

    /// Its shape.
    pub(super) fn shape(&self, views: &Views) -> Vec<usize> {
        let of = |(part, rows): &(String, Option<Range<usize>>)| {
            let shape = views.shape(part).unwrap_or_default();
            rows.as_ref().map_or(shape.first().copied().unwrap_or(1), ExactSizeIterator::len)
        };
        let first = self.parts.first().and_then(|(part, _)| views.shape(part)).unwrap_or_default();
        let mut shape = first.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = self.parts.iter().map(of).sum();
        }
        original_shape(self.form, shape)
    }

    /// Reads its parts.
    pub(super) fn read(&self, views: &Views) -> Result<Rows> {
        let read = |(part, rows): &(String, Option<Range<usize>>)| match rows {
            None => views.read(part),
            Some(rows) => views.read_rows(part, rows.clone()),
        };
        Ok(Rows { parts: self.parts.iter().map(read).collect::<Result<_>>()?, form: self.form })
    }
}

/// A matrix's shape where the original has a 1x1 convolution, or the transpose.
fn original_shape(form: Form, shape: Vec<usize>) -> Vec<usize> {
    match (form, shape.as_slice()) {
        (Form::Matrix, [rows, columns]) => vec![*rows, *columns, 1, 1],
        (Form::Transposed, [rows, columns]) => vec![*columns, *rows],
        _ => shape,
    }
}

impl Rows {
    /// Their bytes one after the other, as they are stored.
    pub(super) fn bytes(self) -> Result<Vec<u8>> {
        let bytes = |part: Stored| match self.form {
            Form::Transposed => Ok(part.transposed().map_err(Error::invalid)?.data),
            _ => Ok(part.data),
        };
        let mut parts = self.parts.into_iter().map(bytes).collect::<Result<Vec<_>>>()?;
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat() })
    }

    /// Their values one after the other.
    pub(super) fn values(self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for part in self.parts {
            let tensor = part.tensor(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
            let tensor = if self.form == Form::Transposed { tensor.t()?.contiguous()? } else { tensor };
            values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(values)
    }
}

/// The tensors of the original code's component that a component of diffusers consists of. The error is a reason.
///
/// The names of the original are listed, and the rules that read them are asked what each would be: what is written is
/// what will be read.
pub(super) fn originals(
    component: Component,
    family: Family,
    views: &Views,
) -> std::result::Result<Vec<Joined>, String> {
    let names = || views.names().map(String::as_str);
    let joined = match (component, family) {
        (Component::Unet, _) => {
            let unet = LdmUnet::of_diffusers(names());
            names().filter_map(|name| Some(Joined::renamed(unet.ldm_name(name)?, name))).collect()
        }
        (Component::Vae, _) => vae(views),
        (Component::Transformer, _) => flux(views)?,
        (Component::TextEncoder, Family::Sd2) => clip(views)?,
        (Component::TextEncoder2, Family::Flux) => names().map(Joined::whole).collect(),
        (Component::TextEncoder2, _) => clip(views)?,
        (Component::TextEncoder, _) => {
            // transformers 5 leaves this out.
            let full = |name: &str| match name.starts_with("text_") {
                true => name.to_owned(),
                false => format!("text_model.{name}"),
            };
            names().map(|name| Joined::renamed(full(name), name)).collect()
        }
    };
    let placed: std::collections::BTreeSet<&str> =
        joined.iter().flat_map(|j: &Joined| j.parts.iter().map(|(part, _)| part.as_str())).collect();
    match names().find(|name| !placed.contains(name)) {
        Some(name) => Err(format!("tensor {name} has no place in a single file")),
        None => Ok(joined),
    }
}

fn vae(views: &Views) -> Vec<Joined> {
    let count = |start: &str| {
        let index = |name: &String| name.strip_prefix(start)?.split('.').next()?.parse::<usize>().ok();
        views.names().filter_map(index).max().map_or(0, |last| last.saturating_add(1)).min(64)
    };
    let blocks = count("encoder.down_blocks.");
    let layers = count("encoder.down_blocks.0.resnets.");
    let originals = ldm_vae::ldm_names(blocks, layers);
    let joined = originals.into_iter().filter_map(|original| {
        let name = ldm_vae::diffusers_name(&original, blocks)?;
        let shape = views.shape(&name)?;
        let form =
            if name.contains(".attentions.") && shape.len() == 2 { Form::Matrix } else { Form::AsStored };
        Some(Joined { form, ..Joined::renamed(original, &name) })
    });
    joined.collect()
}

fn clip(views: &Views) -> std::result::Result<Vec<Joined>, String> {
    let prefixed = views.shape("text_model.final_layer_norm.weight").is_some();
    let own = |name: &str| {
        if prefixed { name } else { name.strip_prefix("text_model.").unwrap_or(name) }.to_owned()
    };
    let layer =
        |i: &usize| views.shape(&own(&format!("text_model.encoder.layers.{i}.mlp.fc1.weight"))).is_some();
    let layers = (0..).take_while(layer).count();
    let mut joined = Vec::new();
    for original in open_clip::names(layers) {
        let q_proj = original.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split('.').next());
        let q_proj = q_proj.map(|i| own(&format!("text_model.encoder.layers.{i}.self_attn.q_proj.weight")));
        let rows = q_proj.and_then(|name| views.shape(&name)?.first().copied()).unwrap_or(0);
        let pieces = open_clip::pieces(&original, 3 * rows)?;
        let pieces = pieces.into_iter().map(|piece| Piece { name: own(&piece.name), ..piece }).collect();
        joined.extend(of_pieces(original, pieces, views));
    }
    Ok(joined)
}

fn flux(views: &Views) -> std::result::Result<Vec<Joined>, String> {
    let count = |kind: &str| {
        (0..).take_while(|i| views.shape(&format!("{kind}.{i}.attn.to_q.weight")).is_some()).count()
    };
    let rows = |name: &str| views.shape(name).and_then(|shape| shape.first().copied()).unwrap_or(0);
    let width = rows("x_embedder.weight");
    let fused = 3 * width + rows("single_transformer_blocks.0.proj_mlp.weight");
    // Only of tensors that consist of several do the rules ask for the shape.
    let shape_of = |name: &str| {
        let rows = match name {
            _ if name.contains(".linear1.") => fused,
            _ if name.contains("qkv") => 3 * width,
            _ if name.contains("adaLN_modulation") => 2 * width,
            _ => return None,
        };
        Some(if name.ends_with(".bias") { vec![rows] } else { vec![rows, width] })
    };
    let mut joined = Vec::new();
    for original in flux_keys::original_names(count("transformer_blocks"), count("single_transformer_blocks"))
    {
        let pieces = flux_keys::pieces(&original, &shape_of)?;
        joined.extend(of_pieces(original, pieces, views));
    }
    Ok(joined)
}

/// The original tensor that consists of these pieces; none where the component does not have them all.
fn of_pieces(original: String, pieces: Vec<Piece>, views: &Views) -> Option<Joined> {
    let mut stretches: BTreeMap<usize, (String, Option<Range<usize>>)> = BTreeMap::new();
    let mut form = Form::AsStored;
    for piece in pieces {
        views.shape(&piece.name)?;
        form = piece.form;
        let mut at = 0;
        for rows in &piece.rows {
            let whole = piece.rows.len() == 1;
            let part = (!whole).then(|| at..at + rows.len());
            stretches.insert(rows.start, (piece.name.clone(), part));
            at += rows.len();
        }
        if piece.rows.is_empty() {
            stretches.insert(0, (piece.name, None));
        }
    }
    let parts: Vec<_> = stretches.into_values().collect();
    (!parts.is_empty()).then_some(Joined { name: original, parts, form })
}
