//! Marks deliveries as done: whoever has sent a signal hands in a mark and goes on, and all that are
//! in by then are written at once.
//!
//! A mark that is lost only means that its signal is sent again, which agents bear.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;

use crate::core::Core;
use crate::domain::decision::Mark;

/// How long to collect marks from the first one on: a write of their own for each would keep the next
/// decision waiting for the disk.
const COLLECTING: Duration = Duration::from_millis(50);
/// Most marks to write at once.
const BATCH: usize = 256;

/// Takes marks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Marks(mpsc::UnboundedSender<Mark>);

/// What [`run`] writes.
#[derive(Debug)]
pub struct HandedIn(mpsc::UnboundedReceiver<Mark>);

impl Marks {
    /// Nothing marked yet.
    #[must_use]
    pub fn new() -> (Self, HandedIn) {
        let (marks, handed_in) = mpsc::unbounded_channel();
        (Self(marks), HandedIn(handed_in))
    }

    /// Hands in a mark.
    pub fn hand_in(&self, mark: Mark) {
        let _ended = self.0.send(mark);
    }
}

/// Writes marks until the process is asked to stop and nothing is under way any more.
pub async fn run(core: Core, HandedIn(mut handed_in): HandedIn) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            _first = handed_in.recv_many(&mut batch, 1) => sleep(COLLECTING).await,
            () = core.under_way.wait() => break,
        }
        while collect(&mut handed_in, &mut batch) {
            write(&core, &mut batch).await;
        }
    }
    while collect(&mut handed_in, &mut batch) {
        write(&core, &mut batch).await;
    }
}

/// Adds what is in by now; whether there is anything to write.
fn collect(handed_in: &mut mpsc::UnboundedReceiver<Mark>, batch: &mut Vec<Mark>) -> bool {
    while batch.len() < BATCH
        && let Ok(mark) = handed_in.try_recv()
    {
        batch.push(mark);
    }
    !batch.is_empty()
}

/// Writes a batch, and empties it.
pub async fn write(core: &Core, batch: &mut Vec<Mark>) {
    let marks = std::mem::take(batch);
    let written = core.ledger.mark(&marks).await;
    crash_point!("noted");
    if let Err(error) = written {
        warn!(count = marks.len(), %error, "sent, but not noted: it will be sent again");
    }
}
