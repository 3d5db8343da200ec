//! `aura-hitl policy`: a file is checked, explained and simulated as operators do it, beside the service
//! and on its stores.

use std::path::PathBuf;
use std::process::Output;

use aura_hitl::domain::approver::Role;
use serde_json::json;
use support::{ALICE, Asked, BOB, Program, Who};
use tempfile::TempDir;

use crate::retention::{beside, printed};

const RULES: &str = r#"
[groups]
finance = ["kim", "bob", "tenant2/lee"]

[[rule]]
name = "payments"
when = 'actionType == "pay" && context.amount >= 1000'
risk = "high"
approvers = ["group:finance", "group:heads", "role:admin"]
quorum = 2
self_approval = false
expires_in = "30m"
remind_after = "5m"
escalate = [{ after = "10m", approvers = ["user:cho"] }]

[[rule]]
name = "reads"
when = 'actionType == "read"'
auto = "approve"

[[rule]]
name = "drops"
when = 'actionType == "drop"'
auto = "reject"

[[rule]]
name = "mails"
when = 'actionType == "send_email"'
approvers = ["tenant"]
self_approval = false
"#;

/// A folder with a policy file.
fn folder(rules: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("policy.toml");
    std::fs::write(&file, rules).unwrap();
    (folder, file)
}

/// Runs `aura-hitl policy` on these rules, in a folder where the file is `policy.toml`.
fn policy(rules: &str, arguments: &[&str], language: &str) -> Output {
    let (folder, _file) = folder(rules);
    Program::new(&folder, &[&["policy"], arguments].concat()).with("LANG", language).output()
}

#[track_caller]
fn refused(output: &Output, line: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("aura-hitl: {line}\n"));
}

#[test]
fn a_file_is_checked() {
    let check = ["check", "policy.toml"];
    let text = printed(&policy(RULES, &check, "C"));
    let (first, notes) = text.split_once('\n').unwrap();
    let version = first.strip_prefix("policy.toml: 4 rules, version ").unwrap();
    assert!(version.len() == 12 && version.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(notes, "note: group heads has no members in the file; only tokens can name it\n");
    let text = printed(&policy(RULES, &check, "ko_KR.UTF-8"));
    assert!(text.starts_with(&format!("policy.toml: 규칙 4개, 버전 {version}\n참고: 그룹 heads")));

    let all = "[[rule]]\nname = \"all\"\nwhen = 'true'\napprovers = [\"tenant\"]\n";
    let text = printed(&policy(
        &format!("{all}[[rule]]\nname = \"late\"\nwhen = 'true'\nauto = \"reject\""),
        &check,
        "C",
    ));
    assert!(
        text.ends_with("note: rule \"late\" never matches, since rule \"all\" matches before\n"),
        "{text}"
    );
    let one = printed(&policy(all, &check, "C"));
    assert!(one.starts_with("policy.toml: 1 rule, version ") && one.lines().count() == 1, "{one}");
}

#[test]
fn a_wrong_file_is_one_line() {
    let wrong = RULES.replace("quorum = 2", "quorum = 0");
    let line = "policy.toml: rule \"payments\": quorum: must be a whole number from 1 to 100";
    let request = r#"{"actionType":"pay"}"#;
    let commands: [&[&str]; 3] = [
        &["check", "policy.toml"],
        &["explain", "policy.toml", "--request", request],
        &["simulate", "policy.toml", "--from", "2026-01-01"],
    ];
    for arguments in commands {
        refused(&policy(&wrong, arguments, "C"), line);
    }
    let korean = policy(&wrong, commands[0], "ko_KR.UTF-8");
    refused(
        &korean,
        "policy.toml: 규칙 \"payments\": quorum: 올바른 형식이 아닙니다: a whole number from 1 to 100",
    );
    let none = policy(RULES, &["check", "none.toml"], "C");
    refused(&none, "cannot read none.toml: No such file or directory (os error 2)");
    let large = policy(&"#".repeat(600_000), commands[0], "C");
    refused(&large, "policy.toml: the file may have at most 524288 bytes");
    for (request, line) in [
        (
            "{",
            "--request is not the JSON of a request: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"{"userId":{}}"#,
            "--request is not the JSON of a request: it has an id that is neither text nor an integer",
        ),
        (
            r#"{"origin":"mail"}"#,
            "--request is not the JSON of a request: origin is \"mail\"; it must be \"redis\" or \"http\"",
        ),
        ("a b", "--request is neither JSON nor an id: not a valid requestId"),
    ] {
        refused(&policy(RULES, &["explain", "policy.toml", "--request", request], "C"), line);
    }
    let none = policy(RULES, &["explain", "policy.toml", "--request", "req-1"], "C");
    assert!(none.status.code() == Some(1), "{none:?}");
}

#[test]
fn a_request_that_is_written_out_is_explained() {
    let explain = |request: &str, language: &str| {
        let text =
            printed(&policy(RULES, &["explain", "policy.toml", "--request", request], language));
        text.split_once('\n').unwrap().1.to_owned()
    };
    assert_eq!(
        explain(r#"{"actionType":"pay","context":{"amount":1000.0},"tenantId":"tenant1"}"#, "C"),
        "rule: payments\n\
         why: Rule \"payments\" matches. It asks for 2 approvals from group finance, group heads or role admin. The requester may not approve. After 10m also from user cho.\n\
         risk: high\n\
         approvals needed: 2\n\
         decisions: approve, reject\n\
         remember: never\n\
         expires in: 30m\n\
         reminder after: 5m\n\
         who may, rule \"payments\": group:finance (bob, kim), group:heads, role:admin; after 10m: user:cho; not the requester\n"
    );
    let read = r#"{"actionType":"read","context":{"amount":1}}"#;
    assert_eq!(
        explain(read, "C"),
        "rule: reads\nwhy: Rule \"reads\" matches. It approves the action.\nrisk: medium\ndecision: approved at once, by rule \"reads\"\n"
    );
    assert!(explain(read, "ko_KR.UTF-8").ends_with("결정: 바로 승인됨, 규칙 \"reads\"\n"));
    let drop = explain(r#"{"actionType":"drop"}"#, "C");
    assert!(drop.ends_with("decision: rejected at once, by rule \"drops\"\n"), "{drop}");
    let unclear = explain(r#"{"actionType":"pay","context":{"amount":"1000"}}"#, "C");
    assert!(unclear.starts_with("rule: -\nwhy: Rule \"payments\" could not be evaluated (a value has the wrong type for a comparison), so it binds too."), "{unclear}");
    assert!(unclear.ends_with("\nwho may: role:admin\n"), "{unclear}");
    let origin = RULES.replace("actionType == \"read\"", "origin == \"redis\"");
    for (name, rule) in [("redis", "reads"), ("http", "-")] {
        let request = format!(r#"{{"actionType":"x","origin":"{name}"}}"#);
        let text =
            printed(&policy(&origin, &["explain", "policy.toml", "--request", &request], "C"));
        assert_eq!(text.lines().nth(1), Some(format!("rule: {rule}").as_str()), "{text}");
    }
}

const ADMIN: Who<'static> = Who { user: "boss", tenant: "tenant1", role: Role::Admin };

both_modes! {
    async fn a_request_of_the_ledger_is_explained(app: TestApp) {
        let asked = Asked::new().with("actionType", json!("pay")).with("context", json!({ "amount": 5000 }));
        app.register(ALICE, &asked).await.assert(201, "");
        let (folder, file) = folder(RULES);
        let file = file.to_str().unwrap();
        let run = |request: &str, tenant: &[&str]| {
            let arguments = [&["policy", "explain", file, "--request", request], tenant].concat();
            beside(&app, Program::new(&folder, &arguments)).output()
        };
        let text = printed(&run(&asked.id, &["--tenant", "tenant1"]));
        assert!(text.contains("\nrule: payments\n") && text.contains("group:finance (bob, kim)"), "{text}");
        refused(&run(&asked.id, &["--tenant", "tenant2"]), &format!("the ledger has no request {} of tenant tenant2", asked.id));
        refused(&run(&asked.id, &[]), &format!("the ledger has no request {} of Redis; of a registered one, name the tenant with --tenant", asked.id));
    }

}

both_modes! {
    async fn past_requests_that_would_go_another_way_are_listed(app: TestApp) {
        let ask = async |action: &str, context: serde_json::Value| {
            let asked = Asked::new().with("actionType", json!(action)).with("context", context);
            app.register(ALICE, &asked).await.assert(201, "");
            asked.id
        };
        let amount = || json!({ "amount": 2000 });
        let mut expected = Vec::new();
        let mut expect = |id: &str, line: &str| expected.push((id.to_owned(), line.to_owned()));

        let id = ask("read", json!({})).await;
        app.approve(ALICE, &id).await.assert(200, "");
        expect(&id, "read approved: rule \"reads\" would approve it at once");
        let id = ask("drop", json!({})).await;
        app.approve(BOB, &id).await.assert(200, "");
        expect(&id, "drop approved: rule \"drops\" would reject it at once");
        let id = ask("pay", amount()).await;
        app.approve(ADMIN, &id).await.assert(200, "");
        expect(&id, "pay approved: 1 more would have to approve (payments)");
        let id = ask("pay", amount()).await;
        app.approve(ALICE, &id).await.assert(200, "");
        expect(&id, &format!("pay approved: {} could not: Not approved: rule \"payments\" does not let requesters approve their own requests", ALICE.user));
        let id = ask("pay", amount()).await;
        app.approve(Who { user: "song", tenant: "tenant1", role: Role::User }, &id).await.assert(200, "");
        expect(&id, "pay approved: song could only by a group or role of the token that rule \"payments\" names");
        let id = ask("other", amount()).await;
        app.reject(BOB, &id, None).await.assert(200, "");
        expect(&id, &format!("other rejected: {} could only with role admin in the token", BOB.user));
        let id = ask("other", json!({})).await;
        app.post(ALICE, &format!("/aura/hitl/requests/{id}/cancel"), json!({})).await;
        // These would go as they went.
        for (who, is_approved) in [(BOB, true), (BOB, false), (ALICE, false)] {
            let id = ask("send_email", json!({})).await;
            if is_approved {
                app.approve(who, &id).await.assert(200, "");
            } else {
                app.reject(who, &id, None).await.assert(200, "");
            }
        }
        let id = ask("pay", amount()).await;
        app.reject(ADMIN, &id, None).await.assert(200, "");
        // Nobody has decided it.
        ask("pay", amount()).await;

        let (folder, file) = folder(RULES);
        let simulate = |from: &str| {
            let arguments = ["policy", "simulate", file.to_str().unwrap(), "--from", from];
            printed(&beside(&app, Program::new(&folder, &arguments)).output())
        };
        let text = simulate("2020-01-01");
        let lines = text.lines().collect::<Vec<_>>();
        let (last, lines) = lines.split_last().unwrap();
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, (id, told)) in lines.iter().zip(&expected) {
            let (_time, rest) = line.split_once(' ').unwrap();
            assert_eq!(rest, format!("tenant1 {id} {told}"));
        }
        assert!(last.starts_with("6 of 1") && last.ends_with(" requests would go another way"), "{last}");
        let far = simulate("2020-01-01T00:00:00Z").lines().last().unwrap().to_owned();
        assert_eq!(far, *last);

        // What a rule decided goes to people where no rule decides any more, and stays where one does.
        let id = &expected[0].0;
        app.sql(format!("UPDATE hitl_request SET decided_via = 'policy', decided_by = 'reads' WHERE request_id = '{id}'")).await;
        let text = simulate("2020-01-01");
        assert!(!text.contains(id.as_str()) && text.contains("\n5 of 1"), "{text}");
        std::fs::write(&file, RULES.replace("actionType == \"read\"", "false")).unwrap();
        let text = simulate("2020-01-01");
        assert!(text.contains(&format!("{id} read approved: people would have to decide: No rule matches.")), "{text}");
        app.sql(format!("UPDATE hitl_request SET decided_via = 'grant' WHERE request_id = '{id}'")).await;
        assert_eq!(simulate("2020-01-01"), text);
        // Arguments that another rule would bind, too: nobody may change them under this file.
        let id = &expected[4].0;
        app.sql(format!("UPDATE hitl_request SET arguments = '{{\"amount\":1}}' WHERE request_id = '{id}'")).await;
        let edited = simulate("2020-01-01");
        assert!(edited.contains(&format!("{id} pay approved: song could not: Not approved with changes: rule \"payments\" does not allow this kind of decision")), "{edited}");
        // A second approval that counted.
        let id = &expected[2].0;
        app.sql(format!("UPDATE hitl_request SET voters = '[\"kim\",\"boss\"]' WHERE request_id = '{id}'")).await;
        assert!(!simulate("2020-01-01").contains(id.as_str()));
        app.sql(format!("UPDATE hitl_request SET document = '[]' WHERE request_id = '{id}'")).await;
        let text = simulate("2020-01-01");
        assert!(text.contains(&format!("{id} pay approved: the request cannot be read, so nobody could decide it")), "{text}");
    }
}
