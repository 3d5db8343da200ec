//! What beginners get wrong, and the one sentence that each mistake is answered with: what is wrong,
//! and what to do. The sentences are compared to the letter; over HTTP in English and Korean.

use reqwest::Method;
use serde_json::json;
use support::{
    ALICE, Answer, Asked, BOB, Mode, PrivatePostgres, Program, eventually, free_port, test_variable,
};
use tempfile::TempDir;

const SECRET: (&str, &str) = ("JWT_SECRET", "0123456789abcdef0123456789abcdef");
const REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1");

/// A command, variables, and what it says.
type Mistake<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], String);

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_start_each_mistake_is_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let down = format!("postgres://user@127.0.0.1:{}/hitl", free_port());
    let postgres = PrivatePostgres::start().await;
    postgres.welcome("service", "right").await;
    postgres.ask_for_passwords().await;
    let wrong_password = format!("postgres://service:wrong@127.0.0.1:{}/hitl", postgres.port());
    let no_database = format!("postgres://service:right@127.0.0.1:{}/htil", postgres.port());
    let empty = format!("postgres://service:right@127.0.0.1:{}/hitl", postgres.port());
    let folder = TempDir::new().unwrap();
    for (name, text) in [
        ("unquoted.toml", "port = 8081\nhost = 127.0.0.1\n"),
        ("twice.toml", "port = 1\nport = 2\n"),
        ("section.toml", "[server]\nport = 8081\n"),
        ("list.toml", "cors_origins = \"http://a\"\n"),
        ("secret.toml", "jwt_secret = \"0123456789abcdef0123456789abcdef\"\n"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::write(folder.path().join("latin.toml"), b"host = \"Jos\xe9\"\n").unwrap();
    let data = folder.path().join("data/aura-hitl.db");
    let data = data.display();
    let mistakes: &[Mistake<'_>] = &[
        (
            &[],
            &[("HOST", "http://127.0.0.1")],
            "HOST is \"http://127.0.0.1\"; it must be an address or a name alone, like 127.0.0.1".to_owned(),
        ),
        (
            &[],
            &[("AURA_HITL_DATABASE_POOLER", "transaction")],
            "database_pooler is \"transaction\", but decisions are kept in a SQLite file; remove it, or set \
             DATABASE_URL=postgres://…"
                .to_owned(),
        ),
        (
            &["--config", "list.toml"],
            &[],
            "cors_origins is \"http://a\" (in list.toml); it must be a list, like [\"https://app.example\"]".to_owned(),
        ),
        (
            &["--config", "latin.toml"],
            &[],
            "latin.toml is not UTF-8 text; save it as UTF-8".to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", "sqlite:section.toml")],
            "section.toml is not a SQLite database; move it away, or name another file".to_owned(),
        ),
        (&[], &[("RUST_LOG", "verbose")], "RUST_LOG is \"verbose\"; it looks like info,sqlx=warn".to_owned()),
        (&[], &[("JWT_SECRET", "secret")], "JWT_SECRET has 6 bytes; it must have at least 32".to_owned()),
        (
            &[],
            &[("DATABSE_URL", "postgres://user@db/hitl"), REDIS, SECRET],
            format!(
                "DATABASE_URL is not set, although Redis is configured; set DATABASE_URL=postgres://…, \
                 or, to keep decisions in a file of this one process, DATABASE_URL=sqlite:{data}; \
                 DATABSE_URL is not a setting; did you mean DATABASE_URL?"
            ),
        ),
        (
            &[],
            &[("HOST", "0.0.0.0")],
            format!(
                "DATABASE_URL is not set, although HOST is 0.0.0.0; set DATABASE_URL=postgres://…, or, \
                 to keep decisions in a file of this one process, DATABASE_URL=sqlite:{data}"
            ),
        ),
        (
            &[],
            &[REDIS, ("DATABASE_URL", "sqlite:x.db")],
            "JWT_SECRET is not set: it is the secret shared with the Auth server, at least 32 bytes; \
             set JWT_SECRET or JWT_SECRET_FILE"
                .to_owned(),
        ),
        (
            &[],
            &[("AURA_HITL_APPROVERS", "everybody")],
            "approvers is \"everybody\" (from AURA_HITL_APPROVERS); it must be \"tenant\" or \"requester\"".to_owned(),
        ),
        (
            &[],
            &[("AURA_HITL_APROVERS", "tenant")],
            "aprovers is not a setting (from AURA_HITL_APROVERS); did you mean approvers?".to_owned(),
        ),
        (
            &[],
            &[("PORT", "eighty")],
            "port is \"eighty\" (from PORT); it must be a whole number, 0 or more".to_owned(),
        ),
        (
            &[],
            &[("PORT", "65536")],
            "port is 65536 (from PORT); it must be a whole number from 0 to 65535".to_owned(),
        ),
        (
            &[],
            &[("AURA_HITL_AUTO_MIGRATE", "perhaps")],
            "auto_migrate is \"perhaps\" (from AURA_HITL_AUTO_MIGRATE); it must be true or false".to_owned(),
        ),
        (
            &["--config", "unquoted.toml"],
            &[],
            "cannot read unquoted.toml: line 2, column 13: invalid float, expected nothing; in TOML a \
             text needs quotes, and a name may be there once"
                .to_owned(),
        ),
        (&["--config", "twice.toml"], &[], "cannot read twice.toml: line 2, column 1: duplicate key; in TOML a text needs quotes, and a name may be there once".to_owned()),
        (
            &["--config", "section.toml"],
            &[],
            "server is not a setting (in section.toml); config/default.toml and docs/configuration.md have them all"
                .to_owned(),
        ),
        (
            &["--config", "secret.toml"],
            &[],
            "secret.toml holds jwt_secret; secrets come from the environment (JWT_SECRET) or a file \
             (JWT_SECRET_FILE)"
                .to_owned(),
        ),
        (&["--config", "none.toml"], &[], "the configuration file none.toml does not exist".to_owned()),
        (
            &[],
            &[("PORT", &taken)],
            format!(
                "cannot listen on 127.0.0.1:{taken}: another program uses this port; stop it, or set \
                 PORT to a free one"
            ),
        ),
        (
            &[],
            &[("HOST", "192.0.2.1"), ("DATABASE_URL", "sqlite:x.db")],
            "cannot listen on 192.0.2.1:0: this machine does not have this address; set HOST to \
             127.0.0.1 for this machine alone, or to 0.0.0.0 for other machines, too"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", "mysql://root@db/hitl"), REDIS, SECRET],
            "DATABASE_URL must begin with postgres:// or sqlite: (for example sqlite:data/aura-hitl.db)"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", &down), SECRET],
            "DATABASE_URL names Postgres but REDIS_URL is not set: replicas that share a database reach \
             the agents only through the agents' Redis; set REDIS_URL (or REDIS_HOST), or unset \
             DATABASE_URL for the embedded mode"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", "postgres://user@no.such.host.invalid/hitl"), REDIS, SECRET],
            "Postgres cannot be found: there is no host no.such.host.invalid; correct DATABASE_URL"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", &wrong_password), REDIS, SECRET],
            "Postgres refuses the login: password authentication failed for user \"service\"; correct \
             user and password in DATABASE_URL"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", &no_database), REDIS, SECRET],
            "Postgres refuses the login: database \"htil\" does not exist; create it, or correct \
             DATABASE_URL"
                .to_owned(),
        ),
        (
            &[],
            &[("DATABASE_URL", &empty), REDIS, SECRET, ("AURA_HITL_AUTO_MIGRATE", "false")],
            "the database schema is out of date; run `aura-hitl migrate`, or set auto_migrate = true"
                .to_owned(),
        ),
        (
            &["export", "--from", "2026-01-01"],
            &[("AURA_HITL_DATA_DIR", "nowhere"), SECRET],
            "there is no nowhere/aura-hitl.db; set AURA_HITL_DATA_DIR, or DATABASE_URL and REDIS_URL"
                .to_owned(),
        ),
        (
            &["purge", "--older-than", "90"],
            &[],
            "--older-than is \"90\", which is no duration; write it like 90d, 12weeks or 1y".to_owned(),
        ),
        (
            &["export", "--from", "yesterday"],
            &[],
            "--from is \"yesterday\"; write a date like 2026-01-31 or an instant like \
             2026-01-31T09:00:00Z"
                .to_owned(),
        ),
    ];
    let mut wrong = Vec::new();
    for (arguments, variables, expected) in mistakes {
        let program =
            variables.iter().fold(Program::new(&folder, arguments), |program, (name, value)| {
                program.with(name, value)
            });
        let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said != format!("aura-hitl: {expected}\n") || output.status.code() != Some(1) {
            wrong.push(format!("{variables:?} {arguments:?}:\n  {said}  {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_waits_for_postgres_and_says_so() {
    let (folder, mut postgres) = (TempDir::new().unwrap(), PrivatePostgres::start().await);
    postgres.crash();
    let url = postgres.url();
    let starting = async || {
        let program = Program::new(&folder, &[]).with("DATABASE_URL", &url);
        let mut service = program.with(REDIS.0, REDIS.1).with(SECRET.0, SECRET.1).start();
        let waits = eventually(async || {
            let lines = service.log();
            lines.into_iter().find(|line| line["message"] == "waiting for the database")
        })
        .await;
        assert!(waits["error"].as_str().unwrap().contains("connection refused"), "{waits}");
        service
    };
    let (mut waiting, mut stopped) = (starting().await, starting().await);
    assert!(stopped.stop().await.success());
    postgres.start_again().await;
    eventually(async || waiting.log().iter().find(|line| line["message"] == "listening").map(drop))
        .await;
    assert_eq!((waiting.stderr(), stopped.stderr()), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_has_waited_for_postgres_in_vain_ends_with_one_sentence() {
    let (folder, nobody) = (TempDir::new().unwrap(), free_port());
    let program = Program::new(&folder, &[])
        .with("DATABASE_URL", format!("postgres://user@127.0.0.1:{nobody}/hitl"))
        .with(REDIS.0, REDIS.1)
        .with(SECRET.0, SECRET.1);
    let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (said, output.status.code()),
        (
            format!(
                "aura-hitl: Postgres does not answer at 127.0.0.1:{nobody} (connection refused); \
                 start it, or correct DATABASE_URL\n"
            ),
            Some(1)
        )
    );
    let log = String::from_utf8(output.stdout).unwrap();
    let notices = log.lines().filter(|line| line.contains("waiting for the database")).count();
    assert!((3..=10).contains(&notices), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_variable_is_a_warning_where_nothing_else_is_wrong() {
    let folder = TempDir::new().unwrap();
    let mut service = Program::new(&folder, &[]).with("JWT_SECERT", "canary").serve().await;
    let warning = "JWT_SECERT is not a setting; did you mean JWT_SECRET?";
    assert_eq!(service.stderr(), format!("aura-hitl: warning: {warning}\n"));
    assert!(service.log().iter().any(|line| line["warning"] == warning));
    assert!(!service.stdout().contains("canary"));
}

/// Runs a program whose standard error is a terminal; what the terminal shows goes to ours.
const AT_A_TERMINAL: &str = r"
import os, pty, sys
terminal, end = pty.openpty()
if os.fork() == 0:
    os.close(end)
    try:
        while shown := os.read(terminal, 1024):
            os.write(2, shown)
    except OSError:
        pass
    os._exit(0)
os.close(terminal)
os.dup2(end, 2)
os.execv(sys.argv[1], sys.argv[1:])
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_terminal_the_embedded_mode_says_what_to_do_now() {
    let python = test_variable("TEST_PYTHON");
    for (locale, lines) in [
        (
            "C.UTF-8",
            [
                "Running; try the API at {base}/swagger-ui/",
                "A token for it: AURA_HITL_DATA_DIR={folder} {program} token --sub user123 --tenant tenant1",
                "Decisions are kept in {data}",
            ],
        ),
        (
            "ko_KR.UTF-8",
            [
                "실행 중입니다. API 사용해 보기: {base}/swagger-ui/",
                "토큰 발급: AURA_HITL_DATA_DIR={folder} {program} token --sub user123 --tenant tenant1",
                "결정이 저장되는 곳: {data}",
            ],
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let arguments = ["-c", AT_A_TERMINAL, env!("CARGO_BIN_EXE_aura-hitl"), "serve"];
        let program = Program::of(python.as_ref(), &folder, &arguments);
        let mut service = program.with("LANG", locale).serve().await;
        let data = folder.path().join("data/aura-hitl.db").display().to_string();
        let kept_in = folder.path().join("data").display().to_string();
        let expected = lines.join("\r\n").replace("{base}", &service.base).replace("{data}", &data);
        let expected = expected.replace("{folder}", &kept_in);
        let expected = expected.replace("{program}", env!("CARGO_BIN_EXE_aura-hitl"));
        let shown = eventually(async || {
            let shown = service.stderr();
            (shown.lines().count() >= 3 && shown.ends_with('\n')).then_some(shown)
        })
        .await;
        assert_eq!(shown, expected + "\r\n");
        assert!(service.stop().await.success());
        let lines = service.stdout();
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert!(lines.lines().all(is_json), "{lines}");
    }
    // Programs that read standard error are not talked to.
    let folder = TempDir::new().unwrap();
    assert_eq!(Program::new(&folder, &[]).serve().await.stderr(), "");
}

/// A call: method, address, further headers, body; then what is said in English and Korean.
type Call<'a> = (Method, String, &'a [(&'a str, &'a str)], &'a str, [String; 2]);

both_modes! {
    async fn over_http_each_mistake_is_one_sentence_in_both_languages(app: TestApp) {
        let [pending, rejected, approved, withdrawn, expired, altered] = [(); 6].map(|()| Asked::new());
        for asked in [&pending, &rejected, &approved, &withdrawn] {
            app.register(ALICE, asked).await.assert(201, "");
        }
        let mut short = expired.registration();
        short["expiresInSeconds"] = 1.into();
        app.post(ALICE, "/aura/hitl/requests", short).await.assert(201, "");
        app.reject(BOB, &rejected.id, Some("예산\n초과")).await.assert(200, "");
        app.approve(BOB, &approved.id).await.assert(200, "");
        app.post(ALICE, &format!("/aura/hitl/requests/{}/cancel", withdrawn.id), json!({})).await.assert(200, "");
        let is_on_redis = app.mode == Mode::Production;
        if is_on_redis {
            app.ask(&altered).await;
            app.put(&altered.id, "not JSON").await;
        }
        eventually(async || {
            let path = format!("/aura/hitl/requests/{}/decision", expired.id);
            (app.get(ALICE, &path).await.data()["status"] == "expired").then_some(())
        })
        .await;
        let says = |en: &str, ko: &str| [en.to_owned(), ko.to_owned()];
        let approve = |asked: &Asked| format!("/aura/hitl/approve/{}", asked.id);
        let reject = |asked: &Asked| format!("/aura/hitl/reject/{}", asked.id);
        let (me, post, get) = (r#"{"userId":"user123"}"#, Method::POST, Method::GET);
        let calls: Vec<Call<'_>> = vec![
            (post.clone(), approve(&rejected), &[], me, says(
                "Already rejected by bob · \"예산 초과\" · Please reload.",
                "이미 거절됨: bob · \"예산 초과\" · 새로 고침하세요.",
            )),
            (post.clone(), reject(&approved), &[], me, says(
                "Already approved by bob · Please reload.", "이미 승인됨: bob · 새로 고침하세요.",
            )),
            (post.clone(), approve(&withdrawn), &[], me, says(
                "The agent withdrew it: nobody can decide this request any more.",
                "에이전트가 철회함: 더 이상 결정할 수 없는 요청입니다.",
            )),
            (post.clone(), approve(&expired), &[], me, says(
                "Expired: nobody decided this request in time.", "만료됨: 제시간에 결정되지 않은 요청입니다.",
            )),
            (post.clone(), approve(&altered), &[], me, says(
                "Unreadable request: in Redis it is not a JSON object. Nothing was decided; the agent must ask again.",
                "읽을 수 없는 요청: 결정되지 않았습니다. 에이전트가 다시 요청해야 합니다.",
            )),
            (post.clone(), "/aura/hitl/approve/req-none".to_owned(), &[], me, says(
                "No such request, or not yours.", "없는 요청이거나 내 요청이 아닙니다.",
            )),
            (get.clone(), "/main/agent/tasks/task-none".to_owned(), &[], "", says(
                "No such task, or not yours.", "없는 작업이거나 내 작업이 아닙니다.",
            )),
            (get.clone(), "/aura/hitl/aprove/req-1".to_owned(), &[], "", says("No such address.", "없는 주소입니다.")),
            (get.clone(), approve(&pending), &[], "", says(
                "Wrong method: this address only answers POST.", "잘못된 메서드: 이 주소는 POST 요청만 지원합니다.",
            )),
            (post.clone(), approve(&pending), &[], r#"{"userId":"bob"}"#, says(
                "Signed in as another user. Please sign in again.", "다른 사용자로 로그인됨: 다시 로그인해 주세요.",
            )),
            (post.clone(), approve(&pending), &[("X-User-ID", "bob")], me, says(
                "Signed in as another user. Please sign in again.", "다른 사용자로 로그인됨: 다시 로그인해 주세요.",
            )),
            (post.clone(), approve(&pending), &[("X-Tenant-ID", "tenant2")], me, says(
                "Signed in to another tenant. Please sign in again.", "다른 테넌트로 로그인됨: 다시 로그인해 주세요.",
            )),
            (post.clone(), approve(&pending), &[("X-Tenant-ID", "")], me, says(
                "X-Tenant-ID is not valid: send this header once, with one value.",
                "X-Tenant-ID 오류: 이 헤더는 값 하나로 한 번만 보내야 합니다.",
            )),
            (post.clone(), approve(&pending), &[("X-DWP-Caller-Type", "AGENT")], me, says(
                "Agents cannot decide: this call comes from an agent. Only a person can approve or reject.",
                "에이전트는 결정 불가: 에이전트가 보낸 요청입니다. 사람만 승인하거나 거절할 수 있습니다.",
            )),
            (post.clone(), approve(&pending), &[("Authorization", "Basic dXNlcjpwYXNz")], me, says(
                "Sign in first: the Authorization header must carry a bearer token.",
                "먼저 로그인해 주세요. Authorization 헤더에 Bearer 토큰이 필요합니다.",
            )),
            (post.clone(), approve(&pending), &[("Authorization", "Bearer x.y.z")], me, says(
                "Invalid login: the token is not valid. Please sign in again.",
                "로그인 오류: 유효하지 않은 토큰입니다. 다시 로그인해 주세요.",
            )),
            (post.clone(), approve(&pending), &[("If-Match", "\"0000\"")], me, says(
                "Changed since you looked: nothing was decided. Please reload and look again.",
                "내용이 바뀜: 결정되지 않았습니다. 새로 고침하고 다시 확인해 주세요.",
            )),
            (post.clone(), approve(&pending), &[], "", says(
                "The body is empty; send a JSON object.", "본문: 비어 있습니다. JSON 객체를 보내 주세요.",
            )),
            (post.clone(), approve(&pending), &[], "{\"userId\":", says(
                "The body ends too early: it is not complete JSON.", "본문: 중간에 끝납니다. 완전한 JSON을 보내 주세요.",
            )),
            (post.clone(), approve(&pending), &[], "{userId:'user123'}", says(
                "The body is not valid JSON (line 1, column 2).", "본문: 올바른 JSON이 아닙니다 (1행 2열).",
            )),
            (post.clone(), approve(&pending), &[], "[]", says(
                "The body must be a JSON object.", "본문: JSON 객체여야 합니다.",
            )),
            (post.clone(), approve(&pending), &[], "{}", says("userId is required.", "userId: 필수 항목입니다.")),
            (post.clone(), approve(&pending), &[], r#"{"userId":7}"#, says(
                "userId must be a string.", "userId: 문자열이어야 합니다.",
            )),
            (post.clone(), approve(&pending), &[("Content-Type", "text/plain")], me, says(
                "Not JSON: send JSON with the header Content-Type: application/json.",
                "JSON이 아님: Content-Type: application/json 헤더와 함께 JSON을 보내 주세요.",
            )),
            (post.clone(), "/aura/hitl/approve/req%201".to_owned(), &[], me, says(
                "requestId is not a valid id.", "requestId: 올바른 형식의 ID가 아닙니다.",
            )),
            (get.clone(), "/main/agent/tasks?size=many".to_owned(), &[], "", says(
                "size must be a whole number.", "size: 정수여야 합니다.",
            )),
            (get, "/main/agent/tasks?userId=bob".to_owned(), &[], "", says(
                "Admins only: others cannot list other users' tasks.",
                "관리자 전용: 다른 사용자의 작업 목록은 관리자만 볼 수 있습니다.",
            )),
            (post, format!("/aura/hitl/requests/{}/ack", pending.id), &[], "", says(
                "Not decided yet: there is nothing to acknowledge.", "아직 결정되지 않음: 확인 처리할 결정이 없습니다.",
            )),
        ];
        let mut wrong = Vec::new();
        for (method, path, headers, body, expected) in &calls {
            if !is_on_redis && path.contains(&altered.id) {
                continue;
            }
            for (language, expected) in ["en", "ko"].iter().zip(expected) {
                let mut call = app
                    .call(ALICE, method.clone(), path)
                    .header("Content-Type", "application/json")
                    .header("Accept-Language", *language)
                    .body(body.to_string())
                    .build()
                    .unwrap();
                for (name, value) in *headers {
                    let name = name.parse::<reqwest::header::HeaderName>().unwrap();
                    call.headers_mut().insert(name, value.parse().unwrap());
                }
                let answer = Answer::of(app.client.execute(call).await.unwrap()).await;
                if answer.body["message"] != *expected {
                    wrong.push(format!("{method} {path} {headers:?} {body}:\n  {}\n  {expected}", answer.text));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The database is away when they start, and back within their 30 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_wait_for_the_database() {
    let folder = TempDir::new().unwrap();
    let commands: [&[&str]; 4] = [
        &["migrate"],
        &["export", "--from", "2026-01-01"],
        &["purge", "--older-than", "90d"],
        &["purge", "--older-than", "90d", "--dry-run"],
    ];
    let run = |program: Program| tokio::task::spawn_blocking(move || program.output());
    let assert_done = |output: std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };

    let mut postgres = PrivatePostgres::start().await;
    let url = postgres.url();
    let program = |command: &[&str]| {
        Program::new(&folder, command)
            .with("DATABASE_URL", &url)
            .with(REDIS.0, REDIS.1)
            .with(SECRET.0, SECRET.1)
    };
    assert_done(run(program(&["migrate"])).await.unwrap());
    for command in commands {
        postgres.crash();
        let running = run(program(command));
        // Longer than a single try takes.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert!(!running.is_finished(), "{command:?}");
        postgres.start_again().await;
        assert_done(running.await.unwrap());
    }

    let embedded = |command: &[&str]| Program::new(&folder, command);
    assert_done(run(embedded(&["migrate"])).await.unwrap());
    let file = folder.path().join("data/aura-hitl.db");
    let mut other =
        <sqlx::SqliteConnection as sqlx::Connection>::connect(&file.display().to_string())
            .await
            .unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    let running = run(embedded(&["purge", "--older-than", "90d"]));
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(!running.is_finished());
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    assert_done(running.await.unwrap());
}
