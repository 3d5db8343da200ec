//! Clients that send slowly, or nothing, or do not read: cut off, while everybody else is served.

use std::time::{Duration, Instant};

use aura_hitl::domain::clock::Clock;
use futures_util::future::join_all;
use reqwest::Method;
use support::{ALICE, Mode, TestApp, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The service promises 10 s; a busy machine may need longer to notice.
const AT_MOST: Duration = Duration::from_secs(40);
/// How often a slow client sends something.
const PACE: Duration = Duration::from_millis(200);

/// A way to keep a service waiting.
#[derive(Clone)]
struct Slow {
    name: String,
    /// Sent at once; when it is a whole call, its answer is awaited.
    first: String,
    is_call: bool,
    /// Sent after that, again and again or only once.
    then: &'static str,
    again: bool,
    reads: bool,
}

async fn connect(base: &str) -> TcpStream {
    let address = base.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    // So that answers which nobody reads do not vanish in the client's buffers.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address).await.unwrap()
}

/// A client that keeps the service waiting until it is cut off; how long that took.
async fn keep_waiting(base: String, slow: Slow) -> (String, Duration) {
    let (mut reading, mut writing) = connect(&base).await.into_split();
    writing.write_all(slow.first.as_bytes()).await.unwrap();
    if slow.is_call {
        read_answer(&mut reading).await;
    }
    let began = Instant::now();
    let cut_off_reading = async {
        if !slow.reads {
            return std::future::pending().await;
        }
        let mut buffer = [0; 1024];
        while reading.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    let cut_off_writing = async {
        loop {
            if slow.reads {
                tokio::time::sleep(PACE).await;
            }
            if writing.write_all(slow.then.as_bytes()).await.is_err() {
                return;
            }
            if !slow.again {
                return std::future::pending().await;
            }
        }
    };
    let cut_off = async {
        tokio::select! {
            () = cut_off_reading => {}
            () = cut_off_writing => {}
        }
    };
    let in_time = tokio::time::timeout(AT_MOST, cut_off).await;
    assert!(in_time.is_ok(), "{} was never cut off", slow.name);
    (slow.name, began.elapsed())
}

/// One answer whose body ends with the envelope.
async fn read_answer(reading: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(reading.read_buf(&mut answer).await.unwrap() > 0, "closed");
    }
    String::from_utf8(answer).unwrap()
}

/// Every way to be slow: with a head, with a body that is read or not, and with the answers.
fn ways_to_be_slow(app: &TestApp) -> Vec<Slow> {
    let token = app.token(ALICE.user, ALICE.tenant, ALICE.role);
    let head = |line: &str, token: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nX-Tenant-ID: tenant1\r\n\
             X-User-ID: user123\r\nContent-Type: application/json\r\n"
        )
    };
    let ok = head("GET /main/agent/tasks", &token);
    let slow = |name: &str, first: &str, then| Slow {
        name: name.to_owned(),
        first: first.to_owned(),
        is_call: first.ends_with("\r\n\r\n")
            && !first.contains("Length")
            && !first.contains("chunked"),
        then,
        again: true,
        reads: true,
    };
    let mut ways = vec![
        slow("nothing", "", ""),
        slow("a blank line at a time", "", "\r\n"),
        slow("half a request line", "GET /heal", ""),
        slow("a head, byte by byte", "GET /health/live HTTP/1.1\r\nX-A: ", "a"),
        slow("a head, line by line", &ok, "X-A: a\r\n"),
    ];
    // The same again on a connection that has been of use.
    for second in ["\r\n", "G", "a"] {
        ways.push(slow("a second head", &format!("{ok}\r\n"), second));
    }
    ways.push(Slow {
        again: false,
        ..slow("a second head's beginning", &format!("{ok}\r\n"), "GET /")
    });
    for (what, line, token) in [
        ("to be read", "POST /aura/hitl/approve/x", token.as_str()),
        ("to be read, of any kind", "POST /main/agent/tasks/x/complete", &token),
        ("of a GET", "GET /main/agent/tasks", &token),
        ("nobody wants", "POST /nowhere", &token),
        ("of a wrong method", "DELETE /main/agent/tasks", &token),
        ("without a token", "POST /aura/hitl/approve/x", "none"),
        ("of a health check", "GET /health/live", "none"),
        ("of a health check that looks", "GET /health/ready", "none"),
    ] {
        for (framing, then) in [
            ("Content-Length: 10000", ""),
            ("Content-Length: 10000", "x"),
            ("Transfer-Encoding: chunked", ""),
            ("Transfer-Encoding: chunked", "1\r\nx\r\n"),
            ("Transfer-Encoding: chunked", "0"),
            ("Transfer-Encoding: chunked\r\nExpect: 100-continue", "1\r\nx\r\n"),
        ] {
            let first = format!("{}{framing}\r\n\r\n", head(line, token));
            ways.push(slow(&format!("a body {what}, {framing}, {then:?}"), &first, then));
        }
    }
    for (then, calls) in [
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "unknown addresses"),
        ("GET /v3/api-docs HTTP/1.1\r\nHost: x\r\n\r\n", "long answers"),
    ] {
        let name = format!("not reading: {calls}");
        ways.push(Slow {
            name,
            first: String::new(),
            is_call: false,
            then,
            again: true,
            reads: false,
        });
    }
    ways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_clients_are_cut_off_while_others_are_served() {
    let app = TestApp::spawn(Mode::Embedded).await;
    let ways = ways_to_be_slow(&app);
    // A connection that only rests is none of these.
    let mut resting = connect(&app.base).await;
    let call = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    resting.write_all(call).await.unwrap();
    read_answer(&mut resting).await;

    // Filling the sockets' buffers with answers is much work; one of those will do.
    let clients =
        ways.iter().flat_map(|slow| std::iter::repeat_n(slow, if slow.reads { 5 } else { 1 }));
    let clients = clients.map(|slow| tokio::spawn(keep_waiting(app.base.clone(), slow.clone())));
    let mut cut_off = std::pin::pin!(join_all(clients));
    let mut served = 0;
    let cut_off = loop {
        tokio::select! {
            cut_off = &mut cut_off => break cut_off,
            () = tokio::time::sleep(PACE) => {}
        }
        app.get(ALICE, "/main/agent/tasks").await.assert(200, "");
        served += 1;
    };
    assert!(cut_off.len() > 250 && served > 10, "{} {served}", cut_off.len());
    for client in cut_off {
        let (name, after) = client.unwrap();
        println!("{:5.1} s  {name}", after.as_secs_f32());
    }

    resting.write_all(call).await.unwrap();
    let answer = read_answer(&mut resting).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_read_leaves_its_connection_open() {
    let app = TestApp::spawn(Mode::Embedded).await;
    let mut stream = connect(&app.base).await;
    let token = app.token(ALICE.user, ALICE.tenant, ALICE.role);
    let head = format!(
        "POST /main/agent/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         X-Tenant-ID: tenant1\r\nContent-Type: application/json\r\n"
    );
    let body = r#"{"taskType":"mail","userId":"user123","tenantId":"tenant1"}"#;
    for framed in [
        format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
    ] {
        for _twice in 0..2 {
            stream.write_all(format!("{head}{framed}").as_bytes()).await.unwrap();
            let answer = read_answer(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        }
    }
    // Several calls in one go, the last of them with a body that arrives slowly.
    let calls = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3);
    let (beginning, end) = body.split_at(10);
    let last = format!("{calls}{head}Content-Length: {}\r\n\r\n{beginning}", body.len());
    stream.write_all(last.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stream.write_all(end.as_bytes()).await.unwrap();
    let mut answers = String::new();
    while answers.matches("HTTP/1.1 ").count() < 4 || !answers.ends_with('}') {
        answers += &read_answer(&mut stream).await;
    }
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 201").count(), 1, "{answers}");
}

/// Idle connections are closed when others need them, the one that has waited the longest first;
/// those with a call under way are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_in_nobodys_way() {
    const MOST: usize = 32;
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.max_connections = MOST;
    })
    .await;
    // Some wait for a decision,
    let path = "/aura/hitl/signals/session_1/stream";
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&app.base).await;
        let head = app.head(ALICE, &Method::GET, path);
        stream.write_all(format!("{head}{}\r\n", ALICE.lines()).as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    eventually(async || (app.state.hub.waiters() == 8).then_some(())).await;
    // others say nothing, and many more keep their connection after a call.
    let mut idle = Vec::new();
    for _ in 0..MOST {
        idle.push(connect(&app.base).await);
    }
    let call = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    for number in 0..3 * MOST {
        let mut stream = connect(&app.base).await;
        stream.write_all(call).await.unwrap();
        let answer = tokio::time::timeout(AT_MOST, read_answer(&mut stream)).await;
        assert!(answer.is_ok_and(|answer| answer.contains("200 OK")), "{number} was not served");
        idle.push(stream);
    }
    assert_eq!(app.state.hub.waiters(), 8);
    let mut last = idle.pop().unwrap();
    last.write_all(call).await.unwrap();
    assert!(read_answer(&mut last).await.contains("200 OK"), "the youngest was closed first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_until_others_close() {
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.max_connections = 4;
    })
    .await;
    // Calls under way, whose bodies never come; more than there may be connections.
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut stream = connect(&app.base).await;
        let head = app.head(ALICE, &Method::POST, "/main/agent/tasks");
        let rest = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n";
        stream.write_all(format!("{head}{}{rest}", ALICE.lines()).as_bytes()).await.unwrap();
        open.push(stream);
    }
    let mut waiting = connect(&app.base).await;
    waiting.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    drop(open);
    tokio::time::timeout(AT_MOST, read_answer(&mut waiting)).await.expect("it still waits");
}
