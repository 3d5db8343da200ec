//! What a channel does: it sends notices, and says of each what became of it.

use std::fmt;
use std::future::Future;

use chrono::{DateTime, Utc};

use super::notice::Notice;

/// The rows of the outbox that one worker sends: those of one webhook, or all mail, or all of Slack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The webhook of this name.
    Webhook(String),
    /// Mail.
    Mail,
    /// Slack.
    Slack,
}

impl Lane {
    /// `webhook`, `mail` or `slack`: the column `kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Mail => "mail",
            Self::Slack => "slack",
        }
    }

    /// Whether this is the column `lane` of a channel, whichever the settings have.
    #[must_use]
    pub fn is_name(lane: &str) -> bool {
        lane == "mail" || lane == "slack" || lane.starts_with("webhook/")
    }
}

/// `webhook/ops`, `mail`, `slack`: the column `lane`, and the name in commands and logs.
impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(name) => write!(f, "webhook/{name}"),
            Self::Mail => f.write_str("mail"),
            Self::Slack => f.write_str("slack"),
        }
    }
}

/// A notice that is due, and whose lease this process holds.
#[derive(Clone, Debug)]
pub struct DueNotice {
    /// The row of the outbox.
    pub row: i64,
    /// To whom, among the receivers of the channel: of a webhook its name, of mail a
    /// [`Recipient::target`](super::Recipient::target), of Slack the id of a channel or user.
    pub target: String,
    /// How often it was tried, this time included.
    pub attempts: i32,
    /// When the event happened, UTC.
    pub created_at: DateTime<Utc>,
    /// What to send.
    pub notice: Notice,
}

/// What became of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// The receiver has it, or it is of no use any more.
    Sent,
    /// It is sent again later.
    Later {
        /// Why it could not be sent.
        why: String,
        /// The earliest time of the next try, UTC, if the receiver named one.
        not_before: Option<DateTime<Utc>>,
    },
    /// The receiver will never take it.
    GivenUp {
        /// Why.
        why: String,
    },
    /// The receiver wants nothing from this channel any more: nothing is sent until a restart or SIGHUP.
    SwitchedOff {
        /// Why.
        why: String,
    },
}

/// A way to reach people.
pub trait Channel: Send + Sync + 'static {
    /// The name of the worker in the metrics.
    const WORKER: &'static str;
    /// How many notices to claim and to send at once.
    const BATCH_SIZE: usize = 16;

    /// The rows that it sends.
    fn lane(&self) -> Lane;

    /// Whether the settings still let it tell this receiver of this notice: they may have changed since its
    /// row was written.
    ///
    /// # Errors
    /// Why not, for the operator who reads the list of what was given up.
    fn allows(&self, due: &DueNotice) -> Result<(), String>;

    /// Sends these notices, within 20 seconds: then their leases end. The results are in the order of the
    /// notices; for one without a result it is sent again.
    fn send(&self, due: &[DueNotice]) -> impl Future<Output = Vec<SendResult>> + Send;
}
