//! The outcomes of a session, and the comments on its requests, as a stream, for agents that listen over
//! HTTP.

use std::collections::{HashMap, HashSet, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::sleep;
use tracing::debug;

use super::error::{RequestError, Result};
use super::read::may_see_record;
use super::wait::RETRY_INTERVAL;
use crate::domain::approver::Caller;
use crate::domain::comment::Comment;
use crate::domain::ids::{RequestId, SessionId, TenantId};
use crate::domain::record::Record;
use crate::domain::request::REQUEST_TTL_SECONDS;
use crate::state::AppState;
use crate::waiting::hub::Waiter;

/// Outcomes to read in one query.
const BATCH_SIZE: usize = 100;
/// How far back to look for comments that were written meanwhile: longer than a write takes, and than the
/// clocks of replicas differ.
const COMMENT_WINDOW: TimeDelta = TimeDelta::seconds(10);

/// What the stream says.
#[derive(Debug)]
pub enum StreamEvent {
    /// A request was closed.
    Outcome(Box<Record>),
    /// Somebody has commented on a request.
    Comment(Comment),
}

/// The outcomes of a session, in the order in which they were recorded, and comments. A comment that was
/// written before the decision comes before it.
#[derive(Debug)]
pub struct Outcomes {
    app: AppState,
    caller: Caller,
    tenant: TenantId,
    session: SessionId,
    wanted: Option<RequestId>,
    /// The sequence number of the last outcome that was returned.
    after: i64,
    /// Set when the client gave no sequence number: only outcomes since then that no agent has
    /// acknowledged.
    open_since: Option<DateTime<Utc>>,
    unread: std::vec::IntoIter<Record>,
    unread_comments: VecDeque<Comment>,
    /// Comments of this time and later are read.
    comments_since: DateTime<Utc>,
    /// The comments that were returned, and when each was written.
    told: HashMap<(RequestId, i64), DateTime<Utc>>,
    /// Requests of the session that the caller may not see.
    hidden: HashSet<RequestId>,
    /// The last read filled a batch, so there may be more outcomes.
    has_more: bool,
    waiter: Waiter,
}

impl Outcomes {
    /// Begins after the sequence number `after`; without one, with the outcomes that the agent may
    /// still wait for.
    ///
    /// # Errors
    /// [`RequestError::TooMany`] when too many streams are open; [`RequestError::Ledger`] when the
    /// ledger does not answer.
    pub async fn of(
        app: &AppState,
        caller: &Caller,
        session: SessionId,
        wanted: Option<RequestId>,
        after: Option<i64>,
    ) -> Result<Self> {
        let lifetime = TimeDelta::seconds(i64::try_from(REQUEST_TTL_SECONDS).unwrap_or(0));
        let mut outcomes = Self {
            waiter: app.hub.watch(&session, caller)?,
            app: app.clone(),
            caller: caller.clone(),
            tenant: caller.tenant.clone(),
            session,
            wanted,
            after: after.unwrap_or(0),
            open_since: after.is_none().then(|| app.clock.now() - lifetime),
            unread: Vec::new().into_iter(),
            unread_comments: VecDeque::new(),
            comments_since: app.clock.now() - lifetime,
            told: HashMap::new(),
            hidden: HashSet::new(),
            has_more: false,
        };
        outcomes.read().await?;
        if outcomes.after > 0 && outcomes.unread.len() == 0 {
            // The number may be of another session, or from before the ledger was restored from a
            // backup. New outcomes would stay below it, so it is lowered.
            let last = app.ledger.last_outcome(&outcomes.tenant, &outcomes.session).await?;
            outcomes.after = outcomes.after.min(last);
        }
        Ok(outcomes)
    }

    /// The next event; `None` when the service stops.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some(comment) = self.unread_comments.pop_front() {
                return Some(StreamEvent::Comment(comment));
            }
            for record in self.unread.by_ref() {
                self.after = record.sequence.unwrap_or(self.after);
                let is_wanted = self.wanted.as_ref().is_none_or(|wanted| *wanted == record.id);
                if is_wanted && !self.hidden.contains(&record.id) {
                    return Some(StreamEvent::Outcome(Box::new(record)));
                }
            }
            if !self.has_more {
                tokio::select! {
                    () = self.waiter.changed() => {}
                    () = self.app.stopping.cancelled() => return None,
                }
            }
            while let Err(error) = self.read().await {
                debug!(%error, "a stream waits for the ledger");
                tokio::select! {
                    () = sleep(RETRY_INTERVAL) => {}
                    () = self.app.stopping.cancelled() => return None,
                }
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let (app, tenant) = (self.app.clone(), self.tenant.clone());
        let (session, after, open_since) = (self.session.clone(), self.after, self.open_since);
        let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
        let (now, since) = (app.clock.now(), self.comments_since);
        let reading = async move {
            // Comments are read second, and come first: whoever decides has written theirs before.
            let outcomes = app.ledger.outcomes(&tenant, &session, after, open_since, limit).await?;
            let comments = app.ledger.comments_in(&tenant, &session, since).await?;
            Ok::<_, RequestError>((outcomes, comments))
        };
        let (read, comments) = self.app.query_for_waiter(reading).await?;
        self.hide(&read, &comments).await?;
        let wanted = self.wanted.clone();
        for comment in comments {
            let is_wanted = wanted.as_ref().is_none_or(|wanted| *wanted == comment.request);
            if !is_wanted || self.hidden.contains(&comment.request) {
                continue;
            }
            if self.told.insert(key_of(&comment), comment.at).is_none() {
                self.unread_comments.push_back(comment);
            }
        }
        self.comments_since = since.max(now - COMMENT_WINDOW);
        self.told.retain(|_comment, at| *at >= since);
        self.has_more = read.len() == BATCH_SIZE;
        self.unread = read.into_iter();
        Ok(())
    }

    /// Finds out which of the requests that were read the caller may not see under the policy file.
    async fn hide(&mut self, outcomes: &[Record], comments: &[Comment]) -> Result<()> {
        self.hidden.clear();
        if !self.app.rules.in_force().has_file() {
            return Ok(());
        }
        for record in outcomes {
            if !may_see_record(&self.app, &self.caller, record).await? {
                self.hidden.insert(record.id.clone());
            }
        }
        let mut asked = HashSet::new();
        for comment in comments.iter().filter(|comment| !self.told.contains_key(&key_of(comment))) {
            if !asked.insert(&comment.request) || self.hidden.contains(&comment.request) {
                continue;
            }
            let record = self.app.ledger.find_request(&self.tenant, &comment.request).await?;
            let may_see = match &record {
                Some(record) => may_see_record(&self.app, &self.caller, record).await?,
                None => false,
            };
            if !may_see {
                self.hidden.insert(comment.request.clone());
            }
        }
        Ok(())
    }
}

fn key_of(comment: &Comment) -> (RequestId, i64) {
    (comment.request.clone(), comment.number)
}
