//! Weights that are read when they are needed, one step ahead of the work.

use std::sync::mpsc::sync_channel;

use super::Weights;
use crate::{Error, Result};

/// A run of work over layers whose weights may be streamed.
#[derive(Debug)]
pub(crate) struct Stage {
    weights: Weights,
    /// Full names of the streamed layers it needs.
    layers: Vec<String>,
}

impl Stage {
    /// What is streamed of the layers below `weights`.
    pub(crate) fn new(weights: &Weights) -> Self {
        Self { weights: weights.clone(), layers: weights.streamed_layers() }
    }

    /// Bytes of what it reads, in the type or format it is held in.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| self.weights.weight_bytes(layer).unwrap_or_default().0).sum()
    }

    fn load(&self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| self.weights.load(layer))
    }

    fn unload(&self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| self.weights.unload(layer))
    }
}

/// Runs `work(i)` for each stage in its order, with the stage's weights in memory; the next stage's are read on
/// another thread meanwhile, so that those of two stages are in memory at most.
///
/// # Errors
/// The first of a stage's work, or of reading its weights; all streamed weights are freed then too.
pub(crate) fn one_ahead(stages: &[&Stage], mut work: impl FnMut(usize) -> Result<()>) -> Result<()> {
    if stages.iter().all(|stage| stage.layers.is_empty()) {
        return (0..stages.len()).try_for_each(work);
    }
    let result = std::thread::scope(|scope| {
        // The reader goes on when a stage's weights are taken: it holds one stage, the work another.
        let (send, receive) = sync_channel(0);
        let read = move || {
            for stage in stages {
                let loaded = stage.load();
                let failed = loaded.is_err();
                if send.send(loaded).is_err() || failed {
                    return;
                }
            }
        };
        let reader = std::thread::Builder::new().name("weights".into()).spawn_scoped(scope, read);
        let reader = reader.map_err(|e| Error::invalid(format!("no thread to read weights on: {e}")))?;
        let mut run = || -> Result<()> {
            for (i, stage) in stages.iter().enumerate() {
                let lost = |_| Error::invalid("the thread that reads weights has ended");
                receive.recv().map_err(lost)??;
                work(i)?;
                stage.unload()?;
            }
            Ok(())
        };
        let result = run();
        drop(receive);
        match reader.join() {
            Ok(()) => result,
            Err(_) => result.and_then(|()| Err(Error::invalid("the thread that reads weights has ended"))),
        }
    });
    if result.is_err() {
        stages.iter().try_for_each(|stage| stage.unload())?;
    }
    result
}

/// The most that is in memory of streamed stages at a time: two that follow each other.
pub(crate) fn transient_bytes<'a>(stages: impl Iterator<Item = &'a Stage>) -> u64 {
    let bytes: Vec<u64> = stages.map(Stage::bytes).collect();
    let pairs = bytes.windows(2).map(|pair| pair.iter().sum()).max();
    pairs.or(bytes.first().copied()).unwrap_or(0)
}
