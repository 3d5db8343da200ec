//! Why somebody may not decide, as a sentence that names the rule.

use super::words::{Remember, Sentence, Way};

/// A refusal. Nothing is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAllowed {
    /// The rule that does not allow it; `None` when no rule names people and an admin must decide.
    pub rule: Option<String>,
    /// What was wanted.
    pub way: Way,
    /// Why not.
    pub cause: Cause,
}

/// Why a rule does not allow a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The person is none of its approvers.
    NoApprover,
    /// The person is the requester, and `self_approval` is false.
    Own,
    /// `self_approval` is false, and nobody knows who the requester is.
    UnknownRequester,
    /// `decisions` does not hold this way.
    Way,
    /// `auto = "reject"`
    Blocked,
}

impl NotAllowed {
    /// What people read. The first words say what did not happen, because some pages show no more.
    #[must_use]
    pub fn sentence(&self) -> Sentence {
        let (not, ko_not) = match self.way {
            Way::Approve => ("Not approved", "승인되지 않음"),
            Way::Reject => ("Not rejected", "거절되지 않음"),
            Way::Edit => ("Not approved with changes", "변경 승인되지 않음"),
            Way::Respond => ("Not answered", "답변되지 않음"),
        };
        let Some(rule) = &self.rule else {
            return match self.cause {
                Cause::Way => Sentence::new(
                    format!("{not}: no rule matches, and an admin can only approve or reject"),
                    format!("{ko_not}: 맞는 규칙이 없어 관리자가 승인하거나 거절할 수만 있습니다"),
                ),
                _ => Sentence::new(
                    format!(
                        "{not}: no rule names people for this request, so an admin must decide"
                    ),
                    format!("{ko_not}: 이 요청에 사람을 정한 규칙이 없어 관리자가 결정해야 합니다"),
                ),
            };
        };
        let (en, ko) = match self.cause {
            Cause::NoApprover => (
                format!("rule {rule:?} does not name you as an approver"),
                format!("규칙 {rule:?}의 승인자가 아닙니다"),
            ),
            Cause::Own => (
                format!("rule {rule:?} does not let requesters approve their own requests"),
                format!("규칙 {rule:?}은(는) 본인 요청의 승인을 허용하지 않습니다"),
            ),
            Cause::UnknownRequester => (
                format!(
                    "rule {rule:?} does not let requesters approve their own requests, and the \
                     requester is unknown"
                ),
                format!("규칙 {rule:?}은(는) 본인 승인을 허용하지 않는데 요청자를 알 수 없습니다"),
            ),
            Cause::Way => (
                format!("rule {rule:?} does not allow this kind of decision"),
                format!("규칙 {rule:?}은(는) 이 결정 방식을 허용하지 않습니다"),
            ),
            Cause::Blocked => (
                format!("rule {rule:?} rejects this action"),
                format!("규칙 {rule:?}이(가) 이 작업을 거절합니다"),
            ),
        };
        Sentence::new(format!("{not}: {en}"), format!("{ko_not}: {ko}"))
    }
}

/// Why an approval cannot stand for later requests. Nothing is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRemembered {
    /// The rule that does not allow it; `None` when an admin must decide, besides any rule.
    pub rule: Option<String>,
    /// How far the rule goes.
    pub limit: Limit,
}

/// How far a rule lets approvals be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `remember`
    Remember(Remember),
    /// `quorum`: more than one person must approve each request.
    Quorum(u32),
}

impl NotRemembered {
    /// What people read.
    #[must_use]
    pub fn sentence(&self) -> Sentence {
        let Some(rule) = &self.rule else {
            return Sentence::new(
                "Not approved: no rule names people for this request, so an approval cannot be \
                 remembered",
                "승인되지 않음: 이 요청에 사람을 정한 규칙이 없어 승인을 기억할 수 없습니다",
            );
        };
        match self.limit {
            Limit::Remember(Remember::Never) => Sentence::new(
                format!("Not approved: rule {rule:?} does not let approvals be remembered"),
                format!(
                    "승인되지 않음: 규칙 {rule:?}은(는) 승인을 기억하는 것을 허용하지 않습니다"
                ),
            ),
            Limit::Remember(Remember::Exact | Remember::Any) => Sentence::new(
                format!(
                    "Not approved: rule {rule:?} lets approvals be remembered only for requests that \
                     say the same (exact)"
                ),
                format!(
                    "승인되지 않음: 규칙 {rule:?}은(는) 내용이 같은 요청(exact)에 대해서만 승인을 \
                     기억할 수 있습니다"
                ),
            ),
            Limit::Quorum(quorum) => Sentence::new(
                format!(
                    "Not approved: rule {rule:?} asks for {quorum} approvals each time, so none is \
                     remembered"
                ),
                format!(
                    "승인되지 않음: 규칙 {rule:?}은(는) 매번 {quorum}명의 승인이 필요하므로 승인을 \
                     기억할 수 없습니다"
                ),
            ),
        }
    }
}

/// Why nothing is remembered without a policy file.
#[must_use]
pub fn nothing_remembered() -> Sentence {
    Sentence::new(
        "Not approved: no policy file is in force, so approvals cannot be remembered",
        "승인되지 않음: 정책 파일이 없어 승인을 기억할 수 없습니다",
    )
}

/// Why an approval of a request that names nobody is not remembered.
#[must_use]
pub fn unknown_requester() -> Sentence {
    Sentence::new(
        "Not approved: the requester is unknown, so the approval cannot be remembered",
        "승인되지 않음: 요청자를 알 수 없어 승인을 기억할 수 없습니다",
    )
}
