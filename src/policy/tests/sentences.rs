//! What people read about a binding.

use super::*;

const RULES: &str = r#"
[[rule]]
name = "payments"
when = 'context.amount >= 100'
approvers = ["group:finance", "role:admin", "user:cho"]
quorum = 2
self_approval = false
escalate = [{ after = "10m", approvers = ["tenant"] }]

[[rule]]
name = "mails"
when = 'actionType == "send_email"'
approvers = ["requester"]
decisions = ["approve", "reject", "edit", "respond"]

[[rule]]
name = "blocked"
when = 'actionType == "drop"'
auto = "reject"

[[rule]]
name = "reads"
when = 'actionType == "read"'
auto = "approve"
"#;

#[test]
fn the_sentence_says_which_rule_matches_and_what_it_asks() {
    let policy = Policy::read(RULES).unwrap();
    let payments = "It asks for 2 approvals from group finance, role admin or user cho. The requester may not approve. After 10m also from anybody of the tenant.";
    let failed =
        "Rule \"payments\" could not be evaluated (the field amount is missing), so it binds too.";
    for (action, context, why) in [
        ("pay", r#"{"amount": 100}"#, format!("Rule \"payments\" matches. {payments}")),
        ("send_email", r#"{"amount": 1}"#, "Rule \"mails\" matches. It asks for an approval from the requester. The arguments may be changed. An answer may be given instead.".to_owned()),
        ("send_email", "{}", format!("{failed} {payments} Rule \"mails\" matches. It asks for an approval from the requester. The arguments may be changed. An answer may be given instead.")),
        ("drop", r#"{"amount": 1}"#, "Rule \"blocked\" matches. It rejects the action.".to_owned()),
        ("read", r#"{"amount": 1}"#, "Rule \"reads\" matches. It approves the action.".to_owned()),
        ("read", "{}", format!("{failed} {payments} Rule \"reads\" matches.")),
        ("pay", r#"{"amount": 1}"#, "No rule matches. An admin must decide.".to_owned()),
        ("pay", "{}", format!("{failed} {payments} No rule matches. An admin must decide.")),
    ] {
        assert_eq!(bind(&policy, action, context).why().en, why);
    }
    // An edit of an automatic action is for an admin.
    let reads = || bind(&policy, "read", r#"{"amount": 1}"#);
    assert_eq!(reads().and(reads()).why().en, "Rule \"reads\" matches. An admin must decide.");
    let rebuilt = policy.from_key(&bind(&policy, "pay", "{}").key()).unwrap().why();
    assert!(rebuilt.en.starts_with("Rule \"payments\" could not be evaluated, so it binds too."));
}

#[test]
fn the_sentence_is_there_in_korean() {
    let policy = Policy::read(RULES).unwrap();
    let ko = |action, context| bind(&policy, action, context).why().ko;
    assert_eq!(
        ko("read", "{}"),
        "규칙 \"payments\"을(를) 평가할 수 없어 (amount 필드가 없음) 이 규칙도 적용됩니다. 그룹 finance, 역할 admin, 사용자 cho 중 2명의 승인이 필요합니다. 요청자는 승인할 수 없습니다. 10m 뒤에는 테넌트의 누구나도 승인할 수 있습니다. 규칙 \"reads\"이(가) 적용됩니다."
    );
    assert!(
        ko("send_email", r#"{"amount": 1}"#).contains("적용됩니다. 요청자의 승인이 필요합니다. ")
    );
    assert_eq!(ko("pay", r#"{"amount": 1}"#), "맞는 규칙이 없습니다. 관리자가 결정해야 합니다.");
    assert_eq!(
        ko("drop", r#"{"amount": 1}"#),
        "규칙 \"blocked\"이(가) 적용됩니다. 이 작업을 거절합니다."
    );
}

#[test]
fn a_refusal_names_the_rule_and_begins_with_what_did_not_happen() {
    let policy = Policy::read(RULES).unwrap();
    let pay = bind(&policy, "pay", r#"{"amount": 100}"#);
    let mail = bind(&policy, "send_email", r#"{"amount": 1}"#);
    let drop = bind(&policy, "drop", r#"{"amount": 1}"#);
    let none = bind(&policy, "pay", r#"{"amount": 1}"#);
    let (lee, user) = (Somebody::new("lee"), Somebody::new("user").with_role("admin"));
    let admin = Somebody::new("lee").with_role("admin");
    for (binding, who, way, rule, sentence) in [
        (
            &pay,
            &lee,
            Way::Approve,
            Some("payments"),
            "Not approved: rule \"payments\" does not name you as an approver",
        ),
        (
            &pay,
            &lee,
            Way::Reject,
            Some("payments"),
            "Not rejected: rule \"payments\" does not name you as an approver",
        ),
        (
            &pay,
            &user,
            Way::Approve,
            Some("payments"),
            "Not approved: rule \"payments\" does not let requesters approve their own requests",
        ),
        (
            &pay,
            &admin,
            Way::Edit,
            Some("payments"),
            "Not approved with changes: rule \"payments\" does not allow this kind of decision",
        ),
        (
            &mail,
            &admin,
            Way::Respond,
            Some("mails"),
            "Not answered: rule \"mails\" does not name you as an approver",
        ),
        (
            &drop,
            &admin,
            Way::Approve,
            Some("blocked"),
            "Not approved: rule \"blocked\" rejects this action",
        ),
        (
            &none,
            &lee,
            Way::Approve,
            None,
            "Not approved: no rule names people for this request, so an admin must decide",
        ),
        (
            &none,
            &admin,
            Way::Edit,
            None,
            "Not approved with changes: no rule matches, and an admin can only approve or reject",
        ),
    ] {
        let refused = may(binding, who, way, 0).unwrap_err();
        assert_eq!((refused.rule.as_deref(), refused.sentence().en.as_str()), (rule, sentence));
        let ko = refused.sentence().ko;
        assert!(rule.is_none_or(|rule| ko.contains(rule)) && !ko.is_ascii(), "{ko}");
    }
    let unknown = pay.may(&admin.person(), None, Way::Approve, at(0), at(0)).unwrap_err();
    assert_eq!(
        unknown.sentence().en,
        "Not approved: rule \"payments\" does not let requesters approve their own requests, and the requester is unknown"
    );
    assert!(pay.may(&admin.person(), None, Way::Reject, at(0), at(0)).is_ok());
}
