//! Which rules bind and what they ask, in sentences for the detail page and the command line.

use super::binding::{Binding, Outcome};
use super::rule::{Approver, Decides, People, Rule, Verdict};
use super::words::{Sentence, Way};

impl Binding {
    /// Which rule matched, which could not be evaluated, and what each asks.
    #[must_use]
    pub fn why(&self) -> Sentence {
        let mut all = self.bound().iter().map(|bound| {
            let name = &bound.rule.name;
            let first = match &bound.outcome {
                Outcome::Matched => Sentence::new(
                    format!("Rule {name:?} matches."),
                    format!("규칙 {name:?}이(가) 적용됩니다."),
                ),
                Outcome::Failed(failure) => {
                    let why = failure.as_ref().map(super::expression::Failure::sentence);
                    let bracket = |text: &str| format!(" ({text})");
                    let en = why.as_ref().map(|why| bracket(&why.en)).unwrap_or_default();
                    let ko = why.as_ref().map(|why| bracket(&why.ko)).unwrap_or_default();
                    Sentence::new(
                        format!("Rule {name:?} could not be evaluated{en}, so it binds too."),
                        format!("규칙 {name:?}을(를) 평가할 수 없어{ko} 이 규칙도 적용됩니다."),
                    )
                }
            };
            match self.demand(&bound.rule) {
                Some(demand) => first.then(&demand),
                None => first,
            }
        });
        let first = all.next();
        let mut why = all.fold(first, |before, next| match before {
            Some(before) => Some(before.then(&next)),
            None => Some(next),
        });
        if self.rule().is_none() {
            let none = Sentence::new("No rule matches.", "맞는 규칙이 없습니다.");
            why = Some(why.map_or(none.clone(), |before| before.then(&none)));
        }
        let admin = Sentence::new("An admin must decide.", "관리자가 결정해야 합니다.");
        let is_asked = self.needs_admin() && self.automatic().is_none();
        match why {
            Some(why) if is_asked => why.then(&admin),
            Some(why) => why,
            None => admin,
        }
    }

    /// What a rule asks or does.
    fn demand(&self, rule: &Rule) -> Option<Sentence> {
        match &rule.decides {
            Decides::People(people) => Some(asks(people)),
            Decides::Machine(Verdict::Reject) => {
                Some(Sentence::new("It rejects the action.", "이 작업을 거절합니다."))
            }
            Decides::Machine(Verdict::Approve) if self.automatic().is_some() => {
                Some(Sentence::new("It approves the action.", "이 작업을 승인합니다."))
            }
            Decides::Machine(Verdict::Approve) => None,
        }
    }
}

/// What a rule asks of people.
fn asks(people: &People) -> Sentence {
    let count = people.quorum;
    let from = list(&people.approvers);
    let mut asks = if count == 1 {
        let is_one_person = matches!(*people.approvers, [Approver::User(_) | Approver::Requester]);
        let of_whom = if is_one_person { "의" } else { " 중 한 명의" };
        Sentence::new(
            format!("It asks for an approval from {}.", from.en),
            format!("{}{of_whom} 승인이 필요합니다.", from.ko),
        )
    } else {
        Sentence::new(
            format!("It asks for {count} approvals from {}.", from.en),
            format!("{} 중 {count}명의 승인이 필요합니다.", from.ko),
        )
    };
    if !people.self_approval {
        asks = asks
            .then(&Sentence::new("The requester may not approve.", "요청자는 승인할 수 없습니다."));
    }
    if people.decisions.contains(&Way::Edit) {
        asks = asks.then(&Sentence::new(
            "The arguments may be changed.",
            "내용을 수정하여 승인할 수 있습니다.",
        ));
    }
    if people.decisions.contains(&Way::Respond) {
        asks = asks.then(&Sentence::new(
            "An answer may be given instead.",
            "승인 대신 답변할 수 있습니다.",
        ));
    }
    for step in &people.escalate {
        let after = step.after.to_std().unwrap_or_default();
        let after = humantime::format_duration(after);
        let added = list(&step.approvers);
        asks = asks.then(&Sentence::new(
            format!("After {after} also from {}.", added.en),
            format!("{after} 뒤에는 {}도 승인할 수 있습니다.", added.ko),
        ));
    }
    asks
}

/// `group finance, role admin or user cho`
fn list(approvers: &[Approver]) -> Sentence {
    let sentences = approvers.iter().map(Approver::sentence).collect::<Vec<_>>();
    let joined = |names: Vec<String>, or: &str| match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{}{or}{last}", rest.join(", ")),
        _ => names.concat(),
    };
    Sentence::new(
        joined(sentences.iter().map(|sentence| sentence.en.clone()).collect(), " or "),
        joined(sentences.iter().map(|sentence| sentence.ko.clone()).collect(), ", "),
    )
}
