//! [`AppState`]: what all parts of a running service share. It holds the two stores, the clock, the
//! rules in force, and the runtime for work that must not be cut off.

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
use crate::delivery::release::WaitingTasks;
use crate::delivery::send::Sender;
use crate::delivery::unheard::Unheard;
use crate::domain::approver::Caller;
use crate::domain::audit::AuditEntry;
use crate::domain::clock::Clock;
use crate::domain::decision::State;
use crate::domain::ids::{TenantId, UserId};
use crate::domain::record::Candidate;
use crate::domain::rules::Policy;
use crate::forgery::reports::Forgeries;
use crate::forgery::watcher::Watcher;
use crate::identity::TokenVerifier;
use crate::ledger::Ledger;
use crate::ledger::known_decisions::KnownDecisions;
use crate::limits::quotas::Quotas;
use crate::limits::{LargeBodies, Limits};
use crate::notices::Notices;
use crate::permit::Rules;
use crate::search::SearchTexts;
use crate::waiting::hub::Hub;
use crate::waiting::inbox::Inbox;

/// Why work given to the runtime has no result.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum WorkError {
    /// The work was not started: too many calls are under way.
    #[error("too many calls are under way")]
    NotExecuted,
    /// The work panicked, perhaps after it wrote something. The panic is in the log.
    #[error("the work panicked")]
    OutcomeUnknown,
}

/// The shared state of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The SQL store: the record of requests, decisions and tasks.
    pub ledger: Ledger,
    /// Carries signals to agents: Redis, or this process alone.
    pub courier: Courier,
    /// The source of the current time.
    pub clock: Clock,
    /// The settings that say who may see and decide, apart from the policy file.
    pub policy: Policy,
    /// These settings, and the policy file that is in force.
    pub rules: Rules,
    /// Verifies bearer tokens.
    pub tokens: TokenVerifier,
    /// Limits how often one person may call.
    pub limits: Limits,
    /// Lets one large body of a person in at a time.
    pub large_bodies: LargeBodies,
    /// One permit for each call that may run at once. A call that finds none is answered 503 at once;
    /// a queue would only delay all later calls.
    pub call_permits: Arc<Semaphore>,
    /// How many calls may run at once.
    pub max_calls: usize,
    /// One permit for each query that woken long-polls and streams may run at once. They queue for
    /// it, so that they leave connections to the stores for other calls.
    pub wait_permits: Arc<Semaphore>,
    /// Tasks that still wait for an approval although their signal was sent.
    pub waiting_tasks: WaitingTasks,
    /// A cache of recent decisions.
    pub decisions: KnownDecisions,
    /// Reports content of Redis that contradicts the ledger.
    pub forgeries: Forgeries,
    /// Wakes the long-polls and streams of a session.
    pub hub: Hub,
    /// Tells the streams of people what has changed.
    pub inbox: Inbox,
    /// Has the texts written in which lists search words.
    pub search: SearchTexts,
    /// Limits how much a person and a tenant may register.
    pub quotas: Quotas,
    /// Records refused attempts to decide.
    pub refused_attempts: RefusedAttempts,
    /// Whether audit entries are sent to the Auth server's audit log.
    pub feeds_audit: bool,
    /// Who is told of requests, by which channels.
    pub notices: Notices,
    /// Signals that were published without a subscriber.
    pub unheard: Unheard,
    /// Compares published messages with the ledger.
    pub watcher: Watcher,
    /// Cancelled when the process is asked to stop.
    pub stopping: CancellationToken,
    /// Background work that must finish before the process ends.
    pub under_way: TaskTracker,
    /// The runtime that outlives the HTTP workers. The stores' connections belong to this runtime.
    pub runtime: Handle,
}

impl AppState {
    /// The audit entry of a write by this caller; [`AuditEntry::None`] when no audit log is configured.
    #[must_use]
    pub fn audit_entry(
        &self,
        candidate: &Candidate,
        state: &State,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> AuditEntry {
        self.audit_entry_of(candidate, state, &caller.tenant, Some(&caller.user), now)
    }

    /// The audit entry of a write by this user, or by a rule; see [`AuditEntry::of`].
    #[must_use]
    pub fn audit_entry_of(
        &self,
        candidate: &Candidate,
        state: &State,
        tenant: &TenantId,
        actor: Option<&UserId>,
        now: DateTime<Utc>,
    ) -> AuditEntry {
        if self.feeds_audit {
            AuditEntry::of(candidate, state, tenant, actor, now)
        } else {
            AuditEntry::None
        }
    }

    /// A sender of signals on this state's stores.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender {
            ledger: self.ledger.clone(),
            courier: self.courier.clone(),
            clock: self.clock.clone(),
            unheard: self.unheard.clone(),
        }
    }

    /// Why the ledger and the courier are not ready; `None` for a store that is ready.
    pub async fn check_stores(&self) -> [Option<String>; 2] {
        let (ledger, courier) = tokio::join!(self.ledger.check_writable(), self.courier.ping());
        [ledger.err().map(|why| why.to_string()), courier.err().map(|why| why.to_string())]
    }

    /// How many calls hold a permit.
    #[must_use]
    pub fn calls_under_way(&self) -> usize {
        self.max_calls.saturating_sub(self.call_permits.available_permits())
    }

    /// Takes the permit of one call. Dropping it gives it back.
    ///
    /// # Errors
    /// [`WorkError::NotExecuted`] when all permits are taken.
    pub fn acquire_call_permit(&self) -> Result<OwnedSemaphorePermit, WorkError> {
        self.call_permits.clone().try_acquire_owned().map_err(|_full| WorkError::NotExecuted)
    }

    /// Runs a call's work to its end, even if its client goes away: actix drops a handler when the
    /// client resets the connection, and a write that is cut off leaves its outcome unknown. The work
    /// holds a permit until it ends.
    ///
    /// # Errors
    /// [`WorkError::NotExecuted`] when all permits are taken; [`WorkError::OutcomeUnknown`] when the
    /// work panicked, which is a bug.
    pub async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WorkError> {
        let permit = self.acquire_call_permit()?;
        let work = async move {
            let _permit = permit;
            work.await
        };
        let work = self.under_way.spawn_on(work.in_current_span(), &self.runtime);
        work.await.map_err(|_panic| WorkError::OutcomeUnknown)
    }

    /// Runs a query for a long-poll or a stream, as soon as there is a permit for it.
    ///
    /// # Errors
    /// Those of `question`; [`WorkError::OutcomeUnknown`] when it panicked, which is a bug.
    pub async fn query_for_waiter<T: Send + 'static, E: From<WorkError> + Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        // The semaphore is never closed, so there is always a permit.
        let _permit = self.wait_permits.acquire().await;
        let asking = self.runtime.spawn(question.in_current_span());
        asking.await.map_err(|_panic| WorkError::OutcomeUnknown)?
    }
}
