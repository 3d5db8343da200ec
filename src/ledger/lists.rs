//! Pages of requests. Each order has an index of its own (`hitl_request_list_…`), which a page reads from
//! its [`Position`] on. Rows that a filter leaves out are read, too; after [`MAX_WALK`] of them the page
//! ends early, and the next page goes on there. So each page costs at most `MAX_WALK` rows.
//!
//! Must not read documents, except those of rows that an older release wrote: they lack `etag`.

use chrono::{DateTime, TimeDelta, Utc};
use const_format::formatcp;
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};
use tracing::warn;

use super::connect::Ledger;
use super::engine::{Database, Row, Statement, Value, values};
use super::error::{LedgerError, Result};
use super::request_row::RulingColumns;
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use crate::domain::list::{
    Aged, Decidable, Filter, Listed, MAX_CLOSING_DELAY, MAX_LIFETIME, Named, Order, Owners,
    Position, Status, shortened,
};
use crate::domain::request::{self, ApprovalRequest, Origin};
use crate::domain::search::INDEXED_CHARS;
use crate::domain::ways::Offer;

/// The most rows that one page or one count reads.
pub const MAX_WALK: i64 = 10_000;
/// The rows that are read first for a list with words, before the index of words is asked: common words are
/// found among them.
const FIRST_WALK: i64 = 1000;
/// The most requests that the index of words may find. Words that more requests have are looked for row by
/// row.
const MAX_FOUND: i64 = 5000;
/// How much the clocks of two replicas may differ.
const CLOCK_DIFFERENCE: TimeDelta = TimeDelta::minutes(1);

/// The columns that [`ListedRow`] reads, by their names.
const NAMES: &str = "\
    request_id, session_id, tenant_id, user_id, origin, action_type, message, status, created_at,
    expires_at, task_id, fingerprint, decided_by, decided_at, reason, settled_at, etag, asked_at,
    moved_on, asked_again_until, decided_via, rule, policy_version, binding, risk,
    approvals_needed, approvals, voters, offered, is_answered, document";
/// `settled_at` of a closed request, as its index has it: see the migration.
pub(super) const CLOSED_AT: &str = "COALESCE(settled_at, created_at)";
/// The same as a table has them.
const COLUMNS: &str = "\
    request_id, session_id, tenant_id, user_id, origin, action_type, message, status, created_at,
    expires_at, task_id, fingerprint, decided_by, decided_at, reason, settled_at, etag, asked_at,
    moved_on, asked_again_until, decided_via, rule, policy_version, binding, risk,
    approvals_needed, approvals, voters, offered, response IS NOT NULL AS is_answered,
    CASE WHEN etag IS NULL THEN document END AS document";

/// The pending requests of all tenants, by an index for all of them.
const OPEN_OF_ALL: &str = "status = 'pending' AND decided_at IS NULL AND expires_at >= '-infinity'";
/// The closed requests of all tenants, by an index for all of them.
const CLOSED_OF_ALL: &str = "settled_at <= 'infinity' AND status <> 'pending'";

/// The condition that a request has one of these statuses. An answer has the status of a rejection in its
/// row, and a response.
fn has_status(statuses: &[Status]) -> String {
    let columns = statuses.iter().map(|status| match status {
        Status::Answered => "'rejected'".to_owned(),
        status => format!("'{}'", status.as_str()),
    });
    let columns = columns.collect::<std::collections::BTreeSet<_>>();
    let columns = columns.into_iter().collect::<Vec<_>>().join(", ");
    let has = |status| statuses.contains(&status);
    match (has(Status::Rejected), has(Status::Answered)) {
        (true, false) => format!("(status IN ({columns}) AND NOT is_answered)"),
        (false, true) => {
            format!("(status IN ({columns}) AND (status <> 'rejected' OR is_answered))")
        }
        _ => format!("status IN ({columns})"),
    }
}

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
    offered: Option<String>,
    /// Whether it has the status of a rejection, but is an answer.
    is_answered: bool,
    #[sqlx(flatten)]
    ruling: RulingColumns,
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
        let origin = if self.origin == "http" { Origin::Http } else { Origin::Redis };
        let status = match Status::parse(&self.status).ok_or_else(|| odd("status"))? {
            Status::Rejected if self.is_answered => Status::Answered,
            status => status,
        };
        // The row of a request that was only seen in Redis names a task that does not exist yet.
        let is_only_seen =
            origin == Origin::Redis && matches!(status, Status::Pending | Status::Expired);
        let task = TaskId::parse(self.task_id).map_err(|_invalid| odd("task_id"))?;
        Ok(Listed {
            id,
            session: SessionId::parse(self.session_id).map_err(|_invalid| odd("session_id"))?,
            tenant: TenantId::parse(self.tenant_id).map_err(|_invalid| odd("tenant_id"))?,
            user: user(self.user_id, "user_id")?,
            origin,
            action_type: self.action_type,
            message,
            status: if self.asked_again_until.is_some() { Status::Pending } else { status },
            created_at: self.created_at,
            asked_at: self.asked_at.unwrap_or(self.created_at),
            expires_at: self.asked_again_until.unwrap_or(self.expires_at),
            has_moved_on: self.moved_on,
            is_asked_again: self.asked_again_until.is_some(),
            task: (!is_only_seen).then_some(task),
            fingerprint: self.fingerprint,
            etag,
            decided_by: user(self.decided_by, "decided_by")?,
            decided_at: self.decided_at,
            reason: self.reason.filter(|_reason| !self.is_answered),
            closed_at: self.settled_at,
            ways: Offer::ways_of_column(self.offered.as_deref()),
            ruling: self.ruling.into_ruling(),
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
    /// Of a list with words: how many requests were searched one by one, if there are more of them.
    pub searched_newest: Option<u64>,
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
        if !filter.words.is_empty() {
            return self.search_requests(filter, after, size).await;
        }
        self.read_page(filter, after, size, &Extent::Walk(MAX_WALK)).await
    }

    /// The page of a list with words. The first rows of a page are read one by one, which fills it if the
    /// words are common. Else the index of words finds the few requests that have them. Without an index,
    /// or with short words alone, [`MAX_WALK`] rows are read.
    async fn search_requests(
        &self,
        filter: &Filter,
        after: Option<&Position>,
        size: usize,
    ) -> Result<Page> {
        let walk = Extent::Walk(FIRST_WALK);
        let page = self.read_page(filter, after, size, &walk).await?;
        if page.rows.len() == size || page.next.is_none() {
            return Ok(page);
        }
        if let Some(found) = self.find_words(filter).await? {
            return self.read_page(filter, after, size, &Extent::Found(found)).await;
        }
        let mut page = self.read_page(filter, after, size, &Extent::Walk(MAX_WALK)).await?;
        if page.rows.len() < size && page.next.is_some() {
            page.searched_newest = Some(MAX_WALK.unsigned_abs());
        }
        Ok(page)
    }

    /// The requests of the tenant that have all words, by the index of words; `None` if the index cannot
    /// tell or finds more than [`MAX_FOUND`].
    async fn find_words(&self, filter: &Filter) -> Result<Option<Vec<String>>> {
        let is_indexed = |word: &&String| word.chars().count() >= INDEXED_CHARS;
        let (long, short): (Vec<_>, Vec<_>) = filter.words.iter().partition(is_indexed);
        if long.is_empty() || !self.has_word_index().await? {
            return Ok(None);
        }
        let mut reading = Reading::new(self.position_function());
        let tenant = reading.bind(&filter.tenant);
        let mut conditions = vec![format!("tenant_id = {tenant}")];
        if self.is_sqlite() {
            // Each word is a phrase; phrases beside each other must all be there.
            let phrase = |word: &&String| format!("\"{}\"", word.replace('"', "\"\""));
            let phrases = long.iter().map(phrase).collect::<Vec<_>>().join(" ");
            let phrases = reading.bind(phrases);
            conditions.push(format!(
                "search_id IN (SELECT rowid FROM hitl_search_words
                                WHERE hitl_search_words MATCH {phrases})"
            ));
        } else {
            for word in long {
                let pattern = word.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
                let pattern = reading.bind(format!("%{pattern}%"));
                conditions.push(format!("body LIKE {pattern}"));
            }
        }
        for word in short {
            let word = reading.bind(word);
            conditions.push(format!("{}(body, {word}) > 0", reading.position));
        }
        let limit = reading.bind(MAX_FOUND + 1);
        let conditions = conditions.join(" AND ");
        reading.sql =
            format!("SELECT request_id FROM hitl_search WHERE {conditions} LIMIT {limit}");
        // Which index is the best depends on how common the words are.
        let found = self.engine.all_planned_for_values(reading.text(), &reading.values);
        let found = self.read::<(String,)>("ledger.find_words", found).await?;
        let is_complete = i64::try_from(found.len()).is_ok_and(|count| count <= MAX_FOUND);
        Ok(is_complete.then(|| found.into_iter().map(|(id,)| id).collect()))
    }

    fn is_sqlite(&self) -> bool {
        matches!(self.engine.database, Database::Sqlite(_))
    }

    /// The function that finds a text within another.
    fn position_function(&self) -> &'static str {
        if self.is_sqlite() { "instr" } else { "strpos" }
    }

    async fn read_page(
        &self,
        filter: &Filter,
        after: Option<&Position>,
        size: usize,
        extent: &Extent,
    ) -> Result<Page> {
        let mut page = Page { rows: Vec::new(), next: None, searched_newest: None };
        for walk in Walk::of(filter) {
            // The walks before this one were read by earlier pages.
            if walk.is_before(after) {
                continue;
            }
            let after = after.filter(|position| walk.is_closed() == position.is_closed);
            let wanted = size - page.rows.len();
            let (rows, next) = self.walk(filter, walk, after, wanted.max(1), extent).await?;
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
        extent: &Extent,
    ) -> Result<(Vec<Listed>, Option<Position>)> {
        let reading = Reading::new(self.position_function());
        let reading = reading.page(filter, walk, after, wanted + 1, extent);
        let rows = self.run::<ListedRow>("ledger.list_requests", reading).await?;
        let (mut listed, mut last) = (Vec::new(), None);
        for row in rows {
            let is_end = extent.ends_at(row.walked);
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
                let counting = Reading::new(self.position_function());
                total += self.count_source(counting.count(filter, walk, &source)).await?;
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

    /// Up to `limit` requests, of one tenant or of all: first the pending ones, the least time left
    /// first, then the closed ones, the latest first. Reads at most [`MAX_WALK`] of each.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn list_for_operators(
        &self,
        statuses: &[Status],
        tenant: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let (has_pending, closed): (Vec<Status>, Vec<Status>) =
            statuses.iter().copied().partition(|status| *status == Status::Pending);
        let mut found = Vec::new();
        let walks = [
            (!has_pending.is_empty(), OPEN_OF_ALL, "expires_at", "TRUE".to_owned()),
            (!closed.is_empty(), CLOSED_OF_ALL, "settled_at DESC", { has_status(&closed) }),
        ];
        for (is_wanted, rows, order, condition) in walks {
            if !is_wanted || found.len() >= limit {
                continue;
            }
            let mut reading = Reading::new(self.position_function());
            let most = reading.bind(MAX_WALK);
            let of = tenant.map_or_else(
                || "TRUE".to_owned(),
                |tenant| format!("tenant_id = {}", reading.bind(tenant)),
            );
            let rest = i64::try_from(limit - found.len()).unwrap_or(i64::MAX);
            let rest = reading.bind(rest);
            reading.sql = format!(
                "SELECT {NAMES} FROM (
                    SELECT {COLUMNS} FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {most}
                 ) AS walk WHERE {condition} AND {of} ORDER BY {order} LIMIT {rest}"
            );
            found.extend(self.run::<ListedRow>("ledger.list_for_operators", reading).await?);
        }
        Ok(found.into_iter().filter_map(|row| row.into_listed().ok()).collect())
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

    async fn run<R: Row>(&self, name: &'static str, reading: Reading) -> Result<Vec<R>> {
        self.read(name, self.engine.all_of(reading.text(), &reading.values)).await
    }

    async fn read<R>(
        &self,
        name: &'static str,
        rows: impl Future<Output = sqlx::Result<Vec<R>>>,
    ) -> Result<Vec<R>> {
        self.engine.call(name, rows).await.map_err(LedgerError::of_a_read)
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

    /// The condition that only the statements of this walk's index name; see the migration.
    fn index(self, source: &Source) -> &'static str {
        match (self, source) {
            (Self::Pending, Source::AskedAgain) => "asked_again_until IS NOT NULL",
            (Self::Pending, Source::Tenant) | (Self::Closed, _) => "fingerprint >= ''",
            (Self::Pending, _) => "content_hash >= ''",
            (Self::Created, _) => "action_type >= ''",
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

/// Which rows of a walk are read.
enum Extent {
    /// This many, whether or not the filter takes them.
    Walk(i64),
    /// These requests of the tenant.
    Found(Vec<String>),
}

impl Extent {
    /// Whether a source has stopped at its row of this number, and may have further rows.
    fn ends_at(&self, number: i64) -> bool {
        matches!(self, Self::Walk(most) if *most == number)
    }
}

/// A statement, and the values of its parameters.
struct Reading {
    sql: String,
    values: Vec<Value>,
    /// See [`Ledger::position_function`].
    position: &'static str,
}

impl Reading {
    fn new(position: &'static str) -> Self {
        Self { sql: String::new(), values: Vec::new(), position }
    }

    /// The statement's text, which has values only as parameters.
    fn text(&self) -> SqlStr {
        AssertSqlSafe(self.sql.as_str()).into_sql_str()
    }

    fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// Reads a page. Several sources are merged in the order of the list.
    fn page(
        mut self,
        filter: &Filter,
        walk: Walk,
        after: Option<&Position>,
        limit: usize,
        extent: &Extent,
    ) -> Self {
        let reading = &mut self;
        let limit = reading.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut parts = Vec::new();
        for source in walk.sources(filter) {
            parts.push(reading.part(filter, walk, &source, after, &limit, extent));
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
        self
    }

    /// Reads the rows of one source.
    fn part(
        &mut self,
        filter: &Filter,
        walk: Walk,
        source: &Source,
        after: Option<&Position>,
        limit: &str,
        extent: &Extent,
    ) -> String {
        let mut rows = self.rows(filter, walk, source, after);
        let most = match extent {
            Extent::Walk(most) => {
                rows = format!("{rows} AND {}", walk.index(source));
                *most
            }
            // Each request is looked up by its key: no other index can be used.
            Extent::Found(ids) => {
                let again = matches!(source, Source::AskedAgain);
                let again = if again { " AND asked_again_until IS NOT NULL" } else { "" };
                rows = format!("{} AND {rows}{again}", self.one_of("request_id", ids));
                MAX_FOUND + 1
            }
        };
        let filters = self.filters(filter, walk, source);
        let (order, key) = (walk.order(source), walk.key(source));
        if filters.is_empty() {
            return format!(
                "SELECT {COLUMNS}, {key} AS sort_at, CAST(0 AS BIGINT) AS walked, TRUE AS is_match
                   FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {limit}"
            );
        }
        let walk = self.bind(most);
        format!(
            "SELECT {NAMES}, {key} AS sort_at, walked, ({filters}) AS is_match FROM (
                SELECT {COLUMNS}, ROW_NUMBER() OVER (ORDER BY {order}) AS walked
                  FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {walk}
             ) AS walk WHERE ({filters}) OR walked = {walk} ORDER BY {order} LIMIT {limit}"
        )
    }

    /// Counts at most one more than [`MAX_WALK`] requests.
    fn count(mut self, filter: &Filter, walk: Walk, source: &Source) -> Self {
        let reading = &mut self;
        let rows = reading.rows(filter, walk, source, None);
        let rows = format!("{rows} AND {}", walk.index(source));
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
                    SELECT tenant_id, request_id, session_id, user_id, action_type, status, task_id, decided_by,
                           created_at, expires_at, moved_on, asked_again_until, asked_at, decided_via, rule,
                           risk, binding, voters, response IS NOT NULL AS is_answered
                      FROM hitl_request WHERE {rows} ORDER BY {order} LIMIT {limit}
                 ) AS walk WHERE {filters}"
            )
        };
        self
    }

    /// The condition that a column has one of these values.
    fn one_of(&mut self, column: &str, values: &[String]) -> String {
        let values = self.bind(Value::Texts(values.to_vec()));
        if self.position == "instr" {
            format!("{column} IN (SELECT value FROM json_each({values}))")
        } else {
            format!("{column} = ANY({values})")
        }
    }

    /// The condition that the caller has decided the request, alone or with others.
    fn is_decided_by(&mut self, caller: &UserId) -> String {
        let user = self.bind(caller);
        let spelled = self.bind(crate::domain::json::raw(caller.as_str()).get());
        let position = self.position;
        format!(
            "(decided_via IS NULL AND (decided_by = {user}
              OR COALESCE({position}(voters, {spelled}), 0) > 0))"
        )
    }

    /// The condition that a request names the caller, somebody else, or nobody.
    fn named(&mut self, named: Named, caller: &UserId) -> String {
        match named {
            Named::Own => format!("user_id = {}", self.bind(caller)),
            Named::Other => format!("user_id <> {}", self.bind(caller)),
            Named::Nobody => "user_id IS NULL".to_owned(),
        }
    }

    /// The condition that the caller may decide the request, as far as the rules that bind it go.
    fn decidable(&mut self, decidable: &Decidable, caller: &UserId) -> String {
        let mut ways = Vec::new();
        for (whose, keys) in [
            (Named::Own, &decidable.own),
            (Named::Other, &decidable.others),
            (Named::Nobody, &decidable.nobodys),
        ] {
            if !keys.is_empty() {
                let named = self.named(whose, caller);
                ways.push(format!("({named} AND {})", self.one_of("binding", keys)));
            }
        }
        for Aged { binding, named: whose, made_by } in &decidable.aged {
            let named = self.named(*whose, caller);
            let (binding, made_by) = (self.bind(binding), self.bind(*made_by));
            ways.push(format!(
                "({named} AND binding = {binding} AND COALESCE(asked_at, created_at) <= {made_by})"
            ));
        }
        if ways.is_empty() { "FALSE".to_owned() } else { ways.join(" OR ") }
    }

    /// The condition of the rows of this walk, from the position on.
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
        match (walk, source) {
            (Walk::Pending, Source::AskedAgain) | (Walk::Created, _) => {}
            (Walk::Pending, _) => rows.push("status = 'pending'".to_owned()),
            // What was asked again is pending.
            (Walk::Closed, _) => {
                rows.push("status <> 'pending' AND asked_again_until IS NULL".to_owned());
            }
        }
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
            let has_status = has_status(&filter.statuses);
            filters.push(match (walk, filter.has_pending()) {
                (Walk::Created, true) => {
                    format!("({has_status} OR asked_again_until IS NOT NULL)")
                }
                (Walk::Created, false) => {
                    format!("{has_status} AND asked_again_until IS NULL")
                }
                _ => has_status,
            });
        }
        // Only the values of parameters that the statement names are bound.
        match filter.decidable_at {
            Some(_now) if matches!(source, Source::AskedAgain) => {
                let is_decider = self.is_decided_by(&filter.caller);
                filters.push(is_decider);
            }
            Some(now) if walk == Walk::Created && filter.has_pending() => {
                let (now, decider) = (self.bind(now), self.is_decided_by(&filter.caller));
                filters.push(format!(
                    "(status <> 'pending' OR (expires_at > {now} AND NOT moved_on))
                     AND (asked_again_until IS NULL OR {decider})"
                ));
            }
            _ => {}
        }
        // What was asked again is for its deciders alone.
        if let Some(decidable) = &filter.decidable
            && !matches!(source, Source::AskedAgain)
        {
            let may = self.decidable(decidable, &filter.caller);
            let has = if walk == Walk::Pending {
                String::new()
            } else {
                format!(" OR {}", self.is_decided_by(&filter.caller))
            };
            filters.push(format!("({may}{has})"));
        }
        if let Some(risk) = &filter.risk {
            filters.push(format!("COALESCE(risk, 'medium') = {}", self.bind(risk)));
        }
        if let Some(rule) = &filter.rule {
            filters.push(format!("rule = {}", self.bind(rule)));
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
        if !filter.words.is_empty() {
            let position = self.position;
            let has = |word: &String| format!("{position}(s.body, {}) > 0", self.bind(word));
            let words = filter.words.iter().map(has).collect::<Vec<_>>().join(" AND ");
            filters.push(format!(
                "(SELECT {words} FROM hitl_search s
                   WHERE s.request_id = walk.request_id AND s.tenant_id = walk.tenant_id)"
            ));
        }
        filters.join(" AND ")
    }
}
