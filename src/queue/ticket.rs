//! What a caller holds of its job.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::time::Sleep;

use super::cache::{Key, PictureCache};
use crate::engine::{EngineError, JobPhase, Observer, Progress, Reply};

/// Waits for a job's pictures. Dropping it gives the job up, wherever it is.
///
/// It also keeps the job's deadlines, so that its caller is answered in time even when the engine is at a call that
/// takes long. It must be polled within a tokio runtime that has timers.
pub struct Ticket {
    pub(super) reply: oneshot::Receiver<Reply>,
    pub(super) progress: Observer,
    pub(super) deadlines: Deadlines,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    /// Where good pictures are kept.
    pub(super) keep: Option<(Key, Arc<PictureCache>)>,
    /// Takes the job out of the queue when dropped.
    pub(super) leave: Option<Box<dyn Send + Sync>>,
}

/// How long a job may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) submitted: Instant,
    /// Longest time in the queue.
    pub(super) wait: Option<Duration>,
    /// Longest time from begin to end.
    pub(super) run: Option<Duration>,
}

impl Deadlines {
    /// Which limit is passed, or when to look again.
    fn check(&self, begun: Option<Instant>, now: Instant) -> Result<Option<Instant>, EngineError> {
        match (begun, self.wait, self.run) {
            (Some(begun), _, Some(limit)) if now >= begun + limit => {
                Err(EngineError::RanTooLong { limit_s: limit.as_secs() })
            }
            (Some(begun), _, limit) => Ok(limit.map(|limit| begun + limit)),
            (None, Some(limit), _) if now >= self.submitted + limit => {
                Err(EngineError::WaitedTooLong { limit_s: limit.as_secs() })
            }
            // It may be begun meanwhile.
            (None, wait, run) => {
                let (wait, run) = (wait.map(|limit| self.submitted + limit), run.map(|limit| now + limit));
                Ok(wait.into_iter().chain(run).min())
            }
        }
    }
}

impl Ticket {
    /// Watches the job; as long as the receiver is kept, previews are made. The end is `JobPhase::Done`.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.watch()
    }

    /// Reads the job's progress without watching it; may be kept when the ticket is given away.
    pub fn observer(&self) -> Observer {
        self.progress.clone()
    }

    /// Leaves the queue, or has the engine drop the job before its next step.
    fn give_up(&mut self) {
        self.reply.close();
        self.leave = None;
        self.timer = None;
    }

    /// An error if a deadline is passed; arms the timer for the next one.
    fn check_deadlines(&mut self, cx: &mut Context<'_>) -> Result<(), EngineError> {
        loop {
            let next = self.deadlines.check(self.progress.now().begun, Instant::now())?;
            let Some(next) = next else { return Ok(()) };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next.into())));
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.timer = None;
        }
    }
}

impl Future for Ticket {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        if let Poll::Ready(reply) = Pin::new(&mut self.reply).poll(cx) {
            let reply = reply.unwrap_or(Err(EngineError::Stopping));
            self.leave = None;
            if let (Some((key, cache)), Ok(pictures)) = (self.keep.take(), &reply) {
                cache.insert(key, pictures);
            }
            return Poll::Ready(reply);
        }
        if let Err(error) = self.check_deadlines(cx) {
            self.give_up();
            self.progress.set(|p| p.phase = JobPhase::Done);
            return Poll::Ready(Err(error));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_count_from_submission_until_the_job_is_begun_and_from_there_on() {
        let submitted = Instant::now();
        let s = |seconds| submitted + Duration::from_secs(seconds);
        let limits =
            Deadlines { submitted, wait: Some(Duration::from_secs(10)), run: Some(Duration::from_secs(4)) };
        assert_eq!(limits.check(None, s(9)), Ok(Some(s(10))));
        assert_eq!(limits.check(None, s(1)), Ok(Some(s(5))), "begun at once it would have until then");
        assert_eq!(limits.check(None, s(10)), Err(EngineError::WaitedTooLong { limit_s: 10 }));
        assert_eq!(limits.check(Some(s(9)), s(12)), Ok(Some(s(13))));
        assert_eq!(limits.check(Some(s(9)), s(13)), Err(EngineError::RanTooLong { limit_s: 4 }));
        let none = Deadlines { wait: None, run: None, ..limits };
        assert_eq!(none.check(None, s(1000)), Ok(None));
        assert_eq!(none.check(Some(s(1)), s(1000)), Ok(None));
    }
}
