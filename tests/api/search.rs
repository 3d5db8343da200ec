//! Words in lists: every word is found, in any case, in Korean too, with an index and without one.

use std::collections::BTreeSet;

use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::ledger::Pooler;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::{
    ALICE, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, eventually_within, fresh_database,
    request_row, unique,
};

async fn search(app: &TestApp, who: Who<'_>, words: &str, query: &str) -> Value {
    let url = reqwest::Url::parse_with_params(&format!("{}/x", app.base), [("q", words)]).unwrap();
    let path = format!("/api/aura/hitl/requests?{}{query}", url.query().unwrap());
    let answer = app.get(who, &path).await;
    answer.assert(200, "");
    answer.data().clone()
}

fn ids(page: &Value) -> BTreeSet<String> {
    let content = page["content"].as_array().unwrap();
    content.iter().map(|one| one["requestId"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a search finds exactly these.
async fn finds(app: &TestApp, who: Who<'_>, words: &str, query: &str, expected: &[&str]) {
    let expected = expected.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    let mut last = BTreeSet::new();
    let looking = async {
        eventually(async || {
            last = ids(&search(app, who, words, query).await);
            (last == expected).then_some(())
        })
        .await;
    };
    let found = tokio::time::timeout(std::time::Duration::from_secs(8), looking).await;
    assert!(found.is_ok(), "{words}: {last:?}, not {expected:?}");
}

async fn found_by_their_words(app: &TestApp) {
    let apart = "보고서"
        .replace("보", "\u{1107}\u{1169}")
        .replace("고", "\u{1100}\u{1169}")
        .replace("서", "\u{1109}\u{1165}");
    let mail = Asked::new().with("message", "주간 결재 요청: Weekly REPORT 100%".into()).with(
        "context",
        json!({ "to": "Kim@Example.com", "file": apart, "deep": [{ "note": "세금계산서" }] }),
    );
    let pay = Asked::new()
        .with("actionType", "send_payment".into())
        .with("message", "송금 결재".into())
        .with(
            "context",
            json!({ "amount": 1000.50, "path": "C:\\temp\\a_b", "quote": "say \"yes\"" }),
        )
        .with("taskId", "Task-77".into());
    for (who, asked) in [(ALICE, &mail), (BOB, &pay)] {
        app.register(who, asked).await.assert(201, "");
    }
    let stranger = Asked::new().with("message", "결재 weekly".into());
    app.register(MALLORY, &stranger).await.assert(201, "");
    let (mail, pay) = (mail.id.as_str(), pay.id.as_str());
    for (words, expected) in [
        ("결재", &[mail, pay][..]),
        ("결", &[mail, pay]),
        ("세금계산서", &[mail]),
        ("계산서", &[mail]),
        ("보고서", &[mail]),
        ("weekly", &[mail]),
        ("WEEKLY report", &[mail]),
        ("결재 weekly", &[mail]),
        ("결재 송금", &[pay]),
        ("weekly 송금", &[]),
        ("kim@example", &[mail]),
        ("send_payment", &[pay]),
        ("sendxpayment", &[]),
        ("1000.5", &[pay]),
        ("100%", &[mail]),
        ("0%0", &[]),
        ("a_b", &[pay]),
        ("C:\\temp", &[pay]),
        ("\"yes\"", &[pay]),
        ("task-77", &[pay]),
        (mail, &[mail]),
        ("bob", &[pay]),
        ("nothing like it", &[]),
        ("' OR 1=1 --", &[]),
        ("yes AND no", &[]),
    ] {
        for sort in ["expiresAt", "-createdAt", "-settledAt"] {
            finds(app, ALICE, words, &format!("&sort={sort}"), expected).await;
        }
    }
    finds(app, MALLORY, "결재", "", &[&stranger.id]).await;
    finds(app, ALICE, "결재", "&userId=bob", &[pay]).await;
    app.approve(BOB, pay).await.assert(200, "");
    finds(app, ALICE, "송금", "&status=approved", &[pay]).await;
    finds(app, ALICE, "송금", "", &[]).await;
    for bad in ["", "%20", "1+2+3+4+5+6+7+8+9+10+11"] {
        let answer = app.get(ALICE, &format!("/aura/hitl/requests?q={bad}")).await;
        answer.assert(400, "E4000");
        assert!(answer.data()["q"].is_string(), "{}", answer.text);
    }
}

both_modes! {
    async fn every_word_is_found_in_any_case(app: TestApp) {
        found_by_their_words(&app).await;
    }
}

/// Makes the database of a role that may make tables, and no extension.
async fn of_a_weak_role() -> LedgerConfig {
    let url = fresh_database().await;
    let role = unique("weak");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for statement in
        [format!("CREATE ROLE {role} LOGIN"), format!("GRANT CREATE ON SCHEMA public TO {role}")]
    {
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    let url = SecretString::from(url.replacen("postgres@", &format!("{role}@"), 1));
    LedgerConfig::Postgres { url, pooler: Pooler::None, max_connections: 4 }
}

/// The migration does not fail, and words are found one request after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_create_the_extension_words_are_found_too() {
    let ledger = of_a_weak_role().await;
    let app =
        TestApp::spawn_with(Mode::Production, Clock::System, |config| config.ledger = ledger).await;
    assert_eq!(indexes(&app).await, 0);
    found_by_their_words(&app).await;
    far_away(&app, Some(2)).await;
}

async fn indexes(app: &TestApp) -> i64 {
    use secrecy::ExposeSecret as _;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
    let mut connection = PgConnection::connect(url.expose_secret()).await.unwrap();
    let count = "SELECT COUNT(*) FROM pg_indexes WHERE indexname = 'hitl_search_words'";
    connection.fetch_one(count).await.unwrap().get(0)
}

both_modes! {
    /// A rare word of three letters is found at once, however many requests are newer; one of two letters,
    /// and any word without an index, after ten thousand of them, and the answer says so.
    async fn a_rare_word_is_found_behind_ten_thousand_others(app: TestApp) {
        if app.mode == Mode::Production {
            assert_eq!(indexes(&app).await, 1);
        }
        far_away(&app, None).await;
    }
}

/// In how many pages words far away are found; `None` if an index finds long ones at once.
async fn far_away(app: &TestApp, pages_of_long_words: Option<usize>) {
    let rows = request_row()
        .with("request_id", "'far_' || n")
        .with("session_id", "'session_' || n")
        .with("outcome", "n")
        .with("document", "'{\"sessionId\":\"s\",\"message\":\"' || CASE WHEN n = 1 THEN '드문 낱말' ELSE 'common' END || '\"}'")
        .at(&["created_at", "expires_at", "decided_at", "settled_at"], "'2026-01-16T12:00:00+00:00'")
        .insert_each(1, 11_000);
    app.sql(rows).await;
    // What another program has written is found after a pass over all requests.
    app.sql(
        "INSERT INTO hitl_search (request_id, tenant_id, body)
         SELECT request_id, tenant_id, request_id || CASE request_id WHEN 'far_1' THEN ' 드문 세글자' ELSE ' common' END
           FROM hitl_request WHERE request_id LIKE 'far%' ON CONFLICT DO NOTHING",
    )
    .await;
    for (words, most) in
        [("드문", Some(2)), ("세글자", pages_of_long_words), ("드문 세글자", pages_of_long_words)]
    {
        let (mut found, mut count, mut cursor) = (BTreeSet::new(), 0, String::new());
        loop {
            let page = search(app, ALICE, words, &format!("&status=approved{cursor}")).await;
            found.extend(ids(&page));
            count += 1;
            let Some(next) = page["nextCursor"].as_str() else {
                assert_eq!(page.get("searchedNewest"), None, "{page}");
                break;
            };
            assert_eq!(page["searchedNewest"], 10_000, "{words}");
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found, BTreeSet::from(["far_1".to_owned()]), "{words}");
        assert_eq!(count, most.unwrap_or(1), "{words}");
    }
    let common = search(app, ALICE, "common far", "&status=approved&size=5").await;
    assert_eq!(ids(&common).len(), 5);
    assert_eq!(common.get("searchedNewest"), None);
}

both_modes! {
    /// A process that was killed, or an older release, leaves requests without their text.
    async fn a_pass_at_the_start_finds_what_is_missing(app: TestApp) {
        let mut app = app;
        let asked = Asked::new().with("message", "잊힌 Request".into());
        app.register(ALICE, &asked).await.assert(201, "");
        finds(&app, ALICE, "잊힌", "", &[&asked.id]).await;
        app.sql("DELETE FROM hitl_search").await;
        app.sql("UPDATE hitl_request SET message = NULL, etag = NULL").await;
        finds(&app, ALICE, "잊힌", "", &[]).await;
        let before = app.get(ALICE, "/aura/hitl/requests").await;
        app.restart().await;
        finds(&app, ALICE, "잊힌", "", &[&asked.id]).await;
        app.sql("UPDATE hitl_request SET document = '{}'").await;
        let after = eventually_within(std::time::Duration::from_secs(20), async || {
            let after = app.get(ALICE, "/aura/hitl/requests").await;
            (after.data()["content"] == before.data()["content"]).then_some(after)
        })
        .await;
        assert_eq!(after.data()["content"][0]["message"], "잊힌 Request");
    }
}

over_redis! {
    /// A request of Redis, at the latest after its decision.
    async fn what_an_agent_writes_to_redis_is_found(app: TestApp) {
        let asked = Asked::new().with("message", "레디스 요청".into());
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        finds(&app, BOB, "레디스", "&status=approved", &[&asked.id]).await;
    }
}

both_modes! {
    async fn a_purge_forgets_the_text(app: TestApp) {
        let app = TestApp::spawn_with(app.mode, Clock::manual(), |_| {}).await;
        let asked = Asked::new().with("message", "지울 것".into());
        app.register(ALICE, &asked).await.assert(201, "");
        app.approve(ALICE, &asked.id).await.assert(200, "");
        finds(&app, ALICE, "지울", "&status=approved", &[&asked.id]).await;
        let later = app.state.clock.now() + chrono::TimeDelta::days(2);
        assert_eq!(app.state.ledger.purge_requests(later, 10).await.unwrap(), 1);
        app.sql(format!(
            "INSERT INTO hitl_search (request_id, tenant_id, body) VALUES ('{}', 'tenant1', 'x')",
            asked.id
        ))
        .await;
    }
}
