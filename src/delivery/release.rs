//! Releases tasks that the relay could not release after it had sent their signals, because the row
//! was locked or the ledger was out of reach.
//!
//! The tasks are kept in memory, and each is tried again until it is released. The delivery receipt
//! is written without waiting for that, so that the signal does not go out again. A process that is
//! killed forgets its tasks; the agent's next step then releases the task.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::domain::clock::Clock;
use crate::domain::ids::{TaskId, TenantId};
use crate::ledger::Ledger;
use crate::workers::{Failed, Progress, Worker};

/// The tasks that are still to be released; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct WaitingTasks(Arc<Mutex<HashSet<(TenantId, TaskId)>>>);

impl WaitingTasks {
    /// Releases a task from `WAITING_APPROVAL`. If that fails, keeps the task for [`TaskReleaser`].
    pub async fn release(&self, ledger: &Ledger, clock: &Clock, tenant: &TenantId, task: &TaskId) {
        if let Err(error) = ledger.release_task(tenant, task, clock.now()).await {
            warn!(task_id = %task, %error, "sent, but its task still waits");
            self.tasks().insert((tenant.clone(), task.clone()));
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashSet<(TenantId, TaskId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker that releases the waiting tasks.
#[derive(Debug)]
pub struct TaskReleaser {
    /// The tasks to release.
    pub waiting: WaitingTasks,
    /// The ledger that holds the tasks.
    pub ledger: Ledger,
    /// The source of the current time.
    pub clock: Clock,
}

impl Worker for TaskReleaser {
    const NAME: &'static str = "task_release";
    /// How often to try to release the tasks.
    const INTERVAL: Duration = Duration::from_millis(500);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let tasks = std::mem::take(&mut *self.waiting.tasks());
        for (tenant, task) in tasks {
            self.waiting.release(&self.ledger, &self.clock, &tenant, &task).await;
        }
        if self.waiting.tasks().is_empty() { Ok(Progress::Done) } else { Err(Failed) }
    }
}
