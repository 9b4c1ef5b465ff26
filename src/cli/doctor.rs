//! `aquatint doctor`: whether a shared queue keeps what it accepts.

use serde_json::{Value, json};

use super::shared_queue::settings;
use super::{Failure, print};
use crate::queue::nats::doctor::{Verdict, examine};
use crate::settings::DoctorArgs;

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let Some(settings) = settings(&args.queue) else {
        return print("the queue is in the process itself (--queue local): there is nothing to check");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Other(error.to_string()))?;
    let found = runtime.block_on(async {
        let varz = match &args.nats_monitor {
            Some(monitor) => Some(varz(monitor).await?),
            None => None,
        };
        Ok::<_, Failure>(examine(&settings, varz.as_ref()).await)
    })?;
    let word = |verdict| match verdict {
        Verdict::Good => "good",
        Verdict::Note => "note",
        Verdict::Bad => "bad",
    };
    if args.json {
        let found: Vec<_> =
            found.iter().map(|f| json!({"verdict": word(f.verdict), "text": f.text})).collect();
        print(&format!("{:#}", json!({ "findings": found })))?;
    } else {
        for finding in &found {
            print(&format!("{:<5} {}", word(finding.verdict), finding.text))?;
        }
    }
    match found.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        bad => Err(Failure::Other(format!("{bad} of {} findings are bad: jobs may be lost", found.len()))),
    }
}

/// What the server's monitoring port says of it.
async fn varz(monitor: &str) -> Result<Value, Failure> {
    let address = format!("{}/varz", monitor.trim_end_matches('/'));
    let failed = |error: reqwest::Error| Failure::Other(format!("--nats-monitor {monitor}: {error}"));
    let text = reqwest::get(&address).await.map_err(failed)?.text().await.map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| Failure::Other(format!("{address}: {error}")))
}
