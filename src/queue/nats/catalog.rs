//! Which models and LoRAs the workers have: each worker announces its own, and whoever takes requests reads them all.
//! What is announced outlives the worker, so that a job may come while there is none, and have one started.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::broker::{Broker, failed};
use super::subject;
use crate::engine::{EngineError, ModelInfo};

/// A model as a worker announces it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Card {
    /// Its name in the worker's registry.
    pub name: String,
    /// It is what a request gets that names none.
    pub default: bool,
    /// What it is.
    pub info: ModelInfo,
    /// Memory that its weights take.
    pub weight_bytes: u64,
    /// LoRAs that requests may name with it.
    pub loras: Vec<String>,
}

/// All that has been announced, default models first, then by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog(Vec<Card>);

impl Catalog {
    /// The models.
    pub fn models(&self) -> &[Card] {
        &self.0
    }

    /// The model of a request that names none.
    pub fn default_model(&self) -> Option<&str> {
        self.0.first().map(|card| &*card.name)
    }

    /// LoRAs that some worker has.
    pub fn loras(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|card| &card.loras).map(String::as_str)
    }
}

/// Announces a model; the newest word counts.
pub(super) async fn announce(broker: &Broker, card: &Card) -> Result<(), EngineError> {
    let payload = serde_json::to_vec(card).map_err(failed("a model"))?;
    let sent = broker.context.publish(subject::model(&card.name), payload.into()).await;
    sent.map_err(failed("announcing a model"))?.await.map(drop).map_err(failed("announcing a model"))
}

/// Reads what is announced.
pub(super) struct Reading {
    seen: u64,
    cards: BTreeMap<String, Card>,
    catalog: watch::Sender<Catalog>,
}

impl Reading {
    pub(super) fn new(catalog: watch::Sender<Catalog>) -> Self {
        Self { seen: 0, cards: BTreeMap::new(), catalog }
    }

    /// Takes in what is new.
    pub(super) async fn go_on(&mut self, broker: &Broker) -> Result<(), EngineError> {
        let mut news = false;
        loop {
            let next = broker.models.get_first_raw_message_by_subject("image.models.*", self.seen + 1).await;
            let message = match next {
                Ok(message) => message,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(failed("reading the models")(error)),
            };
            self.seen = message.sequence;
            match serde_json::from_slice::<Card>(&message.payload) {
                Ok(card) => {
                    self.cards.insert(card.name.clone(), card);
                    news = true;
                }
                Err(error) => tracing::warn!(%error, "an announced model cannot be read"),
            }
        }
        if news {
            let mut cards: Vec<_> = self.cards.values().cloned().collect();
            cards.sort_by_key(|card| !card.default);
            self.catalog.send_replace(Catalog(cards));
        }
        Ok(())
    }
}
