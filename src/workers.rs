//! Drives the background workers: one loop for all of them.
//!
//! A worker defines what one round does ([`Worker::run_once`]), its pauses and what wakes it. The
//! driver repeats the round, and the metrics count failures and keep the time of the last success.
//! After a failed round, [`Worker::wake_up`] does not shorten the pause. A worker that panics ends
//! its task, which ends the process.

use std::future::{Future, pending, ready};
use std::pin::pin;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::observe::metrics;

/// Whether a round that succeeded has left work to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The batch was full: the next round follows after [`Worker::BATCH_INTERVAL`].
    More,
    /// No work is left: the next round follows after [`Worker::INTERVAL`], or when the worker wakes
    /// up.
    Done,
}

impl Progress {
    /// [`Self::More`] if the round has done a full batch, else [`Self::Done`].
    #[must_use]
    pub fn of<N: PartialEq + Copy>(done: N, batch_size: N) -> Self {
        if done == batch_size { Self::More } else { Self::Done }
    }
}

/// The error of a failed round. The worker has logged the reason.
#[derive(Clone, Copy, Debug)]
pub struct Failed;

/// A job that is repeated in the background.
pub trait Worker: Send {
    /// The worker's name in the metrics.
    const NAME: &'static str;
    /// Pause after a round that left no work.
    const INTERVAL: Duration;
    /// Pause after a round that failed.
    const RETRY_INTERVAL: Duration = Self::INTERVAL;
    /// Pause after a full batch, for the other users of the stores.
    const BATCH_INTERVAL: Duration = Duration::ZERO;

    /// Does up to one batch of work, and logs the reason of a failure.
    ///
    /// # Errors
    /// [`Failed`] when the round did not succeed; the next round tries again.
    fn run_once(&mut self) -> impl Future<Output = Result<Progress, Failed>> + Send;

    /// Returns when there is work before the interval is over. The future may be dropped at any
    /// time.
    fn wake_up(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Does the worker's last work, after its last round, if it ends by [`End::AfterCalls`].
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// When a worker ends.
#[derive(Clone, Debug)]
pub enum End {
    /// When the token is cancelled, even within a round: another replica does the rest.
    AtOnce(CancellationToken),
    /// When the token is cancelled, after the round that is under way.
    AfterRound(CancellationToken),
    /// When the tracker is closed and its tasks have ended, after [`Worker::finish`].
    AfterCalls(TaskTracker),
}

/// Runs a worker to its end.
pub async fn run(mut worker: impl Worker, end: End) {
    match end {
        End::AtOnce(stopping) => tokio::select! {
            () = drive(&mut worker, pending()) => {}
            () = stopping.cancelled() => {}
        },
        End::AfterRound(stopping) => drive(&mut worker, stopping.cancelled()).await,
        End::AfterCalls(under_way) => {
            drive(&mut worker, under_way.wait()).await;
            worker.finish().await;
        }
    }
}

async fn drive<W: Worker>(worker: &mut W, end: impl Future<Output = ()>) {
    let mut end = pin!(end);
    metrics::worker_started(W::NAME);
    loop {
        let progress = worker.run_once().await;
        metrics::worker_ran(W::NAME, progress.is_ok());
        let pause = match progress {
            Ok(Progress::More) => W::BATCH_INTERVAL,
            Ok(Progress::Done) => W::INTERVAL,
            Err(Failed) => W::RETRY_INTERVAL,
        };
        tokio::select! {
            biased;
            () = &mut end => return,
            () = sleep(pause) => {}
            () = worker.wake_up(), if progress.is_ok() => {}
        }
    }
}

/// The pause before the next try after this many: `first`, then twice as long each time, up to `longest`.
#[must_use]
pub fn doubled(first: TimeDelta, attempts: i32, longest: TimeDelta) -> TimeDelta {
    let doublings = attempts.saturating_sub(1).clamp(0, 16);
    (first * (1 << doublings)).min(longest)
}
