//! Tells people of requests: webhooks, mail, Slack.
//!
//! The write that causes an event also inserts a row for it into the outbox, if any channel is configured.
//! `requests::fan_out` reads the request, evaluates the policy, and replaces the row by one row for each
//! channel and recipient, which has a [`Notice`] as its payload. Each channel has a worker in every replica
//! ([`sending`]) that claims its rows under leases and hands them to the [`Channel`].
//!
//! Delivery is at least once. A notice has the same id at each retry, so receivers can drop repeats.

pub mod channel;
mod http;
pub mod mail;
pub mod notice;
pub mod people;
pub mod recipients;
pub mod sending;
pub mod settings;
pub mod slack;
pub mod strays;
pub mod webhook;
pub mod words;

pub use self::channel::{Channel, DueNotice, Lane, SendResult};
pub use self::notice::Notice;
pub use self::people::{Contact, Language, People, Recipient};
pub use self::settings::{
    MailSecurity, MailSettings, NoticeSettings, SlackSettings, WebhookSettings,
};

use std::sync::Arc;

use tokio::sync::watch;

/// The settings of notices that are in force. Cheap to clone; a reload changes all clones.
#[derive(Clone, Debug)]
pub struct Notices(watch::Sender<Arc<NoticeSettings>>);

impl Notices {
    /// These settings.
    #[must_use]
    pub fn new(settings: NoticeSettings) -> Self {
        Self(watch::Sender::new(Arc::new(settings)))
    }

    /// The settings that are in force now.
    #[must_use]
    pub fn settings(&self) -> Arc<NoticeSettings> {
        self.0.borrow().clone()
    }

    /// Puts other settings in force, or the same ones again: every channel starts anew.
    pub fn set(&self, settings: NoticeSettings) {
        self.0.send_replace(Arc::new(settings));
    }

    /// Tells of every [`Self::set`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<NoticeSettings>> {
        self.0.subscribe()
    }
}
