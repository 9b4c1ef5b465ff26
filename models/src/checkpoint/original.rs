//! The names that single files have for a model's tensors: which component each belongs to, and its name in diffusers'
//! folder of that component.
//!
//! A whole checkpoint marks its parts by the beginning of names: the original code of Stable Diffusion and SDXL in one
//! way, ComfyUI's all-in-one files of FLUX in another. A file of one component has names without such a beginning.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::file::CheckpointFile;
use super::ldm_unet::LdmUnet;
use super::view::{Form, Piece, Views};
use super::{flux_keys, ldm_vae, open_clip, t5_gguf_names};
use crate::Result;

/// A part of a model that has a folder of its own in diffusers' layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Stable Diffusion's and SDXL's denoiser.
    Unet,
    /// FLUX's denoiser.
    Transformer,
    /// The VAE.
    Vae,
    /// CLIP: the only one of SD, the first of SDXL and FLUX.
    TextEncoder,
    /// OpenCLIP's large one of SDXL, T5 of FLUX.
    TextEncoder2,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Unet, Self::Transformer, Self::Vae, Self::TextEncoder, Self::TextEncoder2];

    /// Its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }

    /// The component of a folder.
    pub fn of_folder(folder: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.folder() == folder)
    }
}

/// What the names within a part are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// diffusers' or transformers' own.
    AsStored,
    LdmUnet,
    Flux,
    LdmVae,
    OpenClip,
    /// The same; SD 2.x was trained on the layer before the last, so diffusers leaves the last out.
    OpenClipOfSd2,
    LlamaCpp,
}

/// A part of a file: the names that begin so.
#[derive(Clone, Copy, Debug)]
struct Section {
    prefix: &'static str,
    component: Component,
    names: Names,
}

/// What tensors of a denoiser are called in both kinds of whole checkpoints.
pub(super) const DENOISER: &str = "model.diffusion_model.";

/// The other parts of whole checkpoints.
const PARTS: [Section; 9] = {
    const fn part(prefix: &'static str, component: Component, names: Names) -> Section {
        Section { prefix, component, names }
    }
    use Component::{TextEncoder, TextEncoder2, Vae};
    use Names::{AsStored, LdmVae, OpenClip, OpenClipOfSd2};
    [
        part("first_stage_model.", Vae, LdmVae),
        part("vae.", Vae, LdmVae),
        part("cond_stage_model.transformer.", TextEncoder, AsStored),
        part("cond_stage_model.model.", TextEncoder, OpenClipOfSd2),
        part("conditioner.embedders.0.transformer.", TextEncoder, AsStored),
        part("conditioner.embedders.0.model.", TextEncoder2, OpenClip),
        part("conditioner.embedders.1.model.", TextEncoder2, OpenClip),
        part("text_encoders.clip_l.transformer.", TextEncoder, AsStored),
        part("text_encoders.t5xxl.transformer.", TextEncoder2, AsStored),
    ]
};

/// SD 2.x has as many layers; diffusers' models have one less.
const LAST_LAYER_OF_SD2: &str = "transformer.resblocks.23.";

/// How the names of a file's tensors are to be understood.
#[derive(Debug)]
pub struct Original {
    sections: Vec<Section>,
    unet: LdmUnet,
    vae_blocks: usize,
}

impl Original {
    /// Understands the names of a file; one that has no known names has no components.
    pub fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let below = |prefix: &'static str| names.clone().filter_map(move |name| name.strip_prefix(prefix));
        let any = |prefix: &'static str| names.clone().any(|name| name.starts_with(prefix));
        let mut sections: Vec<Section> = PARTS.into_iter().filter(|part| any(part.prefix)).collect();
        sections.extend(denoiser(DENOISER, below(DENOISER)));
        let mut original = Self { sections, unet: LdmUnet::default(), vae_blocks: 0 };
        if original.sections.is_empty() {
            original.sections.extend(alone(names.clone()));
        }
        for section in original.sections.clone() {
            match section.names {
                Names::LdmUnet => original.unet = LdmUnet::of_ldm(below(section.prefix)),
                Names::LdmVae => original.vae_blocks = ldm_vae::blocks(below(section.prefix)),
                _ => {}
            }
        }
        // The refiner and some files of SD 2.x have their one encoder in the same place; only SDXL's are told sizes.
        if any("model.diffusion_model.input_blocks.") && !any("model.diffusion_model.label_emb.") {
            for section in original.sections.iter_mut().filter(|s| s.names == Names::OpenClip) {
                (section.component, section.names) = (Component::TextEncoder, Names::OpenClipOfSd2);
            }
        }
        original
    }

    /// The components of which a file has anything.
    pub fn components(&self) -> BTreeSet<Component> {
        self.sections.iter().map(|section| section.component).collect()
    }

    /// Whether the file is of one component, whose names have no beginning in common.
    pub fn is_one_component(&self) -> bool {
        matches!(self.sections.as_slice(), [only] if only.prefix.is_empty())
    }

    /// Whether a component has names that are not diffusers' or transformers'.
    pub fn is_renamed(&self, component: Component) -> bool {
        self.sections.iter().any(|s| s.component == component && s.names != Names::AsStored)
    }

    /// The component that a stored tensor belongs to.
    pub fn component_of(&self, name: &str) -> Option<Component> {
        Some(self.section(name)?.component)
    }

    fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| name.starts_with(section.prefix))
    }

    /// The tensors of a component, under its own names, that a stored tensor consists of. `shape_of` tells the shape
    /// of any stored tensor. The error is a reason.
    fn pieces(
        &self,
        component: Component,
        name: &str,
        shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> std::result::Result<Vec<Piece>, String> {
        let Some(section) = self.section(name).filter(|section| section.component == component) else {
            return Ok(Vec::new());
        };
        let short = name.strip_prefix(section.prefix).unwrap_or(name);
        let whole = |name: Option<String>| Ok(name.map(Piece::whole).into_iter().collect());
        let rows = || shape_of(name).and_then(|shape| shape.first().copied()).unwrap_or(0);
        match section.names {
            // Positions in their order: transformers wrote them once.
            Names::AsStored if short.ends_with(".position_ids") => Ok(Vec::new()),
            Names::AsStored => whole(Some(short.to_owned())),
            Names::LdmUnet => whole(self.unet.diffusers_name(short)),
            Names::Flux => flux_keys::pieces(name, shape_of),
            Names::LdmVae => {
                let Some(new) = ldm_vae::diffusers_name(short, self.vae_blocks) else {
                    return Ok(Vec::new());
                };
                // The matrices of the attention are 1x1 convolutions there.
                let is_matrix = new.contains(".attentions.") && new.ends_with(".weight");
                let form = if is_matrix { Form::Matrix } else { Form::AsStored };
                Ok(vec![Piece { form, ..Piece::whole(new) }])
            }
            Names::OpenClip | Names::OpenClipOfSd2 if short.starts_with("text_model.") => {
                whole((!short.ends_with(".position_ids")).then(|| short.to_owned()))
            }
            Names::OpenClip => open_clip::pieces(short, rows()),
            Names::OpenClipOfSd2 if short.starts_with(LAST_LAYER_OF_SD2) || short == "text_projection" => {
                Ok(Vec::new())
            }
            Names::OpenClipOfSd2 => open_clip::pieces(short, rows()),
            Names::LlamaCpp => whole(t5_gguf_names::transformers_name(short)),
        }
    }
}

/// The section of a denoiser, by the names below its prefix.
fn denoiser<'a>(prefix: &'static str, mut names: impl Iterator<Item = &'a str>) -> Option<Section> {
    let section = |component, names| Some(Section { prefix, component, names });
    names.find_map(|name| match name.split('.').next() {
        Some("input_blocks" | "output_blocks") => section(Component::Unet, Names::LdmUnet),
        Some("double_blocks" | "single_blocks") => section(Component::Transformer, Names::Flux),
        Some("single_transformer_blocks") => section(Component::Transformer, Names::AsStored),
        Some("down_blocks" | "up_blocks") => section(Component::Unet, Names::AsStored),
        _ => None,
    })
}

/// The section of a file that has one component alone.
fn alone<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Section> {
    if let Some(section) = denoiser("", names.clone()) {
        return Some(section);
    }
    const KINDS: [(&str, Component, Names); 9] = [
        ("encoder.down.", Component::Vae, Names::LdmVae),
        ("decoder.up.", Component::Vae, Names::LdmVae),
        ("encoder.down_blocks.", Component::Vae, Names::AsStored),
        ("decoder.up_blocks.", Component::Vae, Names::AsStored),
        ("enc.blk.", Component::TextEncoder2, Names::LlamaCpp),
        ("encoder.block.", Component::TextEncoder2, Names::AsStored),
        ("text_model.", Component::TextEncoder, Names::AsStored),
        ("embeddings.token_embedding.", Component::TextEncoder, Names::AsStored),
        ("transformer.resblocks.", Component::TextEncoder, Names::OpenClip),
    ];
    let has = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
    let (_, component, names) = KINDS.into_iter().find(|(prefix, ..)| has(prefix))?;
    Some(Section { prefix: "", component, names })
}

impl Views {
    /// The tensors of one component under diffusers' or transformers' names, of files of that component alone or of
    /// a whole checkpoint, whatever names they have. What a single component's file holds is taken to be the component
    /// that is asked for.
    ///
    /// # Errors
    /// A name that stands in two files or is made of two tensors; a fused tensor whose rows cannot be divided.
    pub fn of_component(component: Component, files: Vec<impl Into<Arc<CheckpointFile>>>) -> Result<Self> {
        let files: Vec<Arc<CheckpointFile>> = files.into_iter().map(Into::into).collect();
        let names = files.iter().flat_map(|file| file.entries().keys().map(String::as_str));
        let original = Original::of(names);
        let component = match original.sections.as_slice() {
            [] => return Self::as_stored(files),
            [only] if only.prefix.is_empty() => only.component,
            _ => component,
        };
        Self::renamed(files, |name, shape_of| original.pieces(component, name, shape_of))
    }
}
