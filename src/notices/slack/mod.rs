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

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use chrono::TimeDelta;
use tokio::time::{Instant, timeout_at};

use self::api::{SlackApi, SlackError};
use self::blocks::Message;
use super::channel::{Channel, DueNotice, Lane, SendResult};
use super::notice::Notice;
use super::people::People;
use super::settings::SlackSettings;
use crate::domain::clock::Clock;
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::notice::Event;
use crate::domain::record::Record;
use crate::ledger::{Ledger, LedgerError, PostedMessage, SlackMessage};

/// How long after its beginning a round takes up another notice.
const ROUND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one round may take: less than the leases of its notices, and enough for a post that began late.
const LAST_TIMEOUT: Duration = Duration::from_secs(20);
/// The target of a row that changes what was posted about a request, and posts nothing.
pub const POSTED: &str = "posted";

/// Sends messages to Slack.
#[derive(Debug)]
pub struct SlackChannel {
    api: SlackApi,
    channels: BTreeMap<TenantId, String>,
    people: People,
    ledger: Ledger,
    clock: Clock,
}

/// Posts a notice to a channel or person, and notes nothing.
///
/// # Errors
/// Why Slack has not taken it, or why it cannot be called.
pub async fn post(
    settings: &SlackSettings,
    people: &People,
    target: &str,
    notice: &Notice,
) -> anyhow::Result<()> {
    let api = SlackApi::new(settings).context("notices.slack cannot be used")?;
    let message = Message::of(notice, people.language_of_slack(target));
    api.call("chat.postMessage", &message.to_post(target, None)).await?;
    Ok(())
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
        let channels = settings.channels.clone();
        Ok(Self { api, channels, people: people.clone(), ledger, clock })
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
                let thread = posted.iter().find(|posted| posted_to(posted) == target);
                self.post(target, notice, thread.map(|posted| &posted.message)).await.map(drop)
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
        let closed = async || {
            let record = self.ledger.find_request(tenant, request).await?;
            Ok::<_, LedgerError>(record.filter(|record| record.state != State::Pending))
        };
        let mut is_closed = closed().await?;
        if is_closed.is_none() {
            let Some(message) = self.post(target, notice, None).await? else { return Ok(()) };
            let now = self.clock.now();
            self.ledger.note_slack_message(&message, target, tenant, request, now).await?;
            is_closed = closed().await?;
        }
        // Also what an earlier try has posted and could not change any more.
        match is_closed {
            Some(record) => self.close(&outcome(notice, &record), tenant, request).await,
            None => Ok(()),
        }
    }

    /// Posts a message, into the thread of another one if that is named. Returns where it stands, as Slack
    /// names it.
    async fn post(
        &self,
        target: &str,
        notice: &Notice,
        thread: Option<&SlackMessage>,
    ) -> Result<Option<SlackMessage>, Problem> {
        let message = Message::of(notice, self.people.language_of_slack(target));
        let channel = thread.map_or(target, |thread| &*thread.channel);
        let post = message.to_post(channel, thread.map(|thread| &*thread.ts));
        let posted = self.api.call("chat.postMessage", &post).await?;
        let text =
            |field| posted.get(field).and_then(|value| value.as_str()).map(ToOwned::to_owned);
        let (channel, ts) = (text("channel"), text("ts"));
        Ok(channel.zip(ts).map(|(channel, ts)| SlackMessage { channel, ts }))
    }

    /// Puts the outcome in the place of the buttons. If the request is asked anew by now, those of the
    /// messages that were posted since stay.
    async fn close(
        &self,
        notice: &Notice,
        tenant: &TenantId,
        request: &RequestId,
    ) -> Result<(), Problem> {
        let posted = self.ledger.slack_messages(tenant, request).await?;
        if posted.is_empty() {
            return Ok(());
        }
        let record = self.ledger.find_request(tenant, request).await?;
        let is_asked_anew = record.is_some_and(|record| record.state == State::Pending);
        let of_it = |posted: &&PostedMessage| !is_asked_anew || posted.posted_at < notice.at;
        for posted in posted.iter().filter(of_it) {
            let SlackMessage { channel, ts } = &posted.message;
            let language = self.people.language_of_slack(posted_to(posted));
            let shown = Message::of(notice, language).to_update(channel, ts);
            match self.api.call("chat.update", &shown).await {
                // Somebody has deleted it, or may not change it any more: it has no use.
                Ok(_) | Err(SlackError::ForGood(_)) => {
                    self.ledger.forget_slack_message(&posted.message).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// To whom a message was posted; of one of an older release, where it stands.
fn posted_to(posted: &PostedMessage) -> &str {
    posted.target.as_deref().unwrap_or(&posted.message.channel)
}

impl Channel for SlackChannel {
    const WORKER: &'static str = "slack";

    fn lane(&self) -> Lane {
        Lane::Slack
    }

    fn allows(&self, due: &DueNotice) -> Result<(), String> {
        let DueNotice { target, notice, .. } = due;
        let is_known = target == POSTED
            || TenantId::parse(&*notice.tenant).is_ok_and(|tenant| {
                self.channels.get(&tenant) == Some(target) || self.people.has_slack(target, &tenant)
            });
        is_known.then_some(()).ok_or_else(|| {
            format!("the settings no longer have {target} for tenant {}", notice.tenant)
        })
    }

    async fn send(&self, due: &[DueNotice]) -> Vec<SendResult> {
        let (deadline, last) = (Instant::now() + ROUND_TIMEOUT, Instant::now() + LAST_TIMEOUT);
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
            let told = timeout_at(last, self.tell(one)).await;
            let told = told.unwrap_or_else(|_elapsed| {
                Err(SlackError::ForNow("Slack does not answer in time".to_owned()).into())
            });
            results.push(match told {
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
