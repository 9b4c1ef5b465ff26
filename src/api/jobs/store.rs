//! The jobs that were submitted, while they are made and for a while after.

use std::collections::VecDeque;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::RgbImage;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::log::{Finished, Log, Outcome, jpeg_uri};
use crate::api::fault::Fault;
use crate::api::pictures;
use crate::engine::{EngineError, JobPhase, Progress, Reply, Work};
use crate::picture::{Format, encode_plain};
use crate::queue::shared::{End, JobEvent, JobEvents, PictureFile, SharedJobs, Submitted};
use crate::queue::{JobQueue, Place, Refusal, Ticket};

/// How long a job is kept after its end.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Finished jobs that are kept.
const KEPT_JOBS: usize = 1000;
/// Finished pictures that are kept: beyond it the oldest go.
const KEPT_BYTES: usize = 256 << 20;
/// Callers come again every few seconds: whoever has not come for so long since the end does not come any more.
const AWAITED: Duration = Duration::from_secs(10);
/// After a failure to reach the shared queue.
const PAUSE: Duration = Duration::from_millis(500);
/// In `Job::told`: somebody knows that there are no pictures.
const TOLD_OF_THE_END: u32 = 1 << 31;
/// Previews are looked at for a moment.
const PREVIEW_QUALITY: u8 = 75;

/// The jobs that were submitted. Clones share them.
#[derive(Clone, Default)]
pub struct Jobs {
    table: Arc<Mutex<Table>>,
    /// Where jobs of other processes are, too.
    shared: Option<Arc<dyn SharedJobs>>,
}

#[derive(Default)]
struct Table {
    /// The oldest first.
    jobs: VecDeque<Arc<Job>>,
    /// One task a job that is not done.
    tasks: JoinSet<()>,
    closed: bool,
}

/// A job that was submitted.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) log: watch::Sender<Log>,
    /// Told to stop: by its caller, or by the server that stops itself.
    stop: Notify,
    stopped_by: Mutex<Option<Outcome>>,
    ended: Mutex<Option<Instant>>,
    /// A bit for every picture that has been fetched.
    told: AtomicU32,
    /// It is in a shared queue: it goes on without this process, and others can tell of it.
    is_shared: bool,
}

impl Jobs {
    /// The jobs of a queue: where that is shared, those of all processes that share it.
    pub fn of(queue: &dyn JobQueue) -> Self {
        Self { shared: queue.shared(), ..Self::default() }
    }

    /// Puts work into an admitted place of the queue, and follows it from now on.
    pub(super) async fn submit(
        &self,
        queue: &dyn JobQueue,
        place: Place,
        work: Work,
    ) -> Result<Arc<Job>, Fault> {
        if self.table().closed {
            return Err(EngineError::Stopping.into());
        }
        let pictures = work.requests.len();
        let Some(shared) = &self.shared else {
            let ticket = queue.submit(place, work).await?;
            let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let id = new_id();
            let job = Arc::new(Job::new(Log::new(id.clone(), pictures, created), id, false));
            return Ok(self.add(job.clone(), follow(job, ticket)));
        };
        let Submitted { id, number, event } = shared.submit(place, work).await?;
        let events = shared.events(&id, number);
        let job = Arc::new(Job::new(Log::unknown(id.clone()), id, true));
        job.log.send_modify(|log| log.note(number, event));
        Ok(self.add(job.clone(), follow_shared(job, shared.clone(), events)))
    }

    /// A job by its id.
    pub(super) async fn get(&self, id: &str) -> Result<Option<Arc<Job>>, Fault> {
        match (self.known(id), &self.shared) {
            (None, Some(shared)) => self.find(shared, id).await,
            (known, _) => Ok(known),
        }
    }

    fn known(&self, id: &str) -> Option<Arc<Job>> {
        let mut table = self.table();
        table.forget_old();
        table.jobs.iter().find(|job| job.id == id).cloned()
    }

    /// A job of the shared queue, once all that has happened to it so far is in its log.
    async fn find(&self, shared: &Arc<dyn SharedJobs>, id: &str) -> Result<Option<Arc<Job>>, Fault> {
        let mut events = shared.events(id, 0);
        let job = Arc::new(Job::new(Log::unknown(id.to_owned()), id.to_owned(), true));
        while let Some((number, event)) = events.next_now().await.map_err(unreachable)? {
            if note_shared(&job, &**shared, number, event).await {
                break;
            }
        }
        if job.log.borrow().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.add(job.clone(), follow_shared(job, shared.clone(), events))))
    }

    /// Keeps a job, unless another request was faster, and what fills its log.
    fn add(&self, job: Arc<Job>, following: impl Future<Output = ()> + Send + 'static) -> Arc<Job> {
        let mut table = self.table();
        if let Some(known) = table.jobs.iter().find(|known| known.id == job.id) {
            return known.clone();
        }
        while table.tasks.try_join_next().is_some() {}
        table.forget_old();
        table.jobs.push_back(job.clone());
        table.tasks.spawn(following);
        job
    }

    /// Forgets a job that has ended, and its pictures.
    pub(super) async fn forget(&self, id: &str) -> Result<(), Fault> {
        self.table().jobs.retain(|job| job.id != id);
        match &self.shared {
            Some(shared) => shared.forget(id).await.map_err(unreachable),
            None => Ok(()),
        }
    }

    /// Takes no further job. Whoever watches one of a shared queue is sent to another process.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        for job in table.jobs.iter().filter(|job| job.is_shared) {
            job.log.send_modify(Log::break_off);
        }
    }

    /// Whether somebody may still come for a job: it is not done, or was done a moment ago and has not been fetched.
    pub fn are_awaited(&self) -> bool {
        self.table().jobs.iter().any(|job| job.is_awaited())
    }

    /// Ends every job, so that every event stream ends too: nobody could fetch a result from a server that is gone.
    pub fn abandon(&self) {
        for job in &self.table().jobs {
            job.stop(Outcome::Failed(EngineError::Stopping.into()));
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Table {
    fn forget_old(&mut self) {
        self.jobs.retain(|job| lock(&job.ended).is_none_or(|ended| ended.elapsed() < KEPT));
        let (mut count, mut bytes) = (0, 0);
        // The newest first, so that it is the oldest that go.
        let keeps: Vec<bool> = self
            .jobs
            .iter()
            .rev()
            .map(|job| {
                if lock(&job.ended).is_none() {
                    return true;
                }
                count += 1;
                bytes += job.log.borrow().bytes();
                count <= KEPT_JOBS && bytes <= KEPT_BYTES
            })
            .collect();
        let mut keeps = keeps.into_iter().rev();
        self.jobs.retain(|_| keeps.next().unwrap_or(true));
    }
}

/// Nothing in a critical section here can panic, so a poisoned state is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Job {
    fn new(log: Log, id: String, is_shared: bool) -> Self {
        Self {
            log: watch::Sender::new(log),
            id,
            stop: Notify::new(),
            stopped_by: Mutex::default(),
            ended: Mutex::default(),
            told: AtomicU32::new(0),
            is_shared,
        }
    }

    /// Ends it, unless it has ended.
    pub(super) fn stop(&self, outcome: Outcome) {
        lock(&self.stopped_by).get_or_insert(outcome);
        self.stop.notify_one();
    }

    /// Notes that a picture went out.
    pub(super) fn fetched(&self, picture: usize) {
        let bit = u32::try_from(picture).ok().and_then(|picture| 1_u32.checked_shl(picture)).unwrap_or(0);
        self.told.fetch_or(bit, Ordering::Relaxed);
    }

    /// Notes that somebody has seen how it stands.
    pub(super) fn seen(&self) {
        if self.log.borrow().outcome.as_ref().is_some_and(|outcome| !matches!(outcome, Outcome::Done(_))) {
            self.told.fetch_or(TOLD_OF_THE_END, Ordering::Relaxed);
        }
    }

    fn is_awaited(&self) -> bool {
        if self.is_shared {
            return false;
        }
        if lock(&self.ended).is_some_and(|ended| ended.elapsed() > AWAITED) {
            return false;
        }
        let told = self.told.load(Ordering::Relaxed);
        match &self.log.borrow().outcome {
            None => true,
            Some(Outcome::Done(pictures)) => (told.trailing_ones() as usize) < pictures.len(),
            Some(Outcome::Failed(_) | Outcome::Cancelled) => told & TOLD_OF_THE_END == 0,
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        let mut log = self.log.subscribe();
        // The sender is in the job, and so outlives this.
        let _ended = log.wait_for(|log| log.outcome.is_some()).await;
    }

    fn end(&self, outcome: Outcome) {
        *lock(&self.ended) = Some(Instant::now());
        self.log.send_modify(|log| log.end(outcome));
    }
}

/// Keeps a job's log up to date until the job ends. The ticket is dropped with it: a stopped job is taken out of the
/// queue, or ends within a step.
async fn follow(job: Arc<Job>, mut ticket: Ticket) {
    let mut progress = ticket.progress();
    let mut shown = None;
    loop {
        tokio::select! {
            biased;
            () = job.stop.notified() => {
                let outcome = lock(&job.stopped_by).take();
                drop(ticket);
                return job.end(outcome.unwrap_or(Outcome::Cancelled));
            }
            reply = &mut ticket => return job.end(outcome(reply).await),
            Ok(()) = progress.changed() => {
                let now = progress.borrow_and_update().clone();
                note(&job, &now, &mut shown).await;
            }
        }
    }
}

/// What a shared queue that does not answer comes to: try again.
fn unreachable(error: EngineError) -> Fault {
    Refusal::Unreachable { reason: error.to_string() }.into()
}

/// The same for a job of a shared queue. Only its caller ends the job; a server that stops leaves it to the others.
async fn follow_shared(job: Arc<Job>, shared: Arc<dyn SharedJobs>, mut events: Box<dyn JobEvents>) {
    while job.log.borrow().outcome.is_none() {
        tokio::select! {
            biased;
            () = job.stop.notified() => {
                let by_its_caller = matches!(lock(&job.stopped_by).take(), Some(Outcome::Cancelled));
                if !by_its_caller {
                    return job.log.send_modify(Log::break_off);
                }
                while let Err(error) = shared.cancel(&job.id).await {
                    tracing::warn!(%error, job = job.id, "trying to cancel again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            (number, event) = events.next() => {
                note_shared(&job, &*shared, number, event).await;
            }
        }
    }
}

/// Takes an event into a job's log, and says whether it was the last.
async fn note_shared(job: &Job, shared: &dyn SharedJobs, number: u64, event: JobEvent) -> bool {
    let end = match event {
        JobEvent::Ended(end) => end,
        event => {
            job.log.send_modify(|log| log.note(number, event));
            return false;
        }
    };
    let outcome = match end {
        End::Cancelled => Outcome::Cancelled,
        End::Failed(error) => Outcome::Failed(error.into()),
        End::Done => match shared.pictures(&job.id).await {
            Ok(files) => Outcome::Done(Arc::new(files.into_iter().map(finished).collect())),
            Err(error) => Outcome::Failed(error.into()),
        },
    };
    job.log.send_modify(|log| log.next_is(number));
    job.end(outcome);
    true
}

fn finished(file: PictureFile) -> Finished {
    Finished { png: Bytes::from(file.png), recipe: file.recipe, elapsed_ms: file.elapsed_ms }
}

async fn note(job: &Job, now: &Progress, shown: &mut Option<Arc<RgbImage>>) {
    if now.phase == JobPhase::Done {
        return;
    }
    job.log.send_modify(|log| log.progress(now));
    let Some(image) = now.preview.clone() else { return };
    if shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &image)) {
        return;
    }
    *shown = Some(image.clone());
    if let Ok(Some(uri)) = tokio::task::spawn_blocking(move || jpeg(&image)).await {
        job.log.send_modify(|log| log.preview(now.picture, &uri));
    }
}

fn jpeg(image: &RgbImage) -> Option<String> {
    let bytes = encode_plain(image, Format::Jpeg, PREVIEW_QUALITY).ok()?;
    Some(jpeg_uri(&BASE64.encode(bytes)))
}

async fn outcome(reply: Reply) -> Outcome {
    let made = match reply {
        Ok(made) => made,
        Err(error) => return Outcome::Failed(error.into()),
    };
    let about: Vec<_> = made.iter().map(|picture| (picture.recipe.clone(), picture.elapsed_ms)).collect();
    match pictures::encode(made, Format::Png).await {
        Err(fault) => Outcome::Failed(fault),
        Ok(files) => {
            let finished = files.into_iter().zip(about).map(|(png, (recipe, elapsed_ms))| Finished {
                png: Bytes::from(png),
                recipe,
                elapsed_ms,
            });
            Outcome::Done(Arc::new(finished.collect()))
        }
    }
}

/// Whoever knows a job's id may have its pictures, so it has 128 bits of the system's random source: the standard
/// library keys each hasher from it.
fn new_id() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}
