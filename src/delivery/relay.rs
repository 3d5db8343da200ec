//! The relay: sends what is owed and was not sent by whoever decided it, because Redis was away or
//! the process died. One runs in every replica; leases keep two from sending the same at once.
//!
//! A signal may go out twice (sent, then killed before that was noted), never not at all.

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

/// Rows to claim at once: as many as can be sent within one lease even if each call times out
/// once.
const BATCH_SIZE: usize = 32;
/// Rows to send at the same time.
const CONCURRENCY: usize = 16;
/// How long to look for lost signals after Redis has changed: longer than what was on its way then
/// takes to be noted.
const LOSS_WATCH_TIMEOUT: TimeDelta = TimeDelta::seconds(10);
/// Longest pause before a row is tried again; short, so that signals go out soon after Redis is
/// back.
const LONGEST_RETRY_DELAY: TimeDelta = TimeDelta::milliseconds(2000);

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Delivered.
    pub sent: usize,
    /// Not delivered and never to be: the session has moved on.
    pub superseded: usize,
    /// Still owed.
    pub failed: usize,
}

/// Sends what is owed; cheap to clone.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Sends.
    pub sender: Sender,
    /// The tasks that could not be let go on yet.
    pub tasks: WaitingTasks,
}

/// The relay as a worker, which also watches Redis.
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
            .inspect_err(|error| warn!(%error, "the relay cannot owe again what Redis has lost"));
        let round = round.inspect_err(|error| warn!(%error, "the relay cannot read what is owed"));
        match (looked, round) {
            (Ok(()), Ok(round)) => Ok(Progress::of(round.sent + round.superseded, BATCH_SIZE)),
            _ => Err(Failed),
        }
    }
}

/// Watches for a Redis that is not the one it was: wiped, restarted, or a replica in its master's
/// place. It may have lost what was sent, which is owed again then. Every replica watches, and what
/// one owes again, the others find owed.
#[derive(Debug, Default)]
struct Watch {
    replication_ids: Vec<String>,
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
    /// Claims what is due and sends it. Does nothing while the courier is out of reach, so that no
    /// leases are burnt.
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
        // What this process has sent and not noted yet needs no more than the note.
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
            // Without it, it is still a trace.
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
                // The receipt first: without it the signal would go out once more.
                self.sender.ledger.keep_receipt(DeliveryReceipt::of(&record, settled, now));
                // Whoever decided may have died before looking at the task again.
                let Sender { ledger, clock, .. } = &self.sender;
                self.tasks.release(ledger, clock, &record.tenant, &record.task).await;
                Some(delivery)
            }
            Err(error) => {
                warn!(request_id = %record.id, %error, "a signal is still owed");
                let age = now - record.owed_since;
                let pause = (age / 2).clamp(TimeDelta::milliseconds(100), LONGEST_RETRY_DELAY);
                // If this fails too, the lease runs out by itself.
                let _given_back =
                    self.sender.ledger.postpone(&record, now + pause.min(LEASE)).await;
                None
            }
        }
    }
}
