//! What the policy file says of requests before they get a row: which rules bind them, which of them a
//! rule or a grant decides by itself, and what is told again to agents that have asked again.

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use tracing::debug;

use super::leading::{IntakeError, Leading, ToWrite};
use crate::domain::ids::{RequestId, TenantId};
use crate::domain::record::{Candidate, DecidedVia, Record};
use crate::domain::request::Origin;
use crate::ledger::{AskedAgain, SeenRequest};
use crate::permit::{self, Law, Terms};
use crate::requests::automatic::decide_seen;
use crate::requests::error::{RequestError, Result as DecidingResult};
use crate::requests::load::ledger_candidate;
use crate::requests::send::send_if_asked_again;
use crate::requests::standing::covering_grants;
use crate::state::AppState;

/// Most requests to decide at once.
const CONCURRENCY: usize = 32;

impl Leading {
    /// Adds what the policy file says of each request. Decides those that a rule or a grant decides, and
    /// leaves out those whose time a rule has shortened until it is over. Returns the others.
    pub(super) async fn apply_rules(
        &mut self,
        app: &AppState,
        batch: Vec<ToWrite>,
    ) -> Result<Vec<ToWrite>, IntakeError> {
        let law = app.rules.in_force();
        if !law.has_file() {
            return Ok(batch);
        }
        let now = app.clock.now();
        let (mut pending, mut automatic) = (Vec::new(), Vec::new());
        for mut one in batch {
            let SeenRequest { request, tenant, user, asked_at, expires_at, .. } = &one.seen;
            let candidate = Candidate {
                request: request.clone(),
                origin: Origin::Redis,
                tenant: Some(tenant.clone()),
                user: user.clone(),
                created_at: *asked_at,
                expires_at: *expires_at,
            };
            let Terms { ruling, expires_at, is_automatic, may_be_granted } =
                law.terms(&candidate, tenant);
            if expires_at <= now {
                let id = request.id.clone();
                self.forget(&id);
                self.put_aside(&id, None);
                continue;
            }
            one.seen.ruling = ruling;
            one.seen.expires_at = expires_at;
            if one.seen.has_moved_on {
                pending.push(one);
            } else if is_automatic {
                automatic.push((one, None));
            } else if may_be_granted {
                automatic.push((one, Some(candidate)));
            } else {
                pending.push(one);
            }
        }
        let deciding = automatic.into_iter().map(|(one, grantable)| async {
            // Most have no grant, and then Redis need not be read for them.
            let decided = match grantable {
                Some(candidate) if !has_grant(app, &candidate, now).await? => Ok(false),
                _ => decide_seen(app, &one.seen.tenant, &one.seen.request.id).await,
            };
            Ok::<_, IntakeError>((one, decided))
        });
        let decided = futures_util::stream::iter(deciding).buffer_unordered(CONCURRENCY);
        for deciding in decided.collect::<Vec<_>>().await {
            let (one, decided) = deciding?;
            if decided_or_failed(decided)? {
                let id = one.seen.request.id.clone();
                self.forget(&id);
                self.put_aside(&id, None);
            } else {
                pending.push(one);
            }
        }
        Ok(pending)
    }

    /// Decides requests that a rule decides by itself, and that their sessions name only now.
    pub(super) async fn decide_named(
        &mut self,
        app: &AppState,
        named: Vec<(TenantId, RequestId)>,
    ) -> Result<(), IntakeError> {
        if !app.rules.in_force().has_file() {
            return Ok(());
        }
        for (tenant, id) in named {
            if decided_or_failed(decide_seen(app, &tenant, &id).await)? {
                self.forget(&id);
                self.put_aside(&id, None);
            }
        }
        Ok(())
    }

    /// Tells agents again that have asked again what a rule or a grant had decided, if it still would.
    /// Returns the requests that people had decided, or that neither would decide any more.
    pub(super) async fn tell_again(
        &mut self,
        app: &AppState,
        asked: Vec<AskedAgain>,
    ) -> Result<Vec<AskedAgain>, IntakeError> {
        let law = app.rules.in_force();
        if !law.has_file() {
            return Ok(asked);
        }
        let mut left = Vec::new();
        for one in asked {
            let record = app.ledger.find_request(&one.tenant, &one.id).await?;
            let record = record.filter(|record| {
                record.ruling.via != DecidedVia::Person && record.content_hash == one.content_hash
            });
            let candidate = record.clone().and_then(|record| ledger_candidate(record).ok());
            match (record, candidate) {
                (Some(record), Some(candidate))
                    if still_decides(app, &law, &candidate, &record).await? =>
                {
                    let told = send_if_asked_again(app, &one.id, &record).await;
                    decided_or_failed(told.map(|()| true))?;
                    if self.asked_again.remove(&one.id).is_some_and(|again| again.is_noted) {
                        app.ledger.forget_asked_again(std::slice::from_ref(&one.id)).await?;
                    }
                    self.put_aside(&one.id, None);
                }
                _ => left.push(one),
            }
        }
        Ok(left)
    }
}

/// Whether there is a grant that covers a request of Redis.
async fn has_grant(
    app: &AppState,
    candidate: &Candidate,
    now: DateTime<Utc>,
) -> Result<bool, IntakeError> {
    let Some(tenant) = &candidate.tenant else { return Ok(false) };
    Ok(!covering_grants(app, candidate, tenant, now).await?.is_empty())
}

/// Whether a rule, or a grant in force, would decide a request that is asked again as it was decided.
async fn still_decides(
    app: &AppState,
    law: &Law,
    candidate: &Candidate,
    record: &Record,
) -> Result<bool, IntakeError> {
    if record.ruling.via == DecidedVia::Policy {
        return Ok(permit::still_decides(law, candidate, record));
    }
    let now = app.clock.now();
    let asked = Candidate { created_at: now, ..candidate.clone() };
    let Some(tenant) = &asked.tenant else { return Ok(false) };
    let grants = covering_grants(app, &asked, tenant, now).await?;
    Ok(permit::still_grants(law, &asked, &grants, now))
}

/// A store that does not answer fails the round. Everything else is for people to decide.
fn decided_or_failed(decided: DecidingResult<bool>) -> Result<bool, IntakeError> {
    match decided {
        Ok(is_decided) => Ok(is_decided),
        Err(RequestError::Courier(error)) => Err(error.into()),
        Err(RequestError::Ledger(error) | RequestError::OutcomeUnknown(error)) => Err(error.into()),
        Err(error) => {
            debug!(%error, "a request is not decided by the policy");
            Ok(false)
        }
    }
}
