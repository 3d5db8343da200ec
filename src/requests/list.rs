//! Lists requests for people, page by page.

use super::bound::{BoundRules, Rights};
use super::error::Result;
use crate::domain::approver::Caller;
use crate::domain::list::{Filter, Listed, Order, Owners, Position, Status};
use crate::domain::rules;
use crate::state::AppState;

/// Which requests of the tenant to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that the caller may decide now; of closed ones, those that the caller decided or could
    /// have decided.
    Decidable,
    /// Those that name the caller.
    Mine,
    /// All. For admins.
    Tenant,
}

impl Scope {
    /// The scope on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decidable => "decidable",
            Self::Mine => "mine",
            Self::Tenant => "tenant",
        }
    }

    /// The scope of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Decidable, Self::Mine, Self::Tenant].into_iter().find(|scope| scope.as_str() == text)
    }
}

/// What a caller asks for, besides a scope.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose requests.
    pub scope: Scope,
    /// The statuses, the order and the filters.
    pub filter: Filter,
}

/// A page of a list.
#[derive(Debug)]
pub struct Listing {
    /// The requests, and what the caller may do with each of them now.
    pub rows: Vec<(Listed, Rights)>,
    /// Where the next page begins.
    pub next: Option<Position>,
    /// See [`Ledger::count_listed`](crate::ledger::Ledger::count_listed).
    pub total: u64,
    /// See [`Page::searched_newest`](crate::ledger::Page::searched_newest).
    pub searched_newest: Option<u64>,
}

/// The order of a list when the caller names none.
#[must_use]
pub fn default_order(statuses: &[Status]) -> Order {
    if statuses == [Status::Pending] { Order::ExpiresAt } else { Order::SettledAt }
}

/// The page after a position, or the first page.
///
/// # Errors
/// `RequestError::Ledger` when the ledger does not answer.
pub async fn list(
    app: &AppState,
    caller: &Caller,
    wanted: Wanted,
    after: Option<&Position>,
    size: usize,
) -> Result<Listing> {
    let now = app.clock.now();
    let Wanted { scope, mut filter } = wanted;
    let bound = BoundRules::read(app).await?;
    (filter.owners, filter.decidable_at) = match scope {
        Scope::Decidable => match bound.decidable(caller, now) {
            Some(decidable) => {
                filter.decidable = Some(decidable);
                (Owners::All, Some(now))
            }
            None => (rules::decidable(caller, app.policy), Some(now)),
        },
        Scope::Mine => (Owners::Only(caller.user.clone()), None),
        Scope::Tenant => (Owners::All, None),
    };
    let page = app.ledger.list_requests(&filter, after, size).await?;
    let total = app.ledger.count_listed(&filter).await?;
    let mut rows = Vec::with_capacity(page.rows.len());
    for row in page.rows {
        let rights = bound.rights(app, &row, caller, now).await?;
        rows.push((row, rights));
    }
    Ok(Listing { rows, next: page.next, total, searched_newest: page.searched_newest })
}
