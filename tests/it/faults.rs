//! Calls of the model that go wrong: whatever happens at whichever call, the outcome is defined and the next job right.

use std::time::Duration;

use aquatint::engine::{EngineError, EngineSettings, Work};
use aquatint::queue::{JobQueue, Limits};

use crate::fake::{Broken, Script};
use crate::rig::{Parts, is_right, work};

const STEPS: usize = 48;
const PICTURES: u64 = 4;

/// Four pictures of 48 steps: with starts and decodings 200 calls, after the one at loading.
fn job() -> Work {
    let requests = (0..PICTURES).map(|i| work(10 + i, STEPS).requests.remove(0)).collect();
    Work { requests, ..Work::default() }
}

/// Runs the job with one call going wrong, then another one.
async fn outcome(broken: Broken, call: usize) -> Result<(), String> {
    let script = Script { fault: Some((call, broken)), native_size_px: 64, ..Script::default() };
    // Long for the calls that work, short for one that hangs.
    let run = matches!(broken, Broken::Hang(_)).then_some(Duration::from_millis(250));
    let limits = Limits { run, ..Limits::waiting(4) };
    let settings = EngineSettings { run_limit: run, ..EngineSettings::default() };
    let rig = Parts { scripts: vec![script], limits, settings }.start().await;
    let reply = rig.run(job()).await;
    let defined = match (broken, &reply) {
        (Broken::Memory, Ok(made)) => {
            (10..).zip(made).all(|(seed, p)| is_right(p, seed, STEPS)) && made.len() as u64 == PICTURES
        }
        (Broken::Error, Err(EngineError::Failed(text))) => text == "it does not work",
        (Broken::NotFinite, Err(EngineError::NotFinite(text))) => text == "the latents are not finite",
        (Broken::Panic, Err(EngineError::Failed(text))) => text == "internal error",
        (Broken::Hang(_), Err(EngineError::RanTooLong { .. })) => true,
        (Broken::Lost, Err(EngineError::DeviceLost(_))) => true,
        _ => false,
    };
    if !defined {
        return Err(format!("{broken:?} at call {call}: {reply:?}"));
    }
    if broken == Broken::Lost {
        // Nothing more is made, and who asks is told.
        let failed = matches!(rig.engine.failed().await, EngineError::DeviceLost(_));
        return if failed { Ok(()) } else { Err(format!("the engine goes on after {broken:?} at {call}")) };
    }
    let next = rig.run(work(7, 3)).await;
    match next {
        Ok(made) if is_right(&made[0], 7, 3) => {}
        other => return Err(format!("the job after {broken:?} at call {call}: {other:?}")),
    }
    let depth = rig.queue.depth();
    match depth.running + depth.waiting {
        0 => Ok(()),
        taken => Err(format!("{taken} places are lost after {broken:?} at call {call}")),
    }
}

const HANG: Broken = Broken::Hang(Duration::from_millis(400));

/// Every fault but the one that takes time, at these calls.
async fn sweep(calls: impl Iterator<Item = usize> + Clone) -> usize {
    let mut runs = 0;
    for broken in [Broken::Error, Broken::Memory, Broken::Panic, Broken::NotFinite, Broken::Lost] {
        for call in calls.clone() {
            outcome(broken, call).await.unwrap();
            runs += 1;
        }
    }
    runs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_at_some_calls() {
    // The first start, the first step, one within, the last step of the first picture, its decoding, the last call.
    sweep([1, 2, 20, 49, 50, 200].into_iter()).await;
    outcome(HANG, 20).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run by scripts/full-check.sh"]
async fn every_fault_at_every_call() {
    let mut runs = sweep(1..=200).await;
    for call in 1..=200 {
        outcome(HANG, call).await.unwrap();
        runs += 1;
    }
    let figure = format!("{runs} runs, every outcome as defined, every next job right");
    crate::scoreboard::record(8, "fail the n-th engine call, n = 1..200 x 6 faults", &figure, "all");
}
