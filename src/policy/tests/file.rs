//! Reading policy files: what is understood, and the line for each mistake.

use std::fmt::Write as _;

use super::*;

/// A file of one rule, from its fields.
fn rule(fields: &str) -> String {
    format!("[[rule]]\nname = \"r\"\n{fields}")
}

/// The line of a mistake, in English.
fn line(text: &str) -> String {
    match Policy::read(text) {
        Ok(_) => panic!("is read: {text}"),
        Err(mistake) => {
            let Sentence { en, ko } = mistake.line();
            assert_eq!(en, mistake.to_string());
            assert!(!en.contains('\n') && !ko.contains('\n') && en != ko, "{en} / {ko}");
            en
        }
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one list of mistakes")]
fn every_mistake_names_rule_field_and_reason() {
    let when = "when = \"true\"\n";
    let approvers = "when = \"true\"\napprovers = [\"tenant\"]\n";
    for (fields, expected) in [
        ("", "rule \"r\": when: is missing; write when = \"true\" for every request"),
        ("when = 1", "rule \"r\": when: must be a text in quotes"),
        (
            "when = \"amount > 1\"",
            "rule \"r\": when: there is no variable \"amount\"; there are actionType, message, context, userId, tenantId, sessionId, taskId, origin",
        ),
        (
            when,
            "rule \"r\": approvers: is missing; a rule names who may decide, or decides itself with auto",
        ),
        ("when = \"true\"\napprovers = []", "rule \"r\": approvers: names nobody"),
        (
            "when = \"true\"\napprovers = \"tenant\"",
            "rule \"r\": approvers: must be a list of texts",
        ),
        ("when = \"true\"\napprovers = [1]", "rule \"r\": approvers: must be a list of texts"),
        (
            "when = \"true\"\napprovers = [\"kim\"]",
            "rule \"r\": approvers: \"kim\" names nobody; write one of \"user:kim\", \"group:finance\", \"role:admin\", \"tenant\", \"requester\"",
        ),
        (
            "when = \"true\"\napprovers = [\"group:\"]",
            "rule \"r\": approvers: \"group:\" names nobody; write one of \"user:kim\", \"group:finance\", \"role:admin\", \"tenant\", \"requester\"",
        ),
        (
            "when = \"true\"\napprovers = [\"team:a\"]",
            "rule \"r\": approvers: \"team:a\" names nobody; write one of \"user:kim\", \"group:finance\", \"role:admin\", \"tenant\", \"requester\"",
        ),
        (
            "when = \"true\"\napprovers = [\"user:/kim\"]",
            "rule \"r\": approvers: \"user:/kim\" names nobody; write one of \"user:kim\", \"group:finance\", \"role:admin\", \"tenant\", \"requester\"",
        ),
        (
            "when = \"true\"\napprovers = [\"tenant\", \"tenant\"]",
            "rule \"r\": approvers: \"tenant\" is there twice",
        ),
        (
            "aprovers = [\"tenant\"]",
            "rule \"r\": aprovers: is not a field; did you mean approvers?",
        ),
        (
            "colour = 1",
            "rule \"r\": colour: is not a field; there are name, when, risk, auto, approvers, quorum, self_approval, decisions, remember, expires_in, remind_after, escalate, show",
        ),
        ("when = \"true\"\nauto = \"allow\"", "rule \"r\": auto: must be \"approve\", \"reject\""),
        ("when = \"true\"\nauto = true", "rule \"r\": auto: must be \"approve\", \"reject\""),
    ] {
        assert_eq!(line(&rule(fields)), expected);
    }
    for (field, expected) in [
        ("quorum = 0", "quorum: must be a whole number from 1 to 100"),
        ("quorum = -1", "quorum: must be a whole number from 1 to 100"),
        ("quorum = 101", "quorum: must be a whole number from 1 to 100"),
        ("quorum = 2.0", "quorum: must be a whole number from 1 to 100"),
        ("quorum = \"2\"", "quorum: must be a whole number from 1 to 100"),
        ("self_approval = \"no\"", "self_approval: must be true or false"),
        ("risk = \"severe\"", "risk: must be \"low\", \"medium\", \"high\", \"critical\""),
        ("remember = true", "remember: must be \"never\", \"exact\", \"any\""),
        ("decisions = []", "decisions: names no way to decide"),
        (
            "decisions = [\"aprove\"]",
            "decisions: \"aprove\" is no way to decide; there are \"approve\", \"reject\", \"edit\", \"respond\"",
        ),
        ("decisions = [\"edit\", \"edit\"]", "decisions: \"edit\" is there twice"),
        ("expires_in = 30", "expires_in: must be a time from \"1s\" to \"30d\", like \"10m\""),
        ("expires_in = \"0s\"", "expires_in: must be a time from \"1s\" to \"30d\", like \"10m\""),
        ("expires_in = \"31d\"", "expires_in: must be a time from \"1s\" to \"30d\", like \"10m\""),
        (
            "expires_in = \"soon\"",
            "expires_in: must be a time from \"1s\" to \"30d\", like \"10m\"",
        ),
        (
            "remind_after = \"-5m\"",
            "remind_after: must be a time from \"1s\" to \"30d\", like \"10m\"",
        ),
        (
            "show = [\"$secret\"]",
            "show: \"$secret\" is neither $message, $reason nor a field of context",
        ),
        ("show = [\"\"]", "show: \"\" is neither $message, $reason nor a field of context"),
        ("show = [\"to\", \"to\"]", "show: \"to\" is there twice"),
        (
            "escalate = \"10m\"",
            "escalate: must be a list like [{ after = \"10m\", approvers = [\"group:heads\"] }]",
        ),
        (
            "escalate = [1]",
            "escalate: must be a list like [{ after = \"10m\", approvers = [\"group:heads\"] }]",
        ),
        (
            "escalate = [{ after = \"10m\" }]",
            "escalate: must be a list like [{ after = \"10m\", approvers = [\"group:heads\"] }]",
        ),
        (
            "escalate = [{ after = \"10m\", approvers = [\"tenant\"], to = 1 }]",
            "escalate: must be a list like [{ after = \"10m\", approvers = [\"group:heads\"] }]",
        ),
        (
            "escalate = [{ after = \"10\", approvers = [\"tenant\"] }]",
            "escalate: must be a time from \"1s\" to \"30d\", like \"10m\"",
        ),
        ("escalate = [{ after = \"10m\", approvers = [] }]", "escalate: names nobody"),
    ] {
        assert_eq!(line(&rule(&format!("{approvers}{field}"))), format!("rule \"r\": {expected}"));
    }
    for field in [
        "approvers = [\"tenant\"]",
        "quorum = 1",
        "self_approval = true",
        "decisions = [\"approve\"]",
        "remember = \"never\"",
        "expires_in = \"1m\"",
        "remind_after = \"1m\"",
        "escalate = []",
    ] {
        let name = field.split(' ').next().unwrap();
        let expected = format!(
            "rule \"r\": {name}: a rule with auto leaves nothing to people; remove one of the two"
        );
        assert_eq!(line(&rule(&format!("when = \"true\"\nauto = \"approve\"\n{field}"))), expected);
    }
}

#[test]
fn a_rule_that_nobody_can_meet_is_a_mistake() {
    let of = |fields: &str| rule(&format!("when = \"true\"\n{fields}"));
    let few = "rule \"r\": quorum: is more than the people whom approvers names";
    assert_eq!(line(&of("approvers = [\"user:kim\"]\nquorum = 2")), few);
    assert_eq!(line(&of("approvers = [\"user:kim\", \"user:tenant2/kim\"]\nquorum = 2")), few);
    assert_eq!(line(&of("approvers = [\"user:kim\", \"requester\"]\nquorum = 3")), few);
    let own =
        "rule \"r\": self_approval: nobody may approve, since approvers names only the requester";
    assert_eq!(line(&of("approvers = [\"requester\"]\nself_approval = false")), own);
    for fields in [
        "approvers = [\"user:kim\", \"user:lee\"]\nquorum = 2",
        "approvers = [\"user:kim\", \"requester\"]\nquorum = 2",
        "approvers = [\"user:kim\"]\nquorum = 2\nescalate = [{ after = \"1m\", approvers = [\"user:lee\"] }]",
        "approvers = [\"group:unknown\"]\nquorum = 9",
        "approvers = [\"role:admin\"]\nquorum = 9",
        "approvers = [\"tenant\"]\nquorum = 100",
        "approvers = [\"requester\", \"user:kim\"]\nself_approval = false",
        "approvers = [\"requester\"]\nself_approval = false\nescalate = [{ after = \"1m\", approvers = [\"tenant\"] }]",
        "approvers = [\"requester\"]\nself_approval = true",
    ] {
        assert!(Policy::read(&of(fields)).is_ok(), "{fields}");
    }
}

#[test]
fn mistakes_outside_of_rules_are_named_too() {
    let auto = "when = \"true\"\nauto = \"approve\"\n";
    for (text, expected) in [
        (String::new(), "rule: the file has no rule"),
        ("rule = []".to_owned(), "rule: the file has no rule"),
        ("rule = 1".to_owned(), "rule: must be a list of tables: [[rule]]"),
        ("rule = [1]".to_owned(), "rule #1: rule: must be a table: [[rule]]"),
        (format!("{}[[rules]]\n", rule(auto)), "rules: is not a field; did you mean rule?"),
        (format!("groups = 1\n{}", rule(auto)), "groups: must be a table: [groups]"),
        (format!("[groups]\na = \"kim\"\n{}", rule(auto)), "groups.a: must be a list of texts"),
        (
            format!("[groups]\na = [\" kim\"]\n{}", rule(auto)),
            "groups.a: \" kim\" is not a user; write \"kim\" or \"tenant2/kim\"",
        ),
        (
            format!("[groups]\na = [\"kim\", \"kim\"]\n{}", rule(auto)),
            "groups.a: \"kim\" is there twice",
        ),
        (
            format!("[groups]\n\" a\" = [\"kim\"]\n{}", rule(auto)),
            "groups. a: must be a visible text of at most 100 characters, without white space at its ends and without # in front",
        ),
        (format!("{}{}", rule(auto), rule(auto)), "rule \"r\": name: another rule has this name"),
        (format!("{}[[rule]]\n{auto}", rule(auto)), "rule #2: name: is missing"),
        (
            format!("[[rule]]\nname = \"a\\nb\"\n{auto}"),
            "rule #1: name: must be a visible text of at most 100 characters, without white space at its ends and without # in front",
        ),
        (
            format!("[[rule]]\nname = \"#1\"\n{auto}"),
            "rule #1: name: must be a visible text of at most 100 characters, without white space at its ends and without # in front",
        ),
        (
            format!("[[rule]]\nname = \"{}\"\n{auto}", "x".repeat(101)),
            "rule #1: name: must be a visible text of at most 100 characters, without white space at its ends and without # in front",
        ),
        (format!("[[rule]]\nname = 5\n{auto}"), "rule #1: name: must be a text in quotes"),
        ("\n\n[[rule]\n".to_owned(), "the file is not TOML: line 3: "),
        (
            "[[rule]]\nname = \"a\"\nname = \"b\"\n".to_owned(),
            "the file is not TOML: line 3: duplicate key",
        ),
    ] {
        let line = line(&text);
        assert!(
            line == expected || (expected.contains("TOML") && line.starts_with(expected)),
            "{line}"
        );
    }
    assert_eq!(line(&" ".repeat(MAX_FILE_BYTES + 1)), "the file may have at most 524288 bytes");
    let mut many = String::new();
    for at in 0..=200 {
        write!(many, "[[rule]]\nname = \"{at}\"\n{auto}").unwrap();
    }
    assert_eq!(line(&many), "rule: the file may have at most 200 rules");
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(line(&deep).starts_with("the file is not TOML: line 1: "));
    assert!(line("[groups]\n\"\u{202e}a\" = []").starts_with("groups.\\u{202e}a: "));
}

#[test]
fn fields_that_are_left_out_have_their_defaults() {
    let policy = Policy::read(&rule("when = \"true\"\napprovers = [\"tenant\"]")).unwrap();
    let binding = bind(&policy, "a", "{}");
    assert_eq!((binding.risk(), binding.quorum()), (Risk::Medium, 1));
    assert_eq!((binding.remember(), binding.expires_in()), (Remember::Never, None));
    assert_eq!((binding.remind_after(), binding.escalates_after()), (None, Vec::new()));
    assert_eq!(binding.show(), DEFAULT_SHOW);
    assert!(may(&binding, &Somebody::new("user"), Way::Approve, 0).is_ok());
    assert!(!binding.allows(Way::Edit) && !binding.allows(Way::Respond));
    assert_eq!(policy.rule("r").map(|rule| rule.when.as_str()), Some("true"));
    assert!(policy.rule("s").is_none() && policy.rules().len() == 1);
}

#[test]
fn the_longest_allowed_is_read() {
    let name = "가".repeat(100);
    let file = format!(
        "[[rule]]\nname = \"{name}\"\nwhen = \"true\"\napprovers = [\"tenant\"]\nquorum = 100\nexpires_in = \"30d\"\nremind_after = \"1s\""
    );
    assert!(Policy::read(&file).is_ok());
}
