//! Refused attempts to decide a request: table `hitl_refused_attempt`.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;

/// One refused attempt to decide a request.
#[derive(Clone, Debug)]
pub struct RefusedAttempt {
    /// When the attempt was made, UTC.
    pub at: DateTime<Utc>,
    /// Who made the attempt, according to the token.
    pub caller: Caller,
    /// The request that the caller tried to decide.
    pub request: RequestId,
    /// The decision that was refused: `approved` or `rejected`.
    pub verdict: &'static str,
    /// The error code of the answer, as the API names it.
    pub error_code: &'static str,
    /// Why the attempt was refused, in English.
    pub reason: String,
    /// The `If-Match` header: the entity tag of the content that the caller had seen.
    pub if_match: Option<String>,
}

impl Ledger {
    /// Inserts refused attempts.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer. Inserting the same
    /// attempts again may store them twice.
    pub async fn insert_refused_attempts(&self, attempts: &[RefusedAttempt]) -> Result<()> {
        const COLUMNS: &str = "\
            attempted_at, tenant_id, user_id, role, token_id, request_id, verdict, error_code,
            reason, if_match, caller_source, caller_type, agent_id, trace_id, gateway_request_id";
        const INSERT: Statement = Statement::new(
            "ledger.insert_refused_attempts",
            formatcp!(
                "INSERT INTO hitl_refused_attempt ({COLUMNS})
                 SELECT * FROM UNNEST(
                    $1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                    $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                    $13::text[], $14::text[], $15::text[])"
            ),
        )
        .on_sqlite(formatcp!(
            "INSERT INTO hitl_refused_attempt ({COLUMNS})
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
        ));
        let values = |attempt: &RefusedAttempt| {
            let Caller { user, tenant, role, token_id, via, .. } = &attempt.caller;
            let values = values![
                attempt.at,
                tenant,
                user,
                role.as_str(),
                token_id.as_ref(),
                &attempt.request,
                attempt.verdict,
                attempt.error_code,
                &attempt.reason,
                attempt.if_match.as_ref(),
                via.source.as_ref(),
                via.caller_type.as_ref(),
                via.agent_id.as_ref(),
                via.trace_id.as_ref(),
                via.gateway_request_id.as_ref(),
            ];
            values.to_vec()
        };
        let rows = attempts.iter().map(values).collect::<Vec<_>>();
        self.engine.execute_many(INSERT, &rows).await
    }
}
