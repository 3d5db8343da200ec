//! Which rules bind a request, and what they ask together.
//!
//! The rule whose expression is true binds, and so does every rule before it whose expression could not
//! be evaluated. Whoever decides must satisfy each of them, so a rule more never lets anybody decide what
//! they could not before. Where no rule matched, and where only rules without people bind, an admin
//! decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::expression::Failure;
use super::file::DEFAULT_SHOW;
use super::refusal::{Cause, Limit, NotAllowed, NotRemembered};
use super::rule::{Approver, Decides, People, Rule, Verdict};
use super::words::{Person, Remember, Risk, Way};
use crate::domain::ids::UserId;

/// The role that decides where no rule names anybody.
pub const ADMIN: &str = "admin";

/// The rules that bind one request.
#[derive(Clone, Debug)]
pub struct Binding {
    /// In the order of the file.
    bound: Vec<Bound>,
    /// No rule matched, so an admin is needed besides.
    needs_admin: bool,
    /// The rules of an edit, which nothing decides automatically.
    is_edit: bool,
}

/// A rule that binds, and why.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The rule.
    pub rule: Arc<Rule>,
    /// Whether its expression is true or failed.
    pub outcome: Outcome,
}

/// What became of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is true.
    Matched,
    /// It could not be evaluated. The reason is unknown when the binding was rebuilt from its key.
    Failed(Option<Failure>),
}

/// A decision that the policy makes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Automatic<'a> {
    /// Approve or reject.
    pub verdict: Verdict,
    /// The name of the rule that decides.
    pub rule: &'a str,
}

/// [`Binding::key`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key<'a> {
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    matched: Vec<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    failed: Vec<std::borrow::Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_false")]
    admin: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    edit: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(is: &bool) -> bool {
    !is
}

impl Binding {
    /// The binding of a request for which these rules bind.
    pub(super) fn new(bound: Vec<Bound>) -> Self {
        let has_match = bound.iter().any(|bound| bound.outcome == Outcome::Matched);
        Self { bound, needs_admin: !has_match, is_edit: false }
    }

    /// The binding of an edit: the rules of what was asked and the rules of what it becomes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut bound = self.bound;
        for new in other.bound {
            match bound.iter_mut().find(|bound| bound.rule.position == new.rule.position) {
                Some(known) if new.outcome == Outcome::Matched => known.outcome = new.outcome,
                Some(_) => {}
                None => bound.push(new),
            }
        }
        bound.sort_by_key(|bound| bound.rule.position);
        Self { bound, needs_admin: self.needs_admin || other.needs_admin, is_edit: true }
    }

    /// The rules that bind, in the order of the file.
    #[must_use]
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// The names of the rules that bind, in the order of the file.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        self.bound.iter().map(|bound| bound.rule.name.as_str())
    }

    /// The name of the rule that matched; of an edit the first. `None` when no rule matched.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        let matched = self.bound.iter().find(|bound| bound.outcome == Outcome::Matched);
        matched.map(|bound| bound.rule.name.as_str())
    }

    /// Whether an admin is needed: no rule matched, or no rule that binds names people.
    #[must_use]
    pub fn needs_admin(&self) -> bool {
        self.needs_admin || self.asked().next().is_none()
    }

    /// Whether the binding is of an edit.
    #[must_use]
    pub fn is_edit(&self) -> bool {
        self.is_edit
    }

    /// A text that stands for this set of rules, the same for equal sets. See
    /// [`Policy::from_key`](super::Policy::from_key).
    #[must_use]
    pub fn key(&self) -> String {
        let names = |matched: bool| {
            let bound = self.bound.iter();
            let bound = bound.filter(|bound| (bound.outcome == Outcome::Matched) == matched);
            bound.map(|bound| bound.rule.name.as_str().into()).collect()
        };
        let key = Key {
            matched: names(true),
            failed: names(false),
            admin: self.needs_admin,
            edit: self.is_edit,
        };
        // Texts and truth values always serialise.
        serde_json::to_string(&key).unwrap_or_default()
    }

    /// The binding of a key; `find` looks up a rule by its name.
    pub(super) fn from_key(key: &str, find: impl Fn(&str) -> Option<Arc<Rule>>) -> Option<Self> {
        let key: Key<'_> = serde_json::from_str(key).ok()?;
        let mut bound = Vec::new();
        for (names, outcome) in
            [(&key.matched, Outcome::Matched), (&key.failed, Outcome::Failed(None))]
        {
            for name in names {
                bound.push(Bound { rule: find(name)?, outcome: outcome.clone() });
            }
        }
        bound.sort_by_key(|bound| bound.rule.position);
        Some(Self { bound, needs_admin: key.admin, is_edit: key.edit })
    }

    /// The highest risk of the rules. Where no rule matched, medium at least: the admin who is then asked
    /// stands for a rule with all defaults.
    #[must_use]
    pub fn risk(&self) -> Risk {
        let default = self.needs_admin.then(Risk::default);
        self.bound.iter().map(|bound| bound.rule.risk).chain(default).max().unwrap_or_default()
    }

    /// How many distinct people must approve.
    #[must_use]
    pub fn quorum(&self) -> u32 {
        self.asked().map(|(_, people)| people.quorum).max().unwrap_or(1)
    }

    /// Whether every rule allows this way to decide. A requester may reject their own request in any case:
    /// see [`Binding::may`].
    #[must_use]
    pub fn allows(&self, way: Way) -> bool {
        self.obstacle(way).is_none()
    }

    /// The rule that does not allow a way to decide; `Some(None)` when that is for an admin to decide, who
    /// only approves and rejects.
    fn obstacle(&self, way: Way) -> Option<(Option<&Rule>, Cause)> {
        if let Some(rule) = self.rejecting()
            && way != Way::Reject
        {
            return Some((Some(rule), Cause::Blocked));
        }
        let refusing = self.asked().find(|(_, people)| !people.decisions.contains(&way));
        if let Some((rule, _)) = refusing {
            return Some((Some(rule), Cause::Way));
        }
        let is_plain = matches!(way, Way::Approve | Way::Reject);
        (self.needs_admin() && !is_plain).then_some((None, Cause::Way))
    }

    /// How far an approval may stand for later requests: as far as every rule allows. Where an admin is
    /// needed, or a rule rejects, not at all.
    #[must_use]
    pub fn remember(&self) -> Remember {
        if self.needs_admin() || self.rejecting().is_some() {
            return Remember::Never;
        }
        self.asked().map(|(_, people)| people.remember).min().unwrap_or_default()
    }

    /// Whether an approval may stand for later requests: every rule lets that much be remembered, and asks
    /// for one approval. At least one rule names people, and none rejects.
    ///
    /// # Errors
    /// [`NotRemembered`] names the first rule that does not allow it.
    pub fn may_remember(&self, arguments: Remember) -> Result<(), NotRemembered> {
        let refuse = |rule: Option<&Rule>, limit| {
            Err(NotRemembered { rule: rule.map(|rule| rule.name.clone()), limit })
        };
        if let Some(rule) = self.rejecting() {
            return refuse(Some(rule), Limit::Remember(Remember::Never));
        }
        if self.needs_admin() {
            return refuse(None, Limit::Remember(Remember::Never));
        }
        for (rule, people) in self.asked() {
            if people.remember < arguments.max(Remember::Exact) {
                return refuse(Some(rule), Limit::Remember(people.remember));
            }
            if people.quorum > 1 {
                return refuse(Some(rule), Limit::Quorum(people.quorum));
            }
        }
        Ok(())
    }

    /// The shortest `expires_in`.
    #[must_use]
    pub fn expires_in(&self) -> Option<TimeDelta> {
        self.asked().filter_map(|(_, people)| people.expires_in).min()
    }

    /// The shortest `remind_after`.
    #[must_use]
    pub fn remind_after(&self) -> Option<TimeDelta> {
        self.asked().filter_map(|(_, people)| people.remind_after).min()
    }

    /// When escalations begin, counted from `createdAt`, the earliest first and each once.
    #[must_use]
    pub fn escalates_after(&self) -> Vec<TimeDelta> {
        let steps = self.asked().flat_map(|(_, people)| &people.escalate);
        steps.map(|step| step.after).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What may leave the service in a notice: only what every rule shows. Where no rule matched, only
    /// what the default shows.
    #[must_use]
    pub fn show(&self) -> Vec<&str> {
        let default = DEFAULT_SHOW.as_slice();
        let mut shown = match self.bound.first() {
            Some(first) => first.rule.show.iter().map(String::as_str).collect(),
            None => default.to_vec(),
        };
        shown.retain(|entry| {
            (!self.needs_admin || default.contains(entry))
                && self.bound.iter().all(|bound| bound.rule.show.iter().any(|shown| shown == entry))
        });
        shown
    }

    /// The decision that the policy makes itself, if it makes one. Any `auto = "reject"` rejects;
    /// `auto = "approve"` approves only where it matched and nothing else binds. Edits are for people.
    #[must_use]
    pub fn automatic(&self) -> Option<Automatic<'_>> {
        if self.is_edit {
            return None;
        }
        if let Some(rule) = self.rejecting() {
            return Some(Automatic { verdict: Verdict::Reject, rule: &rule.name });
        }
        match self.bound.as_slice() {
            [Bound { rule, outcome: Outcome::Matched }]
                if !self.needs_admin && matches!(rule.decides, Decides::Machine(_)) =>
            {
                Some(Automatic { verdict: Verdict::Approve, rule: &rule.name })
            }
            _ => None,
        }
    }

    /// Whether the person may decide in this way now. Every rule that binds must allow it; requesters may
    /// always reject their own requests.
    ///
    /// # Errors
    /// [`NotAllowed`] names the first rule that does not allow it.
    pub fn may(
        &self,
        person: &Person<'_>,
        requester: Option<&UserId>,
        way: Way,
        created_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), NotAllowed> {
        let is_own = requester == Some(person.user);
        if way == Way::Reject && is_own {
            return Ok(());
        }
        let refuse = |rule: Option<&Rule>, cause| {
            Err(NotAllowed { rule: rule.map(|rule| rule.name.clone()), way, cause })
        };
        if let Some((rule, cause)) = self.obstacle(way) {
            return refuse(rule, cause);
        }
        for (rule, people) in self.asked() {
            // Where nobody knows the requester, everybody may be the requester.
            if way != Way::Reject && !people.self_approval && (is_own || requester.is_none()) {
                let cause = if is_own { Cause::Own } else { Cause::UnknownRequester };
                return refuse(Some(rule), cause);
            }
            if !people.include(person, requester, created_at, now) {
                return refuse(Some(rule), Cause::NoApprover);
            }
        }
        if self.needs_admin() && !person.roles.iter().any(|role| role == ADMIN) {
            return refuse(None, Cause::NoApprover);
        }
        Ok(())
    }

    /// Whom the rules name as approvers at this time, with those of escalations that have begun.
    pub fn approvers(
        &self,
        created_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> impl Iterator<Item = &Approver> {
        self.asked().flat_map(move |(_, people)| people.named(created_at, now))
    }

    /// The rules that ask people.
    pub(super) fn asked(&self) -> impl Iterator<Item = (&Rule, &People)> {
        self.bound.iter().filter_map(|bound| match &bound.rule.decides {
            Decides::People(people) => Some((&*bound.rule, people)),
            Decides::Machine(_) => None,
        })
    }

    /// The first rule with `auto = "reject"`.
    pub(super) fn rejecting(&self) -> Option<&Rule> {
        let rejects = |rule: &&Rule| matches!(rule.decides, Decides::Machine(Verdict::Reject));
        self.bound.iter().map(|bound| &*bound.rule).find(rejects)
    }
}
