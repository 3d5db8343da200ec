//! The settings of notices, checked: `public_url`, `[people.*]`, `[groups_people.*]` and `[notices]`.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use url::Url;

use super::channel::Lane;
use super::people::People;
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::notice::Event;
use crate::ledger::NOTICE;

/// Who is told, by which channels. No channel is configured by default.
#[derive(Clone, Debug, Default)]
pub struct NoticeSettings {
    /// What links begin with, without a slash at the end.
    pub public_url: Option<String>,
    /// Who can be told.
    pub people: People,
    /// `[[notices.webhook]]`
    pub webhooks: Vec<WebhookSettings>,
    /// `[notices.mail]`
    pub mail: Option<MailSettings>,
    /// `[notices.slack]`
    pub slack: Option<SlackSettings>,
}

impl NoticeSettings {
    /// Whether any channel is configured. Otherwise no event is written.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.webhooks.is_empty() || self.mail.is_some() || self.slack.is_some()
    }

    /// The lanes of the outbox that are in use: that of the events, and those of the channels.
    #[must_use]
    pub fn lanes(&self) -> Vec<String> {
        if !self.is_on() {
            return Vec::new();
        }
        let webhooks = self.webhooks.iter().map(|webhook| Lane::Webhook(webhook.name.clone()));
        let mail = self.mail.as_ref().map(|_| Lane::Mail);
        let channels = webhooks.chain(mail).chain(self.slack.as_ref().map(|_| Lane::Slack));
        std::iter::once(NOTICE.to_owned()).chain(channels.map(|lane| lane.to_string())).collect()
    }

    /// The address of a request on the page.
    #[must_use]
    pub fn link(&self, request: &RequestId) -> Option<String> {
        let base = self.public_url.as_ref()?;
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("request", request.as_str());
        Some(format!("{base}/inbox/?{}", query.finish()))
    }
}

/// One endpoint that gets webhooks.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// The name in commands, metrics and logs.
    pub name: String,
    /// Where to send to.
    pub url: Url,
    /// The content of `secret_file`: `whsec_` and base64.
    pub secret: SecretString,
    /// The content of `previous_secret_file`, while the secret is replaced.
    pub previous_secret: Option<SecretString>,
    /// The events that it gets.
    pub events: BTreeSet<Event>,
    /// The tenants whose requests it hears of; `None` for all.
    pub tenants: Option<BTreeSet<TenantId>>,
}

impl WebhookSettings {
    /// Whether it hears of this event of a request of this tenant.
    #[must_use]
    pub fn wants(&self, event: Event, tenant: &TenantId) -> bool {
        self.events.contains(&event)
            && self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }
}

/// How the mail server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailSecurity {
    /// `smtps://`: TLS from the beginning.
    Tls,
    /// `smtp://`: STARTTLS, without which nothing is sent.
    StartTls,
    /// `smtp://…?tls=none`: no TLS, on this machine only.
    None,
}

/// `[notices.mail]`
#[derive(Clone, Debug)]
pub struct MailSettings {
    /// How the server is reached.
    pub security: MailSecurity,
    /// The server's name or address.
    pub host: String,
    /// The server's port; `None` for the usual one.
    pub port: Option<u16>,
    /// The user who logs in.
    pub user: Option<String>,
    /// The content of `password_file`.
    pub password: Option<SecretString>,
    /// The content of `ca_file`: an authority that is trusted beside the system's.
    pub authority: Option<String>,
    /// The sender: an address, or a name with an address in angle brackets.
    pub from: String,
}

/// `[notices.slack]`
#[derive(Clone, Debug)]
pub struct SlackSettings {
    /// The content of `bot_token_file`.
    pub bot_token: SecretString,
    /// The content of `signing_secret_file`.
    pub signing_secret: SecretString,
    /// The id of the workspace; calls from others are refused. `None`: from all in which the app is.
    pub team: Option<String>,
    /// The channel of each tenant.
    pub channels: BTreeMap<TenantId, String>,
    /// The Web API, without a slash at the end.
    pub api_url: Url,
}
