//! Records in the ledger what a round has found, in batches.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use super::leading::{Again, BATCH_SIZE, IntakeError, Leading, ToWrite, Writes};
use crate::ledger::{AskedAgain, SeenRequest, SeenRow};
use crate::observe::metrics;
use crate::requests::notify::notify;
use crate::state::AppState;

/// The pause after each write, in times of what the write took, and its longest: 10,000 requests are
/// written within 30 s all the same.
const WRITE_PAUSE: u32 = 4;
const MAX_WRITE_PAUSE: Duration = Duration::from_millis(150);
/// Most bytes of documents to write in one statement.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How often to note that an agent has asked again, while the ledger refuses that.
const MAX_REFUSALS: u32 = 3;

impl Leading {
    /// Writes what a round has found.
    pub(super) async fn write(
        &mut self,
        app: &AppState,
        writes: Writes,
    ) -> Result<(), IntakeError> {
        let Writes { mut seen, refreshed, gone, mut absent, answered, turned } = writes;
        while !seen.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for next in seen.iter().take(BATCH_SIZE) {
                bytes += next.seen.request.document.len();
                if count > 0 && bytes > BATCH_BYTES {
                    break;
                }
                count += 1;
            }
            let rest = seen.split_off(count);
            let batch = mem::replace(&mut seen, rest);
            let began = Instant::now();
            self.write_seen(app, batch).await?;
            // Meanwhile the decisions have the stores for themselves.
            sleep((began.elapsed() * WRITE_PAUSE).min(MAX_WRITE_PAUSE)).await;
        }
        let (mut unwritten, refreshed): (Vec<_>, Vec<_>) =
            refreshed.into_iter().map(|row| (row.before, row.after)).unzip();
        let mut written = HashSet::new();
        for rows in refreshed.chunks(BATCH_SIZE) {
            written.extend(app.ledger.refresh_seen(rows).await?);
        }
        unwritten.retain(|row| !written.contains(&row.id));
        for row in &turned {
            app.inbox.announce(&row.tenant, &row.id);
        }
        let mut closed = HashSet::new();
        for gone in gone.chunks(BATCH_SIZE) {
            for record in app.ledger.close_gone(gone, app.clock.now()).await? {
                notify(app, &record);
                closed.insert(record.id);
            }
        }
        absent.retain(|row| !closed.contains(&row.id));
        unwritten.extend(absent);
        self.keep_unwritten(app, unwritten).await?;
        if !answered.is_empty() {
            app.ledger.forget_asked_again(&answered).await?;
        }
        // Those that their sessions name again.
        let named = turned.into_iter().filter(|row| !row.has_moved_on);
        self.decide_named(app, named.map(|row| (row.tenant, row.id)).collect()).await
    }

    /// Keeps those requests that are still pending in the ledger, as the ledger has them: they were to be
    /// closed or changed, and somebody had their rows locked. They are written when they are read again.
    async fn keep_unwritten(
        &mut self,
        app: &AppState,
        unwritten: Vec<SeenRow>,
    ) -> Result<(), IntakeError> {
        if unwritten.is_empty() {
            return Ok(());
        }
        let ids = unwritten.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
        let pending = app.ledger.still_pending(&ids).await?.into_iter().collect::<HashSet<_>>();
        let due = Instant::now() + self.pending_interval();
        for row in unwritten.into_iter().filter(|row| pending.contains(&row.id)) {
            self.keep(row, None, due);
        }
        Ok(())
    }

    async fn write_seen(&mut self, app: &AppState, batch: Vec<ToWrite>) -> Result<(), IntakeError> {
        // One request may have been read twice in a round; the later one counts.
        let mut latest = HashMap::new();
        for one in batch {
            latest.insert(one.seen.request.id.clone(), one);
        }
        let batch = self.apply_rules(app, latest.into_values().collect()).await?;
        let (rows, others): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.seen, (one.texts, one.is_named))).unzip();
        let written = app.ledger.write_seen(&rows).await?.into_iter().collect::<HashSet<_>>();
        let (due, mut new, mut asked) = (Instant::now() + self.pending_interval(), 0, Vec::new());
        let mut answered = Vec::new();
        for (seen, (texts, is_named)) in rows.into_iter().zip(others) {
            let id = seen.request.id.clone();
            if written.contains(&id) {
                new += u64::from(!self.pending.contains_key(&id));
                self.asked_again.remove(&id);
                app.inbox.announce(&seen.tenant, &id);
                app.search.write(&seen.tenant, &seen.request);
                self.keep(row_of(seen), Some(texts), due);
                continue;
            }
            // The ledger has closed the request. Its agent may have asked again.
            self.forget(&id);
            if is_named {
                asked.push(AskedAgain {
                    id,
                    tenant: seen.tenant,
                    content_hash: seen.request.content_hash,
                    until: seen.expires_at,
                    read_at: seen.read_at,
                });
            } else {
                if self.asked_again.remove(&id).is_some_and(|again| again.is_noted) {
                    answered.push(id.clone());
                }
                self.put_aside(&id, None);
            }
        }
        metrics::intake_seen(new);
        if !answered.is_empty() {
            app.ledger.forget_asked_again(&answered).await?;
        }
        let asked = self.tell_again(app, asked).await?;
        let noted = app.ledger.note_asked_again(&asked).await?.into_iter().collect::<HashSet<_>>();
        for AskedAgain { id, tenant, .. } in asked {
            let before = self.asked_again.remove(&id);
            let is_noted = noted.contains(&id);
            let refusals = before.map_or(0, |again| again.refusals) + u32::from(!is_noted);
            if refusals > MAX_REFUSALS {
                self.put_aside(&id, None);
                continue;
            }
            if is_noted && !before.is_some_and(|again| again.is_noted) {
                info!(request_id = %id, "a decided request is pending in Redis again");
                app.inbox.announce(&tenant, &id);
            }
            self.asked_again.insert(id.clone(), Again { due, is_noted, refusals });
            self.turns.push_back((due, id));
        }
        Ok(())
    }
}

fn row_of(seen: SeenRequest) -> SeenRow {
    SeenRow {
        id: seen.request.id,
        tenant: seen.tenant,
        user: seen.user,
        session: seen.request.session,
        content_hash: seen.request.content_hash,
        asked_at: seen.asked_at,
        expires_at: seen.expires_at,
        has_moved_on: seen.has_moved_on,
        replication_id: seen.replication_id,
    }
}
