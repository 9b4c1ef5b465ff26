//! What more workers give, and what the shared queue costs.

use std::time::{Duration, Instant};

use super::cluster::{Api, Cluster, STEP, job, until};
use super::server::Nats;
use crate::board::{full, ms, quantile, row};

const STEPS: u64 = 10;
const WORKERS: usize = 4;

/// Seconds from the first job to the end of the last, of as many for each worker.
fn seconds(api: &Api, workers: usize, each: usize) -> f64 {
    let begun = Instant::now();
    let ids: Vec<_> = (0..workers * each).map(|seed| api.submit(&job(seed as u64, STEPS))).collect();
    for id in &ids {
        assert_eq!(api.get(&format!("/jobs/{id}/result?wait=60")).status, 200);
    }
    begun.elapsed().as_secs_f64()
}

#[test]
fn four_workers_make_almost_four_times_as_much_as_one() {
    let each = if full() { 60 } else { 10 };
    let mut cluster = Cluster::start("throughput", 1, 1, &["--queue-size", "1000"]);
    let alone = seconds(cluster.api0(), 1, each);
    for _ in 1..WORKERS {
        cluster.add_worker();
    }
    std::thread::sleep(Duration::from_secs(1));
    let together = seconds(cluster.api0(), WORKERS, each);
    let gain = WORKERS as f64 * alone / together;
    let rate = |workers: usize, seconds: f64| (workers * each) as f64 / seconds;
    let (one, four) = (rate(1, alone), rate(WORKERS, together));
    let ideal = 1.0 / (STEP * STEPS as u32).as_secs_f64();
    row(
        "nats-throughput",
        &format!("1 API process, {WORKERS} workers of {} ms steps, {STEPS} steps a job", STEP.as_millis()),
        ">= 3.8 times one worker",
        format!("{gain:.2} times: {four:.2} jobs/s and {one:.2}; an engine alone makes {ideal:.2}"),
        // A machine that is busy with other tests has less to give.
        gain >= if full() { 3.8 } else { 3.0 },
    );
}

#[test]
fn workers_that_come_and_go_under_load_lose_nothing() {
    let mut cluster = Cluster::start("come-and-go", 1, 1, &["--queue-size", "1000"]);
    let (jobs, changes) = if full() { (200, 20) } else { (30, 4) };
    let ids: Vec<_> = (0..jobs).map(|seed| cluster.api0().submit(&job(seed, 4))).collect();
    for change in 0..changes {
        cluster.add_worker();
        cluster.add_worker();
        until("they work", || {
            let begun = cluster.journal.begun().0;
            begun >= (jobs as usize / changes) * change
        });
        for mut leaving in cluster.workers.drain(..2) {
            leaving.signal("TERM");
            leaving.wait();
        }
        if cluster.workers.is_empty() {
            cluster.add_worker();
        }
    }
    cluster.add_worker();
    let lost = ids.iter().filter(|id| cluster.api0().ended(id) != "done").count();
    let (begun, again) = cluster.journal.begun();
    row(
        "nats-scaling",
        &format!("{changes} times two workers come and two go, {jobs} jobs"),
        "0 lost",
        format!("{lost} lost; {begun} made, {again} of them begun again"),
        lost == 0 && again == 0,
    );
}

/// What the queue adds to a job.
struct Overhead {
    /// Processor time of the process that takes requests.
    processor: Duration,
    /// Medians: until a job is accepted, and until its result is there, less its only step.
    accepted: Duration,
    answered: Duration,
    /// A request that asks for nothing, beside them: what the machine takes for any.
    health: Duration,
}

impl Overhead {
    /// Over jobs one after another.
    fn of(cluster: &Cluster, jobs: u32) -> Self {
        let api = cluster.api0();
        let (mut accepted, mut answered, mut health) = (Vec::new(), Vec::new(), Vec::new());
        let before = api.server.processor_time();
        for seed in 0..jobs {
            let begun = Instant::now();
            let id = api.submit(&job(seed.into(), 1));
            accepted.push(begun.elapsed());
            assert_eq!(api.get(&format!("/jobs/{id}/result?wait=60")).status, 200);
            answered.push(begun.elapsed().saturating_sub(STEP));
        }
        let processor = (api.server.processor_time() - before) / jobs;
        for _ in 0..jobs {
            let begun = Instant::now();
            assert_eq!(api.get("/health").status, 200);
            health.push(begun.elapsed());
        }
        Self {
            processor,
            health: quantile(&health, 0.5),
            accepted: quantile(&accepted, 0.5),
            answered: quantile(&answered, 0.5),
        }
    }
}

impl std::fmt::Display for Overhead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [processor, accepted, answered, health] =
            [self.processor, self.accepted, self.answered, self.health].map(ms);
        write!(
            f,
            "{processor} of the API's processor, {accepted} until accepted, {answered} in all beside the engine, \
             where GET /health takes {health}"
        )
    }
}

#[test]
fn a_job_costs_a_few_milliseconds_of_queue() {
    let jobs = if full() { 300 } else { 30 };
    let flags = ["--queue-size", "1000"];
    let on_disk = Overhead::of(&Cluster::start("overhead-disk", 1, 1, &flags), jobs);
    let nats = Nats::in_memory("overhead");
    let url = nats.url();
    let in_memory = Overhead::of(&Cluster::around("overhead-memory", nats, url, 1, 1, &flags), jobs);
    row(
        "nats-overhead",
        &format!("what the shared queue adds to each of {jobs} jobs"),
        "the API takes <= 5 ms a job",
        format!("server's files in memory: {in_memory}; on this disk: {on_disk}"),
        in_memory.processor <= Duration::from_millis(if full() { 5 } else { 15 }),
    );
}
