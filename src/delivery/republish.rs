//! Publishes unheard signals again. A signal is unheard if its channel had no subscriber: an agent
//! that subscribes after making its request misses a decision that is made at once. The signal is
//! published again as soon as the channel has a subscriber, until the agent's timeout, and only
//! while the session still names its request.
//!
//! Each replica remembers the unheard signals that it sent. It finds those of other replicas, which
//! may have died, in the ledger. One command asks Redis for the subscribers of many sessions. A
//! replica claims the row in the ledger before it publishes, so that two replicas do not both
//! publish.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use tracing::{debug, info, warn};

use super::send::{Sender, Undelivered, still_names};
use crate::domain::decision::State;
use crate::domain::ids::{RequestId, SessionId};
use crate::domain::printable::printable;
use crate::domain::record::{Delivery, DeliveryReceipt, DeliveryResult};
use crate::domain::request::AGENT_TIMEOUT;
use crate::ledger::LedgerError;
use crate::observe::metrics::{self, By, Forgery};
use crate::workers::{Failed, Progress, Worker};

/// How far a scan reaches back before the start of the previous scan: longer than it takes to
/// record a delivery.
const SCAN_OVERLAP: TimeDelta = TimeDelta::seconds(10);
/// Most sessions to ask about in one command, which takes Redis 0.2 ms.
const BATCH_SIZE: usize = 1000;
/// Most signals to publish again at the same time.
const CONCURRENCY: usize = 16;

/// The result of an attempt to publish a signal again.
enum Republication {
    /// The signal was heard, or its session no longer waits for it: stop watching it.
    Finished,
    /// The signal was published, or may be published later. [`Unheard`](super::unheard::Unheard)
    /// stops watching a published signal once it was heard.
    Watched,
}

/// Publishes unheard signals again; cheap to clone.
#[derive(Clone, Debug)]
pub struct Republisher {
    /// Sends one signal.
    pub sender: Sender,
}

impl Republisher {
    /// Publishes one signal again, if its session still names its request and no other replica has
    /// claimed it.
    async fn publish_again(
        &self,
        request: &RequestId,
        session: &SessionId,
    ) -> Result<Republication, Undelivered> {
        let Some(record) = self.sender.ledger.find_request_of_redis(request).await? else {
            // This service sent the signal, so the ledger must have had its decision once.
            metrics::forged(Forgery::Signal);
            warn!(security = true, request_id = %request, session_id = printable(session.as_str()),
            "a signal was sent and the ledger does not know its decision any more: a failover of \
             the database lost it");
            return Ok(Republication::Finished);
        };
        // A row can be claimed only after the receipt of its last delivery is written.
        self.sender.ledger.write_receipt_of(&record).await?;
        let State::Decided(decision) = record.state.clone() else {
            return Ok(Republication::Finished);
        };
        if record.delivery == Delivery::Owed {
            // The relay or another replica has claimed the row and will send the signal.
            return Ok(Republication::Watched);
        }
        if record.delivery != Delivery::Sent || record.listeners != Some(0) {
            return Ok(Republication::Finished);
        }
        let seen = self.sender.courier.snapshot(&record.id, &record.session).await?;
        if !seen.pointer.allows(&record.id) {
            // The row says `Superseded` from now on, so that no replica publishes the signal, even
            // if the session should name the request again.
            if let Some(claimed) =
                self.sender.ledger.claim_unheard(&record, self.sender.clock.now()).await?
            {
                let receipt = DeliveryReceipt::of(
                    &claimed,
                    DeliveryResult::SUPERSEDED,
                    self.sender.clock.now(),
                );
                self.sender.ledger.record_receipts(&[receipt]).await?;
            }
            return Ok(Republication::Finished);
        }
        if !still_names(&record, &decision, &seen) {
            return Ok(Republication::Watched);
        }
        let Some(record) =
            self.sender.ledger.claim_unheard(&record, self.sender.clock.now()).await?
        else {
            return Ok(Republication::Watched);
        };
        crash_point!("unheard-claimed");
        let delivered = self.sender.deliver(&record, Some(seen)).await;
        metrics::delivered(By::Listener, delivered.as_ref().ok().map(|settled| settled.delivery));
        match delivered {
            Ok(settled) => {
                crash_point!("unheard-signalled");
                let listeners = settled.listeners;
                info!(request_id = %record.id, ?listeners, "somebody listens; published again");
                let now = self.sender.clock.now();
                self.sender.ledger.keep_receipt(DeliveryReceipt::of(&record, settled, now));
                Ok(Republication::Watched)
            }
            Err(error) => {
                // Otherwise the relay would have to wait until the lease runs out.
                let _given_back =
                    self.sender.ledger.postpone(&record, self.sender.clock.now()).await;
                Err(error)
            }
        }
    }

    /// Watches the unheard signals that any replica has sent since `since`. The replica that sent
    /// them may have died.
    async fn scan(&self, since: DateTime<Utc>) -> Result<(), LedgerError> {
        let room = self.sender.unheard.room();
        let limit = i64::try_from(room.min(BATCH_SIZE)).unwrap_or(0);
        let oldest = self.sender.clock.now() - AGENT_TIMEOUT;
        for record in self.sender.ledger.unheard(since, oldest, limit).await? {
            self.sender.unheard.watch(&record);
        }
        Ok(())
    }
}

impl Worker for Republisher {
    const NAME: &'static str = "republish";
    /// How often to check which watched signals are due.
    const INTERVAL: Duration = Duration::from_millis(50);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let mut outcome = Ok(Progress::Done);
        for some in self.sender.unheard.due(self.sender.clock.now()).chunks(BATCH_SIZE) {
            let sessions = some.iter().map(|(_request, session)| session.clone());
            // While Redis is out of reach, the channels have no subscribers.
            let Ok(counts) = self.sender.courier.listeners(&sessions.collect::<Vec<_>>()).await
            else {
                outcome = Err(Failed);
                continue;
            };
            let listening = some.iter().zip(counts).filter(|(_signal, count)| *count > 0);
            let requests = listening.map(|((request, session), _count)| (request, session));
            futures_util::stream::iter(requests)
                .for_each_concurrent(CONCURRENCY, async |(request, session)| {
                    match self.publish_again(request, session).await {
                        Ok(Republication::Finished) => self.sender.unheard.forget(request),
                        Ok(Republication::Watched) => {}
                        Err(error) => debug!(request_id = %request, %error, "still unheard"),
                    }
                })
                .await;
        }
        outcome
    }
}

/// The worker that finds unheard signals of other replicas in the ledger.
#[derive(Debug)]
pub struct UnheardScan {
    republisher: Republisher,
    since: DateTime<Utc>,
}

impl From<Republisher> for UnheardScan {
    fn from(republisher: Republisher) -> Self {
        let since = republisher.sender.clock.now() - AGENT_TIMEOUT;
        Self { republisher, since }
    }
}

impl Worker for UnheardScan {
    const NAME: &'static str = "unheard_scan";
    /// How often to look for unheard signals of other replicas.
    const INTERVAL: Duration = Duration::from_secs(5);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let now = self.republisher.sender.clock.now();
        self.republisher.scan(self.since).await.map_err(|error| {
            debug!(%error, "cannot look for signals that nobody heard");
            Failed
        })?;
        self.since = now - SCAN_OVERLAP;
        Ok(Progress::Done)
    }
}
