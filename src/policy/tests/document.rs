//! The rules of docs/policy.md, run from its text: each line of its tables is a request, the rule, and who
//! may approve.

use serde_json::Value;

use super::*;
use crate::domain::request::{ApprovalRequest, shown_context};

const DOCUMENT: &str = include_str!("../../../docs/policy.md");

/// A line of a table.
struct Line<'a> {
    request: &'a str,
    rule: &'a str,
    may: Vec<&'a str>,
    may_not: Vec<&'a str>,
}

/// Each section of a rule to copy: its title, its file and its lines.
fn sections() -> Vec<(&'static str, String, Vec<Line<'static>>)> {
    let from = DOCUMENT.split_once("\n## Ten rules to copy\n").unwrap().1;
    let all = from.split_once("\n## ").unwrap().0;
    let sections = all.split("\n### ").skip(1).map(|section| {
        let title = section.lines().next().unwrap();
        let mut file = String::new();
        for block in section.split("```toml\n").skip(1) {
            file.push_str(block.split_once("```").unwrap().0);
        }
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let lines = rows.map(|row| {
            let cells = row.split('|').map(str::trim).collect::<Vec<_>>();
            let [_, request, rule, may, may_not, _] = cells[..] else { panic!("{row}") };
            let people =
                |cell: &'static str| cell.split(", ").filter(|who| !who.is_empty()).collect();
            let request = request.trim_matches('`');
            Line { request, rule, may: people(may), may_not: people(may_not) }
        });
        (title, file, lines.collect())
    });
    sections.collect()
}

/// `tenant2/kim (role admin) after 10m`: somebody, and how many seconds after the request was made.
fn somebody(text: &str) -> (Somebody, i64) {
    let (who, after) = text.split_once(" after ").unwrap_or((text, "0s"));
    let after = humantime::parse_duration(after).unwrap();
    let (name, claim) = who.split_once(" (").unwrap_or((who, ""));
    let (tenant, user) = name.split_once('/').unwrap_or(("tenant1", name));
    let somebody = Somebody::of(tenant, user);
    let somebody = match claim.trim_end_matches(')').split_once(' ') {
        Some(("role", role)) => somebody.with_role(role),
        Some(("group", group)) => somebody.with_group(group),
        None if claim.is_empty() => somebody,
        _ => panic!("{text}"),
    };
    (somebody, i64::try_from(after.as_secs()).unwrap())
}

fn bind_json(policy: &Policy, json: &str) -> Binding {
    let mut document: Value = serde_json::from_str(json).unwrap();
    document["sessionId"] = "session_1".into();
    let tenant = document.get("tenantId").and_then(Value::as_str).unwrap_or("tenant1");
    let (user, tenant) = (UserId::parse("user").unwrap(), TenantId::parse(tenant).unwrap());
    let id = crate::domain::ids::RequestId::parse("req_1").unwrap();
    // The spelling of numbers is the document's.
    let text = json.replacen('{', r#"{"sessionId":"session_1","#, 1);
    let request = ApprovalRequest::read(&id, text).unwrap();
    policy.bind(&Subject {
        action_type: &request.action_type,
        message: None,
        context: shown_context(&request.document).get(),
        user: Some(&user),
        tenant: Some(&tenant),
        session: &request.session,
        task: None,
        origin: Origin::Http,
    })
}

#[test]
fn every_line_of_the_document_is_true() {
    let sections = sections();
    assert_eq!(sections.len(), 10);
    for (title, file, lines) in sections {
        let policy = Policy::read(&file).unwrap_or_else(|mistake| panic!("{title}: {mistake}"));
        assert!(!lines.is_empty(), "{title}");
        for Line { request, rule, may: people, may_not } in lines {
            let binding = bind_json(&policy, request);
            let (name, outcome) = rule.split_once(", ").unwrap_or((rule, "1 approvals"));
            assert_eq!(binding.rule().unwrap_or("no rule"), name, "{title}: {request}");
            let automatic = match outcome {
                "approved at once" => Some(Verdict::Approve),
                "rejected at once" => Some(Verdict::Reject),
                "remembers any" => {
                    assert_eq!(binding.may_remember(Remember::Any), Ok(()), "{title}: {request}");
                    None
                }
                approvals => {
                    let quorum: u32 =
                        approvals.strip_suffix(" approvals").unwrap().parse().unwrap();
                    assert_eq!(binding.quorum(), quorum, "{title}: {request}");
                    None
                }
            };
            let found = binding.automatic().map(|automatic| automatic.verdict);
            assert_eq!(found, automatic, "{title}: {request}");
            assert!(automatic.is_some() || !people.is_empty(), "{title}: {request}");
            for (all, allowed) in [(people, true), (may_not, false)] {
                for text in all {
                    let (who, seconds) = somebody(text);
                    let answer = may(&binding, &who, Way::Approve, seconds);
                    assert_eq!(answer.is_ok(), allowed, "{title}: {request}: {text}: {answer:?}");
                }
            }
        }
    }
}

#[test]
fn the_limits_and_defaults_of_the_document_are_those_of_the_code() {
    for (limit, said) in [
        (MAX_FILE_BYTES / 1024, "512 KiB"),
        (expression::MAX_STEPS_OF_ALL, "400,000 for all"),
        (expression::MAX_STEPS, "100,000 steps for one rule"),
    ] {
        let digits = said.chars().filter(char::is_ascii_digit).collect::<String>();
        assert_eq!(limit.to_string(), digits);
        assert!(DOCUMENT.contains(said), "{said}");
    }
    let shown = DEFAULT_SHOW.map(|entry| format!("`{entry}`")).join(", ");
    assert!(DOCUMENT.contains(&format!("fields of `context` | {shown} |")));
}
