//! What `aquatint serve` does with a queue that several processes share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Failure;
use crate::api::LoraRegistry;
use crate::engine::{Engine, Hearsay, LoraChoice, ModelStatus};
use crate::queue::nats::worker::Stop;
use crate::queue::nats::{Card, Catalog, NatsQueue, Settings, Worker};
use crate::queue::{JobQueue, LocalQueue};
use crate::settings::{QueueArgs, QueueChoice, Role, ServeArgs, limit};

/// What a worker that was told to end at once takes to give its job back.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// The queue, where one is shared.
pub(super) struct SharedQueue(NatsQueue);

impl SharedQueue {
    /// Begins to connect; a local queue needs none of it.
    pub(super) async fn connect(args: &ServeArgs) -> Result<Option<Self>, Failure> {
        let Some(settings) = settings(&args.queue) else { return Ok(None) };
        let unused = [
            ("--queue-cost", args.capacity.queue_cost.is_some()),
            ("--picture-cache", args.capacity.picture_cache > 0),
        ];
        for (flag, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            tracing::warn!("{flag} has no effect with a shared queue");
        }
        let settings = Settings {
            capacity: args.queue_size.max(1),
            per_caller: args.capacity.jobs_per_caller,
            wait: limit(args.capacity.max_wait_seconds),
            run: limit(args.capacity.max_run_seconds),
            ..settings
        };
        Ok(Some(Self(NatsQueue::connect(settings).await?)))
    }

    pub(super) fn queue(&self) -> Arc<dyn JobQueue> {
        Arc::new(self.0.clone())
    }

    /// Keeps what is known of the workers' models and LoRAs up to date.
    pub(super) fn listen(&self, hearsay: Hearsay, loras: LoraRegistry) {
        let mut catalog = self.0.catalog();
        tokio::spawn(async move {
            while catalog.changed().await.is_ok() {
                let now = catalog.borrow_and_update().clone();
                loras.know(now.loras().map(str::to_owned).collect::<BTreeSet<_>>().into_iter());
                hearsay.models(models(&now));
            }
        });
    }

    /// Starts to make what is in the queue, once the model is loaded.
    pub(super) fn work(self, engine: &Engine, local: &LocalQueue, loras: LoraRegistry) -> SharedWorker {
        let (stop, stopped) = watch::channel(Stop::No);
        let (engine, local) = (engine.clone(), local.clone());
        let task = tokio::spawn(async move {
            // A model that cannot be loaded ends the engine, and that the program.
            let Ok(default) = engine.model().await else { return };
            let card = |status: ModelStatus| {
                let info = status.info?;
                let default = info.name == default.name;
                let (info, loras) = ((*info).clone(), loras.names());
                Some(Card { name: status.name, default, info, weight_bytes: status.weight_bytes, loras })
            };
            let models = engine.models().into_iter().filter_map(card).collect();
            let lora = move |name: &str| Some(LoraChoice::new(loras.get(name)?, 1.0));
            Worker { queue: self.0, local, models, lora: Arc::new(lora) }.run(stopped).await;
        });
        SharedWorker { stop, task }
    }
}

fn models(catalog: &Catalog) -> Vec<ModelStatus> {
    let status = |card: &Card| ModelStatus {
        name: card.name.clone(),
        info: Some(Arc::new(card.info.clone())),
        // Some worker has it, or had it when there was work.
        loaded: true,
        weight_bytes: card.weight_bytes,
    };
    catalog.models().iter().map(status).collect()
}

/// The worker in this process.
pub(super) struct SharedWorker {
    stop: watch::Sender<Stop>,
    task: JoinHandle<()>,
}

impl SharedWorker {
    /// From now on it takes no job.
    pub(super) fn take_no_more(&self) {
        self.stop.send_replace(Stop::Soon);
    }

    /// Waits for its last job; one that takes too long is given back.
    pub(super) async fn end(mut self, drain: Duration) {
        self.take_no_more();
        if tokio::time::timeout(drain, &mut self.task).await.is_err() {
            tracing::warn!("a job is not done in time, and goes back into the queue");
            self.stop.send_replace(Stop::Now);
            let _in_time = tokio::time::timeout(GIVE_BACK, self.task).await;
        }
    }
}

/// The settings of a shared queue, where there is one.
pub(super) fn settings(args: &QueueArgs) -> Option<Settings> {
    let QueueChoice::Nats(url) = &args.queue else { return None };
    Some(Settings {
        url: url.clone(),
        capacity: 1,
        lease: args.lease_seconds,
        deliveries: args.max_deliveries,
        keep: Duration::from_secs(args.keep_seconds.into()),
        replicas: args.queue_replicas,
        per_caller: None,
        wait: None,
        run: None,
        sets_limits: args.role != Role::Worker,
    })
}
