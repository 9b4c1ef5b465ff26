//! The names of samplers and schedule types that people use.
//!
//! Which k-diffusion name is which diffusers class follows diffusers' documentation (`api/schedulers/overview`).
//! "DPM++ SDE" is there the singlestep solver; here it is that with `sde-dpmsolver++`, so that it is one. The noise
//! of k-diffusion's own, and of `DPMSolverSDEScheduler`, is a Brownian tree that depends on the step sizes, and no
//! draw of torch's generator.

use super::kind::SamplerKind;
use crate::schedule::{SchedulerConfig, SigmaKind};
use crate::{Error, Result};

/// What a name puts into a config.
type Overrides = fn(&mut SchedulerConfig);

/// A sampler by one of its names, and what the name says that the class does not.
pub(super) struct Named {
    pub(super) name: &'static str,
    /// Further names, as [`canonical`] writes them.
    aliases: &'static [&'static str],
    kind: SamplerKind,
    overrides: Overrides,
}

/// What a name was found to mean.
pub(super) struct Found {
    /// The name that listings show.
    pub(super) name: &'static str,
    pub(super) kind: SamplerKind,
    pub(super) overrides: Overrides,
    /// The schedule type that the name ended in.
    pub(super) schedule_type: Option<&'static str>,
}

const fn plain(name: &'static str, aliases: &'static [&'static str], kind: SamplerKind) -> Named {
    Named { name, aliases, kind, overrides: |_| {} }
}

fn dpm(config: &mut SchedulerConfig, algorithm: &str, order: usize) {
    config.algorithm_type = Some(algorithm.to_owned());
    config.solver_order = Some(order);
}

/// Every sampler by the name that listings show.
pub(super) static NAMED: [Named; 16] = [
    plain(
        "Euler",
        &["keuler", "flowmatcheulerdiscrete", "flowmatcheulerdiscretescheduler"],
        SamplerKind::Euler,
    ),
    plain("Euler a", &["eulerancestral", "keulera", "keulerancestral"], SamplerKind::EulerAncestral),
    plain("Heun", &["kheun"], SamplerKind::Heun),
    plain("LMS", &["klms"], SamplerKind::Lms),
    Named {
        name: "DPM++ 2M",
        aliases: &["kdpmpp2m"],
        kind: SamplerKind::DpmMultistep,
        overrides: |config| dpm(config, "dpmsolver++", 2),
    },
    Named {
        name: "DPM++ 2M SDE",
        aliases: &["kdpmpp2msde"],
        kind: SamplerKind::DpmMultistep,
        overrides: |config| dpm(config, "sde-dpmsolver++", 2),
    },
    Named {
        name: "DPM++ 3M SDE",
        aliases: &["kdpmpp3msde"],
        kind: SamplerKind::DpmMultistep,
        overrides: |config| dpm(config, "sde-dpmsolver++", 3),
    },
    Named {
        name: "DPM++ 2S",
        aliases: &["kdpmpp2s"],
        kind: SamplerKind::DpmSinglestep,
        overrides: |config| dpm(config, "dpmsolver++", 2),
    },
    Named {
        name: "DPM++ SDE",
        aliases: &["kdpmppsde", "dpmsolversdescheduler"],
        kind: SamplerKind::DpmSinglestep,
        overrides: |config| dpm(config, "sde-dpmsolver++", 2),
    },
    plain("UniPC", &[], SamplerKind::UniPc),
    plain("DDIM", &[], SamplerKind::Ddim),
    plain("DDPM", &[], SamplerKind::Ddpm),
    Named {
        name: "PLMS",
        aliases: &[],
        kind: SamplerKind::Pndm,
        overrides: |config| config.skip_prk_steps = Some(true),
    },
    plain("PNDM", &[], SamplerKind::Pndm),
    plain("LCM", &[], SamplerKind::Lcm),
    plain("TCD", &[], SamplerKind::Tcd),
];

/// Schedule types, which a sampler's name may end in.
pub(super) const SCHEDULE_TYPES: [&str; 8] =
    ["Karras", "Exponential", "Beta", "Automatic", "Normal", "Uniform", "Simple", "SGM Uniform"];

/// Letters and digits in lower case, `+` as `p`: `DPM++ 2M` and `dpmpp_2m` are one.
fn canonical(name: &str) -> String {
    let letters = name.chars().filter_map(|c| match c {
        '+' => Some('p'),
        c => c.is_alphanumeric().then(|| c.to_ascii_lowercase()),
    });
    letters.collect()
}

/// The sampler of a name.
pub(super) fn find(name: &str) -> Result<Found> {
    let wanted = canonical(name);
    if let Some(found) = lookup(&wanted) {
        return Ok(found);
    }
    for schedule_type in SCHEDULE_TYPES {
        if let Some(found) = wanted.strip_suffix(&canonical(schedule_type)).and_then(lookup) {
            return Ok(Found { schedule_type: Some(schedule_type), ..found });
        }
    }
    Err(unknown(name))
}

/// The error of a name that is none, or is none for this kind of model.
pub(super) fn unknown(name: &str) -> Error {
    let names: Vec<_> = NAMED.iter().map(|named| named.name).collect();
    let classes: Vec<_> = SamplerKind::all().map(SamplerKind::class_name).collect();
    Error::invalid(format!(
        "scheduler: there is no {name:?}; allowed are {} (those with sigmas also with Karras, Exponential or Beta \
         after the name), and the diffusers classes {}",
        names.join(", "),
        classes.join(", ")
    ))
}

/// Whether a name is the class for flow matching, which is listed as Euler.
pub(super) fn is_flow_match(name: &str) -> bool {
    canonical(name).starts_with("flowmatch")
}

fn lookup(wanted: &str) -> Option<Found> {
    let is = |named: &&Named| canonical(named.name) == wanted || named.aliases.contains(&wanted);
    if let Some(Named { name, kind, overrides, .. }) = NAMED.iter().find(is) {
        return Some(Found { name, kind: *kind, overrides: *overrides, schedule_type: None });
    }
    // A class says nothing beyond the config.
    let is = |kind: &SamplerKind| {
        // Some clients leave the last word out: `DPMSolverMultistep`.
        let class = canonical(kind.class_name());
        class == wanted || class.strip_suffix("scheduler") == Some(wanted)
    };
    let kind = SamplerKind::all().find(is)?;
    let name = NAMED.iter().find(|named| named.kind == kind)?.name;
    Some(Found { name, kind, overrides: |_| {}, schedule_type: None })
}

/// Puts a schedule type into a config. `None`: the config's own stays.
pub(super) fn set_schedule_type(name: &str, config: &mut SchedulerConfig) -> Result<Option<SigmaKind>> {
    let (kind, spacing) = match canonical(name).as_str() {
        "automatic" => return Ok(None),
        // The web UI's other types start from evenly spread timesteps, whatever the model's config.
        "karras" => (SigmaKind::Karras, None),
        "exponential" => (SigmaKind::Exponential, Some("linspace")),
        "beta" => (SigmaKind::Beta, Some("linspace")),
        "normal" | "uniform" => (SigmaKind::Schedule, None),
        "simple" | "sgmuniform" => (SigmaKind::Schedule, Some("trailing")),
        _ => {
            let allowed = SCHEDULE_TYPES.join(", ");
            return Err(Error::invalid(format!(
                "schedule type: there is no {name:?}; allowed are {allowed}"
            )));
        }
    };
    config.use_karras_sigmas = Some(kind == SigmaKind::Karras);
    config.use_exponential_sigmas = Some(kind == SigmaKind::Exponential);
    config.use_beta_sigmas = Some(kind == SigmaKind::Beta);
    if let Some(spacing) = spacing {
        config.timestep_spacing = Some(spacing.to_owned());
    }
    Ok(Some(kind))
}
