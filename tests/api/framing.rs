//! Requests whose beginning and end two programs could see differently: refused and the connection
//! closed, on every route, so that nothing hidden in one of them is ever answered.

use futures_util::{StreamExt as _, stream};

use crate::helpers::{ALICE, Asked, Operation, PREFIXES, RawAnswer, TestApp, operations, unique};

/// A request that nobody sent: whoever takes it for one repeats its trace id.
const HIDDEN: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Trace-Id: smuggled\r\n\r\n";
/// What ALICE says when she decides.
const BODY: &str = r#"{"userId":"user123"}"#;
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
    for operation in operations() {
        for prefix in PREFIXES {
            let path = format!("{prefix}{}", operation.path_to(&asked.id));
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
    assert!(app.is_unrecorded(&asked.id).await);
}

both_modes! {
    async fn a_head_that_proxies_read_differently_is_refused(app: TestApp) {
        let n = BODY.len();
        let chunked = [
            format!("Content-Length: {n}\r\nTransfer-Encoding: chunked"),
            format!("Transfer-Encoding: chunked\r\nContent-Length: {n}"),
            "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(),
            format!("Content-Length: {n}\r\nTransfer-Encoding: identity"),
        ]
        .into_iter()
        .chain([
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked",
            "Transfer-Encoding:\r\n chunked", " Transfer-Encoding: chunked", "X: y\r\n Transfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked", "Transfer-Encoding\r\n : chunked", "Transfer-Encoding\0: chunked",
            "Transfer\u{2010}Encoding: chunked", ": chunked", "Transfer-Encoding chunked",
        ].map(ToOwned::to_owned))
        .chain([
            "chunked, chunked", "chunked, identity", "identity, chunked", "gzip, chunked", "identity", "xchunked", "chunkedx", "chunked;q=1",
            "\"chunked\"", "chunked,", ",chunked", "", "\u{b}chunked", "chunked\u{b}", "\0chunked", "ｃｈｕｎｋｅｄ", "chu nked", "cow",
        ].map(|coding| format!("Transfer-Encoding: {coding}")))
        .map(|framing| format!("{framing}\r\n\r\n{n:x}\r\n{BODY}\r\n0\r\n\r\n{HIDDEN}"));
        let with_length = [
            format!("Content-Length: {n}\r\nContent-Length: {n}"), format!("Content-Length: {n}\r\nContent-Length: 0"),
            format!("Content-Length: 0\r\nContent-Length: {n}"), format!("Content-Length: {n}\r\ncontent-length: {}", n + 1),
            format!("Content-Length: {n}, {n}"), format!("Content-Length: {n},"), format!("Content-Length: -{n}"),
            format!("Content-Length: +{n}"), format!("Content-Length: 0x{n:x}"), format!("Content-Length: {n}.0"),
            format!("Content-Length: {n}e0"), format!("Content-Length: 1 {n}"), format!("Content-Length: \"{n}\""),
            format!("Content-Length: {n};"), "Content-Length:".to_owned(), "Content-Length: ".to_owned(), "Content-Length: x".to_owned(),
            "Content-Length: ２０".to_owned(), "Content-Length: 18446744073709551616".to_owned(), "Content-Length: 99999999999999999999999999".to_owned(),
            format!("Content-Length : {n}"), format!("Content-Length\t: {n}"), format!("Content-Length:\r\n {n}"), format!(" Content-Length: {n}"),
            format!("X: y\r\n\tContent-Length: {n}"), format!("X: y\rContent-Length: {n}"), format!("X: y\0\r\nContent-Length: {n}"),
            format!("Host: y\r\nContent-Length: {n}"),
            // A line feed alone ends a line (RFC 9112 § 2.2), and so hides none of these.
            format!("X: y\nContent-Length: {n}\nContent-Length: 0"), format!("X: y\nTransfer-Encoding: chunked\nContent-Length: {n}"),
            format!("X: y\n Content-Length: {n}"),
        ]
        .map(|framing| format!("{framing}\r\n\r\n{BODY}{HIDDEN}"));
        let endings = chunked.chain(with_length).collect::<Vec<_>>();
        send_everywhere(&app, &endings, |_operation, answer, what| {
            assert_eq!(answer.first().status, 400, "{what}");
            assert_eq!(answer.count(), 1, "{what}");
        }).await;
    }
}

both_modes! {
    async fn a_first_line_that_is_none_is_refused(app: TestApp) {
        for operation in operations() {
            let head = app.head(ALICE, &operation.method, &operation.path()) + &ALICE.lines();
            let with_version = |version: &str| head.replacen("HTTP/1.1", version, 1);
            let without_host = head.replacen("Host: x\r\n", "", 1);
            for head in ["HTTP/1.0", "HTTP/1.2", "HTTP/0.9", "HTTP/2.0", "http/1.1", "HTTP/1.1 x", ""]
                .map(with_version).into_iter().chain([without_host, format!(" {head}"), format!("\0{head}")])
            {
                let answer = app.raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")).await;
                assert_eq!((answer.first().status.as_u16(), answer.count()), (400, 1), "{head}: {}", answer.text);
                assert!(answer.is_closed && !answer.text.contains("smuggled"), "{head}: {}", answer.text);
            }
        }
    }
}

both_modes! {
    /// The head is in order, the chunks are not: what follows them is nobody's request.
    async fn broken_chunks_end_the_connection(app: TestApp) {
        let n = format!("{:x}", BODY.len());
        let endings = [
            format!("-{n}\r\n{BODY}\r\n0\r\n\r\n"), format!("0x{n}\r\n{BODY}\r\n0\r\n\r\n"), format!("+{n}\r\n{BODY}\r\n0\r\n\r\n"),
            format!(" {n}\r\n{BODY}\r\n0\r\n\r\n"), format!("{n}\n{BODY}\n0\n\n"), format!("{n}\r{BODY}\r\n0\r\n\r\n"),
            format!("{n};\n{BODY}\r\n0\r\n\r\n"), format!("{n};x\0\r\n{BODY}\r\n0\r\n\r\n"), format!("{n} 0\r\n{BODY}\r\n0\r\n\r\n"),
            format!("{n}\r\n{BODY}0\r\n\r\n"), format!("{n}\r\n{BODY}\n0\r\n\r\n"), format!("{n}\r\n{BODY}xx0\r\n\r\n"),
            format!("fffffffffffffffff\r\n{BODY}\r\n0\r\n\r\n"), format!("ffffffffffffffff0{n}\r\n{BODY}\r\n0\r\n\r\n"),
            format!("\r\n{n}\r\n{BODY}\r\n0\r\n\r\n"), format!(";{n}\r\n{BODY}\r\n0\r\n\r\n"), format!("g\r\n{BODY}\r\n0\r\n\r\n"),
            format!("0;\n\r\n{BODY}\r\n0\r\n\r\n"),
        ]
        .map(|chunks| format!("Transfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}"));
        send_everywhere(&app, &endings, |operation, answer, what| {
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
        let (n, chunk) = (HIDDEN.len(), format!("{:x}", HIDDEN.len()));
        let next = "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Trace-Id: the-next\r\nConnection: close\r\n\r\n";
        let endings = [
            format!("Content-Length: {n}\r\n\r\n{HIDDEN}"), format!("Content-Length: {n}\r\nExpect: 100-continue\r\n\r\n{HIDDEN}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{chunk}\r\n{HIDDEN}\r\n0\r\n\r\n"),
            format!("Transfer-Encoding: CHUNKED\r\n\r\n{chunk};a=\"b\"\r\n{HIDDEN}\r\n0\r\nX: y\r\n\r\n"),
            format!("Content-Length: {n}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{HIDDEN}"),
            format!("Content-Length: {n}\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n{HIDDEN}"),
        ]
        .map(|framed| format!("{framed}{next}"));
        send_everywhere(&app, &endings, |operation, answer, what| {
            assert!(answer.first().status.as_u16() < 500, "{what}");
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
        for operation in operations().into_iter().filter(|one| one.body(ALICE).is_none()) {
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
