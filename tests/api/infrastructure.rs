//! What real infrastructure does to the ledger: servers that become read-only, disks that fill up,
//! poolers, slow networks, databases of another kind.

use std::collections::BTreeMap;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aura_hitl::config::LedgerConfig;
use aura_hitl::courier::RedisSettings;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId};
use aura_hitl::domain::record::{DeliveryReceipt, DeliveryResult, Ruling};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::task::TaskStep;
use aura_hitl::ledger::{
    AUDIT, AskedAgain, GoneRequest, Ledger, NOTICE, NewOutboxRow, OutboxRow, Overdue, Pooler,
    Rebound, SeenRequest, SlackMessage,
};
use aura_hitl::policy::Policy;
use aura_hitl::server::stores;
use aura_hitl::tasks::change::take_step;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::{Either, join_all, select};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::proxy::Proxy;
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, Mode, PgBouncer, PrivatePostgres, PrivateRedis, Program,
    TestApp, Tmpfs, Who, eventually, eventually_within, free_port, fresh_database, task_row,
    test_variable, unique, until_there_is_room,
};
use tempfile::TempDir;
use tokio::sync::Mutex;

fn ledger(url: String, pooler: Pooler) -> LedgerConfig {
    LedgerConfig::Postgres { url: SecretString::from(url), pooler, max_connections: 4 }
}

async fn app_on(url: String) -> TestApp {
    app_behind(Pooler::None, url).await
}

async fn app_behind(pooler: Pooler, url: String) -> TestApp {
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.ledger = ledger(url, pooler);
    })
    .await
}

async fn sql(url: &str, statements: &[&str]) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for &statement in statements {
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
}

async fn ready(app: &TestApp) -> u16 {
    let answer = app.client.get(format!("{}/health/ready", app.base)).send().await.unwrap();
    answer.status().as_u16()
}

/// A request in the ledger alone.
async fn registered(app: &TestApp) -> Asked {
    let asked = Asked::new();
    until_there_is_room(async || app.register(ALICE, &asked).await).await.assert(201, "");
    asked
}

async fn approve(app: &TestApp, asked: &Asked) {
    until_there_is_room(async || app.approve(ALICE, &asked.id).await).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_cannot_write_is_not_ready_and_recovers() {
    let postgres = PrivatePostgres::start().await;
    let app = app_on(postgres.url()).await;
    let asked = registered(&app).await;
    assert_eq!(ready(&app).await, 200);
    let read_only =
        ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"];
    sql(&postgres.url(), &read_only).await;
    eventually(async || (ready(&app).await == 503).then_some(())).await;
    for _again in 0..6 {
        let answer = app.approve(ALICE, &asked.id).await;
        answer.assert(503, "E5000");
        assert!(answer.text.contains("nothing was decided"), "{}", answer.text);
        assert_eq!(ready(&app).await, 503);
    }
    let metrics = app.client.get(format!("{}/metrics", app.base)).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("\naura_hitl_ledger_up 0"));
    let writable = [
        "SET default_transaction_read_only = off",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    ];
    sql(&postgres.url(), &writable).await;
    eventually(async || (ready(&app).await == 200).then_some(())).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_not_ready_and_the_ledger_recovers_by_itself() {
    let disk = Tmpfs::mount("3m");
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.ledger = LedgerConfig::Sqlite { file: disk.path().join("aura-hitl.db") };
    })
    .await;
    let asked = registered(&app).await;
    disk.fill();
    let mut refused = 0;
    eventually(async || {
        let answer = app.register(ALICE, &Asked::new()).await;
        refused += usize::from(answer.status == 503);
        assert!([201, 503].contains(&answer.status.as_u16()), "{}", answer.text);
        (refused > 3).then_some(())
    })
    .await;
    assert_eq!(ready(&app).await, 503);
    disk.empty();
    eventually(async || (ready(&app).await == 200).then_some(())).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    registered(&app).await;
}

/// As root, file modes bind nobody: the program runs as another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_cannot_be_written_is_refused_at_start() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let file = data.join("aura-hitl.db");
    Ledger::open_sqlite(&file).await.unwrap().close().await;
    for path in [folder.path(), &data] {
        Command::new("chmod").arg("777").arg(path).status().unwrap();
    }
    Command::new("chmod").arg("444").arg(&file).status().unwrap();
    let output = Program::as_nobody(&folder, &["serve"]).output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("readonly") && said.contains("aura-hitl.db"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_hold_every_text_is_refused_at_start() {
    let url = fresh_database().await;
    let name = unique("ascii");
    sql(
        &url,
        &[&format!(
            "CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )],
    )
    .await;
    let url = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
    let refused = Ledger::connect_postgres(&url.into(), Pooler::None, 2).await.unwrap_err();
    assert!(refused.to_string().contains("encoding is SQL_ASCII"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_isolation_of_serializable_changes_nothing() {
    let url = fresh_database().await;
    let name = url.rsplit_once('/').unwrap().1;
    let serializable =
        format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    sql(&url, &[&serializable]).await;
    let app = app_on(url).await;
    let asked = registered(&app).await;
    let clicks = (0..20).map(|_| app.approve(ALICE, &asked.id));
    for answer in futures_util::future::join_all(clicks).await {
        answer.assert(200, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_takes_its_time_is_connected_over_all_the_same() {
    let postgres = PrivatePostgres::start().await;
    let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).await;
    let app = app_on(format!("postgres://postgres@{}/postgres", proxy.address)).await;
    let asked = registered(&app).await;
    // 300 ms until an answer, in both directions together; every connection has to be made anew.
    proxy.delay(Duration::from_millis(150));
    proxy.cut();
    proxy.reopen();
    eventually(async || (app.approve(BOB, &asked.id).await.status == 200).then_some(())).await;
    eventually(async || (ready(&app).await == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_never_made_leaves_no_outcome_open() {
    let mut postgres = PrivatePostgres::start().await;
    let app = app_on(postgres.url()).await;
    let asked = registered(&app).await;
    postgres.crash();
    // What was open breaks, whatever it was used for.
    eventually(async || (ready(&app).await == 503).then_some(())).await;
    for _again in 0..4 {
        let answer = app.approve(ALICE, &asked.id).await;
        answer.assert(503, "E5000");
        assert!(answer.text.contains("nothing was decided"), "{}", answer.text);
    }
    postgres.start_again().await;
    eventually(async || {
        let answer = app.approve(ALICE, &asked.id).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_work_through_pgbouncer_in_both_modes() {
    for (mode, pooler) in [("session", Pooler::None), ("transaction", Pooler::Transaction)] {
        let postgres = PrivatePostgres::start().await;
        let mut bouncer = PgBouncer::start(postgres.port(), mode).await;
        let spawn = || {
            TestApp::spawn_with(Mode::Production, Clock::System, |config| {
                config.ledger = ledger(bouncer.url(), pooler);
            })
        };
        // Both migrate at once, through the pooler.
        let (one, two) = tokio::join!(spawn(), spawn());
        for _ in 0..20 {
            let asked = registered(&one).await;
            let clicks = [&one, &two, &one, &two].map(|app| app.approve(ALICE, &asked.id));
            for answer in futures_util::future::join_all(clicks).await {
                answer.assert(200, "");
            }
        }
        // A statement that waits for a lock is given up by Postgres, behind the pooler too.
        let asked = registered(&one).await;
        let mut holder = PgConnection::connect(&postgres.url()).await.unwrap();
        let mut holding = holder.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM hitl_request WHERE request_id = $1 FOR UPDATE")
            .bind(&asked.id)
            .execute(&mut *holding)
            .await
            .unwrap();
        let answer = two.approve(ALICE, &asked.id).await;
        answer.assert(503, "E5000");
        assert!(answer.text.contains("nothing was decided"), "{}", answer.text);
        holding.rollback().await.unwrap();
        assert_eq!(one.record(&asked.id).await.state.as_str(), "pending");
        bouncer.kill();
        let answer = one.approve(ALICE, &asked.id).await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        bouncer.start_again().await;
        for app in [&one, &two] {
            eventually(async || (app.approve(ALICE, &asked.id).await.status == 200).then_some(()))
                .await;
        }
        drop((one, two));
    }
}

/// Standard output is a pipe that nobody reads, and every line is logged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let port = free_port();
    let program = Program::new(&folder, &["serve"]).with("PORT", port.to_string());
    let mut running = program.with("RUST_LOG", "trace").start_into(&pipe);
    let base = format!("http://127.0.0.1:{port}");
    let client = reqwest::Client::new();
    let get = async |path: &str| client.get(format!("{base}{path}")).send().await.ok();
    eventually(async || get("/health/live").await).await;
    let dropped = async || {
        let text = get("/metrics").await?.text().await.ok()?;
        let line =
            text.lines().find(|line| line.starts_with("aura_hitl_log_lines_dropped_total "))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    eventually_within(Duration::from_mins(1), async || {
        for _ in 0..50 {
            assert_eq!(get("/health/live").await?.status(), 200);
        }
        (dropped().await? > 0).then_some(())
    })
    .await;
    assert_eq!(get("/health/ready").await.unwrap().status(), 200);
    assert!(running.stop().await.success());
    drop(reader);
}

/// What a Gateway sees of a replica that stops: it says so before it closes anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_stops_says_so_first() {
    let folder = TempDir::new().unwrap();
    let mut running = Program::new(&folder, &["serve"]).serve().await;
    let client = reqwest::Client::new();
    let live = format!("{}/health/live", running.base);
    let closes = async || {
        let answer = client.get(&live).send().await.ok()?;
        assert_eq!(answer.status(), 200);
        Some(answer.headers().get("connection").is_some_and(|value| value == "close"))
    };
    assert_eq!(closes().await, Some(false));
    running.terminate();
    eventually(async || closes().await.filter(|closes| *closes)).await;
    let ready = client.get(format!("{}/health/ready", running.base)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(closes().await, Some(true), "it still accepts connections");
    assert!(running.ended().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_things_that_operators_do() {
    let folder = TempDir::new().unwrap();
    let document = Program::new(&folder, &["openapi"]).output();
    assert!(document.stdout.len() > 64 * 1024, "more than a pipe holds");
    let mut cut = Command::new("bash");
    cut.args(["-c", "set -o pipefail; \"$0\" openapi | head -c 1 >/dev/null"]);
    let cut = cut.arg(env!("CARGO_BIN_EXE_aura-hitl")).output().unwrap();
    assert!(cut.status.success() && cut.stderr.is_empty(), "{cut:?}");

    let port = free_port().to_string();
    let on = |arguments: &[&str]| {
        Program::new(&folder, arguments).with("HOST", "::1").with("PORT", &port)
    };
    let running = on(&["serve"]).serve().await;
    let check = on(&["healthcheck"]).output();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    drop(running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_of_another_protocol_is_ignored() {
    let app = TestApp::spawn(Mode::Embedded).await;
    let head = app.head(ALICE, &reqwest::Method::POST, "/main/agent/tasks");
    let body = r#"{"taskType":"mail","userId":"user123","tenantId":"tenant1"}"#;
    for offer in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA",
        "Connection: upgrade\r\nUpgrade: websocket",
    ] {
        let answer = app
            .raw(format!(
                "{head}X-Tenant-ID: tenant1\r\n{offer}\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        answer.first().assert(201, "");
    }
}

/// More tasks than are counted one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_are_exact_to_a_point_and_then_the_least_there_can_be() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { unreachable!() };
    let add = |from: u32, to: u32| task_row().with("task_id", "'task_' || n").insert_each(from, to);
    let url = url.expose_secret();
    let total = async |page: u32| {
        let path = format!("/api/main/agent/tasks?size=100&page={page}");
        app.get(ALICE, &path).await.data()["totalElements"].clone()
    };
    sql(url, &[&add(1, 10_000)]).await;
    assert_eq!(total(0).await, 10_000);
    sql(url, &[&add(10_001, 10_250)]).await;
    assert_eq!(
        (total(0).await, total(101).await, total(102).await),
        (10_001.into(), 10_201.into(), 10_250.into())
    );
}

/// A role that may read and write rows, and make nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrating_a_database_that_is_up_to_date_needs_no_rights() {
    let url = fresh_database().await;
    let owner = ledger(url.clone(), Pooler::None);
    drop(
        TestApp::spawn_with(Mode::Production, Clock::System, |config| config.ledger = owner).await,
    );
    let role = unique("worker");
    sql(
        &url,
        &[
            &format!("CREATE ROLE {role} LOGIN"),
            &format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
            ),
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        ],
    )
    .await;
    let worker = url.replacen("postgres@", &format!("{role}@"), 1);
    let app = app_on(worker.clone()).await;
    assert!(app.config.auto_migrate);
    registered(&app).await;
    stores::migrate(&app.config, &app.state.ledger).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_migrate_at_once_and_none_hangs_or_leaves_a_lock() {
    let postgres = PrivatePostgres::start().await;
    let bouncer = PgBouncer::start(postgres.port(), "transaction").await;
    for (name, url, pooler) in
        [("direct", postgres.url(), Pooler::None), ("pooled", bouncer.url(), Pooler::Transaction)]
    {
        sql(&postgres.url(), &[&format!("CREATE DATABASE {name}")]).await;
        let url = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
        let secret = SecretString::from(url);
        let migrating = (0..3).map(async |_| {
            let ledger = Ledger::connect_postgres(&secret, pooler, 2).await.unwrap();
            ledger.migrate(Some(&secret)).await.unwrap();
            assert!(ledger.is_migrated().await.unwrap());
        });
        futures_util::future::join_all(migrating).await;
        let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
        eventually(async || {
            let locks = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory'";
            let locks: i64 = connection.fetch_one(locks).await.unwrap().get(0);
            (locks == 0).then_some(())
        })
        .await;
    }
}

/// The plans of all statements on 50,000 rows, in connections that made their plans before there were
/// so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_table_that_was_never_analysed() {
    no_plan_is_wasteful(|_url| async {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_table_that_was_analysed_while_empty() {
    no_plan_is_wasteful(|url| async move { sql(&url, &["ANALYZE"]).await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_table_that_was_analysed_with_a_few_rows() {
    no_plan_is_wasteful(|url| async move {
        fill(&url, 50_001, 50_010).await;
        sql(&url, &["ANALYZE"]).await;
    })
    .await;
}

/// As somebody leaves it who has tried the service: one person, one session, one task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_table_that_was_analysed_after_a_trial() {
    no_plan_is_wasteful(|url| async move {
        fill(&url, 50_001, 50_050).await;
        let alike = "UPDATE hitl_request
                        SET tenant_id = 'tenant1', session_id = 's0', user_id = 'user0',
                            task_id = 'old_50001', status = 'approved', decided_by = 'bob',
                            decided_at = created_at, settled_at = created_at";
        let task = "DELETE FROM agent_task WHERE task_id <> 'old_50001'";
        sql(&url, &[alike, task, "VACUUM ANALYZE"]).await;
    })
    .await;
}

/// Planning the statement that decides takes Postgres longer than running it. So it is planned once
/// for any parameters, from the first time on. A search is planned for its words: which index is the
/// best depends on how common they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_not_planned_anew_but_searches_are() {
    let postgres = PrivatePostgres::start().await;
    let url = postgres.url();
    let settings = [
        "LOAD 'auto_explain'",
        "ALTER SYSTEM SET session_preload_libraries = 'auto_explain'",
        "ALTER SYSTEM SET auto_explain.log_min_duration = 0",
        "ALTER SYSTEM SET auto_explain.log_verbose = on",
        "SELECT pg_reload_conf()",
    ];
    sql(&url, &settings).await;
    let app = app_on(url.clone()).await;
    for _ in 0..5 {
        let asked = registered(&app).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
    }
    // The index of words is asked only where more rows are to be searched than the 1,000 newest.
    fill(&url, 1, 5000).await;
    for _ in 0..5 {
        app.get(ALICE, "/aura/hitl/requests?status=approved&q=nowhere").await.assert(200, "");
    }
    let log = postgres.folder().join("log");
    let plans_of = async |what: &str| {
        eventually(async || {
            let text = std::fs::read_to_string(&log).unwrap();
            let plans = text.split("LOG:  duration:").filter(|plan| plan.contains(what));
            let plans = plans.filter_map(|plan| Some(plan.split_once("(cost=")?.1.to_owned()));
            let plans = plans.collect::<Vec<_>>();
            (plans.len() >= 5).then_some(plans)
        })
        .await
    };
    for plan in plans_of("WHERE (NOT input.only_newest").await {
        assert!(plan.contains("$1, $2"), "{plan}");
    }
    for plan in plans_of("FROM hitl_search WHERE tenant_id = $1 AND body LIKE").await {
        assert!(plan.contains("'%nowhere%'"), "{plan}");
    }
}

/// Filling the tables takes all of the machine: the calls of another test would be out of time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Longer than connections keep their plans.
const PLANS_ARE_OLD: Duration = Duration::from_secs(6);

fn no_plan_is_wasteful<Prepared: Future<Output = ()>>(
    prepare: fn(String) -> Prepared,
) -> impl Future<Output = ()> {
    // Large: it holds two services.
    Box::pin(look_at_plans(prepare))
}

async fn look_at_plans<Prepared: Future<Output = ()>>(prepare: fn(String) -> Prepared) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let postgres = PrivatePostgres::start().await;
    let url = postgres.url();
    sql(
        &url,
        &[
            "LOAD 'auto_explain'",
            "ALTER SYSTEM SET session_preload_libraries = 'auto_explain'",
            "ALTER SYSTEM SET autovacuum = off",
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET auto_explain.log_min_duration = 0",
            "ALTER SYSTEM SET auto_explain.log_analyze = on",
            "SELECT pg_reload_conf()",
        ],
    )
    .await;
    let app = app_on(url.clone()).await;
    prepare(url.clone()).await;
    run_every_statement(&app).await;
    fill(&url, 1, 50_000).await;
    tokio::time::sleep(PLANS_ARE_OLD).await;
    let log = postgres.folder().join("log");
    let before = std::fs::read_to_string(&log).unwrap().len();
    // Plans for any values, and plans for those that are given, which are made behind a pooler.
    let pooled = app_behind(Pooler::Transaction, url.clone()).await;
    for app in [app, pooled] {
        for _ in 0..3 {
            run_every_statement(&app).await;
        }
        // The workers' own rounds too.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let text = std::fs::read_to_string(&log).unwrap();
    let mut wasteful = BTreeMap::new();
    for plan in text[before..].split("LOG:  duration:").filter(|plan| is_wasteful(plan)) {
        let (_, query) = plan.split_once("Query Text: ").unwrap();
        let name = query.split("(cost=").next().unwrap().to_owned();
        wasteful.entry(name).or_insert_with(|| plan.chars().take(12_000).collect::<String>());
    }
    let shown = wasteful.values().map(String::as_str).collect::<Vec<_>>().join("\n====\n");
    assert!(wasteful.is_empty(), "{} statements: {shown}", wasteful.len());
}

/// What was decided long ago or is pending, its tasks, and what else there is: the rows of these
/// numbers.
async fn fill(url: &str, from: u32, to: u32) {
    for rows in [
        "INSERT INTO agent_task (task_id, user_id, tenant_id, task_type, status, progress,
                                 plan_steps, hitl_request_id, created_at, updated_at)
         SELECT 'old_' || n, 'user' || n % 500, 'tenant1', 't',
                CASE WHEN n % 2 = 0 THEN 'IN_PROGRESS' ELSE 'COMPLETED' END, 0, '[]', 'old_' || n,
                now() - interval '2 days', now() - interval '2 days' - n * interval '1 ms' FROM numbers",
        "INSERT INTO hitl_request (request_id, origin, tenant_id, session_id, user_id,
             action_type, fingerprint, content_hash, document, task_id, owns_task, created_at,
             expires_at, status, decided_by, decided_at, delivery, owed_since, due_at, sent_at,
             listeners, sent_to, settled_at, outcome)
         SELECT 'old_' || n, CASE WHEN n % 2 = 0 THEN 'redis' ELSE 'http' END, 'tenant1',
                's' || n % 5000, 'user' || n % 500, 'a', 'f', 'h', '{}', 'old_' || n, TRUE,
                now() - interval '2 days', now() - interval '1 day', 'approved', 'bob',
                now() - interval '2 days', 'sent', now() - interval '2 days',
                now() - interval '2 days', now() - interval '2 days', 0, 'x',
                now() - interval '2 days' - n * interval '1 ms', n FROM numbers",
        "INSERT INTO hitl_delivery (tenant_id, request_id, delivery, owed_since, due_at, sent_at,
                                    listeners, sent_to)
         SELECT 'tenant1', 'old_' || n, 'sent', now() - interval '2 days', now() - interval '2 days',
                now() - interval '2 days', 0, 'x' FROM numbers WHERE n % 2 = 0",
        // Pending, of another tenant: this one's are limited in number.
        "INSERT INTO hitl_request (request_id, origin, tenant_id, session_id, user_id,
             action_type, fingerprint, content_hash, document, task_id, owns_task, created_at,
             expires_at, status, delivery, owed_since, due_at)
         SELECT 'new_' || n, CASE WHEN n % 2 = 0 THEN 'redis' ELSE 'http' END, 'tenant2',
                't' || n % 5000, 'user' || n % 500, 'a', 'f', 'h', '{}', 'new_' || n, TRUE,
                now() - interval '2 days', now() + interval '1 day', 'pending', 'sent',
                now() - interval '2 days', now() - interval '2 days' FROM numbers",
        "INSERT INTO owned_task (tenant_id, task_id)
         SELECT 'tenant1', 'older_' || n FROM numbers",
        // All of the other kind have the lower numbers.
        "INSERT INTO hitl_outbox (kind, target, tenant_id, request_id, payload, created_at, due_at,
                                  attempts)
         SELECT kind, 'auth', 'tenant1', 'old_' || n, '{}', now(), now() + interval '1 day', n % 2
           FROM numbers, (VALUES ('another'), ('audit'), ('notice')) AS kinds (kind)
          ORDER BY kind, n",
        // Of a channel: what is to be sent later, was tried, and was given up.
        "INSERT INTO hitl_outbox (kind, lane, target, tenant_id, request_id, payload, created_at,
                                  due_at, attempts, failed_at)
         SELECT 'webhook', 'webhook/ops', 'ops', 'tenant1', 'old_' || n, '{}', now(),
                now() + interval '1 day', n % 2,
                CASE WHEN n % 3 = 0 THEN now() - interval '2 days' - n * interval '1 ms' END
           FROM numbers",
        "INSERT INTO hitl_vote (tenant_id, request_id, voter, decision, voted_at, etag, voter_roles,
                                voter_groups)
         SELECT 'tenant1', 'old_' || n, 'bob', 'approve', now(), 'e', '[]', '[]' FROM numbers",
        "INSERT INTO hitl_grant (tenant_id, grant_id, request_id, granter, granter_roles,
             granter_groups, requester, origin, session_id, scope, action_type, created_at, expires_at)
         SELECT 'tenant1', 'grant_' || n, 'old_' || n, 'user' || n % 500, '[]', '[]',
                'user' || n % 500, 'http', 's' || n % 5000, 'session', 'send_email',
                now() - interval '2 days',
                now() + CASE WHEN n % 2 = 0 THEN interval '1 day' ELSE interval '-1 day' END
                      - n * interval '1 ms'
           FROM numbers",
        "INSERT INTO hitl_binding (policy_version, binding, rules)
         SELECT 'v' || n, 'v' || n || ' k', '!' FROM numbers",
        "INSERT INTO hitl_refused_attempt (attempted_at, tenant_id, user_id, role, request_id,
                                           verdict, error_code, reason)
         SELECT now() - interval '2 days' - n * interval '1 ms', 'tenant1', 'bob', 'USER',
                'old_' || n, 'approved', 'E3005', 'no' FROM numbers",
        "INSERT INTO hitl_search (tenant_id, request_id, body)
         SELECT 'tenant1', 'old_' || n, 'send old ' || n FROM numbers
         ON CONFLICT DO NOTHING",
        "INSERT INTO hitl_slack_message (channel, ts, tenant_id, request_id, posted_at)
         SELECT 'C0123', 'old_' || n, 'tenant1', 'old_' || n, now() FROM numbers",
        "INSERT INTO hitl_slack_call (signature, taken_at) SELECT 'old_' || n, now() FROM numbers",
        "INSERT INTO hitl_comment (tenant_id, request_id, number, session_id, user_id, author, text,
                                   created_at)
         SELECT 'tenant1', 'old_' || n, 1, 's' || n % 5000, 'bob', 'person', 'why?',
                now() - interval '2 days' FROM numbers",
    ] {
        let numbers = format!("WITH numbers AS (SELECT * FROM generate_series({from}, {to}) AS n)");
        sql(url, &[&format!("{numbers} {rows}")]).await;
    }
}

/// Whether a plan reads more than 500 rows for nothing, or a table from end to end, or was compiled.
fn is_wasteful(plan: &str) -> bool {
    let number = |text: &str| {
        let digits = text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or(0)
    };
    plan.lines().any(|line| {
        let removed = line.trim().strip_prefix("Rows Removed by Filter: ").map_or(0, number);
        // The rows of one batch, which are in memory, are joined by comparing each with each.
        let joined = line.trim().strip_prefix("Rows Removed by Join Filter: ").map_or(0, number);
        let scanned = match line.split_once(" rows=").filter(|_| line.contains("Seq Scan on ")) {
            // The planner's guess, then what there was.
            Some((_, rest)) => rest.split_once(" rows=").map_or(0, |(_, rows)| number(rows)),
            None => 0,
        };
        removed > 500 || joined > 10_000 || scanned > 500 || line.trim() == "JIT:"
    })
}

/// Events become notices, which are sent, given up and sent again.
async fn tell_of_requests(app: &TestApp, tenant: &TenantId, now: DateTime<Utc>) {
    let ledger = &app.state.ledger;
    let (soon, later) = (now + TimeDelta::seconds(3), now + TimeDelta::days(365));
    ledger.set_tells(true);
    let asked = registered(app).await;
    let path = format!("/aura/hitl/requests/{}/comments", asked.id);
    app.post(BOB, &path, json!({ "text": "?" })).await.assert(201, "");
    approve(app, &asked).await;
    let late = registered(app).await;
    let overdue = Overdue::of(&app.record(&late.id).await);
    assert!(ledger.expire(&overdue, later).await.unwrap().is_some());
    ledger.set_tells(false);
    let events = ledger.claim_outbox(NOTICE, Clock::System.now(), later, 100).await.unwrap();
    assert!(events.len() >= 4, "{events:?}");
    let row = |event: &OutboxRow| NewOutboxRow {
        event: event.id,
        kind: "webhook",
        lane: Some("webhook/ops".to_owned()),
        target: "ops".to_owned(),
        tenant_id: tenant.to_string(),
        request_id: asked.id.clone(),
        payload: "{}".to_owned(),
        created_at: now,
        due_at: now,
    };
    let rows = events.iter().map(row).collect::<Vec<_>>();
    let ids = events.iter().map(|event| event.id).collect::<Vec<_>>();
    ledger.replace_events(&ids, &rows).await.unwrap();
    // Their rows have gone, so nobody else makes notices of them.
    ledger.replace_events(&ids, &rows).await.unwrap();
    let claimed = ledger.claim_outbox("webhook/ops", now, soon, 2).await.unwrap();
    assert_eq!(claimed.len(), 2);
    let ids = claimed.iter().map(|row| row.id).collect::<Vec<_>>();
    ledger.unclaim_outbox(&ids, now).await.unwrap();
    let claimed = ledger.claim_outbox("webhook/ops", now, soon, 100).await.unwrap();
    for row in &claimed {
        ledger.give_up_outbox(row.id, "no", now).await.unwrap();
    }
    ledger.oldest_in_outbox("webhook/ops").await.unwrap();
    assert_eq!(ledger.failed_in_outbox(2).await.unwrap().len(), 2);
    assert_eq!(ledger.resend(Some(claimed[0].id), now).await.unwrap(), 1);
    ledger.delete_outbox(&claimed.iter().map(|row| row.id).collect::<Vec<_>>()).await.unwrap();
    ledger.purge_failed(now - TimeDelta::days(1), 10).await.unwrap();
}

/// What is written and read under a policy file: votes, what binds requests, and lists by it.
async fn vote_and_bind(app: &TestApp) {
    let ledger = &app.state.ledger;
    let rules = "[[rule]]\nname = 'two'\nwhen = 'true'\napprovers = ['tenant']\nquorum = 2";
    app.state.rules.set(Some(Arc::new(Policy::read(rules).unwrap())));
    let law = app.state.rules.in_force();
    let asked = registered(app).await;
    app.approve(ALICE, &asked.id).await.assert(202, "");
    // Other filters read up to 10,000 rows, as every list with filters may.
    for scope in ["decidable", "mine"] {
        app.get(BOB, &format!("/aura/hitl/requests?scope={scope}")).await.assert(200, "");
    }
    app.get(BOB, "/aura/hitl/inbox/stream").await;
    app.approve(BOB, &asked.id).await.assert(200, "");
    app.get(BOB, &format!("/aura/hitl/requests/{}/detail", asked.id)).await.assert(200, "");
    let pending = registered(app).await;
    let record = app.record(&pending.id).await;
    let keys = ledger.pending_bindings().await.unwrap();
    let key = record.ruling.binding.clone().unwrap();
    assert!(keys.contains(&key));
    ledger.bound_by("", 100).await.unwrap();
    ledger.bound_by(&key, 100).await.unwrap();
    let rebound = Rebound {
        tenant: record.tenant.clone(),
        id: record.id.clone(),
        content_hash: record.content_hash.clone(),
        ruling: record.ruling.clone(),
        expires_at: record.expires_at,
    };
    ledger.rebind(&[rebound]).await.unwrap();
    let unread = [(record.tenant, record.id)];
    ledger.bind_unread(&unread, &law.ruling_of_unreadable()).await.unwrap();
    let bulk = |asked: &[&Asked]| {
        let decide = |asked: &&Asked| json!({ "requestId": asked.id, "decision": "approve" });
        let decisions = asked.iter().map(decide).collect::<Vec<_>>();
        json!({ "userId": ALICE.user, "decisions": decisions, "atomic": true })
    };
    // One that it completes, and one that needs more.
    let one = registered(app).await;
    app.approve(BOB, &one.id).await.assert(202, "");
    app.post(ALICE, "/aura/hitl/decisions", bulk(&[&one, &pending])).await;
    grant(app).await;
    app.state.rules.set(None);
}

/// Grants: made, used, listed, ended, purged.
async fn grant(app: &TestApp) {
    let rules = "[[rule]]\nname = 'one'\nwhen = 'true'\napprovers = ['tenant']\nremember = 'any'";
    app.state.rules.set(Some(Arc::new(Policy::read(rules).unwrap())));
    let (asked, now) = (registered(app).await, Clock::System.now());
    let remember = json!({ "scope": "requester", "arguments": "any", "seconds": 60 });
    let body = json!({ "userId": BOB.user, "remember": remember });
    let made = app.post(BOB, &format!("/aura/hitl/approve/{}", asked.id), body.clone()).await;
    made.assert(200, "");
    // A repeat reads the grant.
    app.post(BOB, &format!("/aura/hitl/approve/{}", asked.id), body).await.assert(200, "");
    let later = registered(app).await;
    assert!(app.record(&later.id).await.is_approved());
    for who in [BOB, ADMIN] {
        app.get(who, "/aura/hitl/grants").await.assert(200, "");
    }
    let id = made.data()["grantId"].as_str().unwrap();
    let call = app.call(BOB, reqwest::Method::DELETE, &format!("/aura/hitl/grants/{id}"));
    Answer::of(call.send().await.unwrap()).await.assert(200, "");
    app.state.ledger.purge_grants(now - TimeDelta::days(30), 100).await.unwrap();
}

/// As callers and as the workers run them, with little to find.
#[expect(clippy::too_many_lines, reason = "one line for each statement")]
async fn run_every_statement(app: &TestApp) {
    let ledger = &app.state.ledger;
    let (now, caller) = (Clock::System.now(), ALICE.caller());
    let (ago, long_ago) = (now - TimeDelta::minutes(5), now - TimeDelta::days(30));
    let (soon, later) = (now + TimeDelta::seconds(3), now + TimeDelta::days(365));
    let tenant = &caller.tenant;

    let asked = registered(app).await;
    approve(app, &asked).await;
    app.reject(BOB, &asked.id, None).await.assert(409, "E3006");
    let seen = Asked::new();
    app.ask(&seen).await;
    approve(app, &seen).await;
    app.get(ALICE, &format!("/aura/hitl/signals/{}", seen.session)).await;
    // Its session names nothing.
    let unnamed = Asked::new();
    app.put(&unnamed.id, &unnamed.document.to_string()).await;
    approve(app, &unnamed).await;
    app.get(ALICE, &format!("/aura/hitl/signals/{}", unnamed.session)).await;
    for path in ["", "/detail", "/decision", "?waitSeconds=1"] {
        app.get(ALICE, &format!("/aura/hitl/requests/{}{path}", asked.id)).await;
    }
    let path = format!("/aura/hitl/requests/{}/acknowledgement", asked.id);
    app.post(ALICE, &path, json!({})).await;
    app.get(ALICE, "/api/main/agent/tasks?size=20").await.assert(200, "");
    list_requests(app, &asked).await;
    app.get(ALICE, "/metrics").await;

    let mut decisions = Vec::new();
    for _request in 0..12 {
        let asked = Asked::new();
        app.ask(&asked).await;
        for id in [registered(app).await.id, asked.id] {
            app.post(BOB, &format!("/aura/hitl/requests/{id}/comments"), json!({ "text": "?" }))
                .await;
            decisions.push(json!({ "requestId": id, "decision": "approve" }));
        }
    }
    let bulk = json!({ "userId": BOB.user, "decisions": decisions, "atomic": true });
    app.post(BOB, "/aura/hitl/decisions", bulk).await.assert(200, "");

    let late = registered(app).await;
    let id = RequestId::parse(late.id.clone()).unwrap();
    let session = SessionId::parse(seen.session.clone()).unwrap();
    let of_redis = RequestId::parse(seen.id.clone()).unwrap();
    ledger.overdue(now, 100).await.unwrap();
    let overdue = Overdue::of(&app.record(&late.id).await);
    assert!(ledger.expire(&overdue, later).await.unwrap().is_some());
    // Batches of many.
    let clicks = (0..12).map(async |_| {
        let asked = registered(app).await;
        approve(app, &asked).await;
        let seen = Asked::new();
        app.ask(&seen).await;
        approve(app, &seen).await;
        let late = registered(app).await;
        let overdue = Overdue::of(&app.record(&late.id).await);
        assert!(ledger.expire(&overdue, later).await.unwrap().is_some());
    });
    join_all(clicks).await;
    ledger.acknowledge(&caller, &id, now).await.unwrap();
    let message = SlackMessage { channel: "C0123".to_owned(), ts: late.id.clone() };
    ledger.note_slack_message(&message, "C0123", tenant, &id, now).await.unwrap();
    assert!(ledger.request_of_slack_message(&message).await.unwrap().is_some());
    assert_eq!(ledger.slack_messages(tenant, &id).await.unwrap().len(), 1);
    ledger.forget_slack_message(&message).await.unwrap();
    assert!(ledger.take_slack_call(&late.id, now).await.unwrap());
    assert!(!ledger.take_slack_call(&late.id, now).await.unwrap());
    ledger.forget_slack_calls(now).await.unwrap();
    ledger.lane_after("webhook/").await.unwrap();
    ledger.give_up_lane("webhook/gone", now, "gone", now, 1000).await.unwrap();
    ledger.note_asked(tenant, &caller.user, &id, now).await.unwrap();
    ledger.trace_parent(tenant, &id).await.unwrap();
    ledger.outcomes(tenant, &session, 0, None, 100).await.unwrap();
    ledger.outcomes(tenant, &session, 0, Some(ago), 100).await.unwrap();
    ledger.last_outcome(tenant, &session).await.unwrap();
    ledger.settled_since(now - TimeDelta::seconds(10)).await.unwrap();
    ledger.commented_since(now - TimeDelta::seconds(10)).await.unwrap();
    ledger.comments(tenant, &id).await.unwrap();
    ledger.comments_in(tenant, &session, ago).await.unwrap();
    ledger.newest_of_redis(&session).await.unwrap();
    ledger.find_request_of_redis(&of_redis).await.unwrap();
    ledger.decisions_of(&[of_redis.clone(), id.clone()]).await.unwrap();
    ledger.backlog().await.unwrap();
    ledger.count_pending(tenant, Some(&caller.user), 100).await.unwrap();
    ledger.count_pending(tenant, None, 100).await.unwrap();
    ledger.add_usage(tenant, now, 1).await.unwrap();

    ledger.unheard(ago, ago, 100).await.unwrap();
    let sent = app.settled(&seen.id).await;
    if let Some(owed) = ledger.claim_unheard(&sent, now).await.unwrap() {
        ledger.postpone(&owed, now).await.unwrap();
    }
    ledger.heard(tenant, &caller.user, &of_redis, now).await.unwrap();
    ledger.claim_owed(now, 100).await.unwrap();
    ledger.owe_again(&sent, now).await.unwrap();
    ledger
        .record_receipts(&[DeliveryReceipt::of(&sent, DeliveryResult::SUPERSEDED, now)])
        .await
        .unwrap();
    ledger.owe_lost(&["another history".to_owned()], now).await.unwrap();
    ledger.claim_owed(soon, 100).await.unwrap();

    let asked_again = AskedAgain {
        id: of_redis.clone(),
        tenant: tenant.clone(),
        content_hash: sent.content_hash.clone(),
        until: soon,
        read_at: soon,
    };
    ledger.note_asked_again(&[asked_again]).await.unwrap();
    ledger.forget_asked_again(std::slice::from_ref(&of_redis)).await.unwrap();
    ledger.still_pending(std::slice::from_ref(&of_redis)).await.unwrap();
    let candidate = Asked::new().candidate(Origin::Redis, now);
    let found = SeenRequest {
        tenant: tenant.clone(),
        user: candidate.user.clone(),
        request: candidate.request,
        seen_at: now,
        asked_at: now,
        expires_at: later,
        read_at: now,
        has_moved_on: false,
        replication_id: Some("x".to_owned()),
        ruling: Ruling::default(),
    };
    let found = [found];
    ledger.write_seen(&found).await.unwrap();
    let id = &found[0].request.id;
    let rows = ledger.seen_after(&id.as_str()[..id.as_str().len() - 1], 10).await.unwrap();
    let rows = rows.into_iter().filter(|row| row.id == *id).collect::<Vec<_>>();
    ledger.refresh_seen(&rows).await.unwrap();
    let gone = GoneRequest {
        tenant: tenant.clone(),
        id: id.clone(),
        read_at: soon,
        replication_id: "x".to_owned(),
    };
    assert_eq!(ledger.close_gone(&[gone], soon).await.unwrap().len(), 1);
    vote_and_bind(app).await;
    ledger.hold_lease("test", "one", now, soon).await.unwrap();
    ledger.give_lease_back("test", "one").await.unwrap();

    let task = app.task_of(&asked.id).await;
    ledger.release_task(tenant, &task.id, now).await.unwrap();
    for step in [TaskStep::Start, TaskStep::Complete { result: None }] {
        take_step(ledger, &caller, &task.id, &step, &Clock::System).await.unwrap();
    }
    ledger.close_open_tasks(long_ago, 100, now).await.unwrap();
    ledger.close_open_tasks(now - TimeDelta::days(1), 10, now).await.unwrap();

    let rows = ledger.claim_outbox(AUDIT, now, soon, 100).await.unwrap();
    ledger.delete_outbox(&rows.iter().map(|row| row.id).collect::<Vec<_>>()).await.unwrap();
    ledger.postpone_outbox(1, later, None).await.unwrap();
    ledger.oldest_in_outbox(AUDIT).await.unwrap();
    tell_of_requests(app, &tenant.clone(), now).await;
    for before in [long_ago, now - TimeDelta::days(1)] {
        ledger.purge_requests(before, 10).await.unwrap();
        ledger.purge_refused_attempts(before, 10).await.unwrap();
        ledger.purge_tasks(before, 10).await.unwrap();
    }
}

/// In each order, of each scope, the first page and the next one.
async fn list_requests(app: &TestApp, asked: &Asked) {
    let (ledger, caller) = (&app.state.ledger, ALICE.caller());
    let since = Clock::System.now() - TimeDelta::seconds(10);
    ledger.changed_since(&caller.tenant, since).await.unwrap();
    let changed = [RequestId::parse(asked.id.clone()).unwrap()];
    ledger.find_changed(&caller.tenant, &changed).await.unwrap();
    ledger.tenant_after("tenant1").await.unwrap();
    ledger.unprepared("tenant1", "old_3").await.unwrap();
    ledger.document_to_prepare("tenant1", "old_3").await.unwrap();
    ledger.fill_in_listed(("tenant1", "old_3"), None, "e").await.unwrap();
    ledger.count_waiting(&caller.tenant, &[caller.user, BOB.caller().user]).await.unwrap();
    let of_tenant2 = Who { tenant: "tenant2", ..ADMIN };
    for who in [ADMIN, of_tenant2] {
        for scope in ["decidable", "mine", "tenant"] {
            for query in [
                "",
                "&sort=-createdAt&status=pending,approved,rejected,answered,expired,cancelled",
                "&status=approved,rejected,answered,expired,cancelled",
                "&status=pending,approved,rejected,answered,expired,cancelled",
                "&userId=user1",
            ] {
                // Without an index of its own, a list reads up to 10,000 rows to find a few.
                if scope == "mine" && query.contains("approved") {
                    continue;
                }
                let path = format!("/api/aura/hitl/requests?scope={scope}&size=2{query}");
                let first = app.get(who, &path).await;
                first.assert(200, "");
                if let Some(next) = first.data()["nextCursor"].as_str() {
                    app.get(who, &format!("{path}&cursor={next}")).await.assert(200, "");
                }
            }
        }
    }
}

/// In the forms that libpq documents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_of_postgres_are_read_as_libpq_reads_them() {
    let mut postgres = PrivatePostgres::start().await;
    let folder = postgres.folder().display().to_string();
    let encoded = folder.replace('/', "%2F");
    postgres.crash();
    postgres.start_with_sockets().await;
    let port = postgres.port();
    for url in [
        format!("postgresql:///postgres?host={folder}&port={port}&user=postgres"),
        format!("postgres://postgres@{encoded}:{port}/postgres"),
        format!("postgresql://postgres@localhost:{port}/postgres?sslmode=disable"),
        format!("postgresql://postgres@127.0.0.1:{port}?sslmode=prefer&application_name=x"),
        format!("postgresql:///?hostaddr=127.0.0.1&port={port}&user=postgres&dbname=postgres"),
    ] {
        let ledger = Ledger::connect_postgres(&url.clone().into(), Pooler::None, 2).await;
        ledger.unwrap_or_else(|error| panic!("{url}: {error}")).close().await;
    }
    let folder = TempDir::new().unwrap();
    for (url, says) in [
        (format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=require"), "TLS"),
        (format!("postgres://postgres@127.0.0.1:{port},127.0.0.1:{port}/postgres"), "DATABASE_URL"),
        (format!("postgres://postgres@127.0.0.1:{port}/postgres?connect_timeout=3"), "known"),
        (format!("postgres://postgres@/postgres?host=127.0.0.1&port={port}"), "DATABASE_URL"),
    ] {
        let output = Program::new(&folder, &["migrate"])
            .with("DATABASE_URL", &url)
            .with("REDIS_URL", "redis://127.0.0.1:1")
            .with("JWT_SECRET", "x".repeat(40))
            .output();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{url}");
        assert!(said.contains(says) && said.trim().lines().count() == 1, "{url}: {said}");
    }
}

/// With its default, time-outs would leak into other programs' sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_that_no_setting_names_is_refused() {
    let postgres = PrivatePostgres::start().await;
    let bouncer = PgBouncer::start(postgres.port(), "transaction").await;
    let refused = Ledger::connect_postgres(&bouncer.url().into(), Pooler::None, 2).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("database_pooler = \"transaction\""), "{said}");
    let bouncer = PgBouncer::start(postgres.port(), "session").await;
    Ledger::connect_postgres(&bouncer.url().into(), Pooler::None, 2).await.unwrap().close().await;
}

/// A server of before Redis 7, which cannot say what a script may do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_older_than_7_is_not_ready() {
    let program = test_variable("TEST_OLD_REDIS");
    let redis = PrivateRedis::start_program(program, &[]).await;
    let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.redis = Some(redis.settings());
    })
    .await;
    eventually(async || (ready(&app).await == 503).then_some(())).await;
    assert_eq!(ready(&app).await, 503);
    // What needs no Redis is done.
    let asked = registered(&app).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
}

/// In both forms, decided and signalled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_reached_over_a_socket() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("redis.sock").display().to_string();
    let redis = PrivateRedis::start_with(&["--unixsocket", &socket]).await;
    for scheme in ["unix", "redis+unix"] {
        let app = TestApp::spawn_with(Mode::Production, Clock::System, |config| {
            config.redis = Some(RedisSettings::Url(format!("{scheme}://{socket}").into()));
        })
        .await;
        eventually(async || (ready(&app).await == 200).then_some(())).await;
        let asked = Asked::new();
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        eventually(async || {
            let key = format!("hitl:signal:{}", asked.session);
            let signal: Option<String> = redis.command(&["GET", &key]).await;
            signal.filter(|signal| signal.contains(&asked.id))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_a_killed_migration_left_half_built_is_built_anew() {
    let postgres = PrivatePostgres::start().await;
    let url = SecretString::from(postgres.url());
    let ledger = Ledger::connect_postgres(&url, Pooler::None, 2).await.unwrap();
    ledger.migrate(Some(&url)).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    // As a crash in the midst of a migration leaves them: one index half-built, the others built, and
    // the migration not noted. One more, half-built too, is an operator's.
    let crash = "DELETE FROM _sqlx_migrations WHERE version = 28;
         CREATE INDEX operators ON hitl_request (user_id);
         UPDATE pg_index SET indisvalid = FALSE
          WHERE indexrelid IN ('hitl_request_task_owned'::regclass, 'operators'::regclass)";
    connection.execute(crash).await.unwrap();
    assert!(!ledger.is_migrated().await.unwrap());
    ledger.migrate(Some(&url)).await.unwrap();
    assert!(ledger.is_migrated().await.unwrap());
    let invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid";
    let invalid = connection.fetch_all(invalid).await.unwrap();
    let invalid = invalid.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>();
    assert_eq!(invalid, ["operators"]);
    let built = "SELECT COUNT(*) FROM pg_indexes
         WHERE indexname IN ('hitl_request_task_owned', 'hitl_request_overdue')";
    assert_eq!(connection.fetch_one(built).await.unwrap().get::<i64, _>(0), 2);
}

/// Postgres ends a connection while it decides. The decision was not stored, but the service cannot
/// know that, so the answer claims neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_postgres_breaks_off_is_not_acknowledged() {
    let app = TestApp::spawn(Mode::Production).await;
    let LedgerConfig::Postgres { url, .. } = &app.config.ledger else { panic!("no Postgres") };
    let asked = Asked::new();
    app.register(ALICE, &asked).await.assert(201, "");
    let mut holding = PgConnection::connect(url.expose_secret()).await.unwrap();
    let mut ending = PgConnection::connect(url.expose_secret()).await.unwrap();
    holding.execute("BEGIN; SELECT 1 FROM hitl_request FOR UPDATE").await.unwrap();
    // On a busy machine the decision may give up before its connection ends, and says so.
    let answer = until_there_is_room(async || {
        let ended = async {
            eventually(async || {
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock'";
                let ended = ending.fetch_one(end).await.unwrap().get::<i64, _>(0);
                (ended > 0).then_some(())
            })
            .await;
        };
        match select(pin!(app.approve(ALICE, &asked.id)), pin!(ended)).await {
            Either::Left((gave_up, _ended)) => gave_up,
            Either::Right(((), approving)) => approving.await,
        }
    })
    .await;
    let message = answer.assert(503, "E5000").body["message"].as_str().unwrap();
    assert!(message.starts_with("Outcome unknown"), "{message}");
    holding.execute("ROLLBACK").await.unwrap();
    assert_eq!(app.record(&asked.id).await.state, State::Pending);
    assert!(app.signal(&asked.session).await.is_none());
    app.approve(ALICE, &asked.id).await.assert(200, "");
    assert!(matches!(app.record(&asked.id).await.state, State::Decided(_)));
}
