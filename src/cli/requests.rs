//! `aura-hitl requests`: shows on a terminal what waits, for whoever is on call.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{ContentArrangement, Table, presets};

use super::{load, with_wait_notice};
use crate::api::text::{Language, Text};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::domain::list::{Listed, Status};
use crate::domain::printable::printable;
use crate::ledger::Ledger;
use crate::server::stores;

/// How often `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// The longest message in the table, in characters.
const MESSAGE_CHARS: usize = 60;
/// Clears the terminal.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Prints the requests with these statuses, once or again and again.
pub async fn run(
    file: Option<&Path>,
    statuses: &[String],
    tenant: Option<&str>,
    limit: u16,
    watch: bool,
) -> anyhow::Result<()> {
    let mut wanted = Vec::new();
    for name in statuses {
        match Status::parse(name) {
            Some(status) => wanted.push(status),
            None => bail!("--status: no request is `{name}`; there are {}", all_statuses()),
        }
    }
    let tenant = tenant.map(TenantId::parse).transpose().context("--tenant")?;
    let config = load(file)?;
    let ledger = with_wait_notice(stores::open_existing_ledger(&config)).await?;
    let language = Language::of_terminal();
    loop {
        let shown = read(&ledger, &wanted, tenant.as_ref(), limit, language).await;
        let mut output = std::io::stdout().lock();
        if watch && output.is_terminal() {
            write!(output, "{CLEAR}")?;
        }
        match shown {
            Ok(text) => writeln!(output, "{text}")?,
            // The database may come back.
            Err(error) if watch => writeln!(output, "{error}")?,
            Err(error) => return Err(error),
        }
        output.flush()?;
        drop(output);
        if !watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            _signal = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn all_statuses() -> String {
    Status::ALL.map(Status::as_str).join(", ")
}

async fn read(
    ledger: &Ledger,
    statuses: &[Status],
    tenant: Option<&TenantId>,
    limit: u16,
    language: Language,
) -> anyhow::Result<String> {
    let rows = ledger.list_for_operators(statuses, tenant, limit.into()).await?;
    Ok(table(&rows, Clock::System.now(), language))
}

/// The table, and a line below it that says how many requests it has.
fn table(rows: &[Listed], now: DateTime<Utc>, language: Language) -> String {
    let say = |en: &'static str, ko: &'static str| Text::new(en, ko).in_language(language);
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        say("status", "상태"),
        say("when", "시각"),
        say("tenant", "테넌트"),
        say("user", "사용자"),
        say("action", "작업"),
        say("message", "메시지"),
        say("decided by", "결정한 사람"),
        say("request", "요청"),
    ]);
    for row in rows {
        let name = |name: Option<&str>| printable(name.unwrap_or_default());
        table.add_row([
            row.status.as_str().to_owned(),
            when(row, now, language),
            printable(row.tenant.as_str()),
            name(row.user.as_ref().map(crate::domain::ids::UserId::as_str)),
            cut(&row.action_type),
            cut(row.message.as_deref().unwrap_or_default()),
            name(row.decided_by.as_ref().map(crate::domain::ids::UserId::as_str)),
            row.id.to_string(),
        ]);
    }
    let mut text = table.to_string();
    let time = now.format("%H:%M:%SZ");
    let count = rows.len();
    let requests = if count == 1 { "request" } else { "requests" };
    let line = Text::new(format!("{count} {requests}, {time}"), format!("요청 {count}건, {time}"));
    // Writing to a string does not fail.
    let _ = write!(text, "\n{}", line.in_language(language));
    text
}

/// An untrusted text on one line.
fn cut(text: &str) -> String {
    let text = printable(text);
    if text.chars().count() <= MESSAGE_CHARS {
        return text;
    }
    text.chars().take(MESSAGE_CHARS).chain(['…']).collect()
}

/// How long a pending request can still be decided, or when it was closed.
fn when(row: &Listed, now: DateTime<Utc>, language: Language) -> String {
    match row.closed_at {
        Some(at) if row.status != Status::Pending => at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
        _ => {
            let left = (row.expires_at - now).max(TimeDelta::zero()).num_seconds();
            let (minutes, seconds) = (left / 60, left % 60);
            let text = Text::new(
                format!("{minutes}m {seconds:02}s left"),
                format!("{minutes}분 {seconds:02}초 남음"),
            );
            text.in_language(language)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{RequestId, SessionId};
    use crate::domain::record::Ruling;
    use crate::domain::request::Origin;

    #[test]
    fn a_message_cannot_leave_its_line() {
        let now = DateTime::from_timestamp(1_706_152_860, 0).unwrap();
        let row = Listed {
            id: RequestId::parse("req_1").unwrap(),
            session: SessionId::parse("s").unwrap(),
            tenant: TenantId::parse("tenant1").unwrap(),
            user: None,
            origin: Origin::Http,
            action_type: "send_email".to_owned(),
            message: Some(format!("결재\u{1b}[2J\nnext {}", "x".repeat(80))),
            status: Status::Pending,
            created_at: now,
            asked_at: now,
            expires_at: now + TimeDelta::seconds(125),
            has_moved_on: false,
            is_asked_again: false,
            task: None,
            fingerprint: String::new(),
            etag: String::new(),
            decided_by: None,
            decided_at: None,
            reason: None,
            closed_at: None,
            ways: crate::domain::ways::PLAIN_WAYS.to_vec(),
            ruling: Ruling::default(),
        };
        let english = table(std::slice::from_ref(&row), now, Language::English);
        assert!(english.contains("결재\\u{1b}[2J\\nnext xx"), "{english}");
        assert!(
            english.contains("2m 05s left") && english.ends_with("1 request, 03:21:00Z"),
            "{english}"
        );
        assert!(!english.contains('\u{1b}'));
        let korean = table(&[row], now, Language::Korean);
        assert!(korean.contains("2분 05초 남음") && korean.contains("테넌트"), "{korean}");
    }
}
