//! Runs the workers of the channels that are configured. Other settings, and the same ones after SIGHUP,
//! start all of them anew, also those that a receiver has switched off.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::notices::mail::MailChannel;
use crate::notices::sending::Sending;
use crate::notices::slack::SlackChannel;
use crate::notices::webhook::Webhook;
use crate::notices::{Channel, NoticeSettings};
use crate::observe::metrics::channel_is_gone;
use crate::state::AppState;
use crate::workers::{End, run};

/// How long the rounds that are under way may take when the service stops: less than the last round of the
/// relay waits for them.
const LAST_ROUND_TIMEOUT: Duration = Duration::from_millis(700);

/// Runs the channels until the service stops.
pub async fn run_channels(app: AppState) {
    let mut changes = app.notices.subscribe();
    loop {
        let settings = Arc::clone(&changes.borrow_and_update());
        let stopping = app.stopping.child_token();
        let mut workers = start(&app, &settings, &stopping);
        let has_changed = tokio::select! {
            reloaded = changes.changed() => reloaded.is_ok(),
            () = app.stopping.cancelled() => false,
        };
        stopping.cancel();
        let ending = async { while workers.join_next().await.is_some() {} };
        if !has_changed {
            // A receiver that hangs does not hold up the end: what was not noted is sent again.
            let _in_time = timeout(LAST_ROUND_TIMEOUT, ending).await;
            return;
        }
        ending.await;
        let gone = settings.lanes();
        let stays = app.notices.settings().lanes();
        gone.iter().filter(|lane| !stays.contains(lane)).for_each(|lane| channel_is_gone(lane));
    }
}

/// Starts a worker for each channel.
fn start(app: &AppState, settings: &NoticeSettings, stopping: &CancellationToken) -> JoinSet<()> {
    let mut channels = Channels { app, workers: JoinSet::new(), stopping };
    for webhook in &settings.webhooks {
        channels.add(Webhook::new(webhook, app.clock.clone()));
    }
    if let Some(mail) = &settings.mail {
        channels.add(MailChannel::new(mail, &settings.people));
    }
    if let Some(slack) = &settings.slack {
        let (ledger, clock) = (app.ledger.clone(), app.clock.clone());
        channels.add(SlackChannel::new(slack, &settings.people, ledger, clock));
    }
    channels.workers
}

struct Channels<'a> {
    app: &'a AppState,
    workers: JoinSet<()>,
    stopping: &'a CancellationToken,
}

impl Channels<'_> {
    /// Starts the worker of a channel that can be used.
    fn add<C: Channel>(&mut self, channel: anyhow::Result<C>) {
        match channel {
            Ok(channel) => {
                let (ledger, clock) = (self.app.ledger.clone(), self.app.clock.clone());
                let sending = Sending::new(channel, ledger, clock);
                self.workers.spawn(run(sending, End::AfterRound(self.stopping.clone())));
            }
            Err(error) => error!(error = format!("{error:#}"), "a channel cannot be used"),
        }
    }
}
