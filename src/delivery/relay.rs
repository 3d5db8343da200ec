//! The relay: sends the signals that are still owed. The call that decided a request sends its
//! signal at once; the signal stays owed if Redis was out of reach or the process died.
//!
//! One relay runs in every replica. A lease on the row keeps two relays from sending the same
//! signal at once. Delivery is at least once: a signal goes out twice if the process is killed
//! after sending it and before recording that.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use tracing::{Instrument as _, Span, info, warn};

use super::release::WaitingTasks;
use super::send::Sender;
use crate::domain::record::{Delivery, DeliveryReceipt, Record};
use crate::ledger::{LEASE, LOST_AT_ONCE, LedgerError};
use crate::observe::metrics::{self, By};
use crate::observe::traces;
use crate::workers::{Failed, Progress, Worker};

/// Rows to claim at once: as many as can be sent within one lease, even if each call to Redis times
/// out once.
const BATCH_SIZE: usize = 32;
/// Signals to send at the same time.
const CONCURRENCY: usize = 16;
/// How long to look for lost signals after the replication ids of Redis have changed: longer than
/// it takes to record a delivery that was under way at the change.
const LOSS_WATCH_TIMEOUT: TimeDelta = TimeDelta::seconds(10);
/// Longest pause before a failed delivery is tried again. It is short, so that signals go out soon
/// after Redis is back.
const MAX_RETRY_DELAY: TimeDelta = TimeDelta::milliseconds(2000);

/// The number of signals in one round, by their result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Signals that were delivered.
    pub sent: usize,
    /// Signals that will never be delivered, because their session has moved on.
    pub superseded: usize,
    /// Signals that are still owed.
    pub failed: usize,
}

/// Sends owed signals; cheap to clone.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Sends one signal.
    pub sender: Sender,
    /// The tasks that could not be released after their signals were sent.
    pub tasks: WaitingTasks,
}

/// The worker that runs the relay and watches Redis for data loss.
#[derive(Debug)]
pub struct RelayWorker {
    relay: Relay,
    watch: Watch,
}

impl From<Relay> for RelayWorker {
    fn from(relay: Relay) -> Self {
        Self { relay, watch: Watch::default() }
    }
}

impl Worker for RelayWorker {
    const NAME: &'static str = "relay";
    /// How often to look for owed signals.
    const INTERVAL: Duration = Duration::from_millis(500);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let (looked, round) =
            tokio::join!(self.watch.look(&self.relay.sender), self.relay.run_once());
        let looked = looked
            .inspect_err(|error| warn!(%error, "the relay cannot mark lost signals as owed again"));
        let round = round.inspect_err(|error| warn!(%error, "the relay cannot read what is owed"));
        match (looked, round) {
            (Ok(()), Ok(round)) => Ok(Progress::of(round.sent + round.superseded, BATCH_SIZE)),
            _ => Err(Failed),
        }
    }
}

/// Watches the replication ids of Redis. They change when Redis is wiped or restarted, or when a
/// replica takes its master's place. Then the watch marks the signals that Redis may have lost as
/// owed again. Every replica of the service watches; a signal that one of them has marked is not
/// marked again by the others.
#[derive(Debug, Default)]
struct Watch {
    /// The replication ids that the last call found, sorted.
    replication_ids: Vec<String>,
    /// When to stop looking for lost signals after the last change.
    until: DateTime<Utc>,
}

impl Watch {
    async fn look(&mut self, sender: &Sender) -> Result<(), LedgerError> {
        let Ok(mut replication_ids) = sender.courier.replication_ids().await else { return Ok(()) };
        let now = sender.clock.now();
        replication_ids.sort();
        if replication_ids.is_empty()
            || (replication_ids == self.replication_ids && now > self.until)
        {
            return Ok(());
        }
        loop {
            let lost = sender.ledger.owe_lost(&replication_ids, now).await?;
            if lost > 0 {
                info!(lost, "Redis may have lost signals; they are owed again");
            }
            if lost < u64::from(LOST_AT_ONCE) {
                break;
            }
        }
        if replication_ids != self.replication_ids {
            (self.replication_ids, self.until) = (replication_ids, now + LOSS_WATCH_TIMEOUT);
        }
        Ok(())
    }
}

impl Relay {
    /// Claims the rows whose delivery is due, and sends their signals. Claims no rows while the
    /// courier is out of reach, because a lease on them would only delay their delivery.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn run_once(&self) -> Result<Round, LedgerError> {
        if self.sender.courier.ping().await.is_err() {
            return Ok(Round::default());
        }
        let limit = i64::try_from(BATCH_SIZE).unwrap_or(0);
        let due = self.sender.ledger.claim_owed(self.sender.clock.now(), limit).await?;
        if !due.is_empty() {
            crash_point!("relay-claimed");
        }
        // This process has made these deliveries already. Only their receipts are still unwritten.
        let (noted_later, due): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|record| record.delivery != Delivery::Owed);
        let claimed = due.len();
        let delivered = futures_util::stream::iter(due)
            .map(|record| self.send_one(record))
            .buffer_unordered(CONCURRENCY)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        let count = |which| delivered.iter().filter(|delivery| **delivery == which).count();
        let round = Round {
            sent: count(Delivery::Sent),
            superseded: count(Delivery::Superseded),
            failed: claimed - delivered.len(),
        };
        if !(delivered.is_empty() && noted_later.is_empty()) {
            self.sender.ledger.write_receipts().await;
        }
        Ok(round)
    }

    async fn send_one(&self, record: Record) -> Option<Delivery> {
        let now = self.sender.clock.now();
        let span = if traces::is_enabled() {
            // If the ledger does not answer, the span starts a trace of its own.
            let cause =
                self.sender.ledger.trace_parent(&record.tenant, &record.id).await.ok().flatten();
            traces::linked("relay.send", cause)
        } else {
            Span::none()
        };
        let delivered = self.sender.deliver(&record, None).instrument(span).await;
        metrics::delivered(By::Relay, delivered.as_ref().ok().map(|settled| settled.delivery));
        match delivered {
            Ok(settled) => {
                crash_point!("relay-signalled");
                let delivery = settled.delivery;
                info!(request_id = %record.id, ?delivery, "the relay delivered what was owed");
                // Keep the receipt before releasing the task: without it the signal would go out
                // again.
                self.sender.ledger.keep_receipt(DeliveryReceipt::of(&record, settled, now));
                // The process that decided the request may have died before it released the task.
                let Sender { ledger, clock, .. } = &self.sender;
                self.tasks.release(ledger, clock, &record.tenant, &record.task).await;
                Some(delivery)
            }
            Err(error) => {
                warn!(request_id = %record.id, %error, "a signal is still owed");
                let age = now - record.owed_since;
                let pause = (age / 2).clamp(TimeDelta::milliseconds(100), MAX_RETRY_DELAY);
                // If this fails too, the row is due again when its lease runs out.
                let _given_back =
                    self.sender.ledger.postpone(&record, now + pause.min(LEASE)).await;
                None
            }
        }
    }
}
