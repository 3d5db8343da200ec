//! Changes a task: checks that the caller may write it, and lets two concurrent changes both
//! succeed.

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

/// Longest pause before a step is tried again, after another change of the task was faster.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Takes a task one step further, within its tenant's quota of bytes.
///
/// # Errors
/// [`TaskError::TooMany`] when the tenant's quota is used up; else those of [`take_step`].
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

/// Takes a task one step further. Two concurrent callers both succeed, one after the other: the
/// write succeeds only if the task is unchanged since it was read. Otherwise the task is read again
/// and the step is tried on its new state.
///
/// # Errors
/// [`TaskError::NotFound`], [`TaskError::NotTheOwner`], [`TaskError::Refused`] when the task does
/// not allow the step, [`TaskError::Ledger`] when the ledger does not answer, or with
/// [`LedgerError::Locked`] when other changes are faster for [`ledger::TIMEOUT`].
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
            // Give the other changes time to finish; each pause is longer than the one before.
            delay = (delay + Duration::from_millis(1)).min(MAX_RETRY_DELAY);
            sleep(delay).await;
        }
    };
    timeout(ledger::TIMEOUT, attempts).await.unwrap_or_else(|_elapsed| {
        Err(LedgerError::Locked("the task is too busy".to_owned()).into())
    })
}

/// Reads the task and takes the step. `None` if another call changed the task between reading and
/// writing, or if this call released it from `WAITING_APPROVAL`: the step has to be tried again.
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
        // The request that the task waits for may have expired without any call that released the
        // task.
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
