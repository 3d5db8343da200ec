//! What every part of a running service shares: the two stores, the clock, the rules in force,
//! and the runtime on which everything that must not be cut short runs.

use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::audit::refused_attempts::RefusedAttempts;
use crate::courier::Courier;
use crate::delivery::receipts::Receipts;
use crate::delivery::send::Sender;
use crate::delivery::unheard::Unheard;
use crate::domain::approver::Caller;
use crate::domain::audit::AuditEntry;
use crate::domain::clock::Clock;
use crate::domain::decision::State;
use crate::domain::record::Candidate;
use crate::domain::rules::Policy;
use crate::forgery::reports::Forgeries;
use crate::forgery::watcher::Watcher;
use crate::identity::TokenVerifier;
use crate::ledger::Ledger;
use crate::ledger::known_decisions::KnownDecisions;
use crate::limits::Limits;
use crate::limits::quotas::Quotas;
use crate::waiting::hub::Hub;

/// Why work has no result.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Undone {
    /// It was not begun: too much is under way.
    #[error("too many calls are under way")]
    Busy,
    /// It ended in a panic, which is in the log.
    #[error("the work panicked")]
    Panicked,
}

/// Cheap to clone; one per process.
#[derive(Clone, Debug)]
pub struct AppState {
    /// What was decided.
    pub ledger: Ledger,
    /// How it travels.
    pub courier: Courier,
    /// What time it is.
    pub clock: Clock,
    /// Who may decide.
    pub policy: Policy,
    /// Who is calling.
    pub tokens: TokenVerifier,
    /// How much one person may ask for.
    pub limits: Limits,
    /// Room for so many calls at once. Whoever finds none is turned away at once: in a queue they
    /// would wait for nothing, and so would everybody behind them.
    pub room: Arc<Semaphore>,
    /// How many calls that room is for.
    pub most_calls: usize,
    /// Room for those who wait and were woken, to look whether there is an answer: as many at once as
    /// leave the stores to the others.
    pub turns: Arc<Semaphore>,
    /// Takes note of what was sent.
    pub receipts: Receipts,
    /// Decisions that need not be asked for again.
    pub decisions: KnownDecisions,
    /// Reports what Redis says and the ledger does not know.
    pub forgeries: Forgeries,
    /// Wakes those who wait over HTTP.
    pub hub: Hub,
    /// How much may be registered.
    pub quotas: Quotas,
    /// Takes note of refused attempts to decide.
    pub refused_attempts: RefusedAttempts,
    /// Whether the Auth server's audit log is fed.
    pub feeds_audit: bool,
    /// Signals that nobody heard.
    pub unheard: Unheard,
    /// Compares what is published with the ledger.
    pub watcher: Watcher,
    /// Set when the process is asked to stop.
    pub stopping: CancellationToken,
    /// Everything under way that must be finished before the process ends.
    pub under_way: TaskTracker,
    /// The runtime that outlives the HTTP workers; connections belong to it.
    pub runtime: Handle,
}

impl AppState {
    /// What the audit log is to be told of a write, if it is fed.
    #[must_use]
    pub fn audit_entry(
        &self,
        candidate: &Candidate,
        state: &State,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> AuditEntry {
        if self.feeds_audit {
            AuditEntry::of(candidate, state, caller, now)
        } else {
            AuditEntry::None
        }
    }

    /// What sending a signal takes.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender {
            ledger: self.ledger.clone(),
            courier: self.courier.clone(),
            clock: self.clock.clone(),
            unheard: self.unheard.clone(),
        }
    }

    /// What keeps the ledger and the courier from being ready, if anything does.
    pub async fn check_stores(&self) -> [Option<String>; 2] {
        let (ledger, courier) = tokio::join!(self.ledger.check_writable(), self.courier.ping());
        [ledger.err().map(|why| why.to_string()), courier.err().map(|why| why.to_string())]
    }

    /// Calls that are at work.
    #[must_use]
    pub fn calls_under_way(&self) -> usize {
        self.most_calls.saturating_sub(self.room.available_permits())
    }

    /// Takes up room for a call, until it is dropped.
    ///
    /// # Errors
    /// [`Undone::Busy`].
    pub fn make_room(&self) -> Result<OwnedSemaphorePermit, Undone> {
        self.room.clone().try_acquire_owned().map_err(|_full| Undone::Busy)
    }

    /// Runs a call's work to its end, even if whoever waits for it goes away: actix drops a handler
    /// when its client resets the connection, and a write that is cut off half-way is neither done
    /// nor undone. Until that end it takes up room.
    ///
    /// # Errors
    /// [`Undone`]: busy, and then nothing was begun; or a panic, which is a bug.
    pub async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Undone> {
        let room = self.make_room()?;
        let work = async move {
            let _room = room;
            work.await
        };
        let work = self.under_way.spawn_on(work.in_current_span(), &self.runtime);
        work.await.map_err(|_panic| Undone::Panicked)
    }

    /// Asks the stores for somebody who waits anyway, when it is their turn.
    ///
    /// # Errors
    /// Those of the question; [`Undone::Panicked`], which is a bug.
    pub async fn ask_in_turn<T: Send + 'static, E: From<Undone> + Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        // Never closed.
        let _turn = self.turns.acquire().await;
        let asking = self.runtime.spawn(question.in_current_span());
        asking.await.map_err(|_panic| Undone::Panicked)?
    }
}
