//! What happens to a job, read from the stream of events.
//!
//! The stream says what there is; a subscription only says when to look. So nothing is missed while a connection is
//! down, and no server keeps a reader's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{FutureExt, StreamExt};
use image::RgbImage;
use tokio::sync::oneshot;

use super::broker::{Broker, failed};
use super::{results, subject};
use crate::engine::{EngineError, JobPhase, Observer, Picture, Reply};
use crate::picture;
use crate::queue::shared::{End, JobEvent, JobEvents};
use crate::queue::{Pending, Place};

/// A word that was lost is made up for after this time.
const LOOK: Duration = Duration::from_secs(1);
/// After a question that got no answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Reads one job's events.
pub(super) struct Reader {
    broker: Broker,
    id: String,
    seen: u64,
    wake: Option<Subscriber>,
}

impl Reader {
    pub(super) fn new(broker: Broker, id: &str, seen: u64) -> Self {
        Self { broker, id: id.to_owned(), seen, wake: None }
    }

    async fn read(&mut self) -> Result<Option<(u64, JobEvent)>, EngineError> {
        if !subject::is_id(&self.id) {
            return Ok(None);
        }
        loop {
            let events = subject::events(&self.id);
            let found = self.broker.events.get_first_raw_message_by_subject(events, self.seen + 1).await;
            let message = match found {
                Ok(message) => message,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
                Err(error) => return Err(failed("reading what happened to a job")(error)),
            };
            self.seen = message.sequence;
            match serde_json::from_slice(&message.payload) {
                Ok(event) => return Ok(Some((message.sequence, event))),
                // Of another version, perhaps: what comes after it may be known.
                Err(error) => tracing::warn!(%error, job = self.id, "an event cannot be read"),
            }
        }
    }

    /// Waits for a word that there is more, or a while.
    async fn rest(&mut self) {
        let Some(wake) = &mut self.wake else { return tokio::time::sleep(LOOK).await };
        let _woken_or_not = tokio::time::timeout(LOOK, wake.next()).await;
        // One look is enough for all that was said meanwhile.
        while let Some(Some(_)) = wake.next().now_or_never() {}
    }
}

impl JobEvents for Reader {
    fn next_now(&mut self) -> Pending<'_, Result<Option<(u64, JobEvent)>, EngineError>> {
        Box::pin(self.read())
    }

    fn next(&mut self) -> Pending<'_, (u64, JobEvent)> {
        Box::pin(async move {
            loop {
                if self.wake.is_none() {
                    self.wake = self.broker.client.subscribe(subject::events(&self.id)).await.ok();
                }
                match self.read().await {
                    Ok(Some(event)) => return event,
                    Ok(None) => self.rest().await,
                    Err(error) => {
                        tracing::debug!(%error, job = self.id, "looking again");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        })
    }
}

/// Jobs whose callers wait in this process.
pub(super) type Awaited = Arc<AtomicUsize>;

/// Counts one of them for as long as it is kept.
pub(super) struct Counted(Awaited);

impl Counted {
    pub(super) fn new(awaited: &Awaited) -> Self {
        awaited.fetch_add(1, Ordering::Relaxed);
        Self(awaited.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A ticket's other end: tells its holder how far the job is, and hands over the pictures.
pub(super) struct Follower {
    pub(super) broker: Broker,
    pub(super) id: String,
    pub(super) progress: Observer,
    pub(super) reply: oneshot::Sender<Reply>,
    pub(super) over: Arc<AtomicBool>,
    pub(super) place: Place,
    pub(super) counted: Counted,
}

impl Follower {
    /// Until the job has ended, or nobody waits for it.
    pub(super) async fn run(mut self) {
        let mut events = Reader::new(self.broker.clone(), &self.id, 0);
        let end = loop {
            let event = tokio::select! {
                (_, event) = events.next() => event,
                () = self.reply.closed() => return,
            };
            match event {
                JobEvent::Ended(end) => break end,
                event => tell(&self.progress, event),
            }
        };
        self.over.store(true, Ordering::Relaxed);
        let reply = match end {
            End::Failed(error) => Err(error),
            End::Cancelled => Err(EngineError::Cancelled),
            End::Done => pictures(&self.broker, &self.id).await,
        };
        self.progress.set(|p| {
            p.phase = JobPhase::Done;
            p.picture = reply.as_ref().map_or(p.picture, Vec::len);
        });
        drop((self.place, self.counted));
        let _unread = self.reply.send(reply);
    }
}

fn tell(progress: &Observer, event: JobEvent) {
    match event {
        JobEvent::Progress { decoding, picture, step, steps } => progress.set(|p| {
            p.phase = if decoding { JobPhase::Decoding } else { JobPhase::Running };
            (p.picture, p.step, p.steps) = (picture, step, steps);
            p.begun.get_or_insert_with(Instant::now);
        }),
        JobEvent::Preview { picture, jpeg } => {
            let Some(image) = small_picture(&jpeg) else { return };
            progress.set(|p| {
                p.picture = picture;
                p.preview = Some(Arc::new(image));
            });
        }
        JobEvent::Queued { .. } | JobEvent::Ended(_) => {}
    }
}

fn small_picture(jpeg: &str) -> Option<RgbImage> {
    Some(picture::decode(&BASE64.decode(jpeg).ok()?).ok()?.to_rgb8())
}

/// The finished pictures, as whoever holds a ticket expects them.
async fn pictures(broker: &Broker, id: &str) -> Reply {
    let files = results::fetch(broker, id).await?;
    let decode = move || {
        let one = |file: results::File| {
            let image = picture::decode(&file.png).map_err(failed("a finished picture"))?.to_rgb8();
            Ok(Picture { image, recipe: file.recipe, elapsed_ms: file.elapsed_ms })
        };
        files.into_iter().map(one).collect()
    };
    tokio::task::spawn_blocking(decode).await.map_err(failed("a finished picture"))?
}
