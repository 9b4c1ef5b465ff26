//! The connection to NATS, and what is kept there: three streams, two object stores, one list of models.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::{self, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;

use super::Settings;
use super::subject;
use crate::engine::EngineError;
use crate::queue::shared::{End, JobEvent};

pub(super) const JOBS: &str = "IMAGE_JOBS";
pub(super) const EVENTS: &str = "IMAGE_EVENTS";
pub(super) const FAILURES: &str = "IMAGE_FAILURES";
pub(super) const MODELS: &str = "IMAGE_MODELS";
pub(super) const INPUTS: &str = "IMAGE_INPUTS";
pub(super) const RESULTS: &str = "IMAGE_RESULTS";

/// A job that is submitted twice within this time is one job.
const DUPLICATES: Duration = Duration::from_secs(600);
/// Messages are small: pictures, and whatever else makes one larger, go to the object store.
pub(super) const MESSAGE_BYTES: usize = 64 << 10;
/// Beside the payload a message has its headers.
const HEADER_BYTES: usize = 1 << 10;
/// Servers take messages of 1 MiB unless they are told otherwise.
const CHUNK_BYTES: usize = 512 << 10;
/// Pictures that jobs start from: those of jobs that were never made go after this time.
const INPUTS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Models are announced again and again; what no worker has had for this long is forgotten.
const MODELS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long an answer of the server may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which two pings in a row go unanswered is lost.
const PING: Duration = Duration::from_secs(5);
const LONGEST_PAUSE_MS: u64 = 2000;

/// The queue's end of the connection. Clones share it.
#[derive(Clone)]
pub(super) struct Broker {
    pub(super) settings: Arc<Settings>,
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) jobs: Stream<()>,
    pub(super) events: Stream<()>,
    pub(super) models: Stream<()>,
    stores: Arc<Stores>,
}

#[derive(Default)]
struct Stores {
    inputs: OnceCell<ObjectStore>,
    results: OnceCell<ObjectStore>,
    /// Every stream is there.
    prepared: AtomicBool,
}

/// What the server did not do.
pub(super) fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> EngineError {
    move |error| EngineError::Failed(format!("NATS: {what}: {error}"))
}

/// What became of a job that was handed to the server.
#[derive(Debug)]
pub(super) enum Handed {
    /// The server has it on disk.
    Stored,
    /// There is no room.
    Full,
}

impl Broker {
    /// Begins to connect. It need not succeed: what is asked of the broker fails until it does.
    pub(super) async fn connect(settings: Settings) -> Result<Self, EngineError> {
        let options = ConnectOptions::new()
            .name("aquatint")
            .retry_on_initial_connect()
            .ping_interval(PING)
            .connection_timeout(TIMEOUT)
            .request_timeout(Some(TIMEOUT))
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(LONGEST_PAUSE_MS.min(50 << attempt.min(10)))
            });
        let addresses: Vec<&str> = settings.url.expose().split(',').collect();
        let client = options.connect(addresses).await.map_err(failed("connecting"))?;
        let context =
            jetstream::ContextBuilder::new().timeout(TIMEOUT).ack_timeout(TIMEOUT).build(client.clone());
        let stream = async |name| context.get_stream_no_info(name).await.map_err(failed("streams"));
        Ok(Self {
            jobs: stream(JOBS).await?,
            events: stream(EVENTS).await?,
            models: stream(MODELS).await?,
            settings: Arc::new(settings),
            stores: Arc::default(),
            client,
            context,
        })
    }

    /// Whether the server can be asked, and all streams are there.
    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected && self.stores.prepared.load(Ordering::Relaxed)
    }

    /// Makes what is missing. Whoever submits jobs says how many there may be; workers take what they find.
    pub(super) async fn prepare(&self) -> Result<(), EngineError> {
        let result = self.prepare_all().await;
        self.stores.prepared.store(result.is_ok(), Ordering::Relaxed);
        result
    }

    async fn prepare_all(&self) -> Result<(), EngineError> {
        for config in self.streams() {
            if self.settings.sets_limits {
                self.context.create_or_update_stream(config).await.map_err(failed("making the streams"))?;
            } else {
                self.context.get_or_create_stream(config).await.map_err(failed("making the streams"))?;
            }
        }
        self.inputs().await?;
        self.results().await?;
        Ok(())
    }

    fn streams(&self) -> [Config; 4] {
        let settings = &*self.settings;
        let kept = |name: &str, subjects: &str| Config {
            name: name.into(),
            subjects: vec![subjects.into()],
            storage: StorageType::File,
            num_replicas: settings.replicas,
            ..Config::default()
        };
        [
            Config {
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                max_messages: i64::try_from(settings.capacity).unwrap_or(i64::MAX),
                max_message_size: (MESSAGE_BYTES + HEADER_BYTES) as i32,
                duplicate_window: DUPLICATES,
                ..kept(JOBS, "image.jobs.*.*")
            },
            Config { max_age: settings.keep, ..kept(EVENTS, "image.events.*.*") },
            Config {
                retention: RetentionPolicy::WorkQueue,
                max_age: INPUTS_KEPT,
                ..kept(FAILURES, &subject::max_deliveries())
            },
            Config { max_messages_per_subject: 1, max_age: MODELS_KEPT, ..kept(MODELS, "image.models.*") },
        ]
    }

    /// Pictures that jobs start from.
    pub(super) async fn inputs(&self) -> Result<&ObjectStore, EngineError> {
        self.stores.inputs.get_or_try_init(|| self.store(INPUTS, INPUTS_KEPT)).await
    }

    /// Pictures that were made.
    pub(super) async fn results(&self) -> Result<&ObjectStore, EngineError> {
        self.stores.results.get_or_try_init(|| self.store(RESULTS, self.settings.keep)).await
    }

    async fn store(&self, bucket: &str, max_age: Duration) -> Result<ObjectStore, EngineError> {
        if let Ok(store) = self.context.get_object_store(bucket).await {
            return Ok(store);
        }
        let config = object_store::Config {
            bucket: bucket.into(),
            max_age,
            storage: StorageType::File,
            num_replicas: self.settings.replicas,
            ..object_store::Config::default()
        };
        self.context.create_object_store(config).await.map_err(failed("making the object stores"))
    }

    /// Hands a job over; the same id twice is one job.
    pub(super) async fn publish_job(
        &self,
        model: &str,
        id: &str,
        payload: Vec<u8>,
    ) -> Result<Handed, EngineError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let message = PublishMessage::build().payload(payload.clone().into()).message_id(id);
            let sent = self.context.send_publish(subject::job(model, id), message).await;
            let error = match sent {
                Ok(acknowledged) => match acknowledged.await {
                    Ok(_) => return Ok(Handed::Stored),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match error.kind() {
                _ if is_full(&error) => return Ok(Handed::Full),
                // Nobody knows whether it arrived; the id makes another attempt harmless.
                PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe if attempts < 3 => {}
                _ => return Err(failed("handing a job over")(error)),
            }
        }
    }

    /// Tells of a job, without waiting for the server to have heard.
    pub(super) async fn publish_event(&self, id: &str, event: &JobEvent) -> Result<(), EngineError> {
        let payload = serde_json::to_vec(event).map_err(failed("an event"))?;
        let sent = self.context.publish(subject::event(id, event), payload.into()).await;
        sent.map(drop).map_err(failed("telling of a job"))
    }

    /// Tells of a job, waits until the server has it, and gives its number.
    pub(super) async fn record_event(&self, id: &str, event: &JobEvent) -> Result<u64, EngineError> {
        let payload = serde_json::to_vec(event).map_err(failed("an event"))?;
        let sent = self.context.publish(subject::event(id, event), payload.into()).await;
        let acknowledged =
            sent.map_err(failed("telling of a job"))?.await.map_err(failed("telling of a job"))?;
        Ok(acknowledged.sequence)
    }

    /// Ends a job, unless it has ended: of all who try, the server lets one. That one's word is what everybody sees.
    pub(super) async fn end(&self, id: &str, end: End) -> Result<bool, EngineError> {
        let event = JobEvent::Ended(end);
        let payload = serde_json::to_vec(&event).map_err(failed("an event"))?;
        let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(0);
        let sent = self.context.send_publish(subject::event(id, &event), message).await;
        match sent.map_err(failed("ending a job"))?.await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(failed("ending a job")(error)),
        }
    }

    /// How a job ended, if it has.
    pub(super) async fn ended(&self, id: &str) -> Result<Option<End>, EngineError> {
        match self.events.get_last_raw_message_by_subject(&subject::end(id)).await {
            Ok(message) => match serde_json::from_slice(&message.payload) {
                Ok(JobEvent::Ended(end)) => Ok(Some(end)),
                _ => Err(EngineError::Failed(format!("NATS: the end of job {id} cannot be read"))),
            },
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed("looking for a job's end")(error)),
        }
    }
}

/// The stream's own word for its bound.
fn is_full(error: &PublishError) -> bool {
    use std::error::Error;
    error.source().is_some_and(|source| source.to_string().contains("maximum messages exceeded"))
}

/// Puts bytes under a name.
pub(super) async fn put(store: &ObjectStore, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
    let about =
        ObjectMetadata { name: name.into(), chunk_size: Some(CHUNK_BYTES), ..ObjectMetadata::default() };
    let mut bytes = bytes;
    store.put(about, &mut bytes).await.map(drop).map_err(failed("storing a picture"))
}

/// The bytes under a name.
pub(super) async fn get(store: &ObjectStore, name: &str) -> Result<Vec<u8>, EngineError> {
    let mut object = store.get(name).await.map_err(failed("fetching a picture"))?;
    let mut bytes = Vec::with_capacity(object.info().size);
    object.read_to_end(&mut bytes).await.map_err(failed("fetching a picture"))?;
    Ok(bytes)
}

/// Whether there is something under a name.
pub(super) async fn exists(store: &ObjectStore, name: &str) -> Result<bool, EngineError> {
    match store.info(name).await {
        Ok(info) => Ok(!info.deleted),
        Err(error) if error.kind() == object_store::InfoErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("looking for a picture")(error)),
    }
}
