//! Refused attempts to decide.

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::ids::RequestId;

/// Somebody's attempt to decide that was refused.
#[derive(Clone, Debug)]
pub struct RefusedAttempt {
    /// When.
    pub at: DateTime<Utc>,
    /// Who, as the token says.
    pub caller: Caller,
    /// What they wanted to decide.
    pub request: RequestId,
    /// `approved` or `rejected`: what they wanted it to be.
    pub verdict: &'static str,
    /// The contract's error code.
    pub error_code: &'static str,
    /// Why it was refused, in English.
    pub reason: String,
    /// The tag of the content that they had looked at.
    pub if_match: Option<String>,
}

impl Ledger {
    /// Records refused attempts to decide.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError); recording them again may record them twice.
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
            let Caller { user, tenant, role, token_id, via } = &attempt.caller;
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
