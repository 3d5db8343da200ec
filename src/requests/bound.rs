//! The rules that bind the requests of a list, without reading the requests: by the key that each row has.
//! A row that an earlier version of the policy file has bound is read and bound anew.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::error::Result;
use super::load::ledger_candidate;
use crate::domain::approver::Caller;
use crate::domain::ids::UserId;
use crate::domain::list::{Aged, Decidable, Listed, Named, Status};
use crate::domain::record::Record;
use crate::domain::rules;
use crate::permit::{self, DecidableFrom, Law, Seen};
use crate::policy::{Binding, Way};
use crate::state::AppState;

/// The rules in force, and the rules of each key.
#[derive(Debug)]
pub struct BoundRules {
    law: Law,
    bindings: HashMap<String, Binding>,
}

/// What the rules say of one request to one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Whether the caller may decide it now.
    pub may_decide: bool,
    /// The ways in which it can be decided.
    pub decisions: Vec<Way>,
}

impl BoundRules {
    /// The rules in force, and the rules of each key that the ledger knows.
    ///
    /// # Errors
    /// `RequestError::Ledger` when the ledger does not answer.
    pub async fn read(app: &AppState) -> Result<Self> {
        let law = app.rules.in_force();
        let mut bindings = HashMap::new();
        if let Some(version) = law.version() {
            let known = app.ledger.bindings_of(version).await?;
            let binding = |(key, rules): (String, String)| {
                law.binding_of_rules(&rules).map(|binding| (key, binding))
            };
            bindings = known.into_iter().filter_map(binding).collect();
        }
        Ok(Self { law, bindings })
    }

    /// Which requests the caller may decide; `None` without a policy file.
    #[must_use]
    pub fn decidable(&self, caller: &Caller, now: DateTime<Utc>) -> Option<Decidable> {
        if !self.law.has_file() {
            return None;
        }
        let mut decidable = Decidable::default();
        for (key, binding) in &self.bindings {
            let DecidableFrom { own, others, nobodys } = DecidableFrom::of(binding, caller, now);
            for (named, age) in
                [(Named::Own, own), (Named::Other, others), (Named::Nobody, nobodys)]
            {
                let keys = match named {
                    Named::Own => &mut decidable.own,
                    Named::Other => &mut decidable.others,
                    Named::Nobody => &mut decidable.nobodys,
                };
                match age {
                    None => {}
                    Some(age) if age == TimeDelta::zero() => keys.push(key.clone()),
                    Some(age) => {
                        let (binding, made_by) = (key.clone(), now - age);
                        decidable.aged.push(Aged { binding, named, made_by });
                    }
                }
            }
        }
        // The same list has the same statement.
        decidable.own.sort_unstable();
        decidable.others.sort_unstable();
        decidable.nobodys.sort_unstable();
        decidable.aged.sort_unstable_by(|one, other| one.binding.cmp(&other.binding));
        Some(decidable)
    }

    /// The rules that bind a listed request; `None` without a policy file.
    async fn binding_of(&self, app: &AppState, row: &Listed) -> Result<Option<Binding>> {
        if !self.law.has_file() {
            return Ok(None);
        }
        let key = row.ruling.binding.as_ref();
        if let Some(binding) = key.and_then(|key| self.bindings.get(key)) {
            return Ok(Some(binding.clone()));
        }
        if row.status != Status::Pending {
            return Ok(None);
        }
        let record = app.ledger.find_request(&row.tenant, &row.id).await?;
        let candidate = record.map(ledger_candidate).transpose()?;
        Ok(candidate.and_then(|candidate| self.law.binding(&candidate, &row.tenant)))
    }

    /// What the rules say of a listed request to a caller. Whether the session of a request of Redis still
    /// waits for it, only deciding finds out for certain.
    ///
    /// # Errors
    /// `RequestError::Ledger` when the ledger does not answer.
    pub async fn rights(
        &self,
        app: &AppState,
        row: &Listed,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Result<Rights> {
        let binding = self.binding_of(app, row).await?;
        Ok(self.rights_under(binding.as_ref(), row, caller, now))
    }

    /// As [`Self::rights`], under these rules.
    #[must_use]
    pub fn rights_under(
        &self,
        binding: Option<&Binding>,
        row: &Listed,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Rights {
        let is_open = row.status == Status::Pending && now < row.expires_at && !row.has_moved_on;
        let may_decide = is_open
            && if row.is_asked_again {
                // Only those who decided may say the same again.
                row.is_decided_by(&caller.user)
            } else if self.law.has_file() {
                let (requester, created_at) = (row.user.as_ref(), row.asked_at);
                let seen = Seen { requester, deciders: &[], ways: &row.ways, created_at };
                binding.is_some_and(|binding| permit::may_decide(binding, &seen, caller, now))
            } else {
                rules::decidable(caller, self.law.settings).include(row.user.as_ref())
            };
        let decisions = if self.law.has_file() {
            let allowed = |way: &Way| binding.is_some_and(|binding| binding.allows(*way));
            row.ways.iter().copied().filter(allowed).collect()
        } else {
            row.ways.clone()
        };
        Rights { may_decide, decisions }
    }
}

/// The people who have decided a request, alone or together.
#[must_use]
pub fn deciders(record: &Record) -> Vec<UserId> {
    let mut deciders = record.ruling.voters.clone();
    if record.ruling.via == crate::domain::record::DecidedVia::Person {
        deciders.extend(record.state.decision().map(|decision| decision.by.clone()));
    }
    deciders
}
