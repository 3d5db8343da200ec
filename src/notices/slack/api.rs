//! Slack's Web API: one call, and what its answer means.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::notices::http;
use crate::notices::settings::SlackSettings;

/// Longest time to wait for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest answer: a message of ours, with what Slack adds to it, is much shorter.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// The pause when Slack says that there were too many calls, and not for how long.
const DEFAULT_PAUSE: Duration = Duration::from_secs(30);
/// What an operator can mend, or Slack itself: the call is made again later.
const FOR_NOW: [&str; 18] = [
    "accesslimited",
    "access_denied",
    "account_inactive",
    "ekm_access_denied",
    "fatal_error",
    "internal_error",
    "invalid_auth",
    "missing_scope",
    "no_permission",
    "not_allowed_token_type",
    "not_authed",
    "org_login_required",
    "request_timeout",
    "service_unavailable",
    "team_access_not_granted",
    "team_added_to_org",
    "token_expired",
    "token_revoked",
];

/// Calls Slack.
#[derive(Clone, Debug)]
pub struct SlackApi {
    client: Client,
    base: String,
    token: SecretString,
}

/// Why a call has not done what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlackError {
    /// There were too many calls; the next one may come after this pause.
    #[error("Slack takes no more calls for {} s", .0.as_secs())]
    TooMany(Duration),
    /// It may succeed later.
    #[error("{0}")]
    ForNow(String),
    /// It will never succeed.
    #[error("Slack answers {0}")]
    ForGood(String),
}

/// Slack cannot be reached, with every cause that the client knows.
fn not_reached(error: reqwest::Error) -> SlackError {
    SlackError::ForNow(format!("{:#}", anyhow::Error::from(error.without_url())))
}

/// Reads an answer, no more of it than any answer of Slack has.
async fn read(mut answer: Response) -> Result<Value, SlackError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(not_reached)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(SlackError::ForNow("Slack's answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    let no_json = |error| SlackError::ForNow(format!("Slack's answer is no JSON: {error}"));
    serde_json::from_slice(&body).map_err(no_json)
}

impl SlackApi {
    /// The Web API with these settings.
    ///
    /// # Errors
    /// When the HTTP client cannot set up TLS.
    pub fn new(settings: &SlackSettings) -> anyhow::Result<Self> {
        let client = http::client(&settings.api_url, CALL_TIMEOUT).build()?;
        let base = settings.api_url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { client, base, token: settings.bot_token.clone() })
    }

    /// Calls a method, like `chat.postMessage`. Returns what it answers if it has succeeded.
    ///
    /// # Errors
    /// [`SlackError`]. After [`SlackError::ForNow`] the call may have been executed.
    pub async fn call(&self, method: &str, arguments: &Value) -> Result<Value, SlackError> {
        let call = self
            .client
            .post(format!("{}/{method}", self.base))
            .bearer_auth(self.token.expose_secret())
            .header(CONTENT_TYPE, "application/json; charset=utf-8")
            .body(arguments.to_string());
        let answer = call.send().await.map_err(not_reached)?;
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = answer.headers().get(RETRY_AFTER);
            let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.trim().parse().ok());
            return Err(SlackError::TooMany(seconds.map_or(DEFAULT_PAUSE, Duration::from_secs)));
        }
        if !status.is_success() {
            return Err(SlackError::ForNow(format!("Slack answers {status}")));
        }
        let answer = read(answer).await?;
        if answer.get("ok").and_then(Value::as_bool) == Some(true) {
            return Ok(answer);
        }
        let code = answer.get("error").and_then(Value::as_str).unwrap_or("without a reason");
        Err(match code {
            "ratelimited" | "rate_limited" => SlackError::TooMany(DEFAULT_PAUSE),
            code if FOR_NOW.contains(&code) => SlackError::ForNow(format!("Slack answers {code}")),
            code => SlackError::ForGood(code.to_owned()),
        })
    }
}
