//! Drives everything that is done again and again beside the calls: one loop for all workers.
//!
//! A worker says what one round does ([`Worker::run_once`]), how long it rests and what wakes it; the
//! driver repeats it, counts failures and notes the last success. A failed round waits for its retry,
//! whatever wakes the worker meanwhile. A worker that panics ends its task, which ends the process.

use std::future::{Future, pending, ready};
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::observe::metrics;

/// What a round that succeeded leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its batch was full: the next round follows at once.
    More,
    /// Nothing until the interval is over, or something wakes the worker.
    Done,
}

impl Progress {
    /// That of a round which did so much of a batch of this size.
    #[must_use]
    pub fn of<N: PartialEq + Copy>(done: N, batch_size: N) -> Self {
        if done == batch_size { Self::More } else { Self::Done }
    }
}

/// A round failed. Why is in the log already.
#[derive(Clone, Copy, Debug)]
pub struct Failed;

/// What is done again and again.
pub trait Worker: Send {
    /// Its name in the metrics.
    const NAME: &'static str;
    /// How long it rests after a round that left nothing to do.
    const INTERVAL: Duration;
    /// How long it rests after a round that failed.
    const RETRY_INTERVAL: Duration = Self::INTERVAL;
    /// How long it leaves the stores to the others after a full batch.
    const BATCH_INTERVAL: Duration = Duration::ZERO;

    /// Does what there is to do, up to one batch, and logs what failed.
    ///
    /// # Errors
    /// [`Failed`]; the next round tries again.
    fn run_once(&mut self) -> impl Future<Output = Result<Progress, Failed>> + Send;

    /// Returns when there is something to do before the interval is over. May be dropped at any time.
    fn wake_up(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// The last thing that it does, when it ends [`End::AfterCalls`].
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// When a worker ends.
#[derive(Clone, Debug)]
pub enum End {
    /// When this is set, even within a round: another replica does the rest.
    AtOnce(CancellationToken),
    /// When this is set, after the round that is under way.
    AfterRound(CancellationToken),
    /// When none of these is under way any more, after [`Worker::finish`].
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
