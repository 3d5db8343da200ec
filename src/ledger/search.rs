//! The text in which lists search words: table `hitl_search`. Postgres finds words by a trigram index if
//! the extension `pg_trgm` could be created, SQLite by FTS5.

use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Database, Statement, values};
use super::error::Result;
use crate::domain::ids::{RequestId, TenantId};

/// The text of one request.
#[derive(Clone, Debug)]
pub struct SearchText {
    /// The request's tenant.
    pub tenant: TenantId,
    /// The request.
    pub id: RequestId,
    /// See [`search::text`](crate::domain::search::text).
    pub body: String,
}

/// A request that lacks its text or what lists show of it.
#[derive(Debug, sqlx::FromRow)]
pub struct Unprepared {
    /// Its document.
    pub document: String,
    /// Whether the row lacks its entity tag and its message.
    pub lacks_etag: bool,
}

/// The most requests that [`Ledger::unprepared`] looks at.
const UNPREPARED_PAGE_SIZE: i64 = 200;

impl Ledger {
    /// Writes the texts of requests, or replaces them. Each request may be there once.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Writing again is safe.
    pub async fn write_search_texts(&self, texts: &[SearchText]) -> Result<()> {
        const CONFLICT: &str = "\
            ON CONFLICT (request_id, tenant_id) DO UPDATE SET body = excluded.body
             WHERE hitl_search.body <> excluded.body";
        const WRITE: Statement = Statement::new(
            "ledger.write_search_texts",
            formatcp!(
                "INSERT INTO hitl_search (request_id, tenant_id, body)
                 SELECT m.request_id, m.tenant_id, m.body
                   FROM UNNEST($1::text[], $2::text[], $3::text[]) AS m(request_id, tenant_id, body)
                 {CONFLICT}"
            ),
        )
        .on_sqlite(formatcp!(
            "INSERT INTO hitl_search (request_id, tenant_id, body) VALUES ($1, $2, $3) {CONFLICT}"
        ));
        let mut sorted = texts.iter().collect::<Vec<_>>();
        // In one order, so that two replicas cannot wait for each other.
        sorted.sort_unstable_by_key(|text| (&text.id, &text.tenant));
        let rows = sorted.iter().map(|text| values![&text.id, &text.tenant, &text.body].to_vec());
        self.engine.execute_many(WRITE, &rows.collect::<Vec<_>>()).await
    }

    /// The tenant after this one, in the order of tenants; `None` after the last one.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn tenant_after(&self, tenant: &str) -> Result<Option<String>> {
        const NEXT: Statement = Statement::new(
            "ledger.tenant_after",
            "SELECT MIN(tenant_id) FROM hitl_request WHERE tenant_id > $1",
        );
        let (next,) = self.engine.fetch_one(NEXT, &values![tenant]).await?;
        Ok(next)
    }

    /// Of the next requests of a tenant after this id, those that lack their text or what lists
    /// show of them; and the last id that was looked at, `None` at the end.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn unprepared(
        &self,
        tenant: &str,
        after: &str,
    ) -> Result<(Vec<String>, Option<String>)> {
        // The number of rows is a constant: Postgres takes a parameter for a tenth of the table, and
        // may then read and sort all of it.
        const PAGE: Statement = Statement::new(
            "ledger.unprepared",
            formatcp!(
                "SELECT p.request_id, p.lacks_etag OR (
                    SELECT s.tenant_id FROM hitl_search s
                     WHERE s.request_id = p.request_id AND s.tenant_id = $1
                ) IS NULL
               FROM (SELECT request_id, etag IS NULL AS lacks_etag FROM hitl_request
                      WHERE tenant_id = $1 AND request_id > $2
                      ORDER BY request_id LIMIT {UNPREPARED_PAGE_SIZE}) AS p
              ORDER BY p.request_id"
            ),
        );
        let rows: Vec<(String, bool)> =
            self.engine.fetch_all(PAGE, &values![tenant, after]).await?;
        let last = rows.last().map(|(id, _lacks)| id.clone());
        let lacking = rows.into_iter().filter(|(_, lacks)| *lacks);
        Ok((lacking.map(|(id, _lacks)| id).collect(), last))
    }

    /// The document of a request that lacks its text or what lists show of it.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn document_to_prepare(&self, tenant: &str, id: &str) -> Result<Option<Unprepared>> {
        const DOCUMENT: Statement = Statement::new(
            "ledger.document_to_prepare",
            "SELECT document, etag IS NULL AS lacks_etag FROM hitl_request
              WHERE tenant_id = $1 AND request_id = $2",
        );
        self.engine.fetch_optional(DOCUMENT, &values![tenant, id]).await
    }

    /// Fills in what lists show of a request that an older release has written.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Filling in again is safe.
    pub async fn fill_in_listed(
        &self,
        (tenant, id): (&str, &str),
        message: Option<&str>,
        etag: &str,
    ) -> Result<()> {
        const FILL_IN: Statement = Statement::new(
            "ledger.fill_in_listed",
            "UPDATE hitl_request SET message = $3, etag = $4
              WHERE tenant_id = $1 AND request_id = $2 AND etag IS NULL",
        );
        self.engine.execute(FILL_IN, &values![tenant, id, message, etag]).await.map(drop)
    }

    /// Whether an index finds words of three characters and more.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub(super) async fn has_word_index(&self) -> Result<bool> {
        const HAS_INDEX: Statement = Statement::new(
            "ledger.has_word_index",
            "SELECT COUNT(*) FROM pg_index
              WHERE indexrelid = to_regclass('hitl_search_words') AND indisvalid",
        );
        const KEY: &str = "hitl_search_words";
        if matches!(self.engine.database, Database::Sqlite(_)) {
            return Ok(true);
        }
        if let Some(count) = self.totals.get(KEY) {
            return Ok(count > 0);
        }
        let (count,): (i64,) = self.engine.fetch_one(HAS_INDEX, &[]).await?;
        self.totals.insert(KEY.to_owned(), count.unsigned_abs());
        Ok(count > 0)
    }
}
