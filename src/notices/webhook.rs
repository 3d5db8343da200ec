//! Webhooks, as Standard Webhooks 1.0 describes them: a POST of JSON, signed with HMAC-SHA256.
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use indexmap::IndexMap;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::value::RawValue;

use super::channel::{Channel, DueNotice, Lane, SendResult};
use super::http;
use super::notice::Notice;
use super::settings::WebhookSettings;
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::domain::json;

/// Longest time to wait for the receiver's answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends webhooks to one endpoint.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    keys: Keys,
    settings: WebhookSettings,
    clock: Clock,
}

impl Webhook {
    /// A sender to this endpoint.
    ///
    /// # Errors
    /// When the HTTP client cannot set up TLS.
    pub fn new(settings: &WebhookSettings, clock: Clock) -> anyhow::Result<Self> {
        let client = http::client(&settings.url, SEND_TIMEOUT)
            .build()
            .with_context(|| format!("cannot send webhooks to {}", settings.name))?;
        let secrets = [Some(&settings.secret), settings.previous_secret.as_ref()];
        Ok(Self {
            client,
            keys: Keys::new(secrets.into_iter().flatten()),
            settings: settings.clone(),
            clock,
        })
    }

    async fn send_one(&self, notice: &Notice) -> SendResult {
        let (body, now) = (body(notice), self.clock.now());
        let timestamp = now.timestamp();
        let call = self
            .client
            .post(self.settings.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &notice.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.keys.sign(&notice.id, timestamp, &body))
            .body(body);
        match call.send().await {
            Ok(answer) => result(answer.status(), answer.headers(), now),
            // The address may hold a secret.
            Err(error) => {
                let why = format!("{:#}", anyhow::Error::from(error.without_url()));
                SendResult::Later { why, not_before: None }
            }
        }
    }
}

impl Channel for Webhook {
    const WORKER: &'static str = "webhooks";

    fn lane(&self) -> Lane {
        Lane::Webhook(self.settings.name.clone())
    }

    fn allows(&self, due: &DueNotice) -> Result<(), String> {
        let tenant = TenantId::parse(&*due.notice.tenant).ok();
        let is_wanted = tenant.is_some_and(|tenant| self.settings.wants(due.notice.event, &tenant));
        is_wanted.then_some(()).ok_or_else(|| {
            format!(
                "the settings no longer tell it of {} of tenant {}",
                due.notice.event.as_str(),
                due.notice.tenant
            )
        })
    }

    async fn send(&self, due: &[DueNotice]) -> Vec<SendResult> {
        join_all(due.iter().map(|due| self.send_one(&due.notice))).await
    }
}

/// What an answer means. Only 2xx says that the receiver has the notice.
fn result(status: StatusCode, headers: &HeaderMap, now: DateTime<Utc>) -> SendResult {
    let why = format!("it answered {status}");
    match status {
        StatusCode::GONE => SendResult::SwitchedOff { why },
        status if status.is_success() => SendResult::Sent,
        _ => SendResult::Later { why, not_before: retry_after(headers, now) },
    }
}

/// The time that the header `Retry-After` names, in either form.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(now + TimeDelta::seconds(seconds.into())),
        Err(_not_seconds) => DateTime::parse_from_rfc2822(text).ok().map(|at| at.to_utc()),
    }
}

/// The keys with which an endpoint's webhooks are signed.
struct Keys(Vec<hmac::Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// The keys in these secrets, which the configuration has checked.
    fn new<'a>(secrets: impl Iterator<Item = &'a SecretString>) -> Self {
        let key = |secret: &SecretString| {
            let text = secret.expose_secret();
            let bytes = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok()?;
            Some(hmac::Key::new(HMAC_SHA256, &bytes))
        };
        Self(secrets.filter_map(key).collect())
    }

    /// The header `webhook-signature`: one signature for each key.
    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let signed = format!("{id}.{timestamp}.{body}");
        let signature = |key| STANDARD.encode(hmac::sign(key, signed.as_bytes()));
        let signatures = self.0.iter().map(|key| format!("v1,{}", signature(key)));
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    timestamp: DateTime<Utc>,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    request_id: &'a str,
    tenant_id: &'a str,
    session_id: &'a str,
    user_id: Option<&'a str>,
    action_type: &'a str,
    message: Option<&'a str>,
    risk: Option<&'a str>,
    rule: Option<&'a str>,
    status: &'a str,
    expires_at: DateTime<Utc>,
    decided_by: Option<&'a str>,
    decided_via: Option<&'a str>,
    reason: Option<&'a str>,
    url: Option<&'a str>,
    context: &'a IndexMap<String, Box<RawValue>>,
}

/// The body of a webhook: every field is there, `null` if it is absent or not shown.
#[must_use]
pub fn body(notice: &Notice) -> String {
    let body = Body {
        r#type: notice.event.as_str(),
        timestamp: notice.at,
        data: Data {
            request_id: &notice.request_id,
            tenant_id: &notice.tenant,
            session_id: &notice.session,
            user_id: notice.user.as_deref(),
            action_type: &notice.action,
            message: notice.message.as_deref(),
            risk: notice.risk.as_deref(),
            rule: notice.rule.as_deref(),
            status: &notice.status,
            expires_at: notice.expires_at,
            decided_by: notice.decided_by.as_deref(),
            decided_via: notice.decided_via.as_deref(),
            reason: notice.reason.as_deref(),
            url: notice.url.as_deref(),
            context: &notice.context,
        },
    };
    json::raw(&body).get().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signatures_are_those_of_the_reference_libraries() {
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let keys = Keys::new([&secret].into_iter());
        let body = r#"{"test": 2432232314}"#;
        let signature = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");

        let other = SecretString::from("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let keys = Keys::new([&secret, &other].into_iter());
        let both = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(first, signature);
        assert!(second.starts_with("v1,") && second != signature);
        assert!(!format!("{keys:?}").contains("MfKQ"));
    }

    #[test]
    fn an_answer_says_whether_and_when_to_send_again() {
        let now = DateTime::from_timestamp(1_000_000_000, 0).unwrap();
        let with = |status: u16, after: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.extend(after.map(|after| (RETRY_AFTER, after.parse().unwrap())));
            result(StatusCode::from_u16(status).unwrap(), &headers, now)
        };
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(with(status, None), SendResult::Sent, "{status}");
        }
        assert!(matches!(with(410, None), SendResult::SwitchedOff { .. }));
        for (status, after, seconds) in [
            (301, None, None),
            (308, None, None),
            (400, None, None),
            (404, Some("x"), None),
            (429, Some("120"), Some(120)),
            (503, Some("Sun, 09 Sep 2001 01:47:40 GMT"), Some(60)),
            (500, Some("-1"), None),
        ] {
            match with(status, after) {
                SendResult::Later { not_before, .. } => {
                    let asked = not_before.map(|at| (at - now).num_seconds());
                    assert_eq!(asked, seconds, "{status} {after:?}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
    }
}
