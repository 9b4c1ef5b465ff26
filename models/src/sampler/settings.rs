//! Which sampler, on which schedule: a `scheduler_config.json` understood and checked.

use super::ddim::Ddim;
use super::ddpm::Ddpm;
use super::dpm_multistep::DpmMultistep;
use super::dpm_singlestep::DpmSinglestep;
use super::kind::SamplerKind;
use super::lcm::Lcm;
use super::plan::{Plan, Solver};
use super::pndm::Pndm;
use super::schedule::Schedule;
use super::tcd::Tcd;
use super::unipc::UniPc;
use super::{Sampler, euler, euler_ancestral, heun, lms, names};
use crate::schedule::{Prediction, SchedulerConfig, SigmaKind};
use crate::{Error, Result};

/// A sampler and its schedule, from which each run gets its own [`Sampler`].
#[derive(Clone, Debug)]
pub struct SamplerSettings {
    kind: SamplerKind,
    config: SchedulerConfig,
    schedule: Schedule,
    method: Method,
    eta: f64,
}

/// What each sampler reads from the config for itself.
#[derive(Clone, Debug)]
enum Method {
    Ddim(Ddim),
    Ddpm(Ddpm),
    Euler,
    EulerAncestral,
    Heun,
    DpmMultistep(DpmMultistep),
    DpmSinglestep(DpmSinglestep),
    UniPc(UniPc),
    Lms,
    Pndm(Pndm),
    Lcm(Lcm),
    Tcd(Tcd),
}

impl SamplerSettings {
    /// The sampler of the config's own `_class_name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field and the value that is not supported, and what is.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let Some(name) = config.class_name.as_deref() else {
            return Err(Error::invalid("scheduler: the config has no _class_name"));
        };
        // A class that stands for others under a name of its own has overrides.
        Self::named(name, config)
    }

    /// Another sampler on a model's config, as `Scheduler.from_config(pipe.scheduler.config)` in diffusers: what the
    /// config says of the model is kept, what the class does not know is ignored, what the config does not say is the
    /// class's default.
    ///
    /// `name`: a diffusers class, or a name of the web UI or of k-diffusion, which may end in a schedule type
    /// (`DPM++ 2M Karras`); letter case, spaces and underscores do not matter. [`SamplerSettings::names`] lists them.
    ///
    /// # Errors
    /// [`Error::Invalid`] lists the names there are, or names the field of the config that the sampler does not
    /// support.
    pub fn named(name: &str, base: &SchedulerConfig) -> Result<Self> {
        let found = names::find(name)?;
        if names::is_flow_match(name) {
            return Err(names::unknown(name));
        }
        let mut config = base.clone();
        (found.overrides)(&mut config);
        let settings = Self::new(found.kind, config)?;
        match found.schedule_type {
            Some(schedule_type) => settings.with_schedule_type(schedule_type),
            None => Ok(settings),
        }
    }

    /// The same sampler with another schedule type of the web UI: `Automatic` (the config's own), `Karras`,
    /// `Exponential`, `Beta`, `Normal`, `Uniform`, `Simple` or `SGM Uniform`; letter case does not matter.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such type, or the sampler has no sigmas that could be spaced by it.
    pub fn with_schedule_type(self, name: &str) -> Result<Self> {
        let mut config = self.config;
        let Some(kind) = names::set_schedule_type(name, &mut config)? else {
            return Ok(Self { config, ..self });
        };
        let class = self.kind.class();
        if kind != SigmaKind::Schedule && !class.sigma_kinds {
            return Err(Error::invalid(format!("schedule type {name:?} is not supported by {}", class.name)));
        }
        Ok(Self { eta: self.eta, ..Self::new(self.kind, config)? })
    }

    /// The same sampler with another `eta`, 0 to 1: how much noise DDIM and TCD add. The default is 0, which the
    /// pipelines of diffusers pass to both; other samplers have none.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `eta` is out of range, or not 0 for a sampler without it.
    pub fn with_eta(self, eta: f64) -> Result<Self> {
        let has_eta = matches!(self.kind, SamplerKind::Ddim | SamplerKind::Tcd);
        if !(0.0..=1.0).contains(&eta) || (eta != 0.0 && !has_eta) {
            let allowed = if has_eta { "0 to 1" } else { "only 0" };
            return Err(Error::invalid(format!(
                "eta: {eta} with {}, allowed is {allowed}",
                self.kind.class_name()
            )));
        }
        Ok(Self { eta, ..self })
    }

    /// How the web UI calls what [`SamplerSettings::named`] finds: the sampler, and the schedule type that the name ends
    /// in, else `Automatic`.
    ///
    /// # Errors
    /// [`Error::Invalid`] lists the names there are.
    pub fn web_ui_names(name: &str) -> Result<(&'static str, &'static str)> {
        let found = names::find(name)?;
        Ok((found.name, found.schedule_type.unwrap_or("Automatic")))
    }

    /// The names that [`SamplerSettings::named`] knows, as the web UI writes them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        names::NAMED.iter().map(|named| named.name)
    }

    /// The schedule types that a name may end in, as the web UI writes them.
    pub fn schedule_types() -> impl Iterator<Item = &'static str> {
        names::SCHEDULE_TYPES.into_iter()
    }

    /// Which sampler it is.
    pub fn kind(&self) -> SamplerKind {
        self.kind
    }

    /// Timesteps that the model was trained on.
    pub fn num_train_timesteps(&self) -> usize {
        self.schedule.num_train_timesteps
    }

    /// What the model predicts.
    pub fn prediction(&self) -> Prediction {
        self.schedule.prediction
    }

    /// The most steps a run may have.
    pub fn max_steps(&self) -> usize {
        match &self.method {
            Method::Lcm(lcm) => lcm.max_steps(),
            Method::Tcd(tcd) => tcd.max_steps(),
            _ => self.schedule.num_train_timesteps,
        }
    }

    /// The sampler of one run, at its start.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sampler or its schedule allows no such number of steps.
    pub fn sampler(&self, num_inference_steps: usize) -> Result<Sampler> {
        let max = self.max_steps();
        if !(1..=max).contains(&num_inference_steps) {
            return Err(Error::invalid(format!(
                "num_inference_steps: {num_inference_steps} is not allowed with {}: 1 to {max}",
                self.kind.class_name()
            )));
        }
        let (plan, solver) = self.start(num_inference_steps)?;
        Ok(Sampler::new(self, num_inference_steps, plan, solver))
    }

    fn start(&self, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let schedule = &self.schedule;
        match &self.method {
            Method::Ddim(ddim) => ddim.start(schedule, n, self.eta),
            Method::Ddpm(ddpm) => ddpm.start(schedule, n),
            Method::Euler => Ok((Plan::exploding(schedule, n), Box::new(euler::Euler))),
            Method::EulerAncestral => {
                Ok((Plan::exploding(schedule, n), Box::new(euler_ancestral::EulerAncestral)))
            }
            Method::Heun => Ok(heun::start(schedule, n)),
            Method::DpmMultistep(dpm) => dpm.start(schedule, n),
            Method::DpmSinglestep(dpm) => dpm.start(schedule, n),
            Method::UniPc(unipc) => unipc.start(schedule, n),
            Method::Lms => Ok((Plan::exploding(schedule, n), Box::new(lms::Lms::default()))),
            Method::Pndm(pndm) => pndm.start(schedule, n),
            Method::Lcm(lcm) => lcm.start(schedule, n),
            Method::Tcd(tcd) => tcd.start(schedule, n, self.eta),
        }
    }

    fn new(kind: SamplerKind, config: SchedulerConfig) -> Result<Self> {
        let schedule = Schedule::from_config(kind.class(), &config)?;
        let (train, final_sigma) = (schedule.num_train_timesteps, schedule.final_sigma);
        let method = match kind {
            SamplerKind::Ddim => Method::Ddim(Ddim::from_config(&config)),
            SamplerKind::Ddpm => Method::Ddpm(Ddpm::from_config(&config)?),
            SamplerKind::Euler => Method::Euler,
            SamplerKind::EulerAncestral => Method::EulerAncestral,
            SamplerKind::Heun => Method::Heun,
            SamplerKind::DpmMultistep => {
                Method::DpmMultistep(DpmMultistep::from_config(&config, final_sigma)?)
            }
            SamplerKind::DpmSinglestep => {
                Method::DpmSinglestep(DpmSinglestep::from_config(&config, final_sigma)?)
            }
            SamplerKind::UniPc => Method::UniPc(UniPc::from_config(&config, final_sigma)?),
            SamplerKind::Lms => Method::Lms,
            SamplerKind::Pndm => Method::Pndm(Pndm::from_config(&config)),
            SamplerKind::Lcm => Method::Lcm(Lcm::from_config(&config, train)?),
            SamplerKind::Tcd => Method::Tcd(Tcd::from_config(&config, train)?),
        };
        Ok(Self { kind, config, schedule, method, eta: 0.0 })
    }
}
