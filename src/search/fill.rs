//! The pass over all requests that writes the texts that are missing, and what lists show of requests that
//! an older release has written.

use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::domain::ids::{RequestId, TenantId};
use crate::domain::list::shortened;
use crate::domain::request::{self, ApprovalRequest};
use crate::domain::search::text;
use crate::ledger::{Ledger, LedgerError, SearchText};
use crate::workers::{Failed, Progress, Worker};

/// Texts to write in one statement. A document may have a MiB.
const BATCH_SIZE: usize = 16;
/// Pause between two passes. Each process makes one when it starts.
const PASS_INTERVAL: Duration = Duration::from_hours(1);

/// The worker that fills in what is missing.
#[derive(Debug)]
pub struct SearchFiller {
    ledger: Ledger,
    /// The tenant whose requests are looked at, and the last of them that was.
    tenant: String,
    after: String,
    filled: usize,
    /// When the last pass ended.
    ended_at: Option<Instant>,
}

impl SearchFiller {
    /// The worker of a ledger.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger, tenant: String::new(), after: String::new(), filled: 0, ended_at: None }
    }

    async fn look_at_page(&mut self) -> Result<Progress, LedgerError> {
        let (lacking, last) = self.ledger.unprepared(&self.tenant, &self.after).await?;
        for batch in lacking.chunks(BATCH_SIZE) {
            let began = Instant::now();
            self.fill_in(batch).await?;
            // Others get as much time as this took.
            tokio::time::sleep(began.elapsed()).await;
        }
        self.filled += lacking.len();
        if let Some(last) = last {
            self.after = last;
            return Ok(Progress::More);
        }
        self.after.clear();
        if let Some(next) = self.ledger.tenant_after(&self.tenant).await? {
            self.tenant = next;
            return Ok(Progress::More);
        }
        if self.filled > 0 {
            info!(count = self.filled, "requests can now be found by their words");
        }
        (self.tenant, self.filled) = Default::default();
        self.ended_at = Some(Instant::now());
        Ok(Progress::Done)
    }

    async fn fill_in(&self, ids: &[String]) -> Result<(), LedgerError> {
        let mut texts = Vec::new();
        let Ok(tenant) = TenantId::parse(self.tenant.as_str()) else { return Ok(()) };
        for id in ids {
            let Ok(id) = RequestId::parse(id.as_str()) else { continue };
            let row = self.ledger.document_to_prepare(tenant.as_str(), id.as_str()).await?;
            let Some(row) = row else { continue };
            let etag = row.lacks_etag.then(|| request::etag(&row.document));
            let request = ApprovalRequest::read(&id, row.document).ok();
            if let Some(etag) = etag {
                let message = request.as_ref().and_then(|request| request.message.as_deref());
                let message = message.map(shortened);
                let key = (tenant.as_str(), id.as_str());
                self.ledger.fill_in_listed(key, message.as_deref(), &etag).await?;
            }
            // A row that somebody has edited by hand is found by its id.
            let body = request.map_or_else(|| id.as_str().to_lowercase(), |request| text(&request));
            texts.push(SearchText { tenant: tenant.clone(), id, body });
        }
        self.ledger.write_search_texts(&texts).await
    }
}

impl Worker for SearchFiller {
    const NAME: &'static str = "search_fill";
    const INTERVAL: Duration = Duration::from_secs(5);
    const BATCH_INTERVAL: Duration = Duration::from_millis(200);

    async fn run_once(&mut self) -> Result<Progress, Failed> {
        if self.ended_at.is_some_and(|at| at.elapsed() < PASS_INTERVAL) {
            return Ok(Progress::Done);
        }
        self.look_at_page().await.map_err(|error| {
            debug!(%error, "the texts of requests are not looked through yet");
            Failed
        })
    }
}
