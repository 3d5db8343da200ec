//! What every part of a running service shares: the two stores, the clock, the rules in force,
//! and the runtime on which everything that must not be cut short runs.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::courier::Courier;
use crate::domain::clock::Clock;
use crate::domain::decision::Policy;
use crate::ledger::Ledger;

/// Work that ended in a panic; the panic itself is in the log.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the work panicked")]
pub struct Panicked;

/// Cheap to clone; one per process.
#[derive(Clone, Debug)]
pub struct Core {
    /// What was decided.
    pub ledger: Ledger,
    /// How it travels.
    pub courier: Courier,
    /// What time it is.
    pub clock: Clock,
    /// Who may decide.
    pub policy: Policy,
    /// Set when the process is asked to stop.
    pub stopping: CancellationToken,
    /// Everything under way that must be finished before the process ends.
    pub under_way: TaskTracker,
    /// The runtime that outlives the HTTP workers; connections belong to it.
    pub runtime: Handle,
}

impl Core {
    /// Runs work to its end, even if whoever waits for it goes away: actix drops a handler when
    /// its client resets the connection, and a write that is cut off half-way is neither done nor
    /// undone.
    ///
    /// # Errors
    /// [`Panicked`], which is a bug.
    pub async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Panicked> {
        let work = self.under_way.spawn_on(work.in_current_span(), &self.runtime);
        work.await.map_err(|_panic| Panicked)
    }
}
