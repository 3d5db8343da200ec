//! Changing a task: who may, and how two changes at once both land.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::error::{Result, TaskError};
use crate::domain::approver::Caller;
use crate::domain::clock::Clock;
use crate::domain::ids::TaskId;
use crate::domain::rules::may_write;
use crate::domain::task::{Task, TaskRefusal, TaskStatus, TaskStep};
use crate::ledger::{self, Ledger, LedgerError};
use crate::state::AppState;

/// Longest pause before a change that lost against another one is tried again.
const LONGEST_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Takes a task one step further, within its tenant's quota of bytes.
///
/// # Errors
/// [`TaskError`].
pub async fn change(app: &AppState, caller: &Caller, id: &TaskId, step: &TaskStep) -> Result<Task> {
    let bytes = step.size();
    if bytes > 0 {
        app.quotas.check_bytes(&app.ledger, &caller.tenant, bytes, app.clock.now()).await?;
    }
    let task = take_step(&app.ledger, caller, id, step, &app.clock).await?;
    if bytes > 0 {
        app.quotas.count_bytes(&caller.tenant, bytes).await;
    }
    Ok(task)
}

/// Takes a task one step further. Two callers at once both succeed, one after the other: a write goes
/// through only if the task is still what was read, else the step is tried on what the task has become.
///
/// # Errors
/// [`TaskError`]; [`LedgerError::Locked`] when others keep being faster for [`ledger::TIMEOUT`].
pub async fn take_step(
    ledger: &Ledger,
    caller: &Caller,
    id: &TaskId,
    step: &TaskStep,
    clock: &Clock,
) -> Result<Task> {
    let attempts = async {
        let mut delay = Duration::ZERO;
        loop {
            if let Some(task) = attempt(ledger, caller, id, step, clock).await? {
                return Ok(task);
            }
            // Let others finish first, each a little longer than before.
            delay = (delay + Duration::from_millis(1)).min(LONGEST_RETRY_DELAY);
            sleep(delay).await;
        }
    };
    timeout(ledger::TIMEOUT, attempts).await.unwrap_or_else(|_elapsed| {
        Err(LedgerError::Locked("the task is too busy".to_owned()).into())
    })
}

/// Takes the step on the task as it is now; `None` when the task has changed meanwhile.
async fn attempt(
    ledger: &Ledger,
    caller: &Caller,
    id: &TaskId,
    step: &TaskStep,
    clock: &Clock,
) -> Result<Option<Task>> {
    let before = ledger.find_task(&caller.tenant, id).await?.ok_or(TaskError::NotFound)?;
    if !may_write(Some(&before.user), caller) {
        return Err(TaskError::NotTheOwner);
    }
    let now = clock.now();
    let after = match before.after(step.clone(), now) {
        Ok(after) => after,
        // What it waited for may have expired, which nobody reports.
        Err(TaskRefusal::State(TaskStatus::WaitingApproval))
            if ledger.release_task(&caller.tenant, id, now).await? =>
        {
            return Ok(None);
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let is_written = after == before || ledger.replace_task(&before, &after).await?;
    Ok(is_written.then_some(after))
}
