//! The inbox of one person as a stream: how many requests wait, and which have changed.

use std::collections::VecDeque;

use super::error::{RequestError, Result};
use crate::domain::approver::Caller;
use crate::domain::list::Status;
use crate::domain::rules::is_visible;
use crate::ledger::{Changed, Waiting};
use crate::state::AppState;
use crate::waiting::hub::Wait;
use crate::waiting::inbox::{Counts, Subscription};

/// What the stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboxEvent {
    /// How many requests wait for the person.
    Counts(Counts),
    /// A request that the person may see has changed.
    Request(Changed),
}

/// The stream of one person.
#[derive(Debug)]
pub struct InboxStream {
    app: AppState,
    caller: Caller,
    subscription: Subscription,
    counts: Counts,
    unread: VecDeque<InboxEvent>,
    _wait: Wait,
}

impl InboxStream {
    /// Begins with the counts.
    ///
    /// # Errors
    /// [`RequestError::TooMany`] when too many streams are open; [`RequestError::Ledger`] when the
    /// ledger does not answer.
    pub async fn of(app: &AppState, caller: &Caller) -> Result<Self> {
        let wait = app.hub.begin_wait(caller)?;
        // First the subscription: what changes while it is counted is told afterwards.
        let subscription = app.inbox.subscribe(caller, app.clock.now());
        let (ledger, tenant) = (app.ledger.clone(), caller.tenant.clone());
        let users = [caller.user.clone()];
        let counting = async move {
            let waiting = ledger.count_waiting(&tenant, &users).await;
            waiting.map_err(RequestError::from)
        };
        let waiting = app.query_for_waiter(counting).await?;
        let counts = Counts::of(&waiting, caller, app.policy);
        Ok(Self {
            app: app.clone(),
            caller: caller.clone(),
            subscription,
            counts,
            unread: VecDeque::from([InboxEvent::Counts(counts)]),
            _wait: wait,
        })
    }

    /// The next event; `None` when the service stops or the stream is too far behind.
    pub async fn next(&mut self) -> Option<InboxEvent> {
        loop {
            if let Some(event) = self.unread.pop_front() {
                return Some(event);
            }
            let news = tokio::select! {
                news = self.subscription.next() => news?,
                () = self.app.stopping.cancelled() => return None,
            };
            for changed in &news.changed {
                if self.may_see(changed) {
                    self.unread.push_back(InboxEvent::Request(changed.clone()));
                }
            }
            if let Some(waiting) = &news.waiting {
                self.count(waiting);
            }
        }
    }

    fn may_see(&self, changed: &Changed) -> bool {
        let (tenant, policy) = (Some(&self.caller.tenant), self.app.policy);
        is_visible(tenant, changed.user.as_ref(), &self.caller, policy)
    }

    fn count(&mut self, waiting: &Waiting) {
        // A count that began before this stream may lack its person.
        if !waiting.of.contains_key(&self.caller.user) {
            return;
        }
        let counts = Counts::of(waiting, &self.caller, self.app.policy);
        if counts != self.counts {
            self.counts = counts;
            self.unread.push_back(InboxEvent::Counts(counts));
        }
    }
}

/// What has happened to a request.
#[must_use]
pub fn change(changed: &Changed) -> &'static str {
    match changed.status {
        Status::Pending if changed.is_commented => "commented",
        Status::Pending => "created",
        Status::Approved | Status::Rejected | Status::Answered => "decided",
        Status::Expired => "expired",
        Status::Cancelled => "cancelled",
    }
}
