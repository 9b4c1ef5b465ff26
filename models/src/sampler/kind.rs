//! The samplers there are, and how their diffusers classes differ in defaults and in what they know.

use crate::schedule::betas::BetaSchedule;
use crate::schedule::{Prediction, Spacing};

/// A sampler, by the diffusers scheduler class that it equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerKind {
    /// `DDIMScheduler`.
    Ddim,
    /// `DDPMScheduler`.
    Ddpm,
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `HeunDiscreteScheduler`.
    Heun,
    /// `DPMSolverMultistepScheduler`: DPM++ 2M, and DPM++ 2M SDE by its `algorithm_type`.
    DpmMultistep,
    /// `DPMSolverSinglestepScheduler`: DPM++ 2S, and DPM++ SDE by its `algorithm_type`.
    DpmSinglestep,
    /// `UniPCMultistepScheduler`.
    UniPc,
    /// `LMSDiscreteScheduler`.
    Lms,
    /// `PNDMScheduler`: PLMS where it skips its Runge-Kutta start.
    Pndm,
    /// `LCMScheduler`.
    Lcm,
    /// `TCDScheduler`.
    Tcd,
}

/// What a class makes of `rescale_betas_zero_snr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroSnr {
    /// It has no such option.
    Unknown,
    /// The last timestep is pure noise.
    Exact,
    /// The last timestep keeps a little signal, so that its sigma is finite.
    Floored,
}

/// A scheduler class: its name, its defaults and what it knows.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) kind: SamplerKind,
    pub(super) name: &'static str,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) spacing: Spacing,
    pub(super) predictions: &'static [(&'static str, Prediction)],
    pub(super) sigma_kinds: bool,
    pub(super) final_sigma: bool,
    pub(super) zero_snr: ZeroSnr,
    /// The default of `clip_sample`; `None` where the class never clips.
    pub(super) clip_sample: Option<bool>,
}

const ALL_PREDICTIONS: &[(&str, Prediction)] =
    &[("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::V), ("sample", Prediction::Sample)];
const NO_SAMPLE: &[(&str, Prediction)] = ALL_PREDICTIONS.split_at(2).0;

const BASE: Class = Class {
    kind: SamplerKind::Ddim,
    name: "",
    beta_start: 0.0001,
    beta_end: 0.02,
    beta_schedule: BetaSchedule::Linear,
    spacing: Spacing::Linspace,
    predictions: ALL_PREDICTIONS,
    sigma_kinds: false,
    final_sigma: false,
    zero_snr: ZeroSnr::Unknown,
    clip_sample: None,
};
const DISTILLED: Class = Class {
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: BetaSchedule::ScaledLinear,
    spacing: Spacing::Leading,
    zero_snr: ZeroSnr::Exact,
    ..BASE
};

const CLASSES: [Class; 12] = [
    Class {
        kind: SamplerKind::Ddim,
        name: "DDIMScheduler",
        spacing: Spacing::Leading,
        zero_snr: ZeroSnr::Exact,
        clip_sample: Some(true),
        ..BASE
    },
    Class {
        kind: SamplerKind::Ddpm,
        name: "DDPMScheduler",
        spacing: Spacing::Leading,
        zero_snr: ZeroSnr::Exact,
        clip_sample: Some(true),
        ..BASE
    },
    Class {
        kind: SamplerKind::Euler,
        name: "EulerDiscreteScheduler",
        sigma_kinds: true,
        final_sigma: true,
        zero_snr: ZeroSnr::Floored,
        ..BASE
    },
    Class {
        kind: SamplerKind::EulerAncestral,
        name: "EulerAncestralDiscreteScheduler",
        predictions: NO_SAMPLE,
        zero_snr: ZeroSnr::Floored,
        ..BASE
    },
    Class {
        kind: SamplerKind::Heun,
        name: "HeunDiscreteScheduler",
        beta_start: 0.00085,
        beta_end: 0.012,
        sigma_kinds: true,
        clip_sample: Some(false),
        ..BASE
    },
    Class {
        kind: SamplerKind::DpmMultistep,
        name: "DPMSolverMultistepScheduler",
        sigma_kinds: true,
        final_sigma: true,
        zero_snr: ZeroSnr::Floored,
        ..BASE
    },
    Class {
        kind: SamplerKind::DpmSinglestep,
        name: "DPMSolverSinglestepScheduler",
        sigma_kinds: true,
        final_sigma: true,
        ..BASE
    },
    Class {
        kind: SamplerKind::UniPc,
        name: "UniPCMultistepScheduler",
        sigma_kinds: true,
        final_sigma: true,
        zero_snr: ZeroSnr::Floored,
        ..BASE
    },
    Class { kind: SamplerKind::Lms, name: "LMSDiscreteScheduler", sigma_kinds: true, ..BASE },
    Class {
        kind: SamplerKind::Pndm,
        name: "PNDMScheduler",
        spacing: Spacing::Leading,
        predictions: NO_SAMPLE,
        ..BASE
    },
    Class { kind: SamplerKind::Lcm, name: "LCMScheduler", clip_sample: Some(false), ..DISTILLED },
    Class { kind: SamplerKind::Tcd, name: "TCDScheduler", ..DISTILLED },
];

impl SamplerKind {
    /// Every sampler there is.
    pub fn all() -> impl Iterator<Item = Self> {
        CLASSES.iter().map(|class| class.kind)
    }

    /// The name of the diffusers class.
    pub fn class_name(self) -> &'static str {
        self.class().name
    }

    pub(super) fn class(self) -> &'static Class {
        // The table is in the order of the enum, which a test checks.
        &CLASSES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for class in &CLASSES {
            assert_eq!(class.kind.class().name, class.name);
        }
    }
}
