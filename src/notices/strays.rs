//! Gives up what waits for a channel that the settings no longer have, so that it ends visibly: nobody claims
//! its rows, and no metric shows them.
//!
//! While a change of the settings is rolled out, another replica may already have a channel that this one does
//! not know, or still have one. So only what nobody has claimed for an hour is given up: whoever has the
//! channel tries everything at least every half hour, or holds it until later.

use std::time::Duration;

use chrono::TimeDelta;
use tracing::{error, warn};

use super::{Lane, Notices};
use crate::domain::clock::Clock;
use crate::ledger::{Ledger, LedgerError, NOTICE};
use crate::observe::metrics;
use crate::workers::{Failed, Progress, Worker};

/// How long nobody has claimed what is given up.
pub const UNCLAIMED_FOR: TimeDelta = TimeDelta::hours(1);
/// Rows to give up with one statement.
const BATCH_SIZE: i64 = 1000;
/// What the list of what was given up says of it.
const WHY: &str = "the settings no longer have this channel";

/// The worker that gives up what no channel sends.
#[derive(Debug)]
pub struct Strays {
    /// The settings in force.
    pub notices: Notices,
    /// Where the rows are.
    pub ledger: Ledger,
    /// What time it is.
    pub clock: Clock,
}

impl Strays {
    async fn give_up(&self) -> Result<(), LedgerError> {
        let settings = self.notices.settings();
        let known = settings.lanes();
        let now = self.clock.now();
        let before = now - UNCLAIMED_FOR;
        let mut last = String::new();
        while let Some(lane) = self.ledger.lane_after(&last).await? {
            // Events wait in a lane of their own while there is any channel.
            let is_ours = Lane::is_name(&lane) || lane == NOTICE;
            if is_ours && !known.contains(&lane) {
                let mut given_up = 0;
                loop {
                    let rows =
                        self.ledger.give_up_lane(&lane, before, WHY, now, BATCH_SIZE).await?;
                    given_up += rows;
                    if i64::try_from(rows).is_ok_and(|rows| rows < BATCH_SIZE) {
                        break;
                    }
                }
                if given_up > 0 {
                    metrics::notices_given_up(&lane, given_up);
                    error!(
                        channel = lane,
                        given_up,
                        error = WHY,
                        "notices were given up; `aura-hitl notices list --failed` shows them"
                    );
                }
            }
            last = lane;
        }
        Ok(())
    }
}

impl Worker for Strays {
    const NAME: &'static str = "stray_notices";
    const INTERVAL: Duration = Duration::from_mins(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        let done = self.give_up().await;
        done.map(|()| Progress::Done).map_err(|error| {
            warn!(%error, "what waits for a channel that is gone is not given up yet");
            Failed
        })
    }
}
