//! The step scheduler: order, batches, cancellation, deadlines, progress, models and caches.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquatint::engine::{DeviceMemory, EngineError, EngineSettings, JobPhase, Work};
use aquatint::queue::{Caller, Cost, JobQueue, Limits, Refusal};
use image::RgbImage;

use crate::fake::Script;
use crate::harness::eventually;
use crate::rig::{Parts, Rig, is_right, with_lora, work};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn script(step_ms: u64) -> Script {
    Script { step_time: ms(step_ms), native_size_px: 64, ..Script::default() }
}

fn parts(step_ms: u64) -> Parts {
    Parts { scripts: vec![script(step_ms)], ..Parts::default() }
}

/// An engine with batches that is still loading: what is submitted now waits all at once.
fn queued(step_ms: u64, max_batch: usize) -> Rig {
    let settings = EngineSettings { max_batch, ..EngineSettings::default() };
    let scripts = vec![Script { load_time: ms(150), ..script(step_ms) }];
    Parts { settings, scripts, ..Parts::default() }.spawn()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_job_overtakes_a_long_one_between_two_steps() {
    let rig = parts(10).start().await;
    let long = rig.submit(work(1, 30));
    eventually("the long one runs", || rig.script.steps_taken() >= 3).await;
    let short = rig.submit(work(2, 4));
    let before = rig.script.steps_taken();
    let short = short.await.unwrap();
    let steps = rig.steps();
    let last = steps.iter().rposition(|seeds| *seeds == [2]).unwrap();
    let of_long = steps[before..last].iter().filter(|seeds| **seeds == [1]).count();
    assert!(of_long <= 1, "the step at work and none after it, not {of_long}");
    assert!(is_right(&short[0], 2, 4));
    assert!(is_right(&long.await.unwrap()[0], 1, 30), "put off, and none the worse for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_job_is_not_put_off_for_ever() {
    let rig = parts(2).start().await;
    let long = rig.submit(work(1, 12));
    let short = |seed| {
        let ticket = rig.submit(work(seed, 4));
        tokio::spawn(ticket)
    };
    let (mut seed, mut waiting) = (2, vec![short(2), short(3)]);
    let done = tokio::spawn(long);
    let started = Instant::now();
    // Two short jobs wait at any time.
    while !done.is_finished() {
        seed += 2;
        waiting.push(short(seed));
        waiting.remove(0).await.unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "the long job starves");
    }
    assert!(is_right(&done.await.unwrap().unwrap()[0], 1, 12));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_can_be_stepped_together_are_and_come_out_the_same() {
    let rig = queued(5, 4);
    let tickets: Vec<_> = (1..=4).map(|seed| rig.submit(work(seed, 4 + 2 * seed as usize))).collect();
    let mut other = work(9, 6);
    other.requests[0].width = Some(128);
    let other = rig.submit(other);
    for (seed, ticket) in (1..).zip(tickets) {
        assert!(is_right(&ticket.await.unwrap()[0], seed, 4 + 2 * seed as usize), "{seed}");
    }
    assert!(is_right(&other.await.unwrap()[0], 9, 6));
    let steps = rig.steps();
    assert!(steps.iter().any(|seeds| seeds.len() == 4), "four at once: {steps:?}");
    assert!(steps.iter().all(|seeds| seeds.len() == 1 || !seeds.contains(&9)), "another size: {steps:?}");
    assert_eq!(rig.engine.meter().batch.sum() as usize, 6 + 8 + 10 + 12 + 6, "every step is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_of_one_job_go_together_and_come_back_in_order() {
    let rig = queued(1, 4);
    let mut job = work(1, 5);
    job.requests = (1..=6).map(|seed| work(seed, 5).requests.remove(0)).collect();
    let made = rig.run(job).await.unwrap();
    for (seed, picture) in (1..=6).zip(&made) {
        assert!(is_right(picture, seed, 5), "{seed}");
    }
    assert_eq!(made.len(), 6);
    assert!(rig.steps().iter().any(|seeds| seeds.len() == 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_picture_does_not_take_its_batch_with_it() {
    let mut script = Script { load_time: ms(150), ..script(1) };
    // 0 is the merge at loading, 1 to 4 the starts, then steps: the second of them fails, together and again alone.
    script.fault = Some((6, crate::fake::Broken::Error));
    let settings = EngineSettings { max_batch: 4, ..EngineSettings::default() };
    let rig = Parts { scripts: vec![script], settings, ..Parts::default() }.spawn();
    let tickets: Vec<_> = (1..=4).map(|seed| rig.submit(work(seed, 5))).collect();
    for (seed, ticket) in (1..).zip(tickets) {
        assert!(is_right(&ticket.await.unwrap()[0], seed, 5), "stepped alone it works: {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_one_lora_set_are_grouped() {
    let script = Script { load_time: ms(150), merge_time: ms(100), ..script(1) };
    let rig = Parts { scripts: vec![script], ..Parts::default() }.spawn();
    let names = ["a", "b", "a", "b", "a", "b"];
    let jobs = (1..).zip(names).map(|(seed, name)| rig.submit(with_lora(work(seed, 30), name)));
    for (seed, ticket) in (1..).zip(jobs.collect::<Vec<_>>()) {
        assert!(is_right(&ticket.await.unwrap()[0], seed, 30));
    }
    let merges = rig.script.loras.lock().unwrap().len();
    assert_eq!(merges, 1 + 2, "none at loading, then each set once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merged_set_is_kept_for_the_next_job() {
    let rig = parts(0).start().await;
    for seed in 1..=3 {
        rig.run(with_lora(work(seed, 2), "ink")).await.unwrap();
    }
    assert_eq!(rig.script.loras.lock().unwrap().len(), 2, "none at loading, then the set once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_leaves_frees_its_place_halfway_and_waiting() {
    let rig = parts(10).start().await;
    let long = rig.submit(work(1, 100));
    eventually("it runs", || rig.script.steps_taken() >= 2).await;
    let short = rig.submit(work(2, 20));
    eventually("the short one is before it", || rig.steps().contains(&vec![2])).await;
    assert_eq!(rig.queue.depth().running, 2);
    // The long one stands halfway and loses its caller.
    drop(long);
    eventually("one is left", || rig.queue.depth().running == 1).await;
    assert!(is_right(&short.await.unwrap()[0], 2, 20));
    let after = rig.steps();
    let last = after.iter().rposition(|seeds| *seeds == [2]).unwrap();
    assert_eq!(last + 1, after.len(), "no further step of the long one");
    assert_eq!(rig.queue.depth().running + rig.queue.depth().waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_told_and_previews_are_made_for_those_who_watch() {
    let rig = parts(10).start().await;
    let unwatched = rig.submit(work(1, 9));
    let observer = unwatched.observer();
    assert_eq!((observer.now().pictures, observer.now().picture), (1, 0));
    unwatched.await.unwrap();
    assert_eq!(observer.now().phase, JobPhase::Done);
    assert_eq!(rig.script.previews.load(Ordering::SeqCst), 0, "nobody watched");

    let first = rig.submit(work(2, 9));
    let second = rig.submit(work(3, 9));
    let mut watch = second.progress();
    assert!(matches!(watch.borrow().phase, JobPhase::Waiting { .. }));
    let job = tokio::spawn(async move { (first.await, second.await) });
    let (mut steps, mut previews) = (Vec::new(), Vec::new());
    loop {
        watch.changed().await.unwrap();
        let now = watch.borrow_and_update().clone();
        if now.phase == JobPhase::Done {
            break;
        }
        if now.steps > 0 {
            steps.push(now.step);
        }
        previews.extend(now.preview.filter(|p| previews.last() != Some(p)));
    }
    job.await.unwrap().1.unwrap();
    steps.dedup();
    assert!(steps.is_sorted() && steps.len() >= 3, "{steps:?}");
    assert!(!previews.is_empty() && previews.len() <= 4, "every third step: {}", previews.len());
    let known: Vec<_> = (0..9).map(|steps| Script::pixel(3, steps)).collect();
    assert!(previews.iter().all(|p| known.contains(&p.get_pixel(0, 0).0)), "of this job's own latents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_end_what_waits_and_what_runs_too_long() {
    let limits = Limits { wait: Some(ms(100)), run: Some(ms(300)), ..Limits::waiting(10) };
    let settings = EngineSettings { run_limit: Some(ms(300)), in_flight: 1, ..EngineSettings::default() };
    let rig = Parts { limits, settings, ..parts(20) }.start().await;
    let started = Instant::now();
    let endless = tokio::spawn(rig.submit(work(1, 1000)));
    eventually("it runs", || rig.script.steps_taken() > 0).await;
    let waiting = rig.run(work(2, 1000)).await;
    assert_eq!(waiting.unwrap_err(), EngineError::WaitedTooLong { limit_s: 0 });
    assert!(started.elapsed() >= ms(100));
    assert_eq!(endless.await.unwrap().unwrap_err(), EngineError::RanTooLong { limit_s: 0 });
    assert!(started.elapsed() >= ms(300));
    assert!(is_right(&rig.run(work(3, 2)).await.unwrap()[0], 3, 2));
    assert_eq!(rig.script.requests().len(), 2, "what waited too long was never begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_does_not_come_back_loses_the_device() {
    let mut script = script(0);
    script.fault = Some((3, crate::fake::Broken::Hang(ms(2000))));
    let settings = EngineSettings { call_limit: Some(ms(50)), ..EngineSettings::default() };
    let rig = Parts { scripts: vec![script], settings, ..Parts::default() }.start().await;
    let _stuck = rig.submit(work(1, 5));
    let started = Instant::now();
    assert_eq!(rig.engine.failed().await, EngineError::DeviceLost("no answer for 0.05 s".into()));
    assert!(started.elapsed() < ms(1500), "noticed while it hangs");
    let failure = aquatint::cli::Failure::from(rig.engine.failed().await);
    assert_eq!(failure.exit_code(), 70, "what a supervisor restarts on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_freed_and_the_call_tried_once_more() {
    // 0 merge, 1 start, 2 to 4 steps, 5 decoding.
    for call in 1..=5 {
        let fault = Some((call, crate::fake::Broken::Memory));
        let rig = Parts { scripts: vec![Script { fault, ..script(0) }], ..Parts::default() }.start().await;
        assert!(is_right(&rig.run(work(1, 3)).await.unwrap()[0], 1, 3), "call {call}");
        assert_eq!(rig.script.freed.load(Ordering::SeqCst), 1, "call {call}");
    }
    let rig = parts(0).start().await;
    let mut hopeless = work(1, 3);
    hopeless.requests[0].prompt = "!memory".into();
    let error = rig.run(hopeless).await.unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory(_)));
    assert_eq!(rig.script.requests().len(), 2, "once more, and no further");
    assert!(is_right(&rig.run(work(2, 3)).await.unwrap()[0], 2, 3));
}

fn on(model: &str, work: Work) -> Work {
    Work { model: Some(model.into()), ..work }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_loaded_when_named_and_unloaded_for_others() {
    let scripts = vec![script(0), script(0), script(0)];
    let loads = |i: usize| scripts[i].loads.load(Ordering::SeqCst);
    let settings = EngineSettings { weight_limit_bytes: Some(2), ..EngineSettings::default() };
    let rig = Parts { scripts: scripts.clone(), settings, ..Parts::default() }.start().await;
    let loaded =
        || -> Vec<_> { rig.engine.models().into_iter().filter(|m| m.loaded).map(|m| m.name).collect() };
    assert_eq!((loads(0), loads(1), loads(2)), (1, 0, 0));
    let made = rig.run(on("second", work(1, 2))).await.unwrap();
    assert_eq!(made[0].recipe.model, "second");
    assert_eq!(loaded(), ["fake", "second"]);
    rig.run(on("fake", work(2, 2))).await.unwrap();
    rig.run(on("third", work(3, 2))).await.unwrap();
    assert_eq!(loaded(), ["fake", "third"], "two fit, and second was used before fake");
    rig.run(on("second", work(4, 2))).await.unwrap();
    assert_eq!((loads(0), loads(1), loads(2)), (1, 2, 1));

    let unknown = rig.run(on("fourth", work(5, 2))).await.unwrap_err();
    let text = r#"Unknown model "fourth". Must be one of ['fake', 'second', 'third']"#;
    assert_eq!(unknown, EngineError::Invalid(text.into()));
    assert_eq!(rig.engine.info(Some("fourth")).await.unwrap_err(), unknown);
    assert_eq!(rig.engine.info(Some("third")).await.unwrap().name, "third");
}

/// A device of so many bytes, of which models take some.
fn device(bytes: u64) -> Arc<Mutex<DeviceMemory>> {
    Arc::new(Mutex::new(DeviceMemory { total: bytes, free: bytes, ..DeviceMemory::default() }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_fit_beside_others_takes_their_place() {
    let device = device(100);
    let takes = |bytes| Script { memory: Some((device.clone(), bytes)), ..script(0) };
    let scripts = vec![takes(40), takes(50), takes(70)];
    let settings = EngineSettings { unload_after: Some(ms(50)), ..EngineSettings::default() };
    let rig = Parts { scripts, settings, ..Parts::default() }.start().await;
    let read = || rig.engine.meter().memory.get().map(|memory| (memory.used, memory.free, memory.peak));
    for (model, used, peak) in [("fake", 40, 70), ("second", 90, 90), ("third", 70, 90)] {
        assert!(is_right(&rig.run(on(model, work(1, 2))).await.unwrap()[0], 1, 2), "{model}");
        assert_eq!(read(), Some((used, 100 - used, peak)), "{model}");
    }
    eventually("all are unloaded", || rig.engine.models().iter().all(|model| !model.loaded)).await;
    eventually("that is told", || read() == Some((0, 100, 90))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fits_nowhere_is_an_error_and_the_engine_goes_on() {
    let device = device(100);
    let takes = |bytes| Script { memory: Some((device.clone(), bytes)), ..script(0) };
    let scripts = vec![takes(40), takes(100)];
    let rig = Parts { scripts, ..Parts::default() }.start().await;
    // Somebody else has taken a part meanwhile.
    device.lock().unwrap().free -= 10;
    for _ in 0..2 {
        let error = rig.run(on("second", work(1, 2))).await.unwrap_err();
        assert!(matches!(error, EngineError::OutOfMemory(_)), "{error}");
        assert!(is_right(&rig.run(work(2, 2)).await.unwrap()[0], 2, 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_models_are_unloaded_and_come_back() {
    let settings = EngineSettings { unload_after: Some(ms(50)), ..EngineSettings::default() };
    let rig = Parts { settings, ..parts(0) }.start().await;
    rig.run(work(1, 2)).await.unwrap();
    eventually("it is unloaded", || !rig.engine.models()[0].loaded).await;
    assert_eq!(rig.engine.model().await.unwrap().name, "fake", "what it is stays known");
    assert!(is_right(&rig.run(work(2, 2)).await.unwrap()[0], 2, 2));
    assert_eq!(rig.script.loads.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_job_gets_its_pictures_again_where_that_is_wanted() {
    let limits = Limits { picture_cache_bytes: 1 << 20, ..Limits::waiting(10) };
    let rig = Parts { limits, ..parts(0) }.start().await;
    let seeded = |seed| Work { seed_given: true, ..work(seed, 3) };
    let first = rig.run(seeded(1)).await.unwrap();
    let again = rig.run(seeded(1)).await.unwrap();
    assert_eq!(first[0].image, again[0].image);
    assert_eq!(rig.script.requests().len(), 1);
    assert_eq!(rig.queue.picture_cache(), (1, 1));
    rig.run(seeded(2)).await.unwrap();
    rig.run(work(1, 3)).await.unwrap();
    assert_eq!(rig.script.requests().len(), 3, "another seed, and a seed that the server chose");
    assert_eq!(rig.queue.depth().waiting, 0);

    let without = parts(0).start().await;
    without.run(seeded(1)).await.unwrap();
    without.run(seeded(1)).await.unwrap();
    assert_eq!(without.script.requests().len(), 2, "only where it is asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_is_bounded_by_its_cost_and_by_caller() {
    let limits = Limits { cost: Some(100.0), per_caller: Some(2), ..Limits::waiting(50) };
    let rig = Parts { limits, ..parts(0) }.start().await;
    let [a, b] = ["a", "b"].map(Caller::named);
    let cost = |steps| Cost::of(1, Some((1000, 1000)), Some(steps));
    // A job alone is admitted whatever it costs: nothing else would let it in.
    let alone = rig.queue.admit(&a, cost(150)).unwrap();
    let refused = rig.queue.admit(&b, cost(1)).err().unwrap();
    assert!(matches!(refused, Refusal::TooMuchWork { held: 150.0, limit: 100.0, .. }), "{refused:?}");
    assert!(!refused.is_callers_own() && (1..=600).contains(&refused.retry_after_s()));
    drop(alone);
    let held = [rig.queue.admit(&a, cost(10)).unwrap(), rig.queue.admit(&a, cost(10)).unwrap()];
    let refused = rig.queue.admit(&a, cost(10)).err().unwrap();
    assert!(matches!(refused, Refusal::OverQuota { jobs: 2, limit: 2, .. }), "{refused:?}");
    assert!(refused.is_callers_own() && (1..=600).contains(&refused.retry_after_s()));
    assert!(rig.queue.admit(&b, cost(10)).is_ok(), "it is a's quota alone");
    assert!(rig.queue.admit(&Caller::anonymous(), cost(10)).is_ok());
    drop(held);
    assert!(rig.queue.admit(&a, cost(100)).is_ok());
    assert_eq!(rig.queue.depth().waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_follows_the_pace_of_the_engine() {
    let rig = Parts { limits: Limits::waiting(0), ..parts(5) }.start().await;
    let refusal = || {
        let _held = rig.queue.admit(&Caller::anonymous(), Cost::default()).unwrap();
        rig.queue.admit(&Caller::anonymous(), Cost::default()).err().unwrap().retry_after_s()
    };
    assert_eq!(refusal(), 10, "a guess before anything was seen");
    for seed in 0..12 {
        rig.run(work(seed, 4)).await.unwrap();
    }
    assert_eq!(refusal(), 1, "jobs of 20 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captions_come_before_pictures_and_into_their_prompts() {
    let rig = parts(0).start().await;
    let pictures = vec![RgbImage::new(3, 4), RgbImage::new(5, 6)];
    let job = Work { based_on: pictures, ..work(1, 2) };
    let made = rig.run(job).await.unwrap();
    let prompt = "Based on: a picture of 3 by 4; a picture of 5 by 6. Incorporate: a";
    assert_eq!(made[0].recipe.prompt, prompt);
    assert!(is_right(&made[0], 1, 2));
    rig.end();

    // The captioning model belongs to the default one, whichever makes the picture.
    let (first, other) = (script(0), Script { caption_error: Some(EngineError::Stopping), ..script(0) });
    let rig = Parts { scripts: vec![first.clone(), other], ..Parts::default() }.start().await;
    let made =
        rig.run(on("second", Work { based_on: vec![RgbImage::new(3, 4)], ..work(1, 2) })).await.unwrap();
    assert_eq!((made[0].recipe.model.as_str(), first.captioned()), ("second", 1));
}
