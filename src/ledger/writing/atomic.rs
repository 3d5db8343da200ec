//! Writes several decisions and votes in one write: all of them, or none. Unlike a batch (`batches`),
//! such a write is never taken apart.
//!
//! On Postgres it is one statement, which fails if it has not written every row, so that Postgres undoes
//! it. On SQLite it is one transaction.

use std::time::{Duration, Instant};

use const_format::{concatcp, formatcp, str_replace};
use tracing::Instrument as _;

use super::{
    COUNT_VOTE, Change, DECIDE_REQUEST, GIVEN, GIVEN_ON_SQLITE, INPUT, NEXT_OUTCOME_OF_A_WRITE,
    RECORD_VOTE, Recorded, THEN_WRITE, WRITE_DECIDED_TASK, WRITE_DELIVERY, WRITE_OUTBOX,
    WRITE_VOTE, Writing, is_anothers_id, is_id_taken, is_number_taken, is_task_id_taken,
};
use crate::domain::record::Record;
use crate::domain::task::TaskStatus;
use crate::ledger::connect::Ledger;
use crate::ledger::engine::Statement;
use crate::ledger::error::Result;
use crate::ledger::requests::{REQUEST_COLUMNS, RequestRow};
use crate::observe::traces;

/// How long the write waits for a row that somebody else has locked.
const LOCK_TIMEOUT: Duration = Duration::from_millis(1700);
/// How often to write again after a concurrent write took a sequence number or a task id.
const MAX_TRIES: usize = 8;

impl Ledger {
    /// Writes decisions on several requests, each as [`Ledger::record_outcome`] does, and votes as
    /// [`Ledger::record_vote`] does, but all or none.
    /// The records are in the order of `writings`. `None`: at least one of them cannot be written now, so
    /// nothing was written; [`Ledger::refusal_of`] may say why.
    ///
    /// # Errors
    /// [`LedgerError`](crate::ledger::LedgerError) when the ledger does not answer. After its
    /// `OutcomeUnknown` either all or none of the decisions have been written: read one of the requests to
    /// find out.
    pub async fn record_all(&self, writings: &[Writing<'_>]) -> Result<Option<Vec<Record>>> {
        let began = Instant::now();
        for writing in writings {
            writing.check_permit()?;
        }
        let mut sorted = writings.iter().enumerate().collect::<Vec<_>>();
        // In the order of their keys, as in a batch, so that two writes do not wait for each other.
        sorted.sort_by_key(|(_place, one)| (one.tenant(), &one.candidate.request.id));
        let is_vote = |one: &Writing<'_>| matches!(one.change, Change::Vote(_));
        let has_votes = writings.iter().any(is_vote);
        let statement = if has_votes { RECORD_ALL_WITH_VOTES } else { RECORD_ALL };
        let mut task_conflicts = 0;
        for _try in 0..MAX_TRIES {
            // The first time, a concurrent write of this tenant may have made the task.
            let is_task_taken = task_conflicts > 1;
            let row = |one: &Writing<'_>| {
                let of_one = if is_vote(one) { RECORD_VOTE } else { RECORD_ALL };
                (of_one, one.values(is_task_taken, self.tells()))
            };
            let rows = sorted.iter().map(|(_place, one)| row(one)).collect::<Vec<_>>();
            let written = self.engine.write_all::<RequestRow>(statement, &rows, LOCK_TIMEOUT);
            let written = self.engine.within_timeout(written);
            match written.instrument(traces::step(statement.name())).await {
                Ok(None) => return Ok(None),
                Ok(Some(rows)) => {
                    let places = sorted.iter().map(|(place, _one)| *place);
                    return self.written(rows, places, writings, began).await.map(Some);
                }
                Err(error) if is_task_id_taken(&error) => task_conflicts += 1,
                Err(error) if is_number_taken(&error) => {}
                Err(error) if is_id_taken(&error) || is_anothers_id(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        // Other writes were always faster.
        Ok(None)
    }

    /// The records of the rows that were written, in the order of their places.
    async fn written(
        &self,
        rows: Vec<RequestRow>,
        places: impl Iterator<Item = usize>,
        writings: &[Writing<'_>],
        began: Instant,
    ) -> Result<Vec<Record>> {
        let mut waiting = Vec::new();
        let mut records = Vec::with_capacity(rows.len());
        for (place, row) in places.zip(rows) {
            let waits = row.task_status.as_deref() == Some(TaskStatus::WaitingApproval.as_str());
            let record = self.record(row, began)?;
            if waits {
                waiting.push((record.tenant.clone(), record.task.clone()));
            }
            records.push((place, record));
        }
        records.sort_by_key(|(place, _record)| *place);
        for writing in writings {
            writing.count_unsendable();
        }
        let now = writings.first().map(|writing| writing.now).unwrap_or_default();
        for (tenant, task) in waiting {
            // See `record_outcome`: another request of the task may have been decided meanwhile.
            let _released = self.release_task(&tenant, &task, now).await;
        }
        Ok(records.into_iter().map(|(_place, record)| record).collect())
    }

    /// Why this one write cannot be made, as far as the request's own row does not say it: the session
    /// has a newer request or another tenant's, or the id is another tenant's. `None` if none of these.
    ///
    /// # Errors
    /// [`LedgerError`](crate::ledger::LedgerError) when the ledger does not answer.
    pub async fn refusal_of(&self, writing: &Writing<'_>) -> Result<Option<Recorded>> {
        let request = &writing.candidate.request;
        if writing.only_newest && self.has_newer_request(writing).await? {
            return Ok(Some(Recorded::MovedOn));
        }
        if let Some(since) = writing.alone_since
            && self.is_shared(&request.session, writing.tenant(), since).await?
        {
            return Ok(Some(Recorded::AnothersSession));
        }
        let of_redis = self.find_request_of_redis(&request.id).await?;
        let is_anothers = of_redis.is_some_and(|found| found.tenant != *writing.tenant());
        if is_anothers
            && writing.alone_since.is_some()
            && !self.remove_seen_of_another(writing).await?
        {
            return Ok(Some(Recorded::IdTaken));
        }
        Ok(None)
    }
}

/// [`NEXT_OUTCOME_OF_A_WRITE`] where one write has several requests of a session.
const NEXT_OUTCOME_OF_EACH: &str = concatcp!(
    "(",
    NEXT_OUTCOME_OF_A_WRITE,
    " - 1 + ROW_NUMBER() OVER (PARTITION BY input.tenant_id, input.session_id ORDER BY input.place))"
);

/// [`WRITE_DECIDED_TASK`] where one write has several requests of a task: one row for each task, of a
/// rejection if there is one. To the statement the others of the write are still pending, so such a task
/// waits on, and is released after the write.
const WRITE_TASK_OF_ALL: &str = str_replace!(
    str_replace!(
        WRITE_DECIDED_TASK,
        "SELECT d.task_id, COALESCE(d.user_id, input.caller_id)",
        "SELECT DISTINCT ON (d.tenant_id, d.task_id)
            d.task_id, COALESCE(d.user_id, input.caller_id)"
    ),
    "WHERE true ORDER BY d.tenant_id, d.task_id",
    "WHERE true ORDER BY d.tenant_id, d.task_id, d.status DESC, input.place DESC"
);

/// Fails, so that Postgres undoes the whole statement, unless every row was written.
const IS_WHOLE: &str = "\
    1 / CASE WHEN (SELECT COUNT(w.request_id) FROM written AS w)
                = (SELECT COUNT(g.request_id) FROM given AS g) THEN 1 ELSE 0 END AS is_whole";

const DECIDE_EACH: &str =
    str_replace!(DECIDE_REQUEST, NEXT_OUTCOME_OF_A_WRITE, NEXT_OUTCOME_OF_EACH);
/// [`AND_THE_REST`](super::AND_THE_REST) for up to 200 rows. Sub-selects in place of its joins, which
/// Postgres runs as loops within loops: it compares each row with each pair of the others.
const AND_THE_REST_OF_ALL: &str = formatcp!(
    "touched AS ({WRITE_TASK_OF_ALL} RETURNING tenant_id, task_id, status),
     owing AS ({WRITE_DELIVERY}), audited AS ({WRITE_OUTBOX})
     SELECT (SELECT i.place FROM input AS i
              WHERE i.tenant_id = written.tenant_id AND i.request_id = written.request_id
            ) AS place,
            written.*,
            (SELECT t.status FROM touched AS t
              WHERE t.tenant_id = written.tenant_id AND t.task_id = written.task_id
            ) AS task_status,
            {IS_WHOLE}
       FROM written"
);

/// [`WRITE_VOTE`] where only some decisions complete a vote.
const WRITE_VOTES: &str =
    str_replace!(WRITE_VOTE, "WHERE true", "WHERE input.voter_roles IS NOT NULL");

const RECORD_ALL: Statement = Statement::new(
    "ledger.record_all",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, written AS ({DECIDE_EACH}), voted AS ({WRITE_VOTES}),
         {AND_THE_REST_OF_ALL}"
    ),
)
.on_sqlite(formatcp!("WITH {GIVEN_ON_SQLITE}, {INPUT} {DECIDE_REQUEST}"))
.then(&[
    formatcp!("{THEN_WRITE} {WRITE_DECIDED_TASK}"),
    formatcp!("{THEN_WRITE} {WRITE_DELIVERY}"),
    formatcp!("{THEN_WRITE} {WRITE_OUTBOX}"),
    formatcp!("{THEN_WRITE} {WRITE_VOTES}"),
]);

/// [`DECIDE_EACH`] for the rows that decide.
const DECIDE_SOME: &str = str_replace!(
    DECIDE_EACH,
    "WHERE (NOT input.only_newest",
    "WHERE input.status <> 'pending' AND (NOT input.only_newest"
);
/// [`COUNT_VOTE`] for the rows that vote.
const COUNT_SOME: &str =
    str_replace!(COUNT_VOTE, "FROM input) AS v", "FROM input WHERE input.status = 'pending') AS v");

/// [`RECORD_ALL`] where some votes complete nothing: their requests stay pending, and so do the tasks.
const RECORD_ALL_WITH_VOTES: Statement = Statement::new(
    "ledger.record_all_with_votes",
    formatcp!(
        "WITH {GIVEN}, {INPUT}, decided AS ({DECIDE_SOME}), counted AS ({COUNT_SOME}),
         written AS (SELECT {REQUEST_COLUMNS} FROM decided
                     UNION ALL SELECT {REQUEST_COLUMNS} FROM counted),
         voted AS ({WRITE_VOTES}), {AND_THE_REST_OF_SOME}"
    ),
);
/// [`AND_THE_REST_OF_ALL`] of the rows that decide.
const AND_THE_REST_OF_SOME: &str = str_replace!(
    str_replace!(
        AND_THE_REST_OF_ALL,
        WRITE_TASK_OF_ALL,
        str_replace!(WRITE_TASK_OF_ALL, "FROM written AS d", "FROM decided AS d")
    ),
    WRITE_OUTBOX,
    str_replace!(WRITE_OUTBOX, "FROM written AS d", "FROM decided AS d")
);
