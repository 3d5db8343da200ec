//! The inbox of one person as a stream: how many requests wait, and which have changed.

use std::collections::VecDeque;

use super::error::{RequestError, Result};
use crate::domain::approver::Caller;
use crate::domain::list::Status;
use crate::domain::request::Origin;
use crate::domain::rules::is_visible;
use crate::domain::ways::{PLAIN_WAYS, Way};
use crate::ledger::{Changed, Waiting};
use crate::permit::{Seen, may_see};
use crate::state::AppState;
use crate::waiting::hub::Wait;
use crate::waiting::inbox::{Counts, News, Subscription, count_waiting};

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
        let rules = app.rules.clone();
        let counting = async move {
            let waiting = count_waiting(&ledger, &tenant, &users, &rules).await;
            waiting.map_err(RequestError::from)
        };
        let waiting = app.query_for_waiter(counting).await?;
        let counts = Counts::of(&waiting, caller, &app.rules.in_force(), app.clock.now());
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
                if self.may_see(changed, &news) {
                    self.unread.push_back(InboxEvent::Request(changed.clone()));
                }
            }
            if let Some(waiting) = &news.waiting {
                self.count(waiting);
            }
        }
    }

    fn may_see(&self, changed: &Changed, news: &News) -> bool {
        let law = self.app.rules.in_force();
        let (tenant, user) = (Some(&self.caller.tenant), changed.user.as_ref());
        if !is_visible(tenant, user, &self.caller, law.settings) {
            return false;
        }
        if !law.has_file() {
            return true;
        }
        let rules = changed.binding.as_ref().and_then(|key| news.rules.get(key));
        let binding = rules.and_then(|rules| law.binding_of_rules(rules));
        let seen = Seen {
            requester: user,
            deciders: &changed.deciders,
            ways: if changed.origin == Origin::Http { &Way::ALL } else { &PLAIN_WAYS },
            created_at: changed.asked_at,
        };
        may_see(binding.as_ref(), &seen, &self.caller, self.app.clock.now())
    }

    fn count(&mut self, waiting: &Waiting) {
        // A count that began before this stream may lack its person.
        if !waiting.of.contains_key(&self.caller.user) {
            return;
        }
        let law = self.app.rules.in_force();
        let counts = Counts::of(waiting, &self.caller, &law, self.app.clock.now());
        if counts != self.counts {
            self.counts = counts;
            self.unread.push_back(InboxEvent::Counts(counts));
        }
    }
}

/// What has happened to a request that stands like this now.
#[must_use]
pub fn change(changed: &Changed) -> &'static str {
    match changed.status {
        Status::Pending if changed.is_commented => "commented",
        Status::Pending if changed.ballots > 0 => "voted",
        // Also what says something else now, or what its agent has left or come back to.
        Status::Pending => "created",
        Status::Approved | Status::Rejected | Status::Answered => "decided",
        Status::Expired => "expired",
        Status::Cancelled => "cancelled",
    }
}
