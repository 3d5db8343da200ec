//! Marks deliveries as done: whoever has sent a signal hands in a mark and goes on. While one batch is
//! written the next gathers, so that many signals cost few statements.
//!
//! Until it is written a mark is remembered, and tried again: a signal that is taken for unsent goes
//! out once more, to an agent that may wait for something else by then. So whoever asks in this process
//! whether a row was sent has to ask here, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::warn;

use crate::core::Core;
use crate::domain::decision::{Mark, Record};
use crate::domain::ids::{RequestId, TenantId};
use crate::ledger::LedgerError;

/// Most marks to write at once.
const BATCH: usize = 256;
/// Pause before what could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Which row: ids of registered requests are unique within their tenant only.
type RequestKey = (TenantId, RequestId);

/// Takes marks; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    unwritten: Arc<Mutex<HashMap<RequestKey, Mark>>>,
    handed_in: Arc<Notify>,
}

impl Marks {
    /// Hands in a mark.
    pub fn hand_in(&self, mark: Mark) {
        self.unwritten().insert((mark.tenant.clone(), mark.request.clone()), mark);
        self.handed_in.notify_one();
    }

    /// The mark for what this row owes, if that was sent already and only the mark is not written.
    #[must_use]
    pub fn of(&self, record: &Record) -> Option<Mark> {
        let unwritten = self.unwritten();
        let key = (record.tenant.clone(), record.id.clone());
        unwritten.get(&key).filter(|mark| mark.owed_since == record.owed_since).cloned()
    }

    /// Brings a row that was read up to what is known of its delivery.
    pub fn apply(&self, record: &mut Record) {
        if let Some(mark) = self.of(record) {
            record.delivery = mark.settled.delivery;
            record.listeners = mark.settled.listeners;
            record.sent_to = mark.settled.sent_to;
            record.sent_at = Some(mark.at);
        }
    }

    fn some(&self) -> Vec<Mark> {
        self.unwritten().values().take(BATCH).cloned().collect()
    }

    /// Forgets what is written, but for what was handed in anew meanwhile.
    fn forget(&self, written: &[Mark]) {
        let mut unwritten = self.unwritten();
        for mark in written {
            let key = (mark.tenant.clone(), mark.request.clone());
            if unwritten.get(&key).is_some_and(|now| now.owed_since == mark.owed_since) {
                unwritten.remove(&key);
            }
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<RequestKey, Mark>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes marks until the process is asked to stop and nothing is under way any more.
pub async fn run(core: Core) {
    loop {
        tokio::select! {
            biased;
            () = core.marks.handed_in.notified() => {}
            () = core.under_way.wait() => break,
        }
        while !write(&core).await {
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = core.under_way.wait() => break,
            }
        }
    }
    write(&core).await;
}

/// Writes what is there; whether all of it could be.
pub async fn write(core: &Core) -> bool {
    loop {
        let marks = core.marks.some();
        if marks.is_empty() {
            return true;
        }
        let written = core.ledger.mark(&marks).await;
        crash_point!("noted");
        match written {
            Ok(()) => core.marks.forget(&marks),
            Err(error) => {
                warn!(count = marks.len(), %error, "sent, but not noted yet");
                return write_each(core, marks).await;
            }
        }
    }
}

/// Writes one by one, so that a row that somebody holds locked costs only itself. A ledger that does
/// not answer ends it.
async fn write_each(core: &Core, marks: Vec<Mark>) -> bool {
    let mut all = true;
    for mark in marks {
        match write_one(core, mark).await {
            Ok(()) => {}
            Err(LedgerError::Locked(_) | LedgerError::Inconsistent(_)) => all = false,
            Err(LedgerError::NotExecuted(_) | LedgerError::OutcomeUnknown(_)) => return false,
        }
    }
    all
}

/// Writes a mark now, for whoever must not wait for the others.
///
/// # Errors
/// [`LedgerError`]; it is tried again.
pub async fn write_one(core: &Core, mark: Mark) -> Result<(), LedgerError> {
    let mark = [mark];
    core.ledger.mark(&mark).await?;
    core.marks.forget(&mark);
    Ok(())
}
