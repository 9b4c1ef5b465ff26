//! What the step scheduler gains: a short job beside a long one, and a mixed load against first come, first served.
//!
//! The model is the tests' fake, whose steps take a fixed time: what is measured is the scheduler. Latencies under
//! first come, first served follow from the same arrivals and solo times: each job begins when the one before ends.

#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

#[path = "../tests/it/fake.rs"]
mod fake;
#[path = "../tests/it/rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use fake::Script;
use rig::{Parts, Rig, work};

const STEP: Duration = Duration::from_millis(10);

async fn start() -> Rig {
    let script = Script { step_time: STEP, native_size_px: 64, ..Script::default() };
    Parts { scripts: vec![script], ..Parts::default() }.start().await
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// Solo latency of a job of so many steps.
async fn solo(rig: &Rig, steps: usize) -> f64 {
    let mut times = Vec::new();
    for seed in 0..9 {
        let started = Instant::now();
        rig.run(work(seed, steps)).await.unwrap();
        times.push(started.elapsed().as_secs_f64());
    }
    median(times)
}

/// Latency of a 4-step job that comes while one of 30 steps runs, at different moments of its steps.
async fn beside(rig: &Rig) -> f64 {
    let mut times = Vec::new();
    for seed in 0..9 {
        let long = rig.submit(work(100 + seed, 30));
        tokio::time::sleep(STEP * 5 + STEP * seed as u32 / 9).await;
        let started = Instant::now();
        rig.run(work(seed, 4)).await.unwrap();
        times.push(started.elapsed().as_secs_f64());
        long.await.unwrap();
    }
    median(times)
}

/// `(arrival in seconds, steps)` of a mixed load that keeps the device busy for four fifths of the time.
fn load(jobs: usize) -> Vec<(f64, usize)> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    // 0.6 * 4 + 0.25 * 12 + 0.15 * 30 = 9.9 steps on average
    let between = 9.9 * STEP.as_secs_f64() / 0.8;
    let mut now = 0.0;
    let job = |_| {
        now -= between * uniform().ln();
        let kind = uniform();
        (
            now,
            if kind < 0.6 {
                4
            } else if kind < 0.85 {
                12
            } else {
                30
            },
        )
    };
    (0..jobs).map(job).collect()
}

#[tokio::main]
async fn main() {
    // `cargo test` runs benches too.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let rig = start().await;
    let (four, step) = (solo(&rig, 4).await, solo(&rig, 8).await / 8.0);
    let beside = beside(&rig).await;
    let bound = 1.5 * four + step;
    println!("a 4-step job: {} alone, {} beside a 30-step job (at most {})", ms(four), ms(beside), ms(bound));

    let jobs = load(80);
    let started = Instant::now();
    let mut waiting = Vec::new();
    for (seed, (arrival, steps)) in jobs.iter().enumerate() {
        tokio::time::sleep_until((started + Duration::from_secs_f64(*arrival)).into()).await;
        let (ticket, came) = (rig.submit(work(seed as u64, *steps)), Instant::now());
        waiting.push(tokio::spawn(async move {
            ticket.await.unwrap();
            came.elapsed().as_secs_f64()
        }));
    }
    let mut latencies = Vec::new();
    for job in waiting {
        latencies.push(job.await.unwrap());
    }
    let (mut free, mut in_turn) = (0.0f64, Vec::new());
    for (arrival, steps) in &jobs {
        free = free.max(*arrival) + *steps as f64 * step;
        in_turn.push(free - arrival);
    }
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
    let longest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let of = |times: &[f64], n: usize| {
        let own: Vec<f64> =
            times.iter().zip(&jobs).filter(|(_, (_, steps))| *steps == n).map(|(t, _)| *t).collect();
        ms(mean(&own))
    };
    println!("80 jobs of 4, 12 and 30 steps at 80 % load, latency:");
    println!("| order | mean | of 4 steps | of 12 | of 30 | longest |\n|---|---|---|---|---|---|");
    for (name, times) in [("shortest first, with ageing", &latencies), ("first come, first served", &in_turn)]
    {
        let kinds = [4, 12, 30].map(|n| of(times, n));
        println!("| {name} | {} | {} | {} |", ms(mean(times)), kinds.join(" | "), ms(longest(times)));
    }
    assert!(beside <= bound, "a short job waits too long beside a long one");
    assert!(mean(&latencies) < mean(&in_turn), "worse than first come, first served");
}
