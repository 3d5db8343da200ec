//! Tasks that the relay could not let go on after it had sent their signals: their rows were locked, or
//! the ledger was away. Kept in memory and tried again until it succeeds; the receipt does not wait for
//! it, so that no signal goes out twice for it. A process that is killed forgets them: such a task goes
//! on with its agent's next step.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::domain::clock::Clock;
use crate::domain::ids::{TaskId, TenantId};
use crate::ledger::Ledger;
use crate::workers::{Failed, Progress, Worker};

/// The tasks that still wait; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct WaitingTasks(Arc<Mutex<HashSet<(TenantId, TaskId)>>>);

impl WaitingTasks {
    /// Lets a task go on, now or later.
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

/// Lets the tasks go on.
#[derive(Debug)]
pub struct TaskReleaser {
    /// Those that still wait.
    pub waiting: WaitingTasks,
    /// Where they wait.
    pub ledger: Ledger,
    /// What time it is.
    pub clock: Clock,
}

impl Worker for TaskReleaser {
    const NAME: &'static str = "task_release";
    /// How often to try.
    const INTERVAL: Duration = Duration::from_millis(500);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let tasks = std::mem::take(&mut *self.waiting.tasks());
        for (tenant, task) in tasks {
            self.waiting.release(&self.ledger, &self.clock, &tenant, &task).await;
        }
        if self.waiting.tasks().is_empty() { Ok(Progress::Done) } else { Err(Failed) }
    }
}
