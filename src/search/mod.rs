//! The word search of lists: writes the texts of requests in which words are found.
//!
//! A text is written shortly after its request, in batches, so that the search costs no registration and
//! no decision a write. What a killed process had not written, and what an older release writes, a pass over
//! all requests fills in.

pub mod fill;

use std::collections::HashMap;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::mpsc;
use tracing::warn;

use crate::domain::ids::{RequestId, TenantId};
use crate::domain::request::ApprovalRequest;
use crate::domain::search::text;
use crate::ledger::{Ledger, SearchText};
use crate::workers::{Failed, Progress, Worker};

/// Texts that may wait to be written. What does not fit, the pass over all requests writes.
const QUEUE_SIZE: usize = 4096;
/// Texts in one statement.
const BATCH_SIZE: usize = 256;
/// How many of the latest texts to remember, so that a decision does not write its request's text again.
const MAX_REMEMBERED: u64 = 10_000;

/// Queues the texts of requests to be written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SearchTexts {
    queue: mpsc::Sender<SearchText>,
    /// The content of the latest requests whose text was queued.
    queued: Cache<(TenantId, RequestId), String>,
}

/// The receiving end of the queue, for the [`SearchWriter`].
#[derive(Debug)]
pub struct SearchQueue(mpsc::Receiver<SearchText>);

impl SearchTexts {
    /// Makes an empty queue, and returns both of its ends.
    #[must_use]
    pub fn new() -> (Self, SearchQueue) {
        let (queue, texts) = mpsc::channel(QUEUE_SIZE);
        (Self { queue, queued: Cache::new(MAX_REMEMBERED) }, SearchQueue(texts))
    }

    /// Queues the text of a request, unless it was queued with this content before. Does not wait.
    pub fn write(&self, tenant: &TenantId, request: &ApprovalRequest) {
        let key = (tenant.clone(), request.id.clone());
        if self.queued.get(&key).is_some_and(|content| content == request.content_hash) {
            return;
        }
        let text =
            SearchText { tenant: tenant.clone(), id: request.id.clone(), body: text(request) };
        if self.queue.try_send(text).is_ok() {
            self.queued.insert(key, request.content_hash.clone());
        }
    }
}

/// The worker that writes the texts of a queue.
#[derive(Debug)]
pub struct SearchWriter {
    ledger: Ledger,
    texts: mpsc::Receiver<SearchText>,
    batch: Vec<SearchText>,
}

impl SearchWriter {
    /// Makes the worker that writes the texts of a queue to a ledger.
    #[must_use]
    pub fn new(ledger: Ledger, SearchQueue(texts): SearchQueue) -> Self {
        Self { ledger, texts, batch: Vec::new() }
    }
}

impl Worker for SearchWriter {
    const NAME: &'static str = "search";
    /// Longest time between two rounds. Rounds go on while nothing is written, so that the metric of the
    /// last success stays recent.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Pause after a failed write, before the same texts are written again.
    const RETRY_INTERVAL: Duration = Duration::from_secs(1);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        if self.batch.is_empty() {
            return Ok(Progress::Done);
        }
        // Of two texts of one request the later one counts.
        let texts = self.batch.iter().map(|text| ((&text.tenant, &text.id), text));
        let texts = texts.collect::<HashMap<_, _>>().into_values().cloned().collect::<Vec<_>>();
        if let Err(error) = self.ledger.write_search_texts(&texts).await {
            warn!(%error, count = texts.len(), "new requests are not found by their words yet");
            return Err(Failed);
        }
        self.batch.clear();
        Ok(Progress::Done)
    }

    async fn wake_up(&mut self) {
        self.texts.recv_many(&mut self.batch, BATCH_SIZE).await;
    }
}
