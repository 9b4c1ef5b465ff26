//! `GET /metrics`: counts for Prometheus.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;
use super::ready::unready;
use crate::engine::meter::Histogram;

/// The handler.
pub async fn metrics(State(app): State<App>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], exposition(&app)).into_response()
}

fn exposition(app: &App) -> String {
    let mut page = Page::default();
    http(&mut page, app);
    jobs(&mut page, app);
    engine(&mut page, app);
    process(&mut page);
    page.0
}

fn http(page: &mut Page, app: &App) {
    let meter = &app.operations.http;
    let name = "aquatint_http_requests_total";
    page.family(name, "counter", "Answers by route, method and status; 499 is a client that left.");
    for (key, count) in meter.answers() {
        let status = key.status.to_string();
        page.sample(name, &[("route", &key.route), ("method", key.method), ("status", &status)], count);
    }
    page.histogram("aquatint_http_request_seconds", "Time to the answer's head.", &meter.seconds);
    page.gauge("aquatint_http_requests_in_flight", "Requests without an answer yet.", meter.in_flight.get());
    page.gauge("aquatint_http_connections", "Open connections.", meter.connections.get());
}

fn jobs(page: &mut Page, app: &App) {
    let (depth, meter) = (app.queue.depth(), app.engine.meter());
    page.gauge("aquatint_queue_waiting", "Jobs that wait.", depth.waiting);
    page.gauge("aquatint_queue_running", "Jobs at work.", depth.running);
    page.gauge("aquatint_queue_capacity", "Jobs that may wait or be at work.", depth.capacity);
    page.histogram("aquatint_queue_wait_seconds", "Time jobs waited before they were begun.", &meter.wait_s);
    let name = "aquatint_jobs_total";
    page.family(name, "counter", "Jobs by outcome.");
    for (outcome, count) in
        [("done", &meter.jobs_done), ("cancelled", &meter.jobs_cancelled), ("failed", &meter.jobs_failed)]
    {
        page.sample(name, &[("outcome", outcome)], count.get());
    }
    page.counter("aquatint_pictures_total", "Pictures made.", meter.pictures.get());
    let name = "aquatint_not_finite_total";
    page.family(name, "counter", "Computed to NaN or infinity, by what came of it.");
    for (outcome, count) in [("failed", &meter.not_finite), ("repeated", &meter.repeated)] {
        page.sample(name, &[("outcome", outcome)], count.get());
    }
}

fn engine(page: &mut Page, app: &App) {
    let meter = app.engine.meter();
    let ready = unready(app).is_none();
    page.gauge("aquatint_ready", "1 while jobs are taken, as /ready says.", u8::from(ready));
    for (name, help, histogram) in [
        (
            "aquatint_start_seconds",
            "Encoding the prompts and drawing the noise of one picture.",
            &meter.start_s,
        ),
        ("aquatint_step_seconds", "One denoising step, whatever its batch.", &meter.step_s),
        ("aquatint_decode_seconds", "Decoding one picture.", &meter.decode_s),
        ("aquatint_lora_merge_seconds", "Merging one set of LoRAs.", &meter.merge_s),
        ("aquatint_model_load_seconds", "Loading a model.", &meter.load_s),
    ] {
        page.histogram(name, help, histogram);
    }
    let name = "aquatint_model_memory_bytes";
    page.family(name, "gauge", "Weights of the loaded models, by the size of their files; caches and intermediate values come on top.");
    for model in app.engine.models() {
        let bytes = if model.loaded { model.weight_bytes } else { 0 };
        page.sample(name, &[("model", &model.name)], bytes);
    }
    if let Some(memory) = meter.memory.get() {
        let name = "aquatint_device_memory_bytes";
        page.family(
            name,
            "gauge",
            "The GPU's memory after the last call of a model; peak is the most that was used at a time.",
        );
        let states = [("total", memory.total), ("free", memory.free), ("held", memory.held)];
        for (state, bytes) in states.into_iter().chain([("used", memory.used), ("peak", memory.peak)]) {
            page.sample(name, &[("state", state)], bytes);
        }
    }
    page.histogram("aquatint_batch_size", "Pictures in one denoising step.", &meter.batch);
    let name = "aquatint_cache_requests_total";
    page.family(name, "counter", "Look-ups by cache and result.");
    let prompts = (meter.prompt_hits.get(), meter.prompt_misses.get());
    for (cache, (hits, misses)) in [("prompt", prompts), ("picture", app.queue.picture_cache())] {
        page.sample(name, &[("cache", cache), ("result", "hit")], hits);
        page.sample(name, &[("cache", cache), ("result", "miss")], misses);
    }
}

/// What Linux says of this process, under the names that every Prometheus client library uses.
fn process(page: &mut Page) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        page.gauge("process_resident_memory_bytes", "Resident memory.", kib * 1024);
    }
    if let Some(kib) = field("VmHWM:") {
        page.gauge(
            "aquatint_process_peak_resident_memory_bytes",
            "The most resident memory so far.",
            kib * 1024,
        );
    }
    if let Some(threads) = field("Threads:") {
        page.gauge("process_threads", "Threads.", threads);
    }
    if let Some(seconds) = start_time() {
        page.gauge("process_start_time_seconds", "When the process began, since 1970.", seconds);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is this reading.
        page.gauge("process_open_fds", "Open file descriptors.", open.count().saturating_sub(1));
    }
}

/// When this process began, in seconds since 1970. The same at every call, unlike a clock's reading less the time since.
fn start_time() -> Option<u64> {
    // Linux tells in hundredths since the machine's own start, whatever the kernel's clock.
    const TICKS_A_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in brackets, may contain anything; the start is the 20th field after it.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS_A_SECOND)
}

/// The text, as it is written.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Begins a metric of several samples.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        match labels.is_empty() {
            true => self.line(format_args!("{name} {value}")),
            false => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn histogram<const N: usize>(&mut self, name: &str, help: &str, values: &Histogram<N>) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut within = 0;
        for (bound, count) in values.cumulative() {
            within = count;
            self.sample(&bucket, &[("le", &bound.to_string())], count);
        }
        // Values that are counted while this is written must not make the buckets fall.
        let count = values.count().max(within);
        self.sample(&bucket, &[("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[], values.sum());
        self.sample(&format!("{name}_count"), &[], count);
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        let _strings_take_everything = writeln!(self.0, "{text}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_began_lately() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let began = start_time().unwrap();
        assert!(began <= now + 1 && now - began < 3600, "{began}, now {now}");
        assert_eq!(start_time(), Some(began));
    }

    #[test]
    fn writes_what_prometheus_reads() {
        let mut page = Page::default();
        page.family("a_total", "counter", "Help.");
        page.sample("a_total", &[("route", "/a\"\\\n"), ("status", "200")], 3);
        let histogram = Histogram::new([0.5, 1.0]);
        for value in [0.25, 0.75, 4.0] {
            histogram.record(value);
        }
        page.histogram("b_seconds", "Time.", &histogram);
        let expected = r#"# HELP a_total Help.
# TYPE a_total counter
a_total{route="/a\"\\\n",status="200"} 3
# HELP b_seconds Time.
# TYPE b_seconds histogram
b_seconds_bucket{le="0.5"} 1
b_seconds_bucket{le="1"} 2
b_seconds_bucket{le="+Inf"} 3
b_seconds_sum 5
b_seconds_count 3
"#;
        assert_eq!(page.0, expected);
    }
}
