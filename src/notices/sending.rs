//! The worker of a channel: claims what is due, has it sent, and notes what became of it.
//!
//! One worker for each channel runs in every replica; a lease on the row keeps two workers from sending
//! the same notice at once. Delivery is at least once: a notice arrives twice if the replica is killed after
//! sending it and before deleting its row. What cannot be sent is sent again after a pause, for three days,
//! and then given up: its row stays until somebody sends it again. A channel that fails holds up no other.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::{error, warn};
use uuid::Uuid;

use super::channel::{Channel, DueNotice, SendResult};
use crate::domain::clock::Clock;
use crate::domain::printable::printable;
use crate::ledger::{Ledger, LedgerError};
use crate::observe::metrics::{self, NoticeResult};
use crate::workers::{Failed, Progress, Worker, doubled};

/// How long a replica holds the notices that it has claimed: longer than a channel may take to send them.
pub const LEASE: TimeDelta = TimeDelta::seconds(25);
/// How long a notice is tried.
pub const GIVE_UP_AFTER: TimeDelta = TimeDelta::days(3);
/// Longest pause before the first retry. Each further one may be twice as long.
const FIRST_RETRY_DELAY: TimeDelta = TimeDelta::seconds(2);
/// Longest pause between two retries.
const MAX_RETRY_DELAY: TimeDelta = TimeDelta::minutes(30);
/// Longest pause that a receiver may ask for.
const MAX_ASKED_DELAY: TimeDelta = TimeDelta::days(1);
/// Most of an error's text that is kept, in characters.
const MAX_ERROR_CHARS: usize = 300;

/// The worker of one channel.
#[derive(Debug)]
pub struct Sending<C> {
    channel: C,
    ledger: Ledger,
    clock: Clock,
    is_off: bool,
}

impl<C: Channel> Sending<C> {
    /// A worker that sends by this channel.
    #[must_use]
    pub fn new(channel: C, ledger: Ledger, clock: Clock) -> Self {
        metrics::notice_channel_is_off(&channel.lane().to_string(), false);
        Self { channel, ledger, clock, is_off: false }
    }

    async fn send_due(&mut self) -> Result<Progress, LedgerError> {
        let lane = self.channel.lane().to_string();
        let limit = i64::try_from(C::BATCH_SIZE).unwrap_or(1);
        let now = self.clock.now();
        let rows = self.ledger.claim_outbox(&lane, now, now + LEASE, limit).await?;
        let claimed = rows.len();
        let mut due = Vec::with_capacity(claimed);
        for row in rows {
            match serde_json::from_str(&row.payload) {
                Ok(notice) => {
                    let one = DueNotice {
                        row: row.id,
                        target: row.target,
                        attempts: row.attempts,
                        created_at: row.created_at,
                        notice,
                    };
                    match self.channel.allows(&one) {
                        Ok(()) => due.push(one),
                        Err(why) => self.give_up(one.row, &lane, &plain(&why)).await?,
                    }
                }
                // Somebody has edited the row by hand.
                Err(_unreadable) => self.give_up(row.id, &lane, "its row cannot be read").await?,
            }
        }
        if due.is_empty() {
            return Ok(Progress::of(claimed, C::BATCH_SIZE));
        }
        let mut results = self.channel.send(&due).await.into_iter();
        let (mut sent, mut kept, mut failure, mut failed) = (Vec::new(), Vec::new(), None, 0);
        for one in &due {
            let missing =
                || SendResult::Later { why: "it was not tried".to_owned(), not_before: None };
            match results.next().unwrap_or_else(missing) {
                SendResult::Sent => {
                    metrics::notice(&lane, NoticeResult::Sent);
                    sent.push(one.row);
                }
                SendResult::Later { why, not_before } => {
                    metrics::notice(&lane, NoticeResult::Failed);
                    let (why, now) = (plain(&why), self.clock.now());
                    if now - one.created_at >= GIVE_UP_AFTER {
                        self.give_up(one.row, &lane, &why).await?;
                    } else {
                        let at = retry_at(now, one.attempts, random());
                        let asked = not_before.map(|at| at.min(now + MAX_ASKED_DELAY));
                        let at = asked.map_or(at, |asked| at.max(asked));
                        // If this fails too, the notice is due again when its lease runs out.
                        let _given_back =
                            self.ledger.postpone_outbox(one.row, at, Some(&why)).await;
                        failed += 1;
                        failure = Some(why);
                    }
                }
                SendResult::GivenUp { why } => self.give_up(one.row, &lane, &plain(&why)).await?,
                SendResult::SwitchedOff { why } => {
                    kept.push(one.row);
                    self.switch_off(&lane, &plain(&why));
                }
            }
        }
        if let Some(error) = failure {
            warn!(channel = lane, failed, error, "notices were not sent; they are sent again");
        }
        if !kept.is_empty() {
            self.ledger.unclaim_outbox(&kept, self.clock.now()).await?;
        }
        if !sent.is_empty() {
            crash_point!("notice-sent");
            self.ledger.delete_outbox(&sent).await?;
        }
        // If nothing was sent, the next round waits, even after a full batch.
        Ok(if sent.is_empty() { Progress::Done } else { Progress::of(claimed, C::BATCH_SIZE) })
    }

    async fn give_up(&self, row: i64, lane: &str, why: &str) -> Result<(), LedgerError> {
        self.ledger.give_up_outbox(row, why, self.clock.now()).await?;
        metrics::notice(lane, NoticeResult::GivenUp);
        error!(
            channel = lane,
            id = row,
            error = why,
            "a notice was given up; `aura-hitl notices list --failed` shows it"
        );
        Ok(())
    }

    fn switch_off(&mut self, lane: &str, why: &str) {
        if !std::mem::replace(&mut self.is_off, true) {
            metrics::notice_channel_is_off(lane, true);
            error!(
                channel = lane,
                error = why,
                "the receiver wants no more notices: nothing is sent by this channel until a restart or \
                 SIGHUP; its notices are kept"
            );
        }
    }
}

impl<C: Channel> Worker for Sending<C> {
    const NAME: &'static str = C::WORKER;
    /// How often to look for notices.
    const INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        if self.is_off {
            return Ok(Progress::Done);
        }
        self.send_due().await.map_err(|error| {
            let channel = self.channel.lane().to_string();
            warn!(%error, channel, "the ledger does not say which notices are due, or takes no results");
            Failed
        })
    }
}

/// An error's text in one line that is not too long.
fn plain(why: &str) -> String {
    printable(why).chars().take(MAX_ERROR_CHARS).collect()
}

/// When to send a notice again after this many attempts. `random` is from 0 to 1: every replica and notice
/// has another pause, so that a receiver that comes back is not flooded.
fn retry_at(now: DateTime<Utc>, attempts: i32, random: f64) -> DateTime<Utc> {
    let longest = doubled(FIRST_RETRY_DELAY, attempts, MAX_RETRY_DELAY);
    let pause = longest.to_std().unwrap_or_default().mul_f64(random.clamp(0.0, 1.0));
    // Whole milliseconds: the ledger has no nanoseconds.
    let millis = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
    now + TimeDelta::try_milliseconds(millis).unwrap_or(longest)
}

fn random() -> f64 {
    let (bits, _) = Uuid::new_v4().as_u64_pair();
    f64::from(u32::try_from(bits >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_less_and_less_often_up_to_a_limit_and_never_all_at_once() {
        let now = DateTime::UNIX_EPOCH;
        for (attempts, seconds) in
            [(0, 2), (1, 2), (2, 4), (3, 8), (10, 1024), (11, 1800), (i32::MAX, 1800)]
        {
            for (random, share) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)] {
                let pause = retry_at(now, attempts, random) - now;
                let expected = f64::from(seconds) * share;
                let is = pause.as_seconds_f64();
                assert!((is - expected).abs() < 0.001, "{attempts} {random}: {is}");
            }
        }
        let drawn = (0..1000).map(|_| random()).collect::<Vec<_>>();
        assert!(drawn.iter().all(|one| (0.0..=1.0).contains(one)));
        assert!(drawn.iter().any(|one| *one < 0.1) && drawn.iter().any(|one| *one > 0.9));
    }
}
