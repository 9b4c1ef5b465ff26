//! `/jobs`.

use serde_json::json;

use super::operation::{Operation, delete, file, get, post};
use crate::api::jobs::JobResult;
use crate::api::jobs::MAX_WAIT_S;
use crate::api::jobs::log::JobStatus;
use crate::api::jobs::request::JobRequest;

const EVENTS: &str = "Server-sent events until the job has ended. `progress` carries a JobStatus; `preview` carries \
    `{\"picture\", \"image\"}` with a small JPEG as a data URI; the last is `done`, `failed` or `cancelled`, with a \
    JobStatus. Whoever loses the connection comes back with the id of the last event that arrived: what happened \
    since then follows.";

pub(super) fn operations() -> Vec<Operation> {
    let tag = "jobs";
    let wait = json!({"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S});
    let of_a_job = |operation: Operation| {
        let schema = json!({"type": "string", "pattern": "^[0-9a-f]{32}$"});
        operation
            .part("id", "The job's id, from the reply to its submission.", schema)
            .refuses(404, "There is no such job; finished ones are kept for 15 minutes.")
    };
    let when_done = |operation: Operation| {
        of_a_job(operation)
            .query("wait", "Seconds to wait for the job's end.", wait.clone())
            .refuses(409, "The job has not ended yet; `Retry-After` says when to look again.")
            .refuses(410, "The job was cancelled.")
            .refuses(422, "A field is not as it should be, or the model refused the request.")
            .refuses(504, "The job ran too long and was ended.")
    };
    vec![
        post("/jobs", tag, "Submit a job")
            .takes::<JobRequest>()
            .gives::<JobStatus>(202, "The job is in the queue; `Location` is where its status is.")
            .refuses(400, "The body is no readable text, or broke off.")
            .refuses(408, "The body came too slowly.")
            .refuses(413, "The body is larger than is accepted.")
            .refuses(422, "A field is missing or not as it should be: the text names it, its value and what is allowed."),
        of_a_job(get("/jobs/{id}", tag, "How far a job is")).gives::<JobStatus>(200, "Its status."),
        of_a_job(delete("/jobs/{id}", tag, "Cancel a job, or forget one that has ended"))
            .about("A job that runs ends before its next step.")
            .gives::<JobStatus>(200, "Its status afterwards."),
        of_a_job(get("/jobs/{id}/events", tag, "Watch a job"))
            .about(EVENTS)
            .header("Last-Event-ID", "The last event that arrived.", json!({"type": "string", "pattern": "^[0-9]{0,18}$"}))
            .gives_as(200, "The events.", &[("text/event-stream", json!({"type": "string"}))])
            .gives_as(204, "The job has ended, and there is nothing after that event: do not come back.", &[])
            .refuses(422, "Last-Event-ID is no number."),
        when_done(get("/jobs/{id}/result", tag, "All pictures of a job"))
            .gives::<JobResult>(200, "The pictures and what they were made by."),
        when_done(get("/jobs/{id}/images/{index}", tag, "One picture of a job"))
            .part("index", "Which one; the first is 0.", json!({"type": "integer", "minimum": 0, "maximum": 7}))
            .gives_as(200, "The picture, with everything that determined it in its text chunks.", &[("image/png", file())]),
    ]
}
