//! What the streams of inboxes read: which requests of a tenant have changed, where they stand now, and how
//! many wait. Each statement is bounded, and is run for a tenant, not for each of its streams.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use const_format::formatcp;

use super::connect::Ledger;
use super::engine::{Statement, values};
use super::error::Result;
use super::lists::{CLOSED_AT, MAX_WALK};
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::list::Status;
use crate::domain::request::Origin;

/// Where a request stands after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The request.
    pub id: RequestId,
    /// The user that it names.
    pub user: Option<UserId>,
    /// Its status now.
    pub status: Status,
    /// The number of its last comment; `None` without one, or if that was not read.
    pub last_comment: Option<i64>,
    /// Whether it is told for a new comment, and not for its status.
    pub is_commented: bool,
    /// See [`Ruling::binding`](crate::domain::record::Ruling::binding).
    pub binding: Option<String>,
    /// Where it was first written.
    pub origin: Origin,
    /// When its agent made it, UTC.
    pub asked_at: DateTime<Utc>,
    /// Who has decided it.
    pub deciders: Vec<UserId>,
    /// How often votes on it were written.
    pub ballots: i64,
    /// The hash of what it says: its agent may write it anew.
    pub content_hash: String,
    /// See [`Record::has_moved_on`](crate::domain::record::Record::has_moved_on).
    pub has_moved_on: bool,
}

/// How many requests of one user wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingOfUser {
    /// All of them.
    pub all: u64,
    /// Those among them that can be decided: their sessions have not moved on.
    pub decidable: u64,
}

/// How many requests of a tenant wait. Each count stops at one more than [`MAX_WALK`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// All that can be decided.
    pub all: u64,
    /// Those among them that name nobody.
    pub of_nobody: u64,
    /// Those that name each of some users.
    pub of: HashMap<UserId, WaitingOfUser>,
    /// Decided requests that their agents have asked again: the user that the request names, and the
    /// people who decided it.
    pub asked_again: Vec<(Option<UserId>, Vec<UserId>)>,
    /// With a policy file: all that can be decided, by what binds them.
    pub bound: Option<BoundWaiting>,
}

/// The requests of a tenant that wait, by what binds them. At most one more than [`MAX_WALK`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundWaiting {
    /// The rules of each key, as the policy spells them.
    pub rules: HashMap<String, String>,
    /// The requests of each key.
    pub groups: HashMap<String, Group>,
}

/// When requests were made that the same rules bind, the earliest first, UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// All of them.
    pub all: Vec<DateTime<Utc>>,
    /// Those that name nobody.
    pub nobodys: Vec<DateTime<Utc>>,
    /// Those that name each user.
    pub of: HashMap<UserId, Vec<DateTime<Utc>>>,
}

/// The most requests that were asked again to count.
const MAX_ASKED_AGAIN: i64 = 1000;

/// The columns of a [`Changed`].
const CHANGED_COLUMNS: &str = "\
    request_id, user_id,
    CASE WHEN asked_again_until IS NOT NULL THEN 'pending'
         WHEN response IS NOT NULL THEN 'answered' ELSE status END AS status, binding, origin,
    COALESCE(asked_at, created_at) AS asked_at, decided_by, decided_via, voters,
    COALESCE(ballots, 0) AS ballots, content_hash, moved_on";
/// No comment is read: most of what has changed has none that is new.
const NO_COMMENT: &str = "CAST(NULL AS BIGINT) AS last_comment";
/// The number of the last comment.
const LAST_COMMENT: &str = "    (SELECT MAX(c.number) FROM hitl_comment c
      WHERE c.tenant_id = hitl_request.tenant_id AND c.request_id = hitl_request.request_id
    ) AS last_comment";

/// The user that a request names, who decided it, how, and who voted.
type AskedAgainRow = (Option<String>, Option<String>, Option<String>, Option<String>);
/// What binds a request, the user that it names, and when its agent made it.
type WaitingRow = (Option<String>, Option<String>, DateTime<Utc>);

#[derive(sqlx::FromRow)]
struct ChangedRow {
    request_id: String,
    user_id: Option<String>,
    status: String,
    binding: Option<String>,
    origin: String,
    asked_at: DateTime<Utc>,
    decided_by: Option<String>,
    decided_via: Option<String>,
    voters: Option<String>,
    ballots: i64,
    content_hash: String,
    moved_on: bool,
    last_comment: Option<i64>,
}

/// `None` for a row that somebody has edited by hand.
fn readable(row: ChangedRow) -> Option<Changed> {
    Some(Changed {
        id: RequestId::parse(row.request_id).ok()?,
        user: row.user_id.and_then(|user| UserId::parse(user).ok()),
        status: Status::parse(&row.status)?,
        binding: row.binding,
        origin: if row.origin == "http" { Origin::Http } else { Origin::Redis },
        asked_at: row.asked_at,
        deciders: deciders(row.decided_by, row.decided_via.as_deref(), row.voters.as_deref()),
        ballots: row.ballots,
        content_hash: row.content_hash,
        has_moved_on: row.moved_on,
        last_comment: row.last_comment,
        is_commented: false,
    })
}

/// The people who have decided a request, alone or together.
fn deciders(by: Option<String>, via: Option<&str>, voters: Option<&str>) -> Vec<UserId> {
    let mut deciders = super::request_row::voters(voters);
    let by = by.filter(|_by| via.is_none()).and_then(|by| UserId::parse(by).ok());
    deciders.extend(by);
    deciders
}

impl Ledger {
    /// Where the requests of a tenant stand that were created or closed since then, at most
    /// [`MAX_WALK`] of each. A request that was both is there twice.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn changed_since(
        &self,
        tenant: &TenantId,
        since: DateTime<Utc>,
    ) -> Result<Vec<Changed>> {
        const CLOSED: Statement = Statement::new(
            "ledger.closed_since",
            formatcp!(
                "SELECT {CHANGED_COLUMNS}, {NO_COMMENT} FROM hitl_request
                  WHERE tenant_id = $1 AND status <> 'pending' AND fingerprint >= ''
                    AND {CLOSED_AT} >= $2 AND {CLOSED_AT} <= 'infinity'
                  ORDER BY {CLOSED_AT} DESC, request_id DESC LIMIT $3"
            ),
        );
        const CREATED: Statement = Statement::new(
            "ledger.created_since",
            formatcp!(
                "SELECT {CHANGED_COLUMNS}, {NO_COMMENT} FROM hitl_request
                  WHERE tenant_id = $1 AND action_type >= '' AND created_at >= $2
                    AND created_at <= 'infinity'
                  ORDER BY created_at DESC, request_id DESC LIMIT $3"
            ),
        );
        let values = values![tenant, since, MAX_WALK];
        // What is closed between the two reads is created before it is closed.
        let mut rows = self.engine.fetch_all::<ChangedRow>(CREATED, &values).await?;
        rows.extend(self.engine.fetch_all::<ChangedRow>(CLOSED, &values).await?);
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Where these requests of a tenant stand now. Unknown ids are left out.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn find_changed(&self, tenant: &TenantId, ids: &[RequestId]) -> Result<Vec<Changed>> {
        // Row by row: for many ids at once, Postgres may read all requests of the tenant instead.
        const CHANGED: Statement = Statement::new(
            "ledger.find_changed",
            formatcp!(
                "SELECT changed.* FROM UNNEST($2::text[]) AS wanted (id), LATERAL (
                     SELECT {CHANGED_COLUMNS}, {LAST_COMMENT} FROM hitl_request
                      WHERE tenant_id = $1 AND request_id = wanted.id LIMIT 1) AS changed"
            ),
        )
        .on_sqlite(formatcp!(
            "SELECT {CHANGED_COLUMNS}, {LAST_COMMENT} FROM hitl_request
              WHERE tenant_id = $1 AND request_id IN (SELECT value FROM json_each($2))"
        ));
        let rows = self.engine.fetch_all(CHANGED, &values![tenant, ids]).await?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// How many requests of a tenant wait, and how many of them name each of these users.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn count_waiting(&self, tenant: &TenantId, users: &[UserId]) -> Result<Waiting> {
        const COUNT_ALL: Statement = Statement::new(
            "ledger.count_waiting",
            "SELECT COUNT(*) FROM (
                SELECT 1 FROM hitl_request
                 WHERE tenant_id = $1 AND status = 'pending' AND fingerprint >= '' AND NOT moved_on
                 ORDER BY expires_at, request_id LIMIT $2
             ) AS counted",
        );
        const COUNT_OF_NOBODY: Statement = Statement::new(
            "ledger.count_waiting_of_nobody",
            "SELECT COUNT(*) FROM (
                SELECT 1 FROM hitl_request
                 WHERE tenant_id = $1 AND user_id IS NULL AND status = 'pending'
                   AND content_hash >= '' AND NOT moved_on
                 ORDER BY user_id, expires_at, request_id LIMIT $2
             ) AS counted",
        );
        const OF_USER: &str = "(SELECT COUNT(*) FROM (
                SELECT moved_on FROM hitl_request
                 WHERE tenant_id = $1 AND user_id = u.id AND status = 'pending' AND content_hash >= ''
                 ORDER BY expires_at, request_id LIMIT $3
             ) AS counted";
        const OF_USERS: &str = formatcp!("u.id, {OF_USER}), {OF_USER} WHERE NOT moved_on)");
        const COUNT_OF_USERS: Statement = Statement::new(
            "ledger.count_waiting_of_users",
            formatcp!("SELECT {OF_USERS} FROM UNNEST($2) AS u(id)"),
        )
        .on_sqlite(formatcp!(
            "SELECT {OF_USERS} FROM (SELECT value AS id FROM json_each($2)) AS u"
        ));
        const ASKED_AGAIN: Statement = Statement::new(
            "ledger.asked_again_of_tenant",
            "SELECT user_id, decided_by, decided_via, voters FROM hitl_request
              WHERE tenant_id = $1 AND asked_again_until IS NOT NULL
              ORDER BY asked_again_until, request_id LIMIT $2",
        );
        let limit = MAX_WALK + 1;
        let (all,): (i64,) = self.engine.fetch_one(COUNT_ALL, &values![tenant, limit]).await?;
        let (of_nobody,): (i64,) =
            self.engine.fetch_one(COUNT_OF_NOBODY, &values![tenant, limit]).await?;
        let of: Vec<(String, i64, i64)> = if users.is_empty() {
            Vec::new()
        } else {
            self.engine.fetch_all(COUNT_OF_USERS, &values![tenant, users, limit]).await?
        };
        let asked_again = values![tenant, MAX_ASKED_AGAIN];
        let asked_again: Vec<AskedAgainRow> =
            self.engine.fetch_all(ASKED_AGAIN, &asked_again).await?;
        let user = |id: Option<String>| id.and_then(|id| UserId::parse(id).ok());
        Ok(Waiting {
            all: all.unsigned_abs(),
            of_nobody: of_nobody.unsigned_abs(),
            of: of
                .into_iter()
                .filter_map(|(id, all, decidable)| {
                    let (all, decidable) = (all.unsigned_abs(), decidable.unsigned_abs());
                    Some((UserId::parse(id).ok()?, WaitingOfUser { all, decidable }))
                })
                .collect(),
            asked_again: asked_again
                .into_iter()
                .map(|(of, by, via, voters)| {
                    (user(of), deciders(by, via.as_deref(), voters.as_deref()))
                })
                .collect(),
            bound: None,
        })
    }

    /// The requests of a tenant that can be decided, by what binds them under this version of the policy
    /// file.
    ///
    /// # Errors
    /// [`LedgerError`](super::LedgerError) when the ledger does not answer.
    pub async fn bound_waiting(&self, tenant: &TenantId, version: &str) -> Result<BoundWaiting> {
        const BOUND_WAITING: Statement = Statement::new(
            "ledger.bound_waiting",
            "SELECT binding, user_id, COALESCE(asked_at, created_at) FROM hitl_request
              WHERE tenant_id = $1 AND status = 'pending' AND fingerprint >= '' AND NOT moved_on
              ORDER BY expires_at, request_id LIMIT $2",
        );
        let rules = self.bindings_of(version).await?.into_iter().collect::<HashMap<_, _>>();
        let mut rows: Vec<WaitingRow> =
            self.engine.fetch_all(BOUND_WAITING, &values![tenant, MAX_WALK + 1]).await?;
        rows.sort_unstable_by_key(|(_, _, at)| *at);
        let mut groups = HashMap::<String, Group>::new();
        for (binding, user, at) in rows {
            let Some(binding) = binding.filter(|binding| rules.contains_key(binding)) else {
                continue;
            };
            let group = groups.entry(binding).or_default();
            group.all.push(at);
            match user.map(UserId::parse) {
                None => group.nobodys.push(at),
                Some(Ok(user)) => group.of.entry(user).or_default().push(at),
                Some(Err(_edited)) => {}
            }
        }
        Ok(BoundWaiting { rules, groups })
    }
}
