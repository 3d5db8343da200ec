//! Comments on requests: table `hitl_comment`. A comment belongs to a request by tenant and id; the
//! request of an agent on Redis may have no row yet. Comments are deleted with the row (`retention`).

use chrono::{DateTime, Utc};
use const_format::formatcp;
use sqlx::error::DatabaseError;
use tracing::Instrument as _;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::{LedgerError, Result};
use crate::domain::approver::Caller;
use crate::domain::comment::{Author, Comment, MAX_COMMENTS};
use crate::domain::ids::{RequestId, SessionId, TenantId, UserId};
use crate::domain::notice::Cause;
use crate::observe::traces;

/// How often to write a comment again, after a concurrent one took its number.
const MAX_TRIES: usize = 20;
/// The most comments to read at once: many more than people write in a minute.
const MAX_READ: i64 = 1000;

/// A comment to write.
#[derive(Debug)]
pub struct NewComment<'a> {
    /// The tenant of the request.
    pub tenant: &'a TenantId,
    /// The request.
    pub request: &'a RequestId,
    /// The session of the request.
    pub session: &'a SessionId,
    /// Who writes it.
    pub caller: &'a Caller,
    /// Whether a person or an agent writes it.
    pub author: Author,
    /// What it says.
    pub text: &'a str,
    /// When it is written, UTC.
    pub now: DateTime<Utc>,
}

/// A comment as the statements read it.
type CommentRow = (String, i64, String, String, String, DateTime<Utc>);

/// The columns of a [`CommentRow`].
const COLUMNS: &str = "request_id, number, user_id, author, text, created_at";

/// `None` for a row that somebody has edited by hand.
fn readable((request, number, user, author, text, at): CommentRow) -> Option<Comment> {
    let author = match &*author {
        "agent" => Author::Agent,
        _ => Author::Person,
    };
    let (request, user) = (RequestId::parse(request).ok()?, UserId::parse(user).ok()?);
    Some(Comment { request, number, user, author, text, at })
}

impl Ledger {
    /// Writes a comment, and returns its number. `None`: the request is not pending any more, or has
    /// [`MAX_COMMENTS`] already.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer. After [`LedgerError::OutcomeUnknown`] the comment
    /// may be written.
    pub async fn insert_comment(&self, comment: &NewComment<'_>) -> Result<Option<i64>> {
        const INSERT: Statement = Statement::new(
            "ledger.insert_comment",
            formatcp!("WITH written AS ({WRITE}), told AS ({TELL} FROM written WHERE $14 IS NOT NULL) SELECT number FROM written"),
        )
        .on_sqlite(WRITE)
        .then(&[formatcp!("{TELL} WHERE $14 IS NOT NULL")]);
        const WRITE: &str = "INSERT INTO hitl_comment (
                tenant_id, request_id, number, session_id, user_id, author, text, created_at,
                caller_source, caller_type, agent_id, trace_id, gateway_request_id
             )
             SELECT $1, $2, COALESCE(MAX(c.number), 0) + 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
               FROM hitl_comment c WHERE c.tenant_id = $1 AND c.request_id = $2
             HAVING COALESCE(MAX(c.number), 0) < $13
                AND COALESCE((SELECT r.status FROM hitl_request r
                               WHERE r.tenant_id = $1 AND r.request_id = $2
                                 AND r.asked_again_until IS NULL), 'pending') = 'pending'
             RETURNING number";
        const TELL: &str = "\
            INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at)
             SELECT 'notice', 'request.commented', $1, $2, $14, $7, $7";
        let NewComment { tenant, request, session, caller, author, text, now } = comment;
        let via = &caller.via;
        let values = values![
            *tenant,
            *request,
            *session,
            &caller.user,
            author.as_str(),
            *text,
            *now,
            via.source.as_ref(),
            via.caller_type.as_ref(),
            via.agent_id.as_ref(),
            via.trace_id.as_ref(),
            via.gateway_request_id.as_ref(),
            MAX_COMMENTS,
            self.tells().then(|| Cause::by(&caller.user).json()),
        ];
        let writing = async {
            for _try in 0..MAX_TRIES {
                let written = self.engine.optional(INSERT, &values);
                match self.engine.within_timeout(written).await {
                    Err(error)
                        if error
                            .as_database_error()
                            .is_some_and(DatabaseError::is_unique_violation) => {}
                    written => return Ok(written?.map(|(number,): (i64,)| number)),
                }
            }
            Err(LedgerError::NotExecuted("other comments were always faster".to_owned()))
        };
        writing.instrument(traces::step(INSERT.name())).await
    }

    /// The comments of a request, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn comments(&self, tenant: &TenantId, request: &RequestId) -> Result<Vec<Comment>> {
        const COMMENTS: Statement = Statement::new(
            "ledger.comments",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_comment
                  WHERE tenant_id = $1 AND request_id = $2 ORDER BY number LIMIT $3"
            ),
        );
        let rows = self.engine.fetch_all(COMMENTS, &values![tenant, request, MAX_COMMENTS]).await?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// The comments on requests of a session that were written at this time or later, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn comments_in(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        since: DateTime<Utc>,
    ) -> Result<Vec<Comment>> {
        const COMMENTS_IN: Statement = Statement::new(
            "ledger.comments_in",
            formatcp!(
                "SELECT {COLUMNS} FROM hitl_comment
                  WHERE tenant_id = $1 AND session_id = $2 AND created_at >= $3
                  ORDER BY created_at, request_id, number LIMIT $4"
            ),
        );
        let values = values![tenant, session, since, MAX_READ];
        let rows = self.engine.fetch_all(COMMENTS_IN, &values).await?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// The comments of all tenants that were written after `since`, without their texts, the latest
    /// first.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger does not answer.
    pub async fn commented_since(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<(SessionId, TenantId, RequestId, i64)>> {
        const COMMENTED_SINCE: Statement = Statement::new(
            "ledger.commented_since",
            "SELECT session_id, tenant_id, request_id, number FROM hitl_comment
              WHERE created_at <= 'infinity' AND created_at > $1
              ORDER BY created_at DESC LIMIT 10000",
        );
        let rows = self.engine.fetch_all(COMMENTED_SINCE, &values![since]).await?;
        let readable = |(session, tenant, request, number): (String, String, String, i64)| {
            let session = SessionId::parse(session).ok()?;
            let (tenant, request) =
                (TenantId::parse(tenant).ok()?, RequestId::parse(request).ok()?);
            Some((session, tenant, request, number))
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }
}
