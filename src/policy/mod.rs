//! Who may decide a request, and in which ways: the policy file, its rules, and what they ask together.
//!
//! A [`Policy`] is a file that was read and compiled once. [`Policy::bind`] says which of its rules bind
//! a request; the [`Binding`] then answers every question about people without the request. Nothing in
//! here does I/O or knows the ledger. What is unclear never makes a decision easier: a rule that cannot be
//! evaluated binds besides the rule that matches.

mod binding;
pub mod expression;
mod file;
mod refusal;
pub mod rule;
mod why;
mod words;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::binding::{ADMIN, Automatic, Binding, Bound, Outcome};
use self::expression::{MAX_STEPS_OF_ALL, Variables};
pub use self::file::{DEFAULT_SHOW, MAX_FILE_BYTES, PolicyMistake};
pub use self::refusal::{
    Cause, Limit, NotAllowed, NotRemembered, nothing_remembered, unknown_requester,
};
use self::rule::Decides;
pub use self::rule::{Approver, Rule, Verdict};
pub use self::words::{Person, Remember, Risk, Sentence, Subject, Way};

/// Digits of [`Policy::version`].
const VERSION_DIGITS: usize = 12;

/// A policy file, read and compiled.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Arc<Rule>>,
    version: String,
}

impl Policy {
    /// Reads the text of a policy file, all or nothing.
    ///
    /// # Errors
    /// [`PolicyMistake`]: one line that names the rule, the field and the reason.
    pub fn read(text: &str) -> Result<Self, PolicyMistake> {
        let rules = file::read(text)?;
        let mut version = format!("{:x}", Sha256::digest(text));
        version.truncate(VERSION_DIGITS);
        Ok(Self { rules, version })
    }

    /// The first 12 hex digits of the file's SHA-256.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The rules, in the order of the file.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// The rule of this name.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.find(name).map(|rule| &**rule)
    }

    fn find(&self, name: &str) -> Option<&Arc<Rule>> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// The rules that bind a request: the first one whose expression is true, and every one before it
    /// whose expression could not be evaluated. A rule with `auto = "approve"` that could not be evaluated
    /// is passed over.
    #[must_use]
    pub fn bind(&self, subject: &Subject<'_>) -> Binding {
        let variables = Variables::new(subject);
        let mut steps = MAX_STEPS_OF_ALL;
        let mut bound = Vec::new();
        for rule in &self.rules {
            let outcome = match rule.condition.is_true(&variables, &mut steps) {
                Ok(false) => continue,
                Ok(true) => Outcome::Matched,
                Err(_) if matches!(rule.decides, Decides::Machine(Verdict::Approve)) => continue,
                Err(failure) => Outcome::Failed(Some(failure)),
            };
            let is_match = outcome == Outcome::Matched;
            bound.push(Bound { rule: Arc::clone(rule), outcome });
            if is_match {
                break;
            }
        }
        Binding::new(bound)
    }

    /// The binding that [`Binding::key`] stood for, without the request. A key stands for the same rules
    /// only under the policy of the same [`version`](Policy::version). `None` when the text is no key, or
    /// names a rule that this policy does not have.
    #[must_use]
    pub fn from_key(&self, key: &str) -> Option<Binding> {
        Binding::from_key(key, |name| self.find(name).map(Arc::clone))
    }
}
