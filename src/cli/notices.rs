//! `aura-hitl notices`: tries a channel, and shows and sends again what was given up.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use indexmap::IndexMap;
use uuid::Uuid;

use super::{load, with_wait_notice};
use crate::api::text::{Language, Text};
use crate::domain::clock::Clock;
use crate::domain::ids::RequestId;
use crate::domain::notice::Event;
use crate::domain::printable::printable;
use crate::ledger::{FailedRow, Ledger};
use crate::notices::mail::MailChannel;
use crate::notices::webhook::Webhook;
use crate::notices::{
    Channel, DueNotice, Lane, Notice, NoticeSettings, SendResult, SlackSettings, slack,
};
use crate::server::stores;

/// Sends a made-up notice by the channel of this name, of mail or Slack to this recipient. Writes nothing into the
/// ledger.
///
/// # Errors
/// One sentence, when there is no such channel or its receiver does not take the notice.
pub async fn test(file: Option<&Path>, channel: &str, to: Option<&str>) -> anyhow::Result<()> {
    let settings = load(file)?.notices;
    let clock = Clock::System;
    let notice = made_up(&settings, clock.now());
    if let Some(webhook) = settings.webhooks.iter().find(|webhook| webhook.name == channel) {
        return send(&Webhook::new(webhook, clock)?, channel, notice).await;
    }
    if let Some(mail) = settings.mail.as_ref().filter(|_| channel == "mail") {
        let to = to.context("say to whom to send it: --to user:kim")?;
        let contact = settings.people.contact_of_target(to);
        ensure!(
            contact.is_some_and(|contact| contact.mail.is_some()),
            "no {to:?} has a mail address in the settings; --to is user:KEY or group:KEY of [people.KEY] \
             or [groups_people.KEY]"
        );
        return send(&MailChannel::new(mail, &settings.people)?, to, notice).await;
    }
    if let Some(slack) = settings.slack.as_ref().filter(|_| channel == "slack") {
        let target = slack_target(&settings, slack, to)?;
        let posted = slack::post(slack, &settings.people, &target, &notice).await;
        let refused = |error: anyhow::Error| {
            anyhow!("{} did not take it: {}", Lane::Slack, printable(&format!("{error:#}")))
        };
        posted.map_err(refused)?;
        say_taken(&Lane::Slack, &notice.id);
        return Ok(());
    }
    let webhooks = settings.webhooks.iter().map(|webhook| webhook.name.as_str());
    let others = [("mail", settings.mail.is_some()), ("slack", settings.slack.is_some())];
    let others = others.into_iter().filter_map(|(name, is_set)| is_set.then_some(name));
    let names = webhooks.chain(others).collect::<Vec<_>>();
    ensure!(!names.is_empty(), "no channel is configured; docs/notices.md says how");
    bail!("no channel is named {channel:?}; there are {}", names.join(", "))
}

/// The channel or person of Slack that is named: as the settings name them, or the only channel there is.
fn slack_target(
    settings: &NoticeSettings,
    slack: &SlackSettings,
    to: Option<&str>,
) -> anyhow::Result<String> {
    let channels = slack.channels.values().collect::<BTreeSet<_>>();
    let Some(to) = to else {
        let mut channels = channels.into_iter();
        return match (channels.next(), channels.next()) {
            (Some(channel), None) => Ok(channel.clone()),
            _ => bail!("say to whom to send it: --to C0123 or --to user:kim"),
        };
    };
    if channels.iter().any(|channel| *channel == to) {
        return Ok(to.to_owned());
    }
    let contact = settings.people.contact_of_target(to);
    contact.and_then(|contact| contact.slack.clone()).with_context(|| {
        format!(
            "no {to:?} has a Slack id in the settings; --to is a channel of notices.slack.channels, or \
             user:KEY or group:KEY of [people.KEY] or [groups_people.KEY]"
        )
    })
}

/// Says that a notice was taken.
fn say_taken(name: &Lane, id: &str) {
    let text =
        Text::new(format!("{name} has taken {id}"), format!("{name}이(가) {id}을(를) 받았습니다"));
    println!("{}", text.in_language(Language::of_terminal()));
}

/// Sends one notice, and says what became of it.
async fn send(channel: &impl Channel, target: &str, notice: Notice) -> anyhow::Result<()> {
    let created_at = notice.at;
    let id = notice.id.clone();
    let due = DueNotice { row: 0, target: target.to_owned(), attempts: 1, created_at, notice };
    let result = channel.send(&[due]).await.into_iter().next().context("nothing was sent")?;
    let name = channel.lane();
    match result {
        SendResult::Sent => {
            say_taken(&name, &id);
            Ok(())
        }
        SendResult::Later { why, .. } | SendResult::GivenUp { why } => {
            bail!("{name} did not take it: {}", printable(&why))
        }
        SendResult::SwitchedOff { why } => {
            bail!("{name} wants no more notices: {}", printable(&why))
        }
    }
}

/// A notice of a request that does not exist.
fn made_up(settings: &NoticeSettings, now: DateTime<Utc>) -> Notice {
    Notice {
        id: format!("msg_{}", Uuid::new_v4().simple()),
        event: Event::Pending,
        at: now,
        tenant: "test".to_owned(),
        request_id: "req_test".to_owned(),
        session: "session_test".to_owned(),
        user: Some("test".to_owned()),
        action: "test".to_owned(),
        message: Some("This is a test of the channel; no request waits.".to_owned()),
        risk: Some("low".to_owned()),
        rule: None,
        status: "pending".to_owned(),
        expires_at: now + TimeDelta::minutes(5),
        decided_by: None,
        decided_via: None,
        reason: None,
        by: None,
        url: RequestId::parse("req_test").ok().and_then(|id| settings.link(&id)),
        context: IndexMap::new(),
        approvers: Vec::new(),
        approvals_needed: None,
        decisions: Vec::new(),
        etag: String::new(),
    }
}

async fn open(file: Option<&Path>) -> anyhow::Result<Ledger> {
    let config = load(file)?;
    with_wait_notice(stores::open_existing_ledger(&config)).await
}

/// Prints what was given up.
///
/// # Errors
/// One sentence, when the ledger does not answer.
pub async fn list(file: Option<&Path>, limit: u16) -> anyhow::Result<()> {
    let rows = open(file).await?.failed_in_outbox(limit.into()).await?;
    println!("{}", table(&rows, Language::of_terminal()));
    Ok(())
}

/// Makes one notice due again that was given up, or all of them.
///
/// # Errors
/// One sentence, when the ledger does not answer, or has no such notice.
pub async fn resend(file: Option<&Path>, id: Option<i64>) -> anyhow::Result<()> {
    let count = open(file).await?.resend(id, Clock::System.now()).await?;
    if let (Some(id), 0) = (id, count) {
        bail!(
            "no notice {id} was given up; `aura-hitl notices list --failed` shows those that were"
        );
    }
    let notices = if count == 1 { "notice is" } else { "notices are" };
    let text = Text::new(
        format!("{count} {notices} sent again"),
        format!("알림 {count}건을 다시 보냅니다"),
    );
    println!("{}", text.in_language(Language::of_terminal()));
    Ok(())
}

/// The table, and a line below it that says how many notices it has.
fn table(rows: &[FailedRow], language: Language) -> String {
    let say = |en: &'static str, ko: &'static str| Text::new(en, ko).in_language(language);
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        say("id", "번호"),
        say("channel", "채널"),
        say("to", "받는 쪽"),
        say("tenant", "테넌트"),
        say("request", "요청"),
        say("given up", "포기한 시각"),
        say("tries", "시도"),
        say("error", "오류"),
    ]);
    for row in rows {
        table.add_row([
            row.id.to_string(),
            printable(&row.lane),
            printable(&row.target),
            printable(&row.tenant_id),
            printable(&row.request_id),
            row.failed_at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
            row.attempts.to_string(),
            printable(row.error.as_deref().unwrap_or_default()),
        ]);
    }
    let count = rows.len();
    let notices = if count == 1 { "notice" } else { "notices" };
    let line = Text::new(format!("{count} {notices}"), format!("알림 {count}건"));
    format!("{table}\n{}", line.in_language(language))
}
