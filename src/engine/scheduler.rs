//! The loop that owns the device. Each round gives one job one call of the model: a caption, a start, a step, a
//! decoding. Between any two of them jobs may be begun, put off, or dropped because their caller has left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::estimate::{step_units, work_units};
use super::fault::Fault;
use super::handle::{EngineSettings, Running, Shared};
use super::job::Waited;
use super::meter::Meter;
use super::order::{self, Candidate};
use super::registry::Registry;
use super::task::{Action, Task};
use super::{Backend, Denoising, EngineError, Job, JobPhase, JobSource, Reply};

/// A model that panics this often in a row is broken; a supervisor should start the server anew.
const PANICS_ALLOWED: usize = 3;

/// The captioning model was loaded beside the default one.
const CAPTIONER: usize = 0;

pub(super) struct Scheduler<'a, B: Backend> {
    registry: Registry<B>,
    tasks: Vec<Task<B::Denoising>>,
    jobs: &'a dyn JobSource,
    shared: &'a Arc<Shared>,
    settings: &'a EngineSettings,
    /// What times of arrival are counted from.
    epoch: Instant,
    next_id: u64,
    /// Jobs in a row that panicked.
    panics: usize,
}

/// Why the loop ends.
type End = EngineError;

impl<'a, B: Backend> Scheduler<'a, B> {
    pub(super) fn new(
        registry: Registry<B>,
        jobs: &'a dyn JobSource,
        shared: &'a Arc<Shared>,
        settings: &'a EngineSettings,
    ) -> Self {
        let (tasks, epoch) = (Vec::new(), Instant::now());
        Self { registry, tasks, jobs, shared, settings, epoch, next_id: 0, panics: 0 }
    }

    /// Serves until there are no more jobs or the model is broken, and says which.
    pub(super) fn serve(mut self) -> EngineError {
        loop {
            if let Err(end) = self.round() {
                for at in (0..self.tasks.len()).rev() {
                    let _ends_anyway = self.finish(at, Err(end.clone()), false);
                }
                return end;
            }
        }
    }

    fn round(&mut self) -> Result<(), End> {
        self.sweep()?;
        match self.turn() {
            Some(turn) => return self.advance(turn),
            // A job that was refused at once leaves the turn to another.
            None if !self.tasks.is_empty() => return Ok(()),
            None => {}
        }
        match self.jobs.wait(self.registry.until_idle()) {
            Waited::Job => {}
            Waited::Nothing => self.registry.unload_idle(),
            Waited::Closed => return Err(EngineError::Stopping),
        }
        Ok(())
    }

    /// Drops the jobs whose callers have left or whose time is over.
    fn sweep(&mut self) -> Result<(), End> {
        for at in (0..self.tasks.len()).rev() {
            let task = &self.tasks[at];
            let over = self.settings.run_limit.filter(|limit| task.begun.elapsed() > *limit);
            if task.job.reply.is_closed() {
                self.finish(at, Err(EngineError::Cancelled), false)?;
            } else if let Some(limit) = over {
                self.finish(at, Err(EngineError::RanTooLong { limit_s: limit.as_secs() }), false)?;
            }
        }
        Ok(())
    }

    /// The task whose turn it is; a waiting job is begun when it is that one's.
    fn turn(&mut self) -> Option<usize> {
        let begun = order::first(self.tasks.iter().map(|task| self.candidate(task)));
        let at = match self.take_before(begun.map(|(_, rank)| rank)) {
            Some(job) => self.begin(job)?,
            None => begun?.0,
        };
        let recruit = match self.tasks[at].next(self.settings.max_batch) {
            Action::Step => self.recruit(at),
            _ => None,
        };
        recruit.or(Some(at))
    }

    fn candidate(&self, task: &Task<B::Denoising>) -> Candidate {
        let units = self.registry.info(task.model).map_or(0.0, |info| task.remaining(info));
        self.ranked(task.model, &task.job, units)
    }

    fn ranked(&self, model: usize, job: &Job, units: f64) -> Candidate {
        let switch_s = self.registry.switch_s(model, &job.work.loras);
        // Who stands halfway with what is merged now will want it back.
        let halfway = |t: &Task<B::Denoising>| self.registry.is_ready(t.model, &t.job.work.loras);
        let back = if switch_s > 0.0 && self.tasks.iter().any(halfway) { 2.0 } else { 1.0 };
        Candidate {
            remaining_s: units * self.registry.unit_s(model),
            switch_s: switch_s * back,
            arrived_s: job.submitted.saturating_duration_since(self.epoch).as_secs_f64(),
        }
    }

    /// Takes the waiting job that comes before everything of this rank.
    fn take_before(&self, rank: Option<f64>) -> Option<Job> {
        if self.tasks.len() >= self.settings.in_flight.max(1) {
            return None;
        }
        self.jobs.take(&mut |waiting| {
            let (index, first) = order::first(waiting.map(|job| {
                // A job for an unknown model is refused as soon as it has its turn.
                let model = self.registry.find(job.work.model.as_deref()).unwrap_or(0);
                let units = self.registry.info(model).map_or(0.0, |info| work_units(&job.work, info));
                self.ranked(model, job, units)
            }))?;
            rank.is_none_or(|rank| first < rank).then_some(index)
        })
    }

    /// Takes a waiting job that can join the next step of this task.
    fn recruit(&mut self, at: usize) -> Option<usize> {
        let task = &self.tasks[at];
        let busy: usize = self.tasks.iter().map(|t| t.making.len()).sum();
        if busy >= self.settings.max_batch || self.tasks.len() >= self.settings.in_flight {
            return None;
        }
        let first = task.job.work.requests.first()?;
        let job = self.jobs.take(&mut |waiting| {
            let joins = |job: &Job| {
                let same_size =
                    |r: &super::GenerationRequest| (r.width, r.height) == (first.width, first.height);
                job.work.based_on.is_empty()
                    && job.work.loras == task.job.work.loras
                    && self.registry.find(job.work.model.as_deref()) == Ok(task.model)
                    && job.work.requests.first().is_some_and(same_size)
            };
            waiting.enumerate().find(|(_, job)| joins(job)).map(|(index, _)| index)
        })?;
        self.begin(job)
    }

    /// Makes a waiting job a task, and says which.
    fn begin(&mut self, job: Job) -> Option<usize> {
        self.shared.meter.wait_s.record_time(job.submitted.elapsed());
        tracing::debug!(parent: &job.span, wait_ms = job.submitted.elapsed().as_millis() as u64, "begun");
        let model = match self.registry.find(job.work.model.as_deref()) {
            Ok(model) => model,
            Err(error) => {
                self.answer(job, Err(error));
                return None;
            }
        };
        let loras = self.registry.loras(model, &job.work.loras);
        job.progress.set(|p| {
            p.phase = JobPhase::Running;
            p.begun = Some(Instant::now());
        });
        self.tasks.push(Task::new(self.next_id, job, model, loras));
        self.next_id += 1;
        Some(self.tasks.len() - 1)
    }

    /// Gives a task one call of the model.
    fn advance(&mut self, at: usize) -> Result<(), End> {
        let task = &mut self.tasks[at];
        let action = task.next(self.settings.max_batch);
        if action == Action::Finish {
            let pictures = task.pictures();
            return self.finish(at, Ok(pictures), false);
        }
        let (model, loras) = (task.model, task.loras.clone());
        // Each call of the model is a span within the request's; a step's is made where its batch is known.
        let request = task.job.span.clone();
        let _request = request.enter();
        let stage = match action {
            Action::Caption(picture) => tracing::debug_span!("caption", picture),
            Action::Start(picture) => tracing::debug_span!("start", picture),
            Action::Decode(making) => tracing::debug_span!("decode", making),
            Action::Step | Action::Finish => tracing::Span::none(),
        };
        let _entered = stage.enter();
        let ready = match action {
            Action::Caption(_) => self.registry.ensure_loaded(CAPTIONER),
            _ => self.registry.prepare(model, &loras),
        };
        let done = ready.and_then(|()| match action {
            Action::Caption(index) => self.caption(at, index),
            Action::Start(index) => self.start(at, index),
            Action::Decode(making) => self.decode(at, making),
            Action::Step | Action::Finish => Ok(()),
        });
        match done {
            Err(fault) => self.fail(at, fault),
            Ok(()) if action == Action::Step => self.step(at),
            Ok(()) => {
                self.tell(at);
                Ok(())
            }
        }
    }

    fn caption(&mut self, at: usize, index: usize) -> Result<(), Fault> {
        let task = &mut self.tasks[at];
        let Some(image) = task.job.work.based_on.get(index) else { return Ok(()) };
        let caption = self.registry.call_twice(CAPTIONER, |backend, _| backend.caption(image))?;
        task.captioned(caption);
        Ok(())
    }

    fn start(&mut self, at: usize, index: usize) -> Result<(), Fault> {
        let task = &mut self.tasks[at];
        let Some(request) = task.job.work.requests.get(index) else { return Ok(()) };
        let started = Instant::now();
        let meter = &self.shared.meter;
        let (denoising, hits, misses) = self.registry.call_twice(task.model, |backend, _| {
            let before = backend.prompt_cache();
            let denoising = counting_repeated(backend, meter, || backend.start(request))?;
            let after = backend.prompt_cache();
            Ok((denoising, after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)))
        })?;
        meter.prompt_hits.add(hits);
        meter.prompt_misses.add(misses);
        meter.start_s.record_time(started.elapsed());
        task.begun(denoising, started.elapsed());
        Ok(())
    }

    fn decode(&mut self, at: usize, making: usize) -> Result<(), Fault> {
        let task = &mut self.tasks[at];
        let started = Instant::now();
        let denoising = &task.making[making].denoising;
        let meter = &self.shared.meter;
        let image = self.registry.call_twice(task.model, |backend, sparing| {
            counting_repeated(backend, meter, || backend.decode(denoising, sparing))
        })?;
        meter.decode_s.record_time(started.elapsed());
        meter.pictures.add(1);
        if let Some(info) = self.registry.info_now(task.model) {
            task.decoded(making, image, started.elapsed(), &info);
        }
        Ok(())
    }

    /// One step of a task's pictures and of all others that can join them.
    fn step(&mut self, at: usize) -> Result<(), End> {
        let model = self.tasks[at].model;
        let members = self.batch(at);
        let stage = tracing::debug_span!("step", batch = members.len());
        for &(other, _) in &members {
            stage.follows_from(&self.tasks[other].job.span);
        }
        let _entered = stage.enter();
        let (faults, time) = self.step_together(model, &members);
        let units = members.iter().filter_map(|&(t, m)| {
            let (task, info) = (&self.tasks[t], self.registry.info(model)?);
            Some(step_units(task.job.work.requests.get(task.making[m].index)?, info))
        });
        let units = units.sum();
        if faults.iter().all(Option::is_none) {
            self.registry.measured(model, time, units);
        }
        for &(t, m) in &members {
            self.tasks[t].making[m].spent += time;
        }
        // Places in the list change as jobs fail: from here on they go by their ids.
        let mut stepped: Vec<(u64, Option<Fault>)> = Vec::new();
        for (&(t, _), fault) in members.iter().zip(faults) {
            let id = self.tasks[t].id;
            match stepped.iter_mut().find(|(known, _)| *known == id) {
                Some((_, known)) => *known = known.take().or(fault),
                None => stepped.push((id, fault)),
            }
        }
        for (id, fault) in stepped {
            let Some(at) = self.tasks.iter().position(|task| task.id == id) else { continue };
            match fault {
                Some(fault) => self.fail(at, fault)?,
                None => self.tell(at),
            }
        }
        Ok(())
    }

    /// `(task, picture)` of everything that goes into one step with this task's pictures, those first.
    fn batch(&self, at: usize) -> Vec<(usize, usize)> {
        let task = &self.tasks[at];
        let Some(first) = task.making.first() else { return Vec::new() };
        let others = (0..self.tasks.len()).filter(|&other| other != at);
        let together = std::iter::once(at).chain(others).filter(|&other| {
            let other = &self.tasks[other];
            other.model == task.model && other.loras == task.loras
        });
        let pictures = together.flat_map(|t| (0..self.tasks[t].making.len()).map(move |m| (t, m)));
        let joins = |&(t, m): &(usize, usize)| {
            let making = &self.tasks[t].making[m];
            !making.is_done() && (std::ptr::eq(making, first) || making.denoising.joins(&first.denoising))
        };
        pictures.filter(joins).take(self.settings.max_batch.max(1)).collect()
    }

    /// Steps them, one by one where all at once does not work. A fault for each that has one, and the time it took.
    fn step_together(&mut self, model: usize, members: &[(usize, usize)]) -> (Vec<Option<Fault>>, Duration) {
        let mut batch: Vec<&mut B::Denoising> = Vec::with_capacity(members.len());
        let mut order = Vec::with_capacity(members.len());
        for (t, task) in self.tasks.iter_mut().enumerate() {
            for (m, making) in task.making.iter_mut().enumerate() {
                if let Some(place) = members.iter().position(|member| *member == (t, m)) {
                    batch.push(&mut making.denoising);
                    order.push(place);
                }
            }
        }
        let before: Vec<usize> = batch.iter().map(|d| d.position()).collect();
        let started = Instant::now();
        let whole = self.registry.call(model, |backend| backend.step(&mut batch));
        let time = started.elapsed();
        self.shared.meter.step_s.record_time(time);
        self.shared.meter.batch.record(batch.len() as f64);
        let mut faults = vec![None; members.len()];
        let Err(fault) = whole else { return (faults, time) };
        let memory = fault.is_out_of_memory();
        if fault.is_device_lost() || (batch.len() == 1 && !memory) {
            faults.fill(Some(fault));
            return (faults, time);
        }
        if memory {
            self.registry.free_memory(model);
        }
        for ((denoising, before), place) in batch.iter_mut().zip(before).zip(order) {
            if denoising.position() == before {
                let alone = self.registry.call(model, |backend| backend.step(&mut [&mut **denoising]));
                faults[place] = alone.err();
            }
        }
        (faults, started.elapsed())
    }

    /// Tells everybody how far a task is, those who watch it with a preview.
    fn tell(&self, at: usize) {
        let task = &self.tasks[at];
        let (picture, step, steps) = task.position();
        if steps > 0 {
            let running = Running { picture, pictures: task.job.work.requests.len(), step, steps };
            self.shared.status.send_modify(|s| s.running = Some(running));
        }
        let wanted = task.making.first().filter(|m| m.wants_preview() && task.job.progress.is_watched());
        let preview = wanted.and_then(|making| {
            let preview = self.registry.call(task.model, |backend| backend.preview(&making.denoising));
            preview.inspect_err(|fault| tracing::debug!(?fault, "no preview")).ok().flatten()
        });
        task.report(preview);
    }

    fn fail(&mut self, at: usize, fault: Fault) -> Result<(), End> {
        let (panicked, lost) = (fault == Fault::Panic, fault.is_device_lost());
        let error = fault.into_error();
        self.finish(at, Err(error.clone()), panicked)?;
        if lost { Err(error) } else { Ok(()) }
    }

    /// Ends a task.
    fn finish(&mut self, at: usize, reply: Reply, panicked: bool) -> Result<(), End> {
        let Task { job, making, .. } = self.tasks.remove(at);
        drop(making);
        self.shared.status.send_modify(|s| s.running = None);
        if panicked {
            self.panics += 1;
        } else if !matches!(reply, Err(EngineError::Cancelled)) {
            self.panics = 0;
        }
        self.answer(job, reply);
        if self.panics >= PANICS_ALLOWED {
            return Err(EngineError::Failed(format!("{} jobs in a row panicked", self.panics)));
        }
        Ok(())
    }

    fn answer(&self, job: Job, reply: Reply) {
        let meter = &self.shared.meter;
        match &reply {
            Ok(_) => meter.jobs_done.add(1),
            Err(EngineError::Cancelled) => meter.jobs_cancelled.add(1),
            Err(error) => {
                tracing::warn!(parent: &job.span, %error, "no picture");
                meter.jobs_failed.add(1);
                meter.not_finite.add(u64::from(matches!(error, EngineError::NotFinite(_))));
            }
        }
        // The place goes first: whoever reads the reply may ask again at once.
        let Job { reply: caller, place, progress, .. } = job;
        drop(place);
        progress.set(|p| p.phase = JobPhase::Done);
        let _gone = caller.send(reply);
    }
}

/// Counts the runs of the VAE that a call repeats in f32, whatever comes of it.
fn counting_repeated<B: Backend, T>(
    backend: &B,
    meter: &Meter,
    call: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let before = backend.repeated();
    let result = call();
    meter.repeated.add(backend.repeated().saturating_sub(before));
    result
}
