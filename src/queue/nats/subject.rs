//! The names that messages go by.

use super::broker::JOBS;
use crate::queue::shared::JobEvent;

/// `image.jobs.<model>.<job>`: the id in it lets a queued job be taken out by its name.
pub(super) fn job(model: &str, id: &str) -> String {
    format!("image.jobs.{}.{id}", token(model))
}

/// Every job of a model.
pub(super) fn jobs_of(model: &str) -> String {
    format!("image.jobs.{}.*", token(model))
}

/// A job, whatever its model.
pub(super) fn any_model(id: &str) -> String {
    format!("image.jobs.*.{id}")
}

/// The job that a subject of the first kind belongs to.
pub(super) fn id_of(subject: &str) -> Option<&str> {
    subject.rsplit('.').next().filter(|id| is_id(id))
}

/// `image.events.<job>.<kind>`: the end has a subject of its own, so that the server can see to it that there is one.
pub(super) fn event(id: &str, event: &JobEvent) -> String {
    match event {
        JobEvent::Ended(_) => end(id),
        JobEvent::Preview { .. } => format!("image.events.{id}.preview"),
        JobEvent::Queued { .. } | JobEvent::Progress { .. } => format!("image.events.{id}.progress"),
    }
}

/// Where a job's end is told.
pub(super) fn end(id: &str) -> String {
    format!("image.events.{id}.end")
}

/// Everything that is told of a job.
pub(super) fn events(id: &str) -> String {
    format!("image.events.{id}.*")
}

/// Whoever makes the job listens here.
pub(super) fn cancel(id: &str) -> String {
    format!("image.cancel.{id}")
}

/// Where a model is announced.
pub(super) fn model(name: &str) -> String {
    format!("image.models.{}", token(name))
}

/// Where the server says that a job was delivered as often as may be, and never done.
pub(super) fn max_deliveries() -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{JOBS}.*")
}

/// The consumer from which all workers that have a model take its jobs.
pub(super) fn consumer(model: &str) -> String {
    format!("worker-{}", token(model))
}

/// Ids come in URLs, and a subject may hold wildcards.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A name as one part of a subject: what has a meaning there is written as its number.
fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            other => token.push_str(&format!("={other:02x}")),
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_beyond_their_part_of_a_subject() {
        assert_eq!(job("sdxl-base_1.0", "a"), "image.jobs.sdxl-base_1=2e0.a");
        assert_eq!(model("a.> *"), "image.models.a=2e=3e=20=2a");
        assert_ne!(token("a.b"), token("a=2eb"));
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(id_of(&job("a.b", id)), Some(id));
        for bad in ["", "*", ">", "0123456789abcdef0123456789abcde*", "0123456789abcdef0123456789abcdef0"] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
