//! The changes of keys that Redis announces. They are collected here until the next round takes them.
//! Between two subscriptions some may have been missed: a pass over all keys finds those, whenever
//! `subscription` has another value than before.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::debug;

use crate::courier::{Changed, Courier, Unavailable};
use crate::domain::ids::RequestId;

/// Most announced changes to keep. Beyond that a pass finds them.
const MAX_CHANGES: usize = 100_000;
/// Pause before another subscription after one was lost or refused.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the subscription is checked.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// The changes that Redis has announced and that are still to be looked at.
#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: Mutex<(VecDeque<RequestId>, HashSet<String>)>,
    pub(super) added: Notify,
    /// The number of the subscription that holds; `NO_SUBSCRIPTION` if none does, or something was
    /// dropped since it began.
    subscription: AtomicU64,
    /// The number of the last subscription.
    last: AtomicU64,
}

/// The number that stands for no subscription.
pub(super) const NO_SUBSCRIPTION: u64 = 0;

impl Changes {
    /// The number of the subscription that holds. Each has its own, so that one which was lost and
    /// made again between two looks is noticed.
    pub(super) fn subscription(&self) -> u64 {
        self.subscription.load(Ordering::Relaxed)
    }

    /// Notes that changes may be missed from now on.
    pub(super) fn lose(&self) {
        self.subscription.store(NO_SUBSCRIPTION, Ordering::Relaxed);
    }

    fn begin(&self) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.subscription.store(number, Ordering::Relaxed);
    }

    fn add(&self, changed: Changed) {
        let mut waiting = self.waiting();
        if waiting.0.len() + waiting.1.len() >= MAX_CHANGES {
            self.lose();
            return;
        }
        match changed {
            // One write is announced twice, as `set` and as `expire`.
            Changed::Request(id) if waiting.0.back() == Some(&id) => return,
            Changed::Request(id) => waiting.0.push_back(id),
            Changed::Session(session) => {
                waiting.1.insert(session);
            }
        }
        drop(waiting);
        self.added.notify_one();
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, (VecDeque<RequestId>, HashSet<String>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscribes to the changes, again after each loss.
pub(super) async fn listen(courier: Courier, changes: Arc<Changes>) {
    loop {
        if let Err(error) = listen_once(&courier, &changes).await {
            debug!(%error, "no changes of keys are heard");
        }
        changes.lose();
        sleep(RESUBSCRIBE_INTERVAL).await;
    }
}

async fn listen_once(courier: &Courier, changes: &Changes) -> Result<(), Unavailable> {
    let Some(mut heard) = courier.listen_to_changes().await? else { return Ok(()) };
    changes.begin();
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = heard.next() => {
                if let Some(key) = next? {
                    changes.add(key);
                }
            }
            _now = pings.tick() => {
                heard.ping().await?;
                if changes.subscription() == NO_SUBSCRIPTION {
                    // Too many at once. Another subscription begins with a pass.
                    return Ok(());
                }
            }
        }
    }
}
