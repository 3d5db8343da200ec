//! What real infrastructure does to the ledger: servers that become read-only, disks that fill up,
//! poolers, slow networks, databases of another kind.

use std::process::Command;
use std::time::Duration;

use aura_hitl::app;
use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::clock::Clock;
use aura_hitl::ledger::{Ledger, Pooler};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tempfile::TempDir;

use crate::helpers::{
    ALICE, Asked, BOB, Mode, TestApp, eventually, eventually_within, fresh_database, unique,
};
use crate::proxy::Proxy;
use crate::servers::{PgBouncer, PrivatePostgres, Program, Tmpfs, free_port};

fn ledger(url: String, pooler: Pooler) -> LedgerConfig {
    LedgerConfig::Postgres { url: SecretString::from(url), pooler, max_connections: 4 }
}

async fn app_on(url: String) -> TestApp {
    TestApp::spawn_with(Mode::Production, Clock::System, |config| {
        config.ledger = ledger(url, Pooler::None);
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
    app.register(ALICE, &asked).await.assert(201, "");
    asked
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
    let add = |from: u32, to: u32| {
        format!(
            "INSERT INTO agent_task (task_id, user_id, tenant_id, task_type, status, progress,
                                     plan_steps, created_at, updated_at)
             SELECT 'task_' || n, 'user123', 'tenant1', 't', 'REQUESTED', 0, '[]', now(), now()
               FROM generate_series({from}, {to}) AS n"
        )
    };
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
    app::migrate(&app.config, &app.core.ledger).await.unwrap();
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

/// Every statement of the service on 50,000 rows of one tenant, with the plans that Postgres makes
/// without ever having analysed them, or having analysed them while they were empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_tenant_on_tables_that_were_never_analysed() {
    for analysed_while_empty in [false, true] {
        let postgres = PrivatePostgres::start().await;
        let url = postgres.url();
        sql(
            &url,
            &[
                "LOAD 'auto_explain'",
                "ALTER SYSTEM SET session_preload_libraries = 'auto_explain'",
                "ALTER SYSTEM SET autovacuum = off",
                "ALTER SYSTEM SET plan_cache_mode = 'force_generic_plan'",
                "ALTER SYSTEM SET auto_explain.log_min_duration = 0",
                "ALTER SYSTEM SET auto_explain.log_analyze = on",
                "SELECT pg_reload_conf()",
            ],
        )
        .await;
        let app = app_on(url.clone()).await;
        if analysed_while_empty {
            sql(&url, &["ANALYZE"]).await;
        }
        let fill = [
            "INSERT INTO agent_task (task_id, user_id, tenant_id, task_type, status, progress,
                                     plan_steps, hitl_request_id, created_at, updated_at)
             SELECT 'old_' || n, 'user' || n % 500, 'tenant1', 't', 'IN_PROGRESS', 0, '[]',
                    'old_' || n, now() - interval '2 days', now() - interval '2 days'
               FROM generate_series(1, 50000) AS n",
            "INSERT INTO hitl_request (request_id, origin, tenant_id, session_id, user_id,
                 action_type, fingerprint, content_hash, document, task_id, owns_task, created_at,
                 expires_at, status, decided_by, decided_at, delivery, owed_since, due_at, sent_at,
                 listeners, sent_to, settled_at, outcome)
             SELECT 'old_' || n, 'http', 'tenant1', 's' || n % 5000, 'user' || n % 500, 'a', 'f',
                    'h', '{}', 'old_' || n, TRUE, now() - interval '2 days',
                    now() - interval '1 day', 'approved', 'bob', now() - interval '2 days', 'sent',
                    now() - interval '2 days', now() - interval '2 days',
                    now() - interval '2 days', 0, 'x', now() - interval '2 days', n
               FROM generate_series(1, 50000) AS n",
        ];
        sql(&url, &fill).await;
        let log = postgres.folder().join("log");
        let before = std::fs::read_to_string(&log).unwrap().len();
        for _ in 0..3 {
            let asked = registered(&app).await;
            app.approve(ALICE, &asked.id).await.assert(200, "");
            app.reject(BOB, &asked.id, None).await.assert(409, "E3006");
            let seen = Asked::new();
            app.ask(&seen).await;
            app.approve(ALICE, &seen.id).await.assert(200, "");
            app.get(ALICE, &format!("/aura/hitl/signals/{}", seen.session)).await;
            // Its session names nothing.
            let unnamed = Asked::new();
            app.put(&unnamed.id, &unnamed.document.to_string()).await;
            app.approve(ALICE, &unnamed.id).await.assert(200, "");
            app.get(ALICE, &format!("/aura/hitl/signals/{}", unnamed.session)).await;
            app.get(ALICE, &format!("/aura/hitl/requests/{}", asked.id)).await;
            app.get(ALICE, &format!("/aura/hitl/requests/{}/decision", asked.id)).await;
            app.get(ALICE, "/api/main/agent/tasks?size=20").await.assert(200, "");
        }
        // The workers' statements too.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let text = std::fs::read_to_string(&log).unwrap();
        let mut wasteful = Vec::new();
        for plan in text[before..].split("LOG:  duration:") {
            let is_large = |line: &str| {
                let removed = line.trim().strip_prefix("Rows Removed by Filter: ");
                removed.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 500)
            };
            // Of the workers' three, no caller waits for the answer: planned on empty tables, they
            // read hitl_request whole until it is analysed.
            let is_workers = [
                "SET due_at = $2, attempts",
                "SET delivery = 'owed', due_at = $1",
                "WHERE status = 'pending' AND expires_at <= $1",
            ]
            .iter()
            .any(|statement| plan.contains(statement));
            if plan.lines().any(is_large) && !(is_workers && analysed_while_empty) {
                wasteful.push(plan.chars().take(3000).collect::<String>());
            }
        }
        assert!(wasteful.is_empty(), "{} plans: {}", wasteful.len(), wasteful.join("\n====\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_a_killed_migration_left_half_built_is_built_anew() {
    let postgres = PrivatePostgres::start().await;
    let url = SecretString::from(postgres.url());
    let ledger = Ledger::connect_postgres(&url, Pooler::None, 2).await.unwrap();
    ledger.migrate(Some(&url)).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    // As a crash leaves them: one index half-built, one built and its migration not noted. A third
    // one, half-built too, is an operator's.
    let crash = "DELETE FROM _sqlx_migrations WHERE version IN (24, 25);
         CREATE INDEX operators ON hitl_request (user_id);
         UPDATE pg_index SET indisvalid = FALSE
          WHERE indexrelid IN ('hitl_request_pending_of'::regclass, 'operators'::regclass)";
    connection.execute(crash).await.unwrap();
    assert!(!ledger.is_migrated().await.unwrap());
    ledger.migrate(Some(&url)).await.unwrap();
    assert!(ledger.is_migrated().await.unwrap());
    let invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid";
    let invalid = connection.fetch_all(invalid).await.unwrap();
    let invalid = invalid.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>();
    assert_eq!(invalid, ["operators"]);
    let built = "SELECT COUNT(*) FROM pg_indexes
         WHERE indexname IN ('hitl_request_pending_of', 'hitl_request_task_open')";
    assert_eq!(connection.fetch_one(built).await.unwrap().get::<i64, _>(0), 2);
}
