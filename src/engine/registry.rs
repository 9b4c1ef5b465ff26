//! The models by name: which are loaded, with which LoRAs, and what turning to one costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::estimate::Moving;
use super::fault::Fault;
use super::handle::{EngineSettings, ModelStatus, Shared, unknown_model};
use super::{Backend, EngineError, LoraChoice, ModelInfo};

/// Guesses until there are measurements, in seconds.
const LOAD_S: f64 = 10.0;
const MERGE_S: f64 = 1.0;
const UNIT_S: f64 = 1.0;

/// A model that jobs may name, and how to load it.
pub struct ModelEntry<B> {
    /// Its name in the registry.
    pub name: String,
    /// Loads it, on the engine's thread; called again after an unload.
    pub load: Box<dyn FnMut() -> Result<B, EngineError> + Send>,
    /// LoRAs merged for every job.
    pub loras: Vec<LoraChoice>,
    /// What it is, where that is known without loading it.
    pub info: Option<ModelInfo>,
    /// What its weights will take on the device, roughly.
    pub weight_bytes: u64,
}

impl<B> ModelEntry<B> {
    /// A model of which nothing is known before it is loaded.
    pub fn new(
        name: impl Into<String>,
        load: impl FnMut() -> Result<B, EngineError> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), load: Box::new(load), loras: Vec::new(), info: None, weight_bytes: 0 }
    }

    /// With LoRAs merged for every job.
    pub fn with_loras(self, loras: Vec<LoraChoice>) -> Self {
        Self { loras, ..self }
    }

    /// With what it is and, roughly, what its weights take.
    pub fn described(self, info: ModelInfo, weight_bytes: u64) -> Self {
        Self { info: Some(ModelInfo { name: self.name.clone(), ..info }), weight_bytes, ..self }
    }

    pub(super) fn status(&self) -> ModelStatus {
        let (name, info) = (self.name.clone(), self.info.clone().map(Arc::new));
        ModelStatus { name, info, loaded: false, weight_bytes: self.weight_bytes }
    }
}

/// A model's place.
struct Slot<B> {
    entry: ModelEntry<B>,
    backend: Option<B>,
    info: Option<Arc<ModelInfo>>,
    /// LoRAs merged at present; unknown after a merge that failed.
    merged: Option<Vec<LoraChoice>>,
    used: Instant,
    load_s: Moving,
    merge_s: Moving,
    unit_s: Moving,
}

/// All models, the default one first.
pub(super) struct Registry<B> {
    slots: Vec<Slot<B>>,
    weight_limit_bytes: Option<u64>,
    unload_after: Option<Duration>,
    warm_up: bool,
    shared: Arc<Shared>,
}

impl<B: Backend> Registry<B> {
    pub(super) fn new(models: Vec<ModelEntry<B>>, settings: &EngineSettings, shared: Arc<Shared>) -> Self {
        let slot = |entry: ModelEntry<B>| Slot {
            info: entry.info.clone().map(Arc::new),
            entry,
            backend: None,
            merged: None,
            used: Instant::now(),
            load_s: Moving::guess(LOAD_S),
            merge_s: Moving::guess(MERGE_S),
            unit_s: Moving::guess(UNIT_S),
        };
        Self {
            slots: models.into_iter().map(slot).collect(),
            weight_limit_bytes: settings.weight_limit_bytes,
            unload_after: settings.unload_after,
            warm_up: settings.warm_up,
            shared,
        }
    }

    /// Loads the first model.
    pub(super) fn load_default(&mut self) -> Result<Arc<ModelInfo>, Fault> {
        let loras = self.loras(0, &[]);
        self.prepare(0, &loras)?;
        if self.warm_up {
            self.warm_up_default()?;
        }
        self.slots[0].info.clone().ok_or(Fault::Error(EngineError::Stopping))
    }

    /// What fails here fails again when somebody asks for it, and is told then.
    fn warm_up_default(&mut self) -> Result<(), Fault> {
        let slot = &self.slots[0];
        let Some(backend) = &slot.backend else { return Ok(()) };
        let started = Instant::now();
        // As a part of loading: no limit of a call is meant for it.
        let warm = self.shared.load(&slot.entry.name, 0, || backend.warm_up());
        self.shared.meter.memory.take(backend.device_memory());
        match warm {
            Err(fault) if fault.is_device_lost() => return Err(fault),
            Err(fault) => tracing::warn!(?fault, "the model could not be warmed up"),
            Ok(()) => tracing::debug!(elapsed_ms = started.elapsed().as_millis() as u64, "warm"),
        }
        Ok(())
    }

    /// The place of a model, the default one without a name.
    pub(super) fn find(&self, name: Option<&str>) -> Result<usize, EngineError> {
        let Some(name) = name else { return Ok(0) };
        let names = || self.slots.iter().map(|slot| slot.entry.name.as_str());
        names().position(|known| known == name).ok_or_else(|| unknown_model(name, names()))
    }

    /// All LoRAs of a job on this model.
    pub(super) fn loras(&self, at: usize, wanted: &[LoraChoice]) -> Vec<LoraChoice> {
        [&self.slots[at].entry.loras, wanted].concat()
    }

    /// The model as far as it is known; what is unknown is taken to be as the default one.
    pub(super) fn info(&self, at: usize) -> Option<&ModelInfo> {
        self.slots[at].info.as_deref().or(self.slots[0].info.as_deref())
    }

    /// What a model with its present LoRAs is.
    pub(super) fn info_now(&self, at: usize) -> Option<ModelInfo> {
        let slot = &self.slots[at];
        Some(ModelInfo { name: slot.entry.name.clone(), ..slot.backend.as_ref()?.info() })
    }

    /// Seconds that one unit of work takes on a model.
    pub(super) fn unit_s(&self, at: usize) -> f64 {
        self.slots[at].unit_s.get()
    }

    /// Takes a measurement of that.
    pub(super) fn measured(&mut self, at: usize, time: Duration, units: f64) {
        if units > 0.0 {
            self.slots[at].unit_s.add(time.as_secs_f64() / units);
        }
    }

    /// Whether a job of this model with `wanted` beside its own LoRAs can go on without a load or a merge.
    pub(super) fn is_ready(&self, at: usize, wanted: &[LoraChoice]) -> bool {
        let slot = &self.slots[at];
        let always = &slot.entry.loras;
        let merged = slot.merged.as_deref().and_then(|merged| merged.strip_prefix(always.as_slice()));
        slot.backend.is_some() && merged == Some(wanted)
    }

    /// Seconds of load and merge before such a job can go on.
    pub(super) fn switch_s(&self, at: usize, wanted: &[LoraChoice]) -> f64 {
        let slot = &self.slots[at];
        match (self.is_ready(at, wanted), &slot.backend) {
            (true, _) => 0.0,
            (false, Some(_)) => slot.merge_s.get(),
            (false, None) => slot.load_s.get() + slot.merge_s.get(),
        }
    }

    /// Loads the model if it is not, and merges exactly these LoRAs if they are not.
    pub(super) fn prepare(&mut self, at: usize, loras: &[LoraChoice]) -> Result<(), Fault> {
        self.ensure_loaded(at)?;
        let slot = &mut self.slots[at];
        let Some(backend) = slot.backend.as_mut().filter(|_| slot.merged.as_deref() != Some(loras)) else {
            return Ok(());
        };
        slot.merged = None;
        let started = Instant::now();
        let mut merged = self.shared.call(|| backend.set_loras(loras));
        if merged.as_ref().is_err_and(Fault::is_out_of_memory) {
            backend.free_memory();
            merged = self.shared.call(|| backend.set_loras(loras));
        }
        merged?;
        slot.merged = Some(loras.to_vec());
        slot.merge_s.add(started.elapsed().as_secs_f64());
        self.shared.meter.merge_s.record_time(started.elapsed());
        if *loras == slot.entry.loras[..] {
            slot.info = Some(Arc::new(ModelInfo { name: slot.entry.name.clone(), ..backend.info() }));
            self.publish();
        }
        Ok(())
    }

    /// Loads the model if it is not, whatever is merged.
    pub(super) fn ensure_loaded(&mut self, at: usize) -> Result<(), Fault> {
        if self.slots[at].backend.is_none() {
            self.load(at)?;
        }
        self.slots[at].used = Instant::now();
        Ok(())
    }

    fn load(&mut self, at: usize) -> Result<(), Fault> {
        self.make_room(at);
        let started = Instant::now();
        let backend = match self.read(at) {
            // It may fit where the others were.
            Err(fault) if fault.is_out_of_memory() && self.unload_others(at) => self.read(at)?,
            read => read?,
        };
        self.shared.meter.memory.take(backend.device_memory());
        let slot = &mut self.slots[at];
        let took = started.elapsed();
        slot.load_s.add(took.as_secs_f64());
        slot.merged = None;
        if backend.weight_bytes() > 0 {
            slot.entry.weight_bytes = backend.weight_bytes();
        }
        let device = backend.info().device;
        slot.backend = Some(backend);
        self.shared.meter.load_s.record_time(took);
        tracing::info!(model = slot.entry.name, elapsed_ms = took.as_millis() as u64, "model loaded");
        // All models share the device, which configs do not tell.
        for info in self.slots.iter_mut().filter_map(|slot| slot.info.as_mut()) {
            if info.device.is_empty() {
                Arc::make_mut(info).device.clone_from(&device);
            }
        }
        self.publish();
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<B, Fault> {
        let ModelEntry { name, weight_bytes, load, .. } = &mut self.slots[at].entry;
        self.shared.load(name, *weight_bytes, load)
    }

    /// Unloads what was not used for longest, until the model fits beside the rest.
    fn make_room(&mut self, at: usize) {
        let Some(limit) = self.weight_limit_bytes else { return };
        let wanted = self.slots[at].entry.weight_bytes;
        loop {
            let loaded = || self.slots.iter().enumerate().filter(|(_, slot)| slot.backend.is_some());
            let held: u64 = loaded().map(|(_, slot)| slot.entry.weight_bytes).sum();
            let oldest = loaded().filter(|(i, _)| *i != at).min_by_key(|(_, slot)| slot.used).map(|(i, _)| i);
            match oldest {
                Some(oldest) if held + wanted > limit => self.unload(oldest),
                _ => return,
            }
        }
    }

    fn unload(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        (slot.backend, slot.merged) = (None, None);
        tracing::info!(model = slot.entry.name, "model unloaded");
        match self.slots.iter().find_map(|slot| slot.backend.as_ref()) {
            Some(other) => self.shared.meter.memory.take(other.device_memory()),
            None => self.shared.meter.memory.all_given_back(),
        }
        self.publish();
    }

    /// Unloads all models but this one; false where there are none.
    fn unload_others(&mut self, at: usize) -> bool {
        let loaded = |slot: &Slot<B>| slot.backend.is_some();
        let others: Vec<_> = (0..self.slots.len()).filter(|&i| i != at && loaded(&self.slots[i])).collect();
        others.iter().for_each(|&other| self.unload(other));
        !others.is_empty()
    }

    /// Time until a model has been idle for long enough.
    pub(super) fn until_idle(&self) -> Option<Duration> {
        let limit = self.unload_after?;
        let loaded = self.slots.iter().filter(|slot| slot.backend.is_some());
        loaded.map(|slot| limit.saturating_sub(slot.used.elapsed())).min()
    }

    /// Unloads every model that has been idle for long enough.
    pub(super) fn unload_idle(&mut self) {
        let Some(limit) = self.unload_after else { return };
        for at in 0..self.slots.len() {
            if self.slots[at].backend.is_some() && self.slots[at].used.elapsed() >= limit {
                self.unload(at);
            }
        }
    }

    /// Runs one call of a prepared model.
    pub(super) fn call<T>(
        &self,
        at: usize,
        run: impl FnOnce(&B) -> Result<T, EngineError>,
    ) -> Result<T, Fault> {
        let missing = || EngineError::Failed("the model is not loaded".into());
        let backend = self.slots[at].backend.as_ref().ok_or_else(missing)?;
        let result = self.shared.call(|| run(backend));
        self.shared.meter.memory.take(backend.device_memory());
        result
    }

    /// The same, and once more with `sparing` set when it ran out of memory and some was freed.
    pub(super) fn call_twice<T>(
        &mut self,
        at: usize,
        mut run: impl FnMut(&B, bool) -> Result<T, EngineError>,
    ) -> Result<T, Fault> {
        match self.call(at, |backend| run(backend, false)) {
            Err(fault) if fault.is_out_of_memory() => {
                self.free_memory(at);
                self.call(at, |backend| run(backend, true))
            }
            result => result,
        }
    }

    /// Frees what a model can do without, and unloads all others.
    pub(super) fn free_memory(&mut self, at: usize) {
        tracing::warn!("out of memory: it is freed, and tried once more");
        self.unload_others(at);
        if let Some(backend) = &self.slots[at].backend {
            let _goes_on_as_it_is = super::fault::catch(|| {
                backend.free_memory();
                Ok(())
            });
        }
    }

    fn publish(&self) {
        let status = |slot: &Slot<B>| ModelStatus {
            name: slot.entry.name.clone(),
            info: slot.info.clone(),
            loaded: slot.backend.is_some(),
            weight_bytes: slot.entry.weight_bytes,
        };
        let models = self.slots.iter().map(status).collect();
        self.shared.status.send_modify(|s| s.models = models);
    }
}
