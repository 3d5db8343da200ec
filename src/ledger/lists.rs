//! Pages of requests. Each order has an index of its own (`hitl_request_list_…`), which a page reads from
//! its [`Position`] on. Rows that a filter leaves out are read, too; after [`MAX_WALK`] of them the page
//! ends early, and the next page goes on there. So each page costs at most `MAX_WALK` rows.
//!
//! Must not read documents, except those of rows that an older release wrote: they lack `etag`.

use chrono::{DateTime, TimeDelta, Utc};
use const_format::formatcp;
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use tracing::warn;

use super::connect::Ledger;
use super::engine::{Row, Statement, Value, values};
use super::error::{LedgerError, Result};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::list::{
    Filter, Listed, MAX_CLOSING_DELAY, MAX_LIFETIME, Order, Owners, Position, Status, shortened,
};
use crate::domain::request::{self, ApprovalRequest, Origin};

/// The most rows that one page or one count reads.
pub const MAX_WALK: i64 = 10_000;
/// How much the clocks of two replicas may differ.
const CLOCK_DIFFERENCE: TimeDelta = TimeDelta::minutes(1);

/// The columns that [`ListedRow`] reads, by their names.
const NAMES: &str = "\
    request_id, session_id, tenant_id, user_id, origin, action_type, message, status, created_at,
    expires_at, task_id, fingerprint, decided_by, decided_at, reason, settled_at, etag, asked_at,
    moved_on, asked_again_until, document";
/// `settled_at` of a closed request, as its index has it: see the migration.
pub(super) const CLOSED_AT: &str = "COALESCE(settled_at, created_at)";
/// The same as a table has them.
const COLUMNS: &str = "\
    request_id, session_id, tenant_id, user_id, origin, action_type, message, status, created_at,
    expires_at, task_id, fingerprint, decided_by, decided_at, reason, settled_at, etag, asked_at,
    moved_on, asked_again_until, CASE WHEN etag IS NULL THEN document END AS document";

/// A row of a page.
#[derive(Debug, sqlx::FromRow)]
struct ListedRow {
    request_id: String,
    session_id: String,
    tenant_id: String,
    user_id: Option<String>,
    origin: String,
    action_type: String,
    message: Option<String>,
    status: String,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    task_id: String,
    fingerprint: String,
    decided_by: Option<String>,
    decided_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    settled_at: Option<DateTime<Utc>>,
    etag: Option<String>,
    asked_at: Option<DateTime<Utc>>,
    moved_on: bool,
    asked_again_until: Option<DateTime<Utc>>,
    /// Only if `etag` is missing.
    document: Option<String>,
    /// The time by which the list is ordered.
    #[sqlx(default)]
    sort_at: Option<DateTime<Utc>>,
    /// How many rows were read up to this one; 0 if no filter leaves rows out.
    #[sqlx(default)]
    walked: i64,
    /// Whether the filter takes the row. The last row that was read is returned in any case.
    #[sqlx(default)]
    is_match: Option<bool>,
}

impl ListedRow {
    fn into_listed(self) -> Result<Listed> {
        let odd =
            |what: &str| LedgerError::Inconsistent(format!("a request's {what} is not valid"));
        let id = RequestId::parse(self.request_id).map_err(|_invalid| odd("request_id"))?;
        let user = |id: Option<String>, name: &str| {
            id.map(UserId::parse).transpose().map_err(|_invalid| odd(name))
        };
        let (message, etag) = match (self.etag, self.document) {
            (Some(etag), _) => (self.message, etag),
            (None, document) => {
                let document = document.unwrap_or_default();
                let etag = request::etag(&document);
                let request = ApprovalRequest::read(&id, document).ok();
                (request.and_then(|request| request.message).as_deref().map(shortened), etag)
            }
        };
        Ok(Listed {
            id,
            session: SessionId::parse(self.session_id).map_err(|_invalid| odd("session_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            user: user(self.user_id, "user_id")?,
            origin: if self.origin == "http" { Origin::Http } else { Origin::Redis },
            action_type: self.action_type,
            message,
            status: match self.asked_again_until {
                Some(_again) => Status::Pending,
                None => Status::parse(&self.status).ok_or_else(|| odd("status"))?,
            },
            created_at: self.created_at,
            asked_at: self.asked_at.unwrap_or(self.created_at),
            expires_at: self.asked_again_until.unwrap_or(self.expires_at),
            has_moved_on: self.moved_on,
            is_asked_again: self.asked_again_until.is_some(),
            task: Some(TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?),
            fingerprint: self.fingerprint,
            etag,
            decided_by: user(self.decided_by, "decided_by")?,
            decided_at: self.decided_at,
            reason: self.reason,
            closed_at: self.settled_at,
        })
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The requests, in the order of the list.
    pub rows: Vec<Listed>,
    /// Where the next page begins; `None` after the last page. A page that reads [`MAX_WALK`] rows ends
    /// there, even if it has fewer requests than were asked for.
    pub next: Option<Position>,
}

impl Ledger {
    /// The page of at most `size` requests after a position, or the first page.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn list_requests(
        &self,
        filter: &Filter,
        after: Option<&Position>,
        size: usize,
    ) -> Result<Page> {
        let mut page = Page { rows: Vec::new(), next: None };
        for walk in Walk::of(filter) {
            // The walks before this one were read by earlier pages.
            if walk.is_before(after) {
                continue;
            }
            let after = after.filter(|position| walk.is_closed() == position.is_closed);
            let wanted = size - page.rows.len();
            let (rows, next) = self.walk(filter, walk, after, wanted.max(1)).await?;
            let is_over = rows.is_empty() && next.is_none();
            if wanted > 0 {
                page.rows.extend(rows);
                page.next = next;
            } else if !is_over {
                // The page ended with the walk before this one.
                page.next = page.rows.last().map(Walk::last_pending);
            }
            if page.next.is_some() {
                break;
            }
        }
        Ok(page)
    }

    /// Up to `wanted` requests of one walk, and the position of the last row that was read, unless it
    /// was the last one of the walk.
    async fn walk(
        &self,
        filter: &Filter,
        walk: Walk,
        after: Option<&Position>,
        wanted: usize,
    ) -> Result<(Vec<Listed>, Option<Position>)> {
        let reading = Reading::page(filter, walk, after, wanted + 1);
        let rows = self.run::<ListedRow>("ledger.list_requests", reading).await?;
        let (mut listed, mut last) = (Vec::new(), None);
        for row in rows {
            let is_end = row.walked == MAX_WALK;
            let place = walk.position(&row)?;
            if row.is_match == Some(true) {
                if listed.len() == wanted {
                    return Ok((listed, last));
                }
                match row.into_listed() {
                    Ok(row) => listed.push(row),
                    // Somebody has edited the row by hand. The others are shown.
                    Err(error) => warn!(%error, "a list leaves out a request"),
                }
            }
            // A source that stopped here may have further requests behind this row.
            if is_end {
                return Ok((listed, Some(place)));
            }
            last = Some(place);
        }
        Ok((listed, None))
    }

    /// The number of requests in a list, among the first [`MAX_WALK`] rows of each walk; one more than
    /// that says that there are more. May be 5 s old, and counts requests that have expired
    /// and are not closed yet.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn count_listed(&self, filter: &Filter) -> Result<u64> {
        let filter = &Filter { decidable_at: None, ..filter.clone() };
        let mut total = 0;
        for walk in Walk::of(filter) {
            for source in walk.sources(filter) {
                total += self.count_source(Reading::count(filter, walk, &source)).await?;
            }
        }
        Ok(total.min(MAX_WALK.unsigned_abs() + 1))
    }

    async fn count_source(&self, counting: Reading) -> Result<u64> {
        let key = format!("{} {:?}", counting.sql, counting.values);
        if let Some(count) = self.totals.get(&key) {
            return Ok(count);
        }
        let counted = self.run::<(i64,)>("ledger.count_listed", counting).await?;
        let count = counted.first().map_or(0, |(count,)| count.unsigned_abs());
        self.totals.insert(key, count);
        Ok(count)
    }

    /// One request as lists show it.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn find_listed(&self, tenant: &TenantId, id: &RequestId) -> Result<Option<Listed>> {
        const FIND_LISTED: Statement = Statement::new(
            "ledger.find_listed",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_request WHERE tenant_id = $1 AND request_id = $2"
            ),
        );
        let row: Option<ListedRow> =
            self.engine.fetch_optional(FIND_LISTED, &values![tenant, id]).await?;
        row.map(ListedRow::into_listed).transpose()
    }

    async fn run<R: Row>(
        &self,
        name: &'static str,
        Reading { sql, values }: Reading,
    ) -> Result<Vec<R>> {
        let read = self.engine.all_of(AssertSqlSafe(sql).into_sql_str(), &values);
        self.engine.call(name, read).await.map_err(LedgerError::of_a_read)
    }
}

/// Rows of one index, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// Pending requests, the least time left first.
    Pending,
    /// Closed requests, the latest first.
    Closed,
    /// All requests, the newest first.
    Created,
}

/// Whose rows to read from the index.
#[derive(Debug)]
enum Source {
    /// Everybody's.
    Tenant,
    /// One user's pending requests, which have an index of their own.
    PendingOf(UserId),
    /// Pending requests without a user, by the same index.
    PendingOfNobody,
    /// Decided requests that are pending once more.
    AskedAgain,
}

impl Walk {
    /// The walks of a list, one after the other.
    fn of(filter: &Filter) -> Vec<Self> {
        if filter.order == Order::CreatedAt {
            return vec![Self::Created];
        }
        let pending = filter.has_pending().then_some(Self::Pending);
        pending.into_iter().chain(filter.has_closed().then_some(Self::Closed)).collect()
    }

    fn is_closed(self) -> bool {
        self == Self::Closed
    }

    fn is_before(self, after: Option<&Position>) -> bool {
        self == Self::Pending && after.is_some_and(|position| position.is_closed)
    }

    fn sources(self, filter: &Filter) -> Vec<Source> {
        let Self::Pending = self else { return vec![Source::Tenant] };
        let mut sources = match (&filter.user, &filter.owners) {
            (Some(user), _) | (None, Owners::Only(user)) => vec![Source::PendingOf(user.clone())],
            (None, Owners::OrNobody(user)) => {
                vec![Source::PendingOf(user.clone()), Source::PendingOfNobody]
            }
            (None, Owners::All) => vec![Source::Tenant],
        };
        sources.push(Source::AskedAgain);
        sources
    }

    /// The time by which the list is ordered.
    fn key(self, source: &Source) -> &'static str {
        match (self, source) {
            (Self::Pending, Source::AskedAgain) => "asked_again_until",
            (Self::Pending, _) => "expires_at",
            (Self::Closed, _) => CLOSED_AT,
            (Self::Created, _) => "created_at",
        }
    }

    /// The columns of the order. The last one is the request.
    fn order(self, source: &Source) -> &'static str {
        match (self, source) {
            // Postgres does not take `user_id IS NULL` for a constant.
            (Self::Pending, Source::PendingOfNobody) => "user_id, expires_at, request_id",
            (Self::Pending, Source::AskedAgain) => "asked_again_until, request_id",
            (Self::Pending, _) => "expires_at, request_id",
            (Self::Closed, _) => formatcp!("{CLOSED_AT} DESC, request_id DESC"),
            (Self::Created, _) => "created_at DESC, request_id DESC",
        }
    }

    /// The place of a request among the pending ones.
    fn last_pending(last: &Listed) -> Position {
        Position { is_closed: false, at: last.expires_at, id: last.id.clone() }
    }

    /// The place of a row in this walk.
    fn position(self, row: &ListedRow) -> Result<Position> {
        let id = RequestId::parse(row.request_id.clone()).map_err(|_invalid| {
            LedgerError::Inconsistent("a request's request_id is not valid".to_owned())
        })?;
        Ok(Position { is_closed: self.is_closed(), at: row.sort_at.unwrap_or_default(), id })
    }
}

/// A statement, and the values of its parameters.
struct Reading {
    sql: String,
    values: Vec<Value>,
}

impl Reading {
    fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// Reads a page. Several sources are merged in the order of the list.
    fn page(filter: &Filter, walk: Walk, after: Option<&Position>, limit: usize) -> Self {
        let mut reading = Self { sql: String::new(), values: Vec::new() };
        let limit = reading.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut parts = Vec::new();
        for source in walk.sources(filter) {
            parts.push(reading.part(filter, walk, &source, after, &limit));
        }
        reading.sql = if parts.len() == 1 {
            parts.concat()
        } else {
            let part = |(number, part): (usize, &String)| {
                format!("SELECT {NAMES}, sort_at, walked, is_match FROM ({part}) AS part{number}")
            };
            let parts = parts.iter().enumerate().map(part).collect::<Vec<_>>();
            format!("{} ORDER BY sort_at, request_id LIMIT {limit}", parts.join(" UNION ALL "))
        };
        reading
    }

    /// Reads the rows of one source.
    fn part(
        &mut self,
        filter: &Filter,
        walk: Walk,
        source: &Source,
        after: Option<&Position>,
        limit: &str,
    ) -> String {
        let rows = self.rows(filter, walk, source, after);
        let filters = self.filters(filter, walk, source);
        let (order, key) = (walk.order(source), walk.key(source));
        if filters.is_empty() {
            return format!(
                "SELECT {COLUMNS}, {key} AS sort_at, CAST(0 AS BIGINT) AS walked, TRUE AS is_match
                   FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {limit}"
            );
        }
        let walk = self.bind(MAX_WALK);
        format!(
            "SELECT {NAMES}, {key} AS sort_at, walked, ({filters}) AS is_match FROM (
                SELECT {COLUMNS}, ROW_NUMBER() OVER (ORDER BY {order}) AS walked
                  FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {walk}
             ) AS walk WHERE ({filters}) OR walked = {walk} ORDER BY {order} LIMIT {limit}"
        )
    }

    /// Counts at most one more than [`MAX_WALK`] requests.
    fn count(filter: &Filter, walk: Walk, source: &Source) -> Self {
        let mut reading = Self { sql: String::new(), values: Vec::new() };
        let rows = reading.rows(filter, walk, source, None);
        let filters = reading.filters(filter, walk, source);
        let order = walk.order(source);
        let limit = reading.bind(MAX_WALK + 1);
        reading.sql = if filters.is_empty() {
            format!(
                "SELECT COUNT(*) FROM (
                    SELECT 1 FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {limit}
                 ) AS counted"
            )
        } else {
            format!(
                "SELECT COUNT(*) FROM (
                    SELECT request_id, session_id, user_id, action_type, status, task_id, decided_by,
                           created_at, expires_at, moved_on, asked_again_until
                      FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {limit}
                 ) AS walk WHERE {filters}"
            )
        };
        reading
    }

    /// The condition of the rows that the index has for this walk, from the position on. Its last part
    /// is the one that only this index's statements name; see the migration.
    fn rows(
        &mut self,
        filter: &Filter,
        walk: Walk,
        source: &Source,
        after: Option<&Position>,
    ) -> String {
        let mut rows = vec![format!("tenant_id = {}", self.bind(&filter.tenant))];
        match source {
            Source::Tenant | Source::AskedAgain => {}
            Source::PendingOf(user) => rows.push(format!("user_id = {}", self.bind(user))),
            Source::PendingOfNobody => rows.push("user_id IS NULL".to_owned()),
        }
        let (from, to) = (filter.from, filter.to);
        match walk {
            Walk::Pending => {
                let key = walk.key(source);
                if let Some(now) = filter.decidable_at {
                    rows.push(format!("{key} > {} AND NOT moved_on", self.bind(now)));
                }
                // A request expires within a day of its creation.
                if let Some(from) = from {
                    rows.push(format!("{key} > {}", self.bind(from)));
                }
                if let Some(to) = to.filter(|_to| !matches!(source, Source::AskedAgain)) {
                    rows.push(format!("{key} <= {}", self.bind(to + MAX_LIFETIME)));
                }
                if let Some(Position { at, id, .. }) = after {
                    let (at, id) = (self.bind(*at), self.bind(id));
                    rows.push(format!("({key}, request_id) > ({at}, {id})"));
                }
            }
            Walk::Closed => {
                if let Some(from) = from {
                    let from = self.bind(from - CLOCK_DIFFERENCE);
                    rows.push(format!("{CLOSED_AT} >= {from} AND {CLOSED_AT} <= 'infinity'"));
                }
                if let Some(to) = to {
                    let to = self.bind(to + MAX_LIFETIME + MAX_CLOSING_DELAY);
                    rows.push(format!("{CLOSED_AT} < {to}"));
                }
                if let Some(Position { at, id, .. }) = after {
                    let (at, id) = (self.bind(*at), self.bind(id));
                    rows.push(format!("({CLOSED_AT}, request_id) < ({at}, {id})"));
                }
            }
            Walk::Created => {
                if let Some(from) = from {
                    let from = self.bind(from);
                    rows.push(format!("created_at >= {from} AND created_at <= 'infinity'"));
                }
                if let Some(to) = to {
                    rows.push(format!("created_at < {}", self.bind(to)));
                }
                if let Some(Position { at, id, .. }) = after {
                    let (at, id) = (self.bind(*at), self.bind(id));
                    rows.push(format!("(created_at, request_id) < ({at}, {id})"));
                }
            }
        }
        rows.push(
            match (walk, source) {
                (Walk::Pending, Source::Tenant) => "status = 'pending' AND fingerprint >= ''",
                (Walk::Pending, Source::AskedAgain) => "asked_again_until IS NOT NULL",
                (Walk::Pending, _) => "status = 'pending' AND content_hash >= ''",
                // What was asked again is pending.
                (Walk::Closed, _) => {
                    "status <> 'pending' AND asked_again_until IS NULL AND fingerprint >= ''"
                }
                (Walk::Created, _) => "action_type >= ''",
            }
            .to_owned(),
        );
        rows.join(" AND ")
    }

    /// The condition of the rows that the filter takes; empty if it takes all of them.
    fn filters(&mut self, filter: &Filter, walk: Walk, source: &Source) -> String {
        let mut filters = Vec::new();
        let is_every_status = match walk {
            Walk::Pending => true,
            Walk::Closed => {
                let closed = Status::ALL.iter().filter(|status| **status != Status::Pending);
                closed.into_iter().all(|status| filter.statuses.contains(status))
            }
            Walk::Created => Status::ALL.iter().all(|status| filter.statuses.contains(status)),
        };
        if !is_every_status {
            let statuses = filter.statuses.iter().map(|status| format!("'{}'", status.as_str()));
            let statuses = statuses.collect::<Vec<_>>().join(", ");
            filters.push(match (walk, filter.has_pending()) {
                (Walk::Created, true) => {
                    format!("(status IN ({statuses}) OR asked_again_until IS NOT NULL)")
                }
                (Walk::Created, false) => {
                    format!("status IN ({statuses}) AND asked_again_until IS NULL")
                }
                _ => format!("status IN ({statuses})"),
            });
        }
        // Only the values of parameters that the statement names are bound.
        match filter.decidable_at {
            Some(_now) if matches!(source, Source::AskedAgain) => {
                filters.push(format!("decided_by = {}", self.bind(&filter.caller)));
            }
            Some(now) if walk == Walk::Created && filter.has_pending() => {
                let (now, decider) = (self.bind(now), self.bind(&filter.caller));
                filters.push(format!(
                    "(status <> 'pending' OR (expires_at > {now} AND NOT moved_on))
                     AND (asked_again_until IS NULL OR decided_by = {decider})"
                ));
            }
            _ => {}
        }
        // With a user of its own, the source has read that user's rows alone.
        match &filter.owners {
            Owners::All => {}
            Owners::Only(user) if matches!(source, Source::PendingOf(read) if read == user) => {}
            Owners::Only(user) => filters.push(format!("user_id = {}", self.bind(user))),
            Owners::OrNobody(user) => {
                let is_read = match source {
                    Source::PendingOf(read) => read == user,
                    Source::PendingOfNobody => true,
                    Source::Tenant | Source::AskedAgain => false,
                };
                if !is_read {
                    let user = self.bind(user);
                    filters.push(format!(
                        "(user_id = {user} OR user_id IS NULL OR decided_by = {user})"
                    ));
                }
            }
        }
        let is_read = matches!(source, Source::PendingOf(_));
        for (column, value) in [
            ("user_id", filter.user.as_ref().filter(|_user| !is_read).map(UserId::as_str)),
            ("action_type", filter.action_type.as_deref()),
            ("session_id", filter.session.as_ref().map(SessionId::as_str)),
            ("task_id", filter.task.as_ref().map(TaskId::as_str)),
            ("decided_by", filter.decided_by.as_ref().map(UserId::as_str)),
        ] {
            if let Some(value) = value {
                filters.push(format!("{column} = {}", self.bind(value)));
            }
        }
        if walk != Walk::Created {
            for (time, comparison) in [(filter.from, ">="), (filter.to, "<")] {
                if let Some(time) = time {
                    filters.push(format!("created_at {comparison} {}", self.bind(time)));
                }
            }
        }
        filters.join(" AND ")
    }
}
