//! The checker of `scripts/faults` finds each kind of broken history, and nothing in a sound one.

use support::history::{Aftermath, Call, Choice, Delivered, Ended, Row, check, duplicates};

fn row(request: &str, decision: Option<Choice>) -> Row {
    Row {
        request: request.to_owned(),
        session: format!("session_{request}"),
        is_registered: false,
        status: decision.as_ref().map_or("pending", |choice| &choice.status).to_owned(),
        decided_at: decision.as_ref().map(|_| 1_706_152_860),
        decision,
        delivery: "sent".to_owned(),
        has_task: true,
    }
}

fn call(request: &str, choice: Choice, ended: Ended) -> Call {
    Call { request: request.to_owned(), choice, ended }
}

/// Alice approved `a`, Bob was told so; Bob rejected `b` and never heard of it; nobody `c`.
fn sound() -> (Vec<Call>, Aftermath) {
    let (alice, bob) = (Choice::approved("alice"), Choice::rejected("bob", "사용자 \"거절\""));
    let calls = vec![
        call("a", alice.clone(), Ended::Ok),
        call("a", bob.clone(), Ended::Fail { status: 409, standing: Some(alice.clone()) }),
        call("b", bob.clone(), Ended::Unknown),
        call("c", alice.clone(), Ended::Fail { status: 503, standing: None }),
        call("c", bob.clone(), Ended::Unknown),
    ];
    let rows = vec![row("a", Some(alice)), row("b", Some(bob)), row("c", None)];
    let heard = rows
        .iter()
        .filter_map(|row| Some((row.session.clone(), row.signal()?)))
        .collect::<Vec<_>>();
    let keys = heard.iter().cloned().collect();
    (calls, Aftermath { rows, heard, keys, ..Aftermath::default() })
}

#[track_caller]
fn assert_found(calls: &[Call], aftermath: &Aftermath, expected: &str) {
    let wrongs = check(calls, aftermath, Delivered::Published);
    assert!(wrongs.iter().any(|wrong| wrong.contains(expected)), "{expected}: {wrongs:?}");
}

#[test]
fn a_sound_history_passes() {
    let (calls, aftermath) = sound();
    for delivered in [Delivered::Published, Delivered::Found, Delivered::Settled] {
        assert_eq!(check(&calls, &aftermath, delivered), Vec::<String>::new());
    }
    assert_eq!(duplicates(&aftermath.heard), 0);
}

#[test]
fn the_signal_is_the_contracts_byte_for_byte() {
    let (_calls, aftermath) = sound();
    let expected = [
        r#"{"type":"approval","requestId":"a","status":"approved","timestamp":1706152860}"#,
        r#"{"type":"rejection","requestId":"b","status":"rejected","reason":"사용자 \"거절\"","timestamp":1706152860}"#,
    ];
    assert_eq!(aftermath.heard[0].1, expected[0]);
    assert_eq!(aftermath.heard[1].1, expected[1]);
}

#[test]
fn a_lost_acknowledged_decision_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.rows.remove(0);
    assert_found(&calls, &aftermath, "a: Choice { by: \"alice\"");
    let (calls, mut aftermath) = sound();
    aftermath.rows[0] = row("a", None);
    assert_found(&calls, &aftermath, "was acknowledged, stored is None");
}

#[test]
fn two_acknowledged_decisions_are_found() {
    let (mut calls, aftermath) = sound();
    calls.push(call("a", Choice::rejected("bob", "no"), Ended::Ok));
    assert_found(&calls, &aftermath, "was acknowledged, stored is Some");
    let (calls, mut aftermath) = sound();
    aftermath.rows.push(row("a", Some(Choice::approved("alice"))));
    assert_found(&calls, &aftermath, "two rows for one request");
}

#[test]
fn an_answer_that_names_another_decision_is_found() {
    let (mut calls, aftermath) = sound();
    let standing = Some(Choice::approved("mallory"));
    calls.push(call("a", Choice::approved("bob"), Ended::Fail { status: 409, standing }));
    assert_found(&calls, &aftermath, "told that");
}

#[test]
fn a_decision_that_nobody_made_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.rows[2] = row("c", Some(Choice::approved("mallory")));
    assert_found(&calls, &aftermath, "nobody decided that");
    // Nor one that its maker was told had not happened.
    aftermath.rows[2] = row("c", Some(Choice::approved("alice")));
    assert_found(&calls, &aftermath, "nobody decided that");
}

#[test]
fn a_decision_without_a_task_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.rows[1].has_task = false;
    assert_found(&calls, &aftermath, "agent_task has no row");
}

#[test]
fn a_signal_that_never_came_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.heard.remove(1);
    assert_found(&calls, &aftermath, "never reached session");
    assert_eq!(check(&calls, &aftermath, Delivered::Found), Vec::<String>::new());
    aftermath.keys.clear();
    assert_eq!(check(&calls, &aftermath, Delivered::Found).len(), 1);
    assert!(!aftermath.has_signalled(&aftermath.rows[1]));
    aftermath.polled.insert("b".to_owned(), aftermath.rows[1].signal().unwrap());
    assert_eq!(check(&calls, &aftermath, Delivered::Found), Vec::<String>::new());
    aftermath.polled.insert("b".to_owned(), aftermath.rows[0].signal().unwrap());
    assert_eq!(check(&calls, &aftermath, Delivered::Found).len(), 1);
    aftermath.rows[1].delivery = "superseded".to_owned();
    assert_eq!(check(&calls, &aftermath, Delivered::Settled), Vec::<String>::new());
    aftermath.rows[1].delivery = "owed".to_owned();
    assert_found(&calls, &aftermath, "still owed");
}

#[test]
fn a_registered_request_that_was_said_in_a_session_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.rows[0].is_registered = true;
    assert_found(&calls, &aftermath, "registered, and said in session");
    aftermath.heard.remove(0);
    assert_found(&calls, &aftermath, "registered, and said in session");
    aftermath.keys.remove("session_a");
    assert_eq!(check(&calls, &aftermath, Delivered::Published), Vec::<String>::new());
}

#[test]
fn a_signal_that_nobody_decided_is_found() {
    let (calls, mut aftermath) = sound();
    let text = r#"{"type":"approval","requestId":"c","status":"approved","timestamp":1}"#;
    aftermath.heard.push(("session_c".to_owned(), text.to_owned()));
    assert_found(&calls, &aftermath, "not what the ledger holds");
    let (calls, mut aftermath) = sound();
    aftermath.keys.insert("session_c".to_owned(), text.to_owned());
    assert_found(&calls, &aftermath, "not what the ledger holds");
}

#[test]
fn a_signal_in_another_session_or_other_bytes_is_found() {
    let (calls, mut aftermath) = sound();
    aftermath.heard[0].0 = "session_b".to_owned();
    assert_found(&calls, &aftermath, "not what the ledger holds");
    let (calls, mut aftermath) = sound();
    aftermath.heard[0].1 = aftermath.heard[0].1.replace(',', ", ");
    assert_found(&calls, &aftermath, "not what the ledger holds");
}

#[test]
fn repeated_messages_are_counted() {
    let (_calls, mut aftermath) = sound();
    let again = aftermath.heard[0].clone();
    aftermath.heard.push(again);
    assert_eq!(duplicates(&aftermath.heard), 1);
}
