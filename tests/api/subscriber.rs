//! The signals as an agent's own Redis client receives them, byte for byte.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use aura_hitl::domain::decision::State;
use support::{ALICE, Asked, Mode, TestApp, test_variable, unique};

/// The fixture, run by the Python of `scripts/test`; killed when dropped.
struct Subscriber {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Subscriber {
    /// Subscribes; the second value is what the session's key held then.
    fn start(session: &str, messages: usize) -> (Self, String) {
        let mut child = Command::new(test_variable("TEST_PYTHON"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/subscriber.py"))
            .args([&test_variable("TEST_REDIS_URL"), session, &messages.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("TEST_PYTHON does not run");
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut subscriber = Self { child, lines };
        let found = subscriber.next("found");
        (subscriber, found)
    }

    fn next(&mut self, expected: &str) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let (word, value) = line.trim_end_matches('\n').split_once(' ').unwrap_or_else(|| {
            panic!("the subscriber ended: {line:?}, {:?}", self.child.try_wait())
        });
        assert_eq!(word, expected);
        String::from_utf8(decode(value)).unwrap()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Base64, RFC 4648 § 4.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {text}"),
    };
    let bits: Vec<_> = text
        .trim_end_matches('=')
        .bytes()
        .flat_map(|byte| (0..6).rev().map(move |bit| digit(byte) >> bit & 1))
        .collect();
    bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
}

/// A request of a session whose name holds what user names hold, with the signal's fixed part.
async fn ask(app: &TestApp) -> Asked {
    let asked = Asked::in_session(&unique("session_김철수@example.com"));
    app.ask(&asked).await;
    asked
}

async fn decided_at(app: &TestApp, asked: &Asked) -> i64 {
    let State::Decided(decision) = app.record(&asked.id).await.state else {
        panic!("it is decided");
    };
    decision.at.timestamp()
}

fn approval(id: &str, at: i64) -> String {
    format!(r#"{{"type":"approval","requestId":"{id}","status":"approved","timestamp":{at}}}"#)
}

/// `reason` as it stands in JSON.
fn rejection(id: &str, reason: &str, at: i64) -> String {
    format!(
        r#"{{"type":"rejection","requestId":"{id}","status":"rejected","reason":"{reason}","timestamp":{at}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_receives_the_approval_byte_for_byte() {
    let app = TestApp::spawn(Mode::Production).await;
    let asked = ask(&app).await;
    let (mut subscriber, found) = Subscriber::start(&asked.session, 1);
    assert_eq!(found, "");
    app.approve(ALICE, &asked.id).await.assert(200, "");
    let received = subscriber.next("message");
    assert_eq!(received, approval(&asked.id, decided_at(&app, &asked).await));
    assert_eq!(app.signal(&asked.session).await, Some(received));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_receives_rejections_byte_for_byte() {
    let app = TestApp::spawn(Mode::Production).await;
    let reasons = [
        (Some("사용자 거절"), "사용자 거절"),
        (None, "User rejected"),
        (Some(" "), "User rejected"),
        (Some("\"no\"\n\\/ 🙅 <b>\u{1}"), "\\\"no\\\"\\n\\\\/ 🙅 <b>\\u0001"),
    ];
    for (reason, in_json) in reasons {
        let asked = ask(&app).await;
        let (mut subscriber, _) = Subscriber::start(&asked.session, 1);
        app.reject(ALICE, &asked.id, reason).await.assert(200, "");
        let received = subscriber.next("message");
        assert_eq!(received, rejection(&asked.id, in_json, decided_at(&app, &asked).await));
        assert_eq!(app.signal(&asked.session).await, Some(received));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_is_answered_question_by_question() {
    let app = TestApp::spawn(Mode::Production).await;
    let session = unique("session_user123");
    let (mut subscriber, _) = Subscriber::start(&session, 4);
    for _question in 0..4 {
        let asked = Asked::in_session(&session);
        app.ask(&asked).await;
        // A double click is one signal: the next message answers the next question.
        for _click in 0..2 {
            app.approve(ALICE, &asked.id).await.assert(200, "");
        }
        let at = decided_at(&app, &asked).await;
        assert_eq!(subscriber.next("message"), approval(&asked.id, at));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_subscribes_too_late_finds_the_signal_under_the_key() {
    let app = TestApp::spawn(Mode::Production).await;
    let asked = ask(&app).await;
    app.reject(ALICE, &asked.id, Some("늦음")).await.assert(200, "");
    let (_subscriber, found) = Subscriber::start(&asked.session, 0);
    assert_eq!(found, rejection(&asked.id, "늦음", decided_at(&app, &asked).await));
}
