//! Takes jobs from the shared queue, one at a time, and has the engine of this process make them.
//!
//! A job is given to a worker for the time of a lease. The worker renews it while the job gets on, step by step: one that
//! hangs, is stopped or is gone loses the job to another. Results are stored first, then the job's end is told, then the
//! job leaves the queue; wherever that breaks off, the next worker goes on from there.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{StreamExt, TryFutureExt};
use image::RgbImage;
use tokio::sync::watch::{self, error::RecvError};
use tokio::task::JoinSet;

use super::broker::{Broker, JOBS, failed};
use super::catalog::{self, Card};
use super::message::{self, JobMessage};
use super::{NatsQueue, results, subject};
use crate::engine::{EngineError, JobPhase, LoraChoice, Progress, Reply};
use crate::picture::{Format, encode_plain};
use crate::queue::shared::{End, JobEvent};
use crate::queue::{Caller, Cost, JobQueue, LocalQueue};

/// A question for a job is open for so long; then it is asked again, and a stop is seen.
const FETCH: Duration = Duration::from_secs(1);
/// The same where there are several models to ask for.
const FETCH_OF_MANY: Duration = Duration::from_millis(100);
/// After a failure to reach the queue.
const PAUSE: Duration = Duration::from_millis(500);
/// Loading, merging and encoding come before the first step, and tell nothing meanwhile.
const START_GRACE: Duration = Duration::from_secs(600);
/// Steps are told no faster than anybody looks: each word is a write to the server's disk.
const TELL: Duration = Duration::from_millis(200);
/// Models are announced anew after this time.
const ANNOUNCE: Duration = Duration::from_secs(3600);
/// Previews are looked at for a moment.
const PREVIEW_QUALITY: u8 = 75;
/// A lease is renewed so many times in its length.
const RENEWALS: u32 = 3;

/// Finds the LoRA of a name.
pub type LoraByName = Arc<dyn Fn(&str) -> Option<LoraChoice> + Send + Sync>;

/// A worker's settings.
pub struct Worker {
    /// The queue that is shared.
    pub queue: NatsQueue,
    /// The queue of the engine in this process.
    pub local: LocalQueue,
    /// The models it has.
    pub models: Vec<Card>,
    /// Finds its LoRAs.
    pub lora: LoraByName,
}

/// How far a worker is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Takes jobs.
    No,
    /// Takes none, and finishes the one it has.
    Soon,
    /// Gives back the one it has.
    Now,
}

impl Worker {
    /// Until it is told to stop and has done its last job, or given it back.
    pub async fn run(self, mut stop: watch::Receiver<Stop>) {
        let broker = self.queue.shared.broker.clone();
        let mut finishing = JoinSet::new();
        let mut consumers = Vec::new();
        let mut announced: Option<Instant> = None;
        while *stop.borrow() == Stop::No {
            if announced.is_none_or(|at| at.elapsed() > ANNOUNCE) {
                match self.begin(&broker).await {
                    Ok(new) => (consumers, announced) = (new, Some(Instant::now())),
                    Err(error) => {
                        tracing::debug!(%error, "the worker waits for the queue");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            match next_job(&consumers).await {
                Ok(None) => {}
                Ok(Some(message)) => {
                    let job = Delivery::new(&broker, message);
                    if *stop.borrow() != Stop::No {
                        job.give_back().await;
                    } else if let Some((job, reply)) = job.make(&self, &mut stop).await {
                        // The engine makes the next one meanwhile, and one only: results must not pile up.
                        while finishing.len() > 1 {
                            finishing.join_next().await;
                        }
                        finishing.spawn(job.finish(reply, stop.clone()));
                    }
                    while finishing.try_join_next().is_some() {}
                }
                Err(error) => {
                    tracing::debug!(%error, "no answer to the question for a job");
                    tokio::time::sleep(PAUSE).await;
                    announced = None;
                }
            }
        }
        while finishing.join_next().await.is_some() {}
    }

    /// Announces the models, and finds or makes the consumer of each.
    async fn begin(&self, broker: &Broker) -> Result<Vec<PullConsumer>, EngineError> {
        if !broker.is_up() {
            return Err(EngineError::Failed("NATS: not connected".into()));
        }
        let mut consumers = Vec::with_capacity(self.models.len());
        for card in &self.models {
            catalog::announce(broker, card).await?;
            let config = pull::Config {
                durable_name: Some(subject::consumer(&card.name)),
                filter_subject: subject::jobs_of(&card.name),
                ack_policy: AckPolicy::Explicit,
                ack_wait: broker.settings.lease,
                max_deliver: i64::from(broker.settings.deliveries),
                // As many as there are workers may be at work.
                max_ack_pending: -1,
                ..pull::Config::default()
            };
            let consumer = broker.context.create_consumer_on_stream(config, JOBS).await;
            consumers.push(consumer.map_err(failed("making a consumer"))?);
        }
        Ok(consumers)
    }
}

/// One question for one job: a question that stays open for long can fall silent when a connection is made anew.
async fn next_job(consumers: &[PullConsumer]) -> Result<Option<Message>, EngineError> {
    let open = if consumers.len() == 1 { FETCH } else { FETCH_OF_MANY };
    for consumer in consumers {
        let asked = async {
            let batch = consumer.batch().max_messages(1).expires(open).messages().await;
            batch
                .map_err(failed("asking for a job"))?
                .next()
                .await
                .transpose()
                .map_err(failed("asking for a job"))
        };
        let answer = tokio::time::timeout(open * 2 + PAUSE, asked).await;
        if let Some(message) = answer.map_err(failed("asking for a job"))?? {
            return Ok(Some(message));
        }
    }
    Ok(None)
}

/// A job that was given to this worker.
struct Delivery {
    broker: Broker,
    message: Message,
    id: String,
    /// Objects to delete with it.
    job: Option<JobMessage>,
}

/// Why a job is not made here.
enum Refused {
    /// It has ended, or ends with this.
    Over(Option<End>),
    /// The queue did not answer, or the engine is not to be had: somebody should try again.
    Later,
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Invalid(_) | EngineError::File { .. } => Self::Over(Some(End::Failed(error))),
            error => {
                tracing::warn!(%error, "a job goes back into the queue");
                Self::Later
            }
        }
    }
}

impl Delivery {
    fn new(broker: &Broker, message: Message) -> Self {
        let id = subject::id_of(&message.subject).unwrap_or_default().to_owned();
        Self { broker: broker.clone(), message, id, job: None }
    }

    /// Lets another worker have it at once.
    async fn give_back(self) {
        let _or_its_lease_runs_out = self.message.ack_with(AckKind::Nak(None)).await;
    }

    /// Has the engine make it; gives nothing where there is nothing more to do.
    async fn make(mut self, worker: &Worker, stop: &mut watch::Receiver<Stop>) -> Option<(Self, Reply)> {
        match self.try_to_make(worker, stop).await {
            Ok(reply) => Some((self, reply)),
            Err(Refused::Over(end)) => {
                self.close(end).await;
                None
            }
            Err(Refused::Later) => {
                let _or_its_lease_runs_out = self.message.ack_with(AckKind::Nak(Some(PAUSE))).await;
                None
            }
        }
    }

    async fn try_to_make(
        &mut self,
        worker: &Worker,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<Reply, Refused> {
        let (broker, id) = (self.broker.clone(), self.id.clone());
        // Before it is looked for: an end that comes later is told here.
        let cancelled = broker.client.subscribe(subject::cancel(&id)).await.map_err(failed("listening"))?;
        if id.is_empty() || broker.ended(&id).await?.is_some() {
            return Err(Refused::Over(None));
        }
        // Nobody can have made it before the first time it is given away.
        let given_before = self.message.info().map_or(true, |info| info.delivered > 1);
        if given_before && results::exist(&broker, &id).await? {
            return Err(Refused::Over(Some(End::Done)));
        }
        let job = serde_json::from_slice(&self.message.payload).map_err(message::malformed)?;
        let job: &mut JobMessage = self.job.insert(job);
        let waited = Duration::from_secs(message::now_s().saturating_sub(job.created));
        if let Some(limit) = broker.settings.wait.filter(|limit| waited > *limit) {
            let error = EngineError::WaitedTooLong { limit_s: limit.as_secs() };
            return Err(Refused::Over(Some(End::Failed(error))));
        }
        let work = job.unpack(&broker, &id, &*worker.lora).await?;
        let place = worker.local.admit(&Caller::anonymous(), Cost::default());
        let place = place.map_err(|refusal| EngineError::Failed(refusal.to_string()))?;
        let ticket = worker.local.put(place, work);
        self.watch(ticket, cancelled, stop).await
    }

    /// Tells how far the job is, and keeps the lease, until the engine answers or nobody wants the answer.
    async fn watch(
        &self,
        mut ticket: crate::queue::Ticket,
        mut cancelled: Subscriber,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<Reply, Refused> {
        let mut progress = ticket.progress();
        let mut told = Told::default();
        let mut lease = Lease::new();
        let mut renewal = tokio::time::interval(self.broker.settings.lease / RENEWALS);
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                reply = &mut ticket => return match reply {
                    Err(EngineError::Stopping | EngineError::DeviceLost(_)) => Err(Refused::Later),
                    reply => Ok(reply),
                },
                Some(_) = cancelled.next() => return Err(Refused::Over(None)),
                () = told_to_end(stop) => return Err(Refused::Later),
                Ok(()) = told.until_news(&mut progress) => {
                    let now = progress.borrow_and_update().clone();
                    self.tell(&now, &mut told).await;
                }
                _ = renewal.tick() => {
                    lease.saw(&progress.borrow());
                    if lease.is_earned() {
                        let _or_it_runs_out = self.message.ack_with(AckKind::Progress).await;
                    }
                    // The word of a cancellation may have been lost, and another worker may have been faster.
                    if let Ok(Some(_)) = self.broker.ended(&self.id).await {
                        return Err(Refused::Over(None));
                    }
                }
            }
        }
    }

    /// What is not told for that the connection is down is not missed: the next word says as much.
    async fn tell(&self, now: &Progress, told: &mut Told) {
        for event in told.news(now).await {
            if let Err(error) = self.broker.publish_event(&self.id, &event).await {
                tracing::debug!(%error, job = self.id, "an event was not told");
            }
        }
    }

    /// Stores what the engine made, tells the end, and takes the job out of the queue. What fails is tried again until
    /// the program is to end: the work is done, and should not be done again.
    async fn finish(self, reply: Reply, mut stop: watch::Receiver<Stop>) {
        let finished = async {
            let end = match reply {
                Ok(pictures) => match results::encode(pictures).await {
                    Ok(object) => {
                        persist(|| results::store(&self.broker, &self.id, &object)).await;
                        End::Done
                    }
                    Err(error) => End::Failed(error),
                },
                Err(error) => End::Failed(error),
            };
            self.close(Some(end)).await;
        };
        tokio::select! {
            () = finished => {}
            () = told_to_end(&mut stop) => {}
        }
    }

    /// Tells the end, where it has not been, and takes the job out of the queue.
    async fn close(&self, end: Option<End>) {
        if let Some(end) = end {
            persist(|| async { self.broker.end(&self.id, end.clone()).await.map(drop) }).await;
        }
        let taken_out = || self.message.double_ack().map_err(failed("taking a job out of the queue"));
        persist(taken_out).await;
        if let Some(job) = &self.job {
            job.forget(&self.broker, &self.id).await;
        }
    }
}

/// Whoever could tell it later being gone is the same.
async fn told_to_end(stop: &mut watch::Receiver<Stop>) {
    let _told_or_gone = stop.wait_for(|stop| *stop == Stop::Now).await.is_ok();
}

/// Does something until it succeeds.
async fn persist<F: Future<Output = Result<(), EngineError>>>(attempt: impl Fn() -> F) {
    while let Err(error) = attempt().await {
        tracing::warn!(%error, "trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a job has got on since the lease was renewed.
struct Lease {
    begun: Instant,
    seen: Option<(JobPhase, usize, usize)>,
    moved: bool,
}

impl Lease {
    fn new() -> Self {
        Self { begun: Instant::now(), seen: None, moved: true }
    }

    fn saw(&mut self, now: &Progress) {
        let at = Some((now.phase, now.picture, now.step));
        self.moved |= at != self.seen;
        self.seen = at;
    }

    fn is_earned(&mut self) -> bool {
        let started = self.seen.is_some_and(|(_, picture, step)| picture + step > 0);
        std::mem::take(&mut self.moved) || (!started && self.begun.elapsed() < START_GRACE)
    }
}

/// What has been told of a job.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    progress: Option<JobEvent>,
    preview: Option<Arc<RgbImage>>,
}

impl Told {
    /// Waits for a change, and until it is time to tell of one.
    async fn until_news(&self, progress: &mut watch::Receiver<Progress>) -> Result<(), RecvError> {
        if let Some(at) = self.at {
            tokio::time::sleep_until((at + TELL).into()).await;
        }
        progress.changed().await
    }

    /// What is to be told now.
    async fn news(&mut self, now: &Progress) -> Vec<JobEvent> {
        let mut news = Vec::new();
        self.at = Some(Instant::now());
        let decoding = match now.phase {
            JobPhase::Running => false,
            JobPhase::Decoding => true,
            JobPhase::Waiting { .. } | JobPhase::Done => return news,
        };
        let Progress { picture, step, steps, .. } = *now;
        let progress = JobEvent::Progress { decoding, picture, step, steps };
        if self.progress.as_ref() != Some(&progress) {
            self.progress = Some(progress.clone());
            news.push(progress);
        }
        let fresh = |image: &Arc<RgbImage>| self.preview.as_ref().is_none_or(|old| !Arc::ptr_eq(old, image));
        if let Some(image) = now.preview.clone().filter(fresh) {
            self.preview = Some(image.clone());
            let jpeg = move || encode_plain(&image, Format::Jpeg, PREVIEW_QUALITY).ok();
            if let Ok(Some(jpeg)) = tokio::task::spawn_blocking(jpeg).await {
                news.push(JobEvent::Preview { picture, jpeg: BASE64.encode(jpeg) });
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_only_while_steps_are_taken() {
        let at = |phase, step| Progress { phase, step, ..Progress::waiting(1, 0) };
        let mut lease = Lease::new();
        assert!(lease.is_earned() && lease.is_earned(), "the model is being loaded");
        lease.saw(&at(JobPhase::Running, 0));
        assert!(lease.is_earned() && lease.is_earned(), "the prompt is being encoded");
        lease.saw(&at(JobPhase::Running, 1));
        assert!(lease.is_earned());
        assert!(!lease.is_earned(), "no step since");
        // A preview is no step.
        lease.saw(&at(JobPhase::Running, 1));
        assert!(!lease.is_earned());
        lease.saw(&at(JobPhase::Running, 2));
        assert!(lease.is_earned());
        lease.saw(&at(JobPhase::Decoding, 2));
        assert!(lease.is_earned() && !lease.is_earned());
        let mut hangs_at_once = Lease::new();
        hangs_at_once.moved = false;
        hangs_at_once.begun = Instant::now().checked_sub(START_GRACE * 2).unwrap();
        assert!(!hangs_at_once.is_earned());
    }
}
