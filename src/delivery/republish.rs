//! Publishes signals that nobody heard once more: an agent that subscribes after it has asked misses a
//! decision that came at once. Such a signal is published again as soon as somebody listens, for as
//! long as its agent is patient, and never to a session that waits for something else.
//!
//! Each replica remembers the unheard signals that it sent, and finds those of others, which may have
//! died, in the ledger. It asks Redis for the listeners of many sessions in one command. Whoever
//! publishes again claims the row in the ledger first, so that two replicas do not both publish.

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

/// How far a scan looks back beyond the one before: longer than a delivery takes to be noted.
const SCAN_OVERLAP: TimeDelta = TimeDelta::seconds(10);
/// Most sessions to ask about in one command: 0.2 ms of Redis' time.
const BATCH_SIZE: usize = 1000;
/// Most signals to publish again at the same time.
const CONCURRENCY: usize = 16;

/// What came of an attempt to publish a signal again.
enum Again {
    /// Its session no longer waits for it, or somebody heard it: there is nothing left to do.
    Over,
    /// It was published, to so many; or it may be tried once more.
    Watched,
}

/// What publishing again takes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Republisher {
    /// Sends.
    pub sender: Sender,
}

impl Republisher {
    /// Publishes one signal again, if its session still names its request and nobody was faster.
    async fn publish_again(
        &self,
        request: &RequestId,
        session: &SessionId,
    ) -> Result<Again, Undelivered> {
        let Some(record) = self.sender.ledger.find_request_of_redis(request).await? else {
            // This service has sent a signal whose decision is gone.
            metrics::forged(Forgery::Signal);
            warn!(security = true, request_id = %request, session_id = printable(session.as_str()),
            "a signal was sent and the ledger does not know its decision any more: a failover of \
             the database lost it");
            return Ok(Again::Over);
        };
        // Only what is noted can be claimed.
        self.sender.ledger.write_receipt_of(&record).await?;
        let State::Decided(decision) = record.state.clone() else { return Ok(Again::Over) };
        if record.delivery == Delivery::Owed {
            // The relay, or another replica, is about to send it.
            return Ok(Again::Watched);
        }
        if record.delivery != Delivery::Sent || record.listeners != Some(0) {
            return Ok(Again::Over);
        }
        let seen = self.sender.courier.snapshot(&record.id, &record.session).await?;
        if !seen.pointer.allows(&record.id) {
            // Noted for every replica: whoever makes the session name it once more wakes nobody.
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
            return Ok(Again::Over);
        }
        if !still_names(&record, &decision, &seen) {
            return Ok(Again::Watched);
        }
        let Some(record) =
            self.sender.ledger.claim_unheard(&record, self.sender.clock.now()).await?
        else {
            return Ok(Again::Watched);
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
                Ok(Again::Watched)
            }
            Err(error) => {
                // Else the relay would wait for the lease to run out.
                let _given_back =
                    self.sender.ledger.postpone(&record, self.sender.clock.now()).await;
                Err(error)
            }
        }
    }

    /// Finds the unheard signals of replicas that may have died, from `since` on.
    async fn scan(&self, since: DateTime<Utc>) -> Result<(), LedgerError> {
        let room = self.sender.unheard.room();
        let limit = i64::try_from(room.min(BATCH_SIZE)).unwrap_or(0);
        let patient = self.sender.clock.now() - AGENT_TIMEOUT;
        for record in self.sender.ledger.unheard(since, patient, limit).await? {
            self.sender.unheard.watch(&record);
        }
        Ok(())
    }
}

impl Worker for Republisher {
    const NAME: &'static str = "republish";
    /// How often to see which signals are due.
    const INTERVAL: Duration = Duration::from_millis(50);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let mut outcome = Ok(Progress::Done);
        for some in self.sender.unheard.due(self.sender.clock.now()).chunks(BATCH_SIZE) {
            let sessions = some.iter().map(|(_request, session)| session.clone());
            // While Redis is away nobody listens.
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
                        Ok(Again::Over) => self.sender.unheard.forget(request),
                        Ok(Again::Watched) => {}
                        Err(error) => debug!(request_id = %request, %error, "still unheard"),
                    }
                })
                .await;
        }
        outcome
    }
}

/// Finds the unheard signals of other replicas.
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
