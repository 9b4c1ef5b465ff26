//! What dies, hangs or is cut off, and what becomes of the jobs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{Cluster, LEASE, STEP, id, job, until, within};
use super::forwarder::Forwarder;
use super::runs;
use super::server::Nats;
use crate::board::{Lcg, full, row};

const STEPS: u64 = 10;
const ROOM: [&str; 2] = ["--queue-size", "1000"];

/// Counts of a test's runs together.
#[derive(Default)]
struct Sum {
    acknowledged: usize,
    lost: usize,
    /// Jobs that were begun more than once.
    again: usize,
}

impl Sum {
    fn add(&mut self, cluster: &Cluster, ids: &[String]) {
        self.acknowledged += ids.len();
        self.lost += ids.iter().filter(|id| cluster.api0().ended(id) != "done").count();
        self.again += cluster.journal.begun().1;
    }

    fn row(&self, key: &str, test: &str) {
        let Self { acknowledged, lost, again } = self;
        row(
            key,
            &format!("{test}, {} runs", runs()),
            "0 acknowledged jobs lost",
            format!("{lost} of {acknowledged} lost; {again} begun again"),
            *lost == 0,
        );
    }
}

#[test]
fn a_worker_that_is_killed_loses_no_job() {
    let (mut sum, mut random) = (Sum::default(), Lcg(11));
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("kill-worker-{run}"), 1, 2, &ROOM);
        let ids: Vec<_> = (1..=6).map(|seed| cluster.api0().submit(&job(seed, STEPS))).collect();
        // At some step of one of the first jobs.
        until("both work", || cluster.journal.begun().0 >= 2);
        std::thread::sleep(STEP * random.below(STEPS as usize) as u32);
        cluster.workers[0].kill();
        cluster.workers[0] = cluster.worker();
        sum.add(&cluster, &ids);
        assert!(cluster.journal.begun().1 <= 1, "only the job of the killed worker is made again");
    }
    sum.row("nats-kill-worker", "kill -9 of a worker at a random step");
}

#[test]
fn a_server_that_is_killed_keeps_what_it_acknowledged() {
    let (mut sum, mut random) = (Sum::default(), Lcg(12));
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("kill-server-{run}"), 1, 2, &ROOM);
        let (ids, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let pause = Duration::from_millis(500 + random.below(1000) as u64);
        let Cluster { nats, apis, .. } = &mut cluster;
        let api = &apis[0];
        std::thread::scope(|scope| {
            for client in 0..3 {
                let (ids, over) = (&ids, &over);
                scope.spawn(move || {
                    for i in 0..8 {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let answer = api.try_submit(&job(100 * client + i, 4));
                        match answer {
                            Some(answer) if answer.status == 202 => ids.lock().unwrap().push(id(&answer)),
                            // Refused while the server is away.
                            Some(answer) => assert_eq!(answer.status, 503, "{}", answer.body_text()),
                            None => {}
                        }
                        std::thread::sleep(Duration::from_millis(150));
                    }
                });
            }
            std::thread::sleep(pause);
            nats.kill();
            std::thread::sleep(Duration::from_millis(500));
            nats.restart();
            until("some are accepted again", || {
                std::thread::sleep(Duration::from_millis(100));
                api.get("/ready").status == 200
            });
            over.store(true, Ordering::SeqCst);
        });
        let ids = ids.into_inner().unwrap();
        assert!(!ids.is_empty(), "jobs were accepted");
        sum.add(&cluster, &ids);
    }
    sum.row("nats-kill-server", "kill -9 of the server under load, and start it again");
}

#[test]
fn a_worker_that_stands_still_loses_its_lease_and_there_is_one_result() {
    let (mut lost, mut doubled, mut ends) = (0, 0, 0);
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("stop-{run}"), 1, 1, &ROOM);
        let api = cluster.api0();
        let id = api.submit(&job(7, STEPS));
        until("it has taken steps", || cluster.journal.steps(7) > 2);
        cluster.workers[0].signal("STOP");
        let other = cluster.worker();
        // The lease runs out, and the other worker makes it from the beginning.
        lost += usize::from(cluster.api0().ended(&id) != "done");
        doubled += cluster.journal.starts(7) - 1;
        assert_eq!(cluster.journal.maker(7), Some(other.id()));
        let first = cluster.api0().get(&format!("/jobs/{id}/images/0")).body;
        cluster.workers[0].signal("CONT");
        // It goes on with its own, and is told that the job has ended.
        std::thread::sleep(STEP * STEPS as u32 + LEASE);
        assert_eq!(cluster.api0().get(&format!("/jobs/{id}/images/0")).body, first);
        cluster.add_api();
        let later = super::watching::events(&cluster.apis[1], &id, None);
        ends += later.iter().filter(|event| event.name == "done").count();
        assert_eq!(cluster.apis[1].get(&format!("/jobs/{id}/images/0")).body, first);
        until("the queue is empty", || cluster.api0().depth() == 0);
    }
    let n = runs();
    row(
        "nats-stop",
        &format!("SIGSTOP of a worker past its lease, {n} runs"),
        "one visible result each",
        format!("{lost} lost, {ends} ends for {n} jobs, {doubled} made again"),
        lost == 0 && ends == n && doubled == n,
    );
}

#[test]
fn a_job_that_ends_its_workers_is_given_up_after_three() {
    let (mut starts, mut failed) = (Vec::new(), 0);
    for run in 0..runs() {
        let mut cluster = Cluster::start(&format!("poison-{run}"), 1, 1, &ROOM);
        let mut poison = job(13, STEPS);
        poison["prompt"] = "!abort".into();
        let id = cluster.api0().submit(&poison);
        // A supervisor that starts the worker again, as each platform has one.
        within(Duration::from_secs(40), "it is given up", || {
            if cluster.workers[0].has_ended() {
                cluster.workers[0] = cluster.worker();
            }
            cluster.api0().state(&id) == "failed"
        });
        starts.push(cluster.journal.starts(13));
        let error = cluster.api0().json(&format!("/jobs/{id}"))["error"].as_str().unwrap().to_owned();
        failed += usize::from(error.contains("3 workers began this job"));
        until("its place is free", || cluster.api0().depth() == 0);
        let next = cluster.api0().submit(&job(14, 2));
        assert_eq!(cluster.api0().ended(&next), "done");
    }
    row(
        "nats-poison",
        &format!("a job that ends every worker, {} runs", runs()),
        "3 deliveries, then failed, and its place free",
        format!("begun {starts:?} times; {failed} failed with the reason"),
        starts.iter().all(|starts| *starts == 3) && failed == runs(),
    );
}

#[test]
fn a_queued_job_that_is_cancelled_takes_no_step_and_a_running_one_at_most_one() {
    let (mut queued, mut further) = (0, Vec::new());
    for run in 0..runs() {
        let cluster = Cluster::start(&format!("cancel-{run}"), 1, 1, &ROOM);
        let api = cluster.api0();
        let running = api.submit(&job(21, 100));
        let waiting = api.submit(&job(22, 100));
        until("it runs", || cluster.journal.steps(21) > 3);
        let cancel = |id: &str| -> Value {
            let answer = api.server.ask("DELETE", &format!("/jobs/{id}"), &[], "");
            assert_eq!(answer.status, 200, "{}", answer.body_text());
            serde_json::from_slice(&answer.body).unwrap()
        };
        assert_eq!(cancel(&waiting)["state"], "cancelled");
        let begun = Instant::now();
        assert_eq!(cancel(&running)["state"], "cancelled");
        let at_the_answer = cluster.journal.steps(21);
        // Places are free at once: the next job does not wait for the lease.
        let next = api.submit(&job(23, 2));
        assert_eq!(api.ended(&next), "done");
        assert!(begun.elapsed() < LEASE, "{:?}", begun.elapsed());
        std::thread::sleep(STEP * 4);
        further.push(cluster.journal.steps(21) - at_the_answer);
        queued += cluster.journal.steps(22);
        assert_eq!(api.state(&running), "cancelled");
        until("the queue is empty", || api.depth() == 0);
    }
    row(
        "nats-cancel",
        &format!("cancel a queued and a running job, {} runs", runs()),
        "0 steps of the queued one, <= 1 further of the running one",
        format!("{queued} steps of the queued ones; further steps of the running ones {further:?}"),
        queued == 0 && further.iter().all(|steps| *steps <= 1),
    );
}

#[test]
fn a_network_that_is_cut_for_a_while_loses_no_job() {
    let mut sum = Sum::default();
    let cut = Duration::from_secs(if full() { 30 } else { 4 });
    let mut refused = 0;
    for run in 0..runs() {
        let name = format!("partition-{run}");
        let nats = Nats::start(&name);
        let network = Forwarder::to(nats.port);
        let cluster = Cluster::around(&name, nats, network.url(), 1, 2, &ROOM);
        let ids: Vec<_> = (1..=8).map(|seed| cluster.api0().submit(&job(seed, STEPS))).collect();
        until("some is made", || cluster.journal.begun().0 >= 2);
        network.cut(true);
        let (since, mut ready_again) = (Instant::now(), true);
        while since.elapsed() < cut {
            // What it cannot keep it must not accept.
            ready_again = cluster.api0().get("/ready").status == 200;
            std::thread::sleep(Duration::from_millis(200));
        }
        if full() {
            assert!(!ready_again, "after 30 s it has noticed");
            let answer = cluster.api0().try_submit(&job(99, 1)).unwrap();
            assert_eq!(answer.status, 503, "{}", answer.body_text());
            refused += 1;
        }
        network.cut(false);
        until("it is ready again", || cluster.api0().get("/ready").status == 200);
        sum.add(&cluster, &ids);
    }
    sum.row(
        "nats-partition",
        &format!("a network cut for {} s, {refused} refusals meanwhile", cut.as_secs()),
    );
}
