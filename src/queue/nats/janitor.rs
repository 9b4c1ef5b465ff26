//! What nobody waits for and somebody must do: keep the streams in order, read what is announced, count what waits, and
//! end jobs that no worker can.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio::sync::watch;

use super::broker::{Broker, FAILURES, failed};
use super::catalog::{Catalog, Reading};
use super::{results, subject};
use crate::engine::EngineError;
use crate::queue::Depth;
use crate::queue::shared::End;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two sweeps.
const SWEEP: Duration = Duration::from_secs(30);
/// How many at a time, and how long one may be at it before another process tries.
const AT_ONCE: usize = 16;
const LEASE: Duration = Duration::from_secs(30);

/// Keeps the queue in order for as long as the program runs.
pub(super) struct Janitor {
    broker: Broker,
    reading: Reading,
    depth: Arc<Mutex<Depth>>,
    /// Where the server's word of failures is read.
    failures: Option<PullConsumer>,
    swept: Instant,
}

impl Janitor {
    pub(super) fn new(broker: Broker, announced: watch::Sender<Catalog>, depth: Arc<Mutex<Depth>>) -> Self {
        Self { broker, reading: Reading::new(announced), depth, failures: None, swept: Instant::now() }
    }

    pub(super) async fn run(mut self) {
        let mut well = true;
        loop {
            match self.look().await {
                Ok(()) if !well => tracing::info!("the queue is reached again"),
                Ok(()) => {}
                Err(error) if well => tracing::warn!(%error, "the queue is not as it should be"),
                Err(_) => {}
            }
            well = self.broker.is_up();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> Result<(), EngineError> {
        if !self.broker.is_up() {
            self.broker.prepare().await?;
        }
        self.reading.go_on(&self.broker).await?;
        match count(&self.broker).await {
            Ok(counted) => *self.depth.lock().unwrap_or_else(PoisonError::into_inner) = counted,
            Err(error) => {
                // It may have lost its disk.
                self.failures = None;
                self.broker.prepare().await?;
                return Err(error);
            }
        }
        if self.broker.settings.sets_limits {
            self.end_failures().await?;
            if self.swept.elapsed() > SWEEP {
                self.swept = Instant::now();
                sweep(&self.broker).await?;
            }
        }
        Ok(())
    }

    /// Each word of a failure is in a stream of its own, so that it is heard even if nobody listened when it was said.
    async fn end_failures(&mut self) -> Result<(), EngineError> {
        let consumer = match &self.failures {
            Some(consumer) => consumer,
            None => self.failures.insert(failures(&self.broker).await?),
        };
        let batch = consumer.fetch().max_messages(AT_ONCE).messages().await;
        let mut batch = batch.map_err(failed("reading failures"))?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(failed("reading failures"))?;
            if let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) {
                end_failure(&self.broker, &advisory).await?;
            }
            message.double_ack().await.map_err(failed("reading failures"))?;
        }
        Ok(())
    }
}

/// One consumer for all processes: each failure is ended by one of them.
async fn failures(broker: &Broker) -> Result<PullConsumer, EngineError> {
    let config =
        pull::Config { durable_name: Some("janitor".into()), ack_wait: LEASE, ..pull::Config::default() };
    broker.context.create_consumer_on_stream(config, FAILURES).await.map_err(failed("reading failures"))
}

async fn count(broker: &Broker) -> Result<Depth, EngineError> {
    let info = broker.jobs.get_info().await.map_err(failed("counting jobs"))?;
    let consumers: Vec<_> = broker.jobs.consumers().try_collect().await.map_err(failed("counting jobs"))?;
    let jobs = usize::try_from(info.state.messages).unwrap_or(usize::MAX);
    let running = consumers.iter().map(|consumer| consumer.num_ack_pending).sum::<usize>().min(jobs);
    let capacity = usize::try_from(info.config.max_messages).unwrap_or(usize::MAX);
    Ok(Depth { running, waiting: jobs - running, capacity })
}

/// What the server says of a job that was delivered as often as may be.
#[derive(Deserialize)]
struct Advisory {
    stream_seq: u64,
    deliveries: u64,
}

async fn end_failure(broker: &Broker, advisory: &Advisory) -> Result<(), EngineError> {
    let job = match broker.jobs.get_raw_message(advisory.stream_seq).await {
        Ok(job) => job,
        // It was done or cancelled after all.
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(()),
        Err(error) => return Err(failed("reading a failure")(error)),
    };
    if let Some(id) = subject::id_of(&job.subject) {
        let end = if results::exist(broker, id).await? { End::Done } else { given_up(advisory.deliveries) };
        tracing::warn!(job = id, deliveries = advisory.deliveries, ?end, "no worker finished this job");
        broker.end(id, end).await?;
    }
    broker.jobs.delete_message(advisory.stream_seq).await.map(drop).map_err(failed("deleting a job"))
}

fn given_up(deliveries: u64) -> End {
    let reason = format!("{deliveries} workers began this job, and none of them finished it");
    End::Failed(EngineError::Failed(reason))
}

/// Deletes jobs that have ended and are in the queue still: those whose worker was lost between the two.
async fn sweep(broker: &Broker) -> Result<(), EngineError> {
    let mut next = 1;
    loop {
        let message = match broker.jobs.get_first_raw_message_by_subject("image.jobs.*.*", next).await {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(()),
            Err(error) => return Err(failed("sweeping")(error)),
        };
        next = message.sequence + 1;
        let Some(id) = subject::id_of(&message.subject) else { continue };
        if broker.ended(id).await?.is_some() {
            broker.jobs.delete_message(message.sequence).await.map_err(failed("sweeping"))?;
        }
    }
}

/// Forgets a job that has ended.
pub(super) async fn forget(broker: &Broker, id: &str) -> Result<(), EngineError> {
    if results::exist(broker, id).await? {
        broker.results().await?.delete(id).await.map_err(failed("forgetting a job"))?;
    }
    let purged = broker.events.purge().filter(subject::events(id)).await;
    purged.map(drop).map_err(failed("forgetting a job"))
}
