//! Requests whose beginning and end two programs could see differently: refused and the connection
//! closed, on every route, so that nothing hidden in one of them is ever answered.

use futures_util::{StreamExt as _, stream};
use support::harmful::{ambiguous_heads, broken_chunks, broken_first_lines, requests_in_bodies};
use support::{
    ALICE, Asked, Operation, RawAnswer, TestApp, careful_operations, operations, unique,
};

/// Connections at once: some are closed only after actix has waited a while for the client.
const AT_ONCE: usize = 48;

/// Sends ALICE's call to every route under both prefixes, each time with another of these endings
/// behind her headers, and shows what comes back; nothing hidden ever does. Where a route takes an
/// id it is that of a pending request, which must still be pending afterwards.
async fn send_everywhere(
    app: &TestApp,
    endings: &[String],
    check: impl Fn(&Operation, &RawAnswer, &str),
) {
    let asked = Asked::new();
    app.ask(&asked).await;
    let mut calls = Vec::new();
    for operation in careful_operations() {
        for path in operation.paths_to(&asked.id) {
            let head = app.head(ALICE, &operation.method, &path) + &ALICE.lines();
            let head = head + "Content-Type: application/json\r\n";
            calls.extend(endings.iter().map(|ending| {
                let what = format!("{} {path} {ending:?}", operation.method);
                (operation.clone(), what, format!("{head}{ending}"))
            }));
        }
    }
    let answers = calls.into_iter().map(async |(operation, what, bytes)| {
        let answer = app.raw(bytes).await;
        let what = format!("{what}: {}", answer.text);
        assert!(!answer.text.contains("smuggled"), "{what}");
        assert!(answer.is_closed, "it stayed open: {what}");
        check(&operation, &answer, &what);
    });
    stream::iter(answers).buffer_unordered(AT_ONCE).collect::<()>().await;
    assert_eq!(app.signal(&asked.session).await, None);
    assert!(app.is_undecided(&asked.id).await);
}

both_modes! {
    async fn a_head_that_proxies_read_differently_is_refused(app: TestApp) {
        send_everywhere(&app, &ambiguous_heads(), |_operation, answer, what| {
            assert_eq!(answer.first().status, 400, "{what}");
            assert_eq!(answer.count(), 1, "{what}");
        }).await;
    }
}

both_modes! {
    async fn a_first_line_that_is_none_is_refused(app: TestApp) {
        for operation in operations() {
            let head = app.head(ALICE, &operation.method, &operation.path()) + &ALICE.lines();
            for bytes in broken_first_lines(&head) {
                let answer = app.raw(bytes.clone()).await;
                assert_eq!((answer.first().status.as_u16(), answer.count()), (400, 1), "{bytes}: {}", answer.text);
                assert!(answer.is_closed && !answer.text.contains("smuggled"), "{bytes}: {}", answer.text);
            }
        }
    }
}

both_modes! {
    /// The head is in order, the chunks are not: what follows them is nobody's request.
    async fn broken_chunks_end_the_connection(app: TestApp) {
        send_everywhere(&app, &broken_chunks(), |operation, answer, what| {
            assert!(answer.count() <= 1, "{what}");
            if operation.body(ALICE).is_some() {
                assert_eq!(answer.first().status, 400, "{what}");
            }
        }).await;
    }
}

both_modes! {
    /// In order from end to end: a body is a body, whoever reads it, and what follows it is the next
    /// request.
    async fn a_request_inside_a_body_is_never_answered(app: TestApp) {
        send_everywhere(&app, &requests_in_bodies(), |operation, answer, what| {
            // A store may be too slow for a busy machine, which is no matter here.
            assert_ne!(answer.first().status, 500, "{what}");
            // Either the body was read and the next request answered, or the connection ended.
            let next = answer.text.matches("the-next").count();
            assert_eq!(answer.count(), 1 + next, "{what}");
            assert!(next == 1 || what.contains("Upgrade") || operation.body(ALICE).is_some(), "{what}");
        }).await;
    }
}

both_modes! {
    /// What an operation does not ask for, it does not look at: however odd, it changes no answer.
    async fn bodies_that_nobody_asked_for_are_left_alone(app: TestApp) {
        let odd = [
            unique("text"), "[".repeat(10_000), r#"{"a":1,"a":2}"#.to_owned(), "{\"a\":\"\0\"}".to_owned(), "[1e999]".to_owned(),
            "x".repeat(100_000), "x".repeat(3_000_000),
        ];
        let endings = odd.map(|body| format!("Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        for operation in operations().into_iter().filter(|one| one.body(ALICE).is_none() && !one.is_stream()) {
            let path = operation.path();
            let plain = app.call(ALICE, operation.method.clone(), &path).send().await.unwrap().status();
            let head = app.head(ALICE, &operation.method, &path) + &ALICE.lines();
            let answers = endings.iter().map(async |ending| {
                let answer = app.raw(format!("{head}{ending}")).await;
                assert_eq!((answer.first().status, answer.is_closed), (plain, true), "{path}: {}", answer.text);
            });
            stream::iter(answers).buffer_unordered(AT_ONCE).collect::<()>().await;
        }
    }
}
