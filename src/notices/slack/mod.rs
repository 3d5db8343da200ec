//! Tells people in Slack: messages with buttons where a decision is asked for, and the outcome in their
//! place once there is one. Clicks come back through `api::slack`.
//!
//! A message that asks is noted in the ledger as soon as it is posted; then its request is read again. So
//! whoever closes the request finds the message, or whoever posts it finds the request closed. If the
//! process dies between posting and noting, the message is posted again, and the buttons of the first are
//! refused: a click counts for noted messages only.

pub mod api;
pub mod blocks;
pub mod signature;

use std::time::Duration;

use anyhow::Context as _;
use chrono::TimeDelta;
use tokio::time::Instant;

use self::api::{SlackApi, SlackError};
use self::blocks::Message;
use super::channel::{Channel, DueNotice, Lane, SendResult};
use super::notice::Notice;
use super::people::{Language, People};
use super::settings::SlackSettings;
use crate::domain::clock::Clock;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::notice::Event;
use crate::domain::record::Record;
use crate::ledger::{Ledger, LedgerError, SlackMessage};

/// How long one round may take: less than the leases of its notices.
const ROUND_TIMEOUT: Duration = Duration::from_secs(10);
/// The target of a row that changes what was posted about a request, and posts nothing.
pub const POSTED: &str = "posted";

/// Sends messages to Slack.
#[derive(Debug)]
pub struct SlackChannel {
    api: SlackApi,
    people: People,
    ledger: Ledger,
    clock: Clock,
}

/// Why a notice could not be told.
enum Problem {
    Slack(SlackError),
    Ledger(LedgerError),
}

impl From<SlackError> for Problem {
    fn from(error: SlackError) -> Self {
        Self::Slack(error)
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl SlackChannel {
    /// A channel with these settings.
    ///
    /// # Errors
    /// When the HTTP client cannot set up TLS.
    pub fn new(
        settings: &SlackSettings,
        people: &People,
        ledger: Ledger,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let api = SlackApi::new(settings).context("notices.slack cannot be used")?;
        Ok(Self { api, people: people.clone(), ledger, clock })
    }

    async fn tell(&self, due: &DueNotice) -> Result<(), Problem> {
        let DueNotice { target, notice, .. } = due;
        let (Ok(tenant), Ok(request)) =
            (TenantId::parse(&*notice.tenant), RequestId::parse(&*notice.request_id))
        else {
            return Err(SlackError::ForGood("nothing: its notice cannot be read".to_owned()).into());
        };
        match notice.event {
            Event::Pending | Event::Reminder | Event::Escalated => {
                self.ask(target, notice, &tenant, &request).await
            }
            Event::Decided | Event::Expired | Event::Cancelled => {
                if target == POSTED {
                    return self.close(notice, &tenant, &request).await;
                }
                self.post(target, notice, None).await.map(drop)
            }
            Event::Commented => {
                let posted = self.ledger.slack_messages(&tenant, &request).await?;
                let thread = posted.iter().find(|message| message.channel == *target);
                self.post(target, notice, thread.map(|message| &*message.ts)).await.map(drop)
            }
        }
    }

    /// Asks for a decision, if one is still missing.
    async fn ask(
        &self,
        target: &str,
        notice: &Notice,
        tenant: &TenantId,
        request: &RequestId,
    ) -> Result<(), Problem> {
        let is_open = |record: &Record| record.state == State::Pending;
        if !self.ledger.find_request(tenant, request).await?.as_ref().is_some_and(is_open) {
            return Ok(());
        }
        let Some(message) = self.post(target, notice, None).await? else { return Ok(()) };
        self.ledger.note_slack_message(&message, tenant, request, self.clock.now()).await?;
        match self.ledger.find_request(tenant, request).await? {
            Some(record) if !is_open(&record) => {
                self.close(&outcome(notice, &record), tenant, request).await
            }
            _ => Ok(()),
        }
    }

    /// Posts a message. Returns where it stands, as Slack names it.
    async fn post(
        &self,
        target: &str,
        notice: &Notice,
        thread: Option<&str>,
    ) -> Result<Option<SlackMessage>, Problem> {
        let message = Message::of(notice, self.language(target));
        let posted = self.api.call("chat.postMessage", &message.to_post(target, thread)).await?;
        let text =
            |field| posted.get(field).and_then(|value| value.as_str()).map(ToOwned::to_owned);
        let (channel, ts) = (text("channel"), text("ts"));
        Ok(channel.zip(ts).map(|(channel, ts)| SlackMessage { channel, ts }))
    }

    /// Puts the outcome in the place of the buttons.
    async fn close(
        &self,
        notice: &Notice,
        tenant: &TenantId,
        request: &RequestId,
    ) -> Result<(), Problem> {
        for message in self.ledger.slack_messages(tenant, request).await? {
            let SlackMessage { channel, ts } = &message;
            let shown = Message::of(notice, self.language(channel)).to_update(channel, ts);
            match self.api.call("chat.update", &shown).await {
                // Somebody has deleted it, or may not change it any more: it has no use.
                Ok(_) | Err(SlackError::ForGood(_)) => {
                    self.ledger.forget_slack_message(&message).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The language of whoever has this id.
    fn language(&self, target: &str) -> Language {
        self.people.language_of_slack(target)
    }
}

impl Channel for SlackChannel {
    const WORKER: &'static str = "slack";

    fn lane(&self) -> Lane {
        Lane::Slack
    }

    async fn send(&self, due: &[DueNotice]) -> Vec<SendResult> {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        let mut results = Vec::with_capacity(due.len());
        let mut pause = None::<SendResult>;
        for one in due {
            if Instant::now() >= deadline {
                break;
            }
            // Slack counts the calls of all.
            if let Some(pause) = &pause {
                results.push(pause.clone());
                continue;
            }
            let later = |why: String| SendResult::Later { why, not_before: None };
            results.push(match self.tell(one).await {
                Ok(()) => SendResult::Sent,
                Err(Problem::Ledger(error)) => later(error.to_string()),
                Err(Problem::Slack(error)) => match error {
                    SlackError::ForGood(_) => SendResult::GivenUp { why: error.to_string() },
                    SlackError::ForNow(why) => later(why),
                    SlackError::TooMany(wait) => {
                        let wait = TimeDelta::from_std(wait).unwrap_or_default();
                        let not_before = self.clock.now().checked_add_signed(wait);
                        let result = SendResult::Later { why: error.to_string(), not_before };
                        pause = Some(result.clone());
                        result
                    }
                },
            });
        }
        results
    }
}

/// The notice of what has become of a request that this notice asks for.
fn outcome(notice: &Notice, record: &Record) -> Notice {
    let decision = record.state.decision();
    let event = match record.state {
        State::Expired => Event::Expired,
        State::Cancelled => Event::Cancelled,
        State::Pending | State::Decided(_) => Event::Decided,
    };
    Notice {
        event,
        status: record.state.as_str().to_owned(),
        decided_by: decision.map(|decision| decision.by.to_string()),
        decided_via: decision.map(|_| record.ruling.via.as_str().to_owned()),
        ..notice.clone()
    }
}
