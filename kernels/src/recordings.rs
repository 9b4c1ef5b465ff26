//! What a [`Recorder`](crate::Recorder) keeps: which runs come again, their recordings, and the tensors at addresses that
//! stay.

use std::fmt::Display;

use candle_core::{DType, Result, Tensor, TensorId, bail};

use crate::in_place::overwrite;
use crate::lru::Lru;
use crate::recorder::owned;

/// Shapes that were seen once and may come again, and are remembered for that.
const SEEN: usize = 16;

/// What records and starts: CUDA, or a stand-in in tests.
pub(crate) trait Driver<Graph> {
    /// Runs `work` so that everything which is made at first use is there when it is recorded.
    fn prepare(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Records `work`, which is not run by that.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph>;

    /// Does what was recorded. `work` is that once more, for stand-ins.
    fn start(&self, graph: &Graph, work: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

/// Types and shapes of inputs.
type Key = Vec<(DType, Vec<usize>)>;

/// The recordings of one network.
pub(crate) struct Recordings<Graph> {
    /// As of which layers all of this is.
    moves: u64,
    seen: Lru<Key, ()>,
    /// `None` for what cannot be recorded.
    kept: Lru<Key, Option<Recording<Graph>>>,
}

/// A run at addresses that stay.
struct Recording<Graph> {
    inputs: Vec<Tensor>,
    /// Which tensors the inputs are copies of at present.
    copied: Vec<TensorId>,
    outputs: Vec<Tensor>,
    graph: Graph,
}

impl<Graph> Default for Recordings<Graph> {
    fn default() -> Self {
        Self { moves: 0, seen: Lru::new(), kept: Lru::new() }
    }
}

impl<Graph> Recordings<Graph> {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.seen.clear();
        self.kept.clear();
    }

    /// See [`crate::Recorder::run`]; `moves`: what [`crate::layer_moves`] says now; `capacity`: recordings that are kept,
    /// at least one.
    pub(crate) fn run<E: From<candle_core::Error> + Display>(
        &mut self,
        driver: &impl Driver<Graph>,
        (moves, capacity): (u64, usize),
        inputs: &[&Tensor],
        work: &impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E>,
    ) -> std::result::Result<Vec<Tensor>, E> {
        if self.moves != moves {
            self.clear();
            self.moves = moves;
        }
        let key: Key = inputs.iter().map(|x| (x.dtype(), x.dims().to_vec())).collect();
        match self.kept.get(&key) {
            Some(Some(recording)) => return Ok(recording.start(driver, inputs, work)?),
            Some(None) => return work(&owned(inputs)),
            None => {}
        }
        if self.seen.get(&key).is_none() {
            self.seen.insert(key, (), SEEN);
            return work(&owned(inputs));
        }
        let (outputs, recording) = Recording::make(driver, inputs, work)?;
        self.kept.insert(key, recording, capacity);
        Ok(outputs)
    }
}

impl<Graph> Recording<Graph> {
    /// Runs `work`, and records it where that can be done.
    fn make<E: From<candle_core::Error> + Display>(
        driver: &impl Driver<Graph>,
        inputs: &[&Tensor],
        work: &impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E>,
    ) -> std::result::Result<(Vec<Tensor>, Option<Self>), E> {
        let own = inputs.iter().map(|x| x.force_contiguous()).collect::<Result<Vec<_>>>()?;
        let mut done = None;
        driver.prepare(&mut || {
            done = Some(work(&own));
            Ok(())
        })?;
        let outputs = done.unwrap_or_else(|| Ok(Vec::new()))?;
        let copies = outputs.iter().map(Tensor::force_contiguous).collect::<Result<Vec<_>>>()?;
        let graph = match driver.record(&mut || write(&own, &copies, work)) {
            Ok(graph) => graph,
            Err(error) => {
                tracing::warn!(%error, "a run could not be recorded: its kernels are started one by one");
                return Ok((outputs, None));
            }
        };
        let copied = inputs.iter().map(|x| x.id()).collect();
        Ok((outputs, Some(Self { inputs: own, copied, outputs: copies, graph })))
    }

    fn start<E: Display>(
        &mut self,
        driver: &impl Driver<Graph>,
        inputs: &[&Tensor],
        work: &impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>> {
        for ((own, copied), input) in self.inputs.iter().zip(&mut self.copied).zip(inputs) {
            if *copied != input.id() {
                copy(input, own)?;
                *copied = input.id();
            }
        }
        driver.start(&self.graph, &mut || write(&self.inputs, &self.outputs, work))?;
        // The next start writes over them.
        self.outputs.iter().map(Tensor::copy).collect()
    }
}

/// Runs `work` on `inputs` and copies its results to `outputs`.
fn write<E: Display>(
    inputs: &[Tensor],
    outputs: &[Tensor],
    work: &impl Fn(&[Tensor]) -> std::result::Result<Vec<Tensor>, E>,
) -> Result<()> {
    let results = work(inputs).map_err(|error| candle_core::Error::msg(error.to_string()))?;
    if results.len() != outputs.len() {
        bail!("a recorded run gives {} results, it gave {}", results.len(), outputs.len());
    }
    results.iter().zip(outputs).try_for_each(|(result, output)| copy(result, output))
}

/// Copies to where `to` is.
fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    if !overwrite(to, from)? {
        bail!("a recording's tensor of shape {:?} cannot hold one of {:?}", to.dims(), from.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testing::{random, same_bytes};

    /// Starts what it has "recorded" by running it; a recording fails where it is told to.
    #[derive(Default)]
    struct StandIn {
        prepared: Cell<usize>,
        recorded: Cell<usize>,
        started: Cell<usize>,
        fails: bool,
    }

    impl Driver<usize> for StandIn {
        fn prepare(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
            self.prepared.set(self.prepared.get() + 1);
            work()
        }

        fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<usize> {
            self.recorded.set(self.recorded.get() + 1);
            // As a capture does, it goes through the work without doing it: the outputs say nothing yet.
            if self.fails {
                bail!("it cannot be recorded")
            }
            work()?;
            Ok(self.recorded.get())
        }

        fn start(&self, _: &usize, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
            self.started.set(self.started.get() + 1);
            work()
        }
    }

    /// A run of a network with a weight of its own: `(x W + t, x)`.
    fn layer(weight: &Tensor) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + '_ {
        move |inputs| match inputs {
            [x, t] => Ok(vec![x.matmul(weight)?.broadcast_add(t)?, x.clone()]),
            _ => bail!("two inputs"),
        }
    }

    fn counts(driver: &StandIn) -> (usize, usize, usize) {
        (driver.prepared.get(), driver.recorded.get(), driver.started.get())
    }

    /// Runs with new inputs of a shape, and compares with the work itself.
    fn run(
        recordings: &mut Recordings<usize>,
        driver: &StandIn,
        capacity: usize,
        (rows, seed): (usize, u64),
        weight: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let (x, t) = (random((rows, 4), seed)?, random(3, seed + 100)?);
        let outputs = recordings.run(driver, (0, capacity), &[&x, &t], &layer(weight))?;
        let expected = layer(weight)(&[x, t])?;
        outputs.iter().zip(&expected).try_for_each(|(a, b)| same_bytes(a, b))?;
        Ok(outputs)
    }

    #[test]
    fn the_second_run_is_recorded_and_later_ones_are_started_on_new_inputs() -> Result<()> {
        let (mut recordings, driver, weight) =
            (Recordings::default(), StandIn::default(), random((4, 3), 9)?);
        let expected = [(0, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2)];
        let mut earlier = Vec::new();
        for (seed, expected) in (1..).zip(expected) {
            let outputs = run(&mut recordings, &driver, 2, (5, seed), &weight)?;
            earlier.push((outputs[0].clone(), outputs[0].copy()?));
            assert_eq!(counts(&driver), expected);
        }
        // What was given out is nobody's buffer.
        earlier.iter().try_for_each(|(given, then)| same_bytes(given, then))
    }

    #[test]
    fn unchanged_inputs_are_not_copied_again_and_changed_ones_are() -> Result<()> {
        let (mut recordings, driver, weight) =
            (Recordings::default(), StandIn::default(), random((4, 3), 9)?);
        let prompt = random(3, 1)?;
        for seed in 1..6 {
            let x = random((2, 4), seed)?;
            let y = recordings.run(&driver, (0, 1), &[&x, &prompt], &layer(&weight))?;
            same_bytes(&y[0], &layer(&weight)(&[x, prompt.clone()])?[0])?;
        }
        let other = random(3, 2)?;
        let x = random((2, 4), 7)?;
        let y = recordings.run(&driver, (0, 1), &[&x, &other], &layer(&weight))?;
        same_bytes(&y[0], &layer(&weight)(&[x, other])?[0])
    }

    #[test]
    fn weights_are_read_where_they_are() -> Result<()> {
        let (mut recordings, driver, weight) =
            (Recordings::default(), StandIn::default(), random((4, 3), 9)?);
        (0..3).try_for_each(|seed| run(&mut recordings, &driver, 1, (5, seed), &weight).map(drop))?;
        assert!(overwrite(&weight, &random((4, 3), 10)?)?);
        run(&mut recordings, &driver, 1, (5, 7), &weight).map(drop)
    }

    #[test]
    fn a_layer_that_moves_ends_all_recordings() -> Result<()> {
        let (mut recordings, driver, weight) =
            (Recordings::default(), StandIn::default(), random((4, 3), 9)?);
        (0..3).try_for_each(|seed| run(&mut recordings, &driver, 1, (5, seed), &weight).map(drop))?;
        let before = counts(&driver);
        let (x, t) = (random((5, 4), 7)?, random(3, 8)?);
        let y = recordings.run(&driver, (1, 1), &[&x, &t], &layer(&weight))?;
        same_bytes(&y[0], &layer(&weight)(&[x, t])?[0])?;
        assert_eq!(counts(&driver), before, "neither started nor recorded");
        assert_eq!(recordings.kept.len(), 0);
        Ok(())
    }

    #[test]
    fn shapes_have_their_own_and_the_oldest_goes() -> Result<()> {
        let (mut recordings, driver, weight) =
            (Recordings::default(), StandIn::default(), random((4, 3), 9)?);
        for rows in [1, 2, 3] {
            (0..3).try_for_each(|seed| run(&mut recordings, &driver, 2, (rows, seed), &weight).map(drop))?;
        }
        assert_eq!(recordings.kept.len(), 2);
        // The first is recorded again at once: it was seen.
        let recorded = driver.recorded.get();
        run(&mut recordings, &driver, 2, (1, 5), &weight)?;
        assert_eq!(driver.recorded.get(), recorded + 1);
        // Types count too.
        let (x, t) = (random((3, 4), 1)?.to_dtype(DType::F64)?, random(3, 2)?.to_dtype(DType::F64)?);
        let wide = weight.to_dtype(DType::F64)?;
        let y = recordings.run(&driver, (0, 2), &[&x, &t], &layer(&wide))?;
        assert_eq!(y[0].dtype(), DType::F64);
        Ok(())
    }

    #[test]
    fn what_cannot_be_recorded_is_run_and_not_tried_again() -> Result<()> {
        let driver = StandIn { fails: true, ..StandIn::default() };
        let (mut recordings, weight) = (Recordings::default(), random((4, 3), 9)?);
        (0..5).try_for_each(|seed| run(&mut recordings, &driver, 1, (5, seed), &weight).map(drop))?;
        assert_eq!(driver.recorded.get(), 1);
        assert_eq!(driver.started.get(), 0);
        Ok(())
    }

    #[test]
    fn errors_of_the_work_are_its_own() -> Result<()> {
        let (mut recordings, driver) = (Recordings::default(), StandIn::default());
        let x = random((2, 2), 1)?;
        let fails = |_: &[Tensor]| -> Result<Vec<Tensor>> { bail!("as it says") };
        for _ in 0..3 {
            let error = recordings.run(&driver, (0, 1), &[&x], &fails).unwrap_err();
            assert!(error.to_string().contains("as it says"), "{error}");
        }
        assert_eq!(driver.recorded.get(), 0);
        Ok(())
    }
}
